"""Generative reward models measured: what is said of a row is kept, and not asked for again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals import generative


def test_rows_are_scored_once_and_the_table_is_of_those_that_were_asked_for(
    tiny_gguf_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp")
    rows = [{"problem": "2 + 3?", "steps": [f"2 + 3 = {n}.", "That is all."], "label": n - 6} for n in (5, 6, 5, 6)]
    data, places, out = tmp_path / "rows.json", tmp_path / "places.json", tmp_path / "out"
    data.write_text(json.dumps(rows))
    places.write_text("[1, 2, 3]")
    asked = ["--model", str(tiny_gguf_path), "--data", str(data), "--rows", str(places), "--critique_tokens", "4"]
    assert generative.main([*asked, "--out", str(out), "--n", "1"]) == 0
    assert "1 wrong and 0 right solutions" in capsys.readouterr().out
    assert generative.main([*asked, "--out", str(out), "--n", "3"]) == 0
    printed = capsys.readouterr().out
    assert "2 wrong and 1 right solutions" in printed
    assert "came to a verdict: 0% of 6 critiques" in printed
    kept = (out / "rows.jsonl").read_text().splitlines()
    assert [json.loads(row)["place"] for row in kept] == [1, 2, 3]
    assert generative.main([*asked, "--out", str(out), "--n", "3"]) == 0
    assert (out / "rows.jsonl").read_text().splitlines() == kept
