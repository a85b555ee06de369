"""Comparison of W&B runs: logs of real trainings, and runs made by hand."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from deeplab_lightning.cli import main
from deeplab_lightning.commands.compare import source_folders
from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import aggregate
from deeplab_lightning.experiments.comparison import compare_experiments
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.tracking import experiment as wandb_cv
from deeplab_lightning.tracking import runs as wandb_runs
from deeplab_lightning.tracking.runs import LoggedRun, offline_runs, online_runs, write_experiments
from tests.conftest import CLASSES, shared_copy, write_image, write_mask
from tests.processes import run_program
from tests.tracking.wandb_server import PROJECT, WandbServer

Make = Callable[..., LoggedRun]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A finished run as W&B holds it: make(group, fold, counts) -> LoggedRun."""

    def run(group: str | None, fold: int, right: int = 300, *, start: str = "1", has_images: bool = False) -> LoggedRun:
        files = tmp_path / "files" / f"{group}-{fold}-{start}"
        files.mkdir(parents=True)
        counts = np.array([[right, 400 - right, 0], [10, 390, 0], [0, 20, 80 + fold]])
        table = {
            "columns": ["truth \\ prediction", *CLASSES],
            "data": [[c, *row] for c, row in zip(CLASSES, counts.tolist(), strict=True)],
        }
        (files / "matrix.json").write_text(json.dumps(table))
        if has_images:
            PerImageConfusion.of([(f"{fold}.png", counts)]).write(files / "image_matrices.npz")
        return LoggedRun(
            id=f"{group}{fold}{start}",
            name=f"{group}/fold{fold}",
            project="p",
            group=group,
            job_type="fold",
            start=start,
            config={"data": {"split": "folds", "fold": fold, "n_folds": 3}, "seed_everything": 7},
            summary={
                "best/miou": 0.5,
                "val/confusion_matrix.path": "matrix.json",
                "cost/mega_parameters": 4.0,
                "cost/seconds": 60.0,
            },
            rows=[{"epoch": e, "val/miou": e / 10} for e in range(3)],
            fetch=lambda name: files / name if (files / name).is_file() else None,
        )

    return run


def test_without_matrices_of_images_folds_are_compared_and_a_note_says_so(make: Make, tmp_path: Path) -> None:
    runs = [make("a", fold, 300 + fold) for fold in range(3)] + [make("b", fold, 340 - fold) for fold in range(3)]
    folders, _ = write_experiments(runs, tmp_path, "here")
    comparison = compare_experiments(folders)
    base, other = comparison.entries
    assert [base.label, other.label] == ["a", "b"]
    assert any("no image_matrices.npz of a, b" in note for note in comparison.notes)
    assert comparison.num_images is None
    assert other.over_images is None
    assert other.over_folds is not None
    assert other.over_folds.mean == pytest.approx(other.difference)
    assert other.per_class is not None
    assert other.per_class[0].mean == pytest.approx(other.iou[0] - base.iou[0])
    assert other.difference == pytest.approx(other.miou - base.miou)
    assert other.cost == {"mega_parameters": 4.0, "giga_macs": None, "seconds": 180.0}


def test_folds_with_different_truths_are_different_folds(make: Make, tmp_path: Path) -> None:
    runs = [make("a", 0), make("a", 1), replace(make("b", 0), config=make("b", 1).config), make("b", 0, start="2")]
    folders, _ = write_experiments(runs, tmp_path, "here")  # b's folds are swapped, and do not hold the same pixels
    comparison = compare_experiments(folders)
    assert comparison.entries[1].over_folds is None
    assert any("by their pooled figures alone" in note for note in comparison.notes)


def test_matrices_of_images_are_used_if_there_are_any(make: Make, tmp_path: Path) -> None:
    folders, notes = write_experiments([make("a", fold, has_images=True) for fold in range(3)], tmp_path, "here")
    assert notes == []
    assert compare_experiments(folders).num_images == 3


