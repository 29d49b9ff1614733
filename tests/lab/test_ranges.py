"""Every stated range of the lab, measured as `evals.lab` does, on fewer problems."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals import lab

pytest.importorskip("llama_cpp")


@pytest.mark.slow
@pytest.mark.timeout(5400)  # a quarter of an hour, and more where the machine is busy
def test_every_range_of_the_lab_is_held(tmp_path: Path) -> None:
    code = lab.main(["--problems", "250", "--samples", "32", "--out", str(tmp_path)])
    missed = [g for g in json.loads((tmp_path / "lab.json").read_text())["gates"] if not g["held"]]
    assert missed == []
    assert code == 0
