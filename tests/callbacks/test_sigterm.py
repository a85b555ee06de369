import signal

import lightning as L

from deeplab_lightning.callbacks.sigterm import EndAtSecondInterrupt


def test_a_second_interrupt_is_the_systems() -> None:
    """Lightning ignored it while it tore down."""
    callback, before = EndAtSecondInterrupt(), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        callback.on_exception(L.Trainer(logger=False, enable_checkpointing=False), L.LightningModule(), ValueError())
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        callback.on_exception(
            L.Trainer(logger=False, enable_checkpointing=False), L.LightningModule(), KeyboardInterrupt()
        )
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
