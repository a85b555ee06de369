"""What `deeplab kfold` does about mistakes, names that are taken, and folds that are trained further."""

import csv
import fcntl
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from deeplab_lightning.cli import main
from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.folder_choice import take_folder
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program

TRAINER = {"max_epochs": 1, "limit_train_batches": 1, "num_sanity_val_steps": 0}
WRONG_LOSS = [
    "--model.loss.class_path=deeplab_lightning.losses.CrossEntropyLoss",
    "--model.loss.init_args.class_weights=[1, 2]",
]
WRONG = {
    "weights": (["--model.net.backbone=resnet18", "--model.net.pretrained=true"], "ImageNet weights"),
    "loss": (WRONG_LOSS, "class_weights must hold 3 values"),
    "optimiser": (["--model.optimizer.class_path=torch.optim.SGD", "--model.optimizer.init_args.lr=0.1",
                   "--model.optimizer.init_args.nesterov=true"], "Nesterov"),
    "schedule": (["--model.lr_scheduler.class_path=torch.optim.lr_scheduler.OneCycleLR",
                  "--model.lr_scheduler.init_args.max_lr=0.1",
                  "--model.lr_scheduler.init_args.pct_start=2"], "OneCycleLR: Expected float between 0 and 1"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images, and a configuration of two folds."""
    draw_noise_data(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(noise_config(tmp_path, trainer=TRAINER)))
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("kind", WRONG)
def test_a_mistake_that_all_folds_share_is_said_once_before_any_training(folder: Path, kind: str) -> None:
    """Each fold started, failed and was named with its log."""
    options, message = WRONG[kind]
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(folder), "TORCH_HOME": str(folder)}
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "a")
    done = run_program(*words, *options, env=env)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "fold_1" not in done.stdout
    assert not list((folder / "runs").glob("a/fold_*/log.txt"))


@pytest.mark.long
def test_the_name_of_an_attempt_without_an_epoch_is_used_again(folder: Path) -> None:
    """A typo in an option took the name: the corrected command made `a-2`."""
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "a")
    assert run_program(*words, *WRONG_LOSS).returncode == 1
    run_program(*words, "--folds", "0", check=True)
    assert [path.name for path in (folder / "runs").iterdir()] == ["a"]
    assert (folder / "runs" / "a" / "cv.json").is_file()
    again = run_program(*words, *WRONG_LOSS)
    assert "a exists, so this experiment is called a-2. To continue the other: deeplab kfold --resume" in again.stdout
    assert (folder / "runs" / "a" / "cv.json").is_file()


def attempt(folder: Path) -> ExperimentFolder:
    """Write what an experiment holds before its first epoch."""
    files = ExperimentFolder(folder)
    files.write_config({})
    files.fold(0).write_job({})
    return files


def taken(wanted: Path) -> str:
    """Return the name of the folder that an experiment would get."""
    folder, lock = take_folder(wanted)
    assert lock is not None
    lock.close()
    return folder.name


def test_only_an_attempt_is_emptied(tmp_path: Path) -> None:
    files = attempt(tmp_path / "plain")
    folder, lock = take_folder(files.path)
    assert (folder, lock is None) == (files.path, False)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert taken(files.path) == "plain-2"  # this process holds the lock
    assert lock is not None
    lock.close()
    of_user = attempt(tmp_path / "user")
    (of_user.path / "notes.txt").write_text("mine")
    trained = attempt(tmp_path / "trained")
    trained.fold(0).write_metrics([{"epoch": 0}])
    interrupted = attempt(tmp_path / "interrupted")
    interrupted.fold(0).checkpoints.mkdir()
    interrupted.fold(0).last.touch()
    (tmp_path / "empty").mkdir()
    running = attempt(tmp_path / "running")
    with running.fold(0).lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for path in (of_user.path, trained.path, interrupted.path, tmp_path / "empty", running.path):
            assert taken(path) == f"{path.name}-2"
    assert taken(running.path) == "running"


def compared_miou(folder: Path, *experiments: Path) -> list[float]:
    main(["compare", *map(str, experiments), "--json", str(folder / "compared.json")])
    rows = json.loads((folder / "compared.json").read_text())["experiments"]
    return [row["miou"] for row in rows]


@pytest.mark.long
def test_an_experiment_is_trained_further_and_all_figures_agree(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["kfold", "--resume", "--name", "a", "--output_dir", str(folder / "runs"), "--in_process"]
    main(["kfold", "-c", str(folder / "config.yaml"), "--name", "a", "--in_process", "--predictions"])
    own = folder / "runs" / "a"
    assert held_out(own) == set(PerImageConfusion.read(own / "oof.npz").names)
    with (own / "folds.csv").open() as file:
        assert held_out(own) == {row["image"] for row in csv.DictReader(file)}
    first = [path.stat().st_mtime_ns for path in sorted(own.glob("fold_*/val_predictions/predictions.csv"))]
    main([*words, "--trainer.max_epochs", "2", "--predictions"])
    for fold in (0, 1):
        run = ExperimentFolder(own).fold(fold)
        assert [row["epoch"] for row in run.read_metrics()] == [0, 1]
        assert (run.read_result() or {})["max_epochs"] == 2
    again = [path.stat().st_mtime_ns for path in sorted(own.glob("fold_*/val_predictions/predictions.csv"))]
    for fold, (before, after) in enumerate(zip(first, again, strict=True)):  # of the best checkpoint, if it changed
        assert (after > before) == ((ExperimentFolder(own).fold(fold).read_result() or {})["best_epoch"] == 1)
    with pytest.raises(DataError, match="trainer.max_epochs: 2 then, 1 now"):
        main([*words, "--trainer.max_epochs", "1"])
    capsys.readouterr()

    last = own / "fold_0" / "checkpoints" / "last.ckpt"
    main(["fit", "--ckpt_path", str(last), "--trainer.max_epochs", "3"])
    document = json.loads((own / "cv.json").read_text())
    [shown] = re.findall(r'<td data-value="([\d.]+)">[\d.]+ \(', (own / "report.html").read_text())
    assert document["out_of_fold"]["miou"] == pytest.approx(float(shown), abs=1e-6)
    assert document["out_of_fold"]["miou"] == pytest.approx(compared_miou(folder, own)[0], abs=1e-6)
    printed = capsys.readouterr().out
    assert "a were trained for different numbers of epochs (fold 0: 3, fold 1: 2)" in printed
    assert "was written before its folds changed" not in printed
    (own / "fold_1" / "result.json").unlink()  # as while it is trained further
    compared_miou(folder, own)
    assert "note: cv.json of a was written before its folds changed" in capsys.readouterr().out


def held_out(experiment: Path) -> set[str]:
    """Return the keys of the out-of-fold predictions."""
    runs = ExperimentFolder(experiment).runs()
    return {name for run in runs for name, path in (run.val_predictions.read_masks() or {}).items() if path.is_file()}


@pytest.mark.long
def test_folds_in_an_allocation_of_slurm_use_all_their_devices(folder: Path) -> None:
    """After `sbatch -n1`, each fold trained with one of its two processes, and ended with status 0."""
    of_slurm = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "wrap", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n1", "PMIX_RANK": "0",
    }  # fmt: skip
    words = ("kfold", "-c", str(folder / "config.yaml"), "--name", "a", "--folds", "0", "--data.batch_size", "1")
    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.limit_train_batches", "1.0")
    run_program(*words, *two, env={**os.environ, **of_slurm}, check=True)
    log = (folder / "runs" / "a" / "fold_0" / "log.txt").read_text()
    assert "MEMBER: 2/2" in log
