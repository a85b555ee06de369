"""Predict and evaluate files of `deeplab export` by the real commands, beside their checkpoint."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import yaml
from PIL import Image

from deeplab_lightning import SegmentationModule, load
from deeplab_lightning.cli import main
from deeplab_lightning.data.images import read_image
from deeplab_lightning.export import InferenceModel
from deeplab_lightning.export.formats import run_onnx
from deeplab_lightning.export.quantization import agreement, prepared, quantize
from deeplab_lightning.runs import RunFolder
from tests.commands.pictures import draw_picture, draw_pictures, train_on_pictures
from tests.conftest import shared_folder
from tests.export.traces import traced_once
from tests.processes import run_program

pytestmark = pytest.mark.long
Masks = dict[str, npt.NDArray[np.uint8]]
EXPORTS: dict[str, tuple[str, ...]] = {
    "graph.onnx": (),
    "outside.onnx": ("--preprocess", "metadata"),
    "outside.xml": ("--preprocess", "metadata", "--format", "openvino"),
    "outside.pt2": ("--preprocess", "metadata", "--format", "torch_export"),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A trained network, whose images are shrunk to 96 pixels, with its exported files beside it, and new images."""
    return RunFolder(shared_folder(tmp_path_factory, "exported", train_and_export) / "runs" / "v3")


def train_and_export(root: Path) -> None:
    draw_pictures(root)
    for index, size in enumerate([(48, 64), (97, 131), (20, 70), (96, 96)]):  # one is shrunk, one too small
        draw_picture(root / "new" / f"{index}.png", size, seed=index)
    shrunk = {"class_path": "deeplab_lightning.data.EvalTransforms", "init_args": {"max_size": 96}}
    run = train_on_pictures(root, "v3", eval_transforms=shrunk)
    with traced_once():
        for name, words in EXPORTS.items():
            main(["export", "--ckpt_path", str(run.best), "--output", str(root / name), *words])
    write_labels_file(root / "graph.onnx", root / "labels.onnx")


def write_labels_file(source: Path, file: Path) -> None:
    """Write what `export --argmax` writes, in less time."""
    model = onnx.load(source)
    graph, [logits] = model.graph, list(model.graph.output)
    graph.node.append(onnx.helper.make_node("ArgMax", [logits.name], ["places"], axis=1, keepdims=0))
    graph.node.append(onnx.helper.make_node("Cast", ["places"], ["labels"], to=onnx.TensorProto.UINT8))
    del graph.output[:]
    graph.output.append(onnx.helper.make_tensor_value_info("labels", onnx.TensorProto.UINT8, ["batch", None, None]))
    texts = {entry.key: entry.value for entry in model.metadata_props}
    texts["output"] = "labels: (B, H, W) uint8, index into classes"
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, file)


