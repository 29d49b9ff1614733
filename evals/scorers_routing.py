"""Routing by scorer (`evals.scorers --route N`): the same problems under every scorer, at several settings, paired.

Arms, each at the thresholds that flag --shares of the drafts (of the problems, where whole ones are handed over) of
--calibrate other problems, which the weak model solves first:

  escalate        the strong model writes the flagged step: by each --probe and --scorer (in the lab: lab-scorer), by
                  entropy, least log-probability, place and length of the step, agreement of drafts, and at random
  draw again      the weak model drafts the flagged step up to three times more; by each --probe and --scorer
  hand over       the strong model solves a problem anew where the least score of the weak solution is low, likewise
  majority of k   of the weak model's own solutions

Costs of a problem: strong tokens; all tokens written; parameter-tokens, weights times tokens read and written, of weak
model, strong model and scorer; seconds of one core, from tokens and rates measured at the start (a scorer reads as fast
as the weak model, by its size). Against Random: an arm's accuracy less the best that Random and the two models alone
have at the same cost, on the straight line between neighbours; the mean over the arm's settings. No setting is chosen
on the problems that are measured. Last, the ratio of sizes, strong to weak, from which on a setting takes fewer
parameter-tokens than the strong model alone does at the same accuracy (where the setting's is lower: the strong model
for such a share of problems, the weak one for the others, that it is equal).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any, ClassVar

from stepwise.config import Config, is_lab
from stepwise.data.problems import load_problems
from stepwise.grading import grade
from stepwise.lab.problems import generate
from stepwise.models import load_backend
from stepwise.models.base import Completion, Request
from stepwise.models.cached import Stored
from stepwise.models.scorers import Scorer, load_scorer
from stepwise.models.scorers.head import Head
from stepwise.models.scorers.probe import ProbeScorer
from stepwise.models.store import CallCache
from stepwise.routing import (
    Agreement,
    Always,
    Cascade,
    LeastLogprob,
    Never,
    Policy,
    Random,
    Signal,
    Signalled,
    StepRouter,
    TokenEntropy,
    View,
    Watch,
    threshold_at,
)  # fmt: skip
from stepwise.routing.query import at_share
from stepwise.routing.signals import StepScore
from stepwise.runs.shell import Run
from stepwise.seeds import stable_hash
from stepwise.steps import extract_answer
from stepwise.types import Problem, Usage

from .real import Row, measure, rates_of, routed
from .scorers_frontier import RANDOM, STRONG, WEAK, Arm, show

TRIES = 3
MAX_TOKENS = 512
ROUTED = "routed.jsonl"


class Place(Signal):
    """The number of the step: later ones are worse."""

    name: ClassVar[str] = "place"
    worse = "high"
    evidence = "draft"

    def value(self, view: View) -> float:
        """From 0 on."""
        return float(view.index)


class Length(Signal):
    """The tokens of the draft: longer ones are worse."""

    name: ClassVar[str] = "length"
    worse = "high"
    evidence = "draft"

    def value(self, view: View) -> float:
        """At least 0."""
        return float(view.tokens)


def route(run: Run[Any]) -> None:
    """Measure what is missing, and print the tables."""
    args, config = run.args, run.config
    lab = args.problems is None
    given = [made.problem for made in generate("test", args.route)] if lab else load_problems(args.problems)
    problems = given[: args.route]
    others = [made.problem for made in generate("val", args.calibrate)] if lab else load_problems(args.train)
    others = sorted(others, key=lambda problem: stable_hash(problem.id, "calibrate"))[: args.calibrate]
    with ExitStack() as stack:
        weak, strong = (
            stack.enter_context(closing(load_backend(spec, prompt=config.prompt)))
            for spec in (config.models.weak, config.models.strong)
        )
        scorers = _scorers(args, config, weak, stack)
        facts = _facts(run, weak, strong, scorers)
        cache = stack.enter_context(CallCache(run.path("answers.jsonl")))

        def router(policy: Policy, scorer: Scorer | None = None) -> StepRouter:
            return StepRouter(
                weak, strong, scorer, policy, prompt=config.prompt, sampling=config.sampling, cache=cache,
                max_steps=config.routing.max_steps, seed=config.seed, window=args.batch,
            )  # fmt: skip

        arms = list(_arms(args, router, scorers, others, problems))
        voter = Stored(weak, cache, role="weak")
        arms += [_voters(config, voter, k, max(args.majority)) for k in args.majority]
        measure(run, {arm.name: arm.solve for arm in arms}, problems, args.batch, ROUTED)
    names = {problem.id for problem in problems}
    show(run, [row for row in run.rows(ROUTED, Row) if row.problem in names], arms, facts)


def _scorers(args: Any, config: Config, weak: Any, stack: ExitStack) -> dict[str, Scorer]:
    """By name; those that read states first, so that drafts are made with states where they are shared."""
    specs = [*args.scorer, *(["llamacpp/lab-scorer"] if is_lab(config.models.weak.model) else [])]
    scorers: dict[str, Scorer] = {f"probe {path}": ProbeScorer(weak, Head.load(path)) for path in args.probe}
    scorers |= {spec: load_scorer(spec, prompt=config.prompt) for spec in dict.fromkeys(specs)}
    for scorer in scorers.values():
        stack.callback(scorer.close)
    return {name: scorer for name, scorer in scorers.items() if args.wants(name)}


def _arms(
    args: Any, router: Callable[..., StepRouter], scorers: Mapping[str, Scorer], others: Sequence[Problem],
    measured: Sequence[Problem],
) -> Iterator[Arm]:  # fmt: skip
    """Every arm but the votes, at the settings that flag the shares of drafts of the other problems."""

    def arm(family: str, policy: Policy, setting: float | None, scorer: str = "") -> Arm:
        name = family if setting is None else f"{family}, {setting:.0%}"
        return Arm(family, name, routed(name, router(policy, scorers.get(scorer))), scorer)

    def watched(signal: Signal, scorer: str = "") -> list[float]:
        watch = Watch(signal)
        router(watch, scorers.get(scorer)).solve_all(others, description=f"calibrating {scorer or signal.title}")
        return [value for values in watch.values.values() for value in values]

    for name in scorers:
        values = watched(StepScore(), name)
        points = {share: threshold_at("low", values, share) for share in args.shares}
        at_zero = Cascade("least_score", 0.0)
        whole = router(at_zero, scorers[name]).solve_all(others, description=f"calibrating {name}, hand over")
        for share, point in points.items():
            yield arm(f"escalate, {name}", Signalled(StepScore(), point), share, name)
        for share, point in points.items():
            again = Signalled(StepScore(), point, "resample", tries=TRIES)
            yield arm(f"draw again, {name}", again, share, name)
        for share in args.shares:
            yield arm(f"hand over, {name}", at_share(at_zero, whole, share, measured_on=measured), share, name)
    yield arm(WEAK, Never(), None)
    yield arm(STRONG, Always(), None)
    for share in args.shares:
        yield arm(RANDOM, Random(share), share)
    free: tuple[Signal, ...] = (TokenEntropy(), LeastLogprob(), Place(), Length(), Agreement(args.samples))
    for signal in free:
        if args.wants(signal.title):
            values = watched(signal)
            for share in args.shares:
                point = threshold_at(signal.worse, values, share)
                yield arm(f"escalate, {signal.title}", Signalled(signal, point), share)


def majority(answers: Sequence[str | None]) -> str | None:
    """The commonest answer, the earliest of equals; None where there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return max(counts, key=lambda answer: counts[answer]) if counts else None


