"""Files are whole or absent, whatever interrupts the writing, and nothing leaves its folder."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.errors import BadInput
from edgekiln.files import (
    disk_errors,
    entries,
    folder_aside,
    inside,
    sha256_bytes,
    sha256_file,
    sha256_record,
    write_bytes,
    write_json,
)
from edgekiln.records import Budget

# A real limit of the kernel stands in for a full disk: any write past it fails with EFBIG.
LIMITED = """
import resource, signal, sys
from pathlib import Path
from edgekiln.errors import MachineFault
from edgekiln.files import folder_aside, write_bytes
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
root = Path(sys.argv[1])
try:
    if sys.argv[2] == "file":
        write_bytes(root / "big.bin", b"x" * 100_000)
    else:
        with folder_aside(root / "big") as aside:
            (aside / "small").write_bytes(b"x")
            (aside / "large").write_bytes(b"x" * 100_000)
except MachineFault as error:
    print(error.why, "|", error.cure)
"""


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def everything(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def test_a_written_file_replaces_the_old_one_and_leaves_no_other(tmp_path):
    write_bytes(tmp_path / "a" / "b.bin", b"old")
    write_bytes(tmp_path / "a" / "b.bin", b"new")
    assert (tmp_path / "a" / "b.bin").read_bytes() == b"new"
    assert everything(tmp_path) == ["a", "a/b.bin"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_full_disk_is_the_machines_fault_with_a_cure_and_leaves_nothing(tmp_path, what):
    done = run(LIMITED, tmp_path, what)
    assert done.returncode == 0, done.stderr
    assert "no space is left" in done.stdout
    assert "Free some space" in done.stdout
    assert everything(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_as_it_was(tmp_path):
    write_bytes(tmp_path / "big.bin", b"old")
    run(LIMITED, tmp_path, "file")
    assert (tmp_path / "big.bin").read_bytes() == b"old"


def test_a_file_where_a_folder_must_be_is_bad_input_with_a_cure(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(BadInput, match="Choose another folder"):
        write_bytes(tmp_path / "taken" / "x.json", b"{}")
    with pytest.raises(BadInput, match="Choose another folder"), folder_aside(tmp_path / "taken") as aside:
        (aside / "x").write_text("x")
    assert (tmp_path / "taken").read_text() == "a file"
    assert everything(tmp_path) == ["taken"]


def test_a_refused_write_says_whose_permission_is_missing(tmp_path):
    refused = pytest.raises(BadInput, match=r"not permitted.*Choose a folder you own")
    with refused, disk_errors("writing", tmp_path):
        raise PermissionError(13, "Permission denied")


def test_other_errors_of_the_machine_are_not_disguised(tmp_path):
    with pytest.raises(OSError, match="Input/output error") as caught, disk_errors("writing", tmp_path):
        raise OSError(5, "Input/output error")
    assert not isinstance(caught.value, PermissionError)


def test_json_is_the_same_bytes_for_equal_records_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a", {"b": 1, "a": {"y": 2, "x": 1}})
    write_json(tmp_path / "b", {"a": {"x": 1, "y": 2}, "b": 1})
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes()
    assert first.endswith(b"}\n")
    assert json.loads(first) == {"a": {"x": 1, "y": 2}, "b": 1}


# ---------------------------------------------------------------- folders


def test_a_folder_appears_whole_and_no_scratch_stays(tmp_path):
    with folder_aside(tmp_path / "deep" / "done") as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "x").write_text("1")
        assert not (tmp_path / "deep" / "done").exists()
    assert everything(tmp_path) == ["deep", "deep/done", "deep/done/sub", "deep/done/sub/x"]


@pytest.mark.parametrize(
    "kind", [ValueError, KeyboardInterrupt, SystemExit, PermissionError, FileNotFoundError]
)
def test_what_the_block_raises_passes_through_and_leaves_nothing(tmp_path, kind):
    def work():
        with folder_aside(tmp_path / "done") as aside:
            (aside / "x").write_text("1")
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        work()
    assert everything(tmp_path) == []


def test_the_folder_that_was_finished_first_is_kept(tmp_path):
    with folder_aside(tmp_path / "done") as slow:
        (slow / "x").write_text("slow")
        with folder_aside(tmp_path / "done") as fast:
            (fast / "x").write_text("fast")
    assert (tmp_path / "done" / "x").read_text() == "fast"
    assert everything(tmp_path) == ["done", "done/x"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_folders_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        with folder_aside(tmp_path / "done") as aside:
            (aside / "x").write_text("1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "done").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "done" / "x").stat().st_mode) == 0o666 & ~mask


# ---------------------------------------------------------------- hashes and paths


def test_entries_name_every_file_in_order_with_its_hash(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z").write_bytes(b"zz")
    (tmp_path / "a").write_bytes(b"")
    found = entries(tmp_path)
    assert [(e.path, e.size_bytes) for e in found] == [("a", 0), ("b/z", 2)]
    assert found[1].sha256 == sha256_bytes(b"zz") == sha256_file(tmp_path / "b" / "z")


def test_a_records_hash_depends_on_its_content_and_not_on_dict_order():
    assert sha256_record({"a": 1, "b": 2}) == sha256_record({"b": 2, "a": 1})
    assert sha256_record(Budget(fps=1.0)) != sha256_record(Budget(fps=2.0))
    assert sha256_record([1, 2]) != sha256_record([2, 1])


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "link/x", "link"])
def test_a_path_that_leaves_its_folder_is_refused(tmp_path, path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(BadInput, match="leaves its folder"):
        inside(folder, path, "reading")


PARTS = st.lists(st.sampled_from(["a", "b.onnx", "..", ".", "ü", "/", "..."]), min_size=1, max_size=5)


@given(PARTS)
def test_inside_never_gives_a_path_outside(parts):
    root = Path("/nonexistent/root")
    try:
        found = inside(root, "/".join(parts), "reading")
    except BadInput:
        assert ".." in parts or parts[0] == "/"
    else:
        assert found.resolve().is_relative_to(root)
