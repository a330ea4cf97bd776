"""Sources that OpenCV decodes: video files, cameras and addresses.

The decoder fills one scratch picture, and the turn to RGB writes it into the buffer that is handed out:
after that nothing copies it. OpenCV and FFmpeg write their complaints to standard error; they are silenced,
because each fault is told here as an error or an event.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from edgekiln.errors import BadInput, DeviceFault, EdgekilnError, MissingExtra
from edgekiln.runtime.streams.frames import Frame, Pool
from edgekiln.runtime.streams.sources import Patience, Tell, shown
from edgekiln.runtime.vocabulary import Event, EventKind

MAX_FRAME_PIXELS = 1 << 25
"""Largest frame that is decoded: a little above 8K (7680x4320), 96 MiB of RGB."""
CONTAINERS = "MP4, MOV, Matroska, WebM, AVI, MPEG-TS, MPEG-PS, FLV or Ogg"
_HEAD_BYTES = 4096
_WHOLE = 0.95
_RETRY_S = 0.02
_MOST_ODD = 50
"""So many pictures in a row that are none are a failure, not a stumble."""


class Capture(Protocol):
    """What is used of ``cv2.VideoCapture``."""

    def isOpened(self) -> bool: ...  # noqa: N802 (OpenCV's name)
    def grab(self) -> bool: ...
    def retrieve(self, image: Any = None) -> tuple[bool, Any]: ...
    def get(self, prop: int) -> float: ...
    def release(self) -> None: ...


Open: TypeAlias = Callable[[], Capture]


@functools.cache
def _cv2() -> Any:
    """OpenCV, silenced. Its stubs are passed by: what is used of it stands in ``Capture``."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET; read when FFmpeg is first used
    # A camera that is pulled out lets one call wait for so many seconds (OpenCV's own choice is 10).
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", "5")
    cv2 = importlib.import_module("cv2")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


def require(to: str) -> Any:
    """OpenCV. Raises MissingExtra where it is not installed."""
    try:
        return _cv2()
    except ImportError as error:
        raise MissingExtra("opening the source", to, "video") from error


# ---------------------------------------------------------------- opening


def open_file(path: Path, name: str, loop: bool, decode_threads: int = 1) -> File:
    """A video file. Raises BadInput for what is no video, holds no frame or declares a frame too large.

    Only containers that carry their own pictures are opened: FFmpeg would also follow playlists to other
    files and servers.
    """
    cv2 = require(str(path))
    if not path.is_file():
        raise BadInput("opening the source", path, "it is no file", "Give a video file")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not is_container(head):
        cure = f"Give a video in {CONTAINERS}"
        raise BadInput("opening the source", path, "it is no video in a known container", cure)
    params = [cv2.CAP_PROP_N_THREADS, decode_threads]
    # The whole path: a name such as concat:a.mp4 would be taken for a protocol of FFmpeg's.
    return File(name, lambda: cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG, params), loop)


def open_camera(device: str, name: str, tell: Tell, patience: Patience) -> Live:
    """A camera of this machine, by number or device path. Raises DeviceFault where it gives nothing."""
    cv2 = require(f"camera:{device}")
    where: Any = int(device) if device.isdecimal() else device
    cure = "Check that it is plugged in, that no other program uses it and that you may read /dev/video*"
    return Live(name, lambda: cv2.VideoCapture(where, cv2.CAP_V4L2), tell, patience, cure)


def open_address(url: str, name: str, tell: Tell, patience: Patience, decode_threads: int = 1) -> Live:
    """A stream of a camera or server. Raises DeviceFault where it gives nothing in ``patience.open_s``."""
    cv2 = require(shown(url))
    params = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(patience.open_s * 1000)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(patience.read_s * 1000)),
        *(cv2.CAP_PROP_N_THREADS, decode_threads),
    ]
    cure = "Check the address, its user and password, and that the server answers"
    return Live(name, lambda: cv2.VideoCapture(url, cv2.CAP_FFMPEG, params), tell, patience, cure)


