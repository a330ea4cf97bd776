"""The example's video: real, of the length asked for, moving, and never inside the repository's files."""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import BadInput
from edgekiln.runtime.streams.sources import open_source

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "efficientnet_lite0" / "video.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("efficientnet_lite0_video", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


video = load()


def test_the_command_writes_a_video_that_moves_and_that_a_source_reads(tmp_path: Path) -> None:
    out = tmp_path / "video.mp4"
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--seconds", "3.5", "--fps", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "3.5 s, 20 frames a second" in done.stdout
    source = open_source(str(out), pace="fast")
    assert source.fps == 20
    pictures = []
    while (frame := source.read()) is not None:
        assert frame.pixels.shape == (480, 640, 3)
        pictures.append(frame.pixels[::8, ::8].astype(np.int16))
        frame.release()
    source.close()
    assert len(pictures) == 70
    steps = [float(np.abs(a - b).mean()) for a, b in itertools.pairwise(pictures)]
    assert max(steps) < 40, "scenes fade, they are not cut"
    assert np.abs(pictures[0] - pictures[25]).mean() > 3, "the view moves"
    assert np.abs(pictures[10] - pictures[50]).mean() > 20, "another photograph"
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_the_first_frame_is_the_first_photograph(tmp_path: Path) -> None:
    picture = cv2.imread(str(video.photographs()[0]))
    (first,) = video.frames([picture], 1 / 30, 30, (640, 480))
    matrix = video.window(video.FADE_S / (video.SCENE_S + video.FADE_S), 0, (512, 512), (640, 480))
    x, y = 320, 240
    at_x, at_y = matrix @ np.array([x, y, 1.0])
    expected = picture[round(at_y) - 1 : round(at_y) + 2, round(at_x) - 1 : round(at_x) + 2].mean((0, 1))
    assert np.abs(first[y, x] - expected).max() < 40


def test_the_default_lies_where_git_ignores_it() -> None:
    ignored = subprocess.run(["git", "check-ignore", str(video.DEFAULT_OUT)], cwd=ROOT, check=False)
    assert ignored.returncode == 0


def test_without_the_photographs_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="make setup"):
        video.photographs()


@given(st.floats(0, 1), st.integers(0, 40), st.integers(64, 3000), st.integers(64, 3000))
def test_a_window_lies_inside_its_photograph(share: float, scene: int, width: int, height: int) -> None:
    matrix = video.window(share, scene, (width, height), (640, 480))
    for corner in ((-0.5, -0.5), (639.5, 479.5)):
        x, y = matrix @ np.array([*corner, 1.0])
        assert -0.5 - 1e-6 <= x <= width - 0.5 + 1e-6
        assert -0.5 - 1e-6 <= y <= height - 0.5 + 1e-6
