"""A whole ``/sys`` and ``/proc`` of an imaginary board, below a folder."""

from __future__ import annotations

from pathlib import Path


def board(root: Path, *, watts: float = 4.0, celsius: float = 48.5) -> Path:
    """An Orin-like board: one INA3221 rail, three thermal zones (one absent, one empty), a governor."""
    files = {
        "proc/device-tree/model": "NVIDIA Imaginary Orin Developer Kit\0",
        "proc/loadavg": "0.10 0.10 0.10 1/100 1234\n",
        "proc/meminfo": "MemTotal:        7990000 kB\nSwapTotal:       0 kB\nSwapFree:        0 kB\n",
        "proc/self/status": "Name:\tsh\nCpus_allowed_list:\t0-5\n",
        "proc/self/cgroup": "0::/user.slice\n",
        "proc/sys/kernel/osrelease": "5.15.148-tegra\n",
        "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
        "sys/class/hwmon/hwmon3/name": "ina3221\n",
        "sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n",
        "sys/class/hwmon/hwmon3/in1_input": "5000\n",
        "sys/class/hwmon/hwmon3/curr1_input": f"{watts / 5 * 1e3:.0f}\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": f"{celsius * 1e3:.0f}\n",
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
        "sys/class/thermal/thermal_zone2/type": "tj-thermal\n",
        "sys/class/thermal/thermal_zone2/temp": "\n",
        "sys/class/powercap/intel-rapl:0/name": "package-0\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
