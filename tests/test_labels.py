"""Labels of a postprocess within tiles."""

import torch
from torch import Tensor

from deeplab_lightning import DeepLabV2
from deeplab_lightning.inference.tiles import Tiled, Tiles
from deeplab_lightning.kernels import Door
from deeplab_lightning.labels import find_in_tiles


def test_a_postprocess_sees_each_tile_and_may_return_labels_or_probabilities() -> None:
    net = DeepLabV2(3, backbone="test_resnet", hidden_channels=None, pretrained=False).eval()
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    seen: list[tuple[int, ...]] = []

    def labels(tile: Tensor, logits: Tensor) -> Tensor:
        seen.append(tuple(tile.shape))
        return (tile[:, 0] > 127).long() * 2

    def probabilities(tile: Tensor, logits: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(labels(tile, logits), 3).movedim(-1, 1).float()

    for postprocess in (labels, probabilities):
        with torch.no_grad():
            found = find_in_tiles(Tiled(net, Tiles(64, 32)), images, (96, 128), door=Door(), postprocess=postprocess)
        assert torch.equal(found, (images[:, 0] > 127).byte() * 2)
    assert set(seen) == {(1, 3, 64, 64)}
