"""An Android device through an adb server, spoken to by the library ``adbutils``.

The server is the user's own (``adb start-server``): none is started here, and none is stopped. It is looked
for where adb itself looks, ANDROID_ADB_SERVER_ADDRESS and ANDROID_ADB_SERVER_PORT.
"""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekiln.errors import BadInput, DeviceFault, MissingExtra
from edgekiln.files import sha256_file
from edgekiln.prove.remote.address import AdbAddress
from edgekiln.prove.remote.link import COMMAND_SECONDS, MAX_OUTPUT_BYTES, PUT_SECONDS, Broken, Envelope, Ran

DEFAULT_PORT = 5037
CONNECT_SECONDS = 3.0
_DOING = "connecting to"
_STDOUT, _STDERR, _EXIT = 1, 2, 3
_CHECK = """
export LC_ALL=C
sum=$(sha256sum < "$1.part") || exit 11
[ "${sum%% *}" = "$2" ] || { rm -f -- "$1.part"; exit 12; }
chmod "$3" "$1.part" && mv -f -- "$1.part" "$1"
"""
_CURES = {
    "unauthorized": "Unlock the device and allow this computer's key, then try again",
    "offline": "Unplug the device and plug it in again, or run: adb reconnect",
    "no permissions": "Give this user access to the USB device (udev rules), then run: adb kill-server",
}


class AdbLink:
    """One device of an adb server. Every command is a connection of its own to that server."""

    def __init__(self, address: AdbAddress) -> None:
        try:
            import adbutils
        except ImportError as error:
            raise MissingExtra(_DOING, address, "android") from error
        self._address = address
        self._host = os.environ.get("ANDROID_ADB_SERVER_ADDRESS", "127.0.0.1")
        self._port = _port(os.environ.get("ANDROID_ADB_SERVER_PORT", str(DEFAULT_PORT)))
        self._faults = (adbutils.AdbError, OSError, EOFError, ValueError)
        self._client: Any = adbutils.AdbClient(self._host, self._port, socket_timeout=PUT_SECONDS)
        self._features: set[str] = set()
        self._device: Any = None

    def run(
        self, command: Sequence[str], seconds: float = COMMAND_SECONDS, *, max_bytes: int = MAX_OUTPUT_BYTES
    ) -> Ran:
        """See ``Link.run``. A device that is too old to part standard error from output gives none."""
        envelope = Envelope(command)
        with self._faults_told():
            output, said = self._spoken(shlex.join(envelope.words), seconds, max_bytes)
        found = envelope.open(output.replace(b"\r\n", b"\n") if "shell_v2" not in self._features else output)
        if found is None and len(output) > max_bytes:
            why = f"'{command[0]}' printed more than {max_bytes} bytes there"
            raise DeviceFault("running a command on", self._address, why, "Look at the device by hand")
        if found is None:
            self._check_state()
            raise Broken("the connection was closed")
        return Ran(rc=found[0], stdout=found[1], stderr=said.decode(errors="replace").strip())

    def put(self, local: Path, remote: str, mode: int = 0o600) -> None:
        """See ``Link.put``. Raises DeviceFault where the device's storage is full."""
        with self._faults_told(local, remote):
            self._connected().sync.push(local, f"{remote}.part", mode)
        ran = self.run(["sh", "-c", _CHECK, "sh", remote, sha256_file(local), f"{mode:o}"])
        if ran.rc == 12:
            raise Broken("a file arrived damaged")
        if ran.rc != 0:
            why = ran.stderr or f"the check of the copy ended with status {ran.rc}"
            raise DeviceFault("copying to", self._address, why, "Look at the device by hand")

    def close(self) -> None:
        """Nothing stays open between two commands."""

    # ------------------------------------------------------------ the server and its devices

    def _connected(self) -> Any:
        if self._device is None:
            self._check_state()
            self._device = self._client.device(serial=self._address.serial)
            self._features = set(self._device.get_features().split(","))
        return self._device

    def _check_state(self) -> None:
        """Raises DeviceFault without a server or where the device does not want us, Broken without it."""
        try:
            socket.create_connection((self._host, self._port), CONNECT_SECONDS).close()
        except OSError as error:
            why = f"no adb server answers at {self._host}:{self._port} ({error.strerror or error})"
            raise DeviceFault(
                _DOING, self._address, why, "Run: adb start-server, then adb devices"
            ) from error
        try:
            states = {info.serial: info.state for info in self._client.list()}
        except self._faults as error:
            raise Broken(_sentence(error)) from error
        state = states.get(self._address.serial)
        if state == "device":
            return
        if state is None:
            self._device = None
            listed = ", ".join(sorted(states)[:8]) or "none"
            raise Broken(f"the adb server does not know it (it knows {listed})")
        cure = next((c for s, c in _CURES.items() if state.startswith(s)), "See what adb devices says of it")
        raise DeviceFault(_DOING, self._address, f"its state is '{state[:60]}'", cure)

    @contextmanager
    def _faults_told(self, local: Path | None = None, remote: str = "") -> Iterator[None]:
        """Whatever the library raises, as Broken, or as DeviceFault where the device's storage is full."""
        try:
            yield
        except self._faults as error:
            self._check_state()
            if local is not None:
                self._check_room(local, str(Path(remote).parent))
            raise Broken(_sentence(error)) from error

    def _check_room(self, local: Path, folder: str) -> None:
        ran = self.run(["df", "-k", folder])
        fields = ran.text.splitlines()[-1].split() if ran.rc == 0 and ran.text.strip() else []
        if len(fields) > 3 and fields[3].isdecimal() and int(fields[3]) * 1024 <= local.stat().st_size:
            why = f"no space is left on its storage ({int(fields[3])} kB free)"
            raise DeviceFault("copying to", self._address, why, "Free some space there, and measure again")

    # ------------------------------------------------------------ the shell services

    def _spoken(self, line: str, seconds: float, max_bytes: int) -> tuple[bytes, bytes]:
        """What a command line prints, and its standard error where the device's shell tells them apart."""
        device = self._connected()
        newer = "shell_v2" in self._features
        connection = device.open_transport(timeout=seconds)
        try:
            connection.send_command(f"shell,v2,raw:{line}" if newer else f"shell:{line}")
            connection.check_okay()
            reader = _Reader(connection.conn, time.monotonic() + seconds, max_bytes)
            return reader.packets() if newer else (reader.rest(), b"")
        finally:
            connection.close()


