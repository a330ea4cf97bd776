"""Make a short video from foolbox's sample photographs: slow pans and zooms that fade into one another.

    python examples/efficientnet_lite0/video.py [--out build/demo-video.mp4] [--seconds 12] [--fps 30]

Each photograph is shown for a second and a half, so that a model that looks at the video has something to
recognise and something that changes. The photographs are read from the installed package; the video goes to
``build/``, which git ignores, and is never part of the repository. Needs the extras ``demo`` and ``video``.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput, MachineFault
from edgekiln.files import write_bytes
from edgekiln.model.preprocess import open_image

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "build" / "demo-video.mp4"
SCENE_S = 1.5
FADE_S = 0.3
ZOOM = 0.75
"""The smallest window, as a share of the largest that fits a photograph."""
_GOLDEN = (math.sqrt(5) - 1) / 2

Picture = NDArray[np.uint8]


def photographs() -> list[Path]:
    """foolbox's ImageNet JPEGs by name. Raises BadInput where the package is absent."""
    spec = find_spec("foolbox")
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if found := sorted((Path(root) / "data").glob("imagenet_*.jpg")):
            return found
    raise BadInput("making a video from", "foolbox", "no installed package holds it", "Run: make setup")


def window(share: float, scene: int, size: tuple[int, int], frame: tuple[int, int]) -> Any:
    """Where the camera looks at ``share`` (0 to 1) of a scene: a 2x3 matrix from a frame of (width, height)
    ``frame`` to a photograph of ``size``.

    Every other scene zooms in and the others out, while the window wanders from one side to another in a
    direction that differs from scene to scene. Parts of pixels count, or slow movements would tremble.
    """
    width, height = size
    eased = (1 - math.cos(math.pi * share)) / 2
    zoom = 1 - (1 - ZOOM) * (eased if scene % 2 == 0 else 1 - eased)
    scale = zoom * min(width / frame[0], height / frame[1])
    angle = 2 * math.pi * _GOLDEN * scene
    room_x, room_y = width - scale * frame[0], height - scale * frame[1]
    left = room_x * (0.5 + 0.5 * math.cos(angle) * (2 * eased - 1))
    top = room_y * (0.5 + 0.5 * math.sin(angle) * (2 * eased - 1))
    return np.array([[scale, 0, left + (scale - 1) / 2], [0, scale, top + (scale - 1) / 2]])


def frames(pictures: list[Picture], seconds: float, fps: int, size: tuple[int, int]) -> Iterator[Picture]:
    """The video's frames, BGR of (width, height) ``size``: scene after scene, each faded into the next."""
    for number in range(round(seconds * fps)):
        at_s = number / fps
        scene = int(at_s / SCENE_S)
        shown = _view(pictures, scene, at_s, size)
        fading = (at_s - (scene + 1) * SCENE_S + FADE_S) / FADE_S
        if fading > 0:
            coming = _view(pictures, scene + 1, at_s, size)
            shown = np.asarray(cv2.addWeighted(shown, 1 - fading, coming, fading, 0), np.uint8)
        yield shown


def _view(pictures: list[Picture], scene: int, at_s: float, size: tuple[int, int]) -> Picture:
    """A scene begins with its fade, before the scene before it has ended."""
    picture = pictures[scene % len(pictures)]
    share = (at_s - scene * SCENE_S + FADE_S) / (SCENE_S + FADE_S)
    matrix = window(share, scene, (picture.shape[1], picture.shape[0]), size)
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    view = cv2.warpAffine(picture, matrix, size, flags=how, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(view, np.uint8)


def make(
    out: Path = DEFAULT_OUT, seconds: float = 12.0, fps: int = 30, size: tuple[int, int] = (640, 480)
) -> Path:
    """Write the video (MPEG-4 in an mp4) to ``out``, whole or not at all. Returns ``out``.

    Raises BadInput where the photographs are absent, MachineFault where OpenCV has no encoder.
    """
    used = photographs()[: math.ceil(seconds / SCENE_S) + 1]
    pictures = [np.asarray(open_image(path), np.uint8)[:, :, ::-1].copy() for path in used]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "video.mp4"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not writer.isOpened():
            cure = "Install opencv-python-headless from PyPI, whose FFmpeg has it"
            raise MachineFault("making a video in", out, "OpenCV has no mp4v encoder here", cure)
        for frame in frames(pictures, seconds, fps, size):
            writer.write(frame)
        writer.release()
        write_bytes(out, path.read_bytes())
    return out


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Make a short video from sample photographs.")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--fps", type=int, default=30)
    given = parser.parse_args()
    out = make(given.out, given.seconds, given.fps)
    print(f"{out}: {given.seconds:g} s, {given.fps} frames a second, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
