"""What this machine has: physical cores and memory that is free, within the limits of a container.

On macOS both come from sysctl (written by its documentation; tried on Linux alone). What cannot be found out is None.
"""

from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

_ROOT = Path("/")


def physical_cores(root: Path = _ROOT) -> int:
    """Physical cores that this process may use: hyperthreads of one core count once, a container's quota is kept to.

    >>> physical_cores() >= 1
    True
    """
    if sys.platform == "darwin":
        return _sysctl("hw.perflevel0.physicalcpu") or _sysctl("hw.physicalcpu") or os.cpu_count() or 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cpus = root / "sys/devices/system/cpu"
    cores = len({_text(cpus / f"cpu{n}/topology/thread_siblings_list") or str(n) for n in allowed})
    for folder in _groups(root, "cpu"):
        quota, _, period = (
            _text(folder / "cpu.max") or f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
        ).partition(" ")
        if quota.isdecimal() and period.isdecimal():
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def processor(root: Path = _ROOT) -> str:
    """The name of the processor: sums of another one may differ in their last digits.

    >>> bool(processor())
    True
    """
    lines = (_text(root / "proc/cpuinfo") or "").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def free_memory(root: Path = _ROOT) -> int | None:
    """Bytes that can be taken without swapping: of the machine, or of the container where it has less left.

    Files that are merely cached count as free. On macOS it is half of all memory.

    Example:
        room = free_memory()
        print("not known" if room is None else f"{room / 2**30:.1f} GiB")
    """
    if sys.platform == "darwin":
        return (_sysctl("hw.memsize") or 0) // 2 or None
    lines = dict(line.split(":", 1) for line in _text(root / "proc/meminfo").splitlines() if ":" in line)
    left = [int(lines["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in lines else []
    for folder in _groups(root, "memory"):
        most = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        used = _text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes")
        if most.isdecimal() and used.isdecimal() and int(most) < 1 << 60:
            stat = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
            cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
            left.append(max(0, int(most) - int(used) + cached))
    return min(left, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the control groups that this process is in, with those above, of version 2 and of version 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, place = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        base = root / "sys/fs/cgroup" / (controller if names else "")
        inside = base / place.lstrip("/")
        yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(base))


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _sysctl(name: str) -> int | None:
    try:
        return int(subprocess.run(["sysctl", "-n", name], capture_output=True, check=True, text=True).stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None


def memory_of(size: int) -> npt.NDArray[np.uint8]:
    """That many bytes, which go back to the system when they are freed: copies of all lengths that come and go leave
    holes in the heap, so that a server grew by kilobytes a request.

    >>> memory_of(100_000).shape
    (100000,)
    """
    if size < 1 << 16:
        return np.empty(size, np.uint8)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    return np.frombuffer(mmap.mmap(-1, size, **private), np.uint8)
