"""A small bundle's whole content on disk: artifact, golden tensors, labels, proof and choice."""

import msgspec
import numpy as np

from edgekiln.bundle.pack import pack
from edgekiln.files import entries
from edgekiln.prove.arrays import npz_bytes
from edgekiln.records import Choice, Golden
from fakes.build_record import artifact, model, proof

LABELS = ("tabby cat", "Zebra \u2028 zebra", "ü\x0bü", "", "last")


def content(root, labels=LABELS, golden=True):
    """Write the artifact and golden files below ``root``; the arguments of ``pack`` but the path."""
    made, recorded = root / "artifact", root / "golden"
    (made / "sub").mkdir(parents=True)
    recorded.mkdir()
    (made / "model.onnx").write_bytes(bytes(range(256)) * 20)
    (made / "sub" / "plan.json").write_bytes(b'{"tf32": false}')
    for name in ("golden-inputs.npz", "golden-outputs.npz"):
        (recorded / name).write_bytes(npz_bytes({"0/x": np.arange(3, dtype=np.float32)}))
    files = entries(made)
    one = artifact("onnxruntime", "int8-static-mse", 1, files=files, entry="model.onnx")
    named = msgspec.structs.replace(model(), labels=labels)
    tensors = Golden(
        inputs="golden-inputs.npz", outputs="golden-outputs.npz", engine="onnxruntime", atol={"y": 0.1}
    )
    return {
        "version": "0.1.0",
        "model": named,
        "proof": proof("host", one, p50=3.0, drop=0.0, agreement=1.0, sqnr=30.0, memory=1e8),
        "choice": Choice(device="host", status="proven", artifact_id=one.id, basis="least latency"),
        "artifact_folder": made,
        "golden": tensors if golden else None,
        "golden_folder": recorded if golden else None,
        "provenance": {"source_kind": "onnx", "model_sha256": "ab" * 32},
    }


def packed(root, **changes):
    """The path of a sound bundle below ``root``."""
    path = root / "host.edgekiln"
    pack(path, **{**content(root / "content"), **changes})
    return path


def packed_with_alternates(root, recipes=("fp32", "fp16")):
    """The path of a sound bundle whose chosen artifact has an alternate of each recipe."""
    others = []
    for recipe in recipes:
        folder = root / recipe
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(recipe.encode() * 100)
        files = entries(folder)
        made = artifact("onnxruntime", recipe, 1, files=files, entry="model.onnx")
        others.append((proof("host", made, p50=4.0, drop=0.0, agreement=1.0, sqnr=40.0, memory=1e8), folder))
    return packed(root, alternates=others)
