"""What it costs that steps have different lengths: problems that run freely, beside lockstep and whole solutions.

The part of `evals.throughput` behind `--steps real`: --problems solutions of 4 to 8 steps of about 50 tokens each, of
random lengths as real models write them, are written by the same engine in each way, with the same number of tokens:

  whole       every solution in one call: the fewest decode calls that these texts can take
  routed      step by step through the router, weak model only
  lockstep    step by step, every problem waiting for the longest step of a round
  routed +    the same with a scorer that reads every draft and a strong model that writes three steps in ten again
  lockstep +  the same in lockstep

Decode calls are exact; seconds are of this machine, and of use as ratios of one run alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepwise.models.base import Capabilities, Completion, Generator, Request
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.scorers.base import BatchScorer, Scored
from stepwise.prompt import SolvePrompt
from stepwise.routing import Models, Never, Policy, RouteSettings, Threshold, route_all
from stepwise.runs.progress import followed
from stepwise.runs.shell import Run
from stepwise.types import Problem, Usage

Texts = dict[tuple[str, int], list[int]]  # token ids of each step, by problem and index
PAIRS = {
    "routed / whole": "calls",
    "lockstep / whole": "calls",
    "routed / whole, seconds": "seconds",
    "routed + / lockstep +, seconds": "seconds",
}


def lengths_of(problem: str) -> list[int]:
    """Tokens of each step of a solution."""
    rng = random.Random(f"steps|{problem}")
    return [min(160, max(5, round(rng.lognormvariate(3.7, 0.6)))) for _ in range(rng.randint(4, 8))]


def rewritten(problem: str, step: int) -> bool:
    """Whether the strong model writes a step again."""
    return random.Random(f"rewritten|{problem}|{step}").random() < 0.3


class Writer(Generator):
    """Writes steps of the set lengths on an engine, whatever the tokens are."""

    parameters = None
    capabilities = Capabilities(prefill=True, batch=True, token_ids=True)

    def __init__(self, engine: Engine, name: str, texts: Texts) -> None:
        self.engine, self.name, self.texts = engine, name, texts

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engine."""
        return (self.engine,)

    def job(self, problem: Problem, step: int) -> GenerationJob:
        """The tokens of step `step`."""
        ids = prefix(self.engine, problem, step, self.texts)
        return GenerationJob(tuple(ids), lengths_of(problem.id)[step], seed=step, ignore_end=True)

    async def generate(self, request: Request) -> Completion:
        """One step."""
        problem, step = request.problem, request.step
        (sample,) = await self.engine.agenerate([self.job(problem, step)])
        self.texts[problem.id, step] = list(sample.ids)
        finish = "eos" if step + 1 == len(lengths_of(problem.id)) else "step"
        usage = Usage(self.name, 1, 1, sample.evaluated_tokens, len(sample.ids))
        return Completion(0, 0, f"step {step} by {self.name}", finish, usage=usage)  # type: ignore[arg-type]


