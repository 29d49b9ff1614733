"""One policy or many on the same problems: accuracy, cost, time, and what it amounts to in words."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from stepwise.config import Prices
from stepwise.data.problems import load_problems
from stepwise.errors import ConfigError, DataError, wrong_type
from stepwise.grading import find_answer, grade
from stepwise.models.base import Generator
from stepwise.models.scorers.base import Scorer
from stepwise.records import record
from stepwise.routing.deciding import label_of
from stepwise.routing.metrics import Cost, OperatingPoint, cost_of, cpt, pgr
from stepwise.routing.policy import NAMES, Policy
from stepwise.stats import wilson
from stepwise.types import InNotebook, Trace

if TYPE_CHECKING:
    from stepwise.routing.chunked import Routed
    from stepwise.routing.estimates import Estimate
    from stepwise.routing.router import StepRouter

_Fraction = Annotated[float, Field(ge=0, le=1)]
_Amount = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=0)]


@record(allow_inf_nan=False)
class PolicyRow:
    """One operating point: a policy at one setting, measured on `n` problems.

    `family` groups the points that one line of the plot joins; the families "never" and "always" are drawn as the weak
    and the strong model's own points. `accuracy` and its 95 % interval are fractions in [0, 1], as is `strong_share`,
    the share of the kept tokens that the strong model wrote. Tokens, calls, seconds and parameter-tokens (number of
    weights times tokens, scorer and prefill included) are totals over the `n` problems, of which `failed` were lost to
    a policy, scorer or model that failed; those count as wrong. None means not known, never 0.

    Example:
        >>> PolicyRow("Never", "never", None, 0.4, 0.3, 0.5, 0.0, 0, 900, None, 60, None, n=10).anchor
        'weak'
    """

    policy: str
    family: str
    setting: float | None
    accuracy: _Fraction | None
    accuracy_low: _Fraction | None
    accuracy_high: _Fraction | None
    strong_share: _Fraction | None
    strong_tokens: _Count
    generated_tokens: _Count
    parameter_tokens: _Amount | None
    calls: _Count
    seconds: _Amount | None
    n: Annotated[int, Field(ge=1)]
    failed: _Count = 0

    @property
    def anchor(self) -> Literal["", "weak", "strong"]:
        """Which model alone this row is: "weak" for the family "never", "strong" for "always", else ""."""
        if self.family == "never":
            return "weak"
        return "strong" if self.family == "always" else ""


@record(allow_inf_nan=False)
class TraceView:
    """One trace to show: under which policy it was made, and its verdict.

    `verdict` is the value of a `stepwise.grading.Verdict`, "" where it was not graded. `parameter_tokens` is what the
    trace cost in weights times tokens, None where that is not known; tokens and calls are read from the trace itself.
    `answer_read_from` says how the answer that was judged is marked (`stepwise.grading.find_answer`): "box", "####",
    "answer is", ..., "" where there is none.

    Example:
        >>> from stepwise.types import Problem, Step
        >>> TraceView(Trace(Problem("p", "1 + 1?"), (Step("So 2.", "strong"),))).escalated
        True
    """

    trace: Trace
    policy: str = ""
    verdict: str = ""
    parameter_tokens: _Amount | None = None
    answer_read_from: str = ""

    @property
    def escalated(self) -> bool:
        """Whether the strong model wrote at least one of the steps that were kept."""
        return any(step.author == "strong" for step in self.trace.steps)


@record()
class Measured(InNotebook):
    """A policy's traces with their verdicts ("" without a gold answer), what they cost, and the seconds it took.

    `cost` and `row` are totals over the problems; `point.cost`, as a budget, is in strong tokens per problem.

    Example:
        always = sw.compare(router, ["never", "always"], problems)[1]
        print(always.label, always.accuracy, always.point.cost, always.failed)
    """

    label: str
    family: str
    setting: float | None
    views: tuple[TraceView, ...]
    cost: Cost
    seconds: float | None = None
    prices: Mapping[str, Prices | None] = dataclasses.field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        return repr(Comparison([self]))

    @property
    def correct(self) -> tuple[bool, ...]:
        """Whether each trace's answer is right, in the order of the problems."""
        return tuple(view.verdict == "CORRECT" for view in self.views)

    @property
    def failed(self) -> int:
        """How many problems were lost, since policy, scorer or a model failed at them (see `Trace.note`)."""
        return sum(view.trace.finish == "error" for view in self.views)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers, of which a lost problem has none; None unless every trace was graded."""
        graded = all(view.verdict for view in self.views)
        return sum(self.correct) / len(self.views) if graded else None

    @property
    def point(self) -> OperatingPoint:
        """Mean strong tokens per problem, and accuracy; raises `DataError` where problems have no gold answer."""
        if self.accuracy is None:
            raise DataError(f"{self.label}: some problems have no gold answer, so there is no accuracy; add answers")
        return OperatingPoint(self.cost.strong_tokens_per_problem, self.accuracy)

    @property
    def row(self) -> PolicyRow:
        """The row of the table."""
        steps = [step for view in self.views for step in view.trace.steps]
        kept = sum(step.usage.generated_tokens for step in steps)
        strong = sum(step.usage.generated_tokens for step in steps if step.author == "strong")
        spread = wilson(sum(self.correct), len(self.views)) if self.accuracy is not None else None
        return PolicyRow(
            policy=self.label,
            family=self.family,
            setting=self.setting,
            accuracy=self.accuracy,
            accuracy_low=spread.low if spread else None,
            accuracy_high=spread.high if spread else None,
            strong_share=strong / kept if kept else None,
            strong_tokens=self.cost.strong_tokens,
            generated_tokens=self.cost.all_tokens,
            parameter_tokens=self.cost.parameter_tokens,
            calls=self.cost.calls,
            seconds=self.seconds,
            n=len(self.views),
            failed=self.failed,
        )


class Comparison(list[Measured], InNotebook):
    """What `compare` returns: a list with an entry for each policy, which shows itself as a table.

    Example:
        results = sw.compare(router, ["never", "always", sw.Threshold(0.5)], problems)
        print(results)  # a table, a line for each policy
        print(results.difference("threshold", "never"))  # with its 95 % interval
    """

    def difference(self, first: str, second: str, *, at_cost: float | None = None, **settings: Any) -> Estimate:
        """Accuracy under policy `first` less that under `second`, with a paired bootstrap interval over problems.

        A policy is named by its label ("Threshold 0.50"), or by its family ("threshold") for all its settings. With
        `at_cost` (strong tokens per problem) both are read off the line through their settings and "never" and "always"
        where those were measured. `settings` are those of `estimates.difference`, which says what is raised.
        """
        from stepwise.routing.estimates import difference  # it reads what is measured here

        ends = [m for m in self if m.family in NAMES] if at_cost is not None else []
        arms = [[m for m in self if name.lower() in (m.label.lower(), m.family.lower())] for name in (first, second)]
        for name, arm in zip((first, second), arms, strict=True):
            if not arm:
                raise DataError(f"difference: no {name!r} was measured; there are {', '.join(m.label for m in self)}")
        return difference(*([*arm, *ends] for arm in arms), at_cost=at_cost, **settings)

    def __repr__(self) -> str:
        """One line a policy; costs are in strong tokens per problem."""
        width = max([len("policy"), *(len(m.label) for m in self)])
        lines = [f"{'policy':<{width}}  accuracy    95 % interval  strong tokens per problem  problems  failed"]
        for row in (m.row for m in self):
            accuracy = "-" if row.accuracy is None else f"{row.accuracy:.1%}"
            ends = "-" if row.accuracy_low is None else f"{row.accuracy_low:.1%} to {row.accuracy_high:.1%}"
            rest = f"{ends:>15}  {row.strong_tokens / row.n:>25.1f}  {row.n:>8}  {row.failed:>6}"
            lines.append(f"{row.policy:<{width}}  {accuracy:>8}  {rest}")
        return "\n".join(lines)


def verdict_of(trace: Trace) -> str:
    r"""The verdict on a trace's answer as its value ("CORRECT", "WRONG", ...), "" without a gold answer.

    Example:
        >>> from stepwise.types import Problem, Step
        >>> verdict_of(Trace(Problem("p", "1 + 1?", "2"), (Step(r"So \boxed{2}.", "weak"),), "answer"))
        'CORRECT'
    """
    # Where the solution says its answer nowhere, not even outside of a box, there is none to judge.
    text = trace.solution if find_answer(trace.solution).source else ""
    return "" if trace.problem.answer is None else grade(text, trace.problem.answer).value


def has_answers(traces: Iterable[Trace]) -> bool:
    r"""Whether any solution that was written to its end has an answer that can be read; True where none was asked for.

    >>> has_answers([Trace(Problem("p", "1 + 1?", "2"), (Step("I do not know what that is.", "weak"),), "eos")])
    False
    """
    stopped = ("error", "budget", "interrupted")
    asked = [trace for trace in traces if trace.problem.answer is not None and trace.finish not in stopped]
    return not asked or any(verdict_of(trace) not in ("NO_ANSWER", "UNPARSEABLE_PREDICTION") for trace in asked)


def json_row(trace: Trace) -> dict[str, Any]:
    """What --json tells of a problem: its answer, who wrote which step, and what it took.

    Example:
        print(json.dumps(json_row(trace)))
    """
    cost = cost_of([trace])
    return {
        "id": trace.problem.id,
        "answer": trace.answer,
        "verdict": verdict_of(trace) or None,
        "answer_read_from": find_answer(trace.solution).source or None,
        "finish": trace.finish,
        "note": trace.note,
        "strong_tokens": cost.strong_tokens,
        "all_tokens": cost.all_tokens,
        "steps": [{"author": step.author, "text": step.text, "score": step.score} for step in trace.steps],
    }


def judged(trace: Trace, policy: str = "", parameter_tokens: float | None = None) -> TraceView:
    r"""The trace with its verdict and how the answer was read.

    >>> trace = Trace(Problem("p", "1 + 1?", "2"), (Step(r"So \boxed{2}.", "weak"),), "answer")
    >>> judged(trace, "Never").verdict
    'CORRECT'
    """
    return TraceView(trace, policy, verdict_of(trace), parameter_tokens, find_answer(trace.solution).source)


def judge(router: StepRouter | Routed, traces: Sequence[Trace], seconds: float | None = None) -> Measured:
    """Grade and count the traces that `router` made.

    Example:
        measured = judge(router, router.solve_all(problems))
        print(f"{measured.accuracy:.1%} for {measured.point.cost:.0f} strong tokens a problem")
    """
    policy = router.policy
    label = label_of(policy)
    views = tuple(judged(trace, label, router.cost([trace]).parameter_tokens) for trace in traces)
    return Measured(label, policy.family, policy.point, views, router.cost(traces), seconds, router.prices)


def compare(
    router: StepRouter,
    policies: Any,
    problems: Any,
    *,
    progress: bool = True,
    on_measured: Callable[[Measured], None] | None = None,
) -> Comparison:
    """Route `problems`, whatever `load_problems` takes, under each of `policies` (one or several, as
    a router takes them) with the models and the seed of `router`; `on_measured` gets each result.

    Models that can (`reset_cache()`) begin each policy with an empty cache: no policy profits from another's prefixes.
    A problem that is lost to a policy, scorer or model that fails counts as wrong, in `Measured.failed`, and is said in
    the log. Raises `ConfigError` for what is no policy, before anything runs, and `PluginError` where a policy fails at
    every problem.

    Example:
        >>> import stepwise as sw
        >>> results = sw.compare(router, [sw.Threshold(0.3), sw.Threshold(0.7)], problems)  # doctest: +SKIP
        >>> results.difference("Threshold 0.70", "Threshold 0.30")  # doctest: +SKIP
    """
    if not hasattr(router, "with_policy"):
        raise ConfigError(wrong_type("router", router, "give a StepRouter"))
    several = isinstance(policies, Iterable) and not isinstance(policies, Policy | type | str | Mapping)
    results, problems = Comparison(), load_problems(problems)
    if not (arms := [router.with_policy(each) for each in (policies if several else [policies])]):
        raise ConfigError("policies is empty; give one or more, such as ['never', sw.Threshold(0.5)]")
    for arm in arms:
        for model in arm.models:
            if isinstance(model, Generator | Scorer):
                model.reset_cache()
        began = time.perf_counter()
        traces = arm.solve_all(problems, progress=progress, description=f"{label_of(arm.policy):<22}")
        results.append(judge(arm, traces, time.perf_counter() - began))
        if on_measured is not None:
            on_measured(results[-1])
    return results


def in_words(measured: Sequence[Measured], shares: Sequence[float] = (0.5, 0.8, 0.95)) -> list[str]:
    """What the measurement says, one sentence per line; needs the policies "never" and "always" among it.

    Example:
        for line in in_words(sw.compare(router, ["never", "always", sw.Threshold(0.5)], problems)):
            print(line)  # "The weak model alone solves 41.0%, the strong model alone 97.0%." and so on
    """
    ends = {m.family: m for m in measured if m.family in NAMES}
    if len(ends) < 2 or any(m.accuracy is None for m in ends.values()):
        return []
    weak, strong = ends["never"].point, ends["always"].point
    lines = [f"The weak model alone solves {weak.accuracy:.1%}, the strong model alone {strong.accuracy:.1%}."]
    if strong.accuracy <= weak.accuracy or strong.cost <= 0:
        return [*lines, "There is no gap to recover, so routing has nothing to gain here."]
    routed = [m for m in measured if m.family not in NAMES]
    for family in dict.fromkeys(m.family for m in routed):
        arms = [m for m in routed if m.family == family]
        best = max(arms, key=lambda m: (pgr(m.point, weak, strong) or 0.0) - m.point.cost / strong.cost)
        gap, share = pgr(best.point, weak, strong) or 0.0, best.point.cost / strong.cost
        least = [cpt([m.point for m in arms], weak, strong, x) for x in shares]
        wanted = " / ".join(f"{x:.0%}" for x in shares)
        reached = " / ".join("not reached" if cost is None else f"{cost / strong.cost:.0%}" for cost in least)
        own = f"{share:.0%} of the strong model's own tokens"
        lines += [
            f"{best.label} recovers {gap:.0%} of the gap between them for {own}.",
            f"Least share of those for {wanted} of the gap by {family} (CPT, call-performance threshold): {reached}.",
        ]
    return [*lines, "Points were picked on the problems they were measured on, which flatters them a little."]
