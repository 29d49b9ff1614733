"""From rollouts to advantages per token: groups for `stepwise.credit`, and which of them are trained on.

A credit scheme wants every step to have a token of its own. Where one token holds a whole step besides the end of the
one before (see `rollouts`), the two count as one step: right if both are, wrong if either is. A rollout that has a
reward but no step at all counts as one step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from stepwise import credit
from stepwise.credit import Credit, Group
from stepwise.credit.group import Array
from stepwise.errors import NothingToLearnError
from stepwise.grading import Verdict
from stepwise.seeds import seed_for
from stepwise.training.rollouts import RlRollout, Spans

T = TypeVar("T")
FIRST_BATCHES = 3
"""Steps within which something must have been learned."""
NOT_MIXED = (
    "take problems that the model solves sometimes, more rollouts (rl.group), or a scheme that learns from groups that "
    "are all wrong (first_error, vppo, capo, oppo)"
)
TOO_SHORT = "raise rl.max_tokens, or ask for \\boxed{} in [prompt]"


@dataclass(frozen=True)
class Labels:
    """What is known of one rollout's steps besides its outcome; a field that the scheme does not need stays None.

    One entry per step of the rollout's text, one for a text without steps: `scores`, `critiques` (the steps that each
    critique calls wrong); `values` has one more, see `credit.Group`; `evidence` and `teacher` (T,) have one per token.
    `first_error` None means that none was found, or none was looked for. `failed` says why nothing can be known: then
    the rollout is masked.

    >>> Labels(first_error=1, scores=(0.9, 0.2)).failed
    ''
    """

    first_error: int | None = None
    scores: tuple[float, ...] | None = None
    values: tuple[float, ...] | None = None
    critiques: tuple[tuple[int, ...], ...] | None = None
    evidence: Array | None = None
    teacher: Array | None = None
    failed: str = ""


def credit_groups(
    rollouts: Sequence[RlRollout],
    labels: Sequence[Labels],
    scheme: Credit,
    seed: int,
    *,
    self_scores: Sequence[float] | None = None,
    share: float = 0.0,
) -> tuple[list[RlRollout], list[Array], list[bool]]:
    """The rollouts of a step with their credit, the advantages (T,) of each, and whether it is trained on.

    The rollouts of a problem stand together. One is trained on where any token of its group has an advantage, and it
    has a reward or an advantage itself. `self_scores` are LaSeR's, one per rollout, which take the `share` of the
    advantage. Raises DataError where what the scheme needs is not in `labels`, ConfigError for a scheme of one's own
    that returns anything but numbers of that shape.

    Example:
        rollouts, advantages, is_trained = credit_groups(rollouts, labels, scheme, seed=1)
    """
    credited: list[RlRollout] = []
    advantages: list[Array] = []
    is_trained: list[bool] = []
    for places in groups_of(rollouts):
        group_labels = [labels[i] for i in places]
        rows = [dataclasses.replace(rollouts[i], reward=None) if labels[i].failed else rollouts[i] for i in places]
        group = _make_group(rows, group_labels)
        group_seed = seed_for(seed, rows[0].problem, "credit", rows[0].step)
        group_advantages = scheme.checked(group, group_seed)  # (B, T)
        if self_scores is not None:
            group_advantages = _mixed_advantages(
                group_advantages, group, np.array([self_scores[i] for i in places]), share
            )
        signal = credit.has_signal(group_advantages)
        for row, label, line in zip(rows, group_labels, group_advantages, strict=True):
            row_advantages = line[: len(row.token_ids)]
            advantages.append(row_advantages)
            is_trained.append(signal and (row.reward is not None or credit.has_signal(row_advantages)))
            if row.reward is not None or row_advantages.any():
                own = row.sampled
                means = tuple(float(row_advantages[a:b][own[a:b]].mean()) if a < b else None for a, b in row.spans)
                row = dataclasses.replace(
                    row, first_error=label.first_error, step_scores=label.scores or (), step_advantages=means
                )
            credited.append(row)
    return credited, advantages, is_trained


def groups_of(rollouts: Sequence[RlRollout]) -> list[range]:
    """The places of each problem's rollouts, which stand together.

    Example:
        for places in groups_of(rollouts):
            print(rollouts[places[0]].problem, [rollouts[i].reward for i in places])
    """
    starts = [i for i, row in enumerate(rollouts) if not i or row.problem != rollouts[i - 1].problem]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(rollouts)], strict=True)]


def check_learning(
    state: dict[str, Any], row: Mapping[str, Any], rollouts: Sequence[RlRollout], scheme: Credit, *, last: int
) -> None:
    """Raise NothingToLearnError, with what the rollouts came to, where the first batches teach nothing: no token has an
    advantage, or no rollout has an answer.

    `row` has the metrics of a step, `state` the counts of the steps before it; step `last` is where it is decided.

    Example:
        check_learning(state, {"step": 3, "trained_tokens": 0}, rollouts, scheme, last=3)
    """
    rewards = [{rollouts[i].reward for i in group} for group in groups_of(rollouts)]
    no_answer = sum(rollout.verdict in (None, Verdict.NO_ANSWER) for rollout in rollouts)
    answered = scheme.needs == "teacher" or no_answer < len(rollouts)  # a teacher needs no answers
    num_equal = (rewards.count({1.0}), rewards.count({0.0}))
    counts = (row["trained_tokens"], answered, len(rollouts), no_answer, len(rewards), *num_equal)
    state["first_batches"] = [a + b for a, b in zip(state.get("first_batches", [0] * len(counts)), counts, strict=True)]
    trained, answered, samples, no_answer, groups, right, wrong = state["first_batches"]
    if row["step"] < last or (trained and answered):
        return
    why, remedy = ("no token has an advantage", NOT_MIXED) if answered else ("no rollout has an answer", TOO_SHORT)
    raise NothingToLearnError(
        f"nothing can be learned: in the first {last} batches {why} ({no_answer} of {samples} rollouts have no answer; "
        f"of {groups} groups {right} are all right and {wrong} all wrong); {remedy}. rollouts/ has what was written"
    )


def _make_group(rows: Sequence[RlRollout], labels: Sequence[Labels]) -> Group:
    """One problem's rollouts (B) as credit schemes take them; T is the most tokens of one.

    Fields that are None for a rollout with a reward are None in the group.
    """
    lengths = np.array([len(row.token_ids) for row in rows])
    mask = np.arange(max(lengths))[None, :] < lengths[:, None]
    for line, row in zip(mask, rows, strict=True):
        line[: len(row.token_ids)] &= row.sampled
    rewards = np.array([np.nan if row.reward is None else row.reward for row in rows])
    merged = [_merged(row, label) for row, label in zip(rows, labels, strict=True)]
    group_labels = [label for _, label in merged]
    return Group(
        rewards,
        mask,
        tuple(spans for spans, _ in merged),
        scores=_column([label.scores for label in group_labels], rewards),
        first_error=tuple(label.first_error for label in group_labels),
        values=_column([label.values for label in group_labels], rewards),
        critiques=_column([label.critiques for label in group_labels], rewards),
        evidence=_padded([label.evidence for label in group_labels], rewards, mask.shape),
        teacher=_padded([label.teacher for label in group_labels], rewards, mask.shape),
    )


def _mixed_advantages(advantages: Array, group: Group, scores: Array, share: float) -> Array:
    """LaSeR's advantages (B, T): (1 - `share`) A + `share` A_s on sampled tokens, where A_s is a rollout's self-score
    (B,) less the mean of the group's, over rollouts with a reward (arXiv 2510.14943).
    """
    rewarded = group.rewarded
    if not rewarded.any():
        return advantages
    own = np.where(rewarded, scores - scores[rewarded].mean(), 0.0)
    return (1 - share) * advantages + share * np.where(group.tokens, own[:, None], 0.0)


def _column(cells: list[T | None], rewards: Array) -> tuple[T, ...] | None:
    """All cells, () in place of those of rollouts without a reward; None where one with a reward has none."""
    if any(cell is None and not np.isnan(reward) for cell, reward in zip(cells, rewards, strict=True)):
        return None
    return tuple(cast(T, ()) if cell is None else cell for cell in cells)


def _padded(cells: list[Array | None], rewards: Array, shape: tuple[int, ...]) -> Array | None:
    """Cells (T,) as rows of one array, nan elsewhere; None where there are rewards, and no cell."""
    if all(cell is None for cell in cells) and not np.isnan(rewards).all():
        return None
    padded = np.full(shape, np.nan)
    for line, cell in zip(padded, cells, strict=True):
        if cell is not None:
            line[: len(cell)] = cell
    return padded


def _merged(row: RlRollout, label: Labels) -> tuple[Spans, Labels]:
    """Spans that are not empty, and what is known of them; nothing for a rollout without tokens."""
    if not row.token_ids:
        return (), Labels()
    if not row.steps:
        return ((0, len(row.token_ids)),), label
    place = np.cumsum([start < stop for start, stop in row.spans]) - 1  # of each step among those that have a token
    if place[-1] == len(row.spans) - 1:
        return row.spans, label
    first = [int(i) for i in np.flatnonzero(np.diff(place, prepend=-1))]  # the step that each of those begins with
    ends = [*first[1:], len(row.spans)]
    first_error, scores, values, critiques = label.first_error, label.scores, label.values, label.critiques
    if first_error is not None:
        first_error = int(place[first_error])
    if scores is not None:
        scores = tuple(min(scores[a:b]) for a, b in zip(first, ends, strict=True))
    if values is not None:
        values = (*(values[i] for i in first), values[-1])
    if critiques is not None:
        critiques = tuple(tuple(sorted({int(place[i]) for i in said})) for said in critiques)
    spans = tuple(row.spans[i] for i in first)
    return spans, dataclasses.replace(label, first_error=first_error, scores=scores, values=values, critiques=critiques)
