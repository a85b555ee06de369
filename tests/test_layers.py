"""The floors of the house: a module imports from lower floors, and from its own room only what stands before it."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deeplab_lightning.runs import ExperimentFolder, PredictionFolder, RunFolder, SplitFolder, SuspectsFolder

PACKAGE = Path(__file__).parents[1] / "deeplab_lightning"

FLOORS = (
    (
        *("lazy", "openmp", "class_paths", "errors", "usage", "list_overrides", "files", "connection", "tables"),
        *("resizing", "data.classes"),
    ),
    (
        *(
            "data.problems",
            "data.cache",
            "data.array_files",
            "data.image_format",
            "data.tiff_pages",
            "data.images",
            "data.stored_values",
            "data.mask_files",
            "data.batch",
            "data.folds.partition",
            "data.folds",
            "data.folds.balance",
        ),
        *("data.folds.table", "data.folder_index", "data.datasets.base", "data.datasets.segmentations"),
        *("data.datasets.coco_file", "data.datasets.coco_classes", "data.datasets.coco_objects", "data.datasets.coco"),
        "data.datasets.mask_folder",
        *(
            "data.video",
            "data.datasets.image_folder",
            "data.datasets.joined",
            "data.datasets.litter_scene",
            "data.datasets.synthetic",
            "data.datasets",
        ),
        *(
            "data.groups",
            "data.image_cache",
            "data.digest",
            "data.scan",
            "data.palettes",
            "data.crops",
            "data.check",
            "data.mixing",
            "data.augmentations",
            "data.transforms",
        ),
        *("models.dilation", "models.pretrained", "models.backbone", "models.stages", "models.aspp", "models.cost"),
        *(
            "models.modes",
            "models.preprocessing",
            "models.saving",
            "models.weight_layouts",
            "models.weights",
            "models.deeplab",
        ),
        *("kernels.support", "kernels.taps", "kernels.depthwise_gradients", "kernels.depthwise", "kernels.tiles"),
        *("kernels", "metrics", "metrics.iou", "metrics.confusion", "metrics.boundary", "metrics.mean"),
        *("metrics.calibration", "metrics.per_image", "metrics.details"),
        *("crf.permutohedral", "crf"),
    ),
    (
        "data.loaders",
        "data.fold_split",
        "data.datamodule",
        "data.config",
        *("data.init.layout", "data.init.yaml_text", "data.init.any_text", "data.init.class_files", "data.init.blends"),
        *(
            "data.init.coco_files",
            "data.init.mask_folders",
            "data.init.mask_values",
            "data.init.sequences",
            "data.init.image_formats",
            "data.init.dataset_text",
        ),
        *("data.init.config_text", "data.init"),
        "inference",
        "inference.tiles",
        *("inference.regions", "inference.calibration", "inference.calibration_file", "inference.outputs"),
        "inference.csv_masks",
        "labels",
        *("losses.class_weights", "losses.cross_entropy", "losses.overlap", "losses.sum", "losses"),
        "tiled_evaluation",
        "timm_schedule",
        "schedules",
        "optimizers",
        "loopback",
        "sync_batchnorm",
        "drawing",
        "data.page",
        *("runs.folder", "runs.predictions", "runs.run", "runs.experiment", "runs.choice", "runs", "restarts"),
        "tracking",
        "tracking.mode",
    ),
    (
        *(
            "module_arguments",
            "checkpoints",
            "saved_module",
            "last_validation",
            "evaluation",
            "module",
            "export.tracing",
            "export.formats",
            "export",
        ),
        "export.quantization",
        *(
            "inference.engines",
            "inference.exported",
            "inference.model",
            "inference.out_of_fold",
            "inference.pseudo_labels",
        ),
        *("suspects", "suspects.evidence", "suspects.ranking", "suspects.files", "suspects.page"),
    ),
    (
        *(
            "callbacks.calibration",
            "callbacks.divergence",
            "callbacks.checkpoint_io",
            "callbacks.data_line",
            "callbacks.exact_resume",
        ),
        *("callbacks.cudnn_benchmark", "callbacks.disk_space", "callbacks.ensemble", "callbacks.freeze"),
        *("callbacks.search_gate", "tracking.guard"),
        *(
            "callbacks.panels",
            "callbacks.prediction_writer",
            "callbacks.provenance",
            "callbacks.epoch_progress",
            "callbacks.best_epoch",
            "callbacks.run_record",
        ),
        *("callbacks.progress", "callbacks.network_switches", "callbacks.save_config", "callbacks.sigterm"),
        *("callbacks.weight_averaging", "callbacks.validate_last_epoch", "callbacks.patience"),
        *("callbacks", "tracking.summary", "tracking.loggers"),
    ),
    (
        *(
            "experiments",
            "experiments.locks",
            "experiments.jobs",
            "experiments.launchers",
            "experiments.launchers.environment",
        ),
        *("experiments.launchers.local", "experiments.launchers.options", "experiments.launchers.slurm"),
        *("experiments.launchers.place", "experiments.launchers.ray"),
        *("experiments.job_table", "experiments.settings", "experiments.experiment"),
        *("experiments.attempts", "experiments.queue", "experiments.queued_fold"),
        "experiments.folder_choice",
        *("experiments.search_space", "experiments.samplers", "experiments.search", "experiments.trial"),
        "experiments.launchers.ray_tune",
        *(
            "experiments.significance",
            "experiments.contributions",
            "experiments.verdict",
            "experiments.records",
            "experiments.aggregate",
            "experiments.repetitions",
            *("experiments.names", "experiments.resampling", "experiments.details", "experiments.entries"),
            *("experiments.pairing", "experiments.differences"),
            *("experiments.comparison_notes", "experiments.comparison"),
            "experiments.early_stop",
            "experiments.pairs",
        ),
        *("experiments.comparison_table", "experiments.report.axes", "experiments.report.charts"),
        *("experiments.report.training_curves", "experiments.report.confusion", "experiments.report.class_table"),
        "experiments.report.detail_table",
        *("experiments.report.origin", "experiments.report.gallery"),
        *("experiments.report", "experiments.page", "experiments.selection", "experiments.recipes", "experiments.best"),
    ),
    ("tracking.runs", "tracking.report", "tracking.experiment", "tracking.sync"),
    (
        *(
            "commands",
            *("commands.parsers.parser", "commands.parsers.experiments", "commands.parsers.submission"),
            *("commands.parsers.data", "commands.parsers.models", "commands.parsers"),
            "commands.options",
            "commands.option_values",
            "commands.checkpoint",
            "commands.refusals",
            "commands.run_folds",
            "commands.run_settings",
            "commands.surroundings",
            "commands.training_options",
            "commands.lightning_cli",
            "commands.training",
        ),
        *("commands.peak_memory", "commands.short_training"),
        *("commands.placement", "commands.queueing", "commands.folds"),
        *("commands.data", "commands.split", "commands.compare", "commands.report", "commands.kfold", "commands.grid"),
        *("commands.held_out", "commands.suspects", "commands.calibrate"),
        *("commands.queue", "commands.queued_jobs", "commands.tune"),
        *(
            "commands.benchmark",
            "commands.export",
            "commands.tune_crf",
            "commands.tune_batch",
            "commands.tune_lr",
            *("commands.wandb_report", "commands.wandb_sync"),
        ),
        "commands.best",
        *("commands.pseudo", "commands.masks"),
    ),
    ("cli", "__main__", "data", "models", ""),
)
ORDER = [name for floor in FLOORS for name in floor]
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}
PUBLIC = {"", "data", "models"}
LIGHTNING_FREE = {"data", "models", "kernels", "metrics", "crf", "losses", "labels", "resizing", "runs"}
WANDB_ROOMS = {"tracking", "commands"}  # the command of W&B reports, and no other
ARGPARSE_ROOMS = {"commands", "cli", "data"}


def test_every_module_is_listed_once() -> None:
    assert sorted(_name(file) for file in PACKAGE.rglob("*.py")) == sorted(ORDER)


def test_imports_only_point_down() -> None:
    for file in PACKAGE.rglob("*.py"):
        own = _name(file)
        if own in PUBLIC:
            continue  # public names come from everywhere, on first use
        for target in _own_imports(file):
            where = f"{own or 'the package'} imports {target or 'the package'}"
            is_inside = own.partition(".")[0] == target.partition(".")[0] or FLOOR_OF[target] == FLOOR_OF[own]
            assert FLOOR_OF[target] <= FLOOR_OF[own], where
            assert not is_inside or ORDER.index(target) < ORDER.index(own), f"{where}, which stands after it"
            assert {own.partition(".")[0], target.partition(".")[0]} != {"data", "models"}, where


def test_imports_name_the_module_that_they_come_from() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and _name(file) not in PUBLIC:
                assert node.level == 0, f"{_name(file)} has a relative import"
                names = {alias.name for alias in node.names} if node.module == "deeplab_lightning" else set()
                assert names <= FLOOR_OF.keys(), f"{_name(file)} imports {names} from the public package"


def test_rooms_know_only_the_libraries_of_their_kind() -> None:
    for file in PACKAGE.rglob("*.py"):
        own, libraries = _name(file), {name.partition(".")[0] for name in _imports(file)}
        room = own.partition(".")[0]
        if room in LIGHTNING_FREE and own not in {"data.fold_split", "data.datamodule"}:
            assert "lightning" not in libraries, f"{own} knows Lightning"
        if room not in WANDB_ROOMS:
            assert "wandb" not in libraries, f"{own} knows W&B"
        if room not in ARGPARSE_ROOMS and own != "models.pretrained":  # whose files may hold a Namespace
            assert "argparse" not in libraries, f"{own} parses arguments"
        if own.startswith("data.folds"):
            assert "torch" not in libraries, f"{own} knows torch"


def test_only_runs_knows_the_file_names_of_runs() -> None:
    folders = (RunFolder("x"), ExperimentFolder("x"), SplitFolder("x"), PredictionFolder("x"), SuspectsFolder("x"))
    names = {path.name for folder in folders for path in vars(folder).values() if isinstance(path, Path)} - {"x"}
    assert {"folds.csv", "balance.csv", "balance.json", "result.json", "config.yaml"} <= names
    for file in PACKAGE.rglob("*.py"):
        nodes = ast.walk(ast.parse(file.read_text()))
        found = {n.value for n in nodes if isinstance(n, ast.Constant) and "." in str(n.value)} & names
        assert _name(file).startswith("runs.") or not found, f"{_name(file)} names {found}"


def _name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def _own_imports(file: Path) -> set[str]:
    """The listed modules that a file imports, by their longest name."""
    found = set()
    for name in _imports(file):
        if name.partition(".")[0] == "deeplab_lightning":
            parts = name.split(".")[1:]
            candidates = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            found.add(next((c for c in candidates if c in FLOOR_OF), ""))
    return found - {""}


def _imports(file: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(file.read_text())))
    found = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return found + [f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names]


@pytest.mark.long
def test_looking_at_results_imports_no_library_of_trainings() -> None:
    """`status`, `compare` and `report` took 3 s longer to start when the room of their files imported torchmetrics."""
    code = (
        "import deeplab_lightning.runs, sys; print(sorted({'torchmetrics', 'lightning', 'timm'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_no_source_file_is_left_out_of_commits() -> None:
    """A room named like an ignored folder was in no commit, and all tests passed where it was written."""
    if shutil.which("git") is None or not (PACKAGE.parent / ".git").exists():
        pytest.skip("needs git and a checkout")
    words = ["git", "ls-files", "--others", "--ignored", "--exclude-standard", "deeplab_lightning", "configs", "tests"]
    listed = subprocess.run(words, cwd=PACKAGE.parent, check=True, capture_output=True, text=True).stdout.split()
    assert [name for name in listed if name.endswith((".py", ".yaml", ".html", ".md"))] == []
