"""What `deeplab fit` promises of a run: its trainer, its checkpoints, its end."""

import contextlib
import json
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.plugins import TorchCheckpointIO

from deeplab_lightning.callbacks.checkpoint_io import AtomicCheckpointIO
from deeplab_lightning.cli import main
from deeplab_lightning.commands.lightning_cli import DeepLabCLI
from deeplab_lightning.errors import UserError
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import RunFolder
from tests.conftest import draw_noise_data, noise_config
from tests.processes import Program, run_program

TRANSFORMS = "deeplab_lightning.data.transforms.TrainTransforms"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images and `config.yaml` of a tiny network."""
    root = tmp_path_factory.mktemp("training")
    draw_noise_data(root)
    (root / "config.yaml").write_text(
        yaml.safe_dump(noise_config(root, trainer={"max_epochs": 3, "num_sanity_val_steps": 0}))
    )
    return root


def start(folder: Path, *words: str, **environment: str) -> Program:
    """Start `deeplab fit` in a process group of its own."""
    return Program(
        *("fit", "-c", str(folder / "config.yaml"), *words),
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
    )


def fit(folder: Path, *words: str) -> tuple[int, str]:
    """Run `deeplab fit` to its end, and return its status and all that it printed to stderr."""
    process = start(folder, *words)
    _, stderr = process.communicate(timeout=300)
    return process.wait(), stderr


class OwnCheckpointIO(TorchCheckpointIO):
    """A user's way to store checkpoints."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("plugins", "kind"),
    [
        ([], AtomicCheckpointIO),
        (["lightning.pytorch.plugins.environments.LightningEnvironment"], AtomicCheckpointIO),
        ([f"{__name__}.OwnCheckpointIO"], OwnCheckpointIO),
    ],
)
def test_the_trainer_writes_checkpoints_atomically_or_as_the_user_wants(
    folder: Path, plugins: list[str], kind: type
) -> None:
    words = [word for plugin in plugins for word in ("--trainer.plugins+", plugin)]
    trainer = DeepLabCLI("fit", ["-c", str(folder / "config.yaml"), *words]).trainer
    assert type(trainer.strategy.checkpoint_io) is kind


def wait_for_a_part(checkpoints: Path, process: Program) -> None:
    """Wait until a process has written `last.ckpt` once, and writes it again."""
    last, whole = checkpoints / "last.ckpt", 0
    while process.poll() is None:
        try:
            if not whole:
                torch.load(last, weights_only=True, mmap=True)
                whole = last.stat().st_size
            elif any(path.stat().st_size < whole for path in checkpoints.glob("*last.ckpt*")):
                return
        except (OSError, RuntimeError, EOFError):
            time.sleep(0.001)
    raise AssertionError(process.communicate()[1])


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """A temporary folder on another file system, where there is one: from there, a move copies."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else tmp_path) as folder:
        yield folder


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_a_kill_while_a_checkpoint_is_written_leaves_complete_ones(folder: Path, elsewhere: str, devices: int) -> None:
    name = f"killed-{devices}"
    strategy = ["--trainer.strategy", "ddp"] if devices > 1 else []
    words = ["--name", name, "--trainer.devices", str(devices), *strategy]
    process = start(folder, *words, "--trainer.max_epochs", "50", TMPDIR=elsewhere)
    checkpoints = folder / "runs" / name / "checkpoints"
    try:
        wait_for_a_part(checkpoints, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    for path in ("best.ckpt", "last.ckpt"):
        checkpoint: dict[str, Any] = torch.load(checkpoints / path, weights_only=True)
        assert checkpoint["state_dict"]
    epochs = torch.load(checkpoints / "last.ckpt", weights_only=True)["epoch"] + 2
    status, stderr = fit(folder, *words, "--ckpt_path", "last", "--trainer.max_epochs", str(epochs))
    assert status == 0, stderr
    assert sorted(path.name for path in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]


class Scores(L.Callback):
    """Log a score that is best in the second of four epochs."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.log("val/score", (0.3, 0.9, 0.5, 0.7)[trainer.current_epoch])


def epochs_of(checkpoints: Path) -> dict[str, int]:
    """Return the epoch of each checkpoint, from 0."""
    return {path.name: torch.load(path, weights_only=True)["epoch"] for path in checkpoints.glob("*.ckpt")}


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--checkpoint.monitor", "val/nothing"], 2),
        (["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "miou"], 2),
        (
            [
                "--model.lr_scheduler",
                "lightning.pytorch.cli.ReduceLROnPlateau",
                "--model.lr_scheduler.monitor",
                "val/nothing",
            ],
            1,
        ),
    ],
)
def test_a_figure_that_nothing_logs_is_refused_before_the_first_epoch(
    folder: Path, words: list[str], status: int
) -> None:
    """It was refused after the first epoch, or not at all in a training that is too short to validate."""
    done = run_program(
        "fit", "-c", str(folder / "config.yaml"), "--name", "unknown", *words, "--trainer.max_steps", "1"
    )
    assert done.returncode == status
    assert re.search(r"(val/nothing|miou), which nothing logs; did you mean val/\w+\?", " ".join(done.stderr.split()))
    assert "epoch 1" not in done.stdout


