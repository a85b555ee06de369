"""Which devices and precisions have the oneDNN convolutions that the kernels were measured with."""

import platform
from functools import cache

import torch


def has_fast_depthwise(device: torch.device, dtype: torch.dtype) -> bool:
    """Check whether oneDNN, PyTorch's library of CPU kernels, computes convolutions there.

    On processors other than x86 nothing was measured.

    Args:
        device: Device of the map.
        dtype: Precision of the arithmetic.
    """
    return device.type == "cpu" and dtype in _dtypes()


@cache
def _dtypes() -> frozenset[torch.dtype]:
    if not torch.backends.mkldnn.is_available() or platform.machine().lower() not in {"x86_64", "amd64"}:
        return frozenset()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if has_bfloat16 else {torch.float32})
