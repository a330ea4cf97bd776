"""Where frames come from: a file, a camera, an address or a folder, opened from what the user wrote.

A source's end and its failure are told apart: ``read`` gives None at the end and raises where something is
wrong. What a reader should know in between (a camera that was lost, a picture that could not be read) it
says through ``tell``.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from edgekiln.errors import BadInput, EdgekilnError
from edgekiln.model.preprocess import open_image
from edgekiln.records import Record
from edgekiln.runtime.streams.frames import Frame
from edgekiln.runtime.vocabulary import Event

Tell: TypeAlias = Callable[[Event], None]
Pace: TypeAlias = float | Literal["real", "fast"]
"""Frames a second of a file or folder; ``real``: as the file says; ``fast``: as fast as they are read."""
Kind: TypeAlias = Literal["camera", "url", "folder", "file"]

SCHEMES = ("rtsp", "rtsps", "http", "https")
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".tga", ".jp2"}
MAX_FPS = 1000.0
_CATCH_UP_S = 1.0


class Source(Protocol):
    """One stream of frames. One thread reads and closes it; ``stop`` may be called from any other.

    ``fps`` is the rate that it declares (None: unknown). ``live``: frames come at a pace of their own, and
    who is late has missed them; the others wait to be read.
    """

    @property
    def name(self) -> str: ...

    @property
    def fps(self) -> float | None: ...

    @property
    def live(self) -> bool: ...

    def read(self) -> Frame | None:
        """The next frame; None at the end or after ``stop``. Raises EdgekilnError where it fails."""
        ...

    def skip(self) -> bool:
        """Pass over the next frame at less cost than reading it; False at the end. Raises as ``read``."""
        ...

    def stop(self) -> None:
        """Let a ``read`` that waits end soon: within the source's time-out at worst."""
        ...

    def close(self) -> None: ...


class Patience(Record, frozen=True, kw_only=True):
    """How long a live source may be silent. ``open_s`` and ``read_s`` bound one attempt, ``grace_s`` is how
    long a camera may give nothing before it is opened anew; that is tried with waits that double from
    ``first_wait_s`` to ``most_wait_s`` until ``give_up_s`` have passed since the last frame."""

    open_s: float = 10.0
    read_s: float = 5.0
    grace_s: float = 0.5
    first_wait_s: float = 0.25
    most_wait_s: float = 5.0
    give_up_s: float = 30.0


class Place(Record, frozen=True, kw_only=True):
    """What the user's text means: ``value`` is a number or device path, an address or a path."""

    kind: Kind
    value: str


def silent(event: Event) -> None:
    """For callers that don't listen."""


def place_of(text: str) -> Place:
    """``camera:0``, ``camera:/dev/video2``, ``rtsp://...``, ``http://...``, a folder or a file.

    Looks at the disk only to tell a folder from a file. Raises BadInput for anything else.
    """
    doing = "opening the source"
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "camera":
        if not re.fullmatch(r"\d{1,3}|/dev/[\w./-]+", rest) or ".." in rest:
            cure = "Give camera:0 for the first camera, or camera:/dev/video0"
            raise BadInput(doing, text, f"'{rest}' is no camera", cure)
        return Place(kind="camera", value=rest)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        try:
            known = scheme.lower() in SCHEMES and bool(urlsplit(text).hostname)
        except ValueError:
            known = False
        if not known:
            cure = f"Give an address that starts with {', '.join(s + '://' for s in SCHEMES)}"
            raise BadInput(doing, shown(text), "nothing here reads such an address", cure)
        return Place(kind="url", value=text)
    if not text:
        raise BadInput(doing, "''", "it is empty", "Give a file, a folder, camera:0 or an address")
    path = Path(text)
    try:
        if path.is_dir():
            return Place(kind="folder", value=text)
        if path.is_file():
            return Place(kind="file", value=text)
        there = path.exists()
    except (OSError, ValueError) as error:
        raise BadInput(doing, text, str(error), "Give a file, a folder, camera:0 or an address") from error
    why = "it is neither a file nor a folder" if there else "there is no such file or folder"
    raise BadInput(doing, text, why, "Give a file, a folder, camera:0 or an address")


def shown(text: str) -> str:
    """``text`` without the user, password and query of an address, which are often secrets."""
    head, mark, rest = text.partition("://")
    if not mark:
        return text
    return f"{head}://{re.split('[?#]', rest)[0].split('@')[-1]}"


