"""Run commands in separate processes: queue, watch and stop them together."""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

from deeplab_lightning.errors import UserError
from deeplab_lightning.runs import RUN_FOLDER_VARIABLE, RunFolder

_POLL_SECONDS = 0.2
_MAX_LOCK_WAIT = 15.0  # seconds that the processes of a killed training may take to end
_STOP_SECONDS = 20.0  # time for a training to end after SIGTERM, before it is killed
# Variables that another launcher, another training or W&B in this process set for their own children.
_FOREIGN = ("LOCAL_RANK", "RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR",
            "MASTER_PORT", "PL_GLOBAL_SEED", RUN_FOLDER_VARIABLE, "WANDB_SERVICE")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """Hold `deeplab` commands that run one after the other, each only if the previous one succeeded.

    Attributes:
        name: Name of the job in tables.
        commands: Arguments of each command.
        folder: Folder that the commands write to. Its `log.txt` holds their output, and a lock keeps other processes
            out.
        is_finished: Function that checks whether the result exists. An exit status of 0 is not enough,
            since a process may end before its result is written.
    """

    name: str
    commands: Sequence[Sequence[str]]
    folder: Path
    is_finished: Callable[[], bool]


class Process(Protocol):
    """Run one command."""

    def poll(self) -> int | None:
        """Return the exit status; None while the command runs."""

    def stop(self) -> None:
        """Ask the command to end."""

    def kill(self) -> None:
        """End the command and all processes that it started."""


class Launcher(Protocol):
    """Start commands, on this machine or on a cluster."""

    def start(self, job: Job, command: Sequence[str], slot: int) -> Process:
        """Start one command of a job.

        Args:
            job: The job.
            command: Arguments of `deeplab`.
            slot: Number of the job among those that run at once, from 0.
        """


class LocalProcess:
    """Run a command in a process group on this machine, which ends when this process ends.

    Args:
        arguments: Program and arguments.
        environment: All environment variables.
        log: File that gets the output.
        lock: Locked file, held open until the last process of the group has ended.
    """

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], lock: IO[str]) -> None:
        self._process = subprocess.Popen(
            arguments,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
            preexec_fn=_die_with_parent,
        )

    def poll(self) -> int | None:
        """Return the exit status; None while the command runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Send SIGTERM to the process group."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the process group, and wait for the command's end."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@dataclass(frozen=True)
class LocalLauncher:
    """Start commands on this machine.

    Args:
        jobs: Number of jobs that run at once.
        devices: GPU indices to distribute among the jobs; if empty, each command chooses its devices.
    """

    jobs: int = 1
    devices: Sequence[str] = ()

    def start(self, job: Job, command: Sequence[str], slot: int) -> Process:
        """Start one command of a job in a process of its own.

        Args:
            job: The job.
            command: Arguments of `deeplab`.
            slot: Number of the job among those that run at once, from 0; it decides the devices.

        Raises:
            ValueError: If another process still writes to the job's folder.
        """
        job.folder.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
        environment["PYTHONUNBUFFERED"] = "1"
        if self.devices:
            own = self.devices[slot :: self.jobs] or [self.devices[slot % len(self.devices)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        if self.jobs > 1:  # otherwise each job would use all cores
            share = max(1, (os.cpu_count() or 1) // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(share))
        with locked(job.folder) as lock, RunFolder(job.folder).log.open("ab") as log:
            return LocalProcess([sys.executable, "-m", "deeplab_lightning", *command], environment, log, lock)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[IO[str]]:
    """Keep other processes out of a job's folder, until the file and its copies in other processes are closed.

    Args:
        folder: The folder.

    Raises:
        UserError: If another process writes there.
    """
    with RunFolder(folder).lock.open("w") as lock:
        if not _is_locked(lock):
            raise UserError(f"{folder}: another process still writes here. Wait until it ends, or stop it.")
        yield lock


def _is_locked(lock: IO[str]) -> bool:
    """Lock a file, and check whether that succeeded; the processes of a killed training need seconds to end."""
    end = time.monotonic() + _MAX_LOCK_WAIT
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
        else:
            return True


@dataclass
class JobState:
    """Hold the state of a job.

    Attributes:
        job: The job.
        state: `waiting`, `running`, `finished`, `failed` or `stopped`.
        started: Start time of the first command, by `time.monotonic`.
        seconds: Time since the start in seconds.
        error: Reason why it could not be started, or the signal that ended it.
    """

    job: Job
    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    error: str = ""
    _commands: deque[Sequence[str]] = field(default_factory=deque)
    _process: Process | None = None
    _slot: int = 0


class Interrupted(Exception):
    """Report that a signal stopped the jobs; none of them is left running.

    Args:
        number: Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def run_jobs(
    jobs: Sequence[Job], launcher: Launcher, *, at_once: int = 1, on_change: Callable[[Sequence[JobState]], None]
) -> list[JobState]:
    """Run jobs, a number of them at once; a job that fails does not stop the others.

    SIGINT and SIGTERM stop all jobs; the function ends when none is left running. A second signal kills them.

    Args:
        jobs: Jobs in the order in which they start.
        launcher: Launcher of the commands.
        at_once: Number of jobs that run at once, at least 1.
        on_change: Function of the states, called about five times per second.

    Returns:
        The final states.

    Raises:
        Interrupted: After SIGINT or SIGTERM.
    """
    states = [JobState(job) for job in jobs]
    waiting, slots = deque(states), deque(range(at_once))
    received: list[int] = []
    with _signals(received.append):
        try:
            while not received and (waiting or any(state.state == "running" for state in states)):
                while waiting and slots:
                    state = waiting.popleft()
                    state._slot, state.started = slots.popleft(), time.monotonic()
                    state._commands = deque(state.job.commands)
                    if not _start(state, launcher):
                        slots.append(state._slot)
                for state in states:
                    if state.state == "running" and _advance(state, launcher):
                        slots.append(state._slot)
                on_change(states)
                time.sleep(_POLL_SECONDS)
        finally:
            _stop_all(states, is_hurried=lambda: len(received) > 1)
            on_change(states)
    if received:
        raise Interrupted(received[0])
    return states


