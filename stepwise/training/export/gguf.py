"""Writing models of transformers' format as GGUF, for llama.cpp: whole models, and LoRA adapters in PEFT's layout.

Tensors are read, converted and written one at a time: memory holds about one of them, twice while it is quantized.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from stepwise.errors import ExportError, MissingDependencyError
from stepwise.io import whole_file
from stepwise.models.engine.weights import FINGERPRINT
from stepwise.models.safetensors import Checkpoint, check, fingerprint, read_json
from stepwise.training.export.config import GgufConfig, read_config
from stepwise.training.export.tokenizer import read_tokenizer

Quantization = Literal["q8_0", "f16", "f32"]
_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
# Settings of PEFT by which an adapter computes what llama.cpp cannot, each with its harmless values.
_PLAIN_LORA: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    **dict.fromkeys(("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora"), (False, None)),
    **dict.fromkeys(("modules_to_save", "target_parameters"), (None, [])),
    **dict.fromkeys(("trainable_token_indices", "layer_replication", "alora_invocation_tokens"), (None, [], {})),
}
_MERGE = "merge it with stepwise.training.adapters.merge (or stepwise export --merge), and use export_gguf"


class _Tensor(NamedTuple):
    """One tensor of the file to come, of the GGML type `kind`; `load` reads its values when their turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: str
    load: Callable[[], NDArray[np.float32]]


def export_gguf(model_dir: str | Path, out_path: str | Path, quantization: Quantization = "q8_0") -> Path:
    """Write the model in `model_dir` (transformers format: Llama, Qwen2 or Qwen3) as one GGUF file and return its path.

    Tokenizer and chat template go into the file. Norms and biases stay F32; with "q8_0", a matrix whose rows are not a
    multiple of 32 long becomes F16. The file appears at `out_path` only when it is complete. Raises ExportError for a
    missing file and for anything that llama.cpp would compute differently, and MissingDependencyError where gguf is not
    installed.

    Example:
        >>> import tempfile
        >>> from stepwise import lab
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_gguf(lab.model_path("lab-weak", "safetensors"), Path(folder) / "weak.gguf", "f16").name
        'weak.gguf'
    """
    gguf = _import_gguf()
    known = get_args(Quantization)
    check(quantization in known, f"quantization is {quantization!r}; it must be one of {', '.join(known)}")
    model_dir, out_path = Path(model_dir), Path(out_path)
    config, checkpoint = read_config(model_dir), Checkpoint.of_model(model_dir)
    tensors = list(_model_tensors(gguf, config, checkpoint, quantization))
    vocab_size = tensors[0].shape[0]
    tokenizer = read_tokenizer(model_dir, vocab_size)
    with _writing(gguf, out_path, config.arch, tensors) as writer:
        writer.add_type("model")
        writer.add_name(model_dir.resolve().name)
        writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[quantization]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_string(FINGERPRINT, fingerprint(model_dir))
        for name, value in (config.keys(vocab_size) | tokenizer).items():
            getattr(writer, f"add_{name}")(value)
    return out_path


def export_lora_gguf(adapter_dir: str | Path, out_path: str | Path, base_dir: str | Path | None = None) -> Path:
    """Write the LoRA adapter in `adapter_dir` (PEFT's layout) as a GGUF adapter in F32 and return its path.

    The base model's config.json says which architecture it is for; `base_dir` is that model's directory, by default the
    `base_model_name_or_path` of adapter_config.json. Ranks and alphas per module and rsLoRA are folded into B.
    Raises ExportError for what a GGUF adapter cannot hold (DoRA, biases, modules_to_save, embeddings, ...).

    Example:
        >>> import tempfile
        >>> from stepwise import lab
        >>> critic, weak = (lab.model_path(name, "safetensors") for name in ("lab-critic", "lab-weak"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_lora_gguf(critic, Path(folder) / "critic.gguf", weak).name
        'critic.gguf'
    """
    gguf = _import_gguf()
    adapter_dir, out_path = Path(adapter_dir), Path(out_path)
    adapter = read_json(adapter_dir / "adapter_config.json")
    _check_plain_lora(adapter_dir / "adapter_config.json", adapter)
    base = Path(base_dir or adapter.get("base_model_name_or_path") or "")
    check(
        (base / "config.json").is_file(),
        f"the adapter's base model {str(base)!r} is no directory with a config.json; give it as base_dir",
    )
    config, checkpoint = read_config(base), Checkpoint([adapter_dir / "adapter_model.safetensors"])
    tensors = list(_lora_tensors(gguf, config, checkpoint, adapter))
    with _writing(gguf, out_path, config.arch, tensors) as writer:
        writer.add_type("adapter")
        writer.add_name(adapter_dir.resolve().name)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(adapter["lora_alpha"]))
        if any(base.glob("model*.safetensors")):  # its config alone is enough for the rest
            writer.add_string(FINGERPRINT, fingerprint(base))
    return out_path


