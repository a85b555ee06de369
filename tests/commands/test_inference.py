"""Average checkpoints and views by the real commands, against the mean computed here."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor

from deeplab_lightning import DeepLabV3, SegmentationModule, evaluation, load
from deeplab_lightning.cli import main
from deeplab_lightning.commands.training import load_checkpoint
from deeplab_lightning.data.datasets import CocoDataset
from deeplab_lightning.data.images import LARGE_PIXELS, MAX_PIXELS, read_image
from deeplab_lightning.inference import Ensemble, Views
from deeplab_lightning.inference.regions import RegionFilter
from deeplab_lightning.inference.tiles import Tiled
from deeplab_lightning.models import DeepLab
from deeplab_lightning.resizing import resize
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from deeplab_lightning.tables import read_csv
from tests.conftest import draw_noise_data, shared_copy, train_noise_experiment, write_image
from tests.processes import run_program

Masks = dict[str, npt.NDArray[np.uint8]]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> ExperimentFolder:
    """An experiment of two folds on ten images."""
    return ExperimentFolder(shared_copy(tmp_path_factory, "inference", draw_and_train) / "runs" / "cv")


def draw_and_train(root: Path) -> None:
    draw_noise_data(root)
    train_noise_experiment(root)


def predicted(folder: Path) -> Masks:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "masks").glob("*.png"))}


def nets_of(checkpoints: list[Path]) -> list[DeepLab]:
    return [SegmentationModule.load_from_checkpoint(path).net.eval() for path in checkpoints]


def mean_labels(nets: list[DeepLab], image: Tensor, views: list[tuple[float, bool]]) -> npt.NDArray[np.uint8]:
    """Compute the labels of the mean of the probabilities, without the package's own averaging."""
    parts = []
    for net in nets:
        x = net.preprocess(image[None])
        for scale, is_flipped in views:
            size = (round(x.shape[-2] * scale), round(x.shape[-1] * scale))
            view = x if scale == 1 else resize(x, size)
            with torch.no_grad():
                logits = net(view.flip(-1)).flip(-1) if is_flipped else net(view)
            parts.append(resize(logits, (x.shape[-2], x.shape[-1])).softmax(1))
    labels: npt.NDArray[np.uint8] = torch.stack(parts).mean(0).argmax(1)[0].to(torch.uint8).numpy()
    return labels


@pytest.mark.long
@pytest.mark.parametrize(
    ("tta", "views"),
    [
        (None, [(1, False)]),
        ("flip", [(1, False), (1, True)]),
        ("scales=[0.75,1,1.25],flip", [(s, f) for s in (0.75, 1, 1.25) for f in (False, True)]),
    ],
)
def test_folds_are_averaged_for_prediction(
    experiment: ExperimentFolder, tmp_path: Path, tta: str | None, views: list[tuple[float, bool]]
) -> None:
    images = experiment.path.parents[1] / "images"
    words = ["--experiment", str(experiment.path), "--images", str(images), "--output", str(tmp_path / "out")]
    done = run_program("predict", *words, *(["--tta", tta] if tta else []), check=True)
    assert "Averaging the probabilities of 2 checkpoints" in done.stdout + done.stderr
    found = predicted(tmp_path / "out")
    assert len(found) == 10
    nets = nets_of([run.best for run in experiment.runs()])
    shares = []
    for stem, mask in found.items():
        expected = mean_labels(nets, read_image(images / f"{stem}.png"), views)
        shares.append((mask == expected).mean())
    assert np.mean(shares) > 0.999  # kernels of CPUs round differently
    alone = {stem: mean_labels(nets[:1], read_image(images / f"{stem}.png"), [(1, False)]) for stem in found}
    assert np.mean([(found[stem] == alone[stem]).mean() for stem in found]) < 0.99  # so that this test can fail


@pytest.mark.long
def test_an_experiment_is_predicted_into_its_own_folder(experiment: ExperimentFolder) -> None:
    images = experiment.path.parents[1] / "images" / "00.png"
    for name in ("predictions", "predictions-2"):
        run_program("predict", "--experiment", str(experiment.path), "--images", str(images), check=True)
        assert list((experiment.path / name / "masks").iterdir())


