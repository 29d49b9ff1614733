"""Random-weight models in the shape of real ones are what transformers and llama.cpp take for such a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from evals import shapes
from stepwise.training.export.gguf import export_gguf
from tests.training.parity import difference, random_ids

for _package in ("torch", "transformers", "gguf", "llama_cpp"):
    pytest.importorskip(_package)


def test_two_layers_of_qwen3_0_6b_agree_with_transformers(tmp_path: Path) -> None:
    config = {**shapes.SHAPES["qwen3-0.6b"], "num_hidden_layers": 2, "vocab_size": 512}
    model_dir = shapes.write_checkpoint(config, tmp_path / "model")
    path = export_gguf(model_dir, tmp_path / "model.gguf", "f32")
    worst, spread = difference(model_dir, path, random_ids(model_dir, 30))
    assert worst < 1e-4
    assert spread > 0.1


@pytest.mark.parametrize("tied", [True, False])
def test_the_full_shape_has_the_tensors_and_sizes_of_transformers(tied: bool) -> None:
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = {**shapes.SHAPES["qwen3-0.6b"], "tie_word_embeddings": tied}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(Qwen3Config(**config))
    expected = {name: tuple(value.shape) for name, value in model.named_parameters()}
    ours = shapes._outer_shapes(config)
    for i in range(config["num_hidden_layers"]):
        ours.update(shapes._layer_shapes(config, f"model.layers.{i}."))
    assert ours == expected


def test_a_model_that_is_there_already_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {**shapes.SHAPES["qwen3-0.6b"], "num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 600}
    monkeypatch.setitem(shapes.SHAPES, "small", small)
    path = shapes.random_model("small", tmp_path)
    written = path.stat().st_mtime_ns
    assert shapes.random_model("small", tmp_path) == path
    assert path.stat().st_mtime_ns == written
    assert list(tmp_path.iterdir()) == [path], "the scratch directory is removed"
