"""Tokens per second of step-wise generation: the engine against llama-cpp-python's high-level API, on one GGUF.

Five ways to write the same number of tokens, in equal steps, measured in turn, best of --repeats, each time on problems
that no way has seen:

  lockstep    the engine, --problems problems at once, one batched call per step
  one         the engine, one problem after another, one call per step
  per call    Llama.create_completion for each step, the text so far as the prompt, --problems problems in lockstep:
              one `Llama` remembers one prompt, so that every call evaluates its prompt again
  in order    the same, one problem after another, where the `Llama` remembers the prefix
  straight    Llama.create_completion, each problem in one call

All run with the same context, threads, cache type, flash attention, batch size and temperature, without truncation.
Time includes the evaluation of the prompts. The end of the message is ignored in all five (in the high-level API by
switching its test off). The engine also computes the log-probability of every token; the high-level API does not.

With --steps real, steps of random lengths through the router, in lockstep and as whole solutions; see `free_running`.
A real model (--model FILE, 50 million weights or more) is measured against its own curve in place of all this, see
`batching`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt

from stepwise.errors import DataError
from stepwise.lab import MODELS, model_path
from stepwise.lab.problems import generate
from stepwise.models.engine import Engine, GenerationJob
from stepwise.models.engine.context import build_id
from stepwise.prompt import SolvePrompt
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program

from . import batching, free_running

TEMPERATURE = 0.7
AIMS = {"lockstep / per call": 3.0, "lockstep / straight": 1.0, "one / straight": 0.85}
RATIOS = (*AIMS, "lockstep / in order", "one / in order")
Way = Callable[[Sequence[str]], int]


class _Options(Options):
    model: str = "lab-weak"
    """lab model or path of a GGUF"""
    shape: str | None = None
    """a random-weight model of this shape instead, made in --out: qwen3-0.6b"""
    problems: int = 16
    """problems in lockstep"""
    singles: int = 4
    """problems of the other ways"""
    steps: PositiveInt | Literal["real"] = 10
    """steps of a solution, or "real": random lengths"""
    tokens: int = 20
    """tokens of a step"""
    repeats: int = 3
    """best of so many"""
    context: int = 512
    """longest sequence"""
    threads: int = 1
    """CPU threads"""
    gpu_layers: int = 0
    """layers on the GPU"""
    curve: str | None = None
    """tokens a second by number of sequences, such as 1:49,4:40,16:100, in place of the model's own: what is run is
    counted by it, whatever the model"""
    counts: tuple[PositiveInt, ...] = (1, 4, 16, 64)
    """problems of a real model"""
    prompt: int = 256
    """tokens of a prompt, for a real model"""
    strong: str | None = None
    """GGUF of a strong model, for the seconds of one routed problem"""
    routed: int = 8
    """problems that are routed one at a time"""

    @property
    def num_steps(self) -> int:
        return 0 if self.steps == "real" else self.steps


@program(_Options, doc=__doc__, resumable=False)
def main(run: Run[_Options]) -> int:
    args = run.args
    path = _model(run)
    if args.steps == "real":
        free = free_running.measure(run, path)
        run.path("throughput.json").write_text(json.dumps({"model": path.name, **free}, indent=2) + "\n")
        free_running.show(run, free)
        return 0
    settings: dict[str, Any] = {"context": args.context, "threads": args.threads, "gpu_layers": args.gpu_layers}
    own = args.model not in MODELS and args.shape is None
    if (own or args.curve is not None) and _is_real(run, path, settings):
        return 0
    with Engine.load(path, sequences=args.problems, **settings) as engine, _high_level(path, args) as llama:
        ways = _ways(engine, llama, args)
        best = _measure(ways, args)
    rates = {name: best[name][0] / best[name][1] for name in ways}
    ratios = {pair: rates[pair.split(" / ")[0]] / rates[pair.split(" / ")[1]] for pair in RATIOS}
    result = {
        "model": path.name,
        "parameters": engine.parameters,
        "sequences": engine.sequences,
        "arguments": {key: value for key, value in vars(args).items() if isinstance(value, int | str)},
        "tokens": {name: best[name][0] for name in ways},
        "seconds": {name: best[name][1] for name in ways},
        "tokens_per_second": rates,
        "ratios": ratios,
        "aims": AIMS,
    }
    run.path("throughput.json").write_text(json.dumps(result, indent=2) + "\n")
    _print(run, result)
    return run.missed(pair for pair, aim in AIMS.items() if ratios[pair] < aim)


def _is_real(run: Run[_Options], path: Path, settings: dict[str, Any]) -> bool:
    """Measure a model that has a curve against it; False for a tiny one."""
    settings = {**settings, "context": max(run.args.context, 1024)}
    settings["curve"] = "measured" if run.args.curve is None else batching.curve_of(run.args.curve)
    with Engine.load(path, sequences=max(run.args.problems, 32), **settings) as engine:
        if engine.curve is None:
            return False
        with _high_level(path, run.args) as llama:
            result = batching.measure(run, engine, llama)
    result = {"model": path.name, "build": build_id(), **result}
    run.path("throughput.json").write_text(json.dumps(result, indent=2) + "\n")
    run.say(f"{path.name}, {run.args.threads} threads, llama.cpp {result['build']}")
    batching.show(run, result)
    return True


def _model(run: Run[_Options]) -> Path:
    if run.args.shape:
        from .shapes import random_model

        return random_model(run.args.shape, run.out)
    return model_path(run.args.model) if run.args.model in MODELS else Path(run.args.model)


@contextmanager
def _high_level(path: Path, args: _Options) -> Iterator[Any]:
    """llama-cpp-python's `Llama`, which never sees an end of message."""
    import llama_cpp.llama_cpp as lib
    from llama_cpp import Llama

    settings = {"n_ctx": max(args.context, 1024), "n_threads": args.threads, "n_threads_batch": args.threads}
    is_end = lib.llama_vocab_is_eog
    with closing(Llama(str(path), flash_attn=True, verbose=False, n_gpu_layers=args.gpu_layers, **settings)) as llama:
        lib.llama_vocab_is_eog = lambda vocab, token: False
        try:
            yield llama
        finally:
            lib.llama_vocab_is_eog = is_end


