r"""What signals that cost nothing say of real attempts: "this attempt ends wrong", and "the first error is here".

--model (a GGUF) attempts --n of --problems, one each at temperatures .3, .5 and .7 in turn, and the log-probability of
every token drawn and the entropy at its place are kept (attempts.jsonl). Killed, it goes on where it was. Printed are
areas under the ROC curve with 95 % bootstrap intervals over attempts, and how far each is above the attempt's length,
on the same resamples (paired).

With --traces (ProcessBench's columns, labels by people) the model reads solutions of others instead, and the second
table asks of each step up to the first error whether that is here. It needs no attempts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt

from stepwise.data.problems import load_problems
from stepwise.data.processbench import read_rows
from stepwise.grading import grade
from stepwise.models.driver import Driver
from stepwise.models.engine import Engine, Generation, GenerationJob
from stepwise.prompt import SolvePrompt
from stepwise.records import from_json, record
from stepwise.routing import LeastLogprob, MeanLogprob, Signal, TokenEntropy, View
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program
from stepwise.seeds import stable_hash
from stepwise.stats import Interval, auroc, bootstrap
from stepwise.steps import Splitter, extract_answer, split_steps
from stepwise.training.rollouts import token_spans
from stepwise.types import Problem, Step, TokenStats, Usage

SYSTEM = (
    "Solve the problem step by step. Write each step as a short paragraph with one calculation, and leave a blank\n"
    "line between steps. Use plain text, no code. End with the final answer in \\boxed{}."
)
TEMPERATURES = (0.3, 0.5, 0.7)
SIGNALS: tuple[Signal, ...] = tuple(
    cls(over) for cls in (LeastLogprob, MeanLogprob, TokenEntropy) for over in ("step", "worst", "mean")
)
_Floats = npt.NDArray[np.float64]


@record()
class Attempt:
    """One solution with what came with its tokens; `pieces` are the bytes of each, as latin-1; `end`: those that count.

    `verdict` is the grader's, "" for one that was read; `first_error` the label of one that was.
    """

    id: str
    question: str
    temperature: float
    finish: str
    verdict: str
    pieces: tuple[str, ...]
    end: int | None
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    first_error: int | None = None

    @property
    def text(self) -> str:
        """What was written."""
        return b"".join(piece.encode("latin-1") for piece in self.pieces)[: self.end].decode("utf-8", "replace")

    @classmethod
    def read(cls, line: str) -> Attempt:
        """From a line of attempts.jsonl."""
        return from_json(cls, line)

    def steps(self, splitter: Splitter = "paragraphs") -> list[tuple[str, slice]]:
        """The steps, with the tokens of each."""
        pieces = [piece.encode("latin-1") for piece in self.pieces]
        texts = split_steps(self.text, splitter)
        spans = [slice(*span) for span in token_spans(pieces, self.end, splitter)]
        return list(zip(texts, spans, strict=True)) if len(texts) == len(spans) else []


class _Options(Options):
    neutral = ("n", "threads", "batch")

    model: str
    """path of a GGUF"""
    problems: str = "gsm8k:train"
    """file or named set; nothing that figures are to be measured on"""
    n: PositiveInt = 300
    """attempts, one of each problem"""
    traces: tuple[Path, ...] = ()
    """labelled solutions in ProcessBench's columns, to read in place of attempts"""
    system: str = SYSTEM
    """what the model is asked to do"""
    threads: PositiveInt = 1
    batch: PositiveInt = 16
    """attempts at once"""
    max_tokens: PositiveInt = 640
    """of an attempt"""
    splitter: Literal["paragraphs", "calculations"] = "paragraphs"


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    args = run.args
    attempts = _read(run) if args.traces else _written(run)
    rows = [Features.of(attempt, args.splitter) for attempt in attempts]
    rows = [row for row in rows if row.steps]
    if args.traces:
        _show_steps(run, rows)
    else:
        _show_attempts(run, rows)


# ----- attempts


