"""A LoRA adapter written as GGUF computes in llama.cpp what PEFT computes in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwise.errors import ExportError
from stepwise.training import export_gguf, export_lora_gguf
from tests.tiny_models import tiny_model
from tests.training.parity import difference, random_ids, transformers_logits

for _package in ("torch", "transformers", "peft", "gguf", "llama_cpp"):
    pytest.importorskip(_package)

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_adapter(base_dir: Path, adapter_dir: Path, **options: Any) -> Any:
    """Save an adapter whose B is random instead of zero, and return the PEFT model that computes with it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {"r": 4, "lora_alpha": 12, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **options}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    model.save_pretrained(adapter_dir, save_embedding_layers=False)
    return model


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        (
            "llama",
            {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.1.self_attn.k_proj": 3}},
        ),
        ("qwen3", {"alpha_pattern": {"down_proj": 5}, "layers_to_transform": [1]}),
    ],
)
def test_an_adapter_agrees_with_peft_at_every_position(tmp_path: Path, arch: Any, options: dict[str, Any]) -> None:
    base_dir = tiny_model(tmp_path / "base", arch, num_attention_heads=4, head_dim=32, num_key_value_heads=2)
    model = random_adapter(base_dir, tmp_path / "adapter", **options)
    base = export_gguf(base_dir, tmp_path / "base.gguf", "f32")
    adapter = export_lora_gguf(tmp_path / "adapter", tmp_path / "adapter.gguf")
    ids = random_ids(base_dir, 60)
    assert difference(model, base, ids, adapter)[0] < 1e-4
    assert abs(transformers_logits(model, ids) - transformers_logits(base_dir, ids)).max() > 0.1


def test_an_untied_head_may_be_adapted_and_a_tied_one_may_not(tmp_path: Path) -> None:
    for tied in (False, True):
        base_dir = tiny_model(tmp_path / f"base-{tied}", "llama", tied=tied)
        model = random_adapter(base_dir, tmp_path / f"adapter-{tied}", target_modules=["lm_head", "v_proj"])
        if tied:
            with pytest.raises(ExportError, match=r"lm_head\.lora_A.*export --merge"):
                export_lora_gguf(tmp_path / "adapter-True", tmp_path / "out.gguf", base_dir)
        else:
            base = export_gguf(base_dir, tmp_path / "base.gguf", "f32")
            adapter = export_lora_gguf(tmp_path / "adapter-False", tmp_path / "adapter.gguf", base_dir)
            assert difference(model, base, random_ids(base_dir, 40), adapter)[0] < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.*is not LoRA on a matrix"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' also changed the base"),
    ],
)
def test_what_a_gguf_adapter_cannot_hold_is_refused_with_the_remedy(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    base_dir = tiny_model(tmp_path / "base", "llama", tied=False)
    random_adapter(base_dir, tmp_path / "adapter", **options)
    with pytest.raises(ExportError, match=message) as caught:
        export_lora_gguf(tmp_path / "adapter", tmp_path / "out.gguf")
    assert "export --merge" in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def test_a_base_model_that_is_not_on_disk_is_asked_for(tmp_path: Path) -> None:
    base_dir = tiny_model(tmp_path / "base", "qwen3")
    random_adapter(base_dir, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "someone/model"}))
    with pytest.raises(ExportError, match=r"'someone/model' is no directory.*base_dir"):
        export_lora_gguf(tmp_path / "adapter", tmp_path / "out.gguf")
    assert export_lora_gguf(tmp_path / "adapter", tmp_path / "out.gguf", base_dir).is_file()


def test_missing_adapter_files_are_named(tmp_path: Path) -> None:
    base_dir = tiny_model(tmp_path / "base", "qwen3")
    random_adapter(base_dir, tmp_path / "adapter")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / "adapter" / name).unlink()
        with pytest.raises(ExportError, match=f"{name} does not exist"):
            export_lora_gguf(tmp_path / "adapter", tmp_path / "out.gguf")
