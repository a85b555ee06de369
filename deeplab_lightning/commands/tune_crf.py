"""Run `deeplab tune-crf`: search the dense CRF's parameters for a checkpoint on held-out images."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from rich.table import Table
from torch import Tensor

from deeplab_lightning.commands.parsers import tune_crf_parser
from deeplab_lightning.commands.training import load_checkpoint
from deeplab_lightning.crf import DenseCRF
from deeplab_lightning.data.batch import Sample
from deeplab_lightning.data.datamodule import SegmentationDataModule
from deeplab_lightning.errors import UserError
from deeplab_lightning.files import write_text
from deeplab_lightning.kernels import Door, open_door
from deeplab_lightning.labels import find_labels
from deeplab_lightning.metrics.boundary import boundary_counts
from deeplab_lightning.metrics.confusion import per_image_confusion
from deeplab_lightning.metrics.iou import summarize
from deeplab_lightning.module import SegmentationModule
from deeplab_lightning.runs import RunFolder
from deeplab_lightning.tables import csv_text_of_dicts, table_console

COARSE = {"w1": (3.0, 6.0), "sigma_alpha": (30.0, 65.0, 100.0), "sigma_beta": (3.0, 6.0)}
"""Ends of the ranges that DeepLab v2 searches (section 4.1), and for sigma_alpha also the middle."""
FINE_STEPS = {"w1": 1.5, "sigma_alpha": 17.5, "sigma_beta": 1.5}
"""Steps of half the coarse ones, tried on both sides of the best so far, one parameter after the other."""

Parameters = dict[str, float]


class ImageLogits(NamedTuple):
    """Hold an image, its mask and its logits for all trials.

    Attributes:
        name: Key of the image in the data set.
        image: (1, 3, H, W) uint8.
        mask: (1, H, W) uint8 train ids or 255.
        logits: (1, K, h, w) float, before the resize to the image's size.
    """

    name: str
    image: Tensor
    mask: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Trial:
    """Hold the result of one set of parameters.

    Attributes:
        stage: `none` for no CRF, `coarse` or `fine`.
        w1: Parameter of `DenseCRF`; None for no CRF.
        sigma_alpha: Parameter of `DenseCRF`; None for no CRF.
        sigma_beta: Parameter of `DenseCRF`; None for no CRF.
        miou: Mean IoU over classes, in [0, 1].
        boundary_iou: Mean boundary IoU over classes, in [0, 1].
    """

    stage: str
    w1: float | None
    sigma_alpha: float | None
    sigma_beta: float | None
    miou: float
    boundary_iou: float


def tune_crf(args: list[str]) -> None:
    """Find w1, sigma_alpha and sigma_beta of the dense CRF that give a checkpoint the highest mIoU.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the number of images is less than 1, or the data have no validation part.
    """
    given, rest = tune_crf_parser().parse_known_args(args)
    if given.num_images < 1:
        raise UserError(f"--num_images must be at least 1, got {given.num_images}.")
    module, data, trainer = load_checkpoint(["--ckpt_path", given.ckpt_path, *rest])
    num_classes = module.net.num_classes
    images = forward_once(module, trainer, _choose(data, 2 * given.num_images, given.seed))
    tuning, others = images[: given.num_images], images[given.num_images :]
    trials = search(tuning, num_classes)
    best = max(trials[1:], key=lambda trial: trial.miou)
    results = {f"{len(tuning)} tuned on": (trials[0], best)}
    if others:
        pair = [evaluate(others, parameters, num_classes) for parameters in (None, _parameters(best))]
        results[f"{len(others)} others"] = (pair[0], pair[1])
    folder = RunFolder(trainer.default_root_dir)
    write_text(folder.crf_trials, csv_text_of_dicts([asdict(trial) for trial in trials]))
    write_text(folder.crf, _overlay(given.ckpt_path, folder, _parameters(best), results))
    console = table_console()
    console.print(_table(results, best))
    if best.miou <= trials[0].miou:
        console.print("No CRF of the grid improves the mIoU of these images; use test and predict without it.")
    console.print(f"Written to {folder.crf} and crf.csv; try it with", soft_wrap=True)
    console.print(f"deeplab test --ckpt_path {given.ckpt_path} -c {folder.crf}", soft_wrap=True)


def _choose(data: SegmentationDataModule, count: int, seed: int) -> Iterator[Sample]:
    """Yield at most `count` validation images in random order.

    Raises:
        ValueError: If there is no validation part.
    """
    data.prepare_data()
    data.setup("validate")
    loader = data.val_dataloader()
    if isinstance(loader, list):
        raise UserError("tune-crf needs validation images, but data.fold is null. Set data.fold or a val_dataset.")
    view: Any = loader.dataset
    order = torch.randperm(len(view), generator=torch.Generator().manual_seed(seed))
    return (view[index] for index in order[:count].tolist())


def forward_once(module: SegmentationModule, trainer: L.Trainer, samples: Iterable[Sample]) -> list[ImageLogits]:
    """Compute the logits of each image on the trainer's device and at its precision.

    Args:
        module: Module with the network.
        trainer: Trainer with device and precision.
        samples: Images with masks.
    """
    device = trainer.strategy.root_device
    module.door = open_door(module.net, device, is_wanted=module.cpu_kernels)
    module = trainer.precision_plugin.convert_module(module).to(device).eval()  # type: ignore[assignment]
    images = []
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        for sample in samples:
            assert sample.mask is not None
            image = sample.image.as_subclass(Tensor)[None].to(device)
            logits = module.door.logits(module, image)
            mask = sample.mask.as_subclass(Tensor)[None].to(device)
            images.append(ImageLogits(sample.name, image, mask, logits.float()))
    return images


def search(images: Sequence[ImageLogits], num_classes: int) -> list[Trial]:
    """Evaluate no CRF, then the coarse grid, then the finer steps around its best.

    Args:
        images: Images to tune on.
        num_classes: K.
    """
    console = table_console()
    trials = [evaluate(images, None, num_classes)]

    def attempt(parameters: Parameters, stage: str) -> None:
        trials.append(evaluate(images, parameters, num_classes, stage))
        text = ", ".join(f"{name} {value:g}" for name, value in parameters.items())
        console.print(f"{stage}: {text}: mIoU {trials[-1].miou:.4f}")

    for values in itertools.product(*COARSE.values()):
        attempt(dict(zip(COARSE, values, strict=True)), "coarse")
    for name, step in FINE_STEPS.items():
        around = _parameters(max(trials[1:], key=lambda trial: trial.miou))
        for value in (around[name] - step, around[name] + step):
            attempt({**around, name: value}, "fine")
    return trials


def evaluate(
    images: Sequence[ImageLogits], parameters: Parameters | None, num_classes: int, stage: str = "none"
) -> Trial:
    """Evaluate one set of parameters.

    Args:
        images: Images to evaluate, at least one.
        parameters: Parameters of `DenseCRF`; None for no CRF.
        num_classes: K.
        stage: Stage of the search, for the record.
    """
    crf = None if parameters is None else DenseCRF(**parameters)  # type: ignore[arg-type]
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    boundary = torch.zeros(2, num_classes, dtype=torch.int64)
    for image in images:
        size = (image.mask.shape[-2], image.mask.shape[-1])
        labels = find_labels(image.logits, image.image, size, door=Door(), postprocess=crf)
        matrix += per_image_confusion(labels, image.mask, num_classes)[0].cpu()
        boundary += boundary_counts(labels, image.mask, num_classes)[0].cpu()
    intersection, union = boundary.double()
    return Trial(
        stage,
        **(parameters or dict.fromkeys(COARSE)),
        miou=summarize(matrix)["miou"],
        boundary_iou=float((intersection / union).nanmean()),
    )


def _parameters(trial: Trial) -> Parameters:
    """Return the parameters of a trial with a CRF."""
    return {name: getattr(trial, name) for name in COARSE}


def _table(results: Mapping[str, tuple[Trial, Trial]], best: Trial) -> Table:
    """Build the printed table, with a row per group of images."""
    text = ", ".join(f"{name} {value:g}" for name, value in _parameters(best).items())
    table = Table(title=f"Dense CRF, {text}", title_justify="left")
    table.add_column("images")
    for column in ("mIoU before", "after", "boundary IoU before", "after"):
        table.add_column(column, justify="right")
    for name, (before, after) in results.items():
        figures = (before.miou, after.miou, before.boundary_iou, after.boundary_iou)
        table.add_row(name, *(f"{figure:.4f}" for figure in figures))
    return table


def _overlay(
    checkpoint: str, folder: RunFolder, parameters: Parameters, results: Mapping[str, tuple[Trial, Trial]]
) -> str:
    """Write the parameters as a configuration that overrides that of the checkpoint."""
    lines = [f"# deeplab test --ckpt_path {checkpoint} -c {folder.crf}"]
    for name, (before, after) in results.items():
        lines.append(
            f"# images: {name}; mIoU {before.miou:.4f} -> {after.miou:.4f}, "
            f"boundary IoU {before.boundary_iou:.4f} -> {after.boundary_iou:.4f}"
        )
    model = {"postprocess": {"class_path": f"{DenseCRF.__module__}.DenseCRF", "init_args": parameters}}
    return "\n".join(lines) + "\n" + yaml.safe_dump({"model": model}, sort_keys=False)
