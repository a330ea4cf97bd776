"""``edgekiln run --server``: what leaves the machine under each privacy rule, byte for byte, and what is
refused.

A bundle and a split model that the command line made of a real network; a real server behind a proxy that
keeps every byte.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from PIL import Image

from edgekiln.bundle.unpack import opened
from edgekiln.cli import main
from edgekiln.errors import BadInput
from edgekiln.model.parts import SPLIT_FILE, check_belongs, read_split
from edgekiln.model.preprocess import apply, open_image
from edgekiln.records import Manifest
from edgekiln.runtime.hybrid.privacy import open_head
from fakes.command import Kiln
from fakes.runtime_bundle import runtime_bundle
from fakes.serving import (
    certificate,
    chaos_proxy,
    misbehaving,
    read_request,
    requests,
    served,
    serving,
)

FRAMES = 6
MOST_PIXELS = 700
FEATURES = ["--privacy", "features-only"]


def write_photos(folder: Path, suffix: str) -> Path:
    """Red pictures with something on them; JPEGs say in their metadata where they were taken."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    for at in range(FRAMES):
        pixels = draw.integers(0, 60, (48, 64, 3), np.uint8)
        pixels[:, :, 0] += 180
        more: dict[str, Any] = {"exif": exif, "comment": b"secret place"} if suffix == "jpg" else {}
        Image.fromarray(pixels).save(folder / f"{at}.{suffix}", **more)
    return folder


