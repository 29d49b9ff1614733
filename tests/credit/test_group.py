"""What a group refuses, and what is read off advantages."""

from __future__ import annotations

import numpy as np
import pytest

from stepwise.config.training import CreditConfig
from stepwise.credit import Group, advantages, has_signal
from stepwise.errors import DataError
from tests.credit.groups import NAN, all_wrong, by_hand, tokens

SPANS = (((0, 3), (3, 5)),)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": np.zeros((3, 1))}, r"group\.rewards has shape \(3, 1\)"),
        ({"rewards": np.zeros(0)}, r"group\.rewards has shape \(0,\)"),
        ({"rewards": np.array([0, 1.5, 0])}, r"group\.rewards: rollout 1 has 1\.5; give 1\.0"),
        ({"rewards": np.array([0, -np.inf, 0])}, r"group\.rewards: rollout 1 has -inf"),
        ({"rewards": np.array([0, 0, np.inf])}, r"group\.rewards: rollout 2 has inf"),
        ({"mask": np.ones((2, 5), dtype=bool)}, r"group\.mask is bool of shape \(2, 5\) for 3 rewards"),
        ({"mask": np.ones((3, 5))}, r"group\.mask is float64 .* give a bool array"),
        ({"mask": [[True]]}, r"group\.mask is list"),
        ({"spans": SPANS * 2}, r"group\.spans has 2 rows for 3 rewards"),
        ({"spans": (*SPANS * 2, ((0, 3), (2, 5)))}, r"group\.spans: rollout 2 has \[2, 5\); steps follow"),
        ({"spans": (*SPANS * 2, ((3, 5), (0, 3)))}, r"group\.spans: rollout 2 has \[0, 3\)"),
        ({"spans": (*SPANS * 2, ((0, 3), (3, 6)))}, r"group\.spans: rollout 2 has \[3, 6\).* end by 5"),
        ({"spans": (*SPANS * 2, ((0, 3), (3, 3)))}, r"group\.spans: rollout 2 has \[3, 3\).* not empty"),
        ({"spans": (*SPANS * 2, ((-1, 3), (3, 5)))}, r"group\.spans: rollout 2 has \[-1, 3\)"),
        ({"spans": (*SPANS * 2, ((0, 3),))}, r"group\.spans: rollout 2 has no step with token 3"),
        ({"mask": tokens("xxxxx", "xxx..", "xxxxx")}, r"group\.spans: rollout 1 has \[3, 5\).* no sampled token"),
        ({"scores": ((0.5, 0.5),) * 2}, r"group\.scores has 2 rows for 3 rewards"),
        ({"scores": ((0.5, 0.5), (0.5,), (0.5, 0.5))}, r"group\.scores: rollout 1 has 1 numbers, not 2; score every"),
        ({"scores": ((0.5, 0.5), (0.5, NAN), (0.5, 0.5))}, r"group\.scores: rollout 1 has nan"),
        (
            {"scores": ((0.5, 0.5), (0.5, 1.5), (0.5, 0.5))},
            r"group\.scores: rollout 1 has 1\.5; give numbers from 0 to",
        ),
        ({"first_error": (0, 0)}, r"group\.first_error has 2 rows"),
        ({"first_error": (0, 2, None)}, r"group\.first_error: rollout 1 has step 2; .* there are 2"),
        ({"first_error": (0, 0, -1)}, r"group\.first_error: rollout 2 has step -1"),
        ({"values": ((0.5, 0.0),) * 3}, r"group\.values: rollout 0 has 2 numbers, not 3"),
        ({"values": ((0.5, -0.1, 0.0),) * 3}, r"group\.values: rollout 0 has -0\.1"),
        ({"values": ((0.5, 0.5, 0.5),) * 3}, r"group\.values: rollout 0 has 0\.5 at its end; .* put the reward, 0\.0"),
        ({"critiques": (((1,),),) * 4}, r"group\.critiques has 4 rows"),
        ({"critiques": (((1,),), (), ((1,),))}, r"group\.critiques: rollout 1 has no critique"),
        ({"critiques": (((1,),), ((0,), (5,)), ((1,),))}, r"group\.critiques: rollout 1 has step 5"),
        ({"evidence": np.zeros((3, 4))}, r"group\.evidence has shape \(3, 4\), group\.mask \(3, 5\)"),
        ({"evidence": np.full((3, 5), NAN)}, r"group\.evidence: rollout 0 has nan at token 0"),
        ({"teacher": np.zeros((3, 4))}, r"group\.teacher has shape \(3, 4\), group\.mask \(3, 5\)"),
        ({"teacher": np.full((3, 5), -np.inf)}, r"group\.teacher: rollout 0 has -inf at token 0"),
    ],
)
def test_a_group_that_does_not_fit_together_is_refused_by_field_and_rollout(changes, message) -> None:
    with pytest.raises(DataError, match=message):
        all_wrong(**changes)


def test_what_is_said_of_a_rollout_without_a_reward_is_not_read() -> None:
    unknown = {
        "scores": (*by_hand().scores[:3], ()),
        "first_error": (None, 1, 0, 77),
        "values": (*by_hand().values[:3], ()),
        "critiques": (*by_hand().critiques[:3], ()),
    }
    for scheme in ("first_error", "vppo", "vineppo", "capo", "pure_min", "oppo", "shuffled"):
        cfg = CreditConfig(scheme=scheme)
        np.testing.assert_array_equal(advantages(by_hand(**unknown), cfg), advantages(by_hand(), cfg))


def test_lists_do_as_rewards_and_evidence() -> None:
    group = Group([0, 1], tokens("x", "x"), (((0, 1),), ((0, 1),)), evidence=[[0], [1]])
    assert group.rewards.dtype == group.evidence.dtype == np.float64
    assert group.rewarded.tolist() == [True, True]


def test_one_token_with_an_advantage_is_a_signal_and_rounding_is_none() -> None:
    nothing = np.zeros((2, 3))
    assert not has_signal(nothing)
    assert not has_signal(nothing + 1e-17)
    nothing[1, 2] = -1e-3
    assert has_signal(nothing)


def test_rounding_in_a_scheme_is_no_signal() -> None:
    group = all_wrong(scores=((0.3, 0.3),) * 3, mask=tokens(*["xxfxx"] * 3))  # equal scores, steps of equal length
    got = advantages(group, CreditConfig(scheme="pure_min"))
    assert not has_signal(got)
