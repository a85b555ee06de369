"""What a comparison says, on experiments whose answer is known."""

import csv
import json
import re
from collections.abc import Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from deeplab_lightning.commands.compare import compare
from deeplab_lightning.errors import DataError
from deeplab_lightning.experiments.aggregate import aggregate, print_cv, read_cv
from deeplab_lightning.experiments.comparison import compare_experiments
from deeplab_lightning.experiments.entries import Entry
from deeplab_lightning.experiments.experiment import Experiment
from deeplab_lightning.experiments.pairs import compare_pairs
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder

Write = Callable[..., Path]
Matrix = npt.NDArray[np.int64]
CLASSES = ["sky", "road", "boat"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes an experiment from the matrices of its images, and returns its folder.

    write(name, images, n_folds=...) deals the images to the folds in turn.
    """

    def experiment(
        name: str,
        images: list[Matrix],
        *,
        n_folds: int = 4,
        config: Mapping[str, Any] | None = None,
        classes: list[str] = CLASSES,
        digest: str | None = None,
    ) -> Path:
        folder = ExperimentFolder(tmp_path / name)
        settings = {"data": {"n_folds": n_folds}, "trainer": {"max_epochs": 10}, "model": {"net": name}}
        folder.write_config({**settings, **(config or {})})
        for fold in range(n_folds):
            run = folder.fold(fold)
            held_out = [(f"{index:03d}.png", own) for index, own in enumerate(images) if index % n_folds == fold]
            PerImageConfusion.of(held_out).write(run.images)
            figures = {"miou": 0.5, "iou": dict.fromkeys(classes, 0.5)}
            number = None if n_folds == 1 else fold
            split = {"fold": number, "n_folds": n_folds if n_folds > 1 else None}
            run.write_result({**split, "val": figures, "seconds": 60, "cost": {}, "data_digest": digest})
        return folder.path

    return experiment


def image(right: float, *, false_boats: int = 0) -> Matrix:
    """Return the matrix of an image with 1000 pixels of sky and of road, of which a share is right, and no boat."""
    hits = round(1000 * right)
    return np.array([[hits - false_boats, 1000 - hits, false_boats], [1000 - hits, hits, 0], [0, 0, 0]])


def images(right: float, *, spread: float = 0.02, seed: int = 0, count: int = 40) -> list[Matrix]:
    rng = np.random.default_rng(seed)
    return [image(float(np.clip(right + rng.normal(0, spread), 0, 1))) for _ in range(count)]


def judged(*folders: Path) -> Entry:
    entry = compare_experiments(folders, num_resamples=400).entries[1]
    assert entry.verdict is not None
    return entry


def test_false_pixels_of_an_absent_class_are_no_verdict(write: Write) -> None:
    """Three of 80,000 pixels made B worse by .167 mIoU with p = 0.000, since its mean had one more class, of IoU 0."""
    a = images(0.9)
    b = [*a[:-1], a[-1] + image(0, false_boats=3) - image(0)]
    folders = write("a", a), write("b", b)
    comparison = compare_experiments(folders, num_resamples=400)
    entry = comparison.entries[1]
    assert abs(entry.difference) < 1e-4
    assert entry.verdict is not None
    assert "not distinguishable" in entry.verdict.sentence
    assert comparison.notes[0] == (
        "the compared images show no boat, so mIoU leaves this out (false pixels: a 0, b 3)."
    )
    for folder in folders:  # the pooled result quotes the same figure
        assert aggregate(folder).pooled_miou == pytest.approx(0.82, abs=0.02)
        quoted = json.loads((folder / "cv.json").read_text())["out_of_fold"]["miou"]
        assert quoted == pytest.approx(comparison.entries[folders.index(folder)].miou, abs=1e-6)


def test_one_training_each_shows_no_better_recipe(write: Write) -> None:
    """Two seeds of one recipe differ in most sets of 1,000 images, if only the choice of images counts."""
    entry = judged(write("a", images(0.80), n_folds=1), write("b", images(0.85, seed=1), n_folds=1))
    assert entry.adjusted_p < 0.05
    assert entry.verdict is not None
    assert entry.verdict.sentence.startswith("These two checkpoints, of b and a, differ on these images: +0.0")
    assert "does not show which recipe is better" in entry.verdict.sentence
    assert not re.search(r"is (better|worse) than", entry.verdict.sentence)


def test_folds_show_which_recipe_is_better(write: Write) -> None:
    entry = judged(write("a", images(0.80)), write("b", images(0.85, seed=1)))
    assert entry.verdict is not None
    assert entry.verdict.sentence.startswith("b is better than a: +0.0")
    assert entry.verdict.basis == "folds"
    deciding = entry.verdict.deciding
    assert deciding.mean == pytest.approx(entry.difference)  # the pooled one, not the mean of the folds
    assert deciding.low < deciding.mean < deciding.high
    worse = judged(write("c", images(0.85)), write("d", images(0.80, seed=1)))
    assert worse.verdict is not None
    assert worse.verdict.sentence.startswith("d is worse than c: -0.0")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"trainer": {"max_epochs": 20}}, "they also differ in trainer.max_epochs (20 and 10), which may explain it"),
        ({"data": {"n_folds": 4, "dataset": {"init_args": {"root": "x"}}}}, "they also differ in data.dataset.root"),
    ],
)
def test_unequal_trainings_are_not_called_better(write: Write, config: dict[str, Any], text: str) -> None:
    base = {"data": {"n_folds": 4, "dataset": {"init_args": {"root": "y"}}}} if "data" in config else {}
    entry = judged(write("a", images(0.80), config=base), write("b", images(0.85, seed=1), config=config))
    assert entry.verdict is not None
    assert entry.verdict.sentence.startswith("b and a differ: +0.0")
    assert text in entry.verdict.sentence


def test_another_number_of_processes_may_explain_a_difference(write: Write) -> None:
    """Each of them adds its batch to every step; nothing named it, and the other setting was called better."""
    one, two = ({"trainer": {"max_epochs": 10, "devices": devices}, "model": {"net": "same"}} for devices in (1, "2"))
    a = write("a", images(0.80), config=one)
    entry = judged(a, write("b", images(0.85, seed=1), config={**two, "model": {"net": "other"}}))
    assert entry.verdict is not None
    assert entry.verdict.sentence.startswith("b and a differ: +0.0")
    assert "trainer.devices x num_nodes (2 and 1), which may explain it" in entry.verdict.sentence


def test_other_images_may_explain_a_difference(write: Write) -> None:
    """Only the page showed that the digests differ."""
    config, folders = {"model": {"net": "same"}}, []
    for name, right, digest in (("a", 0.80, "0" * 16), ("b", 0.85, "1" * 16), ("c", 0.85, "0" * 16)):
        folders.append(write(name, images(right), config={**config, "loss": name}, digest=digest))
    comparison = compare_experiments(folders, num_resamples=400)
    sentences = [entry.verdict.sentence for entry in comparison.entries if entry.verdict]
    assert sentences[0].endswith("; so do their images or labels, which may explain it.")
    assert sentences[1].startswith("c is better than a")
    assert comparison.notes[0] == ("by their digests, the data of b hold other images or labels than the baseline's.")


def test_equal_images_are_one_data_set_wherever_they_lie(write: Write) -> None:
    def of(root: str, **more: Any) -> dict[str, Any]:
        dataset = {"init_args": {"root": root, "masks": f"{root}/masks"}}
        return {"data": {"n_folds": 4, "dataset": dataset}, "model": {"net": "same"}, **more}

    a = write("a", images(0.80), config=of("/disk/d1"), digest="0" * 16)
    b = write("b", images(0.85, seed=1), config=of("d1", loss="other"), digest="0" * 16)
    entry = judged(a, b)
    assert entry.verdict is not None
    assert entry.verdict.sentence.startswith("b is better than a")
    assert entry.verdict.differing == {}
    seeds = [write(f"s{seed}", images(0.80), config=of(root, seed_everything=seed), digest="0" * 16)
             for seed, root in enumerate(("/disk/d1", "d1"))]  # fmt: skip
    assert len(compare_experiments([b, *seeds], num_resamples=400).entries) == 2


def test_digests_of_earlier_versions_say_nothing_of_these(write: Write) -> None:
    folder = ExperimentFolder(write("a", images(0.80), digest="0" * 16))
    for digest, is_said in (("1" * 12, False), ("1" * 16, True)):
        result = folder.fold(0).read_result()
        assert result is not None
        folder.fold(0).write_result({**result, "data_digest": digest})
        notes = read_cv(folder.path).notes
        assert ("the folds of a were trained on different images or labels, by their digests." in notes) == is_said


def test_unknown_settings_prove_nothing(write: Write) -> None:
    """A folder without its configuration made `they also differ in ...` a `better`."""
    a, b = write("a", images(0.80)), write("b", images(0.85, seed=1))
    (b / "config.yaml").unlink()
    for folders in ((a, b), (b, a)):
        entry = judged(*folders)
        assert entry.verdict is not None
        assert entry.verdict.sentence.endswith("; b has no readable config.yaml, so its settings are unknown.")
        assert "better" not in entry.verdict.sentence
    c = write("c", images(0.75, seed=2))
    assert not [verdict.sentence for verdict in compare_pairs([a, b, c])[:1] if "readable" not in verdict.sentence]


def test_converted_files_are_named(write: Write) -> None:
    folders = write("a", images(0.80), n_folds=2), write("b", images(0.85), n_folds=2)
    for run in ExperimentFolder(folders[1]).runs():
        matrices = PerImageConfusion.read(run.images)
        PerImageConfusion([name.replace(".png", ".jpg") for name in matrices.names], matrices.counts).write(run.images)
    with pytest.raises(DataError, match="share no held-out image: a, b. Their names differ in the endings alone"):
        compare_experiments(folders)


def test_what_was_to_be_compared_may_be_the_epochs(write: Write) -> None:
    config = {"model": {"net": "same"}}
    a = write("a", images(0.80), config=config)
    b = write("b", images(0.85, seed=1), config={**config, "trainer": {"max_epochs": 20}})
    entry = judged(a, b)
    assert entry.verdict is not None
    assert entry.verdict.sentence.startswith("b is better than a")
    assert entry.verdict.differing == {"trainer.max_epochs": (10, 20)}


def test_two_seeds_are_no_two_recipes(write: Write) -> None:
    config = {"model": {"net": "same"}, "seed_everything": 0}
    a = write("a", images(0.80), config=config)
    entry = judged(a, write("b", images(0.85, seed=1), config={**config, "seed_everything": 1}))
    assert entry.verdict is not None
    assert "they are one recipe with two seeds, so this is the effect of chance" in entry.verdict.sentence
    assert "better" not in entry.verdict.sentence


def test_of_two_confounders_none_is_called_better(write: Write) -> None:
    config = {"model": {"net": "same"}, "data": {"n_folds": 4, "train_transforms": {"init_args": {"crop_size": 256}}}}
    other = {"model": {"net": "same"}, "data": {"n_folds": 4, "train_transforms": {"init_args": {"crop_size": 512}}}}
    a = write("a", images(0.80), config=config)
    entry = judged(a, write("b", images(0.85, seed=1), config={**other, "trainer": {"max_epochs": 20}}))
    assert entry.verdict is not None
    assert "crop_size (512 and 256), trainer.max_epochs (20 and 10), which may explain it" in entry.verdict.sentence
    crop = judged(a, write("c", images(0.85, seed=1), config=other))
    assert crop.verdict is not None
    assert crop.verdict.sentence.startswith("c is better than a")


def test_no_difference_says_what_could_have_been_found(write: Write) -> None:
    entry = judged(write("a", images(0.80)), write("b", images(0.80, seed=1)))
    assert entry.verdict is not None
    assert entry.verdict.sentence.startswith("b and a are not distinguishable: ")
    found = re.search(r"A difference of (0\.\d+) would be found in 80 % of cases\.$", entry.verdict.sentence)
    assert found
    reach = (entry.verdict.deciding.high - entry.verdict.deciding.low) / 2
    assert float(found[1]) > reach  # as a power of 80 % asks for more than one of 50 %


def test_no_p_value_is_zero(write: Write) -> None:
    tiny = judged(write("a", images(0.5, spread=0.002)), write("b", images(0.9, spread=0.002, seed=1)))
    assert tiny.verdict is not None
    assert "p < 0.001" in tiny.verdict.sentence
    assert "p = 0.000" not in tiny.verdict.sentence
    equal = judged(write("c", [image(0.5)] * 40), write("d", [image(0.9)] * 40))
    assert equal.verdict is not None
    assert "too few repetitions for an interval" in equal.verdict.sentence  # all folds differ by exactly the same


def test_the_answer_is_the_same_sentence_everywhere(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [
        write(name, images(right, seed=i)) for i, (name, right) in enumerate((("a", 0.8), ("b", 0.85), ("c", 0.8)))
    ]
    files = {kind: tmp_path / f"x.{kind}" for kind in ("csv", "json", "html")}
    compare([*map(str, folders), *(word for kind, path in files.items() for word in (f"--{kind}", str(path)))])
    sentences = json.loads(files["json"].read_text())["verdicts"]
    assert len(sentences) == 2
    printed = " ".join(capsys.readouterr().out.split())
    page = unescape(files["html"].read_text())
    with files["csv"].open() as file:
        table = [row["verdict"] for row in csv.DictReader(file)]
    assert table == ["", *sentences]
    for sentence in sentences:
        assert sentence in printed
        assert sentence in page
    assert printed.startswith(sentences[0])  # the answer first


def test_folds_with_other_classes_are_named(write: Write) -> None:
    folder = write("a", images(0.8))
    other = write("b", images(0.8), classes=["sky", "road", "ship"])
    (folder / "fold_2").rename(folder / "old")
    (other / "fold_2").rename(folder / "fold_2")
    with pytest.raises(DataError, match=r"fold_2 has the classes .*ship.*no folds of one experiment"):
        read_cv(folder)


def test_the_last_epoch_is_quoted_and_the_optimism_of_the_best_is_said(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best epoch was chosen on the images that were then reported."""
    folders = [write(name, images(0.85, seed=seed)) for seed, name in enumerate("ab")]
    for folder in folders:
        for run in ExperimentFolder(folder).runs():
            best = run.read_images()
            assert best is not None
            PerImageConfusion.of((name, image(0.8)) for name in best.names).write(run.last_images)
    result = aggregate(folders[0])
    print_cv(result, folders[0])
    assert result.pooled_miou == pytest.approx(800 / 1200)
    assert result.optimism == pytest.approx(read_cv(folders[0], "best").pooled_miou - 800 / 1200)
    document = json.loads((folders[0] / "cv.json").read_text())
    assert (document["epoch"], document["best_epochs"]["optimism"]) == (
        "last",
        pytest.approx(result.optimism, abs=1e-6),
    )
    assert f"({result.optimism:+.3f})" in capsys.readouterr().out
    comparison = compare_experiments(folders, num_resamples=20)
    assert comparison.entries[1].difference == 0
    added = ", ".join(f"{name} {read_cv(folder).optimism:+.3f}" for name, folder in zip("ab", folders, strict=True))
    assert comparison.notes[-1].endswith(f"the best one, chosen on these images, adds {added}.")
    unchanged = [write(name, images(0.85)) for name in "cd"]
    for folder in unchanged:
        for run in ExperimentFolder(folder).runs():
            run.last_images.write_bytes(run.images.read_bytes())
    assert compare_experiments([*folders, *unchanged], num_resamples=20).notes[-1].endswith(f"adds {added}.")
    assert compare_experiments(unchanged, num_resamples=20).notes[-1].endswith("these images, adds nothing.")
    assert compare_experiments(folders, num_resamples=20, epoch="best").entries[1].difference != 0
    next(iter(ExperimentFolder(folders[1]).runs())).last_images.unlink()
    assert "the last ones of b are unknown" in compare_experiments(folders, num_resamples=20).notes[-1]


NO_RESULTS = ["", "[]", "{}", '{"fold": 2, "n_folds": 4, "val": [', '{"fold": "2", "n_folds": 4, "val": null}']


@pytest.mark.parametrize("text", NO_RESULTS)
def test_a_fold_with_a_damaged_result_is_left_out_and_trained_again(
    write: Write, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    folders = [write(name, images(0.8, seed=seed)) for seed, name in enumerate("ab")]
    (folders[1] / "fold_2" / "result.json").write_text(text)
    compare([*map(str, folders)])
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        f"note: fold_2 is left out: {folders[1]}/fold_2/result.json: is damaged or no result of a training" in printed
    )
    experiment = Experiment(folders[1], {"data": {"n_folds": 4}}, range(4), "b")
    assert [experiment.is_finished(fold) for fold in range(4)] == [True, True, False, True]
    assert experiment.job(2, has_predictions=False).commands


def damage(path: Path, kind: str) -> None:
    matrices = PerImageConfusion.read(path)
    counts = matrices.counts.copy()
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    elif kind == "negative":
        counts.data[3] = -5
        PerImageConfusion(matrices.names, counts).write(path)
    elif kind == "out of range":  # a segmentation fault before
        counts.indices[0] = 10_000_000
        PerImageConfusion(matrices.names, counts).write(path)
    else:
        PerImageConfusion(matrices.names[:-1], counts).write(path)


@pytest.mark.parametrize("kind", ["cut off", "flipped", "negative", "out of range", "fewer names"])
def test_a_fold_with_damaged_matrices_is_left_out_and_trained_again(
    write: Write, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folders = [write(name, images(0.8, seed=seed)) for seed, name in enumerate("ab")]
    run = ExperimentFolder(folders[1]).fold(2)
    damage(run.images, kind)
    run.write_job({"name": "job"})
    compare([*map(str, folders)])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"note: fold_2 is left out: {run.images}: is damaged or holds no confusion matrices" in printed
    experiment = Experiment(folders[1], {"data": {"n_folds": 4}}, range(4), "b")
    assert not experiment.is_finished(2)
    assert [command[0] for command in experiment.job(2, has_predictions=False).commands] == ["fit"]
    assert run.read_job() == {"name": "job"}
    assert not run.images.exists()  # the old folder is kept beside it
    assert (folders[1] / "fold_2-damaged" / "result.json").is_file()
