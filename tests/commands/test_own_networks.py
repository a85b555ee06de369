"""Train, predict and export a network of the user's, as the README of the models writes one."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from deeplab_lightning.errors import UserError
from deeplab_lightning.models import Backbone, DeepLab
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program

README = Path(__file__).parents[2] / "deeplab_lightning" / "models" / "README.md"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write data, and the network of the README as `my_nets.py`."""
    [code] = re.findall(r"```python\n(from deeplab_lightning.models import ASPPConcat.*?)```", README.read_text(), re.S)
    draw_noise_data(tmp_path)
    (tmp_path / "my_nets.py").write_text(code)
    config = noise_config(tmp_path, trainer={"max_epochs": 1})
    config["model"].pop("net")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


@pytest.mark.long
def test_the_network_of_the_readme_trains_predicts_and_is_exported(folder: Path) -> None:
    own = ["--model.net", "my_nets.PlainDeepLab", "--model.net.width", "8"]
    run_program("fit", "-c", "c.yaml", *own, "--name", "x", cwd=folder, check=True)
    best = "runs/x/checkpoints/best.ckpt"
    refused = run_program("predict", "--ckpt_path", best, "--images", "images", cwd=folder)
    assert refused.returncode == 1
    assert "--trust" in refused.stderr
    run_program("predict", "--ckpt_path", best, "--images", "images", "--trust", cwd=folder, check=True)
    assert len(list((folder / "runs/x/predictions").rglob("*.png"))) >= 10
    run_program("export", "--ckpt_path", best, "--output", "net.onnx", "--trust", cwd=folder, check=True)
    held = torch.load(folder / best, weights_only=False)["state_dict"]
    assert held["net.backbone.stages.0.0.weight"].shape == (8, 3, 3, 3)


@pytest.mark.parametrize("attributes", [{}, {"channels": [4]}, {"channels": [4, 8], "strides": [2]}])
def test_a_backbone_that_says_too_little_is_named(attributes: dict[str, Any]) -> None:
    """It ended in an AttributeError of Module."""
    kind = type("Own", (nn.Module if not attributes else Backbone,), attributes)
    with pytest.raises(UserError, match="backbone Own (has no (channels, )?strides|needs one number for each map)"):
        DeepLab(kind(), nn.Identity(), num_classes=2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--model.optimizer=torch.optim.LBFGS", "LBFGS doesn't support per-parameter options"),
        ("--model.optimizer=timm.optim.Lookahead", "model.optimizer cannot be built over the groups of parameters"),
        ("--trainer.precision=transformer-engine", "transformer_engine"),
        ("--trainer.accelerator=tpu", "torch_xla"),
        ("--trainer.barebones=true", "trainer.barebones switches off checkpoints and logs"),
    ],
)
def test_what_cannot_train_here_is_one_line(folder: Path, option: str, text: str) -> None:
    """All but the last ended in tracebacks."""
    own = ["--model.net", "my_nets.PlainDeepLab", "--model.net.width", "8"]
    result = run_program("fit", "-c", "c.yaml", *own, option, cwd=folder)
    assert result.returncode in {1, 2}
    assert "Traceback" not in result.stderr
    assert text in result.stderr.splitlines()[-1]
