from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from deeplab_lightning import DeepLabV3, SegmentationDataModule, SegmentationModule
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset
from deeplab_lightning.data.transforms import TrainTransforms
from deeplab_lightning.losses import CrossEntropyLoss
from deeplab_lightning.metrics.boundary import boundary_iou
from deeplab_lightning.resizing import resize
from deeplab_lightning.schedules import PolyLR
from tests.conftest import CLASSES

TABLE = ClassTable(CLASSES, ignore_ids=[11])


def tiny_net(num_classes: int = 3) -> DeepLabV3:
    torch.manual_seed(0)
    return DeepLabV3(num_classes, backbone="test_resnet", aspp_channels=8, pretrained=False)


def tiny_data(folder: Path) -> SegmentationDataModule:
    dataset = MaskFolderDataset(str(folder), "images", masks="masks", classes=TABLE)
    return SegmentationDataModule(dataset, 3, batch_size=2, num_workers=0, train_transforms=TrainTransforms(32))


def trainer(folder: Path, **arguments: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **arguments,
    )


def weights(module: L.LightningModule) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_images_are_normalised_by_the_backbones_statistics() -> None:
    module = SegmentationModule(tiny_net())
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor(module.net.backbone.mean), torch.tensor(module.net.backbone.std)
    expected = (images / 255 - mean[None, :, None, None]) / std[None, :, None, None]
    assert torch.allclose(module.normalize(images), expected, atol=1e-5)


def test_predictions_have_the_size_of_the_file() -> None:
    module = SegmentationModule(tiny_net()).eval()
    batch = Batch(torch.zeros(1, 3, 32, 48, dtype=torch.uint8), None, ["a.jpg"], [(65, 97)])
    [(name, mask)] = module.predict_step([batch], 0)
    assert (name, mask.shape, mask.dtype) == ("a.jpg", (65, 97), torch.uint8)


def test_one_class_is_evaluated(mask_folder: Path, tmp_path: Path) -> None:
    table = ClassTable(["all"], ignore_ids=[1, 2, 11])
    dataset = MaskFolderDataset(str(mask_folder), "images", masks="masks", classes=table)
    module, data = SegmentationModule(tiny_net(1), classes=table), SegmentationDataModule(dataset, 3, num_workers=0)
    [figures] = trainer(tmp_path).test(module, data, verbose=False)
    assert figures["test/miou"] == figures["test/boundary_iou"] == 1


@pytest.mark.slow
def test_rates_are_multiples_and_the_schedule_ends_with_the_training(mask_folder: Path) -> None:
    module = SegmentationModule(tiny_net(), None, lambda groups: torch.optim.SGD(groups, lr=0.1))
    fit = trainer(mask_folder, max_epochs=2, accumulate_grad_batches=2)
    fit.fit(module, datamodule=tiny_data(mask_folder))
    optimizer = fit.optimizers[0]
    initial = {g["name"]: g["initial_lr"] for g in optimizer.param_groups}
    assert initial == pytest.approx(
        {"backbone": 0.1, "backbone_no_decay": 0.1, "head": 1, "head_norm": 1, "head_bias": 2}
    )
    # 6 training images in batches of 2, two batches a step: 2 steps an epoch, 4 in all.
    assert fit.global_step == 4
    assert fit.lr_scheduler_configs[0].scheduler.last_epoch == 4
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_any_scheduler_of_optimizer_and_steps_can_be_used(mask_folder: Path) -> None:
    module = SegmentationModule(tiny_net(), lr_scheduler=CosineAnnealingLR)
    fit = trainer(mask_folder, max_epochs=1)
    fit.fit(module, datamodule=tiny_data(mask_folder))
    assert fit.lr_scheduler_configs[0].scheduler.T_max == 3  # type: ignore[union-attr]


