"""Every scheme against numbers worked out by hand."""

from __future__ import annotations

import math
from fractions import Fraction as F
from typing import Any, get_args

import numpy as np
import pytest

from stepwise import credit
from stepwise.config.training import CreditConfig, Scheme
from stepwise.credit import NEEDS, SCHEMES, advantages, has_signal
from stepwise.errors import DataError
from tests.credit.groups import CONFIGS, NAN, all_wrong, by_hand, step_advantages, tokens


def rows(*wanted: list) -> np.ndarray:
    """Advantages of `by_hand`, padded to its 10 tokens; the rollout without a reward comes last."""
    return np.array([[*map(float, row), *[0.0] * (10 - len(row))] for row in [*wanted, []]])


def near(wanted: Any) -> Any:
    """Equal to `wanted` up to 1e-12."""
    return pytest.approx(wanted, rel=0, abs=1e-12)


def test_outcome_is_the_reward_less_the_mean_of_the_rollouts_that_have_one() -> None:
    third = -1 / 3
    assert credit.outcome(by_hand()) == near(
        rows([2 / 3] * 4, [third, third, third, third, 0, third, third, third, third, third], [third] * 6)
    )


def test_outcome_divides_by_the_standard_deviation_and_the_stated_epsilon() -> None:
    got = credit.outcome(by_hand(), scale=True)
    deviation = math.sqrt((4 / 9 + 1 / 9 + 1 / 9) / 2) + 1e-4
    assert got[0, 0] == pytest.approx(2 / 3 / deviation)
    assert got[2, 5] == pytest.approx(-1 / 3 / deviation)


def test_leaving_one_out_compares_with_the_other_rollouts_alone() -> None:
    got = credit.outcome(by_hand(), leave_one_out=True)
    assert (got[0, 0], got[1, 0], got[2, 0]) == (1.0, -0.5, -0.5)


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"scale": True}, {"leave_one_out": True}])
def test_equal_outcomes_give_exactly_nothing(reward: float, options: dict) -> None:
    values = ((0.5, 0.5, reward),) * 3
    assert not credit.outcome(all_wrong(rewards=np.full(3, reward), values=values), **options).any()


def test_one_rollout_with_a_reward_has_nothing_to_be_compared_with() -> None:
    group = all_wrong(rewards=np.array([NAN, 0.0, NAN]))
    for options in ({}, {"scale": True}, {"leave_one_out": True}):
        assert not credit.outcome(group, **options).any()


def test_first_error_blames_the_error_step_alone() -> None:
    assert credit.first_error(by_hand()) == near(rows([2 / 3] * 4, [0, 0, 0, -1], [-1, -1]))


def test_first_error_may_blame_all_from_the_error_on() -> None:
    assert credit.first_error(by_hand(), blame="rest") == near(
        rows([2 / 3] * 4, [0, 0, 0, -1, 0, -1, -1, -1, -1, -1], [-1] * 6)
    )


def test_first_error_treats_an_unlocated_wrong_rollout_and_a_located_right_one_as_outcome_does() -> None:
    group = by_hand(first_error=(0, None, 0, None))
    got, plain = credit.first_error(group), credit.outcome(group)
    assert got[:2] == near(plain[:2])
    assert got[2].tolist() == [-1, -1] + [0] * 8


def test_first_error_gives_all_wrong_groups_the_same_blame_and_nothing_to_unlocated_rollouts() -> None:
    got = credit.first_error(all_wrong(first_error=(1, 0, None)))
    assert got.tolist() == [[0, 0, 0, -1, -1], [-1, -1, -1, 0, 0], [0, 0, 0, 0, 0]]


def test_vppo_rewards_the_shortened_prefix_and_subtracts_the_mean_of_the_rollouts() -> None:
    # |o_1| = 9, three good tokens, round(.9) = 1 cut: two at .5, so 1/9; rollout 2 has none. Mean (1 + 1/9) / 3.
    good, rest = F(1, 2) - F(10, 27), -F(10, 27)
    assert credit.vppo(by_hand()) == near(
        rows([F(17, 27)] * 4, [good, good, rest, rest, 0, rest, rest, rest, rest, rest], [rest] * 6)
    )


