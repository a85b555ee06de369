import pytest
import torch
import torch.nn.functional as F

from deeplab_lightning.kernels.depthwise_gradients import (
    Pair,
    batch_to_space,
    convolve,
    input_gradient,
    is_faster_by_space_to_batch,
    space_to_batch,
    weight_gradient,
)

ONE, TWO = (1, 1), (2, 2)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "size"),
    [
        (ONE, ONE, (0, 0), ONE, (9, 8)),
        ((3, 3), ONE, ONE, ONE, (9, 8)),
        ((3, 3), TWO, ONE, ONE, (9, 8)),
        ((5, 5), TWO, (0, 0), ONE, (12, 13)),
        ((7, 5), (1, 2), (3, 2), ONE, (12, 9)),
        ((3, 3), ONE, (2, 2), (2, 2), (9, 12)),
        ((5, 5), ONE, (8, 8), (4, 4), (19, 17)),  # every fourth pixel
        ((3, 3), ONE, (7, 7), (7, 7), (16, 15)),  # every seventh
        ((3, 3), ONE, (7, 7), (7, 7), (9, 13)),  # each kernel position by itself
        ((3, 3), ONE, (40, 40), (40, 40), (9, 8)),  # only one kernel position reaches the map
        ((3, 5), ONE, (7, 2), (7, 1), (16, 9)),
        ((3, 3), ONE, (3, 3), (2, 2), (9, 8)),
        ((2, 4), ONE, (0, 1), (1, 2), (9, 12)),
        ((3, 3), ONE, (4, 4), ONE, (9, 8)),  # windows that hold padding alone
        ((3, 3), TWO, (2, 2), (2, 2), (9, 12)),
    ],
)
def test_values_and_gradients_are_those_of_the_plain_convolution(
    kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, size: Pair
) -> None:
    torch.manual_seed(0)
    geometry = (stride, padding, dilation)
    x = torch.randn(2, 6, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(6, 1, *kernel, dtype=torch.float64, requires_grad=True)
    y = F.conv2d(x, weight, None, stride, padding, dilation, 6)
    assert torch.allclose(convolve(x, weight, *geometry), y)
    grad_output = torch.randn_like(y)
    y.backward(grad_output)
    assert x.grad is not None
    assert weight.grad is not None
    assert torch.allclose(input_gradient(grad_output, x, weight, *geometry), x.grad)
    assert torch.allclose(weight_gradient(grad_output, x, weight, *geometry), weight.grad)


@pytest.mark.parametrize("size", [(8, 9), (7, 11), (2, 1)])
def test_maps_are_split_and_joined(size: Pair) -> None:
    x = torch.randn(2, 3, *size)
    parts = space_to_batch(x, (2, 3))
    assert parts.shape == (12, 3, -(-size[0] // 2), -(-size[1] // 3))
    assert torch.equal(parts[0, :, 0, 0], x[0, :, 0, 0])
    assert torch.equal(batch_to_space(parts, (2, 3), size), x)


def test_maps_are_split_if_dilation_and_padding_are_large() -> None:
    assert is_faster_by_space_to_batch(ONE, (12, 12), (12, 12))
    assert not is_faster_by_space_to_batch(ONE, (6, 6), (6, 6))
    assert not is_faster_by_space_to_batch(ONE, (15, 15), ONE)  # not dilated
    assert not is_faster_by_space_to_batch(TWO, (12, 12), (12, 12))