class Reader(BatchScorer):
    """Reads every draft on an engine; its score says whether the strong model writes it again."""

    def __init__(self, engine: Engine, texts: Texts) -> None:
        super().__init__("reader")
        self.engine, self.texts = engine, texts

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engine."""
        return (self.engine,)

    async def ascore(self, problem: Problem | str, steps: Sequence[str], known: int = 0) -> Scored:
        """One reading of what is new."""
        assert isinstance(problem, Problem)
        ids = prefix(self.engine, problem, len(steps), self.texts)
        (read,) = await self.engine.ascore([ids], [[len(ids) - 1]], [0, 1])
        scores = [0.5] * (len(steps) - 1) + [0.0 if rewritten(problem.id, len(steps) - 1) else 1.0]
        return Scored(scores, Usage(self.name, 1, len(ids), read.evaluated_tokens))


def prefix(engine: Engine, problem: Problem, steps: int, texts: Texts) -> list[int]:
    """Token ids up to where step `steps` begins."""
    ids = list(engine.prompt_ids(SolvePrompt(), problem.question))
    for step in range(steps):
        ids += texts[problem.id, step]
    return ids


def routed(policy: Policy) -> Callable[[Sequence[Engine], Sequence[Problem]], int]:
    """The problems through the router."""

    def way(engines: Sequence[Engine], problems: Sequence[Problem]) -> int:
        texts: Texts = {}
        weak, strong = Writer(engines[0], "weak", texts), Writer(engines[1], "strong", texts)
        traces = route_all(problems, Models(weak, strong, Reader(engines[2], texts)), policy, RouteSettings())
        parts = [part for trace in traces for step in trace.steps for part in (step, *step.discarded)]
        return sum(part.usage.generated_tokens for part in parts)

    return way


def lockstep(scored: bool) -> Callable[[Sequence[Engine], Sequence[Problem]], int]:
    """The problems in rounds."""

    def way(engines: Sequence[Engine], problems: Sequence[Problem]) -> int:
        texts, tokens, step = Texts(), 0, 0
        weak, strong = Writer(engines[0], "weak", texts), Writer(engines[1], "strong", texts)

        def write(writer: Writer, who: Sequence[Problem]) -> int:
            samples = writer.engine.generate([writer.job(problem, step) for problem in who])
            for problem, sample in zip(who, samples, strict=True):
                texts[problem.id, step] = list(sample.ids)
            return sum(len(sample.ids) for sample in samples)

        while active := [problem for problem in problems if step < len(lengths_of(problem.id))]:
            tokens += write(weak, active)
            if scored:
                ids = [prefix(engines[2], problem, step + 1, texts) for problem in active]
                engines[2].score(ids, [[len(one) - 1] for one in ids], [0, 1])
                tokens += write(strong, [problem for problem in active if rewritten(problem.id, step)])
            step += 1
        return tokens

    return way


def whole(engines: Sequence[Engine], problems: Sequence[Problem]) -> int:
    """Every solution in one call."""
    jobs = [
        GenerationJob(tuple(prefix(engines[0], problem, 0, {})), sum(lengths_of(problem.id)), seed=1, ignore_end=True)
        for problem in problems
    ]
    return sum(len(sample.ids) for sample in engines[0].generate(jobs))


WAYS: Mapping[str, Callable[[Sequence[Engine], Sequence[Problem]], int]] = {
    "whole": whole,
    "routed": routed(Never()),
    "lockstep": lockstep(False),
    "routed +": routed(Threshold(0.5)),
    "lockstep +": lockstep(True),
}


def measure(run: Run[Any], path: Path) -> dict[str, Any]:
    """Tokens, seconds and decode calls by engine of every way, best of --repeats, and what they come to."""
    args = run.args
    best: dict[str, dict[str, Any]] = {}
    settings = {"context": max(args.context, 1024), "threads": args.threads, "gpu_layers": args.gpu_layers}
    engines = [Engine.load(path, sequences=args.problems, **settings) for _ in range(3)]
    problems = [Problem(f"p{i}", f"{i} + {i % 7} = ?") for i in range(args.problems)]
    try:
        for _ in followed(range(args.repeats), "repeats of all ways"):
            for name, way in followed(WAYS.items(), "ways"):
                for engine in engines:
                    engine.reset_cache()
                before, began = [engine.counters.decode_calls for engine in engines], time.process_time()
                tokens = way(engines, problems)
                seconds = time.process_time() - began
                calls = [engine.counters.decode_calls - b for engine, b in zip(engines, before, strict=True)]
                if name not in best or seconds < best[name]["seconds"]:
                    best[name] = {"tokens": tokens, "seconds": seconds, "calls": calls}
    finally:
        for engine in engines:
            engine.close()
    ratios = {}
    for pair, figure in PAIRS.items():
        one, other = pair.removesuffix(", seconds").split(" / ")
        values = [best[way][figure] for way in (one, other)]
        values = [value[0] if isinstance(value, list) else value for value in values]
        ratios[pair] = values[0] / values[1]
    return {"ways": best, "ratios": ratios}


def show(run: Run[Any], result: dict[str, Any]) -> None:
    """The table, and the ratios."""
    from rich.table import Table

    table = Table(title="steps of random lengths, processor seconds")
    for column in ("way", "tokens", "seconds", "decode calls of the weak model, the strong one, the scorer"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, row in result["ways"].items():
        table.add_row(name, str(row["tokens"]), f"{row['seconds']:.2f}", ", ".join(map(str, row["calls"])))
    run.console.print(table)
    for pair, ratio in result["ratios"].items():
        run.say(f"{pair}: {ratio:.3f}")
