"""The board as a program: entries of the library and of one's own, a run that goes on, a board beside another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from programs import board
from stepwise.config import Config
from stepwise.io import append_rows
from stepwise.routing.board import Board
from tests.fakes import Line
from tests.routing.lab_world import LabWorld
from tests.routing.test_on_lab import shipped

SIZE = ["--n", "10", "--set-n", "10", "--fit-n", "24", "--points", "2", "--resamples", "50"]
ENTRIES = ["threshold", "question classifier", "truth at each step", "random"]


@pytest.fixture(scope="module")
def world() -> LabWorld:
    made = LabWorld(20, "test")
    for split, n in (("train", 24), ("val", 10)):
        made.made |= LabWorld(n, split).made
    return made


def start(world: LabWorld, out: Path, *args: str) -> int:
    code: int = board.main(["--out", str(out), *SIZE, *args], models=(world.weak, world.strong, world.scorer))
    return code


@pytest.fixture(scope="module")
def made(world: LabWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("board") / "out"
    own = ["examples.own_entry:ENTRY", "examples.own_policy:Early"]
    assert start(world, out, "--entries", *ENTRIES, *own, "--scorers", "examples.own_scorer:Sums") == 0
    return out


def test_all_entries_stand_on_the_board_and_the_truth_leads_it(made: Path) -> None:
    found = Board.load(made / "board.json")
    scored = ["threshold", "Early"]
    plain = ["question classifier", "truth at each step", "random", "strong beginning"]
    assert set(found.entries) == {"never", "always", *scored, *(f"{name}, Sums" for name in scored), *plain}
    lines = found.lines("strong_tokens", samples=50)
    areas = {line.entry: line.area.value or 0.0 for line in lines}
    assert areas["truth at each step"] > areas["random"] + 0.1
    assert len(found.entries["strong beginning"]) == 2
    figures = json.loads((made / "board.json").read_text())["figures"]
    assert [line["entry"] for line in figures["strong_tokens"]] == [line.entry for line in lines]
    page = (made / "board.html").read_text()
    assert "At equal strong tokens" in page
    assert "strong beginning" in page


def test_a_run_cut_off_goes_on_and_ends_in_the_same_rows_without_asking_a_model_again(
    world: LabWorld, made: Path
) -> None:
    file = made / "rows.jsonl"
    rows = file.read_text().splitlines()
    file.write_text("\n".join(rows[:5]) + "\n")
    asked = len(world.weak.requests) + len(world.strong.requests)
    own = ["examples.own_entry:ENTRY", "examples.own_policy:Early"]
    assert start(world, made, "--entries", *ENTRIES, *own, "--scorers", "examples.own_scorer:Sums") == 0
    assert file.read_text().splitlines() == rows
    assert len(world.weak.requests) + len(world.strong.requests) == asked


def test_a_board_beside_an_earlier_one(world: LabWorld, made: Path, tmp_path: Path, capsys: Any) -> None:
    kept = tmp_path / "kept.json"
    kept.write_text((made / "board.json").read_text())
    assert start(world, tmp_path / "out", "--entries", "threshold", "--against", str(kept)) == 0
    assert "not told apart" in capsys.readouterr().out
    anew = ["--against", str(kept), "--overwrite"]
    assert start(world, tmp_path / "out", *anew, "--set", "sampling.temperature=0.5") == 2
    assert "the boards differ in sampling" in capsys.readouterr().err
    assert start(world, tmp_path / "out", *anew, "--n", "8") == 2
    assert "the boards differ in problems" in capsys.readouterr().err
    kept.write_text("{}")
    assert start(world, tmp_path / "out", "--against", str(kept)) == 2
    assert "give the board.json of a run" in capsys.readouterr().err


def test_prices_put_a_table_of_money_beside_that_of_tokens(world: LabWorld, tmp_path: Path, capsys: Any) -> None:
    prices = [f"models.{role}.price_{way}={x}" for role, x in (("weak", 0.1), ("strong", 9)) for way in ("in", "out")]
    given = [text for price in prices for text in ("--set", price)]
    assert start(world, tmp_path / "out", "--entries", "threshold", *given, "--json") == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["cost"] for line in told} >= {"strong_tokens", "money"}
    assert all(line["area"]["low"] <= line["area"]["value"] <= line["area"]["high"] for line in told)


def test_problems_of_ones_own_without_labels_leave_out_what_needs_them_and_say_so(
    world: LabWorld, tmp_path: Path, capsys: Any
) -> None:
    append_rows(tmp_path / "mine.jsonl", world.problems[:20])
    mine = ["--problems", str(tmp_path / "mine.jsonl")]
    assert start(world, tmp_path / "out", *mine, "--entries", "threshold", "planned", "question classifier") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "planned is left out: it needs step labels" in said
    assert "question classifier is left out: it needs problems to fit on (--fit-on)" in said
    assert set(Board.load(tmp_path / "out" / "board.json").entries) == {"never", "always", "threshold"}
    assert len(Board.load(tmp_path / "out" / "board.json").rows[0].correct) == 10  # others set the thresholds


def test_solutions_lost_to_an_outage_are_said_and_tried_again(tmp_path: Path, capsys: Any) -> None:
    world = LabWorld(10, "test")
    world.made |= LabWorld(10, "val").made
    down = {"problem": "lab/test/3"}
    step = world._step

    def failing(problem: Any, *rest: Any, **slips: Any) -> Any:
        if problem.id == down["problem"]:
            return Line(error="no route to host")
        return step(problem, *rest, **slips)

    world._step = failing  # type: ignore[method-assign]
    assert start(world, tmp_path / "out", "--entries", "random") == 0
    assert "solutions were lost to a failure, and count as wrong" in " ".join(capsys.readouterr().out.split())
    down["problem"] = ""
    assert start(world, tmp_path / "out", "--entries", "random") == 0
    assert "lost to a failure" not in capsys.readouterr().out
    rows = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
    assert len(rows) == 4  # never, always, two of random


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--entries", "treshold"], "did you mean 'threshold'"),
        (["--entries", "fractions:Fraction"], "is no policy; give a Policy, or an Entry"),
        (["--adapters", "int=gone.gguf"], "--adapters int=gone.gguf: there is no such file"),
        (["--n", "2"], "2 problems to measure and 10 to set on"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    world: LabWorld, tmp_path: Path, capsys: Any, args: list[str], said: str
) -> None:
    assert start(world, tmp_path / "out", *args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_dry_run_says_the_most_that_is_asked(tmp_path: Path, capsys: Any) -> None:
    assert board.main(["--out", str(tmp_path / "out"), "--dry-run", "--n", "4", "--entries", "threshold"]) == 0
    out = capsys.readouterr().out
    assert "strong" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not shipped(), reason="the lab's models are not in this checkout")
def test_the_usual_entries_and_a_trained_weak_model_on_thirty_lab_problems(tmp_path: Path) -> None:
    from stepwise.lab import round_path

    adapter = f"round 2={round_path(2) / 'adapter.gguf'}"
    args = [
        "--n",
        "30",
        "--set-n",
        "40",
        "--fit-n",
        "100",
        "--points",
        "3",
        "--adapters",
        adapter,
        "--out",
        str(tmp_path / "out"),
    ]
    assert board.main(args) == 0
    found = Board.load(tmp_path / "out" / "board.json")
    assert found.facts["prompt"] == Config.lab().prompt.hash
    areas = {line.entry: line.area.value or 0.0 for line in found.lines("strong_tokens")}
    assert areas["truth at each step"] > 0.9
    assert max(areas["threshold"], areas["planned"]) > areas["random"] + 0.1
    assert areas["after round 2"] > areas["threshold"]
    assert found.facts["speeds"]["weak"][0] > 0
