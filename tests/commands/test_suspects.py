"""Plant errors in labels, train on them by the real command, and find them."""

from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from deeplab_lightning.tables import read_csv
from tests.commands.shapes import COLORS
from tests.planted import Planted, count_hits, region_hits
from tests.processes import run_program


@pytest.fixture(scope="module")
def planted(planted_experiment: tuple[Path, list[Planted]]) -> tuple[Path, list[Planted]]:
    """The experiment with its suspects, and the errors."""
    experiment, errors = planted_experiment
    run_program("suspects", str(experiment), "--min_area", "1", check=True)
    return experiment, errors


@pytest.mark.long
def test_planted_errors_come_first(planted: tuple[Path, list[Planted]]) -> None:
    """Of 32 images with 96 objects, six have an error. Most regions lie on none, so the order of the names fails."""
    experiment, errors = planted
    hits = region_hits(experiment / "suspects", errors)
    found = count_hits(errors, hits[: len(errors)])
    assert min(found.precision, found.recall) >= 0.8
    assert count_hits(errors, hits).precision < 0.4  # what any order finds that knows nothing


@pytest.mark.long
def test_regions_are_written_for_people_and_for_annotation_tools(planted: tuple[Path, list[Planted]]) -> None:
    experiment, errors = planted
    folder = experiment / "suspects"
    rows = read_csv(folder / "suspects.csv", ("rank", "image", "label", "predicted", "score", "bbox", "area"))
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) > 0
    coco = COCO(folder / "suspects.json")  # the reader of annotation tools
    assert [own["name"] for own in coco.cats.values()] == ["background", *COLORS]
    assert len(coco.anns) == len(rows)
    for row, annotation in zip(rows, coco.anns.values(), strict=True):
        mask = coco.annToMask(annotation).astype(bool)
        assert coco.cats[annotation["category_id"]]["name"] == row["predicted"]
        assert annotation["attributes"]["label"] == row["label"]
        assert mask.sum() == int(row["area"]) == annotation["area"]
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert [int(word) for word in row["bbox"].split()] == box == annotation["bbox"]
    images = read_csv(folder / "suspect_images.csv", ("rank", "image", "score", "regions"))
    assert len(images) == 32
    assert {row["image"] for row in images[: len(errors)]} & {error.image for error in errors}
    page = (folder / "suspects.html").read_text()
    assert page.count("<figure") == len(rows)
    assert page.count("data:image/jpeg;base64,") == 3 * len(rows)
    assert (folder / "suspects.html").parent.joinpath("../../../data/00.png").resolve().is_file()
    assert 'href="../../../data/' in page


@pytest.mark.long
def test_a_run_has_suspects_of_its_validation_images(planted: tuple[Path, list[Planted]], tmp_path: Path) -> None:
    experiment, _ = planted
    run = experiment / "fold_1"
    words = ("--output", str(tmp_path / "out"), "--limit", "3", "--min_area", "120")
    done = run_program("suspects", str(run), *words, check=True)
    assert "16 held-out images" in done.stdout
    rows = read_csv(tmp_path / "out" / "suspects.csv")
    assert len(rows) <= 3
    assert all(int(row["area"]) >= 120 for row in rows)
    held_out = {row["image"] for row in read_csv(experiment / "folds.csv") if row["fold"] == "1"}
    assert {row["image"] for row in read_csv(tmp_path / "out" / "suspect_images.csv")} == held_out


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing"], "no finished run with a best.ckpt in"),
        (["nothing", "--limit", "0"], "--limit must be at least 1, got 0"),
        (["nothing", "--min_area", "-1"], "--min_area must be at least 1, got -1"),
    ],
)
def test_what_has_no_suspects_is_one_line(words: list[str], text: str) -> None:
    done = run_program("suspects", *words)
    assert done.returncode == 1
    assert text in done.stderr
    assert len(done.stderr.splitlines()) == 1
