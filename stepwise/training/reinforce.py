"""Reinforcement learning from verified outcomes, with credit per step, on one machine.

A step samples a group of solutions for each of some problems, grades them, turns outcomes (and what else the credit
scheme wants to know) into advantages per token, and changes the adapter by one or a few steps of the optimizer. What
differs from GRPO (arXiv 2402.03300) and the trainers that have it:

1. Advantages are per token, (B, T), made from the steps of each rollout (`stepwise.credit`).
2. The loss defaults to Dr. GRPO's constant normaliser (2503.20783), without a divergence from the base.
3. A group is dropped where no token of it has an advantage, not where its outcomes are equal.
4. The sampler is llama.cpp with the adapter attached. That it computes what the trainer computes is checked at the
   first step, within a tolerance for its weights and cache, or corrected for and logged.
5. Nothing random is carried from step to step: problems, samples and so a whole run follow from the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config import Config
from stepwise.errors import ConfigError, DataError
from stepwise.models.store import key_of
from stepwise.training.fitting import check_same
from stepwise.training.hints import Hints, check_hints
from stepwise.training.judges import Locate, load_judges
from stepwise.training.learner import Learner
from stepwise.training.lora import base_directory, load_trainee
from stepwise.training.optimizing import keep_rows, make_optimizer
from stepwise.training.rl_step import rl_step
from stepwise.training.rollouts import rollouts_name, write_rollouts
from stepwise.training.sampler import Sampler, exact_weights
from stepwise.training.state import claim_state, load_state, save_state
from stepwise.training.teacher import check_teacher
from stepwise.types import Problem, to_json

if TYPE_CHECKING:
    from stepwise.runs.directory import RunDirectory

__all__ = ["describe", "exact_weights", "grpo", "grpo_in"]


def grpo(
    problems: Iterable[Problem],
    cfg: Config,
    out: str | Path,
    *,
    adapter: str | Path | None = None,
    scorer: Any = None,
    critic: Any = None,
    locate: Locate | None = None,
    hints: Mapping[str, Sequence[str]] | None = None,
    sinks: Sequence[str] = (),
) -> Path:
    """Train an adapter of `models.weak` on problems with answers; returns the adapter's directory, `out`/adapter.

    `adapter` is a directory of an earlier adapter to go on with. What the credit scheme needs beside outcomes comes
    from `scorer` (a `Scorer`; None: the one that [scorer] describes), `critic` (an ErrorLocalizer;
    None: the one that [critic] describes), or `locate(problem, steps)`, which returns the index of the first wrong step
    or None; the teacher of "distill" is models.strong. `sinks` are names for `stepwise.training.sinks`. The same call
    goes on where it was stopped.

    `hints` are steps by problem id that are written ahead of every rollout of that problem, such as the right prefix of
    an attempt and its intervention. They are part of what is graded and nothing on them is trained; schemes "outcome"
    and "distill" take them.

    `out`/metrics.jsonl has a row per step, `out`/rollouts the rollouts with their credit. Raises, before anything is
    computed, DataError for problems or hints that cannot be used and an adapter of another base, ConfigError for
    models, settings or a missing judge; later BackendError where sampler and trainer disagree, or memory runs out, and
    DataError where the loss is not finite.
    """
    from stepwise.runs.directory import opened

    known = check_trainable(problems)
    hints = check_hints(hints or {}, known, cfg.rl.credit)
    with opened(out, program="grpo", config=cfg, arguments=describe(known, adapter, hints)) as directory:
        return grpo_in(
            directory,
            known,
            cfg,
            adapter=adapter,
            scorer=scorer,
            critic=critic,
            locate=locate,
            hints=hints,
            sinks=sinks,
        )


def describe(problems: Sequence[Problem], adapter: str | Path | None, hints: Hints | None = None) -> dict[str, Any]:
    """What makes a run the same run: a hash of its problems and their hints, and where it starts."""
    told = {name: list(steps) for name, steps in (hints or {}).items()}
    digest = key_of({"problems": [to_json(problem) for problem in problems], **({"hints": told} if told else {})})
    made = {"problems": len(problems), "data": digest, "adapter": str(adapter) if adapter else None}
    return made | ({"hints": len(told)} if told else {})


def check_trainable(problems: Iterable[Problem]) -> list[Problem]:
    """The problems, if all of them can be graded; DataError with those that cannot."""
    from stepwise.data.problems import check_problems

    checked = check_problems(problems)
    if checked.excluded:
        shown = "; ".join(f"{name}: {why}" for name, why in list(checked.excluded.items())[:3])
        raise DataError(
            f"{len(checked.excluded)} problems cannot be graded ({shown}); leave them out, or mend their answers"
        )
    return list(checked.problems)


def grpo_in(
    directory: RunDirectory,
    problems: Sequence[Problem],
    cfg: Config,
    *,
    adapter: str | Path | None = None,
    scorer: Any = None,
    critic: Any = None,
    locate: Locate | None = None,
    hints: Mapping[str, Sequence[str]] | None = None,
    sinks: Sequence[str] = (),
) -> Path:
    """`grpo` in a directory that is open already, as a program's is."""
    from stepwise.training.finishing import finish
    from stepwise.training.identity import check_adapter

    problems = check_trainable(problems)
    hints = check_hints(hints or {}, problems, cfg.rl.credit)
    if adapter is not None:
        check_adapter(adapter, base_directory(cfg.models.weak), cfg.prompt)
    with ExitStack() as stack:
        judges = load_judges(cfg, scorer, critic, locate)
        stack.callback(judges.close)
        sampler = stack.enter_context(Sampler(cfg))
        trainee = load_trainee(cfg, adapter=adapter)
        if judges.teacher is not None:
            check_teacher(judges.teacher, sampler.engine, problems, sampler.prompts(problems, trainee), cfg)
        run = Learner(
            cfg, trainee, make_optimizer(trainee, cfg.rl.learning_rate), sampler, judges,
            {problem.id: problem for problem in problems}, sampler.prompts(problems, trainee, hints),
            directory.claim("failed-batch.jsonl"), hints, _mark(cfg, trainee),
        )  # fmt: skip
        _steps(run, directory, sinks, data=str(describe(problems, adapter, hints)["data"]))
        told = [{"problem": name, "steps": list(steps)} for name, steps in hints.items()]
        return finish(directory, trainee, cfg, method="grpo", data=[("problems", problems), ("hints", told)])


