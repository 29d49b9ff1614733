"""The throughput benchmark measures every way on the same work."""

from __future__ import annotations

import json
from pathlib import Path

from evals.throughput import main


def test_every_way_writes_its_tokens_and_the_ratios_are_of_their_rates(tiny_gguf_path: Path, tmp_path: Path) -> None:
    options = ["--problems", "3", "--singles", "1", "--steps", "2", "--tokens", "4", "--repeats", "1"]
    assert main(["--model", str(tiny_gguf_path), *options, "--out", str(tmp_path / "out")]) == 0
    result = json.loads((tmp_path / "out" / "throughput.json").read_text())
    assert result["tokens"]["lockstep"] == 3 * 2 * 4
    assert result["tokens"]["one"] == result["tokens"]["straight"] == 2 * 4
    rates = result["tokens_per_second"]
    assert result["ratios"]["one / straight"] == rates["one"] / rates["straight"]
