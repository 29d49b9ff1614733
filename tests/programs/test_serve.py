"""`stepwise serve` as a process: it answers, ends at SIGTERM, and keeps its caps over its starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from programs import serve
from stepwise.lab.problems import generate

ROOT = Path(__file__).resolve().parents[2]
KEY = "alice-0123456789abcdef"


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "stepwise.cli", "serve", "--config", "router.toml", "--port", "0", "--out", "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ALICE_KEY": KEY, "COLUMNS": "200"}
    running = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if found := re.match(r"(http://127\.0\.0\.1:\d+)/v1 is served with the keys alice", line):
            return running, found[1]
    raise AssertionError("it does not serve")


@pytest.mark.slow
def test_a_server_keeps_the_caps_of_its_keys_over_its_starts(tmp_path: Path) -> None:
    (tmp_path / "router.toml").write_text('[serve.api_keys.alice]\napi_key_env = "ALICE_KEY"\ncalls = 8\n')
    question, answered = generate("test", 4)[3].problem.question, []
    body = {"model": "router-never", "messages": [{"role": "user", "content": question}], "seed": 1}
    for _ in range(3):
        running, url = start(tmp_path)
        reply = httpx.post(
            f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        )
        answered.append(reply.status_code)
        running.send_signal(signal.SIGTERM)
        assert running.wait(30) == 0
    assert answered == [200, 200, 429]
    assert "serve.api_keys.alice.calls" in reply.json()["error"]["message"]
    rows = (tmp_path / "out" / "spent.alice.jsonl").read_text().splitlines()
    assert len(rows) == len((tmp_path / "out" / "spent.jsonl").read_text().splitlines()) == 8
    assert question not in "".join(file.read_text() for file in (tmp_path / "out").iterdir())


def test_a_server_whose_key_is_not_set_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ALICE_KEY", raising=False)
    given = ["--set", "serve.api_keys.alice.api_key_env=ALICE_KEY", "--out", str(tmp_path / "out")]
    assert serve.main(given) == 2
    assert "ALICE_KEY must hold a key" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    for module in ("stepwise.serve.app", "stepwise.serve.running"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    assert serve.main(["--out", str(tmp_path / "out")]) != 0
    assert f'serving needs {missing}, which is not installed; pip install "stepwise[serve]"' in capsys.readouterr().err


def test_a_dry_run_says_what_a_request_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(["--dry-run", "--out", str(tmp_path / "out")]) == 0
    assert "Dry run" in capsys.readouterr().out
