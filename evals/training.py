"""The training comparison of InT (arXiv 2601.14209) in the lab, at equal training tokens, and the credit schemes.

Arms (--arms; the default leaves some out): the base; more of its own corpus (sham); reinforcement alone; supervised
training on the model's own right solutions, references, self-reflections, the strong model's solutions or
interventions, each followed by reinforcement; what to clone; and reinforcement with credit per step, from true first
errors and from the scorer's. Measured on held-out problems: pass@1 and pass@16, by stratum and family, entropy,
groups without spread. Gains are told over sham. Lab figures: a test bed, no benchmark. Runs go on where they were
stopped; --workers run side by side.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, PositiveInt

from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.lab.problems import LabProblem, generate
from stepwise.runs.progress import progress
from stepwise.runs.shell import Options, Run, program

from .training_arms import (
    ARMS,
    CLONED,
    COLLECTED,
    DEFAULT,
    Scale,
    adapter_after_sft,
    cost,
    dataset,
    gather,
    no_spread,
    pool_of,
    run_folder,
    sft_folder,
    supervise,
    train,
)
from .training_measures import SAMPLES, Measured, measure, solved, surprise_of
from .training_tables import show

Made = TypeVar("Made")
REFERENCE_SEED = 10_000  # of the base's samples that define the stratum of problems it fails


class _Options(Options):
    neutral = ("arms", "seeds", "workers")

    arms: tuple[str, ...] = Field(DEFAULT, description=f"all, or some of: {'; '.join(ARMS)}")
    seeds: PositiveInt = 3
    """runs of each arm"""
    problems: PositiveInt = 200
    """held-out problems"""
    pool: PositiveInt = 240
    """training problems"""
    sft_tokens: PositiveInt = 80000
    """with a loss"""
    rl_steps: PositiveInt = 50
    """batches of rollouts"""
    rl_problems: PositiveInt = 8
    """in a batch"""
    sft_rate: float = 0.001
    """learning rate"""
    rl_rate: float = 0.001
    """learning rate"""
    workers: PositiveInt = 2
    """runs at a time"""


@program(_Options, doc=__doc__)
def main(run: Run[_Options]) -> None:
    from stepwise.training.sampler import exact_weights

    args = run.args
    wanted = list(ARMS) if args.arms == ("all",) else args.arms
    unknown = [name for name in wanted if name not in ARMS]
    if unknown:
        raise ConfigError(f"--arms {', '.join(unknown)}: unknown; give some of {'; '.join(ARMS)}")
    scale = Scale(args.pool, args.sft_tokens, args.rl_steps, args.rl_problems, args.sft_rate, args.rl_rate)
    run.path("base-f32.gguf")
    exact = sampled_by(exact_weights(run.config, run.out))
    names = list(dict.fromkeys(["base", *wanted]))
    prepare(run, exact, scale, names)
    supervise_all(run, exact, scale, names)
    measure_all(run, exact, scale, names)
    rows = [row for row in run.rows("results.jsonl", Measured) if row.seed < args.seeds]
    reference = next(row for row in run.rows("results.jsonl", Measured) if row.seed == REFERENCE_SEED)
    summary = show(run, rows, held_out(args.problems), reference)
    run.path("training.json").write_text(json.dumps(summary, indent=1) + "\n")


def sampled_by(exact: Config) -> Config:
    """Weights in 32 bits for the sampler, as the trainer has them; a cache in 16 bits, which is a third faster."""
    weak = exact.models.weak.model_copy(update={"kv_type": "f16", "flash_attention": True})
    return exact.model_copy(update={"models": exact.models.model_copy(update={"weak": weak})})


def held_out(n: int) -> list[LabProblem]:
    """The problems that are measured on; none is in the pool."""
    return generate("test", n)


def prepare(run: Run[_Options], cfg: Config, scale: Scale, names: list[str]) -> None:
    """The collection and every dataset that the arms need, before any run begins."""
    kinds = {ARMS[name].data for name in names} - {""}
    if any(ARMS[name].sft.get("replay") for name in names):
        kinds.add("rejection")
    if any(ARMS[name].hints for name in names):
        kinds.add("intervention")
    if not kinds:
        return
    if kinds & COLLECTED:
        gather(cfg, scale, run.out)
    for kind in sorted(kinds - {"pairs"}):
        rows = dataset(kind, cfg, scale, run.out)
        run.say(f"{kind}: {len(rows)} rows of {len({row.question for row in rows})} problems")


def supervise_all(run: Run[_Options], exact: Config, scale: Scale, names: list[str]) -> None:
    """The supervised phases of all arms, each kind once for every seed."""
    kinds = {ARMS[name].supervised: name for name in names if ARMS[name].data}
    wanted = [(name, seed) for seed in range(run.args.seeds) for name in kinds.values()]
    tasks = [task for task in wanted if not (sft_folder(run.out, *task) / "adapter").is_dir()]
    with side_by_side(run, "supervised phases", len(wanted), len(wanted) - len(tasks)) as (submit, results):
        for name, seed in tasks:
            folder = sft_folder(run.out, name, seed)
            folder.parent.mkdir(parents=True, exist_ok=True)
            submit(logged, folder.with_suffix(".log"), supervise, name, exact, scale, seed, run.out)
        for _ in results():
            pass


def measure_all(run: Run[_Options], exact: Config, scale: Scale, names: list[str]) -> None:
    """A row in results.jsonl for every arm and seed, all arms under one seed before the next."""
    done = {(row.arm, row.seed) for row in run.rows("results.jsonl", Measured)}
    wanted = [("base", REFERENCE_SEED), *((name, seed) for seed in range(run.args.seeds) for name in names)]
    tasks = [task for task in wanted if task not in done]
    with side_by_side(run, "training runs", len(wanted), len(wanted) - len(tasks)) as (submit, results):
        for name, seed in tasks:
            folder = run_folder(run.out, name, seed)
            folder.mkdir(parents=True, exist_ok=True)
            submit(logged, folder / "log.txt", one, exact, run.config, scale, name, seed, run.out, run.args.problems)
        for made, advance in results():
            run.write("results.jsonl", made)
            advance(0, f"{made.arm}: {sum(made.right) / len(made.right) / SAMPLES:.1%}")


@contextmanager
def side_by_side(run: Run[_Options], label: str, total: int, done: int) -> Iterator[tuple[Any, Any]]:
    """`submit(function, ...)` for processes of --workers at a time, and `results()`: each result as it comes, with the
    progress bar it belongs to.
    """
    context, waiting = multiprocessing.get_context("spawn"), []
    with (
        progress(label, total, done=done) as advance,
        ProcessPoolExecutor(run.args.workers, context, max_tasks_per_child=8) as pool,
    ):

        def submit(*call: Any) -> None:
            waiting.append(pool.submit(*call))

        def results() -> Iterator[tuple[Any, Any]]:
            for future in as_completed(waiting):
                yield future.result(), advance
                advance(1)

        try:
            yield submit, results
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def logged(log: Path, function: Callable[..., Made], *call: Any) -> Made:
    """`function(*call)` on one thread; what it says goes to the file `log`."""
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with log.open("a", buffering=1) as said, redirect_stderr(said):
        return function(*call)


def one(exact: Config, cfg: Config, scale: Scale, name: str, seed: int, out: Path, problems: int) -> Measured:
    """Train (`exact`: sampler and trainer agree) and measure (`cfg`: the model as shipped) one arm under one seed."""
    adapter = train(name, exact, scale, seed, out)
    tests = held_out(problems)
    found = measure(cfg, tests, adapter, seed)
    between = adapter_after_sft(out, name, seed)
    after = None if between is None else surprise_of(cfg, tests, between, seed)
    seen = solved(cfg, pool_of(scale.pool), adapter, seed) if name in ("base", *CLONED, "int") else None
    return Measured(
        name, seed, tuple(found["right"]), found["entropy"], found["tokens"], cost(out, name, seed),
        no_spread(out, name, seed), after, seen,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
