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

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stepwise.config import Config
from stepwise.credit import Credit, Reward, as_credit, as_reward, load_credit
from stepwise.credit.base import RewardFunction
from stepwise.data.problems import check_problems
from stepwise.errors import ConfigError, DataError
from stepwise.io import write_rows
from stepwise.models.caps import Caps, uncapped
from stepwise.runs.directory import RunDirectory, opened
from stepwise.runs.progress import stage
from stepwise.training import losses
from stepwise.training.adapters import base_directory, check_adapter
from stepwise.training.crediting import FIRST_BATCHES, check_learning, credit_groups, groups_of
from stepwise.training.evaluation import NOT_GENERATED
from stepwise.training.labels import Labeller, Locate
from stepwise.training.look import FEWEST_LOOKED_AT, look
from stepwise.training.lora import Trainee, load_trainee, memory_errors, peak_bytes
from stepwise.training.policy import (
    Floats,
    RolloutRow,
    check_teacher,
    fitted_to,
    forward,
    laser_token,
    mismatch_of,
    update,
)
from stepwise.training.relay import RelaySampler, rows_of
from stepwise.training.rollouts import Hints, RlRollout, check_hints, grade_rollouts, rollouts_name
from stepwise.training.sampler import Sampler, batch_of
from stepwise.training.served import ServedSampler
from stepwise.training.trainer import Trainer, check_finite, finish, finished_adapter, run_arguments
from stepwise.types import Problem