def _ways(engine: Engine, llama: Any, args: _Options) -> dict[str, Way]:
    prompt = SolvePrompt()
    total = args.num_steps * args.tokens
    settings = {"temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

    def lockstep(questions: Sequence[str]) -> int:
        prefixes = [tuple(engine.prompt_ids(prompt, question)) for question in questions]
        made = 0
        for step in range(args.num_steps):
            jobs = [
                GenerationJob(ids, args.tokens, temperature=TEMPERATURE, seed=step * 1000 + i, ignore_end=True)
                for i, ids in enumerate(prefixes)
            ]
            results = engine.generate(jobs)
            prefixes = [(*ids, *one.ids) for ids, one in zip(prefixes, results, strict=True)]
            made += sum(len(one.ids) for one in results)
        return made

    def one(questions: Sequence[str]) -> int:
        return sum(lockstep([question]) for question in questions)

    def complete(so_far: str | list[int], tokens: int, seed: int) -> tuple[str, int]:
        done = llama.create_completion(so_far, max_tokens=tokens, seed=seed, **settings)
        return done["choices"][0]["text"], done["usage"]["completion_tokens"]

    def per_call(questions: Sequence[str]) -> int:
        made = 0
        ids = [engine.prompt_ids(prompt, question) for question in questions]
        so_far: list[str | list[int]] = [one if args.shape else _text(engine, one) for one in ids]
        for step in range(args.num_steps):
            for i, prefix in enumerate(so_far):
                text, tokens = complete(prefix, args.tokens, step)
                # Text of random weights does not tokenize back: there the ids that the object holds are given again.
                so_far[i] = llama.input_ids[: llama.n_tokens].tolist() if args.shape else f"{prefix}{text}"
                made += tokens
        return made

    def in_order(questions: Sequence[str]) -> int:
        return sum(per_call([question]) for question in questions)

    def straight(questions: Sequence[str]) -> int:
        return sum(complete(engine.prompt_ids(prompt, q), total, i)[1] for i, q in enumerate(questions))

    return {"lockstep": lockstep, "one": one, "per call": per_call, "in order": in_order, "straight": straight}


def _text(engine: Engine, ids: Sequence[int]) -> str:
    """Text of a chat prompt with its control tokens, as the high-level API wants it."""
    return b"".join(engine.vocabulary.token_bytes(i) or engine.vocabulary.text(i).encode() for i in ids).decode()


def _measure(ways: dict[str, Way], args: _Options) -> dict[str, tuple[int, float]]:
    """(tokens, seconds) of the best repeat of each way; every run has problems of its own."""
    best: dict[str, tuple[int, float]] = {}
    start = 0
    total = args.repeats * (2 * args.problems + (len(ways) - 2) * args.singles)
    with progress("problems", total) as advance:
        for name, way in [pair for _ in range(args.repeats) for pair in ways.items()]:
            advance(0, name)
            n = args.problems if name in ("lockstep", "per call") else args.singles
            if args.shape:
                # Its tokenizer would spell a whole problem out: a sum keeps prompts as short as they are elsewhere.
                questions = [f"{i} + {i % 7} = ?" for i in range(start, start + n)]
            else:
                questions = [item.problem.question for item in generate("train", n, start=start)]
            start += n
            begin = time.perf_counter()
            tokens = way(questions)
            seconds = time.perf_counter() - begin
            if tokens < 0.9 * n * args.num_steps * args.tokens:
                raise DataError(
                    f"{name} wrote {tokens} tokens of {n * args.num_steps * args.tokens}; --context is too small"
                )
            advance(n)
            if name not in best or tokens / seconds > best[name][0] / best[name][1]:
                best[name] = (tokens, seconds)
    return best


def _print(run: Run[_Options], result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        title=f"{result['model']}: {result['arguments']['steps']} steps of {result['arguments']['tokens']} tokens"
    )
    for column in ("way", "tokens", "seconds", "tokens/s"):
        table.add_column(column, justify="left" if column == "way" else "right")
    for name, rate in result["tokens_per_second"].items():
        table.add_row(name, str(result["tokens"][name]), f"{result['seconds'][name]:.2f}", f"{rate:.1f}")
    run.console.print(table)
    for pair, ratio in result["ratios"].items():
        run.say(f"{pair}: {ratio:.2f}" + (f" (aim {AIMS[pair]:.2f})" if pair in AIMS else ""))


if __name__ == "__main__":
    raise SystemExit(main())
