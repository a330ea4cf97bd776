"""Calls that end in time, whatever the server does: real sockets, and nothing leaks."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgekiln.errors import BadInput, ServerFault
from edgekiln.records import Signature, TensorSpec
from edgekiln.runtime.hybrid.client import Client, Server
from edgekiln.runtime.hybrid.remote import RemoteModel, connect, model_metadata, ready, server_metadata
from fakes.serving import (
    ChaosProxy,
    Condition,
    ModelServer,
    certificate,
    chaos_proxy,
    misbehaving,
    read_request,
    response,
    served,
    serving,
)

LIMIT_S = 0.4
SLACK_S = 3.0  # this machine may be busy; a call without a limit would take for ever
SHAPE = (1, 3, 32, 32)
X = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@pytest.fixture(scope="module")
def server(net: Path) -> Iterator[ModelServer]:
    with serving({"net": served(net)}) as running:
        yield running


@contextlib.contextmanager
def calling(url: str, **more: object) -> Iterator[Client]:
    client = Client(Server(url=url, **more))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        client.close()


def address(server: ModelServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def fault_of(url: str, limit_s: float = LIMIT_S, **more: object) -> ServerFault:
    """What a call to ``url`` raises; it has to be in time."""
    with calling(url, **more) as client:
        started_s = time.monotonic()
        with pytest.raises(ServerFault) as caught:
            RemoteModel(client, "net").infer({"image": X}, limit_s)
        assert time.monotonic() - started_s < limit_s + SLACK_S
    return caught.value


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("edgekiln-")]


# ---------------------------------------------------------------- a sound server


def test_what_the_server_answers_is_what_the_model_gives(server: ModelServer, net: Path) -> None:
    session = served(net).session
    name = session.get_inputs()[0].name
    wanted = session.run(None, {name: X})[0]
    with calling(address(server)) as client:
        assert ready(client)
        assert ready(client, "net")
        assert not ready(client, "other")
        assert server_metadata(client).binary
        told = model_metadata(client, "net")
        assert told.inputs == (TensorSpec(name=name, dtype="float32", shape=SHAPE),)
        model = connect(client, "net", Signature(inputs=told.inputs, outputs=told.outputs))
        for compress in (False, True):
            found = RemoteModel(client, "net", model.outputs, compress=compress).infer({name: X}, 10.0)
            np.testing.assert_array_equal(found[told.outputs[0].name], wanted)
        other = Signature(inputs=(TensorSpec(name="else", dtype="uint8", shape=(1,)),), outputs=())
        with pytest.raises(BadInput, match="no input 'else'"):
            connect(client, "net", other)


def test_a_server_without_binary_tensors_is_spoken_to_in_json(net: Path) -> None:
    with serving({"net": served(net)}, binary=False) as running, calling(address(running)) as client:
        told = model_metadata(client, "net")
        model = connect(client, "net", Signature(inputs=told.inputs, outputs=told.outputs))
        assert not model.binary
        found = model.infer({told.inputs[0].name: X}, 10.0)[told.outputs[0].name]
    wanted = served(net).run({told.inputs[0].name: X})[told.outputs[0].name]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_nvidia_s_client_and_ours_get_the_same_from_the_server(server: ModelServer) -> None:
    import tritonclient.http as theirs

    with calling(address(server)) as client:
        told = model_metadata(client, "net")
        ours = RemoteModel(client, "net").infer({told.inputs[0].name: X}, 10.0)
    foreign = theirs.InferenceServerClient(f"127.0.0.1:{server.server_address[1]}")
    try:
        assert foreign.is_server_ready()
        assert foreign.get_model_metadata("net")["outputs"][0]["name"] in ours
        given = theirs.InferInput(told.inputs[0].name, list(SHAPE), "FP32")
        given.set_data_from_numpy(X)
        answer = foreign.infer("net", [given], request_compression_algorithm="deflate")
        for name, value in ours.items():
            np.testing.assert_array_equal(answer.as_numpy(name), value)
    finally:
        foreign.close()


def test_one_connection_serves_call_after_call_and_a_closed_one_is_replaced(server: ModelServer) -> None:
    with chaos_proxy(("127.0.0.1", server.server_address[1])) as proxy, calling(proxy.url) as client:
        name = model_metadata(client, "net").inputs[0].name
        model = RemoteModel(client, "net")
        for _ in range(20):
            model.infer({name: X}, 10.0)
        assert proxy.connections == 1
        proxy.set(Condition(fault="refuse"))
        proxy.set(Condition())
        model.infer({name: X}, 10.0)
        assert proxy.connections == 2


def test_a_call_on_a_kept_connection_that_the_server_closes_on_it_is_made_again() -> None:
    seen = []

    def serve(connection: socket.socket) -> None:
        seen.append(len(seen))
        while read_request(connection):
            connection.sendall(response(b'{"name":"x"}'))
            if len(seen) == 1:
                # The next request arrives, and finds the connection gone before any answer.
                read_request(connection)
                return

    with misbehaving(serve) as url, calling(url) as client:
        assert server_metadata(client).name == "x"
        assert server_metadata(client).name == "x"
        assert len(seen) == 2


# ---------------------------------------------------------------- servers that fail


def drip(connection: socket.socket) -> None:
    read_request(connection)
    for byte in response(b"x" * 10_000):
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def drip_body(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(response(b"", length=10_000, Connection="close"))
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def mute(connection: socket.socket) -> None:
    while connection.recv(1 << 16):
        pass


def answers(
    data: bytes, then: Callable[[socket.socket], None] | None = None
) -> Callable[[socket.socket], None]:
    def serve(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(data)
        if then:
            then(connection)

    return serve


@pytest.mark.parametrize("serve", [mute, drip, drip_body, answers(response(b"x" * 10, length=100), mute)])
def test_a_server_that_takes_for_ever_is_left_at_the_limit(serve: Callable[[socket.socket], None]) -> None:
    with misbehaving(serve) as url:
        assert fault_of(url).kind == "late"


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "kind", "why"),
    [
        (b"", "lost", "broke"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "lost", "broke"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "lost", "broke"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "lost", "headers"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000, "lost", "line"),
        (response(b"x" * 10, length=100), "lost", "IncompleteRead"),
        (response(b"x", length=10**12), "too-large", "1000000000000 bytes"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 200_000, "too-large", "more than 100000"),
        (CHUNKED + (b"10000\r\n" + b"x" * 65536 + b"\r\n") * 4, "too-large", "more than 100000"),
        (response(b"no json"), "answer", "JSON"),
        (response(b"{}", Inference_Header_Content_Length="-1"), "answer", "no number"),
        (response(b"{}", Inference_Header_Content_Length="9" * 30), "answer", "no number"),
        (response(b"{}", Inference_Header_Content_Length="77"), "answer", "77 in a body of 2"),
        (response(b"{}", Content_Encoding="gzip"), "answer", "compressed"),
        (response(b'{"error":"out of memory"}', "500 No"), "status", "out of memory"),
        (response(b"", "429 Slow", Retry_After="7"), "status", "429"),
        (response(b"", "302 Found", Location="http://127.0.0.1:1/"), "status", "302"),
        (response(b"", "204 Empty"), "status", "204"),
    ],
)
def test_what_a_server_may_send_instead_of_an_answer(data: bytes, kind: str, why: str) -> None:
    with misbehaving(answers(data)) as url:
        found = fault_of(url, 5.0, most_response_bytes=100_000)
    assert (found.kind, why in found.why) == (kind, True), found
    assert found.retry_after_s == (7.0 if "Retry-After" in data.decode("latin-1") else None)


def test_a_server_that_dies_in_the_middle_of_its_answer(server: ModelServer) -> None:
    with chaos_proxy(("127.0.0.1", server.server_address[1])) as proxy:
        proxy.set(Condition(fault="half-close", cut_after_bytes=60))
        assert fault_of(proxy.url, 5.0).kind == "lost"
        proxy.set(Condition(fault="reset"))
        assert fault_of(proxy.url, 5.0).kind == "lost"


def test_nobody_listens_or_the_name_is_not_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    refused = fault_of(f"http://127.0.0.1:{port}", 5.0)
    assert (refused.kind, refused.why) == ("unreachable", "Connection refused")
    unknown = fault_of("http://no-such-host.invalid:8000", 5.0)
    assert unknown.kind in ("unreachable", "late")


# ---------------------------------------------------------------- TLS


def test_over_tls_only_a_trusted_certificate_of_that_name_is_spoken_to(net: Path, tmp_path: Path) -> None:
    good, other = certificate(tmp_path, "localhost"), certificate(tmp_path, "example.org")
    with serving({"net": served(net)}, certificate=good) as running:
        url = f"https://localhost:{running.server_address[1]}"
        with calling(url, ca_file=str(good)) as client:
            name = model_metadata(client, "net", 10.0).inputs[0].name
            assert RemoteModel(client, "net").infer({name: X}, 10.0)
        assert fault_of(url, 5.0).kind == "tls", "not signed by an authority that the system knows"
        assert fault_of(url, 5.0, ca_file=str(other)).kind == "tls"
        calls = running.models["net"].calls
    with serving({"net": served(net)}, certificate=other) as running:
        url = f"https://localhost:{running.server_address[1]}"
        assert fault_of(url, 5.0, ca_file=str(other)).kind == "tls", "its name is another"
        assert running.models["net"].calls == 0
    assert calls == 1


def test_a_server_that_never_finishes_the_tls_handshake_is_left_at_the_limit() -> None:
    with misbehaving(mute) as url:
        assert fault_of(url.replace("http:", "https:")).kind == "late"


def test_a_plain_server_is_no_tls_server() -> None:
    def plain(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")

    with misbehaving(plain) as url:
        assert fault_of(url.replace("http:", "https:"), 5.0).kind == "tls"


# ---------------------------------------------------------------- proxies


def test_proxies_of_the_environment_are_not_used_and_a_named_one_is(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def forward(connection: socket.socket) -> None:
        seen.append(read_request(connection))
        connection.sendall(response(b'{"name":"through the proxy"}'))

    with misbehaving(forward) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy)
        with calling(address(server)) as client:
            assert server_metadata(client).name == "measuring"
        assert not seen
        with calling("http://far.invalid:8000/root", proxy=proxy) as client:
            assert server_metadata(client, 5.0).name == "through the proxy"
        assert seen[0].startswith(b"GET http://far.invalid:8000/root/v2 HTTP/1.1\r\n")
        with calling("https://far.invalid:8000", proxy=proxy) as client, pytest.raises(ServerFault):
            server_metadata(client, 5.0)
        assert seen[1].startswith(b"CONNECT far.invalid:8000 ")


# ---------------------------------------------------------------- bounds


def test_a_cancelled_call_ends_at_once_and_its_connection_is_not_used_again() -> None:
    gone = threading.Event()

    def serve(connection: socket.socket) -> None:
        mute(connection)
        gone.set()

    with misbehaving(serve) as url, calling(url) as client:
        exchange = client.start("GET", "/v2", 60.0)
        time.sleep(0.1)
        exchange.cancel()
        with pytest.raises(ServerFault) as caught:
            exchange.future.result(SLACK_S)
        assert caught.value.kind == "cancelled"
        assert gone.wait(SLACK_S), "the server sees that nobody waits"
        assert not client._idle


def test_more_calls_at_once_than_allowed_are_refused_at_once() -> None:
    with misbehaving(mute) as url, calling(url, most_calls=2) as client:
        under_way = [client.start("GET", "/v2", 30.0) for _ in range(2)]
        with pytest.raises(ServerFault) as caught:
            client.start("GET", "/v2", 30.0)
        assert caught.value.kind == "busy"
        for exchange in under_way:
            exchange.cancel()
            with pytest.raises(ServerFault):
                exchange.future.result(SLACK_S)
        client.start("GET", "/v2", 30.0)
        assert len([t for t in own_threads() if "offload" in t]) <= 2


def test_ten_thousand_calls_to_a_mute_server_leave_no_thread_and_no_file_behind() -> None:
    process = psutil.Process()
    with misbehaving(mute) as url:
        with calling(url) as client:
            files = process.num_fds()
            late = 0
            for _ in range(10_000):
                exchange = client.start("GET", "/v2", 0.001)
                with contextlib.suppress(ServerFault):
                    exchange.future.result(30.0)
                late += exchange.future.exception() is not None
            assert late == 10_000
            assert len(own_threads()) <= 5
            # The server closes its ends in threads of its own, which may lag a little.
            until_s = time.monotonic() + 10
            while process.num_fds() > files + 10 and time.monotonic() < until_s:
                time.sleep(0.05)
            assert process.num_fds() <= files + 10
        until_s = time.monotonic() + 10
        while own_threads() and time.monotonic() < until_s:
            time.sleep(0.05)
        assert own_threads() == []


@pytest.mark.parametrize(
    "given",
    [
        {"url": "ftp://host"},
        {"url": "host:8000"},
        {"url": "http://"},
        {"url": "http://host:99999"},
        {"url": "http://host?x=1"},
        {"url": "http://me:secret@host"},
        {"url": "http://host", "proxy": "socks5://host"},
        {"url": "http://host", "most_calls": 0},
        {"url": "https://host", "ca_file": "/no/such.pem"},
    ],
)
def test_a_server_that_can_t_be_meant_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Client(Server(**given))  # type: ignore[arg-type]


def test_tls_is_verified_by_default() -> None:
    with calling("https://host") as client:
        context = client._make().ssl_context
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname


def test_the_proxy_flaps_and_each_call_still_ends(server: ModelServer) -> None:
    def flap(proxy: ChaosProxy) -> None:
        bad = [Condition(fault=f) for f in ("refuse", "stall", "reset", "half-close")]
        proxy.play([(0.05, c) for b in bad for c in (Condition(), b)], again=True)

    with chaos_proxy(("127.0.0.1", server.server_address[1])) as proxy, calling(proxy.url) as client:
        name = model_metadata(client, "net").inputs[0].name
        model = RemoteModel(client, "net")
        flap(proxy)
        ends = {"ok": 0}
        until_s = time.monotonic() + 3
        while time.monotonic() < until_s:
            try:
                model.infer({name: X}, 0.2)
                ends["ok"] += 1
            except ServerFault as fault:
                ends[fault.kind] = ends.get(fault.kind, 0) + 1
        assert ends["ok"] > 0
        assert set(ends) <= {"ok", "late", "lost", "unreachable"}
        assert len(ends) > 1
        proxy.set(Condition())
        assert model.infer({name: X}, 10.0)
