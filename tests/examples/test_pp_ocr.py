"""The PP-OCR example: its page's preparation and its job fit the model inside the wheel of rapidocr."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
from PIL import Image

from edgekiln.records import Preprocess

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "pp_ocr"
JOB = tomllib.loads((EXAMPLE / "job.toml").read_text(encoding="utf-8"))


def test_the_pages_lie_where_the_job_looks(tmp_path: Path) -> None:
    # A copy of the example writes below the copy: the repository's own build folder is left alone.
    copy = tmp_path / "examples" / "pp_ocr"
    shutil.copytree(EXAMPLE, copy)
    subprocess.run([sys.executable, copy / "pages.py"], cwd=tmp_path, check=True)
    assert sorted(path.name for path in (copy / JOB["data"]).iterdir()) == ["page.png", "text.png"]


def test_the_detector_finds_the_text_of_a_page_at_the_jobs_input_size(tmp_path: Path) -> None:
    spec = msgspec.convert(JOB["preprocess"], Preprocess)
    package, _, path = JOB["model"]["source"].removeprefix("package:").partition("/")
    found = find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    skimage = find_spec("skimage")
    assert skimage is not None
    assert skimage.submodule_search_locations
    with Image.open(Path(skimage.submodule_search_locations[0]) / "data" / "page.png") as page:
        pixels = np.asarray(page.convert("RGB").resize((spec.width, spec.height)), np.float32)[..., ::-1]
    image = (pixels * spec.scale - np.float32(spec.mean)) / np.float32(spec.std)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(
        Path(found.submodule_search_locations[0]) / path, options, providers=["CPUExecutionProvider"]
    )
    (probability,) = session.run(None, {"x": image.transpose(2, 0, 1)[None].astype(np.float32)})
    assert probability.shape == (1, 1, spec.height, spec.width)
    # The page is text on paper: some pixels are surely text, and most are not.
    assert 0.05 < float((probability > 0.3).mean()) < 0.6
