"""Measure in several fresh processes, on threads whose state was checked; medians with their spread.

Two threads of one process can end up on one core and then spin at each barrier until the scheduler's next tick, for
about 4 ms each time. Such a process measures the scheduler. So each process first runs a probe in which both threads
must be busy, and refuses to measure where they are not: it is started again, and after some refusals the benchmark
fails instead of reporting a figure.
"""

import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTPUT = Path("runs/bench")
Call = Callable[[], object]
_REFUSED = 75  # exit status of a process whose threads share a core
_MIN_BUSY = 0.8  # share of the threads' time that the probe must use, above 1/2 for two threads on one core
_MAX_REFUSALS = 12


@dataclass(frozen=True)
class Figures:
    """Hold what several processes measured.

    Attributes:
        seconds: Name of a call -> its median in each process.
        values: Name of a further figure -> its value in each process.
    """

    seconds: dict[str, list[float]]
    values: dict[str, list[float]]

    def ratio(self, slow: Sequence[str], fast: Sequence[str]) -> dict[str, float]:
        """Compute how many times as fast the best of `fast` is as the best of `slow`, over the processes.

        Returns:
            `median`, `low` and `high` (the smallest and the largest ratio of a process).
        """
        pairs = zip(
            zip(*(self.seconds[name] for name in slow), strict=True),
            zip(*(self.seconds[name] for name in fast), strict=True),
            strict=True,
        )
        ratios = sorted(min(a) / min(b) for a, b in pairs)
        return {"median": round(statistics.median(ratios), 3), "low": round(ratios[0], 3), "high": round(ratios[-1], 3)}

    def milliseconds(self) -> dict[str, dict[str, float]]:
        """Return median, low and high of each call in milliseconds."""
        return {
            name: {
                "median": round(1000 * statistics.median(values), 3),
                "low": round(1000 * min(values), 3),
                "high": round(1000 * max(values), 3),
            }
            for name, values in self.seconds.items()
        }


def in_processes(
    build: Callable[..., Mapping[str, Call]],
    *,
    processes: int = 5,
    repeats: int = 5,
    environment: Mapping[str, str | None] | None = None,
    **arguments: Any,
) -> Figures:
    """Measure the calls that a function builds, in several processes one after the other.

    Args:
        build: A function of a module; its calls are run in turn, so that a busy machine slows all of them alike.
        processes: Number of processes that must have measured.
        repeats: Rounds in each process; the median of a call's rounds is its figure.
        environment: Variables to set, or to remove where the value is None.
        arguments: Keyword arguments for `build`, as JSON can hold them.

    Raises:
        RuntimeError: If a process fails, or too many refuse.
    """
    (figures,) = in_turn(build, {"": environment or {}}, processes=processes, repeats=repeats, **arguments).values()
    return figures


def in_turn(
    build: Callable[..., Mapping[str, Call]],
    environments: Mapping[str, Mapping[str, str | None]],
    *,
    processes: int = 5,
    repeats: int = 5,
    **arguments: Any,
) -> dict[str, Figures]:
    """Measure the same calls under several environments, whose processes take turns.

    What is measured at the same place of two `Figures` was measured one right after the other.

    Args:
        build: As for `in_processes`.
        environments: Name -> variables to set, or to remove where the value is None.
        processes: Number of processes that must have measured, for each environment.
        repeats: Rounds in each process.
        **arguments: Keyword arguments for `build`.

    Raises:
        RuntimeError: If a process fails, or too many refuse.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in environments}
    for _ in range(processes):
        for name, environment in environments.items():
            found[name].append(_until_measured(build, repeats, environment, arguments))
    return {
        name: Figures(
            {call: [one["seconds"][call] for one in results] for call in results[0]["seconds"]},
            {value: [one["values"][value] for one in results] for value in results[0]["values"]},
        )
        for name, results in found.items()
    }


def merged(*parts: Figures) -> Figures:
    """Join figures of works that were measured in processes of their own."""
    seconds, values = {}, {}  # type: ignore[var-annotated]
    for part in parts:
        seconds |= part.seconds
        values |= part.values
    return Figures(seconds, values)


def _until_measured(
    build: Callable[..., Any], repeats: int, environment: Mapping[str, str | None], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Start processes until one measures; after some refusals it raises a RuntimeError."""
    for refusals in range(_MAX_REFUSALS + 1):
        time.sleep(refusals)
        if (result := _one_process(build, repeats, environment, arguments)) is not None:
            return result
    raise RuntimeError(
        f"{_MAX_REFUSALS + 1} processes refused to measure: their threads share a core, or the machine is busy."
    )


def _one_process(
    build: Callable[..., Any], repeats: int, environment: Mapping[str, str | None], arguments: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Run one process; None if it refused."""
    own = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))}
    for name, value in environment.items():
        own.pop(name, None)
        if value is not None:
            own[name] = value
    task = json.dumps({"build": f"{build.__module__}:{build.__name__}", "repeats": repeats, "arguments": arguments})
    command = [sys.executable, "-m", "tests.benchmarks.measure", task]
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
    if done.returncode == _REFUSED:
        return None
    if done.returncode != 0:
        raise RuntimeError(f"{build.__name__} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def alternating(
    calls: Mapping[str, Call], *, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Return the median seconds of each call; they run in turn, after one warm-up each.

    Args:
        calls: What to measure, by name. A call that returns a number gives a figure of its own instead of its time.
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


def busy_share() -> float:
    """Return the share of the threads' time in which they computed, in products that keep all of them busy.

    Near 1 where each thread has a core of its own; 1 / threads where all share one.
    """
    import torch

    a = torch.randn(768, 768)
    for _ in range(3):
        a @ a
    wall, cpu = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < 0.3:
        a @ a
    return (time.process_time() - cpu) / (time.perf_counter() - wall) / torch.get_num_threads()


def machine() -> dict[str, Any]:
    """Describe processor, threads, and the best matmul rate of fp32 and bf16 in TFLOP/s."""
    import torch

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


def _peak(dtype: Any, size: int = 2048, repeats: int = 4) -> float:
    import torch

    a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return round(2 * size**3 / best / 1e12, 3)


def write(name: str, figures: Mapping[str, Any]) -> str:
    """Write `runs/bench/<name>.json` with the machine, and return it as lines to print."""
    document = {"machine": machine(), **figures}
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    return f"\n{name}: " + json.dumps(document, indent=1)


def _measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Build and measure in this process."""
    module, _, name = task["build"].partition(":")
    before = busy_share()
    if before < _MIN_BUSY:
        sys.exit(_REFUSED)
    built = getattr(importlib.import_module(module), name)(**task["arguments"])
    seconds = alternating(built, repeats=task["repeats"])
    share = min(before, busy_share())
    if share < _MIN_BUSY:
        sys.exit(_REFUSED)
    return {"seconds": seconds, "values": {"busy_share": round(share, 3)}}


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
