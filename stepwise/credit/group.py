"""A group of rollouts of one problem, with what is known of each step: what every credit scheme reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import DataError

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]
Known = TypeVar("Known")

_NOISE = 1e-12  # means of equal floats differ from them by less than this
_PER_TOKEN = ("evidence", "teacher")
SOURCES = {
    "scores": "score every step, one probability each",
    "first_error": "locate the first error of every rollout, None where none was found",
    "values": "estimate the success rate at every step boundary, from fresh rollouts",
    "critiques": "have every rollout criticized, and give the steps that each critique calls wrong",
    "evidence": "give log p(token | oracle) - log p(token) of every sampled token",
    "teacher": "give log p(token) of the teacher less the student's, of every sampled token",
}


@dataclass(frozen=True, eq=False)
class Group:
    """B rollouts of one problem, right-padded to T completion tokens.

    Everything is checked on construction: `DataError` names the field, the rollout and the remedy. The optional fields
    are needed by some schemes only (`NEEDS`), and are not read for rollouts without a reward.

    Attributes:
        rewards: (B,), 1.0 right, 0.0 wrong, or what a reward of one's own pays between, less what help cost; nan for a
            rollout without a reward (it is in no mean, and nothing but `teacher` can give it an advantage).
        mask: (B, T) bool, tokens that the policy sampled; False for padding and for forced tokens.
        spans: per rollout, the tokens [start, stop) of each step, in order; every sampled token is in one, and every
            step has a sampled token.
        scores: per rollout, one probability in [0, 1] per step that it is right.
        first_error: per rollout, the 0-based index of its earliest wrong step, None where none was found.
        values: per rollout, success rate in [0, 1] at each boundary of steps, one more than there are steps: first at
            the prompt, last the outcome, which equals the reward.
        critiques: per rollout, one or more critiques, each the indices of the steps that it calls wrong.
        evidence: (B, T), log p(token | oracle) - log p(token) in nats; read at sampled tokens.
        teacher: (B, T), log p(token) of the teacher less that of the student, in nats; read at sampled tokens, also of
            rollouts without a reward, where nan says that it is not known.

    Example:
        Two rollouts of three tokens, the second with a first step of two tokens that is wrong:

        >>> group = Group(
        ...     [1.0, 0.0], np.ones((2, 3), dtype=bool), (((0, 3),), ((0, 2), (2, 3))), first_error=(None, 0)
        ... )
        >>> group.mask.shape
        (2, 3)
    """

    rewards: Array
    mask: Bools
    spans: tuple[tuple[tuple[int, int], ...], ...]
    scores: tuple[tuple[float, ...], ...] | None = None
    first_error: tuple[int | None, ...] | None = None
    values: tuple[tuple[float, ...], ...] | None = None
    critiques: tuple[tuple[tuple[int, ...], ...], ...] | None = None
    evidence: Array | None = None
    teacher: Array | None = None

    def __post_init__(self) -> None:
        for name in ("rewards", *_PER_TOKEN):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        _check_arrays(self)
        _check_spans(self)
        _check_per_step(self)

    @property
    def rewarded(self) -> Bools:
        """(B,), whether the rollout has a reward."""
        return ~np.isnan(self.rewards)

    @property
    def wrong(self) -> list[int]:
        """Indices of the rollouts with reward 0."""
        return [int(i) for i in np.flatnonzero(self.rewards == 0)]

    @property
    def tokens(self) -> Bools:
        """(B, T), sampled tokens of rollouts with a reward: the only ones that an outcome can give an advantage."""
        return self.mask & self.rewarded[:, None]


def needed(value: Known | None, name: str) -> Known:
    """The group's optional field `name`; raises `DataError` where it is None.

    >>> needed((0, None), "first_error")
    (0, None)
    """
    if value is None:
        raise DataError(f"group.{name} is None, and this credit scheme needs it; {SOURCES[name]}")
    return value


def has_signal(advantages: Array) -> bool:
    """Whether any token has an advantage (beyond rounding): only a group without any can be dropped.

    Equal outcomes do not mean that: most schemes tell the steps of an all-wrong group apart.

    Example:
        >>> has_signal(np.zeros((2, 3))), has_signal(np.array([[0.5, -0.5]]))
        (False, True)
    """
    return bool((np.abs(advantages) > _NOISE).any())


def _check_arrays(group: Group) -> None:
    rewards, mask = group.rewards, group.mask
    if rewards.ndim != 1 or not len(rewards):
        raise DataError(f"group.rewards has shape {rewards.shape}; give one reward per rollout, for at least one")
    for i, reward in enumerate(rewards):
        sound = np.isnan(reward) or -np.inf < reward <= 1
        _check(
            sound, "rewards", i, f"{reward}", "give 1.0 (right), 0.0 (wrong), a number between or below (costs), or nan"
        )
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim != 2 or len(mask) != len(rewards):
        given = f"{mask.dtype} of shape {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise DataError(f"group.mask is {given} for {len(rewards)} rewards; give a bool array, one row per rollout")
    for name in _PER_TOKEN:
        if (values := getattr(group, name)) is None:
            continue
        if values.shape != mask.shape:
            raise DataError(f"group.{name} has shape {values.shape}, group.mask {mask.shape}; give one per token")
        for i, t in np.argwhere(group.tokens & ~np.isfinite(values)):
            _check(False, name, int(i), f"{values[i, t]} at token {t}", "score every sampled token, or reward nan")


def _check_spans(group: Group) -> None:
    width = group.mask.shape[1]
    _check_count(group, "spans", group.spans)
    for i, spans in enumerate(group.spans):
        end, inside = 0, np.zeros(width, dtype=np.bool_)
        for start, stop in spans:
            what, ordered = f"[{start}, {stop})", end <= start < stop <= width
            _check(ordered, "spans", i, what, f"steps follow each other, are not empty, and end by {width}")
            sampled = group.mask[i, start:stop].any()
            _check(sampled, "spans", i, what, "group.mask has no sampled token there; leave that step out")
            inside[start:stop], end = True, stop
        for t in np.flatnonzero(group.mask[i] & ~inside):
            _check(False, "spans", i, f"no step with token {t}", "every sampled token must be in a step; extend one")


def _check_per_step(group: Group) -> None:
    """The optional fields of rollouts with a reward."""
    for name in ("scores", "first_error", "values", "critiques"):
        if getattr(group, name) is not None:
            _check_count(group, name, getattr(group, name))
    for i in (int(i) for i in np.flatnonzero(group.rewarded)):
        steps = len(group.spans[i])
        if group.scores is not None:
            _check_shares("scores", i, group.scores[i], steps)
        if group.values is not None:
            _check_shares("values", i, group.values[i], steps + 1)
            last, reward = group.values[i][-1], group.rewards[i]
            remedy = f"the last value is the outcome; put the reward, {reward}, there"
            _check(last == reward, "values", i, f"{last} at its end", remedy)
        if group.first_error is not None and (first := group.first_error[i]) is not None:
            _check_indices("first_error", i, (first,), steps)
        if group.critiques is not None:
            remedy = "ask for one again, or reward nan: none is not the same as clean"
            _check(group.critiques[i], "critiques", i, "no critique", remedy)
            _check_indices("critiques", i, (step for said in group.critiques[i] for step in said), steps)


def _check_count(group: Group, name: str, rows: Sequence[object]) -> None:
    if len(rows) != len(group.rewards):
        raise DataError(f"group.{name} has {len(rows)} rows for {len(group.rewards)} rewards; give one per rollout")


def _check_shares(name: str, i: int, row: Sequence[float], count: int) -> None:
    _check(len(row) == count, name, i, f"{len(row)} numbers, not {count}", SOURCES[name])
    for value in row:  # nan is refused too
        _check(0 <= value <= 1, name, i, f"{value}", "give numbers from 0 to 1, or reward nan")


def _check_indices(name: str, i: int, indices: Iterable[int], steps: int) -> None:
    for index in indices:
        _check(0 <= index < steps, name, i, f"step {index}", f"steps are counted from 0, and there are {steps}")


def _check(sound: object, name: str, rollout: int, found: str, remedy: str) -> None:
    """Raise DataError for the field `name` of a rollout unless `sound`."""
    if not sound:
        raise DataError(f"group.{name}: rollout {rollout} has {found}; {remedy}")
