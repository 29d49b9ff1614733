"""A small group written out by hand, and a strategy for any group."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from stepwise.config.training import CreditConfig
from stepwise.credit import Group

NAN = float("nan")
OUTCOMES = st.sampled_from([0.0, 1.0, NAN])
CONFIGS = [
    CreditConfig(),
    CreditConfig(scale=True),
    CreditConfig(leave_one_out=True),
    CreditConfig(scheme="first_error"),
    CreditConfig(scheme="first_error", blame="rest"),
    CreditConfig(scheme="vppo"),
    CreditConfig(scheme="vppo", alpha=0.2, shorten=0.0, relu=True),
    CreditConfig(scheme="vineppo"),
    CreditConfig(scheme="capo"),
    CreditConfig(scheme="capo", agree="union", scale=True),
    CreditConfig(scheme="capo", agree="intersection"),
    CreditConfig(scheme="pure_min"),
    CreditConfig(scheme="oppo"),
    CreditConfig(scheme="oppo", evidence_clip=10.0),
    CreditConfig(scheme="distill"),
    CreditConfig(scheme="distill", distill_clip=0.5),
    CreditConfig(scheme="shuffled"),
    CreditConfig(scheme="shuffled", blame="rest"),
]


def tokens(*rows: str) -> np.ndarray:
    """A mask from pictures: x sampled, f forced, . padding."""
    return np.array([[sign == "x" for sign in row] for row in rows])


def by_hand(**changes) -> Group:
    """One right, two wrong, one without a reward; 4, 9, 6 and 5 sampled tokens, and a forced one in rollout 1."""
    fields = {
        "rewards": np.array([1.0, 0.0, 0.0, NAN]),
        "mask": tokens("xxxx......", "xxxxfxxxxx", "xxxxxx....", "xxxxx....."),
        "spans": (((0, 2), (2, 4)), ((0, 3), (3, 5), (5, 10)), ((0, 2), (2, 6)), ((0, 5),)),
        "scores": ((0.9, 0.8), (0.9, 0.2, 0.6), (0.1, 0.7), (0.3,)),
        "first_error": (None, 1, 0, 0),
        "values": ((0.25, 0.5, 1.0), (0.25, 0.5, 0.125, 0.0), (0.25, 0.0, 0.0), (0.25, 0.5)),
        "critiques": (((1,), (1,), ()), ((1,), (1, 2), (1,)), ((), (0, 0), ()), ((0,),)),
        "evidence": np.full((4, 10), NAN),
    }
    fields["evidence"][:3] = 0.0
    fields["teacher"] = np.where(fields["mask"], 0.25, NAN)
    return Group(**{**fields, **changes})


def all_wrong(**changes) -> Group:
    """Three wrong rollouts of two steps with three and two tokens, alike but for what is said of their steps."""
    fields = {
        "rewards": np.zeros(3),
        "mask": np.ones((3, 5), dtype=bool),
        "spans": (((0, 3), (3, 5)),) * 3,
        "scores": ((0.9, 0.1),) * 3,
        "first_error": (1, 1, 1),
        "values": ((0.5, 0.5, 0.0),) * 3,
        "critiques": (((1,),),) * 3,
        "evidence": np.tile([0.2, 0.0, 0.1, -0.9, -0.3], (3, 1)),
        "teacher": np.tile([0.2, 0.0, 0.1, -0.9, -0.3], (3, 1)),
    }
    return Group(**{**fields, **changes})


@st.composite
def groups(draw, rewards=OUTCOMES, most: int = 5) -> Group:
    """Any group with every field: up to `most` rollouts of up to four steps, forced tokens and padding among them."""
    got = draw(st.lists(rewards, min_size=1, max_size=most))
    # Shapes are drawn by hypothesis, so that they shrink; numbers by a generator, which takes a tenth of the time.
    shapes = [draw(st.lists(st.integers(1, 4), max_size=4)) for _ in got]
    width = max(map(sum, shapes)) + draw(st.integers(0, 2))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    mask = np.zeros((len(got), width), dtype=bool)
    spans = tuple(tuple((sum(row[:k]), sum(row[: k + 1])) for k in range(len(row))) for row in shapes)
    for i, (start, stop) in ((i, span) for i, row in enumerate(spans) for span in row):
        mask[i, start:stop] = rng.random(stop - start) < 0.7
        mask[i, rng.integers(start, stop)] = True
    coarse = [rng.choice([0.0, 0.1, 0.5, 0.9, 1.0], len(row) + 1).tolist() for row in spans]
    return Group(
        np.array(got),
        mask,
        spans,
        scores=tuple(tuple(row[1:]) for row in coarse),
        first_error=tuple(None if rng.random() < 0.3 or not row else int(rng.integers(len(row))) for row in spans),
        values=tuple((*rng.random(len(row)), reward) for row, reward in zip(spans, got, strict=True)),
        critiques=tuple(
            tuple(tuple(np.flatnonzero(rng.random(len(row)) < 0.4).tolist()) for _ in range(rng.integers(1, 4)))
            for row in spans
        ),
        evidence=np.where(mask, rng.normal(0, 2, mask.shape), NAN),
        teacher=np.where(mask, rng.normal(0, 2, mask.shape), NAN),
    )


def take(group: Group, order: list[int]) -> Group:
    """The rollouts `order` of `group`."""

    def rows(field):
        return field[order] if isinstance(field, np.ndarray) else tuple(field[i] for i in order)

    return Group(**{name: rows(getattr(group, name)) for name in Group.__dataclass_fields__})


def step_advantages(advantages: np.ndarray, group: Group) -> list[list[float]]:
    """Per rollout, the mean of `advantages` (B, T) over the sampled tokens of each step."""
    return [
        [float(row[start:stop][sampled[start:stop]].mean()) for start, stop in spans]
        for row, sampled, spans in zip(advantages, group.mask, group.spans, strict=True)
    ]
