"""Tiles, against the whole image and against weights computed here."""

import numpy as np
import pytest
import torch
from torch import Tensor

from deeplab_lightning import DeepLabV2, DeepLabV3
from deeplab_lightning.inference import Ensemble, Views
from deeplab_lightning.inference.tiles import Tiled, Tiles, blend


def small_net() -> DeepLabV2:
    """A network without image pooling, which sees 72 pixels to each side at most."""
    torch.manual_seed(0)
    net = DeepLabV2(3, backbone="test_resnet", hidden_channels=None, atrous_rates=(1, 2), pretrained=False).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1)
    return net


def noise(*size: int) -> Tensor:
    return torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def reach(net: DeepLabV2, size: int = 256) -> int:
    """Measure how far from a pixel the network sees, by its gradient."""
    x = torch.randn(1, 3, size, size, requires_grad=True)
    net(x)[0, :, size // 2, size // 2].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero()[:, 0]
    return int((rows - size // 2).abs().max())


def test_far_from_the_ends_of_tiles_the_output_is_that_of_the_whole_image() -> None:
    net, images, tiles = small_net(), noise(256, 320), Tiles(192, 32)
    margin = reach(net) + 8  # of the resize, a feature further
    assert margin < 80
    with torch.no_grad():
        whole, found = net(images).softmax(1), Tiled(net, tiles)(images).exp()
    # Columns from 128 on are in the last tile alone, which starts there; before 128 in the first alone.
    is_alike = (found - whole).abs().amax(dim=(0, 1)) < 1e-4
    assert is_alike[: 64 - 8, : 128 - margin].all()
    assert is_alike[192 + 8 :, 192 + margin :].all()
    assert not is_alike.all()  # so that this test can fail
    assert (found.argmax(1) == whole.argmax(1)).float().mean() > 0.9


def test_an_image_no_larger_than_a_tile_has_the_networks_own_output() -> None:
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False).eval()
    for size in ((64, 64), (40, 50)):
        with torch.no_grad():
            assert torch.equal(Tiled(net, Tiles(64, 8))(noise(*size)), net(noise(*size)))


@pytest.mark.parametrize("size", [(64, 200), (65, 64), (150, 100), (64, 129), (333, 70)])
@pytest.mark.parametrize("overlap", [0, 8, 32])
def test_blocks_cover_each_pixel_once_with_weights_that_add_up_to_one(size: tuple[int, int], overlap: int) -> None:
    image, covered = noise(*size), np.zeros(size, dtype=int)
    starts = []

    def compute(tile: Tensor) -> Tensor:
        assert max(tile.shape[-2:]) <= 64
        starts.append(tile[0, :, 0, 0])
        return tile.float()

    for top, left, values in blend(compute, image, Tiles(64, overlap)):
        area = np.s_[top : top + values.shape[1], left : left + values.shape[2]]
        covered[area] += 1
        assert torch.allclose(values, image[0, :, area[0], area[1]].float(), atol=1e-3)
    assert (covered == 1).all()
    assert all((image[0, :, ::32, ::32] == start[:, None, None]).all(0).any() for start in starts)  # on the grid


def test_weights_fall_off_like_a_gaussian_of_an_eighth_of_the_tile() -> None:
    """Two tiles with the values 0 and 1: the mean in the overlap is the second's share of the weights."""
    values = iter((0.0, 1.0))
    blocks = list(blend(lambda tile: torch.full_like(tile.float(), next(values)), noise(64, 96), Tiles(64, 32)))
    row = torch.cat([block.values[0, 10] for block in blocks])
    place = np.arange(32, 64)
    first, second = (np.exp(-0.5 * ((place - start - 31.5) / 8) ** 2) for start in (0, 32))
    assert np.allclose(row[:32], 0)
    assert np.allclose(row[32:64], second / (first + second), atol=1e-6)
    assert np.allclose(row[64:], 1)


def test_memory_between_tiles_is_that_of_the_overlaps() -> None:
    """The sums of all classes of a whole image, or of a whole row of tiles, would be the most of its memory."""
    image, largest = torch.zeros(1, 1, 640, 6400, dtype=torch.uint8), 0
    for block in blend(lambda tile: tile.float().expand(1, 7, -1, -1), image, Tiles(128, 32)):
        largest = max(largest, block.values.untyped_storage().nbytes())
    assert largest <= 7 * 128 * 128 * 4


def test_tiles_go_through_an_ensemble_and_its_views() -> None:
    nets = [DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False).eval() for _ in range(2)]
    ensemble, image = Ensemble(nets, Views((0.5, 1.0), True)), noise(64, 64 + 32)
    with torch.no_grad():
        found = Tiled(ensemble, Tiles(64, 0))(image).exp()
        first, second = ensemble(image[..., :64]).exp(), ensemble(image[..., 32:]).exp()
    assert torch.allclose(found[..., :32], first[..., :32], atol=1e-6)
    assert torch.allclose(found[..., 64:], second[..., 32:], atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(1, 64, 96), atol=1e-5)


@pytest.mark.parametrize(
    ("tile", "overlap", "text"),
    [
        (1000, None, "--tile must be a multiple of 32 from 64 pixels, got 1000"),
        (32, None, "--tile must be a multiple of 32 from 64 pixels, got 32"),
        (-64, 0, "--tile must be a multiple of 32"),
        (64, 33, "--overlap must be from 0 to half of --tile, 32 pixels, got 33"),
        (64, -1, "--overlap must be from 0 to half of --tile"),
        (None, 8, "--overlap needs the size of the tiles"),
    ],
)
def test_sizes_that_cannot_be_used_are_named(tile: int | None, overlap: int | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Tiles.parse(tile, overlap)


def test_the_overlap_is_an_eighth_of_the_tile_if_it_is_not_given() -> None:
    assert Tiles.parse(1024) == Tiles(1024, 128)
    assert Tiles.parse(None) is None


def test_sizes_of_numpy_are_numbers_too() -> None:
    assert Tiles.parse(np.int64(64), np.int64(8)) == Tiles(64, 8)  # type: ignore[arg-type]
