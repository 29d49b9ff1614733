"""GGUF files as they lie on the disk: the header read and checked, and which base an adapter was trained on.

llama.cpp ends the whole process at some broken files (an assertion, a division by zero, memory that is not there), so
that what it takes for granted about a file is checked here first: counts, types and sizes, and that every tensor lies
inside the file.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stepwise.errors import BackendError
from stepwise.io import parse_json
from stepwise.models.safetensors import fingerprint

FINGERPRINT = "stepwise.fingerprint"
"""Key in a GGUF that we wrote: `fingerprint` of the directory that a model was made from, or of an adapter's base."""
_LENGTH = struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
# gguf.h: type of a value -> how numpy reads it
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
# ggml.h: type of a tensor -> (values, bytes) of a block; types that are not here are left to llama.cpp
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip

# What a model divides by, or multiplies in 32 bits: the largest value that is taken.
_SIZES = {
    "block_count": 512,
    **dict.fromkeys(("attention.head_count", "attention.head_count_kv"), 1 << 12),
    **dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), 1 << 16),
    **dict.fromkeys(("embedding_length", "feed_forward_length", "vocab_size"), 1 << 24),
}
# What is read without a look at its type.
_KINDS = {
    "adapter.lora.alpha": float,
    **dict.fromkeys(("general.architecture", "general.type", "adapter.type"), str),
    **dict.fromkeys(("adapter.lora.task_name", "adapter.lora.prompt_prefix"), str),
}
_DIVISORS = ("block_count", "attention.head_count", "embedding_length")


@dataclass(frozen=True)
class _GgufHeader:
    """`fields`: the metadata (numbers, booleans, texts, lists of texts, arrays of numbers); `shapes` of the tensors by
    name, in the order of GGUF, the innermost dimension first.
    """

    fields: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]


