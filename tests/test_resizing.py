from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from deeplab_lightning import DeepLabV3, SegmentationModule, resizing
from deeplab_lightning.data.batch import Batch
from deeplab_lightning.kernels import Door
from deeplab_lightning.resizing import resize, resized_argmax

SIZES = [((5, 7), (40, 56)), ((9, 4), (33, 31)), ((6, 6), (6, 6)), ((1, 3), (8, 10)), ((20, 20), (11, 50))]


@pytest.mark.parametrize(("small", "large"), SIZES)
@pytest.mark.parametrize("num_classes", [1, 11, 255])
@pytest.mark.parametrize("max_bytes", [1, 100_000, 1 << 28])
def test_labels_are_those_of_the_resized_logits(
    small: tuple[int, int], large: tuple[int, int], num_classes: int, max_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(resizing, "_MAX_BYTES", max_bytes)
    logits = torch.randn(2, num_classes, *small)
    labels = resized_argmax(logits, large)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.long(), resize(logits, large).argmax(dim=1))


@pytest.mark.parametrize("max_bytes", [1, 1 << 28])
def test_special_values_of_logits(max_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resizing, "_MAX_BYTES", max_bytes)
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 8, 8)
    assert (resized_argmax(logits * float("nan"), (8, 8)) < 3).all()
    tie = torch.tensor([1.0, 2.0, 2.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    assert (resized_argmax(tie, (8, 8)) == 1).all()
    logits[:, 1] = -torch.inf
    assert torch.equal(
        resized_argmax(logits, (64, 64)).long(), 2 * resize(logits[:, ::2], (64, 64)).argmax(dim=1)
    )  # a resize alone turns infinity into nan, which argmax chooses


def test_labels_of_half_precision_are_those_of_the_same_numbers_in_float32() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 5, 8, 8).bfloat16()
    expected = resize(logits.float(), (64, 64)).argmax(dim=1)
    for is_mixed in (False, True):  # which would round the sums of the resizing
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            assert torch.equal(Door().labels(logits, (64, 64)).long(), expected)


class LargestTensor(TorchDispatchMode):
    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.num_bytes = max(self.num_bytes, value.numel() * value.element_size())
        return result


@pytest.mark.parametrize("is_open", [False, True])
def test_prediction_never_holds_the_logits_of_all_classes_of_a_large_image(
    is_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also on a GPU, where the door is closed: an image of 4000x6000 with 150 classes took 14 GB."""
    monkeypatch.setattr(resizing, "_MAX_BYTES", 4 << 20)
    net = DeepLabV3(150, backbone="test_efficientnet", aspp_channels=8, pretrained=False)
    module = SegmentationModule(net).eval()
    module.door = Door(is_open=is_open)
    size = (400, 600)
    batch = Batch(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8), None, ["a"], [size])
    with torch.no_grad(), LargestTensor() as largest:
        [(_, labels)] = module.predict_step([batch], 0)
    assert largest.num_bytes < 20 << 20 < 4 * 150 * size[0] * size[1]
    with torch.no_grad():
        expected = module(batch.image).argmax(dim=1)[0]
    assert torch.equal(labels.long(), expected)
