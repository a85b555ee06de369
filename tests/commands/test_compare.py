"""Aggregation, comparison and the page, on run folders that were written by hand."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

from deeplab_lightning.commands.compare import compare, print_comparison
from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import aggregate, print_cv, read_cv
from deeplab_lightning.experiments.comparison import compare_experiments
from deeplab_lightning.experiments.significance import Difference
from deeplab_lightning.files import write_atomically
from deeplab_lightning.metrics.iou import truth_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder, RunFolder
from tests.conftest import write_image, write_mask
from tests.processes import run_program

CLASSES = ["sky", "road", "car"]
Write = Callable[..., Path]


@pytest.fixture
def experiment(tmp_path: Path) -> Write:
    """Return a function that writes an experiment of three folds of four images, and returns its folder."""
    for index in range(12):
        write_image(tmp_path / "images" / f"{index:02d}.png", (20, 20), seed=index)
        write_mask(tmp_path / "masks" / f"{index:02d}.png", np.full((20, 20), index % 3, dtype=np.uint8))

    def write(name: str, skill: float, *, has_predictions: bool = False, shift: int = 0) -> Path:
        folder = tmp_path / "runs" / name
        dataset = {"root": str(tmp_path), "images": "images", "masks": "masks", "classes": {"names": CLASSES}}
        config: dict[str, Any] = {"data": {"dataset": {"class_path": "MaskFolderDataset", "init_args": dataset}}}
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        header = "fold,class,images,objects,area,object_deviation,area_deviation\n"
        lines = [f"{fold},{c},4,4,1.3,0.{fold},nan\n" for fold in range(3) for c in CLASSES]
        (folder / "balance.csv").write_text(header + "".join(lines))
        rng = np.random.default_rng(len(name))
        for fold in range(3):
            run = folder / f"fold_{fold}"
            run.mkdir()
            matrices = []
            for index in range(12):
                if (index + shift) % 3 == fold:
                    counts = np.zeros((3, 3), dtype=np.int64)
                    right = int(400 * np.clip(skill + rng.normal(0, 0.02), 0, 1))
                    counts[index % 3, index % 3] = right
                    counts[index % 3, (index + 1) % 3] = 400 - right
                    matrices.append((f"{index:02d}.png", counts))
                    if has_predictions:
                        path = tmp_path / "images" / f"{index:02d}.png"
                        target = run / "val_predictions" / "masks" / str(path).lstrip("/")
                        write_mask(target, np.full((20, 20), (index + fold) % 3, dtype=np.uint8))
            parts = PerImageConfusion.of(matrices)
            parts.write(run / "image_matrices.npz")
            val = {"miou": 0.5, "iou": dict.fromkeys(CLASSES, 0.5)}
            cost = {"mega_parameters": 10 * skill, "giga_macs": 5 * skill}
            result = {"fold": fold, "n_folds": 3, "val": val, "seconds": 60 * skill, "cost": cost}
            (run / "result.json").write_text(json.dumps(result))
            curve = "".join(f"{e},{e},1,0.5,{skill * (e + 1) / 4}\n" for e in range(4))
            (run / "metrics.csv").write_text("epoch,step,seconds,train/loss,val/miou\n" + curve)
        return folder

    return write


def test_folds_are_pooled(experiment: Write) -> None:
    folder = experiment("a", 0.8)
    result = aggregate(folder)
    total = np.sum(
        [PerImageConfusion.read(folder / f"fold_{k}" / "image_matrices.npz").total() for k in range(3)], axis=0
    )
    hits = np.diag(total)
    iou = hits / (total.sum(axis=0) + total.sum(axis=1) - hits)
    document = json.loads((folder / "cv.json").read_text())
    assert document["out_of_fold"]["miou"] == pytest.approx(iou.mean(), abs=1e-6)
    assert document["confusion_matrix"] == total.tolist()
    assert document["mean"]["miou"] == pytest.approx(result.miou.mean(), abs=1e-6)
    assert document["std"]["miou"] == pytest.approx(result.miou.std(ddof=1), abs=1e-6)
    assert len(document["per_fold"]) == 3
    with (folder / "cv.csv").open() as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert float(rows["mIoU"]["pooled"]) == pytest.approx(iou.mean(), abs=1e-6)
    oof = PerImageConfusion.read(folder / "oof.npz")
    assert oof.names == [f"{index:02d}.png" for index in range(12)]
    assert np.array_equal(oof.total(), total)
    with Image.open(folder / "cv.png") as figure:
        assert figure.width > 200


def test_a_class_that_one_fold_lacks_is_no_problem(experiment: Write) -> None:
    folder = experiment("a", 0.8)  # image i shows class i % 3 and is in fold i % 3: each fold lacks a class
    shutil.rmtree(folder / "fold_2")
    result = aggregate(folder)
    assert np.isnan(result.iou).sum() == 4  # each fold's truth holds one class
    assert not math.isnan(result.pooled_miou)
    assert json.loads((folder / "cv.json").read_text())["folds"] == [0, 1]


def test_a_fold_that_was_trained_again_counts_once(experiment: Write) -> None:
    folder = experiment("a", 0.8)
    shutil.copytree(folder / "fold_0", folder / "fold_0-2")
    assert read_cv(folder).folds == [0, 1, 2]
    assert compare_experiments([folder], num_resamples=10).entries[0].cost["seconds"] == pytest.approx(3 * 48)


def test_other_truths_get_no_verdict(experiment: Write) -> None:
    a, b = experiment("a", 0.7), experiment("b", 0.8)
    path = b / "fold_0" / "image_matrices.npz"
    matrices = PerImageConfusion.read(path)
    PerImageConfusion(matrices.names, matrices.counts * 2).write(path)
    entry = compare_experiments([a, b], num_resamples=10).entries[1]
    assert entry.verdict is not None
    assert entry.verdict.sentence.startswith("b cannot be compared: 4 images have other truths than in the baseline.")
    assert math.isnan(entry.adjusted_p)


def test_an_experiment_without_a_finished_fold_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no finished run or fold"):
        read_cv(tmp_path)


def test_a_better_experiment_is_found_and_an_equal_one_is_not(experiment: Write) -> None:
    folders = [experiment("base", 0.7), experiment("better", 0.9), experiment("equal", 0.7)]
    base, better, equal = compare_experiments(folders, num_resamples=300).entries
    assert base.over_folds is None
    assert better.over_folds is not None
    assert better.over_images is not None
    assert better.over_folds.low > 0
    assert better.over_images.low > 0
    assert better.adjusted_p < 0.05
    assert equal.over_images is not None
    assert equal.over_images.low < 0 < equal.over_images.high
    assert equal.adjusted_p > 0.05
    assert better.adjusted_p >= better.over_folds.p  # Holm, over two comparisons
    assert base.interval[0] < base.miou < base.interval[1]


def test_other_folds_are_compared_over_images_only(experiment: Write) -> None:
    comparison = compare_experiments([experiment("a", 0.7), experiment("b", 0.8, shift=1)], num_resamples=100)
    assert comparison.entries[1].over_folds is None
    assert comparison.entries[1].over_images is not None
    assert any("not fold by fold" in note for note in comparison.notes)


def test_a_fold_that_one_lacks_is_left_out(experiment: Write) -> None:
    a, b = experiment("a", 0.7), experiment("b", 0.8)
    shutil.rmtree(b / "fold_1")
    comparison = compare_experiments([a, b], num_resamples=20)
    base, other = comparison.entries
    assert other.over_folds is not None
    matrices = read_cv(a).matrices[[0, 2]].sum(axis=0)
    assert base.miou == pytest.approx(np.nanmean(truth_iou(matrices)))
    assert other.over_folds.mean == pytest.approx(read_cv(b).pooled_miou - base.miou)
    assert any("b has not finished fold 1" in note for note in comparison.notes)
    assert not any("folds differ" in note for note in comparison.notes)


def test_all_columns_are_of_the_folds_that_all_have(experiment: Write, tmp_path: Path) -> None:
    a, b = experiment("a", 0.7), experiment("b", 0.8)
    shutil.rmtree(b / "fold_1")
    done = run_program("compare", str(a), str(b), "--json", str(tmp_path / "table.json"), check=True)
    base, other = json.loads((tmp_path / "table.json").read_text())["experiments"]
    of_both = read_cv(a).miou[[0, 2]]
    assert base["fold_mean"] == pytest.approx(of_both.mean())
    assert base["fold_std"] == pytest.approx(of_both.std(ddof=1))
    assert f"{of_both.mean():.3f} ± {of_both.std(ddof=1):.3f}" in done.stdout
    assert [base["seconds"], other["seconds"]] == pytest.approx([2 * 60 * 0.7, 2 * 60 * 0.8])
    assert "mIoU over 8 held-out images" in done.stdout
    assert "the training of the compared folds" in done.stdout


def test_folds_of_another_split_are_not_missing(experiment: Write) -> None:
    """Three experiments of 3, 3 and 5 folds were said not to have finished fold 3, 4."""
    folders = [experiment(name, 0.8) for name in ("a", "b", "c")]
    for number in range(3):
        result = folders[2] / f"fold_{number}" / "result.json"
        result.write_text(json.dumps({**json.loads(result.read_text()), "n_folds": 5, "fold": number + 2}))
        (folders[2] / f"fold_{number}").rename(folders[2] / f"fold_{number + 2}-")
    for path in folders[2].glob("fold_*-"):
        path.rename(path.with_name(path.name[:-1]))
    notes = compare_experiments(folders, num_resamples=20).notes
    assert not any("has not finished" in note for note in notes)


def test_few_groups_have_wider_intervals_and_one_has_none(experiment: Write) -> None:
    a, b = experiment("a", 0.7), experiment("b", 0.8)

    def compared(num_groups: int) -> Difference:
        rows = "".join(f"{index:02d}.png,{index % num_groups},0\n" for index in range(12))
        (a / "folds.csv").write_text("image,group,fold\n" + rows)
        comparison = compare_experiments([a, b])
        assert any(("groups of images" if num_groups > 1 else "one group") in n for n in comparison.notes)
        difference = comparison.entries[1].over_images
        assert difference is not None
        return difference

    many, few, one = compared(12), compared(2), compared(1)
    assert few.high - few.low > many.high - many.low > 0
    assert math.isnan(one.low)
    assert math.isnan(one.p)


def test_other_classes_or_images_stop(experiment: Write) -> None:
    a, b = experiment("a", 0.7), experiment("b", 0.7)
    for path in b.glob("fold_*/result.json"):
        path.write_text(path.read_text().replace("sky", "heaven"))
    with pytest.raises(DataError, match="has the classes"):
        compare_experiments([a, b])
    shutil.rmtree(b / "fold_0")
    for path in b.glob("fold_*/result.json"):
        path.write_text(path.read_text().replace("heaven", "sky"))
    shutil.rmtree(a / "fold_1")
    shutil.rmtree(a / "fold_2")
    with pytest.raises(DataError, match="share no held-out image"):
        compare_experiments([a, b])


def test_the_command_writes_table_and_csv(
    experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [experiment("base", 0.7), experiment("better", 0.8)]
    compare([*map(str, folders), "--csv", str(tmp_path / "out.csv")])
    output = capsys.readouterr().out
    assert "better" in output
    with (tmp_path / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["experiment"] for row in rows] == ["base", "better"]
    assert float(rows[1]["difference"]) == pytest.approx(float(rows[1]["miou"]) - float(rows[0]["miou"]), abs=1e-5)
    assert float(rows[1]["difference_low_folds"]) > 0
    assert rows[0]["difference"] == ""


@pytest.mark.parametrize("width", [80, 100])
def test_tables_stay_readable_in_narrow_terminals(experiment: Write, width: int) -> None:
    names = [f"deeplabv3plus-tf_efficientnet_lite{index}-20260101" for index in range(5)]
    comparison = compare_experiments([experiment(name, 0.7) for name in names], num_resamples=20)
    file = StringIO()
    print_comparison(comparison, Console(file=file, width=width))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for text in ("95 % images", "mean ± std of folds", "95 % folds", "p (Holm)", "M params", "minutes"):
        assert any(text in line for line in lines)  # heads are whole
    first, *others = (f"{entry.interval[0]:.3f} to {entry.interval[1]:.3f}" for entry in comparison.entries)
    assert all(any(text in line for line in lines) for text in (first, *others))
    differences = [entry.over_folds for entry in comparison.entries[1:] if entry.over_folds]
    assert all(any(f"{d.low:+.3f} to {d.high:+.3f}" in line for line in lines) for d in differences)
    head = next(line for line in lines if line.startswith("┃ class"))
    assert [word for word in head.split() if word != "┃"] == ["class", "1", "2", "3", "4", "5"]  # names are too wide
    assert "1 deeplabv3" in file.getvalue()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_name_is_broken_and_the_answer_comes_first(
    experiment: Write, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names were folded in their middle, such as `deeplabv3-effi` and `cientnet-b3`."""
    names = [f"deeplabv3plus-tf_efficientnet_lite{index}-2026" for index in range(3)]
    folders = [experiment(name, 0.7) for name in names]
    comparison = compare_experiments(folders, num_resamples=20)
    file = StringIO()
    print_comparison(comparison, Console(file=file, width=width))
    text = file.getvalue()
    assert " ".join(text.split()).startswith(comparison.sentences[0])
    assert all(name in text for name in names)
    assert max(map(len, text.splitlines())) <= width
    is_wide = any(line.startswith("│ ") and names[2] in line for line in text.splitlines())
    assert is_wide == (width > 80)
    assert is_wide or "3 deeplabv3plus" in text
    monkeypatch.setattr("deeplab_lightning.experiments.aggregate.table_console", lambda: Console(width=width))
    result = replace(read_cv(folders[0]), class_names=["a class with a long name", "road", "styrofoam-container"])
    print_cv(result, folders[0])
    printed = capsys.readouterr().out
    assert "│ a class with a long name │" in printed
    assert "│ styrofoam-container " in printed