def grpo(
    problems: Any,
    cfg: Config | str | Path,
    out: str | Path | RunDirectory,
    *,
    adapter: str | Path | None = None,
    credit: Credit | type[Credit] | None = None,
    reward: Reward | type[Reward] | RewardFunction | None = None,
    scorer: Any = None,
    critic: Any = None,
    locate: Locate | None = None,
    hints: Mapping[str, Sequence[str]] | None = None,
    sinks: Sequence[str] = (),
) -> Path:
    """Train an adapter of `models.weak` on problems with answers; returns the adapter's directory, `out`/adapter.

    `out` is a directory, or one that is open already. `adapter` is a directory of an earlier adapter to go on with.
    `credit` and `reward` are a scheme and a reward of one's own in place of those that [rl] names (see
    `stepwise.credit.base`). What the credit scheme needs beside outcomes comes from `scorer` (a `Scorer`; None: the one
    that [scorer] describes), `critic` (an ErrorLocalizer; None: the one that [critic] describes), or
    `locate(problem, steps)`, which returns the index of the first wrong step or None; the teacher of "distill" is
    models.strong. `sinks` are names for `stepwise.training.sinks`. The same call goes on where it was stopped.

    `hints` are steps by problem id that are written ahead of every rollout of that problem, such as the right prefix of
    an attempt and its intervention. They are part of what is graded and nothing on them is trained; schemes "outcome"
    and "distill" take them.

    A step that would pass a cap of [budget], with what all starts have spent, ends the run at a checkpoint, and it goes
    on from there when the cap is raised.

    `out`/metrics.jsonl has a row per step, `out`/rollouts the rollouts with their credit. Raises, before anything is
    computed, DataError for problems or hints that cannot be used and an adapter of another base, ConfigError for
    models, settings or a missing judge; later BudgetExceededError at a cap, BackendError where sampler and trainer
    disagree, or memory runs out, DataError where the loss is not finite, NothingToLearnError where the first batches
    can teach nothing.

    Example:
        adapter = grpo("problems.jsonl", sw.Config.load("config.toml", ["rl.credit.scheme=vppo"]), "out/rl")
    """
    cfg = Config.of(cfg, "cfg")
    checked = check_problems(problems)
    if checked.excluded:
        shown = "; ".join(f"{name}: {why}" for name, why in [*checked.excluded.items()][:3])
        count = len(checked.excluded)
        raise DataError(f"{count} problems cannot be graded ({shown}); leave them out, or mend their answers")
    by_id = {problem.id: problem for problem in checked.problems}
    scheme = load_credit(cfg.rl.credit) if credit is None else as_credit(credit)
    pays = cfg.rl.reward if reward is None else reward
    own_reward = None if pays is None else as_reward(pays, "rl.reward" if reward is None else "reward")
    hints = check_hints(hints or {}, checked.problems, cfg.rl.credit, cfg.prompt.splitter)
    hinted = [{"problem": name, "steps": list(steps)} for name, steps in hints.items()]
    arguments = run_arguments(adapter, problems=checked.problems, hints=hinted)
    handed_in = {"credit": credit, "reward": reward}
    for name, value in handed_in.items():
        if value is not None:
            named: Any = value if hasattr(value, "__qualname__") else type(value)
            arguments[name] = f"{named.__module__}:{named.__qualname__}"
    with opened(out, program="grpo", config=uncapped(cfg), arguments=arguments) as directory, ExitStack() as stack:
        if (finished := finished_adapter(directory, str(arguments["data"]))) is not None:
            return finished
        if adapter is not None:
            check_adapter(adapter, base_directory(cfg.models.weak), cfg.prompt)
        if cfg.rl.marker and scheme.needs:
            raise ConfigError(
                f"rl.credit.scheme needs {scheme.needs}, and with rl.marker not all steps are the policy's; set outcome"
            )
        Labeller.judge_asked(cfg, scheme.needs, scorer=scorer, critic=critic, locate=locate)
        caps = Caps(cfg, directory, are_results=False)
        samples = ServedSampler if not cfg.models.weak.local else RelaySampler if cfg.rl.marker else Sampler
        sampler = stack.enter_context(samples(cfg, ledger=caps.ledger))
        trainee = load_trainee(cfg, adapter=adapter)
        prompts = sampler.prompts(checked.problems, trainee, hints)
        labeller = Labeller(
            cfg, by_id, prompts, sampler, trainee, scheme=scheme, scorer=scorer, critic=critic, locate=locate
        )
        stack.callback(labeller.close)
        if labeller.teacher is not None:
            plain = sampler.prompts(checked.problems, trainee)
            check_teacher(labeller.teacher, sampler.engine, checked.problems, plain, cfg)
        learner = _Learner(cfg, by_id, prompts, hints, sampler, trainee, labeller, own_reward)
        plan = f"{len(by_id)} problems: {cfg.rl.steps} batches of {min(cfg.rl.problems, len(by_id))} x {cfg.rl.group} "
        plan += f"rollouts, learning rate {cfg.rl.learning_rate:g}"
        with Trainer(
            directory, trainee, cfg, learner.optimizer, num_steps=cfg.rl.steps, save_every=cfg.rl.save_every,
            save_minutes=cfg.rl.save_minutes, data=str(arguments["data"]), label="reinforcement learning", plan=plan,
            sinks=sinks,
        ) as run:  # fmt: skip
            learner.laser_constant = run.state.setdefault("laser_constant", None)
            learner.memory = run.state
            if not run.done and min(cfg.rl.look, len(by_id)) >= FEWEST_LOOKED_AT:
                run.state["look"] = look(learner, cfg.rl.credit.scheme if credit is None else type(scheme).__name__)
            for step in range(run.done + 1, cfg.rl.steps + 1):
                caps.check(step - 1, 1, "steps")
                row, rollouts = learner.step(step, run.failed)
                write_rows(directory.claim(rollouts_name(step)), rollouts)
                run.state["laser_constant"] = learner.laser_constant
                if step <= FIRST_BATCHES:
                    check_learning(run.state, row, rollouts, scheme, last=min(FIRST_BATCHES, cfg.rl.steps))
                run.log(row, _note(row))
        return finish(directory, trainee, cfg, "grpo", {"problems": checked.problems, "hints": hinted})


