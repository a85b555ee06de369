"""Files of others name classes: nothing but those of known packages is imported without a word of the user."""

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import yaml

from deeplab_lightning import SegmentationModule
from deeplab_lightning.class_paths import canonical, foreign_class
from deeplab_lightning.cli import main
from deeplab_lightning.errors import UserError
from tests.conftest import draw_noise_data, noise_config, write_image
from tests.processes import run_program

EVIL = """
from pathlib import Path
Path(__file__).with_name("was_run").touch()

class Thing:
    def __init__(self, *arguments, **options): ...
    def __call__(self, *arguments, **options): ...
"""
THING = {"class_path": "evil.Thing"}
Change = Callable[[dict[str, Any]], None]


def _put(*keys: str, value: Any) -> Change:
    """Make a change of a configuration: set a key inside it."""

    def change(config: dict[str, Any]) -> None:
        for key in keys[:-1]:
            config = config[key]
        config[keys[-1]] = value

    return change


def _profiler(folder: str) -> dict[str, Any]:
    return {
        "class_path": "lightning.pytorch.profilers.SimpleProfiler",
        "init_args": {"dirpath": folder, "filename": "was_run"},
    }


ATTACKS: dict[str, Change] = {
    "network": _put("model", "net", value=THING),
    "network as text": _put("model", "net", value="evil.Thing"),
    "part of the network": _put("model", "net", "init_args", "backbone", value=THING),
    "loss": _put("model", "loss", value=THING),
    "losses as text": _put(
        "model", "loss",
        value={"class_path": "deeplab_lightning.SumLoss", "init_args": {"losses": ["evil.Thing"]}},
    ),
    "optimizer": _put("model", "optimizer", value=THING),
    "postprocess": _put("model", "postprocess", value=THING),
    "postprocess as text": _put("model", "postprocess", value="evil.Thing"),
    "data set": _put("data", "dataset", value=THING),
    "groups": _put("data", "groups", value=THING),
    "eval_transforms": _put("data", "eval_transforms", value=THING),
    "eval_transforms as text": _put("data", "eval_transforms", value="evil.Thing"),
    "train_transforms": _put("data", "train_transforms", value=THING),
    "callbacks": _put("trainer", "callbacks", value=[THING]),
    "plugins": _put("trainer", "plugins", value=[THING]),
    "logger": _put("trainer", "logger", value=THING),
    "strategy": _put("trainer", "strategy", value=THING),
    "profiler": _put("trainer", "profiler", value=_profiler(".")),
    "output_dir": _put("output_dir", value="was_run"),
    "a function": _put("data", "eval_transforms", value={"class_path": "os.mkdir", "init_args": {"path": "was_run"}}),
    "a function of torch": _put(
        "data", "eval_transforms", value={"class_path": "torch.save", "init_args": {"obj": {}, "f": "was_run"}}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    draw_noise_data(folder / "noise")
    config = noise_config(folder / "noise", trainer={"max_epochs": 1, "limit_train_batches": 1})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(folder / "config.yaml"), "--output_dir", str(folder / "runs"), "--name", "a"])
    return folder / "runs" / "a" / "checkpoints" / "best.ckpt"


def _attacked(checkpoint: Path, folder: Path, change: Change) -> Path:
    """Write a changed checkpoint, and the module that it names, to a folder."""
    content = torch.load(checkpoint, weights_only=True)
    content["config"] = copy.deepcopy(content["config"])
    change(content["config"])
    change({"model": content["hyper_parameters"], "data": {}, "trainer": {}})
    (folder / "evil.py").write_text(EVIL)
    write_image(folder / "new" / "photo.jpg")
    torch.save(content, folder / "x.ckpt")
    return folder / "x.ckpt"


def _stop(model: object) -> NoReturn:
    raise UserError("nothing is traced here.")


