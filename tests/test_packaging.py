import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONSTRAINTS = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]


def test_every_package_of_the_checkout_is_installed() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "stepwise").rglob("*.py")}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"stepwise.programs"}


def test_every_file_that_is_no_code_is_package_data() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    covered = {
        path
        for package, globs in patterns.items()
        for glob in globs
        for path in (ROOT / package.replace(".", "/")).glob(glob)
    }
    for path in (ROOT / "stepwise").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert path in covered, f"{path.relative_to(ROOT)} would not be installed"


def test_constraints_are_exact_versions_and_nothing_else() -> None:
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line), line
    assert "torch==2.13.0" in CONSTRAINTS


def test_every_direct_dependency_is_constrained() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    direct = [*PROJECT["project"]["dependencies"], *extras["train"], *extras["serve"], *extras["dev"]]
    fixed = {line.partition("==")[0].lower().replace("_", "-") for line in CONSTRAINTS}
    for requirement in direct:
        name = re.split(r"[\[<>=!~ ]", requirement)[0].lower().replace("_", "-")
        assert name in fixed, f"{name} is not in constraints.txt"


def test_the_core_asks_for_no_training_library() -> None:
    names = " ".join(PROJECT["project"]["dependencies"])
    assert not re.search(r"\b(torch|transformers|peft|accelerate)\b", names)


@pytest.mark.parametrize("version", ["3, 10", "2, 7"])
def test_an_old_python_is_told_what_to_do(version: str) -> None:
    script = (ROOT / "tools" / "check_machine.py").read_text()
    old = f"import sys; sys.version_info = ({version}, 0)\n" + script
    done = subprocess.run([sys.executable, "-c", old], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs Python 3.11 or later" in done.stderr
    assert "PYTHON=" in done.stderr


def test_a_missing_compiler_is_told_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_machine.py")],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "No C++ compiler found" in done.stderr