def open_source(
    text: str,
    *,
    pace: Pace = "real",
    loop: bool = False,
    name: str = "",
    tell: Tell = silent,
    patience: Patience = Patience(),  # noqa: B008 (frozen)
    decode_threads: int = 1,
) -> Source:
    """The source that ``text`` names, opened; its first frame is there to be read.

    ``pace`` and ``loop`` are for files and folders: cameras and addresses have a pace and no end of their
    own. A file at ``real`` pace is live: its frames are dropped where they are not answered in time; at
    ``fast`` each is answered. ``decode_threads`` per source is 1, because several sources share the machine.
    Raises BadInput for a text that names nothing, a file that is no video or a folder without pictures;
    DeviceFault for a camera or an address that gives nothing; MissingExtra without OpenCV.
    """
    from edgekiln.runtime.streams import capture

    _check_pace(text, pace)
    place = place_of(text)
    name = name or shown(text)
    if place.kind == "camera":
        return capture.open_camera(place.value, name, tell, patience)
    if place.kind == "url":
        return capture.open_address(place.value, name, tell, patience, decode_threads)
    source: Source
    if place.kind == "folder":
        source = Folder(Path(place.value), name, loop, tell)
    else:
        source = capture.open_file(Path(place.value), name, loop, decode_threads)
    fps = source.fps if pace == "real" else None if pace == "fast" else float(pace)
    return source if fps is None else Paced(source, fps)


def names_of(texts: list[str]) -> list[str]:
    """A name for each source, from what the user wrote; the same text twice gets a number."""
    plain, found = [shown(text) for text in texts], []
    for place, name in enumerate(plain):
        before = plain[:place].count(name)
        found.append(f"{name}#{before + 1}" if plain.count(name) > 1 else name)
    return found


def _check_pace(text: str, pace: Pace) -> None:
    if pace in ("real", "fast"):
        return
    if isinstance(pace, str) or not 0 < pace <= MAX_FPS:
        cure = f"Give a rate above 0 and up to {MAX_FPS:g} frames a second, or 'real' or 'fast'"
        raise BadInput("opening the source", shown(text), f"{pace} is no pace", cure)


class Folder:
    """The pictures of a folder by name, turned as their EXIF says. Other files are passed over.

    A picture that can't be read is told as a ``refused`` Event and passed over; none that can be read is
    an error.
    """

    live = False
    fps = None

    def __init__(self, folder: Path, name: str, loop: bool, tell: Tell = silent) -> None:
        self.name = name
        self._loop, self._tell = loop, tell
        self._stopped = threading.Event()
        self._paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES and p.is_file())
        if not self._paths:
            cure = f"Give a folder with pictures ({', '.join(sorted(PICTURES))})"
            raise BadInput("opening the source", folder, "it holds no pictures", cure)
        self._turn = self._order()
        self._index = 0
        self._could_be_read = 0

    def _order(self) -> Iterator[Path]:
        yield from self._paths
        while self._loop:
            yield from self._paths

    def read(self) -> Frame | None:
        tried = 0
        while not self._stopped.is_set() and (path := next(self._turn, None)) is not None:
            at_s = time.monotonic()
            try:
                pixels = np.array(open_image(path))
            except (EdgekilnError, OSError) as error:
                why = getattr(error, "why", str(error))
                self._tell(Event(at_s=at_s, kind="refused", what=str(path), why=why, done="passed over"))
                if (tried := tried + 1) >= len(self._paths) and not self._could_be_read:
                    break  # a loop over nothing but broken pictures would never come back
                continue
            self._could_be_read += 1
            self._index += 1
            return Frame(self.name, self._index - 1, at_s, pixels)
        if not self._could_be_read and not self._stopped.is_set():
            cure = "Give a folder with pictures that can be opened"
            raise BadInput("reading the source", self.name, "none of its pictures could be read", cure)
        return None

    def skip(self) -> bool:
        if self._stopped.is_set() or next(self._turn, None) is None:
            return False
        self._could_be_read += 1  # nobody looked
        self._index += 1
        return True

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        self._stopped.set()


class Paced:
    """Hands out the frames of ``source`` at ``fps``, as a camera would. What was late stays late, but a
    source that was a second late begins a new count and does not hand out its arrears at once."""

    live = True

    def __init__(self, source: Source, fps: float) -> None:
        self.name, self.fps = source.name, fps
        self._source = source
        self._stopped = threading.Event()
        self._start_s: float | None = None
        self._count = 0

    def read(self) -> Frame | None:
        frame = self._source.read()
        if frame is None or not self._wait():
            return None
        frame.at_s = time.monotonic()
        return frame

    def skip(self) -> bool:
        return self._source.skip() and self._wait()

    def _wait(self) -> bool:
        """Until the next frame is due; False where the wait was stopped."""
        now = time.monotonic()
        if self._start_s is None or now - (self._start_s + self._count / (self.fps or 1)) > _CATCH_UP_S:
            self._start_s, self._count = now, 0
        due_s = self._start_s + self._count / (self.fps or 1)
        self._count += 1
        return not self._stopped.wait(max(0.0, due_s - now))

    def stop(self) -> None:
        self._stopped.set()
        self._source.stop()

    def close(self) -> None:
        self._source.close()
