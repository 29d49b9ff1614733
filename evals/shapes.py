"""Random-weight models in the exact shape of real ones, for measuring speed without downloading anything.

python -m evals.shapes qwen3-0.6b --out DIR
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import MissingDependencyError
from stepwise.training.export.gguf import Quantization, export_gguf

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
    "qwen3-4b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 9728,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    },
}


def random_model(shape: str, out_dir: Path, quantization: Quantization = "q8_0", *, seed: int = 0) -> Path:
    """Path of a GGUF in `out_dir` with the shape `SHAPES[shape]`; one that is there already is taken as it is.

    The tokenizer is a small real one; all other ids up to the vocabulary's size are unused tokens. Weights go through
    half-precision shards in a scratch directory inside `out_dir` (1.2 GB for 0.6 billion parameters).
    """
    if shape not in SHAPES:
        raise SystemExit(f"shape is {shape!r}; it must be one of {', '.join(SHAPES)}")
    path = out_dir / f"{shape}-random-{seed}-{quantization}.gguf"
    if not path.is_file():
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
            export_gguf(write_checkpoint(SHAPES[shape], Path(scratch) / shape, seed=seed), path, quantization)
    return path


def write_checkpoint(config: Mapping[str, Any], model_dir: Path, *, seed: int = 0) -> Path:
    """Write a Qwen3 model of that `config` (keys of config.json) in transformers format, one shard per layer."""
    from safetensors.numpy import save_file

    try:
        from tests.tiny_models import train_tokenizer, write_tokenizer
    except ImportError as error:
        raise MissingDependencyError(
            f"random shapes are made in a checkout of the repository only ({error})"
        ) from error
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer("qwen2")
    write_tokenizer(model_dir, tokenizer)
    eos = tokenizer.token_to_id("<|im_end|>")
    (model_dir / "config.json").write_text(json.dumps({**config, "eos_token_id": eos, "dtype": "float16"}, indent=2))
    rng = np.random.default_rng(seed)
    weight_map: dict[str, str] = {}
    parts = [f"model.layers.{i}." for i in range(config["num_hidden_layers"])]
    for number, prefix in enumerate(["", *parts], start=1):
        file = f"model-{number:05d}-of-{len(parts) + 1:05d}.safetensors"
        shapes = _layer_shapes(config, prefix) if prefix else _outer_shapes(config)
        save_file({name: _random(rng, size) for name, size in shapes.items()}, model_dir / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(shapes, file))
    (model_dir / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return model_dir


def _outer_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (vocab, hidden)}
    return {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,), **head}


def _layer_shapes(config: Mapping[str, Any], prefix: str) -> dict[str, tuple[int, ...]]:
    hidden, inner, head_dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.q_norm.weight": (head_dim,),
        "self_attn.k_norm.weight": (head_dim,),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    return {prefix + name: size for name, size in shapes.items()}


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float16]:
    """Norms near one, matrices of standard deviation 0.02 (the initialisation of the real models)."""
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(0.02)
    if len(shape) == 1:
        values += np.float32(1)
    return values.astype(np.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--out", type=Path, default=Path("out/shapes"))
    parser.add_argument("--quantization", choices=["q8_0", "f16", "f32"], default="q8_0")
    arguments = parser.parse_args()
    path = random_model(arguments.shape, arguments.out, arguments.quantization)
    print(f"{path} ({path.stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
