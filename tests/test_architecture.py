"""The page about the house names every file, and the functions that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
TREE = PAGE.rpartition("## The tree")[2]
NAMED = re.findall(r"`(?P<file>[\w/]+\.py): (?P<name>\w+)(?:\.\w+)?`", PAGE)


def test_the_tree_has_every_file_once_with_a_remark() -> None:
    folder, listed = "", []
    for line in TREE.splitlines():
        if heading := re.fullmatch(r"( *)(\w[\w/]*)/( .*)?", line):
            folder = "" if heading[2] == "stepwise" else f"{heading[2]}/"
        elif entry := re.fullmatch(r" +(\w+\.py) +(\S.*)", line):
            listed.append(folder + entry[1])
    files = [path.relative_to(ROOT / "stepwise").as_posix() for path in (ROOT / "stepwise").rglob("*.py")]
    files += [path.relative_to(ROOT).as_posix() for path in (ROOT / "programs").glob("*.py")]
    inner = {name for name in files if name.endswith("/__init__.py")}
    assert sorted(set(listed) | inner) == sorted(files)
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_what_the_page_names_is_there(file: str, name: str) -> None:
    path = ROOT / file if file.startswith("programs/") else ROOT / "stepwise" / file
    assert re.search(rf"^(?:class|def|async def) {name}\b|^\s+(?:async )?def {name}\b", path.read_text(), re.MULTILINE)


def test_each_walk_has_at_most_twenty_hops() -> None:
    walks = re.findall(r"^## One .*?(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    assert len(walks) == 2
    assert all(1 < len(re.findall(r"^\d+\. ", walk, re.MULTILINE)) <= 20 for walk in walks)
