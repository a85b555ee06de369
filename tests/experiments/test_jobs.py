"""The launcher, with commands that take no time."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deeplab_lightning.errors import UserError
from deeplab_lightning.experiments.jobs import Interrupted, Job, JobState, run_jobs
from deeplab_lightning.experiments.launchers.local import LocalLauncher


def job(folder: Path, *commands: list[str], name: str = "job", writes: str = "") -> Job:
    return Job(name, commands, folder / name, lambda: not writes or (folder / name / writes).exists())


def run(*jobs: Job, at_once: int = 1) -> list[str]:
    seen: list[list[str]] = []

    def note(states: "list[JobState] | tuple[JobState, ...]") -> None:
        seen.append([state.state for state in states])

    states = run_jobs(jobs, LocalLauncher(at_once), at_once=at_once, on_change=note)  # type: ignore[arg-type]
    assert max(row.count("running") for row in seen) <= at_once
    return [state.state for state in states]


def test_commands_run_in_order_and_their_output_is_kept(tmp_path: Path) -> None:
    assert run(job(tmp_path, ["--version"], ["--help"])) == ["finished"]
    log = (tmp_path / "job" / "log.txt").read_text()
    assert log.index("0.") < log.index("usage: deeplab")


def test_a_failed_job_does_not_stop_the_others(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, ["nonsense"], ["--version"], name="wrong"),
        job(tmp_path, ["--version"], name="silent", writes="result.json"),  # ends with 0, leaves no result
        job(tmp_path, ["--version"], name="right"),
    ]
    assert run(*jobs, at_once=2) == ["failed", "failed", "finished"]
    assert "no command is called 'nonsense'" in (tmp_path / "wrong" / "log.txt").read_text()


def test_devices_and_threads_are_distributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen = {}

    class Recorder:
        def __init__(self, arguments: object, environment: dict[str, str], *_: object) -> None:
            self.environment = environment

    monkeypatch.setattr("deeplab_lightning.experiments.launchers.local.LocalProcess", Recorder)
    launcher = LocalLauncher(2, ("4", "5", "6", "7"))
    for slot in (0, 1):
        process = launcher.start(job(tmp_path, ["--version"], name=f"{slot}"), ["--version"], slot)
        seen[slot] = process.environment  # type: ignore[attr-defined]
    assert [seen[slot]["CUDA_VISIBLE_DEVICES"] for slot in (0, 1)] == ["4,6", "5,7"]
    few = LocalLauncher(4, ("0", "1"))  # jobs share a device, none is left without
    shared = [few.start(job(tmp_path, ["--version"], name=f"{slot}"), ["--version"], slot) for slot in range(4)]
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in shared] == ["0", "1", "0", "1"]  # type: ignore[attr-defined]
    assert "RANK" not in seen[0]
    assert int(seen[0]["OMP_NUM_THREADS"]) == max(1, (os.cpu_count() or 1) // 2)


SLEEPER = """
import sys, time
from pathlib import Path
import deeplab_lightning.cli as cli
from deeplab_lightning.experiments import jobs
from deeplab_lightning.experiments.launchers import local
folder = Path(sys.argv[1])
real = local.LocalProcess
def sleeping(arguments, *rest):  # in place of a training
    code = "import os, subprocess; print(os.getpid(), flush=True); subprocess.run(['sleep', '60'])"
    return real([sys.executable, "-c", code], *rest)
local.LocalProcess = sleeping
work = [jobs.Job("a", [["fit"]], folder / "a", lambda: False), jobs.Job("b", [["fit"]], folder / "b", lambda: False)]
try:
    jobs.run_jobs(work, local.LocalLauncher(2), at_once=2, on_change=lambda states: None)
except jobs.Interrupted as stop:
    sys.exit(128 + stop.number)
"""


def _wait_for_pids(folder: Path) -> list[int]:
    for _ in range(200):
        logs = [folder / name / "log.txt" for name in ("a", "b")]
        if all(log.is_file() and log.read_text().strip() for log in logs):
            return [int(log.read_text()) for log in logs]
        time.sleep(0.1)
    raise AssertionError("the jobs did not start")


def _is_running(group: int) -> bool:
    states = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True).stdout.split()
    return any(not state.startswith("Z") for state in states)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the process table as Linux has it")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)])
    pids = _wait_for_pids(tmp_path)
    assert all(map(_is_running, pids))
    parent.send_signal(number)
    assert parent.wait(timeout=30) == 128 + number
    assert not any(map(_is_running, pids))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the process table as Linux has it")
def test_a_second_signal_does_not_wait_for_jobs_that_take_their_time(tmp_path: Path) -> None:
    slow = "import os, signal, subprocess, time; signal.signal(15, lambda *_: None);"
    stubborn = SLEEPER.replace("import os, subprocess;", slow).replace(
        "subprocess.run(['sleep', '60'])", "time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", stubborn, str(tmp_path)])
    pids = _wait_for_pids(tmp_path)
    parent.send_signal(signal.SIGINT)
    time.sleep(1)
    assert parent.poll() is None  # it waits
    parent.send_signal(signal.SIGINT)
    assert parent.wait(timeout=5) == 128 + signal.SIGINT
    assert not any(map(_is_running, pids))


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children with their parent")
def test_a_killed_parent_takes_its_jobs_with_it(tmp_path: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SLEEPER, str(tmp_path)])
    pids = _wait_for_pids(tmp_path)
    parent.kill()
    parent.wait()
    time.sleep(0.5)
    assert not any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in pids)
    for pid in pids:
        subprocess.run(["pkill", "-KILL", "-g", str(pid)], check=False)  # the sleepers that they had started


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_job_waits_for_the_processes_of_a_killed_one(tmp_path: Path) -> None:
    """`kfold --resume` right after a kill -9 was refused while the reading processes still ended."""
    (tmp_path / "job").mkdir()
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-c", f"{hold}; time.sleep(1.5)", str(tmp_path / "job" / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as dying:
        assert dying.stdout is not None
        dying.stdout.readline()
        assert run(job(tmp_path, ["--version"])) == ["finished"]


def test_two_processes_never_write_to_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    monkeypatch.setattr("deeplab_lightning.experiments.launchers.local._MAX_LOCK_WAIT", 0.2)
    (tmp_path / "job").mkdir()
    with (tmp_path / "job" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process still writes here"):
            LocalLauncher().start(job(tmp_path, ["--version"]), ["--version"], 0)
        assert run(job(tmp_path, ["--version"]), job(tmp_path, ["--version"], name="other")) == ["failed", "finished"]
    assert run(job(tmp_path, ["--version"])) == ["finished"]


def test_a_shared_file_system_without_locks_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert run(job(tmp_path, ["--version"])) == ["finished"]


def test_interrupted_names_the_signal() -> None:
    assert str(Interrupted(signal.SIGTERM)) == "stopped by SIGTERM"
