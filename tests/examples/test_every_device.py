"""The demo for nine devices: a bundle each, a parity row each, app code in each device's own language.

Built with fp32 alone and few pictures: what each target does with each recipe is tested where the target is.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from edgekiln.bundle.unpack import opened
from edgekiln.compile.targets import TARGETS
from edgekiln.job import SearchOrder, load
from edgekiln.records import Build
from edgekiln.road import build

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "efficientnet_lite0"
LANGUAGES = {
    "host": {"python", "cpp"},
    "jetson-orin-nano-8gb": {"python", "cpp"},
    "raspberry-pi-5": {"python", "cpp"},
    "iphone-16-pro": {"swift"},
    "macbook-m4": {"swift"},
    "galaxy-s24": {"kotlin"},
    "pixel-9": {"kotlin"},
    "intel-n100": {"python", "cpp"},
    "browser": {"javascript"},
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Path]:
    """The job of nine devices with a few crops to judge on and no labelled pictures."""
    folder = tmp_path_factory.mktemp("everywhere")
    made = [sys.executable, str(EXAMPLE / "data.py"), "--out", str(folder / "data")]
    subprocess.run(made, check=True, capture_output=True, timeout=120)
    (folder / "few").mkdir()
    for crop in sorted((folder / "data" / "holdout").iterdir())[::20]:
        shutil.copy(crop, folder / "few")
    job = load(EXAMPLE / "every_device.toml")
    order = msgspec.structs.replace(
        job,
        model=msgspec.structs.replace(job.model, labels=str(folder / "data" / "labels.txt")),
        data=str(folder / "few"),
        holdout=None,
        eval=None,
        out=str(folder / "out"),
        search=SearchOrder(recipes=("fp32",), threads=2, samples=20),
    )
    return build(order, cache=folder / "cache"), folder / "out"


def test_the_two_jobs_differ_in_devices_targets_and_output_alone() -> None:
    few, all_ = (tomllib.loads((EXAMPLE / name).read_text()) for name in ("job.toml", "every_device.toml"))
    assert set(all_.pop("devices")) == set(LANGUAGES) >= set(few.pop("devices"))
    assert all_.pop("out") != few.pop("out")
    assert set(few["search"].pop("targets")) < set(TARGETS)
    assert all_ == few


def test_every_device_gets_a_bundle_with_a_parity_row_and_its_app_code(built: tuple[Build, Path]) -> None:
    found, out = built
    assert [c.device for c in found.decision.choices] == list(LANGUAGES)
    for choice in found.decision.choices:
        assert choice.bundle is not None, choice.basis
        chosen = next(
            p for p in found.proofs if (p.device, p.artifact.id) == (choice.device, choice.artifact_id)
        )
        sqnr = chosen.value("sqnr_db")
        assert sqnr is not None
        assert sqnr > 90, chosen.artifact.id
        with opened(out / choice.bundle) as held:
            names = {file.path for file in held.manifest.files}
        languages = {n.split("/")[1] for n in names if n.startswith("app/")} - {"selftest"}
        assert languages == LANGUAGES[choice.device]


def test_every_target_made_and_proved_its_file_or_says_that_it_has_no_such_recipe(
    built: tuple[Build, Path],
) -> None:
    found, _ = built
    assert {f.target for f in found.failures} == {"qnn"}
    assert {f.kind for f in found.failures} == {"skipped"}
    proved = {p.artifact.target for p in found.proofs}
    assert proved == set(TARGETS) - {"qnn"}
    for proof in found.proofs:
        assert proof.artifact.placement, proof.artifact.id
        native = proof.device == "host"
        assert {e.how for e in proof.evidence if e.what == "sqnr_db"} == {
            "measured" if native else "emulated"
        }


def test_what_devices_share_is_converted_once(built: tuple[Build, Path]) -> None:
    found, _ = built
    hashes = {p.device: p.artifact.files for p in found.proofs if p.artifact.target == "litert"}
    assert set(hashes) == {"raspberry-pi-5", "iphone-16-pro", "galaxy-s24", "pixel-9"}
    assert len(set(hashes.values())) == 1
