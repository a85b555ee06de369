"""Start SLURM with two nodes on this machine, and stop it again by the ids of its processes."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import yaml

from tests.conftest import draw_noise_data, noise_config

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("n1", "n2")
CONFIG = """
ClusterName=deeplab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
# Seconds until a job that was put into the queue again may start; at least 5, and 120 by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=1
ReturnToService=2
SlurmdTimeout=5
KillWait=20
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES State=UP
PartitionName=urgent Nodes=n1,n2 PriorityTier=10 State=UP
"""


class Cluster:
    """Two nodes of SLURM on this machine.

    Args:
        folder: Folder of its files, with a short path that other users may enter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf")}
        self._munge = folder / "munge"

    def start(self) -> None:
        """Start its daemons, each of which leaves its id in a file."""
        self.folder.chmod(0o755)
        self._munge.mkdir(mode=0o700)
        (self._munge / "key").write_bytes(os.urandom(1024))
        (self._munge / "key").chmod(0o400)
        (self.folder / "state").mkdir()
        host, ports = socket.gethostname().partition(".")[0], _free_ports(3)
        lines = [CONFIG.format(host=host, folder=self.folder, port=ports[0])]
        for node, port in zip(NODES, ports[1:], strict=True):
            place = f"NodeHostName={host} NodeAddr=127.0.0.1 Port={port}"
            lines.append(f"NodeName={node} {place} CPUs=2 RealMemory=2000\n")
        (self.folder / "slurm.conf").write_text("".join(lines))
        self.call(
            "munged", f"--socket={self.folder}/munge.socket", f"--key-file={self._munge}/key",
            f"--pid-file={self._munge}/pid", f"--log-file={self._munge}/log", f"--seed-file={self._munge}/seed",
        )  # fmt: skip
        self.call("slurmctld", "-c", "-f", str(self.folder / "slurm.conf"))
        for node in NODES:
            self.start_node(node)
        wait_for(lambda: self.call("sinfo", "--noheader", "--format=%t").split() == ["idle"], 30)

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self.call("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill the daemon of a node with all processes of its jobs, as when the machine loses its power."""
        ids = self.call("squeue", "--noheader", f"--nodelist={node}", "--format=%A").split()
        steps = [pid for job in ids for pid in self.processes(f"slurmstepd: [{job}.batch]")]
        below = [pid for step in steps for pid in descendants(step)]
        for pid in [_read_pid(self.folder / f"slurmd-{node}.pid"), *steps, *below]:
            kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        """Cancel all jobs, and end all daemons."""
        with suppress(subprocess.CalledProcessError):
            self.call("scancel", f"--user={os.getuid()}", "--signal=KILL")
            self.call("scancel", f"--user={os.getuid()}")
        pids = [self.folder / f"slurmd-{node}.pid" for node in NODES]
        for file in [*pids, self.folder / "slurmctld.pid", self._munge / "pid"]:
            if file.is_file():
                pid = _read_pid(file)
                kill(pid, signal.SIGTERM)
                with suppress(AssertionError):
                    wait_for(lambda pid=pid: not Path(f"/proc/{pid}").exists(), 10)  # type: ignore[misc]
                kill(pid, signal.SIGKILL)

    def jobs(self) -> dict[str, str]:
        """Return the nodes of all jobs that wait or run, by id."""
        lines = self.call("squeue", "--noheader", "--array", "--format=%i|%N").splitlines()
        return dict(line.split("|") for line in lines)

    def processes(self, text: str) -> list[int]:
        """Return the ids of the processes of this cluster whose command line holds a text."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (process / "environ").read_text(errors="replace")
            except OSError:  # it has ended
                continue
            if text in line and str(self.folder) in environment:
                found.append(int(process.name))
        return found

    def signal_job(self, job: str, name: str) -> None:
        """Send a signal to the script of a job, as SLURM does before its time limit."""
        self.call("scancel", f"--signal={name}", "--batch", job)

    def call(self, *command: str, text: str = "", env: Mapping[str, str] = {}) -> str:
        """Run a command of SLURM, and return what it prints."""
        environment = {**self.environment, **env}
        done = subprocess.run(
            command, input=text, env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout


def reason_to_skip() -> str | None:
    """Return why no cluster can be started here; None if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install slurm-wlm munge"
    return None if os.getuid() == 0 else "the daemons of SLURM need root"


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a cluster, and stop it at the end."""
    made = Cluster(folder)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def descendants(pid: int) -> list[int]:
    """Return the ids of all processes below a process."""
    children = [int(c) for task in Path(f"/proc/{pid}/task").glob("*") for c in _words(task / "children")]
    return [*children, *(below for child in children for below in descendants(child))]


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:  # it has ended
        return []


def kill(pid: int, number: int) -> None:
    """Send a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _read_pid(file: Path) -> int:
    return int(file.read_text())


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def write_held_config(folder: Path, *, epochs: int, n_folds: int) -> None:
    """Write ten images, and `config.yaml` of trainings that `hold.Hold` stops in the middle."""
    draw_noise_data(folder)
    trainer = {"max_epochs": epochs, "num_sanity_val_steps": 0, "enable_model_summary": False,
               "callbacks": [{"class_path": "tests.cluster.hold.Hold"}]}  # fmt: skip
    config = noise_config(folder, trainer=trainer, data={"n_folds": n_folds})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
