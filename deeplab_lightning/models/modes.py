"""Switch networks to evaluation, and back to what each of their layers was in."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_evaluation(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and each of its layers in its former mode afterwards.

    `module.train(was_training)` would set all layers alike, and so train the statistics of frozen batch norms.

    Args:
        module: The module, which is changed.
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for layer, was_training in modes:
            layer.training = was_training
