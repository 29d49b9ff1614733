"""How a run grows with its workers: measured at few, simulated at many, and the memory of the run itself.

1. Points: chunks whose problems sleep, with the calls to the books that a routed problem makes, on 1, 2 and 4 workers
   of a Ray cluster of this machine. Sleeping takes no core, so what is measured is all but the models: books, messages,
   sealing. How many calls a second the books can take is measured by asking without waiting; what is left of the point
   with one worker is the way to the books and back, which workers go side by side. The others check the simulation.
2. The lab's router at 1 and 2 workers, where there are cores for them.
3. The simulation (`scale_model`), with these calls and a problem of `--seconds` under a strong endpoint of `--limit`
   requests a second: which of books, endpoint, sealing and chunk size ends the growth, and where.
4. Memory of the run over 1,000, 10,000 and 100,000 streamed problems, which no worker does.

`--points FILE` takes 1 and 2 from an earlier scale.json, and needs no Ray. Writes scale.json.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from evals.scale_model import Load, Simulated, saturates_at, simulate
from stepwise.config import Config
from stepwise.io import read_json, write_text
from stepwise.lab.problems import generate
from stepwise.models.crew import at_work
from stepwise.models.store import Answer
from stepwise.routing.chunked import routed_chunks
from stepwise.routing.policies import Threshold
from stepwise.routing.saved import SavedPolicy
from stepwise.runs.chunks import Part, Work, run_chunks, texts_of
from stepwise.runs.directory import RunDirectory
from stepwise.runs.shell import Options, Run, program
from stepwise.types import Usage

SLEEP = 0.25  # seconds of a problem, on average
CALLS = 14  # of models, of a routed lab problem with its scores
STRONG = 2  # of them of the strong model, kept in the store
WORKERS = (1, 2, 4)
MANY = (1, 10, 100, 300, 1000)
PROBLEMS = (1_000, 10_000, 100_000)


class _Options(Options):
    problems: PositiveInt = 64
    """of each point"""
    lab: NonNegativeInt = 32
    """problems of the lab's router; 0 leaves it out"""
    chunk: PositiveInt = 8
    points: Path | None = None
    """scale.json of an earlier run"""
    seconds: PositiveFloat = 20.0
    """a problem takes of a worker, in the simulation"""
    limit: PositiveFloat = 100.0
    """requests a second of the strong endpoint, in the simulation"""
    total: PositiveInt = 10_000_000
    """problems, in the simulation of the most workers"""
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class _Paced:
    """Models that sleep: the ledger and the store themselves."""

    @contextmanager
    def models(self, config: Config, ledger: Any, store: Any, keep_local: bool) -> Iterator[tuple[Any, Any]]:
        yield ledger, store

    def about(self, models: Any) -> None:
        return None


def _sleep(models: tuple[Any, Any], members: Sequence[int]) -> dict[str, Sequence[Any]]:
    """What a routed problem asks of the books, and its time."""
    ledger, store = models

    async def problem(number: int) -> None:
        draw, account = random.Random(number), ledger.for_problem()
        for call in range(CALLS):
            time.sleep(draw.expovariate(CALLS / SLEEP))
            strong = call < STRONG
            if strong:
                store.find(f"{number}/{call}")
                store.begin(f"{number}/{call}", "strong", str(number), Usage("m", 1, 64, 64, 32))
            held = await account.areserve("strong" if strong else "weak", 32)
            held.settle(Usage("m", 1, 64, 64, 20, cost=0.0))
            if strong:
                usage = Usage("m", 1, 64, 64, 20)
                store.add([Answer(f"{number}/{call}", "strong", str(number), usage, {"text": "So."})])

    for number in members:
        asyncio.run(problem(number))
    return {"rows": [{"number": number, "text": "x" * 4000} for number in members]}