def _written(run: Run[_Options]) -> list[Attempt]:
    """Those in the file, and those that are still missing, sampled now."""
    args, attempts = run.args, list(run.rows("attempts.jsonl", Attempt))
    problems = sorted(load_problems(args.problems), key=lambda problem: stable_hash(problem.id, "attempt"))[: args.n]
    done = {attempt.id for attempt in attempts}
    todo = [(place, problem) for place, problem in enumerate(problems) if problem.id not in done]
    if not todo:
        return attempts
    context, prompt = args.max_tokens + 1024, SolvePrompt(system=args.system)
    with (
        Engine.load(args.model, context=context, sequences=args.batch, threads=args.threads) as engine,
        progress("attempts", len(problems), done=len(done)) as advance,
    ):

        async def sample(place: int, problem: Problem) -> None:
            job = GenerationJob(
                tuple(engine.prompt_ids(prompt, problem.question)), args.max_tokens, stop="solution", seed=place,
                temperature=TEMPERATURES[place % len(TEMPERATURES)],
            )  # fmt: skip
            (made,) = await engine.agenerate([job])
            attempts.append(_attempt(engine, problem, job, made))
            run.write("attempts.jsonl", attempts[-1])
            advance(1)

        Driver((engine,)).run([sample(*each) for each in todo], window=args.batch)
    return attempts


def _attempt(engine: Engine, problem: Problem, job: GenerationJob, made: Generation) -> Attempt:
    verdict = grade(extract_answer(made.text) or "", problem.answer or "").value
    pieces = tuple(engine.token_bytes(token).decode("latin-1") for token in made.ids)
    return Attempt(
        problem.id, problem.question, job.temperature, made.finish, verdict, pieces, made.end or None,
        _rounded(made.logprobs), _rounded(made.entropies),
    )  # fmt: skip


def _read(run: Run[_Options]) -> list[Attempt]:
    """Labelled solutions as the model reads them: the log-probability of each of their tokens."""
    attempts = list(run.rows("read.jsonl", Attempt))
    rows = [row for path in run.args.traces for row in read_rows(path)][: run.args.n]
    done = {attempt.id for attempt in attempts}
    todo = [row for row in rows if row.problem.id not in done]
    if not todo:
        return attempts
    prompt = SolvePrompt(system=run.args.system)
    with (
        Engine.load(run.args.model, context=2048, sequences=1, threads=run.args.threads) as engine,
        progress("solutions read", len(rows), done=len(done)) as advance,
    ):
        everything = range(engine.vocabulary.size)
        for row in todo:
            ids = engine.prompt_ids(prompt, row.problem.question)
            steps = [engine.step_ids(step.text) for step in row.trace.steps]
            drawn = [token for step in steps for token in step]
            places = list(range(len(ids) - 1, len(ids) + len(drawn) - 1))
            (result,) = engine.score([[*ids, *drawn]], [places], everything)
            if result.error:
                continue
            shifted = result.logits - result.logits.max(axis=1, keepdims=True)  # (T, V)
            weights = np.exp(shifted)
            totals = weights.sum(axis=1)
            entropies = np.log(totals) - np.einsum("tv,tv->t", weights, shifted) / totals
            attempt = Attempt(
                row.problem.id, row.problem.question, 1.0, "read", "",
                tuple(engine.token_bytes(token).decode("latin-1") for token in drawn), None,
                _rounded(shifted[np.arange(len(drawn)), drawn] - np.log(totals)), _rounded(entropies),
                -1 if row.localization.first_error is None else row.localization.first_error,
            )  # fmt: skip
            run.write("read.jsonl", attempt)
            attempts.append(attempt)
            advance(1)
    return attempts


def _rounded(values: Any) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)


# ----- features


