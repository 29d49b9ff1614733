"""Losses of reinforcement learning against hand-computed numbers, in double precision."""

from __future__ import annotations

import math
from typing import Any

import pytest

from stepwise.errors import DataError
from stepwise.training import losses
from stepwise.training.losses import (
    _k3,
    _traced,
    class_weights,
    importance_weights,
    mismatch,
    policy_loss,
    rollout_weights,
    self_score_loss,
    self_scores,
)

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')


def t(*values: object) -> Any:
    return torch.tensor(values, dtype=torch.float64)


MASK = torch.tensor([[True, True, True], [True, False, False]])
OLD = t([-1.0, -2.0, -0.5], [-0.3, 0.0, 0.0])
ADVANTAGES = t([1.0, 0.5, -1.0], [-2.0, 0.0, 0.0])


def gradient(loss: losses.Loss, weights: list[float], **more: Any) -> Any:
    logprobs = OLD.clone().requires_grad_()
    policy_loss(logprobs, OLD, ADVANTAGES, MASK, t(*weights), loss=loss, **more).total.backward()
    assert logprobs.grad is not None
    return logprobs.grad


def test_weights_are_those_of_each_paper() -> None:
    assert rollout_weights([4, 2], "grpo", 10) == [1 / 8, 1 / 4]
    assert rollout_weights([4, 2], "dr_grpo", 10) == [1 / 20, 1 / 20]
    assert rollout_weights([4, 2], "dapo", 10) == [1 / 6, 1 / 6]
    assert rollout_weights([4, 0], "grpo", 10) == [1 / 8, 1 / 2]


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo"])
def test_at_ratio_one_the_gradient_of_a_token_is_its_weighted_advantage(loss: losses.Loss) -> None:
    weights = rollout_weights([3, 1], loss, 8)
    expected = -ADVANTAGES * t(*weights)[:, None]
    torch.testing.assert_close(gradient(loss, weights), expected, rtol=0, atol=1e-15)


def test_a_ratio_outside_the_clip_has_no_gradient_where_it_went_with_the_advantage() -> None:
    moved = t([0.5, 0.1, -0.5], [0.5, 0.0, 0.0])  # ratios 1.65, 1.11, .61 and 1.65
    logprobs = (OLD + moved).requires_grad_()
    advantages = t([1.0, 0.5, -1.5], [-2.0, 0.0, 0.0])
    made = policy_loss(logprobs, OLD, advantages, MASK, t(1.0, 1.0), clip_low=0.2, clip_high=0.28)
    gains = [1.28, 0.5 * math.exp(0.1), -1.5 * 0.8, -2.0 * math.exp(0.5)]
    assert float(made.total.detach()) == pytest.approx(-sum(gains))
    assert int(made.clipped) == 2  # the first up, the third down; the last went against its advantage
    made.total.backward()
    assert logprobs.grad is not None
    assert [bool(g) for g in logprobs.grad.flatten()] == [False, True, False, True, False, False]


def test_padding_and_what_stands_on_it_counts_for_nothing() -> None:
    weights = t(0.25, 0.5)
    plain = policy_loss(OLD + 0.1, OLD, ADVANTAGES, MASK, weights, reference=OLD, kl=0.3)
    rubbish = torch.where(MASK, 0.0, 7.0)
    dirty = policy_loss(
        OLD + 0.1 + rubbish, OLD - rubbish, ADVANTAGES + rubbish, MASK, weights, reference=OLD + rubbish, kl=0.3,
        correction=torch.where(MASK, 1.0, 9.0).double(),
    )  # fmt: skip
    assert float(dirty.total) == pytest.approx(float(plain.total), abs=1e-15)
    assert float(dirty.divergence) == pytest.approx(float(plain.divergence), abs=1e-15)


def test_the_divergence_is_added_up_as_the_token_losses_are() -> None:
    made = policy_loss(OLD, OLD, 0 * ADVANTAGES, MASK, t(0.25, 0.5), reference=OLD + 0.2, kl=2.0)
    each = math.exp(0.2) - 1 - 0.2
    assert float(made.total) == pytest.approx(2 * each * (3 * 0.25 + 0.5))
    assert float(made.divergence) == pytest.approx(4 * each)
    with pytest.raises(DataError, match="kl is 2"):
        policy_loss(OLD, OLD, ADVANTAGES, MASK, t(1.0, 1.0), kl=2.0)


