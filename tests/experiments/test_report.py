"""The page of a comparison and of one experiment, on experiments whose answer is known."""

import csv
import io
import json
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from deeplab_lightning.cli import main
from deeplab_lightning.errors import MissingFileError
from deeplab_lightning.experiments.comparison import compare_experiments
from deeplab_lightning.experiments.report import write_report
from deeplab_lightning.experiments.report.axes import shortened
from deeplab_lightning.experiments.report.charts import Point
from deeplab_lightning.experiments.report.training_curves import training_curve
from deeplab_lightning.runs import ExperimentFolder
from tests.commands.test_compare import Write as WriteImages
from tests.commands.test_compare import browser, experiment  # noqa: F401, the fixtures
from tests.experiments.test_repetitions import seeds_of
from tests.experiments.test_verdict import Write, images, write  # noqa: F401, the fixture


def page_of(folder: Path, *experiments: Path) -> str:
    """Return the HTML of the page of a comparison."""
    path = folder / "page.html"
    main(["compare", *map(str, experiments), "--html", str(path)])
    return path.read_text()


def section(page: str, title: str) -> str:
    """Return the part of a page below a heading."""
    return page.split(f"<h2>{title}")[1].split("<h2>")[0]


def cells(part: str, first: str) -> list[str]:
    """Return the texts of a table's row by its first cell."""
    for row in re.findall(r"<tr>(.*?)</tr>", part, flags=re.DOTALL):
        texts = [unescape(re.sub("<.*?>", "", cell)).strip() for cell in re.findall(r"<t[dh].*?</t[dh]>", row)]
        if texts[0] == first:
            return texts
    raise AssertionError(f"no row {first}")


def test_the_deciding_difference_is_drawn_with_its_interval(write: Write, tmp_path: Path) -> None:  # noqa: F811
    """The page drew each mIoU with an interval, from which nobody can read whether two experiments differ."""
    folders = [write(name, images(right, seed=i)) for i, (name, right) in enumerate((("a", 0.9), ("b", 0.8)))]
    verdict = compare_experiments(folders).entries[1].verdict
    assert verdict is not None
    found = verdict.deciding
    part = section(page_of(tmp_path, *folders), "Differences of mIoU from a")
    text = f"b: {found.mean:+.3f} (95 %: {found.low:+.3f} to {found.high:+.3f}), over folds"
    assert f"<title>{text}</title>" in part
    dot, zero = (
        float(re.findall(pattern, part)[0]) for pattern in (r'cx="([\d.]+)"', r'x1="([\d.]+)"[^>]*class="zero"')
    )
    assert dot < zero


def test_settings_and_origin_are_shown_as_far_as_the_folders_hold_them(
    write: Write,  # noqa: F811
    tmp_path: Path,
) -> None:
    configs = {name: {"model": {"net": name, "loss": "same"}, "data": {"n_folds": 4}} for name in "ab"}
    folders = [write(name, images(0.8, seed=i), config=configs[name]) for i, name in enumerate("ab")]
    for run in ExperimentFolder(folders[0]).runs():
        more = {"dataset": "litter", "data_digest": "0123456789ab", "num_images": 40, "epochs": 10, "commit": "c0ffee+"}
        run.write_result({**(run.read_result() or {}), **more, "versions": {"torch": "2.9"}, "command": "deeplab fit"})
    page = page_of(tmp_path, *folders)
    settings = section(page, "Settings")
    assert cells(settings, "model.net") == ["model.net", "a", "b"]
    with pytest.raises(AssertionError, match="no row model.loss"):
        cells(settings, "model.loss")
    assert "All settings of b" in settings
    assert "loss: same" in settings
    origin = section(page, "Where the results come from")
    facts = ("data", "digest of the data", "pictures", "epochs", "hours", "torch", "commit", "command")
    values = ("litter", "0123456789ab", "40", "10", "0.07", "2.9", "c0ffee+", "deeplab fit")
    assert [cells(origin, fact)[1] for fact in facts] == list(values)
    assert cells(origin, "trainings")[2] == "4 (4 of 4 folds)"
    assert '<a href="a/">a</a>' in page


