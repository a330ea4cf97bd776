"""Real videos of numbered frames, a server that sends them, and a camera that can be unplugged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BITS = 6


def numbered(index: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """A BGR picture that says ``index`` (below 64) in white and black bars, right of a red field."""
    picture = np.zeros((height, width, 3), np.uint8)
    field = width // (BITS + 2)
    picture[:, : 2 * field, 2] = 255
    for bit in range(BITS):
        picture[:, (bit + 2) * field : (bit + 3) * field] = 255 * (index >> bit & 1)
    return picture


def number_of(pixels: NDArray[np.uint8]) -> int:
    """What an RGB picture made by ``numbered`` says, after a lossy codec too."""
    field = pixels.shape[1] // (BITS + 2)
    red, _, blue = pixels[:, :field].mean((0, 1))
    assert red > 150 > 100 > blue, "the channels are not in RGB order"
    bars = (pixels[:, (bit + 2) * field : (bit + 3) * field] for bit in range(BITS))
    return sum(int(bar.mean() > 127) << bit for bit, bar in enumerate(bars))


def write_video(path: Path, frames: int = 20, fps: float = 30.0, size: tuple[int, int] = (48, 64)) -> Path:
    """``frames`` numbered frames of (height, width) ``size``; mp4 or avi by the name's ending."""
    code = "mp4v" if path.suffix == ".mp4" else "MJPG"
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), fps, (size[1], size[0]))
    assert out.isOpened()
    for index in range(frames):
        out.write(numbered(index, *size))
    out.release()
    return path


class Camera:
    """A camera of this machine: ``open`` gives a handle like ``cv2.VideoCapture``'s. ``plugged`` is whether
    it is there; handles that were open when it was pulled out stay dead."""

    def __init__(self, fps: float = 200.0, picture: Callable[[int], Any] = numbered) -> None:
        self.plugged, self.fps, self.picture = True, fps, picture
        self.count = self.opened = self.released = 0
        self.pulled = 0

    def unplug(self) -> None:
        self.plugged = False
        self.pulled += 1

    def open(self) -> Handle:
        self.opened += 1
        return Handle(self)


class Handle:
    def __init__(self, camera: Camera) -> None:
        self._camera = camera
        self._life = camera.pulled if camera.plugged else -1
        self._picture: Any = None

    def _alive(self) -> bool:
        return self._camera.plugged and self._life == self._camera.pulled

    def isOpened(self) -> bool:  # noqa: N802
        return self._alive()

    def grab(self) -> bool:
        time.sleep(1 / self._camera.fps)
        if not self._alive():
            return False
        self._picture = self._camera.picture(self._camera.count)
        self._camera.count += 1
        return True

    def retrieve(self, image: Any = None) -> tuple[bool, Any]:
        if self._picture is None:
            return False, None
        if image is not None and image.shape == getattr(self._picture, "shape", None):
            image[...] = self._picture  # as OpenCV: a picture that fits is filled
            return True, image
        return True, self._picture

    def get(self, prop: int) -> float:
        return {cv2.CAP_PROP_FPS: self._camera.fps}.get(prop, 0.0)

    def release(self) -> None:
        self._camera.released += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Clients go away in the middle of a stream; that is what they are here for."""


@contextmanager
def serving(respond: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A web server that answers each GET with ``respond``; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def send_file(path: Path) -> Callable[[BaseHTTPRequestHandler], None]:
    """The whole of ``path``, or the part that the client asks for, as a server of files would."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        data, asked = path.read_bytes(), handler.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        handler.send_response(206 if asked else 200)
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start:])

    return respond


def send_mjpeg(frames: int, fps: float = 100.0) -> Callable[[BaseHTTPRequestHandler], None]:
    """``frames`` numbered JPEGs as cameras on a network send them, then the connection ends."""

    def respond(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        for index in range(frames):
            data = cv2.imencode(".jpg", numbered(index))[1].tobytes()
            head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            handler.wfile.write(head.encode() + data + b"\r\n")
            handler.wfile.flush()
            time.sleep(1 / fps)

    return respond
