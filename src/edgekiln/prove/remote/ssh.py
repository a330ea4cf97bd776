"""A Linux device over the system's own OpenSSH, with the user's own keys, agent and configuration.

One master connection is kept (ControlMaster, in a private folder) and every command goes through it.
Nothing is ever asked for: BatchMode refuses passwords and unknown hosts alike. A configuration that switches
the check of host keys off is overruled.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from edgekiln.errors import DeviceFault, MachineFault
from edgekiln.files import sha256_file
from edgekiln.prove.remote.address import SshAddress
from edgekiln.prove.remote.link import (
    COMMAND_SECONDS,
    MAX_OUTPUT_BYTES,
    PUT_SCRIPT,
    PUT_SECONDS,
    Broken,
    Envelope,
    Ran,
)

CONFIG_VARIABLE = "EDGEKILN_SSH_CONFIG"
"""A file that ssh reads instead of the user's configuration (its option -F)."""
CONNECT_SECONDS = 20.0
ALIVE_SECONDS, ALIVE_TRIES = 5, 3
STDERR_BYTES = 64 << 10
LONGEST_FOLDER = 60
_DOING = "connecting to"
_FULL = ("No space left on device", "Disk quota exceeded", "File too large", "write error")


class SshLink:
    """``accept_new`` takes the key of a host that was never seen; one that changed is refused."""

    def __init__(self, address: SshAddress, *, accept_new: bool = False, config: Path | None = None) -> None:
        if shutil.which("ssh") is None:
            why = "there is no program ssh"
            raise MachineFault(_DOING, address, why, "On Debian run: apt-get install openssh-client")
        self._address, self._accept_new = address, accept_new
        given = os.environ.get(CONFIG_VARIABLE)
        self._config = config or (Path(given) if given else None)
        # a socket's path may hold some 100 characters, and TMPDIR may be long
        short = "/tmp" if len(tempfile.gettempdir()) > LONGEST_FOLDER else None
        self._folder = Path(tempfile.mkdtemp(prefix="edgekiln-", dir=short))
        self._master: subprocess.Popen[bytes] | None = None
        self._checking = ""

    # ------------------------------------------------------------ commands

    def run(
        self,
        command: Sequence[str],
        seconds: float = COMMAND_SECONDS,
        *,
        max_bytes: int = MAX_OUTPUT_BYTES,
        stdin: Path | None = None,
    ) -> Ran:
        """See ``Link.run``."""
        self._connect()
        envelope = Envelope(command)
        words = [*self._ssh("no"), "--", self._address.host, shlex.join(envelope.words)]
        with self._started(words, stdin) as (child, stderr):
            output, late = _output(child, seconds, max_bytes)
            said = _last(stderr)
        found = envelope.open(output)
        if found is None and len(output) > max_bytes:
            why = f"'{command[0]}' printed more than {max_bytes} bytes there"
            raise DeviceFault("running a command on", self._address, why, "Look at the device by hand")
        if found is None:
            raise Broken(f"no answer within {seconds:.0f} s" if late else said or "the connection was closed")
        return Ran(rc=found[0], stdout=found[1], stderr=said)

    def put(self, local: Path, remote: str, mode: int = 0o600) -> None:
        """See ``Link.put``. Raises DeviceFault where the device's disk is full."""
        words = ["sh", "-c", PUT_SCRIPT, "sh", remote, sha256_file(local), f"{mode:o}"]
        ran = self.run(words, seconds=PUT_SECONDS, stdin=local)
        if ran.rc == 0:
            return
        said = ran.stderr or f"the copy ended with status {ran.rc}"
        if any(words in said for words in _FULL):
            cure = "Free some space in the home folder of that user there, and measure again"
            raise DeviceFault("copying to", self._address, f"no space is left on its disk ({said})", cure)
        if ran.rc == 12:
            raise Broken("a file arrived damaged")
        cure = "Check that the user may write into the home folder there"
        raise DeviceFault("copying to", self._address, said, cure)

    def close(self) -> None:
        """End the master connection and remove its folder. Safe to call twice."""
        if self._master is not None:
            _end(self._master)
            self._master = None
        shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------ the master connection

    def _connect(self) -> None:
        """A living master. Raises Broken where nothing answers, DeviceFault where the login is refused."""
        if self._master is not None and self._master.poll() is None:
            return
        if self._master is not None:
            _end(self._master)
            self._master = None
        (self._folder / "socket").unlink(missing_ok=True)
        stderr = self._folder / "master"
        # `cat` ends when our end of its standard input closes, however we end
        envelope = Envelope(["cat"])
        words = [*self._ssh("yes"), "--", self._address.host, shlex.join(envelope.words)]
        with stderr.open("wb") as errors:
            master = _start(words, subprocess.PIPE, errors)
        self._master = master
        mark = envelope.words[4].encode()
        started, late = _output(master, CONNECT_SECONDS, STDERR_BYTES, until=b"<" + mark + b"<")
        if mark in started:
            return
        _end(master)
        self._master = None
        said = _tail(stderr)
        self._refuse(said)
        raise Broken("it does not answer" if late or not said else said)

    def _refuse(self, said: str) -> None:
        """Raises DeviceFault for what another attempt would meet as well."""
        host = self._address.host
        port = self._address.port
        known = f"[{host}]:{port}" if port not in {None, 22} else host
        by_hand = f"ssh {'' if port is None else f'-p {port} '}{self._login()}"
        if "HOST IDENTIFICATION HAS CHANGED" in said:
            why = "its host key changed: another machine answers, or the device was set up anew"
            cure = (
                f"If you know why, run: ssh-keygen -R '{known}', then connect once by hand ({by_hand}) and "
                "compare the fingerprint with the device's own"
            )
            raise DeviceFault(_DOING, self._address, why, cure)
        if "Host key verification failed" in said or "host key is known for" in said:
            why = "its host key is not known here, so that anyone could answer in its place"
            cure = (
                f"Connect once by hand ({by_hand}) and compare the fingerprint with the device's own, "
                "or give --accept-new-host-key"
            )
            raise DeviceFault(_DOING, self._address, why, cure)
        if "Permission denied" in said or "Too many authentication failures" in said:
            why = f"it refuses the login ({_line(said, 'denied') or _line(said, 'failures')})"
            cure = (
                f"Put your key there (ssh-copy-id {self._login()}) or add it to ssh-agent; passwords are "
                "never asked for"
            )
            raise DeviceFault(_DOING, self._address, why, cure)
        if "Could not resolve hostname" in said:
            cure = "Check the name, or give the address in numbers"
            raise DeviceFault(_DOING, self._address, "no such host is known", cure)
        if re.search(r"Bad configuration option|Can't open user config|terminating, \d+ bad", said):
            cure = "Mend the configuration of ssh that it names"
            raise DeviceFault(_DOING, self._address, said, cure)

    def _login(self) -> str:
        user = self._address.user
        return self._address.host if user is None else f"{user}@{self._address.host}"

    # ------------------------------------------------------------ the program

    def _ssh(self, master: str) -> list[str]:
        if not self._checking:
            self._checking = self._host_key_checking()
        options = {
            "BatchMode": "yes",
            "StrictHostKeyChecking": self._checking,
            "ConnectTimeout": str(int(CONNECT_SECONDS / 2)),
            "ServerAliveInterval": str(ALIVE_SECONDS),
            "ServerAliveCountMax": str(ALIVE_TRIES),
            "ControlMaster": master,
            "ControlPath": str(self._folder / "socket"),
            "ControlPersist": "no",
            "ClearAllForwardings": "yes",
            "ForwardAgent": "no",
            "ForwardX11": "no",
            "PermitLocalCommand": "no",
            "RequestTTY": "no",
            "EscapeChar": "none",
            "LogLevel": "ERROR",
        }
        return [*self._base(), *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]

    def _base(self) -> list[str]:
        words = ["ssh"]
        if self._config is not None:
            words += ["-F", str(self._config)]
        if self._address.port is not None:
            words += ["-p", str(self._address.port)]
        if self._address.user is not None:
            words += ["-l", self._address.user]
        return words

    def _host_key_checking(self) -> str:
        """``yes``, or ``accept-new`` where the user says so, here or in the configuration; never ``no``."""
        if self._accept_new:
            return "accept-new"
        words = [*self._base(), "-G", "--", self._address.host]
        with self._started(words, None) as (child, stderr):
            output, _ = _output(child, CONNECT_SECONDS, MAX_OUTPUT_BYTES)
            said = _last(stderr)
        self._refuse(said)
        asked = re.search(rb"^stricthostkeychecking (\S+)$", output, re.MULTILINE)
        return "accept-new" if asked and asked[1] == b"accept-new" else "yes"

    @contextlib.contextmanager
    def _started(
        self, words: Sequence[str], stdin: Path | None
    ) -> Iterator[tuple[subprocess.Popen[bytes], IO[bytes]]]:
        with contextlib.ExitStack() as stack:
            given = subprocess.DEVNULL if stdin is None else stack.enter_context(stdin.open("rb"))
            errors = stack.enter_context(tempfile.TemporaryFile(dir=self._folder))
            child = _start(words, given, errors)
            try:
                yield child, errors
            finally:
                _end(child)