def shown_images(page: Path) -> list[dict[str, Any]]:
    """Return the images of a report page."""
    [text] = re.findall(r'<script id="images" type="application/json">(.*?)</script>', page.read_text())
    images: list[dict[str, Any]] = json.loads(text)
    return images


def test_predictions_are_found_by_their_table(experiment: Write, tmp_path: Path) -> None:
    """Wherever the project lies and whatever the files are called; earlier versions named them by their paths."""
    folder = experiment("a", 0.8, has_predictions=True)
    predictions = ExperimentFolder(folder).fold(0).val_predictions
    old = predictions.masks / str(tmp_path / "images").lstrip("/")
    names = sorted(path.name for path in old.iterdir())
    stems = {name: f"sub/{index}" for index, name in enumerate(names)}
    written = [(old / name).read_bytes() for name in names]
    shutil.rmtree(predictions.masks)
    predictions.begin(stems)
    for stem, content in zip(stems.values(), written, strict=True):
        write_atomically(predictions.mask(stem), lambda file, content=content: file.write(content))  # type: ignore[misc]
    compare([str(folder), "--html", str(tmp_path / "report.html")])
    assert set(names) <= {image["name"] for image in shown_images(tmp_path / "report.html")}


def test_an_experiment_called_truth_does_not_replace_the_truth(experiment: Write, tmp_path: Path) -> None:
    folders = [experiment(name, 0.8, has_predictions=True) for name in ("truth", "image")]
    compare([*map(str, folders), "--html", str(tmp_path / "report.html")])
    views = shown_images(tmp_path / "report.html")[0]["views"]
    assert list(views) == ["image", "truth", "truth (prediction)", "image (prediction)"]
    assert views["image"] != views["truth"]


