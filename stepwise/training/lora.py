"""The model in training: a frozen base of transformers' layout and a LoRA adapter on its linear layers (PEFT).

The adapter is never merged into the base that is trained on: merging and taking it out again in bfloat16 leaves
something behind each time. The base alone, as a reference model, is the same model with the adapter switched off
(`model.disable_adapter()`).
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stepwise.config import Config, ModelConfig
from stepwise.config.training import LoraConfig
from stepwise.errors import BackendError, ConfigError, DataError, ExportError, MissingDependencyError
from stepwise.models.hub import gguf_path
from stepwise.runs.progress import announce
from stepwise.training import require_training
from stepwise.training.adapters import LAYOUT, base_directory, check_layout, quiet
from stepwise.training.export.gguf import export_lora_gguf
from stepwise.training.export.tokenizer import check_train_from

try:
    import peft
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
except ImportError:
    require_training()  # says what is missing, and how to install it
    raise

_LONGEST = 4096  # tokens of a row, where models.weak.context is not set


@dataclass
class Trainee:
    """A base with a trainable adapter. `base` is the base's directory, `context` the longest sequence it may see.

    Example:
        trainee = load_trainee(config)
        optimizer = trainee.optimizer(rate=1e-4)
        norm = trainee.step(optimizer, rate=1e-4, clip_norm=1.0)
    """

    model: Any
    tokenizer: Any
    device: str
    base: Path
    context: int
    num_updates: int = 0
    """steps of the optimizer that were begun"""

    def trainable(self) -> list[torch.nn.Parameter]:
        """The adapter's weights, in the order of their names."""
        named = sorted((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        return [parameter for _, parameter in named]

    def optimizer(self, rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """AdamW over the adapter's weights."""
        return torch.optim.AdamW(self.trainable(), lr=rate, weight_decay=weight_decay)

    def step(self, optimizer: torch.optim.Optimizer, rate: float, clip_norm: float) -> float:
        """One step at the learning rate `rate`; returns the norm of the gradient before clipping."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        norm = float(torch.nn.utils.clip_grad_norm_(self.trainable(), clip_norm))
        self.num_updates += 1
        if math.isfinite(norm):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def save(self, folder: str | Path) -> Path:
        """Write the adapter in PEFT's layout to `folder`; returns it."""
        folder = Path(folder)
        self.model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty form; `cards` writes ours
        return folder

    def export(self, path: str | Path) -> Path:
        """Write the adapter as a LoRA adapter in GGUF, which the engine attaches; returns the path."""
        with tempfile.TemporaryDirectory() as folder:
            return export_lora_gguf(self.save(Path(folder) / "adapter"), path, self.base)  # its name is in the file

    def load_adapter_weights(self, folder: str | Path) -> None:
        """Take the adapter's weights from a directory that `save` wrote; DataError where they do not fit."""
        path = Path(folder) / LAYOUT[1]
        try:
            result = peft.set_peft_model_state_dict(self.model, load_file(path, device=self.device))
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"{path} does not hold this adapter's weights ({error!s:.200}); give its directory"
            ) from None
        if result.unexpected_keys:
            raise DataError(f"{path} has weights that this model has not, first {result.unexpected_keys[0]}")


def load_trainee(cfg: Config, *, adapter: str | Path | None = None, dropout: bool = False) -> Trainee:
    """The base of `models.weak` with a fresh adapter, or with that in the directory `adapter` (PEFT's layout) to go on
    with.

    `dropout` switches [lora] dropout on. The same seed gives the same adapter. Raises ConfigError, DataError or
    MissingDependencyError, before any weight is loaded where that can be told.

    Example:
        trainee = load_trainee(sw.Config.lab())
        print(sum(weights.numel() for weights in trainee.trainable()))
    """
    model = cfg.models.weak
    base, device = (
        base_directory(model),
        choose_device(cfg.lora.device, cuda=torch.cuda.is_available(), mps=torch.backends.mps.is_available()),
    )
    if adapter is not None:
        check_layout(adapter)
    _check_tokens(model, base)
    announce(f"loading the weights to train from {base}")
    tokenizer = load_tokenizer(base)
    frozen = _load_base(base, cfg.lora, device)
    fresh = peft.LoraConfig(
        r=cfg.lora.rank,
        lora_alpha=cfg.lora.alpha,
        lora_dropout=cfg.lora.dropout,
        target_modules=cfg.lora.target_modules,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(cfg.seed)  # before the adapter is made: its first weights are random
    with quiet():  # adapter weights are float32 whatever the base is
        if adapter is None:
            trained = _with_fresh_adapter(frozen, fresh)
        else:
            trained = peft.PeftModel.from_pretrained(frozen, str(adapter), is_trainable=True)
    for module in trained.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = cfg.lora.dropout if dropout else 0.0
    context = model.context or _LONGEST
    context = min(context, int(getattr(frozen.config, "max_position_embeddings", context)))
    return Trainee(trained.train(), tokenizer, device, base, context)


@contextmanager
def memory_errors(lora: LoraConfig) -> Iterator[None]:
    """Turn a lack of memory into a BackendError that names the settings to lower.

    Example:
        with memory_errors(config.lora):
            loss.backward()
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
            raise
        raise BackendError(
            f"out of memory in training; lower lora.micro_tokens (now {lora.micro_tokens}), then lora.tile (now "
            f"{lora.tile}), and set lora.checkpointing = true (now {str(lora.checkpointing).lower()})"
        ) from error


def peak_bytes(device: str) -> int:
    """The most memory in use so far: a CUDA device's, else the process's own.

    >>> peak_bytes("cpu") > 0
    True
    """
    if device.startswith("cuda"):
        return int(torch.cuda.max_memory_allocated(device))
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def load_tokenizer(base: Path) -> Any:
    """The tokenizer of a model directory; ConfigError without an end of message or a chat template.

    Example:
        tokenizer = load_tokenizer(base_directory(config.models.weak))
    """
    tokenizer = AutoTokenizer.from_pretrained(base)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer in {base} names no eos_token; set it in tokenizer_config.json")
    if not tokenizer.chat_template:
        raise ConfigError(f"the tokenizer in {base} has no chat template; add chat_template.jinja")
    return tokenizer


def _check_tokens(model: ModelConfig, base: Path) -> None:
    """Raise ConfigError unless a local GGUF and the weights it is trained from speak the same tokens."""
    if model.local and (gguf := gguf_path(model.model.partition("/")[2])).is_file():
        try:
            check_train_from(gguf, base)
        except ExportError as error:
            raise ConfigError(f"tokenizers differ: {error}; {gguf} does not come from {base}") from None


def choose_device(wanted: str, *, cuda: bool, mps: bool) -> str:
    """The device that `lora.device` stands for, where torch finds a `cuda` or an `mps` device.

    "auto" is CUDA or the CPU: training on Metal was never run, so it must be named. Raises ConfigError for a device
    that is not there.

    >>> choose_device("auto", cuda=False, mps=True), choose_device("mps", cuda=False, mps=True)
    ('cpu', 'mps')
    """
    for kind, name, there in (("cuda", "CUDA", cuda), ("mps", "Metal", mps)):
        if wanted.partition(":")[0] == kind and not there:
            raise ConfigError(f'lora.device is "{wanted}", but torch finds no {name} device; set it to "cpu" or "auto"')
    return wanted if wanted != "auto" else "cuda" if cuda else "cpu"


def _with_fresh_adapter(base: Any, fresh: peft.LoraConfig) -> Any:
    try:
        return peft.get_peft_model(base, fresh)
    except ValueError as error:
        layers = sorted({name.rpartition(".")[2] for name, m in base.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ConfigError(
            f"lora.target_modules is {fresh.target_modules!r}, and no adapter goes there ({error!s:.150}); the model "
            f"has {', '.join(layers)}"
        ) from None


def _load_base(base: Path, lora: LoraConfig, device: str) -> Any:
    """The frozen base, in the type that [lora] base asks for."""
    kind = lora.base if lora.base != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")
    options: dict[str, Any] = {"dtype": torch.bfloat16 if kind == "4bit" else getattr(torch, kind)}
    if kind == "4bit":
        options |= {"quantization_config": four_bits(device), "device_map": {"": device}}
    try:
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(base, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{base} cannot be loaded as a model ({error!s:.200}); give a directory of transformers"
        ) from None
    model.requires_grad_(False)
    model.config.use_cache = False
    if lora.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model if kind == "4bit" else model.to(device)


def four_bits(device: str) -> Any:
    """The quantization of `lora.base = "4bit"`; MissingDependencyError, or ConfigError off a CUDA device.

    Example:
        base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=four_bits("cuda"))
    """
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError('lora.base = "4bit" needs bitsandbytes; pip install "stepwise[quantized]"')
    if not device.startswith("cuda"):
        raise ConfigError(f'lora.base = "4bit" needs a CUDA device, but lora.device is "{device}"; use bfloat16')
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
