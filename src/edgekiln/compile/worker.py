"""Conversions in a process of their own: ``python -m edgekiln.compile.worker``.

Reads one order a line from stdin and answers each with one JSON line on stdout; whatever converters print
goes to stderr, whose last lines stand in the row of a conversion that did not end well.
"""

from __future__ import annotations

import errno
import traceback
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from edgekiln.compile.targets import TARGETS, Conversion
from edgekiln.errors import BadInput, EdgekilnError, MissingExtra
from edgekiln.prove.worker import attend
from edgekiln.records import Artifact, Record


class Convert(Record, frozen=True, kw_only=True, tag="convert"):
    """Convert ``order`` for ``target`` into the folder ``into``."""

    target: str
    order: Conversion
    into: str


class Converted(Record, frozen=True, kw_only=True, tag="converted"):
    artifact: Artifact


class NotConverted(Record, frozen=True, kw_only=True, tag="not-converted"):
    """The converter ended in an orderly way: what its error said. ``extra`` names a missing one."""

    kind: Literal["failed", "bad-input", "missing-extra", "machine"]
    doing: str
    to: str
    why: str
    cure: str
    extra: str = ""


Answer = Converted | NotConverted


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer each order until the end of input, which means that the parent is gone or done."""
    decoder = msgspec.json.Decoder(Convert)
    for line in requests:
        request = decoder.decode(line)
        answer: Answer
        try:
            artifact = TARGETS[request.target].convert(request.order, Path(request.into))
            answer = Converted(artifact=artifact)
        except Exception as error:
            answer = refusal(error, "converting for", request.target)
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


def refusal(error: Exception, doing: str, to: str) -> NotConverted:
    """The answer that stands for ``error``: its own words, or its type and text."""
    if isinstance(error, MissingExtra):
        kind, extra = "missing-extra", error.extra
    else:
        kind, extra = ("bad-input" if isinstance(error, BadInput) else "failed"), ""
    if isinstance(error, EdgekilnError):
        return msgspec.convert(
            {"kind": kind, "doing": error.doing, "to": error.to, "why": error.why, "cure": error.cure}
            | {"extra": extra, "type": "not-converted"},
            NotConverted,
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        why = f"the disk is full ({error})"
        return NotConverted(kind="machine", doing=doing, to=to, why=why, cure="Free some disk space")
    traceback.print_exc()  # to stderr: the whole of it is for a report, not for the row
    said = str(error).strip().splitlines()
    why = f"{type(error).__name__}: {' '.join(said[:3])}"[:500]
    cure = "This is a fault of the converter or of edgekiln: please report it with the model"
    return NotConverted(kind="failed", doing=doing, to=to, why=why, cure=cure)


def main() -> None:
    attend(serve)


if __name__ == "__main__":
    main()
