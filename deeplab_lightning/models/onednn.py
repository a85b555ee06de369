"""Where oneDNN, PyTorch's library of CPU kernels, has the convolutions that this package was measured with."""

import platform
from functools import cache

import torch


def has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN computes convolutions there. On processors other than x86 nothing was measured.

    Args:
        device: Of the map.
        dtype: Of the arithmetic.
    """
    return device.type == "cpu" and dtype in _dtypes()


@cache
def _dtypes() -> frozenset[torch.dtype]:
    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    if not is_there or platform.machine().lower() not in {"x86_64", "amd64"}:
        return frozenset()
    has_half = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if has_half else {torch.float32})
