r"""Generative reward models: a critique of each step, then a verdict on it.

What is done differently from the published code:
1. On the engine a verdict is no text that is searched for. A critique is written until it comes to its verdict, or
   has as many tokens as it may have; then what stands before a verdict is put there, and the two words' logits are
   read at that place. So each step has a verdict, and nothing that a step or a critique says of verdicts moves the
   place where it is read.
2. A step is judged when it is asked about. Earlier critiques stand in the context and are not written again: n steps
   cost n critiques, however they arrive. Where a critique `covers` the solution, one is written of all steps that are
   asked about together, and has read the later ones, as published.
3. Behind an API (`ServedGenerativeScorer`) there are no logits and nothing can be put into a reply: verdicts are read
   from the whole text by its structure (`critiques.read_reply`), and a probability is a share of votes.

Forms are in `critiques`. None was tried on the published weights.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from stepwise.config import Ask
from stepwise.errors import ConfigError, StepwiseError, redact
from stepwise.models.driver import Driver
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.failures import failure_of
from stepwise.models.http import CallFailed
from stepwise.models.scorers.base import Scored
from stepwise.models.scorers.critiques import CritiqueForm, read_reply
from stepwise.models.scorers.label_token import label_score
from stepwise.models.scorers.layouts import fill
from stepwise.models.scorers.prefix import PrefixScorer, Task
from stepwise.seeds import seed_for
from stepwise.steps.thoughts import open_thought, prompt_thought
from stepwise.types import Failure, Problem, Usage

_VERDICT_TOKENS = 32  # that a verdict and what stands around it may take
_PROMPT_END = 32  # tokens in which a template's opening of a thought would stand
Complete = Callable[[list[dict[str, str]], int], tuple[str, Usage]]
"""Answers a chat in at most so many tokens: the text, and what it cost. It may raise any `StepwiseError`."""


class _Verdict(NamedTuple):
    """What one vote says of a step: P(right); `finished`: the critique came to its verdict by itself.

    Example:
        >>> _Verdict(" 2 + 3 is 5.", 0.25).finished
        True
    """

    critique: str
    probability: float
    finished: bool = True


class GenerativeScorer(PrefixScorer):
    """P(step is right) of a model that writes a critique first, on an engine.

    `votes` critiques of each step are drawn (one is greedy), each of at most `critique_tokens` tokens and behind its
    own earlier ones. A score is the mean over the votes of the verdict's probability, or, with `ask` "verdict", the
    share of votes for the step. Raises `ConfigError` where a critique does not fit into the context,
    `BackendError` where the model's chat template cannot write the form.

    Example:
        >>> from stepwise import lab
        >>> with Engine.load(lab.model_path("lab-weak"), context=1024, sequences=1) as engine:
        ...     judge = GenerativeScorer(engine, CritiqueForm.load("thinkprm"), critique_tokens=4)
        ...     0 < judge.score("1 + 1 = ?", ["1 + 1 = 3."])[0] < 1
        True
    """

    def __init__(
        self,
        engine: Engine,
        form: CritiqueForm,
        *,
        votes: int = 1,
        critique_tokens: int = 512,
        ask: Ask = "probability",
        memory: int = 10_000,
    ):
        super().__init__(f"generative {engine.name}", memory=memory)
        self.parameters, self.memory_bytes = engine.parameters, engine.memory_bytes
        self.engine, self.form, self.votes, self.ask = engine, form, _at_least_one("votes", votes), ask
        self.critique_tokens = _at_least_one("critique_tokens", critique_tokens)
        self._asked_for = _asked_for(form, votes, critique_tokens, ask)
        self._verdicts: OrderedDict[tuple[bytes, int], _Verdict] = OrderedDict()
        needed = len(self._prompt("?", ["?"], [])) + critique_tokens + _VERDICT_TOKENS
        if needed > engine.context:
            raise ConfigError(
                f"critique_tokens is {critique_tokens}, which takes {needed} tokens with the prompt: more than the "
                f"context of {engine.context}; lower it, or raise scorer.context"
            )

    def _model_name(self) -> str:
        return f"generative {self.engine.name}"  # of now: an adapter may have been attached since

    def verdicts(self, problem: Problem | str, steps: Sequence[str]) -> list[list[_Verdict]]:
        """What the votes said of each step, as far as it is still in memory: a list for each step."""
        keys = self._begin(problem, steps).keys
        with self._lock:
            return [[self._verdicts[k, v] for v in range(self.votes) if (k, v) in self._verdicts] for k in keys]

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`."""
        return Driver(self.engines).run([self._vote(task) for task in tasks])

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """On the engine, critiques join the running batch as soon as they are asked for."""
        task = self._begin(problem, steps)
        return self._end(task, None if task.done else await self._vote(task))

    @property
    def engines(self) -> tuple[Any, ...]:
        """The engine."""
        return (self.engine,)

    def reset_cache(self) -> None:
        """Drop every score, critique and cached prefix, so that what follows is measured from cold."""
        super().reset_cache()
        self._verdicts.clear()
        self.engine.reset_cache()

    def close(self) -> None:
        """Free the engine; calling it twice does nothing."""
        super().reset_cache()
        self.engine.close()

    async def _vote(self, task: Task) -> Scored:
        """The scores from `task.first` on; the votes are independent of each other, and written together."""
        chains = await asyncio.gather(*(self._chain(task, vote) for vote in range(self.votes)))
        usage = sum((usage for _, usage, _ in chains), Usage())
        if error := next((error for *_, error in chains if error), ""):
            return Scored([], usage, error)
        scores = []
        for step in zip(*(verdicts for verdicts, *_ in chains), strict=True):
            values = [each.probability for each in step]
            scores.append(sum(v >= 0.5 if self.ask == "verdict" else v for v in values) / len(values))
        return Scored(scores, usage)

    async def _chain(self, task: Task, vote: int) -> tuple[list[_Verdict], Usage, str]:
        """What one vote says of the steps from `task.first` on, what that cost, and why it cannot be said."""
        usage, whole, steps = Usage(self.name), self.form.covers == "solution", task.steps
        said = [_Verdict("", score) for score in task.known] if whole else []
        while len(said) < len(steps):
            kept = self._verdicts.get((task.keys[len(said)], vote))
            if kept is not None:  # of a step that was scored before: its critique stands before the next one
                said.append(kept)
                continue
            upto = len(steps) if whole else len(said) + 1
            fresh, spent, error = await self._judge(task.question, steps[:upto], said, vote)
            usage += spent
            if error:
                return [], usage, error
            with self._lock:
                self._verdicts.update(zip(((key, vote) for key in task.keys[len(said) : upto]), fresh, strict=True))
                while len(self._verdicts) > self.memory:
                    self._verdicts.popitem(last=False)
            said += fresh
        return said[task.first :], usage, ""

    async def _judge(
        self, question: str, steps: Sequence[str], said: Sequence[_Verdict], vote: int
    ) -> tuple[list[_Verdict], Usage, str]:
        """One critique, and the verdicts on the steps behind those that are judged already."""
        form, ids, open_steps = self.form, self._prompt(question, steps, said), len(steps) - len(said)
        room = self.engine.context - len(ids) - _VERDICT_TOKENS * (len(steps) if form.covers == "solution" else 1)
        if room < 1:
            return [], Usage(), f"the solution and its critiques leave no room in a context of {self.engine.context}"
        job = GenerationJob(
            tuple(ids),
            max_tokens=min(self.critique_tokens * open_steps, room),
            stop_strings=form.stops,
            first=vote,
            seed=seed_for(0, "critique", question, *steps),
            temperature=form.temperature if self.votes > 1 else 0.0,
            top_p=form.top_p,
            top_k=form.top_k,
        )
        (made,) = await self.engine.agenerate([job])
        usage = Usage(self.name, 1, len(ids), made.evaluated_tokens, len(made.ids))
        if made.error:
            return [], usage, made.error
        text, fresh = made.text.rstrip(), list[_Verdict]()
        if form.end_thought and open_thought(prompt_thought(self.engine.vocabulary.spelled(ids[-_PROMPT_END:])) + text):
            text += "\n</think>"
        critique, text = text, text + form.head
        for place in range(0 if form.covers == "solution" else len(said), len(steps)):
            text += fill(form.lead, number=place + form.first)
            if place < len(said):
                value = said[place].probability
            else:
                value, spent, error = await self._read(ids, text)
                usage += spent
                if error:
                    return [], usage, error
                fresh.append(_Verdict(critique, value, made.finish == "step"))
            text += self._word(value) + form.close
        return fresh, usage, ""

    async def _read(self, before: Sequence[int], text: str) -> tuple[float, Usage, str]:
        """P(right) where the two verdicts part, after the ids `before` and `text`; part of the critique's call."""
        form = self.form
        good, bad = (self.engine.tokenize(text + word + form.close) for word in (form.good, form.bad))
        place = next(i for i, pair in enumerate(zip(good, bad, strict=False)) if pair[0] != pair[1])
        ids = [*before, *good[:place]]
        (read,) = await self.engine.ascore([ids], [[len(ids) - 1]], [good[place], bad[place]])
        usage = Usage(self.name, 0, len(ids), read.evaluated_tokens)
        return (math.nan, usage, read.error) if read.error else (label_score(*read.logits[0].tolist()), usage, "")

    def _prompt(self, question: str, steps: Sequence[str], said: Sequence[_Verdict]) -> list[int]:
        """The ids up to where the next critique is written; those of the steps before stand in them."""
        form, engine = self.form, self.engine
        last = len(steps) - 1
        openings = [fill(form.opening, step=step, number=n) for n, step in enumerate(steps, form.first)]
        turns = [
            opening + each.critique + fill(form.lead, number=number) + self._word(each.probability) + form.close
            for number, (opening, each) in enumerate(zip(openings, said, strict=False), form.first)
        ]
        ids = engine.chat_ids(form.chat(question, steps, turns), add_generation_prompt=form.header)
        if not form.header:  # nor the end of the user's message, with the line end that may follow it
            ends = engine.vocabulary.end_tokens
            ids = next((ids[:-k] for k in (1, 2) if ids[-k] in ends), ids)
        before = "" if form.next_user or form.covers == "solution" else "".join(turns)
        return [*ids, *engine.tokenize(form.prefill + before + openings[last])]

    def _word(self, probability: float) -> str:
        return self.form.good if probability >= 0.5 else self.form.bad