@dataclass
class _Learner:
    """A policy and all that a step of learning works with: problems, prompts (token ids) and hints by problem id."""

    cfg: Config
    problems: Mapping[str, Problem]
    prompts: Mapping[str, tuple[int, ...]]
    hints: Hints
    sampler: Sampler
    trainee: Trainee
    labeller: Labeller
    reward: Reward | None = None
    memory: dict[str, Any] = field(default_factory=dict)  # what the run keeps of how many tokens fit
    laser_constant: float | None = None
    """LaSeR: mean log-probability of its token under the base, None until the first step has measured it"""

    def __post_init__(self) -> None:
        self.optimizer = self.trainee.optimizer(self.cfg.rl.learning_rate)
        self.mark = laser_token(self.cfg, self.trainee)

    def step(self, step: int, failed: Path) -> tuple[dict[str, Any], list[RlRollout]]:
        """Step `step` (from 1 on): the row of its metrics, and its rollouts.

        Raises BackendError where the sampler fails, where it does not agree with the trainer at the first step, or
        where memory runs out; DataError for a loss that is not finite, with its rollouts in `failed`.
        """
        cfg, rl = self.cfg, self.cfg.rl
        start_time = time.monotonic()

        # Sample: a group of solutions of each problem, from the policy as it is now.
        self.sampler.attach(self.trainee)
        self.labeller.reset_cache()
        batch = batch_of(list(self.problems.values()), rl.problems, cfg.seed, step)
        rollouts, prompted = self.sampler.sample(batch, self.prompts, step, self.hints)

        # Grade: reward 1 or 0, None for what could not be judged.
        rollouts = grade_rollouts(rollouts, self.problems, rl.no_answer, self.reward, rl.strong_cost)
        sampled = time.monotonic()
        plain, owners = rows_of(rollouts, self.prompts)
        cfg = self.cfg = fitted_to(cfg, self.trainee, plain, self.memory)

        # Label: what the credit scheme wants to know of each step.
        with memory_errors(cfg.lora):
            logprobs, self_scores, evaluated = self._own_pass(plain, step)
            labels, usage, labeller_size = self.labeller.label(rollouts, logprobs)
        if isinstance(self.sampler, RelaySampler):
            usage, labeller_size = self.sampler.spent, self.sampler.strong_parameters

        # Credit: outcomes and labels become advantages per token, (T,) for each rollout.
        rollouts, advantages, is_trained = credit_groups(
            rollouts, labels, self.labeller.scheme, cfg.seed, self_scores=self_scores, share=rl.laser_mix
        )
        labelled = time.monotonic()

        # Update: one or a few steps of the optimizer on the rollouts that are kept (with LaSeR all that have a reward).
        lengths = [int(row.sampled.sum()) for row in rollouts]
        weights = losses.rollout_weights(lengths, rl.loss, rl.max_tokens)
        classes = [0.0] * len(rollouts) if self.mark is None else losses.class_weights([row.reward for row in rollouts])
        every, _ = rows_of(rollouts, self.prompts, advantages, weights, classes)
        places = [place for place, i in enumerate(owners) if is_trained[i] or classes[i]]
        rows = [every[place] for place in places]
        mismatch = None if logprobs is None else mismatch_of(logprobs, every)
        figures: dict[str, float] = {}
        if rows:
            with memory_errors(cfg.lora), stage("updating"):
                evaluated += self._references(rows, None if logprobs is None else [logprobs[place] for place in places])
                figures, first = update(
                    self.trainee,
                    rows,
                    cfg,
                    lambda: self.trainee.step(self.optimizer, _rate(cfg, step), rl.clip_norm),
                    lambda part, values: check_finite(values, [rollouts[owners[places[i]]] for i in part], failed),
                    None if self.mark is None else (self.mark, self.laser_constant or 0.0),
                )
            old = [line if row.old is None else row.old for row, line in zip(rows, first, strict=True)]
            mismatch = mismatch or mismatch_of(old, rows)
        done = time.monotonic()

        # Tokens by what was done with them, and the floating-point operations of all of it: 2 per parameter and token
        # that is decoded or evaluated, 6 where it is trained (None where a judge's size is not known).
        generated, trained = sum(lengths), rl.updates * sum(row.length for row in rows)
        size = self.sampler.engine.parameters
        flops = 2 * size * (generated + prompted + evaluated) + 6 * size * trained
        extra = usage.generated_tokens + usage.evaluated_tokens
        row = {
            "step": step,
            **_figures_of(rollouts, is_trained, rl.marker is not None),
            **{name: figures.get(name) for name in ("entropy", "loss", "grad_norm", "clip_share")},
            "kl": figures.get("kl") if rl.kl else None,
            "mismatch": mismatch and mismatch.mean,
            "mismatch_kl": mismatch and mismatch.kl,
            "ess": mismatch and mismatch.ess,
            "generated_tokens": generated,
            "evaluated_tokens": prompted + evaluated,
            "trained_tokens": rl.updates * sum(int(row.mask.sum()) for row in rows),
            "extra_tokens": extra,
            "flops": None if labeller_size is None else flops + 2.0 * labeller_size * extra,
            "learning_rate": _rate(cfg, step),
            "generate_seconds": round(sampled - start_time, 4),
            "extra_seconds": round(labelled - sampled, 4),
            "train_seconds": round(done - labelled, 4),
            "peak_bytes": peak_bytes(self.trainee.device),
        }
        return row, rollouts

    def _own_pass(self, rows: Sequence[RolloutRow], step: int) -> tuple[list[Floats] | None, list[float] | None, int]:
        """The trainer's own log-probabilities of all rows, where anything needs them, LaSeR's self-scores, and how
        many tokens went through the model for both; at the first step it checks the sampler.
        """
        cfg, laser = self.cfg, self.mark is not None
        if step > 1 and not laser and self.labeller.scheme.needs != "evidence":
            return None, None, 0
        evaluated = sum(row.length for row in rows)
        logprobs, marks = forward(self.trainee, rows, cfg, mark=self.mark)
        if step == 1 and cfg.rl.correction == "none":
            self.sampler.check_agreement(mismatch_of(logprobs, rows), self.trainee)
        if not laser:
            return logprobs, None, evaluated
        if self.laser_constant is None:
            _, of_base = forward(self.trainee, rows, cfg, mark=self.mark, base=True)
            self.laser_constant, evaluated = float(np.mean(of_base)), 2 * evaluated
        return logprobs, [losses.LASER_BETA * (mark - self.laser_constant) for mark in marks], evaluated

    def _references(self, rows: Sequence[RolloutRow], logprobs: Sequence[Floats] | None) -> int:
        """Give `rows` what the loss compares with; returns how many tokens that took. `own` is their own pass."""
        cfg, rl, evaluated = self.cfg, self.cfg.rl, 0
        if logprobs is None and (rl.updates > 1 or rl.correction != "none"):
            logprobs, _ = forward(self.trainee, rows, cfg)
            evaluated += sum(row.length for row in rows)
        if logprobs is not None:
            for row, old in zip(rows, logprobs, strict=True):
                # With one update the loss's own log-probabilities are the old ones, to the last digit.
                row.old = old if rl.updates > 1 else None
                if rl.correction != "none":
                    cap = rl.correction_cap
                    row.correction = losses.importance_weights(old, row.sampler, rl.correction, cap).numpy()
        if rl.kl:
            of_base, _ = forward(self.trainee, rows, cfg, base=True)
            evaluated += sum(row.length for row in rows)
            for row, base in zip(rows, of_base, strict=True):
                row.base = base
        return evaluated


