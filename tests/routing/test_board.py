"""What a board is made of: costs by hand, seeds taken together, files, and what may be compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from stepwise.errors import ConfigError, DataError
from stepwise.routing.board import Board, BoardRow
from stepwise.routing.compare import Measured, judged
from stepwise.routing.entries import FEES, SHARES, FittingData, entries_of
from stepwise.routing.metrics import cost_of
from stepwise.types import Problem, Step, Trace, Usage

FACTS = {"problems": "40 (x)", "weak": "w", "strong": "s", "prompt": "p", "prices": {"weak": [1, 2]}}


def row(entry: str, right: float, cost: float, setting: float | None = None, n: int = 40, seed: int = 0) -> BoardRow:
    correct = tuple(float(i * 7919 % n < right * n) for i in range(n))
    spent = tuple(cost * (1 + i % 2) for i in range(n))
    return BoardRow(entry, "step", setting, correct, spent, spent, spent, None, "k", seed)


def board(right: float, cost: float = 20.0, **facts: str) -> Board:
    rows = [row("never", 0.4, 0), row("always", 1.0, 100), row("mine", right, cost, 0.1), row("mine", 0.5, 5, 0.2)]
    return Board.of({**FACTS, **facts}, rows)


def test_costs_are_counted_by_hand_with_cached_prompt_tokens_at_their_price() -> None:
    steps = (
        Step("a", "weak", usage=Usage("w", 1, 100, 40, 10)),  # 60 of 100 prompt tokens came from a cache
        Step("So \\boxed{2}.", "strong", usage=Usage("s", 1, 200, 200, 30)),
    )
    view = judged(Trace(Problem("p", "1 + 1?", "2"), steps, "answer"))
    measured = Measured("m", "m", 0.5, (view,), cost_of([view.trace]))
    prices = {"weak": (1.0, 2.0, 0.1), "strong": (10.0, 20.0)}
    speeds = {"weak": (1000.0, 10.0), "strong": (100.0, 5.0)}
    found = BoardRow.of("m", "step", "k", 0, measured, prices, speeds)
    assert (found.correct, found.strong_tokens, found.all_tokens) == ((1.0,), (30.0,), (40.0,))
    assert found.money == pytest.approx(((40 * 1 + 60 * 0.1 + 10 * 2 + 200 * 10 + 30 * 20) / 1e6,))
    assert found.seconds == pytest.approx((40 / 1000 + 10 / 10 + 200 / 100 + 30 / 5,))
    assert BoardRow.of("m", "step", "k", 0, measured, {"weak": (1.0, 2.0)}, None).money is None


def test_seeds_are_averaged_problem_by_problem() -> None:
    rows = [dataclasses.replace(row("a", 0.5, 10.0 + 2 * seed, 0.5), seed=seed) for seed in (0, 1)]
    (both,) = Board.of({}, rows).rows
    assert both.correct == rows[0].correct
    assert both.strong_tokens[:2] == (11.0, 22.0)
    with pytest.raises(DataError, match="different numbers of problems"):
        Board.of({}, [rows[0], row("a", 0.5, 1.0, 0.5, n=20)])


def test_a_board_comes_back_from_its_file(tmp_path: Path) -> None:
    made = board(0.9)
    made.save(tmp_path / "board.json", figures={"a": 1})
    assert Board.load(tmp_path / "board.json") == dataclasses.replace(
        made, rows=tuple(dataclasses.replace(each, seed=-1) for each in made.rows)
    )
    assert (tmp_path / "board.json").read_text().count("\n") > len(made.rows)  # a row a line
    (tmp_path / "board.json").write_text('{"facts": {}, "rows": [{"entry": 1}]}')
    with pytest.raises(DataError, match="holds no board"):
        Board.load(tmp_path / "board.json")


def test_the_figures_of_an_entry_are_those_of_its_settings_mixed() -> None:
    (line,) = board(0.95).lines("strong_tokens", reference="mine", samples=50)
    assert (line.entry, line.settings, line.over) == ("mine", 2, None)
    assert (line.area.value or 0) > 0.8
    assert (line.cpt[0.8].value or 1) < 0.3
    assert (line.gains[0.2].value or 0) > 0.3
    assert board(0.95).lines("seconds") == []  # not known
    with pytest.raises(DataError, match="no entry 'yours'; it has never, always, mine"):
        board(0.95).mixed("yours", "strong_tokens")


def test_an_entry_is_called_better_or_worse_only_where_its_interval_says_so() -> None:
    verdicts = {change.cost: change.verdict for change in board(0.95).against(board(0.5), samples=200)}
    assert verdicts == {"strong_tokens": "better", "all_tokens": "better", "money": "better"}
    assert {change.verdict for change in board(0.5).against(board(0.95), samples=200)} == {"worse"}
    same = [*board(0.7).against(board(0.7), samples=200)]
    assert {(change.verdict, change.area.value) for change in same} == {("not told apart", 0.0)}


def test_boards_of_other_problems_models_or_prompts_are_refused_and_other_prices_not_compared() -> None:
    for key in ("problems", "weak", "strong", "prompt"):
        with pytest.raises(DataError, match=f"the boards differ in {key}: .* measure both on the same"):
            board(0.7).refuse_other(board(0.7, **{key: "another"}))
    dearer = Board({**FACTS, "prices": {"weak": [3, 4]}}, board(0.7).rows)
    assert "money" not in {change.cost for change in dearer.against(board(0.7), samples=20)}


def test_fewer_points_are_taken_evenly_and_an_unknown_entry_is_refused() -> None:
    assert FittingData(None, (), (), (), points=3).spread(SHARES) == [SHARES[0], SHARES[6], SHARES[-1]]
    assert FittingData(None, (), (), ()).spread(FEES) == list(FEES)
    assert [entry.name for entry in entries_of(["planned"])] == ["never", "always", "planned"]
    with pytest.raises(ConfigError, match="did you mean 'planned'"):
        entries_of(["planed"])


def test_thresholds_of_an_entry_flag_shares_of_what_was_seen() -> None:
    from stepwise.routing import Threshold

    data = FittingData(None, (), (), (), points=3)
    values = np.linspace(0, 1, 101).tolist()
    points = [policy.threshold for policy in data.thresholds(Threshold(), "low", values)]
    flagged = [np.mean([value < point for value in values]) for point in points]
    assert flagged == pytest.approx([SHARES[0], SHARES[6], SHARES[-1]], abs=0.011)
    with pytest.raises(DataError, match="no draft of 0 problems"):
        data.thresholds(Threshold(), "low", [])
