"""What one training step takes: memory of the process or the device, sizes of tensors, time.

A meter is told where steps begin and end, by our loop or by a callback of another library's. The first step warms up;
time is taken of all others but the last; the last runs under the tensor counter, which slows it down, so that nothing
else is read from it.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from stepwise.training.lora import peak_bytes


class Counts:
    """Bytes of the tensors that were made under `count_tensors`."""

    def __init__(self) -> None:
        self.largest = 0
        """of the largest one"""
        self.peak = 0
        """of the most that were alive at one time"""
        self.sizes: list[int] = []
        """of each, in order"""
        self._live = 0

    def add(self, size: int) -> None:
        """One more is alive."""
        self.sizes.append(size)
        self.largest, self._live = max(self.largest, size), self._live + size
        self.peak = max(self.peak, self._live)

    def remove(self, size: int) -> None:
        """One of them is not alive any more."""
        self._live -= size


@contextmanager
def count_tensors() -> Iterator[Counts]:
    """Count the storage that torch operations of the block make, backward passes included.

    What an operation allocates and frees inside itself is not seen, nor what was there before.
    """
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    counts, known = Counts(), set[int]()

    def storages(tree: Any) -> list[Any]:
        return [one.untyped_storage() for one in tree_leaves(tree) if isinstance(one, Tensor)]

    def gone(key: int, size: int) -> None:
        known.discard(key)
        counts.remove(size)

    class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            given = {one._cdata for one in storages((args, kwargs))}
            for one in storages(result):
                key, size = one._cdata, one.nbytes()
                if key not in given and key not in known:
                    known.add(key)
                    counts.add(size)
                    weakref.finalize(one, gone, key, size)
            return result

    with Mode():  # type: ignore[no-untyped-call]
        yield counts


class Meter:
    """Measures `repeats` steps of training on `device`, between a warm-up and a counted one."""

    def __init__(self, device: str, repeats: int) -> None:
        self.steps = repeats + 2
        self._device, self._repeats = device, repeats
        self._done, self._began = 0, (0.0, 0.0)
        self._times: list[tuple[float, float]] = []
        self._memory: dict[str, int] = {}
        self._counting = ExitStack()
        self._counts = Counts()

    def begin(self) -> None:
        """A step begins: model, adapter and optimizer are there, the batch is too."""
        if self._done == 0:
            self._memory["loaded"] = _in_use(self._device)
            _forget_peak(self._device)
        if self._done == self.steps - 1:
            self._memory["peak"] = _peak(self._device)
            self._counts = self._counting.enter_context(count_tensors())
        self._began = _now(self._device)

    def end(self) -> None:
        """The step is over, the optimizer's part included."""
        ended = _now(self._device)
        if 0 < self._done < self.steps - 1:
            self._times.append((ended[0] - self._began[0], ended[1] - self._began[1]))
        self._counting.close()
        self._done += 1

    def result(self) -> dict[str, Any]:
        """Bytes, and medians of seconds; after the last step."""
        wall, processor = zip(*self._times, strict=True)
        return {
            "loaded_bytes": self._memory["loaded"],
            "peak_bytes": self._memory["peak"],
            "step_bytes": self._memory["peak"] - self._memory["loaded"],
            "tensor_bytes": self._counts.peak,
            "largest_bytes": self._counts.largest,
            "seconds": statistics.median(wall),
            "cpu_seconds": statistics.median(processor),
        }


def _now(device: str) -> tuple[float, float]:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def _in_use(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.memory_allocated())
    return _status("VmRSS") or peak_bytes(device)


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident memory starts anew


def _peak(device: str) -> int:
    """Since `_forget_peak`; on a CPU elsewhere than on Linux, of the process's whole life, loading included."""
    return peak_bytes(device) if device.startswith("cuda") else _status("VmHWM") or peak_bytes(device)


def _status(key: str) -> int | None:
    """A figure of Linux's /proc/self/status, in bytes."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:")), None)
