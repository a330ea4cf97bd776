"""Web artifacts: same bytes, opened in a real Chromium, placement as the runtime itself logs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekiln.compile.quantise.static import quantise_dynamic
from edgekiln.compile.targets.web import convert, placement
from edgekiln.devices import catalogue
from edgekiln.engines import npm
from edgekiln.engines import onnxruntime as reference
from edgekiln.engines import web as engine
from edgekiln.errors import ConversionFailed
from edgekiln.records import Artifact
from fakes.networks import picture, quantised, sqnr_db
from fakes.variants import artifact as native
from fakes.variants import order

BROWSER = catalogue()["browser"]
