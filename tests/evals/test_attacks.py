"""The attacks in short: everything survives, and a client that keeps nothing is caught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals import attacks

SHORT = ["--requests", "10", "--mutants", "20"]


def test_faults_of_the_server_and_damaged_files_cost_no_answer_and_no_money_twice(tmp_path: Path) -> None:
    names = ["429", "connection reset before the reply", "negative counts", "nested 100,000 deep"]
    assert attacks.main([*SHORT, "--attacks", *names, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "attacks.json").read_text())
    assert [row["attack"] for row in result["attacks"]] == names
    assert all(row["held"] and row["faulty"] >= 2 for row in result["attacks"])
    assert all(row["held"] and row["copies"] > 40 for row in result["files"])


def test_a_client_without_persistence_fails(tmp_path: Path) -> None:
    few = ["--requests", "5", "--mutants", "1", "--attacks", "negative counts"]
    arguments = [*few, "--no-persist", "--out", str(tmp_path / "out")]
    assert attacks.main(arguments) == 1
    (row,) = json.loads((tmp_path / "out" / "attacks.json").read_text())["attacks"]
    assert row["again"] > 0


def test_an_attack_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert attacks.main(["--attacks", "flood", "--out", str(tmp_path / "out")]) == 2
    assert "no such attack" in capsys.readouterr().err


@pytest.mark.slow
def test_every_attack_in_full(tmp_path: Path) -> None:
    assert attacks.main(["--out", str(tmp_path / "out")]) == 0
