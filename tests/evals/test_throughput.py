"""The throughput benchmark measures every way on the same work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.throughput import AIMS, main


def test_every_way_writes_its_tokens_and_a_ratio_below_its_aim_is_said_and_ends_in_1(
    tiny_gguf_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--problems", "3", "--singles", "1", "--steps", "2", "--tokens", "4", "--repeats", "1"]
    code = main(["--model", str(tiny_gguf_path), *options, "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out" / "throughput.json").read_text())
    assert result["tokens"]["lockstep"] == 3 * 2 * 4
    assert result["tokens"]["one"] == result["tokens"]["straight"] == 2 * 4
    rates = result["tokens_per_second"]
    assert result["ratios"]["one / straight"] == rates["one"] / rates["straight"]
    missed = [pair for pair, aim in AIMS.items() if result["ratios"][pair] < aim]
    assert code == int(bool(missed))
    said = " ".join(capsys.readouterr().out.split())
    assert not missed or said.endswith(f"MISSED: {', '.join(missed)}")
