"""Continuous batching: everybody's jobs in common batches.

Each turn admits waiting jobs to free streams, evaluates one batch (the next token of every running sample, and as much
of the new prompts as fits), draws the next tokens and lets ended samples go. Where the model's curve is known, a turn
is as many batches as the curve says is fastest, prompts have one of their own, and no more run at once than that brings
more tokens a second. Not thread safe: `worker.py` calls it from one thread.

Shapes: V tokens in the vocabulary, R rows of logits in a batch, one for each position that asked for them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from stepwise.errors import BackendError, DataError
from stepwise.models.engine.cache import PrefixCache
from stepwise.models.engine.context import BATCH, LlamaContext
from stepwise.models.engine.curve import Curve
from stepwise.models.engine.grammar import Constraint
from stepwise.models.engine.jobs import Drawn, Sample, Scoring, Unit
from stepwise.models.engine.reading import TextReading
from stepwise.models.engine.sampling import Draws, ranked
from stepwise.models.engine.stopping import Ending
from stepwise.models.engine.vocab import Vocabulary

_Floats = npt.NDArray[np.float32]
_Plan = list[tuple[Unit, int, int]]  # how many ids and rows of logits each unit has in a batch
_PATIENCE = 8
"""Gaps between running streams are closed once they have cost this many extra passes; none where there is a curve."""


class Scheduler:
    """Runs jobs turn by turn; other threads may read counters and set `interrupted`. Example: see `worker.Worker`."""

    def __init__(self, context: LlamaContext, vocabulary: Vocabulary, cache: PrefixCache):
        self.context, self.vocabulary, self.cache = context, vocabulary, cache
        self.set_curve(None)
        self.adapter: Hashable = ""
        self.evaluated = self.generated = self.calls = self.hits = 0
        self.interrupted = False  # set where a call was cancelled
        self._waiting: deque[Unit] = deque()
        self._running: list[Unit] = []
        self._steady = False  # the running units are the last batch's, each one token further
        self._gaps = self._wasted = 0  # between running streams; and the extra passes that they have cost so far
        self._draws: Draws | None = None  # for the units of a steady batch
        self._constrained: list[int] = []  # their places that have a grammar
        self._tokens: list[int] = []  # what was drawn last, one for each of them

    def set_curve(self, curve: Curve | None) -> None:
        """Split what runs by `curve`; None: everything in one batch."""
        self.curve, self._patience, self._steady = curve, 0 if curve else _PATIENCE, False

    def reset(self) -> None:
        """Forget what earlier calls left behind: cached prefixes, and the gaps that wait to be closed."""
        self.cache.clear()
        self._gaps = self._wasted = 0
        self._steady = False

    @property
    def most(self) -> int:
        """How many sequences run at once at most."""
        return min(self.curve.fastest, self.context.streams) if self.curve else self.context.streams

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
            if unit.constraint is not None:
                unit.constraint.close()
            unit.call.fail(error)
        self._running, self._waiting = [], deque()

    def turn(self) -> None:
        """Admit what fits, evaluate one batch, draw and let go."""
        if self.interrupted:
            self.interrupted = False
            for unit in [u for u in self._running if u.call.cancelled]:
                self._leave(unit)
            self._waiting = deque(u for u in self._waiting if not u.call.cancelled)
        if self._waiting and len(self._running) < self.most:
            self._admit()
        if self._running:
            self._evaluate()

    def _admit(self) -> None:
        """Give streams to waiting jobs in order; one that shares a prefix being evaluated is passed over."""
        postponed: deque[Unit] = deque()
        before = len(self._running)
        while self._waiting and len(self._running) < self.most:
            unit = self._waiting.popleft()
            if not self._start(unit):
                postponed.append(unit)
        self.cache.end_round()
        self._waiting = postponed + self._waiting
        if len(self._running) > before:
            self._steady = False
        elif not self._running and self._waiting:
            self._report(self._waiting.popleft(), error="no free sequence in the key-value cache")

    def _start(self, unit: Unit) -> bool:
        """Put `unit` on a stream; False where it has to wait."""
        prompt = unit.prompt
        if prompt.row is None and prompt.busy:
            return False
        # Logits come only from positions that are evaluated: the last one, unless a sample before had its row, or the
        # first that scoring asks for.
        limit = len(prompt.ids) - (prompt.row is None)
        if isinstance(unit, Scoring):
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
        if isinstance(unit, Sample):
            if unit.job.grammar is not None:
                try:
                    unit.constraint = Constraint(self.context, self.vocabulary, unit.job.grammar)
                except Exception as error:
                    self._fail([unit], error)
                    return True
            if prompt.row is not None and unit.at == len(unit.ids):  # nothing to evaluate before the first draw
                self._steady = False
                self._draw([unit], prompt.row[None, :])
        return True

    # ----- one batch

    def _evaluate(self) -> None:
        self._wasted += self._gaps
        if self._steady and not (self._gaps and self._wasted >= self._patience):
            # The batch of the last turn, one position further: nothing else about it changes.
            n = len(self._running)
            self.context.token[:n] = self._tokens
            self.context.pos[:n] += 1
            if (read := self._decode(self._running, n, n)) is not None:
                for unit in self._running:
                    unit.at = unit.path.ready = unit.at + 1
                self._draw([unit for unit in self._running if isinstance(unit, Sample)], *read)
            return
        self._running.sort(key=lambda unit: unit.path.stream)
        self._close_gaps()
        for units in self._batches():
            n, rows, plan = self._fill_batch(units)
            if (read := self._decode(units, n, rows)) is not None:
                self._distribute(n, plan, *read)

    def _batches(self) -> list[list[Unit]]:
        """What runs, neighbours together, as the batches of this turn; prompts apart where states are wanted, since
        every token of such a batch has logits, which makes reading 1.3 times as slow.
        """
        if self.curve is None and not any(unit.gives_states for unit in self._running):
            return [self._running[:]]  # the fixed split: everything together
        reading = [unit for unit in self._running if len(unit.ids) - unit.at > 1]
        writing = [unit for unit in self._running if len(unit.ids) - unit.at <= 1]
        told = [unit for unit in reading if unit.gives_states]
        batches = [units for units in ([unit for unit in reading if not unit.gives_states], told) if units]
        start = 0
        for size in self._split(len(writing)):
            batches.append(writing[start : start + size])
            start += size
        return batches

    def _split(self, n: int) -> tuple[int, ...]:
        """Sizes of the batches in which n sequences get their next tokens."""
        return self.curve.split(n) if self.curve else (n,)

    def _decode(self, units: Sequence[Unit], n: int, rows: int) -> tuple[_Floats, _Floats | None] | None:
        """Logits (R, V), and states (R, E) where one of `units` wants them; None where that failed, they with it."""
        states = any(unit.gives_states for unit in units)
        try:
            logits = self.context.decode(n, rows, states)
        except BackendError as error:
            self._fail(list(units), error)
            return None
        self.calls += 1
        self.evaluated += n
        return logits, self.context.states(rows) if states else None

    def _fill_batch(self, units: Sequence[Unit]) -> tuple[int, int, _Plan]:
        """Write what is to be evaluated of `units` into the batch; the number of tokens, that of rows, and the plan."""
        context, n, rows = self.context, 0, 0
        # Every unit has a token and a row for certain; these are left for those that can use more.
        spare_tokens = BATCH - len(units)
        spare_rows = context.max_rows - len(units)
        plan: _Plan = []
        for unit in units:
            start, count = unit.at, min(len(unit.ids) - unit.at, 1 + spare_tokens)
            if isinstance(unit, Scoring):
                left = unit.wanted[len(unit.rows) :]
                if isinstance(unit, TextReading) and not unit.gives_states:
                    count, left = min(count, left[0] - start), ()
                wanted = [position for position in left[: 1 + spare_rows] if position < start + count]
                if len(wanted) < len(left):  # stop before a position whose logits would be passed by
                    count = min(count, left[len(wanted)] - start)
                spare_rows -= max(len(wanted) - 1, 0)
            else:
                wanted = [len(unit.ids) - 1] if start + count == len(unit.ids) else []
            if count <= 0:
                continue
            spare_tokens -= count - 1
            end = n + count
            context.token[n:end] = unit.ids[start : start + count]
            context.pos[n:end] = np.arange(start, start + count, dtype=np.int32)
            context.stream[n:end] = unit.path.stream
            context.want[n:end] = 0
            context.want[[n + position - start for position in wanted]] = 1
            plan.append((unit, count, len(wanted)))
            n, rows = end, rows + len(wanted)
        return n, rows, plan

    def _distribute(self, n: int, plan: _Plan, logits: _Floats, states: _Floats | None) -> None:
        """Give every unit its rows of `logits` (R, V) and `states` (R, E); draw for samples whose prompt is read."""
        drawing: list[Sample] = []
        indices: list[int] = []
        row = 0
        for unit, count, num_rows in plan:
            unit.at = unit.path.ready = unit.at + count
            if isinstance(unit, Scoring):
                rows = slice(row, row + num_rows)
                unit.take(logits[rows], states if states is None else states[rows])
                if unit.at == len(unit.ids):
                    self._leave(unit)
                    self._report(unit)
            elif isinstance(unit, Sample) and num_rows:
                if not unit.out and unit.prompt.left > 1 and unit.prompt.row is None:
                    unit.prompt.row = logits[row].copy()  # for the other samples; the buffer is llama.cpp's
                drawing.append(unit)
                indices.append(row)
            row += num_rows
        self._steady = n == len(drawing) == len(self._running) and self._split(n) == (n,)
        self._draws = None
        if drawing:
            chosen: Any = slice(None) if len(indices) == len(logits) else indices
            self._draw(drawing, logits[chosen], states if states is None else states[chosen])

    def _draw(self, units: list[Sample], logits: _Floats, states: _Floats | None = None) -> None:
        """Draw the next token of each of B units from its row of logits (B, V); units that end leave."""
        for unit, state in zip(units, states if states is not None else (), strict=states is not None):
            unit.add_state(state)  # (E,)
        draws = self._draws
        if draws is None or not self._steady:
            settings = [(unit.job.temperature, unit.job.top_k, unit.job.top_p) for unit in units]
            draws = self._draws = Draws(settings, [unit.key for unit in units], [len(unit.out) for unit in units])
            self._constrained = [i for i, unit in enumerate(units) if unit.constraint is not None]
        tokens, logprobs, entropies = draws(logits)
        refused: dict[int, DataError] = {}
        for i in self._constrained:
            constraint = units[i].constraint
            assert constraint is not None
            try:
                if not constraint.accepts(tokens[i]):
                    tokens[i], logprobs[i] = draws.again(i, logits[i], constraint.masked(logits[i]))
                constraint.advance(tokens[i])
            except DataError as error:
                refused[i] = error
        self._tokens = tokens
        self.generated += len(tokens)
        for i, unit in enumerate(units):
            if i in refused:
                self._fail([unit], refused[i])
                continue
            if unit.job.top_logprobs:
                unit.top.append(ranked(logits[i], unit.job.top_logprobs))
            unit.entropies.append(entropies[i])
            self._extend(unit, tokens[i], logprobs[i])

    def _extend(self, unit: Sample, token: int, logprob: float) -> None:
        """Add a drawn token, and end the sample where it ends."""
        job, rule = unit.job, unit.rule
        if not unit.out:
            unit.prompt.left -= 1
            if not unit.prompt.left:
                unit.prompt.row = None
        unit.out.append(token)
        unit.logprobs.append(logprob)
        if unit.call.feed is not None:
            unit.call.feed.put(Drawn(unit.place, token, logprob, unit.top[-1] if unit.top else ()))
        if token in self.vocabulary.end_tokens and not job.ignore_end:
            ending: Ending | None = rule.last("eos")
        elif token == job.marker:
            ending = rule.last("step")
        else:
            ending = rule.push(self.vocabulary.token_bytes(token))
            if ending is None and (len(unit.out) >= job.max_tokens or len(unit.ids) >= self.context.context):
                ending = rule.last("length")
            if ending is None and rule.repeated(unit.out):
                ending = rule.last("repeat")
        if ending is None:
            unit.ids.append(token)
        else:
            self._report(unit, ending)
            self._leave(unit)

    # ----- endings

    def _report(self, unit: Unit, ending: Ending | None = None, error: str = "") -> None:
        """Hand the result of `unit` to its caller; without an `ending`, that of a sample is an error."""
        unit.call.put(unit.place, unit.result(ending, error))

    def _leave(self, unit: Unit, broken: bool = False) -> None:
        """Take `unit` off its stream, whose content stays known unless it is `broken`."""
        self._running.remove(unit)
        self._steady = False
        unit.prompt.busy = False
        if unit.constraint is not None:
            unit.constraint.close()
        if broken:
            self.cache.discard(unit.path)
        else:
            self.cache.release(unit.path, unit.ids[: unit.at])

    def _fail(self, units: Sequence[Unit], error: Exception) -> None:
        for unit in units:
            self._leave(unit, broken=True)
            self._report(unit, error=str(error))

    # ----- neighbours

    def _close_gaps(self) -> None:
        """Swap the last running units into gaps that have cost enough: llama.cpp computes only neighbours at once."""
        streams = [unit.path.stream for unit in self._running]
        self._gaps = sum(b - a > 1 for a, b in pairwise(streams))
        if not self._gaps or self._wasted < self._patience or self._split(len(streams))[:1] == (1,):
            return
        self._gaps = self._wasted = 0
        first, n = streams[0], len(streams)
        gaps = sorted(set(range(first, first + n)) - set(streams))
        for gap, stream in zip(gaps, [s for s in streams if s >= first + n], strict=True):
            self.cache.swap(stream, gap)
        self._running.sort(key=lambda unit: unit.path.stream)
