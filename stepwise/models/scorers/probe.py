"""A scorer that costs no forward pass: a head on what the weak model computed while it wrote the step.

`observe` is told of every step that the weak model writes, or that is answered from the store, where its states stand
beside the text. What it was not told of (steps of the strong model, solutions that are handed in) the weak model reads
in one pass, which the usage counts; its prefix is in the engine's cache.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from stepwise.errors import CapabilityError, ConfigError
from stepwise.models.base import Completion, Generator, Request
from stepwise.models.driver import Driver
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.head import Head
from stepwise.models.scorers.prefix import PrefixScorer, Task
from stepwise.models.states import Floats, read_steps, unpack
from stepwise.types import Problem, Step, Usage


def refuse_without_states(weak: Any) -> None:
    """Raise CapabilityError for a weak model, loaded or configured, that gives no states: one behind an API.

    >>> from stepwise.config import ModelConfig
    >>> refuse_without_states(ModelConfig(model="llamacpp/lab-weak"))
    """
    local = weak.local if hasattr(weak, "local") else bool(getattr(weak, "engines", ()))
    if not local:
        name = getattr(weak, "model", None) or getattr(weak, "name", weak)
        raise CapabilityError(
            f'a scorer of kind "probe" reads the states of the weak model, and {name!r} gives none; use a GGUF that '
            'runs here ("llamacpp/..."), or another kind of scorer'
        )


async def read_solution(
    weak: Generator, question: str, steps: Sequence[Step], first: int = 0
) -> tuple[list[Floats], Usage, str]:
    """The vectors of the steps of a solution from number `first` (0-based) on, as `weak` reads them in one pass under
    its prompt; what that cost, and why there are none, "" where there are.

    Example:
        vectors, usage, error = await read_solution(weak, "1 + 1?", [Step("It is 2.", "strong")])
    """
    problem = Problem("probe", question)
    prefixes = [weak.prefix_ids(Request(problem, tuple(steps[:i]))) for i in range(first, len(steps) + 1)]
    if not prefixes[0]:
        return [], Usage(weak.name), f"{weak.name} refuses the question"
    vectors, evaluated, error = await read_steps(weak.engines[0], prefixes[-1], [len(ids) for ids in prefixes])
    return vectors, Usage(weak.name, 1, len(prefixes[-1]), evaluated), error


class ProbeScorer(PrefixScorer):
    """P(step is right) by `head` from the states of `weak`, a model of this process under its solve prompt.

    `close` frees `weak` where it is `owned`. The vectors of the last `memory` steps are kept. Raises CapabilityError
    for a model without states, ConfigError where the head was fitted for another model, quantization, adapter, prompt
    or splitter, unless `force`d, and for states of another width.

    Example:
        scorer = ProbeScorer(load_backend("llamacpp/lab-weak"), Head.load("out/probe/head"))
    """

    incremental = True
    wants_states = True

    def __init__(self, weak: Generator, head: Head, *, force: bool = False, owned: bool = False, memory: int = 20_000):
        refuse_without_states(weak)
        super().__init__(f"probe {head.digest[:8]} {weak.name}", memory=memory)
        self.weak, self.head, self.engine, self._owned = weak, head, weak.engines[0], owned
        self.parameters, self.memory_bytes = weak.parameters, self.engine.memory_bytes if owned else 0
        self.prompt_hash, self._force = weak.prompt_hash, force
        if fault := self._fault():
            raise ConfigError(f"[scorer]: {fault}")
        self._seen: OrderedDict[bytes, tuple[Floats | None, Step]] = OrderedDict()

    def _fault(self) -> str:
        """Why the head does not go with the model as it is now (its adapter may change), "" where it does."""
        card, remedy = self.head.card, "fit one with `stepwise train probe`, or set force = true"
        if card.width != self.engine.width:
            return f"the head is for states of {card.width} numbers, {self.weak.name} has {self.engine.width}"
        if self._force:
            return ""
        if card.model.rpartition("@")[2] != self.weak.name.rpartition("@")[2]:
            return f"the head was fitted for the weak model {card.model}, and this is {self.weak.name}; {remedy}"
        if card.prompt != self.prompt_hash:
            return f"the head was fitted under prompt {card.prompt} ({card.splitter}), not {self.prompt_hash}; {remedy}"
        return ""

    @property
    def engines(self) -> tuple[Any, ...]:
        """The weak model's."""
        return self.weak.engines

    def observe(self, problem: Problem | str, before: Sequence[str], made: Completion) -> None:
        """Keep the states of `made`; see the base class."""
        text = made.text.strip("\r\n")
        task = self._begin(problem, [*before, text])
        self._keep(task.keys[-1], unpack(made.states), Step(text, "weak", usage=made.usage, token_ids=made.token_ids))

    def _keep(self, key: bytes, vector: Floats | None, step: Step) -> None:
        with self._lock:
            self._seen[key] = vector, step
            while len(self._seen) > self.memory:
                self._seen.popitem(last=False)

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """The steps that were told of cost nothing; others are read by the weak model."""
        task = self._begin(problem, steps)
        return self._end(task, None if task.done else await self._score(task))

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`."""
        return Driver(self.engines).run([self._score(task) for task in tasks])

    async def _score(self, task: Task) -> Scored:
        vectors, usage, error = await self.vectors(task)
        return Scored([] if error else self.head.scores(vectors)[task.first :], usage, error)

    async def vectors(self, task: Task) -> tuple[list[Floats], Usage, str]:
        """The vectors of all steps of a solution, what reading those cost that are not kept, and why there are none."""
        if fault := self._fault():
            return [], Usage(self.name), fault
        with self._lock:
            pairs = zip(task.keys, task.steps, strict=True)
            seen = [self._seen.get(key, (None, Step(text, "given"))) for key, text in pairs]
        missing = [i for i, (vector, _) in enumerate(seen) if vector is None]
        usage = Usage(self.name)
        if missing:
            first, steps = missing[0], [step for _, step in seen]
            read, usage, error = await read_solution(self.weak, task.question, steps[: missing[-1] + 1], first)
            usage = dataclasses.replace(usage, model=self.name)
            if error:
                return [], usage, error
            for i in missing:
                seen[i] = read[i - first], steps[i]
                self._keep(task.keys[i], *seen[i])
        return [vector for vector, _ in seen if vector is not None], usage, ""

    def reset_cache(self) -> None:
        """Drop every kept score and vector."""
        super().reset_cache()
        with self._lock:
            self._seen.clear()

    def close(self) -> None:
        """Free the weak model where it is the scorer's own; calling it twice does nothing."""
        self.reset_cache()
        if self._owned:
            self.weak.close()
