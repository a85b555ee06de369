"""Run the commands of several jobs with a launcher: queue, watch and stop them together."""

import contextlib
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol

from deeplab_lightning.errors import UserError

_POLL_SECONDS = 0.2


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
        is_wanted: Function that checks, when its turn comes, whether the job is still worth running.
    """

    name: str
    commands: Sequence[Sequence[str]]
    folder: Path
    is_finished: Callable[[], bool]
    is_wanted: Callable[[], bool] = lambda: True


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


@dataclass
class JobState:
    """Hold the state of a job.

    Attributes:
        job: The job.
        state: `waiting`, `running`, `finished`, `failed`, `stopped`, `skipped` since nobody wants it any more,
            or `lost` by a cluster, which starts it again.
        started: Start time of the first command, by `time.monotonic`.
        seconds: Time since the start in seconds.
        error: Reason why it could not be started, or the signal that ended it.
        is_killed: Whether a signal from elsewhere ended it.
        place: Id and node of its job in a cluster's queue, or why it waits there.
    """

    job: Job
    state: str = "waiting"
    started: float = 0.0
    seconds: float = 0.0
    error: str = ""
    is_killed: bool = False
    place: str = ""
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
    jobs: Sequence[Job],
    launcher: Launcher,
    *,
    at_once: int = 1,
    on_change: Callable[[Sequence[JobState]], object],
    stop_seconds: float = 20.0,
) -> list[JobState]:
    """Run jobs, a number of them at once; a job that fails does not stop the others.

    SIGINT and SIGTERM stop all jobs; the function ends when none is left running. A second signal kills them.

    Args:
        jobs: Jobs in the order in which they start.
        launcher: Launcher of the commands.
        at_once: Number of jobs that run at once, at least 1.
        on_change: Function of the states, called about five times per second.
        stop_seconds: Time for a command to end after a signal, before it is killed.

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
                    if not state.job.is_wanted():
                        state.state = "skipped"
                        continue
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
            _stop_all(states, stop_seconds, is_hurried=lambda: len(received) > 1)
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
    state.is_killed = status < 0 or status == 128 + signal.SIGTERM
    if status < 0:  # otherwise its last line of output names the reason
        out_of_memory = ", perhaps out of memory" if -status == signal.SIGKILL else ""
        state.error = f"killed by {signal.Signals(-status).name}{out_of_memory}"
    return True


def _stop_all(states: Sequence[JobState], seconds: float, *, is_hurried: Callable[[], bool]) -> None:
    """Ask the running jobs to end, and kill those that do not in time, or all once it is hurried."""
    running = [state for state in states if state.state == "running"]
    for state in running:
        assert state._process is not None
        state._process.stop()
    deadline = time.monotonic() + seconds
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
