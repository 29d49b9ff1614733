"""`StepRouter`: the routing loop as a DSPy module; this file imports DSPy, `stepwise.StepRouter` on first use."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self

import dspy

from stepwise.config import BudgetConfig, Config, ModelConfig, SamplingConfig, ScorerConfig, suited
from stepwise.data.problems import load_problems
from stepwise.errors import ConfigError, DataError
from stepwise.models.base import Backend
from stepwise.models.cached import Stored, StoredScorer
from stepwise.models.lab_judges import is_lab_model
from stepwise.models.scorers import Scorer
from stepwise.models.shared import open_problems
from stepwise.models.store import CallCache
from stepwise.prompt import SolvePrompt
from stepwise.records import items_of
from stepwise.routing.deciding import label_of, needs_scorer
from stepwise.routing.loaded import LoadedRouter, loading
from stepwise.routing.metrics import Cost, cost_of
from stepwise.routing.names import ModelNames
from stepwise.routing.planning import refuse_lab_judges
from stepwise.routing.policies import Threshold
from stepwise.routing.policy import Policy
from stepwise.routing.route import Models, RoutingInterrupted, route_all
from stepwise.routing.saved import as_policy, policy_from_config
from stepwise.routing.settings import RouteSettings
from stepwise.routing.trim import OnTrace
from stepwise.runs.progress import progress as bar
from stepwise.types import Problem, Trace, Traces, Usage

_Given = Problem | str | None
_log = logging.getLogger(__package__)


class RoutedPrediction(dspy.Prediction):
    """What a router returns: `answer`, None without a boxed one, and the `trace`.

    Example:
        prediction = router("What is 2 + 3?")
        print(prediction.answer, prediction.trace.finish)  # "5", "answer"
    """

    answer: str | None
    trace: Trace


class _ClassSignature:
    """The signature of a class, which DSPy's metaclass hides; objects of it have their own."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class StepRouter(LoadedRouter):
    """Solves problems with a weak model, and has a strong one write the steps that the policy escalates.

    `weak` and `strong` are model names ("llamacpp/lab-weak"), `ModelConfig`s, or backends; `scorer` likewise, needed
    only by policies that look at scores. `policy` is one of `stepwise.routing`, one of yours (see `Policy`), or the
    import path of its class. `prompt`, `sampling` and `budget` may be dictionaries. `budget` caps everything this
    router does in its life, and each solution (`budget.problem`); `max_steps` the steps of one. A problem's trace
    depends on `seed`, the problem and the models alone, unless a cap is reached, and up to rounding: llama.cpp's sums
    differ in the last digits from one batch size to another, which now and then turns a draw or a score at a threshold.
    `cache` keeps what the models answer (a name is that of its file): policies then share what they ask for at the same
    place, each counted as if it were alone. Models and caches opened here are closed by `close()` (or a `with` block);
    those handed in stay open.

    `ledger` has what was spent by role and what is left of the caps (`ledger.summary()`), `cost([trace])` what one
    solution took. DSPy's `callbacks` hear of each call of a model, as `stepwise.models.callbacks` says; calls also
    stand in `history` and in `inspect_history()`. `allow_import`: see `load`. `prompt` is, unless given, that of the
    models that are handed in loaded. `allow_lab` lets the lab's scorer judge other models.

    Raises `ConfigError` or `DataError`, naming argument and remedy, for what does not fit; `BackendError` for models
    that cannot be loaded.

    >>> router = StepRouter("llamacpp/lab-weak", "llamacpp/lab-strong", "llamacpp/lab-scorer")  # doctest: +SKIP
    >>> router("What is 2 + 3?").trace.steps[0].decision  # doctest: +SKIP
    """

    __signature__ = _ClassSignature()

    def __init__(
        self,
        weak: str | Path | Mapping[str, Any] | ModelConfig | Backend,
        strong: str | Path | Mapping[str, Any] | ModelConfig | Backend,
        scorer: str | Path | Mapping[str, Any] | ScorerConfig | Scorer | None = None,
        policy: Policy | type[Policy] | str | Mapping[str, Any] | None = None,
        *,
        prompt: SolvePrompt | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        budget: BudgetConfig | Mapping[str, Any] | None = None,
        max_steps: int = 30,
        seed: int = 0,
        window: int | None = None,
        cache: CallCache | str | Path | None = None,
        callbacks: Sequence[Any] = (),
        allow_import: Collection[str] = (),
        allow_lab: bool = False,
    ) -> None:
        super().__init__(callbacks)
        self.policy = Threshold() if policy is None else as_policy(policy)
        self._specs = {"weak": weak, "strong": strong, "scorer": scorer}
        self.prompt, drawing = self._prompt_of(prompt), SamplingConfig.of(sampling, "sampling")
        if (named := loading("weak", weak)) is not None:
            drawing = suited(drawing, named.model)
        self.settings = RouteSettings(drawing, max_steps, seed, window, self.prompt, allow_lab=allow_lab)
        caps = BudgetConfig.of(budget, "budget")
        self._allow_import = frozenset(allow_import)
        if needs_scorer(self.policy) and scorer is None:
            raise ConfigError(
                f"StepRouter: policy {self.policy.name!r} looks at scores; "
                "pass scorer=, for example 'llamacpp/lab-scorer'"
            )
        self._owned: list[Any] = []
        models = self._loaded()
        refuse_lab_judges(self.policy, models.scorer, models.weak, allow_lab)
        self.cache = self._opened(cache)
        # What a score depends on beside the model; options only where there are any, for the keys of stored answers.
        read = {
            "kind",
            "layout",
            "template",
            "step_template",
            "marker",
            "good",
            "bad",
            "dtype",
            "ask",
            "value",
            "options",
        }
        self._scorer_settings = None
        if isinstance(scorer, ScorerConfig):
            self._scorer_settings = scorer.model_dump(include=read | ({"options"} if scorer.options else set()))
        self.models = self._stored(models)
        self.prices = self._prices()
        self.ledger = self._new_ledger(caps)

    @classmethod
    def from_config(
        cls,
        config: Config | str | Path,
        *,
        policy: Policy | type[Policy] | str | Mapping[str, Any] | None = None,
        cache: CallCache | str | Path | None = None,
        window: int | None = None,
    ) -> Self:
        """The router that a configuration describes, with its models loaded; `policy` instead of that of [routing].

        As many problems are open at once as the models' curves want, or as a model takes sequences: more would not be
        faster, and those that are finished early are on disk early. Raises `ConfigError` where the policy looks at
        scores, the weak model is not the lab's and the scorer is, unless `allow_lab` is set.
        """
        config = Config.of(config, "config")
        policy = policy_from_config(config.routing) if policy is None else as_policy(policy)
        refuse_lab_judges(policy, config.scorer, config.models.weak, config.allow_lab)
        foreign = not is_lab_model(config.models.weak)
        router = cls(
            config.models.weak,
            config.models.strong,
            None if foreign and config.scorer == ScorerConfig() else config.scorer,
            policy,
            prompt=config.prompt,
            sampling=config.sampling,
            budget=config.budget,
            max_steps=config.routing.max_steps,
            seed=config.seed,
            window=window,
            cache=cache,
            allow_lab=config.allow_lab,
        )
        if window is None and open_problems(router.models.weak, router.models.strong) is None:
            window = max(load.requests for role, load in router._loads.items() if role != "scorer")
        router.settings = dataclasses.replace(router.settings, run=config.hash, window=window)
        return router

    def with_policy(self, policy: Policy | type[Policy] | str | Mapping[str, Any]) -> Self:
        """A router with the same loaded models and settings, another policy, and a budget of its own."""
        other = self.__deepcopy__({})
        other.policy, other.ledger = as_policy(policy), self._new_ledger(self.budget)
        return other

    def with_cache(self, cache: CallCache | str | Path) -> Self:
        """A router with the same loaded models, whose answers are kept in `cache`, and a budget of its own."""
        other = self.with_policy(self.policy)
        other.cache, other._scorer_settings = self._opened(cache), None  # a run's own file knows one scorer
        other.models = other._stored(self.models)
        return other

    def _stored(self, models: Models) -> Models:
        """The models with their answers kept, for good where they are compared; a resumed run keeps them by itself."""
        cache = self.cache
        if cache is None or cache.replays_are_free:
            return models
        weak, strong = Stored(models.weak, cache, role="weak"), Stored(models.strong, cache, role="strong")
        scorer = models.scorer and StoredScorer(models.scorer, cache, settings=self._scorer_settings)
        return Models(weak, strong, scorer)

    @property
    def card(self) -> ModelNames:
        """The models and the prompt that this router works with, for the card of a policy that is set for them."""
        names = self._names()
        return ModelNames(str(names["weak"]), str(names["strong"]), names["scorer"], prompt=self.prompt.hash,
                          splitter=self.prompt.splitter)  # fmt: skip

    def get_lm(self) -> Any:
        """Raises ConfigError: a router asks no language model of DSPy's."""
        raise ConfigError(f"a router has no dspy.LM: it asks {self._names()}; its models are in .models")

    def set_lm(self, lm: Any) -> None:
        """Raises ConfigError: the models of a router are those it was made with."""
        raise ConfigError(
            f"a router has no dspy.LM to set: it asks {self._names()}; its models are those that it was made with"
        )

    def __call__(self, question: _Given = None, problem: _Given = None) -> RoutedPrediction:
        """Route one problem, given as either argument."""
        given = {"question": question, "problem": problem}
        result: RoutedPrediction = super().__call__(**{key: value for key, value in given.items() if value is not None})
        return result

    def forward(self, question: _Given = None, problem: _Given = None) -> RoutedPrediction:
        """What `__call__` does, without DSPy's callbacks for modules."""
        return self._predict(question, problem)

    def _predict(self, question: _Given, problem: _Given) -> RoutedPrediction:
        if (question is None) == (problem is None):
            raise DataError("StepRouter takes question= or problem=, one of the two")
        name, given = ("question", question) if problem is None else ("problem", problem)
        if isinstance(given, str) and not given.strip():
            raise DataError(f"{name} is {given!r}; give the text of a question")
        trace = self.solve_all([given], progress=False)[0]
        return RoutedPrediction(answer=trace.answer, trace=trace)

    async def aforward(self, question: _Given = None, problem: _Given = None) -> RoutedPrediction:
        """`forward` in a thread of its own."""
        return await asyncio.to_thread(self._predict, question, problem)

    def solve_all(
        self,
        problems: Any,
        *,
        progress: bool = True,
        on_trace: OnTrace | None = None,
        on_step: OnTrace | None = None,
        resume: Iterable[Trace] = (),
        description: str = "routing",
    ) -> Traces:
        """One trace per problem, in order, with a progress bar; `problems` is whatever `sw.load_problems` takes.

        `on_trace` is told of each trace as it is finished, `on_step` of what there is of it after each step. `resume`
        holds traces of an earlier, interrupted call: a finished one whose problem is the same is taken over and not run
        again; another one's problem is begun anew, and what it cost counts for the caps on its problem (what the cache
        says of it, where replays from there are free). Ctrl-C raises `RoutingInterrupted` with the traces so far.
        """
        problems, resume = load_problems(problems), items_of(resume, Trace, "resume", "give traces of an earlier call")
        done = {trace.problem: trace for trace in resume if trace.finish not in ("", "interrupted")}
        spent: dict[Problem, dict[str, Usage]] = {}
        for trace in resume:
            account = spent.setdefault(trace.problem, {})
            for role, usage in trace.usage.items():
                account[role] = account.get(role, Usage()) + usage
        todo = [problem for problem in problems if problem not in done]
        store = self.cache if self.cache is not None and self.cache.replays_are_free else None
        if store is not None:
            for problem in todo:
                perhaps, paid = store.perhaps(problem.id), store.spent(problem.id).items()
                spent[problem] = {role: usage + perhaps.get(role, Usage()) for role, usage in paid}

        def tell(trace: Trace) -> None:
            if on_trace is not None:
                on_trace(trace)
            advance(1)

        def in_order(fresh: Iterable[Trace]) -> list[Trace]:
            new = iter(fresh)
            return [done[problem] if problem in done else next(new) for problem in problems]

        callers = [*(dspy.settings.caller_modules or ())]
        callers += [] if any(caller is self for caller in callers) else [self]  # in whose history the calls stand
        known = len(problems) - len(todo)
        shown = bar(description, len(problems), done=known) if progress else nullcontext(lambda _: None)
        with dspy.context(caller_modules=callers), shown as advance:
            try:
                fresh = route_all(
                    todo,
                    self.models,
                    self.policy,
                    self.settings,
                    ledger=self.ledger,
                    on_trace=tell,
                    on_step=on_step,
                    spent=spent,
                    store=store,
                    callbacks=lambda: self.callbacks,
                    scorer_settings=self._scorer_settings,
                )
                return Traces(in_order(fresh), label_of(self.policy), self.prices)
            except RoutingInterrupted as stop:
                raise RoutingInterrupted(in_order(stop.traces)) from None

    def count_stored(self) -> None:
        """Count for the caps what earlier starts of this run paid, and perhaps paid, by the answers in the cache."""
        if self.cache is not None:
            for role, usage in self.cache.spent_by_model():
                self.ledger.record(role, usage)
            for role, usage in self.cache.perhaps().items():
                self.ledger.record(role, Usage(), usage)

    def cost(self, traces: Sequence[Trace]) -> Cost:
        """What `traces` cost, counted three ways with the sizes of this router's models; see `metrics.cost_of`."""
        return cost_of(traces, weak=self.models.weak, strong=self.models.strong, scorer=self.models.scorer)

    def __repr__(self) -> str:
        return f"StepRouter({', '.join(f'{k}={v!r}' for k, v in self._names().items())}, policy={self.policy!r})"
