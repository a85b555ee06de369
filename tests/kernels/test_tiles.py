import pytest
import torch

from deeplab_lightning.kernels import Door
from deeplab_lightning.kernels import tiles as tiles_module
from deeplab_lightning.kernels.tiles import tiled_labels, tiles
from deeplab_lightning.resizing import resize

SIZES = [((5, 7), (40, 56)), ((9, 4), (33, 31)), ((6, 6), (6, 6)), ((1, 3), (8, 10)), ((20, 20), (11, 50))]


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("band_rows", [None, 5])
def test_tiles_make_up_the_resized_logits(
    small: tuple[int, int],
    large: tuple[int, int],
    layout: torch.memory_format,
    band_rows: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(tiles_module, "_TILE_COLUMNS", 7)
    logits = torch.randn(2, 3, *small).contiguous(memory_format=layout)
    whole = torch.full((2, 3, *large), float("nan"))
    for images, rows, columns, part in tiles(logits, large, band_rows):
        assert whole[images, :, rows.large, columns.large].isnan().all()  # written once
        whole[images, :, rows.large, columns.large] = part
    # Positions of up to 20 rows have rounding errors of 1e-6 in float32, times the neighbours' difference.
    torch.testing.assert_close(whole, resize(logits, large), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("num_classes", [1, 11, 255])
def test_labels_are_those_of_the_resized_logits(
    small: tuple[int, int], large: tuple[int, int], num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(tiles_module, "_TILE_COLUMNS", 7)
    logits = torch.randn(2, num_classes, *small)
    labels = tiled_labels(logits, large)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), resize(logits, large).argmax(dim=1))


def test_equal_logits_give_the_first_class_and_nan_gives_some_class() -> None:
    logits = torch.tensor([1.0, 2.0, 2.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert (tiled_labels(logits, (8, 8)) == 1).all()
    assert (tiled_labels(logits * float("nan"), (8, 8)) < 3).all()


def test_labels_of_half_precision_are_those_of_the_same_numbers_in_float32() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 8, 8).bfloat16()
    expected = resize(logits.float(), (64, 64)).argmax(dim=1)
    for is_mixed in (False, True):  # which would round the sums of the resizing
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            for door in (Door(is_open=True), Door()):
                assert torch.equal(door.labels(logits, (64, 64)).long(), expected)


def test_a_class_with_a_logit_of_minus_infinity_is_never_chosen() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 8, 8)
    logits[:, 1] = -torch.inf
    assert torch.equal(tiled_labels(logits, (64, 64)).long(), resize(logits, (64, 64)).argmax(dim=1))
