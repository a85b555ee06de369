from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from deeplab_lightning.kernels import taps
from deeplab_lightning.kernels.taps import TapConv2d, convolve_by_taps, is_faster_by_taps, use_tap_convolutions
from deeplab_lightning.models.aspp import ASPPConcat, ASPPSum

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(9, 9), (7, 12), (1, 5)])
@pytest.mark.parametrize("dilation", [1, 2, 6, 9, 20])  # with the larger ones, outer kernel positions miss the map
def test_the_sum_over_kernel_positions_is_the_convolution(dilation: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, *size, dtype=torch.float64), torch.randn(4, 5, 3, 3, dtype=torch.float64)
    expected = F.conv2d(x, weight, padding=dilation, dilation=dilation)
    assert torch.allclose(convolve_by_taps(x, weight, dilation), expected, atol=1e-12)


@pytest.mark.parametrize("dilation", [1, 3, 8])
def test_gradients_are_exact(dilation: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: convolve_by_taps(a, b, dilation), (x, weight))


class Products(TorchDispatchMode):
    """Record the matrix products of a computation."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := func.overloadpacket.__name__) in {"mm", "bmm", "matmul"}:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_training", [False, True])
def test_a_kernel_position_is_one_product_over_all_pixels(is_training: bool) -> None:
    """In prediction it was a batch of products, one per row of the map, slower than PyTorch's convolution."""
    x = torch.randn(2, 6, 9, 9, requires_grad=is_training)
    weight = torch.randn(4, 6, 3, 3, requires_grad=is_training)
    with Products() as products:
        y = convolve_by_taps(x, weight, 2)
        if is_training:
            y.sum().backward()
    assert products.names == ["mm"] * (27 if is_training else 9)  # 9 each of the map, its and the weights' gradients


def test_half_precision_is_as_accurate_as_the_stock_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compares outputs and gradients of the layer in mixed precision with double precision."""
    torch.manual_seed(0)
    layer = TapConv2d(1024, 8, dilation=6, bias=True)
    layer.weight.data = layer.weight.data.bfloat16().float()
    x = torch.randn(1, 1024, 13, 17).bfloat16().float().contiguous(memory_format=torch.channels_last)
    grad_output = torch.randn(1, 8, 13, 17).bfloat16().float()

    def run(dtype: torch.dtype, has_unit: bool) -> list[torch.Tensor]:
        monkeypatch.setattr(taps, "_has_matrix_unit", lambda: has_unit)
        copy = TapConv2d(1024, 8, dilation=6, bias=True).to(dtype)
        copy.load_state_dict(layer.state_dict())
        given = x.detach().to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            y = copy(given)
        y.backward(grad_output.to(y.dtype))
        assert given.grad is not None
        assert copy.weight.grad is not None
        assert copy.bias is not None
        assert copy.bias.grad is not None
        return [t.double() for t in (y.detach(), given.grad, copy.weight.grad, copy.bias.grad)]

    truth, stock, by_taps = run(torch.float64, False), run(torch.float32, False), run(torch.float32, True)
    assert not torch.equal(stock[0], by_taps[0])  # another path
    for expected, theirs, ours in zip(truth, stock, by_taps, strict=True):
        limit = 2 * (theirs - expected).abs().mean() + 1e-9
        assert (ours - expected).abs().mean() < limit


def test_they_are_faster_only_for_many_channels_and_large_rates_in_bfloat16_on_a_matrix_unit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(taps, "_has_matrix_unit", lambda: True)
    assert is_faster_by_taps(CPU, torch.bfloat16, channels=2048, dilation=6)
    assert not is_faster_by_taps(CPU, torch.bfloat16, channels=512, dilation=6)
    assert not is_faster_by_taps(CPU, torch.bfloat16, channels=2048, dilation=2)
    assert not is_faster_by_taps(CPU, torch.float32, channels=2048, dilation=6)
    assert not is_faster_by_taps(torch.device("cuda"), torch.bfloat16, channels=2048, dilation=6)
    monkeypatch.setattr(taps, "_has_matrix_unit", lambda: False)
    assert not is_faster_by_taps(CPU, torch.bfloat16, channels=2048, dilation=6)


@pytest.mark.parametrize("has_unit", [True, False])
def test_both_forms_of_aspp_use_them_on_a_matrix_unit(has_unit: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "_has_matrix_unit", lambda: has_unit)
    heads = [ASPPConcat(1024, (6, 12), out_channels=2), ASPPSum(1024, 3, atrous_rates=(6, 12), hidden_channels=2)]
    for head in heads:
        state, rng = {key: value.clone() for key, value in head.state_dict().items()}, torch.get_rng_state()
        use_tap_convolutions(head)
        dilated = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1]
        assert [type(m) for m in dilated] == [TapConv2d if has_unit else nn.Conv2d] * 2
        assert [m.padding for m in dilated] == [(6, 6), (12, 12)]
        assert all(torch.equal(value, state[key]) for key, value in head.state_dict().items())
        assert torch.equal(torch.get_rng_state(), rng)
