"""Is the machine fit to measure on: whole trees of files, each with one thing wrong."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekiln.errors import MachineFault
from edgekiln.prove.fitness import findings, fitness, gate

CPU = "sys/devices/system/cpu"
ZONE = "sys/class/thermal/thermal_zone0"
FIT = {
    f"{CPU}/cpu0/cpufreq/scaling_max_freq": "2400000\n",
    f"{CPU}/cpu0/cpufreq/cpuinfo_max_freq": "2400000\n",
    f"{CPU}/cpu0/cpufreq/energy_performance_preference": "balance_performance\n",
    f"{CPU}/intel_pstate/no_turbo": "0\n",
    "sys/firmware/acpi/platform_profile": "performance\n",
    "sys/firmware/acpi/platform_profile_choices": "low-power balanced performance\n",
    f"{ZONE}/type": "tj-thermal\n",
    f"{ZONE}/temp": "51000\n",
    f"{ZONE}/trip_point_0_temp": "95000\n",
    f"{ZONE}/trip_point_0_type": "passive\n",
    "var/lib/nvpmodel/status": "pmode:0002",
    "etc/nvpmodel.conf": (
        "# comment: < POWER_MODEL ID=9 NAME=MAXN_SUPER >\n< POWER_MODEL ID=0 NAME=15W >\n"
        "< POWER_MODEL ID=1 NAME=25W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\nCPU_ONLINE CORE_0 1\n"
    ),
}


@pytest.fixture
def machine(tmp_path):
    def build(changes=()):
        for path, text in {**FIT, **dict(changes)}.items():
            write(tmp_path, path, text)
        return tmp_path

    return build


def write(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


def test_a_machine_at_its_best_is_fit(machine):
    assert fitness(machine()) == ()


@pytest.mark.parametrize(
    ("path", "text", "says", "cure"),
    [
        (
            f"{ZONE}/temp",
            "90500\n",
            "thermal zone tj-thermal is at 90.5 °C, its passive trip point is 95.0 °C",
            "cool",
        ),
        (f"{ZONE}/temp", "97000\n", "is at 97.0 °C, its passive", "fan"),
        (
            f"{CPU}/cpu0/cpufreq/scaling_max_freq",
            "1200000\n",
            "cpu0 is capped at 1.20 of 2.40 GHz",
            "2400000kHz",
        ),
        (f"{CPU}/intel_pstate/no_turbo", "1\n", "turbo clocks are switched off", "echo 0 | sudo tee"),
        (
            "sys/firmware/acpi/platform_profile",
            "low-power\n",
            "power profile is low-power",
            "powerprofilesctl",
        ),
        (
            f"{CPU}/cpu0/cpufreq/energy_performance_preference",
            "power\n",
            "energy_performance_preference is power",
            "echo performance",
        ),
        (
            "var/lib/nvpmodel/status",
            "pmode:0000",
            "mode is 0 (15W)",
            "sudo nvpmodel -m 2 && sudo jetson_clocks",
        ),
        ("var/lib/nvpmodel/status", "pmode:0001 fmode:quiet", "mode is 1 (25W)", "sudo nvpmodel -m 2"),
    ],
)
def test_each_shortcoming_is_one_sentence_with_its_cure(machine, path, text, says, cure):
    (sentence,) = fitness(machine({path: text}))
    assert says in sentence.split("; ")[0]
    assert cure in sentence.split("; ")[1]


@pytest.mark.parametrize(
    "changes",
    [
        {f"{ZONE}/temp": "-256000\n"},
        {f"{ZONE}/temp": "\n"},
        {f"{ZONE}/temp": "51000\n", f"{ZONE}/trip_point_0_temp": "-256000\n"},
        {f"{ZONE}/temp": "26000\n", f"{ZONE}/trip_point_0_temp": "20000\n"},
        {f"{ZONE}/temp": "94000\n", f"{ZONE}/trip_point_0_type": "active\n"},
        {
            "sys/firmware/acpi/platform_profile_choices": "quiet balanced\n",
            "sys/firmware/acpi/platform_profile": "quiet",
        },
        {f"{CPU}/cpu0/cpufreq/scaling_max_freq": "fast\n"},
        {f"{CPU}/cpu0/cpufreq/scaling_max_freq": "0\n"},
        {"var/lib/nvpmodel/status": "unknown"},
        {"var/lib/nvpmodel/status": "pmode:0000", "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n"},
        {"var/lib/nvpmodel/status": "pmode:0000", "etc/nvpmodel.conf": ""},
        {
            "var/lib/nvpmodel/status": "pmode:0000",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=7W >\n",
        },
    ],
)
def test_nonsense_and_what_nobody_can_mend_are_no_objection(machine, changes):
    assert fitness(machine(changes)) == ()


def test_without_its_table_the_first_mode_is_taken_as_the_fastest(machine):
    (sentence,) = fitness(machine({"var/lib/nvpmodel/status": "pmode:0003", "etc/nvpmodel.conf": ""}))
    assert sentence.startswith("the power mode is 3, which caps clocks; run: sudo nvpmodel -m 0")


# ---------------------------------------------------------------- what takes two looks

STAT = "cpu  {} 0 0 {} 0 0 0 {} 0 0\ncpu0 1\ncpu1 1\n"


def between_looks(root, files, look_seconds=0.4):
    """Findings of a machine whose ``files`` change in the middle of the look."""
    changer = threading.Timer(0.1, lambda: [write(root, path, text) for path, text in files.items()])
    changer.start()
    try:
        return [f.sentence for f in findings(root, look_seconds)]
    finally:
        changer.join()


@pytest.mark.parametrize(
    ("before", "after", "says", "cure"),
    [
        (STAT.format(0, 0, 0), STAT.format(0, 150, 50), "gives 25% of the CPUs' time", "host is idle"),
        (STAT.format(0, 0, 0), STAT.format(150, 50, 0), "other processes keep 1.5 CPUs busy now", "end them"),
    ],
)
def test_stolen_time_and_other_work(tmp_path, before, after, says, cure):
    write(tmp_path, "proc/stat", before)
    (sentence,) = between_looks(tmp_path, {"proc/stat": after})
    assert says in sentence
    assert cure in sentence


def test_a_quota_that_is_at_work(tmp_path):
    stat = "sys/fs/cgroup/box/cpu.stat"
    write(tmp_path, "proc/self/cgroup", "0::/box\n")
    write(tmp_path, stat, "nr_periods 100\nnr_throttled 50\n")
    (sentence,) = between_looks(tmp_path, {stat: "nr_periods 104\nnr_throttled 51\n"})
    assert "stopped this process's control group in 25% of the last periods" in sentence
    assert between_looks(tmp_path, {}) == [], "what happened long ago is no objection"


def test_a_copied_tree_stands_still_and_a_machine_without_counters_costs_no_wait(tmp_path):
    started = time.monotonic()
    assert fitness(tmp_path, look_seconds=30) == ()
    assert time.monotonic() - started < 20
    write(tmp_path, "proc/stat", STAT.format(5, 5, 5))
    assert fitness(tmp_path, look_seconds=0.05) == ()


@given(st.dictionaries(st.sampled_from([*FIT, "proc/stat"]), st.text(max_size=60), max_size=4))
@settings(deadline=None)
def test_files_of_any_content_do_not_break_it(tmp_path_factory, changes):
    root = tmp_path_factory.mktemp("machine")
    for path, text in {**FIT, **changes}.items():
        write(root, path, text)
    assert all(f.what and f.cure for f in findings(root, look_seconds=0.001))


# ---------------------------------------------------------------- the gate


def test_the_gate_opens_unless_it_is_strict_and_names_every_cure(machine):
    found = findings(machine({f"{CPU}/intel_pstate/no_turbo": "1\n", f"{ZONE}/temp": "94000\n"}))
    assert len(found) == 2
    gate(found, strict=False)
    gate((), strict=True)
    with pytest.raises(MachineFault) as caught:
        gate(found, strict=True)
    assert caught.value.exit_code == 2
    assert all(f.what in caught.value.why for f in found)
    assert all(f.cure[1:] in caught.value.cure for f in found)


def test_this_very_machine_is_judged_without_an_error():
    assert all(f.what and f.cure for f in findings())
