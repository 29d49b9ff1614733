"""The training comparison of InT (arXiv 2601.14209) in the lab, at equal training tokens, and the credit schemes.

Arms (--arms; the default leaves some out): the base; more of its own corpus (sham); reinforcement alone; supervised
training on the model's own right solutions, references, self-reflections, the strong model's solutions or
interventions, each followed by reinforcement; what to clone; and reinforcement with credit per step, from true first
errors and from the scorer's. Measured on held-out problems: pass@1 and pass@16, by stratum and family, entropy,
groups without spread. Gains are told over sham. Lab figures: a test bed, no benchmark. Runs go on where they were
stopped; --workers run side by side.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr
from pathlib import Path

from stepwise.config import Config
from stepwise.errors import ConfigError
from stepwise.lab.problems import LabProblem, generate
from stepwise.progress import progress
from stepwise.run import Run, positive, program

from .training_arms import (
    ARMS,
    COLLECTED,
    DEFAULT,
    Scale,
    adapter_after_sft,
    cost,
    dataset,
    gather,
    no_spread,
    run_folder,
    train,
)
from .training_measures import Measured, measure, surprise_of
from .training_tables import show

REFERENCE_SEED = 10_000  # of the base's samples that define the stratum of problems it fails


def arguments(parser: argparse.ArgumentParser) -> None:
    known = "; ".join(ARMS)
    parser.add_argument("--arms", nargs="+", default=DEFAULT, metavar="NAME", help=f"all, or some of: {known}")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of each arm (default: 3)")
    parser.add_argument("--problems", type=positive, default=200, metavar="N", help="held-out problems (default: 200)")
    parser.add_argument("--pool", type=positive, default=240, metavar="N", help="training problems (default: 240)")
    parser.add_argument("--sft-tokens", type=positive, default=80_000, metavar="N", help="with a loss (default: 80k)")
    parser.add_argument("--rl-steps", type=positive, default=50, metavar="N", help="batches of rollouts (default: 50)")
    parser.add_argument("--rl-problems", type=positive, default=8, metavar="N", help="in a batch (default: 8)")
    parser.add_argument("--sft-rate", type=float, default=1e-3, metavar="R", help="learning rate (default: 1e-3)")
    parser.add_argument("--rl-rate", type=float, default=1e-3, metavar="R", help="learning rate (default: 1e-3)")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="runs at a time (default: 2)")


@program(doc=__doc__, arguments=arguments, neutral=("arms", "seeds", "workers"))
def main(run: Run) -> None:
    from stepwise.training.sampler import exact_weights

    args = run.args
    wanted = list(ARMS) if args.arms == ["all"] else args.arms
    unknown = [name for name in wanted if name not in ARMS]
    if unknown:
        raise ConfigError(f"--arms {', '.join(unknown)}: unknown; give some of {'; '.join(ARMS)}")
    scale = Scale(args.pool, args.sft_tokens, args.rl_steps, args.rl_problems, args.sft_rate, args.rl_rate)
    run.path("base-f32.gguf")
    exact = sampled_by(exact_weights(run.config, run.out))
    names = list(dict.fromkeys(["base", *wanted]))
    prepare(run, exact, scale, names)
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


def prepare(run: Run, cfg: Config, scale: Scale, names: list[str]) -> None:
    """The collection and every dataset that the arms need, before any run begins."""
    kinds = {ARMS[name].data for name in names} - {""}
    if any(ARMS[name].sft.get("replay") for name in names):
        kinds.add("rejection")
    if not kinds:
        return
    if kinds & COLLECTED:
        gather(cfg, scale, run.out)
    for kind in sorted(kinds):
        rows = dataset(kind, cfg, scale, run.out)
        run.say(f"{kind}: {len(rows)} rows of {len({row.question for row in rows})} problems")


def measure_all(run: Run, exact: Config, scale: Scale, names: list[str]) -> None:
    """A row in results.jsonl for every arm and seed, all arms under one seed before the next."""
    done = {(row.arm, row.seed) for row in run.rows("results.jsonl", Measured)}
    wanted = [("base", REFERENCE_SEED), *((name, seed) for seed in range(run.args.seeds) for name in names)]
    tasks = [task for task in wanted if task not in done]
    context = multiprocessing.get_context("spawn")
    with (
        progress("training runs", len(wanted)) as advance,
        ProcessPoolExecutor(run.args.workers, context, max_tasks_per_child=1) as pool,
    ):
        advance(len(wanted) - len(tasks))
        try:
            for name, seed in tasks:
                run_folder(run.out, name, seed).mkdir(parents=True, exist_ok=True)
            waiting = [
                pool.submit(one, exact, run.config, scale, name, seed, run.out, run.args.problems)
                for name, seed in tasks
            ]
            for future in as_completed(waiting):
                made = future.result()
                run.write("results.jsonl", made)
                advance.note(f"{made.arm}: {sum(made.right) / len(made.right) / 16:.1%}")
                advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def one(exact: Config, cfg: Config, scale: Scale, name: str, seed: int, out: Path, problems: int) -> Measured:
    """Train (`exact`: sampler and trainer agree) and measure (`cfg`: the model as shipped) one arm under one seed, in a
    process of its own; what it says goes to a file beside it.
    """
    import torch

    torch.set_num_threads(1)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with (run_folder(out, name, seed) / "log.txt").open("a", buffering=1) as log, redirect_stderr(log):
        adapter = train(name, exact, scale, seed, out)
        tests = held_out(problems)
        found = measure(cfg, tests, adapter, seed)
        between = adapter_after_sft(out, name, seed)
        after = None if between is None else surprise_of(cfg, tests, between, seed)
    return Measured(
        name, seed, tuple(found["right"]), found["entropy"], found["tokens"], cost(out, name, seed),
        no_spread(out, name, seed), after,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
