"""How the benchmarks measure: in alternation, with the machine and its peak beside the figures."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

OUTPUT = Path("runs/bench")


def alternating(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each call, run in turn so that a busy machine slows all alike; one warm-up each.

    Args:
        calls: What to measure, by name.
        repeats: Rounds.
        clock: `time.process_time` for work of one thread on a machine that others use too.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """The processor, its matrix instructions, threads, and the best matmul rate in TFLOP/s of fp32 and bf16."""
    flags: set[str] = set()
    name = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = fields.get("model name", name), set(fields.get("flags", "").split())
    return {
        "processor": name,
        "matrix_instructions": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peak_tflops": {str(dtype).removeprefix("torch."): _peak(dtype) for dtype in (torch.float32, torch.bfloat16)},
    }


def _peak(dtype: torch.dtype, size: int = 2048, repeats: int = 4) -> float:
    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return round(2 * size**3 / best / 1e12, 3)


def write(name: str, figures: Mapping[str, Any]) -> str:
    """Write `runs/bench/<name>.json` with the machine, and give it back as lines to print."""
    document = {"machine": machine(), **figures}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return f"\n{name}: " + json.dumps(document, indent=1)