def test_validation_equals_counting_by_hand(mask_folder: Path) -> None:
    module, data = SegmentationModule(tiny_net(), classes=TABLE), tiny_data(mask_folder)
    [figures] = trainer(mask_folder).validate(module, datamodule=data, verbose=False)
    module.eval()
    matrix = torch.zeros(3, 3, dtype=torch.long)
    with torch.no_grad():
        for batches in data.val_dataloader():
            for batch in batches:
                for logits, mask in zip(module(batch.image), batch.mask, strict=True):
                    for t, p in zip(mask.flatten().tolist(), logits.argmax(0).flatten().tolist(), strict=True):
                        if t != 255:
                            matrix[t, p] += 1
    assert torch.equal(module.last_matrix, matrix)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    assert figures["val/iou/road"] == pytest.approx(float(matrix[1, 1] / union[1]))
    assert figures["val/pixel_accuracy"] == pytest.approx(float(matrix.diagonal().sum() / matrix.sum()))


def test_the_batch_size_does_not_change_the_figures(mask_folder: Path) -> None:
    matrices = []
    for size in (1, 3):
        module, data = SegmentationModule(tiny_net(), classes=TABLE), tiny_data(mask_folder)
        data.eval_batch_size = size
        trainer(mask_folder).validate(module, datamodule=data, verbose=False)
        matrices.append(module.last_matrix)
    difference = (matrices[0] - matrices[1]).abs().sum()
    assert difference <= 4  # kernels of other batch sizes may round a tie the other way


@pytest.mark.slow
def test_resume_equals_no_interruption(mask_folder: Path, tmp_path: Path) -> None:
    def run(folder: str, **arguments: Any) -> tuple[L.Trainer, SegmentationModule]:
        module = SegmentationModule(tiny_net(), lr_scheduler=None)
        fit = trainer(tmp_path / folder, max_epochs=arguments.pop("max_epochs"))
        torch.manual_seed(1)
        fit.fit(module, datamodule=tiny_data(mask_folder), **arguments)
        return fit, module

    # Dropout draws from the global generator, which a checkpoint does not hold.
    for module in (whole := run("whole", max_epochs=2))[1].modules():
        assert not isinstance(module, torch.nn.Dropout) or module.p == 0.5
    first, _ = run("first", max_epochs=1)
    first.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.random.get_rng_state()
    second = SegmentationModule(tiny_net(), lr_scheduler=None)
    fit = trainer(tmp_path / "second", max_epochs=2)
    torch.random.set_rng_state(state)
    fit.fit(second, datamodule=tiny_data(mask_folder), ckpt_path=str(tmp_path / "a.ckpt"))
    assert torch.equal(weights(whole[1]), weights(second))


@pytest.mark.slow
def test_checkpoints_load_in_scripts(mask_folder: Path, tmp_path: Path) -> None:
    module = SegmentationModule(tiny_net(), classes=TABLE, lr_scheduler=PolyLR)
    fit = trainer(mask_folder, max_epochs=1)
    fit.fit(module, datamodule=tiny_data(mask_folder))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt", net=tiny_net(), classes=TABLE)
    assert torch.equal(weights(loaded), weights(module))


def test_network_and_class_table_must_agree() -> None:
    with pytest.raises(
        ValueError, match="the network has 2 classes, the class table 3: build the network with num_classes=3"
    ):
        SegmentationModule(tiny_net(2), classes=TABLE)


def test_a_loss_that_ignores_another_value_is_refused() -> None:
    with pytest.raises(ValueError, match="the loss ignores -100, but void is 255"):
        SegmentationModule(tiny_net(), torch.nn.CrossEntropyLoss())


class HardestPixels(CrossEntropyLoss):
    """Averages the loss over the worse half of the pixels."""

    def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        pixels = torch.nn.functional.cross_entropy(logits, mask, reduction="none").flatten()
        return pixels.topk(len(pixels) // 2)[0].mean()


class Doubled(SegmentationModule):
    def forward(self, images: torch.Tensor) -> Any:
        return 2 * super().forward(images)


def test_losses_and_modules_that_override_forward_use_full_size_logits() -> None:
    torch.manual_seed(0)
    net, mask = tiny_net(), torch.randint(0, 3, (2, 32, 32))
    batch = Batch(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), mask, ["a", "b"], [(32, 32)] * 2)
    _, logits = SegmentationModule(net, HardestPixels()).compute_loss(batch)
    assert logits.shape == (2, 3, 32, 32)
    _, coarse_logits = SegmentationModule(net).eval().compute_loss(batch)
    _, doubled = Doubled(net).eval().compute_loss(batch)
    assert torch.allclose(doubled, 2 * resize(coarse_logits, (32, 32)), atol=1e-5)