def is_container(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a container with pictures of its own."""
    starts = (b"\x1aE\xdf\xa3", b"FLV\x01", b"OggS", b"\x00\x00\x01\xba")
    riff = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    boxes = head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
    packets = len(head) > 376 and {head[0], head[188], head[376]} == {0x47}
    return head.startswith(starts) or riff or boxes or packets


# ---------------------------------------------------------------- what all of them do


class _Decoder:
    """A capture with what turns its pictures into frames."""

    def __init__(self, name: str, open_capture: Open) -> None:
        self.name = name
        self.fps: float | None = None
        self._cv2 = _cv2()
        self._open_capture = open_capture
        self._capture: Capture | None = None
        self._scratch: Any = None
        self._pool = Pool()
        self._index = 0
        self._stopped = threading.Event()

    def _open(self) -> bool:
        """Open it (anew) and ask what it declares. Raises BadInput for frames that are too large."""
        self._release()
        capture = self._open_capture()
        if not capture.isOpened():
            capture.release()
            return False
        self._capture = capture
        ask, cv2 = capture.get, self._cv2
        height, width = ask(cv2.CAP_PROP_FRAME_HEIGHT), ask(cv2.CAP_PROP_FRAME_WIDTH)
        self._check_size(height, width)
        fps = ask(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= 1000 else None
        return True

    def _check_size(self, height: float, width: float) -> None:
        if height * width > MAX_FRAME_PIXELS:
            why = f"its frames of {width:.0f}x{height:.0f} have more than {MAX_FRAME_PIXELS} pixels"
            raise BadInput("opening the source", self.name, why, "Scale it down before you use it")

    def _grab(self) -> bool:
        return self._capture is not None and bool(self._capture.grab())

    def _retrieve(self, at_s: float) -> Frame | None:
        """The grabbed picture in a buffer of the pool, or None where it is none."""
        assert self._capture is not None
        ok, picture = self._capture.retrieve(self._scratch)
        if not ok or getattr(picture, "dtype", None) != np.uint8 or picture.ndim not in {2, 3}:
            return None
        channels = 1 if picture.ndim == 2 else picture.shape[2]
        height, width = picture.shape[:2]
        if not height or not width or channels not in {1, 3, 4}:
            return None
        self._check_size(height, width)
        self._scratch = picture
        turn = {1: "COLOR_GRAY2RGB", 3: "COLOR_BGR2RGB", 4: "COLOR_BGRA2RGB"}[channels]
        pixels = self._pool.take((height, width, 3))
        self._cv2.cvtColor(picture, getattr(self._cv2, turn), dst=pixels)
        self._index += 1
        return Frame(self.name, self._index - 1, at_s, pixels, self._pool)

    def _release(self) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()
        self._release()


class File(_Decoder):
    """A video file from its first frame to its last, once or in a loop."""

    live = False

    def __init__(self, name: str, open_capture: Open, loop: bool) -> None:
        super().__init__(name, open_capture)
        self._loop = loop
        self._in_round = 0
        self._first: Frame | None = None
        try:
            if not self._open():
                raise self._bad("no video stream in it can be read")
            self._declared = self._capture_count()
            self._first = self._next()
            if self._first is None:
                raise self._bad("none of its frames can be decoded")
        except BaseException:
            self.close()
            raise

    def read(self) -> Frame | None:
        if (frame := self._first) is not None:
            self._first = None
            return frame
        return self._next()

    def _next(self) -> Frame | None:
        if not self._advance():
            return None
        frame = self._retrieve(time.monotonic())
        if frame is None:
            raise self._bad(f"frame {self._index} is no picture")
        return frame

    def skip(self) -> bool:
        if self._first is not None:
            self._first.release()
            self._first = None
            return True
        if not self._advance():
            return False
        self._index += 1
        return True

    def _advance(self) -> bool:
        """Whether there is a next frame, in a loop from the start again."""
        if self._stopped.is_set():
            return False
        if not self._grab():
            self._check_whole()
            if not self._loop or not self._in_round:
                return False
            self._in_round = 0
            if not (self._open() and self._grab()):
                raise self._bad("it can't be read once more from its start")
        self._in_round += 1
        return True

    def _capture_count(self) -> float:
        assert self._capture is not None
        count = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        return count if 0 < count < 1e9 else 0.0

    def _check_whole(self) -> None:
        """Raise BadInput where far fewer frames came than the header declares: an end that is none."""
        if self._in_round < self._declared * _WHOLE - 1:
            raise self._bad(f"it ends after {self._in_round} of the {self._declared:.0f} declared frames")

    def _bad(self, why: str) -> BadInput:
        return BadInput("reading the source", self.name, why, "Check that the file is whole, or convert it")


class Live(_Decoder):
    """A camera or address. Where it gives nothing for a while it is opened anew, with waits that double.

    Told as ``source-lost`` and ``source-returned``; where it does not return, ``read`` raises DeviceFault.
    An address with a declared number of frames (a file on a server) ends when they have come.
    """

    live = True

    def __init__(self, name: str, open_capture: Open, tell: Tell, patience: Patience, cure: str) -> None:
        super().__init__(name, open_capture)
        self._tell, self._patience, self._cure = tell, patience, cure
        self._grabbed = False
        self._declared = 0.0
        try:
            if not self._opened():
                raise self._fault("opening the source", "it gives no frame")
        except BaseException:
            self.close()
            raise

    def read(self) -> Frame | None:
        odd = 0
        while self._advance():
            frame = self._retrieve(time.monotonic())
            if frame is not None:
                return frame
            if (odd := odd + 1) > _MOST_ODD:
                raise self._fault("reading the source", f"{odd} times in a row it gave what is no picture")
            self._return("it gave what is no picture")
        return None

    def skip(self) -> bool:
        if not self._advance():
            return False
        self._index += 1
        return True

    def _advance(self) -> bool:
        """Whether a frame was grabbed; waits for a lost source. False at the end, or where it was stopped."""
        while not self._stopped.is_set():
            if self._grabbed:
                self._grabbed = False
                return True
            if self._grab():
                return True
            if self._declared and self._index >= self._declared * _WHOLE - 1:
                return False
            self._return("it gives no more frames")
        return False

    def _return(self, why: str) -> None:
        """Try again, then open it anew, until it gives a frame. Raises DeviceFault when patience ends."""
        lost_s = time.monotonic()
        while time.monotonic() - lost_s < self._patience.grace_s:
            if self._stopped.wait(_RETRY_S) or self._usable():
                return
        self._say("source-lost", why, "it is opened anew")
        self._release()
        for wait_s in waits(self._patience):
            if time.monotonic() - lost_s + wait_s > self._patience.give_up_s:
                break
            if self._stopped.wait(wait_s):
                return
            with contextlib.suppress(EdgekilnError):
                if self._opened():
                    away_s = time.monotonic() - lost_s
                    self._say("source-returned", f"it was away for {away_s:.1f} s", "", away_s=away_s)
                    return
        raise self._fault("reading the source", f"{why}, for {time.monotonic() - lost_s:.1f} s")

    def _usable(self) -> bool:
        self._grabbed = self._grab()
        return self._grabbed

    def _opened(self) -> bool:
        """Opened, and a first frame grabbed."""
        if not self._open():
            return False
        assert self._capture is not None
        count = self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT)
        self._declared = count if 0 < count < 1e9 else 0.0
        return self._usable()

    def _say(self, kind: EventKind, why: str, done: str, **facts: float) -> None:
        self._tell(
            Event(at_s=time.monotonic(), kind=kind, what=self.name, why=why, done=done, facts=dict(facts))
        )

    def _fault(self, doing: str, why: str) -> DeviceFault:
        return DeviceFault(doing, self.name, why, self._cure)


def waits(patience: Patience) -> Iterator[float]:
    """Seconds before each attempt to open a lost source: they double, up to ``most_wait_s``, without end."""
    wait_s = patience.first_wait_s
    while True:
        yield wait_s
        wait_s = min(wait_s * 2, patience.most_wait_s)
