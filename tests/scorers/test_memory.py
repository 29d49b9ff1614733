"""Memory needs: the formula against real models, and the published figures in the package's table."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import stepwise.models.scorers
from stepwise.models.scorers.memory import decoder_parameters, kv_bytes
from tests.tiny_models import tiny_model

QWEN_15B = {"model_type": "qwen2", "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
            "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936}  # fmt: skip
QWEN_7B = {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
           "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064}  # fmt: skip
QWEN_72B = {"model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 152064}  # fmt: skip
QWEN3_4B = {"model_type": "qwen3", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
            "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}  # fmt: skip


@pytest.mark.parametrize("arch", ["qwen2", "qwen3", "llama"])
def test_parameters_are_those_of_the_model_that_transformers_builds(tmp_path: Path, arch: str) -> None:
    pytest.importorskip("torch")
    from safetensors.torch import load_file

    folder = tiny_model(tmp_path / arch, arch, tied=True)  # type: ignore[arg-type]
    held = load_file(folder / "model.safetensors")
    assert decoder_parameters(json.loads((folder / "config.json").read_text())) == sum(v.numel() for v in held.values())


def test_the_cache_holds_keys_and_values_of_every_layer() -> None:
    assert kv_bytes(QWEN_7B, 1) == 2 * 2 * 28 * 4 * 128
    assert kv_bytes(QWEN3_4B, 10, 1.0) == 10 * 2 * 36 * 8 * 128


@pytest.mark.parametrize(
    ("name", "config", "head"),
    [
        ("Skywork-o1-Open-PRM-Qwen-2.5-1.5B", QWEN_15B, 1536 + 1),
        ("Qwen2.5-Math-PRM-7B", QWEN_7B, 3584 * 3584 + 3584 + 2 * 3584 + 2),
        ("Qwen2.5-Math-PRM-72B", QWEN_72B, 8192 * 8192 + 8192 + 2 * 8192 + 2),
    ],
)
def test_the_table_says_what_the_formula_gives(name: str, config: dict[str, int], head: int) -> None:
    row = re.search(rf"^\| {re.escape(name)} \|.*$", stepwise.models.scorers.__doc__ or "", re.MULTILINE)
    assert row is not None
    _, _, _, parameters, weights, cache, *_ = (cell.strip() for cell in row[0].split("|"))
    count = decoder_parameters(config) + head
    assert float(parameters) == pytest.approx(count, rel=0.005)
    assert float(weights) == pytest.approx(2 * count / 1e9, abs=0.05)
    assert float(cache) == pytest.approx(kv_bytes(config, 4096) / 1e9, abs=0.005)


def test_the_small_scorer_fits_beside_a_4b_model_and_the_large_one_only_beside_a_quantized_one() -> None:
    beside = decoder_parameters(QWEN3_4B)
    small = 2 * decoder_parameters(QWEN_15B) + kv_bytes(QWEN_15B, 4096)
    large = 2 * (decoder_parameters(QWEN_7B) + 3584 * 3584) + kv_bytes(QWEN_7B, 4096)
    context = 4 * kv_bytes(QWEN3_4B, 4096)
    assert 2 * beside + context + small < 24e9 * 0.6
    assert 2 * beside + context + large > 24e9
    assert 34 / 32 * beside + context + large < 24e9 * 0.9
