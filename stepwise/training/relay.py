"""Rollouts in which the policy may ask for help: RelayLLM (arXiv 2601.05167) on steps, for `grpo`.

At the beginning of each step the marker may be drawn. Then the strong model writes the step, under the prompt and the
text so far, as it does in routing; the policy goes on behind it. Neither reads the marker: a rollout is trained as its
text, in which the strong model's tokens are context without a gradient, and each call as a row of its own, the text
before it and the marker. So what is trained is what `routing.relay` asks.

The advantage of a call is that of its rollout: right less what the strong model's tokens cost, less the mean of that
over the group (`credit.outcome`), so that the baseline sees the cost. What differs from RelayLLM stands there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stepwise.config import Config
from stepwise.errors import BackendError, ConfigError
from stepwise.models import load_backend
from stepwise.models.base import Completion, Request
from stepwise.models.budget import Ledger
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.wrappers import Wrappers
from stepwise.seeds import seed_for
from stepwise.steps import join_steps, separated
from stepwise.training.lora import Trainee
from stepwise.training.policy import Floats, RolloutRow
from stepwise.training.rendering import marker_id
from stepwise.training.rollouts import Hints, RlRollout
from stepwise.training.sampler import Sampler, check_paid
from stepwise.types import Finish, Problem, Step, Usage


@dataclass
class _Open:
    """A rollout while it is written; `context` has the token ids that the policy goes on behind."""

    problem: Problem
    sample: int
    context: list[int]
    hint: tuple[str, ...]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    foreign: list[tuple[int, int]] = field(default_factory=list)
    strong_tokens: int = 0
    thought: str = ""
    finish: Finish | None = None
    error: str = ""

    def add(self, text: str, ids: Sequence[int], logprobs: Sequence[float], call: tuple[int, float] | None) -> None:
        """A step: `ids`, of which as many as there are `logprobs` were sampled, behind the marker of a `call`."""
        start = len(self.token_ids)
        if call is not None:
            self.calls.append(start)
            self.token_ids.append(call[0])
            self.logprobs.append(call[1])
        own = len(self.token_ids) + len(logprobs)
        self.token_ids += ids
        self.context += ids
        end = len(self.token_ids)
        self.logprobs += [*logprobs, *[0.0] * (end - own)]
        if own < end:
            self.foreign.append((own, end))
        if text.strip():
            self.steps.append(text)
            self.spans.append((start, end))
        elif self.spans:  # what ends the message belongs to the step before
            self.spans[-1] = (self.spans[-1][0], end)


class RelaySampler(Sampler):
    """A `Sampler` whose rollouts ask `models.strong` where they draw the marker of [rl].

    `strong` is a model that is loaded already. `spent` is what it cost in the last call of `sample`. Raises ConfigError
    for a marker that is no single token, and what loading raises.

    Example:
        with RelaySampler(sw.Config.load(None, ["rl.marker=<|reserved_0|>"])) as sampler:
            sampler.attach(trainee)
            rollouts, evaluated = sampler.sample(problems, sampler.prompts(problems, trainee), step=1)
    """

    def __init__(
        self,
        cfg: Config,
        backend: LlamaCppBackend | None = None,
        ledger: Ledger | None = None,
        strong: Any = None,
    ) -> None:
        super().__init__(cfg, backend, ledger)
        assert cfg.rl.marker is not None
        self._marker = self.engine.token_id(cfg.rl.marker)
        self._loaded = load_backend(cfg.models.strong, prompt=cfg.prompt) if strong is None else strong
        around = Wrappers(self.ledger, cfg.prompt, callbacks=tuple, run=cfg.hash)
        self._strong, self.spent = around.model(self._loaded, "strong"), Usage()

    @property
    def strong_parameters(self) -> int | None:
        """Number of weights of the strong model, None if unknown."""
        size: int | None = self._loaded.parameters
        return size

    def attach(self, trainee: Trainee) -> None:
        """See `Sampler`; the strong model's caches are emptied, too, so that no step depends on those before."""
        super().attach(trainee)
        self._strong.reset_cache()

    def prompts(
        self, problems: Iterable[Problem], trainee: Trainee, hints: Hints | None = None
    ) -> dict[str, tuple[int, ...]]:
        """See `Sampler`; raises DataError, too, for a question that holds the marker, ConfigError where the trainer's
        tokenizer has another id for it.
        """
        problems = list(problems)
        questions = [(f"problem {problem.id!r}", problem.question) for problem in problems]
        if (theirs := marker_id(trainee.tokenizer, str(self._cfg.rl.marker), questions)) != self._marker:
            raise ConfigError(
                f"rl.marker is {self._cfg.rl.marker!r}, token {self._marker} of the GGUF and {theirs} of "
                f"{trainee.base}; make the GGUF from that directory"
            )
        return super().prompts(problems, trainee, hints)

    def sample(
        self,
        problems: Sequence[Problem],
        prompts: Mapping[str, tuple[int, ...]],
        step: int,
        hints: Hints | None = None,
    ) -> tuple[list[RlRollout], int]:
        """See `Sampler`; a step at a time of all rollouts together, the strong model's where they ask."""
        made = [
            _Open(problem, k, list(prompts[problem.id]), (hints or {}).get(problem.id, ()))
            for problem in problems
            for k in range(self._cfg.rl.group)
        ]
        evaluated, self.spent = 0, Usage()
        while writing := [one for one in made if one.finish is None]:
            evaluated += self._write(writing, step)
        errors = [one.error for one in made if one.finish == "error"]
        if 2 * len(errors) > len(made):
            raise BackendError(f"models failed for {len(errors)} of {len(made)} rollouts, first: {errors[0]}")
        return [self._closed(one, step) for one in made], evaluated

    def _write(self, made: Sequence[_Open], step: int) -> int:
        """One more step of each; returns how many tokens of their contexts the policy evaluated."""
        rl, sampling = self._cfg.rl, self._cfg.sampling
        results = self._asked(self._model, [
            Request(
                one.problem, max_tokens=self._room(one), temperature=rl.temperature, top_p=rl.top_p, top_k=rl.top_k,
                seed=self._seed(one, step, "weak"), role="weak", run=self._cfg.hash, attempt=step,
                token_ids=tuple(one.context), marker=str(rl.marker), may_call=True,
            )
            for one in made
        ])  # fmt: skip
        calling: list[tuple[_Open, tuple[int, float]]] = []
        for one, result in zip(made, results, strict=True):
            one.thought = one.thought or (result.thought if not one.token_ids else "")
            logprobs = list(result.logprobs or ())
            if result.token_ids[:1] == (self._marker,):
                calling.append((one, (self._marker, logprobs[0])))
            else:
                self._take(one, result, *self._own(result))
        replies = self._asked(self._strong, [
            Request(
                one.problem, tuple(Step(text, "hint") for text in (*one.hint, *one.steps)),
                max_tokens=sampling.max_step_tokens, temperature=sampling.temperature, top_p=sampling.top_p,
                top_k=sampling.top_k, seed=self._seed(one, step, "strong"), role="strong", run=self._cfg.hash,
                attempt=step,
            )
            for one, _ in calling
        ])  # fmt: skip
        for (one, call), reply in zip(calling, replies, strict=True):
            text = separated(reply.text, self._cfg.prompt.splitter) if reply.finish == "step" else reply.text
            self._take(one, reply, self.engine.tokenize(text) if text.strip() else [], [], call)
            one.strong_tokens += reply.usage.generated_tokens
            self.spent += reply.usage
        return sum(result.usage.evaluated_tokens for result in results)

    def _asked(self, model: Any, requests: list[Request]) -> list[Completion]:
        results: list[Completion] = model.continue_solutions(requests) if requests else []
        check_paid(result.failed for result in results)
        return results

    def _own(self, result: Completion) -> tuple[list[int], list[float]]:
        """The ids that the policy goes on behind, and the log-probabilities of those that it sampled: where the last
        one ran past the step's end, what counts of it is tokenized again, as in routing.
        """
        ids, logprobs = list(result.token_ids), list(result.logprobs or ())
        if result.end is None:
            return ids, logprobs
        kept = ids[:-1]
        tail = self.engine.detokenize(ids)[len(self.engine.detokenize(kept)) : result.end]
        return [*kept, *self.engine.tokenize(tail.decode("utf-8", "replace"))], logprobs[:-1]

    def _take(
        self,
        one: _Open,
        result: Completion,
        ids: Sequence[int],
        logprobs: Sequence[float],
        call: tuple[int, float] | None = None,
    ) -> None:
        """A step as it came; the rollout ends with it where the text does, or where there is no room for another."""
        one.add(result.text, ids, logprobs, call)
        if result.finish != "step":
            one.finish, one.error = result.finish, result.error
        elif not result.text.strip():
            one.finish = "eos"
        elif len(one.steps) >= self._cfg.routing.max_steps or self._room(one) < 1:
            one.finish = "length"

    def _room(self, one: _Open) -> int:
        return min(self._cfg.rl.max_tokens - len(one.token_ids), self.engine.context - len(one.context))

    def _seed(self, one: _Open, step: int, role: str) -> int:
        return seed_for(self._cfg.seed, one.problem.id, "rl", step, one.sample, len(one.steps), role)

    def _closed(self, one: _Open, step: int) -> RlRollout:
        problem = one.problem
        return RlRollout(
            f"{problem.id}/s{step}/r{one.sample}", step, problem.id, problem.question, one.sample,
            join_steps(one.steps, self._cfg.prompt.splitter), tuple(one.steps), tuple(one.spans), tuple(one.token_ids),
            tuple(one.logprobs), one.finish or "error", hint=one.hint, thought=one.thought, calls=tuple(one.calls),
            foreign=tuple(one.foreign), strong_tokens=one.strong_tokens,
        )  # fmt: skip

    def close(self) -> None:
        """Free both models; calling it twice does nothing."""
        self._loaded.close()
        super().close()


