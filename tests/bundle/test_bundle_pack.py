"""Packing: the same content is the same bytes, the manifest comes first and names everything."""

import json
import os
import zipfile

import msgspec
import pytest

from edgekiln.bundle.pack import pack
from edgekiln.bundle.unpack import opened, read_manifest
from edgekiln.errors import MachineFault
from edgekiln.files import sha256_bytes
from edgekiln.records import Manifest, Proof
from fakes.bundle_content import LABELS, content, packed


def test_the_same_content_is_the_same_bytes_wherever_whenever_and_by_whom(tmp_path):
    first = packed(tmp_path / "a").read_bytes()
    before = os.umask(0o077)
    try:
        root = tmp_path / "a folder elsewhere" / "deep"
        parts = content(root)
    finally:
        os.umask(before)
    for path in root.rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    parts["provenance"] = dict(reversed(parts["provenance"].items()))
    pack(root / "b.edgekiln", **parts)
    assert (root / "b.edgekiln").read_bytes() == first


def test_other_content_is_other_bytes(tmp_path):
    first = packed(tmp_path / "a").read_bytes()
    assert packed(tmp_path / "b", provenance={"source_kind": "torch"}).read_bytes() != first


def test_the_manifest_is_the_first_member_and_names_every_other_with_its_hash(tmp_path):
    path = packed(tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert names[0] == "manifest.json"
        assert names[1:] == sorted(names[1:])
        held = {n: archive.read(n) for n in names[1:]}
    manifest = read_manifest(path)
    assert {f.path: (f.sha256, f.size_bytes) for f in manifest.files} == {
        n: (sha256_bytes(d), len(d)) for n, d in held.items()
    }
    assert set(held) == {
        "model/model.onnx",
        "model/sub/plan.json",
        "golden/golden-inputs.npz",
        "golden/golden-outputs.npz",
        "labels.txt",
        "evidence.json",
    }


def test_members_hold_no_clock_no_owner_and_are_not_compressed(tmp_path):
    with zipfile.ZipFile(packed(tmp_path)) as archive:
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == 0o644
            assert info.compress_type == zipfile.ZIP_STORED
            assert not info.extra


def test_nothing_of_the_packing_machine_is_inside(tmp_path):
    assert str(tmp_path).encode() not in packed(tmp_path).read_bytes()


def test_the_manifest_carries_what_was_decided_and_proved(tmp_path):
    parts = content(tmp_path / "content")
    told = pack(tmp_path / "x.edgekiln", **parts)
    assert read_manifest(tmp_path / "x.edgekiln") == told
    assert told.schema == 2
    assert (told.artifact, told.choice, told.golden) == (
        parts["proof"].artifact,
        parts["choice"],
        parts["golden"],
    )
    assert told.signature == parts["model"].signature
    assert told.preprocess == parts["model"].preprocess
    assert told.provenance == parts["provenance"]
    assert told.signatures == ()
    with opened(tmp_path / "x.edgekiln") as held:
        evidence = (held.folder / "evidence.json").read_bytes()
    assert msgspec.json.decode(evidence, type=Proof) == parts["proof"]


def test_labels_keep_their_order_and_their_odd_characters(tmp_path):
    with opened(packed(tmp_path)) as held:
        assert held.labels == LABELS


def test_a_model_without_labels_and_golden_tensors_packs_too(tmp_path):
    parts = content(tmp_path / "content", labels=(), golden=False)
    told = pack(tmp_path / "x.edgekiln", **parts)
    assert (told.labels, told.golden) == (None, None)
    with opened(tmp_path / "x.edgekiln") as held:
        assert held.labels == ()
        assert sorted(p.name for p in held.folder.iterdir()) == ["evidence.json", "model"]


def test_an_artifact_that_changed_after_its_proof_is_not_packed(tmp_path):
    parts = content(tmp_path / "content")
    (parts["artifact_folder"] / "model.onnx").write_bytes(b"another")
    with pytest.raises(MachineFault, match="changed after it was proved") as caught:
        pack(tmp_path / "x.edgekiln", **parts)
    assert caught.value.cure
    assert not (tmp_path / "x.edgekiln").exists()


def test_the_manifest_can_be_read_by_any_json_reader(tmp_path):
    with zipfile.ZipFile(packed(tmp_path)) as archive:
        data = json.loads(archive.read("manifest.json"))
    assert set(data) == set(Manifest.__struct_fields__)
