"""A run on many workers as a queueing model: seeded, of discrete events, small enough for 10 million problems.

A worker does a chunk in a few slices: it computes, then visits the books (caps and answers, one server), then the
strong endpoint (one server of its rate limit). When the chunk is done the run itself seals it and hands out the next
one (one server). Each server takes who comes first. What a visit takes is what all calls of the slice take together.
"""

from __future__ import annotations

import heapq
import math
import random
from dataclasses import dataclass

SLICES = 2
SERVERS = ("books", "strong endpoint", "run")


@dataclass(frozen=True)
class Load:
    """What one problem takes, in seconds: of a worker, of the books and of the strong endpoint; and what one chunk
    takes of the run. `spread` is the standard deviation of a problem's seconds over their mean.
    """

    worker: float
    books: float
    endpoint: float
    run: float
    spread: float = 1.0


@dataclass(frozen=True)
class Simulated:
    """Problems a second, share of the workers' time that they waited, and how busy each server was."""

    workers: int
    problems: int
    chunk: int
    per_second: float
    waiting: float
    busy: dict[str, float]
    tail: float
    """share of the time in which some worker had no chunk any more"""

    @property
    def first(self) -> str:
        """What limits: the busiest server where it is busy nine tenths of the time, chunks where their end does."""
        name = max(self.busy, key=lambda each: self.busy[each])
        if self.busy[name] >= 0.9:
            return name
        return "chunk size" if self.tail > 0.1 else "workers"


def simulate(load: Load, *, workers: int, problems: int, chunk: int, seed: int = 0) -> Simulated:
    """Run `problems` in chunks; the same seed gives the same run."""
    draw = random.Random(seed)
    left, per_slice = problems, 1.0 / SLICES
    free_at = dict.fromkeys(SERVERS, 0.0)
    used = dict.fromkeys(SERVERS, 0.0)
    computed, ended, first_idle = 0.0, 0.0, -1.0

    def visit(server: str, now: float, seconds: float) -> float:
        begin = max(now, free_at[server])
        free_at[server] = begin + seconds
        used[server] += seconds
        return begin + seconds

    events = list[tuple[float, int, int, int]]()  # when, worker, stage, size of its chunk
    for worker in range(workers):
        heapq.heappush(events, (0.0, worker, 0, 0))
    stages = 1 + 3 * SLICES
    while events:
        now, worker, stage, size = heapq.heappop(events)
        if stage == 0:  # the run hands it a chunk
            if not left:
                first_idle = now if first_idle < 0 else first_idle
                continue
            size = min(chunk, left)
            left -= size
            now = visit("run", now, load.run / 2)
        else:
            kind = (stage - 1) % 3
            if kind == 0:
                mean = load.worker * size * per_slice
                seconds = max(0.0, draw.gauss(mean, load.spread * load.worker * math.sqrt(size) * per_slice))
                computed += seconds
                now += seconds
            elif kind == 1:
                now = visit("books", now, load.books * size * per_slice)
            elif load.endpoint:
                now = visit("strong endpoint", now, load.endpoint * size * per_slice)
        stage += 1
        if stage == stages:
            ended = visit("run", now, load.run / 2)  # sealed
            heapq.heappush(events, (ended, worker, 0, 0))
        else:
            heapq.heappush(events, (now, worker, stage, size))
    busy = {server: used[server] / ended for server in SERVERS}
    return Simulated(
        workers, problems, chunk, problems / ended, 1 - computed / (workers * ended), busy,
        (ended - max(first_idle, 0.0)) / ended,
    )  # fmt: skip


def saturates_at(load: Load, chunk: int) -> dict[str, float]:
    """The number of workers at which each server has no time left, by its share of a problem's time."""
    each = {"books": load.books, "strong endpoint": load.endpoint, "run": load.run / chunk}
    alone = load.worker + sum(each.values())
    return {server: alone / seconds for server, seconds in each.items() if seconds}
