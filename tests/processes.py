"""Run the command line in processes that need no import: each is forked from a server that has imported it.

Importing torch and Lightning takes seconds of CPU, more than most of the small trainings here. A process that is forked
from such a server is one like any other, with own files, signals, process group, environment and exit status. What a
test says about the start of the interpreter itself (which modules are imported, what an environment variable does
before torch is imported) needs `subprocess` instead.
"""

import atexit
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRELOADED = ["deeplab_lightning.commands.training", "deeplab_lightning.commands.kfold", "deeplab_lightning.module"]
_CONTEXT = multiprocessing.get_context("forkserver")


class Program:
    """A process that runs `deeplab`, with the methods of `subprocess.Popen` that the tests use.

    Args:
        words: The words after `deeplab`.
        env: The whole environment of the process. None for that of this process.
        cwd: Its working folder. None for that of this process.
        start_new_session: Whether it leads a process group of its own.
    """

    def __init__(
        self,
        *words: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        start_new_session: bool = False,
    ) -> None:
        self.args = ["deeplab", *words]
        self._output = Path(tempfile.mkdtemp(prefix="program-"))
        weakref.finalize(self, shutil.rmtree, self._output, ignore_errors=True)
        files = [str(self._output / name) for name in ("stdout", "stderr")]
        given = (files, dict(os.environ if env is None else env), str(cwd or Path.cwd()), start_new_session)
        self._process = _CONTEXT.Process(target=_run, args=(list(words), *given))
        _start_server()
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while the process runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit status, minus the signal's number after a signal."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, signal: int) -> None:
        """Send a signal to the process."""
        os.kill(self.pid, signal)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end and return all that the process wrote to stdout and stderr."""
        self.wait(timeout)
        paths = [self._output / name for name in ("stdout", "stderr")]
        stdout, stderr = (path.read_text() if path.is_file() else "" for path in paths)
        return stdout, stderr


def run_program(
    *words: str,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = False,
    timeout: float = 300,
) -> "subprocess.CompletedProcess[str]":
    """Run `deeplab` in a process to its end, as `subprocess.run` with `capture_output` and `text` does."""
    program = Program(*words, env=env, cwd=cwd)
    stdout, stderr = program.communicate(timeout)
    status = program.wait()
    assert status == 0 or not check, stderr[-4000:]
    return subprocess.CompletedProcess(program.args, status, stdout, stderr)


def _start_server() -> None:
    """Start the server, if it does not run, in the root folder and so that it finds this checkout's package."""
    from multiprocessing import forkserver

    _CONTEXT.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _run(words: list[str], files: list[str], environment: dict[str, str], folder: str, is_leader: bool) -> None:
    """Become the process of a command: its files, environment, folder, arguments and `__main__`."""
    if is_leader:
        os.setsid()
    for descriptor, name in enumerate(files, start=1):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a terminal; a shell's background jobs ignore it
    import torch

    if "OMP_NUM_THREADS" in environment:  # read when torch was imported
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    # Else the loaders' processes would start from a server of their own, and import everything again.
    multiprocessing.set_start_method(None, force=True)
    sys.argv = ["deeplab", *words]
    atexit._clear()  # what the server's imports registered would remove temporary folders that others need
    try:
        runpy.run_module("deeplab_lightning", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips them
