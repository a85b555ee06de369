"""Every command and script of the README is executed, on small data and with a small network."""

import re
import shlex
from pathlib import Path

import pytest

from deeplab_lightning.cli import main
from deeplab_lightning.data import write_synthetic
from tests.conftest import draw_noise_data, write_image

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
SMALL = shlex.split(
    "--trainer.accelerator cpu --trainer.max_epochs 1 --trainer.limit_train_batches 1 --wandb disabled "
    "--model.net.backbone test_efficientnet --model.net.pretrained false --data.batch_size 2 --data.num_workers 0 "
    "--data.train_transforms.init_args.crop_size 32"
)
EXTRA = {"fit": SMALL, "kfold": [*SMALL, "--n_folds", "2", "--in_process"]}


def commands() -> list[list[str]]:
    text = "\n".join(block for language, block in BLOCKS if not language).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("deeplab ")]


@pytest.mark.long
def test_the_commands_work_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    write_synthetic("my", num_images=10, size=48)
    write_image(Path("my/new_images/a.png"))
    for part in ("train", "val"):
        draw_noise_data(Path("noise") / part)
        (Path("data/camvid") / part).parent.mkdir(parents=True, exist_ok=True)
        (Path("noise") / part / "images").rename(Path("data/camvid") / part)
        (Path("noise") / part / "masks").rename(Path("data/camvid") / f"{part}annot")
    for words in commands():
        if words[:2] == ["data", "check"]:  # exits with its finding
            with pytest.raises(SystemExit, match="0"):
                main(words)
        else:
            main([*words, *EXTRA.get(words[0], [])])
    expected = (
        *("runs/first/result.json", "runs/first/result_validate.json", "runs/first/predictions/masks/a.png"),
        *("folds/folds.csv", "folds/balance.png", "runs/resnet50/cv.json", "runs/lite0/cv.json", "report.html"),
        "model.onnx",
    )
    assert [path for path in expected if not Path(path).is_file()] == []


@pytest.mark.slow
def test_the_scripts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scripts = [block for language, block in BLOCKS if language == "python"]
    assert scripts
    for script in scripts:
        exec(script, {})


def test_every_file_that_a_readme_names_exists() -> None:
    for readme in [
        ROOT / "README.md",
        *ROOT.glob("deeplab_lightning/*/README.md"),
        ROOT / "tests/benchmarks/README.md",
    ]:
        links = re.findall(r"\]\(([^)#:]+)\)", readme.read_text())
        assert [link for link in links if not (readme.parent / link).exists()] == [], readme


def test_every_target_that_the_readme_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text()))
    assert named <= targets
