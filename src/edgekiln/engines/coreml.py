"""Core ML's ML Programs off a Mac: a reference interpreter of the saved ``.mlpackage``.

It reads the saved files (the program's protobuf and ``weights/weight.bin``) and evaluates them op by op
with PyTorch on the CPU. Numbers are float32; where the program says fp16 the result is rounded to fp16
after every op, so an overflow shows. What a phone does inside one op (the order of its sums, fp16
accumulation) stays unknown: see ``NOTE``.

``artifact.entry`` is the package's folder. The options that are read, all of them optional:

``function``          which function of a multi-function package runs; else the package's default.
``input_names``       JSON object, package's name to the model's own name, where they differ.
``output_names``      the same for outputs. A classifier's scores stand in the package under
                      ``description.predictedProbabilitiesName``: that name is mapped here too.
``output_dtypes``     JSON object, the model's own output name to a numpy dtype (``{"ids": "int64"}``), where
                      the package computes in another one. Inputs are converted to what the package declares;
                      an integer that does not fit is BadInput.
``scalars``           JSON list of the model's own names of inputs and outputs of rank 0, which Core ML holds
                      as shape (1,).
``image_input``       true where the package takes a picture. The runner is still given the model's own
                      tensor and recovers the picture from it: ``p = (x * std + mean) / scale``, with the
                      model's ``Preprocess`` in ``image_scale``, ``image_mean_0..2``, ``image_std_0..2``,
                      ``image_layout`` (NCHW or NHWC) and ``image_colour`` (RGB, BGR or GRAY). A value within
                      1e-3 of a whole number becomes that number; others stay as they are, and nothing is
                      clamped. The picture's channels are put into the colour order that the *package*
                      declares, and the package's own arithmetic (coremltools writes an ImageType's scale and
                      bias as ``mul`` and ``add`` at the start of ``main``) does the rest. So a wrong scale,
                      bias, layout or colour order in the package is a wrong result here, as on the phone.

The runner keeps the package's states between calls; ``reset()`` sets them to zero.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgekiln import files
from edgekiln.engines import Arrays
from edgekiln.errors import BadInput, MissingExtra
from edgekiln.records import Artifact, Scalar

if TYPE_CHECKING:
    from edgekiln.engines.mil.program import Program

NOTE = (
    "Interpreted from the saved package by edgekiln's reference interpreter: this proves what the program "
    "means, not the Neural Engine's arithmetic, nor that Apple's compiler takes it."
)
