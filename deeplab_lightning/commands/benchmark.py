"""Run `deeplab benchmark`: measure the cost of models and the speed of the data loader."""

import importlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.plugins.precision import Precision
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from deeplab_lightning.commands.parsers import benchmark_parser
from deeplab_lightning.commands.peak_memory import peak_megabytes, reset_peak
from deeplab_lightning.commands.surroundings import user_mistakes
from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.data.config import datamodule_from_config
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.errors import MissingFileError, UserError
from deeplab_lightning.files import write_atomically, write_text
from deeplab_lightning.kernels import open_door
from deeplab_lightning.losses import ClassPixels, measure_weights
from deeplab_lightning.models.deeplab import DeepLab
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder
from deeplab_lightning.tables import csv_text_of_dicts, table_console


@dataclass(frozen=True)
class Cost:
    """Hold the cost of one model at one image size. Times are medians.

    Attributes:
        model: Name of the backbone, or of the run's folder.
        parameters: Number of parameters in millions.
        gflops: Billions of operations in the forward pass of one image; a multiplication and an addition count as
            two.
        forward_ms: Milliseconds per image of a forward pass without gradients.
        step_ms: Milliseconds per image of a training step: forward, loss, backward and optimiser.
        loader_per_s: Training images per second of the loader alone.
        loop_per_s: Training images per second of loader and training step together.
        epoch_s: Seconds of the training steps of an epoch, at the loop's speed.
        waiting: Share of the loop's time that is spent waiting for data, in [0, 1].
        peak_mb: Largest memory of the training in megabytes: of the process on a CPU, of tensors on a GPU.
        miou: mIoU of the run's best epoch, in [0, 1]; None if the model comes from no run.
    """

    model: str
    parameters: float
    gflops: float
    forward_ms: float
    step_ms: float
    loader_per_s: float
    loop_per_s: float
    epoch_s: float
    waiting: float
    peak_mb: float
    miou: float | None = None


def benchmark(args: list[str]) -> None:
    """Measure models at the configuration's crop size, batch size, precision and memory format.

    Raises:
        FileNotFoundError: If a configuration file or a run's record does not exist.
        SystemExit: With status 2, if a key or a type is wrong, or the configuration has no data or no network.
    """
    given, rest = benchmark_parser().parse_known_args(args)
    if given.repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {given.repeats}.")
    # Parsed as by `fit`, so that all its options work and a typo is an error.
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
        name: Name of the row.
        net: `class_path` and `init_args` of the network.
        config: Configuration of `fit`, for loss, precision and memory format.
        data: Data that is set up for training.
        repeats: Number of steps per measurement.
        miou: mIoU of the run that the network comes from, in [0, 1]; None if it comes from no run.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = _Training(net, config, data.num_classes, device)
    loader = data.train_dataloader()
    batch = _to(next(iter(loader)), device)
    size = len(batch.image)
    training.module.eval()
    flops = training.count_flops(batch.image[:1])
    forward_seconds = _median(lambda: training.forward(batch.image), repeats, device)
    training.module.train()
    reset_peak(device)
    step_seconds = _median(lambda: training.step(batch), repeats, device)
    peak = peak_megabytes(device)
    loader_seconds, _ = _drain(loader, repeats, None, device)
    loop_seconds, waited = _drain(loader, repeats, training.step, device)
    return Cost(
        model=name,
        parameters=sum(p.numel() for p in training.module.net.parameters()) / 1e6,
        gflops=flops / 1e9,
        forward_ms=1000 * forward_seconds / size,
        step_ms=1000 * step_seconds / size,
        loader_per_s=size * repeats / loader_seconds,
        loop_per_s=size * repeats / loop_seconds,
        epoch_s=len(loader) * loop_seconds / repeats,
        waiting=waited / loop_seconds,
        peak_mb=peak,
        miou=miou,
    )


