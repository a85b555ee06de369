import pytest
import torch

from deeplab_lightning.kernels import tiles as tiles_module
from deeplab_lightning.kernels.tiles import tiles
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