def read_gguf(path: Path) -> _GgufHeader:
    """The header of a GGUF, with its tensors checked against the file's size. Raises BackendError with what is wrong.

    Example:
        >>> from stepwise import lab
        >>> read_gguf(lab.model_path("lab-weak")).fields["general.architecture"]
        'qwen3'
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Reader(data).header()
        _check_fields(header.fields)
    except (OSError, ValueError, struct.error) as error:
        raise BackendError(f"{path} is not a sound GGUF file ({error}); copy or download it again") from None
    return header


class _Reader:
    """Takes values off the front of a file. Raises ValueError or struct.error where there is not enough of it."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def numbers(self, form: str, count: int = 1) -> Any:
        size = np.dtype(form).itemsize * count
        if size > len(self.data) - self.at:
            raise ValueError(f"{count} numbers at byte {self.at} go beyond its end at {len(self.data)}")
        self.at += size
        return np.frombuffer(self.data[self.at - size : self.at], form)

    def number(self, form: str = "<u4") -> Any:
        return self.numbers(form)[0].item()

    def text(self) -> str:
        start = self.at + 8
        self.at = start + _LENGTH.unpack_from(self.data, self.at)[0]
        if self.at > len(self.data):
            raise ValueError(f"a text at byte {start} goes beyond its end at {len(self.data)}")
        return self.data[start : self.at].decode("utf-8", "replace")

    def value(self) -> Any:
        kind = self.number()
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return self.number(_SCALARS[kind])
        inner, count = self.number(), self.number("<u8")
        if inner != _STRING:
            return self.numbers(_SCALARS[inner], count)
        return [self.text() for _ in range(count)]

    def header(self) -> _GgufHeader:
        if self.data[:4] != b"GGUF":
            raise ValueError("the magic bytes GGUF are missing at its start")
        self.at = 4
        version, num_tensors, num_fields = self.number(), self.number("<u8"), self.number("<u8")
        if version not in (2, 3):
            raise ValueError(f"version {version} of the format is not 2 or 3")
        fields: dict[str, Any] = {}
        for _ in range(num_fields):
            key, at = self.text(), self.at
            if key in fields:
                raise ValueError(f"{key} is there twice")
            try:
                fields[key] = self.value()
            except KeyError as error:
                raise ValueError(f"{key} at byte {at} has the unknown type {error}") from None
        tensors = [self._tensor() for _ in range(num_tensors)]
        alignment = fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}, not a power of two")
        start = -(-self.at // alignment) * alignment
        for name, _, stop in tensors:
            if start + stop > len(self.data):
                raise ValueError(f"tensor {name} ends at byte {start + stop}, the file at {len(self.data)}")
        return _GgufHeader(fields, {name: shape for name, shape, _ in tensors})

    def _tensor(self) -> tuple[str, tuple[int, ...], int]:
        """Name, shape, and where it ends in the data, 0 where that is not known."""
        name, num_dimensions = self.text(), self.number()
        if not 1 <= num_dimensions <= 4:
            raise ValueError(f"tensor {name!r} has {num_dimensions} dimensions")
        shape = tuple(self.numbers("<u8", num_dimensions).tolist())
        kind, offset = self.number(), self.number("<u8")
        if kind not in _BLOCKS:
            return name, shape, 0
        values, size = _BLOCKS[kind]
        if 0 in shape or shape[0] % values:
            raise ValueError(f"tensor {name!r} has the shape {shape}, which its type {kind} cannot have")
        return name, shape, offset + math.prod(shape) // values * size


def _check_fields(fields: Mapping[str, Any]) -> None:
    """What llama.cpp takes for granted: sizes that it asserts or computes with, and lists as long as the vocabulary."""
    for key, kind in _KINDS.items():
        if not isinstance(fields.get(key, kind()), kind):
            raise ValueError(f"{key} is {fields[key]!r}, which is no {kind.__name__}")
    arch = fields.get("general.architecture", "")
    sizes = {name: fields.get(f"{arch}.{name}") for name in _SIZES}
    for name, value in sizes.items():
        # One number for each layer: there are layers without attention.
        least = int(name in _DIVISORS and not isinstance(value, np.ndarray))
        if isinstance(value, int | np.ndarray) and not np.all((np.asarray(value) >= least) & (value <= _SIZES[name])):
            raise ValueError(f"{arch}.{name} is {value}, not in {least}..{_SIZES[name]}")
    for name in ("layer_norm_epsilon", "layer_norm_rms_epsilon"):
        epsilon = fields.get(f"{arch}.attention.{name}", 0.0)
        if isinstance(epsilon, float) and not 0 <= epsilon < math.inf:
            raise ValueError(f"{arch}.attention.{name} is {epsilon}, below 0 or no number")
    rotated, width = sizes["rope.dimension_count"], sizes["attention.key_length"]
    embedding, heads = sizes["embedding_length"], sizes["attention.head_count"]
    if width is None and isinstance(embedding, int) and isinstance(heads, int):
        width = embedding // heads
    if arch in ("llama", "qwen2", "qwen3") and None not in (rotated, width) and rotated != width:
        raise ValueError(f"{arch}.rope.dimension_count is {rotated}, and a head has {width}")
    tokens = fields.get("tokenizer.ggml.tokens", ())
    if isinstance(tokens, list) and len(set(tokens)) < len(tokens):
        raise ValueError("tokenizer.ggml.tokens has a token twice")
    for key, form in (("token_type", "<i4"), ("scores", "<f4")):
        values = fields.get(f"tokenizer.ggml.{key}")
        if values is not None and (getattr(values, "dtype", None) != form or len(values) != len(tokens)):
            raise ValueError(f"tokenizer.ggml.{key} is not one {np.dtype(form).name} for each token")


def check_origin(
    adapter: Path, digest: str, fields: Mapping[str, Any],
    model: Path, model_fields: Mapping[str, Any], train_from: Path,
) -> None:  # fmt: skip
    """Raise BackendError where `adapter` was trained on other weights than `model`, or is not the file that its card
    describes; `digest` is its SHA-256, `fields` are those of the two headers.

    An adapter names its base in its own header or in the card.json beside it. The model is known by what `export_gguf`
    wrote into it, else by the safetensors in `train_from`. What is not known is not compared.

    Example:
        check_origin(adapter, sha256, read_gguf(adapter).fields, model, read_gguf(model).fields, train_from)
    """
    path = adapter.with_name("card.json")
    try:
        card = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if not isinstance(card, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise BackendError(
            f"{path} cannot be read ({error}); restore it, or remove it to go without its checks"
        ) from None
    # `write_card` has objects under "base" and "adapter"; `stepwise export` has the facts of its file beside them.
    base, facts = (card[key] if isinstance(card.get(key), dict) else {} for key in ("base", "adapter"))
    recorded = card.get("sha256") or facts.get("sha256")
    if recorded is not None and recorded != digest:
        raise BackendError(
            f"adapter {adapter} has the SHA-256 {digest[:16]}, but {path} is of {str(recorded)[:16]}: the file was "
            "changed or replaced; copy it again, or remove its card to go without its checks"
        )
    claims = (fields.get(FINGERPRINT), base.get("fingerprint"), card.get("base fingerprint"))
    trained_on = {str(claim) for claim in claims if claim}
    actual = model_fields.get(FINGERPRINT)
    if trained_on and actual is None and any(train_from.glob("model*.safetensors")):
        actual = fingerprint(train_from)
    if actual is not None and trained_on - {actual}:
        raise BackendError(
            f"adapter {adapter} was trained on other weights: its base is {' or '.join(sorted(trained_on))} by its "
            f"fingerprint, {model} comes from {actual}; attach it to the GGUF of its base, or train it anew on this one"
        )
