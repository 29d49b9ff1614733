"""The benchmark of decisions measures every policy on the belief and writes what it measured."""

from __future__ import annotations

import json

from evals.decisions import STEPS, main, view


def test_the_benchmark_times_each_policy_for_both_observations(tmp_path):
    code = main(["--repeats", "2", "--calls", "20", "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "decisions.json").read_text())
    assert (result["data"], result["bar_us"]) == ("stand-in", 50)
    timed = {(row["policy"], row["history"], row["observation"]) for row in result["rows"]}
    assert len(timed) == len(result["rows"]) == 9
    assert {policy for policy, _, _ in timed} == {"threshold", "belief", "planned", "published"}
    assert code == int(not all(row["held"] for row in result["rows"]))
    for row in result["rows"]:
        dearest = max(row[f"step_{n}_us"] for n in STEPS)
        assert dearest > 0
        assert row["held"] == (dearest < 50)
        assert row["of_bar"] == dearest / 50
        assert (row["update_us"] is None) == (row["policy"] == "threshold")
        if row["history"] == "filter":
            assert row["step_30_us"] > row["step_1_us"]


def test_the_views_have_kept_and_escalated_steps():
    for steps in STEPS:
        seen = view(steps)
        assert (seen.index, len(seen.scores)) == (steps - 1, steps)
    authors = [step.author for step in view(30).steps]
    assert set(authors) == {"weak", "strong"}
    assert all(step.discarded for step in view(30).steps if step.author == "strong")


def test_a_missing_file_is_a_clear_error(tmp_path, capsys):
    assert main(["--data", str(tmp_path / "none.json"), "--out", str(tmp_path / "out")]) == 2
    assert "no such file" in capsys.readouterr().err.replace("\n", " ")
