import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.prove.environment import (
    cpu_model,
    cpu_quota,
    cpus_usable,
    fingerprint,
    fitness,
    memory_bytes,
    parse_cpu_list,
)

CPU = "sys/devices/system/cpu"
QUIET = {
    "proc/cpuinfo": "processor\t: 0\nmodel\t\t: 143\nmodel name\t: Xeon(R) 8488C\nflags\t: fpu avx2\n",
    "proc/self/status": "Name:\tpython\nCpus_allowed:\tf\nCpus_allowed_list:\t0-3\n",
    "proc/loadavg": "0.40 0.30 0.20 1/99 1234\n",
    "proc/meminfo": "MemTotal:       16000000 kB\nSwapTotal:  1000000 kB\nSwapFree:   1000000 kB\n",
    "proc/pressure/cpu": "some avg10=0.50 avg60=0.10 avg300=0.00 total=1\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n",
    f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "0\n",
    "sys/class/power_supply/AC/type": "Mains\n",
    "sys/class/power_supply/AC/online": "1\n",
    "sys/fs/cgroup/cpu.max": "max 100000\n",
    "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 13 (trixie)"\n',
    "proc/sys/kernel/osrelease": "6.12.1\n",
}


@pytest.fixture
def machine(tmp_path):
    def build(**changes):
        for path, text in {**QUIET, **changes}.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return build


def test_a_quiet_machine_is_fit(machine):
    assert fitness(machine()) == ()


@pytest.mark.parametrize(
    ("path", "text", "says", "cure"),
    [
        ("proc/loadavg", "4.70 1 1 9/99 1\n", "load average is 4.70 on 4 CPUs", "end other work"),
        ("proc/pressure/cpu", "some avg10=31.40 avg60=1\n", "for 31.40 %", "end other work"),
        (f"{CPU}/cpu2/cpufreq/scaling_governor", "powersave\n", "governor is powersave", "cpupower"),
        ("sys/fs/cgroup/cpu.max", "150000 100000\n", "to 1.5 of 4 CPUs", "use 1 thread"),
        (
            "proc/meminfo",
            "MemTotal: 16000000 kB\nSwapTotal: 1000000 kB\nSwapFree: 180800 kB\n",
            "800 MiB of swap",
            "swapoff",
        ),
        (f"{CPU}/cpu1/thermal_throttle/package_throttle_count", "17\n", "by heat 17 times", "cool"),
        ("sys/class/power_supply/AC/online", "0\n", "battery", "plug it in"),
    ],
)
def test_each_shortcoming_is_one_sentence_with_its_cure(machine, path, text, says, cure):
    (sentence,) = fitness(machine(**{path: text}))
    assert says in sentence
    assert cure in sentence


def test_a_machine_that_tells_nothing_is_not_accused(tmp_path):
    assert fitness(tmp_path) == ()
    found = fingerprint(tmp_path)
    assert "cpu_model" not in found
    assert "memory_bytes" not in found


@given(st.dictionaries(st.sampled_from(sorted(QUIET)), st.text(max_size=60), max_size=4))
def test_files_of_any_content_do_not_break_it(tmp_path_factory, changes):
    root = tmp_path_factory.mktemp("machine")
    for path, text in {**QUIET, **changes}.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert all(isinstance(sentence, str) for sentence in fitness(root))
    msgspec.json.encode(fingerprint(root))


def test_the_fingerprint_names_the_machine(machine):
    found = fingerprint(machine())
    assert found["cpu_model"] == "Xeon(R) 8488C"
    assert found["cpus_usable"] == 4
    assert found["memory_bytes"] == 16_000_000 * 1024
    assert found["os"] == "Debian GNU/Linux 13 (trixie)"
    assert found["kernel"] == "6.12.1"
    assert "virtual_machine" not in found
    assert "cpu_quota" not in found
    guest = QUIET["proc/cpuinfo"].replace("avx2", "avx2 hypervisor")
    assert fingerprint(machine(**{"proc/cpuinfo": guest}))["virtual_machine"] is True


def test_engine_versions_are_read_without_importing_an_engine():
    code = (
        "import sys, json; from edgekiln.prove.environment import fingerprint; found = fingerprint();"
        "heavy = {'onnxruntime', 'openvino', 'torch', 'onnx', 'nncf'} & set(sys.modules);"
        "print(json.dumps([found, sorted(heavy)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    found, heavy = msgspec.json.decode(done.stdout)
    assert heavy == []
    import onnxruntime

    assert found["onnxruntime"] == onnxruntime.__version__


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}, "Raspberry Pi 5 Model B Rev 1.0"),
        ({"proc/cpuinfo": "processor: 0\nModel : Raspberry Pi 4 Model B\n"}, "Raspberry Pi 4 Model B"),
        ({"proc/cpuinfo": "processor: 0\nmodel : 143\n"}, None),
    ],
)
def test_arm_boards_are_named_too(tmp_path, files, expected):
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert cpu_model(tmp_path) == expected


def test_the_tightest_quota_on_the_way_up_counts(machine):
    root = machine(
        **{
            "proc/self/cgroup": "0::/jobs/build\n",
            "sys/fs/cgroup/jobs/cpu.max": "200000 100000\n",
            "sys/fs/cgroup/jobs/build/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/jobs/memory.max": "1073741824\n",
        }
    )
    assert cpu_quota(root) == 2
    assert memory_bytes(root) == 1 << 30


def test_version_1_control_groups_are_read(machine):
    root = machine(
        **{
            "proc/self/cgroup": "4:memory:/box\n3:cpu,cpuacct:/box\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "2147483648\n",
        }
    )
    assert cpu_quota(root) == 0.5
    assert memory_bytes(root) == 2 << 30
    unlimited = machine(**{"sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "-1\n"})
    assert cpu_quota(unlimited) is None


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_cpu_list_reads_back(cpus):
    text, ordered = [], sorted(cpus)
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        text.append(str(first) if first == last else f"{first}-{last}")
    assert parse_cpu_list(",".join(text) + "\n") == tuple(sorted(cpus))


def test_the_affinity_limits_the_cpus(machine):
    assert cpus_usable(machine(**{"proc/self/status": "Cpus_allowed_list:\t1,3\n"})) == 2
