"""Commands in processes of their own: queued, watched, stopped together."""

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
_STOP_SECONDS = 20.0  # a training ends by itself after SIGTERM; then it is killed
# What another launcher, another training or W&B in this process left for its own children.
_FOREIGN = ("LOCAL_RANK", "RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR",
            "MASTER_PORT", "PL_GLOBAL_SEED", RUN_FOLDER_VARIABLE, "WANDB_SERVICE")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One or more `deeplab` commands that run one after the other, the next only if the last succeeded.

    Attributes:
        name: What tables call it.
        commands: Arguments of each command.
        folder: Where it writes; `log.txt` there holds what it printed, and a lock keeps others out.
        is_finished: Whether its result is there. An exit status of 0 is not enough: a training that was
            told to stop ends with 0 as well.
    """

    name: str
    commands: Sequence[Sequence[str]]
    folder: Path
    is_finished: Callable[[], bool]


class Process(Protocol):
    """What runs a command."""

    def poll(self) -> int | None:
        """The exit status, None while it runs."""

    def stop(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it and all that it started."""


class Launcher(Protocol):
    """Where commands run; this machine, or a queue of a cluster."""

    def start(self, job: Job, command: Sequence[str], slot: int) -> Process:
        """Start one command of a job; `slot` numbers those that run at once, from 0."""


class LocalProcess:
    """A process group on this machine that ends when this process does."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], lock: IO[str]) -> None:
        self._process = subprocess.Popen(
            arguments,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock.fileno(),),  # held until the last process of the group is gone
            preexec_fn=_die_with_parent,
        )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@dataclass(frozen=True)
class LocalLauncher:
    """Starts processes on this machine.

    Args:
        jobs: How many run at once.
        devices: GPU indices to deal out to them; none leaves the choice to each command.
    """

    jobs: int = 1
    devices: Sequence[str] = ()

    def start(self, job: Job, command: Sequence[str], slot: int) -> Process:
        """Start a process with an environment of its own.

        Raises:
            UserError: If another process still writes into the job's folder.
        """
        job.folder.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
        environment["PYTHONUNBUFFERED"] = "1"
        if self.devices:
            own = self.devices[slot :: self.jobs] or [self.devices[slot % len(self.devices)]]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        if self.jobs > 1:  # each would take all cores otherwise
            share = max(1, (os.cpu_count() or 1) // self.jobs)
            environment.setdefault("OMP_NUM_THREADS", str(share))
        with RunFolder(job.folder).lock.open("w") as lock, RunFolder(job.folder).log.open("ab") as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"{job.folder}: another process is still at work here. Wait for it, or stop it."
                ) from error
            return LocalProcess([sys.executable, "-m", "deeplab_lightning", *command], environment, log, lock)


@dataclass
class JobState:
    """How far a job is.

    Attributes:
        job: The job.
        state: `waiting`, `running`, `finished`, `failed` or `stopped`.
        started: Of its first command, by `time.monotonic`.
        seconds: Time it took.
        error: Why it could not be started, or by what it was killed.
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
    """The user stopped the jobs; nothing is left running."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


def run_jobs(
    jobs: Sequence[Job], launcher: Launcher, *, at_once: int = 1, on_change: Callable[[Sequence[JobState]], None]
) -> list[JobState]:
    """Run jobs, some at once; one that fails does not stop the others.

    SIGINT and SIGTERM stop all of them, and return only when none is left.

    Args:
        jobs: In the order of starting.
        launcher: Where they run.
        at_once: How many run at once, at least 1.
        on_change: Called a few times a second with the states.

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
            _stop_all(states)
            on_change(states)
    if received:
        raise Interrupted(received[0])
    return states


def _start(state: JobState, launcher: Launcher) -> bool:
    """Start a job's next command; False if it cannot be started, which fails this job and no other."""
    try:
        state._process = launcher.start(state.job, state._commands.popleft(), state._slot)
    except (UserError, OSError) as error:
        state.state, state.error = "failed", str(error)
        return False
    state.state = "running"
    return True


def _advance(state: JobState, launcher: Launcher) -> bool:
    """Look after a running job; True if it ended."""
    assert state._process is not None
    state.seconds = time.monotonic() - state.started
    status = state._process.poll()
    if status is None:
        return False
    if status == 0 and state._commands and state.job.is_finished():
        return not _start(state, launcher)
    state.state = "finished" if status == 0 and state.job.is_finished() else "failed"
    if status < 0:  # else its last words tell
        out_of_memory = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
        state.error = f"killed by {signal.Signals(-status).name}{out_of_memory}"
    return True


def _stop_all(states: Sequence[JobState]) -> None:
    running = [state for state in states if state.state == "running"]
    for state in running:
        assert state._process is not None
        state._process.stop()
    deadline = time.monotonic() + _STOP_SECONDS
    for state in running:
        assert state._process is not None
        while state._process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS / 4)
        state._process.kill()  # and what it may have left of its group
        state.state = "stopped"


@contextlib.contextmanager
def _signals(handle: Callable[[int], object]) -> Iterator[None]:
    """SIGINT and SIGTERM only take a note; where this is not the main thread they stay as they are."""

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
    """On Linux, let the kernel end this process when the one that started it is killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
