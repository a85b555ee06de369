"""Predict videos by the real command, beside their frames as images."""

import struct
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from deeplab_lightning.data import ImageFolderDataset
from deeplab_lightning.data.video import Video, write_video
from deeplab_lightning.runs import RunFolder
from tests.commands.pictures import draw_pictures, train_on_pictures
from tests.processes import run_program

Pixels = npt.NDArray[np.uint8]
NUM_FRAMES, RATE = 12, Fraction(10)


def draw_video(path: Path, size: tuple[int, int] = (48, 64)) -> None:
    """Write frames whose brighter part moves."""
    frames = []
    for index in range(NUM_FRAMES):
        pixels = np.full((*size, 3), 60, dtype=np.uint8)
        pixels[20 + 2 * index :] = 190
        frames.append(pixels)
    with path.open("wb") as file:
        write_video(frames, file, RATE)


def frames_of(path: Path) -> list[Pixels]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("video")
    draw_pictures(root)
    return train_on_pictures(root, "v3")


@pytest.mark.long
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_video_has_the_masks_of_its_frames_and_a_video_of_overlays(
    run: RunFolder, tmp_path: Path, workers: str
) -> None:
    draw_video(tmp_path / "clip.mp4")
    for index, pixels in enumerate(frames_of(tmp_path / "clip.mp4")):
        (tmp_path / "frames").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "frames" / f"{index:06d}.png")
    words = ("--data.eval_batch_size", "5", "--data.num_workers", workers, "--csv", "a.csv", "--ckpt_path")
    for source in ("clip.mp4", "frames"):
        given = ("--images", str(tmp_path / source), "--output", str(tmp_path / "out" / source))
        done = run_program("predict", *words, str(run.best), *given, check=True)
        assert f"{NUM_FRAMES} images predicted" in done.stdout
    masks = sorted((tmp_path / "out" / "clip.mp4" / "masks" / "clip").iterdir())
    assert [path.stem for path in masks] == [f"{index:06d}" for index in range(NUM_FRAMES)]
    found = [np.asarray(Image.open(path)) for path in masks]
    expected = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "out" / "frames" / "masks").iterdir())]
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    assert len({mask.tobytes() for mask in found}) > NUM_FRAMES / 2  # so that frames cannot be mixed up
    joined = tmp_path / "out" / "clip.mp4" / "overlays" / "clip.mp4"
    with av.open(str(joined)) as container:
        assert container.streams.video[0].average_rate == RATE
    overlays = [np.asarray(Image.open(p)) for p in sorted((joined.parent / "clip").iterdir())]
    shown = frames_of(joined)
    assert len(shown) == NUM_FRAMES
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(overlays, shown, strict=True)) < 8
    assert (tmp_path / "out" / "clip.mp4" / "a.csv").read_text().count("\n") == NUM_FRAMES + 1


@pytest.mark.slow
def test_what_is_no_video_is_one_line(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    words = ("--ckpt_path", str(run.best), "--images", str(tmp_path / "bad.mp4"), "--output", str(tmp_path / "out"))
    done = run_program("predict", *words)
    assert done.returncode == 1
    assert "bad.mp4: is no video, or damaged" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_video(tmp_path / "clip.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(RuntimeError, match=r"is a video, which needs the package av: `pip install av`"):
        ImageFolderDataset([str(tmp_path / "clip.mp4")])


def test_frames_are_read_in_any_order_and_by_two_readers(tmp_path: Path) -> None:
    draw_video(tmp_path / "clip.mp4")
    expected = frames_of(tmp_path / "clip.mp4")
    video = Video(tmp_path / "clip.mp4")
    other = video.fresh()
    for index in (0, 3, 1, 11, 11, 4):
        assert np.array_equal(video.frame(index), expected[index])
        assert np.array_equal(other.frame(11 - index), expected[11 - index])
    with pytest.raises(ValueError, match="frame 12 cannot be decoded"):
        video.frame(12)


def test_a_cut_video_has_the_frames_before_the_cut(tmp_path: Path) -> None:
    frames = [np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8) for i in range(NUM_FRAMES)]
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, width=64, height=48, pix_fmt="yuv420p")
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    content = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "clip.mkv").write_bytes(content[: len(content) // 2])
    dataset = ImageFolderDataset([str(tmp_path / "clip.mkv")])
    assert 0 < len(dataset) < NUM_FRAMES
    assert dataset.read_image(len(dataset) - 1).shape == (3, 48, 64)


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    draw_video(tmp_path / "clip.mp4")
    expected = frames_of(tmp_path / "clip.mp4")[0]
    content = bytearray((tmp_path / "clip.mp4").read_bytes())
    matrix = content.index(b"tkhd") + 44  # of the track header, which players turn the picture by
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # clockwise
    (tmp_path / "turned.mp4").write_bytes(bytes(content))
    frame = Video(tmp_path / "turned.mp4").frame(0)
    assert frame.shape == (64, 48, 3)
    assert np.array_equal(frame, np.rot90(expected, -1))
