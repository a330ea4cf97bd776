"""What leaves the device under each privacy rule: every byte of every connection is recorded and looked at.

With the trained EfficientNet-Lite0, cut at a stage boundary, and a photograph.
"""

from __future__ import annotations

import contextlib
import io
import json
import struct
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgekiln.compile.split import split_model
from edgekiln.errors import BadInput, ConversionFailed, EdgekilnError
from edgekiln.model.parts import Split
from edgekiln.records import Preprocess
from edgekiln.runtime.hybrid.client import Client, Server
from edgekiln.runtime.hybrid.offload import Offloader, OffloadRules
from edgekiln.runtime.hybrid.privacy import (
    FeatureHead,
    Features,
    Privacy,
    Raw,
    Reduced,
    open_head,
    payload,
    reduce_picture,
)
from edgekiln.runtime.hybrid.remote import RemoteModel
from fakes.serving import chaos_proxy, requests, served, serving
from fakes.trained_efficientnet import build, photograph

CUT = "/_blocks.7/Add_output_0"
NAMES = ("astronaut.png", "coffee.png", "rocket.jpg", "camera.png")
PREPROCESS = Preprocess(width=224, height=224, mean=(127.0,) * 3, std=(128.0,) * 3)


@dataclass(frozen=True)
class Parts:
    graph: Path
    folder: Path
    split: Split
    head: FeatureHead


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    where = tmp_path_factory.mktemp("efficientnet")
    graph = build(where)
    split = split_model(graph, [CUT], [{"image": photograph(n)} for n in NAMES], where / "split")
    head = open_head(where / "split")
    yield Parts(graph, where / "split", split, head)
    head.close()


def picture() -> Image.Image:
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / "chelsea.png") as opened:
        return opened.convert("RGB").resize((224, 224))


# ---------------------------------------------------------------- head and tail


def test_head_and_tail_of_a_trained_network_are_the_whole_and_8_bits_cost_little(parts: Parts) -> None:
    split = parts.split
    assert split.parity_max_error <= 1e-4
    assert split.features_elements == 80 * 14 * 14
    assert split.quantised_sqnr_db is not None
    assert split.quantised_sqnr_db > 35
    whole, tail = served(parts.graph), served(parts.folder / "tail.onnx")
    for name in (*NAMES, "chelsea.png"):
        wanted = whole.run({"image": photograph(name)})["logits"]
        found = tail.run(parts.head({"image": photograph(name)}).tensors)["logits"]
        assert found.argmax() == wanted.argmax()
        assert np.abs(found - wanted).max() < 0.1 * np.abs(wanted).max()


def test_a_cut_behind_the_first_stages_which_hold_more_than_the_picture_is_refused(
    parts: Parts, tmp_path: Path
) -> None:
    import onnx

    first = next(n.output[0] for n in onnx.load(parts.graph).graph.node if n.op_type == "Conv")
    with pytest.raises(ConversionFailed, match="nothing is hidden"):
        split_model(parts.graph, [first], [{"image": photograph("coffee.png")}], tmp_path / "split")


# ---------------------------------------------------------------- what is on the wire


CODES = {"UINT8": "u1", "FP32": "<f4", "FP16": "<f2"}


def likeness(plane: NDArray[Any]) -> float:
    """The largest correlation of a plane of numbers with the picture in that size, over colours and grey."""
    small = np.asarray(picture().resize(plane.shape[::-1], Image.Resampling.BOX), np.float64)
    colours = [*small.transpose(2, 0, 1), small.mean(axis=2)]
    if plane.std() == 0:
        return 0.0
    return max(abs(float(np.corrcoef(plane.reshape(-1), c.reshape(-1))[0, 1])) for c in colours)


