"""Rare-class crops, transforms of other libraries and pasted objects."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from deeplab_lightning.data import (
    ClassMix,
    ClassTable,
    CopyPaste,
    CutMix,
    MaskFolderDataset,
    SegmentationDataModule,
    TrainTransforms,
)
from deeplab_lightning.data.augmentations import augment
from tests.conftest import noise_config, write_image, write_mask
from tests.processes import run_program

ROOT = Path(__file__).parents[2]


def plain(crop_size: int = 16, **words: Any) -> TrainTransforms:
    """Return transforms that change nothing but the place of the crop."""
    return TrainTransforms(
        crop_size, scale_range=(1, 1), flip_probability=0, brightness=0, contrast=0, saturation=0, **words
    )


def rare_mask() -> Tensor:
    """A mask of class 0 with 3x3 pixels of class 1 and a corner of void."""
    mask = torch.zeros(100, 120, dtype=torch.uint8)
    mask[70:73, 90:93] = 1
    mask[:5, :5] = 255
    return mask


def test_crops_lie_over_rare_classes_as_often_as_is_asked() -> None:
    """Of two classes with shares of 1 and 1/10000, the rare one is drawn with 1 / (1 + 1/100)."""
    torch.manual_seed(0)
    image = torch.zeros(3, 100, 120, dtype=torch.uint8)
    counts = np.array([10_000, 1])
    shares = {}
    for probability in (0.0, 0.5, 1.0):
        transforms = plain(rare_class_probability=probability)
        transforms.class_pixels = counts
        shares[probability] = np.mean([bool((transforms(image, rare_mask())[1] == 1).any()) for _ in range(300)])
    assert shares[0.0] < 0.1
    assert 0.4 < shares[0.5] < 0.62
    assert shares[1.0] > 0.96


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.0])
def test_the_place_of_the_rare_pixel_varies_within_the_crop(scale: float) -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, 100, 120, dtype=torch.uint8)
    transforms = plain(rare_class_probability=1.0)
    transforms.scale_range, transforms.class_pixels = (scale, scale), np.array([10**9, 1])
    places: list[tuple[int, ...]] = []
    for _ in range(60):
        labels = transforms(image, rare_mask())[1]
        assert labels.shape == (16, 16)
        places += [tuple(place) for place in (labels == 1).nonzero()[:1].tolist()]
    assert len(places) >= (60 if scale >= 1 else 54)  # where it is shrunk, its last column may vanish
    assert len(set(places)) > 15


def test_a_void_image_still_gives_a_crop() -> None:
    transforms = plain(rare_class_probability=1.0)
    transforms.class_pixels = np.array([5, 5])
    _, labels = transforms(torch.zeros(3, 40, 40, dtype=torch.uint8), torch.full((40, 40), 255, dtype=torch.uint8))
    assert (labels == 255).all()


def test_crops_of_one_class_are_drawn_again() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(64, 200, dtype=torch.uint8)
    mask[:, 100:] = 1
    image = torch.zeros(3, 64, 200, dtype=torch.uint8)

    def mixed(share: float) -> float:
        transforms = plain(max_class_share=share)
        return float(np.mean([len(transforms(image, mask)[1].unique()) == 2 for _ in range(200)]))

    assert mixed(1.0) < 0.2
    assert mixed(0.99) > 0.5


FILLS: list[nn.Module] = [
    v2.RandomRotation([40, 40]),
    v2.RandomRotation([40, 40], fill=255),
    v2.RandomRotation([40, 40], fill=1),
    v2.RandomRotation([40, 40], fill=2),
    v2.RandomAffine([30, 30], fill=7),
    v2.RandomPerspective(0.6, p=1.0),
    v2.ElasticTransform(alpha=200.0),
]


@pytest.mark.parametrize("module", FILLS, ids=str)
@pytest.mark.parametrize("label", [0, 1, 2, 7])
def test_pixels_that_a_transform_fills_in_are_ignored(module: nn.Module, label: int) -> None:
    """torchvision fills masks with 0, a class, or with the image's fill."""
    torch.manual_seed(0)
    image = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    _, mask = augment(image, torch.full((40, 40), label, dtype=torch.uint8), [module])
    assert set(mask.unique().tolist()) == {label, 255}


