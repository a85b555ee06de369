"""What a user sees of an error: one line for a mistake of theirs, a traceback for a fault of the program."""

import errno
import json
import logging
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deeplab_lightning import __main__ as program
from deeplab_lightning.cli import main
from deeplab_lightning.errors import DataError, UnavailableError, UserError
from deeplab_lightning.tables import read_csv
from tests.conftest import draw_noise_data, noise_config, write_image
from tests.processes import Program, run_program

TRANSFORMS = "deeplab_lightning.data.transforms.TrainTransforms"
Show = Callable[..., tuple[Any, str]]
NOT_ERRORS = (
    "INFO: ",
    "Seed set",
    "GPU available",
    "TPU available",
    "Restoring states",
    "Loaded model",
)  # lines of Lightning


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, `config.yaml` of a tiny network, and configurations and checkpoints that cannot be used."""
    root = tmp_path_factory.mktemp("main")
    draw_noise_data(root)
    (root / "config.yaml").write_text(yaml.safe_dump(noise_config(root, trainer={"max_epochs": 1})))
    (root / "no_yaml.yaml").write_text("data: {dataset: [1, 2\nmodel: x: y\n")
    (root / "list.yaml").write_text("- a\n- b\n")
    (root / "binary.yaml").write_bytes(bytes(range(256)) * 20)
    (root / "coco.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    (root / "empty.json").write_text("")
    torch.save({"state_dict": {"weight": torch.zeros(1000)}}, root / "whole.ckpt")
    (root / "cut.ckpt").write_bytes((root / "whole.ckpt").read_bytes()[:2000])
    (root / "text.ckpt").write_text("no checkpoint")
    torch.save([1, 2], root / "list.ckpt")
    return root


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> str:
    main(["fit", "-c", str(folder / "config.yaml"), "--name", "first"])
    return str(folder / "runs" / "first" / "checkpoints" / "best.ckpt")


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Show:
    """Runs the program in this process: show(*words) -> its exit status and the one line that it printed."""

    # Lightning's log keeps the stream of the test that imported it, which is closed by now.
    monkeypatch.setattr(logging, "raiseExceptions", False)

    def run(*words: str) -> tuple[Any, str]:
        monkeypatch.setattr(sys, "argv", ["deeplab", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            program.run()
        return stop.value.code, _only_line(capsys.readouterr().err)

    return run


def _only_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip() and not line.startswith(NOT_ERRORS)]
    assert len(lines) == 1, stderr
    [line] = lines
    assert line.startswith("error: ")
    return line


CONFIG_COMMANDS: dict[str, list[str]] = {
    "data check": [],
    "split": ["--output", "{folder}/split"],
    "fit": ["--name", "never"],
    "kfold": ["--name", "never"],
    "grid": [],
    "benchmark": ["--output", "{folder}/bench"],
    "tune-batch": ["--output", "{folder}/batch"],
    "tune-lr": ["--output", "{folder}/lr"],
    "validate": ["--ckpt_path", "{folder}/whole.ckpt"],
    "test": ["--ckpt_path", "{folder}/whole.ckpt"],
    "predict": ["--ckpt_path", "{folder}/whole.ckpt", "--images", "{folder}/images"],
    "tune-crf": ["--ckpt_path", "{folder}/whole.ckpt"],
}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_yaml", r"no_yaml.yaml is not YAML: .*line 1, column 17"),
        ("list", r"list.yaml must map keys to values, .*got a list"),
        ("binary", r"binary.yaml is not YAML: .*can't decode byte 0x80"),
        ("absent", r"no such (config|grid): /.*absent.yaml"),
    ],
)
@pytest.mark.parametrize("command", CONFIG_COMMANDS)
def test_an_unusable_config_is_named_by_every_command(
    folder: Path, show: Show, command: str, name: str, message: str
) -> None:
    words = [word.format(folder=folder) for word in CONFIG_COMMANDS[command]]
    status, line = show(*command.split(), "-c", str(folder / f"{name}.yaml"), *words)
    assert status == 1
    assert re.search(message, line)


@pytest.mark.long
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("[1, .nan, 1]", r"finite and not negative, got nan for class 1 \(the first class is 0\)"),
        ("[.inf, 1, -.inf]", r"got inf for class 0, -inf for class 2"),
        ("[1, 1, -2]", r"got -2.0 for class 2"),
        ("[0, 0, 0]", r"must not all be 0: no pixel would count"),
        ("[]", r"one value per class, got none; set it to null"),
        ("[1, 2]", r"must hold 3 values, one per class \(sky, road, car\), got 2"),
    ],
)
def test_unusable_class_weights_are_refused_before_training(
    folder: Path, show: Show, weights: str, message: str
) -> None:
    words = ["--model.loss", "deeplab_lightning.losses.CrossEntropyLoss", "--model.loss.class_weights", weights]
    status, line = show("fit", "-c", str(folder / "config.yaml"), "--name", "weights", *words)
    assert status == 1
    assert re.search(message, line)
    assert not (folder / "runs" / "weights" / "metrics.csv").exists()


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "tune-crf", "export"])
def test_an_unusable_checkpoint_is_named_by_every_command(folder: Path, show: Show, command: str) -> None:
    for name, message in (
        ("cut.ckpt", r"cut.ckpt is no checkpoint of `deeplab fit`, or it was damaged"),
        ("text.ckpt", r"text.ckpt is no checkpoint of `deeplab fit`, or it was damaged"),
        ("list.ckpt", r"list.ckpt is no checkpoint of `deeplab fit`: it has no state_dict"),
        ("images", r"no such checkpoint: /.*images"),  # a folder
        ("absent.ckpt", r"no such checkpoint: /.*absent.ckpt"),
    ):
        output = ["--output", str(folder / "model.pt2"), "--format", "torch_export"] if command == "export" else []
        status, line = show(command, "--ckpt_path", str(folder / name), *output)
        assert status == 1
        assert re.search(message, line)


def test_a_damaged_last_checkpoint_is_named(folder: Path, show: Show) -> None:
    last = folder / "runs" / "cut" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes((folder / "cut.ckpt").read_bytes())
    words = ["-c", str(folder / "config.yaml"), "--name", "cut", "--ckpt_path", "last"]
    assert show("fit", *words) == (1, f"error: {last} is no checkpoint of `deeplab fit`, or it was damaged or cut off.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "no command is called 'trian'"),
        (["compare"], "the following arguments are required: sources"),
        (["export", "--format", "jpeg"], "argument --format: invalid choice: 'jpeg'"),
        (["split"], "the following arguments are required: --output"),
        (["grid"], "the following arguments are required: -c/--config"),
        (["tune-crf"], "the following arguments are required: --ckpt_path"),
        (["data", "synthetic", "--output", "x", "--size", "big"], "argument --size: invalid int value: 'big'"),
        (["data", "check", "--data.colour", "x"], "--data.colour"),
        (["split", "--output", "x", "--data.n_folds", "many"], "data.n_folds: expected int, got many"),
        (["validate"], "validate needs a checkpoint: --ckpt_path"),
        (["wandb-report"], "the following arguments are required: --groups"),
        (["fit", "--ckpt_path"], "argument --ckpt_path: expected one argument"),
        (["kfold", "--jobs", "x"], "argument --jobs: invalid int value: 'x'"),
        (["benchmark", "--data.fold_method", "best"], "data.fold_method: expected one of 'balanced'"),
    ],
)
def test_a_wrong_command_line_is_one_line(show: Show, words: list[str], message: str) -> None:
    status, line = show(*words)
    assert status == 2
    assert message in line


DATA_COMMANDS = {
    "data check": [],
    "split": ["--output", "{folder}/split"],
    "fit": ["-c", "{folder}/config.yaml", "--name", "never"],
    "kfold": ["-c", "{folder}/config.yaml", "--name", "never"],
    "benchmark": ["-c", "{folder}/config.yaml", "--output", "{folder}/bench"],
    "validate": ["--ckpt_path", "{checkpoint}"],
    "test": ["--ckpt_path", "{checkpoint}"],
    "tune-crf": ["--ckpt_path", "{checkpoint}"],
}


@pytest.mark.long
@pytest.mark.parametrize("command", DATA_COMMANDS)
def test_what_a_data_set_raises_is_one_line_in_every_command(
    folder: Path, checkpoint: str, show: Show, command: str
) -> None:
    words = [word.format(folder=folder, checkpoint=checkpoint) for word in DATA_COMMANDS[command]]
    for arguments, message in (
        (
            {"images": str(folder), "annotations": str(folder / "absent.json")},
            "no such annotation file: /.*absent.json",
        ),
        ({"images": str(folder), "annotations": str(folder / "empty.json")}, "empty.json: .*JSON"),
        (
            {"images": str(folder), "annotations": str(folder / "coco.json"), "class_map": {"cup": "x"}},
            "class_map names categories .*cup",
        ),
    ):
        dataset = json.dumps({"class_path": "CocoDataset", "init_args": arguments})
        status, line = show(*command.split(), *words, "--data.dataset", dataset)
        assert status == 1
        assert re.search(message, line)


@pytest.mark.long
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("trainer.max_epoch", "3", "unrecognized arguments: .*Did you mean --trainer.max_epochs?"),
        ("trainer.max_epochs", "-7", "must be at least -1 and at most 1,000,000, got -7."),
        ("trainer.accelerator", "abacus", "must be one of auto, cpu, gpu, .*, got abacus"),
        ("trainer.accumulate_grad_batches", "0", "must be at least 1 and at most 1,000,000, got 0"),
        ("trainer.check_val_every_n_epoch", "0", "must be at least 1"),
        ("trainer.limit_train_batches", "0", "must be above 0, got 0"),
        ("trainer.gradient_clip_val", "-1", "must be at least 0, got -1"),
        ("checkpoint.mode", "upwards", "must be one of min, max, got upwards"),
        ("seed_everything", "-1", "must be at least 0 and at most 4,294,967,295, got -1"),
        ("data.batch_size", "0", "must be at least 1 and at most 1,000,000, got 0"),
        ("data.batch_size", "100000000000000000000", "must be at least 1 and at most 1,000,000"),
        ("data.eval_batch_size", "-1", "must be at least 1"),
        ("data.num_workers", "-1", "must be at least 0 and at most 1,000, got -1"),
        ("data.split_seed", "-1", "must be at least 0"),
        ("data.train_transforms.init_args.flip_probability", "7", "must be at least 0 and at most 1, got 7.0"),
        ("model.net.init_args.aspp_channels", "0", "must be at least 1"),
        ("model.net.init_args.dropout", "3", "must be at least 0 and below 1, got 3.0"),
        ("model.head_lr_multiplier", "-1", "must be at least 0, got -1.0"),
        ("model.optimizer.init_args.lr", "-1", "must be at least 0 and at most 100, got -1.0"),
        ("model.optimizer.init_args.lr", "1e30", "must be at least 0 and at most 100, got 1e\\+30"),
        ("model.optimizer.init_args.momentum", "-3", "must be at least 0 and below 1, got -3.0"),
        ("model.lr_scheduler.init_args.power", "-2", "must be above 0 and at most 100, got -2.0"),
        ("model.loss.init_args.label_smoothing", "4", "must be at least 0 and at most 1, got 4.0"),
        ("name", "../../x", "must be the name of a folder in output_dir, got '../../x'"),
        ("name", ".", "must be the name of a folder in output_dir, got '.'"),
    ],
)
def test_a_value_that_no_run_can_use_is_refused_before_anything_is_built(
    folder: Path, show: Show, option: str, value: str, message: str
) -> None:
    base = Path(__file__).parents[1] / "configs" / "base.yaml"
    configs = ["-c", str(base), "-c", str(folder / "config.yaml"), "--name", "refused"]
    status, line = show("fit", *configs, f"--{option}", value)
    assert status == 2
    assert option in line
    assert re.search(message, line)
    assert not (folder / "runs" / "refused").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.net.init_args.output_stride", "12"], "output_stride must be 8, 16 or 32, got 12"),
        (["--data.train_transforms.init_args.saturation", "null"], "saturation must be a number or .*, got null"),
        (["--data.fold", "9"], "fold must be null or in .*got 9 of 2"),
        (["--trainer.strategy", "luck"], "invalid strategy name: `strategy='luck'`"),
        (["--trainer.devices", "all"], "`devices` selected with `CPUAccelerator` should be an int > 0"),
        (["--trainer.val_check_interval", "700"], r"`val_check_interval` \(700\) must be less"),
        pytest.param(
            ["--trainer.accelerator", "gpu"],
            "No supported gpu backend found",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU"),
        ),
    ],
)
def test_a_setting_that_cannot_be_used_is_one_line(folder: Path, show: Show, words: list[str], message: str) -> None:
    status, line = show("fit", "-c", str(folder / "config.yaml"), "--name", "never", *words)
    assert status == (2 if "null" in words else 1)
    assert re.search(message, line)


@pytest.mark.parametrize("key", ["checkpoint", "trainer"])
def test_a_part_without_content_is_named(folder: Path, show: Show, tmp_path: Path, key: str) -> None:
    (tmp_path / "null.yaml").write_text(f"{key}: null\n")
    configs = ["-c", str(folder / "config.yaml"), "-c", str(tmp_path / "null.yaml")]
    status, line = show("fit", *configs, "--name", "never")
    assert status == 2
    assert key in line


@pytest.mark.parametrize("command", ["fit", "kfold"])
@pytest.mark.parametrize("name", ["../x", "..", "/x"])
def test_a_name_that_leaves_the_folder_of_all_runs_is_refused(
    folder: Path, show: Show, command: str, name: str
) -> None:
    status, line = show(command, "-c", str(folder / "config.yaml"), "--name", name)
    assert (status, line) == (2, f"error: name must be the name of a folder in output_dir, got {name!r}.")


def test_a_command_that_is_interrupted_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "main", interrupt)
    with pytest.raises(SystemExit) as stop:
        program.run()
    assert (stop.value.code, capsys.readouterr().err) == (130, "stopped by SIGINT\n")


def test_an_error_that_hides_an_interrupt_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos")  # as torch.save does

    monkeypatch.setattr(program, "main", interrupt)
    with pytest.raises(SystemExit) as stop:
        program.run()
    assert (stop.value.code, capsys.readouterr().err) == (130, "stopped by SIGINT\n")


def test_a_folder_without_runs_is_named(show: Show, tmp_path: Path) -> None:
    status, line = show("compare", str(tmp_path))
    assert status == 1
    assert f"no finished run or fold in {tmp_path}" in line


def test_a_path_below_a_file_is_named(show: Show, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, line = show("data", "synthetic", "--output", str(tmp_path / "file" / "data"), "--num_images", "1")
    assert status == 1
    assert str(tmp_path / "file") in line


def test_a_full_disk_is_one_line_with_the_file() -> None:
    for number in (errno.ENOSPC, errno.EROFS, errno.EDQUOT):
        mistake = program.user_error(OSError(number, os.strerror(number), "/data/best.ckpt"))
        assert isinstance(mistake, UnavailableError)
        assert str(mistake) == f"/data/best.ckpt: {os.strerror(number)}"
    moved = OSError(errno.ENOSPC, "No space left on device", "/tmp/x", None, "/data/best.ckpt")
    assert str(program.user_error(moved)) == "/data/best.ckpt: No space left on device"
    assert "Permission denied" in str(program.user_error(PermissionError(errno.EACCES, "Permission denied", "/x")))


def test_a_full_disk_is_found_below_an_error_of_a_library() -> None:
    def save() -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/data/last.ckpt")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(RuntimeError) as found:
        save()
    assert str(program.user_error(found.value)) == "/data/last.ckpt: No space left on device"


def test_faults_are_no_mistakes_of_the_user() -> None:
    for fault in (ValueError("zip() argument 2 is shorter"), KeyError("x"), FileNotFoundError(2, "gone", "/x")):
        assert program.user_error(fault) is None
    later = TypeError("while the mistake was handled")
    later.__context__ = DataError("bad data")
    assert program.user_error(later) is None


def test_an_error_of_a_loader_process_is_shown_without_its_traceback(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        try:
            raise DataError("a.png: cannot be decoded")
        except DataError:
            wrapper = torch._utils.ExceptionWrapper(where="in DataLoader worker process 0")
        wrapper.reraise()

    monkeypatch.setattr(program, "main", fail)
    assert show() == (1, "error: a.png: cannot be decoded")


@pytest.mark.long
def test_an_unreadable_image_does_not_stop_the_others(checkpoint: str, tmp_path: Path) -> None:
    """Files without a header, files that are cut off, and files of a list that do not exist are listed at the end."""
    for index, name in enumerate(("a.jpg", "b.jpg", "d.png")):
        write_image(tmp_path / name, seed=index)
    (tmp_path / "b.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:900])
    (tmp_path / "c.jpg").write_text("no image")
    (tmp_path / "._d.png").write_text("the notes of a system")
    (tmp_path / "list.txt").write_text("e.jpg\n")
    images = f"[{tmp_path}, {tmp_path / 'list.txt'}]"
    words = ["--ckpt_path", checkpoint, "--images", images, "--output", str(tmp_path.with_name(f"{tmp_path.name}-out"))]
    result = run_program("predict", *words, "--data.num_workers", "1", "--data.eval_batch_size", "2")
    assert result.returncode == 1
    _, _, error = result.stderr.partition("error: ")
    first, *reasons = error.splitlines()
    assert first == "3 of 5 images could not be read:"
    assert [reason.split(": ")[0] for reason in reasons] == [str(tmp_path / f"{name}.jpg") for name in "bce"]
    assert "Traceback" not in result.stderr
    assert "2 images predicted." in result.stdout
    assert sorted(path.name for path in (tmp_path.with_name(f"{tmp_path.name}-out")).rglob("*.*")) == [
        *("a.jpg", "a.png", "d.jpg", "d.png", "predictions.csv")
    ]
    table = tmp_path.with_name(f"{tmp_path.name}-out") / "predictions.csv"
    assert [Path(row["image"]).name for row in read_csv(table)] == ["a.jpg", "d.png"]  # no file that does not exist


@pytest.mark.slow
def test_predictions_stay_inside_their_folder(checkpoint: str, show: Show, tmp_path: Path) -> None:
    """A list with `..` overwrote the images that it named, and `--output data` the masks in `data/masks`."""
    for index, name in enumerate(("images/a.jpg", "images/a.png", "x/a.png", "../outside.png")):
        write_image(tmp_path / "data" / name, seed=index)
    (tmp_path / "data" / "lists").mkdir()
    names = ["../images/a.jpg", "../images/a.png", "../x/a.png", "../../outside.png", f"{tmp_path}/data/x/a.png\tkey"]
    (tmp_path / "data" / "lists" / "val.txt").write_text("\n".join(names))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    words = ["predict", "--ckpt_path", checkpoint, "--images", str(tmp_path / "data" / "lists" / "val.txt")]
    main([*words, "--output", str(tmp_path / "out[red]")])
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after.items() >= before.items()
    written = sorted(after.keys() - before.keys())
    assert all(path.is_relative_to(tmp_path / "out[red]") for path in written)
    table = read_csv(tmp_path / "out[red]" / "predictions.csv")
    assert [row["image"] for row in table] == sorted(["key", *names[:4]])
    listed = {tmp_path / "out[red]" / row[column] for row in table for column in ("mask", "overlay")}
    assert listed == set(written) - {tmp_path / "out[red]" / "predictions.csv"}
    (tmp_path / "data" / "masks").mkdir()
    write_image(tmp_path / "data" / "masks" / "a.png")
    status, line = show(*words, "--output", str(tmp_path / "data"))
    assert status == 1
    assert "data/masks holds files that no prediction wrote" in line


@pytest.mark.long
def test_two_trainings_of_one_name_get_two_folders(folder: Path) -> None:
    """Both start before either has read its data; both wrote to one folder."""
    running = [Program("fit", "-c", str(folder / "config.yaml"), "--name", "both") for _ in range(2)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    for name in ("both", "both-2"):
        assert sorted(path.name for path in (folder / "runs" / name).glob("config*")) == ["config.yaml"]
        assert (folder / "runs" / name / "result.json").is_file()


@pytest.mark.long
def test_a_fault_of_the_program_keeps_its_traceback(folder: Path, tmp_path: Path) -> None:
    code = (
        "from deeplab_lightning.data import scan\n"
        "from deeplab_lightning.__main__ import run\n"
        "scan._inspect_all = lambda *args: iter(())  # fewer findings than images\n"
        "run()\n"
    )
    command = [sys.executable, "-c", code, "data", "check", "-c", str(folder / "config.yaml")]
    environment = {**os.environ, "DEEPLAB_CACHE": str(tmp_path)}  # nothing is known yet
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "ValueError: zip() argument 2 is shorter than argument 1" in done.stderr
    assert not any(line.startswith("error: ") for line in done.stderr.splitlines())


@pytest.mark.slow
def test_a_training_says_first_which_data_it_uses(folder: Path) -> None:
    done = run_program("fit", "-c", str(folder / "config.yaml"), "--name", "told")
    assert done.returncode == 0
    first, second = done.stdout.splitlines()[:2]
    assert first == f"Run folder: {folder / 'runs' / 'told'}"
    counts = r"5 images train, 5 validate \(fold 0 of 2\), 3 classes"
    assert re.fullmatch(f"Data: MaskFolderDataset {folder / 'images'}: {counts}", second)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "# model:\n#   head_lr_multiplier: 2.0\n"])
def test_a_config_that_sets_nothing_changes_nothing(folder: Path, tmp_path: Path, text: str) -> None:
    """The parser refused it as "Unexpected config:", without the name of the file."""
    (tmp_path / "nothing.yaml").write_text(text)
    for given in (["-c", str(tmp_path / "nothing.yaml")], [f"--config={tmp_path / 'nothing.yaml'}"]):
        words = ["-c", str(folder / "config.yaml"), *given, "--trainer.max_epochs", "2", "--print_config"]
        done = run_program("fit", *words)
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["trainer"]["max_epochs"] == 2


@pytest.mark.slow
def test_a_process_shows_one_line_and_nothing_else(folder: Path) -> None:
    arguments = {"images": str(folder), "annotations": str(folder / "coco.json"), "class_map": {"cup": "x"}}
    dataset = json.dumps({"class_path": "CocoDataset", "init_args": arguments})
    done = run_program("fit", "-c", str(folder / "config.yaml"), "--name", "never", "--data.dataset", dataset)
    assert done.returncode == 1
    assert "class_map names categories" in _only_line(done.stderr)
    assert done.stdout == ""


@pytest.mark.long
def test_a_disk_without_space_names_the_file_of_a_process(folder: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))  # bytes of the largest file

    words = ["split", "-c", str(folder / "config.yaml"), "--output", str(tmp_path)]
    command = [sys.executable, "-m", "deeplab_lightning", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, preexec_fn=limit)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == f"error: {tmp_path / 'balance.json'}: File too large"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "folds.csv").exists()


def test_the_message_of_a_mistake_is_all_that_is_printed(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise UserError("--jobs must be at least 1, got 0.")

    monkeypatch.setattr(program, "main", fail)
    assert show() == (1, "error: --jobs must be at least 1, got 0.")
