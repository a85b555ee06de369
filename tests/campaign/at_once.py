"""Run one command twice at once: each gets a folder or file of its own, or is refused in one line."""

import random
import time
from pathlib import Path

from deeplab_lightning.checkpoints import read_checkpoint
from tests.campaign.world import Case, World, finished


def attack(world: World, chance: random.Random, number: int) -> Case:
    """Run a command twice, with a random time between the starts."""
    kind, pause = sorted(COMMANDS)[number % len(COMMANDS)], round(chance.choice([0.0, chance.uniform(0, 4)]), 2)
    return twice(world, kind, pause)


def twice(world: World, kind: str, pause: float) -> Case:
    """Run a command of a kind twice, with a pause in seconds between the starts."""
    world.restore()
    words = [word.format(config=world.config, folder=world.folder, run=world.run) for word in COMMANDS[kind].split()]
    if kind.endswith("resume"):
        (world.experiment / "fold_1" / "result.json").unlink()
    first = world.start(*words)
    time.sleep(pause)
    second = world.start(*words)
    both = [finished(first), finished(second)]
    name = f"{kind} twice, {pause} s apart"
    for done in both:
        if fault := done.fault():
            return Case(name, fault)
    return Case(name, _fault(world, kind, sum(done.status == 0 for done in both)))


COMMANDS = {
    "fit": "fit -c {config} --name both",
    "kfold": "kfold -c {config} --name both --in_process",
    "kfold_resume": "kfold --resume --name cv --in_process",
    "export": "export --ckpt_path {run}/checkpoints/best.ckpt --format torch_export --output {folder}/runs/model.pt2",
    "split": "split -c {config} --output {folder}/runs/split",
    "predict": "predict --ckpt_path {run}/checkpoints/best.ckpt --images {folder}/images --output {folder}/runs/out",
}


def _fault(world: World, kind: str, successes: int) -> str | None:
    """Return what is wrong with the results of so many successful commands."""
    if not successes:
        return "neither succeeded"
    if kind in {"fit", "kfold"}:
        folders = sorted(world.runs.glob("both*"))
        if len(folders) != successes:
            return f"{successes} succeeded, in the folders {[folder.name for folder in folders]}"
        return next(filter(None, map(_run_fault, folders)), None)
    if kind == "kfold_resume":
        return _run_fault(world.experiment)
    return None if any(world.runs.glob({"export": "model*", "split": "split*", "predict": "out*"}[kind])) else "no file"


def _run_fault(folder: Path) -> str | None:
    runs = sorted(folder.glob("fold_*")) or [folder]
    for run in runs:
        if not (run / "result.json").is_file():
            return f"{run.name} of {folder.name} has no result.json"
        configs = sorted(path.name for path in run.glob("config*.yaml"))
        if configs not in (["config.yaml"], ["config-2.yaml", "config.yaml"]):
            return f"{run.name} of {folder.name} holds {configs}"
        read_checkpoint(run / "checkpoints" / "last.ckpt")
    return None