@pytest.mark.long
@pytest.mark.parametrize("place", ATTACKS)
def test_a_checkpoint_runs_no_foreign_code(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A profiler wrote elsewhere, `os.system` was called, and a module of the working folder was imported."""
    path = _attacked(checkpoint, tmp_path, ATTACKS[place])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # Everything is built before the trace, which takes most of the time.
    monkeypatch.setattr("deeplab_lightning.commands.export.trace", _stop)
    for words in (
        ["validate", "--ckpt_path", path],
        ["test", "--ckpt_path", path],
        ["predict", "--ckpt_path", path, "--images", "new", "--output", "out"],
        ["export", "--ckpt_path", path, "--format", "torch_export", "--output", "x.pt2"],
    ):
        with suppress(UserError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main([*map(str, words)])
        assert not list(tmp_path.rglob("*was_run*")), words[0]


@pytest.mark.slow
def test_trust_imports_what_a_checkpoint_names(checkpoint: Path, tmp_path: Path) -> None:
    path = _attacked(checkpoint, tmp_path, ATTACKS["postprocess"])
    words = ["predict", "--ckpt_path", str(path), "--images", "new", "--output", "out"]
    done = run_program(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert "evil.Thing is no class of deeplab_lightning, torch, " in done.stderr
    assert "use --trust" in done.stderr
    assert not (tmp_path / "was_run").exists()
    run_program(*words, "--trust", cwd=tmp_path)
    assert (tmp_path / "was_run").exists()


@pytest.mark.slow
def test_names_of_files_are_no_modules(checkpoint: Path, tmp_path: Path) -> None:
    """A list called train.txt beside a script train.py was taken for something to import from the script."""
    content = torch.load(checkpoint, weights_only=True)
    dataset = content["config"]["data"]["dataset"]["init_args"]
    (tmp_path / "train.py").write_text("raise AssertionError('imported')")
    dataset["list_file"] = "train.txt"
    Path(dataset["root"], "train.txt").write_text("".join(f"{index:02d}.png\n" for index in range(10)))
    torch.save(content, tmp_path / "x.ckpt")
    done = run_program("validate", "--ckpt_path", "x.ckpt", "--output_dir", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Left out" not in done.stdout


def test_python_needs_trust_too(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _attacked(checkpoint, tmp_path, ATTACKS["network"])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="evil.Thing is no class of .* trust=True"):
        SegmentationModule.load_from_checkpoint(path)
    assert not (tmp_path / "was_run").exists()
    with pytest.raises(Exception, match="Thing"):  # it is no network
        SegmentationModule.load_from_checkpoint(path, trust=True)
    assert (tmp_path / "was_run").exists()


def test_comparing_settings_imports_nothing_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`compare` imported what the config.yaml of a run named."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    assert canonical({"loss": THING}) == {"loss": THING}
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"class_path": "torch.nn.CrossEntropyLoss"}, None),
        ({"class_path": "deeplab_lightning.DeepLabV3", "init_args": {"backbone": "resnet50.a1_in1k"}}, None),
        ({"class_path": "deeplab_lightning.GoneInLaterVersions"}, None),
        ({"list_file": "train.txt", "name": "a.b", "root": "data/x.y"}, None),
        ({"class_path": "torch.load", "init_args": {"f": "x"}}, "torch.load"),
        ({"class_path": "Thing"}, "Thing"),
        ({"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"weight": [THING]}}, "evil.Thing"),
        ({"class_path": "lightning.pytorch.utilities.rank_zero.Popen"}, None),  # nothing of that name is there
        ({"class_path": "deeplab_lightning.SumLoss", "init_args": {"losses": ["os.system"]}}, "os.system"),
        ({"class_path": "deeplab_lightning.DeepLabV3", "init_args": {"backbone": "os.path"}}, None),  # a text
        ("os.system", "os.system"),
        (["subprocess.Popen"], "subprocess.Popen"),
        ("torch.load", "torch.load"),
    ],
)
def test_foreign_classes_are_found(config: Any, expected: str | None) -> None:
    assert foreign_class(config) == expected
