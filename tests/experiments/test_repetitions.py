"""Seeds as repetitions: pooled, shown, and enough for "better"."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from deeplab_lightning.commands.compare import compare
from deeplab_lightning.experiments.aggregate import aggregate
from deeplab_lightning.experiments.comparison import compare_experiments
from deeplab_lightning.experiments.repetitions import over_seeds, pool_seeds, recipe_name
from tests.experiments.test_verdict import Write, images, write  # noqa: F401, the fixture
from tests.processes import run_program


def seeds_of(
    write: Write,  # noqa: F811
    name: str,
    rights: list[float],
    *,
    n_folds: int = 1,
    settings: Mapping[str, Any] = {},
) -> list[Path]:
    """Write an experiment per seed, whose images have these shares of right pixels."""
    folders = []
    for seed, right in enumerate(rights):
        config = {
            "seed_everything": seed,
            "data": {"n_folds": n_folds, "seed": seed},
            "model": {"net": name},
            **settings,
        }
        # All networks see the same images: the difficulty of an image is one draw.
        folders.append(write(f"{name}/seed_{seed}", images(right, seed=5), n_folds=n_folds, config=config))
    return folders


def test_a_copy_of_an_experiment_is_no_further_seed(write: Write, tmp_path: Path) -> None:  # noqa: F811
    folders = seeds_of(write, "lite0", [0.90, 0.80])
    copies = [tmp_path / "copy" / folder.name for folder in folders]
    for folder, copied in zip(folders, copies, strict=True):
        shutil.copytree(folder, copied)
    recipes, pooled = pool_seeds([*folders, *copies], [aggregate(folder) for folder in (*folders, *copies)])
    assert recipes == [folders, copies]
    assert pooled[0].pooled_miou == pooled[1].pooled_miou


def test_an_experiment_that_is_given_twice_is_refused(write: Write) -> None:  # noqa: F811
    folders = seeds_of(write, "lite0", [0.90, 0.80])
    for twice in ([folders[0], folders[0]], [folders[0].parent, folders[1]]):
        done = run_program("compare", *map(str, twice))
        assert done.returncode == 1
        assert "is given twice" in done.stderr


def test_seeds_are_one_recipe_and_their_spread_is_said(write: Write) -> None:  # noqa: F811
    rights = {"lite0": [0.90, 0.92, 0.91], "resnet18": [0.84, 0.86, 0.85]}
    folders = [folder for name, values in rights.items() for folder in seeds_of(write, name, values)]
    comparison = compare_experiments(folders, num_resamples=200)
    assert [entry.label for entry in comparison.entries] == ["lite0", "resnet18"]
    verdict = comparison.entries[1].verdict
    assert verdict is not None
    assert verdict.basis == "seeds"
    assert verdict.sentence.startswith("resnet18 is worse than lite0: -0.")
    mious = comparison.entries[0].seed_mious
    assert mious is not None
    assert len(mious) == 3
    assert comparison.entries[0].seed_std == pytest.approx(float(np.std(mious, ddof=1)))
    assert any(note.startswith("lite0 pools 3 seeds with a mIoU of 0.8") for note in comparison.notes)


def test_one_seed_each_is_no_repetition(write: Write) -> None:  # noqa: F811
    folders = [*seeds_of(write, "a", [0.9]), *seeds_of(write, "b", [0.8])]
    verdict = compare_experiments(folders, num_resamples=200).entries[1].verdict
    assert verdict is not None
    assert verdict.sentence.startswith("These two checkpoints")


def test_a_seed_effect_alone_is_not_called_better(write: Write) -> None:  # noqa: F811
    """The seeds differ by far more than the images, which made the bootstrap over images call it a difference."""
    folders = [*seeds_of(write, "a", [0.90, 0.84, 0.87]), *seeds_of(write, "b", [0.88, 0.83, 0.85])]
    verdict = compare_experiments(folders, num_resamples=200).entries[1].verdict
    assert verdict is not None
    assert "not distinguishable" in verdict.sentence
    assert "over seeds" in verdict.sentence


def test_folds_and_seeds_are_pooled(write: Write) -> None:  # noqa: F811
    folders = [
        *seeds_of(write, "a", [0.90, 0.91], n_folds=4),
        *seeds_of(write, "b", [0.80, 0.81, 0.82], n_folds=4),
    ]
    comparison = compare_experiments(folders, num_resamples=200)
    assert [len(entry.cv.seeds) for entry in comparison.entries] == [2, 3]
    verdict = comparison.entries[1].verdict
    assert verdict is not None
    assert verdict.basis == "folds"
    assert "b is worse than a" in verdict.sentence
    pooled = comparison.entries[1].miou
    parts = comparison.entries[1].seed_mious
    assert parts is not None
    assert min(parts) < pooled < max(parts)


def test_seeds_alone_are_still_compared_with_each_other(write: Write) -> None:  # noqa: F811
    comparison = compare_experiments(seeds_of(write, "a", [0.9, 0.8], n_folds=4), num_resamples=200)
    verdict = comparison.entries[1].verdict
    assert verdict is not None
    assert "one recipe with two seeds" in verdict.sentence


def test_other_splits_are_not_pooled(write: Write) -> None:  # noqa: F811
    folders = [*seeds_of(write, "a", [0.9], n_folds=4), *seeds_of(write, "b", [0.8], n_folds=4)]
    other = seeds_of(write, "c", [0.9, 0.9], n_folds=5, settings={"model": {"net": "a"}})[1]
    comparison = compare_experiments([*folders, other], num_resamples=200)
    assert len(comparison.entries) == 3


def test_every_pair_is_judged_with_all_of_them_taken_into_account(
    write: Write,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, right in (("a", 0.9), ("b", 0.8), ("c", 0.9)):
        seeds_of(write, name, [right, right + 0.004, right - 0.002], n_folds=4)
    words = [str(tmp_path / name) for name in "abc"]
    compare([*words, "--all_pairs", "--json", str(tmp_path / "out.json")])
    sentences = json.loads((tmp_path / "out.json").read_text())["verdicts"]
    assert [sentence.partition(":")[0] for sentence in sentences] == [
        "b is worse than a",
        "c and a are not distinguishable",
        "c is better than b",
    ]
    printed = " ".join(capsys.readouterr().out.split())
    assert all(sentence in printed for sentence in sentences)
    compare([*words, "--baseline", "b", "--json", str(tmp_path / "b.json")])
    verdicts = json.loads((tmp_path / "b.json").read_text())["verdicts"]
    assert [verdict.partition(":")[0] for verdict in verdicts] == ["a is better than b", "c is better than b"]


def test_a_baseline_that_is_not_there_is_named(write: Write, tmp_path: Path) -> None:  # noqa: F811
    folders = [*seeds_of(write, "a", [0.9]), *seeds_of(write, "b", [0.8])]
    for name in ("c", tmp_path.name):  # nor the folder that holds all of them
        with pytest.raises(ValueError, match=f"--baseline {name} is none of the experiments"):
            compare([*map(str, folders), "--baseline", name])
    plain = [write(name, images(right), n_folds=4) for name, right in (("d", 0.9), ("e", 0.8))]
    with pytest.raises(ValueError, match="is none of the experiments"):
        compare([*map(str, plain), "--baseline", tmp_path.name])


def test_welch_is_scipys() -> None:
    a, b = np.array([0.70, 0.71, 0.69]), np.array([0.73, 0.76, 0.74, 0.75])
    found = over_seeds(a, b, float(b.mean() - a.mean()))
    expected = stats.ttest_ind(b, a, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert np.isnan(over_seeds(a[:1], b, 0.1).p)


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        (["lite0-seed0", "lite0-seed1"], "lite0"),
        (["lite0_s0", "lite0_s12"], "lite0"),
        (["0", "1"], "0"),
        (["a/x1", "a/x2"], "a/x"),
        (["alone"], "alone"),
    ],
)
def test_a_recipe_is_called_what_its_seeds_have_in_common(labels: list[str], name: str) -> None:
    assert recipe_name(labels) == name