def point(folder: Path, workers: int, problems: int, chunk: int) -> dict[str, float]:
    """Problems a second of sleeping problems, what workers waited, calls to the books."""
    config = Config.load(None, [
        "workers.backend=ray", f"workers.actors_per_node={workers}", "workers.resources={CPU = 0.25}",
        "models.strong.model=openai/sleeps", "models.strong.api_base=http://127.0.0.1:9/v1",
        "budget.total_tokens=1000000000", "allow_lab=true",
    ])  # fmt: skip

    directory = RunDirectory(folder, program="scale", config=config, arguments={"workers": workers})
    directory.made()
    with directory.ending(), at_work(config, directory, _Paced()) as crew:
        _settle(crew, workers)
        before = crew.books.call("totals")
        began = time.monotonic()
        run_chunks(directory, range(problems), chunk, ["rows"], _sleep, lambda: folder, crew=crew, label="sleeping")
        row = _row(crew, workers, problems, time.monotonic() - began, before)
        return row | {"books_per_second": _books_per_second(crew)}


def lab_point(folder: Path, workers: int, problems: int, chunk: int) -> dict[str, float]:
    """The same of the lab's router."""
    settings = ["workers.backend=ray", f"workers.actors_per_node={workers}", "workers.resources={CPU = 0.5}"]
    config = Config.load(None, settings)
    directory = RunDirectory(folder, program="scale", config=config, arguments={"workers": workers})
    directory.made()
    members = [made.problem for made in generate("test", problems)]
    with directory.ending(), routed_chunks(config, directory, SavedPolicy(Threshold(), None)) as (routed, route):
        crew = routed.crew
        _settle(crew, workers)
        before = crew.books.call("totals")
        began = time.monotonic()
        route(members, chunk)
        return _row(crew, workers, problems, time.monotonic() - began, before)


def _settle(crew: Any, workers: int) -> None:
    """All workers are there and have done something, so that none is timed while it starts."""
    crew.pool.wait_for_all()
    for _ in crew.pool.map(_nothing, ((n, []) for n in range(8 * workers))):
        pass


def _nothing(models: Any, members: Sequence[Any]) -> dict[str, Sequence[Any]]:
    return {}


def _row(crew: Any, workers: int, problems: int, seconds: float, before: Mapping[str, float]) -> dict[str, float]:
    now = crew.books.call("totals")
    calls, busy, asked = (now[name] - before[name] for name in ("calls", "busy", "asked"))
    return {
        "workers": workers,
        "problems": problems,
        "seconds": round(seconds, 3),
        "per_second": problems / seconds,
        "idle": 1 - busy / (workers * seconds),
        "asking": asked / (workers * seconds),
        "calls": (calls - 1) / problems,
    }


def fitted(row: Mapping[str, float], chunk: int) -> Load:
    """What one worker's point says a problem takes of whom."""
    each, books = row["seconds"] / row["problems"], row["calls"] / row["books_per_second"]
    run = row["idle"] * each
    return Load(max(0.0, each - books - run), books, 0.0, run * chunk, spread=CALLS**-0.5)


