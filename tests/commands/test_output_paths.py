"""Places to write to, formats and folds that contradict each other are refused before anything is computed."""

import re
from pathlib import Path

import pytest

from tests.conftest import draw_noise_data, shared_copy, train_noise_experiment
from tests.processes import run_program

BEST = "runs/cv/fold_0/checkpoints/best.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment `cv` of two folds."""
    return shared_copy(tmp_path_factory, "places", draw_and_train)


def draw_and_train(root: Path) -> None:
    draw_noise_data(root)
    train_noise_experiment(root, epochs=1)
    (root / "empty").mkdir()


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"export --ckpt_path {BEST} --output empty", "--output must name a file to write, and empty is a folder"),
        (f"export --ckpt_path {BEST} --output cv.yaml/m.onnx", "must name a file in a folder, and .*cv.yaml is a file"),
        (f"export --ckpt_path {BEST} --output m.pt", r"must end with .onnx \(onnx\), .xml \(openvino\), .pt2 "),
        (f"export --ckpt_path {BEST} --format onnx --output m.pt2", r"must end with .onnx \(onnx\), got m.pt2"),
        (f"export --ckpt_path {BEST} --format torch_export --output m.onnx", r"must end with .pt2 \(torch_export\)"),
        ("export --ckpt_path net.onnx --output m.onnx", "net.onnx was exported already"),
        ("compare runs/cv runs/cv/fold_0 --html empty", "--html must name a file to write, and empty is a folder"),
        ("compare runs/cv runs/cv/fold_0 --csv empty", "--csv must name a file to write, and empty is a folder"),
        ("report runs/cv --html empty", "--html must name a file to write, and empty is a folder"),
        ("best runs/cv --output empty", "--output must name a file to write, and empty is a folder"),
        (
            f"predict --ckpt_path {BEST} --images images --output images",
            "would lie in the folder of the images, images",
        ),
        (f"predict --ckpt_path {BEST} --images [masks,images] --output images/new", "folder of the images, images"),
        (f"predict --ckpt_path {BEST} --images masks --output images/..", "would replace the images in masks"),
        ("kfold -c cv.yaml --name new --seeds 0,1,0", "--seeds must name each number once, got '0,1,0'"),
        ("kfold -c cv.yaml --name new --data.fold 1", "--data.fold 1 has no effect here; --folds 0,2 trains only some"),
        ("grid -c grid.yaml", "--data.fold 1 has no effect here; `folds: .*in grid.yaml trains only some"),
        (
            "fit -c cv.yaml --data.eval_transforms.max_size 32",
            "data.eval_transforms: options of a class need the class",
        ),
        ("fit -c cv.yaml --data.train_transforms.crop 32", "'crop' is not accepted: did you mean crop_size?"),
        ("fit -c cv.yaml --data.train_transforms.x 32", "'x' is not accepted: allowed are augmentations, brightness"),
        ("fit -c cv.yaml --data.copy_paste.x 1", "'x' is not accepted: allowed are border, max_objects, max_share"),
    ],
)
def test_what_cannot_be_written_or_followed_is_one_line_before_any_work(folder: Path, words: str, message: str) -> None:
    """All of them computed first, wrote somewhere else, or did not do what was asked."""
    (folder / "net.onnx").write_bytes(b"")
    (folder / "grid.yaml").write_text('{options: "-c cv.yaml", axes: {a: {x: "--data.fold 1", y: ""}}}')
    before = sorted(folder.rglob("*"))
    done = run_program(*words.split(), cwd=folder)
    assert done.returncode in {1, 2}
    assert not done.stdout
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert re.search(message, line), line
    assert sorted(folder.rglob("*")) == before


@pytest.mark.long
def test_an_average_says_which_folds_it_lacks(folder: Path, tmp_path: Path) -> None:
    words = ["predict", "--experiment", "runs/cv", "--images", "images", "--output"]
    whole = run_program(*words, str(tmp_path / "a"), cwd=folder, check=True)
    assert "have no finished training" not in whole.stdout
    lost = folder / "runs" / "cv" / "fold_1" / "result.json"
    kept = lost.read_text()
    lost.unlink()
    partly = run_program(*words, str(tmp_path / "b"), cwd=folder, check=True)
    lost.write_text(kept)
    assert "Note: of 2 networks, these have no finished training: runs/cv/fold_1." in partly.stdout


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a /proc, where no folder can be made")
def test_a_folder_that_cannot_be_made_is_one_line(folder: Path) -> None:
    for words in (["predict", "--images", "images", "--output", "/proc/x"], ["export", "--output", "/proc/x/m.onnx"]):
        done = run_program(*words, "--ckpt_path", BEST, cwd=folder)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == "error: /proc/x: such a folder cannot be made. Choose another one."
        assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_run_below_the_images_needs_another_output(folder: Path) -> None:
    """The second prediction took the masks and overlays of the first for images."""
    refused = run_program("predict", "--ckpt_path", BEST, "--images", ".", cwd=folder)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: predictions in ")
    assert "would lie in the folder of the images, ., where the next prediction" in refused.stderr
    assert not (folder / "runs" / "cv" / "fold_0" / "predictions").exists()


@pytest.mark.long
@pytest.mark.parametrize("command", ["tune-batch", "tune-lr"])
def test_a_file_as_folder_is_refused_before_the_training(folder: Path, command: str) -> None:
    done = run_program(command, "-c", "cv.yaml", "--output", "cv.yaml/x", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cv.yaml")
    assert done.stderr.count("\n") == 1
    assert not done.stdout