@pytest.mark.long
def test_a_training_ends_with_its_page_and_a_fold_with_that_of_all(folder: Path) -> None:
    words = ("-c", str(folder / "config.yaml"), "--trainer.max_epochs", "1")
    done = run_program("fit", *words, "--name", "paged", check=True)
    page = folder / "runs" / "paged" / "report.html"
    assert f"Page: {page}" in done.stdout
    assert "paged" in page.read_text()
    run_program("kfold", *words, "--name", "pages", check=True)
    assert sorted(path.parent.name for path in (folder / "runs" / "pages").rglob("report.html")) == ["pages"]
    blind = run_program("fit", *words, "--name", "blind", "--data.fold", "null", check=True)
    assert "Page:" not in blind.stdout + blind.stderr


SCORED = ("--checkpoint.monitor", "val/score", "--trainer.callbacks+", f"{__name__}.Scores")
TOP = {f"epoch=00{e}-step={2 * e + 2}-val_score={score}000.ckpt": e for e, score in enumerate((0.3, 0.9, 0.5, 0.7))}


@pytest.mark.long
@pytest.mark.parametrize(("top_k", "kept"), [(-1, {0, 1, 2, 3}), (0, set()), (1, set()), (2, {1, 3}), (3, {1, 2, 3})])
def test_best_is_the_best_epoch_whatever_else_is_kept(folder: Path, top_k: int, kept: set[int]) -> None:
    words = ["--name", f"top{top_k}", f"--checkpoint.save_top_k={top_k}", "--trainer.max_epochs", "4"]
    main(["fit", "-c", str(folder / "config.yaml"), *SCORED, *words])
    run = RunFolder(folder / "runs" / f"top{top_k}")
    best = {"best.ckpt": 1} if top_k else {}
    assert epochs_of(run.checkpoints) == {"last.ckpt": 3, **best, **{n: e for n, e in TOP.items() if e in kept}}
    result = run.read_result()
    assert result is not None
    assert result["checkpoint"] == (str(run.best) if top_k else None)  # none holds the epoch of its figures


@pytest.mark.long
def test_a_moved_run_goes_on_with_its_best_epochs(folder: Path) -> None:
    words = ["--name", "two", "--checkpoint.save_top_k", "2", "--trainer.max_epochs", "2"]
    main(["fit", "-c", str(folder / "config.yaml"), *SCORED, *words])
    old, new = RunFolder(folder / "runs" / "two"), RunFolder(folder / "runs" / "moved")
    old.path.rename(new.path)
    main(["fit", "--ckpt_path", str(new.last), "--trainer.max_epochs", "4"])
    kept = {name: epoch for name, epoch in TOP.items() if epoch in {1, 3}}
    assert epochs_of(new.checkpoints) == {"last.ckpt": 3, "best.ckpt": 1, **kept}
    assert not old.path.exists()


@pytest.mark.long
def test_an_own_file_name_does_not_rename_best(folder: Path) -> None:
    words = ["--name", "own", "--checkpoint.filename", "e{epoch}", "--trainer.max_epochs", "3"]
    main(["fit", "-c", str(folder / "config.yaml"), *SCORED, *words])
    assert epochs_of(folder / "runs" / "own" / "checkpoints") == {"last.ckpt": 2, "best.ckpt": 1, "e1.ckpt": 1}


