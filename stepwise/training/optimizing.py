"""What supervised training and reinforcement share about one step of the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwise.config.training import LoraConfig
from stepwise.errors import BackendError, DataError
from stepwise.io import append_rows, read_rows, write_rows
from stepwise.training.lora import Trainee

if TYPE_CHECKING:
    import torch


def make_optimizer(trainee: Trainee, rate: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    """AdamW over the adapter's weights."""
    import torch

    return torch.optim.AdamW(trainee.trainable(), lr=rate, weight_decay=weight_decay)


def apply_gradients(trainee: Trainee, optimizer: Any, rate: float, clip_norm: float) -> float:
    """One step at the learning rate `rate`; returns the norm of the gradient before clipping."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = float(torch.nn.utils.clip_grad_norm_(trainee.trainable(), clip_norm))
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def cosine(step: int, steps: int, peak: float, warmup: float, final: float = 0.1) -> float:
    """Learning rate of step `step` (0-based) of `steps`: up in a line, then down as a cosine to `final` of the peak."""
    up = warmup * steps
    if step < up:
        return peak * (step + 1) / (up + 1)
    share = (step - up) / max(1.0, steps - up)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


@contextmanager
def memory_errors(how: LoraConfig) -> Iterator[None]:
    """Turn a lack of memory into a BackendError that names the settings to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and "out of memory" not in text and "can't allocate memory" not in text:
            raise
        raise BackendError(
            f"out of memory in training; lower lora.micro_tokens (now {how.micro_tokens}), then lora.tile (now "
            f"{how.tile}), and set lora.checkpointing = true (now {str(how.checkpointing).lower()})"
        ) from error


def check_finite(values: Mapping[str, float], batch: Sequence[Any], path: Path) -> None:
    """Raise DataError where one of `values` is not finite, after writing the rows of `batch` to `path`."""
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        path.unlink(missing_ok=True)
        append_rows(path, batch)
        raise DataError(
            f"training stopped: {', '.join(wrong)}; the batch is in {path}: look at it, or lower the learning rate"
        )


def keep_rows(path: Path, steps: int) -> None:
    """Drop the rows of a metrics file that a step after the first `steps` wrote: it will be done again."""
    rows = read_rows(path)
    kept = [row for row in rows if row.get("step", 0) <= steps]
    if len(kept) < len(rows):
        write_rows(path, kept)


def peak_bytes(device: str) -> int:
    """The most memory in use so far: a CUDA device's, else the process's own."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
