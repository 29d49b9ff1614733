"""What must hold for any group: the schemes' own sums, and that credit stays where it belongs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stepwise import credit
from stepwise.credit import Group, advantages, has_signal
from tests.credit.groups import CONFIGS, groups, step_advantages, take

few = settings(max_examples=40)
FIXED = [cfg for cfg in CONFIGS if cfg.scheme != "shuffled"]  # a shuffled order hangs on the rollout's index


def near(wanted: Any) -> Any:
    """Equal to `wanted` up to 1e-9."""
    return pytest.approx(wanted, rel=0, abs=1e-9)


@few
@given(group=groups())
def test_advantages_are_finite_and_nothing_falls_on_padding_forced_tokens_or_rollouts_without_a_reward(group) -> None:
    for cfg in CONFIGS:
        got = advantages(group, cfg, 1)
        assert got.shape == group.mask.shape
        assert got.dtype == np.float64
        assert np.isfinite(got).all()
        assert not got[~group.mask].any(), cfg.scheme
        assert cfg.scheme == "distill" or not got[np.isnan(group.rewards)].any(), cfg.scheme


@few
@given(group=groups(), data=st.data())
def test_the_order_of_the_rollouts_does_not_matter(group: Group, data) -> None:
    order = data.draw(st.permutations(range(len(group.rewards))))
    for cfg in FIXED:
        assert advantages(take(group, order), cfg) == near(advantages(group, cfg)[order])


@few
@given(group=groups())
def test_a_rollout_without_a_reward_changes_nothing_for_the_others(group: Group) -> None:
    kept = np.flatnonzero(group.rewarded).tolist()
    assume(kept)
    for cfg in FIXED:
        assert advantages(take(group, kept), cfg) == near(advantages(group, cfg)[kept])


@few
@given(group=groups())
def test_padding_changes_nothing(group: Group) -> None:
    assert group.evidence is not None
    assert group.teacher is not None
    wide = ((0, 0), (0, 3))
    padded = {name: np.pad(getattr(group, name), wide) for name in ("mask", "evidence", "teacher")}
    wider = replace(group, **padded)
    for cfg in CONFIGS:
        assert advantages(wider, cfg, 2)[:, : group.mask.shape[1]] == near(advantages(group, cfg, 2))


@few
@given(group=groups())
def test_the_group_is_left_as_it_was_and_gives_the_same_again(group: Group) -> None:
    before = [np.array(field) for field in (group.rewards, group.mask, group.evidence, group.teacher)]
    for cfg in CONFIGS:
        np.testing.assert_array_equal(advantages(group, cfg, 3), advantages(group, cfg, 3))
    for was, field in zip(before, (group.rewards, group.mask, group.evidence, group.teacher), strict=True):
        np.testing.assert_array_equal(was, field)


@few
@given(group=groups())
def test_vineppos_steps_add_up_to_the_reward_less_the_value_of_the_prompt(group: Group) -> None:
    steps = step_advantages(credit.vineppo(group), group)
    for i in np.flatnonzero(group.rewarded):
        if group.spans[i]:
            assert sum(steps[i]) == near(group.rewards[i] - group.values[i][0])


@few
@given(group=groups())
def test_oppos_tokens_add_up_to_the_reward_less_what_the_others_led_one_to_expect(group: Group) -> None:
    got = credit.oppo(group)
    rewards = group.rewards[group.rewarded]
    n = len(rewards)
    for i in np.flatnonzero(group.tokens.any(axis=1)):
        others = (rewards.sum() - group.rewards[i]) / (n - 1) if n > 1 else 0.5
        assert got[i].sum() == near(group.rewards[i] - np.clip(others, 0.5 / n, 1 - 0.5 / n))


@few
@given(group=groups())
def test_a_teacher_that_is_the_student_gives_no_signal_and_outcomes_change_nothing(group: Group) -> None:
    own = np.where(group.mask, -0.7, np.nan)
    assert not credit.distill(replace(group, teacher=own - own)).any()
    blind = replace(group, rewards=np.full(len(group.rewards), np.nan))
    assert credit.distill(blind) == near(credit.distill(group))


@few
@given(group=groups())
def test_rloo_is_outcome_stretched_and_outcome_adds_up_to_nothing(group: Group) -> None:
    n = int(group.rewarded.sum())
    assume(n > 1)
    plain = credit.outcome(group)
    assert credit.outcome(group, leave_one_out=True) == near(plain * n / (n - 1))
    if group.tokens.any(axis=1)[group.rewarded].all():
        firsts = [row[sampled][0] for row, sampled in zip(plain, group.tokens, strict=True) if sampled.any()]
        assert sum(firsts) == near(0)


@few
@given(group=groups(), blame=st.sampled_from(["step", "rest"]), seed=st.integers(0, 9))
def test_shuffling_keeps_every_rollouts_advantages_and_their_number(group: Group, blame, seed) -> None:
    got, plain = credit.shuffled(group, blame=blame, seed=seed), credit.first_error(group, blame=blame)
    assert np.sort(got, axis=1) == near(np.sort(plain, axis=1))


@few
@given(group=groups(rewards=st.just(0.0)))
def test_first_error_gives_a_signal_in_an_all_wrong_group_wherever_an_error_is_located(group: Group) -> None:
    assert has_signal(credit.first_error(group)) == any(first is not None for first in group.first_error)


@few
@given(group=groups(), alpha=st.floats(0, 1), shorten=st.floats(0, 0.9))
def test_vppos_response_means_add_up_to_nothing(group: Group, alpha: float, shorten: float) -> None:
    assume(group.mask.any(axis=1)[group.rewarded].all())
    got = credit.vppo(group, alpha=alpha, shorten=shorten)
    assert sum(row[sampled].mean() for row, sampled in zip(got, group.tokens, strict=True) if sampled.any()) == near(0)


@few
@given(group=groups(), agree=st.sampled_from(["intersection", "majority", "union"]), scale=st.booleans())
def test_capos_tokens_add_up_to_nothing_and_none_is_above_a_clean_one_of_its_outcome(group, agree, scale) -> None:
    got = credit.capo(group, agree=agree, scale=scale)
    assert got.sum() == near(0)
    assert has_signal(got) or len({*group.rewards[group.tokens.any(axis=1)]}) <= 1


@few
@given(group=groups(), copies=st.integers(2, 4))
def test_pure_min_of_identical_rollouts_starts_at_nothing_and_falls_by_what_a_step_is_worth(group, copies) -> None:
    assume(group.rewarded[0] and group.spans[0])
    got = step_advantages(credit.pure_min(take(group, [0] * copies)), take(group, [0] * copies))[0]
    r = 2 * np.array(group.scores[0]) - 1
    share = np.exp(-r / 0.1) / np.exp(-r / 0.1).sum() * r
    tokens = np.array([group.mask[0, start:stop].sum() for start, stop in group.spans[0]])
    assert got[0] == near(0)
    assert -np.diff(got) == near((share - share.sum() / tokens.sum() * tokens)[:-1])
