"""Continuous batching: everybody's jobs in common batches.

Each turn admits waiting jobs to free streams, evaluates one batch (the next token of every running sample, and as much
of the new prompts as fits), draws the next tokens and lets ended samples go. Not thread safe: `worker.py` calls it from
one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from stepwise.errors import BackendError, DataError
from stepwise.models.engine.cache import PrefixCache
from stepwise.models.engine.context import BATCH, LlamaContext
from stepwise.models.engine.grammar import Constraint
from stepwise.models.engine.jobs import Drawn, Generation, Logits, Unit
from stepwise.models.engine.sampling import Draws, ranked
from stepwise.models.engine.stopping import Ending, clean_text
from stepwise.models.engine.vocab import Vocabulary
from stepwise.types import Finish

PATIENCE = 8
"""Gaps between running streams are closed once they have cost this many extra passes."""


class Scheduler:
    """Runs jobs turn by turn. Counters are plain integers, which other threads may read; they may set `interrupted`."""

    def __init__(self, context: LlamaContext, vocabulary: Vocabulary, cache: PrefixCache):
        self.context, self.vocabulary, self.cache = context, vocabulary, cache
        self.adapter: Hashable = ""
        self.evaluated = self.generated = self.calls = self.hits = 0
        self._waiting: deque[Unit] = deque()
        self._running: list[Unit] = []
        self._steady = False  # the running units are the last batch's, each one token further
        self._gaps = self._wasted = 0
        self.interrupted = False  # set where a call was cancelled
        self._draws: Draws | None = None  # for the units of a steady batch
        self._constrained: list[int] = []

    def reset(self) -> None:
        """Forget what earlier calls left behind: cached prefixes, and the gaps that wait to be closed."""
        self.cache.clear()
        self._gaps = self._wasted = 0
        self._steady = False

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running or self._waiting)

    def add(self, units: Sequence[Unit]) -> None:
        """Queue units; they start in this order as streams come free."""
        self._waiting.extend(units)

    def abandon(self, error: Exception) -> None:
        """Fail every call that is not complete."""
        for unit in (*self._running, *self._waiting):
            if unit.job is not None and unit.constraint is not None:
                unit.constraint.close()
            unit.call.fail(error)
        self._running, self._waiting = [], deque()

    def turn(self) -> None:
        """Admit what fits, evaluate one batch, draw and let go."""
        if self.interrupted:
            self._drop_cancelled()
        if self._waiting and len(self._running) < self.context.streams:
            self._admit()
        if self._running:
            self._evaluate()

    def _drop_cancelled(self) -> None:
        self.interrupted = False
        for unit in [u for u in self._running if u.call.cancelled]:
            self._leave(unit)
        self._waiting = deque(u for u in self._waiting if not u.call.cancelled)

    def _admit(self) -> None:
        """Give streams to waiting jobs in order; one that shares a prefix being evaluated is passed over."""
        postponed: deque[Unit] = deque()
        before = len(self._running)
        while self._waiting and len(self._running) < self.context.streams:
            unit = self._waiting.popleft()
            if not self._start(unit):
                postponed.append(unit)
        self.cache.end_round()
        postponed.extend(self._waiting)
        self._waiting = postponed
        if len(self._running) > before:
            self._steady = False
        elif not self._running and self._waiting:
            self._finish_error(self._waiting.popleft(), "no free sequence in the key-value cache")

    def _start(self, unit: Unit) -> bool:
        prompt = unit.prompt
        if prompt.row is None and prompt.busy:
            return False
        limit = len(prompt.ids) - (prompt.row is None)
        if unit.wanted:
            limit = min(unit.wanted[0], limit)
        path = self.cache.acquire(prompt.ids, limit, self.adapter)
        if path is None:
            return False
        self.hits += path.ready > 0
        unit.path, unit.at = path, path.ready
        unit.evaluated = len(prompt.ids) - path.ready
        unit.ids = prompt.ids[:]
        prompt.busy = True
        self._running.append(unit)
        if unit.job is not None and unit.job.grammar is not None:
            try:
                unit.constraint = Constraint(self.context, self.vocabulary, unit.job.grammar)
            except Exception as error:
                self._fail_running(str(error), (unit,))
                return True
        if prompt.row is not None and unit.at == len(unit.ids):
            self._steady = False
            self._draw([unit], prompt.row[None, :])
        return True

    # ----- one batch

    def _evaluate(self) -> None:
        context = self.context
        self._wasted += self._gaps
        if self._steady and not (self._gaps and self._wasted >= PATIENCE):
            n = len(self._running)
            context.token[:n] = self._tokens
            context.pos[:n] += 1
            plan = None
        else:
            self._running.sort(key=lambda unit: unit.path.stream)
            self._close_gaps()
            n, plan = self._fill_batch()
        rows = n if plan is None else sum(len(wanted) for _, _, wanted in plan)
        try:
            logits = context.decode(n, rows)
        except BackendError as error:
            self._fail_running(str(error), tuple(self._running))
            return
        self.calls += 1
        self.evaluated += n
        if plan is None:
            for unit in self._running:
                unit.at += 1
                unit.path.ready = unit.at
            self._draw(self._running[:], logits)
        else:
            self._distribute(n, plan, logits)

    def _fill_batch(self) -> tuple[int, list[tuple[Unit, int, Sequence[int]]]]:
        """Write what is to be evaluated into the batch.

        Returns the number of tokens, and per unit how many of its ids they are and at which positions logits come.
        """
        context, n, rows = self.context, 0, 0
        room = BATCH - len(self._running)  # beyond one token for each
        most = context.most_rows - len(self._running)
        plan: list[tuple[Unit, int, Sequence[int]]] = []
        for unit in self._running:
            start, count = unit.at, min(len(unit.ids) - unit.at, 1 + room)
            wanted: Sequence[int] = ()
            if unit.job is not None:
                wanted = (len(unit.ids) - 1,) if start + count == len(unit.ids) else ()
            else:
                done = len(unit.rows)
                wanted = unit.wanted[done : done + 1 + most]
                wanted = [p for p in wanted if p < start + count]
                if done + len(wanted) < len(unit.wanted):  # no logits may be passed by
                    count = min(count, unit.wanted[done + len(wanted)] - start)
                most -= max(len(wanted) - 1, 0)
            if count <= 0:
                continue
            room -= count - 1
            end = n + count
            context.token[n:end] = unit.ids[start : start + count]
            context.pos[n:end] = np.arange(start, start + count, dtype=np.int32)
            context.stream[n:end] = unit.path.stream
            context.want[n:end] = 0
            for position in wanted:
                context.want[n + position - start] = 1
            plan.append((unit, count, wanted))
            n, rows = end, rows + len(wanted)
        return n, plan

    def _distribute(self, n: int, plan: list[tuple[Unit, int, Sequence[int]]], logits: npt.NDArray[np.float32]) -> None:
        drawing, indices, row = [], [], 0
        for unit, count, wanted in plan:
            unit.at += count
            unit.path.ready = unit.at
            if unit.job is None:
                for _ in wanted:
                    unit.rows.append(logits[row, unit.token_ids])
                    row += 1
                if unit.at == len(unit.ids):
                    self._finish_scored(unit)
            elif wanted:
                if not unit.out and unit.prompt.left > 1 and unit.prompt.row is None:
                    unit.prompt.row = logits[row].copy()
                drawing.append(unit)
                indices.append(row)
                row += 1
        self._steady = n == len(drawing) == len(self._running)
        self._draws = None
        if drawing:
            self._draw(drawing, logits if len(indices) == len(logits) else logits[indices])

    def _draw(self, units: list[Unit], logits: npt.NDArray[np.float32]) -> None:
        """Draw the next token of each unit from its row of logits; units that end leave."""
        draws = self._draws
        if draws is None or not self._steady:
            draws = self._draws = _draws(units)
            self._constrained = [i for i, unit in enumerate(units) if unit.constraint is not None]
        tokens, scores = draws(logits)
        refused: dict[int, str] = {}
        for i in self._constrained:
            constraint = units[i].constraint
            try:
                if not constraint.accepts(tokens[i]):
                    tokens[i], scores[i] = draws.again(i, logits[i], constraint.masked(logits[i]))
                constraint.advance(tokens[i])
            except DataError as error:
                refused[i] = str(error)
        self._tokens = tokens
        self.generated += len(tokens)
        for i, unit in enumerate(units):
            if i in refused:
                self._fail_running(refused[i], (unit,))
            else:
                assert unit.job is not None
                if unit.job.top_logprobs:
                    unit.top.append(ranked(logits[i], unit.job.top_logprobs))
                self._extend(unit, tokens[i], scores[i])

    def _extend(self, unit: Unit, token: int, logprob: float) -> None:
        """Add a drawn token, and end the sample where it ends."""
        job = unit.job
        assert job is not None
        if not unit.out:
            unit.prompt.left -= 1
            if not unit.prompt.left:
                unit.prompt.row = None
        unit.out.append(token)
        unit.logprobs.append(logprob)
        if unit.call.feed is not None:
            unit.call.feed.put(Drawn(unit.place, token, logprob, unit.top[-1] if unit.top else ()))
        if token in self.vocabulary.end_tokens and not job.ignore_end:
            self._finish(unit, unit.rule.last("eos"))
            return
        ending = unit.rule.push(self.vocabulary.token_bytes(token))
        if ending is None:
            if len(unit.out) >= job.max_tokens or len(unit.ids) >= self.context.context:
                ending = unit.rule.last("length")
            elif unit.rule.repeated(unit.out):
                ending = unit.rule.last("repeat")
        if ending is None:
            unit.ids.append(token)
        else:
            self._finish(unit, ending)

    # ----- endings

    def _finish(self, unit: Unit, ending: Ending) -> None:
        data = unit.rule.data
        text_ended = ending.finish == "step" or (ending.finish == "answer" and ending.end < len(data))
        cut = text_ended and bool(bytes(data[ending.end :]).strip(b"\r\n"))
        self._put(unit, clean_text(bytes(data[: ending.content])), ending.finish, cut=cut, end=ending.end)
        self._leave(unit)

    def _put(self, unit: Unit, text: str, finish: Finish, *, cut: bool = False, end: int = 0, error: str = "") -> None:
        result = Generation(
            unit.number, unit.sample, text, finish, tuple(unit.out), tuple(unit.logprobs), bytes(unit.rule.data),
            cut, end, unit.evaluated, error, tuple(unit.top),
        )  # fmt: skip
        unit.call.put(unit.place, result)

    def _finish_scored(self, unit: Unit) -> None:
        logits = np.stack(unit.rows) if unit.rows else np.empty((0, len(unit.token_ids)), np.float32)
        self._leave(unit)
        unit.call.put(unit.place, Logits(logits, unit.evaluated))

    def _leave(self, unit: Unit, broken: bool = False) -> None:
        self._running.remove(unit)
        self._steady = False
        unit.prompt.busy = False
        if unit.job is not None and unit.constraint is not None:
            unit.constraint.close()
            unit.constraint = None
        if broken:
            self.cache.discard(unit.path)
        else:
            self.cache.release(unit.path, unit.ids[: unit.at])

    def _finish_error(self, unit: Unit, error: str) -> None:
        if unit.job is None:
            unit.call.put(unit.place, Logits(np.empty((0, len(unit.token_ids)), np.float32), unit.evaluated, error))
        else:
            self._put(unit, clean_text(bytes(unit.rule.data)), "error", error=error)

    def _fail_running(self, error: str, units: Sequence[Unit]) -> None:
        for unit in units:
            self._leave(unit, broken=True)
            self._finish_error(unit, error)

    # ----- neighbours

    def _close_gaps(self) -> None:
        """Swap the last running units into gaps that have cost enough: llama.cpp computes only neighbours at once."""
        streams = [unit.path.stream for unit in self._running]
        self._gaps = sum(b - a > 1 for a, b in pairwise(streams))
        if not self._gaps or self._wasted < PATIENCE:
            return
        self._gaps = self._wasted = 0
        first, n = streams[0], len(streams)
        gaps = sorted(set(range(first, first + n)) - set(streams))
        for gap, stream in zip(gaps, [s for s in streams if s >= first + n], strict=True):
            self.cache.swap(stream, gap)
        self._running.sort(key=lambda unit: unit.path.stream)


def _draws(units: Sequence[Unit]) -> Draws:
    jobs = [unit.job for unit in units if unit.job is not None]
    return Draws(
        [job.temperature for job in jobs],
        [job.top_k for job in jobs],
        [job.top_p for job in jobs],
        [unit.key for unit in units],
        [len(unit.out) for unit in units],
    )
