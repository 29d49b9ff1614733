"""Options of every program: what is wrong is said in one line, before anything is written; what a dry run says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest

from stepwise.config import Config
from stepwise.runs.shell import Options, Run, one_of, program
from tests.counting import card, counting


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "here"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--count", "two"], "--count is two: "),
        (["--count", "1.5"], "--count is 1.5: "),
        (["--count"], "--count requires an argument"),
        (["--cuont", "3"], "Did you mean --count?"),
        (["--coun", "3"], "Unknown option: --coun"),
        (["more"], "more"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it_and_nothing_is_written(
    out: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert counting()(["--out", str(out), *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1
    assert not out.exists()


def test_nothing_of_the_environment_becomes_a_setting_or_an_option(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SEED", "seed", "COUNT", "ROUTING", "STEPWISE_SEED", "COUNTING_COUNT"):
        monkeypatch.setenv(name, "7")
    assert counting()(["--out", str(out)]) == 0
    assert card(out)["arguments"] == {"count": 3, "fail_at": -1}
    assert card(out)["config_hash"] == Config().hash


def test_options_that_exclude_one_another_and_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    where = one_of("Where", required=True)

    class Choosing(Options):
        file: Annotated[Path | None, where] = None
        lab: Annotated[int | None, where] = None
        most: int | None = 5
        sums: bool = True

    @program(Choosing, doc="Choose.")
    def main(run: Run[Choosing]) -> None:
        run.write("rows.jsonl", run.args.model_dump(mode="json"))

    assert main(["--file", "a", "--lab", "3"]) == 2
    assert main([]) == 2
    assert capsys.readouterr().err.count("give one of --file, --lab") == 2
    assert main(["--out", str(tmp_path), "--lab", "3", "--most", "none", "--no-sums"]) == 0
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row == {"file": None, "lab": 3, "most": None, "sums": False}


def test_a_dry_run_prints_the_cost_and_writes_nothing(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "--set",
        "models.weak.model=openai/x",
        "--set",
        "models.weak.price_in=1",
        "--set",
        "models.weak.price_out=2",
    ]
    assert counting()(["--out", str(out), "--dry-run", "--count", "1000", *settings]) == 0
    said = capsys.readouterr().out
    for part in ("openai/x", "100,000", "10,000", "0.1200"):
        assert part in said
    assert not out.exists()


def test_a_dry_run_still_refuses_what_the_run_would_refuse(out: Path) -> None:
    assert counting()(["--out", str(out)]) == 0
    assert counting()(["--out", str(out), "--set", "seed=1", "--dry-run"]) == 2


def test_a_wrong_configuration_ends_before_anything_is_written(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert counting()(["--out", str(out), "--set", "routing.treshold=1"]) == 2
    assert 'did you mean "routing.threshold"?' in capsys.readouterr().err
    assert not out.exists()
