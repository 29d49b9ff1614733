"""Many problems at once: one coroutine each, the models with their wrappers, and one driver for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stepwise.errors import ConfigError
from stepwise.models.base import Backend, Generator, generator_of
from stepwise.models.budget import Ledger
from stepwise.models.driver import Driver
from stepwise.models.scorers.base import Scorer, scorer_of
from stepwise.models.store import CallCache
from stepwise.models.wrappers import composed, composed_scorer
from stepwise.routing.policy import Policy, needs_scorer
from stepwise.routing.review import Reviewed
from stepwise.routing.trim import OnTrace, RouteSettings, Solver
from stepwise.types import Problem, Trace, Usage


class Models(NamedTuple):
    """The models of a run by role; `scorer` is needed only by policies that look at scores."""

    weak: Backend | Generator
    strong: Backend | Generator
    scorer: Scorer | None = None


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
    store: CallCache | None = None,
    callbacks: Callable[[], Sequence[Any]] | None = None,
    scorer_settings: Any = None,
) -> list[Trace]:
    """One trace per problem, in the order of the problems; `on_trace` is told of each as soon as it is finished, and
    `on_step` of what there is of it after each of its steps.

    The caps of `ledger` hold for everything it counts, its caps on one problem for each trace and what `spent` says (by
    problem and role) that earlier attempts at it cost. `store`, `callbacks` and `scorer_settings` go to the wrappers.

    A model that refuses a request ends that trace with finish "error". Raises `ConfigError` when the policy needs a
    scorer and there is none, `BackendError` and `ScorerError` where a model is gone, `RoutingInterrupted` on Ctrl-C.
    """
    if needs_scorer(policy) and models.scorer is None:
        raise ConfigError(
            f"policy {policy.name!r} looks at scores, but there is no scorer; "
            "give one, for example scorer='llamacpp/lab-scorer'"
        )
    policy.check_models(**{role: model and model.name for role, model in models._asdict().items()})
    settings, ledger = settings or RouteSettings(), ledger or Ledger()
    given: dict[str, Any] = {"ledger": ledger, "prompt": settings.prompt, "store": store, "callbacks": callbacks}
    asked = Models(
        composed(generator_of(models.weak), role="weak", **given),
        composed(generator_of(models.strong), role="strong", **given),
        None if models.scorer is None else composed_scorer(scorer_of(models.scorer), settings=scorer_settings, **given),
    )
    solver_of = Reviewed if policy.when == "solution" else Solver
    solvers = [
        solver_of(problem, asked, policy, settings, ledger.for_problem((spent or {}).get(problem)), on_step, on_trace)
        for problem in problems
    ]

    working = [model for model in asked if model is not None]
    engines = [engine for model in working for engine in model.engines]  # type: ignore[union-attr]
    remote = any(model.remote for model in working)  # type: ignore[union-attr]
    try:
        return Driver(engines, exact=not remote).run([solver.run() for solver in solvers], window=settings.window)
    except KeyboardInterrupt:
        raise RoutingInterrupted([solver.interrupted() for solver in solvers]) from None