class Poison(L.Callback):
    """Spoil a weight in the second epoch."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == 1:
            next(pl_module.parameters()).data[0] = float("nan")


def is_whole(path: Path) -> bool:
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(bool(tensor.isfinite().all()) for tensor in state.values())


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_a_training_that_diverges_ends_in_one_line_and_keeps_the_good_weights(folder: Path, devices: int) -> None:
    name = f"diverged-{devices}"
    strategy = ["--trainer.strategy", "ddp"] if devices > 1 else []
    words = ["--name", name, "--trainer.devices", str(devices), *strategy]
    status, stderr = fit(folder, *words, "--trainer.callbacks+", f"{__name__}.Poison")
    assert status == 1
    [line] = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert re.search(
        r"the loss is not finite since step \d, learning rate 0\.\d+\. Try a lower learning rate, warm", line
    )
    assert "Traceback" not in stderr
    run = RunFolder(folder / "runs" / name)
    assert not run.result.exists()
    assert epochs_of(run.checkpoints) == {"best.ckpt": 0, "last.ckpt": 0}
    assert is_whole(run.last)
    assert is_whole(run.best)


@pytest.mark.long
def test_kfold_says_that_a_diverged_fold_failed(folder: Path) -> None:
    rate = ["--model.head_lr_multiplier", "1e30"]
    words = ["kfold", "-c", str(folder / "config.yaml"), "--name", "cv", "--folds", "0", *rate]
    done = run_program(*words)
    assert done.returncode == 1
    assert re.search(r"failed: .*fold_0: error: the training diverged: the loss is not finite", done.stdout)


def stopped_by(folder: Path, number: signal.Signals, words: list[str], *, devices: int, is_group: bool) -> Path:
    """Send a signal to a training that has written `last.ckpt`, check what it says, and return the checkpoint."""
    name = f"stopped-{number.name}-{devices}-{is_group}"
    words = ["--name", name, "--trainer.devices", str(devices), "--trainer.max_epochs", "500", *words]
    process = start(folder, *words, *(["--trainer.strategy", "ddp"] if devices > 1 else []))
    last = folder / "runs" / name / "checkpoints" / "last.ckpt"
    while not last.is_file() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.3)
    (os.killpg if is_group else os.kill)(process.pid, number)
    try:
        _, stderr = process.communicate(timeout=90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == 128 + number, stderr
    assert f"stopped by {number.name}. To continue: deeplab fit --ckpt_path {last}" in stderr
    assert "Traceback" not in stderr
    assert is_whole(last)
    return last


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "is_group"), [(1, False), (1, True), (2, False), (2, True)])
def test_sigterm_ends_with_its_status_and_a_checkpoint_to_go_on_from(
    folder: Path, devices: int, is_group: bool
) -> None:
    words = ["--data.num_workers", "1" if is_group else "0"]
    last = stopped_by(folder, signal.SIGTERM, words, devices=devices, is_group=is_group)
    assert not RunFolder(last.parents[1]).result.exists()


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_ctrl_c_says_how_to_go_on(folder: Path, devices: int) -> None:
    last = stopped_by(folder, signal.SIGINT, [], devices=devices, is_group=True)  # of a terminal, to all processes
    done = run_program("fit", "--ckpt_path", str(last), "--trainer.max_epochs", str(epochs_done(last) + 1))
    assert done.returncode == 0, done.stderr[-2000:]


class InterruptedFile:
    """Send Ctrl-C to this process at the second write, in the middle of what torch writes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._writes = 0

    def write(self, content: Any) -> int:
        self._writes += 1
        if self._writes == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return self._file.write(content)

    def flush(self) -> None:
        self._file.flush()


