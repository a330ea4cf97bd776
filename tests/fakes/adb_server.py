"""A whole adb server with one Android device behind it, on loopback, for a real client.

It speaks the host protocol (version, devices, transport, features), ``shell:``, ``shell,v2`` and ``sync:``
(SEND, RECV, STAT, QUIT), and executes what it is told for real. The device's /data/local/tmp is the folder
``data``: that path becomes it in sync requests and command lines.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

SERIAL = "emulator-5554"
THERMAL = """IsStatusOverride: false
Thermal Status: 0
Cached temperatures:
\tTemperature{mValue=99.0, mType=0, mName=CPU, mStatus=0}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{mValue=41.5, mType=0, mName=CPU, mStatus=0}
\tTemperature{mValue=33.0, mType=3, mName=skin, mStatus=0}
Current cooling devices from HAL:
"""
BATTERY = """Current Battery Service state:
  AC powered: false
  USB powered: true
  level: 80
  scale: 100
  voltage: 4100
  temperature: 295
"""


class AdbServer:
    """``state`` is what ``adb devices`` says of the device; ``features`` without shell_v2 is an old one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "storage"
        self.data.mkdir(parents=True)
        (root / "bin").mkdir()
        self.state = "device"
        self.features = "shell_v2,cmd,stat_v2"
        self.room_bytes: int | None = None
        self.drop_when = ""
        self.commands: list[str] = []
        self.dumpsys(THERMAL, BATTERY)
        self.program("getprop", 'case $1 in ro.product.model) echo "Pixel Imaginary" ;; esac')
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = True
        threading.Thread(target=self._serve, daemon=True).start()

    def program(self, name: str, script: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def dumpsys(self, thermal: str, battery: str) -> None:
        words = f"thermalservice) printf '%s' '{thermal}' ;; *) printf '%s' '{battery}'"
        self.program("dumpsys", f"case $1 in {words} ;; esac")

    def left_behind(self) -> list[str]:
        return sorted(str(p.relative_to(self.data)) for p in self.data.rglob("*"))

    def processes(self) -> list[int]:
        """What was started for a measurement and is still there."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.data).encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def stop(self) -> None:
        self._open = False
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    # ------------------------------------------------------------ the host protocol

    def _serve(self) -> None:
        while self._open:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._client, args=(connection,), daemon=True).start()

    def _client(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ConnectionError, ValueError):
            while (request := _request(connection)) is not None:
                if not self._answer(connection, request):
                    return

    def _answer(self, connection: socket.socket, request: str) -> bool:
        """Whether the connection goes on after this request."""
        known = request.endswith(SERIAL) or f"host-serial:{SERIAL}:" in request
        if request == "host:version":
            connection.sendall(b"OKAY" + _block("0029"))
        elif request == "host:devices":
            listed = f"{SERIAL}\t{self.state}\n" if self.state else ""
            connection.sendall(b"OKAY" + _block(listed))
        elif request.endswith(":features") and known and self.state == "device":
            connection.sendall(b"OKAY" + _block(self.features))
        elif (
            request.startswith(("host:tport:serial:", "host:transport:")) and known and self.state == "device"
        ):
            connection.sendall(b"OKAY" + (b"\1\0\0\0\0\0\0\0" if ":tport:" in request else b""))
            return True
        elif request.startswith(("shell:", "shell,v2")):
            self._shell(connection, request)
        elif request == "sync:":
            connection.sendall(b"OKAY")
            self._sync(connection)
        else:
            connection.sendall(b"FAIL" + _block(f"device '{SERIAL}' not found"))
        return False

    # ------------------------------------------------------------ the device's shell

    def _shell(self, connection: socket.socket, request: str) -> None:
        service, _, line = request.partition(":")
        self.commands.append(line)
        connection.sendall(b"OKAY")
        if self.drop_when and self.drop_when in line:
            self.drop_when = ""
            return
        packets = "v2" in service
        child = subprocess.Popen(
            ["/bin/sh", "-c", line.replace("/data/local/tmp", str(self.data))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if packets else subprocess.STDOUT,
            env={"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}", "HOME": "/"},
            start_new_session=True,
        )
        try:
            self._pass_on(connection, child, packets)
            if packets:
                connection.sendall(struct.pack("<BIB", 3, 1, child.wait() & 0xFF))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGHUP)
            child.wait()

    @staticmethod
    def _pass_on(connection: socket.socket, child: subprocess.Popen[bytes], packets: bool) -> None:
        streams = {s: kind for s, kind in ((child.stdout, 1), (child.stderr, 2)) if s is not None}
        while streams:
            ready, _, _ = select.select(list(streams), [], [])
            for stream in ready:
                piece = os.read(stream.fileno(), 4096)
                if not piece:
                    stream.close()
                    del streams[stream]
                elif packets:
                    connection.sendall(struct.pack("<BI", streams[stream], len(piece)) + piece)
                else:
                    connection.sendall(piece.replace(b"\n", b"\r\n"))  # an old device's terminal

    # ------------------------------------------------------------ the device's files

    def _moved(self, path: str) -> Path:
        return (
            Path(path.replace("/data/local/tmp", str(self.data))) if "/data/local/tmp" in path else Path(path)
        )

    def _sync(self, connection: socket.socket) -> None:
        while len(head := _exactly(connection, 8)) == 8:
            kind, size = head[:4], int.from_bytes(head[4:], "little")
            path = _exactly(connection, size).decode() if kind != b"QUIT" else ""
            if kind == b"STAT":
                found = self._moved(path)
                told = found.stat() if found.exists() else None
                numbers = (told.st_mode, told.st_size, int(told.st_mtime)) if told else (0, 0, 0)
                connection.sendall(b"STAT" + struct.pack("<III", *numbers))
            elif kind == b"SEND":
                self._receive(connection, path)
            elif kind == b"RECV":
                data = self._moved(path).read_bytes()
                connection.sendall(b"DATA" + struct.pack("<I", len(data)) + data + b"DONE\0\0\0\0")
            else:
                return

    def _receive(self, connection: socket.socket, path: str) -> None:
        name, _, mode = path.rpartition(",")
        data = bytearray()
        while (head := _exactly(connection, 8))[:4] == b"DATA":
            data += _exactly(connection, int.from_bytes(head[4:], "little"))
        if self.room_bytes is not None and len(data) > self.room_bytes:
            why = b"couldn't write: No space left on device"
            connection.sendall(b"FAIL" + struct.pack("<I", len(why)) + why)
            return
        target = self._moved(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        target.chmod(int(mode) & 0o777)
        connection.sendall(b"OKAY\0\0\0\0")


def _request(connection: socket.socket) -> str | None:
    size = _exactly(connection, 4)
    return _exactly(connection, int(size, 16)).decode() if len(size) == 4 else None


def _exactly(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (piece := connection.recv(size - len(found))):
        found += piece
    return found


def _block(text: str) -> bytes:
    return f"{len(text.encode()):04x}".encode() + text.encode()


@contextlib.contextmanager
def server(root: Path) -> Iterator[AdbServer]:
    made = AdbServer(root)
    try:
        yield made
    finally:
        made.stop()
