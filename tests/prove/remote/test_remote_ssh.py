"""The system's own ssh against a real server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekiln.errors import DeviceFault
from edgekiln.prove.remote import ssh
from edgekiln.prove.remote.address import SshAddress, parse
from edgekiln.prove.remote.link import Broken, Envelope
from edgekiln.prove.remote.ssh import SshLink
from fakes.ssh_server import Device


def connect(device: Device, *, accept_new: bool = False) -> SshLink:
    address = parse(device.address)
    assert isinstance(address, SshAddress)
    return SshLink(address, accept_new=accept_new)


@pytest.fixture
def link(device: Device) -> Iterator[SshLink]:
    made = connect(device)
    yield made
    made.close()


HOSTILE = (
    "a b",
    "it's",
    'say "x"',
    "$HOME",
    "`id`",
    "; exit 3",
    "line\nbreak",
    "-rf",
    "*",
    "\\",
    "!!",
    "é",
    "",
)


def test_arguments_arrive_as_they_were_given(link: SshLink) -> None:
    ran = link.run(["printf", "[%s]", *HOSTILE])
    assert ran.rc == 0
    assert ran.text == "".join(f"[{word}]" for word in HOSTILE)


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12), max_size=4)
)
def test_any_arguments_arrive(link: SshLink, words: list[str]) -> None:
    assert link.run(["printf", "%s|", *words, "end"]).text == "".join(f"{w}|" for w in [*words, "end"])


def test_status_and_both_outputs_come_back(link: SshLink) -> None:
    ran = link.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (ran.rc, ran.stdout, ran.stderr) == (7, b"out\n", "err")
    assert link.run(["sh", "-c", "exit 255"]).rc == 255, "which is also what ssh itself says of a failure"
    assert link.run(["no-such-program"]).rc == 127


def test_one_login_carries_many_commands(device: Device, link: SshLink) -> None:
    for _ in range(5):
        link.run(["true"])
    assert device.logins == 1


def test_what_a_login_script_prints_is_not_the_commands_output(device: Device, link: SshLink) -> None:
    device.noise = b"Welcome to your device!\n> mark 0>\n"
    assert link.run(["echo", "hello"]).text == "hello\n"


def test_a_file_arrives_whole_and_private_under_any_name(
    device: Device, link: SshLink, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    for name in ("plain", "a b; rm -rf $HOME'", "-rf", "line\nbreak", "a,b"):
        there = device.home / name
        link.put(source, str(there))
        assert there.read_bytes() == source.read_bytes()
        assert there.stat().st_mode & 0o777 == 0o600
    assert not list(device.home.glob("*.part"))


def test_a_device_without_sha256sum_checks_with_its_python(
    device: Device, link: SshLink, tmp_path: Path
) -> None:
    device.program("sha256sum", "exit 127")
    (tmp_path / "source").write_bytes(b"x" * 1000)
    link.put(tmp_path / "source", str(device.home / "there"))
    assert (device.home / "there").read_bytes() == b"x" * 1000


def test_a_file_that_arrives_damaged_is_not_there_at_all(
    device: Device, link: SshLink, tmp_path: Path
) -> None:
    device.program("sha256sum", "cat >/dev/null; echo 0000  -")
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(Broken, match="damaged"):
        link.put(tmp_path / "source", str(device.home / "there"))
    assert list(device.home.iterdir()) == []


def test_a_full_disk_there_is_told_with_its_cure(device: Device, link: SshLink, tmp_path: Path) -> None:
    device.file_bytes = 50_000
    (tmp_path / "source").write_bytes(b"x" * 100_000)
    with pytest.raises(DeviceFault, match="no space is left") as full:
        link.put(tmp_path / "source", str(device.home / "there"))
    assert "Free some space" in full.value.cure


def test_a_command_that_prints_without_end_is_stopped(link: SshLink) -> None:
    with pytest.raises(DeviceFault, match="printed more than 100000 bytes"):
        link.run(["yes"], max_bytes=100_000)


def test_a_command_that_hangs_is_given_up(link: SshLink) -> None:
    started = time.monotonic()
    with pytest.raises(Broken, match="no answer within 1 s"):
        link.run(["sleep", "60"], seconds=1.0)
    assert time.monotonic() - started < 20


def test_a_dropped_connection_is_broken_and_the_next_command_reaches_the_device_again(
    device: Device, link: SshLink
) -> None:
    assert link.run(["echo", "1"]).text == "1\n"
    device.on_command = lambda command: device._loop.call_soon(
        lambda: [c.abort() for c in list(device._connections)]
    )
    with pytest.raises(Broken):
        link.run(["sleep", "5"])
    device.on_command = lambda command: None
    assert link.run(["echo", "2"]).text == "2\n"
    assert device.logins >= 2


# ---------------------------------------------------------------- who answers, and who asks


def test_a_host_key_that_changed_is_refused(device: Device, link: SshLink) -> None:
    device.change_host_key()
    with pytest.raises(DeviceFault, match="host key changed") as refused:
        link.run(["true"])
    assert f"ssh-keygen -R '[127.0.0.1]:{device.port}'" in refused.value.cure
    assert device.commands == []


def test_it_is_refused_also_where_new_keys_are_accepted_or_the_check_is_off(device: Device) -> None:
    device.change_host_key()
    device.config.write_text(f"StrictHostKeyChecking no\n{device.config.read_text()}")
    for accept_new in (False, True):
        link = connect(device, accept_new=accept_new)
        with pytest.raises(DeviceFault, match="host key changed"):
            link.run(["true"])
        link.close()
    assert device.commands == []


def test_an_unknown_host_is_refused_whatever_the_configuration_says(device: Device) -> None:
    device.forget_host()
    device.config.write_text(f"StrictHostKeyChecking no\n{device.config.read_text()}")
    link = connect(device)
    with pytest.raises(DeviceFault, match="not known here") as refused:
        link.run(["true"])
    link.close()
    assert "--accept-new-host-key" in refused.value.cure
    assert device.commands == []


def test_an_unknown_host_is_accepted_once_where_the_user_says_so(device: Device) -> None:
    device.forget_host()
    link = connect(device, accept_new=True)
    assert link.run(["echo", "hello"]).text == "hello\n"
    link.close()
    known = connect(device)
    assert known.run(["echo", "again"]).text == "again\n"
    known.close()


def test_accept_new_of_the_users_own_configuration_holds(device: Device) -> None:
    device.forget_host()
    device.config.write_text(f"StrictHostKeyChecking accept-new\n{device.config.read_text()}")
    link = connect(device)
    assert link.run(["echo", "hello"]).text == "hello\n"
    link.close()


def test_a_wrong_key_is_refused_and_nobody_is_asked_for_a_password(device: Device) -> None:
    wrong = asyncssh.generate_private_key("ssh-ed25519")
    (device.folder / "client" / "key").write_bytes(wrong.export_private_key())
    link = connect(device)
    with pytest.raises(DeviceFault, match="refuses the login") as refused:
        link.run(["true"])
    link.close()
    assert "ssh-copy-id edge@127.0.0.1" in refused.value.cure


def test_nobody_listens(device: Device, link: SshLink) -> None:
    device.unplug()
    with pytest.raises(Broken, match="refused"):
        link.run(["true"])


def test_an_unknown_name_and_a_bad_configuration_have_their_cures(device: Device, tmp_path: Path) -> None:
    nowhere = SshLink(SshAddress(host="no-such-host.invalid"))
    with pytest.raises(DeviceFault, match="no such host"):
        nowhere.run(["true"])
    nowhere.close()
    device.config.write_text("NoSuchOption yes\n")
    link = connect(device)
    with pytest.raises(DeviceFault, match=r"(?i)bad configuration option"):
        link.run(["true"])
    link.close()


# ---------------------------------------------------------------- what stays


def test_closing_leaves_no_process_and_no_folder(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    link = connect(device)
    link.run(["true"])
    master = link._master
    assert master is not None
    assert [p.name.startswith("edgekiln-") for p in short.iterdir()] == [True]
    link.close()
    link.close()
    assert master.poll() is not None
    assert list(short.iterdir()) == []
    short.rmdir()


def test_the_master_ends_when_its_owner_is_killed(device: Device) -> None:
    script = (
        "import os, signal, sys\n"
        "from edgekiln.prove.remote.address import parse\n"
        "from edgekiln.prove.remote.ssh import SshLink\n"
        f"link = SshLink(parse({device.address!r}))\n"
        "link.run(['true'])\n"
        "print(link._master.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    pid = int(done.stdout)
    until = time.monotonic() + 20
    while time.monotonic() < until and _lives(pid):
        time.sleep(0.1)
    assert not _lives(pid)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_no_option_that_could_weaken_the_check_is_ever_given(device: Device, link: SshLink) -> None:
    words = link._ssh("no")
    assert "StrictHostKeyChecking=yes" in words
    assert "BatchMode=yes" in words
    assert "ForwardAgent=no" in words
    assert not any("UserKnownHostsFile" in word or word.endswith("Checking=no") for word in words)


def test_output_without_its_last_mark_is_not_whole() -> None:
    envelope = Envelope(["true"])
    mark = envelope.words[4]
    assert envelope.open(f"noise<{mark}<out>{mark} 0>".encode()) == (0, b"out")
    assert envelope.open(f"<{mark}<out".encode()) is None
    assert envelope.open(b"<other<out>other 0>") is None
    assert ssh.CONNECT_SECONDS > 0
