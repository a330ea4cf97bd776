"""Small files of a device, copied into a folder here, so that what describes a machine describes that one.

``prove.environment`` and ``sensors.sysfs`` read below a root; the copy is such a root.
"""

from __future__ import annotations

import fnmatch
import re
import secrets
from pathlib import Path, PurePosixPath

from edgekiln.prove.remote.link import Link
from edgekiln.sensors import cgroup

FITNESS = (
    "proc/loadavg",
    "proc/pressure/cpu",
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/swaps",
    "proc/self/status",
    "proc/self/cgroup",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "proc/sys/kernel/osrelease",
    "etc/os-release",
    "etc/nv_tegra_release",
    "etc/nvpmodel.conf",
    "var/lib/nvpmodel/status",
    "sys/firmware/acpi/platform_profile",
    "sys/firmware/acpi/platform_profile_choices",
    "sys/devices/system/cpu/intel_pstate/no_turbo",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/energy_performance_preference",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_min_freq",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_max_freq",
    "sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count",
    "sys/class/power_supply/*/type",
    "sys/class/power_supply/*/online",
    "sys/class/power_supply/*/status",
    "sys/class/power_supply/*/capacity",
    "sys/class/thermal/thermal_zone*/type",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/class/thermal/thermal_zone*/mode",
    "sys/class/thermal/thermal_zone*/trip_point_*_temp",
    "sys/class/thermal/thermal_zone*/trip_point_*_type",
    "sys/class/thermal/cooling_device*/type",
    "sys/class/thermal/cooling_device*/cur_state",
    "sys/class/thermal/cooling_device*/max_state",
)
"""What says whether a machine is fit to measure on, and which machine it is."""

SENSORS_FIXED = (
    "sys/class/hwmon/hwmon*/name",
    "sys/class/hwmon/hwmon*/*_label",
    "sys/class/thermal/thermal_zone*/type",
    "sys/class/powercap/*/name",
    "sys/class/powercap/*/max_energy_range_uj",
)
SENSORS_MOVING = (
    "sys/class/hwmon/hwmon*/temp*_input",
    "sys/class/hwmon/hwmon*/power*_input",
    "sys/class/hwmon/hwmon*/power*_average",
    "sys/class/hwmon/hwmon*/in*_input",
    "sys/class/hwmon/hwmon*/curr*_input",
    "sys/class/thermal/thermal_zone*/temp",
    "sys/class/powercap/*/energy_uj",
    "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq",
)
"""Names, labels and ranges, which are read once; and what is read again and again during a run."""

_LIMITS = (
    ("cpu.max", "cpu"),
    ("cpu.cfs_quota_us", "cpu"),
    ("cpu.cfs_period_us", "cpu"),
    ("memory.max", "memory"),
    ("memory.limit_in_bytes", "memory"),
)
MAX_FILES = 2048
MAX_FILE_BYTES = 64 << 10
MAX_BYTES = 4 << 20

# $1 a mark, $2 the root, then patterns. An unquoted pattern is split at blanks, and ours have none.
_SCRIPT = f"""
mark=$1; cd "$2/" || exit 10; shift 2
left={MAX_FILES}
for pattern in "$@"; do
  for file in $pattern; do
    [ -f "$file" ] && [ -r "$file" ] && [ "$left" -gt 0 ] || continue
    left=$((left - 1))
    printf '%s %s\\n' "$mark" "$file"
    head -c {MAX_FILE_BYTES} "$file" 2>/dev/null
    echo
  done
done
echo "$mark"
"""


def gather(link: Link, patterns: tuple[str, ...], into: Path, root: str = "/") -> tuple[str, ...]:
    """Copy what fits ``patterns`` below the device's ``root`` to ``into``; the paths, relative.

    What can't be read there is left out, as is anything that no pattern asked for. Raises Broken and
    DeviceFault as the link does.
    """
    mark = secrets.token_hex(12)
    ran = link.run(["sh", "-c", _SCRIPT, "sh", mark, root, *patterns], max_bytes=MAX_BYTES)
    found = []
    pieces = re.split(rf"^{mark}(?: (.*))?\n", ran.stdout.decode(errors="replace"), flags=re.MULTILINE)
    for name, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if name is None or not asked_for(name, patterns):
            continue
        path = into / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.removesuffix("\n"))
        found.append(name)
    return tuple(found)


def gather_machine(link: Link, into: Path, root: str = "/") -> tuple[str, ...]:
    """``FITNESS``, and the limits of every control group that the login is in."""
    found = gather(link, FITNESS, into, root)
    limits = tuple(
        path
        for name, controller in _LIMITS
        for path in cgroup.files(into, name, controller)
        if re.fullmatch(r"[\w./@:-]{1,512}", path)  # the device wrote it, and a shell will see it
    )
    return (*found, *gather(link, limits, into, root))


def asked_for(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns fits, part by part: a device must not choose where we write."""
    parts = PurePosixPath(name).parts
    if ".." in parts or name.startswith("/") or not name.isprintable():
        return False
    return any(
        len(parts) == len(asked := PurePosixPath(pattern).parts)
        and all(fnmatch.fnmatchcase(p, a) for p, a in zip(parts, asked, strict=True))
        for pattern in patterns
    )
