"""The shipped recipes are complete and train."""

from pathlib import Path

import pytest
import yaml

from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, and `config.yaml`, which replaces what a recipe takes from the hub or the machine."""
    root = tmp_path_factory.mktemp("recipes")
    draw_noise_data(root)
    config = noise_config(root, trainer={"limit_train_batches": 2, "max_epochs": 1, "check_val_every_n_epoch": 1})
    net = config["model"].pop("net")["init_args"]
    data, transforms = config["data"], config["data"].pop("train_transforms")
    small = {
        "model": {"net": {"init_args": net}},
        "trainer": {**config["trainer"], "precision": "32-true", "max_time": None},
        "data": {"batch_size": data.pop("batch_size"), "num_workers": data.pop("num_workers"),
                 "train_transforms": {"init_args": transforms["init_args"]}},
    }  # fmt: skip
    (root / "data.yaml").write_text(yaml.safe_dump({**config, "trainer": {}, "model": {}}))
    (root / "small.yaml").write_text(yaml.safe_dump(small))
    return root


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains(folder: Path, recipe: Path) -> None:
    """On a small network, two batches of it; whether its name of the backbone exists is another test's."""
    base = RECIPES[0].parents[1] / "base.yaml"
    overlays = [base, folder / "data.yaml", recipe, folder / "small.yaml", base.parent / "trainer" / "debug.yaml"]
    words = [word for path in overlays for word in ("-c", str(path))]
    run_program("fit", *words, "--output_dir", str(folder / "runs"), "--name", recipe.stem, check=True)
    assert (folder / "runs" / recipe.stem / "result.json").is_file()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_backbones_of_recipes_have_weights(recipe: Path) -> None:
    import timm

    name = yaml.safe_load(recipe.read_text())["model"]["net"]["init_args"]["backbone"]
    assert name in timm.list_pretrained()