def test_postprocess_is_used_in_test_and_prediction_but_not_in_validation(mask_folder: Path) -> None:
    seen = []

    def all_cars(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        seen.append((images.dtype, images.shape, logits.shape))
        return torch.full((len(images), *images.shape[2:]), 2)

    plain = SegmentationModule(tiny_net(), classes=TABLE)
    module, data = SegmentationModule(tiny_net(), classes=TABLE, postprocess=all_cars), tiny_data(mask_folder)
    matrices = []
    for each in (plain, module):
        trainer(mask_folder).validate(each, datamodule=data, verbose=False)
        matrices.append(each.last_matrix)
    assert torch.equal(*matrices)
    assert seen == []
    trainer(mask_folder).test(module, datamodule=data, verbose=False)
    assert int(module.last_matrix[:, :2].sum()) == 0
    assert torch.equal(module.last_matrix.sum(1), matrices[0].sum(1))
    assert seen[0] == (torch.uint8, (2, 3, 48, 64), (2, 3, 48, 64))
    batch = Batch(torch.zeros(1, 3, 32, 48, dtype=torch.uint8), None, ["a.jpg"], [(65, 97)])
    [(_, mask)] = module.predict_step([batch], 0)
    assert torch.equal(mask, torch.full((65, 97), 2, dtype=torch.uint8))


def test_boundary_iou_is_that_of_the_whole_set_and_only_logged_in_test(mask_folder: Path) -> None:
    module, data = SegmentationModule(tiny_net(), classes=TABLE), tiny_data(mask_folder)
    [validated] = trainer(mask_folder).validate(module, datamodule=data, verbose=False)
    assert "val/boundary_iou" not in validated
    [tested] = trainer(mask_folder).test(module, datamodule=data, verbose=False)
    loader = data.test_dataloader()
    assert not isinstance(loader, list)
    batches = [batch for batches in loader for batch in batches]
    predicted = torch.cat([torch.stack([labels for _, labels in module.eval().predict_step([b], 0)]) for b in batches])
    expected = boundary_iou(predicted, torch.cat([batch.mask for batch in batches]), 3)
    assert tested["test/boundary_iou"] == pytest.approx(float(expected.nanmean()), abs=1e-3)


def test_probabilities_of_postprocess_are_resized_and_compared(mask_folder: Path) -> None:
    plain = SegmentationModule(tiny_net()).eval()
    module = SegmentationModule(tiny_net(), postprocess=lambda _, logits: logits.softmax(1)).eval()
    images = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8)
    same = Batch(images, None, ["a.jpg", "b.jpg"], [(33, 47)] * 2)
    for (_, found), (_, expected) in zip(module.predict_step([same], 0), plain.predict_step([same], 0), strict=True):
        assert torch.equal(found, expected)
    [(_, larger)] = module.predict_step([Batch(images[:1], None, ["a.jpg"], [(66, 94)])], 0)
    assert larger.shape == (66, 94)


def test_wrong_outputs_of_postprocess_are_refused() -> None:
    module = SegmentationModule(tiny_net(), postprocess=lambda _, logits: logits.amax(1)).eval()
    batch = Batch(torch.zeros(1, 3, 32, 48, dtype=torch.uint8), None, ["a.jpg"], [(32, 48)])
    with pytest.raises(ValueError, match="postprocess must return integer labels"):
        module.predict_step([batch], 0)


def test_weights_without_names_keep_the_score_layer_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_net()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    torch.manual_seed(1)
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, weights=str(tmp_path / "w.pth"))
    SegmentationModule(net, classes=TABLE)
    assert "The weights do not name their classes: the score layer keeps them" in capsys.readouterr().out
    assert torch.equal(net.head.state_dict()["2.weight"], source.head.state_dict()["2.weight"])
