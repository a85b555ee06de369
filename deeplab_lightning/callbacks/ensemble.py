"""Evaluate and predict with several checkpoints, several views of each image, in tiles, or by an engine."""

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from deeplab_lightning import kernels
from deeplab_lightning.data.classes import moved_class
from deeplab_lightning.errors import UserError
from deeplab_lightning.inference import Ensemble, Views
from deeplab_lightning.inference.engines import PRECISIONS, EngineName, EngineNet
from deeplab_lightning.inference.exported import read_module, refuse_impossible
from deeplab_lightning.inference.tiles import Tiled, Tiles
from deeplab_lightning.module import SegmentationModule


class AverageProbabilities(L.Callback):
    """Replace the network by an `Ensemble`, by tiles of it or by an engine, while a command evaluates or predicts.

    Args:
        checkpoints: Further checkpoints, whose probabilities are averaged with those of the command's own.
        views: Views of each image, or of each tile.
        tiles: Size and overlap of tiles; None for whole images.
        weights: Weight of each network in the mean, the command's own first; equal ones if None.
        engine: What computes the networks.
        trust: Whether the further checkpoints may name classes of any package.
    """

    def __init__(
        self,
        checkpoints: Sequence[str] = (),
        views: Views = Views(),  # noqa: B008
        tiles: Tiles | None = None,
        *,
        weights: Sequence[float] | None = None,
        engine: EngineName = "torch",
        trust: bool = False,
    ) -> None:
        self.checkpoints, self.views, self.tiles, self.trust = list(checkpoints), views, tiles, trust
        self.weights, self.engine = weights, engine
        self._own: Any = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Load the further checkpoints, and use all of them."""
        assert isinstance(pl_module, SegmentationModule)
        self._own = pl_module.net
        weight = pl_module.net.preprocess.mean  # an exported file has no parameters
        nets = [pl_module.net]
        for path in self.checkpoints:
            module = read_module(path, trust=self.trust)
            is_alike = module.classes.num_classes == pl_module.classes.num_classes  # else `Ensemble` refuses it
            if is_alike and (moved := moved_class(module.classes.names, pl_module.classes.names)):
                raise UserError(f"{path} cannot be averaged with the first network: {moved}.")
            net = module.net
            refuse_impossible(net, views=self.views, is_averaged=True, engine=self.engine)
            if net.preprocess.max_size != (size := pl_module.net.preprocess.max_size):
                rank_zero_warn(
                    f"{path} was evaluated with max_size {net.preprocess.max_size}; here all networks see images "
                    f"of max_size {size}. In Python, deeplab_lightning.load([...]) keeps the size of each."
                )
            net.preprocess.max_size = size
            if pl_module.door.is_open:
                kernels.speed_up(net)
            nets.append(net.to(weight.device, weight.dtype).eval())
        if self.engine != "torch":
            computed = [EngineNet(net, self.engine, PRECISIONS[trainer.precision]) for net in nets]
            rank_zero_info(f"The network is computed by {' '.join(computed[0].describe().values())}.")
            nets = [*computed]
        used: Any = nets[0]
        if len(nets) > 1 or self.views != Views() or self.weights is not None:
            used = Ensemble(nets, self.views, self.weights)
            views = f" with {self.views}" if str(self.views) else ""
            rank_zero_info(f"Averaging the probabilities of {len(nets)} checkpoint{'s' * (len(nets) > 1)}{views}.")
        if self.tiles is not None:
            used = Tiled(used, self.tiles)
            rank_zero_info(f"Larger images are processed in {self.tiles}.")
        pl_module.net = used

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Use the network alone again."""
        if self._own is not None:
            pl_module.net, self._own = self._own, None

    on_test_end = on_predict_end = on_validation_end
