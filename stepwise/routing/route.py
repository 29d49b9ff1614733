"""Many problems at once: one coroutine each, the models with their wrappers, and one driver for all."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stepwise.errors import ConfigError
from stepwise.models.base import Backend, Generator
from stepwise.models.budget import Ledger
from stepwise.models.driver import Driver
from stepwise.models.scorers.base import Scorer
from stepwise.models.shared import open_problems
from stepwise.models.store import CallCache
from stepwise.models.wrappers import Wrappers
from stepwise.routing.deciding import check_policy, needs_scorer
from stepwise.routing.planning import refuse_lab_judges
from stepwise.routing.policy import FOR_GOOD, Policy
from stepwise.routing.settings import RouteSettings
from stepwise.routing.trim import OnTrace, Solver
from stepwise.types import Problem, Step, Trace, Usage

_log = logging.getLogger(__package__)


class Models(NamedTuple):
    """The models of a run by role; `scorer` is needed only by policies that look at scores.

    Example:
        Models(sw.load_backend("llamacpp/lab-weak"), sw.load_backend("llamacpp/lab-strong"))
    """

    weak: Backend | Generator
    strong: Backend | Generator
    scorer: Scorer | None = None

    def wrapped(self, around: Wrappers, scorer_settings: Any = None) -> Models:
        """The same with every concern of a call around each."""
        scorer = None if self.scorer is None else around.scorer(self.scorer, scorer_settings)
        return Models(around.model(self.weak, "weak"), around.model(self.strong, "strong"), scorer)


def check_models(policy: Policy, models: Models, allow_lab: bool = False) -> Policy:
    """`policy`, checked; raises `ConfigError` where it cannot decide on what these models write.

    Example:
        policy = check_models(Threshold(0.5), Models(weak, strong, scorer))
    """
    policy = check_policy(policy)
    if needs_scorer(policy) and models.scorer is None:
        raise ConfigError(
            f"policy {policy.name!r} looks at scores, but there is no scorer; "
            "give one, for example scorer='llamacpp/lab-scorer'"
        )
    refuse_lab_judges(policy, models.scorer, models.weak, allow_lab)
    scorer = models.scorer.identity if models.scorer is not None else None
    policy.check_models(weak=models.weak.name, strong=models.strong.name, scorer=scorer)
    return policy


class RoutingInterrupted(KeyboardInterrupt):
    """Ctrl-C during routing. `traces` has one trace per problem, in order; those not finished end in "interrupted".

    Example:
        try:
            traces = router.solve_all(problems)
        except RoutingInterrupted as stop:
            traces = router.solve_all(problems, resume=stop.traces)
    """

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
    store: CallCache | None = None,
    callbacks: Callable[[], Sequence[Any]] | None = None,
    scorer_settings: Any = None,
) -> list[Trace]:
    """One trace per problem, in the order of the problems; `on_trace` is told of each as soon as it is finished, and
    `on_step` of what there is of it after each of its steps.

    The caps of `ledger` hold for everything it counts, its caps on one problem for each trace and what `spent` says (by
    problem and role) that earlier attempts at it cost. `store`, `callbacks` and `scorer_settings` go to the wrappers.

    A model that refuses a request and a policy that raises end that trace with finish "error" and a note. Raises
    `ConfigError` when the policy needs a scorer and there is none, `PluginError` where the policy failed at every
    problem, `BackendError` and `ScorerError` where a model is gone, `RoutingInterrupted` on Ctrl-C.

    Example:
        traces = route_all(problems, Models(weak, strong, scorer), Threshold(0.5), RouteSettings(seed=1))
    """
    settings, ledger = settings or RouteSettings(), ledger or Ledger()
    policy = check_models(policy, models, settings.allow_lab)
    around = Wrappers(ledger, settings.prompt, store, callbacks, settings.run, settings.keep_local)
    wrapped = models.wrapped(around, scorer_settings)
    solver_of = Reviewed if policy.when == "solution" else Solver
    solvers = [
        solver_of(problem, wrapped, policy, settings, ledger.for_problem((spent or {}).get(problem)), on_step, on_trace)
        for problem in problems
    ]

    working: list[Any] = [model for model in wrapped if model is not None]
    engines = [engine for model in working for engine in model.engines]
    driver = Driver(engines, exact=not any(model.remote for model in working))
    window = settings.window or open_problems(wrapped.weak, wrapped.strong)
    try:
        traces = driver.run([solver.run() for solver in solvers], window=window)
    except KeyboardInterrupt:
        raise RoutingInterrupted([solver.interrupted() for solver in solvers]) from None
    if errors := [solver.plugin_error for solver in solvers if solver.plugin_error is not None]:
        if len(errors) == len(solvers):
            raise errors[0]
        _log.warning("%d of %d problems were lost: %s", len(errors), len(solvers), errors[0])
        _log.debug("the first of them", exc_info=errors[0])
    return traces


class Reviewed(Solver):
    """One problem under a policy on the "solution": it is kept, or begun anew by the strong model (cascades).

    Example:
        trace = await Reviewed(problem, models, policy, settings, Ledger()).run()
    """

    weak_solution: Solver | None = None  # once it was handed over

    async def _after_step(self) -> None:
        """Show the policy the weak model's solution, once; what it hands over is begun anew."""
        if self.finish in ("", "error", "budget") or self.ended:
            return
        self.ended, self.finish = self.finish, ""
        await self._decide()
        if self.strong_steps:
            self.strong_steps = FOR_GOOD
            self._restart()
        elif str(self.finish) != "error":
            self.finish = self.ended  # where the budget was spent on the way to a decision, the solution stands

    def _restart(self) -> None:
        """Throw the weak model's solution away; its steps become drafts of the first step to come."""
        self.weak_solution = copy.copy(self)
        drafts, evidence = list[Step](), list[Step]()
        for step in self.steps:
            evidence += step.evidence
            drafts += [*step.discarded, dataclasses.replace(step, discarded=(), evidence=())]
        self.steps, self.drafts, self.paid_evidence = [], [*drafts, *self.drafts], [*evidence, *self.paid_evidence]
        self.finish, self.note = "", ""

    async def _refused(self) -> None:
        """Put the weak model's solution back, where the strong model may not be asked for its first step."""
        before = self.weak_solution
        if before is None or self.steps:
            await super()._refused()
            return
        cut = [step for step in self.paid_evidence if step.decision.startswith("cut: ")]
        self.steps, self.drafts, self.paid_evidence = before.steps, before.drafts, [*before.paid_evidence, *cut]
        self.finish = "capped" if before.ended == "answer" else before.ended
        self.note = f"not handed over: {self.refused_by}"