def test_k3_is_unbiased_for_the_divergence_of_two_known_distributions() -> None:
    p, q = t(0.7, 0.2, 0.1), t(0.5, 0.25, 0.25)
    assert float((p * _k3(p.log(), q.log())).sum()) == pytest.approx(float((p * (p / q).log()).sum()))
    assert (_k3(p.log(), q.log()) >= 0).all()


def test_grpo_lambda_gives_token_l_the_sum_of_the_traces_of_all_tokens_from_it_on() -> None:
    found, decay = gradient("grpo_lambda", [1.0, 1.0], decay=0.9), 0.9
    advantages = [1.0, 0.5, losses.LOWEST_ADVANTAGE]  # the negative one is cut off
    for token in range(3):
        expected = sum(advantages[later] * decay ** (later - token) for later in range(token, 3))
        assert float(found[0, token]) == pytest.approx(-expected)
    assert float(found[1, 0]) == pytest.approx(-losses.LOWEST_ADVANTAGE)
    constant = OLD.clone().requires_grad_()
    ones = torch.ones_like(OLD)
    policy_loss(constant, OLD, ones, MASK, t(1.0, 1.0), loss="grpo_lambda", decay=decay).total.backward()
    assert constant.grad is not None
    assert (-constant.grad[0]).tolist() == pytest.approx([1 + 0.9 + 0.81, 1 + 0.9, 1.0])


def test_the_trace_stands_in_the_exponent_of_the_ratio_and_never_falls_under_its_floor() -> None:
    change = t([0.1, -0.2, 0.3])
    assert _traced(change, 0.5)[0].tolist() == pytest.approx([0.1, -0.15, 0.225])
    floor = losses.TRACE_FLOOR
    assert _traced(change, 0.0)[0].tolist() == pytest.approx([0.1, -0.2 + 0.1 * floor, 0.3 - 0.1 * floor])
    made = policy_loss(
        OLD[:1] + change, OLD[:1], torch.ones(1, 3).double(), MASK[:1], t(1.0), loss="grpo_lambda", decay=0.5
    )
    ratios = [math.exp(x) for x in (0.1, -0.15, 0.225)]
    assert float(made.total) == pytest.approx(-(ratios[0] + ratios[1] + 1.2))


def test_corrections_truncate_or_mask_what_the_sampler_made_too_rare() -> None:
    trainer, sampler = t(-1.0, -1.0, -1.0), t(-1.0, -2.0, 0.0)  # ratios 1, e and 1/e
    assert importance_weights(trainer, sampler, "truncate", 2.0).tolist() == pytest.approx([1, 2, math.exp(-1)])
    assert importance_weights(trainer, sampler, "mask", 2.0).tolist() == pytest.approx([1, 0, math.exp(-1)])
    assert importance_weights(trainer, sampler, "none", 2.0).tolist() == [1, 1, 1]
    weighed = gradient("dapo", [0.25, 0.25], correction=t([2.0, 0.0, 1.0], [0.5, 1.0, 1.0]))
    assert weighed.flatten().tolist()[:4] == pytest.approx([-0.5, 0.0, 0.25, 0.25])


def test_the_mismatch_of_two_distributions() -> None:
    found = mismatch(t(-1.0, -1.5), t(-1.0, -1.0))
    ratio = math.exp(-0.5)
    assert (found.mean, found.worst) == (0.25, 0.5)
    assert found.kl == pytest.approx((ratio - 1 + 0.5) / 2)
    assert found.ess == pytest.approx((1 + ratio) ** 2 / (2 * (1 + ratio**2)))
    same = mismatch(t(-1.0, -2.0), t(-1.0, -2.0))
    assert (same.mean, same.kl, same.ess) == (0.0, 0.0, 1.0)
    with pytest.raises(DataError, match="no tokens"):
        mismatch(t(), t())


def test_self_scores_learn_both_classes_with_the_same_weight() -> None:
    rewards = [1.0, 0.0, 0.0, None, 0.0]
    weights = class_weights(rewards)
    assert weights == pytest.approx([0.5, 1 / 6, 1 / 6, 0.0, 1 / 6])
    known = t(*[math.nan if reward is None else reward for reward in rewards])
    scores = self_scores(t(-13.0, -23.0, -23.0, -3.0, -18.0), -23.0)
    assert scores.tolist() == pytest.approx([1.0, 0.0, 0.0, 2.0, 0.5])
    assert float(self_score_loss(scores, known, t(*weights))) == pytest.approx(0.25 / 6)
    assert class_weights([1.0, 1.0]) == [0.25, 0.25]
