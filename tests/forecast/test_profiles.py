"""The profiles that ship are those that the scripts in this repository make."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgekiln.errors import BadInput
from edgekiln.forecast import profiles

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "prediction"
TABLE = ROOT.parent / "shared" / "data" / "published.csv"
needs_table = pytest.mark.skipif(
    not TABLE.exists(), reason=f"the published table is not beside: {TABLE.name}"
)


def test_they_were_made_from_the_architectures_that_are_kept_beside_the_script() -> None:
    digest = hashlib.sha256((SCRIPTS / "zoo.json").read_bytes()).hexdigest()
    assert profiles.data().provenance["architectures"].endswith(digest)


@needs_table
def test_they_were_made_from_this_table() -> None:
    digest = hashlib.sha256(TABLE.read_bytes()).hexdigest()
    assert profiles.data().provenance["table"].endswith(digest)


@needs_table
@pytest.mark.parametrize("group", ["cpu-litert", "jetson-tensorrt"])
def test_the_script_gives_the_same_coefficients_again(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("scipy")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    for name in ("table", "pooled"):
        sys.modules.pop(name, None)
    import pooled
    import table

    known = table.zoo()
    found, _ = table.rows(TABLE, known, "latency_ms")
    (wanted,) = (g for g in table.GROUPS if g.name == group)
    data = table.data(wanted, found, known)
    each = pooled.fit(data, np.ones(len(data.y), dtype=bool)).each
    kept = {(p.chip, p.device, p.runtime, p.precision, p.mode): p for p in profiles.data().profiles}
    for key, row in zip(data.keys, each, strict=True):
        predicted = data.x @ row
        shipped = data.x @ np.array(kept[tuple(key)].coefficients)
        assert np.allclose(predicted, shipped, rtol=0.01)


def test_every_published_figure_that_is_shown_has_a_source() -> None:
    for found in profiles.data().profiles:
        assert found.source
        assert all(value > 0 for value in found.published.values())


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2}', "[]"])
def test_a_file_that_holds_no_profiles_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"profiles\.json"):
        profiles.data(path)


@pytest.mark.parametrize("text", ["", "runs = 3", "[[runs]]\ndevice = 'x'", "runs = ["])
def test_a_table_of_runs_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.toml"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"runs\.toml|table of runs"):
        profiles.runs(path)


def test_each_spread_holds_its_own_words() -> None:
    for group in profiles.data().groups.values():
        for spread in (*group.own.values(), *group.anchored.values()):
            assert spread.low <= 1 <= spread.high
            assert spread.n > 0
            assert msgspec.json.encode(spread)
