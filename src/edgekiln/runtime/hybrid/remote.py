"""A model on a server: is it ready, what does it take and give, and its answer to one request."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from edgekiln.errors import BadInput, ServerFault
from edgekiln.records import Signature, TensorSpec
from edgekiln.runtime.hybrid.client import Client, Exchange, Response
from edgekiln.runtime.hybrid.protocol import (
    ModelMetadata,
    ServerMetadata,
    decode_model,
    decode_response,
    decode_server,
    encode_request,
)

Outputs = dict[str, NDArray[Any]]
COMPRESSION_LEVEL = 1
_DOING = "connecting to the model"
SERVE = "Serve the model that this bundle was made for"


@dataclass(frozen=True, slots=True)
class Pending:
    """An inference on its way. ``result`` decodes the response: call it once ``future`` is done."""

    exchange: Exchange
    decode: Callable[[Response], Outputs]

    @property
    def future(self) -> Future[Response]:
        return self.exchange.future

    def result(self) -> tuple[Outputs, Response]:
        """The outputs, checked, at the call's limit at the latest. Raises ServerFault."""
        response = self.exchange.wait()
        return self.decode(response), response

    def cancel(self) -> None:
        self.exchange.cancel()


@dataclass(frozen=True)
class RemoteModel:
    """``name`` at the server that ``client`` calls. ``outputs`` are what it has to give, empty: anything.

    ``binary`` False sends JSON tensors. ``datatypes`` names the protocol's type of tensors whose NumPy dtype
    does not say it (BF16). ``compress`` deflates request bodies (Content-Encoding: deflate, which Triton
    takes); it pays for features and for nothing that is compressed already.
    """

    client: Client
    name: str
    outputs: tuple[TensorSpec, ...] = ()
    version: str = ""
    binary: bool = True
    datatypes: Mapping[str, str] | None = None
    compress: bool = False

    @property
    def path(self) -> str:
        version = f"/versions/{quote(self.version, safe='')}" if self.version else ""
        return f"/v2/models/{quote(self.name, safe='')}{version}"

    def start(self, inputs: Mapping[str, NDArray[Any]], limit_s: float) -> Pending:
        """Send ``inputs``; never waits. Raises ServerFault ``busy``, BadInput for what can't be sent."""
        wanted = [spec.name for spec in self.outputs]
        message = encode_request(inputs, wanted, binary=self.binary, datatypes=self.datatypes)
        headers, body = message.headers, message.body
        if self.compress:
            body = zlib.compress(body, COMPRESSION_LEVEL)
            headers["Content-Encoding"] = "deflate"
        exchange = self.client.start("POST", f"{self.path}/infer", limit_s, headers, body)
        return Pending(exchange, self._decode)

    def infer(self, inputs: Mapping[str, NDArray[Any]], limit_s: float) -> Outputs:
        """The answer to ``inputs`` within ``limit_s`` seconds. Raises ServerFault, BadInput."""
        return self.start(inputs, limit_s).result()[0]

    def _decode(self, response: Response) -> Outputs:
        url = self.client.server.url
        return decode_response(response.body, response.header_bytes, url, self.outputs)


def ready(client: Client, model: str = "", limit_s: float = 2.0) -> bool:
    """Whether the server, or one of its models, says that it is ready. False where it can't be reached."""
    path = f"/v2/models/{quote(model, safe='')}/ready" if model else "/v2/health/ready"
    try:
        client.start("GET", path, limit_s).wait()
    except ServerFault:
        return False
    return True


def server_metadata(client: Client, limit_s: float = 2.0) -> ServerMetadata:
    """What server it is and whether it takes tensors as bytes. Raises ServerFault."""
    return decode_server(client.start("GET", "/v2", limit_s).wait().body, client.server.url)


def model_metadata(client: Client, model: str, limit_s: float = 2.0) -> ModelMetadata:
    """What the server says of ``model``. Raises ServerFault."""
    answer = client.start("GET", f"/v2/models/{quote(model, safe='')}", limit_s).wait()
    return decode_model(answer.body, client.server.url)


def connect(
    client: Client,
    model: str,
    signature: Signature,
    limit_s: float = 5.0,
    *,
    compress: bool = False,
    cure: str = SERVE,
) -> RemoteModel:
    """``model`` as a RemoteModel, once its server has said that it takes and gives what ``signature`` says.

    Axes that either side leaves open fit; a leading batch axis has to be in ``signature``. Raises
    ServerFault where the server can't be asked, BadInput where the model is another (with ``cure``), or
    takes coded pictures and its server no bytes.
    """
    until_s = time.monotonic() + limit_s
    server = server_metadata(client, limit_s)
    told = model_metadata(client, model, max(0.0, until_s - time.monotonic()))
    _compare("input", signature.inputs, told.inputs, model, cure)
    _compare("output", signature.outputs, told.outputs, model, cure)
    if not server.binary and any(spec.dtype == "object" for spec in signature.inputs):
        why = "its server takes no binary tensors, and a coded picture has no other form"
        raise BadInput(_DOING, model, why, "Use a server with the extension binary_tensor_data")
    return RemoteModel(
        client,
        model,
        outputs=signature.outputs,
        binary=server.binary,
        datatypes={name: kind for name, kind in told.datatypes.items() if kind == "BF16"},
        compress=compress,
    )


def _compare(
    side: str, ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec], model: str, cure: str
) -> None:
    known = {spec.name: spec for spec in theirs}
    for spec in ours:
        other = known.get(spec.name)
        if other is None:
            why = f"it has no {side} '{spec.name}'"
            raise BadInput(_DOING, model, why, cure)
        fits = len(spec.shape) == len(other.shape) and all(
            isinstance(a, str) or isinstance(b, str) or a == b
            for a, b in zip(spec.shape, other.shape, strict=True)
        )
        if not fits or np.dtype(spec.dtype) != np.dtype(other.dtype):
            mine, its = (f"{s.dtype} {'x'.join(map(str, s.shape))}" for s in (spec, other))
            raise BadInput(_DOING, model, f"its {side} '{spec.name}' is {its}, here it is {mine}", cure)
