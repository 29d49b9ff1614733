"""What a model takes, computed from its config.json: parameters of a decoder, and its key-value cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def decoder_parameters(config: Mapping[str, Any]) -> int:
    """Weights of a Llama, Qwen2 or Qwen3 decoder without a language-modelling or any other head.

    `config` has the names of config.json. Attention biases are counted for Qwen2, query and key norms for Qwen3.
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    pairs = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or width // heads
    kind = config.get("model_type", "qwen2")
    projected = (heads + 2 * pairs) * size
    layer = width * projected + heads * size * width + 3 * width * inner + 2 * width
    layer += projected if kind == "qwen2" or config.get("attention_bias") else 0
    layer += 2 * size if kind == "qwen3" else 0
    return int(config["vocab_size"] * width + config["num_hidden_layers"] * layer + width)


def kv_bytes(config: Mapping[str, Any], tokens: int, element_bytes: float = 2.0) -> int:
    """Key-value cache of `tokens` tokens; 2 bytes an element is f16 or bf16."""
    heads = config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    pairs = config.get("num_key_value_heads") or heads
    return int(tokens * config["num_hidden_layers"] * 2 * pairs * size * element_bytes)
