"""The study of promises on pools whose losses are known: what is counted as broken, saved and certified."""

from __future__ import annotations

import numpy as np

from evals import guarantee

POOL = 4000


def drawn(lost: dict[str, float], n: int = 500, draws: int = 60) -> dict[str, float]:
    rng = np.random.default_rng(0)
    arms = [guarantee._Arm("always", np.zeros(POOL), np.full(POOL, 100.0))]
    for cost, (label, mean) in enumerate(lost.items(), start=1):
        arms.append(guarantee._Arm(label, guarantee._planted(mean, POOL, rng), np.full(POOL, 100.0 / 2**cost)))
    args = guarantee._Options(pool=POOL, order=50, draws=draws)
    planted = {shift: guarantee._planted(0.05 + shift, POOL, rng) for shift in (-0.05, 0.01)}
    return guarantee._drawn(arms, planted, n, args, rng)


def test_a_planted_loss_has_the_mean_that_is_asked_for() -> None:
    losses = guarantee._planted(0.04, POOL, np.random.default_rng(0))
    assert losses.mean() == 0.04
    assert set(losses) == {-1.0, 0.0, 1.0}


def test_a_setting_that_loses_too_much_is_hardly_ever_promised_though_a_point_estimate_takes_it() -> None:
    found = drawn({"bad": 0.055})
    assert found["broken"] <= 0.1
    assert found["broken_by_estimate"] > 0.25
    assert found["above"] <= 0.1 < found["below"]


def test_a_setting_that_loses_nothing_is_promised_and_saves() -> None:
    found = drawn({"good": 0.0, "bad": 0.2}, n=900)
    assert found["broken"] == 0.0
    assert found["saved"] > 0.35
    assert found["always"] < 0.3