def _books_per_second(crew: Any, number: int = 2000) -> float:
    """Calls that the books take in a second: half set something aside, half say what it came to, all are on disk."""
    began = time.monotonic()
    for n in range(number // 2):
        crew.books.tell("hold", f"rate-{n}", "rate", "weak", 32, 0, 1)
        crew.books.tell("settle", f"rate-{n}", Usage("m", 1, 64, 64, 20, cost=0.0), None)
    crew.books.flush()
    return number / (time.monotonic() - began)


def memory(
    place: Callable[[str], Path], config: Config, sizes: Iterable[int] = PROBLEMS, chunk: int = 100
) -> list[tuple[int, float]]:
    """Resident MiB of this process after runs over so many problems, streamed and sealed and done by nobody."""
    found = []
    for size in sizes:
        folder = place(f"streamed{size}")
        directory = RunDirectory(folder, program="scale", config=config, arguments={"problems": size})
        directory.made()
        with directory.ending():
            run_chunks(
                directory, range(size), chunk, ["rows"], _rows, partial(Path, folder), crew=_Nobody(), label=f"{size}"
            )
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found.append((size, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
    return found


class _Nobody:
    """A crew that does nothing, at once."""

    def check(self, done: int, coming: int) -> None:
        """No caps."""

    def map(self, work: Work, parts: Iterable[Part]) -> Iterator[tuple[int, Mapping[str, str]]]:
        for number, part in parts:
            yield number, texts_of(work(None, part))


def _rows(models: None, members: Sequence[int]) -> dict[str, Sequence[Any]]:
    return {"rows": [{"number": number, "text": "x" * 2000} for number in members]}


def simulated(load: Load, args: _Options) -> list[Simulated]:
    """Many workers, at a chunk size and at twenty times that."""
    found = []
    for chunk in (args.chunk, 20 * args.chunk):
        for workers in MANY:
            problems = args.total if workers == MANY[-1] else max(1000, args.total * workers // MANY[-1] // 10)
            found.append(simulate(load, workers=workers, problems=problems, chunk=chunk, seed=args.seed))
    return found


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> None:
    args = run.args
    if args.points is not None:
        points = read_json(args.points, "give scale.json of an earlier run", {"points": list, "lab": list})
    else:
        points = {
            "points": [point(run.path(f"sleep{n}"), n, args.problems, args.chunk) for n in WORKERS],
            "lab": [lab_point(run.path(f"lab{n}"), n, args.lab, args.chunk) for n in WORKERS[:2] if args.lab],
        }
    rows = points["points"]
    load = fitted(rows[0], args.chunk)
    columns = ("workers", "per s", "no chunk", "asking", "calls", "simulated", "off")
    run.table(
        "Problems that sleep .25 s; calls to the books of each", columns, [_checked(row, load, args) for row in rows]
    )
    for row in points["lab"]:
        run.say(f"Lab's router, {row['workers']:.0f} workers: {row['per_second']:.2f} problems/s, "
                f"{row['idle']:.0%} idle, {row['calls']:.1f} calls to the books a problem")  # fmt: skip
    real = dataclasses.replace(load, worker=args.seconds, endpoint=STRONG / args.limit, spread=0.5)
    many = simulated(real, args)
    run.say(f"A problem takes {1000 * real.books:.1f} ms of the books, a chunk {1000 * real.run:.1f} ms of the run; at "
            f"{args.seconds:g} s of a worker and {args.limit:g} strong requests/s:")  # fmt: skip
    names = ("workers", "chunk", "problems", "per s", "waiting", "books", "strong", "run", "limit")
    run.table("Simulated", names, map(_shown, many))
    ends = {server: round(workers) for server, workers in saturates_at(real, args.chunk).items()}
    run.say(f"Workers at which each has no time left, at chunks of {args.chunk}: {ends}")
    sizes = memory(run.path, run.config)
    run.table("Memory of the run", ("problems streamed", "MiB"), [(f"{size:,}", f"{mib:.0f}") for size, mib in sizes])
    shown = [dataclasses.asdict(each) | {"first": each.first} for each in many]
    result = {**points, "load": dataclasses.asdict(load), "simulated": shown, "memory": sizes}
    write_text(run.path("scale.json"), json.dumps(result, indent=1) + "\n")


def _checked(row: Mapping[str, float], load: Load, args: _Options) -> list[str]:
    num, problems = int(row["workers"]), int(row["problems"])
    same = simulate(load, workers=num, problems=problems, chunk=args.chunk, seed=args.seed)
    off = same.per_second / row["per_second"] - 1
    return [f"{num}", f"{row['per_second']:.2f}", f"{row['idle']:.1%}", f"{row['asking']:.1%}",
            f"{row['calls']:.1f}", f"{same.per_second:.2f}",
            f"{off:+.1%}"]  # fmt: skip


def _shown(each: Simulated) -> list[str]:
    busy = [f"{each.busy[server]:.0%}" for server in ("books", "strong endpoint", "run")]
    return [f"{each.workers:,}", f"{each.chunk}", f"{each.problems:,}", f"{each.per_second:,.1f}",
            f"{each.waiting:.0%}",            *busy, each.first]  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
