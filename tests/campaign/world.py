"""Build a small world of data, runs and caches, and run the real commands in it."""

import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.conftest import CLASSES, draw_noise_data, noise_config
from tests.processes import Program

TIMEOUT = 120.0  # seconds after which a command counts as hanging; the slowest one takes 15


@dataclass(frozen=True)
class Done:
    """Hold how a command ended; the status is None if it did not."""

    status: int | None
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """Return the lines that name a mistake."""
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]

    def fault(self) -> str | None:
        """Return what no command may do, whatever it was given; None if it did nothing of that."""
        if self.status is None:
            return f"still running after {TIMEOUT:.0f} s"
        if "Traceback (most recent call last)" in self.stdout + self.stderr:
            return f"traceback: {(self.stderr.strip().splitlines() or ['?'])[-1][:150]}"
        if self.status < 0:
            return f"ended by {signal.Signals(-self.status).name}"
        if self.status > 0 and len(self.errors) != 1:
            return f"status {self.status} with {len(self.errors)} lines that begin with 'error: '"
        return None


@dataclass(frozen=True)
class Case:
    """Hold what was tried, and why it counts as lost; None if it held."""

    name: str
    fault: str | None


class Skipped(Exception):
    """Report why a block cannot run here."""


class World:
    """Hold a data set, a finished run, two finished experiments and their caches; built when first used.

    Args:
        folder: Empty folder for all of it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config, self.runs, self.cache = folder / "config.yaml", folder / "runs", folder / "cache"
        self.images = folder / "images"
        self._references: dict[Any, Any] = {}
        draw_noise_data(folder)
        write_coco(folder / "coco.json", [f"images/{index:02d}.png" for index in range(10)])
        config = noise_config(
            folder,
            trainer={"max_epochs": 2, "num_sanity_val_steps": 0, "enable_progress_bar": False, "logger": False},
            net={"dropout": 0.5},
            data={"cache": "disk"},
        )
        self.config.write_text(yaml.safe_dump({"seed_everything": 3, **config}))
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "DEEPLAB_CACHE": str(self.cache)}

    @property
    def run(self) -> Path:
        """Return the finished run."""
        return self.runs / "one"

    @property
    def experiment(self) -> Path:
        """Return the finished experiment."""
        return self.runs / "cv"

    def start(self, *words: str, cwd: Path | None = None) -> Program:
        """Start a command."""
        return Program(*words, env=self.environment, cwd=cwd or self.folder, start_new_session=True)

    def command(self, *words: str, cwd: Path | None = None) -> Done:
        """Run a command to its end."""
        return finished(self.start(*words, cwd=cwd))

    @functools.cached_property
    def _saved(self) -> Path:
        """Train the run and the experiment once, and keep copies of them and of the cache."""
        saved = self.folder / "saved"
        fit, cv = (["fit", "-c", str(self.config)], ["kfold", "-c", str(self.config), "--in_process"])
        for words in ([*fit, "--name", "one"], [*cv, "--name", "cv"], [*cv, "--name", "cv2", "--seed_everything", "4"]):
            done = self.command(*words)
            assert done.status == 0, done.stderr[-3000:]
        for folder in (self.runs, self.cache):
            shutil.copytree(folder, saved / folder.name)
        return saved

    def restore(self) -> None:
        """Put back runs and caches as they were after their training."""
        saved = self._saved
        for folder in (self.runs, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(saved / folder.name, folder)

    def reference(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the result of a call in the restored world, called once for each key."""
        if key not in self._references:
            self.restore()
            self._references[key] = make()
        return self._references[key]


def finished(program: Program) -> Done:
    """Wait for the end of a command, and end all its processes."""
    status: int | None
    try:
        status = program.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        status = None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    stdout, stderr = program.communicate(TIMEOUT)
    return Done(status, stdout, stderr)


def write_coco(path: Path, names: Sequence[str], classes: Sequence[str] = CLASSES) -> None:
    """Write a COCO file with one rectangle per image."""
    images = [{"id": i, "file_name": name, "height": 48, "width": 64} for i, name in enumerate(names)]
    annotations = [
        {"id": i, "image_id": i, "category_id": i % len(classes), "iscrowd": 0, "bbox": [4, 4, 30, 20], "area": 600,
         "segmentation": [[4, 4, 34, 4, 34, 24, 4, 24]]}
        for i in range(len(names))
    ]  # fmt: skip
    categories = [{"id": i, "name": name} for i, name in enumerate(classes)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def coco_options(folder: Path, annotations: Path) -> list[str]:
    """Return the options that read a COCO file instead of the masks of the configuration."""
    arguments = {"images": str(folder), "annotations": str(annotations)}
    return ["--data.dataset", yaml.safe_dump({"class_path": "CocoDataset", "init_args": arguments})]


def damaged(content: bytes, kind: str, chance: random.Random) -> bytes:
    """Return content that a disk or a person has damaged.

    Args:
        content: The whole content.
        kind: `bit`, `bits`, `short`, `empty`, `zeros`, `text`, `noise` or `longer`.
        chance: Source of the random numbers.
    """
    noise = np.frombuffer(chance.randbytes(chance.randint(1, 4000)), dtype=np.uint8).tobytes()
    if kind in {"bit", "bits"}:
        changed = bytearray(content)
        for _ in range(1 if kind == "bit" else 50):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        return bytes(changed)
    if kind == "zeros":  # as after a crash of the machine
        start = chance.randrange(len(content))
        return content[:start] + bytes(len(content) - start)
    others = {
        "short": content[: chance.randrange(len(content))],
        "empty": b"",
        "text": b"<html><body>503 Service Unavailable</body></html>\n",
        "noise": noise,
        "longer": content + noise,
    }
    return others[kind]


DAMAGES = ("bit", "bits", "short", "empty", "zeros", "text", "noise", "longer")