def forms() -> list[bytes]:
    """The picture's bytes in every form in which it might travel uncoded."""
    pixels = np.asarray(picture())
    tensor = photograph("chelsea.png")
    whole = [pixels.tobytes(), np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()]
    whole += [a.astype(t).tobytes() for a in (tensor, tensor.transpose(0, 2, 3, 1)) for t in ("<f4", "<f2")]
    return whole


def picture_in(streams: list[bytearray]) -> list[str]:
    """All the ways in which recorded connections hold the picture, its reduced form or its input tensor."""
    found = []
    for stream in map(bytes, streams):
        for head, rest in requests(stream):
            for form in forms():
                runs = (form[at : at + 48] for at in range(0, len(form) - 48, 997))
                if any(run in rest or run in stream for run in runs if len(set(run)) > 8):
                    found.append("pixels")
            for tensor in head["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                blob, rest = rest[:size], rest[size:]
                if tensor["datatype"] == "BYTES":
                    (length,) = struct.unpack("<I", blob[:4])
                    with contextlib.suppress(OSError), Image.open(io.BytesIO(blob[4 : 4 + length])) as image:
                        grey = np.asarray(image.convert("L"), np.float64)
                        found += ["a coded picture"] if likeness(grey) > 0.9 else ["some picture"]
                    continue
                array = np.frombuffer(blob, CODES[tensor["datatype"]]).reshape(tensor["shape"])
                planes = array.reshape(-1, *array.shape[-2:]) if array.ndim == 4 else []
                best = max((likeness(p.astype(np.float64)) for p in planes), default=0.0)
                if best > 0.95:
                    found.append(f"a plane like the picture ({best:.3f})")
    return found


OUTGOING: list[Any] = []
WATCHING = [False]


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHING[0] and event == "socket.connect":
        OUTGOING.append(arguments[1])


sys.addaudithook(watch)  # for the life of the process: Python has no way to take it off again


@contextlib.contextmanager
def recorded(parts: Parts, privacy: Privacy, model: str) -> Iterator[tuple[Offloader, list[bytearray]]]:
    models = {
        "whole": served(parts.graph),
        "tail": served(parts.folder / "tail.onnx"),
        "picture": served(parts.graph, PREPROCESS),
    }
    with (
        serving(models) as server,
        chaos_proxy(("127.0.0.1", server.server_address[1]), record=True) as proxy,
    ):
        client = Client(Server(url=proxy.url))
        remote = RemoteModel(client, model, compress=model == "tail")
        offloader = Offloader(remote, privacy, OffloadRules(mode="cloud", edge_ms=10.0))
        OUTGOING.clear()
        WATCHING[0] = True
        try:
            yield offloader, proxy.recorded
        finally:
            WATCHING[0] = False
            client.close()
            offloader.close()
        # The proxy's own way to the server is the only one besides.
        assert {address[1] for address in OUTGOING} <= {proxy.port, server.server_address[1]}


def edge() -> dict[str, NDArray[Any]]:
    return {"logits": np.zeros((1, 1000), np.float32)}


def attempts(parts: Parts) -> dict[str, Any]:
    """Whatever a careless caller may hand over."""
    tensor = photograph("chelsea.png")
    return {
        "tensor": Raw({"image": tensor}),
        "reduced": reduce_picture(picture(), 64 * 64),
        "features": parts.head({"image": tensor}),
        "picture": picture(),
        "array": tensor,
        "dict": {"image": tensor},
        "feature-dict": parts.head({"image": tensor}).tensors,
    }


def test_under_features_only_no_pixels_leave_whatever_is_handed_over(parts: Parts) -> None:
    privacy = Privacy(rule="features-only", head_sha256=parts.split.head.sha256)
    with recorded(parts, privacy, "tail") as (offloader, streams):
        refused = []
        for name, frame in attempts(parts).items():
            for given in (frame, lambda frame=frame: frame):
                try:
                    answer = offloader.answer(given, edge, 20_000.0)
                except (BadInput, TypeError):
                    refused.append(name)
                    continue
                assert name == "features"
                assert answer.place == "cloud"
                wanted = served(parts.graph).run({"image": photograph("chelsea.png")})["logits"]
                assert answer.outputs["logits"].argmax() == wanted.argmax()
        assert set(refused) == set(attempts(parts)) - {"features"}
    assert sum(len(s) for s in streams) > 10_000, "the features did leave"
    assert picture_in(streams) == []


@pytest.mark.parametrize(
    ("rule", "model", "name", "sign"),
    [("raw", "whole", "tensor", "pixels"), ("reduced", "picture", "reduced", "a coded picture")],
)
def test_the_same_look_finds_the_picture_under_the_other_rules(
    parts: Parts, rule: Any, model: str, name: str, sign: str
) -> None:
    with recorded(parts, Privacy(rule=rule), model) as (offloader, streams):
        answer = offloader.answer(attempts(parts)[name], edge, 20_000.0)
        assert answer.place == "cloud"
    assert sign in picture_in(streams)


def test_the_look_finds_a_picture_that_is_passed_off_as_features() -> None:
    """Quantised to bytes, in no channel equal to the input: as an input tensor under another name."""
    tensor = photograph("chelsea.png")
    scaled = ((tensor * 0.37 + 0.5) * 100).clip(0, 255).astype(np.uint8)
    head = {"name": "f", "shape": list(scaled.shape), "datatype": "UINT8"}
    head["parameters"] = {"binary_data_size": scaled.nbytes}
    text = json.dumps({"inputs": [head]}).encode()
    body = zlib.compress(text + scaled.tobytes())
    top = (
        f"POST /x HTTP/1.1\r\nContent-Encoding: deflate\r\nContent-Length: {len(body)}\r\n"
        f"Inference-Header-Content-Length: {len(text)}\r\n\r\n"
    )
    assert any("plane" in f for f in picture_in([bytearray(top.encode() + body)]))


# ---------------------------------------------------------------- the types


def test_features_are_made_by_a_head_only_and_by_the_declared_one_only(parts: Parts) -> None:
    with pytest.raises(TypeError, match="FeatureHead"):
        Features(object(), parts.split.head.sha256, {"x": photograph("coffee.png")})
    features = parts.head({"image": photograph("coffee.png")})
    with pytest.raises(AttributeError):
        features.head_sha256 = "0" * 64
    with pytest.raises(ValueError, match="read-only"):
        features.tensors["feature0"][:] = 0
    other = Privacy(rule="features-only", head_sha256="0" * 64)
    with pytest.raises(BadInput, match="another head"):
        payload(other, features)
    for wrong in ({CUT: photograph("coffee.png")}, {"else": np.zeros((1, 80, 14, 14), np.float32)}, {}):
        with pytest.raises(BadInput, match="not what the declared head gives"):
            parts.head.coded(wrong)
    with pytest.raises(BadInput, match="no head is declared"):
        Offloader(RemoteModel(Client(Server(url="http://127.0.0.1:9")), "m"), Privacy(rule="features-only"))


@pytest.mark.parametrize("most", [1, 7, 1000, 320 * 240, 10**9])
def test_a_reduced_picture_has_no_more_pixels_than_allowed_and_no_metadata(most: int) -> None:
    wide = picture().resize((640, 37))
    wide.info |= {"exif": b"Exif\x00\x00secret place", "comment": b"secret place"}
    made = reduce_picture(wide, most)
    with Image.open(io.BytesIO(made.jpeg)) as image:
        assert image.width * image.height == made.pixels <= most
        assert not image.getexif()
    assert b"secret" not in made.jpeg
    assert payload(Privacy(rule="reduced", most_pixels=most), made)
    with pytest.raises(BadInput, match="may leave"):
        payload(Privacy(rule="reduced", most_pixels=made.pixels - 1), made)
    with pytest.raises(EdgekilnError):
        reduce_picture(wide, 0)
    assert isinstance(made, Reduced)
