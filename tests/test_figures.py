"""The figures of a training: one loss for the whole set, of all processes, of the epoch that they are printed for."""

import json
import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EMAWeightAveraging
from segmentation_models_pytorch.losses import DiceLoss
from torch.utils._python_dispatch import TorchDispatchMode

from deeplab_lightning import DeepLabV3, SegmentationModule
from deeplab_lightning.callbacks import PredictionPanels, panels
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.tables import read_csv
from tests.conftest import noise_config, write_mask
from tests.processes import run_program
from tests.test_module import TABLE, tiny_data, tiny_net, trainer


class LossFile(L.Callback):
    """Write the losses of this process to a file."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.losses: dict[int, list[float]] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.setdefault(trainer.current_epoch, []).append(float(outputs["loss"]))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Path(self.folder, f"losses_{trainer.global_rank}.json").write_text(json.dumps(list(self.losses.values())))


def fit(folder: Path, *options: str) -> str:
    trainer = {"num_sanity_val_steps": 0, "max_epochs": 2, "enable_model_summary": False}
    net = {"backbone": "test_efficientnet"}
    config = noise_config(folder, trainer=trainer, net=net, data={"n_folds": 5, "batch_size": 1})
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 3, **config}))
    return run_program("fit", "-c", str(folder / "config.yaml"), "--name", "run", *options, check=True).stdout


@pytest.mark.long
@pytest.mark.parametrize(
    "loss", [CrossEntropyLoss(class_weights=[1.0, 0.5, 9.0]), DiceLoss("multiclass", ignore_index=255)]
)
def test_the_validation_loss_does_not_depend_on_the_batch_size(mask_folder: Path, loss: torch.nn.Module) -> None:
    losses = []
    for size in (1, 2, 4):
        data = tiny_data(mask_folder)
        data.eval_batch_size = size
        [figures] = trainer(mask_folder).validate(
            SegmentationModule(tiny_net(), loss, classes=TABLE), data, verbose=False
        )
        losses.append(figures["val/loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_the_validation_loss_is_the_mean_over_all_pixels(mask_folder: Path) -> None:
    data, module = tiny_data(mask_folder), SegmentationModule(tiny_net(), classes=TABLE)
    for index, name in enumerate(sorted((mask_folder / "masks").iterdir())):
        mask = torch.randint(0, 3, (48, 64), dtype=torch.uint8)
        mask[: 4 * index] = 11  # another number of pixels in each image
        write_mask(name, mask.numpy())
    [figures] = trainer(mask_folder).validate(module, data, verbose=False)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in (batch for batches in data.val_dataloader() for batch in batches):
            values = torch.nn.functional.cross_entropy(
                module.eval()(batch.image), batch.mask.long(), ignore_index=255, reduction="sum"
            )
            total, count = total + float(values), count + int((batch.mask != 255).sum())
    assert figures["val/loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.long
def test_the_loss_of_an_epoch_is_the_mean_over_its_steps_and_processes(mask_folder: Path) -> None:
    recorder = f"{{class_path: tests.test_figures.LossFile, init_args: {{folder: {mask_folder}}}}}"
    printed = fit(
        mask_folder, "--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.callbacks", f"[{recorder}]"
    )
    losses = torch.tensor([json.loads((mask_folder / f"losses_{rank}.json").read_text()) for rank in (0, 1)])
    assert losses.shape == (2, 2, 4)  # processes, epochs, steps
    expected = losses.mean(dim=(0, 2)).tolist()
    rows = read_csv(mask_folder / "runs" / "run" / "metrics.csv")
    assert [float(row["train/loss"]) for row in rows] == pytest.approx(expected, rel=1e-5)
    assert [float(value) for value in re.findall(r"train/loss ([\d.]+)", printed)] == pytest.approx(expected, abs=1e-3)


@pytest.mark.long
def test_the_line_of_an_epoch_without_validation_has_no_figures_of_an_earlier_one(mask_folder: Path) -> None:
    printed = fit(mask_folder, "--trainer.max_epochs", "4", "--trainer.check_val_every_n_epoch", "2")
    lines = [line for line in printed.splitlines() if line.startswith("epoch ")]
    assert ["val/miou" in line for line in lines] == [False, True, False, True]


@pytest.mark.long
@pytest.mark.parametrize(("epochs", "every", "validated"), [("3", "2", [2, 3]), ("2", "7", [2])])
def test_the_last_epoch_is_validated_whatever_the_interval(
    mask_folder: Path, epochs: str, every: str, validated: list[int]
) -> None:
    """A training that was shorter than the interval had no figures, and others had those of an earlier epoch."""
    fit(mask_folder, "--trainer.max_epochs", epochs, "--trainer.check_val_every_n_epoch", every)
    rows = read_csv(mask_folder / "runs" / "run" / "metrics.csv")
    assert [int(row["epoch"]) + 1 for row in rows if row["val/miou"]] == validated
    result = json.loads((mask_folder / "runs" / "run" / "result.json").read_text())
    assert result["last"]["miou"] == pytest.approx(float(rows[-1]["val/miou"]), abs=1e-6)
    assert (mask_folder / "runs" / "run" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("is_first", [True, False])
def test_panels_show_averaged_weights(mask_folder: Path, monkeypatch: pytest.MonkeyPatch, is_first: bool) -> None:
    """In whatever order the callbacks are given."""
    averaging, drawn = EMAWeightAveraging(decay=0.5), []

    def look(module: SegmentationModule, sample: Any) -> torch.Tensor:
        drawn.append(next(module.net.parameters()).detach().clone())
        assert sample.mask is not None
        return torch.zeros(sample.mask.shape, dtype=torch.uint8)

    monkeypatch.setattr(panels, "predict_one", look)
    callbacks = [averaging, PredictionPanels(1)] if is_first else [PredictionPanels(1), averaging]
    module = SegmentationModule(tiny_net(), None, lambda groups: torch.optim.SGD(groups, lr=0.1), classes=TABLE)
    fit = trainer(mask_folder, max_epochs=1, num_sanity_val_steps=0, callbacks=callbacks)
    initial = next(module.net.parameters()).detach().clone()
    fit.fit(module, tiny_data(mask_folder))
    assert len(drawn) == 1
    average = next(averaging._average_model.module.net.parameters())  # type: ignore[union-attr]
    assert torch.equal(drawn[0], average)
    assert not torch.equal(average, initial)
    assert (mask_folder / "panels" / "epoch_001.png").is_file()


@pytest.mark.long
def test_a_process_whose_crops_are_void_does_not_stop_the_others(mask_folder: Path) -> None:
    """With a second head, whose parameters had no gradient in that process."""
    for index in range(0, 10, 2):
        write_mask(mask_folder / "masks" / f"{index:02d}.png", torch.full((48, 64), 11, dtype=torch.uint8).numpy())
    loss = "segmentation_models_pytorch.losses.DiceLoss"
    fit(
        mask_folder,
        *("--trainer.devices", "2", "--trainer.strategy", "ddp", "--model.net.init_args.auxiliary_weight", "0.4"),
        *("--model.loss", loss, "--model.loss.mode", "multiclass", "--model.loss.ignore_index", "255"),
        *("--data.fold_method", "random"),
    )


class Waits(TorchDispatchMode):
    """Count the operations that wait for a device to read a value."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        is_mask_index = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for i in (args[1] if isinstance(args[1], list) else ())
        )
        if name in {"_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal"} or is_mask_index:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "loss",
    [CrossEntropyLoss(), CrossEntropyLoss(class_weights=[1.0, 0.0, 2.0], label_smoothing=0.1)],
    ids=["plain", "weights"],
)
@pytest.mark.parametrize("is_void", [False, True])
def test_a_training_step_does_not_wait_for_the_device(loss: torch.nn.Module, is_void: bool) -> None:
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False, auxiliary_weight=0.4)
    module = SegmentationModule(net, loss, classes=TABLE)
    mask = torch.full((2, 32, 32), 255 if is_void else 1, dtype=torch.uint8)
    batch = Batch(
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8), mask, ["a", "b"], [(32, 32)] * 2, [0 if is_void else 1024] * 2
    )
    with Waits() as waits:
        module.compute_loss(batch)[0].backward()
    assert waits.names == []


