"""Damage a file, run what reads it, and compare: made again, named in one line, or of no effect."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.world import DAMAGES, Case, Done, World, coco_options, damaged


@dataclass(frozen=True)
class _Reader:
    """Hold a command, and the result that a damaged file must not change without a word."""

    words: Callable[[World], Sequence[str]]
    result: Callable[[World, Done], Any]


def _json(path: Path, *keys: str) -> Any:
    content = json.loads(path.read_text())
    for key in keys:
        content = content[key]
    return content


def _evaluation(world: World, done: Done) -> Any:
    return _json(next(world.run.glob("result_validate*.json")), "val")


def _masks(world: World, done: Done) -> Any:
    return {path.name: path.read_bytes() for path in sorted((world.runs / "predicted").rglob("*.png"))}


def _pooled(world: World, done: Done) -> Any:
    return _json(world.experiment / "cv.json")


def _resumed(world: World, done: Done) -> Any:
    return _json(world.run / "result.json", "val"), _json(world.run / "result.json", "last")


READERS = {
    "check": _Reader(lambda w: ["data", "check", "-c", f"{w.config}"], lambda w, done: done.stdout),
    "check_coco": _Reader(
        lambda w: ["data", "check", "-c", f"{w.config}", *coco_options(w.folder, w.folder / "coco.json")],
        lambda w, done: done.stdout,
    ),
    "validate": _Reader(lambda w: ["validate", "--ckpt_path", f"{w.run}/checkpoints/best.ckpt"], _evaluation),
    "predict": _Reader(
        lambda w: ["predict", "--ckpt_path", f"{w.run}/checkpoints/best.ckpt", "--images", f"{w.images}",
                   "--output", f"{w.runs}/predicted"],
        _masks,
    ),
    "resume": _Reader(
        lambda w: ["fit", "-c", f"{w.config}", "--name", "one", "--ckpt_path", "last", "--trainer.max_epochs", "3"],
        _resumed,
    ),
    "aggregate": _Reader(lambda w: ["kfold", "--aggregate", f"{w.experiment}"], _pooled),
    "kfold_resume": _Reader(lambda w: ["kfold", "--resume", "--name", "cv", "--in_process"], _pooled),
    "compare": _Reader(lambda w: ["compare", f"{w.experiment}", f"{w.runs}/cv2"], lambda w, done: done.stdout),
    "page": _Reader(
        lambda w: ["compare", f"{w.experiment}", f"{w.runs}/cv2", "--html", f"{w.folder}/page.html"],
        lambda w, done: (w.folder / "page.html").read_text(),
    ),
    "fold_file": _Reader(
        lambda w: ["fit", "-c", f"{w.config}", "--name", "other", "--data.fold_file", f"{w.experiment}/folds.csv"],
        lambda w, done: _json(w.runs / "other" / "result.json", "val"),
    ),
}  # fmt: skip

# Files and their readers. The last column says whether people write such a file, so that a changed letter cannot be
# told from what they mean: only the faults of every command count then.
TARGETS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("cache/scans/*.npz", ("check", "validate"), False),
    ("cache/masks/*.png", ("check_coco",), False),
    ("cache/decoded/*.pixels.npy", ("validate", "resume"), False),
    ("cache/decoded/*.mask.npy", ("validate", "resume"), False),
    ("runs/one/checkpoints/best.ckpt", ("validate", "predict"), False),
    ("runs/one/checkpoints/last.ckpt", ("resume",), False),
    ("runs/one/metrics.csv", ("resume",), False),
    ("runs/one/folds.csv", ("validate", "resume"), True),
    ("runs/one/config.yaml", ("validate", "resume"), True),
    ("runs/cv/config.yaml", ("kfold_resume",), True),
    ("runs/cv/folds.csv", ("kfold_resume", "compare"), False),
    ("runs/cv/folds.csv", ("fold_file",), True),
    ("runs/cv/balance.csv", ("kfold_resume", "compare", "page"), False),
    ("runs/cv/cv.json", ("aggregate", "kfold_resume", "compare"), False),
    ("runs/cv/oof.npz", ("aggregate", "kfold_resume", "compare", "page"), False),
    ("runs/cv/fold_[01]/folds.csv", ("compare", "kfold_resume"), False),
    ("runs/cv/fold_[01]/balance.csv", ("compare", "page"), False),
    ("runs/cv/fold_[01]/config.yaml", ("compare", "kfold_resume"), True),
    ("runs/cv/fold_[01]/job.yaml", ("kfold_resume",), False),
    ("runs/cv/fold_[01]/val_images.txt", ("kfold_resume", "page"), False),
    ("runs/cv/fold_[01]/result.json", ("aggregate", "compare", "kfold_resume"), False),
    ("runs/cv/fold_[01]/image_matrices.npz", ("aggregate", "compare", "kfold_resume"), False),
    ("runs/cv/fold_[01]/last_image_matrices.npz", ("aggregate", "compare", "kfold_resume"), False),
    ("runs/cv/fold_[01]/confusion_matrix.csv", ("aggregate", "compare"), False),
)


def attack(world: World, chance: random.Random, number: int) -> Case:
    """Damage one file of the world and run a command that reads it."""
    pattern, readers, is_authored = TARGETS[number % len(TARGETS)]
    reader, kind = chance.choice(readers), chance.choice(DAMAGES)
    return damage(world, pattern, reader, kind, chance, is_authored=is_authored)


def damage(
    world: World, pattern: str, reader: str, kind: str, chance: random.Random, *, is_authored: bool = False
) -> Case:
    """Damage a file in a way and run a command that reads it."""
    used = READERS[reader]

    def run() -> tuple[Done, Any]:
        done = world.command(*used.words(world))
        return done, used.result(world, done) if done.status == 0 and done.fault() is None else None

    (whole, expected) = world.reference(reader, run)
    assert whole.status == 0, whole.stderr[-3000:]
    world.restore()
    if pattern.startswith("cache/masks"):
        world.command(*used.words(world))
        for scan in (world.cache / "scans").iterdir():  # else no mask is read
            scan.unlink()
    path = chance.choice(sorted(world.folder.glob(pattern)))
    before = path.read_bytes()
    after = damaged(before, kind, chance)
    name = f"{pattern}, {kind}, {reader}"
    if after == before:
        return Case(name, None)
    path.write_bytes(after)
    done, found = run()
    return Case(name, _fault(done, found, expected, path, is_authored=is_authored))


def _fault(done: Done, found: Any, expected: Any, path: Path, *, is_authored: bool) -> str | None:
    if fault := done.fault():
        return fault
    is_named = path.name in done.stdout.replace("\n", "") + done.stderr
    if done.status != 0:
        return None if is_named or is_authored else f"the file is not named: {done.errors[0][:150]}"
    if found == expected or is_named or is_authored:
        return None
    return "another result without a word"
