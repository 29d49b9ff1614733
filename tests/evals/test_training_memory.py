"""The memory benchmark counts what tensors take, and both of its sides do the same work."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from evals import training_memory
from evals import training_memory_worker as worker
from evals.training_memory_meter import Meter, count_tensors
from evals.training_memory_worker import Case
from stepwise.errors import DataError

torch = pytest.importorskip("torch", reason='needs pip install "stepwise[train]"')
pytest.importorskip("peft", reason='needs pip install "stepwise[train]"')

SMALL = ["--shapes", "lab-weak", "--rows", "2", "--tokens", "16", "--repeats", "1"]


def options(**given: Any) -> Any:
    return training_memory._Options(**given)


def case(**changes: Any) -> Case:
    known = Case("lab-weak", None, "sft", "float32", 2, 4, 12, 2, False)
    return dataclasses.replace(known, **changes)


def test_tensors_are_counted_once_while_they_live_views_and_backward_passes_included() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    with count_tensors() as counts:
        first = torch.ones(100, 100)  # 40,000 bytes
        view = first.view(-1)[:10]
        view.add_(1.0)
        assert (counts.peak, counts.sizes) == (40_000, [40_000])
        product = first @ weight  # 40,000 more
        del first, view  # the product's backward pass still needs the first one
        product.sum().backward()  # a sum and its gradient are tiny; the weight's gradient and the product's are not
        assert counts.peak >= 3 * 40_000
        assert counts.largest == 40_000
        alive = counts.peak
        del product
        weight.grad = None
        torch.ones(10)
        assert counts.peak == alive, "what is gone does not count any more"
    torch.ones(1000, 1000)
    assert counts.largest == 40_000


def test_a_meter_leaves_out_the_warm_up_and_the_counted_step() -> None:
    meter = Meter("cpu", repeats=3)
    kept = []
    for step in range(meter.steps):
        meter.begin()
        kept.append(torch.ones(1_000_000 if step == meter.steps - 1 else 10))
        meter.end()
    figures = meter.result()
    assert meter.steps == 5
    assert figures["largest_bytes"] == figures["tensor_bytes"] == 4_000_000
    assert figures["step_bytes"] == figures["peak_bytes"] - figures["loaded_bytes"]
    assert figures["seconds"] > 0
    assert len(meter._times) == 3


def test_memory_that_a_step_takes_and_gives_back_is_in_its_peak() -> None:
    meter = Meter("cpu", repeats=1)
    for _ in range(meter.steps):
        meter.begin()
        torch.ones(50_000_000)  # 200 MB, gone at once
        meter.end()
    assert meter.result()["step_bytes"] > 150e6


def test_cases_follow_the_device_and_refuse_what_cannot_be_run() -> None:
    on_cpu = training_memory.cases(options())
    assert [training_memory.label(one) for one in on_cpu] == [
        "lab-weak sft fp32", "lab-weak grpo fp32", "qwen3-0.6b/4 sft fp32", "qwen3-0.6b/4 grpo fp32",
    ]  # fmt: skip
    on_gpu = training_memory.cases(options(device="cuda"))
    assert {(one.shape, one.base, one.method) for one in on_gpu} == {
        (shape, base, method)
        for shape in ("qwen3-0.6b", "qwen3-4b")
        for base in ("bfloat16", "4bit")
        for method in ("sft", "grpo")
    }
    assert {one.prompt + one.completion for one in on_gpu if one.method == "sft"} == {4096}
    assert {(one.rows, one.completion) for one in on_gpu if one.method == "grpo"} == {(8, 1024)}
    assert all(one.layers is None and one.checkpointing for one in on_gpu)
    with pytest.raises(DataError, match="must divide the 4 rows"):
        training_memory.cases(options(rows=4, micro=3))
    with pytest.raises(DataError, match="4bit needs --device cuda"):
        training_memory.cases(options(bases=("4bit",)))
    with pytest.raises(DataError, match=r"known are lab-weak, qwen3-0\.6b, qwen3-4b"):
        training_memory.cases(options(shapes=("qwen3-7b",)))


def test_ratios_say_where_the_two_sides_did_not_do_the_same() -> None:
    def rows(**changes: Any) -> dict[str, Any]:
        figures = {"step_bytes": 10, "tensor_bytes": 6, "tokens_per_second": 30.0, "loss": 2.0, "grad_norm": 1.0}
        theirs = {"step_bytes": 20, "tensor_bytes": 12, "tokens_per_second": 20.0, "loss": 2.0, "grad_norm": 1.0}
        made = {"stepwise": figures, "trl": {**theirs, **changes}}
        given = [{"side": side, "case": dataclasses.asdict(case()), **row} for side, row in made.items()]
        return {training_memory.key(row): row for row in given}

    found = training_memory.ratios(case(), rows())
    assert found is not None
    assert (found["memory"], found["tensors"], found["speed"], found["same"]) == (0.5, 0.5, 1.5, True)
    other = training_memory.ratios(case(), rows(grad_norm=1.01))
    assert other is not None
    assert not other["same"]
    assert training_memory.ratios(case(), rows(error="exit code -9: killed")) is None


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_without_trl_there_are_our_rows_only_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    monkeypatch.setattr(training_memory, "missing", lambda: ["trl"])
    monkeypatch.setattr(training_memory, "alone", worker.run)
    arguments = [*SMALL, "--methods", method, "--out", str(tmp_path / "out")]
    assert training_memory.main(arguments) == 0
    result = json.loads((tmp_path / "out" / "training_memory.json").read_text())
    (row,) = result["rows"]
    assert row["side"] == "stepwise"
    assert 0 < row["largest_bytes"] <= row["tensor_bytes"]
    assert row["grad_norm"] > 0
    assert row["tokens_per_second"] == 2 * 16 / row["cpu_seconds"]
    assert result["ratios"] == []
    assert "trl not installed: our rows only" in capsys.readouterr().out
    monkeypatch.setattr(training_memory, "alone", lambda job: pytest.fail("a finished row is kept"))
    assert training_memory.main(arguments) == 0


def test_a_side_that_fails_is_a_row_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_memory, "missing", lambda: ["trl"])
    monkeypatch.setattr(training_memory, "_model", lambda run, case: tmp_path / "nowhere")
    assert training_memory.main([*SMALL, "--methods", "sft", "--out", str(tmp_path / "out")]) == 1
    (row,) = json.loads((tmp_path / "out" / "training_memory.json").read_text())["rows"]
    assert row["error"].startswith("exit code 1: FileNotFoundError")
    assert "FileNotFoundError" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="needs pip install trl datasets")
def test_both_sides_begin_with_the_same_loss_and_gradient(tmp_path: Path) -> None:
    assert training_memory.main([*SMALL, "--micro", "1", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "training_memory.json").read_text())
    assert [one["same"] for one in result["ratios"]] == [True, True]
    for ours, theirs in zip(result["rows"][::2], result["rows"][1::2], strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
