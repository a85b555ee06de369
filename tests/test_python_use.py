"""Use the package from Python in ways that its own command line does not."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from deeplab_lightning import CrossEntropyLoss, DeepLabV3, SegmentationModule, load
from deeplab_lightning.data import Batch, ClassTable, MaskFolderDataset, SegmentationDataModule
from deeplab_lightning.data.image_format import ImageFormat
from deeplab_lightning.data.transforms import EvalTransforms, TrainTransforms
from deeplab_lightning.errors import UserError
from deeplab_lightning.metrics.confusion import ConfusionMatrix
from deeplab_lightning.metrics.mean import WeightedMean
from deeplab_lightning.models import backbone
from deeplab_lightning.models.weights import load_weights
from tests.conftest import CLASSES, draw_noise_data, write_mask
from tests.processes import run_program

pytestmark = pytest.mark.slow


def tiny_net(num_classes: int = 3, **options: Any) -> DeepLabV3:
    return DeepLabV3(num_classes, backbone="test_resnet", aspp_channels=8, pretrained=False, **options)


class OwnLoss(nn.Module):
    """Weigh the cross-entropy by a trained number (Kendall et al. 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(0.5))
        self.cross_entropy = CrossEntropyLoss()

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        value: Tensor = self.cross_entropy(logits, mask) * (-self.log_variance).exp() + self.log_variance
        return value


class OwnModule(SegmentationModule):
    def __init__(self, net, beta=0.3, widths=(), unkept=None, **others) -> None:  # type: ignore[no-untyped-def]
        super().__init__(net, **others)
        self.beta, self.widths = beta, widths


class NarrowModule(SegmentationModule):
    def __init__(self, classes, width: int = 16) -> None:  # type: ignore[no-untyped-def]
        super().__init__(tiny_net(classes.num_classes), classes=classes)
        self.width = width


class OwnNet(DeepLabV3):
    def __init__(self, num_classes: int, width: int = 8, **others: Any) -> None:
        super().__init__(num_classes, backbone="test_resnet", aspp_channels=width, pretrained=False, **others)


class OpenNet(DeepLabV3):
    """Its backbone gets ImageNet weights unless the caller says otherwise."""

    def __init__(self, num_classes: int, **others: Any) -> None:
        super().__init__(num_classes, aspp_channels=8, **others)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("noise")
    draw_noise_data(path)
    return path


def tiny_data(folder: Path, **options: Any) -> SegmentationDataModule:
    classes = ClassTable(list(CLASSES), ignore_ids=[11])
    dataset = MaskFolderDataset(str(folder), "images", masks="masks", classes=classes)
    transforms = TrainTransforms(32)
    return SegmentationDataModule(dataset, 2, batch_size=2, num_workers=0, train_transforms=transforms, **options)


def trainer(folder: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", limit_train_batches=1, limit_val_batches=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder, **{"max_epochs": 1, **options},
    )  # fmt: skip


def trained(module: SegmentationModule, folder: Path, file: Path, **data: Any) -> L.Trainer:
    """Train a module for two steps, and write its checkpoint."""
    used = trainer(file.parent)
    used.fit(module, tiny_data(folder, **data))
    used.save_checkpoint(file)
    return used


def table() -> ClassTable:
    return ClassTable(list(CLASSES), ignore_ids=[11])


def test_a_checkpoint_goes_on_with_its_own_optimizer_and_schedule(folder: Path, tmp_path: Path) -> None:
    optimizer = partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.02)
    trained(
        SegmentationModule(tiny_net(), optimizer=optimizer, lr_scheduler=None, classes=table()), folder, tmp_path / "a"
    )
    module = SegmentationModule.load_from_checkpoint(tmp_path / "a")
    again = trainer(tmp_path)
    again.fit(module, tiny_data(folder))
    assert type(again.optimizers[0]) is torch.optim.AdamW
    assert not again.lr_scheduler_configs
    assert again.optimizers[0].defaults["weight_decay"] == 0.02


@pytest.mark.long
def test_optimizers_are_kept_over_generations(folder: Path, tmp_path: Path) -> None:
    kinds = {"default": None, "own": partial(torch.optim.AdamW, lr=1e-3, betas=(0.8, 0.9))}
    for name, optimizer in kinds.items():
        trained(SegmentationModule(tiny_net(), optimizer=optimizer, classes=table()), folder, tmp_path / f"{name}0")
        for number in range(2):
            module = SegmentationModule.load_from_checkpoint(tmp_path / f"{name}{number}")
            used = trained(module, folder, tmp_path / f"{name}{number + 1}")
        assert type(used.optimizers[0]) is (torch.optim.SGD if optimizer is None else torch.optim.AdamW)
        assert optimizer is None or tuple(used.optimizers[0].defaults["betas"]) == (0.8, 0.9)


