"""Switch the network of a training by the shipped overlays, with the real command."""

from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch._dynamo.utils import counters

from deeplab_lightning import DeepLabV3, SegmentationModule
from deeplab_lightning.callbacks import CompileNetwork
from deeplab_lightning.runs import RunFolder
from tests.conftest import draw_noise_data, noise_config
from tests.processes import run_program

OVERLAYS = Path(__file__).parents[2] / "configs" / "trainer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images, and `config.yaml` of a training of two epochs."""
    root = tmp_path_factory.mktemp("switches")
    draw_noise_data(root)
    (root / "config.yaml").write_text(yaml.safe_dump(noise_config(root, trainer={"max_epochs": 2})))
    return root


def trained(folder: Path, name: str, *words: str) -> RunFolder:
    run_program("fit", "-c", str(folder / "config.yaml"), "--name", name, *words, check=True)
    return RunFolder(folder / "runs" / name)


@pytest.mark.long
def test_a_compiled_network_trains_and_its_checkpoint_has_plain_names(folder: Path) -> None:
    """Compiled as a whole, training would not use it: the module calls `coarse_logits`, not `forward`."""
    plain = torch.load(trained(folder, "plain").last, weights_only=True)["state_dict"]
    overlay = yaml.safe_load((OVERLAYS / "compile.yaml").read_text())
    overlay["trainer"]["callbacks+"][0]["init_args"]["backend"] = "aot_eager"  # the default one needs a C++ compiler
    (folder / "compile.yaml").write_text(yaml.safe_dump(overlay))
    run = trained(folder, "compiled", "-c", str(folder / "compile.yaml"))
    compiled = torch.load(run.last, weights_only=True)["state_dict"]
    assert plain.keys() == compiled.keys()
    assert all(torch.allclose(plain[key], compiled[key], rtol=1e-3, atol=1e-4) for key in plain)
    run_program("validate", "--ckpt_path", str(run.best), "--wandb", "disabled", check=True)


@pytest.mark.long
def test_checkpointed_gradients_train_and_vgg_is_refused(folder: Path) -> None:
    overlay = ("-c", str(OVERLAYS / "gradient_checkpointing.yaml"))
    run = trained(folder, "checkpointed", *overlay)
    assert run.result.is_file()
    done = run_program("fit", "-c", str(folder / "config.yaml"), *overlay, "--model.net.backbone", "vgg11")
    assert done.returncode == 1
    assert "GradientCheckpointing: VGGBackbone cannot do it; take a backbone of timm" in " ".join(done.stderr.split())


def test_checkpointed_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, dropout=0.0, pretrained=False).train()
    images, gradients = torch.rand(2, 3, 64, 64), []
    for is_on in (False, True):
        net.backbone.net.set_grad_checkpointing(is_on)  # type: ignore[operator, union-attr]
        net.zero_grad()
        net(images).square().mean().backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True) if a is not None)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch looks at it itself
def test_steps_are_compiled_and_validation_is_not() -> None:
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False)
    module, callback, trainer = SegmentationModule(net), CompileNetwork(backend="eager"), L.Trainer(logger=False)
    torch._dynamo.reset()
    counters.clear()
    callback.setup(trainer, module, "fit")
    images = torch.rand(2, 3, 48, 48)
    callback.on_validation_start(trainer, module)
    module.coarse_logits(images)
    assert not counters["frames"]
    callback.on_validation_end(trainer, module)
    module.coarse_logits(images)
    assert counters["frames"]["ok"] > 0
