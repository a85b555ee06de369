"""The files of runs and experiments, and the folder that a run gets."""

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab_lightning.data.folds.balance import fold_balance
from deeplab_lightning.errors import DataError
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import (
    RUN_FOLDER_VARIABLE,
    ExperimentFolder,
    PredictionFolder,
    RunFolder,
    choose_run_folder,
    confusion_rows,
    made_up_name,
    prediction_stems,
)
from deeplab_lightning.tables import csv_text, csv_text_of_dicts, read_csv, read_rows

NAMES = [
    "plain", "bottle, glass", 'say "can"', "two\nlines", "dos\r\nlines", "old\rmac", "# comment", "Glas-Behälter 瓶",
    " spaces ", "back\\slash", "'quote'", "=1+1",
    "line\u2028separator", "tab\x0b", "next\x85line",
]  # fmt: skip
COUNTS = np.arange(len(NAMES) ** 2).reshape(len(NAMES), -1) * 10**9  # more than 32 bits
MODEL = {"class_path": "deeplab_lightning.DeepLabV3", "init_args": {"backbone": "resnet50"}}


@pytest.fixture(autouse=True)
def _single_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process of DDP; the variable that a choice sets is removed after the test."""
    monkeypatch.setenv(RUN_FOLDER_VARIABLE, "")
    monkeypatch.delenv(RUN_FOLDER_VARIABLE)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def choose(output_dir: Path, *, name: str | None = None, checkpoint: object = None, is_training: bool = True) -> Path:
    path = None if checkpoint is None else str(checkpoint)
    return choose_run_folder(
        name=name, output_dir=str(output_dir), checkpoint=path, model=MODEL, is_training=is_training
    ).path


def started(path: Path) -> RunFolder:
    """The folder of a run that has written its configuration and a checkpoint."""
    folder = RunFolder(path)
    folder.write_config("seed: 1\n", "fit")
    folder.checkpoints.mkdir()
    folder.last.touch()
    return folder


def test_confusion_matrices_come_back_whatever_the_classes_are_called(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    folder.write_confusion(COUNTS, NAMES)
    assert np.array_equal(folder.read_confusion(), COUNTS)
    header, *rows = read_rows(folder.confusion)
    assert header[1:] == [row[0] for row in rows] == NAMES


def test_rows_of_a_confusion_matrix_start_with_the_true_class() -> None:
    assert confusion_rows([[1, 2], [3, 4]], ["a", "b"]) == [["truth \\ prediction", "a", "b"], ["a", 1, 2], ["b", 3, 4]]
    with pytest.raises(ValueError, match="zip"):
        confusion_rows([[1, 2], [3, 4]], ["a"])


def test_splits_come_back_whatever_images_groups_and_classes_are_called(tmp_path: Path) -> None:
    folder = ExperimentFolder(tmp_path / "new")
    folds = csv_text([["image", "group", "fold"], *([f"{name}.png", name, 0] for name in NAMES)])
    balance = fold_balance(np.ones((2, len(NAMES))), np.ones((2, len(NAMES))), [0, 1], 2).to_csv(NAMES)
    folder.write_splits(folds, balance)
    assert folder.read_groups() == {f"{name}.png": name for name in NAMES}
    rows = folder.read_balance()
    assert [(row["fold"], row["class"]) for row in rows] == [(fold, name) for fold in "01" for name in NAMES]


@pytest.mark.parametrize("column", ["fold", "objects", "area", "object_deviation", "area_deviation"])
def test_a_changed_digit_of_the_balance_is_found(tmp_path: Path, column: str) -> None:
    rng = np.random.default_rng(0)
    objects, areas = rng.integers(1, 9, (20, 3)), rng.random((20, 3))
    folder = ExperimentFolder(tmp_path)
    folder.write_splits("image,group,fold\n", fold_balance(objects, areas, np.arange(20) % 4, 4).to_csv("abc"))
    rows = folder.read_balance()
    rows[4][column] = str(float(rows[4][column]) + 1)
    folder.write_splits("image,group,fold\n", csv_text_of_dicts(rows))
    with pytest.raises(DataError, match=r"balance.csv: is damaged: the (folds|deviations) of b"):
        folder.read_balance()


def test_an_official_split_has_no_balance(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_groups() == {}
    folder.write_splits("image,group,fold\n", None)
    assert (folder.read_groups(), folder.read_balance()) == ({}, [])
    assert not folder.balance.exists()


def test_metrics_come_back_to_the_last_digit_without_empty_cells(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_metrics() == []
    rows = [
        {"epoch": 0.0, "step": 5.0, "train/loss": 1 / 3},
        {"epoch": 1.0, "step": 10.0, "train/loss": 2 / 3, **{f"val/iou/{name}": 0.1 + 0.2 for name in NAMES}},
    ]
    folder.write_metrics(rows)
    assert folder.read_metrics() == rows
    assert [row["epoch"] for row in read_csv(folder.metrics)] == ["0", "1"]


def test_results_come_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.read_result() is None
    result = {"fold": 0, "n_folds": 2, "val": {"miou": 0.5, "iou": dict.fromkeys(NAMES, 0.25)}, "cost": None}
    folder.write_result(result)
    assert folder.read_result() == result
    experiment = ExperimentFolder(tmp_path / "experiment")
    experiment.write_result(result)
    assert json.loads(experiment.result.read_text()) == result


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"a: [", b"[1]", b"\0", b'{"a": 1', b"1", b"epoch,step\nx,y\n", b"a\n1\n"]
)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.yaml", RunFolder.read_config),
        ("job.yaml", RunFolder.read_job),
        ("wandb_run.json", RunFolder.read_wandb_run),
        ("metrics.csv", RunFolder.read_metrics),
        ("confusion_matrix.csv", RunFolder.read_confusion),
        ("folds.csv", RunFolder.read_groups),
        ("balance.csv", RunFolder.read_balance),
        ("stopped.json", lambda run: ExperimentFolder(run.path).read_stopped()),
        ("predictions.csv", lambda run: PredictionFolder(run.path).read_masks()),
    ],
)
def test_a_damaged_record_is_named_or_empty(
    tmp_path: Path, name: str, read: Callable[[RunFolder], object], content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    try:
        assert not read(RunFolder(tmp_path))
    except DataError as error:
        message = str(error)
        assert message.startswith(f"{tmp_path / name}: is damaged")
        assert "\n" not in message


def test_evaluations_are_numbered_and_leave_the_result_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    names = [folder.write_evaluation({"n": n}, stage).name for n, stage in enumerate(("val", "val", "test"))]
    assert names == ["result_validate.json", "result_validate-2.json", "result_test.json"]
    assert json.loads((tmp_path / names[1]).read_text()) == {"n": 1}
    assert folder.read_result() is None


def test_configurations_come_back_and_are_never_overwritten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no such file: .*config.yaml. .* is not the folder of a run"):
        folder.read_config()
    folder.write_config("name: Behälter\n", "fit")
    for text, stage in (("name: second\n", "fit"), ("name: third\n", "validate")):
        folder.write_config(text, stage)
    assert folder.read_config() == {"name": "Behälter"}
    assert (tmp_path / "config-2.yaml").read_text() == "name: second\n"
    assert (tmp_path / "config_validate.yaml").read_text() == "name: third\n"
    experiment = ExperimentFolder(tmp_path / "experiment")
    config: dict[str, Any] = {"z": {"classes": NAMES}, "a": None}
    experiment.write_config(config)
    assert experiment.read_config() == config
    experiment.config.write_text("")
    assert experiment.read_config() == {}


def test_files_of_a_fold_come_back(tmp_path: Path) -> None:
    folder = ExperimentFolder(tmp_path).fold(3)
    with pytest.raises(OSError, match="job.yaml"):
        folder.read_job()
    folder.write_job({"trainer": {"max_epochs": 2}, "names": NAMES})
    assert folder.read_job() == {"trainer": {"max_epochs": 2}, "names": NAMES}
    names = ["a, b.png", "Behälter.jpg", "# c.png", "d\u2028e\x0bf\x85g.png"]
    folder.write_val_images({name: Path("/data") / name for name in names})
    assert folder.read_val_images() == [f"/data/{name}\t{name}" for name in names]
    assert folder.val_images.parent.name == "fold_3"


def test_matrices_of_images_come_back_and_may_be_missing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="image_matrices.npz"):
        folder.read_images()
    folder.write_confusion(COUNTS, NAMES)
    assert folder.read_images() is None  # only the sum is known
    images = PerImageConfusion.of([("ü, 2.png", COUNTS), ("1.png", 2 * COUNTS)])
    images.write(folder.images)
    found = folder.read_images()
    assert found is not None
    assert found.names == ["1.png", "ü, 2.png"]
    assert np.array_equal(found.total(), 3 * COUNTS)


def test_an_experiment_remembers_what_was_logged(tmp_path: Path) -> None:
    folder = ExperimentFolder(tmp_path)
    assert not folder.is_logged("first")
    folder.mark_logged("first")
    folder.mark_logged("second")
    assert (folder.is_logged("first"), folder.is_logged("second")) == (False, True)


def test_panels_and_predictions_have_fixed_names(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).panel(7) == tmp_path / "panels" / "epoch_007.png"
    files = PredictionFolder(tmp_path)
    assert files.mask("deep/a.b") == tmp_path / "masks" / "deep" / "a.b.png"
    assert files.overlay(Path("deep/a")) == tmp_path / "overlays" / "deep" / "a.jpg"
    assert RunFolder(tmp_path).val_predictions.masks == tmp_path / "val_predictions" / "masks"


def test_folds_are_listed_by_number_without_repeated_trainings(tmp_path: Path) -> None:
    for name in ("fold_10", "fold_2", "fold_0", "fold_0-2", "fold_x", "fold_1.bak", "other"):
        (tmp_path / name).mkdir()
    assert [run.name for run in ExperimentFolder(tmp_path).runs()] == ["fold_0", "fold_2", "fold_10"]
    assert ExperimentFolder(tmp_path / "nothing").runs() == []


def test_a_single_run_is_its_own_only_fold(tmp_path: Path) -> None:
    RunFolder(tmp_path).write_result({})
    (tmp_path / "fold_0").mkdir()
    assert [run.path for run in ExperimentFolder(tmp_path).runs()] == [tmp_path]


def test_a_fresh_name_is_the_folder_and_a_taken_one_gets_a_number(tmp_path: Path) -> None:
    assert choose(tmp_path, name="a") == tmp_path / "a"
    for number in (2, 3):
        assert choose(tmp_path, name="a") == tmp_path / f"a-{number}"
    (tmp_path / "v1.5").mkdir()
    assert choose(tmp_path, name="v1.5") == tmp_path / "v1.5-2"  # the dot begins no suffix


def test_a_run_without_a_name_is_called_by_network_backbone_and_time(tmp_path: Path) -> None:
    assert re.fullmatch(r"deeplabv3-resnet50-\d{8}-\d{6}", choose(tmp_path).name)
    assert re.fullmatch(r"cv-deeplabv1-\d{8}-\d{6}", made_up_name({"class_path": "DeepLabV1"}, prefix="cv"))


def test_a_checkpoint_continues_its_own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = started(tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    for checkpoint in (run.last, "runs/first/checkpoints/last.ckpt"):
        assert choose(Path("runs"), checkpoint=checkpoint) == run.path
        assert choose(Path("runs"), checkpoint=checkpoint, name="first") == run.path
        assert choose(Path("elsewhere"), checkpoint=checkpoint, name="other", is_training=False) == run.path


def test_a_training_with_another_name_leaves_the_run_of_its_checkpoint(tmp_path: Path) -> None:
    run = started(tmp_path / "first")
    assert choose(tmp_path, checkpoint=run.last, name="second") == tmp_path / "second"


def test_a_checkpoint_outside_a_run_gets_a_new_folder(tmp_path: Path) -> None:
    checkpoint = tmp_path / "downloads" / "x" / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    assert RunFolder.of_checkpoint(checkpoint) is None
    folds = [ExperimentFolder(tmp_path / "cv").fold(number) for number in range(2)]
    for run in folds:
        run.write_config("a: 1", "fit")
    found = ExperimentFolder.of_checkpoints([run.best for run in folds])
    assert found is not None
    assert found.path == tmp_path / "cv"
    assert ExperimentFolder.of_checkpoints([*(run.best for run in folds), checkpoint]) is None
    assert ExperimentFolder.of_checkpoints([folds[0].best, folds[0].last]) is None
    for name, is_training in (("a", True), ("b", False)):
        assert choose(tmp_path, checkpoint=checkpoint, name=name, is_training=is_training) == tmp_path / name
        assert choose(tmp_path, checkpoint=checkpoint, is_training=is_training).parent == tmp_path


def test_last_names_the_folder_whether_it_exists_or_not(tmp_path: Path) -> None:
    assert choose(tmp_path, checkpoint="last", name="a") == tmp_path / "a"
    started(tmp_path / "a")
    assert choose(tmp_path, checkpoint="last", name="a") == tmp_path / "a"


def test_other_processes_take_the_folder_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose(tmp_path, name="a")
    assert first.is_dir()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose(tmp_path, name="a") == first
    monkeypatch.setenv("LOCAL_RANK", "0")  # a new training in the same process
    assert choose(tmp_path, name="a") == tmp_path / "a-2"
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.delenv(RUN_FOLDER_VARIABLE)  # a launcher that started every process itself
    assert choose(tmp_path, name="b") == tmp_path / "b"


def test_processes_of_srun_take_the_folder_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for key, value in (("SLURM_STEP_NUM_TASKS", "2"), ("SLURM_JOB_ID", "7"), ("SLURM_STEP_ID", "3")):
        monkeypatch.setenv(key, value)
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.setattr("deeplab_lightning.runs.choice._choices", itertools.count())
        monkeypatch.delenv(RUN_FOLDER_VARIABLE, raising=False)
        found.append(choose(tmp_path, name="a"))
    assert found == [tmp_path / "a-2"] * 2


def test_two_choices_of_one_name_get_two_folders(tmp_path: Path) -> None:
    """Neither has written anything yet, as while both still read their data."""
    assert [choose(tmp_path, name="a").name for _ in range(3)] == ["a", "a-2", "a-3"]


def test_predictions_of_any_keys_stay_inside_and_apart() -> None:
    """`..` overwrote the user's images, and `a.jpg` beside `a.png` and `a.jpg.png` lost one of them."""
    long = "x" * 250 + ".jpg"
    keys = [
        *("../../images/a.jpg", "images/a.png", "/abs/b.jpg", "c/./d.png", "e.jpg", "e.png", "e.jpg.png", "E.JPG"),
        *(
            "f.jpg",
            "f.png/g.jpg",
            "..",
            "/",
            long,
            f"{long[:-4]}.png",
            "sub\\h.png",
            "../x.jpg",
            "a/x.jpg",
            "../a/x.jpg",
        ),
    ]
    stems = prediction_stems(keys)
    folder = PredictionFolder("/out")
    masks = {key: folder.mask(stem) for key, stem in stems.items()}
    assert all(os.path.normpath(path).startswith("/out/masks/") for path in masks.values())
    assert len({str(path).casefold() for path in masks.values()}) == len(keys)
    assert not set(masks.values()) & {parent for path in masks.values() for parent in path.parents}
    assert all(len(part.encode()) <= 255 for path in masks.values() for part in path.parts)
    assert (stems["images/a.png"], stems["/abs/b.jpg"], stems["c/./d.png"]) == ("images/a.png", "abs/b", "c/d")
    assert prediction_stems(keys[::-1]) == stems


def test_predictions_never_overwrite_files_of_others(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    folder.masks.mkdir()
    own = folder.masks / "a.png"
    own.write_text("the user's own mask")
    with pytest.raises(ValueError, match=r"masks holds files that no prediction wrote. Choose another folder"):
        folder.begin({"a.jpg": "a"})
    assert own.read_text() == "the user's own mask"
    own.unlink()
    folder.begin({"a.jpg": "a"})
    own.touch()
    folder.begin({"a.jpg": "a"})  # a second prediction into the same folder
    assert folder.read_masks() == {"a.jpg": own}