@pytest.mark.long
def test_views_are_recorded_with_the_figures(experiment: ExperimentFolder) -> None:
    best = experiment.fold(0).best
    run_program("validate", "--ckpt_path", str(best), check=True)
    run_program("validate", "--ckpt_path", str(best), "--tta", "flip", check=True)
    folder = RunFolder(experiment.fold(0).path).path
    plain, averaged = (json.loads((folder / f"result_validate{n}.json").read_text()) for n in ("", "-2"))
    assert "averaged" not in plain
    assert averaged["averaged"] == {"networks": 1, "scales": [1.0], "flip": True}
    assert averaged["val"]["loss"] != plain["val"]["loss"]


@pytest.mark.long
def test_folds_are_tested_on_other_data_alone(experiment: ExperimentFolder, tmp_path: Path) -> None:
    refused = run_program("test", "--experiment", str(experiment.path))
    assert refused.returncode == 1
    assert "an ensemble cannot be tested on the validation part" in " ".join(refused.stderr.split())
    draw_noise_data(tmp_path)
    arguments: dict[str, Any] = {"root": str(tmp_path), "images": "images", "masks": "masks"}
    arguments["classes"] = {"names": ["sky", "road", "car"], "ignore_ids": [11]}
    dataset = {"class_path": "MaskFolderDataset", "init_args": arguments}
    words = ("--experiment", str(experiment.path), "--data.test_dataset", json.dumps(dataset))
    run_program("test", *words, check=True)
    result = json.loads((experiment.path / "result_test.json").read_text())
    assert result["averaged"]["networks"] == 2
    assert result["num_images"] == 10


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--tta", "rotate"], 1, "--tta must be flip, scales="),
        (["--tta", "scales=[0]"], 1, "--tta must be flip, scales="),
        (["--tta", "scales=[]"], 1, "--tta must be flip, scales="),
        (["--ensemble", "[nothing.ckpt]"], 1, "no such checkpoint"),
        (["--experiment", "nothing"], 2, "leave --ckpt_path and --ensemble out"),
    ],
)
def test_what_cannot_be_averaged_is_one_line(
    experiment: ExperimentFolder, words: list[str], status: int, text: str
) -> None:
    images = str(experiment.path.parents[1] / "images")
    done = run_program("predict", "--ckpt_path", str(experiment.fold(0).best), "--images", images, *words)
    assert done.returncode == status, done.stderr
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def nets(count: int) -> list[DeepLabV3]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = DeepLabV3(3, backbone="test_resnet", aspp_channels=8, pretrained=False).eval()
        made.append(net)
    return made


def test_one_network_and_one_view_is_the_network() -> None:
    [net] = nets(1)
    images = torch.randint(0, 256, (2, 3, 40, 56), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.allclose(Ensemble([net])(images).exp(), net(images).softmax(1), atol=1e-6)


def test_mirrored_images_have_mirrored_probabilities() -> None:
    images = torch.randint(0, 256, (1, 3, 40, 56), dtype=torch.uint8)
    ensemble = Ensemble(nets(2), Views(flip=True))
    with torch.no_grad():
        assert torch.allclose(ensemble(images.flip(-1)).flip(-1), ensemble(images), atol=1e-4)


def test_the_mean_is_a_distribution_and_needs_no_more_memory_than_two() -> None:
    images = torch.randint(0, 256, (1, 3, 33, 47), dtype=torch.uint8)
    with torch.no_grad():
        total = Ensemble(nets(3), Views((0.5, 1.0, 1.5), True))(images).exp().sum(1)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-5)


def test_networks_of_other_classes_are_refused() -> None:
    other = DeepLabV3(4, backbone="test_resnet", aspp_channels=8, pretrained=False)
    with pytest.raises(ValueError, match="the same classes and channels"):
        Ensemble([*nets(1), other])


def test_networks_that_read_images_in_another_way_are_refused() -> None:
    """The second would see the pixels of the first, darker or brighter than those that it was trained on."""
    one, other = nets(2)
    other.preprocess.image_format = {"channels": 3, "value_range": [0.0, 4095.0], "mean": None, "std": None}
    with pytest.raises(ValueError, match="must read images alike"):
        Ensemble([one, other])


@pytest.mark.parametrize(
    ("text", "views"),
    [
        (None, Views()),
        ("flip", Views(flip=True)),
        ("scales=[0.75, 1,1.25]", Views((0.75, 1.0, 1.25))),
        ("flip,scales=[0.5]", Views((0.5,), True)),
    ],
)
def test_views_are_read(text: str | None, views: Views) -> None:
    assert Views.parse(text) == views