def test_vppo_with_relu_has_no_negative_advantage_on_the_prefix_and_keeps_the_rest() -> None:
    plain, relu = (credit.vppo(by_hand(), alpha=0.2, relu=relu) for relu in (False, True))
    mean = (1 + 0.2 * 2 / 9) / 3
    assert plain[1, :2] == pytest.approx([0.2 - mean] * 2)
    assert relu[1, :2].tolist() == [0, 0]
    assert relu[:, 2:] == near(plain[:, 2:])
    assert relu[2] == near(plain[2])


@pytest.mark.parametrize(("alpha", "shorten", "kept"), [(0.5, 0.0, 3), (0.5, 0.2, 2), (0.3, 0.4, 1), (0.5, 0.9, 0)])
def test_vppo_of_identical_wrong_rollouts_is_alpha_less_its_share_on_the_prefix(alpha, shorten, kept) -> None:
    got = credit.vppo(all_wrong(), alpha=alpha, shorten=shorten)
    share = kept / 5
    assert got == near(np.tile([alpha * (1 - share)] * kept + [-alpha * share] * (5 - kept), (3, 1)))


def test_vppo_rewards_nothing_of_a_wrong_rollout_without_a_located_error() -> None:
    got = credit.vppo(by_hand(first_error=(None, None, None, None)))
    assert got == near(credit.outcome(by_hand()))


def test_vineppo_is_the_change_of_value_on_every_token_of_the_step() -> None:
    assert credit.vineppo(by_hand()) == near(
        rows(
            [0.25, 0.25, 0.5, 0.5],
            [0.25, 0.25, 0.25, -0.375, 0, -0.125, -0.125, -0.125, -0.125, -0.125],
            [-0.25, -0.25],
        )
    )


@pytest.mark.parametrize(
    ("agree", "wrong"),
    [("majority", {(0, 1), (1, 1)}), ("intersection", {(1, 1)}), ("union", {(0, 1), (1, 1), (1, 2), (2, 0)})],
)
def test_capo_takes_one_off_every_step_that_is_called_wrong(agree, wrong) -> None:
    group = by_hand()
    reward = np.zeros((4, 10))
    for i, spans in enumerate(group.spans[:3]):
        for k, (start, stop) in enumerate(spans):
            reward[i, start:stop] = (2 if i == 0 else 0) - ((i, k) in wrong)
    reward = np.where(group.tokens, reward, 0.0)
    assert credit.capo(group, agree=agree) == near(np.where(group.tokens, reward - reward.sum() / 19, 0.0))


def test_capo_by_hand_and_divided_by_the_deviation_over_tokens() -> None:
    # 2, 2, 1, 1; then one -1 among nine; then six 0: 5 in all over 19 tokens
    m = F(5, 19)
    right, wrong = [2 - m, 2 - m, 1 - m, 1 - m], [-m, -m, -m, -1 - m, 0, -m, -m, -m, -m, -m]
    assert credit.capo(by_hand()) == near(rows(right, wrong, [-m] * 6))
    deviation = math.sqrt((4 + 4 + 1 + 1 + 1 - 25 / 19) / 18) + 1e-4
    assert credit.capo(by_hand(), scale=True) == near(credit.capo(by_hand()) / deviation)


@pytest.mark.parametrize(("rewards", "wanted"), [((1.0, 0.0), (1, -1)), ((1.0,), (0,))])
def test_capo_of_two_tokens_is_divided_by_their_deviation_and_one_token_has_none(rewards, wanted) -> None:
    n = len(rewards)
    group = credit.Group(np.array(rewards), tokens(*["x"] * n), (((0, 1),),) * n, critiques=(((),),) * n)
    assert credit.capo(group, scale=True)[:, 0] == near(np.array(wanted) / (math.sqrt(2) + 1e-4))


def test_half_of_the_critiques_is_no_majority() -> None:
    assert not has_signal(credit.capo(all_wrong(critiques=(((1,), ()),) * 3)))
    assert has_signal(credit.capo(all_wrong(critiques=(((1,), ()),) * 3), agree="union"))


