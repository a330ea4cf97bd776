"""A model server, a bad network before it, and servers that misbehave: all on real sockets.

The server and the network are the benchmark's (``benchmarks/measuring``).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

from measuring.chaos_proxy import ChaosProxy, Condition, chaos_proxy  # noqa: E402
from measuring.model_server import ModelServer, Served, served, serving  # noqa: E402

__all__ = [
    "ChaosProxy",
    "Condition",
    "ModelServer",
    "Served",
    "certificate",
    "chaos_proxy",
    "misbehaving",
    "read_request",
    "requests",
    "response",
    "served",
    "serving",
]


def read_request(connection: socket.socket) -> bytes:
    """The next request, head and body; empty where the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        got = connection.recv(1 << 16)
        if not got:
            return b""
        data += got
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    ]
    missing = (int(lengths[0]) if lengths else 0) - len(body)
    while missing > 0:
        got = connection.recv(1 << 16)
        if not got:
            return b""
        body += got
        missing -= len(got)
    return head + b"\r\n\r\n" + body


def response(body: bytes, status: str = "200 OK", length: int | None = None, **headers: str) -> bytes:
    """A response; ``length`` is the Content-Length that it claims where that is not the body's."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@contextlib.contextmanager
def misbehaving(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """The URL of a server that does ``serve`` with each connection, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    open_now: set[socket.socket] = set()

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            serve(connection)
        open_now.discard(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_now.add(connection)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in tuple(open_now):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def requests(stream: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The JSON and the binary part of each inference request, inflated."""
    while stream:
        head, _, rest = stream.partition(b"\r\n\r\n")
        fields = {
            k.strip().lower(): v.strip()
            for k, _, v in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        size = int(fields.get(b"content-length", 0))
        body, stream = rest[:size], rest[size:]
        assert len(body) == size
        if fields.get(b"content-encoding") == b"deflate":
            body = zlib.decompress(body)
        if body:
            length = int(fields[b"inference-header-content-length"])
            yield json.loads(body[:length]), body[length:]


def certificate(folder: Path, *names: str) -> Path:
    """A PEM with a new key and a certificate of its own for ``names``."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / f"{names[0]}.pem"
    no_password = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, no_password) + made.public_bytes(pem)
    )
    return path
