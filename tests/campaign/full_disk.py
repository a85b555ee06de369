"""Fill a small disk: the old file stays whole, and one line names the file."""

import contextlib
import copy
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from deeplab_lightning.checkpoints import read_checkpoint
from deeplab_lightning.errors import UserError
from tests.campaign.world import Case, Skipped, World, finished

_FILL_BYTES = 64 * 1024


def attack(world: World, chance: random.Random, number: int) -> Case:
    """Run a command on a disk that is too small, or that somebody fills while it runs."""
    world.restore()
    checkpoint = (world.run / "checkpoints" / "last.ckpt").stat().st_size
    size = int(checkpoint * chance.uniform(0.3, 6))
    kind, pause = sorted(_COMMANDS)[number % len(_COMMANDS)], chance.choice([None, chance.uniform(0, 6)])
    name = f"{kind} on {size / 1e6:.2f} MB" + ("" if pause is None else f", filled after {pause:.2f} s")
    with _small_disk(size) as disk:
        words = [w.format(config=world.config, disk=disk, run=world.run, w=world.folder) for w in _COMMANDS[kind]]
        if kind == "cache":
            world = _with_cache(world, disk / "cache")
        program = world.start(*words)
        if pause is not None:
            time.sleep(pause)
            _fill(disk)
        done = finished(program)
        if fault := done.fault():
            return Case(name, fault)
        if done.status and str(disk) not in done.errors[0]:
            return Case(name, f"the disk is not named: {done.errors[0][:150]}")
        if kind == "cache" and done.status:
            return Case(name, f"a full cache stops the run: {done.errors[0][:150]}")
        for path in disk.rglob("*.ckpt"):
            try:
                read_checkpoint(path)
            except UserError as error:
                return Case(name, str(error)[:150])
        left = [path.name for path in disk.rglob("*.tmp")]
        return Case(name, f"left {left}" if left else None)


_COMMANDS = {
    "fit": ["fit", "-c", "{config}", "--name", "x", "--output_dir", "{disk}/runs", "--trainer.max_epochs", "8"],
    "kfold": ["kfold", "-c", "{config}", "--name", "x", "--output_dir", "{disk}/runs", "--in_process"],
    "cache": ["validate", "--ckpt_path", "{run}/checkpoints/best.ckpt", "--data.cache", "none"],
    "split": ["split", "-c", "{config}", "--output", "{disk}/split"],
    "predict": ["predict", "--ckpt_path", "{run}/checkpoints/best.ckpt", "--images", "{w}/images", "--output",
                "{disk}/out"],
}  # fmt: skip


@contextlib.contextmanager
def _small_disk(num_bytes: int) -> Iterator[Path]:
    """Mount a disk of some bytes in memory.

    Raises:
        Skipped: If this process may not.
    """
    if os.geteuid() != 0:
        raise Skipped("only root may mount a small disk")
    folder = Path(tempfile.mkdtemp(prefix="disk-"))
    options = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
    done = subprocess.run(options, capture_output=True, text=True, check=False)
    if done.returncode:
        folder.rmdir()
        raise Skipped(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def _fill(disk: Path) -> None:
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(_FILL_BYTES))


def _with_cache(world: World, cache: Path) -> World:
    """Return a world like another one, with an empty cache elsewhere."""
    other = copy.copy(world)
    other.environment = {**world.environment, "DEEPLAB_CACHE": str(cache)}
    return other