# ---------------------------------------------------------------- processes


def _start(words: Sequence[str], stdin: int | IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """In a session of its own: Ctrl-C is for us, and we need the connection to tidy up."""
    try:
        return subprocess.Popen(
            list(words), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, bufsize=0, start_new_session=True
        )
    except OSError as error:
        why = error.strerror or str(error)
        raise MachineFault("starting", "ssh", why, "Free some memory or processes and try again") from error


def _output(
    child: subprocess.Popen[bytes], seconds: float, max_bytes: int, until: bytes | None = None
) -> tuple[bytes, bool]:
    """What the child prints up to its end, ``until`` or ``max_bytes``; and whether time ran out."""
    assert child.stdout is not None
    found, deadline = bytearray(), time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while len(found) <= max_bytes and (until is None or until not in found):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return bytes(found), True
            chunk = os.read(child.stdout.fileno(), 1 << 16)
            if not chunk:
                break
            found += chunk
    return bytes(found), False


def _end(child: subprocess.Popen[bytes]) -> None:
    """Close its pipes; it has a moment to end by itself, then its group is killed. It is reaped."""
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        child.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _last(stderr: IO[bytes]) -> str:
    stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - STDERR_BYTES))
    return stderr.read().decode(errors="replace").strip()


def _tail(path: Path) -> str:
    with path.open("rb") as opened:
        return _last(opened)


def _line(text: str, word: str) -> str:
    return next((line.strip() for line in text.splitlines() if word in line), "")
