"""Draws follow the distribution that temperature and truncation leave, and depend on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from stepwise.engine.sampling import sample, stream_key, uniforms

LOGITS = np.log(np.array([0.5, 0.25, 0.125, 0.0625, 0.0625], np.float32))


def draw(n: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> np.ndarray:
    keys = np.full(n, stream_key(7, 0), np.uint64)
    u = uniforms(keys, np.arange(n, dtype=np.uint64))
    rows = np.tile(LOGITS, (n, 1))
    settings = np.full(n, temperature, np.float32), np.full(n, top_k), np.full(n, top_p, np.float32)
    return sample(rows, *settings, u)[0]


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
    p = np.sort(np.exp(row.astype(np.float64)) / np.exp(row.astype(np.float64)).sum())[::-1]
    size = int(np.searchsorted(np.cumsum(p), 0.9) + 1)
    n = 4000
    u = (np.arange(n) + 0.5) / n
    tokens = np.concatenate(
        [
            sample(row[None], np.ones(1, np.float32), np.zeros(1, int), np.full(1, 0.9, np.float32), u[i : i + 1])[0]
            for i in range(0, n, 40)
        ]
    )
    smallest = np.sort(row)[::-1][size - 1]
    assert row[tokens].min() >= smallest
    assert row[tokens].min() < np.sort(row)[::-1][size // 8]  # and not far fewer


def test_greedy_takes_the_best_and_mixes_with_drawing_rows() -> None:
    rows = np.tile(LOGITS, (2, 1))
    tokens, _ = sample(
        rows, np.array([0, 1], np.float32), np.zeros(2, int), np.ones(2, np.float32), np.array([0.99, 0.99])
    )
    assert tokens.tolist() == [0, 4]


def test_logprobs_are_of_the_untempered_untruncated_distribution() -> None:
    tokens, logprobs = sample(
        LOGITS[None] + 5, np.full(1, 0.1, np.float32), np.full(1, 2), np.full(1, 0.5, np.float32), np.array([0.3])
    )
    assert logprobs[0] == pytest.approx(LOGITS[tokens[0]], abs=1e-6)


def test_an_impossible_token_is_never_drawn() -> None:
    rows = np.tile(np.array([-np.inf, 0, -np.inf, 0, -np.inf], np.float32), (3, 1))
    u = np.array([0.0, 0.5, np.nextafter(1, 0)])
    tokens, _ = sample(rows, np.ones(3, np.float32), np.zeros(3, int), np.ones(3, np.float32), u)
    assert tokens.tolist() == [1, 3, 3]


def test_the_numbers_of_two_samples_seeds_and_positions_differ_and_come_again() -> None:
    keys = [stream_key(seed, index) for seed in range(50) for index in range(50)]
    assert len(set(keys)) == 2500
    assert stream_key(3, 4) == keys[3 * 50 + 4]
    u = uniforms(np.array(keys, np.uint64), np.zeros(2500, np.uint64))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.08
