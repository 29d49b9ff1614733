"""One file of problems, in the columns in which it was published, goes through every program that takes problems."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from programs import build_dataset, calibrate, intervene, route, train

GSM8K = [
    {"question": "Ann has 3 apples and buys 4. How many?", "answer": "3 + 4 = <<3+4=7>>7 apples.\n#### 7"},
    {"question": "Ben has 9 pens and loses 2. How many?", "answer": "9 - 2 = <<9-2=7>>7 pens.\n#### 7"},
]
PROGRAMS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "route": (route.main, ["--problems", "FILE"]),
    "calibrate": (calibrate.main, ["--budget", "20", "--problems", "FILE", "--measure-on", "FILE"]),
    "intervene": (intervene.main, ["--problems", "FILE"]),
    "build_dataset": (build_dataset.main, ["--kind", "reference", "--problems", "FILE"]),
    "train": (train.main, ["rl", "--problems", "FILE", "--test", "FILE"]),
}


def start(name: str, file: Path, out: Path) -> int:
    main, arguments = PROGRAMS[name]
    return main([*(str(file) if part == "FILE" else part for part in arguments), "--out", str(out), "--dry-run"])


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_published_file_is_read_as_it_is(name: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"gsm8k{suffix}"
    file.write_text(json.dumps(GSM8K) if suffix == ".json" else "".join(json.dumps(row) + "\n" for row in GSM8K))
    assert start(name, file, tmp_path / "out") == 0


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_gold_that_is_prose_is_refused_before_anything_is_spent(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prose.jsonl"
    file.write_text(json.dumps({"question": "How many?", "answer": "It is 42"}) + "\n")
    assert start(name, file, tmp_path / "out") == 2
    assert "row 1, field answer: 'It is 42' is prose; give the answer alone" in capsys.readouterr().err
