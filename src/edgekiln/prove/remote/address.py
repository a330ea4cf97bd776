"""Where a device is: ``ssh://[user@]host[:port]`` or ``adb://SERIAL``, read strictly.

What stands in an address ends up among the arguments of ``ssh`` and in requests to an adb server. So nothing
in it may look like an option or mean something to a shell, and a password has no place in it: addresses are
kept in histories and logs.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TypeAlias

from edgekiln.errors import BadInput
from edgekiln.records import Record

DEFAULT_SSH_PORT = 22
_DOING = "reading --on"
_FORMS = "Give ssh://[user@]host[:port] or adb://SERIAL"
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}")
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,32}")
_SERIAL = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:%\[\]-]{0,127}")


class SshAddress(Record, frozen=True, kw_only=True):
    """``host`` is a name, an address (IPv6 without brackets) or an alias of the user's ssh configuration.

    ``port`` None is what that configuration says.
    """

    host: str
    user: str | None = None
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = "" if self.user is None else f"{self.user}@"
        return f"ssh://{user}{host}{'' if self.port is None else f':{self.port}'}"


class AdbAddress(Record, frozen=True, kw_only=True):
    """A device that an adb server knows by ``serial``."""

    serial: str

    def __str__(self) -> str:
        return f"adb://{self.serial}"


Address: TypeAlias = SshAddress | AdbAddress


def parse(text: str) -> Address:
    """The address in ``text``. Raises BadInput for anything that is not wholly one, and for a password."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in {"ssh", "adb"}:
        raise BadInput(_DOING, _shown(text), "it is no address of a device", _FORMS)
    if scheme == "adb":
        if not _SERIAL.fullmatch(rest):
            cure = "Give adb://SERIAL with a serial that `adb devices` prints"
            raise BadInput(_DOING, _shown(text), "it holds no serial number", cure)
        return AdbAddress(serial=rest)
    user, at, place = rest.rpartition("@")
    if ":" in user:
        cure = "Use a key or ssh-agent (ssh-copy-id puts your key there); passwords are never kept"
        raise BadInput(_DOING, f"ssh://...@{_shown(place)}", "it holds a password", cure)
    if at and not _USER.fullmatch(user):
        raise BadInput(_DOING, _shown(text), "what stands before the @ is no user name", _FORMS)
    host, port = _place(place, text)
    return SshAddress(host=host, user=user or None, port=port)


def _place(place: str, text: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::(.*))?", place, re.DOTALL)
    if bracketed:
        host, port = bracketed[1], bracketed[2]
        if not _is_ipv6(host):
            raise BadInput(_DOING, _shown(text), "what stands in brackets is no IPv6 address", _FORMS)
    else:
        host, colon, behind = place.partition(":")
        port = behind if colon else None
        if ":" in behind:
            cure = "Put an IPv6 address in brackets: ssh://[fe80::1]:22"
            raise BadInput(_DOING, _shown(text), "it holds more than one colon", cure)
        if not _HOST.fullmatch(host):
            raise BadInput(_DOING, _shown(text), "it holds no plain host name", _FORMS)
    if port is None:
        return host, None
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise BadInput(_DOING, _shown(text), "its port is no number from 1 to 65535", _FORMS)
    return host, int(port)


def _is_ipv6(host: str) -> bool:
    address, percent, zone = host.partition("%")
    if percent and not _ZONE.fullmatch(zone):
        return False
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    """The text without what may be a password: everything between the first colon and the last @."""
    hidden = re.sub(r"(?<=://)([^:@]*):.*@", r"\1:...@", text, count=1, flags=re.DOTALL)
    return hidden[:200]
