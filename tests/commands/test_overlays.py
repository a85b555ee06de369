"""Combine overlays as people do, and say what they cannot do before or where it happens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from segmentation_models_pytorch.losses import LovaszLoss

from deeplab_lightning import CrossEntropyLoss, SumLoss
from tests.conftest import draw_noise_data, noise_config, write_image
from tests.processes import run_program

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write data, and `c.yaml` of a training of two epochs on them."""
    draw_noise_data(tmp_path)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(noise_config(tmp_path, trainer={"max_epochs": 2})))
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("recipe", sorted(path.stem for path in (CONFIGS / "recipes").glob("*.yaml")))
def test_a_recipe_keeps_the_callbacks_of_earlier_overlays(folder: Path, recipe: str) -> None:
    """Early stopping and freezing were dropped in silence."""
    overlays = ["base.yaml", "trainer/early_stopping.yaml", "trainer/freeze.yaml", f"recipes/{recipe}.yaml"]
    words = [word for name in overlays for word in ("-c", str(CONFIGS / name))]
    printed = run_program("fit", *words, "-c", "c.yaml", "--print_config", cwd=folder, check=True).stdout
    names = [entry["class_path"].rpartition(".")[2] for entry in yaml.safe_load(printed)["trainer"]["callbacks"]]
    average = "EMAWeightAveraging" if recipe == "camvid_cpu" else "EMAWithWarmup"
    assert names == ["PredictionPanels", "EarlyStopping", "FreezeBackbone", average]


@pytest.mark.slow
def test_a_later_list_replaces_the_earlier_one_as_a_whole(folder: Path) -> None:
    """Its entries kept arguments of those at their places: val/loss was monitored for its highest value."""
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/miou", "mode": "max", "patience": 7}}
    (folder / "a.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [stop]}}))
    later = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}
    (folder / "b.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [later]}}))
    words = ["-c", str(CONFIGS / "recipes/camvid_cpu.yaml"), "-c", str(CONFIGS / "loss/ce_dice.yaml")]
    words += ["-c", "c.yaml", "-c", "a.yaml", "-c", "b.yaml", "--trainer.callbacks.init_args.patience", "5"]
    words += ["--print_config"]
    config = yaml.safe_load(run_program("fit", *words, cwd=folder, check=True).stdout)
    [found] = config["trainer"]["callbacks"]
    assert {key: found["init_args"][key] for key in ("monitor", "mode", "patience")} == {
        "monitor": "val/loss",
        "mode": "min",
        "patience": 5,
    }
    losses = config["model"]["loss"]["init_args"]["losses"]
    assert losses[0]["init_args"]["class_weights"] is None
    words[-3:] = ["--trainer.callbacks", str([later]), "--trainer.callbacks+", str([stop]), "--print_config"]
    config = yaml.safe_load(run_program("fit", *words, cwd=folder, check=True).stdout)
    found = [entry["init_args"] for entry in config["trainer"]["callbacks"]]
    assert [(entry["monitor"], entry["patience"]) for entry in found] == [("val/loss", 3), ("val/miou", 7)]
    rates = {"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "step"}}
    (folder / "b.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [rates]}}))
    words[-5:] = ["--trainer.callbacks=[LearningRateMonitor]", "--print_config"]
    config = yaml.safe_load(run_program("fit", *words, cwd=folder, check=True).stdout)
    assert config["trainer"]["callbacks"][0]["init_args"]["logging_interval"] is None


@pytest.mark.slow
def test_commands_that_read_the_data_alone_replace_lists_too(folder: Path) -> None:
    """`data check` looked for the list_file of a data set that a later file had replaced."""
    own = yaml.safe_load((folder / "c.yaml").read_text())["data"]["dataset"]
    listed = {**own, "init_args": {**own["init_args"], "list_file": "nothing.txt"}}
    for name, entry in (("listed", listed), ("own", own)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"data": {"extra_datasets": [entry]}}))
    words = ["data", "check", "-c", "c.yaml", "-c", "listed.yaml"]
    done = run_program(*words, cwd=folder)
    assert done.returncode == 1
    assert "nothing.txt" in done.stdout + done.stderr
    for later in (["-c", "own.yaml"], ["--data.extra_datasets", str([own])]):
        done = run_program(*words, *later, cwd=folder)
        assert "nothing.txt" not in done.stdout + done.stderr
        assert "extra_datasets[0]" in done.stdout + done.stderr


@pytest.mark.long
def test_a_backbone_that_stays_frozen_and_a_patience_that_never_ends_are_said(folder: Path) -> None:
    words = [word for name in ("freeze", "early_stopping") for word in ("-c", str(CONFIGS / f"trainer/{name}.yaml"))]
    said = run_program("fit", "-c", "c.yaml", *words, cwd=folder, check=True).stderr
    assert "Frozen until epoch 3, which this training of 2 epochs does not reach: " in said
    assert "its patience of 10 validations cannot end this training, which has 2." in " ".join(said.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["early_stopping", "--data.fold=null"], "EarlyStopping monitors val/miou, and nothing is validated"),
        (["early_stopping", "early_stopping"], "more than one stateful callback of type `EarlyStopping`"),
    ],
)
def test_early_stopping_that_cannot_be_is_one_line(folder: Path, words: list[str], text: str) -> None:
    """The first stopped after an epoch by a traceback, the second at once by one."""
    overlays = [part for word in words if "=" not in word for part in ("-c", str(CONFIGS / f"trainer/{word}.yaml"))]
    options = [word for word in words if "=" in word]
    result = run_program("fit", "-c", "c.yaml", *overlays, *options, cwd=folder)
    assert result.returncode in {1, 2}
    assert "Traceback" not in result.stderr
    assert text in result.stderr.splitlines()[-1]


