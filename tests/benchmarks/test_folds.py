"""What the folds promise, on real and on large counts. `make bench`, one thread; not part of the suite."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from deeplab_lightning import stratified_folds
from deeplab_lightning.data.classes import ClassTable
from deeplab_lightning.data.datasets import MaskFolderDataset
from deeplab_lightning.data.folds.balance import fold_balance, lower_bounds
from deeplab_lightning.data.groups import PatternGroups
from deeplab_lightning.data.scan import scan_dataset

Array = npt.NDArray[np.float64]
Report = Callable[[str, dict[str, float]], None]


def taco(real_data: Path) -> tuple[Array, Array]:
    """Objects and pixels of TACO's 60 categories in its 1500 images."""
    content = json.loads((real_data / "taco" / "annotations.json").read_text())
    rows = {image["id"]: row for row, image in enumerate(sorted(content["images"], key=lambda i: str(i["file_name"])))}
    objects, pixels = np.zeros((len(rows), 60)), np.zeros((len(rows), 60))
    for annotation in content["annotations"]:
        objects[rows[annotation["image_id"]], annotation["category_id"]] += 1
        pixels[rows[annotation["image_id"]], annotation["category_id"]] += annotation["area"]
    return objects, pixels


def coco_like(num_images: int = 118_287, seed: int = 0) -> tuple[Array, Array]:
    """Counts and areas like COCO's: 80 classes with a long tail, in scenes that make classes meet."""
    rng = np.random.default_rng(seed)
    frequency = np.maximum(0.55 * np.arange(1, 81.0) ** -1.15, 0.0022)
    affinity = rng.gamma(0.35, 1.0, (12, 80))
    affinity /= affinity.mean(axis=0)
    scene = rng.integers(0, 12, num_images)
    chance = np.minimum(frequency * affinity, 0.9)
    chance = np.minimum(chance * 2.94 / chance[scene].sum(axis=1).mean(), 0.97)
    rows, columns = np.nonzero(rng.random((num_images, 80), dtype=np.float32) < chance[scene])
    objects, areas = np.zeros((num_images, 80)), np.zeros((num_images, 80))
    objects[rows, columns] = rng.geometric(0.393, len(rows))
    areas[rows, columns] = np.minimum(objects[rows, columns] * rng.lognormal(-4.5, 1.3, len(rows)), 1)
    return objects, areas


def some_groups(num_images: int, seed: int = 1) -> npt.NDArray[np.int64]:
    """Groups of 7 neighbours on average."""
    sizes = np.random.default_rng(seed).geometric(1 / 7, num_images)
    return np.repeat(np.arange(num_images), sizes)[:num_images]


