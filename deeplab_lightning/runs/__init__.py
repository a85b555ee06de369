"""Name, write and read the files of runs and experiments, and choose the folder of a run.

All file names of a run are in this room; other rooms ask `RunFolder` and the others for paths and contents.
"""

from deeplab_lightning.runs.choice import RUN_FOLDER_VARIABLE, SEARCH_VARIABLE, choose_run_folder, made_up_name
from deeplab_lightning.runs.experiment import ExperimentFolder
from deeplab_lightning.runs.folder import SplitFolder
from deeplab_lightning.runs.predictions import (
    PredictionFolder,
    SuspectsFolder,
    prediction_stems,
    refuse_output_among_images,
)
from deeplab_lightning.runs.run import RECORD_FILES, RunFolder, confusion_rows

__all__ = [
    "RECORD_FILES",
    "RUN_FOLDER_VARIABLE",
    "SEARCH_VARIABLE",
    "ExperimentFolder",
    "PredictionFolder",
    "RunFolder",
    "SplitFolder",
    "SuspectsFolder",
    "choose_run_folder",
    "confusion_rows",
    "made_up_name",
    "prediction_stems",
    "refuse_output_among_images",
]