def test_waiting_is_seen() -> None:
    with Waits() as waits:
        assert (torch.ones(2) > 0).any()
        torch.ones(2)[torch.ones(2) > 0]
    assert len(waits.names) >= 2


class BenchmarkFlags(L.Callback):
    """Write whether cuDNN searches for kernels, in training and in validation."""

    def __init__(self, folder: str) -> None:
        self.folder, self.flags = Path(folder), {"train": set[bool](), "validate": set[bool]()}

    def on_train_batch_start(self, *_: Any) -> None:
        self.flags["train"].add(torch.backends.cudnn.benchmark)

    def on_validation_batch_start(self, *_: Any) -> None:
        self.flags["validate"].add(torch.backends.cudnn.benchmark)

    def on_train_end(self, *_: Any) -> None:
        (self.folder / "flags.json").write_text(json.dumps({key: list(value) for key, value in self.flags.items()}))


@pytest.mark.long
def test_cudnn_searches_for_kernels_in_training_only(mask_folder: Path) -> None:
    flags = f"{{class_path: tests.test_figures.BenchmarkFlags, init_args: {{folder: {mask_folder}}}}}"
    fit(mask_folder, "--trainer.benchmark", "true", "--trainer.callbacks", f"[{flags}]")
    assert json.loads((mask_folder / "flags.json").read_text()) == {"train": [True], "validate": [False]}