@dataclass(frozen=True)
class Made:
    """What the command line made of one network."""

    net: Path
    photos: Path
    bundle: Path
    split: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def made(net: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    where = tmp_path_factory.mktemp("made")
    photos = write_photos(where / "photos", "png")
    fixed = ["--target", "onnxruntime", "--recipe", "fp32", "--threads", 1, "--samples", 20, "--out", "out"]
    done = Kiln(where, shared_cache)("build", net, "--data", photos, *fixed)
    assert done.code == 0, done.stderr
    split(net, photos, where / "split")
    bundle = where / "out" / "bundles" / "host.edgekiln"
    with opened(bundle) as held:
        return Made(net, photos, bundle, where / "split", held.manifest)


def split(net: Path, photos: Path, out: Path) -> None:
    at = [n.output[0] for n in onnx.load(net).graph.node if n.op_type == "Add"][-1]
    assert main(["split", str(net), "--at", at, "--data", str(photos), "--out", str(out), "--json"]) == 0


def streamed(bundle: Path, photos: Path, out: Path, *more: object) -> int:
    fixed = ["--fast", "--latency-ms", "20000", "--threads", "1", "--mode", "cloud", "--json"]
    argv = ["run", str(bundle), "--input", str(photos), *fixed, "--out", str(out)]
    return main([*argv, *map(str, more)])


def answers(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def recorded(**models: Any) -> Iterator[Any]:
    """A proxy before a server of ``models`` that keeps what clients send."""
    with (
        serving(models) as server,
        chaos_proxy(("127.0.0.1", server.server_address[1]), record=True) as proxy,
    ):
        yield proxy


def sent(streams: list[bytearray], model: str) -> list[dict[str, bytes]]:
    """The tensors of each request, by name, sorted: calls may overtake each other. Every byte of the streams
    is a request that is understood: questions without a body, and inferences of ``model``."""
    found = []
    for stream in map(bytes, streams):
        for line in stream.split(b"\r\n"):
            if line.startswith((b"GET ", b"POST ")):
                path = line.split()[1].decode()
                known = {"/v2", f"/v2/models/{model}", f"/v2/models/{model}/infer"}
                assert path in known, path
        for head, rest in requests(stream):
            tensors = {}
            for tensor in head["inputs"]:
                size = tensor["parameters"]["binary_data_size"]
                tensors[tensor["name"]], rest = rest[:size], rest[size:]
                assert set(tensor) == {"name", "shape", "datatype", "parameters"}
            assert rest == b""
            assert set(head) == {"inputs", "outputs"}
            found.append(tensors)
    return in_order(found)


def in_order(found: list[dict[str, bytes]]) -> list[dict[str, bytes]]:
    return sorted(found, key=lambda tensors: sorted(tensors.items()))


# ---------------------------------------------------------------- what leaves


def test_under_features_only_nothing_but_what_the_head_computed_leaves(made: Made, tmp_path: Path) -> None:
    with recorded(tail=served(made.split / "tail.onnx")) as proxy:
        given = [*FEATURES, "--split", made.split, "--server", proxy.url, "--server-model", "tail"]
        assert streamed(made.bundle, made.photos, tmp_path / "out", *given) == 0
        streams = list(proxy.recorded)
    pictures = [open_image(path) for path in sorted(made.photos.iterdir())]
    preprocess = made.manifest.preprocess
    assert preprocess is not None
    tensors = [apply(preprocess, picture) for picture in pictures]
    with contextlib.closing(open_head(made.split)) as head:
        coded = [head({"image": x}).tensors for x in tensors]
    found = sent(streams, "tail")
    assert found == in_order([{name: a.tobytes() for name, a in one.items()} for one in coded])
    # The same look finds the picture where it leaves, as the next test shows; here it has none to find.
    whole = b"".join(map(bytes, streams))
    for x, picture in zip(tensors, pictures, strict=True):
        assert x.tobytes()[:64] not in whole
        assert np.asarray(picture).tobytes()[:64] not in whole
    told = answers(tmp_path / "out")
    assert [one["place"] for one in told] == ["cloud"] * FRAMES
    tail, whole_net = served(made.split / "tail.onnx"), served(made.net)
    assert [one["class"] for one in told] == [int(tail.run(one)["logits"].argmax()) for one in coded]
    for one, x in zip(coded, tensors, strict=True):
        wanted = whole_net.run({"image": x})["logits"]
        assert np.abs(tail.run(one)["logits"] - wanted).max() < 0.1 * np.abs(wanted).max()


def test_under_raw_the_input_tensor_leaves(made: Made, tmp_path: Path) -> None:
    with recorded(net=served(made.net)) as proxy:
        assert streamed(made.bundle, made.photos, tmp_path / "out", "--server", proxy.url) == 0
        streams = list(proxy.recorded)
    preprocess = made.manifest.preprocess
    assert preprocess is not None
    pictures = [apply(preprocess, open_image(path)) for path in sorted(made.photos.iterdir())]
    assert sent(streams, "net") == in_order([{"image": x.tobytes()} for x in pictures])
    assert pictures[0].tobytes()[:64] in b"".join(map(bytes, streams))


def test_under_reduced_a_small_jpeg_without_metadata_leaves_and_nothing_else(
    made: Made, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "jpegs", "jpg")
    with recorded(pictures=served(made.net, made.manifest.preprocess)) as proxy:
        rule = ["--privacy", "reduced", "--most-pixels", MOST_PIXELS]
        given = [*rule, "--server", proxy.url, "--server-model", "pictures"]
        assert streamed(made.bundle, photos, tmp_path / "out", *given) == 0
        streams = list(proxy.recorded)
    found = sent(streams, "pictures")
    assert len(found) == FRAMES
    for tensors in found:
        assert set(tensors) == {"picture"}
        (length,) = struct.unpack("<I", tensors["picture"][:4])
        assert length == len(tensors["picture"]) - 4, "one picture and no more"
        with Image.open(io.BytesIO(tensors["picture"][4:])) as picture:
            assert picture.format == "JPEG"
            assert MOST_PIXELS / 2 < picture.width * picture.height <= MOST_PIXELS
            assert picture.width / picture.height == pytest.approx(64 / 48, rel=0.1)
            assert not picture.getexif()
            assert not {"exif", "comment", "icc_profile", "xmp"} & set(picture.info)
            red, _, blue = np.asarray(picture.convert("RGB"), np.float64).mean(axis=(0, 1))
            assert red > blue + 100, "in the right order of colours"
    assert b"secret" not in b"".join(map(bytes, streams))
    assert [one["place"] for one in answers(tmp_path / "out")] == ["cloud"] * FRAMES


def test_a_server_over_tls_is_trusted_by_the_certificates_that_were_given(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pem = certificate(tmp_path, "localhost")
    with serving({"net": served(made.net)}, certificate=pem) as running:
        server = ["--server", f"https://localhost:{running.server_address[1]}"]
        assert streamed(made.bundle, made.photos, tmp_path / "a", *server) == 2
        told = capsys.readouterr().err
        assert "TLS" in told
        assert "--server-ca" in told
        assert running.models["net"].calls == 0
        assert streamed(made.bundle, made.photos, tmp_path / "b", *server, "--server-ca", pem) == 0
        assert running.models["net"].calls == FRAMES


def test_a_server_is_reached_through_the_proxy_that_was_given(made: Made, tmp_path: Path) -> None:
    with serving({"net": served(made.net)}) as running:

        def forward(connection: socket.socket) -> None:
            with socket.create_connection(("127.0.0.1", running.server_address[1])) as there:
                while request := read_request(connection):
                    line, _, rest = request.partition(b"\r\n")
                    assert b" http://far.invalid:8000/" in line
                    there.sendall(line.replace(b"http://far.invalid:8000", b"") + b"\r\n" + rest)
                    connection.sendall(read_request(there))

        with misbehaving(forward) as proxy:
            given = ["--server", "http://far.invalid:8000", "--server-proxy", proxy]
            assert streamed(made.bundle, made.photos, tmp_path / "out", *given) == 0
        assert running.models["net"].calls == FRAMES


# ---------------------------------------------------------------- what is refused


def refusal(capsys: pytest.CaptureFixture[str], code: int) -> str:
    told = capsys.readouterr().err
    assert code == 2, told
    assert "cure:" in told
    assert "fault of edgekiln" not in told
    return " ".join(told.split())


HTTP = ["--input", "x", "--server", "http://127.0.0.1:9"]


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--privacy", "raw"], "--privacy belongs to --input"),
        (["--most-pixels", "9"], "--most-pixels belongs to --input"),
        (["--split", "s"], "--split belongs to --input"),
        (["--server-ca", "c"], "--server-ca belongs to --input"),
        (["--server-proxy", "http://p"], "--server-proxy belongs to --input"),
        (["--input", "x", "--privacy", "reduced"], "belongs to --server"),
        (["--input", "x", "--most-pixels", "9"], "belongs to --server"),
        (["--input", "x", "--split", "s"], "belongs to --server"),
        (["--input", "x", "--server-ca", "c"], "belongs to --server"),
        (["--input", "x", "--server-proxy", "http://p"], "belongs to --server"),
        (["--input", "x", "--server-model", "m"], "belongs to --server"),
        (["--input", "x", "--server-quality", "0.0"], "belongs to --server"),
        ([*HTTP, "--most-pixels", "9"], "Add --privacy reduced"),
        ([*HTTP, *FEATURES, "--split", "s", "--most-pixels", "9"], "Add --privacy reduced"),
        ([*HTTP, "--split", "s"], "Add --privacy features-only"),
        ([*HTTP, "--privacy", "reduced", "--split", "s"], "Add --privacy features-only"),
        ([*HTTP, *FEATURES], "no split model was given"),
        ([*HTTP, *FEATURES, "--split", "nowhere"], "opening the split model in nowhere"),
        ([*HTTP, "--server-ca", "c"], "Give the server's https:// address"),
        (["--input", "x", "--server", "https://a", "--server-ca", "nowhere"], "no certificate could be read"),
        ([*HTTP, "--server-proxy", "socks5://p"], "no URL of a proxy"),
    ],
)
def test_options_that_do_not_belong_together_are_refused_with_the_cure(
    made: Made, argv: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why in refusal(capsys, main(["run", str(made.bundle), *argv]))


def test_a_server_s_model_of_another_form_is_refused_and_the_cure_says_which_to_serve(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(net=served(made.net)) as proxy:
        server = ["--server", proxy.url]
        for given, cure in (
            ([*FEATURES, "--split", made.split], "Serve tail.onnx"),
            (["--privacy", "reduced"], "Serve one that decodes 'picture'"),
        ):
            told = refusal(capsys, streamed(made.bundle, made.photos, tmp_path / "out", *server, *given))
            assert cure in told
            assert "--server-model" in told
        assert sent(proxy.recorded, "net") == [], "refused before any frame"


def test_a_split_of_another_model_is_refused_and_nothing_leaves(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = onnx.load(made.net)
    weight = other.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(other, tmp_path / "other.onnx")
    split(tmp_path / "other.onnx", made.photos, tmp_path / "other")
    foreign = runtime_bundle(tmp_path / "foreign.edgekiln")
    capsys.readouterr()
    with recorded(tail=served(made.split / "tail.onnx")) as proxy:
        given = [*FEATURES, "--server", proxy.url, "--server-model", "tail", "--split"]
        told = refusal(capsys, streamed(made.bundle, made.photos, tmp_path / "a", *given, tmp_path / "other"))
        assert "cut from another model" in told
        told = refusal(capsys, streamed(foreign, made.photos, tmp_path / "b", *given, made.split))
        assert "its inputs are image float32 1x3x32x32, the bundle's x float32" in told
        assert proxy.connections == 0


def test_a_split_belongs_to_a_bundle_by_the_graph_or_by_the_source(made: Made) -> None:
    parts, manifest = read_split(made.split), made.manifest
    check_belongs(parts, manifest, made.split)
    check_belongs(parts, replace(manifest, provenance={}), made.split)  # it says nothing of its origin
    same_source = {**parts.provenance, "model_sha256": "1" * 64}
    check_belongs(replace(parts, provenance=same_source), manifest, made.split)
    other_file = {"model_sha256": "1" * 64, "source_sha256:net.onnx": "2" * 64}
    for provenance in ({}, other_file):
        with pytest.raises(BadInput, match="cut from another model"):
            check_belongs(replace(parts, provenance=provenance), manifest, made.split)
    (spec,) = parts.signature.outputs
    wider = replace(spec, shape=(1, 99))
    with pytest.raises(BadInput, match="its outputs are"):
        check_belongs(
            replace(parts, signature=replace(parts.signature, outputs=(wider,))), manifest, made.split
        )


def test_a_split_with_shapes_that_nothing_can_have_is_bad_input(made: Made, tmp_path: Path) -> None:
    told = json.loads((made.split / SPLIT_FILE).read_text())
    (tmp_path / "head.onnx").write_bytes((made.split / "head.onnx").read_bytes())
    for shape, dtype in (
        ([1, 3, "h", 32], "float32"),
        ([1, 3, -1, 32], "float32"),
        ([1, 3, 32, 32], "string"),
    ):
        told["signature"]["inputs"][0] |= {"shape": shape, "dtype": dtype}
        (tmp_path / SPLIT_FILE).write_text(json.dumps(told))
        with pytest.raises(BadInput, match=r"shapes are open|no numbers"):
            read_split(tmp_path)
