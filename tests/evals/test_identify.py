"""The study of what can be told without labels, at a small size: the figures that the refusals of a fit stand on."""

from __future__ import annotations

import json

from evals import identify


def test_without_labels_correlated_scores_spoil_the_laws_and_nothing_else() -> None:
    clean = identify.one("independent scores", 1500, 0)
    mixed = identify.one("correlated scores (.5)", 1500, 0)
    assert clean["no labels"]["now"] < 0.12
    assert mixed["no labels"]["now"] > 2 * mixed["all labels"]["now"]
    assert mixed["no labels"]["p_weak"] < 0.02
    assert mixed["50 labelled, wrong laws from them"]["now"] < mixed["no labels"]["now"]


def test_a_share_that_recovers_must_be_known() -> None:
    found = identify.one("a fifth recovers", 1000, 0)
    assert found["no labels"]["p_weak"] > 0.02 > found["no labels, recovery known"]["p_weak"]


def test_the_program_writes_a_row_for_each_world_arm_and_size(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert identify.main(["--traces", "150", "--seeds", "1", "--out", str(tmp_path / "out")]) == 0
    rows = json.loads((tmp_path / "out" / "identify.json").read_text())
    assert {row["world"] for row in rows} == set(identify.WORLDS)
    assert all(0 <= row["found"] <= 1 for row in rows)
    assert "no labels" in capsys.readouterr().out
