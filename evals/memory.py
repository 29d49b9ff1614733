"""Whether memory stays flat: the process's resident memory while thousands of different requests are answered.

    engine   a lab model in this process, one step of each question
    scorer   the lab's scorer in this process
    api      a model behind an API on loopback (`evals.fault_server`, without faults), with its answers on disk
    router   a StepRouter on the lab's models, one problem after another, as a server would ask it
    routed   a StepRouter over two models behind that API

Each request is another question, so nothing is answered from memory. Caches have bounds, which a tenth of the requests
fills with the bounds set here; what comes after that is growth. Held: at most `--allowed` bytes for each request after
a tenth of them (and 4 MiB, which the allocator may keep), and no file descriptor more. Writes memory.json; exit code 1
where a bar is missed. Linux only (/proc).
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import PositiveFloat, PositiveInt

from evals.fault_server import FaultServer
from stepwise import lab
from stepwise.config import ModelConfig, SamplingConfig
from stepwise.errors import DataError
from stepwise.io import write_text
from stepwise.models.base import Request
from stepwise.models.budget import Ledger
from stepwise.models.driver import Driver
from stepwise.models.engine import Engine
from stepwise.models.litellm import LiteLLMBackend
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.scorers import ConstantScorer, LabelTokenScorer
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.routing import StepRouter, Threshold
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Problem

_OPEN = 16  # requests in flight
_CACHE = 8 << 20  # bytes of the engine's cache in main memory, so that it is full early
Ask = Callable[[range], None]


class _Options(Options):
    requests: PositiveInt = 10_000
    """of each door"""
    doors: tuple[str, ...] = ()
    """names, all without it"""
    allowed: PositiveFloat = 1000.0
    """bytes that memory may grow by with each request after a tenth of them"""


def _problem(i: int) -> Problem:
    return Problem(f"p{i}", f"Mia has {i} apples and buys {i % 97} more. How many apples does Mia have now?")


def _loaded(stack: ExitStack, name: str) -> Engine:
    engine = Engine.load(lab.model_path(name), context=256, sequences=_OPEN, cache_memory=_CACHE)
    return stack.enter_context(engine)


@contextmanager
def _engine() -> Iterator[Ask]:
    with ExitStack() as stack:
        model = LlamaCppBackend(_loaded(stack, "lab-weak"))
        yield lambda part: _drain(model.continue_solutions([Request(_problem(i), max_tokens=6) for i in part]))


@contextmanager
def _scorer() -> Iterator[Ask]:
    with ExitStack() as stack:
        scorer = LabelTokenScorer(_loaded(stack, "lab-scorer"), memory=1000)
        yield lambda part: _drain(scorer.score_batch([(_problem(i), [f"Mia starts with {i}."]) for i in part]))


@contextmanager
def _api() -> Iterator[Ask]:
    with ExitStack() as stack:
        server = stack.enter_context(FaultServer("none"))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        config = ModelConfig(model="openai/m", api_base=server.url, continuation="prefill", sequences=_OPEN)
        store = stack.enter_context(CallCache(Path(folder) / "answers.jsonl", replays_are_free=True))
        model = Wrappers(Ledger(), store=store).model(stack.enter_context(LiteLLMBackend(config)), "weak")
        yield lambda part: _drain(Driver(exact=False).run(
            [model.generate(Request(_problem(i), max_tokens=50)) for i in part], window=_OPEN
        ))  # fmt: skip


@contextmanager
def _router() -> Iterator[Ask]:
    with ExitStack() as stack:
        weak, scorer = _loaded(stack, "lab-weak"), _loaded(stack, "lab-scorer")
        model = LlamaCppBackend(weak)
        reader, short = LabelTokenScorer(scorer, memory=1000), SamplingConfig(max_step_tokens=6)
        router = StepRouter(model, model, reader, Threshold(0.5), sampling=short, max_steps=1)

        def ask(part: range) -> None:
            for i in part:
                router(question=_problem(i).question)

        yield ask


@contextmanager
def _routed() -> Iterator[Ask]:
    with ExitStack() as stack:
        server = stack.enter_context(FaultServer("none"))
        config = ModelConfig(model="openai/m", api_base=server.url, continuation="prefill", sequences=_OPEN)
        router = stack.enter_context(StepRouter(config, config, ConstantScorer(0.9), Threshold(0.5)))

        def ask(part: range) -> None:
            for i in part:
                router(question=_problem(i).question)

        yield ask


_DOORS = {"engine": _engine, "scorer": _scorer, "api": _api, "router": _router, "routed": _routed}


def _drain(_: object) -> None:
    """Nothing of a portion is kept."""


def resident() -> float:
    """Resident memory of this process, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise DataError("/proc/self/status tells no VmRSS; run it on Linux")


def measure(door: str, requests: int, portions: int, advance: Callable[[int, str], None]) -> list[tuple[float, int]]:
    """Resident memory in MiB, and open file descriptors, after each of `portions` equal parts of the requests."""
    found, size = [], max(1, requests // portions)
    with _DOORS[door]() as ask:
        for start in range(0, size * portions, size):
            ask(range(start, start + size))
            gc.collect()
            found.append((resident(), len(list(Path("/proc/self/fd").iterdir()))))
            advance(size, f"{door} {found[-1][0]:.1f} MiB")
    return found


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    names, args = run.args.doors or tuple(_DOORS), run.args
    if unknown := set(names) - set(_DOORS):
        raise DataError(f"--doors {', '.join(sorted(unknown))}: no such door; there are {', '.join(_DOORS)}")
    rows: list[dict[str, Any]] = []
    with progress("requests", args.requests * len(names)) as advance:
        for name in names:
            sizes, opened = zip(*measure(name, args.requests, 10, advance), strict=True)
            grown, later = sizes[-1] - sizes[0], args.requests - args.requests // 10
            held = grown <= 4 + args.allowed * later / (1 << 20) and opened[-1] <= opened[0]
            rows.append({"door": name, "requests": args.requests, "MiB at a tenth": round(sizes[0], 1),
                         "at 4 tenths": round(sizes[3], 1), "at the end": round(sizes[-1], 1),
                         "bytes a request": round(grown * (1 << 20) / later),
                         "descriptors": f"{opened[0]} to {opened[-1]}", "held": held})  # fmt: skip
    write_text(run.path("memory.json"), json.dumps(rows, indent=2) + "\n")
    return run.held("Resident memory", rows)


if __name__ == "__main__":
    sys.exit(main())
