"""How many tokens fit into one pass: what a token costs in memory, from a probe batch, against what is free.

A kernel ends a process that takes too much memory without a word, so on a CPU it must be known before. The probe is
one row, the longest: attention costs most there, and what a pass costs beside its tokens is counted to them.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from stepwise.config.training import LoraConfig
from stepwise.errors import BackendError
from stepwise.models.machine import free_memory
from stepwise.runs.progress import announce
from stepwise.training.lora import memory_errors, peak_bytes

_SHARE = 0.8  # of the free memory that a pass may take
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def fitted(
    lora: LoraConfig,
    device: str,
    size: int,
    probe: Callable[[], None],
    state: dict[str, Any],
    *,
    free: int | None = None,
) -> LoraConfig:
    """[lora] with `micro_tokens` lowered to what fits into free memory; what was found is kept in `state`, so that a
    run that goes on makes the same sums.

    `probe` is a forward and backward pass over one row of `size` tokens. `free` is in bytes, None: as this machine
    says. Raises BackendError where a row alone does not fit.

    Example:
        lora = fitted(config.lora, trainee.device, size=len(longest), probe=one_pass, state=run.state)
        print(lora.micro_tokens)
    """
    if (known := state.get("micro_tokens")) is None:
        free = _free_bytes(device) if free is None else free
        with memory_errors(lora):
            each = _peak_of(device, probe) / size
        most = int(_SHARE * free / each) if free and each else lora.micro_tokens
        told = f"{each / 1e6:.2f} MB a token (a probe of {size:,}), {(free or 0) / 1e9:.1f} GB free"
        if free and each and most < size:
            raise BackendError(
                f"memory: {told}: a row of {size:,} tokens needs {size * each / 1e9:.1f} GB; leave long rows out, "
                f"lower lora.tile (now {lora.tile}), or set lora.checkpointing = true"
            )
        known = state["micro_tokens"] = min(lora.micro_tokens, most)
        lowered = f", lowered from {lora.micro_tokens:,}" if known < lora.micro_tokens else ""
        if each:
            announce(f"memory: {told}; passes of at most {known:,} tokens{lowered}", beside_bar=True)
    return lora if known == lora.micro_tokens else lora.model_copy(update={"micro_tokens": known})


def _peak_of(device: str, work: Callable[[], None]) -> int:
    """Bytes by which `work` lifts the memory in use at its height; 0 where that cannot be told."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = int(torch.cuda.memory_allocated(device))
    elif sys.platform.startswith("linux"):
        gc.collect()
        with suppress(OSError, AttributeError):  # what the heap keeps would be used again without being seen: glibc's
            ctypes.CDLL(None).malloc_trim(0)
        with suppress(OSError):
            _RESET.write_text("5")  # the height begins anew
        before = _resident("VmRSS")
    else:
        before = peak_bytes(device)
    work()
    after = _resident("VmHWM") if sys.platform.startswith("linux") and device == "cpu" else peak_bytes(device)
    return max(0, after - before)


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _free_bytes(device: str) -> int | None:
    """What is free on the device; None where that cannot be told."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory() if device == "cpu" else None
