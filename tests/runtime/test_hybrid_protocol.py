"""The protocol's bytes: against a foreign codec, against the server's own, and against broken answers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray

from edgekiln.errors import BadInput, ServerFault
from edgekiln.records import TensorSpec
from edgekiln.runtime.hybrid.protocol import (
    decode_model,
    decode_response,
    decode_server,
    encode_request,
    error_text,
)

NUMERIC = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")
ARRAYS = st.sampled_from((*NUMERIC, *FLOATS)).flatmap(
    lambda dtype: stn.arrays(dtype, stn.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def answered(outputs: list[dict[str, Any]], *blobs: bytes) -> tuple[bytes, int]:
    head = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    return head + b"".join(blobs), len(head)


def one(datatype: str, shape: list[int], blob: bytes, **more: Any) -> tuple[bytes, int]:
    entry = {"name": "y", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(blob)}}
    return answered([entry | more], blob)


def turned(array: NDArray[Any], datatypes: Mapping[str, str] | None = None) -> tuple[bytes, int]:
    """What a server that echoes would answer to a request for ``array``."""
    message = encode_request({"y": array}, datatypes=datatypes)
    assert message.header_bytes is not None
    head = json.loads(message.body[: message.header_bytes])
    return answered(head["inputs"], message.body[message.header_bytes :])


@given(ARRAYS)
@settings(deadline=None)
def test_an_array_of_any_type_comes_back_as_it_went(array: NDArray[Any]) -> None:
    found = decode_response(*turned(array), "s")["y"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


@given(st.lists(st.binary(max_size=20) | st.text(max_size=5), max_size=6))
@settings(deadline=None)
def test_bytes_and_text_come_back_as_bytes(items: list[bytes | str]) -> None:
    array = np.empty(len(items), object)
    array[:] = items
    found = decode_response(*turned(array), "s")["y"]
    assert list(found) == [i.encode() if isinstance(i, str) else i for i in items]


def test_bf16_is_rounded_to_nearest_even_as_torch_does() -> None:
    import torch

    values = np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    values[:4] = (np.inf, -np.inf, 0.0, 3.4e38)
    found = decode_response(*turned(values, {"y": "BF16"}), "s")["y"]
    np.testing.assert_array_equal(found, torch.from_numpy(values).bfloat16().float().numpy())
    assert np.isnan(decode_response(*turned(np.array([np.nan], np.float32), {"y": "BF16"}), "s")["y"]).all()


def test_what_the_protocol_can_t_say_is_refused_before_it_is_sent() -> None:
    with pytest.raises(BadInput, match="no name for 'complex64'"):
        encode_request({"x": np.zeros(2, np.complex64)})
    with pytest.raises(BadInput, match="FP16 has no form in JSON"):
        encode_request({"x": np.zeros(2, np.float16)}, binary=False)
    with pytest.raises(BadInput, match="NaN and infinity"):
        encode_request({"x": np.array([np.nan])}, binary=False)
    with pytest.raises(BadInput, match="neither bytes nor text"):
        encode_request({"x": np.array([1, None], object)})


# ---------------------------------------------------------------- a foreign codec


@pytest.mark.parametrize("dtype", [*NUMERIC, *FLOATS, "object"])
def test_nvidia_s_client_writes_the_same_tensors_and_reads_ours(dtype: str) -> None:
    import tritonclient.http as theirs
    from tritonclient.utils import np_to_triton_dtype

    array = np.array([[b"one", b"\xff\x00"]], object) if dtype == "object" else np.ones((2, 3), dtype)
    given_input = theirs.InferInput("y", list(array.shape), np_to_triton_dtype(array.dtype))
    given_input.set_data_from_numpy(array)
    body, size = theirs.InferenceServerClient.generate_request_body([given_input])
    ours = encode_request({"y": array})
    assert ours.header_bytes is not None
    assert ours.body[ours.header_bytes :] == body[size:]
    mine, its = (json.loads(b[:n])["inputs"] for b, n in ((ours.body, ours.header_bytes), (body, size)))
    assert mine == its
    answer, length = turned(array)
    read = theirs.InferenceServerClient.parse_response_body(answer, header_length=length).as_numpy("y")
    np.testing.assert_array_equal(read, decode_response(answer, length, "s")["y"])
    np.testing.assert_array_equal(read, array)


# ---------------------------------------------------------------- JSON tensors


def test_json_tensors_may_be_flat_or_nested() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        body, _ = answered([{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": data}])
        found = decode_response(body, None, "s")["y"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, [[1, 2], [3, 4]])


@pytest.mark.parametrize(
    ("datatype", "data", "why"),
    [
        ("FP32", [1, 2, 3], "3 values"),
        ("FP32", [[1, 2], 3, 4], "nested unevenly"),
        ("FP32", [1, 2, 3, "4"], "no FP32"),
        ("FP32", [1, 2, 3, None], "no FP32"),
        ("UINT8", [1, 2, 3, 256], "too large"),
        ("UINT8", [1, 2, 3, -1], "too large"),
        ("INT32", [1, 2, 3, 4.5], "no INT32"),
        ("INT64", [1, 2, 3, True], "no INT64"),
        ("BOOL", [1, 0, 1, 0], "no BOOL"),
        ("FP16", [1, 2, 3, 4], "no form"),
        ("FP32", {"a": 1}, "no data"),
        ("FP32", None, "no data"),
    ],
)
def test_a_json_tensor_that_is_not_what_it_says_is_refused(datatype: str, data: Any, why: str) -> None:
    body, _ = answered([{"name": "y", "datatype": datatype, "shape": [2, 2], "data": data}])
    with pytest.raises(ServerFault, match=why) as caught:
        decode_response(body, None, "s")
    assert caught.value.kind == "answer"


# ---------------------------------------------------------------- broken answers

FOUR = np.arange(4, dtype=np.float32)
WANTED = (TensorSpec(name="y", dtype="float32", shape=(1, "n")),)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (one("FP32", [5], FOUR.tobytes()), "its shape needs 20"),
        (one("FP32", [-1, 4], FOUR.tobytes()), "no sound shape"),
        (one("FP32", [1] * 20, FOUR[:1].tobytes()), "no sound shape"),
        (one("FP32", [2**62, 2**62], b""), "its shape needs"),
        (one("FP99", [4], FOUR.tobytes()), "unknown type"),
        (one("FP32", [4], FOUR.tobytes(), data=[1, 2, 3, 4]), "both"),
        (one("FP32", [4], FOUR.tobytes(), parameters={"binary_data_size": 99}), "instead of 99"),
        (one("FP32", [4], FOUR.tobytes(), parameters={"binary_data_size": -1}), "instead of -1"),
        (one("FP32", [4], FOUR.tobytes() + b"x", parameters={"binary_data_size": 16}), "follow"),
        (one("BYTES", [2], b"\x02\x00\x00\x00ab\xff\xff\xff\xff"), "past its end"),
        (one("BYTES", [2**40], b"\x00\x00\x00\x00"), "for 1099511627776 items"),
        (one("BYTES", [1], b"\x01\x00\x00\x00ab"), "after its last"),
        ((b"\x00\x01\x02", 3), "not the protocol's"),
        ((b"{}", 2), "not the protocol's"),
        ((b"[" * 5000, 5000), "not the protocol's"),
        ((b"{}", 3), "in a body of 2 bytes"),
        ((b"{}", 0), "in a body of 2 bytes"),
    ],
)
def test_an_answer_that_breaks_the_protocol_is_refused(answer: tuple[bytes, int], why: str) -> None:
    with pytest.raises(ServerFault, match=why) as caught:
        decode_response(*answer, "s")
    assert caught.value.kind == "answer"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (one("FP32", [4], FOUR.tobytes()), "output 'y' is 4, the model gives 1xn"),
        (one("FP32", [2, 2], FOUR.tobytes()), "2x2"),
        (one("INT32", [1, 4], FOUR.tobytes()), "int32"),
        (one("FP32", [1, 4], np.full(4, np.nan, np.float32).tobytes()), "NaN"),
        (answered([]), "none"),
        (answered([{"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}]), "z"),
        (answered([{"name": "y", "datatype": "FP32", "shape": [1], "data": [1]}] * 2), "twice"),
    ],
)
def test_an_answer_that_is_not_what_the_model_promises_is_refused(
    answer: tuple[bytes, int], why: str
) -> None:
    with pytest.raises(ServerFault, match=why):
        decode_response(*answer, "s", WANTED)


@given(st.binary(max_size=200), st.none() | st.integers(-5, 300))
@settings(deadline=None, max_examples=300)
def test_no_bytes_raise_anything_but_a_fault(body: bytes, length: int | None) -> None:
    with pytest.raises(ServerFault):
        decode_response(body, length, "s", WANTED)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_sound_answer_with_a_few_bytes_changed_is_an_answer_or_a_fault(data: st.DataObject) -> None:
    body, length = one("FP32", [1, 4], FOUR.tobytes())
    broken = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ServerFault):
        assert decode_response(bytes(broken), length, "s", WANTED)["y"].shape == (1, 4)


def test_metadata_of_server_and_model() -> None:
    assert decode_server(b'{"name":"t","version":"1","extensions":["binary_tensor_data"]}', "s").binary
    assert not decode_server(b'{"name":"t"}', "s").binary
    told = {"name": "x", "datatype": "BF16", "shape": [-1, 3]}
    body = json.dumps({"name": "m", "platform": "p", "versions": ["1"], "inputs": [told], "outputs": []})
    model = decode_model(body.encode(), "s")
    assert model.inputs == (TensorSpec(name="x", dtype="float32", shape=("axis0", 3)),)
    assert model.datatypes == {"x": "BF16"}
    with pytest.raises(ServerFault, match="not the protocol's"):
        decode_model(b'{"name": 3}', "s")


def test_what_a_server_complains_of_is_told_on_one_clean_line() -> None:
    assert error_text(b'{"error":"no\\nsuch\\u001b[31m model"}') == "no such [31m model"
    assert len(error_text(json.dumps({"error": "x" * 10**5}).encode())) == 200
    assert error_text(b"<html>") == ""
