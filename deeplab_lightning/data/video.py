"""Read the frames of a video file in their order, and write one."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from deeplab_lightning.errors import UnavailableError, UserError

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
_RATE = Fraction(25)  # frames per second of a video that says none
Pixels = npt.NDArray[np.uint8]


class Video:
    """Read a video frame by frame. Frames are decoded in their order, so going back starts anew.

    Args:
        path: The file. All frames are decoded once to count them.

    Attributes:
        num_frames: Number of frames that can be decoded.
        rate: Frames per second.

    Raises:
        RuntimeError: If the package `av` is missing.
        ValueError: If the file holds no video, or no frame of it can be decoded.
    """

    def __init__(self, path: Path) -> None:
        if find_spec("av") is None:
            raise UnavailableError(
                f"{path} is a video, which needs the package av: `pip install av`, or in a checkout `pip install "
                ".[video]`."
            )
        self.path = path
        self._frames: Iterator[Any] | None = None
        self._next = 0
        self.rate, self.num_frames = _rate(path), sum(1 for _ in _decoded(path))
        if not self.num_frames:
            raise UserError(f"{path}: no frame can be decoded.")

    def fresh(self) -> "Video":
        """Return a reader of the same video with a place of its own."""
        other = object.__new__(Video)
        other.__dict__.update(self.__dict__, _frames=None, _next=0)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs, which starts at the first frame."""
        return {**self.__dict__, "_frames": None, "_next": 0}

    def frame(self, index: int) -> Pixels:
        """Read a frame, upright, as (H, W, 3) uint8.

        Args:
            index: Its place, from 0.

        Raises:
            ValueError: If it cannot be decoded.
        """
        if self._frames is None or index < self._next:
            self._frames, self._next = _decoded(self.path), 0
        for frame in self._frames:
            self._next += 1
            if self._next == index + 1:
                turns = round(frame.rotation / 90) % 4  # counterclockwise
                return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))
        raise UserError(f"{self.path}: frame {index} cannot be decoded.")


def _rate(path: Path) -> Fraction:
    import av

    try:
        with av.open(str(path)) as container:
            rate = container.streams.video[0].average_rate
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise UserError(f"{path}: is no video, or damaged ({_reason(error)}).") from error
    return Fraction(rate) if rate else _RATE


def _decoded(path: Path) -> Iterator[Any]:
    """Yield the frames of a video up to the first one that cannot be decoded."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        try:
            yield from container.decode(stream)
        except (av.error.FFmpegError, EOFError):
            return


def _reason(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def write_video(frames: Iterable[Pixels], file: IO[bytes], rate: Fraction) -> None:
    """Write an MP4 file in H.264, or in MPEG-4 where there is no encoder for it.

    Args:
        frames: (H, W, 3) uint8 of one size; an odd height or width loses its last row or column.
        file: Open file.
        rate: Frames per second.
    """
    import av

    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuv420p"
        for index, pixels in enumerate(frames):
            height, width = (length // 2 * 2 for length in pixels.shape[:2])
            if index == 0:
                stream.height, stream.width = height, width
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
