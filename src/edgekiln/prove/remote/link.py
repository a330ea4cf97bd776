"""The way to a device: run a command there, put a file there, take away what was put."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from edgekiln.records import Record

MAX_OUTPUT_BYTES = 16 << 20
COMMAND_SECONDS = 30.0
PUT_SECONDS = 900.0


class Broken(Exception):
    """The connection failed in the middle of something, which may be tried again. ``why`` is a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Ran(Record, frozen=True, kw_only=True):
    """What a command answered. ``rc`` is its exit status, 127 where there is no such program."""

    rc: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace")


class Link(Protocol):
    """All methods raise Broken where the connection fails, and DeviceFault where trying again won't help."""

    def run(
        self,
        command: Sequence[str],
        seconds: float = COMMAND_SECONDS,
        *,
        max_bytes: int = MAX_OUTPUT_BYTES,
    ) -> Ran:
        """Run ``command`` (a program and its arguments, never a line for a shell) and wait for it."""
        ...

    def put(self, local: Path, remote: str, mode: int = 0o600) -> None:
        """Copy a file; ``remote`` is absolute. It is there whole, with the same hash, or not at all."""
        ...

    def close(self) -> None: ...


# ---------------------------------------------------------------- a command in its envelope

# sshd and adbd hand a command to the user's shell. That shell sees one quoted word for each of ours, and what
# its start-up files print comes before the first mark. The last mark tells the exit status and that the
# output is whole; ssh's own status can't be told from the command's.
_ENVELOPE = 'mark=$1; shift; printf "<%s<" "$mark"; "$@"; rc=$?; printf ">%s %d>" "$mark" "$rc"'


class Envelope:
    """``command`` with a mark around its output that nobody else can have printed."""

    def __init__(self, command: Sequence[str]) -> None:
        self._mark = secrets.token_hex(12)
        self.words = ("sh", "-c", _ENVELOPE, "sh", self._mark, *command)

    def open(self, output: bytes) -> tuple[int, bytes] | None:
        """The exit status and what the command printed; None where the output is not whole."""
        mark = re.escape(self._mark.encode())
        found = re.search(b"<" + mark + b"<(.*)>" + mark + rb" (\d{1,3})>\s*\Z", output, re.DOTALL)
        return None if found is None else (int(found[2]), found[1])


PUT_SCRIPT = """
export LC_ALL=C
umask 077
cat > "$1.part" || exit 10
sum=$(sha256sum < "$1.part" 2>/dev/null) || sum=$(python3 -c '
import hashlib, sys
d = hashlib.sha256()
for b in iter(lambda: sys.stdin.buffer.read(1 << 20), b""):
    d.update(b)
print(d.hexdigest())' < "$1.part") || exit 11
[ "${sum%% *}" = "$2" ] || { rm -f -- "$1.part"; exit 12; }
chmod "$3" "$1.part" && mv -f -- "$1.part" "$1" || exit 13
"""
"""Arguments: file, SHA-256, mode. Takes the bytes from its standard input."""
