"""Upload offline W&B runs one by one, so that a log that cannot be read keeps no other one from the server."""

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deeplab_lightning.files import write_text
from deeplab_lightning.tracking.mode import can_answer

_AT_ONCE = 4
_SECONDS, _MAX_MISSED = 5.0, 4  # between questions to the server, and answers in a row that may fail to come
_PREFIX = "offline-run-"
_MARK = ".synced"  # of W&B, beside a log that was uploaded whole
_SIZE = ".uploaded"  # ours, beside a log that a kill tore: the bytes that it had when the rest was uploaded
_TORN = "incomplete record"


@dataclass(frozen=True)
class OfflineLog:
    """Hold one log of a run that was tracked offline; a resumed run has several.

    Attributes:
        path: The file.
        run: Id of the run.
    """

    path: Path
    run: str

    @property
    def is_uploaded(self) -> bool:
        """Check whether W&B has all of the log that can be read."""
        size = self._beside(_SIZE)
        is_known = size.is_file() and size.read_text(encoding="utf-8") == str(self.path.stat().st_size)
        return is_known or self._beside(_MARK).is_file()

    def note_torn(self) -> None:
        """Note that all but a torn end was uploaded, which W&B would append again each time."""
        write_text(self._beside(_SIZE), str(self.path.stat().st_size))

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def find_logs(folders: Sequence[Path]) -> list[OfflineLog]:
    """Find the offline logs below folders, in the order in which they were started."""
    found = {path.absolute() for folder in folders for path in folder.rglob(f"{_PREFIX}*/run-*.wandb")}
    ordered = sorted(found, key=lambda path: (path.parent.name, len(path.parts), path))
    return [OfflineLog(path, path.stem.removeprefix("run-")) for path in ordered]


def distinct(logs: Sequence[OfflineLog]) -> tuple[list[OfflineLog], dict[Path, Path]]:
    """Leave out copies of logs, whose rows the server would get twice.

    Returns:
        The logs, and copy -> original.
    """
    kept: dict[tuple[str, str], OfflineLog] = {}
    copies: dict[Path, Path] = {}
    for log in sorted(logs, key=lambda log: not log.is_uploaded):  # the original is the one that was uploaded
        key = log.run, hashlib.sha256(log.path.read_bytes()).hexdigest()
        if key in kept:
            copies[log.path] = kept[key].path
        else:
            kept[key] = log
    return [log for log in logs if log.path not in copies], copies


def upload(logs: Sequence[OfflineLog], server: str) -> Iterator[tuple[OfflineLog, str]]:
    """Upload logs by `wandb sync`, several runs at once, and those of one run in their order.

    Args:
        logs: The logs.
        server: Address of the W&B server.

    Yields:
        Each log with the reason why it was not uploaded whole; an empty text if it was.
    """
    runs: dict[str, list[OfflineLog]] = {}
    for log in logs:
        runs.setdefault(log.run, []).append(log)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for found in pool.map(lambda own: [(log, _upload(log, server)) for log in own], runs.values()):
            yield from found


def _upload(log: OfflineLog, server: str) -> str:
    command = [sys.executable, "-m", "wandb", "sync", "--yes", str(log.path.parent)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT) as process:
            missed = 0
            while process.poll() is None and missed < _MAX_MISSED:  # `wandb sync` would wait for the server for days
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_SECONDS)
                    break
                missed = 0 if can_answer(server) else missed + 1
            process.kill()
        output.seek(0)
        lines = [line.removeprefix("wandb:").strip() for line in output]
    if log.is_uploaded:
        return ""
    if missed == _MAX_MISSED:
        return f"{server} does not answer any more"
    problem = next((line.removeprefix("ERROR ") for line in lines if line.startswith("ERROR ")), "")
    if _TORN in problem:
        log.note_torn()
        return "all but its end, which is torn: its training was killed, or still runs"
    return problem or next(filter(None, reversed(lines)), f"wandb sync ended with status {process.returncode}")
