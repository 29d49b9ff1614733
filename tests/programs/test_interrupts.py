"""Ctrl-C at random moments of programs that take long, on the lab: they say so, and the same command goes on.

Training and collections on the lab give the bytes of a run that nothing stopped; programs that route ask for what is
left in batches of another shape, and give a row for every problem. A minute or two each: only with the slow tests.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

_HERE = Path(__file__).parents[2]
_SFT = {"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "2 + 3 = 5.\n\nSo \\boxed{5}."}
PROGRAMS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # What makes a run, and its files that do not depend on time.
    "route": (["route", "--lab", "24"], ("traces.jsonl",)),
    "calibrate": (["calibrate", "--budget", "6", "--n", "8", "--rounds", "3"], ("calibrated.json",)),
    "fit_router": (["fit_router", "--lab", "60"], ("fit.json",)),
    "intervene": (["intervene", "--lab", "24"], ("dataset.jsonl",)),
    "evaluate_localizer": (["evaluate_localizer", "--data", "{rows}", "--threads", "2"], ("localization.json",)),
    "train sft": (
        ["train", "sft", "--dataset", "{chats}", "--set", "sft.batch=2"],
        ("adapter/adapter_model.safetensors",),
    ),
    "train rl": (
        ["train", "rl", "--lab", "12", "--set", "rl.steps=3", "--set", "rl.problems=6", "--set", "rl.group=4",
         "--set", "rl.max_tokens=200"],
        ("adapter/adapter_model.safetensors",),
    ),
}  # fmt: skip


def _start(command: list[str], out: Path, said: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(_HERE), "HF_HUB_OFFLINE": "1"}
    with said.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "stepwise.cli", *command, "--out", str(out)], stdout=file, stderr=file,
            env=environment, cwd=_HERE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip


def _longest_silence(process: subprocess.Popen[bytes], said: Path) -> float:
    """Waits for the end; seconds between lines, by the clock or by the processor, whichever are fewer: a machine that
    is busy with other things is no silence of the program.
    """
    longest, size, last = 0.0, 0, (time.monotonic(), 0.0)
    while process.poll() is None:
        time.sleep(0.2)
        stat, now = Path(f"/proc/{process.pid}/stat"), time.monotonic()
        fields = stat.read_text().rpartition(")")[2].split() if stat.exists() else []
        used = sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if len(fields) > 12 else now - last[0] + last[1]
        longest = max(longest, min(now - last[0], used - last[1]))
        if said.stat().st_size != size:
            size, last = said.stat().st_size, (now, used)
    return longest


def _given(tmp_path: Path) -> dict[str, str]:
    """Rows for the programs that read some."""
    from stepwise import lab

    chats, rows = tmp_path / "chats.jsonl", tmp_path / "rows.jsonl"
    chats.write_text("".join(json.dumps({"messages": [{**_SFT[0], "content": f"What is {i} + 3?"}, _SFT[1]]}) + "\n"
                             for i in range(12)))  # fmt: skip
    made = lab.generate("test", 6)
    rows.write_text("".join(json.dumps({"id": m.problem.id, "problem": m.problem.question, "generator": "lab",
                                        "steps": m.problem.reference.split("\n\n"), "final_answer_correct": True,
                                        "label": -1}) + "\n" for m in made))  # fmt: skip
    return {"chats": str(chats), "rows": str(rows)}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_ctrl_c_at_a_random_moment_loses_nothing_that_was_done(name: str, tmp_path: Path) -> None:
    given, (command, files) = _given(tmp_path), PROGRAMS[name]
    command = [part.format(**given) for part in command]
    said, rng, began = tmp_path / "said", random.Random(name), time.monotonic()
    process = _start(command, tmp_path / "whole", said)
    silence = _longest_silence(process, said)
    assert process.returncode == 0, said.read_text()[-2000:]
    assert silence < 12, (silence, said.read_text())
    long, stopped = time.monotonic() - began, 0
    for _ in range(2):
        process = _start(command, tmp_path / "out", said)
        time.sleep(rng.uniform(0.35, 0.9) * long)
        process.send_signal(signal.SIGINT)
        code = process.wait(600)
        if code != -signal.SIGINT:  # it was done, and Python on its way out
            assert code in (0, 130), said.read_text()[-2000:]
            ours = re.sub(r"Exception ignored in.*?\nKeyboardInterrupt", "", said.read_text(), flags=re.DOTALL)
            assert "Traceback" not in ours  # Python passes over one that comes while an object is deleted
        stopped += code == 130
        done = tmp_path / "out" / files[0]
        if name in ("route", "intervene") and done.exists() and done.stat().st_size:
            assert (tmp_path / "out" / "report.html").exists()
    assert _start(command, tmp_path / "out", said).wait(1800) == 0, said.read_text()[-2000:]
    for file in files:
        out, whole = ((tmp_path / folder / file).read_bytes() for folder in ("out", "whole"))
        if file == "traces.jsonl":
            finished = [{row["problem"]["id"] for row in map(json.loads, text.splitlines()) if row["finish"]}
                        for text in (out, whole)]  # fmt: skip
            assert finished[0] == finished[1], stopped
        elif name in ("calibrate", "fit_router"):
            assert json.loads(out).keys() == json.loads(whole).keys(), stopped
        else:
            assert out == whole, (file, stopped)
