"""`kfold --cheap` and `grid --cheap`, by the real commands: what is trained, what is said, and what is claimed."""

import json
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from deeplab_lightning.experiments.early_stop import chance_of_better
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder
from tests.conftest import draw_noise_data, noise_config
from tests.processes import Program, run_program

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an experiment of three folds, and copies whose pixels are nearly all right (two) or all wrong."""
    folder = tmp_path_factory.mktemp("cheap")
    draw_noise_data(folder)
    config = noise_config(folder, trainer={"max_epochs": 1, "num_sanity_val_steps": 0}, data={"n_folds": 3})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    run_program("kfold", "-c", str(folder / "config.yaml"), "--name", "own", "--in_process", check=True)
    _copy_with(folder, "strong", [0, 1, 2])
    _copy_with(folder, "weak", [1, 2, 0])
    _copy_with(folder, "near", [0, 1, 2], seed=4)
    return folder


def _copy_with(root: Path, name: str, predicted: list[int], *, seed: int = 0) -> None:
    """Copy the experiment, with matrices in which pixels of class t are seen as `predicted[t]`, all but some."""
    copy = ExperimentFolder(shutil.copytree(root / "runs" / "own", root / "runs" / name))
    rng = np.random.default_rng(seed)
    for run in copy.runs():
        images = run.read_images()
        assert images is not None
        rows = []
        for row, key in enumerate(images.names):
            truth = images.counts[[row]].toarray().reshape(3, 3).sum(axis=1)
            matrix = np.zeros((3, 3), dtype=np.int64)
            lost = min(truth[0], rng.integers(0, 40))  # so that the folds differ
            matrix[range(3), predicted] = truth - [lost, 0, 0]
            matrix[0, 2] += lost
            rows.append((key, matrix))
        for path in (run.images, run.last_images):
            PerImageConfusion.of(rows).write(path)


def cheap(root: Path, name: str, baseline: str, *more: str) -> str:
    """Train an experiment that has to beat a baseline, and return what it printed."""
    words = ("kfold", "-c", str(root / "config.yaml"), "--name", name, "--in_process", "--cheap", "--baseline")
    return " ".join(run_program(*words, str(root / "runs" / baseline), *more, check=True).stdout.split())


def finished(folder: Path) -> list[int]:
    """Return the folds with a result."""
    return [index for index, run in enumerate(ExperimentFolder(folder).runs()) if run.result.is_file()]


@pytest.fixture(scope="module")
def stopped(root: Path) -> tuple[Path, str]:
    """An experiment that was stopped in the table of processes, and what was printed."""
    words = ("kfold", "-c", str(root / "config.yaml"), "--name", "hopeless", "--cheap", "--baseline")
    done = run_program(*words, str(root / "runs" / "strong"), check=True)
    return root / "runs" / "hopeless", " ".join(done.stdout.split())


@pytest.mark.long
def test_a_hopeless_experiment_is_stopped_after_two_folds(stopped: tuple[Path, str]) -> None:
    folder, output = stopped
    assert finished(folder) == [0, 1]
    assert "hopeless/fold_2: skipped" in output
    assert "hopeless was stopped early after 2 of 3 folds: its chance to be found better than strong was 0.0" in output
    record = json.loads((folder / "stopped.json").read_text())
    assert (record["folds"], record["planned"], record["baseline"]) == ([0, 1], [0, 1, 2], "strong")
    assert max(record["differences"]) < 0
    assert record["chance"] == chance_of_better(record["differences"], 3, overlap=1 / 3) < 0.05


@pytest.mark.long
def test_a_stopped_experiment_is_not_judged(stopped: tuple[Path, str], root: Path) -> None:
    """Bad luck in the first folds would be called worse, if what was stopped for it counted as a sample."""
    folder, _ = stopped
    for baseline in ("strong", "own"):
        table = root / "table.json"
        words = (str(root / "runs" / baseline), str(folder), "--all_pairs", "--json", str(table))
        output = " ".join(run_program("compare", *words, check=True).stdout.split())
        assert "mIoU so far; hopeless was stopped early, so this is no test." in output
        content = json.loads(table.read_text())
        assert not [text for text in content["verdicts"] if " is better " in text or " is worse " in text]
        row = content["experiments"][1]
        assert [row[key] for key in ("p_folds", "p_images", "p_holm", "difference_low_folds")] == [None] * 4
        assert any("stopped early after 2 of 3 folds" in note for note in content["notes"])


def rows_of(root: Path, *words: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Compare experiments, and return the rows of the table by name, and the whole table."""
    table = root / "table.json"
    run_program("compare", *(str(root / "runs" / word) for word in words), "--json", str(table), check=True)
    content = json.loads(table.read_text())
    return {row["experiment"]: row for row in content["experiments"]}, content


