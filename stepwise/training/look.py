"""A look before reinforcement learning: groups of a few dozen problems, and whether any of them can teach something."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepwise.errors import NothingToLearnError
from stepwise.grading import Verdict
from stepwise.runs.progress import announce, stage
from stepwise.stats import wilson
from stepwise.training.crediting import NOT_MIXED, TOO_SHORT, credit_groups, groups_of
from stepwise.training.lora import memory_errors
from stepwise.training.policy import fitted_to, forward
from stepwise.training.relay import rows_of
from stepwise.training.rollouts import RlRollout, grade_rollouts
from stepwise.training.sampler import batch_of

FEWEST_LOOKED_AT = 12
"""Problems; fewer say nothing before training that the first batches do not."""


def look(learner: Any, scheme: str) -> dict[str, int]:
    """Sample groups of `rl.look` problems, or of a batch where a judge must be asked, by the policy of `learner` as it
    is, and say what they are; nothing is trained on them. `scheme` is what the credit scheme is called.

    Raises NothingToLearnError, with what was seen, where no token has an advantage.

    Example:
        counts = look(learner, "outcome")  # of the groups: how many are all right, all wrong, mixed
    """
    rl, labeller = learner.cfg.rl, learner.labeller
    needs = labeller.scheme.needs
    size = rl.look if not needs else max(FEWEST_LOOKED_AT, min(rl.look, rl.problems))
    batch = batch_of(list(learner.problems.values()), size, learner.cfg.seed, 1)
    learner.sampler.attach(learner.trainee)
    with stage("looking at what can be learned"):
        rollouts, _ = learner.sampler.sample(batch, learner.prompts, 0, learner.hints)
        rollouts = grade_rollouts(rollouts, learner.problems, rl.no_answer, learner.reward, rl.strong_cost)
        rows, _ = rows_of(rollouts, learner.prompts)
        learner.cfg = fitted_to(learner.cfg, learner.trainee, rows, learner.memory)
        with memory_errors(learner.cfg.lora):
            logprobs = forward(learner.trainee, rows, learner.cfg)[0] if needs == "evidence" else None
            labels, _, _ = labeller.label(rollouts, logprobs)
    rollouts, _, is_trained = credit_groups(rollouts, labels, labeller.scheme, learner.cfg.seed)
    return _shares(rollouts, is_trained, scheme)


def _shares(rollouts: Sequence[RlRollout], is_trained: Sequence[bool], scheme: str) -> dict[str, int]:
    """What a look at groups before training says: how many groups have no answer at all, are all right, all wrong or
    mixed. Raises NothingToLearnError where no token of any has an advantage under `scheme`.
    """
    kinds = [_kind_of([rollouts[i] for i in group]) for group in groups_of(rollouts)]
    counts = {kind: kinds.count(kind) for kind in ("no answer", "all right", "all wrong", "mixed")}
    parts = []
    for kind, count in counts.items():
        share, low, high = wilson(count, len(kinds))
        parts.append(f"{kind} {share:.0%} ({low:.0%} to {high:.0%})")
    told = f"{len(kinds)} groups of {len(rollouts) // len(kinds)} rollouts: {', '.join(parts)}"
    announce(f"before training: {told}", beside_bar=True)
    if not any(is_trained):
        remedy = TOO_SHORT if counts["no answer"] == len(kinds) else NOT_MIXED
        raise NothingToLearnError(
            f"nothing can be learned: no token has an advantage under {scheme} in {told}; {remedy}"
        )
    return counts


def _kind_of(group: Sequence[RlRollout]) -> str:
    if all(row.verdict in (None, Verdict.NO_ANSWER) for row in group):
        return "no answer"
    if len({row.reward for row in group}) > 1:
        return "mixed"
    return "all right" if group[0].verdict is Verdict.CORRECT else "all wrong"
