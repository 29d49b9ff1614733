"""What README and docs show is run: every Python snippet, every command.

A command says `# not run: why` where it takes too long or needs what is not here. The others are run as they stand, in
one directory, in the order of the pages: dry runs and snippets here, all of them under `make test-slow`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from stepwise.cli import PROGRAMS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_MAKES_THE_ENVIRONMENT = ("make", "pip", "source")  # what stands before any test: CI runs the two of make
_ALLOWED_NOT_RUN = 10  # beside those of real.md, all of which need real models


class Command(NamedTuple):
    """A command of a page, without its comment; `reason`: why it is not run, where the page says so."""

    page: str
    text: str
    reason: str

    @property
    def arguments(self) -> list[str]:
        words = shlex.split(self.text)
        return (
            [sys.executable, "-m", "stepwise.cli", *words[1:]]
            if words[0] == "stepwise"
            else [sys.executable, *words[1:]]
        )


def _commands() -> list[Command]:
    """Commands of indented blocks, and code spans that have arguments; each text once, however often it is named."""
    found: dict[str, Command] = {}
    for page in PAGES:
        text = page.read_text()
        blocks = re.findall(r"^    ((?:stepwise|python) .*)$", text.replace("\\\n", " "), re.MULTILINE)
        spans = re.findall(r"`((?:stepwise\s[^`]*?\s--|python -m\s(?!\w+\.NAME))[^`]*)`", text)
        for shown in [*blocks, *spans]:
            command, _, comment = shown.partition("  #")
            words = " ".join(command.split())
            reason = re.search(r"not run: (.*)", comment)
            if words not in found or reason:
                found[words] = Command(page.name, words, reason[1] if reason else "")
    return list(found.values())


COMMANDS = _commands()
RUN = [command for command in COMMANDS if not command.reason]


def _directory(folder: Path) -> Path:
    """Where the commands of the pages find the files that they name: README's own, and a data set of one row."""
    config = re.search(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert config
    (folder / "mine.toml").write_text(config[1])
    row = re.search(r"\{\"id\": \"1\".*?\}", (ROOT / "README.md").read_text())
    assert row
    (folder / "problems.jsonl").write_text(json.dumps(json.loads(row[0])) + "\n")
    (own,) = re.findall(r"```python\n((?:(?!```).)*class Early.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (folder / "my_file.py").write_text(own)
    (folder / "DATA" / "gsm8k").mkdir(parents=True)
    gold = {"question": "Two and three?", "answer": "It is 5.\n#### 5"}
    (folder / "DATA" / "gsm8k" / "test.jsonl").write_text(json.dumps(gold) + "\n")
    return folder


def _run(command: Command, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ANTHROPIC_API_KEY": "none"}
    return subprocess.run(command.arguments, cwd=folder, capture_output=True, text=True, env=environment)


def test_pages_have_commands_and_at_most_ten_are_not_run() -> None:
    assert {command.page for command in RUN} >= {"README.md", "methods.md", "training.md", "results.md"}
    reasons = [command.reason for command in COMMANDS if command.page != "real.md" and command.reason]
    assert len(reasons) <= _ALLOWED_NOT_RUN


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.text[:60])
def test_a_command_names_a_program_that_exists(command: Command) -> None:
    words = shlex.split(command.text)
    if words[0] == "stepwise":
        assert words[1] in PROGRAMS
    else:
        assert (ROOT / f"{words[2].replace('.', '/')}.py").is_file(), words[2]


@pytest.mark.parametrize("command", [c for c in RUN if "--dry-run" in c.text], ids=lambda command: command.text[:60])
def test_a_dry_run_of_a_page_says_what_it_would_spend(command: Command, tmp_path: Path) -> None:
    folder = _directory(tmp_path)
    for config in folder.glob("*.toml"):  # a dry run asks no model, but its files must be there
        for name in re.findall(r'"llamacpp/([^"]+\.gguf)"', config.read_text()):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
    done = _run(command, folder)
    assert done.returncode == 0, done.stderr
    assert "Dry run" in done.stdout


def test_python_of_each_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    """One process for all pages, in a directory and a module of its own each: most of the time is imports."""
    scripts = []
    for page in PAGES:
        if snippets := re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            scripts.append(tmp_path / page.stem / "page.py")
            scripts[-1].parent.mkdir()
            scripts[-1].write_text("\n".join(snippets))
    run = "import os, runpy, sys\nfor path in sys.argv[1:]: os.chdir(os.path.dirname(path)), runpy.run_path(path)"
    command = [sys.executable, "-c", run, *map(str, scripts)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert len(scripts) >= 2
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_every_command_of_the_pages_runs_as_it_stands(tmp_path: Path) -> None:
    folder, failed = _directory(tmp_path), []
    for command in RUN:
        start, done = time.monotonic(), _run(command, folder)
        print(f"{command.text}: exit {done.returncode} after {time.monotonic() - start:.0f} s", flush=True)
        if done.returncode != 0:
            failed.append(f"{command.page}: {command.text}: exit {done.returncode}: {done.stderr[-500:]}")
    assert not failed, "\n".join(failed)
