"""config.json of a Llama, Qwen2 or Qwen3 model as what GGUF needs: sizes, rope, and which tensors there must be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import ExportError
from stepwise.models.safetensors import check, read_json

ARCHITECTURES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor")


@dataclass(frozen=True)
class GgufConfig:
    """A model's sizes under the names of config.json. `arch` is llama.cpp's name of the architecture.

    Example:
        sizes = read_config(Path("models/Qwen3-0.6B"))
        print(sizes.arch, sizes.layers, sizes.keys(vocab_size=151936)["embedding_length"])
    """

    arch: str
    path: Path
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    rms_norm_eps: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    rope: Mapping[str, Any]

    def keys(self, vocab_size: int) -> dict[str, Any]:
        """The arguments of `gguf.GGUFWriter`'s methods add_NAME, by NAME."""
        keys = {
            "context_length": self.context,
            "embedding_length": self.hidden_size,
            "block_count": self.layers,
            "feed_forward_length": self.intermediate_size,
            "head_count": self.heads,
            "head_count_kv": self.kv_heads,
            "key_length": self.head_dim,
            "value_length": self.head_dim,
            "layer_norm_rms_eps": self.rms_norm_eps,
            "vocab_size": vocab_size,
            "rope_dimension_count": self.head_dim,
            "rope_freq_base": self.rope["rope_theta"],
        }
        kind = self.rope["rope_type"]
        if kind in ("linear", "yarn"):
            from gguf import RopeScalingType

            factor = float(self.rope["factor"])
            keys |= {"rope_scaling_type": RopeScalingType(kind), "rope_scaling_factor": factor}
            if kind == "yarn":
                # llama.cpp multiplies by YaRN's own 0.1 ln(factor) + 1; the key holds what comes on top of it.
                on_top = _yarn_attention_factor(self.rope) / _mscale(factor)
                original = int(self.rope["original_max_position_embeddings"])
                keys |= {"rope_scaling_orig_ctx_len": original, "rope_scaling_attn_factors": on_top}
        return keys

    def rope_factors(self) -> NDArray[np.float32] | None:
        """Divisors of the rotary frequencies, shape (head_dim / 2,), for Llama 3.1's scaling; None for every other.

        With n the number of periods that fit into the original context: n below `low_freq_factor` is divided by
        `factor`, n above `high_freq_factor` is kept, and what is between is interpolated.
        """
        if self.rope["rope_type"] != "llama3":
            return None
        factor, low, high = (float(self.rope[key]) for key in _LLAMA3_KEYS)
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        wavelengths = 2 * math.pi * float(self.rope["rope_theta"]) ** exponents
        periods = float(self.rope["original_max_position_embeddings"]) / wavelengths
        unscaled = np.clip((periods - low) / (high - low), 0, 1)
        return (1 / ((1 - unscaled) / factor + unscaled)).astype(np.float32)

    def tensor_names(self) -> list[str]:
        """Every tensor that the model must have, by its name in transformers, in the order of writing."""
        attention = [f"self_attn.{side}_proj.weight" for side in "qkvo"]
        mlp = [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
        if self.attention_bias:
            attention += [f"self_attn.{side}_proj.bias" for side in ("qkv" if self.arch == "qwen2" else "qkvo")]
        if self.mlp_bias:
            mlp += [name.replace("weight", "bias") for name in mlp]
        if self.arch == "qwen3":
            attention += ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
        block = ["input_layernorm.weight", *attention, "post_attention_layernorm.weight", *mlp]
        names = ["model.embed_tokens.weight"]
        names += [f"model.layers.{i}.{name}" for i in range(self.layers) for name in block]
        return [*names, "model.norm.weight", *([] if self.tied else ["lm_head.weight"])]

    def to_gguf_layout(self, name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """Reorder the rows of Llama's query and key projections (weight, bias, LoRA B); every other tensor as it is.

        transformers rotates the two halves of a head against each other, llama.cpp's Llama rotates neighbouring pairs.
        """
        for part, heads in (("q_proj", self.heads), ("k_proj", self.kv_heads)):
            if self.arch == "llama" and f".self_attn.{part}." in name and not name.endswith(".lora_A.weight"):
                halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
                return halves.swapaxes(1, 2).reshape(tensor.shape)
        return tensor


def read_config(model_dir: Path) -> GgufConfig:
    """Read and check config.json. Raises ExportError that names the key, its value and what is supported.

    >>> from stepwise.lab import model_path
    >>> read_config(model_path("lab-weak", "safetensors")).arch
    'qwen3'
    """
    path = model_dir / "config.json"
    config = read_json(path)
    names = config.get("architectures") or [None]
    arch = ARCHITECTURES.get(str(names[0]), "")
    quantized, activation = config.get("quantization_config"), config.get("hidden_act", "silu")
    sliding = config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or [])
    attention_bias = arch == "qwen2" or bool(config.get("attention_bias"))
    for sound, problem in (
        (
            arch,
            f"architectures is {config.get('architectures')!r}, supported are {', '.join(ARCHITECTURES)}; for "
            "others take llama.cpp's convert_hf_to_gguf.py, and convert_lora_to_gguf.py for adapters",
        ),
        (
            not quantized,
            "quantization_config is set; export the unquantized model, then quantize to GGUF",
        ),
        (activation == "silu", f"hidden_act is {activation!r}; llama.cpp's {arch} has silu only"),
        (not sliding, f"sliding-window attention is on; llama.cpp's {arch} has full attention only"),
        (not (arch == "qwen3" and attention_bias), "attention_bias is true; llama.cpp's qwen3 has no such tensors"),
    ):
        check(sound, f"{path}: {problem}")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        rope = _read_rope(path, config)
        check(
            arch == "llama" or rope["rope_type"] != "llama3",
            f"{path}: rope type 'llama3' is set; llama.cpp's {arch} has no factors of rope frequencies",
        )
        head_dim = int(config.get("head_dim") or (128 if arch == "qwen3" else hidden // heads))
        check(
            arch != "qwen2" or head_dim * heads == hidden,
            f"{path}: head_dim is {head_dim}; llama.cpp's qwen2 has hidden_size / num_attention_heads",
        )
        return GgufConfig(
            arch=arch,
            path=path,
            hidden_size=hidden,
            intermediate_size=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            context=int(config["max_position_embeddings"]),
            rms_norm_eps=float(config["rms_norm_eps"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            attention_bias=attention_bias,
            mlp_bias=arch == "llama" and bool(config.get("mlp_bias")),
            rope=rope,
        )
    except ExportError:
        raise
    except (TypeError, ValueError) as error:
        raise ExportError(f"{path}: a size has a value of the wrong type ({error}); write numbers") from error
    except KeyError as error:
        raise ExportError(
            f"{path}: key {error} is missing; save the model again with a current transformers"
        ) from error


def _read_rope(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling`."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {"rope_theta": config.get("rope_theta", 10000.0), **scaling}
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    kind = rope["rope_type"]
    check(kind in _ROPE_TYPES, f"{path}: rope type {kind!r} is not supported; supported are {', '.join(_ROPE_TYPES)}")
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    check(partial == 1.0, f"{path}: partial_rotary_factor is not 1; only rotation of the whole head is supported")
    for key in {"linear": ("factor",), "llama3": _LLAMA3_KEYS, "yarn": ("factor",)}.get(kind, ()):
        check(rope.get(key) is not None, f"{path}: rope type {kind!r} needs {key}, which is missing")
    rope["original_max_position_embeddings"] = (
        rope.get("original_max_position_embeddings") or config["max_position_embeddings"]
    )
    for key, default in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True)) if kind == "yarn" else ():
        sound = rope.get(key) in (None, default)
        check(sound, f"{path}: YaRN with {key}={rope.get(key)} is not supported; only {default} is")
    return rope


def _mscale(factor: float, weight: float = 1.0) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_attention_factor(rope: Mapping[str, Any]) -> float:
    """What cosines and sines are multiplied by (YaRN, arXiv 2309.00071, section 3.4), as transformers reads it."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    factor = float(rope["factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _mscale(factor, float(rope["mscale"])) / _mscale(factor, float(rope["mscale_all_dim"]))
    return _mscale(factor)
