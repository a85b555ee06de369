"""Record a run, draw panels, write predictions, print progress, change how a network trains, stop if it diverges."""

from deeplab_lightning.callbacks.divergence import StopOnDivergence
from deeplab_lightning.callbacks.freeze import FreezeBackbone
from deeplab_lightning.callbacks.network_switches import CompileNetwork, GradientCheckpointing
from deeplab_lightning.callbacks.panels import PredictionPanels
from deeplab_lightning.callbacks.prediction_writer import PredictionWriter
from deeplab_lightning.callbacks.progress import EpochLines
from deeplab_lightning.callbacks.run_record import RunRecord
from deeplab_lightning.callbacks.save_config import SaveConfig
from deeplab_lightning.callbacks.weight_averaging import EMAWithWarmup, EpochWeightAveraging

__all__ = [
    "CompileNetwork",
    "EMAWithWarmup",
    "EpochLines",
    "EpochWeightAveraging",
    "FreezeBackbone",
    "GradientCheckpointing",
    "PredictionPanels",
    "PredictionWriter",
    "RunRecord",
    "SaveConfig",
    "StopOnDivergence",
]
