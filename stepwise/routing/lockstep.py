"""The routing loop: all problems in lockstep, one batch per model and step (TRIM, arXiv 2601.10245, section 3).

What differs from TRIM:
1. Every open problem moves by one step per round: one call to the weak model, one to the scorer, one to the strong
   model.
2. A policy may decide before the draft is written, keep the strong model for several steps or for good, or have the
   weak model draft again; TRIM rewrites one step after seeing its draft.
3. An end of message without a box ends the trace; TRIM's loop goes on asking until its limit of 30 steps.
4. A strong step is scored together with the draft after it, so it costs the scorer no call of its own; one that ends
   the solution is not scored.
5. Every draft's seed follows from (run seed, problem id, step, role, attempt) alone: up to the rounding of the models'
   sums, a trace does not depend on what else is in the batch, and the same prefix gets the same draft under every
   policy.
6. Caps, on a problem and on the run, are kept by reserving a whole step before it is asked for: near the run's cap
   fewer steps are asked at a time.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.backends.base import Backend, Continuation, Request
from stepwise.budget import Ledger, Reservation
from stepwise.config import SamplingConfig
from stepwise.errors import BackendError, BudgetExceededError, ConfigError
from stepwise.prompt import SolvePrompt
from stepwise.routing.open import OpenProblem
from stepwise.routing.policy import Action, Escalate, HandOver, Keep, Policy, Resample, View, stable_hash
from stepwise.scorers import Scorer, score_items
from stepwise.steps import extract_answer
from stepwise.types import Problem, Step, Trace, Usage

MAX_COPIES = 2  # a step may stand twice in a trace; a third copy means that the models go in circles
MAX_DRAFTS = 16  # drafts of one step; a policy that resamples for ever is stopped here
_FOR_GOOD = 2**31
OnTrace = Callable[[Trace], None]
Role = Literal["weak", "strong"]


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


class RoutingInterrupted(KeyboardInterrupt):
    """Ctrl-C during routing. `traces` has one trace per problem, in order; those not finished end in "interrupted"."""

    def __init__(self, traces: Sequence[Trace] = ()):
        super().__init__("routing was interrupted; .traces holds what was done")
        self.traces = list(traces)


def route_all(
    problems: Sequence[Problem],
    models: Models,
    policy: Policy,
    settings: RouteSettings | None = None,
    *,
    ledger: Ledger | None = None,
    on_trace: OnTrace | None = None,
    spent: Mapping[Problem, Mapping[str, Usage]] | None = None,
) -> list[Trace]:
    """One trace per problem, in the order of the problems; `on_trace` is told of each as soon as it is finished.

    The caps of `ledger` hold for everything it counts, its caps on one problem for each trace and what `spent` says (by
    problem and role) that earlier attempts at it cost.

    A model that fails for one problem ends that trace with finish "error". Raises `ConfigError` when the policy needs a
    scorer and there is none, `BackendError` and `ScorerError` when a whole call fails, `RoutingInterrupted` on Ctrl-C.
    """
    if policy.needs_scores and models.scorer is None:
        raise ConfigError(
            f"policy {policy.name!r} looks at scores, but there is no scorer; "
            "give one, for example scorer='llamacpp/lab-scorer'"
        )
    ledger = ledger or Ledger()
    run = _Run(models, policy, settings or RouteSettings(), ledger)
    everyone = [OpenProblem(problem, ledger.for_problem((spent or {}).get(problem))) for problem in problems]
    waiting, active = deque(everyone), list[OpenProblem]()
    window = run.settings.window or len(everyone)
    try:
        while waiting or active:
            while waiting and len(active) < window:
                active.append(waiting.popleft())
            run.round(active)
            for item in active:
                if item.finish and on_trace is not None:
                    on_trace(item.trace())
            active = [item for item in active if not item.finish]
    except KeyboardInterrupt:
        raise RoutingInterrupted([item.interrupted() for item in everyone]) from None
    return [item.trace() for item in everyone]


_Asked = tuple[OpenProblem, Reservation]


class _Run:
    """The loop's parts; state is in the `OpenProblem` items and in the ledger."""

    def __init__(self, models: Models, policy: Policy, settings: RouteSettings, ledger: Ledger):
        self.models, self.policy, self.settings, self.ledger = models, policy, settings, ledger

    def round(self, items: Sequence[OpenProblem]) -> None:
        """One more step for every item, or its end."""
        if self.policy.when != "after":
            self._ask(
                [item for item in items if not item.strong_steps and (self.policy.when == "before" or not item.steps)]
            )
        drafting = [item for item in items if not (item.strong_steps or item.finish)]
        while drafting:
            self._write("weak", drafting)
            drafted = [item for item in drafting if not item.finish]
            drafting = self._ask(drafted) if self.policy.when == "after" else []
        refused = self._write("strong", [item for item in items if item.strong_steps and not item.finish])
        for item in refused:
            item.strong_steps = 0
            item.decision = f"keep: the budget is spent, {item.refused_by} ({item.decision})"
        self._write("weak", [item for item in refused if item.current is None])
        for item in items:
            if not item.finish:
                self._accept(item)

    def _ask(self, items: Sequence[OpenProblem]) -> list[OpenProblem]:
        """Score what the policy wants scored, and let it decide; returns the items that it wants drafted again."""
        if self.policy.needs_scores:
            self._score(items)
        scored = [item for item in items if not item.finish]
        return [item for item in scored if self._act(item, self.policy.decide(self._view(item)))]

    def _act(self, item: OpenProblem, action: Action) -> bool:
        """Note what the policy decided; True when the weak model is to draft again."""
        again = isinstance(action, Resample) and item.current is not None and len(item.drafts) < MAX_DRAFTS - 1
        match action:
            case Escalate():
                item.strong_steps, word = action.steps, "escalate"
            case HandOver():
                item.strong_steps, word = _FOR_GOOD, "hand over"
            case Resample() if again:
                word = "draft again"
            case Resample() | Keep():
                word = "keep"
        item.decision = f"{word}: {action.reason}" if action.reason else word
        if again and item.current is not None:
            item.current = dataclasses.replace(item.current, decision=item.decision)
            item.replace(None)
        return again

    def _view(self, item: OpenProblem) -> View:
        left = item.account.remaining()["strong_tokens"]
        return View(
            item.problem,
            tuple(item.steps),
            item.current,
            item.current_finish if item.current is not None else "",
            len(item.drafts),
            self.settings.max_steps,
            None if left is None else max(0, int(left)),
            self.settings.seed,
        )

    def _score(self, items: Sequence[OpenProblem]) -> None:
        """Fill in the scores that are missing, in as few calls as the caps allow; a step keeps the score that was
        decided on.
        """
        todo = [item for item in items if len(item.texts) > sum(step.score is not None for step in item.steps)]
        for item in self._served(todo, self._reserve_scores, self._scored):
            item.end("budget", f"the budget was spent before step {len(item.steps)} was scored: {item.refused_by}")

    def _scored(self, asked: Sequence[_Asked]) -> None:
        assert self.models.scorer is not None
        results = score_items(self.models.scorer, [(item.problem, item.texts) for item, _ in asked])
        for (item, held), (scores, usage, error) in zip(asked, results, strict=True):
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

    def _write(self, role: Role, items: Sequence[OpenProblem]) -> list[OpenProblem]:
        """Have a model write the next step of every item, in as few calls as the caps allow.

        Returns the items that it may not serve. Without the weak model nothing can go on: its refused items end in
        "budget".
        """
        refused = list(items)
        if items and self._prepared(role, items):
            refused = self._served(items, partial(self._reserve_step, role), partial(self._written, role))
        for item in refused if role == "weak" else ():
            item.end("budget", f"the budget was spent before step {len(item.steps)}: {item.refused_by}")
        return refused

    def _written(self, role: Role, asked: Sequence[_Asked]) -> None:
        for (item, held), result in zip(asked, self._call(role, [item for item, _ in asked]), strict=True):
            held.settle(result.usage)
            self._receive(item, role, result)

    def _served(
        self,
        items: Sequence[OpenProblem],
        reserve: Callable[[OpenProblem], Reservation],
        work: Callable[[Sequence[_Asked]], None],
    ) -> list[OpenProblem]:
        """Do `work` for all items that the caps allow, as many at a time as they allow; returns the others."""
        waiting = list(items)
        while waiting:
            asked, refused = list[_Asked](), list[OpenProblem]()
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

    def _prepared(self, role: Role, items: Sequence[OpenProblem]) -> bool:
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

    def _reserve_step(self, role: Role, item: OpenProblem) -> Reservation:
        """Set aside a whole step. Raises BudgetExceededError."""
        calls = getattr(getattr(self.models, role), "calls_per_sample", 1)  # an API may have to be asked again
        tokens = calls * self.settings.sampling.max_step_tokens
        return item.account.reserve(role, tokens, prompt_tokens=calls * self._length(item), calls=calls)

    def _reserve_scores(self, item: OpenProblem) -> Reservation:
        """Set aside the reading of each step that has no score yet. Raises BudgetExceededError."""
        new = len(item.texts) - sum(step.score is not None for step in item.steps)
        return item.account.reserve("scorer", 0, prompt_tokens=new * self._length(item), calls=new)

    def _length(self, item: OpenProblem) -> int:
        """Bytes of what a model is shown, which bound its tokens; the chat template adds a few."""
        text = "".join([item.problem.question, *item.texts])
        return len(text.encode("utf-8", "replace")) + len(self.settings.prompt.model_dump_json()) + 64

    def _call(self, role: Role, items: Sequence[OpenProblem]) -> list[Continuation]:
        model: Backend = getattr(self.models, role)
        results = model.continue_solutions([self._request(role, item) for item in items])
        if len(results) != len(items):
            raise BackendError(
                f"backend {model.name!r} gave {len(results)} answers to {len(items)} requests; "
                "it must answer each, with finish 'error' where it failed"
            )
        return results

    def _request(self, role: str, item: OpenProblem) -> Request:
        sampling = self.settings.sampling
        return Request(
            item.problem,
            tuple(item.steps),
            max_tokens=sampling.max_step_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=stable_hash(
                self.settings.seed, item.problem.id, len(item.steps), role, len(item.drafts) if role == "weak" else 0
            ),
        )

    def _receive(self, item: OpenProblem, role: Role, result: Continuation) -> None:
        item.replace(Step(result.text, role, usage=result.usage, token_ids=result.token_ids))
        item.current_finish = result.finish
        if result.finish == "error":
            item.end("error", f"the {role} model failed at step {len(item.steps)}: {result.error or 'no reason given'}")

    def _accept(self, item: OpenProblem) -> None:
        """The current draft becomes the next step, and the trace may end with it."""
        assert item.current is not None
        step, finish = item.current, item.current_finish
        place = f"step {len(item.steps)} ({step.author})"
        if not step.text.strip():
            if finish == "eos":
                item.end("eos", f"ended without a boxed answer before {place}")
            else:
                item.end("repeat", f"{place} is empty")
            return
        item.steps.append(dataclasses.replace(step, discarded=tuple(item.drafts), decision=item.decision))
        item.current, item.drafts = None, []
        if step.author == "strong":
            item.strong_steps -= 1
            item.decision = f"{item.decision.removesuffix(' (continued)')} (continued)"
        if finish == "answer" or extract_answer(step.text) is not None:
            item.end("answer")
        elif finish == "eos":
            item.end("eos", f"ended without a boxed answer at {place}")
        elif finish == "length":
            item.end("length", f"{place} was cut at {step.usage.generated_tokens} tokens")
        elif finish == "repeat":
            item.end("repeat", f"{place} repeats itself")
        elif sum(other.text == step.text for other in item.steps) > MAX_COPIES:
            item.end("repeat", f"{place} stands in the solution more than {MAX_COPIES} times")
        elif len(item.steps) >= self.settings.max_steps:
            item.end("steps", f"no boxed answer after {self.settings.max_steps} steps")
