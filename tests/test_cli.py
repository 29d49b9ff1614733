import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import stepwise
from stepwise import cli
from stepwise.config import Config

ROOT = Path(__file__).parent.parent


def test_help_lists_every_program_and_benchmark_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    runnable = [
        path
        for folder in ("programs", "evals")
        for path in (ROOT / folder).glob("*.py")
        if "@program(" in path.read_text()
    ]
    expected = {path.stem if path.parent.name == "programs" else f"evals.{path.stem}" for path in runnable}
    assert {"config", "demo", "route", "pretrain_lab", "evals.lab"} <= expected
    for name in expected:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 3, f"{name} has no description"


@pytest.mark.parametrize("name", cli.available())
def test_every_program_answers_for_its_options(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stepwise.cli", name, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: stepwise {name} ")
    assert "--dry-run" in done.stdout


def test_a_wrong_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["confg"]) == 2
    assert 'there is no program "confg"; did you mean "config"?' in capsys.readouterr().err


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"stepwise {stepwise.__version__}\n"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == stepwise.__version__


def test_config_prints_the_annotated_default_which_loads_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["config"]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capsys.readouterr().out)
    assert Config.load(path) == Config.lab()
    assert cli.main(["config", "--config", str(path), "--set", "seed=4"]) == 0
    assert json.loads(capsys.readouterr().out)["seed"] == 4


def test_a_program_runs_as_a_module_of_the_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "programs.config", "--set", "seed=x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --set seed: ")