def rows_of(
    rollouts: Sequence[RlRollout],
    prompts: Mapping[str, tuple[int, ...]],
    advantages: Sequence[Floats] = (),
    weights: Sequence[float] = (),
    class_weights: Sequence[float] = (),
) -> tuple[list[RolloutRow], list[int]]:
    """Rollouts as the trainer takes them, and of each row the place of its rollout: a rollout's text, with what the
    policy sampled of it, and each call behind the text before it.

    `prompts` are token ids by problem id. `advantages` (T,) and the two weights are one per rollout, or none where no
    gradient is asked for.

    Example:
        rows, owners = rows_of(rollouts, prompts, advantages, weights, class_weights)
    """
    rows, owners = list[RolloutRow](), list[int]()
    for i, rollout in enumerate(rollouts):
        made = _rows_of_one(
            rollout, prompts[rollout.problem], advantages[i] if advantages else np.zeros(0),
            weights[i] if weights else 0.0, class_weights[i] if class_weights else 0.0,
        )  # fmt: skip
        rows += made
        owners += [i] * len(made)
    return rows, owners


def _rows_of_one(
    rollout: RlRollout, prompt: tuple[int, ...], advantages: Floats, weight: float, class_weight: float
) -> list[RolloutRow]:
    ids, sampler, reward = np.array(rollout.token_ids, dtype=int), np.array(rollout.logprobs), rollout.reward or 0.0
    text = np.ones(len(ids), dtype=np.bool_)  # (T,), all but the calls
    text[list(rollout.calls)] = False
    sampled, rows = rollout.sampled, list[RolloutRow]()

    def add(before: tuple[int, ...], chosen: Any, mask: Any, of_class: float) -> None:
        given = advantages[chosen] if len(advantages) else advantages
        row = RolloutRow(before, tuple(ids[chosen].tolist()), sampler[chosen], reward, given, weight, of_class, mask)
        rows.append(row)

    if not rollout.calls or (text & sampled).any():
        add(prompt, text, sampled[text] if rollout.foreign else None, class_weight)
    for place in rollout.calls:
        add((*prompt, *ids[:place][text[:place]].tolist()), slice(place, place + 1), None, 0.0)
    return rows