def _start(state: JobState, launcher: Launcher) -> bool:
    """Start the next command of a job; if that fails, mark only this job as failed and return False."""
    try:
        state._process = launcher.start(state.job, state._commands.popleft(), state._slot)
    except (UserError, OSError) as error:
        state.state, state.error = "failed", str(error)
        return False
    state.state = "running"
    return True


def _advance(state: JobState, launcher: Launcher) -> bool:
    """Update the state of a running job, and start its next command if one ended; return True if the job ended."""
    assert state._process is not None
    state.seconds = time.monotonic() - state.started
    status = state._process.poll()
    if status is None:
        return False
    if status == 0 and state._commands and state.job.is_finished():
        return not _start(state, launcher)
    state.state = "finished" if status == 0 and state.job.is_finished() else "failed"
    if status < 0:  # otherwise its last line of output names the reason
        out_of_memory = ", perhaps out of memory" if -status == signal.SIGKILL else ""
        state.error = f"killed by {signal.Signals(-status).name}{out_of_memory}"
    return True


def _stop_all(states: Sequence[JobState], *, is_hurried: Callable[[], bool]) -> None:
    """Ask the running jobs to end, and kill those that do not in time, or all once it is hurried."""
    running = [state for state in states if state.state == "running"]
    for state in running:
        assert state._process is not None
        state._process.stop()
    deadline = time.monotonic() + _STOP_SECONDS
    for state in running:
        assert state._process is not None
        while state._process.poll() is None and time.monotonic() < deadline and not is_hurried():
            time.sleep(_POLL_SECONDS / 4)
        state._process.kill()  # also ends processes that it may have left in its group
        state.state = "stopped"


@contextlib.contextmanager
def _signals(handle: Callable[[int], object]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM with a function; outside the main thread, which cannot, they stay unchanged."""

    def note(number: int, frame: FrameType | None) -> None:
        handle(number)

    previous = {}
    with contextlib.suppress(ValueError):
        previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """Ask the Linux kernel to kill this process when its parent ends; do nothing on other systems."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
