"""Draws follow the distribution that temperature and truncation leave, and depend on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from stepwise.models.engine.sampling import Draws, _uniforms, stream_key

LOGITS = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32))


def make_draws(
    temperature: list[float], top_k: list[int], top_p: list[float], keys: list[int], drawn: list[int]
) -> Draws:
    return Draws(list(zip(temperature, top_k, top_p, strict=True)), keys, drawn)


def draw(n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    keys = [stream_key(7, i) for i in range(n // 20)]
    draws = make_draws([temperature] * len(keys), [top_k] * len(keys), [top_p] * len(keys), keys, [0] * len(keys))
    rows = np.tile(LOGITS, (len(keys), 1))
    return np.concatenate([draws(rows)[0] for _ in range(20)])


def shares(tokens: np.ndarray) -> np.ndarray:
    return np.bincount(tokens, minlength=5) / len(tokens)


def test_plain_draws_follow_the_probabilities() -> None:
    np.testing.assert_allclose(shares(draw(40_000)), np.exp(LOGITS), atol=0.012)


def test_temperature_sharpens_before_anything_is_cut() -> None:
    sharp = np.exp(LOGITS) ** 2
    np.testing.assert_allclose(shares(draw(40_000, temperature=0.5)), sharp / sharp.sum(), atol=0.012)


def test_top_k_keeps_the_largest_in_their_proportion() -> None:
    np.testing.assert_allclose(shares(draw(40_000, top_k=2)), [2 / 3, 1 / 3, 0, 0, 0], atol=0.012)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.51, 2), (0.8, 3), (0.999, 5)])
def test_top_p_keeps_the_smallest_set_that_holds_the_mass(top_p: float, kept: int) -> None:
    assert np.count_nonzero(shares(draw(20_000, top_p=top_p))) == kept


def test_top_p_of_a_large_vocabulary_equals_sorting_everything() -> None:
    rng = np.random.default_rng(0)
    row = rng.normal(0, 3, 20_000).astype(np.float32)
    p = np.exp(row.astype(np.float64))
    order = np.argsort(-p)
    size = int(np.searchsorted(np.cumsum(p[order]) / p.sum(), 0.6) + 1)
    draws = make_draws([1.0] * 200, [0] * 200, [0.6] * 200, [stream_key(1, i) for i in range(200)], [0] * 200)
    tokens = np.concatenate([draws(np.tile(row, (200, 1)))[0] for _ in range(5)])
    ranks = np.argsort(order)[tokens]
    assert ranks.max() < size
    assert ranks.max() > 0.8 * size


def test_greedy_takes_the_best_and_mixes_with_drawing_rows() -> None:
    draws = make_draws([0.0, 1.0] * 500, [0] * 1000, [1.0] * 1000, [stream_key(0, i) for i in range(1000)], [0] * 1000)
    tokens, *_ = draws(np.tile(LOGITS, (1000, 1)))
    assert set(tokens[::2]) == {0}
    assert set(tokens[1::2]) == {0, 1, 2, 3, 4}


def test_logprobs_are_of_the_untempered_untruncated_distribution() -> None:
    draws = make_draws([0.1], [2], [0.5], [stream_key(0, 0)], [0])
    tokens, logprobs, entropies = draws(LOGITS[None] + 5)
    assert entropies == pytest.approx([-float((np.exp(LOGITS) * LOGITS).sum())], abs=1e-5)
    assert logprobs[0] == pytest.approx(LOGITS[tokens[0]], abs=1e-5)
    token, logprob = draws.again(0, LOGITS, np.where(np.arange(5) == 3, LOGITS, np.float32(-np.inf)))
    assert token == 3
    assert logprob == pytest.approx(LOGITS[3], abs=1e-5)


def test_an_impossible_token_is_never_drawn() -> None:
    row = np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32)
    draws = make_draws([1.0] * 2000, [0] * 2000, [1.0] * 2000, [stream_key(0, i) for i in range(2000)], [0] * 2000)
    tokens, _, entropies = draws(np.tile(row, (2000, 1)))
    assert set(tokens) == {1, 3}
    assert entropies == pytest.approx([np.log(2)] * 2000)


def test_a_row_goes_on_where_it_was_however_the_batch_is_made_up() -> None:
    key = stream_key(5, 0)
    alone = make_draws([1.0], [0], [1.0], [key], [0])
    tokens = [alone(LOGITS[None])[0][0] for _ in range(70)]
    later = make_draws([1.0, 1.0], [0, 0], [1.0, 1.0], [stream_key(9, 9), key], [3, 40])
    assert [later(np.tile(LOGITS, (2, 1)))[0][1] for _ in range(30)] == tokens[40:]


def test_the_numbers_of_two_samples_seeds_and_positions_differ_and_come_again() -> None:
    keys = [stream_key(seed, index) for seed in range(50) for index in range(50)]
    assert len(set(keys)) == 2500
    assert stream_key(3, 4) == keys[3 * 50 + 4]
    u = _uniforms(np.array(keys, np.uint64), np.zeros(2500, np.uint64))
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.08