def test_each_class_stands_beside_what_it_is_computed_from(write: Write, tmp_path: Path) -> None:  # noqa: F811
    folder = write("a", images(0.8, count=8))
    header = "fold,class,images,objects,area,object_deviation,area_deviation\n"
    rows = [f"{fold},road,4,{fold + 1},1.3,{(0.6, 0.2, 0.2, 0.6)[fold]},0\n" for fold in range(4)]
    (folder / "balance.csv").write_text(header + "".join(rows))
    part = section(page_of(tmp_path, folder), "IoU of each class")
    assert cells(part, "class")[:4] == ["class", "pictures", "objects", "area"]
    assert cells(part, "sky")[:4] == ["sky", "8", "", "50.00%"]
    assert cells(part, "road")[:4] == ["road", "8", "10", "50.00%"]
    assert cells(part, "boat") == ["boat", "0", "", "0.00%", "absent"]


def test_a_run_shows_the_objects_of_the_fold_that_it_held_out(write: Write, tmp_path: Path) -> None:  # noqa: F811
    """The page of a run named the objects of all folds beside the pictures of its own."""
    run = write("a", images(0.8, count=8)) / "fold_1"
    rows = [f"{fold},road,4,{fold + 1},1.3,{(0.6, 0.2, 0.2, 0.6)[fold]},0\n" for fold in range(4)]
    header = "fold,class,images,objects,area,object_deviation,area_deviation\n"
    (run / "balance.csv").write_text(header + "".join(rows))
    assert cells(section(page_of(tmp_path, run), "IoU of each class"), "road")[2] == "2"


def test_curves_have_bands_over_folds_and_seeds(write: Write) -> None:  # noqa: F811
    """Only the first seed was drawn, and only the mean of its folds."""
    folders = [*seeds_of(write, "a", [0.8, 0.81], n_folds=2), *seeds_of(write, "b", [0.7, 0.71], n_folds=2)]
    values = iter((0.1, 0.2, 0.3, 0.6))
    for run in (run for folder in folders[:2] for run in ExperimentFolder(folder).runs()):
        figure = next(values)
        run.write_metrics([{"epoch": 0, "val/miou": figure, "train/loss": 2.0}, {"epoch": 1, "val/miou": 2 * figure}])
    entry = compare_experiments(folders, num_resamples=20).entries[0]
    assert [point.x for point in training_curve(entry, "val/miou", color=0).points] == [1, 2]
    first, second = training_curve(entry, "val/miou", color=0).points
    assert first == pytest.approx(Point(1, 0.3, 0.1, 0.6))
    assert second.high == 1.2
    assert training_curve(entry, "train/loss", color=0).points == [Point(1, 2.0, 2.0, 2.0)]


def test_the_page_of_many_classes_stays_small(write: Write, tmp_path: Path) -> None:  # noqa: F811
    names = [f"class {index}" for index in range(200)]
    rng = np.random.default_rng(0)
    folders = []
    for name in "abc":
        matrices = [np.diag(rng.integers(50, 90, 200)) + rng.integers(0, 2, (200, 200)) for _ in range(4)]
        for own in matrices:
            own[17, 42] = 500
        folders.append(write(name, matrices, n_folds=2, classes=names))
    page = page_of(tmp_path, *folders)
    assert len(page) < 300_000
    pairs = section(page, "The pairs of classes that are confused most")
    first = re.findall(r"<tr><td>(.*?)</td>", pairs)[0]
    total = sum(matrix[17].sum() for matrix in matrices)
    assert first == "class 17 → class 42"
    assert cells(pairs, first)[3] == f"{2000 / total:.1%}"
    assert json.loads(re.findall(r'<script id="counts"[^>]*>(.*?)</script>', page)[0] or "null") is None