def _model_tensors(
    gguf: Any, config: GgufConfig, checkpoint: Checkpoint, quantization: Quantization
) -> Iterator[_Tensor]:
    """The model's tensors, embedding first; ExportError where one is missing or not known to the architecture."""
    where, expected = config.path.parent, config.tensor_names()
    missing = [name for name in expected if name not in checkpoint.places]
    check(
        not missing, f"{where} lacks {len(missing)} tensors, first {''.join(missing[:1])}; save the whole model again"
    )
    # A tied head may be stored as well; old checkpoints also store rotary frequencies, which follow from the config.
    harmless = re.compile(r"lm_head\.weight|.*\.inv_freq")
    unknown = [name for name in sorted(checkpoint.places.keys() - set(expected)) if not harmless.fullmatch(name)]
    check(
        not unknown, f"{where} has {len(unknown)} tensors that no {config.arch} model has, first {''.join(unknown[:1])}"
    )
    name_map = _name_map(gguf, config)
    for name in expected:
        shape, kind = checkpoint.shape(name), quantization.upper()
        if len(shape) == 1:  # norms and biases
            kind = "F32"
        elif kind == "Q8_0" and shape[-1] % 32:  # its blocks are 32 values of a row
            kind = "F16"
        yield _Tensor(name_map(name), shape, kind, partial(_load, config, checkpoint, name))
    factors = config.rope_factors()
    if factors is not None:
        yield _Tensor("rope_freqs.weight", factors.shape, "F32", lambda: factors)


def _load(config: GgufConfig, checkpoint: Checkpoint, name: str, scale: float = 1.0) -> NDArray[np.float32]:
    values = config.to_gguf_layout(name, checkpoint.read(name))
    return values if scale == 1.0 else values * np.float32(scale)


def _name_map(gguf: Any, config: GgufConfig) -> Callable[[str], str]:
    """Tensor names of transformers -> names of llama.cpp, ".weight" or ".bias" included."""
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.arch)
    table = gguf.get_tensor_name_map(arch, config.layers)

    def to_gguf_name(name: str) -> str:
        mapped = table.get_name(name, try_suffixes=(".weight", ".bias"))
        check(mapped, f"tensor {name} has no counterpart in llama.cpp's {config.arch}")
        return str(mapped)

    return to_gguf_name


def _check_plain_lora(path: Path, adapter: Mapping[str, Any]) -> None:
    for key, harmless in _PLAIN_LORA.items():
        value = adapter.get(key, harmless[0])
        check(value in harmless, f"{path}: {key} is {value!r}, which a GGUF adapter cannot hold; {_MERGE}")
    start, rank, alpha = adapter.get("init_lora_weights"), adapter.get("r"), adapter.get("lora_alpha")
    changing = str(start).lower().startswith(("pissa", "olora", "corda", "loftq"))
    check(not changing, f"{path}: init_lora_weights={start!r} also changed the base model's weights; {_MERGE}")
    check(isinstance(rank, int) and alpha, f"{path}: r is {rank!r} and lora_alpha {alpha!r}; both must be set")


def _lora_tensors(
    gguf: Any, config: GgufConfig, checkpoint: Checkpoint, adapter: Mapping[str, Any]
) -> Iterator[_Tensor]:
    """A and B of every adapted matrix, A (rank, inputs), B (outputs, rank), as PEFT and llama.cpp both have them."""
    name_map, targets = _name_map(gguf, config), set(config.tensor_names())
    pairs: dict[str, set[str]] = {}
    for name, place in sorted(checkpoint.places.items()):
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", name)
        module = match[1] if match else name
        if not match or f"{module}.weight" not in targets or module == "model.embed_tokens":
            raise ExportError(f"{place.file}: {name} is not LoRA on a matrix that {config.arch} applies; {_MERGE}")
        pairs.setdefault(module, set()).add(match[2])
        scale = 1.0
        if match[2] == "B":
            # llama.cpp scales B A by lora_alpha / rank; whatever else PEFT asks for goes into B.
            rank = place.shape[1]
            # As in PEFT, the first entry counts whose key, a regular expression, matches the end of the name.
            alphas = (adapter.get("alpha_pattern") or {}).items()
            matching = (value for key, value in alphas if re.match(rf"(.*\.)?({key})$", module))
            alpha = next(matching, adapter["lora_alpha"])
            scale = alpha / adapter["lora_alpha"] * (math.sqrt(rank) if adapter.get("use_rslora") else 1.0)
        gguf_name = f"{name_map(f'{module}.weight')}.lora_{match[2].lower()}"
        yield _Tensor(gguf_name, place.shape, "F32", partial(_load, config, checkpoint, name, scale))
    half = sorted(module for module, sides in pairs.items() if len(sides) != 2)
    check(
        pairs and not half,
        f"the adapter has no complete pair of lora_A and lora_B for {half or 'any module'}; save it again",
    )


@contextmanager
def _writing(gguf: Any, out_path: Path, arch: str, tensors: Sequence[_Tensor]) -> Iterator[Any]:
    """A GGUF writer for the block to put metadata in, after which it writes `tensors`. The file is at `out_path` once
    all went well; before, or otherwise, what stood there stays.
    """
    with whole_file(out_path) as draft, closing(gguf.GGUFWriter(draft, arch)) as writer:
        yield writer
        kinds = [gguf.GGMLQuantizationType[tensor.kind] for tensor in tensors]
        for tensor, kind in zip(tensors, kinds, strict=True):
            block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            size = math.prod(tensor.shape) // block * block_bytes
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in zip(tensors, kinds, strict=True):
            writer.write_tensor_data(gguf.quants.quantize(np.ascontiguousarray(tensor.load()), kind))


def _import_gguf() -> Any:
    """The package gguf; MissingDependencyError without it."""
    try:
        import gguf
    except ImportError as error:
        remedy = 'pip install "stepwise[train]"'
        raise MissingDependencyError(f"GGUF export needs the package gguf; install it with: {remedy}") from error
    return gguf
