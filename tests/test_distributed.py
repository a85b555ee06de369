"""Evaluation and training in two processes on the CPU, from a script and from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import noise_config
from tests.processes import run_program

SCRIPT = """
import json, sys
from pathlib import Path
import lightning as L, torch
from deeplab_lightning import DeepLabV3, SegmentationDataModule, SegmentationModule
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset

def main(folder, devices, out):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False)
    table = ClassTable(["sky", "road", "car"], ignore_ids=[11])
    dataset = MaskFolderDataset(folder, "images", masks="masks", classes=table)
    data = SegmentationDataModule(dataset, split="official", val_dataset=dataset, batch_size=1, num_workers=0)
    module = SegmentationModule(net, classes=table)
    trainer = L.Trainer(
        accelerator="cpu", devices=int(devices), strategy="ddp" if int(devices) > 1 else "auto", logger=False,
        enable_progress_bar=False, default_root_dir=folder,
    )
    trainer.validate(module, datamodule=data, verbose=False)
    if trainer.is_global_zero:
        Path(out).write_text(json.dumps(module.last_matrix.tolist()))

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.mark.long
def test_two_processes_count_the_same_pixels_as_one(mask_folder: Path, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (mask_folder / part / "09.png").unlink()  # nine images: not divisible by two
    script = tmp_path / "validate.py"
    script.write_text(SCRIPT)
    matrices = []
    for devices in ("1", "2"):
        out = tmp_path / f"{devices}.json"
        subprocess.run([sys.executable, str(script), str(mask_folder), devices, str(out)], check=True, timeout=300)
        matrices.append(np.array(json.loads(out.read_text())))
    void = sum(int((_mask(mask_folder, i) == 11).sum()) for i in range(9))
    assert matrices[0].sum() == 9 * 48 * 64 - void
    assert np.array_equal(matrices[0], matrices[1])


@pytest.mark.long
def test_the_command_line_trains_on_two_processes(mask_folder: Path, tmp_path: Path) -> None:
    configs = Path(__file__).parents[1] / "configs"
    options = {
        "data.dataset": "MaskFolderDataset",
        "data.dataset.root": str(mask_folder),
        "data.dataset.images": "images",
        "data.dataset.masks": "masks",
        "data.dataset.classes": '{"names": ["sky", "road", "car"], "ignore_ids": [11]}',
        "data.train_transforms.init_args.crop_size": "32",
        "data.n_folds": "3",
        "model.net.backbone": "test_resnet",
        "model.net.pretrained": "false",
        "trainer.devices": "2",
        "trainer.strategy": "ddp",
        "output_dir": str(tmp_path / "runs"),
        "name": "two",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    overlays = [word for name in ("base.yaml", "trainer/debug.yaml") for word in ("-c", str(configs / name))]
    run_program("fit", *overlays, *words, check=True)
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == ["two"]
    assert json.loads((tmp_path / "runs" / "two" / "result.json").read_text())["epochs"] == 1


WATCH = """
import os, re
from pathlib import Path
import lightning as L

class Watch(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        own = {match[1] for fd in os.scandir("/proc/self/fd") if (match := re.match(r"socket:.(\\d+)", _link(fd)))}
        for kind in ("tcp", "tcp6"):
            for line in Path(f"/proc/self/net/{kind}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and words[9] in own:
                    with open(f"listening_{trainer.global_rank}.txt", "a") as file:
                        print(words[1].partition(":")[0], file=file)

def _link(fd):
    try:
        return os.readlink(fd.path)
    except OSError:
        return ""
"""


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="/proc lists the sockets")
def test_processes_of_one_machine_listen_on_loopback_alone(mask_folder: Path, tmp_path: Path) -> None:
    """PyTorch's store listened on all interfaces, without a password."""
    (tmp_path / "watch.py").write_text(WATCH)
    trainer = {
        "max_epochs": 1, "limit_train_batches": 1, "devices": 2, "strategy": "ddp",
        "callbacks": [{"class_path": "watch.Watch"}],
    }  # fmt: skip
    config = noise_config(mask_folder, trainer=trainer)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run_program("fit", "-c", "config.yaml", cwd=tmp_path, check=True)
    listening = {path.name: path.read_text().split() for path in tmp_path.glob("listening_*.txt")}
    assert "listening_0.txt" in listening
    assert {address for addresses in listening.values() for address in addresses} == {"0100007F"}, listening


CHOICE = """
import os, sys, time
from deeplab_lightning.runs import choose_run_folder

rank = int(os.environ["RANK"])
time.sleep(1.5 * rank)  # the others come later: another second, and the folder exists
for name in (None, "named"):
    model = {"class_path": "DeepLabV3"}
    folder = choose_run_folder(name=name, output_dir=sys.argv[1], checkpoint=None, model=model, is_training=True)
    folder.path.mkdir(parents=True, exist_ok=True)
    print(rank, folder.name)
"""


@pytest.mark.long
def test_processes_that_torchrun_starts_choose_one_folder(tmp_path: Path) -> None:
    (tmp_path / "choose.py").write_text(CHOICE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "choose.py"), str(tmp_path / "runs")]
    done = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True)
    unnamed, named = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    assert unnamed.startswith("deeplabv3-")
    assert named == "named"
    assert sorted(done.stdout.split("\n")) == ["", *(f"{rank} {name}" for rank in (0, 1) for name in (unnamed, named))]


def _mask(folder: Path, index: int) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    from PIL import Image

    return np.asarray(Image.open(folder / "masks" / f"{index:02d}.png"))
