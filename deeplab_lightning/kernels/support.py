"""Find the precisions in which the processor has the convolutions that the kernels build on."""

import platform

import torch


def fast_dtypes() -> tuple[torch.dtype, ...]:
    """Return the precisions in which oneDNN computes convolutions fast.

    oneDNN is PyTorch's library of CPU kernels. Empty on processors other than x86, on which nothing was measured.
    """
    if not torch.backends.mkldnn.is_available() or platform.machine().lower() not in {"x86_64", "amd64"}:
        return ()
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return (torch.float32, torch.bfloat16) if has_bfloat16 else (torch.float32,)
