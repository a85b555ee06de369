"""Plant errors in the labels of litter scenes, train the folds of an experiment on them, and count what is found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import ndimage

from deeplab_lightning.cli import main
from deeplab_lightning.data import write_synthetic
from deeplab_lightning.data.datasets import CocoDataset
from deeplab_lightning.inference.out_of_fold import OutOfFold
from deeplab_lightning.metrics.iou import mean_iou
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.tables import read_csv
from tests.benchmarks import measure as record
from tests.planted import Planted, count_hits, plant_errors, region_hits

CONFIGS = Path(__file__).parents[2] / "configs"
PER_KIND, NUM_IMAGES, SIZE, SEED = 12, 240, 128, 1
THIN, MIN_AREA = 7, 50  # pixels
TOO_RARE = ("paper pack", "glass", "styrofoam", "battery", "clothing")  # to be learned from so few images
CLASS_MAP: dict[str, str | None] = dict.fromkeys(TOO_RARE)


def train(folder: Path) -> tuple[Path, list[Planted]]:
    """Train two of three folds on labels with errors by the real command; the third would only take time."""
    clean = write_synthetic(folder / "data", num_images=NUM_IMAGES, size=SIZE, seed=SEED)
    corrupted = clean.with_name("planted.json")
    errors = plant_errors(clean, corrupted, per_kind=PER_KIND, seed=SEED, class_map=CLASS_MAP)
    arguments = {"annotations": str(corrupted), "class_map": CLASS_MAP}
    config: dict[str, Any] = {
        "wandb": "disabled",
        "output_dir": str(folder / "runs"),
        "trainer": {"max_epochs": 24, "precision": "bf16-mixed", "callbacks": []},
        "data": {
            "dataset": {"class_path": "CocoDataset", "init_args": arguments},
            "n_folds": 3,
            "num_workers": 0,
            "train_transforms": {
                "class_path": "deeplab_lightning.data.TrainTransforms",
                "init_args": {"crop_size": SIZE, "scale_range": [0.75, 1.25]},
            },
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    files = ("base", "model/deeplabv3_efficientnet", "trainer/cpu")
    shipped = [word for name in files for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    main(["kfold", *shipped, "-c", str(folder / "config.yaml"), "--name", "cv", "--folds", "0,1"])
    experiment = folder / "runs" / "cv"
    held_out = {row["image"] for row in read_csv(experiment / "folds.csv") if row["fold"] in {"0", "1"}}
    return experiment, [error for error in errors if error.image in held_out]


def measure(experiment: Path, errors: Sequence[Planted]) -> dict[str, Any]:
    """Count what the regions and the images find, beside images by their mIoU and at random."""
    main(["suspects", str(experiment), "--limit", "1000"])
    count = len(errors)
    hits = region_hits(experiment / "suspects", errors)
    concerned = {error.image for error in errors}
    by_score = [row["image"] for row in read_csv(experiment / "suspects" / "suspect_images.csv")]
    images = PerImageConfusion.read(experiment / "oof.npz")
    classes = images.num_classes
    miou = mean_iou(np.asarray(images.counts.todense()).reshape(-1, classes, classes))
    by_miou = [images.names[index] for index in np.argsort(miou, kind="stable")]
    share = {key: len(concerned.intersection(order[:count])) / count for key, order in
             (("score", by_score), ("miou", by_miou))}  # fmt: skip
    return {
        "errors": count,
        "images": len(images.names),
        "regions_first_k": count_hits(errors, hits[:count])._asdict(),
        "regions_first_2k": count_hits(errors, hits[: 2 * count])._asdict(),
        "regions_first_10": count_hits(errors, hits[:10])._asdict(),
        "images_first_k": {**share, "random": count / len(images.names)},
    }


def seen_by_width(experiment: Path) -> dict[str, Any]:
    """Measure what share of an object's pixels held-out predictions find, since what is not seen cannot be missed.

    An object is a connected region of a class in labels without errors; its width is the side of the largest square
    in it. Smaller ones than `suspects` reports are left out.
    """
    truth = CocoDataset(str(experiment.parents[1] / "data" / "annotations.json"), class_map=CLASS_MAP)
    shares: dict[str, list[float]] = {"thin": [], "others": []}
    for image in OutOfFold(experiment).predictions():
        mask = truth.read_mask(truth.names.index(image.name)).numpy()
        predicted = image.probabilities.argmax(dim=0).numpy()
        for train_id in np.unique(mask[(mask > 0) & (mask != truth.classes.ignore_index)]):
            regions, count = ndimage.label(mask == train_id)
            for number in range(1, count + 1):
                inside = regions == number
                if inside.sum() >= MIN_AREA:
                    width = 2 * ndimage.distance_transform_cdt(np.pad(inside, 1), "chessboard").max() - 1
                    share = float((predicted[inside] == train_id).mean())
                    shares["thin" if width <= THIN else "others"].append(share)
    return {key: {"objects": len(own), "mean_share_seen": float(np.mean(own))} for key, own in shares.items()}


def test_planted_errors_are_found(tmp_path: Path) -> None:
    experiment, errors = train(tmp_path)
    found = {**measure(experiment, errors), "objects": seen_by_width(experiment)}
    print(record.write("suspects", found))
    assert found["images_first_k"]["score"] > found["images_first_k"]["miou"] > found["images_first_k"]["random"]
