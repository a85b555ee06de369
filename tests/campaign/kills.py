"""Kill trainings at random moments and resume them: they end like those that were not killed."""

import json
import os
import random
import signal
import time
import zlib
from pathlib import Path
from typing import Any

import torch

from tests.campaign.world import Case, World, finished

_EPOCHS, _MAX_KILLS = 5, 4
_OPTIONS = (("--data.num_workers", "0"), ("--data.num_workers", "2"), ("--data.cache", "none"))


def attack(world: World, chance: random.Random, number: int) -> Case:
    """Kill one training some times."""
    options = [*_OPTIONS[number % len(_OPTIONS)], "--trainer.max_epochs", str(_EPOCHS)]
    kind = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    words = ["fit", "-c", str(world.config), *options]

    def whole() -> Any:
        start = time.monotonic()
        done = world.command(*words, "--name", "whole")
        assert done.status == 0, done.stderr[-3000:]
        return _content(world.runs / "whole"), time.monotonic() - start

    expected, seconds = world.reference(tuple(options), whole)
    world.restore()
    folder = world.runs / "killed"
    moments = [chance.uniform(0, seconds * 1.1) for _ in range(chance.randint(1, _MAX_KILLS))]
    name = f"{' '.join(options)}, {kind.name} after {', '.join(f'{moment:.2f}' for moment in moments)} s"
    for moment in moments:
        program = world.start(*words, "--name", "killed", "--ckpt_path", "last")
        time.sleep(moment)
        if program.poll() is None:
            os.killpg(program.pid, kind)
        done = finished(program)
        if kind == signal.SIGKILL and done.status == -kind:
            continue
        stopped = kind == signal.SIGINT and done.status in {1, 130, -signal.SIGINT}
        if done.status in {0, 143, -kind} or stopped:
            continue  # at its end; stopped; or before it could listen
        return Case(name, done.fault() or f"status {done.status} after {kind.name}")
    done = world.command(*words, "--name", "killed", "--ckpt_path", "last")
    if fault := done.fault() or (done.status and done.errors[0]):
        return Case(name, fault)
    return Case(name, None if _content(folder) == expected else "other weights or figures than the whole training")


def _content(folder: Path) -> Any:
    """Return the weights and figures of a finished run; without those of time."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    sums = {name: zlib.crc32(tensor.numpy().tobytes()) for name, tensor in checkpoint["state_dict"].items()}
    result = json.loads((folder / "result.json").read_text())
    return sums, result["val"], result["last"], result["best_epoch"]