class _Reader:
    """Bytes of a socket up to a moment and a size."""

    def __init__(self, connection: socket.socket, deadline: float, max_bytes: int) -> None:
        self._socket, self._deadline, self._most = connection, deadline, max_bytes

    def rest(self) -> bytes:
        found = bytearray()
        while len(found) <= self._most and (piece := self._piece(1 << 16)):
            found += piece
        return bytes(found)

    def packets(self) -> tuple[bytes, bytes]:
        """The protocol of shell_v2: a kind, a length of 4 bytes, the data; until the exit status."""
        found = {_STDOUT: bytearray(), _STDERR: bytearray()}
        while sum(map(len, found.values())) <= self._most:
            head = self._exactly(5)
            if len(head) < 5 or head[0] == _EXIT:
                break
            data = self._exactly(int.from_bytes(head[1:], "little"))
            if head[0] in found:
                found[head[0]] += data
        return bytes(found[_STDOUT]), bytes(found[_STDERR])

    def _exactly(self, size: int) -> bytes:
        found = bytearray()
        while len(found) < min(size, self._most + 1) and (piece := self._piece(size - len(found))):
            found += piece
        return bytes(found)

    def _piece(self, size: int) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(left)
        return self._socket.recv(min(size, 1 << 16))


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise BadInput(
            "reading", "ANDROID_ADB_SERVER_PORT", f"'{text[:20]}' is no port", "Unset it, or mend it"
        )
    return int(text)


def _sentence(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__
