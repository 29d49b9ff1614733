"""The benchmark of the head: it is measured on problems that it has not seen, beside scores that need none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evals.probe import HEAD, PLAIN, main, qualities
from evals.scorers_tables import CHEAP, splits_of
from stepwise.data.step_labels import LabelledSolution, write_step_labels
from stepwise.models.scorers.head import HeadCard
from stepwise.models.states import STATISTICS, Floats

CARD = HeadCard("m@12345678", "0123456789ab", 4)


def solutions(n: int, width: int = 4, signal: float = 4.0) -> tuple[list[LabelledSolution], list[list[Floats]]]:
    """Three steps each, the last one wrong in every other solution: its state's first number is lower by `signal`."""
    rng = np.random.default_rng(0)
    made, vectors = [], []
    for i in range(n):
        wrong = i % 2
        made.append(LabelledSolution.of(f"{i} + 1?", ["One.", "Add.", f"It is {i}."], [1, 1, 1 - wrong]))
        rows = rng.normal(size=(3, 2 * width + len(STATISTICS))).astype(np.float32)
        rows[2, 0] -= signal * wrong
        vectors.append(list(rows))
    return made, vectors


def test_the_head_is_better_than_scores_without_one_where_the_states_know() -> None:
    made, vectors = solutions(60)
    rows: dict[str, Any] = {row.name: row for row in qualities(CARD, made, vectors, splits_of(made, {}, 3))}
    assert set(rows) == {HEAD, *PLAIN, CHEAP}
    assert rows[HEAD].auroc.value > 0.9
    assert rows[HEAD].f1.value > rows["least_logprob"].f1.value
    assert rows["mean_entropy"].auroc.value < 0.75
    assert 0 <= rows[HEAD].ece.value < 0.2


def test_no_head_knows_the_problems_that_it_is_measured_on() -> None:
    made, vectors = solutions(60, width=100, signal=0.0)  # more numbers than steps: what was fitted would be known
    card = HeadCard("m@12345678", "0123456789ab", 100)
    head: Any = qualities(card, made, vectors, splits_of(made, {}, 3))[0]
    assert head.name == HEAD
    assert head.auroc.value < 0.95  # the place of the step alone has .90


def test_one_command_prints_what_the_head_is_worth_and_what_states_cost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = solutions(40)
    labels = tmp_path / "labels.jsonl"
    write_step_labels(labels, made)
    model = ["--set", "models.weak.context=256", "--set", "models.weak.sequences=4", "--out", str(tmp_path / "out")]
    command = ["--labels", str(labels), "--folds", "2", "--speed", "--counts", "1", "--steps", "1", "--tokens", "4"]
    assert main([*command, "--repeats", "1", *model]) == 0
    said = capsys.readouterr().out
    assert "40 solutions, 20 first errors among 120 steps" in said
    assert "with states" in said
    assert len((tmp_path / "out" / "states.jsonl").read_text().splitlines()) == 40


@pytest.mark.slow
def test_heads_on_other_layers_stand_beside_one_on_the_last_of_the_same_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, _ = solutions(40)
    labels, out = tmp_path / "labels.jsonl", tmp_path / "out"
    write_step_labels(labels, made)
    model = ["--set", "models.weak.model=llamacpp/lab-weak", "--set", "models.weak.context=256"]
    command = ["--labels", str(labels), "--folds", "2", "--layers", "1", *model, "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "heads by layer" in said
    assert "head, layer 1 of" in said
    (file, *others) = (out / "layers").iterdir()
    assert len(others) == 39
    states = np.load(file)
    assert states.shape[:3] == (3, 2, 2)
    assert not np.allclose(states[:, 0], states[:, 1])
