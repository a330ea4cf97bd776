"""A bundle comes from a stranger: whatever is wrong with it is refused, and nothing of it stays behind."""

import io
import json
import os
import stat
import struct
import sys
import tempfile
import tracemalloc
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekiln.bundle.unpack import opened, read_manifest
from edgekiln.errors import BadInput
from edgekiln.files import sha256_bytes
from fakes import bundle_content
from fakes.bundle_content import packed, packed_with_alternates


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("sound")).read_bytes()


@pytest.fixture(autouse=True)
def scratch(tmp_path):
    """Bundles are unpacked below this folder, where nothing may be left."""
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path / "scratch")
    (tmp_path / "scratch").mkdir()
    yield tmp_path / "scratch"
    tempfile.tempdir = before
    assert list((tmp_path / "scratch").iterdir()) == []


def members(data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {n: archive.read(n) for n in archive.namelist()}


def zipped(held, infos=None, method=zipfile.ZIP_STORED):
    """A zip of (name, bytes) pairs; ``infos`` changes the ZipInfo of single names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in held:
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o644 << 16
            info.compress_type = method
            (infos or {}).get(name, lambda i: None)(info)
            archive.writestr(info, data)
    return out.getvalue()


def rewritten(data, change, held=None):
    """The bundle with its manifest changed by ``change`` and, where given, other members."""
    parts = members(data)
    manifest = json.loads(parts["manifest.json"])
    change(manifest)
    parts |= held or {}
    parts["manifest.json"] = json.dumps(manifest).encode()
    return zipped(parts.items())


def refused(tmp_path, data, why=None):
    path = tmp_path / "x.edgekiln"
    path.write_bytes(data)
    with pytest.raises(BadInput) as caught, opened(path):
        pytest.fail("the bundle was opened")
    assert caught.value.exit_code == 2
    assert "again" in caught.value.cure or "version" in caught.value.cure
    if why:
        assert why in caught.value.why
    return caught.value


def test_a_sound_bundle_opens_and_vanishes_afterwards(tmp_path, sound, scratch):
    (tmp_path / "x").write_bytes(sound)
    with opened(tmp_path / "x") as held:
        folder = held.folder
        assert folder.parent == scratch
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        parts = members(sound)
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        assert found == {n: d for n, d in parts.items() if n != "manifest.json"}
        assert (held.model_folder / held.manifest.artifact.entry).is_file()
    assert not folder.exists()


def test_the_folder_vanishes_where_the_user_of_the_bundle_fails(tmp_path, sound, scratch):
    (tmp_path / "x").write_bytes(sound)
    with pytest.raises(ZeroDivisionError), opened(tmp_path / "x"):
        raise ZeroDivisionError
    assert list(scratch.iterdir()) == []


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "name",
    [
        "manifest.json",
        "model/model.onnx",
        "model/sub/plan.json",
        "golden/golden-inputs.npz",
        "labels.txt",
        "evidence.json",
    ],
)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_flipped_byte_in_any_member_is_refused(tmp_path, sound, name, place):
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        info = archive.getinfo(name)
    start = info.header_offset + 30 + len(name)
    at = start + round(place * (info.file_size - 1))
    data = bytearray(sound)
    data[at] ^= 0x10
    refused(tmp_path, bytes(data))


@pytest.mark.parametrize("name", ["model/model.onnx", "labels.txt"])
def test_a_changed_member_with_a_sound_checksum_is_refused_by_its_hash(tmp_path, sound, name):
    parts = members(sound)
    parts[name] = bytes([parts[name][0] ^ 1]) + parts[name][1:]
    refused(tmp_path, zipped(parts.items()), "does not have the hash")


def test_a_bundle_cut_at_any_of_fifty_places_is_refused(tmp_path, sound):
    for step in range(50):
        refused(tmp_path, sound[: step * len(sound) // 50])
    refused(tmp_path, sound[:-1])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_the_zips_own_structure_is_refused_or_harmless(tmp_path, sound, data):
    """Bytes of the headers and the directory are set at random: the members' bytes are right, or it is
    refused; no other error comes out."""
    payload = set()
    with zipfile.ZipFile(io.BytesIO(sound)) as archive:
        for info in archive.infolist():
            start = info.header_offset + 30 + len(info.filename)
            payload |= set(range(start, start + info.file_size))
    structure = [i for i in range(len(sound)) if i not in payload]
    changed = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.sampled_from(structure))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.edgekiln"
    path.write_bytes(changed)
    try:
        with opened(path) as held:
            assert (held.folder / "model/model.onnx").read_bytes() == members(sound)["model/model.onnx"]
    except BadInput:
        pass


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200), st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"PK\x05\x06" + bytes(18)])
)
def test_bytes_that_are_no_bundle_are_refused(tmp_path, data, start):
    refused(tmp_path, start + data)


def test_what_is_no_file_is_refused(tmp_path):
    for path, why in ((tmp_path / "nothing", "no such file"), (tmp_path, "no whole zip")):
        with pytest.raises(BadInput, match=why), opened(path):
            pass
    with pytest.raises(BadInput, match="no such file"):
        read_manifest(tmp_path / "nothing")


# ---------------------------------------------------------------- members


def test_a_member_that_the_manifest_does_not_name_is_refused(tmp_path, sound):
    parts = [*members(sound).items(), ("model/extra.so", b"\x7fELF")]
    refused(tmp_path, zipped(parts), "'model/extra.so' is not named")


@pytest.mark.parametrize(
    "name", ["model/model.onnx", "labels.txt", "golden/golden-outputs.npz", "evidence.json"]
)
def test_a_missing_member_is_refused(tmp_path, sound, name):
    parts = members(sound)
    del parts[name]
    refused(tmp_path, zipped(parts.items()), f"'{name}' is named in the manifest and not there")


def test_a_bundle_without_a_manifest_is_refused(tmp_path, sound):
    parts = members(sound)
    del parts["manifest.json"]
    refused(tmp_path, zipped(parts.items()), "manifest.json")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["model/model.onnx", "manifest.json"])
def test_a_name_that_occurs_twice_is_refused(tmp_path, sound, name):
    parts = members(sound)
    refused(tmp_path, zipped([*parts.items(), (name, parts[name])]), "occurs twice")


def as_link(info):
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def as_device(info):
    info.external_attr = (stat.S_IFCHR | 0o666) << 16


@pytest.mark.parametrize("kind", [as_link, as_device])
def test_a_link_or_a_device_is_refused_even_with_a_sound_hash(tmp_path, sound, kind):
    target = b"/etc/passwd"

    def change(manifest):
        for files in (manifest["files"], manifest["artifact"]["files"]):
            for file in files:
                if file["path"] in {"model/sub/plan.json", "sub/plan.json"}:
                    file.update(sha256=sha256_bytes(target), size_bytes=len(target))

    parts = members(rewritten(sound, change, {"model/sub/plan.json": target}))
    refused(tmp_path, zipped(parts.items(), {"model/sub/plan.json": kind}), "no plain file")


def test_a_signature_may_lie_there_and_is_not_unpacked(tmp_path, sound):
    parts = [*members(sound).items(), ("signatures/manifest.sig", b"later")]
    (tmp_path / "x").write_bytes(zipped(parts))
    with opened(tmp_path / "x") as held:
        assert not (held.folder / "signatures").exists()


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["deflate", "bzip2", "lzma"]
)
def test_a_compressed_bundle_is_refused_so_no_small_file_can_fill_the_disk(tmp_path, sound, method):
    bomb = bytes(30_000_000)

    def change(manifest):
        for files in (manifest["files"], manifest["artifact"]["files"]):
            for file in files:
                if file["path"].endswith("model.onnx"):
                    file.update(sha256=sha256_bytes(bomb), size_bytes=len(bomb))

    parts = members(rewritten(sound, change, {"model/model.onnx": bomb}))
    data = zipped(parts.items(), method=method)
    assert len(data) < 100_000
    refused(tmp_path, data, "is compressed")


def test_a_manifest_that_says_huge_sizes_is_refused(tmp_path, sound):
    def change(manifest):
        manifest["files"][0]["size_bytes"] = 1 << 50

    refused(tmp_path, rewritten(sound, change), "16 GiB")


def test_sizes_that_add_up_to_more_than_the_file_are_refused(tmp_path, sound):
    def change(manifest):
        manifest["files"][0]["size_bytes"] = 1 << 30

    refused(tmp_path, rewritten(sound, change), "more than its own size")


def test_a_size_that_differs_is_refused(tmp_path, sound):
    def change(manifest):
        manifest["files"][0]["size_bytes"] -= 1

    refused(tmp_path, rewritten(sound, change), "the manifest says")


def test_a_manifest_larger_than_any_real_one_is_refused_unread(tmp_path, sound):
    parts = members(sound)
    parts["manifest.json"] += b" " * (17 << 20)
    data = zipped(parts.items())
    tracemalloc.start()
    try:
        refused(tmp_path, data, "larger than any real one")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_directory_that_lies_about_the_size_is_refused(tmp_path, sound):
    data = bytearray(sound)
    at = data.rindex(b"PK\x01\x02")  # the last member's entry: compressed and plain size at 20 and 24
    size = struct.unpack_from("<I", data, at + 24)[0]
    struct.pack_into("<II", data, at + 20, size + 5, size + 5)
    refused(tmp_path, bytes(data))


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "model/../../evil",
        "/tmp/evil",
        "model//evil",
        "./evil",
        "model/./evil",
        "model/",
        "",
        ".",
        "..",
        "a" * 300,
        "model/model.onnx/evil",
        "model",
    ],
)
def test_a_member_whose_path_is_not_plain_is_refused(tmp_path, sound, name):
    def change(manifest):
        manifest["files"].append({"path": name, "sha256": sha256_bytes(b"evil"), "size_bytes": 4})

    (tmp_path / "evil").unlink(missing_ok=True)
    refused(tmp_path, rewritten(sound, change, {name: b"evil"}))
    assert not (tmp_path / "evil").exists()
    assert not Path("/tmp/evil").exists()


def test_an_artifact_that_points_out_of_the_bundle_is_refused(tmp_path, sound):
    """model/ and an absolute path make a harmless path; the absolute path alone does not."""
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(b"outside")

    def change(manifest):
        file = {"path": str(outside), "sha256": sha256_bytes(b"outside"), "size_bytes": 7}
        manifest["files"].append({**file, "path": f"model/{outside}"})
        manifest["artifact"]["files"].append(file)
        manifest["artifact"]["entry"] = str(outside)

    refused(tmp_path, rewritten(sound, change, {f"model/{outside}": b"outside"}), "no plain path")


def golden_outside(manifest):
    manifest["golden"]["inputs"] = "../../outside.npz"


def golden_absolute(manifest):
    manifest["golden"]["outputs"] = "/etc/passwd"


def golden_unnamed(manifest):
    manifest["golden"]["outputs"] = "other.npz"


def labels_elsewhere(manifest):
    manifest["labels"] = "model/model.onnx"


def entry_elsewhere(manifest):
    manifest["artifact"]["entry"] = "../labels.txt"


def artifact_uncovered(manifest):
    manifest["artifact"]["files"].append({"path": "weights.bin", "sha256": "0" * 64, "size_bytes": 1})


def artifact_of_another_hash(manifest):
    manifest["artifact"]["files"][0]["sha256"] = "0" * 64


def files_forgotten(manifest):
    manifest["files"] = [f for f in manifest["files"] if not f["path"].startswith("model/")]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (golden_outside, "no plain path"),
        (golden_absolute, "no plain path"),
        (golden_unnamed, "does not cover 'golden/other.npz'"),
        (labels_elsewhere, "does not cover 'model/model.onnx'"),
        (entry_elsewhere, "is none of its files"),
        (artifact_uncovered, "does not cover its own artifact's 'weights.bin'"),
        (artifact_of_another_hash, "does not cover its own artifact's"),
        (files_forgotten, "is not named in the manifest"),
    ],
)
def test_a_manifest_that_does_not_cover_what_will_be_opened_is_refused(tmp_path, sound, change, why):
    refused(tmp_path, rewritten(sound, change), why)


# ---------------------------------------------------------------- the manifest itself


def test_another_schema_is_refused_with_both_numbers(tmp_path, sound):
    error = refused(tmp_path, rewritten(sound, lambda m: m.update(schema=3)))
    assert error.why == "its schema is 3, this program reads 1 and 2"
    assert "version" in error.cure


def test_a_bundle_of_schema_1_opens_and_has_no_alternates(tmp_path, sound):
    def older(manifest):
        manifest.update(schema=1)
        del manifest["alternates"], manifest["evidence"]

    (tmp_path / "x").write_bytes(rewritten(sound, older))
    with opened(tmp_path / "x") as held:
        assert [artifact for artifact, _ in held.artifacts] == [held.manifest.artifact]


@pytest.fixture
def with_alternates(tmp_path):
    return packed_with_alternates(tmp_path / "made").read_bytes()


def test_alternates_are_opened_with_their_own_files(tmp_path, with_alternates):
    (tmp_path / "x").write_bytes(with_alternates)
    with opened(tmp_path / "x") as held:
        chosen, *others = held.artifacts
        assert chosen == (held.manifest.artifact, held.folder / "model")
        assert [a.recipe for a, _ in others] == ["fp32", "fp16"]
        for artifact, folder in others:
            (file,) = artifact.files
            assert (folder / file.path).read_bytes() == artifact.recipe.encode() * 100
        assert held.manifest.alternates[0].evidence


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m["alternates"][0].update(folder=".."), "no plain path"),
        (lambda m: m["alternates"][0].update(folder="a/b"), "no plain folder name"),
        (lambda m: m["alternates"][0].update(folder="2"), "does not cover its own artifact"),
        (lambda m: m["alternates"][0]["artifact"].update(id=m["artifact"]["id"]), "bear one name"),
        (lambda m: m["alternates"][0]["artifact"].update(entry="other.onnx"), "none of its files"),
        (lambda m: m["alternates"][0]["artifact"]["files"][0].update(path="/etc/passwd"), "no plain path"),
        (lambda m: m["alternates"][1]["artifact"]["files"][0].update(sha256="0" * 64), "does not cover"),
    ],
)
def test_alternates_that_are_not_sound_are_refused(tmp_path, with_alternates, change, why):
    refused(tmp_path, rewritten(with_alternates, change), why)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(extra=1),
        lambda m: m["artifact"].update(extra=1),
        lambda m: m["files"][0].update(mode=0o777),
        lambda m: m.pop("artifact"),
        lambda m: m.update(schema=None),
        lambda m: m.update(schema=True),
        lambda m: m.pop("schema"),
        lambda m: m.update(task="dowsing"),
        lambda m: m["files"][0].update(size_bytes="12"),
        lambda m: m.update(files=7),
    ],
)
def test_an_unknown_key_or_a_wrong_type_in_the_manifest_is_refused(tmp_path, sound, change):
    refused(tmp_path, rewritten(sound, change))


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"7", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": ' + b"[" * 100_000]
)
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path, sound, text):
    parts = {**members(sound), "manifest.json": text}
    refused(tmp_path, zipped(parts.items()))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_value_anywhere_in_the_manifest_opens_soundly_or_is_refused(tmp_path, sound, data):
    def change(manifest):
        place = manifest
        while True:
            key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(JSON)
            return

    path = tmp_path / "x.edgekiln"
    path.write_bytes(rewritten(sound, change))
    try:
        with opened(path) as held:
            entry = held.model_folder / held.manifest.artifact.entry
            assert entry.read_bytes() in set(members(sound).values())
            assert entry.resolve().is_relative_to(held.folder.resolve())
    except BadInput:
        pass


def test_labels_that_are_no_text_are_refused(tmp_path, sound):
    def change(manifest):
        for file in manifest["files"]:
            if file["path"] == "labels.txt":
                file.update(sha256=sha256_bytes(b"\xff\xfe"), size_bytes=2)

    (tmp_path / "x").write_bytes(rewritten(sound, change, {"labels.txt": b"\xff\xfe"}))
    with opened(tmp_path / "x") as held, pytest.raises(BadInput, match="UTF-8"):
        _ = held.labels


def test_a_full_disk_while_unpacking_is_the_machines_fault(tmp_path, sound):
    import subprocess

    (tmp_path / "x").write_bytes(sound)
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom edgekiln.bundle.unpack import opened\n"
        "from edgekiln.errors import MachineFault\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "try:\n    with opened(Path(sys.argv[1])): print('opened')\n"
        "except MachineFault as error: print(error.cure)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": tempfile.gettempdir()},
    )
    assert "Free some space" in done.stdout, done.stderr


@pytest.mark.parametrize(("entry", "sound"), [("sub", True), ("su", False), (".", False), ("sub/", False)])
def test_an_entry_may_be_a_folder_of_the_artifacts_files_as_a_core_ml_package_is(entry, sound, tmp_path):
    held = bundle_content.content(tmp_path / "content")
    proof = held["proof"]
    artifact = msgspec.structs.replace(proof.artifact, entry=entry)
    held["proof"] = msgspec.structs.replace(proof, artifact=artifact)
    path = tmp_path / "made.edgekiln"
    bundle_content.pack(path, **held)
    if sound:
        with opened(path) as found:
            assert (found.model_folder / found.manifest.artifact.entry / "plan.json").is_file()
        return
    with pytest.raises(BadInput, match="is none of its files"), opened(path):
        pass
