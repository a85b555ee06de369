"""Measure the largest memory that a part of a program takes."""

import sys
from pathlib import Path

import psutil
import torch

_LINUX_FILES = (Path("/proc/self/clear_refs"), Path("/proc/self/status"))  # to reset and to read the peak


def reset_peak(device: torch.device) -> None:
    """Start measuring the largest memory of the process on a CPU, of tensors on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _LINUX_FILES[0].exists():
        _LINUX_FILES[0].write_text("5")


def peak_megabytes(device: torch.device) -> float:
    """Return the largest memory since `reset_peak` in megabytes; since the process started where it is not Linux."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if _LINUX_FILES[1].exists():
        line = next(line for line in _LINUX_FILES[1].read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset) / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
