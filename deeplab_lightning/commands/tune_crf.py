"""`deeplab tune-crf`: the parameters of the dense CRF for one checkpoint, by a small grid on held-out pictures."""

import argparse
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from rich.table import Table
from torch import Tensor

from deeplab_lightning.commands.training import load_checkpoint
from deeplab_lightning.crf import DenseCRF
from deeplab_lightning.data.batch import Sample
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
"""The ends, and of sigma_alpha the middle, of the ranges that DeepLab v2 searches (section 4.1)."""
FINE_STEPS = {"w1": 1.5, "sigma_alpha": 17.5, "sigma_beta": 1.5}
"""Half of the coarse steps: tried to both sides of the best so far, one parameter after the other."""

Parameters = dict[str, float]


class ImageLogits(NamedTuple):
    """What is kept of a picture between trials.

    Attributes:
        name: Its key in the data set.
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
    """Figures over some pictures.

    Attributes:
        stage: `none` without CRF, `coarse` or `fine`.
        w1: As of `DenseCRF`, likewise the others; None without CRF.
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

    Tries a coarse grid, then finer steps around its best, on a random part of the validation pictures, and
    shows mIoU and boundary IoU with and without the CRF there and on as many other validation pictures,
    where there are any. Writes crf.yaml, for `-c` of test and predict, and crf.csv into the run's folder.
    Other options are those of `deeplab validate`.

    Raises:
        ValueError: For fewer than 1 picture.
        DataError: If nothing is held out.
    """
    options = argparse.ArgumentParser(prog="deeplab tune-crf", description=tune_crf.__doc__, allow_abbrev=False)
    options.add_argument("--ckpt_path", required=True, help="the checkpoint, runs/<name>/checkpoints/best.ckpt")
    options.add_argument("--num_images", type=int, default=20, help="validation pictures to tune on")
    options.add_argument("--seed", type=int, default=0, help="seed of the choice of pictures")
    given, rest = options.parse_known_args(args)
    if given.num_images < 1:
        raise UserError(f"--num_images must be at least 1, got {given.num_images}.")
    module, data, trainer = load_checkpoint(["--ckpt_path", given.ckpt_path, *rest])
    data.prepare_data()
    data.setup("validate")
    loader = data.val_dataloader()
    if isinstance(loader, list):
        raise UserError("tune-crf needs held-out pictures; data.fold is null. Set data.fold or a val_dataset.")
    view: Any = loader.dataset
    order = torch.randperm(len(view), generator=torch.Generator().manual_seed(given.seed))
    chosen = order[: 2 * given.num_images].tolist()
    pictures = forward_once(module, trainer, (view[index] for index in chosen))
    tuning, others = pictures[: given.num_images], pictures[given.num_images :]
    trials = search(tuning, module.net.num_classes)
    best = max(trials[1:], key=lambda trial: trial.miou)
    results = {f"{len(tuning)} tuned on": (trials[0], best)}
    if others:
        pair = [evaluate(others, parameters, module.net.num_classes) for parameters in (None, _parameters(best))]
        results[f"{len(others)} others"] = (pair[0], pair[1])
    folder = RunFolder(trainer.default_root_dir)
    write_text(folder.crf_trials, csv_text_of_dicts([asdict(trial) for trial in trials]))
    write_text(folder.crf, _overlay(given.ckpt_path, folder, _parameters(best), results))
    console = table_console()
    console.print(_table(results, best))
    if best.miou <= trials[0].miou:
        console.print("No CRF of the grid improves the mIoU of these pictures: test and predict do better without.")
    console.print(f"Written to {folder.crf} and crf.csv; try it with", soft_wrap=True)
    console.print(f"deeplab test --ckpt_path {given.ckpt_path} -c {folder.crf}", soft_wrap=True)


def forward_once(module: SegmentationModule, trainer: L.Trainer, samples: Iterable[Sample]) -> list[ImageLogits]:
    """The scores of each picture, on the trainer's device and at its precision; kept in main memory.

    Args:
        module: The network in its module.
        trainer: Names device and precision.
        samples: With masks.
    """
    device = trainer.strategy.root_device
    module.door = open_door(module.net, device, is_wanted=module.cpu_kernels)
    module = trainer.precision_plugin.convert_module(module).to(device).eval()  # type: ignore[assignment]
    pictures = []
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        for sample in samples:
            assert sample.mask is not None
            image = sample.image.as_subclass(Tensor)[None].to(device)
            logits = module.door.logits(module, image)
            mask = sample.mask.as_subclass(Tensor)[None].to(device)
            pictures.append(ImageLogits(sample.name, image, mask, logits.float()))
    return pictures


def search(pictures: Sequence[ImageLogits], num_classes: int) -> list[Trial]:
    """Figures without a CRF, then of the coarse grid, then of the finer steps around its best.

    Args:
        pictures: To tune on.
        num_classes: K.
    """
    console = table_console()
    trials = [evaluate(pictures, None, num_classes)]

    def attempt(parameters: Parameters, stage: str) -> None:
        trials.append(evaluate(pictures, parameters, num_classes, stage))
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
    pictures: Sequence[ImageLogits], parameters: Parameters | None, num_classes: int, stage: str = "none"
) -> Trial:
    """The figures of some pictures.

    Args:
        pictures: At least one.
        parameters: Of `DenseCRF`; None for no CRF.
        num_classes: K.
        stage: For the record.
    """
    crf = None if parameters is None else DenseCRF(**parameters)  # type: ignore[arg-type]
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    boundary = torch.zeros(2, num_classes, dtype=torch.int64)
    for picture in pictures:
        size = (picture.mask.shape[-2], picture.mask.shape[-1])
        labels = find_labels(picture.logits, picture.image, size, door=Door(), postprocess=crf)
        matrix += per_image_confusion(labels, picture.mask, num_classes)[0].cpu()
        boundary += boundary_counts(labels, picture.mask, num_classes)[0].cpu()
    shared, either = boundary.double()
    named = parameters or dict.fromkeys(COARSE)
    return Trial(
        stage,
        **named,
        miou=summarize(matrix)["miou"],
        boundary_iou=float((shared / either).nanmean()),
    )


def _parameters(trial: Trial) -> Parameters:
    return {name: getattr(trial, name) for name in COARSE}


def _table(results: Mapping[str, tuple[Trial, Trial]], best: Trial) -> Table:
    text = ", ".join(f"{name} {value:g}" for name, value in _parameters(best).items())
    table = Table(title=f"Dense CRF, {text}", title_justify="left")
    table.add_column("pictures")
    for column in ("mIoU before", "after", "boundary IoU before", "after"):
        table.add_column(column, justify="right")
    for name, (before, after) in results.items():
        figures = (before.miou, after.miou, before.boundary_iou, after.boundary_iou)
        table.add_row(name, *(f"{figure:.4f}" for figure in figures))
    return table


def _overlay(
    checkpoint: str, folder: RunFolder, parameters: Parameters, results: Mapping[str, tuple[Trial, Trial]]
) -> str:
    lines = [f"# deeplab test --ckpt_path {checkpoint} -c {folder.crf}"]
    for name, (before, after) in results.items():
        lines.append(
            f"# pictures: {name}; mIoU {before.miou:.4f} -> {after.miou:.4f}, "
            f"boundary IoU {before.boundary_iou:.4f} -> {after.boundary_iou:.4f}"
        )
    model = {"postprocess": {"class_path": f"{DenseCRF.__module__}.DenseCRF", "init_args": parameters}}
    return "\n".join(lines) + "\n" + yaml.safe_dump({"model": model}, sort_keys=False)
