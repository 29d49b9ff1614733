"""The program that trains routing policies: from a fit to a card that the router takes, killed, wrong input."""

from __future__ import annotations

from pathlib import Path

import pytest

from programs import route, train_router
from stepwise.io import read_rows
from stepwise.routing.learned import Learned, files_of
from stepwise.routing.policy import FOR_GOOD
from stepwise.routing.pomdp.fit import FitCard, RouterFit
from tests.routing.lab_world import LabWorld
from tests.routing.learning_world import LAW, MODEL

pytest.importorskip("torch", reason='training needs pip install "stepwise[train]"')


_NEVER = ("--set", "routing.policy=never")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> LabWorld:
    made = LabWorld(20, split="train")
    made.install(monkeypatch)
    return made


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    names = ("llamacpp/lab-weak", "llamacpp/lab-strong", "llamacpp/lab-scorer")
    card = FitCard(*names, "0", "lab", 150, 300, (700, 500, 200), 180, False, {}, None)
    fit = RouterFit(MODEL.p_weak, MODEL.p_strong, MODEL.hazard, LAW, 9.4, card)
    fit.save(tmp_path / "fit.json")
    return tmp_path / "fit.json"


def start(out: Path, fit: Path, *arguments: object) -> int:
    short = ("--batches", 4, "--size", 8, "--test", 100, "--prices", 0.001, 0.01)
    return train_router.main(["--out", str(out), "--fit", str(fit), *map(str, (*short, *arguments))])


def test_policies_are_trained_and_routed_with(world: LabWorld, fitted: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert route.main(["--out", str(tmp_path / "never"), "--n", "9", "--split", "train", *_NEVER]) == 0
    more = ("--traces", tmp_path / "never" / "traces.jsonl", "--hand-over", "--stay", 2, "--draft-share", 0.1)
    assert start(out, fitted, *more) == 0
    assert "exact plan" in capsys.readouterr().out
    policy = Learned(str(out / "policies"), 0.01)
    assert policy.prices == (0.001, 0.01)
    assert (policy.card.runs, policy.card.pair.weak) == ((0, 1, 2, FOR_GOOD), "llamacpp/lab-weak")
    rows = read_rows(out / "metrics.jsonl")
    assert [row["price"] for row in rows] == [0.001, 0.01]
    assert all(row["objective"] <= 1 for row in rows)
    card = str(files_of(out / "policies", 0.01)[1])
    given = ["--out", str(tmp_path / "routed"), "--split", "train", "--n", "5", "--policy", card]
    assert route.main(given) == 2
    assert "is for the weak model" in capsys.readouterr().err
    assert route.main([*given, "--force", "--overwrite"]) == 0


def test_a_killed_run_takes_what_is_there(world: LabWorld, fitted: Path, tmp_path: Path) -> None:
    assert start(tmp_path / "whole", fitted) == 0
    assert start(tmp_path / "killed", fitted) == 0
    weights, card = files_of(tmp_path / "killed" / "policies", 0.01)
    before = files_of(tmp_path / "killed" / "policies", 0.001)[0].stat().st_mtime_ns
    weights.unlink()
    card.unlink()
    assert start(tmp_path / "killed", fitted) == 0
    assert files_of(tmp_path / "killed" / "policies", 0.001)[0].stat().st_mtime_ns == before
    assert weights.read_bytes() == files_of(tmp_path / "whole" / "policies", 0.01)[0].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fit", "nowhere.json"), "nowhere.json: no such file"),
        (("--prices", 0.1, 0.1), "give each price once"),
        (("--prices", -1), "price"),
        (("--stay", 1), "stay"),
        (("--traces", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: tuple, message: str, world: LabWorld, fitted: Path, tmp_path: Path, capsys
) -> None:
    assert start(tmp_path / "out", fitted, *arguments) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
