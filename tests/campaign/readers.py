"""Feed readers of files with generated input, in a process of their own: only mistakes of the user are allowed."""

import contextlib
import io
import json
import multiprocessing
import os
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from deeplab_lightning.__main__ import user_error
from deeplab_lightning.checkpoints import read_checkpoint
from deeplab_lightning.commands.options import check_configs
from deeplab_lightning.data import ClassTable, CocoDataset, MaskFolderDataset
from deeplab_lightning.data.datasets import ImageFolderDataset
from deeplab_lightning.data.folds.table import FoldTable
from deeplab_lightning.data.groups import TableGroups
from deeplab_lightning.data.images import read_image
from deeplab_lightning.data.scan import scan_dataset
from deeplab_lightning.experiments.aggregate import read_cv
from deeplab_lightning.metrics.per_image import PerImageConfusion
from deeplab_lightning.runs import ExperimentFolder, PredictionFolder, RunFolder
from tests.campaign.world import DAMAGES, Case, World, damaged, write_coco
from tests.conftest import CLASSES, write_image

_EXAMPLES, _SECONDS = 60, 90.0
_CONTEXT = multiprocessing.get_context("forkserver")
_RESULT: dict[str, Any] = {"fold": 0, "n_folds": 2, "val": {"iou": {"a": 0.5, "b": None}}, "best_epoch": 1}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TEXT_LINES = st.lists(st.text(max_size=20), max_size=6).map("\n".join)


@st.composite
def _changed(draw: st.DrawFn, document: Any) -> Any:
    """Draw a document with one to three values replaced or left out."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = document
        while isinstance(place, (dict, list)) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            inner = place[key]
            if not isinstance(inner, (dict, list)) or not inner or draw(st.integers(0, 3)) == 0:
                if draw(st.integers(0, 4)) == 0:
                    del place[key]
                else:
                    place[key] = draw(JSON)
                break
            place = inner
    return document


@st.composite
def _bytes_like(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw damaged content."""
    kind = draw(st.sampled_from([kind for kind in DAMAGES if content or kind in {"text", "noise", "empty"}]))
    return damaged(content, kind, random.Random(draw(st.integers(0, 2**32))))


def _coco_document() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder) / "coco.json", ["a.png", "b.png"])
        document = json.loads((Path(folder) / "coco.json").read_text())
    document["annotations"][1]["segmentation"] = {"size": [48, 64], "counts": [100, 50, 48 * 64 - 150]}
    return document


