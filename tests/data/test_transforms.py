from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from deeplab_lightning.data.images import ImageFile, read_image
from deeplab_lightning.data.transforms import EvalTransforms, TrainTransforms, adjust_colors, resize_mask
from tests.conftest import write_image

NEAREST = InterpolationMode.NEAREST_EXACT


def pair(height: int, width: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Build an image that is its mask times 40, with the classes 1 to 4 in its quarters."""
    mask = torch.ones(height, width, dtype=torch.uint8)
    mask[:, width // 2 :] += 1
    mask[height // 2 :] += 2
    return tv_tensors.Image((mask * 40).expand(3, -1, -1).clone()), tv_tensors.Mask(mask)


def crops(crop_size: tuple[int, int], scale: float, fill: tuple[int, int, int] = (0, 0, 0)) -> TrainTransforms:
    """Build transforms that crop at one scale and keep the colours."""
    return TrainTransforms(
        crop_size, scale_range=(scale, scale), flip_probability=0, brightness=0, contrast=0, saturation=0, fill=fill
    )


def plain(image: Tensor, mask: Tensor, crop: tuple[int, int], low: float, high: float) -> tuple[Tensor, Tensor]:
    """Compute a crop step by step on whole tensors with torchvision, from the same random numbers."""
    scale = float(torch.empty(()).uniform_(low, high))
    spans = []
    for length, size in zip(image.shape[-2:], crop, strict=True):
        window = max(1, round(size / scale))
        if window <= length:
            spans.append((int(torch.randint(length - window + 1, ())), window, size, 0))
        else:
            resized = min(size, max(1, round(length * scale)))
            spans.append((0, length, resized, int(torch.randint(size - resized + 1, ()))))
    (top, height, out_height, above), (left, width, out_width, before) = spans
    padding = [before, above, crop[1] - out_width - before, crop[0] - out_height - above]
    is_flipped = float(torch.empty(()).uniform_(0, 1)) < 0.5
    image = F.resized_crop(image, top, left, height, width, size=[out_height, out_width], antialias=True)
    labels = F.crop(mask, top, left, height, width)[None]
    mask = tv_tensors.Mask(F.resize_image(labels.as_subclass(Tensor), [out_height, out_width], NEAREST)[0])
    if is_flipped:
        image, mask = F.horizontal_flip(image), F.horizontal_flip(mask)
    return F.pad(image, padding, fill=[1, 2, 3]), F.pad(mask, padding, fill=255)


@pytest.mark.parametrize("size", [(60, 81), (97, 44), (300, 200)])
def test_crops_are_those_of_torchvision_on_whole_images(size: tuple[int, int]) -> None:
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    mask = tv_tensors.Mask(torch.randint(0, 9, size, dtype=torch.uint8))
    transforms = TrainTransforms((64, 50), brightness=0, contrast=0, saturation=0, fill=(1, 2, 3))
    for seed in range(20):
        torch.manual_seed(seed)
        image, labels = transforms(tv_tensors.Image(noise), mask)
        torch.manual_seed(seed)
        expected_image, expected_labels = plain(tv_tensors.Image(noise), mask, (64, 50), 0.5, 2.0)
        assert torch.equal(image, expected_image)
        # torch's float32 misses centres that are exactly between two pixels: in one row, or two.
        assert (labels == expected_labels).float().mean() > 0.95


def test_files_and_their_pixels_give_the_same_crops(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(noise).save(tmp_path / name)
        source = ImageFile(tmp_path / name)
        mask = torch.zeros(60, 80, dtype=torch.uint8)
        for seed in range(5):
            torch.manual_seed(seed)
            from_file = TrainTransforms(48, scale_range=(0.51, 2))(source, mask)
            torch.manual_seed(seed)
            from_pixels = TrainTransforms(48, scale_range=(0.51, 2))(source.pixels(), mask)
            assert torch.equal(from_file[0], from_pixels[0])
            assert torch.equal(from_file[1], from_pixels[1])


@pytest.mark.parametrize(("scale", "reduction"), [(0.5, 2), (0.3, 2), (0.2, 4), (0.11, 8)])
def test_reduced_decoding_stays_close_and_aligned(tmp_path: Path, scale: float, reduction: int) -> None:
    mask = torch.zeros(403, 517, dtype=torch.uint8)
    mask[120:, 200:] = 5
    Image.fromarray(np.repeat(mask.numpy()[..., None] * 40, 3, axis=2)).save(tmp_path / "a.jpg", quality=95)
    source = ImageFile(tmp_path / "a.jpg")
    assert source.reduction(scale) == reduction
    shapes = set()
    for seed in range(6):
        torch.manual_seed(seed)
        image, labels = crops((40, 48), scale)(source, mask)
        shapes.add((tuple(image.shape), tuple(labels.shape)))
        inside = labels != 255
        difference = (image[0].int() - labels.as_subclass(Tensor).int() * 40).abs()[inside].float()
        assert (difference > 60).float().mean() < 0.07  # only at the edge, which is one pixel wide
    assert shapes == {((3, 40, 48), (40, 48))}


def test_an_image_larger_than_half_its_size_is_decoded_in_full(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert ImageFile(tmp_path / "a.jpg").reduction(0.51) == 1
    assert ImageFile(tmp_path / "a.png").reduction(0.1) == 1


def test_a_crop_does_not_change_when_the_next_is_made(tmp_path: Path) -> None:
    """Nothing is resized, flipped or recoloured here, so a crop could share the memory of the next one."""
    made, mask = [], tv_tensors.Mask(torch.zeros(32, 32, dtype=torch.uint8))
    for seed in (0, 1):
        write_image(tmp_path / f"{seed}.jpg", (32, 32), seed)
        made.append(crops((32, 32), 1.0)(ImageFile(tmp_path / f"{seed}.jpg"), mask)[0])
    for seed in (0, 1):
        assert torch.equal(made[seed], read_image(tmp_path / f"{seed}.jpg"))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_colours_are_those_of_torchvision_in_any_order(order: tuple[int, ...]) -> None:
    image = torch.randint(90, 160, (3, 32, 40), dtype=torch.uint8)  # so that no step clamps
    factors = (1.2, 0.8, 1.3)
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    expected = image
    for step in order:
        expected = steps[step](expected, factors[step])
    # torchvision truncates after each step, also the mean grey value.
    assert (adjust_colors(image, *factors).int() - expected.int()).abs().max() <= 3


def test_colours_are_clamped_and_ones_change_nothing() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(adjust_colors(image, 1, 1, 1), image)
    assert adjust_colors(image, 1, 1, 1).data_ptr() != image.data_ptr()
    assert int(adjust_colors(image, 300, 1, 1)[image > 0].min()) == 255
    assert int(adjust_colors(image, 0, 1, 1).max()) == 0


def test_padding_is_the_mean_colour_and_the_ignore_index() -> None:
    transforms = TrainTransforms((40, 50), scale_range=(1, 1), fill=(1, 2, 3))
    image, mask = transforms(*pair(20, 30))
    assert image.shape == (3, 40, 50)
    assert int((mask == 255).sum()) == 40 * 50 - 20 * 30
    assert image[:, mask == 255].unique(dim=1).flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("scale", [0.37, 0.5, 1.0, 1.9])
def test_no_labels_are_invented_and_image_and_mask_stay_aligned(scale: float) -> None:
    torch.manual_seed(0)
    for _ in range(10):
        image, mask = crops((33, 47), scale)(*pair(60, 80))
        assert image.shape[1:] == mask.shape == (33, 47)
        assert set(mask.unique().tolist()) <= {1, 2, 3, 4, 255}
        # Away from edges the red channel is 40 times the label; at edges it is a mixture.
        agrees = image[0] == mask.as_subclass(torch.Tensor) * 40
        assert agrees[mask != 255].float().mean() > 0.8


def test_downscaled_masks_are_aligned_with_their_images() -> None:
    # 8 pixels to 2: the labels under the new centres (pixel 2 and 6), not under the corners (0 and 4).
    row = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.uint8)
    assert resize_mask(tv_tensors.Mask(row), (1, 2)).tolist() == [[2, 6]]


def test_train_transforms_keep_uint8_and_the_crop_size() -> None:
    image, mask = TrainTransforms((24, 32))(*pair(60, 80))
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.uint8)
    assert (image.shape, mask.shape) == ((3, 24, 32), (24, 32))


def test_flip_mirrors_image_and_mask() -> None:
    transforms = TrainTransforms(
        (20, 30), scale_range=(1, 1), flip_probability=1.0, brightness=0, contrast=0, saturation=0
    )
    image, mask = pair(20, 30)
    flipped_image, flipped_mask = transforms(image, mask)
    assert torch.equal(flipped_image, image.flip(-1))
    assert torch.equal(flipped_mask, mask.flip(-1))


def test_evaluation_shrinks_only_larger_images() -> None:
    image, mask = pair(60, 80)
    assert EvalTransforms()(image, mask) == (image, mask)
    assert EvalTransforms(max_size=80)(image, mask)[0] is image
    small_image, small_mask = EvalTransforms(max_size=40)(image, mask)
    assert small_mask is not None
    assert (small_image.shape, small_mask.shape) == ((3, 30, 40), (30, 40))


def test_errors_of_invalid_sizes_name_the_values() -> None:
    with pytest.raises(ValueError, match="max_size must be a positive number of pixels or null, got 0"):
        EvalTransforms(max_size=0)
    with pytest.raises(ValueError, match=r"positive and ordered, got \(8, 8\), \(2, 1\)"):
        TrainTransforms((8, 8), scale_range=(2, 1))
    with pytest.raises(ValueError, match=r"must not be negative, got 0.3, -1, 0.3"):
        TrainTransforms(8, contrast=-1)
