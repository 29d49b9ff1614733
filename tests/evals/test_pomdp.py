"""The benchmark of the exact solver runs without TRIM's data and writes what it measured."""

from __future__ import annotations

import json

import pytest

from evals.pomdp import PRICES, load, main


def test_the_benchmark_measures_one_price_and_eight_and_says_that_a_coarse_plan_misses_the_bars(tmp_path, capsys):
    assert main(["--eps", "0.05", "--out", str(tmp_path / "out")]) == 1  # so fast that no gap can be held
    assert "MISSED: pair, score" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "pomdp.json").read_text())
    assert result["data"] == "stand-in"
    assert len(result["rows"]) == 8
    for row in result["rows"]:
        assert row["observations"] == {"pair": 400, "score": 20}[row["observation"]]
        assert row["cpu_s"] > 0
        assert 0 < row["gap"] < 1
        assert not row["held"]
        assert len(row["root_values"]) == len(row["prices"])
        values = [high for _, high in row["root_values"]]
        assert values == sorted(values, reverse=True)


def test_the_default_precision_keeps_the_gap_within_the_bar_at_every_price():
    model = load(None, "score")
    assert max(model.solve(price, published_hazard=True).gap for price in PRICES) <= 1e-3


def test_a_missing_file_is_a_clear_error(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]) == 2
    assert "no such file" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("observation", ["pair", "score"])
def test_the_stand_in_has_the_size_of_the_published_model(observation):
    model = load(None, observation)
    assert (len(model.hazard), model.hazard[-1]) == (31, 1.0)
