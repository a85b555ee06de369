"""`deeplab wandb-sync` with logs as kills, copies and full disks leave them, against a server on this machine."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.processes import Program, run_program
from tests.tracking.test_mode import KEY
from tests.tracking.test_runs import environment
from tests.tracking.wandb_server import PROJECT, WandbServer

pytestmark = pytest.mark.long

_TRACK = """
import sys, time, wandb
own = {"project": PROJECT, "resume": "allow", "settings": wandb.Settings(console="off", x_disable_stats=True)}
for name in sys.argv[2:]:
    time.sleep(1.1)  # the folder of a log is called by its second
    run = wandb.init(mode="offline", dir=f"{sys.argv[1]}/{name}", id=name, **own)
    for row in range(3):
        run.log({"val/miou": row / 10})
    run.finish()
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    running = WandbServer()
    yield running
    running.stop()


def track(root: Path, *names: str) -> dict[str, Path]:
    """Track runs offline, and return their logs by name."""
    for name in names:
        (root / name).mkdir(parents=True)
    code = _TRACK.replace("PROJECT", repr(PROJECT))
    subprocess.run([sys.executable, "-c", code, str(root), *names], check=True, env=environment(), capture_output=True)
    return {name: next((root / name).glob("wandb/offline-run-*/run-*.wandb")) for name in names}


def sync(server: WandbServer, *folders: Path) -> CompletedProcess[str]:
    more = environment(WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    return run_program("wandb-sync", *map(str, folders), env=more, timeout=200)


def rows(server: WandbServer) -> dict[str, int]:
    """Count the rows of each run on the server."""
    return {run: sum("val/miou" in row for row in found) for run, found in server.history.items()}


def test_a_damaged_log_keeps_no_other_from_the_server(tmp_path: Path, server: WandbServer) -> None:
    """One short file made `wandb sync` of all runs upload nothing, with status 0."""
    root = tmp_path / "runs"
    logs = track(root, "good", "empty", "short", "torn", "also_good")
    content = logs["torn"].read_bytes()
    for name, size in (("empty", 0), ("short", 7), ("torn", content.rindex(b"val/miou"))):
        logs[name].write_bytes(logs[name].read_bytes()[:size])
    shutil.copytree(root / "good", root / "good-copy")
    done = sync(server, root)
    assert done.returncode == 1
    found = rows(server)
    assert {name: found[name] for name in ("good", "also_good")} == {"good": 3, "also_good": 3}
    assert found["torn"] > 0
    assert f"left out: {root / 'good-copy'}" in done.stdout
    assert f"uploaded: {logs['torn'].parent}: all but its end, which is torn" in done.stdout
    lost = [line for line in done.stdout.splitlines() if line.startswith("not uploaded: ")]
    assert sorted(name for name in logs for line in lost if str(logs[name].parent) in line) == ["empty", "short"]
    assert done.stderr == "error: 2 logs were not uploaded, see above.\n"
    assert "Traceback" not in done.stdout
    sync(server, root)
    assert rows(server) == found


def test_nothing_to_upload_is_said(tmp_path: Path, server: WandbServer) -> None:
    track(tmp_path / "runs", "one")
    assert "1 of 1 logs were uploaded, 0 had been before." in sync(server, tmp_path).stdout
    done = sync(server, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 1 logs were uploaded, 1 had been before." in done.stdout
    assert rows(server) == {"one": 3}
    for folder, message in ((tmp_path / "none", "no such folder: "), (Path(__file__).parent, "no offline W&B run in ")):
        done = sync(server, folder)
        assert done.returncode == 1
        assert done.stderr.startswith(f"error: {message}")
        assert len(done.stderr.splitlines()) == 1


def test_parts_of_a_resumed_run_follow_each_other(tmp_path: Path, server: WandbServer) -> None:
    track(tmp_path, "one")
    sync(server, tmp_path)
    (tmp_path / "one").rename(tmp_path / "first")
    track(tmp_path, "one")
    assert "1 of 2 logs were uploaded, 1 had been before." in sync(server, tmp_path).stdout
    assert [row["_step"] for row in server.history["one"]] == [0, 1, 2, 3, 4, 5]


def test_a_server_that_dies_ends_the_upload(tmp_path: Path, server: WandbServer) -> None:
    """`wandb sync` tried again for longer than anybody waits."""
    logs = track(tmp_path, "one", "two")
    more = environment(WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    program = Program("wandb-sync", str(tmp_path), env=more)
    while not server.num_requests:
        time.sleep(0.02)
    server.stop()
    stdout, stderr = program.communicate(timeout=200)
    assert program.wait() == 1
    for log in logs.values():
        assert f"not uploaded: {log.parent}: {server.url} does not answer any more" in stdout
    assert stderr == "error: 2 logs were not uploaded, see above.\n"