def test_pure_min_adds_up_the_softly_lowest_scores_from_the_step_on_less_the_others_mean_per_token() -> None:
    # scores to [-1, 1]: .8 .6 | .8 -.6 .2 | -.8 .4; weights exp((lowest - r) / .1) over their sum
    e2, e14, e8, e12 = (math.exp(-x) for x in (2, 14, 8, 12))
    a = [0.8 * e2 / (e2 + 1), 0.6 / (e2 + 1)]
    b = [x / (e14 + 1 + e8) for x in (0.8 * e14, -0.6, 0.2 * e8)]
    c = [x / (1 + e12) for x in (-0.8, 0.4 * e12)]
    of_a, of_b, of_c = (sum(b) + sum(c)) / 15, (sum(a) + sum(c)) / 10, (sum(a) + sum(b)) / 13  # per token
    b1 = sum(b) - 9 * of_b - 0.5, sum(b[1:]) - 6 * of_b - 0.5, b[2] - 5 * of_b - 0.5
    assert credit.pure_min(by_hand()) == near(
        rows(
            [sum(a) - 4 * of_a + 1] * 2 + [a[1] - 2 * of_a + 1] * 2,
            [b1[0]] * 3 + [b1[1], 0] + [b1[2]] * 5,
            [sum(c) - 6 * of_c - 0.5] * 2 + [c[1] - 4 * of_c - 0.5] * 4,
        )
    )


def test_pure_min_of_a_single_rollout_is_its_own_minimum() -> None:
    got = credit.pure_min(all_wrong(rewards=np.array([0.0, NAN, NAN])))
    assert got[0] == pytest.approx([-0.8] * 5, abs=1e-5)


def test_oppo_moves_the_log_odds_by_the_clipped_evidence_and_ends_at_the_reward() -> None:
    evidence = np.zeros((4, 10))
    evidence[0, 1], evidence[1, 0], evidence[1, 4] = 5.0, math.log(0.9 / 0.5), 99.0  # the last is a forced token's
    got = credit.oppo(by_hand(evidence=evidence))
    raised = 1 / (1 + 5 * math.exp(-1))  # no other is right: V_0 is 1 / (2 x 3), odds 1 to 5; 5 is clipped to 1
    odds_form = 0.9 / 1.4  # .643 where Bayes' rule would say .9
    assert got == near(
        rows([0, raised - 1 / 6, 0, 1 - raised], [odds_form - 0.5, *[0] * 8, -odds_form], [*[0] * 5, -0.5])
    )
    assert round(odds_form, 3) == 0.643


def test_oppo_keeps_its_first_value_half_a_rollout_away_from_certainty() -> None:
    values = ((0.5, 0.5, 1.0),) * 3
    right = all_wrong(rewards=np.ones(3), values=values, evidence=np.zeros((3, 5)))
    assert credit.oppo(right).sum(axis=1) == pytest.approx([1 / 6] * 3)
    assert credit.oppo(all_wrong(evidence=np.zeros((3, 5)))).sum(axis=1) == pytest.approx([-1 / 6] * 3)
    alone = all_wrong(rewards=np.array([0.0, NAN, NAN]), evidence=np.zeros((3, 5)))
    assert credit.oppo(alone).sum(axis=1) == pytest.approx([-0.5, 0, 0])


def test_oppo_stays_a_probability_under_much_evidence() -> None:
    with np.errstate(all="raise", under="ignore"):
        got = credit.oppo(all_wrong(evidence=np.tile([-900.0, -900, 900, 900, 900], (3, 1))), evidence_clip=1000.0)
    assert np.abs(np.cumsum(got, axis=1) + 1 / 6).max() <= 1


def test_distill_is_the_clipped_gap_on_every_sampled_token_whatever_the_outcome() -> None:
    teacher = np.full((4, 10), NAN)
    teacher[0, :4] = math.log(0.9 / 0.3), math.log(0.01 / 0.5), 0.0, -9.0
    teacher[1, :10], teacher[2, :6] = 99.0, 0.5
    teacher[3, :2] = 2.0, -0.5  # no reward, and nothing known of its last three tokens
    got = credit.distill(by_hand(teacher=teacher), clip=4.0)
    assert got[0] == near([1.0986122886681098, -3.912023005428146, 0, -4, 0, 0, 0, 0, 0, 0])
    assert got[1] == near([4, 4, 4, 4, 0, 4, 4, 4, 4, 4])  # the fifth is forced
    assert got[2] == near([0.5] * 6 + [0] * 4)
    assert got[3] == near([2, -0.5] + [0] * 8)


def test_shuffled_moves_the_blamed_stretch_and_nothing_else() -> None:
    blamed = [credit.shuffled(by_hand(), seed=seed) for seed in range(40)]
    assert {tuple(got[2, :6]) for got in blamed} == {(-1, -1, 0, 0, 0, 0), (0, 0, 0, 0, -1, -1)}
    assert {tuple(np.flatnonzero(got[1])) for got in blamed} == {(0,), (3,), (6,), (9,)}  # orders of steps 3, 1, 5
    for got in blamed:
        assert got[0] == near(credit.first_error(by_hand())[0])
        assert not got[1, 4]
        assert not got[3].any()


