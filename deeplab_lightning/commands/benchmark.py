"""`deeplab benchmark`: what models cost, and whether the data keep up with them."""

import argparse
import importlib
import itertools
import json
import logging
import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import instantiate_class
from lightning.pytorch.plugins.precision import Precision
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.files import write_text
from deeplab_lightning.kernels import open_door
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder
from deeplab_lightning.tables import csv_text_of_dicts, table_console

_MEMORY_FILES = (Path("/proc/self/clear_refs"), Path("/proc/self/status"))  # Linux: reset the peak, read it


@dataclass(frozen=True)
class Cost:
    """What one model costs at one size. Times are medians.

    Attributes:
        model: Backbone, or the run's folder.
        parameters: In millions.
        gflops: Of a forward pass of one picture, a multiplication and an addition counted as two.
        forward_ms: Milliseconds per picture without gradients.
        step_ms: Milliseconds per picture of a training step: forward, loss, backward and optimiser.
        loader_per_s: Training pictures per second that the loader alone gives.
        loop_per_s: Training pictures per second of loader and training step together.
        waiting: Share of that time spent waiting for data.
        peak_mb: Largest memory in training in megabytes: of the process on a CPU, of tensors on a GPU.
        miou: Of the run's best epoch, where a run was given.
    """

    model: str
    parameters: float
    gflops: float
    forward_ms: float
    step_ms: float
    loader_per_s: float
    loop_per_s: float
    waiting: float
    peak_mb: float
    miou: float | None = None


def benchmark(args: list[str]) -> None:
    """Measure models at the configuration's crop size, batch size, precision and memory format.

    Takes the options of `fit`, such as `--model.net.init_args.output_stride 8`. Writes `benchmark.csv`,
    `benchmark.json` and, with `--runs`, `benchmark.png` (mIoU against cost).

    Raises:
        FileNotFoundError: If a config or a run's record does not exist.
        SystemExit: 2 for a wrong key or type, or a configuration without data or network.
    """
    options = argparse.ArgumentParser(prog="deeplab benchmark", description=benchmark.__doc__)
    options.add_argument("-c", "--config", action="append", default=[], help="as for fit; later ones override")
    options.add_argument("--backbones", help="names with commas between, instead of the configuration's")
    options.add_argument("--runs", nargs="+", default=[], help="run folders: their networks beside, and a figure")
    options.add_argument("--repeats", type=int, default=5, help="steps per measurement after a warm-up")
    options.add_argument("--output", default="runs/bench", help="folder to write to")
    given, rest = options.parse_known_args(args)
    if given.repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {given.repeats}.")
    for path in given.config:
        if not Path(path).is_file():
            raise MissingFileError(f"no such config: {Path(path).absolute()}")
    # As `fit` reads it, so that every option of it serves and a typo is an error.
    config = resolve_fit_config([*(word for path in given.config for word in ("-c", path)), *rest])
    data = datamodule_from_config(config["data"])
    data.prepare_data()
    data.setup("fit")
    costs = []
    for name, net, miou in _candidates(config, given.backbones, given.runs):
        costs.append(measure(name, net, config, data, given.repeats, miou))
        table_console().print(f"measured {name}")
    folder = Path(given.output)
    rows = [asdict(cost) for cost in costs]
    write_text(folder / "benchmark.csv", csv_text_of_dicts(rows))
    write_text(folder / "benchmark.json", json.dumps(rows, indent=1) + "\n")
    if given.runs:
        draw(costs, folder / "benchmark.png")
    table_console().print(_table(costs, config, data))
    table_console().print(f"Written to {folder}", soft_wrap=True)


