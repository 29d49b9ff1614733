"""Reading a model directory in transformers format without torch: JSON files, and safetensors one tensor at a time."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import ExportError
from stepwise.io import parse_json, whole_file

_SAVE = "write it with model.save_pretrained(directory) and tokenizer.save_pretrained(directory)"
_CHUNK = 1 << 22  # bytes hashed at once
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # bf16 is read as its bits: numpy has no such type


class _TensorPlace(NamedTuple):
    """Where a tensor lies: `start` and `stop` are byte offsets in `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def check(sound: object, message: str) -> None:
    """Raise ExportError with `message` unless `sound`.

    >>> check(2 + 2 == 4, "config.json: the sum is wrong")  # raises ExportError where it is not
    """
    if not sound:
        raise ExportError(message)


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """The JSON object in `path`; {} for a missing file if `optional`. Raises ExportError for anything else.

    >>> from stepwise.lab import model_path
    >>> read_json(model_path("lab-weak", "safetensors") / "config.json")["architectures"]
    ['Qwen3ForCausalLM']
    """
    if optional and not path.is_file():
        return {}
    check(path.is_file(), f"{path} does not exist; a model in transformers format has it: {_SAVE}")
    try:
        value: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{path} is not valid JSON ({error}); {_SAVE}") from error
    check(type(value) is dict, f"{path} holds a JSON {type(value).__name__}, not an object; {_SAVE}")
    return value


class Checkpoint:
    """The tensors of one or more safetensors files by name. Nothing but the headers is read until `read` is called.

    Example:
        >>> from stepwise import lab
        >>> weights = Checkpoint.of_model(lab.model_path("lab-weak", "safetensors"))
        >>> weights.read("model.norm.weight").shape == weights.shape("model.norm.weight")
        True
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.places: dict[str, _TensorPlace] = {}
        for file in files:
            self.places.update(_read_header(file))

    @classmethod
    def of_model(cls, model_dir: Path) -> Checkpoint:
        """model.safetensors, or the shards that model.safetensors.index.json names."""
        index = model_dir / "model.safetensors.index.json"
        if index.is_file():
            weight_map: Any = read_json(index).get("weight_map")
            check(isinstance(weight_map, dict), f"{index} has no object 'weight_map'; {_SAVE}")
            return cls([model_dir / name for name in sorted(set(weight_map.values()))])
        whole = model_dir / "model.safetensors"
        pickled = not whole.is_file() and list(model_dir.glob("pytorch_model*.bin"))
        check(not pickled, f"{model_dir} holds pickled weights (pytorch_model.bin), which are not read; {_SAVE}")
        return cls([whole])

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that the files hold."""
        return self.places[name].shape

    def read(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32, whatever it is stored as (F32, F16 or BF16)."""
        place = self.places[name]
        check(
            place.dtype in _DTYPES,
            f"tensor {name} in {place.file} is stored as {place.dtype}; supported are {', '.join(_DTYPES)}: "
            "load the model with dtype='bfloat16' and save it again",
        )
        with place.file.open("rb") as file:
            file.seek(place.start)
            raw = np.frombuffer(file.read(place.stop - place.start), dtype=_DTYPES[place.dtype])
        sound = raw.size == math.prod(place.shape)
        check(sound, f"tensor {name} in {place.file} is cut short; copy or save the file again")
        if place.dtype == "BF16":
            raw = (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32, copy=False).reshape(place.shape)


def _read_header(path: Path) -> dict[str, _TensorPlace]:
    """Header of a safetensors file: 8 bytes of length, then JSON with offsets counted from its end."""
    check(path.is_file(), f"{path} does not exist; {_SAVE}")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        check(8 + length <= size, f"{path} is no safetensors file, or is cut short; {_SAVE}")
        try:
            header = parse_json(file.read(length))
            places = {}
            for name, entry in header.items():
                if name != "__metadata__":
                    start, stop = (8 + length + offset for offset in entry["data_offsets"])
                    places[name] = _TensorPlace(path, entry["dtype"], tuple(entry["shape"]), start, stop)
        except (ValueError, KeyError, TypeError) as error:
            raise ExportError(f"{path} has a damaged safetensors header ({error!r}); {_SAVE}") from error
    return places


def write_safetensors(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write tensors as F32, in their order, whole or not at all.

    Example:
        write_safetensors(Path("head.safetensors"), {"weight": np.zeros(8, np.float32)})
    """
    header, start = dict[str, Any](), 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, start + 4 * tensor.size]}
        start += 4 * tensor.size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with whole_file(path) as partial:
        partial.write_bytes(
            struct.pack("<Q", len(head)) + head + b"".join(t.astype("<f4").tobytes() for t in tensors.values())
        )


def fingerprint(base: str | Path) -> str:
    """Sixteen hex digits that stand for the weights in a model directory. Reads all of them once per process.

    Equal for equal tensors of equal types, however they are spread over files. Raises ExportError for a directory
    without safetensors.

    Example:
        >>> from stepwise import lab
        >>> len(fingerprint(lab.model_path("lab-weak", "safetensors")))
        16
    """
    files = sorted({place.file.resolve() for place in Checkpoint.of_model(Path(base)).places.values()})
    return _fingerprint(Path(base), tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _fingerprint(base: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """`stamps` are here to hash files anew that were replaced."""
    digest = hashlib.sha256()
    for name, place in sorted(Checkpoint.of_model(base).places.items()):
        digest.update(f"{name} {place.dtype} {place.shape}\n".encode())
        with place.file.open("rb") as file:
            file.seek(place.start)
            left = place.stop - place.start
            while left and (chunk := file.read(min(_CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
    return digest.hexdigest()[:16]
