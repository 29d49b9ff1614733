"""From rollouts to advantages: masked ones, steps without a token, groups without a signal, LaSeR's mix."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from stepwise.config.training import CreditConfig, Scheme
from stepwise.credit import load_credit
from stepwise.steps import split_steps
from stepwise.training.crediting import Labels, _make_group, _mixed_advantages, credit_groups, groups_of
from stepwise.training.rollouts import RlRollout, token_spans


def rollout(number: int, pieces: list[str], reward: float | None, problem: str = "p") -> RlRollout:
    text = "".join(pieces)
    steps = tuple(split_steps(text))
    ids = tuple(range(len(pieces)))
    spans = token_spans([piece.encode() for piece in pieces])
    name = f"{problem}/s1/r{number}"
    return RlRollout(name, 1, problem, "?", number, text, steps, spans, ids, (-0.5,) * len(ids), "eos", None, reward)


RIGHT = rollout(0, ["A", "\n\n", "B", ""], 1.0)
WRONG = rollout(1, ["A", "\n\n", "C"], 0.0)
MASKED = rollout(2, ["A"], None)


def credited(rows: list[RlRollout], known: list[Labels] | None = None, **more: Any) -> Any:
    options = {key: more.pop(key) for key in ("self_scores", "share") if key in more}
    made = credit_groups(rows, known or [Labels()] * len(rows), load_credit(CreditConfig(**more)), 0, **options)
    return SimpleNamespace(**dict(zip(("rollouts", "advantages", "kept"), made, strict=True)))


def test_outcome_credit_has_one_advantage_per_token_and_none_on_masked_rollouts() -> None:
    made = credited([RIGHT, WRONG, MASKED])
    assert [line.tolist() for line in made.advantages] == [[0.5] * 4, [-0.5] * 3, [0.0]]
    assert made.kept == [True, True, False]
    assert groups_of(made.rollouts) == [range(3)]
    assert [row.step_advantages for row in made.rollouts] == [(0.5, 0.5), (-0.5, -0.5), ()]


def test_a_group_is_dropped_where_no_token_has_an_advantage_and_not_where_outcomes_are_equal() -> None:
    other = [rollout(i, ["A", "\n\n", "C"], 0.0, "q") for i in range(2)]
    made = credited([RIGHT, WRONG, *other])
    assert made.kept == [True, True, False, False]
    assert groups_of(made.rollouts) == [range(2), range(2, 4)]
    blamed = credited(other, [Labels(first_error=1), Labels(first_error=None)], scheme="first_error")
    assert blamed.kept == [True, True]
    assert [line.tolist() for line in blamed.advantages] == [[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]
    assert [row.first_error for row in blamed.rollouts] == [1, None]


def test_a_rollout_that_its_judge_failed_on_is_masked() -> None:
    made = credited([RIGHT, WRONG], [Labels(), Labels(failed="timeout")])
    assert made.rollouts[1].reward is None
    assert made.kept == [False, False]  # one known outcome is no spread


@pytest.mark.parametrize("scheme", get_args(Scheme))
def test_a_group_without_any_reward_is_dropped_whatever_the_scheme_asks_for(scheme: Any) -> None:
    made = credited([MASKED, MASKED], scheme=scheme)
    assert made.kept == [False, False]


def test_distillation_trains_on_rollouts_without_a_reward_and_drops_what_the_teacher_agrees_with() -> None:
    failed = rollout(3, ["A"], None)
    gaps = [np.array([1.0, 0.0, -9.0, 2.0]), np.zeros(3), np.array([0.5])]
    known = [*(Labels(teacher=gap) for gap in gaps), Labels(failed="too long")]
    made = credited([RIGHT, WRONG, MASKED, failed], known, scheme="distill")
    assert [line.tolist() for line in made.advantages] == [[1.0, 0.0, -5.0, 2.0], [0.0] * 3, [0.5], [0.0]]
    assert made.kept == [True, True, True, False]
    assert [row.step_advantages for row in made.rollouts] == [(0.5, -1.5), (0.0, 0.0), (0.5,), ()]
    agreed = [Labels(teacher=np.zeros(len(row.token_ids))) for row in (RIGHT, WRONG, MASKED)]
    assert credited([RIGHT, WRONG, MASKED], agreed, scheme="distill").kept == [False] * 3


def test_a_step_inside_another_steps_token_is_counted_with_the_step_before_it() -> None:
    row = rollout(0, ["A", ".\n\nB\n\nC", " c", "\n\nD"], 0.0)
    assert row.spans == ((0, 2), (2, 2), (2, 3), (3, 4))
    known = Labels(2, (0.9, 0.4, 0.8, 0.7), (0.5, 0.4, 0.3, 0.2, 0.0), ((1, 3), (2,)), np.arange(4.0))
    group = _make_group([row], [known])
    assert group.spans == (((0, 2), (2, 3), (3, 4)),)
    assert group.scores == ((0.4, 0.8, 0.7),)
    assert group.values == ((0.5, 0.3, 0.2, 0.0),)
    assert group.first_error == (1,)
    assert group.critiques == (((0, 2), (1,)),)
    made = credited([row], [Labels(first_error=1)], scheme="first_error")
    assert made.advantages[0].tolist() == [-1.0, -1.0, 0.0, 0.0]
    assert made.rollouts[0].step_advantages == (-1.0, None, 0.0, 0.0)


def test_a_text_without_steps_is_one_step() -> None:
    empty = rollout(0, ["\n", ""], 0.0)
    assert empty.spans == ()
    made = credited([empty, RIGHT], [Labels(first_error=0), Labels()], scheme="first_error")
    assert made.advantages[0].tolist() == [-1.0, -1.0]
    assert made.rollouts[0].step_advantages == ()


def test_self_scores_take_their_share_of_the_advantage() -> None:
    group = _make_group([RIGHT, WRONG, MASKED], [Labels()] * 3)
    plain = np.where(group.tokens, np.array([[0.5], [-0.5], [0.0]]), 0.0)
    mixed = _mixed_advantages(plain, group, np.array([0.8, 0.2, 9.0]), 0.25)
    assert mixed[0, 0] == pytest.approx(0.75 * 0.5 + 0.25 * 0.3)
    assert mixed[1, 0] == pytest.approx(-0.75 * 0.5 - 0.25 * 0.3)
    assert not mixed[2].any()
    assert mixed[1, 3] == 0.0  # padding
    alike = [WRONG, rollout(2, ["A", "\n\n", "C"], 0.0)]
    made = credited(alike, self_scores=[0.3, 0.1], share=0.5)
    assert made.kept == [True, True]
    assert made.advantages[0][0] == pytest.approx(0.05)
    alone = _make_group([MASKED], [Labels()])
    assert not _mixed_advantages(np.zeros((1, 1)), alone, np.array([1.0]), 0.5).any()