def samples_of(weak: Any, config: Config, problems: Sequence[Problem], seed: int, n: int) -> list[list[Completion]]:
    """`n` solutions of each problem by the weak model; fewer are the first of more."""
    sampling = config.sampling
    requests = [
        Request(
            problem,
            stop="solution",
            max_tokens=MAX_TOKENS,
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=stable_hash(seed, problem.id, "samples"),
        )
        for problem in problems
    ]
    made = weak.continue_solutions(requests)
    return [[one for one in made if one.request == place] for place in range(len(problems))]


def _voters(config: Config, weak: Any, k: int, drawn: int) -> Arm:
    """The first `k` of so many solutions vote."""
    name = f"majority of {k}"

    def solve(problems: Sequence[Problem]) -> Iterator[Row]:
        weak.reset_cache()
        for problem, samples in zip(problems, samples_of(weak, config, problems, 0, drawn), strict=True):
            answer = majority([extract_answer(each.text) for each in samples[:k]])
            verdict = grade(answer or "", problem.answer or "").value
            yield Row(problem.id, name, verdict, sum((each.usage for each in samples[:k]), Usage()), Usage())

    return Arm("majority of k", name, solve)


def _facts(run: Run[Any], weak: Any, strong: Any, scorers: Mapping[str, Scorer]) -> dict[str, Any]:
    """Rates and sizes of the models; rates are measured once."""
    path = run.path("rates.json")
    if not path.exists():
        path.write_text(json.dumps({"weak": rates_of(weak), "strong": rates_of(strong)}))
    sizes = {name: float(each.parameters or 0) for name, each in {"weak": weak, "strong": strong, **scorers}.items()}
    sizes["strong"] = sizes["weak"] * run.args.ratio if run.args.ratio else sizes["strong"]
    return {"rates": json.loads(path.read_text()), "sizes": sizes}
