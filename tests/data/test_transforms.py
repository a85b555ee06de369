import pytest
import torch
from torchvision import tv_tensors

from deeplab_lightning.data.transforms import EvalTransforms, ScaleJitterCrop, TrainTransforms, resize_mask


def pair(height: int, width: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """A picture whose red channel is its mask, times 40: classes 1 to 4 in quarters."""
    mask = torch.ones(height, width, dtype=torch.uint8)
    mask[:, width // 2 :] += 1
    mask[height // 2 :] += 2
    return tv_tensors.Image((mask * 40).expand(3, -1, -1).clone()), tv_tensors.Mask(mask)


def test_padding_is_the_mean_colour_and_the_ignore_index() -> None:
    image, mask = ScaleJitterCrop((40, 50), (1, 1), fill=(1, 2, 3))(*pair(20, 30))
    assert image.shape == (3, 40, 50)
    assert int((mask == 255).sum()) == 40 * 50 - 20 * 30
    assert image[:, mask == 255].unique(dim=1).flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("scale", [0.37, 0.5, 1.0, 1.9])
def test_no_labels_are_invented_and_picture_and_mask_stay_together(scale: float) -> None:
    torch.manual_seed(0)
    for _ in range(10):
        image, mask = ScaleJitterCrop((33, 47), (scale, scale))(*pair(60, 80))
        assert image.shape[1:] == mask.shape == (33, 47)
        assert set(mask.unique().tolist()) <= {1, 2, 3, 4, 255}
        # Away from edges the red channel is 40 times the label; at edges it is a mixture.
        agrees = image[0] == mask.as_subclass(torch.Tensor) * 40
        assert agrees[mask != 255].float().mean() > 0.8


def test_downscaled_masks_are_aligned_with_their_pictures() -> None:
    # 8 pixels to 2: the labels under the new centres (pixel 2 and 6), not under the corners (0 and 4).
    row = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]], dtype=torch.uint8)
    assert resize_mask(tv_tensors.Mask(row), (1, 2)).tolist() == [[2, 6]]


def test_train_transforms_keep_uint8_and_the_crop_size() -> None:
    image, mask = TrainTransforms((24, 32))(*pair(60, 80))
    assert (image.dtype, mask.dtype) == (torch.uint8, torch.uint8)
    assert (image.shape, mask.shape) == ((3, 24, 32), (24, 32))


def test_flip_turns_picture_and_mask() -> None:
    transforms = TrainTransforms(
        (20, 30), scale_range=(1, 1), flip_probability=1.0, brightness=0, contrast=0, saturation=0
    )
    image, mask = pair(20, 30)
    flipped_image, flipped_mask = transforms(image, mask)
    assert torch.equal(flipped_image, image.flip(-1))
    assert torch.equal(flipped_mask, mask.flip(-1))


def test_evaluation_shrinks_only_what_is_larger() -> None:
    image, mask = pair(60, 80)
    assert EvalTransforms()(image, mask) == (image, mask)
    assert EvalTransforms(max_size=80)(image, mask)[0] is image
    small_image, small_mask = EvalTransforms(max_size=40)(image, mask)
    assert small_mask is not None
    assert (small_image.shape, small_mask.shape) == ((3, 30, 40), (30, 40))


def test_bad_sizes_say_what_came() -> None:
    with pytest.raises(ValueError, match="got None|positive number of pixels, got 0"):
        EvalTransforms(max_size=0)
    with pytest.raises(ValueError, match=r"positive and ordered, got \(8, 8\), \(2, 1\)"):
        ScaleJitterCrop((8, 8), (2, 1))
