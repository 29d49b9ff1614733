"""One step of reinforcement learning: sample, grade, credit, update; and what is written down of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwise.config import Config
from stepwise.training import losses
from stepwise.training.crediting import Credited, credit_groups
from stepwise.training.evaluation import NOT_GENERATED
from stepwise.training.extras import Cost, gather
from stepwise.training.learner import Learner
from stepwise.training.optimizing import apply_gradients, check_finite, memory_errors, peak_bytes
from stepwise.training.policy import Floats, Pass, PolicyRow, Reference, UpdateResult, forward, update
from stepwise.training.rollouts import RlRollout, grade_rollouts, sample_groups
from stepwise.training.sampler import check_agreement


@dataclass(frozen=True, eq=False)
class Looked:
    """The trainer's pass over all rollouts before any update: None where no use was made of one."""

    own: Pass | None = None
    base_tokens: int = 0
    scores: list[float] | None = None

    @property
    def tokens(self) -> int:
        """Tokens that went through the model."""
        return self.base_tokens + (self.own.tokens if self.own else 0)


def batch_of(names: Sequence[str], size: int, seed: int, step: int) -> list[str]:
    """The problems of step `step` (from 1 on): every pass over `names` is shuffled anew, and what is left of it over
    whole batches is passed over, so that no problem is twice in a batch.
    """
    size = min(size, len(names))
    epoch, place = divmod(step - 1, len(names) // size)
    order = list(names)
    random.Random(f"{seed}|rl|{epoch}").shuffle(order)
    return order[place * size : (place + 1) * size]


def rl_step(run: Learner, step: int) -> tuple[dict[str, Any], list[RlRollout]]:
    """Step `step` (from 1 on): the row of its metrics, and its rollouts.

    Raises BackendError where the sampler fails, where it does not agree with the trainer at the first step, or where
    memory runs out; DataError for a loss that is not finite, with its rollouts on disk.
    """
    cfg, rl = run.cfg, run.cfg.rl
    began = time.monotonic()
    run.sampler.attach(run.trainee)
    run.judges.forget()
    batch = [run.problems[name] for name in batch_of(list(run.problems), rl.problems, cfg.seed, step)]
    rollouts, prompted = sample_groups(
        batch, run.prompts, run.sampler.engine, rl, seed=cfg.seed, step=step, hints=run.hints
    )
    rollouts = grade_rollouts(rollouts, run.problems, rl.no_answer)
    sampled = time.monotonic()
    with memory_errors(cfg.lora):
        looked = _look(run, rollouts, step)
        known, cost = gather(run, rollouts, None if looked.own is None else looked.own.logprobs)
    credited = credit_groups(rollouts, known, cfg.rl.credit, cfg.seed, self_scores=looked.scores, share=rl.laser_mix)
    found = time.monotonic()
    with memory_errors(cfg.lora):
        updated, differs, passed = _train(run, credited, looked, step)
    done = time.monotonic()
    row = {
        "step": step,
        **_about_rollouts(credited),
        **_about_update(updated, differs, cfg),
        **_about_tokens(run, credited, prompted, looked.tokens + passed, updated, cost),
        "learning_rate": rate(cfg, step),
        "generate_seconds": round(sampled - began, 4),
        "extra_seconds": round(found - sampled, 4),
        "train_seconds": round(done - found, 4),
        "peak_bytes": peak_bytes(run.trainee.device),
    }
    return row, credited.rollouts


def rate(cfg: Config, step: int) -> float:
    """Learning rate of step `step` (from 1 on)."""
    return cfg.rl.learning_rate * min(1.0, step / (cfg.rl.warmup + 1))


def _look(run: Learner, rollouts: Sequence[RlRollout], step: int) -> Looked:
    """The trainer's pass over all rollouts, where anything needs it; at the first step it checks the sampler."""
    cfg, laser = run.cfg, run.mark is not None
    if step > 1 and not laser and cfg.rl.credit.scheme != "oppo":
        return Looked()
    rows = [run.row(row) for row in rollouts]
    own = forward(run.trainee, rows, cfg, mark=run.mark)
    if step == 1 and cfg.rl.correction == "none":
        check_agreement(_mismatch(own.logprobs, rows), cfg, run.trainee)
    if not laser:
        return Looked(own)
    base_tokens = 0
    if run.constant is None:
        base = forward(run.trainee, rows, cfg, mark=run.mark, base=True)
        run.constant, base_tokens = float(np.mean(base.marks or [0.0])), base.tokens
    scores = [losses.LASER_BETA * (mark - run.constant) for mark in own.marks or []]
    return Looked(own, base_tokens, scores)


def _train(
    run: Learner, credited: Credited, looked: Looked, step: int
) -> tuple[UpdateResult | None, losses.Mismatch | None, int]:
    """The updates on the rollouts that are kept; None where there is none. With how far the trainer was from
    the sampler, and how many tokens passes without gradients took.
    """
    cfg, rl = run.cfg, run.cfg.rl
    weights = losses.rollout_weights([len(row.token_ids) for row in credited.rollouts], rl.loss, rl.max_tokens)
    of_class = losses.class_weights([row.reward for row in credited.rollouts]) if run.mark is not None else None
    chosen = [
        i for i, row in enumerate(credited.rollouts)
        if credited.kept[i] or (of_class is not None and row.reward is not None)
    ]  # fmt: skip
    rows = [
        run.row(credited.rollouts[i], credited.advantages[i], weights[i], of_class[i] if of_class else 0.0)
        for i in chosen
    ]
    every = [run.row(row) for row in credited.rollouts]
    whole = None if looked.own is None else _mismatch(looked.own.logprobs, every)
    if not rows:
        return None, whole, 0
    known, passed = _reference(run, rows, chosen, looked)

    def apply() -> float:
        return apply_gradients(run.trainee, run.optimizer, rate(cfg, step), rl.clip_norm)

    def check(part: Sequence[int], values: Mapping[str, float]) -> None:
        check_finite(values, [credited.rollouts[chosen[i]] for i in part], run.failed)

    updated = update(run.trainee, rows, cfg, known, apply, check)
    differs = whole or _mismatch(known.old or updated.first, rows)
    return updated, differs, passed


def _reference(run: Learner, rows: Sequence[PolicyRow], chosen: Sequence[int], looked: Looked) -> tuple[Reference, int]:
    """What the loss compares with, and how many tokens that took."""
    import torch

    cfg, rl = run.cfg, run.cfg.rl
    old, tokens = None, 0
    if looked.own is not None:
        old = [looked.own.logprobs[i] for i in chosen]
    elif rl.updates > 1 or rl.correction != "none":
        first = forward(run.trainee, rows, cfg)
        old, tokens = first.logprobs, first.tokens
    base = None
    if rl.kl:
        reference = forward(run.trainee, rows, cfg, base=True)
        base, tokens = reference.logprobs, tokens + reference.tokens
    correction = None
    if rl.correction != "none" and old is not None:
        correction = [
            losses.importance_weights(
                torch.from_numpy(mine), torch.from_numpy(row.sampler), rl.correction, rl.correction_cap
            ).numpy()
            for mine, row in zip(old, rows, strict=True)
        ]
    # With one update the loss's own log-probabilities are the old ones, to the last digit.
    return Reference(old if rl.updates > 1 else None, base, correction, run.mark, run.constant or 0.0), tokens


def _mismatch(trainer: Sequence[Floats], rows: Sequence[PolicyRow]) -> losses.Mismatch:
    import torch

    mine, theirs = np.concatenate(list(trainer)), np.concatenate([row.sampler for row in rows])
    return losses.mismatch(torch.from_numpy(mine), torch.from_numpy(theirs))


def _about_rollouts(credited: Credited) -> dict[str, Any]:
    rewards = [row.reward for row in credited.rollouts if row.reward is not None]
    lost = [row.reward is None and not kept for row, kept in zip(credited.rollouts, credited.kept, strict=True)]
    return {
        "reward": float(np.mean(rewards)) if rewards else None,
        "groups": credited.groups,
        "kept_groups": credited.kept_groups,
        "no_spread": credited.no_spread / credited.groups,
        "masked": sum(lost),
        "verdicts": dict(sorted(Counter(str(row.verdict or NOT_GENERATED) for row in credited.rollouts).items())),
        "length": float(np.mean([len(row.token_ids) for row in credited.rollouts])),
    }


def _about_update(made: UpdateResult | None, differs: losses.Mismatch | None, cfg: Config) -> dict[str, Any]:
    return {
        "entropy": made and made.entropy,
        "loss": made and made.loss,
        "grad_norm": made and made.grad_norm,
        "clip_share": made and made.clipped / made.tokens,
        "kl": made.divergence / made.tokens if made and cfg.rl.kl else None,
        "mismatch": differs and differs.mean,
        "mismatch_kl": differs and differs.kl,
        "ess": differs and differs.ess,
    }


def _about_tokens(
    run: Learner, credited: Credited, prompted: int, passed: int, made: UpdateResult | None, cost: Cost
) -> dict[str, Any]:
    """Tokens by what was done with them, and the floating-point operations of all of it: 2 per parameter and token that
    is decoded or evaluated, 6 where it is trained (None where a model's size is not known).
    """
    size = run.sampler.engine.parameters
    generated, trained = sum(len(row.token_ids) for row in credited.rollouts), made.passed if made else 0
    own = 2 * size * (generated + prompted + passed) + 6 * size * trained
    return {
        "generated_tokens": generated,
        "evaluated_tokens": prompted + passed,
        "trained_tokens": made.tokens if made else 0,
        "extra_tokens": cost.generated + cost.evaluated,
        "flops": None if cost.flops is None else own + cost.flops,
    }
