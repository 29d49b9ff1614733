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
    expected = {path.stem for path in (ROOT / "programs").glob("[!_]*.py")}
    expected |= {f"evals.{path.stem}" for path in (ROOT / "evals").glob("[!_]*.py")}
    assert expected
    for name in expected:
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert len(line.split()) > 3, f"{name} has no description"


def test_a_listed_program_can_be_imported_and_called() -> None:
    for name, (module, line) in cli.available().items():
        source = (ROOT / module.removeprefix("stepwise.").replace(".", "/")).with_suffix(".py").read_text()
        assert "main" in source, name
        assert line.endswith((".", ":")), f"the first line of {name} is no sentence: {line!r}"


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
