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

from stepwise.errors import ConfigError
from stepwise.models.budget import Ledger
from stepwise.routing.calls import Calls, Models, RouteSettings
from stepwise.routing.evidence import gather
from stepwise.routing.open import OpenProblem
from stepwise.routing.policy import (
    Action,
    Escalate,
    HandOver,
    Keep,
    Look,
    Policy,
    Resample,
    View,
    check_models,
    looks_of,
    needs_scorer,
)
from stepwise.steps import extract_answer
from stepwise.types import Problem, Trace, Usage

__all__ = ["Models", "OnTrace", "RouteSettings", "RoutingInterrupted", "route_all"]
MAX_COPIES = 2  # a step may stand twice in a trace; a third copy means that the models go in circles
MAX_DRAFTS = 16  # drafts of one step; a policy that resamples for ever is stopped here
_FOR_GOOD = 2**31
OnTrace = Callable[[Trace], None]


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
    on_step: OnTrace | None = None,
    spent: Mapping[Problem, Mapping[str, Usage]] | None = None,
) -> list[Trace]:
    """One trace per problem, in the order of the problems; `on_trace` is told of each as soon as it is finished, and
    `on_step` of what there is of it after each of its steps.

    The caps of `ledger` hold for everything it counts, its caps on one problem for each trace and what `spent` says (by
    problem and role) that earlier attempts at it cost.

    A model that fails for one problem ends that trace with finish "error". Raises `ConfigError` when the policy needs a
    scorer and there is none, `BackendError` and `ScorerError` when a whole call fails, `RoutingInterrupted` on Ctrl-C.
    """
    if needs_scorer(policy) and models.scorer is None:
        raise ConfigError(
            f"policy {policy.name!r} looks at scores, but there is no scorer; "
            "give one, for example scorer='llamacpp/lab-scorer'"
        )
    check_models(policy, {role: getattr(model, "name", None) for role, model in models._asdict().items()})
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
                if on_step is not None:
                    on_step(item.trace())
                if item.finish and on_trace is not None:
                    on_trace(item.trace())
            active = [item for item in active if not item.finish]
    except KeyboardInterrupt:
        raise RoutingInterrupted([item.interrupted() for item in everyone]) from None
    return [item.trace() for item in everyone]


class _Run:
    """The loop's parts; state is in the `OpenProblem` items and in the ledger."""

    def __init__(self, models: Models, policy: Policy, settings: RouteSettings, ledger: Ledger):
        self.policy, self.settings, self.looks = policy, settings, looks_of(policy)
        wanted = self.looks.get("logprobs") or self.looks.get("first_token", "")
        self.calls = Calls(models, settings, ledger, wanted, "logprobs" in self.looks)

    def round(self, items: Sequence[OpenProblem]) -> None:
        """One more step for every item, or its end."""
        policy = self.policy
        if policy.when in ("question", "before"):
            self._ask([item for item in items if not item.strong_steps and (policy.when == "before" or not item.steps)])
        drafting = [item for item in items if not (item.strong_steps or item.finish)]
        while drafting:
            self.calls.write("weak", drafting)
            drafted = [item for item in drafting if not item.finish]
            drafting = self._ask([item for item in drafted if policy.when == "after" or item.undecided])
        refused = self.calls.write("strong", [item for item in items if item.strong_steps and not item.finish])
        for item in refused:
            item.strong_steps = 0
            item.decision = f"keep: the budget is spent, {item.refused_by} ({item.decision})"
            if item.weak_solution is not None and not item.steps:
                item.restore()
        self.calls.write("weak", [item for item in refused if item.current is None and not item.finish])
        for item in items:
            if not item.finish:
                self._accept(item)
        if policy.when == "solution":
            self._review([item for item in items if item.finish not in ("", "error", "budget") and not item.ended])

    def _ask(self, items: Sequence[OpenProblem]) -> list[OpenProblem]:
        """Let the policy decide on what it wants to see; returns the items that it wants drafted again."""
        if self.policy.needs_scores:
            self.calls.score(items)
        again, waiting = list[OpenProblem](), [item for item in items if not item.finish]
        while waiting:
            wanted: dict[Look, list[OpenProblem]] = {}
            for item in waiting:
                action = self.policy.decide(self._view(item))
                if isinstance(action, Look):
                    wanted.setdefault(self._look(item, action), []).append(item)
                elif self._act(item, action):
                    again.append(item)
            for look, group in wanted.items():
                gather(self.calls, look, group)
            waiting = [item for look, group in wanted.items() if look.what != "draft" for item in group]
            waiting = [item for item in waiting if not item.finish]
        return again

    def _look(self, item: OpenProblem, look: Look) -> Look:
        """`look`, noted. Raises ConfigError for evidence that the policy did not name, or has already."""
        there = item.current is not None if look.what == "draft" else look.what in self._seen(item)
        if look.what not in self.looks or there:
            fault = "again, although it is there" if there else "which is not in its `looks`"
            raise ConfigError(f"policy {self.policy.name!r} looks for {look.what!r} {fault}; correct its decide()")
        item.looked.done.add(look.what)
        item.undecided |= look.what == "draft"
        return look

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
        left, looked = item.account.remaining()["strong_tokens"], item.looked
        return View(
            item.problem,
            tuple(item.steps),
            item.current,
            item.current_finish if item.current is not None else "",
            len(item.drafts),
            self.settings.max_steps,
            None if left is None else max(0, int(left)),
            self.settings.seed,
            item.ended,
            self._seen(item),
            looked.first_token,
            looked.logprobs,
            looked.resamples,
            looked.rating,
            looked.verification,
        )

    def _seen(self, item: OpenProblem) -> frozenset[str]:
        """What there is evidence of; log-probabilities come with the draft."""
        come = {"logprobs"} if "logprobs" in self.looks and item.current is not None else set()
        return frozenset(item.looked.done | come)

    def _review(self, items: Sequence[OpenProblem]) -> None:
        """Show the policy the weak model's solutions, once each; what it hands over is begun anew."""
        for item in items:
            item.ended, item.finish = item.finish, ""
        self._ask(items)
        for item in items:
            if item.strong_steps:
                item.strong_steps = _FOR_GOOD
                item.restart()
            elif item.finish != "error":
                item.finish = item.ended  # where the budget was spent on the way to a decision, the solution stands

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
        step = item.accept()
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
