"""A small world to learn in: the lab's weak model in 32 bits on its shortest problems, and a run to kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stepwise import lab
from stepwise.config import Config
from stepwise.lab.problems import Knobs, LabProblem
from stepwise.types import Problem

KNOBS = Knobs(lengths=(3, 3), traps=(0.0, 1.0, 0.0), families=("percent", "reversed"), wording="shared")
UNTIMED = ("seconds", "peak_bytes")


def lab_problems(n: int = 6) -> dict[str, LabProblem]:
    return {made.problem.id: made for made in lab.generate("train", n, knobs=KNOBS)}


def problems(n: int = 6) -> list[Problem]:
    return [made.problem for made in lab_problems(n).values()]


def locate(problem: Problem, steps: Any) -> int | None:
    """The lab's truth."""
    return lab_problems(32)[problem.id].first_error(list(steps))


def config(folder: Path | None = None, *overrides: str) -> Config:
    """Two problems, two rollouts each, blame by the lab's truth; with an exact sampler where there is a folder."""
    settings = (
        "rl.steps=4", "rl.problems=2", "rl.group=2", "rl.max_tokens=120", "rl.save_every=2", "rl.learning_rate=1e-3",
        "rl.credit.scheme=first_error", "rl.credit.first_error=given", "rl.no_answer=mask", "lora.rank=4",
    )  # fmt: skip
    made = Config.load(None, [*settings, *overrides])
    if folder is None:
        return made
    from stepwise.training.sampler import exact_weights

    return exact_weights(made, folder)


def train(out: str, cfg: str, n: int = 6) -> None:
    """A whole run, for another process."""
    import torch

    from stepwise.training.reinforce import grpo

    torch.set_num_threads(1)
    grpo(problems(n), Config.model_validate_json(cfg), out, locate=locate)


def untimed(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file without what another run cannot repeat."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(UNTIMED)} for row in rows]