def timed(call: Callable[[], npt.NDArray[np.int64]]) -> tuple[npt.NDArray[np.int64], float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def test_taco(real_data: Path, report: Report) -> None:
    objects, pixels = taco(real_data)
    num_images = (objects > 0).sum(axis=0)
    some, many = num_images >= 5, num_images >= 50
    (object_max, object_mean), (_, pixel_mean) = lower_bounds(objects, 5), lower_bounds(pixels, 5)
    figures = {}
    for method in ("iterstrat", "balanced"):
        rows = []
        for seed in range(10):
            folds, seconds = timed(lambda: stratified_folds(objects, pixels, 5, seed=seed, method=method))  # noqa: B023
            balance = fold_balance(objects, pixels, folds, 5)
            rows.append(
                {
                    "object excess mean": (balance.object_deviation.mean(axis=0) - object_mean)[some].mean(),
                    "object excess max": (balance.object_deviation.max(axis=0) - object_max)[some].max(),
                    "object max of 50 images": balance.object_deviation[:, many].max(),
                    "pixel excess mean": (balance.pixel_deviation.mean(axis=0) - pixel_mean)[some].mean(),
                    "divergence max": balance.divergence.max(),
                    "seconds": seconds,
                }
            )
        figures = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        report(f"TACO-60, 5 folds, {method}, mean of 10 seeds", figures)
    assert figures["object excess mean"] <= 0.003
    assert figures["object excess max"] <= 0.06
    assert figures["object max of 50 images"] <= 0.065
    assert figures["pixel excess mean"] <= 0.040
    assert figures["divergence max"] <= 0.026
    assert figures["seconds"] <= 0.6


def test_coco_scale(report: Report) -> None:
    objects, areas = coco_like()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folds, seconds = timed(lambda: stratified_folds(objects, areas, 5))
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    theirs, iterstrat_seconds = timed(lambda: stratified_folds(objects, areas, 5, method="iterstrat"))
    report(
        "118,287 x 80, iterstrat", fold_balance(objects, areas, theirs, 5).summary() | {"seconds": iterstrat_seconds}
    )
    figures = fold_balance(objects, areas, folds, 5).summary()
    report("118,287 x 80, balanced", figures | {"seconds": seconds, "megabytes": megabytes})
    assert figures["object_max"] <= 0.0145
    assert figures["pixel_max"] <= 0.006
    assert seconds <= 2.5 * iterstrat_seconds
    assert megabytes <= 300


def test_coco_scale_in_groups(report: Report) -> None:
    rows = []
    for seed in range(4):
        objects, areas = coco_like(seed=seed)
        groups = some_groups(len(objects))
        folds, seconds = timed(lambda: stratified_folds(objects, areas, 5, groups=groups))  # noqa: B023
        rows.append(fold_balance(objects, areas, folds, 5).summary() | {"seconds": seconds})
    figures = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    report(f"118,287 x 80 in {groups.max() + 1} groups, mean of 4 sets", figures)
    assert figures["object_max"] <= 0.02
    assert figures["pixel_max"] <= 0.012
    assert figures["seconds"] <= 12


def test_growth(report: Report) -> None:
    seconds = {}
    for num_images in (10_000, 100_000, 1_000_000):
        objects, areas = coco_like(num_images)
        _, seconds[num_images] = timed(lambda: stratified_folds(objects, areas, 5))  # noqa: B023
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report("growth", {f"{n:,} images": s for n, s in seconds.items()} | {"megabytes at most": megabytes})
    assert seconds[1_000_000] <= 60
    assert seconds[1_000_000] / seconds[100_000] <= 10 * 6 / 5  # N log N


def test_camvid(real_data: Path, report: Report) -> None:
    classes = ClassTable(tuple(f"class {index}" for index in range(11)), ignore_ids=[11])
    parts = [
        MaskFolderDataset(str(real_data / "camvid"), part, masks=f"{part}annot", classes=classes)
        for part in ("train", "val")
    ]
    statistics = [scan_dataset(part, is_quiet=True) for part in parts]
    objects = np.concatenate([s.objects for s in statistics]).astype(float)
    areas = np.concatenate([s.areas for s in statistics])
    for n_folds, chunk_size in ((2, None), (5, 30)):
        grouping = PatternGroups("^(.*?)_", chunk_size)
        labels = [
            f"{label}-{number}" if chunk_size else label
            for number, part in enumerate(parts)
            for label in grouping.labels(part)
        ]
        figures = {}
        for method in ("group", "balanced"):
            folds = stratified_folds(objects, areas, n_folds, groups=labels, method=method)
            figures[method] = fold_balance(objects, areas, folds, n_folds).summary()
            report(f"CamVid train+val, {len(set(labels))} groups, {n_folds} folds, {method}", figures[method])
        assert figures["balanced"]["object_mean"] <= figures["group"]["object_mean"]
        assert figures["balanced"]["pixel_mean"] <= figures["group"]["pixel_mean"]


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Report:
    """Prints figures in one line, past pytest's capture."""

    def show(title: str, figures: dict[str, float]) -> None:
        with capsys.disabled():
            print(f"\n{title}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), end="")

    return show
