"""The study of stopping early: its figures on outcomes that are known, and the program at a small size."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from evals import filtering
from stepwise.interventions.filtering import INT_PRIOR, Beta
from stepwise.interventions.settings import CollectSettings


def test_a_rule_on_sure_and_hopeless_candidates_takes_what_it_must_and_loses_none() -> None:
    seen = np.repeat([[True], [True], [False], [False]], 32, axis=1)
    found = filtering.replayed(CollectSettings(), [seen, seen], np.asarray([1.0, 0.9, 0.0, 0.05]))
    assert found == filtering.Replayed((2 + 2 + 12 + 12) / 4, 1.0, 1.0)


def test_a_rule_loses_a_late_success_and_recall_is_over_candidates_with_one() -> None:
    late = np.zeros((3, 32), dtype=bool)
    late[0, 20], late[1, 0] = True, True
    found = filtering.replayed(CollectSettings(), [late], np.asarray([0.5, 0.0, 0.0]))
    assert found.found == 0.5
    assert found.found_above == 0.0


def test_replaying_draws_from_a_beta_distribution_gives_what_its_closed_form_says() -> None:
    prior, rng = Beta(0.3, 1.2), np.random.default_rng(0)
    rates = rng.beta(prior.a, prior.b, size=3000)
    seen = rng.random((3000, 32)) < rates[:, None]
    found = filtering.replayed(CollectSettings(guided=12, miss=0.0, batch=1), [seen], rates)
    assert found.rollouts == pytest.approx(prior.cost(12), rel=0.05)
    assert found.found == pytest.approx(prior.found(12), abs=0.03)
    assert found.found_above == pytest.approx(prior.found_above(0.1, 12), abs=0.03)
    back = filtering.fitted(seen)
    assert back is not None
    assert back.a == pytest.approx(prior.a, rel=0.2)


def test_what_intervention_training_s_counts_allow_is_as_published_figures_say() -> None:
    assert filtering.allowed(INT_PRIOR)["0.95"] == pytest.approx(1.4, abs=0.05)
    assert filtering.allowed(INT_PRIOR)["0.70"] == pytest.approx(4.3, abs=0.05)


def test_the_rules_give_up_after_the_number_in_their_name() -> None:
    rules = filtering.rules_of()
    assert [rules[f"{n} or a success"].drop_after for n in filtering.GIVE_UP] == list(filtering.GIVE_UP)


def test_the_rate_of_the_best_of_several_is_too_high_where_it_is_not_measured_afresh() -> None:
    rows = {name: filtering.simulated(filtering.CHOICES[name], 0, 600) for name in list(filtering.CHOICES)[-2:]}
    told, fresh = rows.values()
    assert told["told"] > told["rate"] + 0.05
    assert abs(fresh["told"] - fresh["rate"]) < 0.05
    assert fresh["rollouts"] > told["rollouts"]


def test_the_program_prints_its_tables_within_80_columns_and_writes_the_figures(
    tmp_path: Any, capsys: Any, monkeypatch: Any
) -> None:
    rng = np.random.default_rng(1)
    outcomes = rng.random((12, 64)) < rng.beta(0.5, 0.5, size=12)[:, None]
    given = ([f"r{i // 2}" for i in range(12)], outcomes)
    monkeypatch.setenv("COLUMNS", "80")
    assert filtering.main(["--orders", "3", "--out", str(tmp_path / "out")], given=given, attempts=50) == 0
    report = json.loads((tmp_path / "out" / "filtering.json").read_text())
    assert report["candidates"] == 12
    assert sum(report["successes in 32"].values()) == 12
    assert report["rules"]["all 32"] == {"rollouts": 32.0, "found": 1.0, "found_above": 1.0}
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "12 or a success" in printed


def test_without_any_success_the_program_says_so(tmp_path: Any, capsys: Any) -> None:
    given = (["r0"], np.zeros((1, 64), dtype=bool))
    assert filtering.main(["--out", str(tmp_path / "out")], given=given) == 0
    assert "nothing to compare" in capsys.readouterr().out
