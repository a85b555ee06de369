"""One line about the network before the training."""

import lightning as L

from deeplab_lightning.callbacks.run_record import COST_SIZE, network_cost
from deeplab_lightning.module import SegmentationModule


class NetworkLine(L.Callback):
    """Prints parameters and multiply-adds, where Lightning's table counts none without an example picture."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, SegmentationModule):
            return
        net, cost = pl_module.net, network_cost(pl_module.net)
        frozen = sum(parameter.numel() for parameter in net.parameters() if not parameter.requires_grad) / 1e6
        note = f", {frozen:.1f} M of them frozen" if frozen else ""
        print(
            f"{type(net).__name__}: {cost['mega_parameters']:.1f} M parameters{note}; {cost['giga_macs']:.1f} G "
            f"multiply-adds for a picture of {COST_SIZE}x{COST_SIZE}.",
            flush=True,
        )