@pytest.mark.parametrize("basis", ["images", "groups of images", "folds", "folds without images"])
def test_the_stars_say_what_their_intervals_are_over(
    basis: str, experiment: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Folds decide for classes too, where they do for mIoU: a training differs from another one in most classes.
    folders = [experiment("base", 0.7), experiment("better", 0.8, shift=0 if "folds" in basis else 1)]
    if basis == "groups of images":
        rows = "".join(f"{index:02d}.png,{index % 6},0\n" for index in range(12))
        (folders[0] / "folds.csv").write_text("image,group,fold\n" + rows)
    if basis == "folds without images":
        for path in folders[0].glob("fold_*/image_matrices.npz"):
            RunFolder(path.parent).write_confusion(PerImageConfusion.read(path).total(), CLASSES)
            path.unlink()
    compare([*map(str, folders), "--html", str(tmp_path / "report.html")])
    basis = basis.removesuffix(" without images")
    assert f"*: differs (p < 0.05 over {basis}, Holm over the classes)" in capsys.readouterr().out
    assert f"differ (p &lt; 0.05 over {basis}, adjusted by Holm" in (tmp_path / "report.html").read_text()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, where one is installed."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


LOWEST_CONTRAST = """() => {
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const under = numbers(getComputedStyle(document.body).backgroundColor);
  return Math.min(...[...document.querySelectorAll("td")].map((cell) => {
    const style = getComputedStyle(cell), [r, g, b, a = 1] = numbers(style.backgroundColor);
    const back = [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
    const [x, y] = [light(numbers(style.color)), light(back)];
    return (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
  }));
}"""


@pytest.mark.slow
def test_figures_are_seen_on_a_phone_beside_long_names(experiment: Write, tmp_path: Path, browser: Any) -> None:
    names = [f"cv-deeplabv3-tf_efficientnet_lite{index}-20260101-120000" for index in range(2)]
    compare([*(str(experiment(name, 0.7)) for name in names), "--html", str(tmp_path / "report.html")])
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto((tmp_path / "report.html").as_uri())
    first = page.locator("#summary tbody td").first.bounding_box()
    assert first["width"] < 390 / 2
    assert first["height"] < 200  # not a letter a line
    label = page.locator("svg text").first
    assert label.evaluate("text => text.getBoundingClientRect().height") >= 9  # pixels
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


@pytest.mark.slow
def test_the_page_works_in_a_browser(experiment: Write, tmp_path: Path, browser: Any) -> None:
    folders = [experiment(n, s, has_predictions=True) for n, s in (("base", 0.7), ("better", 0.8), ("c<b>&", 0.6))]
    damaged = next((folders[1] / "fold_0").glob("val_predictions/masks/**/*.png"))
    damaged.write_bytes(damaged.read_bytes()[:40])  # as a kill may leave it
    page_path = tmp_path / "report.html"
    compare([*map(str, folders), "--html", str(page_path)])
    page = browser.new_page(viewport={"width": 390, "height": 800})
    errors: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_path.as_uri())
    names = "#summary tbody tr td:first-child"
    assert page.locator(names).all_inner_texts() == ["base", "better", "c<b>&"]
    page.locator("#summary").get_by_role("button", name="mIoU").click()
    assert page.locator(names).all_inner_texts() == ["better", "base", "c<b>&"]
    page.locator("#summary").get_by_role("button", name="mIoU").click()
    assert page.locator(names).all_inner_texts() == ["c<b>&", "base", "better"]
    shown = page.locator("#shown")
    first = shown.get_attribute("src")
    gallery = page.locator("#gallery")
    gallery.get_by_label("better", exact=True).check()
    second = shown.get_attribute("src")
    page.get_by_role("button", name="Next").click()
    third = shown.get_attribute("src")
    assert len({first, second, third}) == 3
    assert "2 of 11" in page.locator("#place").inner_text()
    page.locator("#gallery").focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert "1 of 11" in page.locator("#place").inner_text()
    assert gallery.get_by_label("c<b>&", exact=True).is_checked()
    assert page.locator("#shown").evaluate("image => image.complete && image.naturalWidth > 0")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing sticks out on a phone
    assert page.locator("svg").count() == 6
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(LOWEST_CONTRAST) >= 4.5  # WCAG AA
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    page.close()