class InterruptSecondSave(L.Callback):
    """Send Ctrl-C while the checkpoint of the second epoch is written."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        save: Any = torch.save
        if trainer.current_epoch == 1:
            torch.save = lambda content, file: save(content, InterruptedFile(file))  # type: ignore[assignment, misc]


@pytest.mark.slow
def test_ctrl_c_while_a_checkpoint_is_written_keeps_the_one_before(folder: Path) -> None:
    status, stderr = fit(folder, "--name", "torn", "--trainer.callbacks+", f"{__name__}.InterruptSecondSave")
    run = RunFolder(folder / "runs" / "torn")
    assert status == 128 + signal.SIGINT, stderr
    assert f"stopped by SIGINT. To continue: deeplab fit --ckpt_path {run.last}" in stderr
    assert "Traceback" not in stderr
    assert epochs_done(run.last) == 1
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"]


def epochs_done(checkpoint: Path) -> int:
    return int(torch.load(checkpoint, weights_only=True)["epoch"]) + 1


@pytest.fixture
def plain_torch() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)
    torch.autograd.set_detect_anomaly(False)


@pytest.mark.long
@pytest.mark.parametrize(
    "setting",
    [
        *("limit_val_batches=0", "overfit_batches=2", "precision=bf16-true", "precision=64-true", "fast_dev_run=true"),
        *("logger=true", "detect_anomaly=true", "deterministic=true", "max_time=00:00:00:02", "max_steps=3"),
        *("profiler=simple", "profiler=advanced", "max_epochs=0"),
    ],
)
@pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:Starting from v1.9.0")  # Lightning's notes
def test_settings_of_the_trainer_work(folder: Path, plain_torch: None, setting: str) -> None:
    name = setting.replace("=", "-").replace(":", "-")
    options = [f"--trainer.{setting}", "--trainer.max_epochs=2"]
    if setting.startswith("fast_dev_run"):
        options.append("--model.lr_scheduler.init_args.warmup_steps=20")  # more than it has steps
    main(["fit", "-c", str(folder / "config.yaml"), "--name", name, *options])
    run = RunFolder(folder / "runs" / name)
    assert run.result.is_file() != setting.startswith("fast_dev_run")
    assert (run.path / "lightning_logs").is_dir() == (setting == "logger=true")


@pytest.mark.long
def test_a_checkpoint_of_another_network_is_refused_with_what_to_use(folder: Path) -> None:
    config = ["-c", str(folder / "config.yaml"), "--trainer.max_epochs", "1"]
    main(["fit", *config, "--name", "three"])
    checkpoint = str(folder / "runs" / "three" / "checkpoints" / "last.ckpt")
    classes = ["--data.dataset.classes", '{"names": ["ground", "car"], "ignore_ids": [2, 11]}']
    for command in ("fit", "validate"):
        with pytest.raises(
            UserError, match=r"last.ckpt was trained on 3 classes, but the data have 2\. .*net.*weights"
        ):
            main([command, *config, *classes, "--ckpt_path", checkpoint])
    with pytest.raises(UserError, match=r"of another network: .* \.\.\. To train .*net.init_args.weights, without"):
        main(["fit", *config, "--model.net.backbone", "resnet34", "--ckpt_path", checkpoint])
    main(["fit", *config, *classes, "--name", "from", "--model.net.init_args.weights", checkpoint])
    assert RunFolder(folder / "runs" / "from").result.is_file()


@pytest.mark.long
def test_classes_in_another_order_are_refused_and_other_names_are_said(folder: Path, tmp_path: Path) -> None:
    """The figures of sky were printed as those of road, and a resumed training spoilt the record of its experiment."""
    config = ["-c", str(folder / "config.yaml"), "--trainer.max_epochs", "2"]
    main(["fit", *config, "--name", "ordered"])
    checkpoint = str(folder / "runs" / "ordered" / "checkpoints" / "last.ckpt")
    exported = str(tmp_path / "net.onnx")
    main(["export", "--ckpt_path", checkpoint, "--output", exported])
    other, same = "--data.dataset.classes.names=[road,sky,car]", "--data.dataset.classes.names=[sky,lane,car]"
    for words in (
        ["validate", "--ckpt_path", checkpoint],
        ["validate", *config, "--ckpt_path", exported],
        ["fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "3"],
    ):
        refused = run_program(*words, other)
        assert refused.returncode == 1
        [line] = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
        assert "trained on other indices: road is class 1 there and class 0 here" in line
        assert "in the order of the training, [sky, road, car]" in line
    said = run_program("validate", "--ckpt_path", checkpoint, same, check=True)
    assert "classes of other names: road is called lane in the data" in said.stderr
    goes_on = run_program("fit", "--ckpt_path", checkpoint, "--trainer.max_epochs", "3", same)
    assert goes_on.returncode == 1
    assert "classes of other names: road is called lane" in goes_on.stderr


@pytest.mark.long
def test_more_processes_than_images_evaluate_each_image_once(folder: Path, tmp_path: Path) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    status, stderr = fit(folder, "--name", "few", *two, "--data.n_folds", "10", "--trainer.max_epochs", "1")
    assert status == 0, stderr
    run = RunFolder(folder / "runs" / "few")
    assert len(PerImageConfusion.read(run.images).names) == 1
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(folder / "images" / "00.png", images)
    for devices in (two, ["--trainer.devices", "1", "--trainer.strategy", "auto"]):
        run_program("validate", "--ckpt_path", str(run.last), *devices, check=True)
    figures = [json.loads((run.path / f"result_validate{number}.json").read_text())["val"] for number in ("", "-2")]
    assert figures[0] == figures[1]
    words = ["--ckpt_path", str(run.last), "--images", str(images), "--csv", "a.csv"]
    predicted = run_program("predict", *words, "--output", str(tmp_path / "masks"), *two, check=True)
    assert "1 images predicted." in predicted.stdout
    assert len((tmp_path / "masks" / "a.csv").read_text().splitlines()) == 2


class Refuse(L.Callback):
    """A mistake that every process of a training finds."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise UserError("no training today")


@pytest.mark.long
def test_a_mistake_that_all_processes_find_is_said_once(folder: Path) -> None:
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    status, stderr = fit(folder, "--name", "twice", *two, "--trainer.callbacks", f"[{{class_path: {__name__}.Refuse}}]")
    assert status == 1
    assert stderr.count("error: no training today") == 1
    assert "Traceback" not in stderr
