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
from typing import Literal, NamedTuple

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stepwise.backends.base import Backend, Continuation, Request
from stepwise.budget import Ledger, Reservation
from stepwise.config import SamplingConfig
from stepwise.errors import BackendError, BudgetExceededError, ConfigError
from stepwise.prompt import SolvePrompt
from stepwise.routing.policy import Action, Escalate, HandOver, Keep, Policy, Resample, View, stable_hash
from stepwise.scorers import Scorer, score_items
from stepwise.steps import extract_answer
from stepwise.types import Problem, Step, Trace, TraceFinish, Usage

MAX_COPIES = 2  # a step may stand twice in a trace; a third copy means that the models go in circles
MAX_DRAFTS = 16  # drafts of one step; a policy that resamples for ever is stopped here
_FOR_GOOD = 2**31
OnTrace = Callable[[Trace], None]


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
    everyone = [_Open(problem, ledger.for_problem((spent or {}).get(problem))) for problem in problems]
    waiting, active = deque(everyone), list[_Open]()
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


@dataclasses.dataclass(slots=True, eq=False)
class _Open:
    """One problem while it is routed: the steps so far, and the step that is being made."""

    problem: Problem
    account: Ledger
    steps: list[Step] = dataclasses.field(default_factory=list)
    scorer_usage: Usage = dataclasses.field(default_factory=Usage)
    finish: TraceFinish = ""
    note: str = ""
    strong_steps: int = 0  # steps that the strong model still writes before the policy is asked again
    # the step being made
    current: Step | None = None
    current_finish: str = ""
    drafts: list[Step] = dataclasses.field(default_factory=list)
    decision: str = ""
    refused_by: str = ""  # the cap that stood in the way of the last model

    def trace(self) -> Trace:
        return Trace(self.problem, tuple(self.steps), self.finish, self.scorer_usage, self.note, tuple(self.drafts))

    def interrupted(self) -> Trace:
        if self.finish:
            return self.trace()
        lost = [*self.drafts, *([self.current] if self.current else [])]
        return Trace(
            self.problem, tuple(self.steps), "interrupted", self.scorer_usage, "stopped by the user", tuple(lost)
        )

    def end(self, finish: TraceFinish, note: str = "") -> None:
        """Close the trace; what was written for a step that never came to be is kept as abandoned."""
        self.replace(None)
        self.finish, self.note = finish, note

    def replace(self, step: Step | None) -> None:
        """Put `step` in place of the draft, which joins the drafts thrown away."""
        if self.current is not None:
            self.drafts.append(self.current)
        self.current = step

    @property
    def texts(self) -> list[str]:
        """The steps so far and the draft, as a scorer gets them; an empty draft is left out."""
        draft = [self.current.text] if self.current is not None and self.current.text.strip() else []
        return [*(step.text for step in self.steps), *draft]


class _Run:
    """The loop's parts; state is in the `_Open` items and in the ledger."""

    def __init__(self, models: Models, policy: Policy, settings: RouteSettings, ledger: Ledger):
        self.models, self.policy, self.settings, self.ledger = models, policy, settings, ledger
        self.around = len(settings.prompt.model_dump_json()) + 64  # bytes bound tokens; the chat template adds a few

    def round(self, items: Sequence[_Open]) -> None:
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

    def _ask(self, items: Sequence[_Open]) -> list[_Open]:
        """Score what the policy wants scored, and let it decide; returns the items that it wants drafted again."""
        if self.policy.needs_scores:
            self._score(items)
        scored = [item for item in items if not item.finish]
        return [item for item in scored if self._act(item, self.policy.decide(self._view(item)))]

    def _act(self, item: _Open, action: Action) -> bool:
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

    def _view(self, item: _Open) -> View:
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

    def _score(self, items: Sequence[_Open]) -> None:
        """Fill in the scores that are missing, in one call; a step keeps the score that was decided on."""
        assert self.models.scorer is not None
        todo = [item for item in items if len(item.texts) > sum(step.score is not None for step in item.steps)]
        results = score_items(self.models.scorer, [(item.problem, item.texts) for item in todo]) if todo else []
        for item, (scores, usage, error) in zip(todo, results, strict=True):
            item.account.record("scorer", usage)
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

    def _write(self, role: Literal["weak", "strong"], items: Sequence[_Open]) -> list[_Open]:
        """Have a model write the next step of every item, in as few calls as the caps allow.

        Returns the items that it may not serve. Without the weak model nothing can go on: its refused items end in
        "budget".
        """
        waiting = list(items)
        while waiting:
            with ExitStack() as stack:
                asked: list[tuple[_Open, Reservation]] = []
                for item in waiting:  # all of them: one whose own cap is reached holds nobody up
                    held = self._reserve(role, item)
                    if held is not None:
                        asked.append((item, stack.enter_context(held)))
                if not asked:
                    break
                for (item, held), result in zip(asked, self._call(role, [item for item, _ in asked]), strict=True):
                    held.settle(result.usage)
                    self._receive(item, role, result)
                served = {id(item) for item, _ in asked}
                waiting = [item for item in waiting if id(item) not in served]
        for item in waiting if role == "weak" else ():
            item.end("budget", f"the budget was spent before step {len(item.steps)}: {item.refused_by}")
        return waiting

    def _reserve(self, role: Literal["weak", "strong"], item: _Open) -> Reservation | None:
        """Set aside a whole step; None when a cap does not allow it."""
        text = "".join([item.problem.question, *(step.text for step in item.steps)])
        calls = getattr(getattr(self.models, role), "calls_per_sample", 1)  # an API may have to be asked again
        try:
            return item.account.reserve(
                role,
                calls * self.settings.sampling.max_step_tokens,
                prompt_tokens=calls * (len(text.encode("utf-8", "replace")) + self.around),
                calls=calls,
            )
        except BudgetExceededError as refusal:
            item.refused_by = refusal.cap
            return None

    def _call(self, role: Literal["weak", "strong"], items: Sequence[_Open]) -> list[Continuation]:
        model: Backend = getattr(self.models, role)
        results = model.continue_solutions([self._request(role, item) for item in items])
        if len(results) != len(items):
            raise BackendError(
                f"backend {model.name!r} gave {len(results)} answers to {len(items)} requests; "
                "it must answer each, with finish 'error' where it failed"
            )
        return results

    def _request(self, role: str, item: _Open) -> Request:
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

    def _receive(self, item: _Open, role: Literal["weak", "strong"], result: Continuation) -> None:
        item.replace(Step(result.text, role, usage=result.usage, token_ids=result.token_ids))
        item.current_finish = result.finish
        if result.finish == "error":
            item.end("error", f"the {role} model failed at step {len(item.steps)}: {result.error or 'no reason given'}")

    def _accept(self, item: _Open) -> None:
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