@pytest.fixture(scope="module")
def masks(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The predictions of the checkpoint."""
    folder = tmp_path_factory.mktemp("masks") / "out"
    predicted(run, run.best, folder, "--csv", "a.csv", "--coco", "a.json")
    return folder


def masks_in(folder: Path, *names: str) -> Masks:
    return {name: np.asarray(Image.open(folder / "masks" / f"{name}.png")) for name in names}


def elsewhere(output: Path) -> list[str]:
    """Options of a run folder outside of this checkout."""
    return ["--output_dir", str(output.parent / "runs")]


def predicted(run: RunFolder, source: Path, output: Path, *words: str) -> Masks:
    images = str(run.path.parents[1] / "new")
    given = (
        "--ckpt_path",
        str(source),
        "--images",
        images,
        "--output",
        str(output),
        *elsewhere(output),
        "--data.num_workers",
        "0",
    )
    run_program("predict", *given, *words, check=True)
    return masks_in(output, "0", "1", "3")


def equal_share(one: Masks, other: Masks) -> float:
    assert one.keys() == other.keys()
    return min(float((one[name] == other[name]).mean()) for name in one)


@pytest.mark.long
@pytest.mark.parametrize("name", [*EXPORTS, "labels.onnx"])
def test_an_exported_file_predicts_the_masks_of_its_checkpoint(
    run: RunFolder, masks: Path, tmp_path: Path, name: str
) -> None:
    """With its class names and colours, and without the checkpoint and its run."""
    expected = masks_in(masks, "0", "1", "3")
    assert len({label for mask in expected.values() for label in np.unique(mask)}) > 1
    words = ("--csv", "a.csv", "--coco", "a.json", *(["--trust"] if name.endswith("pt2") else []))
    assert equal_share(expected, predicted(run, run.path.parents[1] / name, tmp_path / "out", *words)) >= 0.999
    assert masks_in(tmp_path / "out", "2")["2"].shape == (20, 70)
    palettes = [Image.open(folder / "masks" / "1.png").getpalette() for folder in (masks, tmp_path / "out")]
    assert palettes[0] == palettes[1]
    categories = [json.loads((folder / "a.json").read_text())["categories"] for folder in (masks, tmp_path / "out")]
    assert categories[0] == categories[1]
    assert (tmp_path / "out" / "a.csv").read_text().count("\n") == 5
    assert [folder.name for folder in (tmp_path / "runs").iterdir()] == [Path(name).stem]


@pytest.mark.long
@pytest.mark.parametrize("name", ["graph.onnx", "outside.onnx"])
def test_views_tiles_and_probabilities_work_over_an_exported_file(run: RunFolder, tmp_path: Path, name: str) -> None:
    words = ("--tta", "scales=[0.9,1],flip", "--tile", "64", "--probabilities", "npz", "--ensemble", f"[{run.last}]")
    expected = predicted(run, run.best, tmp_path / "expected", *words)
    found = predicted(run, run.path.parents[1] / name, tmp_path / "found", *words)
    folders = [tmp_path / part / "probabilities" for part in ("expected", "found")]
    values = [np.load(folder / "1.npz")["probabilities"].astype(np.float32) for folder in folders]
    assert np.abs(values[0] - values[1]).max() < 0.002  # scaled views are rounded to pixels
    assert equal_share(expected, found) >= 0.999


@pytest.mark.long
def test_an_exported_file_is_validated_on_given_data(run: RunFolder) -> None:
    """On the fold that its network held out, whichever a file names."""
    root = run.path.parents[1]
    file, config = root / "graph.onnx", yaml.safe_load((root / "config.yaml").read_text())
    of_another_fold = {"data": {**config["data"], "fold": 1}, "output_dir": str(root / "runs")}
    (root / "data.yaml").write_text(yaml.safe_dump(of_another_fold))
    run_program("validate", "--ckpt_path", str(run.best), check=True)
    expected: dict[str, Any] = json.loads((run.path / "result_validate.json").read_text())
    done = run_program(
        "validate", "--ckpt_path", str(file), "-c", str(root / "data.yaml"), "--name", "file", check=True
    )
    assert "graph.onnx held out fold 0 of 2, which is evaluated." in done.stderr
    assert f"Validation of {file}" in " ".join(done.stdout.split())
    result = json.loads((root / "runs" / "file" / "result_validate.json").read_text())
    assert result["checkpoint"] == str(file)
    assert result["num_images"] == expected["num_images"]
    for key in ("miou", "loss", "ece"):
        assert result["val"][key] == pytest.approx(expected["val"][key], abs=2e-3)


@pytest.mark.long
def test_a_file_says_where_images_may_have_been_trained_on(run: RunFolder, tmp_path: Path) -> None:
    root = run.path.parents[1]
    model = onnx.load(root / "graph.onnx")
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts.pop("split")) == {"n_folds": 2, "split_seed": 0, "fold_method": "balanced", "fold": 0}
    onnx.helper.set_model_props(model, texts)
    onnx.save(model, tmp_path / "old.onnx")
    for file, words, text in (
        (root / "graph.onnx", ["--data.fold", "1"], "graph.onnx held out fold 0 of 2; another fold or split is asked"),
        (tmp_path / "old.onnx", [], "old.onnx does not say which fold it held out; export it again."),
    ):
        given = ("-c", str(root / "config.yaml"), *elsewhere(tmp_path / "out"), *words)
        done = run_program("validate", "--ckpt_path", str(file), *given, check=True)
        assert text in " ".join(done.stderr.split())
        assert done.stderr.count("Images that it was trained on may be evaluated.") == 1


@pytest.mark.long
def test_python_loads_an_exported_file(run: RunFolder) -> None:
    root = run.path.parents[1]
    plain, exported = (load(source).predict(root / "new" / "1.png") for source in (run.best, root / "outside.onnx"))
    assert exported.classes.names == plain.classes.names
    assert np.allclose(exported.probabilities, plain.probabilities, atol=1e-4)


@pytest.mark.long
def test_a_graph_of_a_fixed_size_predicts_larger_images_in_tiles(run: RunFolder, tmp_path: Path) -> None:
    model = onnx.load(run.path.parents[1] / "outside.onnx")
    shape = model.graph.input[0].type.tensor_type.shape
    for axis, length in ((0, 1), (2, 64), (3, 64)):
        shape.dim[axis].dim_value = length
    onnx.save(model, tmp_path / "fixed.onnx")
    expected = predicted(run, run.best, tmp_path / "expected", "--tile", "64")
    found = predicted(run, tmp_path / "fixed.onnx", tmp_path / "found", "--tile", "64")
    assert (expected["3"] == found["3"]).mean() >= 0.999  # the last tiles of "1" are continued at their edges
    assert (expected["1"] == found["1"]).mean() >= 0.8
    assert "takes images of at most 64 x 64 pixels, got 71 x 96: predict in tiles" in refusal(
        "predict", tmp_path / "fixed.onnx", run, tmp_path / "out"
    )


def refusal(command: str, file: Path, run: RunFolder, output: Path, *words: str) -> str:
    """Run a command that stops with one line, and return it."""
    images = ["--images", str(run.path.parents[1] / "new"), "--output", str(output)] if command == "predict" else []
    of_data = ["--data.num_workers", "0"] if command == "predict" else []
    done = run_program(command, "--ckpt_path", str(file), *images, *of_data, *elsewhere(output), *words)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.split())


@pytest.mark.long
def test_what_an_exported_file_cannot_do_is_one_line(run: RunFolder, tmp_path: Path) -> None:
    root = run.path.parents[1]
    bare, cut, graph = tmp_path / "bare.onnx", tmp_path / "cut.onnx", tmp_path / "graph.xml"
    shutil.copy(root / "outside.xml", graph)
    model = onnx.load(root / "graph.onnx")
    del model.metadata_props[:]
    onnx.save(model, bare)
    cut.write_bytes((root / "graph.onnx").read_bytes()[:5000])
    for command, file, words, text in (
        ("predict", root / "labels.onnx", ["--tta", "flip"], "returns labels, and this needs probabilities"),
        ("predict", root / "labels.onnx", ["--confidence"], "returns labels, and this needs probabilities"),
        ("predict", root / "labels.onnx", ["--tile", "64"], "returns labels; leave --tile out"),
        ("validate", root / "labels.onnx", [], "export it without --argmax to validate it"),
        ("predict", root / "graph.onnx", ["--tta", "scales=[1,1.5]"], "it shrinks images to 96 pixels"),
        ("predict", root / "graph.onnx", ["--engine", "onnx"], "leave --engine out"),
        ("predict", root / "outside.pt2", [], "may run code that lies in it"),
        ("predict", bare, [], "its metadata lack classes, palette, mean, std, max_size, input, output"),
        ("predict", cut, [], "cannot be loaded; it is damaged, cut off or of another format"),
        ("predict", tmp_path / "no.onnx", [], "no such exported file: "),
        ("predict", graph, [], "holds a graph without weights: graph.bin must be beside it"),
        ("fit", root / "graph.onnx", [], "cannot be trained further"),
        ("tune-crf", root / "graph.onnx", [], "give the checkpoint that it was exported from"),
    ):
        assert text in refusal(command, file, run, tmp_path / "out", *words)
        assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_file_of_8_bits_has_nearly_the_labels_and_figures_of_its_checkpoint(run: RunFolder, tmp_path: Path) -> None:
    root = run.path.parents[1]
    images, file = str(root / "images"), tmp_path / "int8.onnx"
    words = ("--preprocess", "metadata", "--output", str(file), "--int8", images)
    done = run_program("export", "--ckpt_path", str(run.best), *words, check=True)
    [share] = re.findall(r"labels of the network on ([\d.]+)% of the pixels of 10 images", done.stdout)
    assert float(share) > 98
    assert file.stat().st_size < 0.6 * (root / "outside.onnx").stat().st_size
    types = {node.op_type for node in onnx.load(file).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= types
    plain, exported = (load(source).predict(root / "new" / "3.png") for source in (run.best, file))
    assert (plain.mask == exported.mask).mean() > 0.97
    assert not np.allclose(plain.probabilities, exported.probabilities, atol=1e-6)  # so that something was quantised


@pytest.mark.long
def test_what_a_graph_does_to_images_stays_exact_in_8_bits(run: RunFolder, tmp_path: Path) -> None:
    """Positions in the matrices that shrink an image, in 256 steps, would take other pixels."""
    root, counts = run.path.parents[1], []
    module = SegmentationModule.load_from_checkpoint(run.best)
    for name in ("outside", "graph"):
        model = InferenceModel(module, has_preprocessing=name == "graph", has_argmax=False)
        inputs = [prepared(model, read_image(root / "new" / f"{index}.png")) for index in (0, 1)]
        quantize(root / f"{name}.onnx", tmp_path / f"{name}.onnx", inputs)
        nodes = onnx.load(tmp_path / f"{name}.onnx").graph.node
        counts.append(sum(node.op_type == "QuantizeLinear" for node in nodes))
    assert counts[0] == counts[1] > 10
    assert agreement(model, run_onnx(tmp_path / "graph.onnx"), inputs) > 0.98


@pytest.mark.long
def test_8_bits_that_find_other_labels_are_refused(run: RunFolder, tmp_path: Path) -> None:
    root = run.path.parents[1]
    model = InferenceModel(SegmentationModule.load_from_checkpoint(run.best), has_preprocessing=False, has_argmax=False)
    inputs = [prepared(model, read_image(path)) for path in sorted((root / "images").iterdir())]
    with pytest.raises(RuntimeError, match="in 8 bits the network finds the same labels on .* of the pixels only"):
        agreement(model, lambda images: -model(images), inputs)
    words = ("export", "--ckpt_path", str(run.best), "--output", str(tmp_path / "int8.onnx"), "--int8")
    with pytest.raises(ValueError, match=r"--int8 writes ONNX files, got --output .*model.pt2"):
        main([*words, str(root / "images"), "--output", str(tmp_path / "model.pt2")])
    with pytest.raises(FileNotFoundError, match="no such image, folder or list"):
        main([*words, str(root / "nothing")])
