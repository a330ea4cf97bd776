"""Files of a device copied into a folder here: those that were asked for, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgekiln.prove.environment import cpu_model
from edgekiln.prove.fitness import fitness
from edgekiln.prove.machine import cpu_quota, cpus_usable
from edgekiln.prove.remote.address import SshAddress, parse
from edgekiln.prove.remote.gather import FITNESS, gather, gather_machine
from edgekiln.prove.remote.link import Ran
from edgekiln.prove.remote.ssh import SshLink
from fakes.ssh_server import Device
from fakes.sysfs_tree import board


def _link(device: Device) -> SshLink:
    address = parse(device.address)
    assert isinstance(address, SshAddress)
    return SshLink(address)


def test_a_machine_is_judged_from_its_copy_as_it_would_be_there(device: Device, tmp_path: Path) -> None:
    root, into = board(tmp_path / "board"), tmp_path / "copy"
    (root / "proc/loadavg").write_text("9.00 1 1 1/100 1\n")
    (root / "sys/fs/cgroup/user.slice").mkdir(parents=True)
    (root / "sys/fs/cgroup/user.slice/cpu.max").write_text("150000 100000\n")
    link = _link(device)
    found = gather_machine(link, into, str(root))
    link.close()
    assert "sys/fs/cgroup/user.slice/cpu.max" in found
    assert cpus_usable(into) == cpus_usable(root) == 6
    assert cpu_model(into) == cpu_model(root)
    assert cpu_quota(into) == 1.5
    assert fitness(root=into) == fitness(root=root)
    assert any("load average is 9.00" in sentence for sentence in fitness(root=into))


def test_odd_contents_and_names_come_as_they_are(device: Device, tmp_path: Path) -> None:
    root = tmp_path / "a root; with $odd 'names"
    (root / "proc").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text("no newline at its end")
    (root / "proc/meminfo").write_bytes(b"\0\xff\n\n")
    (root / "proc/loadavg").mkdir()
    link = _link(device)
    found = gather(link, FITNESS, tmp_path / "copy", str(root))
    link.close()
    assert found == ("proc/cpuinfo", "proc/meminfo")
    assert (tmp_path / "copy/proc/cpuinfo").read_text() == "no newline at its end"
    assert (tmp_path / "copy/proc/meminfo").read_bytes() == "\0\N{REPLACEMENT CHARACTER}\n\n".encode()


class Liar:
    """A device that answers with files that nobody asked for."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def run(self, command: Sequence[str], *_: object, **__: object) -> Ran:
        mark = command[4]
        text = "".join(f"{mark} {name}\nowned\n\n" for name in self.names)
        return Ran(rc=0, stdout=f"{text}{mark}\n".encode(), stderr="")

    def put(self, local: Path, remote: str, mode: int = 0o600) -> None:
        raise AssertionError("nothing is put")

    def close(self) -> None:
        return None


def test_a_device_can_not_choose_where_we_write(tmp_path: Path) -> None:
    into = tmp_path / "inner" / "copy"
    into.mkdir(parents=True)
    names = ("../../owned", "/etc/passwd", "proc/../../../owned", "proc/loadavg/deeper", "proc/other", "")
    assert gather(Liar((*names, "proc/loadavg")), FITNESS, into) == ("proc/loadavg",)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [into / "proc/loadavg"]
