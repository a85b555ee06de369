"""The real command line, in this process, on tiny data."""

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deeplab_lightning import SegmentationModule
from deeplab_lightning.cli import COMMANDS, main
from deeplab_lightning.commands.parsers import PARSERS
from deeplab_lightning.commands.training import resolve_fit_config
from deeplab_lightning.errors import DataError, UserError
from tests.conftest import CLASSES, write_image, write_mask

TRANSFORMS = "deeplab_lightning.data.transforms.TrainTransforms"
CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli")
    for index in range(10):
        write_image(root / "images" / f"{index}.png", (40, 48), seed=index)
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[20:] = 1 + index % 2
        write_mask(root / "masks" / f"{index}.png", mask)
    content: dict[str, Any] = {
        "wandb": "disabled",
        "output_dir": str(root / "runs"),
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "enable_model_summary": False},
        "model": {
            "net": {
                "class_path": "DeepLabV3",
                "init_args": {"backbone": "test_resnet", "aspp_channels": 8, "pretrained": False},
            },
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
        },
        "data": {
            "dataset": {
                "class_path": "MaskFolderDataset",
                "init_args": {
                    "root": str(root), "images": "images", "masks": "masks", "classes": {"names": list(CLASSES)},
                },
            },
            "n_folds": 3, "batch_size": 2, "num_workers": 0,
            "train_transforms": {"class_path": TRANSFORMS, "init_args": {"crop_size": 32}},
        },
    }  # fmt: skip
    (root / "config.yaml").write_text(yaml.safe_dump(content))
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A finished training."""
    main(["fit", "-c", str(folder / "config.yaml"), "--name", "first"])
    return folder / "runs" / "first"


@pytest.mark.long
def test_fit_leaves_a_complete_record(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert {key: result[key] for key in ("num_images", "fold", "n_folds", "seed", "epochs")} == {
        "num_images": 10, "fold": 0, "n_folds": 3, "seed": 0, "epochs": 2,
    }  # fmt: skip
    assert set(result["val"]["iou"]) == set(CLASSES)
    assert Path(result["checkpoint"]) == run / "checkpoints" / "best.ckpt"
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert max(float(row["val/miou"]) for row in rows) == pytest.approx(result["val"]["miou"], abs=1e-5)
    with (run / "folds.csv").open() as file:
        folds = [row["fold"] for row in csv.DictReader(file)]
    assert sorted(set(folds)) == ["0", "1", "2"]
    matrix = np.loadtxt(run / "confusion_matrix.csv", delimiter=",", skiprows=1, usecols=(1, 2, 3))
    assert matrix.sum() == folds.count("0") * 40 * 48
    assert (run / "confusion_matrix.png").is_file()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]


@pytest.mark.long
def test_a_second_run_of_the_same_name_gets_its_own_folder(run: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    main(["fit", "-c", str(run / "config.yaml"), "--trainer.max_epochs", "1"])
    assert json.loads((folder / "runs" / "first-2" / "result.json").read_text())["epochs"] == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_resume_continues_the_record_of_a_renamed_run(run: Path, folder: Path) -> None:
    own = folder / "runs" / "resumed"
    shutil.copytree(run, own)
    first_rows = (own / "metrics.csv").read_text().splitlines()
    first_config = (own / "config.yaml").read_text()
    main(
        [
            "fit",
            "--ckpt_path",
            str(own / "checkpoints" / "last.ckpt"),
            "--trainer.max_epochs",
            "3",
        ]
    )
    rows = (own / "metrics.csv").read_text().splitlines()
    assert rows[:3] == first_rows
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2"]
    assert json.loads((own / "result.json").read_text())["epochs"] == 3
    assert (own / "config.yaml").read_text() == first_config
    assert yaml.safe_load((own / "config-2.yaml").read_text())["trainer"]["max_epochs"] == 3


@pytest.mark.slow
def test_resuming_the_last_of_a_fresh_name_starts_anew(folder: Path) -> None:
    main(
        [
            "fit",
            "-c",
            str(folder / "config.yaml"),
            "--name",
            "fresh",
            "--ckpt_path",
            "last",
            "--trainer.max_epochs",
            "1",
        ]
    )
    assert json.loads((folder / "runs" / "fresh" / "result.json").read_text())["epochs"] == 1


@pytest.mark.long
def test_validate_and_test_repeat_the_figures_without_touching_the_record(run: Path) -> None:
    record = (run / "result.json").read_bytes()
    for _ in range(2):
        main(["validate", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")])
    main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")])
    wanted = json.loads(record)["val"]
    names = ("result_validate.json", "result_validate-2.json", "result_test.json")
    for name, stage in zip(names, ("val", "val", "test"), strict=True):
        found = json.loads((run / name).read_text())[stage]
        assert found["iou"] == pytest.approx(wanted["iou"], abs=1e-5)
    assert (run / "result.json").read_bytes() == record


@pytest.mark.slow
def test_predict_needs_nothing_but_checkpoint_and_images(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", alone)
    write_image(tmp_path / "new" / "deep" / "wide.png", (33, 71))
    write_image(tmp_path / "new" / "photo.jpg", (50, 50))
    arguments = ["--output_dir", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    main(["predict", "--ckpt_path", str(alone), "--images", str(tmp_path / "new"), *arguments])
    mask = Image.open(tmp_path / "out" / "masks" / "deep" / "wide.png")
    assert (mask.mode, mask.size) == ("P", (71, 33))
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
    assert mask.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]
    with Image.open(tmp_path / "out" / "overlays" / "photo.jpg") as overlay:
        assert overlay.size == (50, 50)


@pytest.mark.slow
def test_checkpoints_restore_by_path_alone_without_a_hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    net = checkpoint["hyper_parameters"]["net"]["init_args"]
    assert (net["pretrained"], net["num_classes"]) == (False, 3)
    module = SegmentationModule.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    assert module.classes.names == CLASSES
    for name, value in module.net.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][f"net.{name}"])


@pytest.mark.slow
def test_a_pretrained_run_resumes_without_the_hub(run: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("deeplab_lightning.models.backbone.hub_weights_file", lambda name: asked.append(name))
    path = str(run / "checkpoints" / "best.ckpt")
    main(["validate", "-c", str(folder / "config.yaml"), "--model.net.pretrained", "true", "--ckpt_path", path])
    assert asked == []


@pytest.mark.long
def test_a_run_starts_from_weights_and_restores_without_them(run: Path, folder: Path, tmp_path: Path) -> None:
    source = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    torch.save(source, tmp_path / "w.pth")
    config = ["-c", str(folder / "config.yaml"), "--model.net.weights", str(tmp_path / "w.pth")]
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--model.optimizer.lr", "0"]
    main(["fit", *config, *short, "--name", "warm"])
    (tmp_path / "w.pth").unlink()
    path = folder / "runs" / "warm" / "checkpoints" / "last.ckpt"
    module = SegmentationModule.load_from_checkpoint(path)
    assert torch.equal(module.net.head.state_dict()["2.weight"], source["net.head.2.weight"])
    main(["validate", "--ckpt_path", str(path)])


@pytest.mark.long
@pytest.mark.parametrize("has_folder", [False, True])
@pytest.mark.parametrize(
    ("names", "line"),
    [
        (list(CLASSES), "The weights have the classes of the data: the score layer keeps them."),
        (
            ["tree", "road", "car"],
            "The weights have other classes (sky, road, car) than the data (tree, road, car): the score layer starts "
            "anew.",
        ),
    ],
)
def test_a_run_takes_the_score_layer_of_weights_only_for_the_same_classes(
    run: Path,
    folder: Path,
    tmp_path: Path,
    names: list[str],
    line: str,
    has_folder: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = run / "checkpoints" / "best.ckpt"
    source = SegmentationModule.load_from_checkpoint(weights).net
    if has_folder:
        weights = tmp_path / "net"
        source.save_pretrained(weights, classes=list(CLASSES))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"]["dataset"]["init_args"]["classes"]["names"] = names
    config["model"]["net"]["init_args"]["weights"] = str(weights)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    short = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--model.optimizer.lr", "0"]
    capsys.readouterr()
    main(["fit", "-c", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path), "--name", "tuned", *short])
    assert line in capsys.readouterr().out.splitlines()
    trained = SegmentationModule.load_from_checkpoint(tmp_path / "tuned" / "checkpoints" / "last.ckpt").net.state_dict()
    for name, weight in source.state_dict().items():
        if name.startswith("head.2."):
            assert torch.equal(trained[name], weight) == (names == list(CLASSES))
        elif name.endswith("weight"):
            assert torch.equal(trained[name], weight)


@pytest.mark.long
def test_a_schedule_of_timm_trains_resumes_and_is_rebuilt_with_its_checkpoint(folder: Path) -> None:
    schedule = {"class_path": "CosineLRScheduler", "init_args": {"warmup_t": 2}}
    words = ["--model.lr_scheduler", json.dumps(schedule), "--model.lr_interval", "step"]
    main(["fit", "-c", str(folder / "config.yaml"), "--name", "timm", "--trainer.max_epochs", "1", *words])
    last = folder / "runs" / "timm" / "checkpoints" / "last.ckpt"
    main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs", "2"])
    # 6 or 7 pictures in batches of 2: 3 steps an epoch.
    state = torch.load(last, weights_only=True)["lr_schedulers"][0]
    assert (state["last_epoch"], state["schedule"]["t_initial"]) == (6, 6)
    rebuilt = SegmentationModule.load_from_checkpoint(last).configure_optimizers
    assert rebuilt.__self__.lr_interval == "step"  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_callback_that_needs_other_groups_is_refused(folder: Path) -> None:
    words = ["--name", "frozen", "--trainer.callbacks+=BackboneFinetuning"]
    with pytest.raises(UserError, match="Derive a callback from BaseFinetuning that freezes pl_module.net.backbone"):
        main(["fit", "-c", str(folder / "config.yaml"), *words])


def test_arguments_of_schedules_are_options() -> None:
    words = ["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "3"]
    config = resolve_fit_config(["-c", str(CONFIGS / "base.yaml"), *words])
    assert config["model"]["lr_scheduler"]["class_path"] == "torch.optim.lr_scheduler.StepLR"
    found = config["model"]["lr_scheduler"]["init_args"].items()
    assert found >= {"step_size": 3, "gamma": 0.1, "last_epoch": -1}.items()  # and `verbose`, before torch 2.7


@pytest.mark.slow
def test_a_schedule_without_a_needed_argument_is_refused_before_training(folder: Path) -> None:
    words = ["--name", "gamma", "--model.lr_scheduler", "ExponentialLR", "--model.lr_interval", "step"]
    with pytest.raises(UserError, match="ExponentialLR needs gamma: set model.lr_scheduler.init_args.gamma"):
        main(["fit", "-c", str(folder / "config.yaml"), *words])
    assert not (folder / "runs" / "gamma" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--model.nett", "x"], "nett"),
        (["--data.batch_size", "many"], "batch_size"),
        (["--data.dataset.colour", "x"], "colour"),
        (["--model.net.num_classes", "7"], "num_classes"),
        (["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.gama", "1"], "lr_scheduler: Option 'gama' is not"),
        (
            [
                "--model.lr_scheduler",
                '{"class_path": "SequentialLR", "init_args": {"schedulers": ["LinearLR"], "milestones": []}}',
            ],
            "take SequentialSchedule or ChainedSchedule",
        ),
    ],
)
def test_wrong_keys_and_types_exit_2(
    folder: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(folder / "config.yaml"), "--name", "wrong", *extra])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs" / "wrong").exists()


def test_a_missing_checkpoint_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such checkpoint: .*nothing.ckpt"):
        main(["validate", "--ckpt_path", "nothing.ckpt"])
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "-c", str(folder / "config.yaml")])
    assert "predict needs a checkpoint" in capsys.readouterr().err


def test_check_reports_every_problem_and_exits_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("images", "masks"):
        shutil.copytree(folder / part, tmp_path / part)
    (tmp_path / "masks" / "3.png").unlink()
    write_mask(tmp_path / "masks" / "5.png", np.full((40, 48), 77, dtype=np.uint8))
    (tmp_path / "images" / "8.png").write_bytes(b"x")
    arguments = ["data", "check", "-c", str(folder / "config.yaml"), "--data.dataset.init_args.root"]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, str(tmp_path)])
    output = capsys.readouterr().out
    assert stop.value.code == 1
    for found in ("3.png does not exist", "mask values [77]", "8.png: cannot be decoded", "3 problems"):
        assert found in output
    with pytest.raises(SystemExit) as stop:
        main([*arguments, str(folder)])
    assert stop.value.code == 0


def test_synthetic_writes_coco(tmp_path: Path) -> None:
    main(
        [
            "data",
            "synthetic",
            "--output",
            str(tmp_path / "s"),
            "--num_images",
            "2",
            "--size",
            "32",
            "--seed",
            "1",
        ]
    )
    assert len(json.loads((tmp_path / "s" / "annotations.json").read_text())["images"]) == 2


@pytest.mark.slow
def test_split_writes_the_folds_that_training_uses(
    run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["split", "-c", str(folder / "config.yaml"), "--output", str(tmp_path), "--compare"])
    assert (tmp_path / "folds.csv").read_text() == (run / "folds.csv").read_text()
    with (tmp_path / "balance.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(CLASSES)
    assert sum(float(row["images"]) for row in rows if row["class"] == "sky") == 10
    output = capsys.readouterr().out
    assert all(method in output for method in ("balanced", "iterstrat", "random"))
    document = json.loads((tmp_path / "balance.json").read_text())
    assert sum(document["sizes"]) == document["num_images"] == 10
    assert set(document["summary"]) == {"balanced", "iterstrat", "random"}
    assert sum(document["classes"]["sky"]["objects"]) == 10
    with Image.open(tmp_path / "balance.png") as figure:
        assert figure.width > 500
    assert (run / "balance.csv").read_text() == (tmp_path / "balance.csv").read_text()
    with pytest.raises(ValueError, match="a split is never overwritten"):
        main(["split", "-c", str(folder / "config.yaml"), "--output", str(tmp_path)])


def test_split_keeps_groups_whole(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.groups", "PatternGroups", "--data.groups.pattern", r"^\d", "--data.groups.chunk_size", "5"]
    main(["split", "-c", str(folder / "config.yaml"), "--output", str(tmp_path), *options])
    assert "10 groups of images, the largest of 1: 0-0000, 1-0000" in capsys.readouterr().out
    with (tmp_path / "folds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["group"] for row in rows} == {f"{index}-0000" for index in range(10)}
    assert set(json.loads((tmp_path / "balance.json").read_text())["summary"]) == {"balanced", "group"}
    options[3] = r"\.png$"
    with pytest.raises(ValueError, match="there are 2 groups for 3 folds"):
        main(["split", "-c", str(folder / "config.yaml"), "--output", str(tmp_path / "few"), *options])


def test_split_of_annotations_opens_no_image(coco: Callable[..., Path], tmp_path: Path) -> None:
    images = [{"id": i, "file_name": f"{i}.png", "height": 8, "width": 10} for i in range(6)]
    square = [0, 0, 4, 0, 4, 4, 0, 4]
    objects = [{"image_id": i, "category_id": 1 + i % 2, "segmentation": [square]} for i in (0, 1, 2, 3, 3)]
    path = coco(objects, images=images)
    for image in path.parent.glob("*.png"):  # the header stays, for the sizes
        image.write_bytes(image.read_bytes()[:45])
    options = ["--data.dataset", "CocoDataset", "--data.dataset.annotations", str(path), "--data.n_folds", "2"]
    main(["split", *options, "--data.exact_areas", "false", "--output", str(tmp_path / "folds")])
    classes = json.loads((tmp_path / "folds" / "balance.json").read_text())["classes"]
    assert {name: sum(figures["objects"]) for name, figures in classes.items()} == {"can": 2, "bag": 3}
    assert sum(classes["bag"]["area"]) == pytest.approx(3 * 16 / 80)
    with pytest.raises(DataError, match="cannot be decoded"):
        main(["split", *options, "--output", str(tmp_path / "exact")])


@pytest.mark.long
def test_evaluation_keeps_the_folds_of_the_run(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("config_*"))
    checkpoint = str(own / "checkpoints" / "best.ckpt")
    main(["validate", "--ckpt_path", checkpoint])
    validated = yaml.safe_load((own / "config_validate.yaml").read_text())
    assert validated["data"]["fold_file"] == str(own / "folds.csv")
    with pytest.warns(UserWarning, match="another split than the checkpoint's"):
        main(["validate", "--ckpt_path", checkpoint, "--data.split_seed", "7"])
    assert yaml.safe_load((own / "config_validate-2.yaml").read_text())["data"]["fold_file"] is None
    # A file that the folds came from may change; the run's own does not.
    checkpoint_file = torch.load(checkpoint, weights_only=True)
    config = yaml.safe_load((own / "config.yaml").read_text())
    for content in (checkpoint_file["config"], config):
        content["data"]["fold_file"] = str(tmp_path / "elsewhere.csv")
    torch.save(checkpoint_file, checkpoint)
    (own / "config.yaml").write_text(yaml.safe_dump(config))
    main(["validate", "--ckpt_path", checkpoint])
    assert yaml.safe_load((own / "config_validate-3.yaml").read_text())["data"]["fold_file"] == str(own / "folds.csv")
    (own / "folds.csv").write_text((own / "folds.csv").read_text().replace("4.png", "old.png"))
    differences = r"1 images of the data set are missing \(4.png\); 1 images are not in the data set \(old.png\)"
    with pytest.raises(DataError, match=differences):
        main(["validate", "--ckpt_path", checkpoint])


# Grids, sweeps, searches and launchers are no overlays of `fit`; tests/commands/test_grid.py, test_tune.py and
# test_placement.py parse them.
OVERLAYS = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in {"grids", "sweeps", "searches", "launcher"}
)


@pytest.mark.long
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_config_parses(overlay: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", "-c", str(CONFIGS / "base.yaml"), "-c", str(CONFIGS / overlay), "--print_config"])
    assert stop.value.code == 0
    merged = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load((CONFIGS / overlay).read_text())
    assert merged["data"]["batch_size"] == given.get("data", {}).get("batch_size", 8)


def test_help_lists_every_command_without_importing_torch() -> None:
    code = "import sys; sys.argv[1:] = ['--help']; import deeplab_lightning.__main__ as m\n"
    code += "try: m.run()\nfinally: print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip().endswith("False")
    assert all(f"  {command} " in output for command in COMMANDS)


@pytest.mark.parametrize("command", PARSERS)
def test_help_of_a_command_is_whole_without_importing_its_libraries(command: str) -> None:
    """`deeplab kfold --help` took 5 s."""
    heavy = ("torch", "lightning", "torchvision", "timm", "jsonargparse", "wandb", "matplotlib", "scipy", "numpy")
    code = "import sys; import deeplab_lightning.__main__ as m\n"
    code += f"try: m.run()\nfinally: print([name for name in {heavy} if name in sys.modules])"
    words = [sys.executable, "-c", code, *command.split(), "--help"]
    output = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    *lines, imported = output.splitlines()
    assert imported == "[]"
    assert lines[0].startswith(f"usage: deeplab {command} ")
    options = {
        option
        for action in PARSERS[command]()._actions
        if action.help != "==SUPPRESS=="
        for option in action.option_strings
    }
    assert options <= set(re.findall(r"--?[\w-]+", output))


def test_commands_with_options_of_their_own_have_a_quick_help() -> None:
    assert set(COMMANDS) - set(PARSERS) == {"fit", "validate", "test", "predict"}  # all options of all classes


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.long
@pytest.mark.skipif(
    not HUGE_PAGES.is_file() or "[never]" in HUGE_PAGES.read_text(), reason="a system without huge pages"
)
def test_tensors_of_the_program_lie_in_huge_pages() -> None:
    code = "import resource, sys; sys.argv[1:] = ['--version']; import deeplab_lightning.__main__ as m; m.run()\n"
    code += "import torch; faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
    code += "before = faults(); torch.zeros(1 << 24); print(faults() - before)"  # 64 MB
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(output.split()[-1]) < 8192  # of 16384 pages


def test_an_unknown_command_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["trian"])
    assert stop.value.code == 2
    assert "no command is called 'trian'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_program_shows_input_errors_without_a_traceback(folder: Path) -> None:
    command = [sys.executable, "-m", "deeplab_lightning", "fit", "-c", str(folder / "config.yaml")]
    done = subprocess.run([*command, "--data.fold", "9"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: fold must be null or in [0, n_folds) with n_folds >= 2, got 9 of 3." in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_checkpoint_without_its_folder_stops_where_images_were_added(run: Path, tmp_path: Path) -> None:
    """A new split would validate on images of the training."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    data, checkpoint = tmp_path / "data", tmp_path / "best.ckpt"
    shutil.copytree(config["data"]["dataset"]["init_args"]["root"], data)
    shutil.copy(run / "checkpoints" / "best.ckpt", checkpoint)
    options = ["validate", "--ckpt_path", str(checkpoint), "--data.dataset.init_args.root", str(data)]
    main([*options, "--output_dir", str(tmp_path / "runs"), "--name", "same"])
    validated = json.loads((tmp_path / "runs" / "same" / "result_validate.json").read_text())["val"]["miou"]
    assert validated == pytest.approx(json.loads((run / "result.json").read_text())["val"]["miou"])
    for part in ("images", "masks"):
        first = min((data / part).iterdir())
        shutil.copy(first, first.with_stem("added"))
    with pytest.raises(DataError, match=r"the checkpoint's fold table: .* missing \(added.png\)"):
        main([*options, "--output_dir", str(tmp_path / "runs")])


@pytest.mark.slow
def test_other_data_are_tested_without_the_data_of_the_training(run: Path, tmp_path: Path) -> None:
    content = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    dataset = content["config"]["data"]["dataset"]
    other = {**dataset, "init_args": {**dataset["init_args"]}}
    dataset["init_args"]["root"] = str(tmp_path / "gone")
    torch.save(content, tmp_path / "best.ckpt")
    options = ["--ckpt_path", str(tmp_path / "best.ckpt"), "--output_dir", str(tmp_path), "--name", "other"]
    main(["test", *options, "--data.test_dataset", yaml.safe_dump(other, default_flow_style=True)])
    result = json.loads((tmp_path / "other" / "result_test.json").read_text())
    assert (result["dataset"], result["num_images"]) == (f"{other['init_args']['root']}/images", 10)
