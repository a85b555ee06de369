import os
from pathlib import Path

import pytest

from deeplab_lightning.files import remove_leftovers, write_text


def test_content_and_name_reach_the_disk_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, steps = tmp_path / "a.txt", []

    def note(handle: int) -> None:
        steps.append(("folder" if Path(f"/proc/self/fd/{handle}").resolve().is_dir() else "file", path.exists()))

    monkeypatch.setattr(os, "fsync", note)
    write_text(path, "text")
    assert steps == [("file", False), ("folder", True)]


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".last.ckpt.abc.tmp", "last.ckpt", ".hidden", "a.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "a.tmp", "last.ckpt"]
    remove_leftovers(tmp_path / "absent")