class _Training:
    """Run forward passes and training steps of one network at the configuration's precision.

    Args:
        net: `class_path` and `init_args` of the network.
        config: Configuration of `fit`.
        num_classes: K.
        device: Device to run on.
    """

    def __init__(
        self, net: Mapping[str, Any], config: Mapping[str, Any], num_classes: int, device: torch.device
    ) -> None:
        self._precision = _precision(config["trainer"]["precision"] or "32-true", device)
        module = SegmentationModule(
            _build(net, num_classes, config), _loss(config, num_classes), channels_last=config["model"]["channels_last"]
        )
        module.door = open_door(module.net, device, is_wanted=config["model"]["cpu_kernels"])
        self.module: SegmentationModule = self._precision.convert_module(module).to(device)  # type: ignore[assignment]
        self._optimizer = torch.optim.SGD(self.module.net.parameters(), lr=1e-3, momentum=0.9)

    def forward(self, images: torch.Tensor) -> None:
        """Compute the logits of (B, 3, H, W) images without gradients."""
        with torch.no_grad(), self._precision.forward_context():
            self.module(images)

    def count_flops(self, images: torch.Tensor) -> int:
        """Count the floating-point operations of a forward pass."""
        with FlopCounterMode(display=False) as counter:
            self.forward(images)
        return counter.get_total_flops()

    def step(self, batch: Batch) -> None:
        """Take one training step: forward, loss, backward and optimiser."""
        with self._precision.forward_context():
            loss, _ = self.module.compute_loss(batch)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Plot mIoU against the milliseconds of a forward pass, with a point per run.

    Args:
        costs: Costs of the models; those without mIoU are left out.
        path: PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    points = [(cost.model, cost.forward_ms, cost.miou) for cost in costs if cost.miou is not None]
    for name, milliseconds, miou in points:
        axes.scatter(milliseconds, miou, s=30)
        axes.annotate(name, (milliseconds, miou), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set_xlabel("forward pass, ms per image")
    axes.set_ylabel("mIoU")
    axes.grid(alpha=0.3)
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


def _candidates(
    config: Mapping[str, Any], backbones: str | None, runs: Sequence[str]
) -> Iterator[tuple[str, dict[str, Any], float | None]]:
    """Yield name, network and mIoU of each row."""
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


def _build(net: Mapping[str, Any], num_classes: int, config: Mapping[str, Any]) -> DeepLab:
    """Build the network with random weights, since the cost does not depend on them."""
    module_name, _, class_name = str(net["class_path"]).rpartition(".")
    network = getattr(importlib.import_module(module_name or "deeplab_lightning"), class_name)
    init_args = {**net.get("init_args", {}), "num_classes": num_classes}
    image_format = config["data"].get("image_format") or {}
    if (channels := image_format.get("channels", 3)) != 3:
        init_args["in_channels"] = channels
    if "pretrained" in init_args or issubclass(network, DeepLab):
        init_args["pretrained"] = False
    built: DeepLab = network(**init_args)
    return built


def _loss(config: Mapping[str, Any], num_classes: int) -> torch.nn.Module | None:
    """Build the configured loss with the losses inside it; None if the configuration has none."""
    given = config["model"].get("loss")
    if given is None:
        return None
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(torch.nn.Module, "loss", fail_untyped=False)
    loss: torch.nn.Module = parser.instantiate(parser.parse_object({"loss": given})).loss
    ones = np.ones(num_classes, dtype=np.int64)
    measure_weights(loss, ClassPixels(ones, ones))  # the cost does not depend on the weights
    return loss


def _precision(name: str, device: torch.device) -> Precision:
    """Return Lightning's plugin for a precision.

    Raises:
        ValueError: If the device does not support the precision.
    """
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # every trainer would list the devices
    with user_mistakes():
        return L.Trainer(accelerator=accelerator, devices=1, precision=name, **quiet).precision_plugin  # type: ignore[arg-type]


def _to(batch: Batch, device: torch.device) -> Batch:
    """Copy a batch to a device."""
    mask = None if batch.mask is None else batch.mask.to(device)
    return batch._replace(image=batch.image.to(device), mask=mask)


def _wait(device: torch.device) -> None:
    """Wait until the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _median(call: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Return the median of the seconds that a call takes, after one call to warm up."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[repeats // 2]


def _drain(
    loader: Any, repeats: int, step: Callable[[Batch], object] | None, device: torch.device
) -> tuple[float, float]:
    """Return the seconds that `repeats` batches take after the first, and the part spent waiting for the loader."""
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    waited = start = 0.0
    for number in range(repeats + 1):
        if number == 1:  # the first batch also starts the workers
            start, waited = time.perf_counter(), 0.0
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        if step is not None:
            step(_to(batch, device))
            _wait(device)
    return time.perf_counter() - start, waited


def _table(costs: Sequence[Cost], config: Mapping[str, Any], data: SegmentationDataModule) -> Table:
    """Build the printed table, with a row per model."""
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
        "epoch s",
        "waiting",
        "peak MB",
        "mIoU",
    )
    for column in headers:
        table.add_column(column, justify="left" if column == "model" else "right")
    for c in costs:
        numbers = (c.parameters, c.gflops, c.forward_ms, c.step_ms, c.loader_per_s, c.loop_per_s, c.epoch_s)
        miou = "-" if c.miou is None else f"{c.miou:.3f}"
        table.add_row(c.model, *(f"{n:.1f}" for n in numbers), f"{c.waiting:.0%}", f"{c.peak_mb:.0f}", miou)
    return table
