"""What learning from escalations leaves over: the rows of an arm, and what is read off its rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals import drift
from evals.drift_tables import ANEW, ARMS, FEWEST, ONCE, PLANTED, Round, area_of, facts_of, verdict, without_power
from stepwise.config import Config
from stepwise.lab.families import SCORER_BLIND_SPOT
from stepwise.types import Problem, Step, Trace

SEEN, UNSEEN = ("week", 0.1), (SCORER_BLIND_SPOT, 0.95)


def after(arm: str, number: int, errors: list[tuple[str, float]], blind: int = 4, **more: Any) -> Round:
    """Ten plain problems, of which the first ones have these errors, and so many of the blind family, all wrong."""
    plain = [(name, (0.9, score)) for name, score in errors] + [("", (0.9, 0.9))] * (10 - len(errors))
    made = [*plain, *[(SCORER_BLIND_SPOT, (0.9, 0.95))] * blind]
    scores = tuple(score for _, score in made)
    names = (PLANTED, ONCE, ANEW) if more.pop("refit", False) else (PLANTED, ONCE)
    return Round(arm, 0, number, None, {}, {}, 0, tuple(name for name, _ in made), dict.fromkeys(names, scores))


def test_the_area_of_the_blind_family_is_against_its_errors_alone() -> None:
    row = after("gated", 1, [SEEN] * 3 + [UNSEEN])
    assert area_of(row, PLANTED, 10)(range(10)) == pytest.approx(0.75)  # 3 of 4 errors lie below
    assert area_of(row, PLANTED, 10, "others")(range(10)) == 1.0
    assert area_of(row, PLANTED, 10, "blind")(range(4)) == 0.0
    assert area_of(after("gated", 1, []), PLANTED, 10)(range(10)) is None  # no error, no area


def test_what_is_seen_and_learned_leaves_the_scorer_worse_and_an_arm_that_keeps_it_stops_the_decay() -> None:
    start = after("start", 0, [SEEN] * 8 + [UNSEEN])
    rounds = [start, after("gated", 1, [UNSEEN]), after("random, 5 %", 1, [SEEN] * 8 + [UNSEEN])]
    _, gated, random = facts_of(rounds, 10, 50)
    assert gated["decay"].value == pytest.approx(0.0 - 8 / 9)
    assert "decays" in verdict(gated)
    assert random["decay"].value == 0.0
    assert random["over_gated"].value == pytest.approx(8 / 9)
    assert "is not shown to decay" in verdict(random)
    assert "it stops the decay of gated" in verdict(random)


def test_an_arm_that_refits_is_read_with_its_own_scorer() -> None:
    start = after("start", 0, [SEEN] * 4, refit=True)
    row = after("refitted", 1, [UNSEEN], refit=True)
    row.scores[ANEW] = tuple((0.9, 0.0) if error else (0.9, 0.9) for error in row.errors)
    assert facts_of([start, row], 10, 50)[1]["decay"].value == 0.0


def test_fewer_errors_than_are_needed_are_named() -> None:
    found = facts_of([after("start", 0, [SEEN], blind=FEWEST), after("gated", 1, [SEEN], blind=FEWEST - 1)], 10, 2)
    assert without_power(found) == ["gated, round 1: 99 first errors of the family, no power"]


def test_rows_are_escalated_steps_of_right_solutions_that_differ_from_their_draft_and_whole_ones_of_the_model() -> None:
    def trace(name: str, *steps: Step) -> Trace:
        return Trace(Problem(name, "1 + 1?", "2"), steps, "answer")

    box, draft = Step("So \\boxed{2}.", "weak"), Step("1 + 1 = 3.", "weak")
    other = Step("1 + 1 = 2.", "strong", discarded=(draft,))
    same = Step(draft.text, "strong", discarded=(draft,))
    traces = [
        trace("escalated", other, box),
        trace("same", same, box),
        trace("wrong", other, Step("So \\boxed{3}.", "weak")),
        trace("own", Step("1 + 1 = 2.", "weak"), box),
    ]
    rows, own = drift.examples_of(traces, Config.lab())
    assert [(row.parents["problem"], row.prefix, row.intervention) for row in rows] == [("escalated", (), other.text)]
    assert [(row.parents["problem"], row.complete) for row in own] == [("own", True)]


def test_the_arms_are_those_that_were_stated() -> None:
    assert {"gated", "filtered", "refitted"} < set(ARMS)
    assert [arm.explore for name, arm in ARMS.items() if name.startswith("random")] == [0.05, 0.25]


@pytest.mark.slow
def test_a_run_goes_on_with_another_arm_and_says_that_it_has_no_power(tmp_path: Path, capsys: Any) -> None:
    sizes = ["--train", "40", "--problems", "10", "--blind", "5", "--rounds", "1", "--guided", "2"]
    run = [*sizes, "--out", str(tmp_path)]
    assert drift.main([*run, "--arms", "gated"]) == 1
    first = (tmp_path / "rounds.jsonl").read_text()
    assert drift.main([*run, "--arms", "gated", "filtered"]) == 1
    assert (tmp_path / "rounds.jsonl").read_text().startswith(first)
    assert "no power" in capsys.readouterr().out
    found = json.loads((tmp_path / "drift.json").read_text())
    assert [facts["arm"] for facts in found] == ["start", "gated", "filtered"]
    gated, filtered = (sum(facts["learned"].values()) for facts in found[1:])
    assert 0 < filtered <= gated
