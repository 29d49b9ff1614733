"""The comparison of the formats counts what was asked, keeps finished calls, and says what it skips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import dspy
import pytest
from pydantic import Field

from evals.adapters import invalid, main, tasks
from stepwise.lab import generate
from stepwise.models.shared import close_engines


def test_it_compares_the_formats_and_goes_on_where_it_was(
    tiny_gguf_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--set", "models.critic.model=llamacpp/none.gguf"]
    options = ["--model", f"llamacpp/{tiny_gguf_path}", "--threads", "4", *missing, "--out", str(tmp_path / "out")]
    counts = ["--calls", "1", "--free", "1", "--problems", "1"]
    assert main([*counts, *options]) == 0
    assert "Accuracy is skipped" in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "adapters.json").read_text())
    held, free = result["random weights"][:3], result["random weights"][3:]
    assert [row["format"] for row in held] == [row["format"] for row in free] == ["compact", "chat", "json"]
    assert [(row["calls"], row["parsed"], row["repairs"]) for row in held] == [(1, 1, 0)] * 3
    assert [(row["calls"], row["parsed"], row["repairs"]) for row in free] == [(1, 0, 1)] * 3
    assert held[0]["prompt_tokens"] < held[1]["prompt_tokens"]
    assert result["critic"] == []
    written = (tmp_path / "out" / "calls.jsonl").read_bytes()
    assert main([*counts, *options]) == 0
    assert (tmp_path / "out" / "calls.jsonl").read_bytes() == written, "nothing was asked again"
    close_engines()


def test_each_signature_of_the_library_has_its_turn_with_all_of_its_inputs() -> None:
    turn = [task for task, _ in zip(tasks(generate("val", 1)), range(7), strict=False)]
    assert len({name for name, _, _ in turn}) == 7
    for name, signature, inputs in turn:
        assert set(signature.input_fields) == set(inputs), name


@pytest.mark.parametrize(("value", "right"), [(2, True), (7, False), ("2", False), (True, False), (None, False)])
def test_types_and_constraints_are_checked_strictly(value: Any, right: bool) -> None:
    made = dspy.Signature({
        "question": (str, dspy.InputField()),
        "place": (Annotated[int, Field(ge=0, le=3)], dspy.OutputField()),
    })  # fmt: skip
    assert (invalid(made, dspy.Prediction(place=value)) == []) is right
    assert len(invalid(made, dspy.Prediction())) == 1