def test_a_resumed_fold_counts_once_with_its_whole_curve(make: Make, tmp_path: Path) -> None:
    killed = make("a", 0)
    killed = replace(killed, summary={}, rows=[{"epoch": e, "val/miou": 0.9} for e in range(3)])
    resumed = replace(make("a", 0, start="2"), rows=[{"epoch": e, "val/miou": 0.1} for e in (2, 3)])
    [folder], notes = write_experiments([killed, resumed], tmp_path, "here")
    with (folder / "fold_0" / "metrics.csv").open() as file:
        curve = [(int(row["epoch"]), float(row["val/miou"])) for row in csv.DictReader(file)]
    assert curve == [(0, 0.9), (1, 0.9), (2, 0.1), (3, 0.1)]
    assert notes == []


def test_the_newest_of_two_trainings_of_a_fold_counts(make: Make, tmp_path: Path) -> None:
    [folder], notes = write_experiments([make("a", 0, 10), make("a", 0, 390, start="2")], tmp_path, "here")
    assert compare_experiments([folder]).entries[0].matrix[0, 0] == 390
    assert "trained more than once" in notes[0]


def test_splits_into_different_numbers_of_folds_are_different_experiments(make: Make, tmp_path: Path) -> None:
    runs = [make("a", fold) for fold in range(3)]
    fewer = make("a", 0, start="2")
    runs.append(replace(fewer, config={**fewer.config, "data": {**fewer.config["data"], "n_folds": 2}}))
    folders, notes = write_experiments(runs, tmp_path, "here")
    assert [(folder.name, len(list(folder.glob("fold_*")))) for folder in folders] == [("a-of-2", 1), ("a-of-3", 3)]
    assert any("different numbers of folds" in note for note in notes)


def test_equal_names_of_two_sources_get_different_folders(make: Make, tmp_path: Path) -> None:
    run = make("a", 0)
    paths = [write_experiments([run], tmp_path, source)[0][0] for source in ("my/wandb", "wandb:team/p/a")]
    assert [path.relative_to(tmp_path).parts[0] for path in paths] == ["my-wandb", "wandb-team-p-a"]


def test_a_pooled_run_that_fails_warns_and_is_tried_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [folder], _ = write_experiments([make("a", fold, has_images=True) for fold in range(3)], tmp_path, "here")
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": PROJECT}}
    config = {"trainer": {"logger": logger}, "wandb": "offline"}
    result, attempts = aggregate(folder), []

    def fail(*_: object, **__: object) -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("the server is gone")

    monkeypatch.setattr(wandb_cv, "_log", fail)
    with pytest.warns(UserWarning, match="was not logged .the server is gone."):
        wandb_cv.log_cv(result, folder, config, group="a")
    for _ in range(2):
        wandb_cv.log_cv(result, folder, config, group="a")
    assert len(attempts) == 2  # and not again what was logged


def test_parts_of_one_run_are_one_run(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = replace(make("a", 0), rows=[{"epoch": 0, "val/miou": 0.9}], summary={"best/miou": 0.9})
    second = replace(make("a", 0, start="2"), id=first.id, rows=[{"epoch": 1, "val/miou": 0.1}])
    parts = {"one": second, "two": first}
    for name in parts:
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run-x.wandb").touch()
    (tmp_path / "wandb" / "latest-run").symlink_to(tmp_path / "wandb" / "one")
    monkeypatch.setattr(wandb_runs, "_read_log", lambda path: parts[path.parent.name])
    [run], _ = offline_runs(tmp_path / "wandb")
    assert [row["epoch"] for row in run.rows] == [0, 1]
    assert run.summary["best/miou"] == 0.5
    assert run.fetch("matrix.json") == second.fetch("matrix.json")


def test_runs_without_figures_are_named_with_what_they_lack(make: Make, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no run of 'a' has the data that a comparison needs: a/fold0 lacks the best mIoU"
    ):
        write_experiments([replace(make("a", 0), summary={"val/confusion_matrix.path": "m"})], tmp_path, "here")
    with pytest.raises(DataError, match="holds no training, only the pooled result"):
        write_experiments([replace(make("a", 1), job_type="cv")], tmp_path, "here")


def test_a_file_that_is_no_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "offline-run-1-x").mkdir()
    (tmp_path / "offline-run-1-x" / "run-x.wandb").write_bytes(b"no log")
    with pytest.raises(DataError, match=r"run-x.wandb: .*(cannot read it|cut off)"):
        offline_runs(tmp_path)


