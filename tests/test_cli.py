import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

import stepwise
from stepwise import cli
from stepwise.config import Config

ROOT = Path(__file__).parent.parent


def runnable(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.py") if "@program(" in path.read_text())


def test_help_lists_every_program_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert sorted(cli.PROGRAMS) == runnable("programs")
    assert {"config", "demo", "route"} <= set(cli.PROGRAMS)
    assert len(cli.PROGRAMS) <= 19
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in cli.PROGRAMS:
        (line,) = [line for line in lines if line.strip("│ ").split()[:1] == [name]]
        assert len(line.split()) > 4
        assert len(line) <= 120


def help_of(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *names: str) -> str:
    assert main([*names, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", runnable("programs"))
def test_every_program_answers_for_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(cli.main, capsys, name)
    assert text.startswith(f"Usage: stepwise {name} ")
    assert "--dry-run" in text


def test_help_of_one_method_has_its_options_alone(capsys: pytest.CaptureFixture[str]) -> None:
    text, all_of_them = help_of(cli.main, capsys, "train", "sft"), help_of(cli.main, capsys, "train")
    assert "--dataset" in text
    assert "--samples" in text
    assert "--labels PATH" not in text
    assert "--labels PATH" in all_of_them


@pytest.mark.parametrize("name", runnable("evals"))
def test_every_benchmark_answers_for_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(importlib.import_module(f"evals.{name}").main, capsys)
    assert text.startswith(f"Usage: python -m evals.{name} ")
    assert "--dry-run" in text


def test_the_command_runs_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "stepwise.cli", "config", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: stepwise config ")


def test_a_wrong_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["confg"]) == 2
    assert 'Unknown command "confg". Did you mean "config"?' in capsys.readouterr().err


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
