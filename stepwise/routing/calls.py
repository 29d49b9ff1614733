"""The models of a routing run: called in batches, under the caps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.config import SamplingConfig
from stepwise.errors import BackendError, BudgetExceededError, CapabilityError
from stepwise.models.base import Backend, Completion, Request
from stepwise.models.budget import Ledger, Reservation
from stepwise.models.scorers import Scorer, score_items
from stepwise.prompt import SolvePrompt
from stepwise.routing.open import OpenProblem
from stepwise.seeds import stable_hash
from stepwise.types import Step, Usage

Role = Literal["weak", "strong"]
Asked = tuple[OpenProblem, Reservation]


class Models(NamedTuple):
    """The models of a run by role; `scorer` is needed only by policies that look at scores."""

    weak: Backend
    strong: Backend
    scorer: Scorer | None = None


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RouteSettings:
    """How steps are drawn and when a trace ends.

    `window` bounds the problems that are open at once (None: all of them). `prompt` is what the backends put around a
    question; here it only bounds what a request may cost.
    """

    sampling: SamplingConfig = SamplingConfig()
    max_steps: int = Field(default=30, ge=1)
    seed: int = Field(default=0, ge=0)
    window: int | None = Field(default=None, ge=1)
    prompt: SolvePrompt = SolvePrompt()


class Calls:
    """What is asked of the models for a batch of open problems. `wanted_by` names who wants log-probabilities; `drafts`
    says that it wants them with every draft.
    """

    def __init__(
        self, models: Models, settings: RouteSettings, ledger: Ledger, wanted_by: str = "", drafts: bool = False
    ):
        self.models, self.settings, self.ledger = models, settings, ledger
        self._wanted_by, self._top = wanted_by, int(drafts)

    def score(self, items: Sequence[OpenProblem]) -> None:
        """Fill in the scores that are missing, in as few calls as the caps allow; a step keeps the score that was
        decided on.
        """
        todo = [item for item in items if len(item.texts) > sum(step.score is not None for step in item.steps)]
        for item in self.served(todo, self._reserve_scores, self._scored):
            item.end("budget", f"the budget was spent before step {len(item.steps)} was scored: {item.refused_by}")

    def _scored(self, asked: Sequence[Asked]) -> None:
        assert self.models.scorer is not None
        results = score_items(self.models.scorer, [(item.problem, item.texts) for item, _ in asked])
        for (item, held), (scores, usage, error, _) in zip(asked, results, strict=True):
            if not self.paid("scorer", item.problem, item.texts):
                held.settle(usage)
            item.scorer_usage += usage
            if error:
                item.end("error", f"the scorer failed at step {len(item.steps)}: {error}")
                continue
            kept = len(item.steps)
            item.steps = [
                step if step.score is not None else dataclasses.replace(step, score=score)
                for step, score in zip(item.steps, scores[:kept], strict=True)
            ]
            if item.current is not None and len(scores) > kept:
                item.current = dataclasses.replace(item.current, score=scores[-1])

    def write(self, role: Role, items: Sequence[OpenProblem]) -> list[OpenProblem]:
        """Have a model write the next step of every item, in as few calls as the caps allow.

        Returns the items that it may not serve. Without the weak model nothing can go on: its refused items end in
        "budget".
        """
        refused = list(items)
        if items and self.prepared(role, items):
            refused = self.served(items, partial(self._reserve_step, role), partial(self._written, role))
        for item in refused if role == "weak" else ():
            item.end("budget", f"the budget was spent before step {len(item.steps)}: {item.refused_by}")
        return refused

    def _written(self, role: Role, asked: Sequence[Asked]) -> None:
        requests = [self.step_request(role, item) for item, _ in asked]
        for (item, held), request, result in zip(asked, requests, self.ask(role, requests), strict=True):
            if not self.paid(role, request):
                held.settle(result.usage)
            item.replace(Step(result.text, role, usage=result.usage, token_ids=result.token_ids))
            item.current_finish = result.finish
            item.looked.logprobs = result.top_logprobs or ()
            if result.finish == "error":
                note = result.error or "no reason given"
                item.end("error", f"the {role} model failed at step {len(item.steps)}: {note}")

    def served(
        self,
        items: Sequence[OpenProblem],
        reserve: Callable[[OpenProblem], Reservation],
        work: Callable[[Sequence[Asked]], None],
    ) -> list[OpenProblem]:
        """Do `work` for all items that the caps allow, as many at a time as they allow; returns the others."""
        waiting = list(items)
        while waiting:
            asked, refused = list[Asked](), list[OpenProblem]()
            with ExitStack() as stack:
                for item in waiting:  # all of them: one whose own cap is reached holds nobody up
                    try:
                        asked.append((item, stack.enter_context(reserve(item))))
                    except BudgetExceededError as refusal:
                        item.refused_by = refusal.cap
                        refused.append(item)
                if not asked:
                    break
                work(asked)
            waiting = refused
        return waiting

    def prepared(self, role: Role, items: Sequence[OpenProblem]) -> bool:
        """Have a model that must be tried out first (an API) do it on the run's account; False where a cap forbids."""
        model = getattr(self.models, role)
        if not hasattr(model, "prepare"):
            return True
        most: Usage = model.probe_bound
        try:
            with self.ledger.reserve(
                role, most.generated_tokens, prompt_tokens=most.prompt_tokens, calls=most.calls
            ) as held:
                spent: Usage = model.prepare()
                if spent.calls:
                    held.settle(spent)
        except BudgetExceededError as refusal:
            for item in items:
                item.refused_by = refusal.cap
            return False
        return True

    def paid(self, role: Role | Literal["scorer"], *asked: Any) -> bool:
        """Whether an earlier start of the run paid for the answer: it is free now, and is counted already."""
        known: Callable[..., bool] | None = getattr(getattr(self.models, role), "paid", None)
        return known is not None and known(*asked)

    def reserve(self, role: Role, item: OpenProblem, request: Request, extra: str = "") -> Reservation:
        """Set aside what `request` may cost at most, which reads the solution so far and `extra`. Raises
        BudgetExceededError.
        """
        if self.paid(role, request):
            return item.account.reserve(role, 0, calls=0)
        samples, tokens = request.n, request.max_tokens
        calls = samples * getattr(getattr(self.models, role), "calls_per_sample", 1)  # an API may be asked again
        prompt = calls * (self._length(item) + len(extra.encode("utf-8", "replace")))
        return item.account.reserve(role, calls * tokens, prompt_tokens=prompt, calls=calls)

    def _reserve_step(self, role: Role, item: OpenProblem) -> Reservation:
        return self.reserve(role, item, self.step_request(role, item))

    def _reserve_scores(self, item: OpenProblem) -> Reservation:
        """Set aside the reading of each step that has no score yet. Raises BudgetExceededError."""
        if self.paid("scorer", item.problem, item.texts):
            return item.account.reserve("scorer", 0, calls=0)
        new = len(item.texts) - sum(step.score is not None for step in item.steps)
        return item.account.reserve("scorer", 0, prompt_tokens=new * self._length(item), calls=new)

    def _length(self, item: OpenProblem) -> int:
        """Bytes of what a model is shown, which bound its tokens; the chat template adds a few."""
        text = "".join([item.problem.question, *item.texts])
        return len(text.encode("utf-8", "replace")) + len(self.settings.prompt.model_dump_json()) + 64

    def ask(self, role: Role, requests: Sequence[Request]) -> list[Completion]:
        """The continuations, as many as were asked for. Raises `CapabilityError` where the model gives no
        log-probabilities, `BackendError` where it answers another number of requests.
        """
        model: Backend = getattr(self.models, role)
        if any(request.top_logprobs for request in requests) and not model.capabilities.logprobs:
            raise CapabilityError(
                f"signal {self._wanted_by!r} needs the log-probabilities of the likeliest tokens, and the {role} model "
                f"{model.name!r} gives none; load it in this process (llamacpp/...) or behind a server whose chat "
                'completions have top_logprobs (with continuation = "probe", which finds that out), or take a signal '
                "on scores or texts (score, score_drop, agreement)"
            )
        results = model.continue_solutions(requests)
        if len(results) != sum(request.n for request in requests):
            raise BackendError(
                f"backend {model.name!r} gave {len(results)} answers to {len(requests)} requests; "
                "it must answer each, with finish 'error' where it failed"
            )
        return results

    def step_request(self, role: Role, item: OpenProblem) -> Request:
        """The next step; its seed depends on the place alone, so that policies share drafts."""
        sampling = self.settings.sampling
        attempt = len(item.drafts) if role == "weak" else 0
        return Request(
            item.problem,
            tuple(item.steps),
            max_tokens=sampling.max_step_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=stable_hash(self.settings.seed, item.problem.id, len(item.steps), role, attempt),
            top_logprobs=self._top if role == "weak" else 0,
        )
