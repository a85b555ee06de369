"""States of folds in a queue, and what a job checks before it trains; no scheduler is asked."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from deeplab_lightning.errors import DataError, MissingFileError, UserError
from deeplab_lightning.experiments import queued_fold
from deeplab_lightning.experiments.attempts import Attempt, Attempts, Outcome
from deeplab_lightning.experiments.launchers import slurm
from deeplab_lightning.experiments.launchers.options import SlurmOptions
from deeplab_lightning.experiments.launchers.place import check_place, describe_place
from deeplab_lightning.experiments.launchers.slurm import Task
from deeplab_lightning.experiments.queue import Queue, QueueStates
from deeplab_lightning.experiments.queued_fold import train_queued
from deeplab_lightning.runs import ExperimentFolder

Change = Callable[[Attempts], None]


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """An experiment of one fold, which was submitted as the job 5_0."""
    files = ExperimentFolder(tmp_path / "a")
    files.write_config({"data": {"n_folds": 2}, "trainer": {"max_epochs": 1}})
    made = Queue(
        files.path,
        "kfold",
        SlurmOptions(retries=1, lines=("--qos=low",)),
        None,
        False,
        {str(files.path): {"folds": [0], "group": "a-1"}},
        folds={str(files.fold(0).path): {"token": "new", "index": 0}},
        submissions={"new": {"id": "5", "place": describe_place()}},
        collector="6",
    )
    files.fold(0).path.mkdir()
    made.write()
    return made


def attempts_of(queue: Queue) -> Attempts:
    return Attempts(ExperimentFolder(queue.folder).fold(0))


def add(queue: Queue, *outcomes: Outcome, token: str = "new") -> None:
    for outcome in outcomes:
        attempts = attempts_of(queue)
        attempts.begin(Attempt(token, "5_0", "n1", 0.0))
        if outcome != "running":
            attempts.end(outcome, f"it {outcome}")


def state(queue: Queue, task: str | None) -> tuple[str, str]:
    tasks = {} if task is None else {"5_0": Task(task, "n1", "None")}
    [found] = QueueStates(queue.folder).read(tasks)
    return found.state, found.error


def test_the_record_is_read_as_it_was_written(queue: Queue) -> None:
    assert Queue.read(queue.folder) == queue
    (queue.folder / "queue.json").write_text("{}")
    with pytest.raises(DataError, match="queue.json: is damaged"):
        Queue.read(queue.folder)
    with pytest.raises(MissingFileError, match="nothing was submitted to a queue from here"):
        Queue.read(queue.folder.parent)


def test_folds_that_wait_or_run_are_kept_by_a_later_submission(queue: Queue) -> None:
    """`--resume --folds 1` would have let the job of fold 0 end without training."""
    later = Queue(queue.folder, "kfold", queue.options, None, False, {str(queue.folder): {"folds": [1], "group": "a"}})
    later.keep(queue, {"5_0": Task("PENDING", "", "Priority")})
    assert later.folds == queue.folds
    assert later.submissions == queue.submissions
    assert later.experiments[str(queue.folder)]["folds"] == [0, 1]
    later = Queue(queue.folder, "kfold", queue.options, None, False, {str(queue.folder): {"folds": [1], "group": "a"}})
    later.keep(queue, {"5_0": Task("COMPLETED", "n1", "None")})
    assert (later.folds, later.experiments[str(queue.folder)]["folds"]) == ({}, [1])


@pytest.mark.parametrize(
    ("outcomes", "task", "expected"),
    [
        ([], "PENDING", "waiting"),
        (["killed"], "PENDING", "waiting"),
        (["running"], "RUNNING", "running"),
        (["running"], "COMPLETING", "running"),
        (["running"], "FAILED", "lost"),  # the job itself was killed
        (["running"], None, "lost"),
        (["killed", "running"], None, "failed"),  # more often than the options allow
        (["running"], "CANCELLED", "stopped"),  # before it could record that
        (["stopped"], None, "stopped"),
        (["stopped"], "PREEMPTED", "lost"),
        (["continued"], "TIMEOUT", "lost"),  # it could not be put into the queue again
        (["failed"], "FAILED", "failed"),
        (["finished"], "COMPLETED", "failed"),  # without a result
        ([], "CANCELLED", "stopped"),
        ([], None, "failed"),
    ],
)
def test_the_state_of_a_fold_comes_from_its_files_first(
    queue: Queue, outcomes: list[Outcome], task: str | None, expected: str
) -> None:
    add(queue, *outcomes)
    assert state(queue, task)[0] == expected


def test_a_job_that_began_no_training_is_told_by_its_own_output(queue: Queue) -> None:
    logs = ExperimentFolder(queue.folder).queue_logs
    logs.mkdir()
    (logs / "5_0.log").write_text("/bin/bash: line 12: module: command not found\n")
    shown, reason = state(queue, "FAILED")
    assert shown == "failed"
    assert reason.startswith("/bin/bash: line 12: module: command not found (job 5_0, ")


def test_a_job_whose_fold_was_submitted_again_does_not_train(queue: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    """Two jobs never write to one folder, without any lock on the shared file system."""
    fold = ExperimentFolder(queue.folder).fold(0).path
    train_queued(queue.folder, fold, "old")
    assert "belongs to a later job" in capsys.readouterr().out
    assert attempts_of(queue).all == []


def test_a_fold_that_was_lost_too_often_is_not_tried_again(queue: Queue) -> None:
    add(queue, "killed", "running")
    with pytest.raises(SystemExit, match="1"):
        train_queued(queue.folder, ExperimentFolder(queue.folder).fold(0).path, "new")
    assert [attempt.outcome for attempt in attempts_of(queue).all] == ["killed", "lost", "failed"]
    assert state(queue, None) == ("failed", "killed or lost 2 times")


def test_a_node_with_other_code_or_packages_trains_nothing(queue: Queue) -> None:
    check_place(describe_place(), "n1")
    with pytest.raises(UserError, match=r"node n1 is not like .* \(torch: 1.0 there, .* here\)"):
        check_place({**describe_place(), "torch": "1.0"}, "n1")
    queue.submissions["new"]["place"]["code"] = "0000"
    queue.write()
    with pytest.raises(UserError, match="code: 0000 there"):
        train_queued(queue.folder, ExperimentFolder(queue.folder).fold(0).path, "new")
    assert attempts_of(queue).all[-1].outcome == "failed"
    with pytest.raises(MissingFileError, match="output_dir must be on a disk that all nodes share"):
        train_queued(queue.folder / "elsewhere", queue.folder, "new")


def test_a_killed_training_goes_into_the_queue_again(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    queued: list[str] = []
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setattr(slurm, "requeue", queued.append)
    monkeypatch.setattr(queued_fold, "_train", lambda *_: ("killed", "killed by SIGKILL"))
    for expected in (["5_0"], ["5_0"]):  # the second time was the last that the options allow
        with pytest.raises(SystemExit, match="1"):
            train_queued(queue.folder, ExperimentFolder(queue.folder).fold(0).path, "new")
        assert queued == expected
    assert state(queue, "FAILED") == ("failed", "killed by SIGKILL (2 times)")


def test_the_script_is_what_was_asked_for(tmp_path: Path) -> None:
    options = SlurmOptions(time="1:00:00", gpus=2, memory="8G", lines=("--qos=low",), setup=("echo ready",))
    log = tmp_path / "%A_%a.log"
    text = slurm.script(options, [["echo", "a b"], ["echo", "c"]], name="x", log=log, at_once=1)
    for line in (
        *("--array=0-1%1", "--time=1:00:00", "--gres=gpu:2", "--mem=8G", "--qos=low", "--cpus-per-task=4"),
        *("--requeue", "--signal=B:USR1@120", f"--output={log}", "--job-name=x"),
    ):
        assert f"#SBATCH {line}\n" in text
    assert "partition" not in text
    done = subprocess.run(
        ["bash"], input=text, env={"SLURM_ARRAY_TASK_ID": "0", "PATH": "/bin"}, capture_output=True, text=True
    )
    assert done.stdout == "ready\na b\n"
    assert "#SBATCH --dependency=afterany:5:7\n" in slurm.script(options, [["x"]], name="x", log=log, after="5:7")
