"""``doctor``: what is there is there, what is missing has its command."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from edgekiln.compile.targets import TARGETS
from edgekiln.diagnosis import Ability, doctor
from fakes.command import Kiln


def test_each_target_and_importer_is_named_with_the_version_that_is_installed() -> None:
    found = doctor()
    by_name = {(a.subject, a.ability): a for a in found.abilities}
    importers = {"ONNX files", "PyTorch", "PyTorch's exporter", "safetensors"}
    assert {s for s, _ in by_name} == {*TARGETS, *importers, "this machine"}
    assert by_name["onnxruntime", "run"].version == importlib.metadata.version("onnxruntime")
    assert by_name["openvino", "quantise"].version == importlib.metadata.version("nncf")
    assert by_name["tensorrt", "check"].version == importlib.metadata.version("tensorrt-rtx")


def test_what_is_missing_has_a_command_and_what_is_there_has_none() -> None:
    for ability in doctor().abilities:
        assert ability.there == bool(ability.version) or ability.there
        assert ability.there != bool(ability.cure)


def test_sensors_of_power_are_named_and_closed_or_missing_ones_have_a_cure(tmp_path: Path) -> None:
    def power() -> Ability:
        (found,) = [a for a in doctor(tmp_path).abilities if a.subject == "this machine"]
        return found

    assert (power().there, power().cure) == (
        False,
        "there is no sensor of power below /sys; use an external meter",
    )
    zone = tmp_path / "class" / "powercap" / "intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    assert power().cure == (
        "package-0 (intel-rapl:0) can't be read (energy_uj: No such file or directory): run as root"
    )
    (zone / "energy_uj").write_text("17\n")
    assert (power().there, power().ability) == (True, "measure power (package-0 (intel-rapl:0))")


def test_a_machine_without_a_browser_or_its_runtime_is_told_how_to_get_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEKILN_NODE_MODULES", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    rows = {a.ability: a for a in doctor().abilities if a.subject == "web" and a.ability != "convert"}
    assert set(rows) == {"run (Chromium)", "run (onnxruntime-web)"}
    assert not any(a.there for a in rows.values())
    assert "apt-get install chromium" in rows["run (Chromium)"].cure
    assert "npm install" in rows["run (onnxruntime-web)"].cure


def test_an_installation_without_the_extras_is_told_how_to_add_each(tmp_path: Path, kiln: Kiln) -> None:
    """Packages of the light core only: a folder of links to them, and no other site-packages."""
    light = ["numpy", "msgspec", "onnx", "onnxruntime", "platformdirs", "google", "ml_dtypes"]
    site = Path(pytest.__file__).parents[1]
    for name in light:
        for path in (*site.glob(name), *site.glob(f"{name}-*.dist-info"), *site.glob(f"{name}.libs")):
            (tmp_path / path.name).symlink_to(path)
    script = (
        f"import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p] + [{str(tmp_path)!r}]\n"
        "from edgekiln.diagnosis import doctor\n"
        "for a in doctor().abilities: print(a.subject, a.ability, a.there, a.cure, sep='|')"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], env=kiln.environment(), capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    rows = {tuple(line.split("|")[:2]): line.split("|")[2:] for line in found.stdout.splitlines()}
    assert rows["onnxruntime", "run"] == ["True", ""]
    assert rows["openvino", "convert"] == ["False", "pip install 'edgekiln[openvino]'"]
    assert rows["openvino", "quantise"] == ["False", "pip install 'edgekiln[openvino]'"]
    assert rows["tensorrt", "check"] == ["False", "pip install 'edgekiln[tensorrt]'"]
    assert rows["PyTorch", "import"] == ["False", "pip install 'edgekiln[torch]'"]