class Maker:
    def build(self, groups: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize("optimizer", [lambda groups: torch.optim.SGD(groups, lr=0.1), Maker().build])
def test_an_optimizer_that_a_checkpoint_cannot_hold_refuses_to_train(
    folder: Path, tmp_path: Path, optimizer: Any
) -> None:
    module = SegmentationModule(tiny_net(), optimizer=optimizer, classes=table())
    trained(module, folder, tmp_path / "a")
    loaded = SegmentationModule.load_from_checkpoint(tmp_path / "a")
    with pytest.raises(UserError, match="does not hold its optimizer .*: give it to train"):
        trainer(tmp_path).fit(loaded, tiny_data(folder))
    assert loaded.predict(torch.zeros(3, 20, 20, dtype=torch.uint8)).shape == (20, 20)


def test_parameters_of_a_loss_are_trained(folder: Path, tmp_path: Path) -> None:
    loss = OwnLoss()
    used = trainer(tmp_path)
    used.fit(SegmentationModule(tiny_net(), loss, classes=table()), tiny_data(folder))
    assert float(loss.log_variance.detach()) != 0.5
    assert [group["name"] for group in used.optimizers[0].param_groups][-1] == "loss"


def test_a_training_that_left_the_loss_alone_goes_on_so(folder: Path, tmp_path: Path) -> None:
    module = SegmentationModule(tiny_net(), OwnLoss(), classes=table())
    module.trains_loss = False  # as before its parameters were trained
    trained(module, folder, tmp_path / "a")
    again = SegmentationModule(tiny_net(), OwnLoss(), classes=table())
    used = trainer(tmp_path, max_epochs=2)
    with pytest.warns(UserWarning, match="did not train the parameters of its loss"):
        used.fit(again, tiny_data(folder), ckpt_path=tmp_path / "a")
    assert float(again.loss.log_variance.detach()) == 0.5  # type: ignore[operator]


def test_frozen_parameters_of_a_loss_have_no_group(folder: Path, tmp_path: Path) -> None:
    loss = OwnLoss().requires_grad_(False)
    used = trained(SegmentationModule(tiny_net(), loss, classes=table()), folder, tmp_path / "a")
    assert "loss" not in {group["name"] for group in used.optimizers[0].param_groups}


@pytest.mark.parametrize("of_module", [False, True], ids=["net", "module"])
def test_predict_leaves_each_layer_in_its_mode(of_module: bool) -> None:
    module = SegmentationModule(tiny_net()).train()
    module.net.backbone.eval()
    (module if of_module else module.net).predict(torch.zeros(3, 20, 20, dtype=torch.uint8))
    assert module.training
    assert module.net.training
    assert not module.net.backbone.training


def test_subclasses_load_their_checkpoints(folder: Path, tmp_path: Path) -> None:
    own = OwnModule(tiny_net(), 0.7, [4], 5, classes=table(), channels_last=False, head_lr_multiplier=3.0)
    trained(own, folder, tmp_path / "a")
    with pytest.warns(UserWarning, match="does not hold the argument unkept of OwnModule"):
        loaded = OwnModule.load_from_checkpoint(tmp_path / "a")
    assert list(loaded.widths) == [4]
    assert (loaded.beta, loaded.head_lr_multiplier, loaded.channels_last) == (0.7, 3.0, False)
    assert loaded.classes == own.classes
    plain = SegmentationModule.load_from_checkpoint(tmp_path / "a")
    assert (plain.head_lr_multiplier, plain.channels_last) == (3.0, False)
    trained(NarrowModule(table(), width=9), folder, tmp_path / "b")
    narrow = NarrowModule.load_from_checkpoint(tmp_path / "b")
    assert narrow.width == 9
    assert narrow.classes == own.classes


def test_a_network_that_hands_arguments_on_is_rebuilt(folder: Path, tmp_path: Path) -> None:
    module = SegmentationModule(OwnNet(3, width=12, dropout=0.25), classes=table())
    trained(module, folder, tmp_path / "a")
    net = SegmentationModule.load_from_checkpoint(tmp_path / "a", trust=True).net
    assert type(net) is OwnNet
    images = torch.randint(256, (1, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(net.eval()(images), module.net.eval()(images))


def test_a_network_that_hands_arguments_on_is_rebuilt_without_imagenet_weights(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, wanted = backbone._rgb_backbone, []

    def record(name: str, **options: Any) -> backbone.Backbone:
        wanted.append(options["pretrained"])
        return build(name, **{**options, "pretrained": False})

    monkeypatch.setattr(backbone, "_rgb_backbone", record)
    trained(SegmentationModule(OpenNet(3, backbone="test_resnet"), classes=table()), folder, tmp_path / "a")
    net = SegmentationModule.load_from_checkpoint(tmp_path / "a", trust=True).net
    assert wanted == [True, False]
    with pytest.raises(UserError, match=r"OpenNet takes \*\*kwargs"):
        net.save_pretrained(tmp_path / "folder")


@pytest.mark.long
def test_each_network_of_an_ensemble_sees_images_of_its_own_size(folder: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "small.ckpt", tmp_path / "whole.ckpt"]
    for path, size in zip(paths, (24, None), strict=True):
        trained(SegmentationModule(tiny_net(), classes=table()), folder, path, eval_transforms=EvalTransforms(size))
    image = torch.randint(256, (3, 48, 64), dtype=torch.uint8)
    with torch.no_grad():
        nets = [SegmentationModule.load_from_checkpoint(path).net.eval() for path in paths]
        expected = torch.stack([net(image[None]).softmax(dim=1)[0] for net in nets]).mean(dim=0)
    for order in (paths, paths[::-1]):
        found = load(order, device="cpu").predict(image).probabilities
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)
    model = load(paths, device="cpu")
    with pytest.raises(UserError, match="evaluated at different max_size"):
        model.predict(image, tile=64)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (image, {"tile": "64"}, "^tile must be a multiple of 32 from 64 pixels, got '64'"),
        (image, {"tile": 64, "overlap": 1.5}, "^overlap must be from 0 to half of tile, 32 pixels, got 1.5"),
        (image, {"min_area": {"glass": 4}}, "^min_area names no class 'glass'"),
        (None, {}, "^a picture must be a path, .*, or a list of them, got NoneType"),
    ]
    for given, options, text in refused:
        with pytest.raises(UserError, match=text):
            model.predict(given, **options)
    with pytest.raises(UserError, match=r"^tta must be flip, scales="):
        load(paths, device="cpu", tta=2)  # type: ignore[arg-type]
    words = ["--ckpt_path", str(paths[1]), "--ensemble", f"[{paths[0]}]", "--images", str(folder / "images")]
    done = run_program("predict", *words, "--output", str(tmp_path / "out"), "--output_dir", str(tmp_path), check=True)
    assert "small.ckpt was evaluated with max_size 24; here all networks see images of max_size None" in done.stderr


@pytest.mark.parametrize("channels", [2, 4])
def test_networks_of_other_channels_are_saved_and_loaded(channels: int, tmp_path: Path) -> None:
    net = tiny_net(in_channels=channels).eval()
    net.save_pretrained(tmp_path)
    images = torch.randint(256, (1, channels, 20, 20), dtype=torch.uint8)
    assert torch.equal(DeepLabV3.from_pretrained(tmp_path)(images), net(images))


def test_weights_of_a_checkpoint_bring_its_mean_and_deviation(folder: Path, tmp_path: Path) -> None:
    image_format = ImageFormat(mean=[0.1, 0.2, 0.3], std=[0.2, 0.3, 0.4])
    module = SegmentationModule(tiny_net(), classes=table())
    trained(module, folder, tmp_path / "a.ckpt", image_format=image_format)
    net = tiny_net().eval()
    load_weights(net, tmp_path / "a.ckpt")
    images = torch.randint(256, (1, 3, 20, 20), dtype=torch.uint8)
    torch.testing.assert_close(net(images), module.net.eval()(images), atol=1e-5, rtol=0)


def test_counts_of_inference_mode_go_on_outside_of_it() -> None:
    mean, matrix = WeightedMean(), ConfusionMatrix(2)
    with torch.inference_mode():
        mean.update(torch.tensor(1.0), 1.0)
        matrix.update(torch.ones(1, 2, 2, dtype=torch.int64))
        mean.reset()
        matrix.reset()
    mean.update(torch.tensor(3.0), 2.0)
    matrix.update(torch.ones(3, 2, 2, dtype=torch.int64))
    assert float(mean.compute()) == 3.0
    assert matrix.compute().tolist() == [[3, 3], [3, 3]]


def test_a_module_is_saved_whole(tmp_path: Path) -> None:
    module = SegmentationModule(tiny_net()).eval()
    torch.save(module, tmp_path / "a")
    images = torch.randint(256, (1, 3, 20, 20), dtype=torch.uint8)
    assert torch.equal(torch.load(tmp_path / "a", weights_only=False)(images), copy.deepcopy(module)(images))


@pytest.mark.parametrize("shape", [(8, 10, 40), (40, 8, 10)], ids=["channels last", "channels first"])
def test_arrays_of_more_channels_than_rows_are_read(shape: tuple[int, int, int], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index in range(2):
        np.save(tmp_path / "images" / f"{index}.npy", np.full(shape, index, dtype=np.uint8))
        write_mask(tmp_path / "masks" / f"{index}.png", np.zeros((8, 10), dtype=np.uint8))
    dataset = MaskFolderDataset(str(tmp_path), "images", masks="masks", classes=ClassTable(["a", "b"]))
    data = SegmentationDataModule(
        dataset, 2, num_workers=0, image_format=ImageFormat(channels=40), allow_single_class=True
    )
    data.prepare_data()
    data.setup("fit")
    assert dataset.read_image(1).shape == (40, 8, 10)


def test_pictures_of_one_row_keep_their_size(folder: Path, tmp_path: Path) -> None:
    trained(SegmentationModule(tiny_net(), classes=table()), folder, tmp_path / "a.ckpt")
    model = load(tmp_path / "a.ckpt", device="cpu")
    for size in ((1, 50), (2, 50), (1, 1)):
        assert model.predict(np.zeros((*size, 3), dtype=np.uint8)).mask.shape == size


def test_other_parts_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="net must be a DeepLab or a subclass, got Conv2d"):
        SegmentationModule(nn.Conv2d(3, 3, 1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="loss must be an nn.Module"):
        SegmentationModule(tiny_net(), lambda logits, mask: logits.sum())  # type: ignore[arg-type]
    pairs = DataLoader([(torch.zeros(3, 32, 32, dtype=torch.uint8), torch.zeros(32, 32).long())] * 4, batch_size=2)  # type: ignore[arg-type, var-annotated]
    with pytest.raises(UserError, match="loaders must yield deeplab_lightning.data.Batch, got a list of Tensor"):
        trainer(tmp_path).fit(SegmentationModule(tiny_net()), pairs, pairs)
    part: Any = Subset(MaskFolderDataset(str(folder), "images", masks="masks", classes=table()), [0, 1, 2])
    with pytest.raises(UserError, match="data.dataset must be a SegmentationDataset, got a Subset: .* list_file"):
        SegmentationDataModule(part, 2)


def test_loaders_of_one_size_may_yield_batches(tmp_path: Path) -> None:
    """Those of `Trainer.predict` were refused, with the advice to yield what they yielded."""

    def collate(masks: list[int]) -> Batch:
        mask = torch.tensor(masks)[:, None, None].expand(-1, 32, 32).to(torch.uint8)
        images = (mask[:, None] * 60).expand(-1, 3, -1, -1).contiguous()
        return Batch(images, mask, [str(i) for i in masks], [(32, 32)] * len(masks))

    loader: Any = DataLoader([0, 1, 2, 1], batch_size=2, collate_fn=collate)  # type: ignore[arg-type]
    used = trainer(tmp_path)
    used.fit(SegmentationModule(tiny_net()), loader, loader)
    assert 0 <= float(used.callback_metrics["val/miou"]) <= 1
    found: Any = used.predict(SegmentationModule(tiny_net()), loader)
    assert [name for batch in found for name, _ in batch] == ["0", "1", "2", "1"]


@pytest.mark.parametrize("is_assigned", [False, True])
def test_a_network_built_without_memory_normalises_as_any_other(is_assigned: bool) -> None:
    """Its statistics are in no state dict, so they held whatever had been in memory."""
    net = tiny_net().eval()
    with torch.device("meta"):
        empty = tiny_net().eval()
    if not is_assigned:
        empty.to_empty(device="cpu")
    empty.load_state_dict(net.state_dict(), assign=is_assigned)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(empty(images), net(images))


def test_a_score_layer_that_was_replaced_is_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    """The checkpoint held the number of classes that the network was built with, and could not be loaded."""
    net = tiny_net(num_classes=5)
    assert isinstance(net.head, nn.Sequential)
    net.head[-1] = nn.Conv2d(8, 3, 1)
    net.num_classes = 3
    trained(SegmentationModule(net, classes=table()), folder, tmp_path / "a.ckpt")
    image = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    net.save_pretrained(tmp_path / "saved")
    wanted = net.predict(image)
    assert torch.equal(SegmentationModule.load_from_checkpoint(tmp_path / "a.ckpt").predict(image), wanted)
    assert torch.equal(DeepLabV3.from_pretrained(tmp_path / "saved").predict(image), wanted)


def test_no_images_have_no_labels() -> None:
    images = torch.zeros(0, 3, 32, 48, dtype=torch.uint8)
    assert tiny_net().predict(images).shape == (0, 32, 48)
    assert SegmentationModule(tiny_net()).predict(images).shape == (0, 32, 48)


def test_a_tilde_in_a_path_is_the_home_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    dataset = MaskFolderDataset(f"~/{folder.name}", "images", masks="masks", classes=table())
    assert len(dataset) == 10
