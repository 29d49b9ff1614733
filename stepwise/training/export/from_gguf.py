"""A directory in transformers' layout made from a GGUF, for whoever has nothing else to train.

transformers reads the weights (its own GGUF reader: they are taken out of their quantization) and the tokenizer. Its
reader knows no pre-tokenizer but that of the architecture, so the one that the GGUF names is put in its place, padding
rows are left out of the vocabulary, and both tokenizers are compared on a thousand texts.
"""

from __future__ import annotations

import json
import random
import shutil
import unicodedata
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from stepwise.errors import ConfigError, MissingDependencyError
from stepwise.io import write_text
from stepwise.models.engine.weights import read_gguf
from stepwise.training.export.config import ARCHITECTURES
from stepwise.training.export.tokenizer import check_train_from, pre_tokenizer_stages

Dtype = Literal["float16", "bfloat16", "float32"]
NUM_TEXTS = 1000
_WORDS = (
    "So", "the", "total", "is", "apples", "dollars", "each", "he's", "they'll", "I'D", "don't", "per-cent", "naïve",
    "café", "Ответ", "答えは", "です",
)  # fmt: skip
_SIGNS = (
    " + ", "-", " = ", "*", "/", "%", "\\frac{1}{2}", "\\boxed{", "}", "$", "^2", "\\[", "\\]", "<=", "...", "\u2212"
)  # fmt: skip
_BLANKS = (" ", "  ", "\n", "\n\n", "\n\n\n", "\t", "\r\n", " \n", "    ", "\u00a0", "\u200b")
_CODE = ("def f(x):\n    return x", "```python\n", "```", "i=0;i<n;i++", "// ok", "#include")
_CONVERTER = "convert_hf_to_gguf.py and convert_lora_to_gguf.py"


def import_gguf(gguf: str | Path, directory: str | Path, *, dtype: Dtype = "float16") -> Path:
    """Make `directory` from the GGUF of a whole model, with its weights in `dtype`, and return its path.

    Raises ConfigError for a directory that holds something, for an architecture that transformers' reader does not
    know, and where the two tokenizers differ on any of the texts (what was made is removed then); BackendError for a
    broken file; MissingDependencyError without transformers and gguf.

    Example:
        import_gguf("models/mine.gguf", "models/mine")  # then [models.weak] train_from = "models/mine"
    """
    gguf, directory = Path(gguf), Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty; give a new directory")
    fields = read_gguf(gguf).fields
    arch = str(fields.get("general.architecture"))
    _check_known(gguf, arch)
    try:
        _write(gguf, directory, dtype, fields.get(f"{arch}.attention.key_length"))
        _mend_tokenizer(directory, str(fields.get("tokenizer.ggml.pre", "")))
        check_train_from(gguf, directory, texts=list(texts()))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return directory


def exportable(directory: str | Path) -> str:
    """What writes GGUFs of the model in `directory`, in one line, where `stepwise export` does not; else nothing.

    >>> from stepwise.lab import model_path
    >>> exportable(model_path("lab-weak", "safetensors"))  # it can be exported
    ''
    """
    names = json.loads((Path(directory) / "config.json").read_text()).get("architectures") or ["unknown"]
    if names[0] in ARCHITECTURES:
        return ""
    return f"{names[0]} is trained, but its adapters are not written as GGUF here: take llama.cpp's {_CONVERTER}"


def _check_known(gguf: Path, arch: str) -> None:
    try:
        import gguf as _  # noqa: F401
        from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES as known
    except ImportError as error:
        raise MissingDependencyError(
            f'transformers and gguf are needed to read a GGUF as a model ({error}); pip install "stepwise[train]"'
        ) from error
    if arch not in known:
        raise ConfigError(
            f"{gguf}: transformers' GGUF reader does not know {arch!r}; take the directory that the GGUF was made from "
            f"(its original on the hub) as train_from, and llama.cpp's {_CONVERTER} to write GGUFs of it"
        )


def _write(gguf: Path, directory: Path, dtype: Dtype, head_dim: Any) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if isinstance(head_dim, int) and hasattr(config, "head_dim"):
        config.head_dim = head_dim  # which its reader passes over
    options: dict[str, Any] = {"config": config, "dtype": getattr(torch, dtype), "output_loading_info": True}
    if (packed := getattr(import_module("transformers"), "GgufConfig", None)) is not None:
        options["quantization_config"] = packed(dequantize=True)  # never as packed blocks, which cannot be trained
    model, info = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, **options)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    if wrong := [*(set(info["missing_keys"]) - tied), *info["mismatched_keys"]]:
        raise ConfigError(
            f"{gguf}: transformers' GGUF reader does not fill {len(wrong)} of its weights, first {wrong[0]}, so it "
            "would be another model; take the directory that the GGUF was made from (its original on the hub)"
        )
    model.hf_quantizer = None  # or it refuses to be saved; the weights are plain numbers by now
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _mend_tokenizer(directory: Path, pre: str) -> None:
    """Put the pre-tokenizer that the GGUF names into tokenizer.json, and take padding rows out of its vocabulary."""
    path = directory / "tokenizer.json"
    spec: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    stages = pre_tokenizer_stages(pre)
    if stages is not None:
        spec |= stages
        spec["model"]["ignore_merges"] = pre == "llama-bpe"
    vocab: Mapping[str, int] = spec["model"].get("vocab", {})
    if isinstance(vocab, dict):
        spec["model"]["vocab"] = {word: number for word, number in vocab.items() if word != f"[PAD{number}]"}
    write_text(path, json.dumps(spec, ensure_ascii=False))


def texts(count: int = NUM_TEXTS) -> Iterator[str]:
    """`count` texts of all that a solution may hold: words, sums, LaTeX, code, blanks, other scripts, rare characters.

    They are in Unicode NFC, as all text is when it reaches a model here.

    >>> len(list(texts(3)))
    3
    """
    rng = random.Random(0)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 24)):
            kind = rng.random()
            if kind < 0.35:
                parts.append(rng.choice(_WORDS))
            elif kind < 0.6:
                number = f"{rng.randint(0, 10 ** rng.randint(1, 9)):{rng.choice(['', ','])}}"
                parts.append(number + rng.choice(["", ".5", ".007"]))
            elif kind < 0.75:
                parts.append(rng.choice(_SIGNS))
            elif kind < 0.92:
                parts.append(rng.choice(_BLANKS))
            elif kind < 0.95:
                parts.append(rng.choice(_CODE))
            else:
                parts.append(chr(rng.choice([*range(1, 0xD800, 97), *range(0xE000, 0x10FFFF, 5003)])))
        yield unicodedata.normalize("NFC", rng.choice(["", " "]).join(parts))
