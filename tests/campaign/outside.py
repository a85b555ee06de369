"""Give images, classes and runs names that lead elsewhere: nothing outside the output folder changes."""

import hashlib
import random
import shutil
from pathlib import Path

from tests.campaign.world import Case, World, coco_options, write_coco
from tests.conftest import write_image

_NAMES = (
    *("../a.png", "../../a.png", "../" * 12 + "a.png", "x/../../a.png", "x/../y/../../../a.png", "./../a.png"),
    *("..", ".", "...", "....//a.png", "..\\a.png", "C:\\a.png", "//a.png", "a/.", "~/a.png"),
    *("$HOME/a.png", "%2e%2e/a.png"),
)  # fmt: skip

_LINES = (
    *("../images/a.png", "../images/b.png", "a.png", "{box}/images/a.png", "deep/../a.png", "./b.png", "deep/a.png"),
    *("../../box/images/a.png", "../images/../images/a.png"),
)


def attack(world: World, chance: random.Random, number: int) -> Case:
    """Run a command with names that lead outside its output folder."""
    world.restore()
    box = world.folder / "box"
    shutil.rmtree(box, ignore_errors=True)
    kind = sorted(_KINDS)[number % len(_KINDS)]
    words, name = _KINDS[kind](world, box, chance)
    before = _snapshot(world.folder, box / "out")
    done = world.command(*words, cwd=box)
    changed = sorted(set(before.items()) ^ set(_snapshot(world.folder, box / "out").items()))
    fault = done.fault()
    if changed:
        fault = f"changed {', '.join(sorted({Path(path).name for path, _ in changed})[:5])}"
    return Case(f"{kind} {name}", fault)


def _list(world: World, box: Path, chance: random.Random) -> tuple[list[str], str]:
    """Predict the images of a list with such lines."""
    for place in ("images", "lists", "lists/deep"):
        for index in range(2):
            write_image(box / place / f"{'ab'[index]}.png", seed=index)
    lines = chance.sample([line.format(box=box) for line in _LINES], 4)
    (box / "lists" / "list.txt").write_text("\n".join(lines))
    return _predict(world, box / "lists" / "list.txt", box), repr(lines)


def _link(world: World, box: Path, chance: random.Random) -> tuple[list[str], str]:
    """Predict again into a folder in which a prediction became a link to another file."""
    write_image(box / "images" / "a.png")
    write_image(box / "other.png", seed=1)
    done = world.command(*_predict(world, box / "images", box))
    assert done.status == 0, done.stderr[-2000:]
    name = chance.choice(["masks/a.png", "overlays/a.jpg", "predictions.csv"])
    (box / "out" / name).unlink()
    (box / "out" / name).symlink_to(box / "other.png")
    return _predict(world, box / "images", box), f"of {name}"


def _file_name(world: World, box: Path, chance: random.Random) -> tuple[list[str], str]:
    """Train on a COCO file with such names of files, and predict the held-out images."""
    (box / "a" / "b").mkdir(parents=True)
    names = []
    for index, folder in enumerate(["..", "../..", "b/../..", "../../box/a", "b", "."] * 2):
        name = f"{folder}/i{index}.png"
        write_image(box / "a" / "b" / name, seed=index)
        names.append(name)
    chosen = chance.sample(names, 8)
    write_coco(box / "coco.json", chosen)
    return [
        *("kfold", "-c", str(world.config), *coco_options(box / "a" / "b", box / "coco.json"), "--predictions"),
        *("--in_process", "--name", "x", "--output_dir", str(box / "out"), "--trainer.max_epochs", "1"),
    ], repr(chosen)


def _class(world: World, box: Path, chance: random.Random) -> tuple[list[str], str]:
    """Split or show data whose classes have such names."""
    classes = chance.sample(_NAMES, 3)
    box.mkdir()
    write_coco(box / "coco.json", [f"images/{index:02d}.png" for index in range(10)], classes)
    command = chance.choice([["split"], ["data", "show"]])
    options = [*coco_options(world.folder, box / "coco.json"), "--output", str(box / "out")]
    return [*command, "-c", str(world.config), *options], repr(classes)


def _name(world: World, box: Path, chance: random.Random) -> tuple[list[str], str]:
    """Train a run with such a name."""
    box.mkdir()
    command, name = chance.choice(["fit", "kfold"]), chance.choice(_NAMES)
    options = ["--in_process"] if command == "kfold" else []
    words = [command, "-c", str(world.config), "--name", name, "--output_dir", str(box / "out"), *options]
    return [*words, "--trainer.max_epochs", "1"], repr(name)


def _predict(world: World, images: Path, box: Path) -> list[str]:
    checkpoint = str(world.run / "checkpoints" / "best.ckpt")
    return ["predict", "--ckpt_path", checkpoint, "--images", str(images), "--output", str(box / "out")]


_KINDS = {"list": _list, "link": _link, "file_name": _file_name, "class": _class, "name": _name}


def _snapshot(folder: Path, without: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, without caches and the output."""
    ignored = (folder / "cache", folder / "saved", without)
    return {
        str(path): hashlib.sha1(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not any(path.is_relative_to(other) for other in ignored)
        and not path.name.startswith("config_predict")
    }  # fmt: skip
