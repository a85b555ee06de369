"""W&B without an account."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from deeplab_lightning.tracking.mode import api_key, choose_mode
from deeplab_lightning.tracking.runs import offline_runs
from tests.conftest import noise_config
from tests.processes import run_program

CONFIGS = Path(__file__).parents[2] / "configs"


def test_online_without_a_key_goes_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("deeplab_lightning.tracking.mode.can_reach", lambda *_, **__: pytest.fail("asked"))
    assert choose_mode("online") == "offline"


def test_the_key_is_found_where_login_leaves_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine api.example.org login user password abc123")
    assert api_key("api.example.org") == "abc123"
    assert api_key("other.example.org") is None


def test_online_without_a_server_goes_offline_in_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(base_url="http://127.0.0.1:1")
    monkeypatch.setattr("wandb.setup", lambda: SimpleNamespace(settings=settings))
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    start = time.monotonic()
    assert choose_mode("online") == "offline"
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_other_modes_ask_nobody(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeplab_lightning.tracking.mode.can_reach", lambda *_, **__: pytest.fail("asked"))
    assert choose_mode(mode) == mode  # type: ignore[arg-type]


@pytest.mark.long
def test_an_offline_run_holds_panels_tables_config_and_the_best_value(tmp_path: Path) -> None:
    options = {
        "data.dataset.root": str(tmp_path / "data"),
        "data.dataset.num_images": "10",
        "data.dataset.size": "32",
        "data.n_folds": "2",
        "data.train_transforms.init_args.crop_size": "32",
        "model.net.backbone": "test_resnet",
        "model.net.pretrained": "false",
        "wandb": "offline",
        "output_dir": str(tmp_path / "runs"),
        "name": "logged",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    overlays = [word for name in ("base.yaml", "trainer/debug.yaml") for word in ("-c", str(CONFIGS / name))]
    # Without the address of a W&B process that other tests have started.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    run_program("fit", *overlays, *words, check=True, env=environment)
    [log] = (tmp_path / "runs" / "logged" / "wandb").glob("offline-run-*/run-*.wandb")
    inspect = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--summary", "--json", str(log)]
    found = json.loads(subprocess.run(inspect, capture_output=True, text=True, check=True).stdout)
    text = json.dumps(found)
    result = json.loads((tmp_path / "runs" / "logged" / "result.json").read_text())
    assert str(result["val"]["miou"])[:6] in text
    for part in ("val/iou_table", "val/confusion_matrix", "val/panels", "train_transforms", "best/miou", '"max"'):
        assert part in text


@pytest.mark.long
def test_a_resumed_training_and_its_evaluations_are_one_run(mask_folder: Path) -> None:
    """They were runs of their own, and evaluations were not logged."""
    config = noise_config(mask_folder, trainer={"num_sanity_val_steps": 0}, net={"backbone": "test_efficientnet"})
    (mask_folder / "config.yaml").write_text(yaml.safe_dump({**config, "wandb": "offline"}))
    runs = mask_folder / "runs"
    logger = ["--trainer.logger", "WandbLogger", "--trainer.logger.project", "p"]
    fit = ["fit", "-c", str(mask_folder / "config.yaml"), "--name", "run", *logger]
    last = str(runs / "run" / "checkpoints" / "last.ckpt")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    for words in (
        [*fit, "--trainer.max_epochs", "1"],
        [*fit, "--trainer.max_epochs", "3", "--ckpt_path", last],
        ["test", "--ckpt_path", last],
        ["validate", "--ckpt_path", last],
    ):
        run_program(*words, check=True, env=environment)
    assert len(list((runs / "run" / "wandb").glob("offline-run-*"))) == 4
    [run], _ = offline_runs(runs)
    assert [row["epoch"] for row in run.rows] == [0, 1, 2]
    for stage, name in (("val", "validate"), ("test", "test")):
        result = json.loads((runs / "run" / f"result_{name}.json").read_text())[stage]
        assert run.summary[f"evaluation/{stage}/miou"] == pytest.approx(result["miou"], abs=1e-6)
    assert run.summary["best/miou"] is not None
