"""Networks as they are quickest to evaluate on a CPU."""

import copy
from typing import TypeVar

import torch
from torch import nn

from deeplab_lightning.models.folding import fold_batch_norms, norms_to_fold
from deeplab_lightning.models.followers import PROBE_SIZE, Pair
from deeplab_lightning.models.packing import activations_to_fuse, pack_convolutions

_Net = TypeVar("_Net", bound=nn.Module)
_TOLERANCE = 1e-3  # of the largest output; rounding makes 1e-6, a norm that was folded wrongly 1e-1


class EvaluationCopies:
    """Makes copies of one network with the weights that it has at the time.

    Weights are packed, and norms and activations a part of the convolutions: the same outputs to rounding, and in
    mixed precision the same bits. How the layers hang together is found out once, and what comes of it compared.

    Args:
        net: Called with (B, 3, H, W) float; returns a tensor in evaluation.
    """

    def __init__(self, net: nn.Module) -> None:
        self._norms: list[Pair] = []
        self._activations: list[Pair] = []
        try:
            self._norms = norms_to_fold(net)
            self._activations = activations_to_fuse(fold_batch_norms(net, self._norms))
            self._is_possible = self._is_faithful(net)
        except Exception:  # whatever a network raises here that was not made for it: it can be evaluated as it is
            self._is_possible = False

    def make(self, net: _Net) -> _Net | None:
        """A copy in evaluation mode and channels-last memory, for use without gradients.

        Args:
            net: The network, or one of the same layers.

        Returns:
            The copy; None where only the network itself gives its outputs.
        """
        try:
            return self._made(net) if self._is_possible else None
        except RuntimeError:  # of deepcopy, where the network has kept a tensor of its training
            return None

    def _made(self, net: _Net) -> _Net:
        made = copy.deepcopy(net).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pack_convolutions(made, self._norms, self._activations)
        return made  # type: ignore[no-any-return]

    @torch.no_grad()
    def _is_faithful(self, net: nn.Module) -> bool:
        """Whether a copy gives what the network gives: what happens between layers is not seen."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(1, 3, PROBE_SIZE, PROBE_SIZE, generator=generator)
        probe = copy.deepcopy(net).eval()
        for norm in probe.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.affine and norm.running_var is not None:
                # Norms that have learnt nothing yet do nothing, wherever they stand.
                for values, middle in ((norm.weight, 1.0), (norm.running_var, 1.0), (norm.bias, 0.0)):
                    values.copy_(torch.rand(values.shape, generator=generator) - 0.5 + middle)
        expected = probe(images)
        difference = (self._made(probe)(images) - expected).abs().max()
        return bool(difference <= _TOLERANCE * expected.abs().max())