def test_experiments_of_one_name_are_one_only_if_their_settings_are(make: Make, tmp_path: Path) -> None:
    """The folds of two experiments of one name and other settings were pooled as one experiment."""

    def logged(group: str, folder: str) -> LoggedRun:
        run = make(group, 0)
        return replace(run, config={**run.config, "output_dir": folder})

    runs = [logged("a-0123ab", "runs/a"), logged("a-4567cd", "other/runs/a"), logged("g/b-89abef", "runs/g/b")]
    folders, _ = write_experiments([*runs, logged("c-ffffff", "runs/c-ffffff")], tmp_path, "here")
    assert [folder.name for folder in folders] == ["a-0123ab", "a-4567cd", "c-ffffff", "g-b"]
    assert [len(list(folder.glob("fold_*"))) for folder in folders] == [1, 1, 1, 1]


def test_a_torn_log_is_left_out_with_a_note(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One log that a kill tore stopped the comparison of all others."""
    runs = {f"fold{fold}": make("a", fold) for fold in range(3)}
    for name in (*runs, "torn"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        (tmp_path / "wandb" / name / "run-x.wandb").write_bytes(b"no log")
    read = wandb_runs._read_log
    monkeypatch.setattr(wandb_runs, "_read_log", lambda path: runs.get(path.parent.name) or read(path))
    main(["compare", str(tmp_path / "wandb")])
    printed = capsys.readouterr().out
    assert f"note: a W&B log is left out: {tmp_path}/wandb/torn/run-x.wandb: " in printed
    assert "Cost" in printed


def test_groups_need_an_address_an_account_and_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="wandb:entity/project/group, got 'wandb:team/project'"):
        online_runs("wandb:team/project", tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(DataError, match="needs an account"):
        online_runs("wandb:team/project/group", tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(wandb_runs, "can_answer", lambda _: False)
    with pytest.raises(DataError, match="does not answer"):
        online_runs("wandb:team/project/group", tmp_path)


def test_a_folder_without_any_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a result.json nor a W&B run"):
        source_folders([str(tmp_path)], tmp_path / "scratch")


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments `one` and `two` of two folds each that logged offline, with different seeds."""
    return shared_copy(tmp_path_factory, "logged", train_and_log) / "runs"


def train_and_log(root: Path) -> None:
    for index in range(6):
        write_image(root / "images" / f"{index}.png", (40, 48), seed=index)
        mask = np.repeat(np.arange(3, dtype=np.uint8), (12 + index, 18, 18 - index))
        write_mask(root / "masks" / f"{index}.png", np.tile(mask, (40, 1)))
    dataset = {"root": str(root), "images": "images", "masks": "masks", "classes": {"names": list(CLASSES)}}
    net = {"backbone": "test_resnet", "aspp_channels": 8, "pretrained": False}
    transforms = "deeplab_lightning.data.transforms.TrainTransforms"
    logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": PROJECT}}
    content: dict[str, Any] = {
        "output_dir": str(root / "runs"),
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False, "logger": logger},
        "model": {"net": {"class_path": "DeepLabV3", "init_args": net}},
        "data": {
            "dataset": {"class_path": "MaskFolderDataset", "init_args": dataset},
            "n_folds": 2,
            "batch_size": 2,
            "num_workers": 0,
            "train_transforms": {"class_path": transforms, "init_args": {"crop_size": 32}},
        },
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(content))
    script = (
        "from deeplab_lightning.cli import main\n"
        "for name, seed in (('one', '0'), ('two', '1')):\n"
        f"    main(['kfold', '-c', {str(root / 'config.yaml')!r}, '--name', name, '--in_process',"
        " '--seed_everything', seed])\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=environment(), timeout=600)


@pytest.fixture(scope="module")
def expected(experiments: Path) -> tuple[list[dict[str, str]], str]:
    """Rows of the CSV and curves of the page, from the folders."""
    rows, _ = compared(experiments / "one", experiments / "two", page=experiments / "folders.html")
    assert float(rows[1]["difference_low_folds"]) < float(rows[1]["difference_high_folds"])
    return rows, curves(experiments / "folders.html")


def curves(page: Path) -> str:
    """The chart of learning curves."""
    return page.read_text().split("Learning curves")[1].split("<h2>")[0].rstrip()


@pytest.fixture
def server() -> Iterator[WandbServer]:
    running = WandbServer()
    yield running
    running.stop()


def environment(**more: str) -> dict[str, str]:
    """The environment without the address of a W&B process that other tests started."""
    return {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")} | more


def compared(*sources: object, page: Path | None = None, **more: str) -> tuple[list[dict[str, str]], str]:
    """Rows of the CSV and the printed text; in a process of its own if it needs variables."""
    table = Path(str(page or sources[0])).parent / "compared.csv"
    words = ["compare", *map(str, sources), "--csv", str(table), *(["--html", str(page)] if page else [])]
    if more:
        done = run_program(*words, env=environment(**more))
        assert done.returncode == 0, done.stdout + done.stderr
        output = done.stdout
    else:
        with redirect_stdout(io.StringIO()) as printed:
            main(words)
        output = printed.getvalue()
    with table.open() as file:
        return list(csv.DictReader(file)), output


@pytest.mark.long
def test_the_pooled_run_holds_table_matrix_and_page(experiments: Path) -> None:
    [files] = (experiments / "one" / "wandb").glob("offline-run-*/files/media")
    [table] = files.glob("table/cv/confusion_matrix_*.table.json")
    matrix = [row[1:] for row in json.loads(table.read_text())["data"]]
    assert matrix == json.loads((experiments / "one" / "cv.json").read_text())["confusion_matrix"]
    [page] = files.glob("html/cv/report_*.html")
    assert "<title>Report of one</title>" in page.read_text()
    assert curves(page).count("<polyline") == 1
    assert not re.findall(r"(?:src|href)=.https?:", page.read_text())  # nothing from outside


@pytest.mark.long
def test_offline_runs_give_the_same_as_the_folders(
    experiments: Path, expected: tuple[list[dict[str, str]], str], tmp_path: Path
) -> None:
    logs = tmp_path / "logs"  # moved away from the folders that they were logged in
    for path in experiments.glob("*/fold_*/wandb/offline-run-*"):
        shutil.copytree(path, logs / path.name)
    found, _ = compared(logs, page=tmp_path / "logs.html")
    assert (found, curves(tmp_path / "logs.html")) == expected
    for path in logs.glob("*/files/*image_matrices.npz"):
        path.unlink()
    [_, row], output = compared(logs)
    assert "no intervals over images" in output
    for key in (
        "miou",
        "difference",
        "difference_low_folds",
        "difference_high_folds",
        "p_folds",
        "fold_std",
        "seconds",
    ):
        assert row[key] == expected[0][1][key]
    assert row["p_images"] == ""


@pytest.mark.long
def test_uploaded_runs_give_the_same_as_the_folders(
    experiments: Path, expected: tuple[list[dict[str, str]], str], tmp_path: Path, server: WandbServer
) -> None:
    more = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "WANDB_CACHE_DIR": str(tmp_path / "cache")}
    logs = [str(path) for path in experiments.glob("*/**/wandb/offline-run-*")]
    sync = [sys.executable, "-m", "wandb", "sync", "--yes", *logs]
    subprocess.run(sync, check=True, env=environment(**more), capture_output=True, timeout=120)
    addresses = [f"wandb:team/{PROJECT}/{name}" for name in ("one", "two")]
    found, _ = compared(*addresses, page=tmp_path / "server.html", **more)
    assert (found, curves(tmp_path / "server.html")) == expected
    for address, message in (
        (f"wandb:team/{PROJECT}/three", "has no run of the group 'three'"),
        ("wandb:team/other/one", "Check entity and project"),
    ):
        done = run_program("compare", address, env=environment(**more), timeout=120)
        assert done.returncode == 1
        assert message in done.stderr