def _rate(cfg: Config, step: int) -> float:
    """Learning rate of step `step` (from 1 on)."""
    return cfg.rl.learning_rate * min(1.0, step / (cfg.rl.warmup + 1))


def _figures_of(rollouts: Sequence[RlRollout], is_trained: Sequence[bool], relayed: bool) -> dict[str, Any]:
    """What a step's rollouts came to, for its metrics."""
    rewards = [row.reward for row in rollouts if row.reward is not None]
    groups = groups_of(rollouts)
    spreads = [{rollouts[i].reward for i in group} - {None} for group in groups]
    return {
        "reward": float(np.mean(rewards)) if rewards else None,
        "groups": len(groups),
        "kept_groups": sum(any(is_trained[i] for i in group) for group in groups),
        "no_spread": sum(len(spread) < 2 for spread in spreads) / len(groups),
        "masked": sum(row.reward is None and not k for row, k in zip(rollouts, is_trained, strict=True)),
        "verdicts": dict(sorted(Counter(str(row.verdict or NOT_GENERATED) for row in rollouts).items())),
        "length": float(np.mean([row.sampled.sum() for row in rollouts])),
        **({"strong_tokens": float(np.mean([row.strong_tokens for row in rollouts]))} if relayed else {}),
    }


def _note(row: Mapping[str, Any]) -> str:
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