def test_shuffled_follows_from_its_seed_and_differs_between_rollouts() -> None:
    many = all_wrong(
        rewards=np.zeros(12),
        mask=np.ones((12, 5), dtype=bool),
        spans=(((0, 3), (3, 5)),) * 12,
        first_error=(1,) * 12,
        scores=None,
        values=None,
        critiques=None,
        evidence=None,
        teacher=None,
    )
    assert credit.shuffled(many, seed=4) == near(credit.shuffled(many, seed=4))
    assert (credit.shuffled(many, seed=4) != credit.shuffled(many, seed=5)).any()
    assert len(np.unique(credit.shuffled(many, seed=4), axis=0)) == 2


@pytest.mark.parametrize("scheme", ["first_error", "vppo", "vineppo", "capo", "pure_min", "oppo", "shuffled"])
def test_identical_all_wrong_rollouts_still_give_a_signal(scheme) -> None:
    assert has_signal(advantages(all_wrong(), CreditConfig(scheme=scheme)))
    assert not has_signal(advantages(all_wrong(), CreditConfig(scheme="outcome")))


@pytest.mark.parametrize("scheme", ["first_error", "vppo", "vineppo", "capo", "pure_min", "oppo"])
def test_blame_falls_on_the_wrong_step_of_an_all_wrong_group(scheme) -> None:
    first, second = step_advantages(advantages(all_wrong(), CreditConfig(scheme=scheme)), all_wrong())[0]
    assert second < 0
    assert second < first


def test_every_scheme_of_the_configuration_exists_and_says_what_it_needs() -> None:
    assert set(SCHEMES) == set(NEEDS) == set(get_args(Scheme)) == {cfg.scheme for cfg in CONFIGS}


@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
def test_a_scheme_reads_exactly_the_fields_that_it_says_it_needs(cfg) -> None:
    optional = {"scores", "first_error", "values", "critiques", "evidence", "teacher"}
    needs = {NEEDS[cfg.scheme]} - {""}
    bare = by_hand(**dict.fromkeys(optional - needs))
    assert advantages(bare, cfg, 3) == near(advantages(by_hand(), cfg, 3))
    for name in needs:
        with pytest.raises(DataError, match=rf"group\.{name} is None"):
            advantages(by_hand(**{name: None}), cfg)


@pytest.mark.parametrize(
    ("cfg", "same"),
    [
        (CreditConfig(scale=True, leave_one_out=True), lambda g: credit.outcome(g, scale=True, leave_one_out=True)),
        (CreditConfig(scheme="first_error", blame="rest"), lambda g: credit.first_error(g, blame="rest")),
        (
            CreditConfig(scheme="vppo", alpha=0.3, shorten=0.2, relu=True),
            lambda g: credit.vppo(g, alpha=0.3, shorten=0.2, relu=True),
        ),
        (CreditConfig(scheme="capo", agree="union", scale=True), lambda g: credit.capo(g, agree="union", scale=True)),
        (CreditConfig(scheme="oppo", evidence_clip=0.1), lambda g: credit.oppo(g, evidence_clip=0.1)),
        (CreditConfig(scheme="distill", distill_clip=0.1), lambda g: credit.distill(g, clip=0.1)),
        (CreditConfig(scheme="shuffled", blame="rest"), lambda g: credit.shuffled(g, blame="rest", seed=7)),
    ],
)
def test_every_option_of_the_configuration_reaches_its_scheme(cfg, same) -> None:
    group = by_hand(evidence=np.full((4, 10), 0.5))
    assert advantages(group, cfg, 7) == near(same(group))
    plain = advantages(group, CreditConfig(scheme=cfg.scheme), 0)
    assert not np.allclose(advantages(group, cfg, 7), plain)


def test_a_rollout_without_sampled_tokens_still_counts_in_the_mean() -> None:
    group = credit.Group(np.array([1.0, 0.0]), tokens("xx", ".."), (((0, 2),), ()), first_error=(None, None))
    for cfg in (CreditConfig(), CreditConfig(scheme="first_error"), CreditConfig(scheme="vppo")):
        assert advantages(group, cfg).tolist() == [[0.5, 0.5], [0, 0]]
