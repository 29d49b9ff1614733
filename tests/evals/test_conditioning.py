"""The critic's benchmark on a few problems: every arm is there, and what is told is consistent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("dspy")


def test_it_measures_every_arm_on_held_out_problems_and_goes_on_where_it_was(tmp_path: Path, capsys) -> None:
    from evals.conditioning import main

    arguments = ["--problems", "8", "--samples", "3", "--out", str(tmp_path / "out")]
    main(arguments)
    found = json.loads((tmp_path / "out" / "conditioning.json").read_text())
    located = found["localization"]
    critic = located["lab-critic, full"]
    assert critic["wrong"] + critic["right"] == 8
    assert critic["calls"] == 8
    assert critic["acc_err"] > located["random"]["acc_err"]
    table = found["conditioning"]
    assert 0 < table["hard"] <= 8
    assert {row["of"] for row in table["rows"].values()} == {table["hard"]}
    rows = {name.strip(): row["accuracy"] for name, row in table["rows"].items()}
    assert rows["+ prefix, original wrong step"] <= rows["+ prefix, intervention"]
    assert rows["+ correct prefix"] < rows["+ prefix, true step"]
    before = (tmp_path / "out" / "parts.jsonl").read_text()
    capsys.readouterr()
    main([*arguments])
    assert (tmp_path / "out" / "parts.jsonl").read_text() == before
    assert "should be at least 3" in " ".join(capsys.readouterr().out.split())
