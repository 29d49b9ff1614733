"""Writing models of transformers' format as GGUF, for llama.cpp: whole models, and PEFT's LoRA adapters.

Tensors are read, converted and written one at a time, so that memory holds about one tensor (twice, while it is quantized).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import ExportError, MissingDependencyError
from stepwise.training.checkpoint import Checkpoint
from stepwise.training.gguf_config import GgufConfig, read_config
from stepwise.training.gguf_tokenizer import read_tokenizer

Quantization = Literal["q8_0", "f16", "f32"]


class _Tensor(NamedTuple):
    """One tensor of the file to come. `load` gives its values as float32; they are read when their turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    load: Callable[[], NDArray[np.float32]]


def export_gguf(model_dir: str | Path, out_path: str | Path, quantization: Quantization = "q8_0") -> Path:
    """Write the model in `model_dir` (transformers format: Llama, Qwen2 or Qwen3) as one GGUF file and return its path.

    Tokenizer and chat template go into the file. Norms and biases stay F32; with "q8_0", a matrix whose rows are not a
    multiple of 32 long becomes F16. The file appears at `out_path` only when it is complete.
    Raises ExportError for a missing file or anything that llama.cpp would compute differently, MissingDependencyError without gguf.
    """
    gguf = _import_gguf()
    if quantization not in get_args(Quantization):
        raise ExportError(f"quantization is {quantization!r}; it must be one of {', '.join(get_args(Quantization))}")
    model_dir, out_path = Path(model_dir), Path(out_path)
    config, checkpoint = read_config(model_dir), Checkpoint.of_model(model_dir)
    tensors = list(_model_tensors(gguf, config, checkpoint, quantization))
    vocab_size = tensors[0].shape[0]
    tokenizer = read_tokenizer(model_dir, vocab_size)
    with _writing(gguf, out_path, config.arch) as writer:
        writer.add_type("model")
        writer.add_name(model_dir.resolve().name)
        file_types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
        writer.add_file_type(gguf.LlamaFileType[file_types[quantization]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        config.write(writer, vocab_size)
        tokenizer.write(writer)
        _write_tensors(gguf, writer, tensors)
    return out_path


def _import_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingDependencyError(
            'GGUF export needs the package gguf; install it with: pip install "stepwise[train]"'
        ) from error
    return gguf


def _model_tensors(
    gguf: Any, config: GgufConfig, checkpoint: Checkpoint, quantization: Quantization
) -> Iterator[_Tensor]:
    """The model's tensors, embedding first. Raises ExportError for one that is missing and for one that is not known."""
    expected = config.tensor_names()
    missing = [name for name in expected if name not in checkpoint.places]
    if missing:
        raise ExportError(
            f"{config.path.parent} lacks {len(missing)} tensors, first {missing[0]}; save the whole model again"
        )
    # A tied head may be stored as well; old checkpoints also store the rotary frequencies, which follow from the config.
    unknown = sorted(
        name
        for name in checkpoint.places
        if name not in expected and name != "lm_head.weight" and not name.endswith("inv_freq")
    )
    if unknown:
        raise ExportError(
            f"{config.path.parent} has {len(unknown)} tensors that {config.arch} does not have, first {unknown[0]}"
        )
    name_map = _name_map(gguf, config)
    for name in expected:
        shape = checkpoint.shape(name)
        yield _Tensor(
            name_map(name),
            shape,
            _kind(shape, quantization),
            lambda name=name: config.to_gguf_layout(name, checkpoint.read(name)),
        )  # type: ignore[misc]
    factors = config.rope_factors()
    if factors is not None:
        yield _Tensor("rope_freqs.weight", factors.shape, "F32", lambda: factors)


def _kind(shape: tuple[int, ...], quantization: Quantization) -> str:
    if len(shape) == 1:
        return "F32"
    return "F16" if quantization == "q8_0" and shape[-1] % 32 else quantization.upper()


def _name_map(gguf: Any, config: GgufConfig) -> Callable[[str], str]:
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.arch)
    table = gguf.get_tensor_name_map(arch, config.layers)

    def to_gguf_name(name: str) -> str:
        mapped = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped is None:
            raise ExportError(f"tensor {name} has no counterpart in llama.cpp's {config.arch}")
        return str(mapped)

    return to_gguf_name


@contextmanager
def _writing(gguf: Any, out_path: Path, arch: str) -> Iterator[Any]:
    """A GGUF writer on a temporary file beside `out_path`, which takes that name when the block ends without an error."""
    out_path.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_path.with_name(f".{out_path.name}.{os.getpid()}.tmp")
    writer = gguf.GGUFWriter(temporary, arch)
    try:
        yield writer
        writer.close()
        os.replace(temporary, out_path)
    finally:
        writer.close()
        temporary.unlink(missing_ok=True)


def _write_tensors(gguf: Any, writer: Any, tensors: list[_Tensor]) -> None:
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.kind]
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        size = int(np.prod(tensor.shape)) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        values = np.ascontiguousarray(tensor.load())
        writer.write_tensor_data(gguf.quants.quantize(values, gguf.GGMLQuantizationType[tensor.kind]))
