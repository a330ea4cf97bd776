"""The probe on fake machines: whole file trees, as the kernel lays them out."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.devices import COMMON_FIGURES, Device, linux, load
from edgekiln.devices.host import Interpreter, probe
from edgekiln.errors import NotRunnableHere

GIB = 2**30
X86 = "\n".join(
    f"processor\t: {i}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) N100\ncpu MHz\t\t: 806.4\n"
    "flags\t\t: fpu sse4_2 avx avx2 avx_vnni amx_tilex\n"
    for i in range(4)
)
PI = (
    "\n".join(
        f"processor\t: {i}\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\n"
        for i in range(4)
    )
    + "\nRevision\t: c04170\nSerial\t\t: 0\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
)
BIG_LITTLE = (
    "processor : 0\nFeatures : asimd asimdhp asimddp i8mm bf16\nCPU implementer : 0x41\nCPU part : 0xd47\n\n"
    "processor : 1\nFeatures : asimd asimdhp asimddp\nCPU implementer : 0x41\nCPU part : 0xd05\n"
)


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def said(machine: str = "x86_64", allowed: int | None = 4, system: str = "Linux") -> Interpreter:
    return Interpreter(system=system, machine=machine, allowed=allowed, cpus=4, memory_bytes=None)


def meminfo(gib: int) -> str:
    return f"MemTotal:       {gib * GIB // 1024} kB\nMemFree:  12 kB\n"


def every_common_figure_is_there(device: Device) -> None:
    assert set(COMMON_FIGURES) <= set(device.figures)
    for figure in device.figures.values():
        assert figure.source if figure.value is not None else figure.reason


def test_an_x86_pc(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": X86,
            "proc/meminfo": meminfo(16),
            "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3400000\n",
            "sys/devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq": "2900000\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/class/thermal/thermal_zone0/type": "x86_pkg_temp\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_type": "passive\n",
            "sys/class/thermal/thermal_zone0/trip_point_0_temp": "95000\n",
            "sys/class/thermal/thermal_zone0/trip_point_1_type": "critical\n",
            "sys/class/thermal/thermal_zone0/trip_point_1_temp": "80000\n",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA RTX A2000\nIRQ: 1\n",
        },
    )
    host = probe(root, said())
    every_common_figure_is_there(host)
    assert (host.name, host.kind, host.arch, host.threads) == ("host", "host", "x86_64", 4)
    assert host.targets == ("onnxruntime", "openvino")
    assert host.features == ("avx2", "avx_vnni")  # whole words only: amx_tilex is no flag of ours
    got = {k: f.value for k, f in host.figures.items()}
    assert got["cpu"] == "Intel(R) N100"
    assert got["memory_bytes"] == 16 * GIB
    assert got["cpu_mhz"] == 3400
    assert got["governor"] == ("powersave",)
    assert got["thermal_zones"] == ("x86_pkg_temp",)
    assert got["throttle_celsius"] == 95  # the critical trip is a shutdown, not a slowdown
    assert got["shutdown_celsius"] == 80  # as this fake has it
    assert got["accelerator"] == "NVIDIA RTX A2000"
    assert got["os"] == "Debian GNU/Linux 12 (bookworm)"
    assert host.figures["cpu"].source == "/proc/cpuinfo"
    assert host.figures["cpu_mhz"].source == "/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq"
    assert got["int8_dense_tops"] is None


def test_a_raspberry_pi_5(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": PI,
            "proc/meminfo": meminfo(8),
            "proc/device-tree/model": b"Raspberry Pi 5 Model B Rev 1.0\0",
        },
    )
    host = probe(root, said("aarch64"))
    every_common_figure_is_there(host)
    assert host.arch == "arm64"
    assert host.figures["cpu"].value == "4x Cortex-A76"
    assert host.figures["board"].value == "Raspberry Pi 5 Model B Rev 1.0"
    assert set(host.features) == set(load("raspberry-pi-5").features)
    assert "tensorrt" not in host.targets
    assert host.threads == 4


def test_a_jetson_puts_tensorrt_first_and_computes_in_what_the_data_sheet_says(tmp_path: Path) -> None:
    cpu = PI.replace("0xd0b", "0xd42").replace("Raspberry Pi 5 Model B Rev 1.0", "")
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": cpu,
            "sys/firmware/devicetree/base/model": b"NVIDIA Jetson Orin Nano Engineering Reference Super\0",
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7\n",
        },
    )
    host = probe(root, said("aarch64", allowed=6))
    every_common_figure_is_there(host)
    assert host.targets[0] == "tensorrt"
    assert host.figures["cpu"].value == "4x Cortex-A78AE"
    assert {"asimddp", "asimdhp", "fp16", "int8"} <= set(host.features)
    assert "Data Sheet" in host.figures["accelerator_formats"].source
    assert str(host.figures["l4t"].value).startswith("# R36")


def test_a_container_with_a_quota_and_a_memory_limit(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": X86,
            "proc/meminfo": meminfo(64),
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        },
    )
    host = probe(root, said())
    assert host.threads == 2  # 2.5 cores: a third thread would be throttled
    assert host.figures["cores"].value == 2
    assert host.figures["cores"].source.startswith("derived: 2.5 cores of /sys/fs/cgroup/cpu.max")
    assert host.figures["cores_total"].value == 4
    assert host.figures["memory_bytes"].value == 2 * GIB
    assert host.figures["memory_bytes"].source == "/sys/fs/cgroup/memory.max"
    assert host.figures["memory_total_bytes"].value == 64 * GIB


def test_the_least_limit_on_the_way_up_holds(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/job.service\n",
            "sys/fs/cgroup/user.slice/job.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/user.slice/job.service/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory.max": "max\n",
        },
    )
    assert linux.cpu_quota(root) == linux.Found(1.5, "/sys/fs/cgroup/user.slice/cpu.max")
    assert linux.memory_limit(root) == linux.Found(3 * GIB, "/sys/fs/cgroup/user.slice/memory.max")


def test_cgroup_version_1_with_joined_controllers_and_its_way_to_say_no_limit(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n1:cpu,cpuacct:/docker/abc\n0::/\n",
            # inside a container the path of the host does not exist, its root does
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "proc/cpuinfo": X86,
            "proc/meminfo": meminfo(8),
        },
    )
    host = probe(root, said())
    assert linux.memory_limit(root) is None
    assert host.threads == 1  # half a core still runs one thread
    assert host.figures["cpu_quota"].value == 0.5
    assert host.figures["memory_bytes"].value == 8 * GIB
    assert host.figures["memory_bytes"].source == "/proc/meminfo"
    (root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us").write_text("-1\n")
    assert probe(root, said()).threads == 4


def test_affinity_counts_where_it_is_less_than_the_machine(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/cpuinfo": X86})
    host = probe(root, said(allowed=1))
    assert host.threads == 1
    assert host.figures["cores"].source == "os.sched_getaffinity"
    assert host.figures["cores_total"].value == 4


def test_a_cgroup_path_cannot_climb_out() -> None:
    paths = linux.cgroup_paths("0::/../../etc\n2:memory:/ok\n", "memory")
    assert all(".." not in p.parts for p in paths)
    assert PurePosixPath("sys/fs/cgroup/memory/ok") in paths


def test_only_what_every_core_has_counts_on_unequal_cores() -> None:
    assert linux.isa_flags(BIG_LITTLE) == ("asimddp", "asimdhp")
    assert linux.cpu_model(BIG_LITTLE) == "1x Cortex-A710, 1x Cortex-A55"


def test_an_unknown_core_keeps_its_number() -> None:
    text = "processor : 0\nCPU implementer : 0x41\nCPU part : 0xfff\n"
    assert linux.cpu_model(text) == "1x Arm part 0xfff"
    assert linux.cpu_model(text.replace("0x41", "0x61")) == "1x part 0xfff"


def test_a_mac_has_no_proc_and_still_gives_a_device_with_reasons(tmp_path: Path) -> None:
    mac = Interpreter(system="Darwin", machine="arm64", allowed=None, cpus=10, memory_bytes=16 * GIB)
    host = probe(tmp_path, mac)
    every_common_figure_is_there(host)
    assert (host.arch, host.threads, host.features) == ("arm64", 10, ())
    assert host.figures["memory_bytes"].value == 16 * GIB
    assert host.figures["memory_bytes"].source == "os.sysconf"
    assert host.figures["cores"].source == "os.cpu_count"
    assert host.figures["os"].value == "Darwin"
    assert "Darwin" in host.figures["isa"].reason
    assert host.figures["isa"].value is None


def test_nothing_at_all_is_a_device_of_one_thread_and_reasons(tmp_path: Path) -> None:
    blind = Interpreter(system="", machine="x86_64", allowed=None, cpus=None, memory_bytes=None)
    host = probe(tmp_path, blind)
    every_common_figure_is_there(host)
    assert host.threads == 1
    assert host.figures["cores"].value is None
    assert host.figures["memory_bytes"].value is None
    assert "x86_64" in host.title


def test_garbage_in_every_file_is_unknown_never_a_crash(tmp_path: Path) -> None:
    names = [
        "proc/cpuinfo",
        "proc/meminfo",
        "proc/self/cgroup",
        "proc/device-tree/model",
        "etc/os-release",
        "sys/fs/cgroup/cpu.max",
        "sys/fs/cgroup/memory.max",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq",
        "sys/class/thermal/thermal_zone0/trip_point_0_type",
    ]
    root = tree(tmp_path, dict.fromkeys(names, b"\xff\x00\xfe :: \n\n: 9x9 -- \n"))
    (root / "sys/class/thermal/thermal_zone0/type").mkdir()  # a folder where a file should be
    host = probe(root, said())
    every_common_figure_is_there(host)
    assert host.figures["cpu"].value is None
    assert host.figures["memory_bytes"].value is None
    assert host.figures["cpu_mhz"].value is None
    assert host.threads == 4


def test_an_architecture_no_target_runs_on_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(NotRunnableHere, match="riscv64"):
        probe(tmp_path, said("riscv64"))


def test_a_huge_file_is_read_to_its_limit_only(tmp_path: Path) -> None:
    root = tree(tmp_path, {"proc/cpuinfo": X86 + "\n" + "x" * (3 << 20)})
    read = linux.text(root, "proc/cpuinfo")
    assert read is not None
    assert len(read) <= 1 << 20
    assert len(linux.processors(read)) == 4


def test_this_machine_is_probed_for_real() -> None:
    host = load("host")
    every_common_figure_is_there(host)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= host.threads <= allowed
    memory = host.figures["memory_bytes"].value
    assert isinstance(memory, int)
    assert 2**27 < memory <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@given(st.text(max_size=200))
def test_the_parsers_take_any_text(text: str) -> None:
    linux.processors(text)
    linux.cpu_model(text)
    linux.isa_flags(text)
    linux.memory_total(text)
    linux.os_name(text)
    linux.cgroup_paths(text, "cpu")
    linux.number(text)


@given(st.integers(1, 256), st.none() | st.floats(0.01, 300))
def test_threads_never_exceed_the_allowed_cpus_nor_the_quota_but_one_always_runs(
    allowed: int, quota: float | None
) -> None:
    cores = linux.whole_cores(allowed, quota)
    assert 1 <= cores <= allowed
    assert quota is None or cores == 1 or cores <= quota
