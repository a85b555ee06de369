import errno
import os
from pathlib import Path

import pytest

from deeplab_lightning.files import remove_leftovers, write_atomically, write_text


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


def test_a_full_disk_below_an_error_of_a_library_is_named(tmp_path: Path) -> None:
    """Torch's error of its archive hid the file."""

    def fail(file: object) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error

    with pytest.raises(RuntimeError) as caught:
        write_atomically(tmp_path / "last.ckpt", fail)
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.filename == str(tmp_path / "last.ckpt")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / ("x" * 251 + ".txt"), "a name as long as the system allows")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [mode]
