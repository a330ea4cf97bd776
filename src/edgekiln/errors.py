"""Every error this program raises on purpose.

    EdgekilnError                  exit code 2 unless it says otherwise
    ├── BadInput                   a model, image, job file, bundle or option that can't be used
    ├── MissingExtra               an optional dependency that this verb needs is not installed
    ├── NotRunnableHere            an artifact whose engine can't execute on this machine
    ├── ConversionFailed           a recipe or target refused the graph: a row in the report
    ├── MachineFault               disk full, worker process died: the machine's fault
    │   └── EngineFault            an engine crashed, hung, ran out of memory or lost its accelerator
    ├── DeviceFault                a device at the other end of a link: unreachable, refused, lost, full
    ├── Corrupt                    a file that is not, or no longer, what its record says
    ├── NoAnswer                   everything that could answer failed
    ├── DeadlineMissed             nothing answered in time
    └── ServerFault                a model server, or the way to it: unreachable, late, refused, wrong

An error says four things: what was being done, to what, why it failed, and the cure. The command
line prints them on separate lines and never shows a traceback unless ``--debug`` asks for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Literal, TypeAlias

EngineFaultKind: TypeAlias = Literal[
    "crashed", "hung", "timeout", "memory", "refused", "accelerator-lost", "closed"
]


class EdgekilnError(Exception):
    """Base of the tree. ``doing`` and ``to`` name the step and its subject, ``why`` the cause."""

    exit_code = 2

    def __init__(self, doing: str, to: object, why: str, cure: str) -> None:
        super().__init__(f"{doing} {to}: {why}. {cure}")
        self.doing = doing
        self.to = str(to)
        self.why = why
        self.cure = cure


class BadInput(EdgekilnError):
    """What the user gave can't be used as it is."""


class MissingExtra(EdgekilnError):
    """An optional dependency is absent; ``extra`` is the name to install."""

    def __init__(self, doing: str, to: object, extra: str) -> None:
        self.extra = extra
        super().__init__(
            doing, to, f"the extra '{extra}' is not installed", f"Run: pip install 'edgekiln[{extra}]'"
        )


class NotRunnableHere(EdgekilnError):
    """The artifact is sound, but no engine on this machine can execute it."""


class ConversionFailed(EdgekilnError):
    """A pass, recipe or target could not make the artifact. Other artifacts go on."""


class MachineFault(EdgekilnError):
    """The machine, not the input, is at fault."""


class EngineFault(MachineFault):
    """An engine failed in mid-run, in the way that ``kind`` says."""

    def __init__(self, kind: EngineFaultKind, to: object, why: str, cure: str) -> None:
        super().__init__("running", to, why, cure)
        self.kind = kind


class DeviceFault(EdgekilnError):
    """The device that was to be measured, or the way to it, is at fault."""


class Corrupt(EdgekilnError):
    """A file has not the size or hash that its record names, or is gone."""


class NoAnswer(EdgekilnError):
    """Every candidate failed, or none is open; ``why`` has each one's reason."""


class DeadlineMissed(EdgekilnError):
    """The deadline passed before any candidate answered."""


ServerFaultKind: TypeAlias = Literal[
    "unreachable", "tls", "lost", "late", "cancelled", "busy", "status", "answer", "too-large"
]
"""``unreachable``: no connection; ``lost``: it broke; ``late``: no whole answer in time; ``busy``: all calls
to this server are taken; ``status``: an HTTP status other than 200; ``answer``: not what the protocol or the
model promises."""


class ServerFault(EdgekilnError):
    """A model server did not answer as it should. ``status`` is the HTTP status where there was one,
    ``retry_after_s`` the wait that the server asked for."""

    def __init__(
        self,
        doing: str,
        to: object,
        why: str,
        cure: str,
        *,
        kind: ServerFaultKind,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(doing, to, why, cure)
        self.kind: ServerFaultKind = kind
        self.status = status
        self.retry_after_s = retry_after_s


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The near names as a sentence, or the whole list where nothing is near."""
    names = sorted(known)
    near = [n for n in names if len(word) > 2 and (word in n or n in word)][:3]
    near = near or difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    return f"Known: {', '.join(names)}."
