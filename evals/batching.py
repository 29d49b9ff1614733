"""How near the engine comes to what the model's own curve allows, on a real model and steps of real lengths.

The part of `evals.throughput` behind `--model FILE` for a model that has a curve (see `stepwise.models.engine.curve`):

  curve       tokens a second by number of sequences in a batch, as measured at loading
  problems    1, 4, 16 and 64 of them through the router (weak model only), as many open as the curve wants; a solution
              is 4 to 8 steps of about 50 tokens each
  together    the same problems with everything that runs in one batch, which is llama.cpp's own batching
  API         llama-cpp-python's high-level API: each problem in one call, and a call a step
  prefill     a prompt of --prompt tokens evaluated, and the time to the first token
  routed      seconds of one problem at a time, three steps in ten by --strong, against the strong model alone

"allowed" is the least time in which the curve lets these lengths be written: at every token whatever is alive, split
the best way. "by count" compares it with the batches that were run, each at its price on the curve: exact, whatever
else the machine does. "by time" compares it with the seconds of the decodes, "all" with everything, prompts and Python
included. Ways are interleaved; seconds are processor seconds.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepwise.errors import DataError
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.engine.curve import Curve
from stepwise.models.shared import open_problems
from stepwise.prompt import SolvePrompt
from stepwise.routing import Models, Never, Random, RouteSettings, route_all
from stepwise.runs.progress import followed, progress
from stepwise.runs.shell import Run
from stepwise.types import Problem

from .free_running import Texts, Writer, lengths_of

RATE = 0.3  # of steps that the strong model writes


def curve_of(text: str) -> Curve:
    """The curve of tokens a second by number of sequences, written as 1:49,4:40,16:100. Raises DataError for others."""
    try:
        rates = {int(n): float(rate) for n, rate in (part.split(":") for part in text.split(","))}
        return Curve({n: n / rate for n, rate in rates.items()})
    except (ValueError, ZeroDivisionError):
        raise DataError(f"--curve is {text!r}; write it as in 1:49,4:40,16:100") from None


def allowed(curve: Curve, lengths: Sequence[int], at_once: int) -> float:
    """Seconds in which sequences of these lengths are written, `at_once` of them at most, the next one as one ends."""
    waiting, alive, seconds = list(lengths), list[int](), 0.0
    while waiting or alive:
        alive += [waiting.pop(0) for _ in range(min(at_once - len(alive), len(waiting)))]
        shortest = min(alive)
        seconds += shortest * curve.time(len(alive))
        alive = [left - shortest for left in alive if left > shortest]
    return seconds


@dataclass
class Decodes:
    """The calls of llama_decode: how many writing batches of each size, their seconds, and those of prompts."""

    sizes: Counter[int] = field(default_factory=Counter)
    writing: float = 0.0
    reading: float = 0.0


@contextmanager
def decodes(engine: Engine, together: bool) -> Iterator[Decodes]:
    """What the engine decodes inside the block; `together`: prompts stand in the batches of what is written."""
    context, seen = engine._context, Decodes()
    plain = context.decode

    def decode(n: int, rows: int, states: bool = False) -> Any:
        began = time.process_time()
        try:
            return plain(n, rows, states)
        finally:
            seconds = time.process_time() - began
            if n == rows or (together and rows):
                seen.sizes[rows] += 1
                seen.writing += seconds
            else:
                seen.reading += seconds

    context.decode = decode  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        del context.decode


def tokens_of(problem: Problem) -> int:
    """Tokens of a solution."""
    return sum(lengths_of(problem.id))


def written(engine: Engine, problems: Sequence[Problem], curve: Curve, together: bool) -> dict[str, Any]:
    """One way of writing `problems`, and what of the curve it reached."""
    engine.reset_cache()
    engine.set_curve(None if together else curve)
    writer = Writer(engine, "weak", Texts())
    window = open_problems(writer) or curve.fastest
    began = time.process_time()
    with decodes(engine, together) as seen, progress(f"{len(problems)} problems", len(problems)) as advance:
        route_all(
            problems, Models(writer, writer), Never(), RouteSettings(window=window), on_trace=lambda _: advance(1)
        )
    seconds = time.process_time() - began
    best = allowed(curve, [tokens_of(problem) - 1 for problem in problems], curve.fastest)  # the prompt gives the first
    slower = {size for size in seen.sizes if curve.cost(size) > size * curve.cost(1) + 1e-9}
    spent = sum(count * curve.cost(size) for size, count in seen.sizes.items())
    tokens = sum(map(tokens_of, problems))
    return {
        "tokens": tokens,
        "seconds": seconds,
        "rate": tokens / seconds,
        "rate, decodes only": tokens / seen.writing,
        "by count": best / spent,
        "by time": best / seen.writing,
        "all": best / seconds,
        "against one after another": tokens * curve.cost(1) / best,
        "sizes": dict(sorted(seen.sizes.items())),
        "slower than singles": sum(seen.sizes[size] for size in slower),
        "open": window,
    }


def through_api(llama: Any, engine: Engine, problems: Sequence[Problem], per_step: bool) -> dict[str, Any]:
    """The same lengths by `Llama.create_completion`, a problem after another."""
    settings = {"temperature": 0.7, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    tokens, began, way = 0, time.process_time(), "a call a step" if per_step else "whole solutions"
    for problem in followed(problems, f"{len(problems)} problems by the API, {way}"):
        prompt = list(engine.prompt_ids(SolvePrompt(), problem.question))
        for length in lengths_of(problem.id) if per_step else [tokens_of(problem)]:
            done = llama.create_completion(prompt, max_tokens=length, **settings)
            tokens += done["usage"]["completion_tokens"]
            prompt = llama.input_ids[: llama.n_tokens].tolist()
    seconds = time.process_time() - began
    return {"tokens": tokens, "seconds": seconds, "rate": tokens / seconds}


def prompts(engine: Engine, llama: Any, length: int, repeats: int) -> dict[str, float]:
    """Tokens a second of a prompt's evaluation, here and in the API; and seconds to the first token."""
    ids = [(7 * i) % (engine.vocabulary.size // 2) + 300 for i in range(length)]
    ours, theirs, first = [], [], []
    for _ in followed(range(repeats), "reading prompts"):
        engine.reset_cache()
        began = time.process_time()
        engine.generate([GenerationJob(tuple(ids), 1, ignore_end=True)])
        first.append(time.process_time() - began)
        engine.reset_cache()
        began = time.process_time()
        engine.score([ids], [[length - 1]], [0])
        ours.append(length / (time.process_time() - began))
        llama.reset()
        began = time.process_time()
        llama.eval(ids)
        theirs.append(length / (time.process_time() - began))
    return {
        "tokens": length,
        "prefill": max(ours),
        "prefill, API": max(theirs),
        "seconds to the first token": min(first),
    }


def one_at_a_time(weak: Engine, strong: Engine, problems: Sequence[Problem]) -> dict[str, list[float]]:
    """Processor seconds of each problem: routed, and by the strong model alone; interleaved."""
    taken: dict[str, list[float]] = {"routed": [], "strong alone": []}
    for problem in followed(problems, "one problem at a time"):
        for name, used, policy in (("routed", weak, Random(RATE)), ("strong alone", strong, Never())):
            for engine in (weak, strong):
                engine.reset_cache()
            texts = Texts()
            models = Models(Writer(used, "weak", texts), Writer(strong, "strong", texts))
            began = time.process_time()
            route_all([problem], models, policy)
            taken[name].append(time.process_time() - began)
    return taken


def measure(run: Run[Any], engine: Engine, llama: Any) -> dict[str, Any]:
    """Everything that this page prints."""
    args, curve = run.args, engine.curve
    assert curve is not None
    result: dict[str, Any] = {
        "curve": {n: n / seconds for n, seconds in curve.seconds.items()},
        "fastest": curve.fastest,
        "split": {n: curve.split(n) for n in range(1, curve.fastest + 1)},
        "prompts": prompts(engine, llama, args.prompt, args.repeats),
        "problems": {},
    }
    for count in args.counts:
        problems = [Problem(f"p{i}", f"{i} + {i % 7} = ?") for i in range(count)]
        rows = {"split": written(engine, problems, curve, together=False)}
        if 1 < count <= args.problems:
            rows["together"] = written(engine, problems, curve, together=True)
        if count <= args.singles:
            rows["API, whole"] = through_api(llama, engine, problems, per_step=False)
            rows["API, a call a step"] = through_api(llama, engine, problems, per_step=True)
        result["problems"][count] = rows
    engine.set_curve(curve)
    if args.strong is not None:
        with Engine.load(
            args.strong, context=engine.context, sequences=1, threads=args.threads, curve="measured"
        ) as strong:
            alone = [Problem(f"q{i}", f"{i} + {i % 5} = ?") for i in range(args.routed)]
            result["one at a time"] = one_at_a_time(engine, strong, alone)
            result["strong"] = Path(args.strong).name
    return result


def show(run: Run[Any], result: dict[str, Any]) -> None:
    """The tables."""
    rates = result["curve"]
    run.table("tokens a second by number of sequences", list(map(str, rates)), [[f"{r:.1f}" for r in rates.values()]])
    run.say("runs at once at most: " + str(result["fastest"]))
    run.say("split: " + ", ".join(f"{n}: {'+'.join(map(str, sizes))}" for n, sizes in result["split"].items()))
    # By a curve that is given, time says nothing.
    shares = ("by count", "by time", "all") if run.args.curve is None else ("by count",)
    columns = ("problems", "way", "tokens", "seconds", "tokens/s", *shares, "slower")
    table = []
    for count, rows in result["problems"].items():
        for way, row in rows.items():
            figures = [f"{row[name]:.2f}" if name in row else "" for name in shares]
            figures.append(str(row.get("slower than singles", "")))
            table.append([str(count), way, str(row["tokens"]), f"{row['seconds']:.1f}", f"{row['rate']:.1f}", *figures])
    title = "steps of random lengths; shares of what the curve allows; batches that it calls slower than singles"
    run.table(title, columns, table)
    for count, rows in result["problems"].items():
        one = rows["split"]
        sizes = ", ".join(f"{size}: {n}" for size, n in one["sizes"].items())
        run.say(
            f"{count} problems, {one['open']} open: the curve allows {one['against one after another']:.2f} times one "
            f"after another; batches by size: {sizes}"
        )
    for name, value in result["prompts"].items():
        run.say(f"prompt, {name}: {value:.4g}")
    for name, seconds in result.get("one at a time", {}).items():
        p95 = sorted(seconds)[max(0, round(0.95 * len(seconds)) - 1)]
        run.say(f"one problem, {name}: p50 {statistics.median(seconds):.1f} s, p95 {p95:.1f} s of {len(seconds)}")
