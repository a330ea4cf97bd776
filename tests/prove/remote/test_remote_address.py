"""Addresses of devices: what is one, and that nothing else gets through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import BadInput
from edgekiln.prove.remote.address import AdbAddress, SshAddress, parse


@pytest.mark.parametrize(
    ("text", "host", "user", "port"),
    [
        ("ssh://jetson", "jetson", None, None),
        ("ssh://nvidia@jetson.local:2222", "jetson.local", "nvidia", 2222),
        ("ssh://pi@192.168.1.7", "192.168.1.7", "pi", None),
        ("ssh://pi@[fe80::1%eth0]:22", "fe80::1%eth0", "pi", 22),
        ("ssh://[::1]", "::1", None, None),
        ("ssh://_gateway", "_gateway", None, None),
    ],
)
def test_an_ssh_address(text: str, host: str, user: str | None, port: int | None) -> None:
    found = parse(text)
    assert found == SshAddress(host=host, user=user, port=port)
    assert str(found) == text


@pytest.mark.parametrize("serial", ["emulator-5554", "0A1B2C3D", "192.168.1.5:5555", "[fe80::1]:5555"])
def test_an_adb_address(serial: str) -> None:
    assert parse(f"adb://{serial}") == AdbAddress(serial=serial)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "jetson",
        "ssh:jetson",
        "ssh://",
        "ssh://@jetson",
        "ssh://user@",
        "ssh://-oProxyCommand=touch x",
        "ssh://-oProxyCommand",
        "ssh://-l@jetson",
        "ssh://user@-oProxyCommand",
        "ssh://host;reboot",
        "ssh://host name",
        "ssh://host\n",
        "ssh://host`id`",
        "ssh://$(id)@host",
        "ssh://host/path",
        "ssh://host?x=1",
        "ssh://host:0",
        "ssh://host:65536",
        "ssh://host:22x",
        "ssh://host:",
        "ssh://host:²",
        "ssh://fe80::1",
        "ssh://[fe80::1",
        "ssh://[not-an-address]",
        "ssh://[fe80::1%et h0]",
        "http://host",
        "SSH://host",
        "adb://",
        "adb://-s",
        "adb://a b",
        "adb://a\nb",
        "adb://a/b",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse(text)
    assert refused.value.cure


def test_a_password_is_refused_and_never_repeated() -> None:
    with pytest.raises(BadInput, match="password") as refused:
        parse("ssh://pi:s3cr3t@raspberry")
    assert "ssh-agent" in refused.value.cure
    assert "s3cr3t" not in str(refused.value)


@given(st.text(max_size=40))
def test_whatever_is_accepted_can_be_no_option_and_nothing_for_a_shell(text: str) -> None:
    for scheme in ("ssh", "adb"):
        found = _parsed(f"{scheme}://{text}")
        if found is None:
            continue
        words = [found.serial] if isinstance(found, AdbAddress) else [found.host, found.user or "x"]
        for word in words:
            assert not word.startswith("-")
            assert word.isascii()
            assert not set(word) & set(" \t\r\n;&|<>$`'\"\\(){}*?!#~,/")
        assert parse(str(found)) == found


def _parsed(text: str) -> SshAddress | AdbAddress | None:
    try:
        return parse(text)
    except BadInput:
        return None