class ServedGenerativeScorer(PrefixScorer):
    r"""The same behind an API: `votes` whole replies of `complete`, each with a verdict on every step.

    The score of a step is the share of votes for it; a reply without a verdict on a step is no vote on it, and
    without any the item's error says so. `requests` are in flight at once. Raises `ConfigError` for a form that needs
    an engine.

    Example:
        >>> reply = "Step 1: one and one are two. The step is \\boxed{incorrect}"
        >>> judge = ServedGenerativeScorer(lambda chat, tokens: (reply, Usage()), "m", CritiqueForm.load("thinkprm"))
        >>> judge.score("1 + 1 = ?", ["1 + 1 = 3."])
        [0.0]
    """

    def __init__(
        self,
        complete: Complete,
        name: str,
        form: CritiqueForm,
        *,
        votes: int = 1,
        critique_tokens: int = 512,
        requests: int = 8,
        memory: int = 10_000,
        remote: bool = False,
    ):
        if not form.reply:
            raise ConfigError(
                "this form of critiques continues messages that were begun, which an API does not: take it on a local "
                'model ("llamacpp/FILE.gguf"), or template = "thinkprm" or "tips"'
            )
        super().__init__(f"generative {name}", memory=memory, requests=requests)
        self.complete, self.form, self.remote = complete, form, remote
        self.votes, self.critique_tokens = (
            _at_least_one("votes", votes),
            _at_least_one("critique_tokens", critique_tokens),
        )
        self._asked_for = _asked_for(form, votes, critique_tokens, "verdict")

    def measure(self, tasks: Sequence[Task]) -> list[Scored]:
        """See `PrefixScorer.measure`; every vote on every task is a call of its own."""
        replies = iter(self.map(self._reply, [task for task in tasks for _ in range(self.votes)]))
        return [self._counted(task, list(islice(replies, self.votes))) for task in tasks]

    def _reply(self, task: Task) -> tuple[str, Usage, Failure | None]:
        chat, most = self.form.chat(task.question, task.steps, []), len(task.steps) * self.critique_tokens
        try:
            text, usage, failure = *self.complete(chat, most), None
        except StepwiseError as error:
            text, usage = "", error.usage if isinstance(error, CallFailed) else Usage()
            failure = failure_of(error)
        return text, dataclasses.replace(usage, model=self.name, calls=max(usage.calls, 1)), failure

    def _counted(self, task: Task, replies: Sequence[tuple[str, Usage, Failure | None]]) -> Scored:
        usage = sum((usage for _, usage, _ in replies), Usage())
        if failure := next((failure for *_, failure in replies if failure), None):
            return Scored.of_failure(failure, usage)
        votes = [read_reply(self.form, text, task.steps) for text, *_ in replies]
        scores = []
        for place in range(task.first, len(task.steps)):
            values = [vote[place] for vote in votes if vote[place] is not None]
            if not values:
                end = redact(replies[0][0][-200:])
                fault = f"step {place}: {len(votes)} critiques and no verdict on it; the first one ends {end!r}"
                return Scored.of_failure(Failure("refused", fault), usage)
            scores.append(sum(map(bool, values)) / len(values))
        return Scored(scores, usage)


def _asked_for(form: CritiqueForm, votes: int, tokens: int, ask: Ask) -> str:
    digest = hashlib.sha256(form.model_dump_json().encode()).hexdigest()[:8]
    return f"form {digest} {votes} x {tokens} {ask}"


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ConfigError(f"{name} is {value}; give a whole number of at least 1")
    return value
