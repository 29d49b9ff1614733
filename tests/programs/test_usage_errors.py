"""A mistake of usage is answered before anything that takes long is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("dspy", "litellm", "llama_cpp", "torch", "transformers", "peft", "sympy", "fastapi", "uvicorn")
GONE = ["--set", "models.weak.model=llamacpp/gone.gguf"]
UNKNOWN = [
    *([name, "--no-such", "1"] for name in (
        "demo", "route", "serve", "train_router", "intervene", "build_dataset", "label_steps", "loop", "export",
        "evaluate_localizer", "init", "doctor", "import", "config",
    )),
    ["calibrate", "--budget", "5", "--no-such"],
    ["fit_router", "--lab", "3", "--no-such"],
    ["localize", "attempt.json", "--no-such"],
    ["train", "sft", "--no-such"],
]  # fmt: skip
OWN = ["--set", "routing.policy=own_of_mine:Late"]
MISTAKES = [
    *UNKNOWN,
    *([name, *wrong] for name in ("demo", "route", "serve", "intervene", "label_steps", "loop") for wrong in (
        ["--config", "bad.toml"], ["--config", "gone.toml"], ["--set", "seed=x"], GONE,
    )),
    *([name, *wrong] for name in ("route", "intervene", "label_steps") for wrong in (
        ["--problems", "gone.jsonl"], ["--problems", "unread.jsonl"], ["--n", "many"],
        ["--problems", "good.jsonl", "--lab", "3"], ["--problems", "good.jsonl", "--columns", "x=y"],
    )),
    ["route", "--set", "routing.policy=tresh"],
    ["route", "--set", "routing.policy=no_module:Mine"],
    ["route", "--policy", "gone.json"],
    ["route", "--at", "3", "--set", "routing.policy=never"],
    ["route", "--weak", "gone.gguf", "--strong", "gone.gguf"],
    ["calibrate", "--budget", "5", "--set", "routing.policy=never"],
    ["calibrate", "--budget", "5", "--problems", "good.jsonl", "--measure-on", "more.jsonl", *OWN],
    ["route", "--problems", "good.jsonl", *OWN, "--set", "routing.options.start='late'"],
    ["calibrate", "--budget", "5", "--problems", "gone.jsonl", "--measure-on", "good.jsonl"],
    ["calibrate", "--budget", "5", "--policy", "gone.json"],
    ["loop", "--problems", "gone.jsonl", "--validation", "good.jsonl", "--test", "good.jsonl"],
    ["train", "sft"],
    ["train", "sft", "--dataset", "gone.jsonl"],
    ["train", "rl", "--problems", "gone.jsonl"],
    ["train", "scorer", "--labels", "gone.jsonl"],
    ["train", "sfft"],
    ["build_dataset", "--kind", "rejection", "--problems", "gone.jsonl"],
    ["build_dataset", "--kind", "routing", "--traces", "gone"],
    ["export", "gone", "--merge"],
    ["import", "gone.gguf", "out"],
    ["init", "gone.gguf", "gone.gguf"],
    ["localize", "gone.json"],
    ["evaluate_localizer", "gone.json"],
    ["fit_router", "--problems", "gone.jsonl", "--recovery", "0"],
    ["train_router", "--fit", "gone.json"],
]  # fmt: skip
LATE = """
from stepwise.routing import Keep, Policy
class Late(Policy):
    dial = "start"
    def __init__(self, start: float = 0.5):
        self.start = start
    def decide(self, view):
        return Keep()
"""
CODE = """
import contextlib, io, json, sys
from stepwise.cli import main
heavy, mistakes, results = *json.load(sys.stdin), []
for mistake in mistakes:
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main(mistake)
    results.append((code, said.getvalue(), [name for name in heavy if name in sys.modules]))
print(json.dumps(results))
"""


@pytest.mark.slow
def test_a_mistake_of_usage_is_answered_before_heavy_imports(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[routing]\nthreshhold = 1\n")
    (tmp_path / "good.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
    (tmp_path / "more.jsonl").write_text('{"question": "1 + 2?", "answer": "3"}\n')
    (tmp_path / "own_of_mine.py").write_text(LATE)
    (tmp_path / "unread.jsonl").write_text('{"text": "1 + 1?", "answer": "2"}\n')
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps((HEAVY, MISTAKES)),
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    for mistake, (code, said, imported) in zip(MISTAKES, json.loads(done.stdout), strict=True):
        assert not imported, (mistake, imported)
        assert code in (1, 2), (mistake, code, said)
        (line,) = [line for line in said.splitlines() if not line.startswith("loading stepwise")]
        assert line.startswith("error: "), (mistake, said)