@pytest.mark.long
def test_a_stopped_experiment_restricts_no_other_verdict(stopped: tuple[Path, str], root: Path) -> None:
    """All were cut to the images of its two folds, and its test did not count: p rose for the first, fell for both."""
    alone, _ = rows_of(root, "strong", "near")
    found, content = rows_of(root, "strong", "near", "hopeless")
    changed = {"p_holm", "verdict"}
    for name in ("strong", "near"):
        kept = found[name].keys() - changed
        assert {key: found[name][key] for key in kept} == {key: alone[name][key] for key in kept}
    assert alone["near"]["p_holm"] == pytest.approx(alone["near"]["p_folds"])
    assert found["near"]["p_holm"] == pytest.approx(2 * alone["near"]["p_folds"])
    assert found["hopeless"]["p_holm"] is None
    pair, _ = rows_of(root, "strong", "hopeless")
    kept = found["hopeless"].keys() - {"verdict"}
    assert {key: found["hopeless"][key] for key in kept} == {key: pair["hopeless"][key] for key in kept}
    held_out = [len(fold.read_images().names) for fold in ExperimentFolder(stopped[0]).runs()[:2]]  # type: ignore[union-attr]
    note = f"the mIoU of hopeless, which was stopped early, is of {sum(held_out)} images; its difference is from strong"
    assert [text for text in content["notes"] if text.startswith(note)], content["notes"]
    assert not [text for text in content["notes"] if "has not finished fold" in text or "only the" in text]


@pytest.mark.long
def test_stopped_experiments_count_among_all_pairs(stopped: tuple[Path, str], root: Path) -> None:
    alone, _ = rows_of(root, "strong", "near")
    words = (str(root / "runs" / name) for name in ("strong", "near", "hopeless"))
    table = root / "table.json"
    run_program("compare", *words, "--all_pairs", "--json", str(table), check=True)
    sentence = json.loads(table.read_text())["verdicts"][0]
    assert sentence.startswith("near ")
    assert float(sentence.partition("p = ")[2][:5]) == pytest.approx(min(3 * alone["near"]["p_folds"], 1), abs=6e-4)


@pytest.mark.long
def test_the_promise_of_best_names_folds_that_were_not_trained(stopped: tuple[Path, str], root: Path) -> None:
    for name, is_said in (("hopeless", True), ("own", False)):
        done = run_program("best", str(root / "runs" / name), "--output", str(root / f"{name}.yaml"), check=True)
        assert ("Fold 2 was not trained, so its images took no part." in " ".join(done.stdout.split())) == is_said


@pytest.mark.long
def test_the_page_of_a_stopped_experiment_is_written(stopped: tuple[Path, str], root: Path) -> None:
    """Its images are fewer than the others', which their table of classes, details and gallery have to bear."""
    page = root / "page.html"
    words = [str(root / "runs" / name) for name in ("own", "strong", stopped[0].name)]
    run_program("compare", *words, "--html", str(page), check=True)
    assert "is of" in page.read_text()


@pytest.mark.long
def test_resume_says_so_and_without_cheap_trains_the_rest(stopped: tuple[Path, str], root: Path) -> None:
    folder = shutil.copytree(stopped[0], root / "runs" / "again")
    output = cheap(root, "again", "strong", "--resume")
    assert finished(folder) == [0, 1]
    assert "stopped early after 2 of 3 folds" in output
    done = run_program("kfold", "--resume", "--name", "again", "--output_dir", str(root / "runs"), "--in_process")
    assert done.returncode == 0, done.stderr
    assert finished(folder) == [0, 1, 2]
    assert "stopped early" not in done.stdout
    compared = run_program("compare", str(root / "runs" / "strong"), str(folder), check=True).stdout
    assert "again is worse than strong" in compared
    assert "stopped early" not in compared