class Features(NamedTuple):
    """An attempt's steps as the router sees them, and what else there is of each."""

    attempt: Attempt
    steps: list[Step]
    first_entropies: list[float]

    @classmethod
    def of(cls, attempt: Attempt, splitter: Splitter) -> Features:
        """Of an attempt; without steps where a step has no token of its own."""
        steps, firsts = [], []
        for text, span in attempt.steps(splitter):
            if not (drawn := attempt.logprobs[span]):
                return cls(attempt, [], [])
            entropies = attempt.entropies[span]
            stats = TokenStats.of(drawn, entropies)
            steps.append(Step(text, "weak", usage=Usage(generated_tokens=len(drawn)), token_stats=stats))
            firsts.append(entropies[0])
        return cls(attempt, steps, firsts)

    def of_signal(self, signal: Signal) -> list[float]:
        """The signal at each step."""
        problem = Problem(self.attempt.id, self.attempt.question)
        views = (View(problem, tuple(self.steps[:i]), step) for i, step in enumerate(self.steps))
        return [signal.value(view) or 0.0 for view in views]

    def badness(self, signal: Signal) -> list[float]:
        """The signal at each step, the higher the worse."""
        return [value if signal.worse == "high" else -value for value in self.of_signal(signal)]

    def at_steps(self) -> dict[str, list[float]]:
        """Everything that is known at each step, the higher the worse."""
        lengths = [step.usage.generated_tokens for step in self.steps]
        return {
            **{signal.title: self.badness(signal) for signal in SIGNALS},
            "first-token entropy": self.first_entropies,
            "position of the step": list(map(float, range(len(self.steps)))),
            "tokens of the step": list(map(float, lengths)),
            "tokens so far": list(map(float, np.cumsum(lengths))),
        }

    def whole(self) -> dict[str, float]:
        """Of the whole attempt: its worst step, the mean over its steps, its length."""
        known = self.at_steps()
        found: dict[str, float] = {}
        for name in ("least_logprob", "mean_logprob", "entropy", "first-token entropy", "tokens of the step"):
            found |= {f"{name}, worst step": max(known[name]), f"{name}, mean of steps": float(np.mean(known[name]))}
        return {**found, "steps": float(len(self.steps)), "length in tokens": known["tokens so far"][-1]}


# ----- tables


def _table(
    run: Run[_Options], title: str, groups: Sequence[dict[str, list[float]]], truth: Sequence[Sequence[bool]], base: str
) -> None:
    """AUROC of each feature over all values of the groups, which are what is drawn again, and its lead over `base`."""
    positive = [np.asarray(each, bool) for each in truth]
    columns = {name: [np.asarray(group[name], float) for group in groups] for name in groups[0]}

    def statistic(name: str) -> Callable[[Any], float | None]:
        def area(index: Any) -> float | None:
            values, kinds = (np.concatenate([part[i] for i in index]) for part in (columns[name], positive))
            return None if np.isnan(value := auroc(values[kinds], values[~kinds])) else value

        return area

    def lead(name: str) -> Callable[[Any], float | None]:
        of, against = statistic(name), statistic(base)

        def difference(index: Any) -> float | None:
            ours, theirs = of(index), against(index)
            return None if ours is None or theirs is None else ours - theirs

        return difference

    found = {name: bootstrap(statistic(name), len(groups), samples=1000) for name in columns}
    order = sorted(columns, key=lambda name: -found[name].value if found[name] else 0.0)  # type: ignore[union-attr]
    rows = [
        (name, _band(found[name]), "" if name == base else _band(bootstrap(lead(name), len(groups), samples=1000)))
        for name in order
    ]
    run.table(title, ("Known at no cost", "AUROC (95 %)", f"above {base}"), rows)


def _band(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _show_attempts(run: Run[_Options], rows: Sequence[Features]) -> None:
    wrong = [row.attempt.verdict != "CORRECT" for row in rows]
    cut = sum(row.attempt.finish == "length" for row in rows)
    run.say(
        f"{len(rows)} attempts, {len(wrong) - sum(wrong)} right, {cut} cut, {sum(len(r.steps) for r in rows)} steps."
    )
    if not rows or len(set(wrong)) < 2:
        return
    wholes = [{name: [value] for name, value in row.whole().items()} for row in rows]
    _table(run, "The attempt ends wrong, of the whole attempt", wholes, [[bad] for bad in wrong], "length in tokens")
    steps = [row.at_steps() for row in rows]
    truth = [[bad] * len(row.steps) for bad, row in zip(wrong, rows, strict=True)]
    _table(run, "The attempt ends wrong, at each of its steps", steps, truth, "tokens so far")


def _show_steps(run: Run[_Options], rows: Sequence[Features]) -> None:
    groups, truth = [], []
    for row in rows:
        first = row.attempt.first_error
        count = len(row.steps) if first is None or first < 0 else first + 1
        groups.append({name: values[:count] for name, values in row.at_steps().items()})
        truth.append([place == first for place in range(count)])
    run.say(f"{len(rows)} solutions read, {sum(map(any, truth))} with an error, {sum(map(len, truth))} steps up to it.")
    _table(run, "The first error is at this step", groups, truth, "position of the step")


if __name__ == "__main__":
    raise SystemExit(main())
