"""Sources of frames: real videos, folders and servers, a camera that is pulled out, and hostile files."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgekiln.errors import BadInput, DeviceFault, MissingExtra
from edgekiln.model.preprocess import open_image
from edgekiln.runtime.streams import capture
from edgekiln.runtime.streams.frames import Frame
from edgekiln.runtime.streams.sources import (
    Patience,
    Place,
    Source,
    names_of,
    open_source,
    place_of,
    shown,
)
from edgekiln.runtime.vocabulary import Event
from fakes.photographs import photographs
from fakes.videos import Camera, number_of, numbered, send_file, send_mjpeg, serving, write_video

SHORT = Patience(open_s=3, read_s=1, grace_s=0.05, first_wait_s=0.05, most_wait_s=0.2, give_up_s=0.6)


def all_of(source: Source) -> Iterator[Frame]:
    try:
        while (frame := source.read()) is not None:
            yield frame
            frame.release()
    finally:
        source.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "numbers.mp4")


# ---------------------------------------------------------------- what the text means


def test_what_the_user_wrote_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert place_of("camera:0") == Place(kind="camera", value="0")
    assert place_of("camera:/dev/video2") == Place(kind="camera", value="/dev/video2")
    assert place_of("rtsp://u:p@host/1").kind == "url"
    assert place_of("HTTP://host:8080/a.mp4?key=1").kind == "url"
    assert place_of(str(tmp_path)).kind == "folder"
    assert place_of(str(tmp_path / "a.mp4")).kind == "file"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("camera:", "no camera"),
        ("camera:front", "no camera"),
        ("camera:/dev/../etc/passwd", "no camera"),
        ("ftp://host/a.mp4", "reads such"),
        ("file:///etc/passwd", "reads such"),
        ("rtsp://", "reads such"),
        ("http://[broken/", "reads such"),
        ("nothing.mp4", "no such file"),
        ("concat:a.mp4|b.mp4", "no such file"),
        ("a" * 5000, "too long"),
        ("a\0b", "no such file"),
        ("/dev/null", "neither"),
    ],
)
def test_a_text_that_names_nothing_is_refused_with_a_cure(text: str, why: str) -> None:
    with pytest.raises(BadInput, match=f"(?i){why}") as raised:
        open_source(text)
    assert raised.value.cure


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_is_a_place_or_bad_input(text: str) -> None:
    with contextlib.suppress(BadInput):
        assert place_of(text).value


def test_a_password_is_never_shown() -> None:
    assert shown("rtsp://me:secret@cam.local/1?token=secret#secret") == "rtsp://cam.local/1"
    with pytest.raises(BadInput) as raised:
        open_source("ftp://me:secret@host/a?token=secret")
    assert "secret" not in str(raised.value)
    assert names_of(["a.mp4", "camera:0", "a.mp4"]) == ["a.mp4#1", "camera:0", "a.mp4#2"]


@pytest.mark.parametrize("pace", [0, -1.0, float("nan"), float("inf"), "slow"])
def test_a_pace_that_is_none_is_refused(video: Path, pace: float) -> None:
    with pytest.raises(BadInput, match="no pace"):
        open_source(str(video), pace=pace)


def test_without_opencv_the_extra_is_named(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    capture._cv2.cache_clear()
    try:
        for text in (str(video), "camera:0", "rtsp://host/1"):
            with pytest.raises(MissingExtra, match=r"edgekiln\[video\]"):
                open_source(text)
    finally:
        capture._cv2.cache_clear()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["numbers.mp4", "numbers.avi"])
def test_a_video_gives_its_frames_in_order_as_rgb(tmp_path: Path, name: str) -> None:
    source = open_source(str(write_video(tmp_path / name)), pace="fast")
    assert (source.fps, source.live) == (30.0, False)
    indices, numbers, times = [], [], []
    for frame in all_of(source):
        assert frame.pixels.shape == (48, 64, 3)
        assert frame.pixels.dtype == np.uint8
        assert frame.pixels.flags.c_contiguous
        indices.append(frame.index)
        numbers.append(number_of(frame.pixels))
        times.append(frame.at_s)
    assert indices == numbers == list(range(20))
    assert times == sorted(times)
    assert times[-1] <= time.monotonic()


def test_frames_are_decoded_into_few_buffers_and_none_is_overwritten_while_it_is_held(video: Path) -> None:
    source = open_source(str(video), pace="fast", loop=True)
    held = [frame for _ in range(5) if (frame := source.read())]
    copies = [frame.pixels.copy() for frame in held]
    for _ in range(40):
        frame = source.read()
        assert frame is not None
        assert not any(np.shares_memory(frame.pixels, other.pixels) for other in held)
        frame.release()
    for frame, copy in zip(held, copies, strict=True):
        assert np.array_equal(frame.pixels, copy)
        frame.release()
    assert isinstance(source, capture.File)
    assert source._pool.made == 6, "five were held, and one was enough for all others"
    source.close()


def test_frames_may_be_passed_over_and_keep_their_index(video: Path) -> None:
    source = open_source(str(video), pace="fast")
    seen = []
    for place in range(20):
        if place % 3:
            assert source.skip()
        else:
            frame = source.read()
            assert frame is not None
            seen.append((frame.index, number_of(frame.pixels)))
            frame.release()
    assert seen == [(i, i) for i in range(0, 20, 3)]
    assert not source.skip()
    source.close()


def test_a_loop_starts_again_and_counts_on(video: Path) -> None:
    source = open_source(str(video), pace="fast", loop=True)
    found = []
    for _ in range(50):
        frame = source.read()
        assert frame is not None
        found.append((frame.index, number_of(frame.pixels)))
        frame.release()
    source.stop()
    assert source.read() is None
    assert found == [(i, i % 20) for i in range(50)]
    source.close()


def test_a_file_at_real_pace_takes_as_long_as_it_plays(video: Path) -> None:
    source = open_source(str(video), pace=50.0)
    assert source.live
    assert source.fps == 50.0
    started = time.monotonic()
    times = [frame.at_s for frame in all_of(source)]
    assert time.monotonic() - started >= 19 / 50
    assert all(at - times[0] >= i / 50 - 1e-6 for i, at in enumerate(times)), "no frame before its time"


def test_stop_ends_a_wait_for_the_next_frame(video: Path) -> None:
    source = open_source(str(video), pace=0.01)
    assert source.read() is not None
    threading.Timer(0.1, source.stop).start()
    started = time.monotonic()
    assert source.read() is None
    assert time.monotonic() - started < 20, "frames are 100 s apart"
    source.close()


def test_a_grey_video_is_rgb_too(tmp_path: Path) -> None:
    import cv2

    path = tmp_path / "grey.avi"
    out = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (64, 48), isColor=False)
    for _ in range(3):
        out.write(np.full((48, 64), 99, np.uint8))
    out.release()
    frames = [frame.pixels.copy() for frame in all_of(open_source(str(path), pace="fast"))]
    assert [f.shape for f in frames] == [(48, 64, 3)] * 3
    assert abs(float(frames[0].mean()) - 99) < 4


# ---------------------------------------------------------------- hostile files


def damaged(path: Path, how: str) -> Path:
    """The video in ``path`` after something happened to it."""
    data = bytearray(path.read_bytes())
    if how == "empty":
        data = bytearray()
    elif how == "cut before its index":
        data = data[: data.index(b"moov")]
    elif how == "zeros":
        data[16:] = bytes(len(data) - 16)
    elif how == "random":
        data[16:] = os.urandom(len(data) - 16)
    elif how == "huge":  # what the container and each picture declare
        at = data.index(b"strf") + 12
        data[at : at + 8] = struct.pack("<II", 12000, 12000)
        while (at := data.find(b"\xff\xc0\x00\x11\x08", at + 1)) > 0:
            data[at + 5 : at + 9] = struct.pack(">HH", 12000, 12000)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", ["empty", "cut before its index", "zeros", "random", "huge"])
def test_a_damaged_video_is_bad_input_when_it_is_opened(tmp_path: Path, how: str) -> None:
    path = damaged(write_video(tmp_path / ("a.avi" if how == "huge" else "a.mp4")), how)
    with pytest.raises(BadInput) as raised:
        list(all_of(open_source(str(path), pace="fast")))
    assert raised.value.cure
    assert "12000x12000" in str(raised.value) or how != "huge"


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"<?xml version='1.0'?><MPD></MPD>",
        b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
        b"MZ" + bytes(500),
        b"GIF89a" + bytes(500),
    ],
)
def test_what_would_send_the_decoder_elsewhere_is_not_even_opened(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="known container"):
        open_source(str(path))


def test_a_video_that_ends_too_early_fails_instead_of_ending(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", frames=40)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    source = open_source(str(path), pace="fast")
    with pytest.raises(BadInput, match=r"ends after \d+ of the 40"):
        list(all_of(source))


def test_a_frame_beyond_the_largest_is_refused(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "MAX_FRAME_PIXELS", 48 * 64 - 1)
    with pytest.raises(BadInput, match="64x48 have more"):
        open_source(str(video))


# ---------------------------------------------------------------- folders


def test_a_folder_gives_its_pictures_by_name_as_the_house_reads_them(tmp_path: Path) -> None:
    paths = sorted(photographs(tmp_path, shrink=4))
    (tmp_path / "labels.csv").write_text("not a picture")
    source = open_source(str(tmp_path))
    assert not source.live
    found = [frame.pixels.copy() for frame in all_of(source)]
    assert len(found) == len(paths)
    for path, pixels in zip(paths, found, strict=True):
        assert np.array_equal(pixels, np.asarray(open_image(path))), "EXIF, alpha and depth included"


def test_a_picture_that_can_not_be_read_is_told_and_the_others_come(tmp_path: Path) -> None:
    for name in ("a.png", "c.png"):
        Image.new("RGB", (8, 6), "red").save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no picture")
    told: list[Event] = []
    source = open_source(str(tmp_path), tell=told.append, loop=True)
    assert [frame.index for frame, _ in zip(all_of(source), range(4), strict=False)] == [0, 1, 2, 3]
    assert {(e.kind, Path(e.what).name) for e in told} == {("refused", "b.png")}
    assert told[0].why


@pytest.mark.parametrize("loop", [True, False])
def test_a_folder_without_a_readable_picture_is_bad_input(tmp_path: Path, loop: bool) -> None:
    with pytest.raises(BadInput, match="no pictures"):
        open_source(str(tmp_path))
    (tmp_path / "b.png").write_bytes(b"no picture")
    source = open_source(str(tmp_path), loop=loop)
    with pytest.raises(BadInput, match="none of its pictures"):
        source.read()


# ---------------------------------------------------------------- addresses


def test_a_video_on_a_server_is_read_to_its_end(video: Path) -> None:
    with serving(send_file(video)) as address:
        source = open_source(f"{address}/numbers.mp4", patience=SHORT)
        assert source.live
        assert [number_of(f.pixels) for f in all_of(source)] == list(range(20))


def test_a_network_camera_that_hangs_up_is_called_again(tmp_path: Path) -> None:
    told: list[Event] = []
    with serving(send_mjpeg(frames=8)) as address:
        source = open_source(f"{address}/cam", patience=SHORT, tell=told.append)
        frames = []
        while len(frames) < 20:
            frame = source.read()
            assert frame is not None
            frames.append((frame.index, number_of(frame.pixels)))
            frame.release()
        source.close()
    assert [i for i, _ in frames] == list(range(20))
    assert {n for _, n in frames} <= set(range(8))
    kinds = [e.kind for e in told]
    assert kinds[:2] == ["source-lost", "source-returned"]
    assert told[1].facts["away_s"] > 0


def test_a_server_that_is_not_there_or_never_answers_is_a_device_fault_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(DeviceFault, match="gives no frame"):
            open_source(f"http://u:secret@127.0.0.1:{port}/cam", patience=SHORT)
        assert time.monotonic() - started < 20
    with pytest.raises(DeviceFault) as raised:
        open_source(f"http://u:secret@127.0.0.1:{port}/cam", patience=SHORT)
    assert "secret" not in str(raised.value)


def test_a_server_that_goes_for_good_is_given_up_after_the_patience(video: Path) -> None:
    told: list[Event] = []
    with serving(send_mjpeg(frames=5)) as address:
        source = open_source(f"{address}/cam", patience=SHORT, tell=told.append)
        assert source.read() is not None
    with pytest.raises(DeviceFault, match="no more frames, for"):
        list(all_of(source))
    assert told[-1].kind == "source-lost"


# ---------------------------------------------------------------- cameras


def live(camera: Camera, told: list[Event] | None = None, patience: Patience = SHORT) -> capture.Live:
    capture.require("camera:0")
    tell = [].append if told is None else told.append
    return capture.Live("camera:0", camera.open, tell, patience, "Plug it in")


def test_a_camera_that_is_not_there_is_a_device_fault_with_a_cure() -> None:
    with pytest.raises(DeviceFault, match="plugged in"):
        open_source("camera:97")


def test_a_camera_that_is_unplugged_and_returns_goes_on() -> None:
    camera, told = Camera(), []
    source = live(camera, told)
    first = source.read()
    assert first is not None
    camera.unplug()
    back = threading.Timer(0.25, setattr, (camera, "plugged", True))
    back.start()
    second = source.read()
    assert second is not None
    assert (first.index, second.index) == (0, 1)
    assert [e.kind for e in told] == ["source-lost", "source-returned"]
    assert camera.opened > 2, "it was tried again and again"
    source.close()
    assert camera.released == camera.opened, "no handle is left open"


def test_a_camera_that_stays_away_fails_after_the_patience() -> None:
    camera, told = Camera(), []
    source = live(camera, told)
    assert source.read() is not None
    camera.unplug()
    started = time.monotonic()
    with pytest.raises(DeviceFault, match="Plug it in"):
        source.read()
    assert time.monotonic() - started >= SHORT.give_up_s / 2
    source.close()
    assert [e.kind for e in told] == ["source-lost"]
    assert camera.released == camera.opened


def test_a_stumble_is_not_told() -> None:
    camera, told = Camera(), []
    odd = {3, 4}
    camera.picture = lambda i: np.zeros((0, 0, 3), np.uint8) if i in odd else numbered(i)
    source = live(camera, told, Patience(grace_s=5))
    numbers = []
    for _ in range(6):
        frame = source.read()
        assert frame is not None
        numbers.append(number_of(frame.pixels))
        frame.release()
    assert numbers == [0, 1, 2, 5, 6, 7]
    assert told == []
    source.close()


@pytest.mark.parametrize(
    "picture",
    [
        None,
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((4, 5, 3), np.float32),
        np.zeros(7, np.uint8),
    ],
)
def test_a_camera_that_gives_no_pictures_fails(picture: object) -> None:
    source = live(Camera(fps=5000, picture=lambda _: picture), patience=Patience(grace_s=5))
    with pytest.raises(DeviceFault, match="no picture"):
        source.read()
    source.close()


def test_stop_ends_the_wait_for_a_lost_camera() -> None:
    camera = Camera()
    source = live(camera, patience=Patience(grace_s=0.01, first_wait_s=60, most_wait_s=60, give_up_s=600))
    assert source.read() is not None
    camera.unplug()
    threading.Timer(0.2, source.stop).start()
    started = time.monotonic()
    assert source.read() is None
    assert time.monotonic() - started < 30
    source.close()


@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_waits_double_up_to_the_most(first: float, most: float) -> None:
    patience = Patience(first_wait_s=first, most_wait_s=most)
    found = [wait for wait, _ in zip(capture.waits(patience), range(12), strict=False)]
    assert found[0] == first
    assert all(b == min(2 * a, most) for a, b in itertools.pairwise(found))
