"""Save the resolved configuration with a run's results."""

from typing import Any

import lightning as L
import yaml
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from deeplab_lightning.runs import RunFolder


class SaveConfig(L.Callback):
    """Write the resolved configuration to the run's folder and to the loggers.

    `deeplab fit -c runs/<name>/config.yaml` trains it again. Validation, test and prediction write
    `config_<stage>.yaml` and a resumed training writes `config-2.yaml`, once it trains; nothing is overwritten.

    Args:
        config: Resolved configuration as YAML.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self._is_pending = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save the configuration, except in a `fast_dev_run`."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        name = str(getattr(stage, "value", stage))
        self._is_pending = name == "fit" and RunFolder(trainer.default_root_dir).config.is_file()
        if not self._is_pending:
            self._save(trainer, name)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the configuration of a training that goes on; one that was finished does not come here."""
        if self._is_pending:
            self._is_pending = False
            self._save(trainer, "fit")

    @rank_zero_only
    def _save(self, trainer: L.Trainer, stage: str) -> None:
        folder = RunFolder(trainer.default_root_dir)
        folder.write_config(self.config, stage)
        content: dict[str, Any] = yaml.safe_load(self.config)
        for logger in trainer.loggers:
            if isinstance(logger, MLFlowLogger):
                own = {"tracking_uri": logger.experiment.tracking_uri, "run_id": logger.run_id}
                if folder.read_mlflow_run() == own:
                    continue  # of a run that goes on, MLflow refuses other values, such as more epochs
                folder.write_mlflow_run(own)
            logger.log_hyperparams(content)
