"""stepwise localize --compare: how far a critic is above a constant guess, before anything is spent on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from programs import localize
from stepwise import critics
from tests.critics.critic import verified
from tests.scorers.stand_in import Answer, serving
from tests.scorers.test_judge import chat_answer

ROWS = [
    (["Half of 48 is 24.", "48 + 24 = 62.", "So 62."], 1),
    (["Half of 48 is 96.", "So 144."], 0),
    (["Half of 48 is 24.", "24 + 24 = 58.", "So 58."], 1),
    (["Half of 48 is 24.", "48 + 24 = 72."], -1),
    (["I add all there is.", "48 + 12 = 60.", "So 60.", "Done."], 0),  # wrong before any number is
]


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # where the answers are kept
    path = tmp_path / "labelled.jsonl"
    rows = [
        {"problem": "Ann sold 48 clips, Beth half of it. Both?", "steps": steps, "label": label,
         "reference": "Beth sold 48 / 2 = 24.\n\nBoth sold 48 + 24 = 72."}
        for steps, label in ROWS
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(*arguments: str) -> int:
    return localize.main([*arguments, "--set", "critic.method=reference"])


def test_hits_of_the_critic_stand_beside_those_of_the_best_constant_guess(
    labelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(labelled, "--compare") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the references' numbers: 3 of 4 first errors; always saying step 0: 2; difference +25 points (95 %:" in out
    assert "not to be told from a guess" in out
    assert "1 of 1 right attempts are found right" in out
    assert "Interventions at places that are a guess are spent in vain" in out


def test_as_json_and_of_the_first_rows_alone(labelled: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(labelled, "--compare", "--n", "2", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    assert (found["wrong"], found["found"], found["guessed"], found["place"]) == (2, 2, 1, 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compare"], "give one"),
        (["FILE", "--compare", "--propose"], "without --row, --propose"),
        (["FILE", "--n", "3"], "--n goes with --compare"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: list[str], said: str, labelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(labelled if part == "FILE" else part for part in arguments)) != 0
    assert said in capsys.readouterr().err


def test_ctrl_c_leaves_what_was_answered(labelled: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []

    def module(**item: Any) -> Any:
        asked.append(item)
        if len(asked) > 3:
            raise KeyboardInterrupt
        return critics.ErrorLocalizer(method="reference")(**item)

    arguments = [labelled, "--compare", "--set", "critic.method=reference"]
    assert localize.main(arguments, module=lambda _: module) == 130
    out = " ".join(capsys.readouterr().out.split())
    assert "interrupted after 3 of 5 rows, the same command goes on; of these:" in out
    assert "the references' numbers: 3 of 3 first errors" in out


def test_what_was_answered_before_a_crash_is_not_asked_for_again(
    labelled: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another file in the same directory too, and a single attempt leaves all of it where it is."""
    asked: list[list[str]] = []
    crashes = [9]

    def module(**item: Any) -> Any:
        if len(asked) == 3 and crashes:
            raise SystemExit(crashes.pop())
        asked.append(item["steps"])
        return critics.ErrorLocalizer(method="reference")(**item)

    def start(*arguments: str) -> int:
        return localize.main([*arguments, "--set", "critic.method=reference"], module=lambda _: module)

    with pytest.raises(SystemExit):
        start(labelled, "--compare")
    before = len(asked)
    assert before < len(ROWS)
    assert start(labelled, "--row", "1") == 0
    assert start(labelled, "--compare", "--n", "2", "--json") == 0
    assert len(asked) == before + 1
    fewer = Path(labelled).with_name("fewer.jsonl")
    fewer.write_text("".join(Path(labelled).read_text().splitlines(keepends=True)[1:3]))
    capsys.readouterr()
    assert start(str(fewer), "--compare", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out).values()
    assert (found["wrong"], found["found"]) == (2, 2)
    assert start(labelled, "--compare") == 0
    del asked[before]  # the single attempt
    assert sorted(asked) == sorted(steps for steps, _ in ROWS)


@pytest.mark.slow
def test_a_kill_costs_no_more_than_the_requests_that_were_open(tmp_path: Path) -> None:
    """Over an API: what had come is read from the directory, and the run ends with all rows."""
    rows, open_at_once = 24, 4
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"problem": f"{i} + 1?", "steps": ["It is 3.", "So 3."], "label": 1}) + "\n"
                for i in range(rows))
    )  # fmt: skip

    def slow(path: str, body: dict[str, Any]) -> Answer:
        time.sleep(0.1)
        return chat_answer(verified(1))

    with serving(slow) as server:
        (tmp_path / "c.toml").write_text(
            f'[models.critic]\nmodel = "openai/critic"\napi_base = "{server.url}/v1"\nsequences = {open_at_once}\n'
        )
        command = [
            sys.executable, "-m", "stepwise.cli", "localize", "--compare", "rows.jsonl", "--config", "c.toml", "--json",
            "--out", "out",
        ]  # fmt: skip
        environment = {**os.environ, "OPENAI_API_KEY": "none"}
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) as process:
            while len(server.requests) < rows // 2 and process.poll() is None:
                time.sleep(0.02)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert 0 < len((tmp_path / "out" / "compared.jsonl").read_text().splitlines()) < rows
        done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, check=True)
        assert rows <= len(server.requests) <= rows + open_at_once
    (found,) = json.loads(done.stdout).values()
    assert (found["wrong"], found["found"]) == (rows, rows)
