import pytest
import torch

from deeplab_lightning.bands import bands, resize, resize_band, resized_labels

SIZES = [((5, 7), (40, 56)), ((9, 4), (33, 31)), ((6, 6), (6, 6)), ((1, 3), (8, 10)), ((20, 20), (11, 50))]


def test_bands_cover_every_row_once() -> None:
    assert [list(range(b.start, b.stop)) for b in bands(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_band_is_the_resized_scores_rows(
    small: tuple[int, int], large: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 3, *small).contiguous(memory_format=layout)
    whole = resize(scores, large)
    # Positions of up to 20 rows have rounding errors of 1e-6 in float32, times the neighbours' difference.
    for band in bands(large[0], 5):
        torch.testing.assert_close(resize_band(scores, large, band), whole[:, :, band], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("small", "large"), SIZES)
def test_labels_are_those_of_the_resized_scores(small: tuple[int, int], large: tuple[int, int]) -> None:
    torch.manual_seed(0)
    scores = torch.randn(2, 11, *small)
    for band_rows in (None, 3):
        labels = resized_labels(scores, large, band_rows=band_rows)
        assert labels.dtype == torch.uint8
        assert torch.equal(labels.long(), resize(scores, large).argmax(dim=1))


def test_labels_of_half_precision_are_those_of_the_same_numbers_in_full() -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 5, 8, 8).bfloat16()
    assert torch.equal(resized_labels(scores, (64, 64)).long(), resize(scores.float(), (64, 64)).argmax(dim=1))