@pytest.mark.long
def test_python_predicts_what_the_command_does(experiment: ExperimentFolder, tmp_path: Path) -> None:
    images = experiment.path.parents[1] / "images"
    words = ("--images", str(images), "--output", str(tmp_path / "out"), "--tta", "flip")
    run_program("predict", "--experiment", str(experiment.path), *words, check=True)
    model = load(experiment.path, tta="flip")
    found = model.predict(images)
    expected = predicted(tmp_path / "out")
    assert {Path(name).stem for name in found} == set(expected)
    assert np.mean([(own.mask == expected[Path(name).stem]).mean() for name, own in found.items()]) > 0.999
    one = found["00.png"]
    assert np.allclose(one.probabilities.sum(axis=0), 1, atol=1e-5)
    pixels = np.asarray(Image.open(images / "00.png"))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    for picture in (images / "00.png", str(images / "00.png"), Image.open(images / "00.png"), pixels, tensor):
        assert np.array_equal(model.predict(picture).mask, one.mask)
    assert [own.mask.shape for own in model.predict([pixels, pixels[:20]])] == [(48, 64), (20, 64)]
    one.save(tmp_path / "mask.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mask.png")), one.mask)
    assert one.overlay().size == (64, 48)
    assert one._repr_png_().startswith(b"\x89PNG")
    assert repr(one).startswith("Prediction of 48x64 pixels: ")
    assert sum(one.shares().values()) == pytest.approx(1)


