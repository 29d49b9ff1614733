"""A program that counts, for tests of what every program does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from stepwise.config import Config
from stepwise.runs.plan import PlannedCalls
from stepwise.runs.shell import Options, Run, program

SECRET = "sk-abcdefghijklmnop123456"


class Counting(Options):
    count: int = 3
    """rows"""
    fail_at: int = -1
    """row at which it fails"""


def plan(config: Config, args: Counting) -> list[PlannedCalls]:
    return [PlannedCalls("weak", args.count, 100 * args.count, 10 * args.count)]


def counting(error: type[BaseException] = KeyboardInterrupt, *, resumable: bool = True) -> Callable[..., int]:
    """A program that writes the rows 0..count-1, going on after those that are there, and fails at a row if told to."""

    @program(Counting, doc="Count.", plan=plan, resumable=resumable)
    def main(run: Run) -> None:
        done = len(run.rows("rows.jsonl"))
        for number in range(done, run.args.count):
            if number == run.args.fail_at:
                raise error(f"row {number}, {SECRET}")
            run.write("rows.jsonl", {"n": number, "start": done})
        run.metrics(rows=run.args.count, seed=run.config.seed)

    return main


def card(out: Path) -> dict[str, object]:
    return dict(json.loads((out / "run.json").read_text()))


def rows(out: Path) -> list[int]:
    return [json.loads(line)["n"] for line in (out / "rows.jsonl").read_text().splitlines()]
