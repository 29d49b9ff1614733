"""From rollouts to advantages per token: groups for `stepwise.credit`, and which of them are trained on.

A credit scheme wants every step to have a token of its own. Where one token holds a whole step besides the end of the
one before (see `rollouts`), the two count as one step: right if both are, wrong if either is. A rollout that has a
reward but no step at all counts as one step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

import numpy as np

from stepwise import credit
from stepwise.config.training import CreditConfig
from stepwise.credit import Group
from stepwise.credit.group import Array
from stepwise.seeds import seed_for
from stepwise.training.rollouts import RlRollout, Spans

T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """What is known of one rollout's steps besides its outcome; a field that the scheme does not need stays None.

    One entry per step of the rollout's text, one for a text without steps: `scores`, `critiques` (the steps that each
    critique calls wrong); `values` has one more, see `credit.Group`; `evidence` and `teacher` (T,) have one per token.
    `first_error` None means that none was found, or none was looked for. `failed` says why nothing can be known: then
    the rollout is masked.
    """

    first_error: int | None = None
    scores: tuple[float, ...] | None = None
    values: tuple[float, ...] | None = None
    critiques: tuple[tuple[int, ...], ...] | None = None
    evidence: Array | None = None
    teacher: Array | None = None
    failed: str = ""


@dataclass(frozen=True)
class Credited:
    """The rollouts of a step with their credit. `advantages` has one array per rollout, one entry per token.

    `kept` says of each rollout whether it is trained on: whether any token of its group has an advantage, and it has a
    reward or an advantage itself. `groups` of them there are, in `kept_groups` is a signal, in `no_spread` all known
    outcomes are equal.
    """

    rollouts: list[RlRollout]
    advantages: list[Array]
    kept: list[bool]
    groups: int
    kept_groups: int
    no_spread: int


@dataclass
class _Parts:
    rollouts: list[RlRollout] = field(default_factory=list)
    advantages: list[Array] = field(default_factory=list)
    kept: list[bool] = field(default_factory=list)


def credit_groups(
    rollouts: Sequence[RlRollout],
    known: Sequence[Known],
    cfg: CreditConfig,
    seed: int,
    *,
    self_scores: Sequence[float] | None = None,
    share: float = 0.0,
) -> Credited:
    """Advantages of all groups of a step; the rollouts of a problem stand together.

    `self_scores` are LaSeR's, one per rollout, which take the `share` of the advantage. Raises DataError where what
    the scheme needs is not `known`.
    """
    parts, groups, kept_groups, no_spread = _Parts(), 0, 0, 0
    for start, stop in _groups(rollouts):
        rows = [_masked(row, what) for row, what in zip(rollouts[start:stop], known[start:stop], strict=True)]
        group = make_group(rows, known[start:stop])
        found = credit.advantages(group, cfg, seed_for(seed, rows[0].problem, "credit", rows[0].step))
        if self_scores is not None:
            found = mixed_advantages(found, group, np.asarray(self_scores[start:stop]), share)
        signal = credit.has_signal(found)
        rewards = {row.reward for row in rows if row.reward is not None}
        groups, kept_groups, no_spread = groups + 1, kept_groups + signal, no_spread + (len(rewards) < 2)
        for row, what, line in zip(rows, known[start:stop], found, strict=True):
            mine = line[: len(row.token_ids)]
            parts.advantages.append(mine)
            parts.kept.append(signal and (row.reward is not None or credit.has_signal(mine)))
            parts.rollouts.append(_told(row, what, mine))
    return Credited(parts.rollouts, parts.advantages, parts.kept, groups, kept_groups, no_spread)


def make_group(rows: Sequence[RlRollout], known: Sequence[Known]) -> Group:
    """One problem's rollouts (B) as credit schemes take them; T is the most tokens of one.

    Fields that are None for a rollout with a reward are None in the group.
    """
    lengths = np.array([len(row.token_ids) for row in rows])
    mask = np.arange(max(lengths))[None, :] < lengths[:, None]
    rewards = np.array([np.nan if row.reward is None else row.reward for row in rows])
    merged = [_merged(row, what) for row, what in zip(rows, known, strict=True)]
    spans = tuple(spans for spans, _ in merged)
    found = [what for _, what in merged]
    return Group(
        rewards,
        mask,
        spans,
        scores=_column([what.scores for what in found], rewards),
        first_error=tuple(what.first_error for what in found),
        values=_column([what.values for what in found], rewards),
        critiques=_column([what.critiques for what in found], rewards),
        evidence=_padded([what.evidence for what in found], rewards, mask.shape),
        teacher=_padded([what.teacher for what in found], rewards, mask.shape),
    )


def mixed_advantages(advantages: Array, group: Group, scores: Array, share: float) -> Array:
    """LaSeR's advantages (B, T): (1 - `share`) A + `share` A_s on sampled tokens, where A_s is a rollout's self-score
    (B,) less the mean of the group's, over rollouts with a reward (arXiv 2510.14943).
    """
    known = group.rewarded
    if not known.any():
        return advantages
    own = np.where(known, scores - scores[known].mean(), 0.0)
    return (1 - share) * advantages + share * np.where(group.tokens, own[:, None], 0.0)


def _groups(rollouts: Sequence[RlRollout]) -> list[tuple[int, int]]:
    starts = [i for i, row in enumerate(rollouts) if not i or row.problem != rollouts[i - 1].problem]
    return list(zip(starts, [*starts[1:], len(rollouts)], strict=True))


def _masked(row: RlRollout, what: Known) -> RlRollout:
    return dataclasses.replace(row, reward=None) if what.failed else row


def _column(cells: list[T | None], rewards: Array) -> tuple[T, ...] | None:
    """All cells, () in place of those of rollouts without a reward; None where one with a reward has none."""
    if any(cell is None and not np.isnan(reward) for cell, reward in zip(cells, rewards, strict=True)):
        return None
    return tuple(cast(T, ()) if cell is None else cell for cell in cells)


def _padded(cells: list[Array | None], rewards: Array, shape: tuple[int, ...]) -> Array | None:
    """Cells (T,) as rows of one array, nan elsewhere; None where there are rewards, and no cell."""
    if all(cell is None for cell in cells) and not np.isnan(rewards).all():
        return None
    out = np.full(shape, np.nan)
    for line, cell in zip(out, cells, strict=True):
        if cell is not None:
            line[: len(cell)] = cell
    return out


def _merged(row: RlRollout, what: Known) -> tuple[Spans, Known]:
    """Spans that are not empty, and what is known of them; nothing for a rollout without tokens."""
    if not row.token_ids:
        return (), Known()
    if not row.steps:
        return ((0, len(row.token_ids)),), what
    place = np.cumsum([start < stop for start, stop in row.spans]) - 1  # of each step among those that have a token
    if place[-1] == len(row.spans) - 1:
        return row.spans, what
    first = [int(i) for i in np.flatnonzero(np.diff(place, prepend=-1))]  # the step that each of those begins with
    spans = tuple(row.spans[i] for i in first)
    ends = [*first[1:], len(row.spans)]
    return spans, dataclasses.replace(
        what,
        first_error=None if what.first_error is None else int(place[what.first_error]),
        scores=None if what.scores is None else tuple(min(what.scores[a:b]) for a, b in zip(first, ends, strict=True)),
        values=None if what.values is None else (*(what.values[i] for i in first), what.values[-1]),
        critiques=None
        if what.critiques is None
        else tuple(tuple(sorted({int(place[i]) for i in said})) for said in what.critiques),
    )


def _told(row: RlRollout, what: Known, advantages: Array) -> RlRollout:
    """The rollout as it is kept on disk."""
    if row.reward is None and not advantages.any():
        return row
    means = tuple(float(advantages[a:b].mean()) if a < b else None for a, b in row.spans)
    return dataclasses.replace(row, first_error=what.first_error, step_scores=what.scores or (), step_advantages=means)
