"""What routing buys on a real pair: weak, strong, Random, thresholds on the signals that cost nothing, by question.

Each of --n problems of --problems (--rows: a JSON list of the 0-based rows to take) goes through every arm, --batch
problems at a time; what is done is kept in rows.jsonl and every answer of a model in answers.jsonl, so that it may be
killed at any moment and goes on there; arms share what they have in common and are paired. Thresholds flag --share of
the steps of the attempts that `evals.signals` made of other problems (--attempts, --train), and the router by question
is fitted on them. The table is of the problems that all arms have done:

The arm "steps shown" is the one before it with a strong model that cannot continue a solution, as most APIs: it is
shown the steps in a chat and asked for the next.

  accuracy          with Wilson's 95 % interval
  strong, all       tokens written a problem by the strong model, by both
  seconds           of one core, from tokens written and read and the rates measured at the start: shared answers are
                    not made twice, so the clock of the run does not say
  above the line    accuracy less what mixing both models by problem would have at these strong tokens; paired bootstrap
  against Random    accuracy less Random's

A difference that is smaller than what n can see is none: it is printed beside.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import PositiveInt

from stepwise.config import ModelConfig, SamplingConfig
from stepwise.data.problems import load_problems
from stepwise.errors import DataError
from stepwise.models import load_backend
from stepwise.models.base import Completion, Request
from stepwise.models.dialects import chat
from stepwise.models.llamacpp import LlamaCppBackend
from stepwise.models.store import CallCache
from stepwise.models.wrapped import Wrapped
from stepwise.prompt import SolvePrompt
from stepwise.records import record
from stepwise.routing import (
    Always,
    LeastLogprob,
    MeanLogprob,
    Never,
    Policy,
    QueryClassifier,
    Random,
    Signal,
    Signalled,
    StepRouter,
    TokenEntropy,
    fit_query_classifier,
    threshold_at,
)  # fmt: skip
from stepwise.routing.compare import verdict_of
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.stats import Interval, bootstrap, wilson
from stepwise.steps import separated
from stepwise.types import Problem, Step, Trace, Usage

from .signals import SYSTEM, Attempt, Features

SIGNALS: tuple[Signal, ...] = (LeastLogprob(), MeanLogprob(), TokenEntropy("worst"), TokenEntropy())
POWER = 1.96 + 0.84  # standard normal quantiles of 5 % (two-sided) and 80 %
DISCORDANCE = 0.3
SHOWN = ", steps shown"


class _Options(Options):
    neutral = ("n", "batch", "threads")

    weak: str
    """path of a GGUF"""
    strong: str
    """path of a GGUF"""
    problems: str = "gsm8k"
    """measured on"""
    rows: Path | None = None
    """JSON list of the rows of --problems to take"""
    attempts: Path
    """directory of a run of evals.signals with the weak model"""
    train: str = "gsm8k:train"
    """the problems of --attempts"""
    n: PositiveInt = 200
    """problems"""
    share: float = 0.3
    """of steps (of problems, for the router by question) that go to the strong model"""
    system: str = SYSTEM
    """what both models are asked to do"""
    temperature: float = 0.3
    threads: PositiveInt = 1
    batch: PositiveInt = 16
    """problems at once"""


@record()
class Row:
    """What one arm did on one problem."""

    problem: str
    arm: str
    verdict: str
    weak: Usage
    strong: Usage
    scorer: Usage = Usage()


ROWS = "rows.jsonl"
Solve = Callable[[Sequence[Problem]], Iterable[Row]]
"""What an arm does with problems."""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args = run.args
    rates = json.loads(run.path("rates.json").read_text()) if run.path("rates.json").exists() else {}
    problems = load_problems(args.problems)
    if args.rows:
        problems = [problems[row] for row in json.loads(args.rows.read_text())]
    problems = problems[: args.n]
    arms = _arms(run, problems)
    done = {(row.problem, row.arm) for row in run.rows(ROWS, Row)}
    if any((problem.id, name) not in done for name in arms for problem in problems):
        models = [
            load_backend(
                ModelConfig(model=f"llamacpp/{path}", threads=args.threads, context=2048, sequences=args.batch),
                prompt=SolvePrompt(system=args.system),
            )
            for path in (args.weak, args.strong)
        ]
        if not rates:
            rates = {role: rates_of(model) for role, model in zip(("weak", "strong"), models, strict=True)}
            run.path("rates.json").write_text(json.dumps(rates))
        sampling = SamplingConfig(temperature=args.temperature, max_step_tokens=256)
        weak, strong = models
        assert isinstance(strong, LlamaCppBackend)
        with CallCache(run.path("answers.jsonl")) as cache:
            routers = {
                shown: StepRouter(
                    weak, Shown(strong) if shown else strong, policy=Never(), prompt=SolvePrompt(system=args.system),
                    sampling=sampling, cache=cache, max_steps=20,
                )
                for shown in (False, True)
            }  # fmt: skip
            solve = {
                name: routed(name, routers[name.endswith(SHOWN)].with_policy(policy)) for name, policy in arms.items()
            }
            measure(run, solve, problems, args.batch)
    _show(run, list(run.rows(ROWS, Row)), list(arms), rates)


def _arms(run: Run[_Options], problems: Sequence[Problem]) -> dict[str, Policy]:
    """Every policy, set on the attempts at other problems."""
    args = run.args
    attempts = [Attempt.read(line) for line in (args.attempts / "attempts.jsonl").read_text().splitlines()]
    features = [Features.of(attempt, "paragraphs") for attempt in attempts]
    arms: dict[str, Policy] = {"weak": Never(), "strong": Always(), "Random": Random(args.share)}
    for signal in SIGNALS:
        values = [value for row in features for value in row.of_signal(signal)]
        arms[signal.title] = Signalled(signal, threshold_at(signal.worse, values, args.share))
    arms[SIGNALS[-1].title + SHOWN] = arms[SIGNALS[-1].title]
    known = {problem.id: problem for problem in load_problems(args.train)}
    traces = [Trace(known[each.id], (Step(each.text, "weak"),), "answer") for each in attempts]
    try:
        by_question = fit_query_classifier(traces, measured_on=problems)
    except DataError as error:
        run.say(f"No router by question: {error}.")
        return arms
    chances = sorted((by_question.chance(trace.problem.question) for trace in traces), reverse=True)
    arms["by question"] = QueryClassifier(
        by_question.weights, by_question.bias, chances[int(args.share * len(chances))], by_question.fitted_on
    )
    return arms


class Shown(Wrapped):
    """A model in this process that is shown the steps in a chat and asked for the next: what an API answers that cannot
    continue a message of its own.

    Example:
        router = StepRouter(weak, Shown(strong), prompt=prompt)
    """

    def __init__(self, model: LlamaCppBackend) -> None:
        super().__init__(model)
        self.inner = model

    @property
    def name(self) -> str:  # type: ignore[override]
        """By which answers are kept."""
        return self.inner.name + SHOWN

    async def generate(self, request: Request) -> Completion:
        """The step after `request.prefix`; without one as the model itself."""
        if not request.prefix:
            return await self.inner.generate(request)
        prompt = self.inner.prompt
        text = "".join(separated(step.text, prompt.splitter) for step in request.prefix)
        messages = chat(prompt, request.problem.question, text, None, whole=request.stop == "solution")
        ids = tuple(self.inner.engine.chat_ids(messages, **prompt.template_args))
        return await self.inner.generate(dataclasses.replace(request, prefix=(), token_ids=ids))


def rates_of(model: Any) -> dict[str, float]:
    """Tokens a second of this process that the model reads and writes, alone."""
    assert isinstance(model, LlamaCppBackend)
    problem = Problem("rate", "What is the sum of the first hundred odd numbers? " * 8)
    start = time.process_time()
    read = model.continue_solutions([Request(problem, stop="solution", max_tokens=1)])[0].usage
    reading = time.process_time() - start
    start = time.process_time()
    written = model.continue_solutions([Request(problem, stop="solution", max_tokens=64, seed=1)])[0].usage
    return {
        "reads": read.evaluated_tokens / reading,
        "writes": written.generated_tokens / (time.process_time() - start),
    }


def routed(name: str, router: StepRouter) -> Solve:
    """The arm of a router under its policy; what its models read is counted from cold."""

    def solve(problems: Sequence[Problem]) -> Iterator[Row]:
        models: tuple[Any, ...] = router.models
        for model in filter(None, models):
            model.reset_cache()
        for trace in router.solve_all(problems, progress=False):
            spent = trace.usage
            usages = [spent.get(role, Usage()) for role in ("weak", "strong", "scorer")]
            yield Row(trace.problem.id, name, verdict_of(trace), *usages)

    return solve


def measure(
    run: Run[Any], arms: Mapping[str, Solve], problems: Sequence[Problem], batch: int, file: str = ROWS
) -> None:
    """Add to the file a row for every problem and arm that has none yet, `batch` problems at a time."""
    done = {(row.problem, row.arm) for row in run.rows(file, Row)}
    cells = {(problem.id, name) for problem in problems for name in arms}
    with progress("problems and arms", len(cells), done=len(cells & done)) as advance:
        for low in range(0, len(problems), batch):
            part = problems[low : low + batch]
            for name, solve in arms.items():
                missing = [problem for problem in part if (problem.id, name) not in done]
                run.write(file, *(solve(missing) if missing else ()))
                advance(len(missing), name)


def sees(n: int) -> float:
    """The least difference of paired accuracies that n problems see with 80 % power, three in ten pairs differing.

    >>> [round(100 * sees(n)) for n in (200, 643)]
    [11, 6]
    """
    return POWER * math.sqrt(DISCORDANCE / n)


def _show(
    run: Run[_Options], rows: Sequence[Row], arms: Sequence[str], rates: Mapping[str, Mapping[str, float]]
) -> None:
    by = {(row.problem, row.arm): row for row in rows}
    names = [problem for problem in dict.fromkeys(row.problem for row in rows) if all((problem, a) in by for a in arms)]
    if not names:
        run.say("No problem was done by all arms yet.")
        return
    right = {arm: np.array([by[name, arm].verdict == "CORRECT" for name in names], float) for arm in arms}
    strong = {arm: np.array([by[name, arm].strong.generated_tokens for name in names], float) for arm in arms}

    def line(arm: str) -> Callable[[Any], float]:
        def above(index: Any) -> float:
            weak, best, cost = (
                right["weak"][index].mean(),
                right["strong"][index].mean(),
                strong["strong"][index].mean(),
            )
            share = strong[arm][index].mean() / cost if cost else 0.0
            return float(right[arm][index].mean() - weak - (best - weak) * share)

        return above

    def random(arm: str) -> Callable[[Any], float]:
        return lambda index: float((right[arm][index] - right["Random"][index]).mean())

    table = []
    for arm in arms:
        accuracy = wilson(int(right[arm].sum()), len(names))
        every = [by[name, arm] for name in names]
        tokens = sum(row.weak.generated_tokens + row.strong.generated_tokens for row in every) / len(names)
        seconds = sum(seconds_of(row, rates) for row in every) / len(names)
        compared = arm not in ("weak", "strong")
        table.append((
            arm, f"{accuracy.value:.1%} ({accuracy.low:.0%} to {accuracy.high:.0%})", f"{strong[arm].mean():.0f}",
            f"{tokens:.0f}", f"{seconds:.1f}",
            points(bootstrap(line(arm), len(names))) if compared else "",
            points(bootstrap(random(arm), len(names))) if compared and arm != "Random" else "",
        ))  # fmt: skip
    columns = ("Arm", "Accuracy", "Strong", "All", "Seconds", "Above the line", "Against Random")
    least = 100 * sees(len(names))
    run.table(f"{len(names)} problems; a difference below {least:.0f} points is not seen", columns, table)
    seen = ", ".join(f"{n} problems see {100 * sees(n):.0f} points" for n in (len(names), 200, 643))
    run.say(f"At 80 % power, where three pairs in ten differ, {seen}.")


def seconds_of(row: Row, rates: Mapping[str, Mapping[str, float]]) -> float:
    """Of one core, at these tokens a second of each role; a role without rates takes none."""
    usages: list[tuple[Usage, Mapping[str, float]]] = [(getattr(row, role), rate) for role, rate in rates.items()]
    return sum(u.evaluated_tokens / rate["reads"] + u.generated_tokens / rate["writes"] for u, rate in usages)


def points(interval: Interval | None) -> str:
    """In points of a hundred."""
    if interval is None:
        return "-"
    return f"{100 * interval.value:+.1f} ({100 * interval.low:+.0f} to {100 * interval.high:+.0f})"


if __name__ == "__main__":
    raise SystemExit(main())