@pytest.mark.long
def test_a_test_on_images_of_the_training_is_warned_of(folder: Path) -> None:
    """Its figures were printed without a word."""
    run_program("fit", "-c", "c.yaml", "--name", "x", cwd=folder, check=True)
    config = yaml.safe_load((folder / "c.yaml").read_text())
    for name, seed in (("same", None), ("other", 100)):
        if seed is None:
            shutil.copytree(folder / "images", folder / name / "images")
        else:
            for index in range(10):
                write_image(folder / name / "images" / f"{index:02d}.png", seed=seed + index)
        shutil.copytree(folder / "masks", folder / name / "masks")
        test = {**config["data"]["dataset"], "init_args": {**config["data"]["dataset"]["init_args"]}}
        test["init_args"]["root"] = str(folder / name)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"data": {"test_dataset": test}}))
        best = "runs/x/checkpoints/best.ckpt"
        said = run_program("test", "--ckpt_path", best, "-c", f"{name}.yaml", cwd=folder, check=True).stderr
        assert ("10 of 10 test images are also in data.dataset (00.png" in said) == (seed is None)


@pytest.mark.long
def test_a_test_says_what_was_averaged_and_how_large_images_were(folder: Path) -> None:
    """The figures of three networks stood below the name of one, and those of small images below no size."""
    run_program("fit", "-c", "c.yaml", "--name", "x", cwd=folder, check=True)
    small = ("--data.eval_transforms", "deeplab_lightning.data.EvalTransforms", "--data.eval_transforms.max_size", "32")
    words = ("--ckpt_path", "runs/x/checkpoints/best.ckpt", "--ensemble", "[runs/x/checkpoints/last.ckpt]")
    config = yaml.safe_load((folder / "c.yaml").read_text())["data"]["dataset"]
    (folder / "t.yaml").write_text(yaml.safe_dump({"data": {"test_dataset": config}}))
    said = run_program("test", *words, *small, "-c", "t.yaml", cwd=folder, check=True).stdout
    assert "best.ckpt, averaged with 1 more, images of at most 32 pixels a side" in " ".join(said.split())
    assert json.loads((folder / "runs/x/result_test.json").read_text())["max_size"] == 32


@pytest.mark.long
def test_a_fold_file_that_divides_its_own_groups_is_refused(folder: Path) -> None:
    """Such folds were used, and compare spoke of an interval over groups."""
    rows = [f"{index:02d}.png,place {index // 4},{index % 2}" for index in range(10)]
    (folder / "folds.csv").write_text("\n".join(["image,group,fold", *rows]) + "\n")
    result = run_program("fit", "-c", "c.yaml", "--data.fold_file=folds.csv", cwd=folder)
    assert result.returncode == 1
    assert "folds.csv: separates 3 groups of its column group (place 0, place 1, place 2)" in result.stderr
    whole = [f"{index:02d}.png,,{index % 2}" for index in range(10)]
    (folder / "folds.csv").write_text("\n".join(["image,group,fold", *whole]) + "\n")
    words = ("split", "-c", "c.yaml", "--data.fold_file=folds.csv", "--output", "out")
    assert "fold file" in run_program(*words, cwd=folder, check=True).stdout


def test_a_sum_of_losses_is_a_number_where_all_pixels_are_ignored() -> None:
    """Lovasz of smp returned an empty tensor."""
    loss = SumLoss([CrossEntropyLoss(), LovaszLoss("multiclass", ignore_index=255)])
    logits = torch.randn(1, 3, 8, 8, requires_grad=True)
    value = loss(logits, torch.full((1, 8, 8), 255))
    assert value.shape == ()
    assert value.item() == 0
    value.backward()