def _steps(run: Learner, directory: RunDirectory, sinks: Sequence[str], *, data: str) -> None:
    """All steps from the last checkpoint on, which names `data` (a hash); DataError where it names other data."""
    from stepwise.io import append_rows
    from stepwise.runs.progress import progress
    from stepwise.training.sinks import open_sinks

    cfg, out = run.cfg, directory.made()
    checkpoint, metrics = claim_state(directory), directory.claim("metrics.jsonl")
    done, kept = load_state(checkpoint, run.trainee, run.optimizer) or (0, {})
    check_same(checkpoint, kept.get("data", data), data)
    run.constant = kept.get("laser_constant")
    keep_rows(metrics, done)
    with ExitStack() as stack:
        others = stack.enter_context(open_sinks(sinks, out, out.name, cfg.model_dump(mode="json")))
        bar = stack.enter_context(progress("reinforcement learning", cfg.rl.steps))
        bar(done)
        for step in range(done + 1, cfg.rl.steps + 1):
            row, rollouts = rl_step(run, step)
            write_rollouts(directory.claim(rollouts_name(step)), rollouts)
            append_rows(metrics, [row])
            others.log(step, row)
            bar.note(note(row))
            bar(1)
            if step % cfg.rl.save_every == 0 or step == cfg.rl.steps:
                save_state(checkpoint, step, run.trainee, run.optimizer, {"laser_constant": run.constant, "data": data})


def note(row: dict[str, Any]) -> str:
    """How a step went, in one short line."""

    def speed(tokens: str, seconds: str) -> str:
        return f"{row[tokens] / row[seconds]:,.0f}" if row[seconds] else "-"

    parts = [
        "no reward" if row["reward"] is None else f"reward {row['reward']:.2f}",
        f"kept {row['kept_groups']}/{row['groups']}",
        "" if row["entropy"] is None else f"entropy {row['entropy']:.2f}",
        "" if row["mismatch"] is None else f"mismatch {row['mismatch']:.1g}",
        f"{speed('generated_tokens', 'generate_seconds')} + {speed('trained_tokens', 'train_seconds')} tokens/s",
        f"{row['peak_bytes'] / 2**30:.1f} GiB",
    ]
    return ", ".join(part for part in parts if part)


def _mark(cfg: Config, trainee: Any) -> int | None:
    """LaSeR's token: a reserved one that no text has; None where LaSeR is off."""
    if not cfg.rl.laser:
        return None
    for name in RESERVED:
        found = trainee.tokenizer.convert_tokens_to_ids(name)
        if found is not None and found != trainee.tokenizer.unk_token_id:
            return int(found)
    raise ConfigError(
        f"rl.laser is {cfg.rl.laser}, but the tokenizer in {trainee.base} has none of the tokens "
        f"{', '.join(RESERVED)}; set rl.laser = 0"
    )


RESERVED = ("<|reserved_0|>", "<|vision_pad|>", "<|reserved_special_token_0|>", "<|fim_pad|>")
"""Tokens of the lab, Qwen and Llama 3 that solutions never hold, in the order of preference."""