def _png(mode: str) -> bytes:
    file, rng = io.BytesIO(), np.random.default_rng(0)
    pixels = rng.integers(0, 2 if mode == "L" else 255, (48, 64) if mode == "L" else (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="JPEG" if mode == "JPEG" else "PNG")
    return file.getvalue()


def _saved(write: Callable[[Any], object]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _matrices() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        PerImageConfusion.of([("a.png", [[3, 0], [1, 2]]), ("b.png", [[0, 0], [5, 2]])]).write(path)
        return path.read_bytes()


def _coco(folder: Path, document: Any) -> None:
    _write(folder / "coco.json", document)
    for name in ("a.png", "b.png"):
        if not (folder / name).is_file():
            write_image(folder / name)
    dataset = CocoDataset(str(folder), str(folder / "coco.json"))
    scan_dataset(dataset, is_quiet=True)


def _mask(folder: Path, content: Any) -> None:
    write_image(folder / "images" / "a.png")
    _write(folder / "masks" / "a.png", content)
    scan_dataset(MaskFolderDataset(str(folder), "images", masks="masks", classes=ClassTable(CLASSES)), is_quiet=True)


def _image(folder: Path, content: Any) -> None:
    _write(folder / "a.png", content)
    read_image(folder / "a.png")


def _mask_list(folder: Path, content: Any) -> None:
    write_image(folder / "images" / "a.png")
    _write(folder / "list.txt", content)
    MaskFolderDataset(
        str(folder), "images", masks="images", classes=ClassTable(CLASSES), list_file="list.txt"
    )  # fmt: skip


def _image_list(folder: Path, content: Any) -> None:
    _write(folder / "list.txt", content)
    ImageFolderDataset([str(folder / "list.txt")])


def _folds(folder: Path, content: Any) -> None:
    _write(folder / "folds.csv", content)
    FoldTable.read(folder / "folds.csv", ["a", "b"], 2)
    RunFolder(folder).read_groups()


def _groups(folder: Path, content: Any) -> None:
    write_image(folder / "a.png")
    write_coco(folder / "coco.json", ["a.png"])
    _write(folder / "groups.csv", content)
    TableGroups(str(folder / "groups.csv")).labels(CocoDataset(str(folder), str(folder / "coco.json")))


def _record(name: str, read: Callable[[RunFolder], object]) -> Callable[[Path, Any], None]:
    def feed(folder: Path, content: Any) -> None:
        _write(folder / name, content)
        read(RunFolder(folder))

    return feed


def _cv(folder: Path, content: Any) -> None:
    _write(folder / "result.json", content)
    (folder / "image_matrices.npz").write_bytes(_matrices())
    read_cv(folder)


def _checkpoint(folder: Path, content: Any) -> None:
    _write(folder / "a.ckpt", content)
    read_checkpoint(folder / "a.ckpt")


def _config(folder: Path, content: Any) -> None:
    _write(folder / "a.yaml", content)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        check_configs(["-c", str(folder / "a.yaml")])


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(
            content if isinstance(content, str) else json.dumps(content), encoding="utf-8", errors="replace"
        )


def _text_or(content: bytes) -> Any:
    return _bytes_like(content) | TEXT_LINES | st.binary(max_size=60)


_FOLDS = b"image,group,fold\na,x,0\nb,y,1\n"
_METRICS = b"epoch,step,seconds,train/loss,val/miou\n0,4,1.5,0.7,0.25\n1,8,1.5,0.6,\n"
_COUNTS = st.text("0123456789PQRSTUVo`a", max_size=40) | st.lists(st.integers(-5, 4000), max_size=8)
RLE = st.fixed_dictionaries(
    {"size": st.lists(st.integers(-2, 70), max_size=3) | st.just([48, 64]),
     "counts": st.text(max_size=30) | _COUNTS}
)  # fmt: skip
POLYGON = st.lists(st.lists(st.floats() | st.integers(-100, 200) | JSON, max_size=9), max_size=3)
READERS: dict[str, tuple[Callable[[Path, Any], None], Callable[[], Any]]] = {
    "coco": (_coco, lambda: _changed(_coco_document())),
    "coco_bytes": (_coco, lambda: _bytes_like(json.dumps(_coco_document()).encode())),
    "rle": (_coco, lambda: (RLE | POLYGON).map(_with_segmentation)),
    "mask": (_mask, lambda: _bytes_like(_png("L"))),
    "png": (_image, lambda: _bytes_like(_png("RGB"))),
    "jpeg": (_image, lambda: _bytes_like(_png("JPEG"))),
    "mask_list": (_mask_list, lambda: _text_or(b"a.png\n")),
    "image_list": (_image_list, lambda: _text_or(b"a.png\nb.png\n")),
    "folds": (_folds, lambda: _text_or(_FOLDS)),
    "groups": (_groups, lambda: _text_or(b"image,group\na.png,x\n")),
    "result": (_record("result.json", RunFolder.read_result), lambda: _changed(_RESULT) | _text_or(b"{}")),
    "pooled": (_cv, lambda: _changed(_RESULT)),
    "metrics": (_record("metrics.csv", RunFolder.read_metrics), lambda: _text_or(_METRICS)),
    "balance": (_record("balance.csv", RunFolder.read_balance), lambda: _text_or(b"fold,class\n0,a\n")),
    "confusion": (
        _record("confusion_matrix.csv", RunFolder.read_confusion),
        lambda: _text_or(b"t,a,b\na,1,2\nb,3,4\n"),
    ),
    "matrices": (_record("image_matrices.npz", RunFolder.read_images), lambda: _bytes_like(_matrices())),
    "run_config": (_record("config.yaml", RunFolder.read_config), lambda: _text_or(b"a: 1\nb: [1, 2]\n")),
    "job": (_record("job.yaml", RunFolder.read_job), lambda: _text_or(b"a: 1\nb: [1, 2]\n")),
    "wandb_run": (_record("wandb_run.json", RunFolder.read_wandb_run), lambda: _text_or(b'{"id": "a"}')),
    "stopped": (
        _record("stopped.json", lambda run: ExperimentFolder(run.path).read_stopped()),
        lambda: _text_or(b'{"baseline": "a", "chance": 0.01, "folds": [0, 1], "planned": [0, 1, 2]}'),
    ),
    "val_images": (_record("val_images.txt", RunFolder.read_val_images), lambda: _text_or(b"/a/b.png\tb.png\n")),
    "predictions": (
        _record("predictions.csv", lambda run: PredictionFolder(run.path).read_masks()),
        lambda: _text_or(b"image,mask,overlay\na,masks/a.png,overlays/a.jpg\n"),
    ),
    "checkpoint": (
        _checkpoint,
        lambda: _bytes_like(_saved(lambda file: torch.save({"state_dict": {"a": torch.ones(3)}}, file))),
    ),
    "config": (_config, lambda: _text_or(b"a: 1\nb: [1, 2]\n")),
}  # fmt: skip


def _with_segmentation(segmentation: Any) -> Any:
    document = _coco_document()
    document["annotations"][0]["segmentation"] = segmentation
    return document


def attack(world: World, chance: random.Random, number: int) -> Case:
    """Feed one reader in a process."""
    return feed(world.folder, sorted(READERS)[number % len(READERS)], chance.randrange(2**32), _EXAMPLES)


def feed(folder: Path, name: str, number: int, examples: int) -> Case:
    """Feed one reader with examples from a seed, in a process that may crash or hang."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        report = Path(scratch) / "fault.txt"
        process = _CONTEXT.Process(target=_feed, args=(name, number, examples, Path(scratch), report))
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return Case(name, f"hangs: {_last(report)}")
        if process.exitcode < 0:
            return Case(name, f"crashes with signal {-process.exitcode}: {_last(report)}")
        return Case(name, report.read_text()[:400] if report.is_file() else None)


def _last(report: Path) -> str:
    last = report.with_name("last.txt")
    return last.read_text(errors="replace")[:300] if last.is_file() else "before the first input"


def fault_of(read: Callable[[Path, Any], None], content: Any) -> str | None:
    """Return the exception with which a reader answers, if it is no mistake of the user."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(Path(folder), content)
        except Exception as error:
            if user_error(error) is None:
                return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return None


def _feed(name: str, number: int, examples: int, scratch: Path, report: Path) -> None:
    os.environ["DEEPLAB_CACHE"] = str(scratch / "cache")
    read, strategy = READERS[name]

    @seed(number)
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy())
    def check(content: Any) -> None:
        (scratch / "last.txt").write_text(repr(content), errors="replace")
        fault = fault_of(read, content)
        if fault is not None:
            found.append((fault, content))
        assert fault is None

    found: list[tuple[str, Any]] = []
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with silent[0], silent[1], contextlib.suppress(AssertionError, BaseExceptionGroup):
        check()
    if found:
        report.write_text(f"{found[-1][0]} from {found[-1][1]!r}", errors="replace")
