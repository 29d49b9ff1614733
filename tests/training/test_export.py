"""A GGUF that `export_gguf` wrote computes what transformers computes, at every position."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwise.errors import ExportError, MissingDependencyError
from stepwise.training import export_gguf
from tests.tiny_models import tiny_model
from tests.training.parity import difference, llama_logits, random_ids

for _package in ("torch", "transformers", "gguf", "llama_cpp"):
    pytest.importorskip(_package)

EXACT = 1e-4
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


def edit_config(model_dir: Path, **changes: Any) -> None:
    path = model_dir / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def model_copy(llama_dir: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(llama_dir, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("llama", {}),
        ("llama", {"tied": False, "hidden_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_attention_heads": 4, "head_dim": 32}),
        ("qwen2", {}),
        ("qwen2", {"tied": False, "hidden_size": 192, "num_attention_heads": 3}),
        ("qwen3", {}),
        ("qwen3", {"tied": False, "hidden_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2}),
    ],
)
def test_f32_logits_agree_with_transformers_at_every_position(
    tmp_path: Path, arch: Any, options: dict[str, Any]
) -> None:
    model_dir = tiny_model(tmp_path / "model", arch, **options)
    path = export_gguf(model_dir, tmp_path / "model.gguf", "f32")
    worst, spread = difference(model_dir, path, random_ids(model_dir, 80))
    assert worst < EXACT
    assert spread > 0.5, "logits that are all alike would agree whatever the weights are"


@pytest.mark.parametrize(("quantization", "share"), [("f16", 0.02), ("q8_0", 0.4)])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_f16_and_q8_0_stay_within_their_share_of_the_logits_spread(
    tmp_path: Path, arch: Any, quantization: Any, share: float
) -> None:
    model_dir = tiny_model(tmp_path / "model", arch)
    path = export_gguf(model_dir, tmp_path / "model.gguf", quantization)
    worst, spread = difference(model_dir, path, random_ids(model_dir, 80))
    assert 1e-3 * spread < worst < share * spread


@pytest.mark.parametrize(
    ("arch", "rope"),
    [
        ("llama", LLAMA3_ROPE),
        ("llama", {"rope_type": "linear", "factor": 4.0}),
        ("llama", YARN_ROPE),
        ("qwen2", {"rope_type": "linear", "factor": 4.0}),
        ("qwen2", YARN_ROPE),
        ("qwen3", {"rope_type": "default", "rope_theta": 1000.0}),
        ("qwen3", YARN_ROPE),
        ("qwen3", {**YARN_ROPE, "attention_factor": 1.3}),
        ("qwen3", {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 0.5}),
    ],
)
def test_scaled_rope_agrees_beyond_the_original_context(tmp_path: Path, arch: Any, rope: dict[str, Any]) -> None:
    rope = {"rope_theta": 10000.0, **rope}
    model_dir = tiny_model(tmp_path / "model", arch, rope_parameters=rope)
    ids = random_ids(model_dir, 160)
    path = export_gguf(model_dir, tmp_path / "model.gguf", "f32")
    worst, spread = difference(model_dir, path, ids)
    assert worst < EXACT
    plain_dir = tiny_model(tmp_path / "plain", arch, rope_parameters={"rope_type": "default", "rope_theta": 1e4})
    plain = export_gguf(plain_dir, tmp_path / "plain.gguf", "f32")
    without, _ = difference(model_dir, plain, ids)
    assert without > 0.1 * spread, "the settings must matter at this length"


@pytest.mark.parametrize("layout", ["rope_type", "type"])
def test_rope_settings_of_older_configs_give_the_same_file(tmp_path: Path, layout: str) -> None:
    model_dir = tiny_model(tmp_path / "model", "llama", rope_parameters=LLAMA3_ROPE)
    new = export_gguf(model_dir, tmp_path / "new.gguf", "f16").read_bytes()
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key not in ("rope_theta", "rope_type")}
    scaling[layout] = "llama3"
    edit_config(model_dir, rope_parameters=None, rope_theta=500000.0, rope_scaling=scaling)
    assert export_gguf(model_dir, tmp_path / "old.gguf", "f16").read_bytes() == new


def test_shards_and_half_precision_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    for dtype in ("bfloat16", "float16"):
        model_dir = tiny_model(tmp_path / dtype, "qwen3", dtype=dtype, max_shard_size="100KB")
        assert len(list(model_dir.glob("model-*.safetensors"))) > 1
        path = export_gguf(model_dir, tmp_path / f"{dtype}.gguf", "f32")
        assert difference(model_dir, path, random_ids(model_dir, 40))[0] < EXACT


def test_rows_that_are_no_multiple_of_32_become_f16_in_a_q8_0_file(tmp_path: Path) -> None:
    from gguf import GGUFReader

    model_dir = tiny_model(tmp_path / "model", "llama", hidden_size=144, intermediate_size=256)
    path = export_gguf(model_dir, tmp_path / "model.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    worst, spread = difference(model_dir, path, random_ids(model_dir, 40))
    assert worst < 0.4 * spread


def test_a_vocabulary_smaller_than_the_embedding_is_padded(tmp_path: Path) -> None:
    model_dir = tiny_model(tmp_path / "model", "qwen2", vocab_size=448)
    path = export_gguf(model_dir, tmp_path / "model.gguf", "f32")
    ids = random_ids(model_dir, 40)
    assert llama_logits(path, ids).shape == (40, 448)
    assert difference(model_dir, path, ids)[0] < EXACT


def test_equal_models_give_equal_files_and_nothing_else_is_left_behind(llama_dir: Path, tmp_path: Path) -> None:
    first = export_gguf(llama_dir, tmp_path / "out" / "a.gguf")
    second = export_gguf(str(llama_dir), str(tmp_path / "out" / "b.gguf"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.gguf", "b.gguf"]


def test_an_export_that_fails_midway_keeps_the_old_file(model_copy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "model.gguf"
    old = export_gguf(model_copy, out).read_bytes()
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4096])
    with pytest.raises(ExportError, match="cut short"):
        export_gguf(model_copy, out)
    assert out.read_bytes() == old
    assert [file.name for file in out.parent.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MistralForCausalLM"]},
            r"MistralForCausalLM.*supported are LlamaForCausalLM, Qwen2ForCausalLM",
        ),
        ({"architectures": ["Qwen3ForCausalLM"], "attention_bias": True}, "attention_bias is true"),
        ({"architectures": ["Qwen2ForCausalLM"], "head_dim": 32}, "head_dim is 32"),
        (
            {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
            "rope type 'longrope'.*supported are default",
        ),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8}}, "needs low_freq_factor"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4, "beta_fast": 16}}, "beta_fast=16"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"architectures": ["Qwen3ForCausalLM"], "rope_parameters": LLAMA3_ROPE}, "rope type 'llama3' is set"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"rms_norm_eps": None}, "'rms_norm_eps' is missing"),
        ({"hidden_size": "wide"}, r"wrong type.*'wide'"),
        ({"num_hidden_layers": 3}, r"lacks 9 tensors, first model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"9 tensors that no llama model has, first model\.layers\.1"),
        ({"tie_word_embeddings": False}, r"lacks 1 tensors, first lm_head\.weight"),
    ],
)
def test_a_model_that_llama_cpp_would_run_differently_is_refused(
    model_copy: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(model_copy, **changes)
    with pytest.raises(ExportError, match=message):
        export_gguf(model_copy, model_copy / "out.gguf")
    assert not list(model_copy.glob("*.gguf*"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named_with_the_remedy(model_copy: Path, name: str) -> None:
    (model_copy / name).unlink()
    with pytest.raises(ExportError, match=rf"{name} does not exist.*save_pretrained"):
        export_gguf(model_copy, model_copy / "out.gguf")


def test_damaged_and_foreign_weight_files_are_refused(model_copy: Path) -> None:
    weights = model_copy / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(b"not safetensors")
    with pytest.raises(ExportError, match="no safetensors file"):
        export_gguf(model_copy, model_copy / "out.gguf")
    weights.write_bytes(good.replace(b'"dtype":"F32"', b'"dtype":"I32"', 1))
    with pytest.raises(ExportError, match="stored as I32; supported are F32, F16, BF16"):
        export_gguf(model_copy, model_copy / "out.gguf")
    weights.rename(model_copy / "pytorch_model.bin")
    with pytest.raises(ExportError, match="pickled weights"):
        export_gguf(model_copy, model_copy / "out.gguf")


def test_an_unknown_quantization_is_refused(llama_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'q4_k'.*q8_0, f16, f32"):
        export_gguf(llama_dir, tmp_path / "out.gguf", "q4_k")  # type: ignore[arg-type]


def test_without_gguf_the_error_names_the_extra(
    llama_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)  # importing it raises ImportError
    with pytest.raises(MissingDependencyError, match=r'pip install "stepwise\[train\]"'):
        export_gguf(llama_dir, tmp_path / "out.gguf")


def test_rope_factors_equal_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from stepwise.training.export.config import GgufConfig

    rope = {**LLAMA3_ROPE, "original_max_position_embeddings": 8192}
    config = GgufConfig("llama", Path(), 2048, 8192, 16, 32, 8, 64, 131072, 1e-5, True, False, False, rope)
    reference = LlamaConfig(hidden_size=2048, num_attention_heads=32, head_dim=64, rope_parameters=rope)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](reference, "cpu")
    factors = config.rope_factors()
    assert factors is not None
    plain = 500000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(plain / factors, frequencies.numpy(), rtol=1e-5)
    assert set(np.round(factors[[0, -1]], 5)) == {1.0, 8.0}
