"""Running one model in transformers and in llama.cpp, to compare them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def random_ids(model_dir: Path, length: int, seed: int = 0) -> list[int]:
    """Token ids drawn from the model's whole vocabulary."""
    from transformers import AutoConfig

    vocab_size = AutoConfig.from_pretrained(model_dir).vocab_size
    return [int(i) for i in np.random.default_rng(seed).integers(0, vocab_size, length)]


def transformers_logits(model: Path | Any, ids: Sequence[int]) -> NDArray[np.float32]:
    """Logits (T, V) in float32 of a model directory, or of a loaded model."""
    import torch
    from transformers import AutoModelForCausalLM

    if isinstance(model, Path):
        model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([list(ids)])).logits[0].numpy()


def llama_logits(path: Path, ids: Sequence[int], adapter: Path | None = None) -> NDArray[np.float32]:
    """Logits (T, V) of a GGUF with an F32 cache and without flash attention."""
    from llama_cpp import GGML_TYPE_F32, Llama

    llama = Llama(
        str(path),
        n_ctx=max(512, len(ids)),
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        type_k=GGML_TYPE_F32,
        type_v=GGML_TYPE_F32,
        flash_attn=False,
        lora_path=str(adapter) if adapter else None,
        verbose=False,
    )
    with closing(llama):
        llama.eval(list(ids))
        return np.array(llama.scores[: len(ids)])


def difference(model: Path | Any, path: Path, ids: Sequence[int], adapter: Path | None = None) -> tuple[float, float]:
    """Largest absolute difference of the logits over all positions, and the standard deviation of the right ones."""
    right = transformers_logits(model, ids)
    return float(np.abs(llama_logits(path, ids, adapter) - right).max()), float(right.std())
