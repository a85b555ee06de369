"""Whole K-fold experiments on tiny data, in this process and in processes of their own."""

import copy
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from deeplab_lightning.cli import main
from deeplab_lightning.commands.kfold import Experiment
from deeplab_lightning.errors import DataError
from deeplab_lightning.metrics.per_image import PerImageConfusion
from tests.conftest import draw_noise_data, noise_config, write_image, write_mask
from tests.processes import Program, run_program

TRANSFORMS = "deeplab_lightning.data.transforms.TrainTransforms"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, and a configuration of two folds with dropout and two epochs."""
    root = tmp_path_factory.mktemp("kfold")
    for index in range(10):
        write_image(root / "images" / f"{index}.png", (40, 48), seed=index)
        mask = np.zeros((40, 48), dtype=np.uint8)
        mask[20:, : 10 + 3 * index] = 1 + index % 2
        write_mask(root / "masks" / f"{index}.png", mask)
    (root / "config.yaml").write_text(
        yaml.safe_dump(noise_config(root, trainer={"max_epochs": 2, "enable_model_summary": False}))
    )
    return root


@pytest.fixture(scope="module")
def reference(folder: Path) -> Path:
    """An experiment that nothing interrupted, in this process."""
    main(["kfold", "-c", str(folder / "config.yaml"), "--name", "reference", "--in_process"])
    return folder / "runs" / "reference"


@pytest.mark.long
def test_every_image_is_held_out_once(reference: Path) -> None:
    document = json.loads((reference / "cv.json").read_text())
    assert document["folds"] == [0, 1]
    assert document["num_images"] == 10
    assert np.sum(document["confusion_matrix"]) == 10 * 40 * 48
    assert PerImageConfusion.read(reference / "oof.npz").names == [f"{index}.png" for index in range(10)]
    for name in ("cv.csv", "cv.png", "folds.csv", "balance.csv", "config.yaml"):
        assert (reference / name).is_file()
    for fold in range(2):
        matrices = PerImageConfusion.read(reference / f"fold_{fold}" / "image_matrices.npz")
        result = json.loads((reference / f"fold_{fold}" / "result.json").read_text())
        assert document["per_fold"][fold]["miou"] == pytest.approx(result["last"]["miou"], abs=1e-6)
        assert matrices.total().sum() == 5 * 40 * 48
        assert result["cost"]["mega_parameters"] > 0.3


@pytest.mark.slow
def test_each_fold_trains_again_alone(reference: Path) -> None:
    main(["fit", "-c", str(reference / "fold_1" / "config.yaml"), "--name", "alone"])
    again = json.loads((reference / "alone" / "result.json").read_text())
    assert again["val"] == json.loads((reference / "fold_1" / "result.json").read_text())["val"]
    assert (reference / "alone" / "folds.csv").read_text() == (reference / "folds.csv").read_text()


@pytest.mark.slow
def test_finished_folds_are_not_trained_again(
    reference: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (reference / "fold_0" / "result.json").stat().st_mtime_ns
    cv = (reference / "cv.json").read_text()
    (reference / "cv.json").unlink()
    main(["kfold", "-c", str(folder / "config.yaml"), "--name", "reference", "--resume"])
    assert "2 of 2 folds are finished already" in capsys.readouterr().out
    assert (reference / "fold_0" / "result.json").stat().st_mtime_ns == before
    assert (reference / "cv.json").read_text() == cv
    (reference / "cv.json").unlink()
    main(["kfold", "--resume", "--name", "reference", "--output_dir", str(folder / "runs")])  # by its own settings
    assert (reference / "cv.json").read_text() == cv
    (reference / "cv.json").unlink()
    main(["kfold", "--aggregate", str(reference)])
    assert (reference / "cv.json").read_text() == cv


def mirror(mask: Path) -> None:
    """Move the labels of a mask to other places, with the same number of pixels of each class."""
    write_mask(mask, np.asarray(Image.open(mask))[:, ::-1])


@pytest.mark.long
def test_folds_of_other_labels_are_not_pooled(reference: Path, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    runs = tmp_path / "runs"
    shutil.copytree(reference, runs / "reference")
    for name in ("result.json", "image_matrices.npz"):
        (runs / "reference" / "fold_1" / name).unlink()
    words = ("kfold", "--resume", "--name", "reference", "--output_dir", str(runs), "--in_process")
    moved = [f"--data.dataset.root={tmp_path / 'copy'}"]
    done = run_program(*words, *moved, check=True, timeout=600)  # the same data elsewhere
    assert "1 of 2 folds are finished already" in done.stdout
    mirror(tmp_path / "copy" / "masks" / "3.png")
    (runs / "reference" / "fold_1" / "result.json").unlink()
    done = run_program(*words, *moved, timeout=600)
    assert done.returncode == 1
    assert "images or labels have changed since fold_0" in done.stderr
    assert not (runs / "reference" / "fold_1" / "result.json").exists()
    (runs / "reference" / "fold_0" / "result.json").unlink()  # as of a fold that was killed after its first epoch
    done = run_program(*words, *moved, timeout=600)
    assert done.returncode == 1
    assert "images or labels have changed since fold_0" in done.stderr


@pytest.mark.long
def test_a_resumed_training_says_that_labels_have_changed(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    words = ["fit", "-c", str(folder / "config.yaml"), "--data.dataset.root", str(tmp_path / "copy")]
    words += ["--output_dir", str(tmp_path / "runs")]
    main([*words, "--name", "a", "--trainer.max_epochs", "1"])
    mirror(tmp_path / "copy" / "masks" / "3.png")
    last = tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt"
    done = run_program(*words, "--ckpt_path", str(last), check=True, timeout=600)
    assert "images or labels have changed since the checkpoint was written" in done.stdout + done.stderr
    done = run_program(*words, "--ckpt_path", str(last.parents[2] / "a" / "checkpoints" / "last.ckpt"), timeout=600)
    assert "have changed" not in done.stdout + done.stderr


@pytest.mark.long
def test_a_resumed_training_says_that_the_labels_of_its_validation_part_have_changed(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "val", ignore=shutil.ignore_patterns("runs"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    val = copy.deepcopy(config["data"]["dataset"])
    val["init_args"]["root"] = str(tmp_path / "val")
    config["data"] |= {"split": "official", "val_dataset": val}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["fit", "-c", str(tmp_path / "config.yaml"), "--output_dir", str(tmp_path / "runs")]
    main([*words, "--name", "a", "--trainer.max_epochs", "1"])
    last = str(tmp_path / "runs" / "a" / "checkpoints" / "last.ckpt")
    done = run_program(*words, "--ckpt_path", last, check=True, timeout=600)
    assert "have changed" not in done.stdout + done.stderr
    mirror(tmp_path / "val" / "masks" / "3.png")
    done = run_program(*words, "--ckpt_path", last, check=True, timeout=600)
    assert "images or labels have changed since the checkpoint was written" in done.stdout + done.stderr


@pytest.mark.slow
def test_other_settings_do_not_resume(reference: Path, folder: Path) -> None:
    options = ["kfold", "-c", str(folder / "config.yaml"), "--name", "reference", "--resume"]
    with pytest.raises(DataError, match=r"data.batch_size: 2 then, 3 now"):
        main([*options, "--data.batch_size", "3"])
    with pytest.raises(DataError, match=r"model.lr_scheduler: .*PolyLR.* then, None now"):
        main([*options, "--model.lr_scheduler", "null"])
    for words in (options[:3], ["kfold"]):
        with pytest.raises(FileNotFoundError, match="no experiment to resume"):
            main([*words, "--name", "nothing", "--resume"])
    with pytest.raises(ValueError, match=r"folds must be in \[0, 2\), got \[2\]"):
        main([*options, "--folds", "2"])


@pytest.mark.slow
def test_missing_predictions_are_written_again(reference: Path) -> None:
    config = yaml.safe_load((reference / "config.yaml").read_text())
    experiment = Experiment(reference, config, [0, 1], "reference")
    fold = reference / "fold_1"
    names = [line.rpartition("\t")[2] for line in (fold / "val_images.txt").read_text().splitlines()]
    for name in names[:-1]:
        write_mask(fold / "val_predictions" / "masks" / "deep" / name, np.zeros((4, 4), dtype=np.uint8))
    assert [command[0] for command in experiment.job(1, has_predictions=True).commands] == ["predict"]
    write_mask(fold / "val_predictions" / "masks" / "deep" / names[-1], np.zeros((4, 4), dtype=np.uint8))
    assert experiment.job(1, has_predictions=True).commands == []


def test_kfold_needs_folds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main_options = ["kfold", "-c", str(folder / "config.yaml")]
    dataset = yaml.safe_load((folder / "config.yaml").read_text())["data"]["dataset"]
    with pytest.raises(DataError, match="an official split has no folds"):
        main([*main_options, "--data.split", "official", "--data.val_dataset", json.dumps(dataset)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="run it without torchrun"):
        main(main_options)


@pytest.mark.slow
def test_a_killed_experiment_resumes_to_the_same_result(reference: Path, folder: Path) -> None:
    words = ["kfold", "-c", str(folder / "config.yaml"), "--name", "killed", "--predictions"]
    own = folder / "runs" / "killed"
    process = Program(*words)
    try:
        _wait_for(own / "fold_0" / "metrics.csv")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (own / "fold_0" / "result.json").exists()
    run_program(*words, "--resume", check=True, timeout=600)
    assert json.loads((own / "cv.json").read_text()) | {"name": "reference"} == json.loads(
        (reference / "cv.json").read_text()
    )
    masks = [path.stem for fold in (0, 1) for path in (own / f"fold_{fold}").glob("val_predictions/masks/**/*.png")]
    assert sorted(masks) == [str(index) for index in range(10)]


@pytest.mark.long
def test_a_failed_fold_is_named_and_the_others_finish(folder: Path) -> None:
    words = ["kfold", "-c", str(folder / "config.yaml"), "--name", "failing", "--trainer.max_epochs", "1"]
    main([*words, "--in_process"])
    own = folder / "runs" / "failing"
    for fold in (0, 1):
        (own / f"fold_{fold}" / "result.json").unlink()
    (own / "fold_0" / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    done = run_program(*words, "--resume", "--jobs", "2", timeout=600)
    assert done.returncode == 1
    assert "failed: failing/fold_0" in done.stdout
    assert (own / "fold_1" / "result.json").is_file()
    assert json.loads((own / "cv.json").read_text())["folds"] == [1]


def _wait_for(path: Path) -> None:
    for _ in range(1200):
        if path.is_file():
            return
        time.sleep(0.1)
    raise AssertionError(f"{path} did not appear")


@pytest.mark.long
def test_seeds_repeat_all_folds_and_are_compared_as_one_recipe(tmp_path: Path) -> None:
    draw_noise_data(tmp_path)
    trainer = {"max_epochs": 1, "num_sanity_val_steps": 0}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(noise_config(tmp_path, trainer=trainer)))
    words = ("kfold", "-c", str(tmp_path / "config.yaml"))
    done = run_program(*words, "--name", "a", "--seeds", "0,7", check=True)
    assert "a: pooled mIoU of 2 seeds" in done.stdout
    more = run_program(*words, "--name", "a", "--resume", "--seeds", "0,7,9", "--folds", "0", check=True)
    assert "a: pooled mIoU of 2 seeds" in more.stdout  # the third lacks a fold
    shutil.rmtree(tmp_path / "runs" / "a" / "seed_9")
    runs = tmp_path / "runs"
    jobs = {
        path.parent.relative_to(runs / "a"): path for path in sorted((runs / "a").glob("seed_*/fold_*/config.yaml"))
    }
    found = {str(name): yaml.safe_load(path.read_text()) for name, path in jobs.items()}
    seeds = {name: (config["seed_everything"], config["data"]["seed"]) for name, config in found.items()}
    assert seeds == {"seed_0/fold_0": (0, 0), "seed_0/fold_1": (1, 0), "seed_7/fold_0": (7, 7), "seed_7/fold_1": (8, 7)}
    splits = {(runs / "a" / f"seed_{seed}" / "folds.csv").read_text() for seed in (0, 7)}
    assert len(splits) == 1
    weights = [
        torch.load(runs / "a" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("seed_0/fold_0", "seed_7/fold_0")
    ]
    assert not torch.equal(*(state["net.head.2.weight"] for state in weights))
    again = run_program("kfold", "--resume", "--name", "a", "--output_dir", str(runs), check=True)
    assert "4 of 4 folds are finished already" in again.stdout
    other = ("--seeds", "0,7", "--model.net.init_args.aspp_channels", "16", "--in_process")
    run_program(*words, "--name", "b", *other, check=True)
    table = tmp_path / "out.json"
    run_program("compare", str(runs / "a"), str(runs / "b"), "--json", str(table), check=True)
    content = json.loads(table.read_text())
    assert [row["experiment"] for row in content["experiments"]] == ["a", "b"]
    assert [row["seeds"] for row in content["experiments"]] == [2, 2]
    assert any(note.startswith("b pools 2 seeds") for note in content["notes"])


@pytest.mark.parametrize("seeds", ["a,b", "-1", ""])
def test_seeds_that_are_no_numbers_are_refused(tmp_path: Path, seeds: str) -> None:
    draw_noise_data(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(noise_config(tmp_path, trainer={"max_epochs": 1})))
    done = run_program("kfold", "-c", str(tmp_path / "config.yaml"), f"--seeds={seeds}")
    assert done.returncode == 1
    assert "--seeds must" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_seeds_do_not_hide_the_folds_of_an_experiment(reference: Path, folder: Path) -> None:
    """Comparisons look at the seeds in a folder, and would have left out the folds beside them."""
    words = ("--resume", "--name", reference.name, "--output_dir", str(reference.parent), "--seeds", "5")
    done = run_program("kfold", *words)
    assert done.returncode == 1, done.stdout
    assert "was started without --seeds" in " ".join(done.stderr.split())
    assert not (reference / "seed_5").exists()
