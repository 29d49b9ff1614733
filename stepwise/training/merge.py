"""Merging a LoRA adapter into a copy of its base, for those who want one file without an adapter.

The sum is taken in float32 on a base that was loaded for it: adding to bfloat16 weights, or to those of a model in use
and taking it off again, leaves a drift behind. Training never needs this.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal, get_args

from stepwise.errors import DataError, ExportError
from stepwise.export.safetensors import Checkpoint
from stepwise.training.identity import base_of, check_adapter
from stepwise.training.lora import LAYOUT, quiet, require_training

DType = Literal["float32", "bfloat16"]
# Tokenizer and chat template are copied as they are: a tokenizer that is loaded and saved again may come out otherwise.
_BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
           "chat_template*", "generation_config.json")  # fmt: skip


def merge(
    adapter_dir: str | Path, out_dir: str | Path, base: str | Path | None = None, *, dtype: DType = "float32"
) -> Path:
    """Write base plus adapter in transformers' layout, with tokenizer and chat template, to `out_dir`; returns it.

    `adapter_dir` is in PEFT's layout; `base` is its base's directory, "hf:ORG/REPO" or a lab model (None: the one that
    adapter_config.json names). What PEFT can merge is merged: DoRA and trained embeddings too, which a LoRA GGUF cannot
    hold. Needs main memory for the base in float32. `dtype` is that of the written weights; bfloat16 rounds the sum
    once. `export_gguf(out_dir, ...)` makes a GGUF of it. Raises DataError for an adapter of another base and for an
    `out_dir` that is not empty, ExportError for a merge with infinite or undefined weights.
    """
    adapter, out = Path(adapter_dir), Path(out_dir)
    if dtype not in get_args(DType):
        raise DataError(f"dtype is {dtype!r}; it must be one of {', '.join(get_args(DType))}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty; give a new directory for the merged model")
    require_training()
    folder = base_of(adapter, base)
    check_adapter(adapter, folder)
    draft = out.with_name(f".{out.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    with quiet():
        _merged(adapter, folder, dtype).save_pretrained(draft)
    for pattern in _BESIDE:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, draft / file.name)
    if out.exists():
        out.rmdir()
    draft.rename(out)
    return out


def _merged(adapter: Path, base: Path, dtype: DType) -> Any:
    """The merged model, on the CPU."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=False)
    if model.config.tie_word_embeddings and _changes_vocabulary(adapter):
        # One matrix is embedding and head. The adapter changes one of them only, so that they part here.
        model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
        model.config.tie_word_embeddings = False
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ExportError(f"adapter {adapter} cannot be merged ({error!s:.200}); train it again") from error
    return merged.to(getattr(torch, dtype))


def _changes_vocabulary(adapter: Path) -> bool:
    return any("lm_head" in name or "embed_tokens" in name for name in Checkpoint([adapter / LAYOUT[1]]).places)
