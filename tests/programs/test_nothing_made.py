"""A run from which nothing came out says so and ends in 1; a key that is refused is tried a few times at most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from programs import calibrate, evaluate_localizer, intervene, label_steps, localize, loop, route
from tests.scorers.stand_in import Answer, serving

MAIN = {
    "route": (route.main, ["--n", "20"], "no solution has an answer"),
    "intervene": (intervene.main, ["--lab", "4"], "no example came out"),
    "label_steps": (label_steps.main, ["--lab", "4"], "no solution was labelled"),
    "evaluate_localizer": (evaluate_localizer.main, ["--data", "rows.jsonl"], "all 20 attempts of module failed"),
    "localize": (localize.main, ["--compare", "rows.jsonl"], "all 20 rows failed"),
    "calibrate": (calibrate.main, ["--n", "20", "--budget", "5"], ""),
    "loop": (loop.main, ["--lab", "10", "--n", "10"], ""),
}


def _start(name: str, url: str, folder: Path) -> int:
    rows = [{"problem": f"{i} + 1?", "steps": ["It is 3.", "So 3."], "label": 0} for i in range(20)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tables = [
        f'[models.{role}]\nmodel = "openai/{name}-{role}"\napi_base = "{url}/v1"\nsequences = 4\n'
        f'api_key_env = "DOOR"\ncontinuation = "prefill"\n'
        for role in ("weak", "strong", "critic")
    ]
    (folder / "c.toml").write_text("\n".join([*tables, '[scorer]\nkind = "constant"\nvalue = 0.2\n']))
    main, options, _ = MAIN[name]
    return main([*options, "--config", "c.toml", "--out", "out"])


@pytest.mark.parametrize(("name", "text"), [
    ("route", "I do not know."), ("intervene", "I do not know."), ("intervene", ""), ("label_steps", "I do not know."),
    ("evaluate_localizer", "I do not know."), ("localize", "I do not know."),
])  # fmt: skip
def test_a_run_from_which_nothing_comes_out_says_so_and_ends_in_1(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOOR", "a-secret-for-the-door")
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    reply = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}

    def answer(path: str, body: Any) -> Answer:
        return Answer(reply)

    with serving(answer) as server:
        assert _start(name, server.url, tmp_path) == 1
    said = capsys.readouterr()
    assert MAIN[name][2] in " ".join((said.out + said.err).split())


@pytest.mark.parametrize("name", MAIN)
def test_a_refused_key_stops_every_program_at_its_first_requests(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOOR", "a-secret-for-the-door")

    def refuse(path: str, body: Any) -> Answer:
        return Answer({"error": {"message": "bad key a-secret-for-the-door"}}, 401)

    with serving(refuse) as server:
        assert _start(name, server.url, tmp_path) == 1
    assert 0 < len(server.requests) <= 12
    said = capsys.readouterr()
    for output in (said.out, said.err, *(file.read_text() for file in tmp_path.rglob("*") if file.is_file())):
        assert "a-secret-for" not in output
