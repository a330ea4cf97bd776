"""A real SSH server on loopback that executes real commands in a home folder of its own: a device.

It runs in a thread. ``drop()`` breaks every connection and hangs up what they run, as sshd does when a link
dies; what detached itself runs on. ``unplug()`` also stops listening.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

USER = "edge"
T = TypeVar("T")


class Device:
    """``home`` is where commands run; ``environment`` and ``file_bytes`` (RLIMIT_FSIZE) are theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (folder / "bin").mkdir()
        self.program("python3", f'exec "{sys.executable}" "$@"')
        self.environment: dict[str, str] = {}
        self.file_bytes: int | None = None
        self.commands: list[str] = []
        self.logins = 0
        self.on_command: Callable[[str], None] = lambda command: None
        self.noise = b""
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._children: set[asyncio.subprocess.Process] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener: asyncssh.SSHAcceptor | None = None
        self.port = 0
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.user_key = asyncssh.generate_private_key("ssh-ed25519")
        self.plug_in()
        self._write_client_files()

    # ------------------------------------------------------------ what a test does to it

    def program(self, name: str, script: str) -> None:
        """A program on the device's search path, before all others."""
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def plug_in(self) -> None:
        """Listen, on the same port as before."""
        self._listener = self._do(self._listen())
        self.port = self._listener.get_port()

    def drop(self) -> None:
        """Break every connection at once, without a word."""
        self._do(self._dropped())

    def when(self, word: str, act: Callable[[], object], times: int = 1) -> None:
        """``act`` in a thread of its own at the first ``times`` commands that hold ``word``."""
        left = times

        def look(command: str) -> None:
            nonlocal left
            if word in command and left > 0:
                left -= 1
                threading.Thread(target=act, daemon=True).start()

        self.on_command = look

    def left_behind(self) -> list[str]:
        """Files and folders of edgekiln's in the home folder, but for built engines."""
        found = (p.relative_to(self.home) for p in self.home.rglob("*"))
        return sorted(str(p) for p in found if "engines" not in p.parts and str(p) != ".cache")

    def runners(self) -> list[int]:
        """Processes at work for a measurement in this home folder."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.home).encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return found

    def unplug(self) -> None:
        """Vanish from the network; what runs detached goes on."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.drop()

    def change_host_key(self) -> None:
        self.host_key = asyncssh.generate_private_key("ssh-ed25519")
        self.unplug()
        self.plug_in()

    def stop(self) -> None:
        """Vanish, and end what is still at work for a connection."""
        self.unplug()
        self._do(self._ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()

    # ------------------------------------------------------------ the client's side

    @property
    def address(self) -> str:
        return f"ssh://{USER}@127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        return self.folder / "client" / "config"

    def _write_client_files(self) -> None:
        client = self.folder / "client"
        client.mkdir()
        key = client / "key"
        key.write_bytes(self.user_key.export_private_key())
        key.chmod(0o600)
        self.know_host()
        self.config.write_text(
            f"Host *\n  IdentityFile {key}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
            f"  UserKnownHostsFile {client / 'known_hosts'}\n  GlobalKnownHostsFile none\n"
        )

    def know_host(self) -> None:
        public = self.host_key.export_public_key().decode()
        (self.folder / "client" / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {public}")

    def forget_host(self) -> None:
        (self.folder / "client" / "known_hosts").write_text("")

    # ------------------------------------------------------------ the server's side

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _listen(self) -> asyncssh.SSHAcceptor:
        keys = asyncssh.import_authorized_keys(self.user_key.export_public_key().decode())
        return await asyncssh.create_server(
            lambda: _Server(self),
            "127.0.0.1",
            self.port,
            server_host_keys=[self.host_key],
            authorized_client_keys=keys,
            process_factory=self._execute,
            encoding=None,
            line_editor=False,
        )

    async def _dropped(self) -> None:
        for connection in list(self._connections):
            connection.abort()
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGHUP)
        await asyncio.sleep(0)

    async def _ended(self) -> None:
        for child in list(self._children):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child._transport.close()  # type: ignore[attr-defined]
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.05)

    async def _execute(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        command = process.command or ""
        self.commands.append(command)
        self.on_command(command)
        if self.noise:
            process.stdout.write(self.noise)
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        environment = {"HOME": str(self.home), "PATH": path, "LANG": "C.UTF-8", **self.environment}
        child = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.home,
            env=environment,
            start_new_session=True,
            preexec_fn=self._limit,
        )
        self._children.add(child)
        try:
            feeding = asyncio.ensure_future(_pump(process.stdin, child.stdin))
            await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
            if child.stdout is not None and not child.stdout.at_eof():  # nobody listens any more
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGHUP)
                # A pipe that is full and not read never ends, and wait() waits for its end too.
                child._transport.close()  # type: ignore[attr-defined]
            process.exit(max(await child.wait(), -1) % 256)
            feeding.cancel()
        except (asyncssh.Error, OSError):
            pass
        finally:
            self._children.discard(child)
            child._transport.close()  # type: ignore[attr-defined]

    def _limit(self) -> None:
        if self.file_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))


async def _pump(source: Any, sink: Any) -> None:
    """Bytes from one stream to another, and its end."""
    with contextlib.suppress(asyncssh.Error, OSError):
        while piece := await source.read(1 << 16):
            sink.write(piece)
            await sink.drain()
        if isinstance(sink, asyncio.StreamWriter):  # an SSH channel's end is that of stdout and stderr both
            sink.close()


class _Server(asyncssh.SSHServer):
    def __init__(self, device: Device) -> None:
        self._device = device

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._device._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._device._connections.discard(self._connection)

    def auth_completed(self) -> None:
        self._device.logins += 1

    def begin_auth(self, username: str) -> bool:
        return True


@contextlib.contextmanager
def device(folder: Path) -> Iterator[Device]:
    """A device that listens for as long as the block lasts."""
    made = Device(folder)
    try:
        yield made
    finally:
        made.stop()