def test_image_and_mask_move_together() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 2, (5, 5)).repeat_interleave(8, 0).repeat_interleave(8, 1).to(torch.uint8)
    image = (labels * 200).expand(3, 40, 40).contiguous()
    rotated, mask = augment(image, labels, [v2.RandomRotation([90, 90]), v2.RandomHorizontalFlip(1.0)])
    assert torch.equal(rotated[0].as_subclass(Tensor) > 100, mask.as_subclass(Tensor) == 1)
    assert not torch.equal(mask.as_subclass(Tensor), labels)


class ByKeywords:
    """A transform as albumentations has them."""

    seeds: list[int] = []

    def set_random_seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def __call__(self, *, image: np.ndarray[Any, Any], mask: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {"image": image[:, ::-1], "mask": mask[:, ::-1]}


def test_keyword_transforms_get_arrays_and_a_seed_of_the_image() -> None:
    image = torch.arange(3 * 4 * 6, dtype=torch.uint8).reshape(3, 4, 6)
    mask = torch.arange(24, dtype=torch.uint8).reshape(4, 6)
    ByKeywords.seeds.clear()
    for _ in range(2):
        torch.manual_seed(3)
        flipped, labels = augment(image, mask, [ByKeywords()])
    assert torch.equal(flipped.as_subclass(Tensor), image.flip(-1))
    assert torch.equal(labels.as_subclass(Tensor), mask.flip(-1))
    assert len(set(ByKeywords.seeds)) == 1


@pytest.mark.parametrize("module", [v2.RandomCrop(8), v2.Pad(3), v2.ToDtype(torch.float32, scale=True)], ids=str)
def test_transforms_that_change_size_or_dtype_are_refused(module: nn.Module) -> None:
    with pytest.raises(ValueError, match="augmentations changes the crop"):
        augment(torch.zeros(3, 16, 16, dtype=torch.uint8), torch.zeros(16, 16, dtype=torch.uint8), [module])


def crops() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A grey crop of class 0, and a white one with three squares of class 2 and most of class 1."""
    target = torch.full((3, 40, 40), 50, dtype=torch.uint8), torch.zeros(40, 40, dtype=torch.uint8)
    labels = torch.ones(40, 40, dtype=torch.uint8)
    for top in (2, 15, 28):
        labels[top : top + 9, 20:29] = 2
    return target, (torch.full((3, 40, 40), 250, dtype=torch.uint8), labels)


def test_objects_are_pasted_with_their_pixels_and_a_border_of_void() -> None:
    torch.manual_seed(0)
    target, donor = crops()
    paste = CopyPaste(1.0, max_objects=9)
    numbers = Counter()  # type: ignore[var-annotated]
    for _ in range(100):
        image, mask = paste(target, donor, np.array([900, 500, 100]), has_background=True)
        is_pasted = mask == 2
        assert (image[:, is_pasted] == 250).all()
        assert (image[:, ~is_pasted] == 50).all()
        assert not (mask == 1).any()  # larger than max_share
        number = int(is_pasted.sum()) // 81
        assert int((mask == 255).sum()) == number * 4 * 9  # one pixel on each side
        numbers[number] += 1
    assert set(numbers) == {1, 2, 3}
    assert (target[1] == 0).all()  # in its own memory


def test_background_and_void_are_never_pasted() -> None:
    labels = torch.zeros(40, 40, dtype=torch.uint8)
    labels[5:15, 5:15], labels[20:30, 20:30] = 255, 0
    target, (other, _) = crops()
    image, mask = CopyPaste(1.0)(target, (other, labels), np.array([1, 1]), has_background=True)
    assert image is target[0]
    assert mask is target[1]


def test_half_of_the_classes_are_pasted_whole() -> None:
    """Of classes 0, 1, 2 and void, one class is pasted, each as often as the others."""
    torch.manual_seed(0)
    target, (other, labels) = crops()
    labels[:, :10], labels[:, 30:] = 0, 255
    target[1].fill_(7)
    pasted = Counter()  # type: ignore[var-annotated]
    for _ in range(90):
        image, mask = ClassMix(1.0)(target, (other, labels), np.ones(8, dtype=np.int64), has_background=True)
        (train_id,) = set(mask.unique().tolist()) - {7}
        assert torch.equal(mask == train_id, labels == train_id)
        assert torch.equal((image == 250).all(dim=0), labels == train_id)
        pasted[train_id] += 1
    assert set(pasted) == {0, 1, 2}
    assert min(pasted.values()) > 15
    labels.fill_(1)
    assert ClassMix(1.0)(target, (other, labels), np.ones(8, dtype=np.int64), has_background=True) is target


def test_a_rectangle_of_any_size_and_place_is_pasted() -> None:
    torch.manual_seed(0)
    target, (other, labels) = crops()
    target, donor = (target[0][:, :30], target[1][:30]), (other[:, :30], labels[:30].fill_(3))
    shares, centres = [], []
    for _ in range(400):
        image, mask = CutMix(1.0)(target, donor, np.ones(4, dtype=np.int64), has_background=False)
        rows, columns = (mask == 3).any(dim=1).nonzero(), (mask == 3).any(dim=0).nonzero()
        box = mask[int(rows.min()) : int(rows.max()) + 1, int(columns.min()) : int(columns.max()) + 1]
        assert (box == 3).all()
        assert torch.equal((image == 250).all(dim=0), mask == 3)
        shares.append(box.numel() / mask.numel())
        centres.append(float(columns.float().mean()))
    assert np.quantile(shares, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.08)
    assert np.mean(centres) == pytest.approx(19.5, abs=1.5)


@pytest.mark.parametrize("mix", [CopyPaste, ClassMix, CutMix])
def test_a_probability_beyond_one_is_refused(mix: type[CutMix]) -> None:
    with pytest.raises(ValueError, match=rf"{mix.__name__} needs a probability in \[0, 1\], got 1.5"):
        mix(1.5)


def data_of(folder: Path, **words: Any) -> SegmentationDataModule:
    """Twelve images, of which one holds class 2."""
    for index in range(12):
        write_image(folder / "images" / f"{index:02d}.png", seed=index)
        mask = np.zeros((48, 64), dtype=np.uint8)
        mask[24:] = 1
        if index == 5:
            mask[5:15, 5:15] = 2
        write_mask(folder / "masks" / f"{index:02d}.png", mask)
    table = ClassTable(["sky", "road", "car"])
    dataset = MaskFolderDataset(str(folder), "images", masks="masks", classes=table)
    return SegmentationDataModule(dataset, fold=None, num_workers=0, batch_size=4, **words)


def test_images_of_rare_classes_are_repeated_with_other_crops(tmp_path: Path) -> None:
    data = data_of(tmp_path, repeat_rare=0.75, train_transforms=plain())
    assert data.dataset is not None
    view = data.train_view(data.dataset)
    assert Counter(view.indices) == Counter({**dict.fromkeys(range(12), 1), 5: 3})  # sqrt(.75 / (1 / 12)) = 3
    places = [position for position, index in enumerate(view.indices) if index == 5]
    crops_of = [view[0, place].image.as_subclass(Tensor) for place in places]
    assert not torch.equal(crops_of[0], crops_of[1])
    assert torch.equal(view[0, places[1]].image.as_subclass(Tensor), crops_of[1])  # the same in any order
    assert Counter(data_of(tmp_path, train_transforms=plain()).train_view(data.dataset).indices)[5] == 1


@pytest.mark.slow
def test_rare_classes_get_more_of_the_batches(tmp_path: Path) -> None:
    """All three together, through the loader of the training."""
    shares = []
    settings: list[dict[str, Any]] = [{}, {"repeat_rare": 0.75, "copy_paste": CopyPaste(1.0)}]
    for words in settings:
        transforms = plain(rare_class_probability=0.8 if words else 0.0)
        data = data_of(tmp_path, train_transforms=transforms, **words)
        masks = torch.cat([batch.mask for batch in data.train_dataloader()])
        shares.append(float((masks == 2).sum() / masks.numel()))
    assert shares[1] > 3 * shares[0]


@pytest.mark.long
def test_the_overlays_train_and_are_drawn(tmp_path: Path) -> None:
    data_of(tmp_path)
    config = noise_config(tmp_path, trainer={"max_epochs": 1, "num_sanity_val_steps": 0})
    config["data"]["dataset"]["init_args"]["classes"] = {"names": ["sky", "road", "car"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    overlays = [str(ROOT / "configs" / "data" / f"{name}.yaml") for name in ("rare_classes", "augmentations")]
    words = ["-c", str(tmp_path / "config.yaml"), *(word for overlay in overlays for word in ("-c", overlay))]
    crop = ["--data.train_transforms.init_args.crop_size", "32"]
    run_program("fit", *words, *crop, "--name", "a", check=True)
    run_program("fit", *words, *crop, "--name", "b", "--data.num_workers", "2", check=True)
    losses = [json.loads((tmp_path / "runs" / name / "result.json").read_text())["val"]["loss"] for name in "ab"]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # the number of workers changes no crop
    run_program("data", "show", *words, *crop, "--output", str(tmp_path / "page"), check=True)
    with Image.open(tmp_path / "page" / "batch.png") as batch:
        assert batch.width > 0
    for mix in ("ClassMix", "CutMix"):
        run_program("fit", *words[:2], "--data.copy_paste", mix, *crop, "--name", mix, check=True)
        losses.append(json.loads((tmp_path / "runs" / mix / "result.json").read_text())["val"]["loss"])
    assert len(set(losses)) >= 3  # they change what is trained on
    refused = run_program("fit", *words, "--data.train_transforms.init_args.max_class_share", "0")
    assert refused.returncode != 0
    assert "Traceback" not in refused.stderr


@pytest.mark.long
def test_a_configuration_of_before_names_copy_paste_where_it_was(tmp_path: Path) -> None:
    """The class moved to another module, and its old path was refused; so were options without a class."""
    data_of(tmp_path)
    config = noise_config(tmp_path, trainer={"max_epochs": 1})
    config["data"]["copy_paste"] = {"class_path": "deeplab_lightning.data.augmentations.CopyPaste"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run_program("fit", "-c", str(tmp_path / "config.yaml"), "--name", "old", check=True)
    assert (tmp_path / "runs" / "old" / "result.json").is_file()
    del config["data"]["copy_paste"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["-c", str(tmp_path / "config.yaml"), "--data.copy_paste.probability", "0.25", "--print_config"]
    printed = yaml.safe_load(run_program("fit", *words, check=True).stdout)
    assert printed["data"]["copy_paste"]["class_path"].endswith(".CopyPaste")
    assert printed["data"]["copy_paste"]["init_args"]["probability"] == 0.25


@pytest.mark.slow
def test_a_value_that_config_yaml_cannot_hold_is_refused(tmp_path: Path) -> None:
    """The parser wrote the text of its warning into config.yaml, which no resumed training could read."""
    data_of(tmp_path)
    config = noise_config(tmp_path, trainer={"max_epochs": 1})
    config["data"]["dataset"]["init_args"]["classes"] = {"names": ["sky", "road", "car"]}
    rotation = {"class_path": "torchvision.transforms.v2.RandomRotation", "init_args": {"degrees": 10.0}}
    config["data"]["train_transforms"]["init_args"]["augmentations"] = [rotation]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = run_program("fit", "-c", str(tmp_path / "config.yaml"))
    assert done.returncode == 1
    assert "degrees: the value 10.0 of this class cannot be written to config.yaml" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "Unable" not in done.stderr