@pytest.mark.long
def test_what_python_cannot_load_is_named(experiment: ExperimentFolder, tmp_path: Path) -> None:
    for source, text in (
        (tmp_path, "no finished run with a best.ckpt"),
        (tmp_path / "a.ckpt", "no such checkpoint"),
        ([], "at least one network"),
    ):
        with pytest.raises(ValueError, match=text):
            load(source)
    model = load(experiment.fold(0).best)
    with pytest.raises(ValueError, match=r"a tensor must be \(3, H, W\) uint8"):
        model.predict(torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="has 5 channels"):
        model.predict(np.zeros((20, 20, 5), dtype=np.uint8))
    with pytest.raises(ValueError, match="saved as .png"):
        model.predict(np.zeros((40, 40, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one image that is larger than a tile of 64 pixels, and one that is not."""
    folder = tmp_path_factory.mktemp("larger")
    write_image(folder / "large.png", (150, 200), seed=3)
    write_image(folder / "small.png", (48, 64), seed=4)
    return folder


@pytest.mark.long
def test_images_are_predicted_in_tiles_by_command_and_python(
    experiment: ExperimentFolder, larger: Path, tmp_path: Path
) -> None:
    """Of folds and views too. A tile that saw its neighbours' pixels, or weights that do not add up, would show."""
    options = ("--images", str(larger), "--tta", "flip", "--tile", "64", "--overlap", "32")
    done = run_program("predict", "--experiment", str(experiment.path), *options, "--output", str(tmp_path), check=True)
    assert "Larger images are processed in tiles of 64 pixels that overlap by 32." in done.stdout + done.stderr
    found, model = predicted(tmp_path), load(experiment.path, tta="flip")
    alone, tiled = model.predict(larger), model.predict(larger, tile=64, overlap=32)
    masks = model.predict(larger, tile=64, overlap=32, probabilities=False)
    for name in ("large", "small"):
        assert (found[name] == tiled[f"{name}.png"].mask).mean() > 0.999  # kernels of CPUs round differently
        assert np.array_equal(masks[f"{name}.png"].mask, tiled[f"{name}.png"].mask)
        assert masks[f"{name}.png"].probabilities is None
    assert np.array_equal(tiled["small.png"].probabilities, alone["small.png"].probabilities)
    assert (tiled["large.png"].mask != alone["large.png"].mask).any()  # so that this test can fail
    assert np.allclose(tiled["large.png"].probabilities.sum(axis=0), 1, atol=1e-5)


@pytest.mark.long
def test_figures_in_tiles_need_no_image_of_all_classes(
    experiment: ExperimentFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures are those of all probabilities at once, as of losses that are no mean of parts."""
    (tmp_path / "masks").mkdir()
    for index in range(2):
        write_image(tmp_path / "images" / f"{index}.png", (100, 150), seed=index)
        labels = np.random.default_rng(index).choice([0, 1, 2, 11], size=(100, 150)).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "masks" / f"{index}.png")
    arguments: dict[str, Any] = {"root": str(tmp_path), "images": "images", "masks": "masks"}
    arguments["classes"] = {"names": ["sky", "road", "car"], "ignore_ids": [11]}
    dataset = json.dumps({"class_path": "MaskFolderDataset", "init_args": arguments})
    words = ["--ckpt_path", str(experiment.fold(1).best), "--tile", "64", "--data.test_dataset", dataset]
    words += ["--model.loss", "deeplab_lightning.CrossEntropyLoss", "--model.loss.class_weights", "[1, 2, 0.5]"]

    def figures() -> dict[str, Any]:
        before = set(experiment.fold(1).path.glob("result_test*.json"))
        main(["test", *words, "--calibration", str(tmp_path / "temperature.json")])
        [path] = set(experiment.fold(1).path.glob("result_test*.json")) - before
        found: dict[str, Any] = json.loads(path.read_text())["test"]
        sampled = json.loads((tmp_path / "temperature.json").read_text())["cross_fitted"]["before"]
        return {**found.pop("iou"), **found, "nll": sampled["nll"]}

    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "is_mean_of_parts", lambda loss: False)
        expected = figures()
    monkeypatch.setattr(Tiled, "assembled", None)
    assert figures() == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_figures_in_tiles_are_those_of_the_masks_in_tiles(experiment: ExperimentFolder, tmp_path: Path) -> None:
    """With a CRF, which `test` and `predict` must use in the same way: within each tile."""
    data = experiment.path.parents[1]
    crf = ("--model.postprocess", "DenseCRF", "--model.postprocess.iterations", "1")
    best, tiles = ("--ckpt_path", str(experiment.fold(0).best)), ("--tile", "64", "--overlap", "0")
    for stem in ("00", "01"):
        size = (96, 128)
        pixels = Image.open(data / "images" / f"{stem}.png").resize(size[::-1])
        mask = Image.open(data / "masks" / f"{stem}.png").resize(size[::-1], Image.Resampling.NEAREST)
        for kind, image in (("images", pixels), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            image.save(tmp_path / kind / f"{stem}.png")
    arguments: dict[str, Any] = {"root": str(tmp_path), "images": "images", "masks": "masks"}
    arguments["classes"] = {"names": ["sky", "road", "car"], "ignore_ids": [11]}
    dataset = json.dumps({"class_path": "MaskFolderDataset", "init_args": arguments})
    run_program("test", *best, *tiles, *crf, "--data.test_dataset", dataset, "--name", "tiled", check=True)
    run_program("predict", *best, *tiles, *crf, "--images", str(tmp_path / "images"), "--output", str(tmp_path / "out"))
    results = sorted(experiment.fold(0).path.glob("result_test*.json"), key=lambda path: path.stat().st_mtime)
    result = json.loads(results[-1].read_text())
    assert result["averaged"] == {"tile": 64, "overlap": 0}
    pairs = [
        (np.asarray(Image.open(tmp_path / "masks" / f"{stem}.png")), mask)
        for stem, mask in predicted(tmp_path / "out").items()
    ]
    counted, right = (sum(int(part(*pair).sum()) for pair in pairs) for part in (lambda t, p: t != 11, np.equal))
    assert result["test"]["pixel_accuracy"] == pytest.approx(right / counted, abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--tile", "100"], "--tile must be a multiple of 32 from 64 pixels, got 100."),
        (["--tile", "64", "--overlap", "40"], "--overlap must be from 0 to half of --tile, 32 pixels, got 40."),
        (["--overlap", "40"], "--overlap needs the size of the tiles"),
    ],
)
def test_tiles_that_cannot_be_used_are_one_line(experiment: ExperimentFolder, words: list[str], text: str) -> None:
    images = str(experiment.path.parents[1] / "images")
    done = run_program("predict", "--ckpt_path", str(experiment.fold(0).best), "--images", images, *words)
    assert done.returncode == 1
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(("words", "limit"), [([], MAX_PIXELS), (["--tile", "64"], LARGE_PIXELS)])
def test_larger_files_are_predicted_in_tiles_alone(experiment: ExperimentFolder, words: list[str], limit: int) -> None:
    _, data, _ = load_checkpoint(["--ckpt_path", str(experiment.fold(0).best), *words])
    data.predict_images = str(experiment.path.parents[1] / "images")
    loader: Any = data.predict_dataloader()
    assert loader.dataset.dataset.max_pixels == limit


@pytest.mark.long
def test_small_regions_are_left_out_of_masks_and_figures(experiment: ExperimentFolder, tmp_path: Path) -> None:
    best, images = experiment.fold(0).best, experiment.path.parents[1] / "images"
    words = ("--ckpt_path", str(best), "--images", str(images))
    run_program("predict", *words, "--output", str(tmp_path / "all"), check=True)
    run_program("predict", *words, "--output", str(tmp_path / "large"), "--min_area", "road=3000", check=True)
    before, after = predicted(tmp_path / "all"), predicted(tmp_path / "large")
    own = load(best).predict(images, min_area={"road": 3000})
    regions = RegionFilter([0, 3000, 0])
    assert any((after[stem] != before[stem]).any() for stem in before)  # so that this test can fail
    for stem in before:
        assert np.array_equal(after[stem], regions.filtered(before[stem]))
        assert (own[f"{stem}.png"].mask == after[stem]).mean() > 0.999
    figures = []
    for extra in ((), ("--min_area", "road=3000")):
        run_program("test", "--ckpt_path", str(best), *extra, check=True)
        results = experiment.fold(0).path.glob("result_test*.json")
        figures.append(json.loads(max(results, key=lambda path: path.stat().st_mtime).read_text()))
    assert figures[1]["min_area"] == [0, 3000, 0]
    assert figures[1]["test"]["iou"] != figures[0]["test"]["iou"]
    refused = run_program("predict", *words, "--min_area", "glass=4")
    assert refused.returncode == 1
    assert "--min_area names no class 'glass'. The classes are sky, road, car." in " ".join(refused.stderr.split())


@pytest.mark.long
def test_all_outputs_describe_the_same_masks(experiment: ExperimentFolder, tmp_path: Path) -> None:
    """In tiles and in whole images. A broken image is named, and stops no other."""
    shutil.copytree(experiment.path.parents[1] / "images", tmp_path / "images")
    write_image(tmp_path / "images" / "sub" / "large.png", (90, 150))
    words = ("--ckpt_path", str(experiment.fold(0).best), "--images", str(tmp_path / "images"), "--tile", "64")
    out = tmp_path / "out"
    files = ("--coco", "coco.json", "--csv", "sub/submission.csv", "--csv_size", "32")
    run_program("predict", *words, "--output", str(tmp_path / "plain"), check=True)
    (tmp_path / "images" / "01.png").write_bytes(b"no image")
    options = (*files, "--confidence", "--probabilities", "npz", "--overlays", "false")
    done = run_program("predict", *words, "--output", str(out), *options)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "01.png" in line and "cannot be decoded" in line]
    assert "Traceback" not in done.stderr
    masks = {
        path.relative_to(out / "masks").as_posix(): np.asarray(Image.open(path)) for path in out.rglob("masks/**/*.png")
    }
    assert len(masks) == 10
    assert not (out / "overlays").exists()
    rows = read_csv(out / "sub" / "submission.csv")
    assert [row["image_id"] for row in rows] == sorted(masks)
    for row in rows:
        mask, stem = masks[row["image_id"]], row["image_id"].removesuffix(".png")
        assert np.array_equal(mask, np.asarray(Image.open(tmp_path / "plain" / "masks" / row["image_id"])))
        probabilities = np.load(out / "probabilities" / f"{stem}.npz")["probabilities"].astype(float)
        assert probabilities.shape == (3, *mask.shape)
        assert (probabilities.argmax(axis=0) == mask).mean() > 0.99  # float16 has ties
        confidence = np.asarray(Image.open(out / "confidence" / f"{stem}.png"))
        assert np.abs(confidence - 255 * probabilities.max(axis=0)).max() < 1
        near = [((np.arange(32) + 0.5) * length / 32).astype(int) for length in mask.shape]
        ids = np.array(row["PredictionString"].split(), dtype=int).reshape(32, 32)
        assert np.array_equal(ids, mask[np.ix_(*near)])
    table = read_csv(out / "predictions.csv", ("image", "mask", "confidence", "probabilities"))
    written = [row for row in table if row["image"] != "01.png"]
    assert all((out / row[kind]).is_file() for row in written for kind in ("mask", "confidence", "probabilities"))
    dataset = CocoDataset(str(out / "coco.json"), str(tmp_path / "images"))
    assert list(dataset.classes.names) == ["background", "sky", "road", "car"]
    for index, name in enumerate(dataset.names):
        assert np.array_equal(dataset.read_mask(index).numpy(), masks[name] + 1)  # all have a class


@pytest.mark.long
def test_runs_of_classes_decode_to_the_masks(experiment: ExperimentFolder, tmp_path: Path) -> None:
    images = experiment.path.parents[1] / "images"
    words = ("--ckpt_path", str(experiment.fold(0).best), "--images", str(images), "--output", str(tmp_path))
    options = ("--csv", "a.csv", "--csv_format", "rle", "--probabilities", "uint8")
    run_program("predict", *words, *options, check=True)
    masks = predicted(tmp_path)
    found = {stem: np.full(mask.size, 255, dtype=np.uint8) for stem, mask in masks.items()}
    for row in read_csv(tmp_path / "a.csv"):
        numbers = list(map(int, row["EncodedPixels"].split()))
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            found[Path(row["ImageId"]).stem][start - 1 : start - 1 + length] = int(row["ClassId"])
    assert all(np.array_equal(found[stem].reshape(mask.shape[::-1]).T, mask) for stem, mask in masks.items())
    values = np.load(tmp_path / "probabilities" / "00.npz")["probabilities"]
    assert values.dtype == np.uint8
    assert (np.abs(values.sum(axis=0, dtype=int) - 255) <= 2).all()


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["--coco", "../coco.json"], 1, "--coco must be a new file name in the folder of the predictions"),
        (["--csv", "/tmp/a.csv"], 1, "--csv must be a new file name in the folder of the predictions"),
        (["--csv", "predictions.csv"], 1, "--csv must be a new file name in the folder of the predictions"),
        (["--csv", "masks/a.csv"], 1, "--csv must be a new file name in the folder of the predictions"),
        (["--csv", "mine.csv"], 1, "mine.csv exists. Choose another name."),
        (["--csv", "a", "--coco", "a"], 1, "--coco and --csv must be two files, got a for both."),
        (["--csv_size", "8"], 1, "--csv_size and --csv_format need the name of the file"),
        (["--csv", "a.csv", "--csv_size", "0"], 2, "csv_size must be at least 1 and at most 65,535, got 0."),
        (["--probabilities", "float"], 2, "probabilities"),
    ],
)
def test_outputs_that_cannot_be_written_are_one_line(
    experiment: ExperimentFolder, tmp_path: Path, words: list[str], status: int, text: str
) -> None:
    (tmp_path / "mine.csv").write_text("the user's own")
    images = str(experiment.path.parents[1] / "images")
    done = run_program(
        *("predict", "--ckpt_path", str(experiment.fold(0).best), "--images", images),
        *("--output", str(tmp_path), *words),
    )
    assert done.returncode == status
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]
    assert (tmp_path / "mine.csv").read_text() == "the user's own"


@pytest.mark.long
def test_a_file_that_is_no_image_is_refused_first(experiment: ExperimentFolder, tmp_path: Path) -> None:
    """It said `0 images predicted.`, and `cannot identify image file <_io.BytesIO object at 0x7f...>`."""
    (tmp_path / "noise.yaml").write_text("data: {}\n")
    words = ("predict", "--ckpt_path", str(experiment.fold(0).best), "--output", "out", "--images")
    refused = run_program(*words, "noise.yaml", cwd=tmp_path)
    assert refused.returncode == 1
    *others, line = refused.stderr.splitlines()
    assert [other for other in others if "Seed set" not in other] == []
    assert line.startswith("error: noise.yaml: is no image. Give a folder, an image (.jpg, .jpeg, .png")
    assert line.endswith(" or a .txt list of images.")
    assert refused.stdout == ""
    assert not (tmp_path / "out").exists()
    write_image(tmp_path / "0.png")
    (tmp_path / "0.png").rename(tmp_path / "image")  # an image without a suffix is one by its content
    assert "1 images predicted." in run_program(*words, "image", cwd=tmp_path, check=True).stdout
    (tmp_path / "broken.png").write_text("text")
    broken = run_program(*words, "broken.png", cwd=tmp_path).stderr
    assert "broken.png: cannot be decoded (it is in no known image format)" in broken