def test_a_run_and_an_experiment_have_their_own_page(
    write: Write,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    single = write("single", images(0.8), n_folds=1)
    run = next(single.glob("fold_0"))
    seeds = seeds_of(write, "seeded", [0.8, 0.9], n_folds=2)
    for folder in (run, seeds[0].parent):
        main(["report", str(folder)])
        assert f"Written to {folder}/report.html" in " ".join(capsys.readouterr().out.split())
        page = (folder / "report.html").read_text()
        assert page.count("<h2>") >= 4
        assert "Differences of mIoU" not in page
    assert "<title>Report of seeded</title>" in page
    assert "seeded pools 2 seeds with a mIoU of" in page
    main(["report", str(run), "--html", str(tmp_path / "elsewhere.html")])
    assert f'<a href="{run.relative_to(tmp_path)}/">' not in (tmp_path / "elsewhere.html").read_text()  # no config
    with pytest.raises(MissingFileError, match="no such folder of a run or an experiment: .*nothing"):
        main(["report", str(tmp_path / "nothing")])
    with pytest.raises(MissingFileError, match="no finished run or fold"):
        main(["report", str(tmp_path)])


def test_long_names_keep_their_telling_ends() -> None:
    labels = [f"cv-deeplabv3plus-resnet50-2026010{day}" for day in (1, 2)]
    assert [shortened(label) for label in labels] == ["cv-deepl…snet50-20260101", "cv-deepl…snet50-20260102"]
    assert shortened("resnet50") == "resnet50"


@pytest.mark.long
def test_images_are_ordered_and_searched_and_figures_are_saved(
    experiment: WriteImages,  # noqa: F811
    tmp_path: Path,
    browser: Any,  # noqa: F811
) -> None:
    folders = [experiment(name, skill, has_predictions=True) for name, skill in (("base", 0.7), ("=1+1", 0.8))]
    comparison = compare_experiments(folders, num_resamples=20)
    write_report(comparison, tmp_path / "report.html")
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto((tmp_path / "report.html").as_uri())
    place, order = page.locator("#place"), page.locator("#order")
    assert page.locator("#order option").all_inner_texts() == [
        "lowest mIoU first",
        "largest difference between experiments first",
        *(f"lowest IoU of {name} first" for name in page.evaluate(
            "[...new Set(images.flatMap((image) => Object.keys(image.classes)))]")),
    ]  # fmt: skip
    order.select_option("lowest IoU of car first")
    assert place.inner_text().startswith("1 of 4: ")  # image i shows the class i % 3
    assert int(place.inner_text()[-6:-4]) % 3 == 2
    order.select_option("lowest mIoU first")
    page.locator("#search").fill("07")
    assert place.inner_text() == "1 of 1: 07.png"
    page.locator("#search").fill("no such")
    assert place.inner_text() == "no such image on this page"

    def saved(scope: str, name: str) -> bytes:
        with page.expect_download() as download:
            page.locator(f"{scope} + .save").get_by_role("button", name=name).click()
        return Path(download.value.path()).read_bytes()

    rows = list(csv.reader(io.StringIO(saved("div:has(> #summary)", "CSV").decode())))
    assert [row[0] for row in rows] == ["experiment", "base", "'=1+1"]
    assert float(rows[2][1]) == pytest.approx(comparison.entries[1].miou)
    drawing = saved("[data-name=differences]", "SVG").decode()
    assert drawing.startswith("<svg")
    assert "var(--" not in drawing
    assert saved("[data-name=confusion]", "PNG").startswith(b"\x89PNG")
    shown = comparison.entries[1].matrix[0, 0] / comparison.entries[1].matrix[0].sum()
    page.locator("#matrices").get_by_label("=1+1", exact=True).check()
    assert f"sky predicted as sky: {100 * shown:.1f} %" in page.locator("#confusion").inner_html()
    page.locator("#matrices").get_by_label("=1+1 - base").check()
    change = shown - comparison.entries[0].matrix[0, 0] / comparison.entries[0].matrix[0].sum()
    assert f"sky predicted as sky: +{100 * change:.1f} points" in page.locator("#confusion").inner_html()
    assert page.locator("abbr[title]").count() >= 8
    link = page.locator("#summary a").nth(1).get_attribute("href")
    assert (tmp_path / unquote(link)).samefile(folders[1])
    page.close()