@pytest.mark.long
def test_resume_takes_the_recorded_baseline_or_decides_for_another(stopped: tuple[Path, str], root: Path) -> None:
    folder = shutil.copytree(stopped[0], root / "runs" / "other")
    words = ("kfold", "--resume", "--name", "other", "--output_dir", str(root / "runs"), "--in_process", "--cheap")
    done = run_program(*words, check=True)
    assert finished(folder) == [0, 1]
    assert "other was stopped early after 2 of 3 folds" in done.stdout
    done = run_program(*words, "--baseline", str(root / "runs" / "weak"), check=True)
    assert finished(folder) == [0, 1, 2]
    assert "stopped early" not in done.stdout
    (folder / "stopped.json").unlink()
    refused = run_program(*words)
    assert refused.returncode == 1
    assert "repeats the decision in stopped.json, and" in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.long
def test_the_printed_command_goes_on_with_the_same_decision(root: Path) -> None:
    """After SIGTERM in the second fold, before anything was decided; without its options it trained other folds."""
    kept = ("--folds", "0,1,2", "--launcher=local", "--predictions")
    words = ("kfold", "-c", str(root / "config.yaml"), "--name", "cut", *kept, "--cheap", "--baseline")
    program = Program(*words, str(root / "runs" / "strong"), start_new_session=True)
    folder = ExperimentFolder(root / "runs" / "cut")
    while not folder.fold(1).log.is_file():
        assert program.poll() is None
        time.sleep(0.1)
    program.send_signal(signal.SIGTERM)
    stdout, stderr = program.communicate(timeout=120)
    assert program.wait() == 128 + signal.SIGTERM, stderr
    assert finished(folder.path) == [0]
    command = shlex.split(stdout.partition("To continue: ")[2].splitlines()[0])
    assert command[:2] == ["deeplab", "kfold"]
    assert set(kept) < set(command)
    output = " ".join(run_program(*command[1:], check=True).stdout.split())
    assert "cut was stopped early after 2 of 3 folds" in output
    assert finished(folder.path) == [0, 1]


@pytest.mark.long
def test_a_promising_experiment_is_trained_to_its_end(root: Path) -> None:
    output = cheap(root, "promising", "weak")
    assert finished(root / "runs" / "promising") == [0, 1, 2]
    assert "stopped early" not in output
    assert not (root / "runs" / "promising" / "stopped.json").exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cheap",), "--cheap and --baseline go together"),
        (("--baseline", "own"), "--cheap and --baseline go together"),
        (("--cheap", "--baseline", "nothing"), "nothing: no finished fold there"),
        (("--cheap", "--baseline", "own", "--folds", "0,1"), "needs 3 folds or more, got 2"),
        (("--cheap", "--baseline", "own", "--data.split_seed", "5"), "has other folds than this experiment"),
        (("--cheap", "--baseline", "hopeless"), "hopeless has not finished fold 2"),
        (("--cheap", "--baseline", "own", "--launcher", "slurm"), "local or ray"),
    ],
)
def test_a_baseline_that_cannot_be_compared_is_refused(
    stopped: tuple[Path, str], root: Path, words: tuple[str, ...], message: str
) -> None:
    known = {"own", "nothing", "hopeless"}
    given = [str(root / "runs" / word) if word in known else word for word in words]
    done = run_program("kfold", "-c", str(root / "config.yaml"), "--name", "refused", *given)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (root / "runs" / "refused" / "fold_0" / "metrics.csv").exists()


@pytest.mark.long
def test_a_grid_stops_what_cannot_beat_its_first_experiment(root: Path) -> None:
    folder = root / "runs" / "grid"
    axes = {"net": {"first": "", "second": "--model.net.init_args.aspp_channels 9"}}
    grid = {"name": "grid", "output_dir": str(root / "runs"), "options": f"-c {root / 'config.yaml'}", "axes": axes}
    (root / "grid.yaml").write_text(yaml.safe_dump(grid))
    shutil.copytree(root / "runs" / "strong", folder / "first")  # trained already, by the same settings
    done = run_program("grid", "-c", str(root / "grid.yaml"), "--cheap", "--in_process")
    assert done.returncode == 0, done.stderr
    assert finished(folder / "first") == [0, 1, 2]
    assert finished(folder / "second") == [0, 1]
    assert "second - first: -0" in done.stdout