def measure(
    name: str,
    net: Mapping[str, Any],
    config: Mapping[str, Any],
    data: SegmentationDataModule,
    repeats: int,
    miou: float | None = None,
) -> Cost:
    """Build one network and measure it on the data's training batches.

    Args:
        name: Of the row.
        net: `class_path` and `init_args` of the network.
        config: Where precision and memory format are read from.
        data: Set up for training.
        repeats: Steps per measurement.
        miou: Of the run, in [0, 1].
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = _precision(config["trainer"]["precision"] or "32-true", device)
    module = SegmentationModule(
        _build(net, data.num_classes), _loss(config), channels_last=config["model"]["channels_last"]
    )
    module.door = open_door(module.net, device, is_wanted=config["model"]["cpu_kernels"])
    module = precision.convert_module(module).to(device)  # type: ignore[assignment]
    loader = data.train_dataloader()
    batch = _to(next(iter(loader)), device)
    size = len(batch.image)
    optimizer = torch.optim.SGD(module.net.parameters(), lr=1e-3, momentum=0.9)

    def forward() -> None:
        with torch.no_grad(), precision.forward_context():
            module(batch.image)

    def step(given: Batch) -> None:
        with precision.forward_context():
            loss, _ = module.compute_loss(given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    module.eval()
    with torch.no_grad(), precision.forward_context(), FlopCounterMode(display=False) as counter:
        module(batch.image[:1])
    forward_seconds = _median(forward, repeats, device)
    module.train()
    _reset_peak(device)
    step_seconds = _median(lambda: step(batch), repeats, device)
    peak = _peak_megabytes(device)
    loader_seconds, _ = _drain(loader, repeats, None, device)
    loop_seconds, waited = _drain(loader, repeats, step, device)
    return Cost(
        model=name,
        parameters=sum(p.numel() for p in module.net.parameters()) / 1e6,
        gflops=counter.get_total_flops() / 1e9,
        forward_ms=1000 * forward_seconds / size,
        step_ms=1000 * step_seconds / size,
        loader_per_s=size * repeats / loader_seconds,
        loop_per_s=size * repeats / loop_seconds,
        waiting=waited / loop_seconds,
        peak_mb=peak,
        miou=miou,
    )


def draw(costs: Sequence[Cost], path: Path) -> None:
    """MIoU against the milliseconds of a forward pass, a point per run.

    Args:
        costs: Those without mIoU are left out.
        path: The PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    points = [(cost.model, cost.forward_ms, cost.miou) for cost in costs if cost.miou is not None]
    for name, milliseconds, miou in points:
        axes.scatter(milliseconds, miou, s=30)
        axes.annotate(name, (milliseconds, miou), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set_xlabel("forward pass, ms per picture")
    axes.set_ylabel("mIoU")
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _candidates(
    config: Mapping[str, Any], backbones: str | None, runs: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any], float | None]]:
    """Name, network and mIoU of each row."""
    net = dict(config["model"]["net"])
    if not runs or backbones:
        init_args = dict(net.get("init_args", {}))
        for backbone in backbones.split(",") if backbones else [init_args.get("backbone", "default")]:
            own = init_args if backbone == "default" else {**init_args, "backbone": backbone}
            yield backbone, {**net, "init_args": own}, None
    for run in map(Path, runs):
        folder = RunFolder(run)
        result = folder.read_result()
        if result is None:
            raise MissingFileError(
                f"{folder.result.absolute()} does not exist: {run} is not the folder of a finished run."
            )
        own_net = folder.read_config()["model"]["net"]
        values = result.get("val") or {}
        yield run.name, own_net, values.get("miou")


def _build(net: Mapping[str, Any], num_classes: int) -> DeepLab:
    """The network with random weights: their values cost nothing."""
    module_name, _, class_name = str(net["class_path"]).rpartition(".")
    network = getattr(importlib.import_module(module_name or "deeplab_lightning"), class_name)
    init_args = {**net.get("init_args", {}), "num_classes": num_classes}
    if "pretrained" in init_args or issubclass(network, DeepLab):
        init_args["pretrained"] = False
    built: DeepLab = network(**init_args)
    return built


def _loss(config: Mapping[str, Any]) -> torch.nn.Module | None:
    """The configured loss."""
    given = config["model"].get("loss")
    return None if given is None else instantiate_class((), given)  # type: ignore[no-any-return]


def _precision(name: str, device: torch.device) -> Precision:
    """Lightning's own way of computing in a precision."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # it tells of the devices, for every trainer
    return L.Trainer(accelerator=accelerator, devices=1, precision=name, **quiet).precision_plugin  # type: ignore[arg-type]


def _to(batch: Batch, device: torch.device) -> Batch:
    mask = None if batch.mask is None else batch.mask.to(device)
    return batch._replace(image=batch.image.to(device), mask=mask)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _median(call: Any, repeats: int, device: torch.device) -> float:
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[repeats // 2]


def _drain(loader: Any, repeats: int, step: Any, device: torch.device) -> tuple[float, float]:
    """Seconds for some batches after the first, and how many of them were spent waiting for one."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    waited = start = 0.0
    for number in range(repeats + 1):
        if number == 1:  # the first one starts the workers
            start, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        if step is not None:
            step(_to(batch, device))
            _wait(device)
    return time.perf_counter() - start, waited


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif _MEMORY_FILES[0].exists():
        _MEMORY_FILES[0].write_text("5")


def _peak_megabytes(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    if _MEMORY_FILES[1].exists():
        line = next(line for line in _MEMORY_FILES[1].read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _table(costs: Sequence[Cost], config: Mapping[str, Any], data: SegmentationDataModule) -> Table:
    precision = config["trainer"]["precision"] or "32-true"
    title = f"{precision}, batches of {data.batch_size}, {torch.get_num_threads()} threads, {data.num_workers} workers"
    table = Table(title=title, title_justify="left")
    headers = (
        "model",
        "M param.",
        "GFLOP",
        "forward ms",
        "step ms",
        "loader /s",
        "loop /s",
        "waiting",
        "peak MB",
        "mIoU",
    )
    for column in headers:
        table.add_column(column, justify="left" if column == "model" else "right")
    for c in costs:
        numbers = (c.parameters, c.gflops, c.forward_ms, c.step_ms, c.loader_per_s, c.loop_per_s)
        miou = "-" if c.miou is None else f"{c.miou:.3f}"
        table.add_row(c.model, *(f"{n:.1f}" for n in numbers), f"{c.waiting:.0%}", f"{c.peak_mb:.0f}", miou)
    return table
