"""A merged model computes what PEFT computes, in transformers and in the engine, whole and as base with adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.errors import DataError
from stepwise.models.engine import Engine
from stepwise.training import export_gguf, export_lora_gguf
from stepwise.training.adapters import merge
from tests.tiny_models import tiny_model
from tests.training.parity import llama_logits, random_ids, transformers_logits
from tests.training.test_export_lora import random_adapter

for _package in ("torch", "transformers", "peft", "gguf", "llama_cpp"):
    pytest.importorskip(_package)

EXACT = 1e-4


def made(tmp_path: Path, arch: Any = "qwen3", **options: Any) -> tuple[Path, Path, Any]:
    """Base, adapter and the PEFT model that computes with both."""
    base = tiny_model(tmp_path / "base", arch, tied=options.pop("tied", True), dtype=options.pop("dtype", "float32"))
    return base, tmp_path / "adapter", random_adapter(base, tmp_path / "adapter", **options)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_merged_model_its_gguf_and_base_with_adapter_agree_with_peft(tmp_path: Path, arch: Any) -> None:
    base, adapter, peft_model = made(tmp_path, arch)
    merged = merge(adapter, tmp_path / "merged")
    ids = random_ids(base, 60)
    wanted = transformers_logits(peft_model, ids)
    whole = export_gguf(merged, tmp_path / "merged.gguf", "f32")
    apart = export_gguf(base, tmp_path / "base.gguf", "f32"), export_lora_gguf(adapter, tmp_path / "adapter.gguf")
    found = {
        "merged": transformers_logits(merged, ids),
        "merged gguf": llama_logits(whole, ids),
        "base and adapter gguf": llama_logits(apart[0], ids, apart[1]),
    }
    assert {name: float(np.abs(logits - wanted).max()) < EXACT for name, logits in found.items()} == dict.fromkeys(
        found, True
    )
    assert np.abs(transformers_logits(base, ids) - wanted).max() > 0.1


def test_the_engine_serves_both_forms_with_equal_scores(tmp_path: Path) -> None:
    base, adapter, peft_model = made(tmp_path)
    whole = export_gguf(merge(adapter, tmp_path / "merged"), tmp_path / "merged.gguf", "f32")
    plain, lora = export_gguf(base, tmp_path / "base.gguf", "f32"), export_lora_gguf(adapter, tmp_path / "lora.gguf")
    ids, last = random_ids(base, 40), [39]
    wanted = transformers_logits(peft_model, ids)[last][:, :50]
    exact: dict[str, Any] = {"kv_type": "f32", "flash_attention": False, "sequences": 2, "context": 128}
    with Engine.load(whole, **exact) as merged, Engine.load(plain, adapter=lora, **exact) as adapted:
        for engine in (merged, adapted):
            assert np.abs(engine.score([ids], [last], range(50))[0].logits - wanted).max() < EXACT
        assert merged.tokenize("Tom has 12 books.") == adapted.tokenize("Tom has 12 books.")
        chat = [{"role": "user", "content": "How many?"}]
        assert merged.chat_ids(chat) == adapted.chat_ids(chat)


def test_a_bfloat16_base_is_merged_in_float32(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base, adapter, _ = made(tmp_path, dtype="bfloat16")
    exact = load_file(merge(adapter, tmp_path / "exact") / "model.safetensors")
    weights, factors = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        a, b = (factors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        wanted = weights[f"{name}.weight"].float() + 12 / 4 * b @ a
        assert exact[f"{name}.weight"].dtype == torch.float32
        assert torch.allclose(exact[f"{name}.weight"], wanted, atol=1e-6)


def test_merging_leaves_the_base_as_it_was(tmp_path: Path) -> None:
    base, adapter, _ = made(tmp_path)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    merge(adapter, tmp_path / "merged")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_a_tied_head_that_was_adapted_parts_from_the_embedding(tmp_path: Path) -> None:
    base, adapter, peft_model = made(tmp_path, target_modules=["lm_head", "v_proj"])
    merged = merge(adapter, tmp_path / "merged")
    ids = random_ids(base, 30)
    gguf = export_gguf(merged, tmp_path / "merged.gguf", "f32")
    wanted = transformers_logits(peft_model, ids)
    assert np.abs(transformers_logits(merged, ids) - wanted).max() < EXACT
    assert np.abs(llama_logits(gguf, ids) - wanted).max() < EXACT


def test_what_a_lora_gguf_cannot_hold_is_merged(tmp_path: Path) -> None:
    base, adapter, peft_model = made(tmp_path, use_dora=True, use_rslora=True)
    gguf = export_gguf(merge(adapter, tmp_path / "merged"), tmp_path / "merged.gguf", "f32")
    ids = random_ids(base, 30)
    assert np.abs(llama_logits(gguf, ids) - transformers_logits(peft_model, ids)).max() < EXACT


def test_peft_loads_the_layout_that_training_writes(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from stepwise.config import Config
    from stepwise.training.lora import load_trainee

    base = tiny_model(tmp_path / "base", "qwen3")
    gguf = export_gguf(base, tmp_path / "base.gguf", "f32")
    cfg = Config.load(None, [f"models.weak.model=llamacpp/{gguf}", f"models.weak.train_from={base}", "lora.rank=4"])
    trainee = load_trainee(cfg)
    for index, parameter in enumerate(trainee.trainable()):
        parameter.data.normal_(std=0.05 + index / 1000)
    folder = trainee.save(tmp_path / "adapter")
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    ids = random_ids(base, 20)
    wanted = transformers_logits(trainee.model, ids)
    assert np.abs(transformers_logits(again, ids) - wanted).max() < EXACT
    assert np.abs(llama_logits(gguf, ids, trainee.export(tmp_path / "lora.gguf")) - wanted).max() < EXACT
    assert np.abs(transformers_logits(merge(folder, tmp_path / "merged"), ids) - wanted).max() < EXACT


def test_a_wrong_base_or_place_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    _, adapter, _ = made(tmp_path)
    other = tiny_model(tmp_path / "other", "qwen3", intermediate_size=320)
    with pytest.raises(DataError, match=r"does not fit the base .*other.*mlp\.down_proj is \(128, 320\)"):
        merge(adapter, tmp_path / "merged", other)
    assert not (tmp_path / "merged").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="full exists and is not empty"):
        merge(adapter, tmp_path / "full")
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "someone/model"}))
    with pytest.raises(DataError, match=r"'someone/model' of adapter .* is no directory with a config\.json"):
        merge(adapter, tmp_path / "merged")
    assert merge(adapter, tmp_path / "merged", tmp_path / "base").is_dir()


def test_the_lab_critic_finds_its_base_by_name(tmp_path: Path) -> None:
    from stepwise.lab import model_path

    merged = merge(model_path("lab-critic", "safetensors"), tmp_path / "merged")
    assert json.loads((merged / "config.json").read_text())["dtype"] == "float32"
    assert (merged / "chat_template.jinja").is_file()
