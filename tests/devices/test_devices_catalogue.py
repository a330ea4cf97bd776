"""The catalogue and its reader: what may ship, and what the reader refuses."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.devices import CATALOGUE, COMMON_FIGURES, TARGETS, Figure, load, load_catalogue, names
from edgekiln.errors import BadInput

DEVICES = load_catalogue()
FILES = sorted(CATALOGUE.glob("*.toml"))
TEXT = "".join(file.read_text(encoding="utf-8") for file in FILES)
FIGURES = [(d.name, key, fig) for d in DEVICES.values() for key, fig in d.figures.items()]
SMALL = """
schema = 1
[sources]
sheet = "Data sheet 7, https://example.com/sheet"
[devices.alpha]
title = "Alpha"
kind = "board"
arch = "arm64"
targets = ["onnxruntime"]
threads = 2
features = ["asimddp"]
[devices.alpha.figures]
"""


def small(figures: dict[str, str] | None = None, head: str = SMALL) -> str:
    """A catalogue with one device whose figures are all unknown but the given ones (TOML of each)."""
    known = {"isa": '{ value = ["asimddp"], source = "{sheet}, page 2" }', **(figures or {})}
    rest = {k: known.get(k, '{ reason = "not stated" }') for k in dict.fromkeys((*COMMON_FIGURES, *known))}
    return head + "\n".join(f"{k} = {v}" for k, v in rest.items())


def read(tmp_path: Path, text: str) -> BadInput:
    """The refusal of a catalogue with that text."""
    path = tmp_path / "catalogue.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput) as refusal:
        load_catalogue(path)
    return refusal.value


def test_the_issues_devices_are_all_there_host_first() -> None:
    assert names()[0] == "host"
    assert names()[1:] == (
        *("galaxy-s23", "galaxy-s24", "galaxy-s24-exynos", "galaxy-s25", "pixel-8", "pixel-9", "vivo-x100"),
        *("iphone-15-pro", "iphone-16-pro", "macbook-m4", "macbook-pro-m4-pro", "macbook-pro-m4-max"),
        *("raspberry-pi-5", "coral-dev-board", "coral-usb-accelerator"),
        *("jetson-orin-nano-4gb", "jetson-orin-nano-8gb", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb"),
        *("jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-agx-orin-industrial", "jetson-agx-thor"),
        *("intel-n100", "intel-core-ultra-155h", "intel-core-ultra-258v", "browser"),
    )


@pytest.mark.parametrize(("device", "key", "figure"), FIGURES, ids=[f"{d}-{k}" for d, k, _ in FIGURES])
def test_every_figure_has_either_a_value_and_a_source_or_a_reason(
    device: str, key: str, figure: Figure
) -> None:
    if figure.value is None:
        assert len(figure.reason.split()) >= 2, "a reason is more than a word"
        assert not figure.source
    else:
        assert not figure.reason
        derived = figure.source.startswith("derived: ")
        cited = "https://" in figure.source or re.search(r"\S+/\S+@[0-9a-f]{8}\b", figure.source)
        assert cited, "a source is a title with an address, or repository@commit and a path"
        assert "{" not in figure.source
        assert not derived or re.search(r"[-+x/]|count", figure.source), "a derived figure gives its formula"


def test_nothing_without_a_source_slipped_in_from_memory() -> None:
    assert not re.search(r"\[?\bMEM\b\]?|\bTODO\b|\bguess", TEXT)
    # a number in the place of an unknown
    assert not any(f.value in (0, "", -1) and key not in {"dla", "nvenc"} for _, key, f in FIGURES)


def test_every_source_of_the_file_is_used() -> None:
    keys = [key for file in FILES for key in tomllib.loads(file.read_text(encoding="utf-8"))["sources"]]
    assert len(keys) > 60
    assert [key for key in keys if f"{{{key}}}" not in TEXT] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_source_that_one_file_cites_stands_in_that_file(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    own = tomllib.loads(text)["sources"]
    if file.name == "sources.toml":
        others = [f.read_text(encoding="utf-8") for f in FILES if f != file]
        assert all(sum(f"{{{key}}}" in other for other in others) > 1 for key in own)
    else:
        assert all(f"{{{key}}}" in text for key in own)


@pytest.mark.parametrize("name", [d.name for d in DEVICES.values() if d.kind == "jetson"])
def test_a_jetsons_dense_figures_are_half_its_sparse_ones_and_never_the_same(name: str) -> None:
    figures = DEVICES[name].figures
    pairs = [
        (figures[key.replace("sparse", "dense")].value, figure.value)
        for key, figure in figures.items()
        if "_sparse_" in key and key.replace("sparse", "dense") in figures
    ]
    assert pairs
    known = [(d, s) for d, s in pairs if d is not None and s is not None]
    assert known, "at least one pair of this Jetson is stated"
    for dense, sparse in known:
        assert isinstance(dense, float | int)
        assert isinstance(sparse, float | int)
        assert dense != sparse
        assert dense == pytest.approx(sparse / 2, rel=0.02)  # 67 and 33: NVIDIA rounds
    sparse_sources = [f.source for k, f in figures.items() if "_sparse_" in k and f.value is not None]
    assert all("sparse" in s or "table 1-2" in s for s in sparse_sources)


@pytest.mark.parametrize(
    ("name", "key", "formula"),
    [
        ("jetson-orin-nx-16gb", "gpu_int8_dense_tops", (157 - 80) / 2),
        ("jetson-orin-nx-16gb", "gpu_int8_dense_tops_base", (100 - 40) / 2),
        ("jetson-orin-nx-8gb", "gpu_int8_dense_tops", (117 - 40) / 2),
        ("jetson-orin-nx-8gb", "gpu_int8_dense_tops_base", (70 - 20) / 2),
        ("jetson-agx-orin-32gb", "gpu_int8_dense_tops", 108 / 2),
        ("jetson-agx-orin-32gb", "fp16_dense_tflops", 54 / 2),
        ("jetson-agx-orin-industrial", "gpu_int8_dense_tops", 156 / 2),
        ("jetson-agx-orin-industrial", "fp16_dense_tflops", 78 / 2),
        ("jetson-agx-thor", "int8_dense_tops", 1035 / 2),
        ("jetson-agx-thor", "fp16_dense_tflops", 517 / 2),
        ("jetson-orin-nano-4gb", "memory_bytes", 4 * 2**30),
        ("jetson-agx-thor", "memory_bytes", 128 * 2**30),
        ("pixel-8", "memory_bytes", 8 * 2**30),
        ("coral-dev-board", "edge_tpu_watts", 4 * 0.5),
        ("jetson-agx-orin-64gb", "gpu_int8_dense_tops", 170 / 2),
        ("jetson-agx-orin-64gb", "fp16_dense_tflops", 85 / 2),
        ("intel-n100", "bandwidth_gb_s", 4800 * 8 / 1000),
        ("pixel-9", "memory_bytes", 12 * 2**30),
        ("jetson-orin-nx-16gb", "memory_bytes", 16 * 2**30),
        ("jetson-agx-orin-64gb", "memory_bytes", 64 * 2**30),
        ("browser", "memory_bytes", 65536 * 65536),
    ],
)
def test_a_derived_figure_is_what_its_formula_gives(name: str, key: str, formula: float) -> None:
    figure = DEVICES[name].figures[key]
    assert figure.source.startswith("derived: ")
    assert figure.value == pytest.approx(formula)


def test_claims_that_measurements_contradict_are_not_repeated() -> None:
    nano = DEVICES["jetson-orin-nano-8gb"].figures
    assert nano["nvenc"].value == 0  # it has no hardware encoder
    assert nano["video_encode"].value == ()
    assert nano["dla"].value == 0
    assert nano["throttle_celsius"].value != 25  # 25 W is a power cap, not a temperature
    assert "not a temperature" in nano["power_modes_watts"].source
    assert "60x" not in TEXT  # the M4 is not 60 times the M1
    assert not any("450" in str(f.value) or "450 FPS" in f.source for _, _, f in FIGURES)
    for phone in (
        "iphone-15-pro",
        "iphone-16-pro",
        "macbook-m4",
    ):  # a headline without precision is no dense figure
        assert DEVICES[phone].figures["int8_dense_tops"].value is None
        assert DEVICES[phone].figures["npu_headline_tops"].value is not None


def test_targets_are_known_and_in_a_sensible_order() -> None:
    for device in DEVICES.values():
        assert set(device.targets) <= set(TARGETS)
        if device.kind == "jetson":
            assert device.targets[0] == "tensorrt"
    assert DEVICES["browser"].targets == ("web",)


def test_features_are_the_sourced_ones_of_the_chip() -> None:
    assert set(DEVICES["raspberry-pi-5"].features) == {"asimddp", "asimdhp"}  # no bf16, no i8mm on an A76
    assert "avx_vnni" in DEVICES["intel-n100"].features
    assert not any("avx512" in f for f in DEVICES["intel-n100"].features)  # Gracemont has none


@pytest.mark.parametrize("name", [d.name for d in DEVICES.values() if "agx-orin" in d.name])
def test_an_agx_orins_throughput_is_the_sum_of_its_gpu_and_its_dlas(name: str) -> None:
    figures = DEVICES[name].figures
    parts = [figures[key].value for key in ("gpu_int8_sparse_tops", "dla_int8_sparse_tops")]
    assert figures["int8_sparse_tops"].value == sum(p for p in parts if isinstance(p, int))


def test_what_is_built_for_a_coral_is_not_said_to_run_on_its_edge_tpu() -> None:
    for device in (d for d in DEVICES.values() if d.kind == "accelerator"):
        assert device.targets[0] == "litert"
        assert device.features == ()
        assert "no target of this program" in device.figures["edge_tpu_artifacts"].reason
        assert device.figures["int8_dense_tops"].value == 4


def test_a_chips_name_is_the_one_that_hexagons_compiler_knows() -> None:
    from edgekiln.compile.targets.qnn import soc

    found = {name: chip.part for name, d in DEVICES.items() if (chip := soc(d)) is not None}
    assert found == {"galaxy-s23": "SM8550", "galaxy-s24": "SM8650", "galaxy-s25": "SM8750"}
    assert {name for name, d in DEVICES.items() if "qnn" in d.targets} == set(found)


def test_a_device_turns_itself_off_above_where_it_slows_down() -> None:
    for device in DEVICES.values():
        slow, off = (device.figures[f"{k}_celsius"].value for k in ("throttle", "shutdown"))
        assert slow is None or off is None or float(str(slow)) < float(str(off))


def test_arrays_decode_to_tuples_of_what_they_hold() -> None:
    figures = DEVICES["jetson-orin-nano-8gb"].figures
    assert figures["power_modes_watts"].value == (7, 15, 25)
    assert figures["jetpack"].value == ("5", "6", "7")
    assert isinstance(figures["cores"].value, int)
    assert hash(figures["power_modes_watts"]) == hash(figures["power_modes_watts"])


def test_an_unknown_name_gives_the_near_ones_and_exit_code_2() -> None:
    with pytest.raises(BadInput) as refusal:
        load("jetson-orin-nano")
    assert "jetson-orin-nano-8gb" in refusal.value.cure
    assert refusal.value.exit_code == 2
    with pytest.raises(BadInput, match="host, intel-core-ultra-155h") as far:
        load("zzzzzz")
    assert "Known:" in far.value.cure


def test_a_sound_catalogue_is_read_and_its_sources_are_written_out(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text(small(), encoding="utf-8")
    alpha = load_catalogue(path)["alpha"]
    assert alpha.figures["isa"].source == "Data sheet 7, https://example.com/sheet, page 2"
    assert alpha.figures["cpu"].value is None
    assert alpha.figures["cpu"].reason == "not stated"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('targets = ["onnxruntime"]', 'targets = ["onnxruntim"]', "Did you mean 'onnxruntime'"),
        ('targets = ["onnxruntime"]', 'targets = ["onnxruntime", "onnxruntime"]', "stands twice"),
        ('targets = ["onnxruntime"]', "targets = []", "no target"),
        ('features = ["asimddp"]', 'features = ["asimddp", "asimddp"]', "stands twice"),
        ('features = ["asimddp"]', 'features = ["asimddp", "bf16"]', "bf16 has no source"),
        ("threads = 2", "threads = 0", "threads is 0"),
        ("threads = 2", 'threads = "2"', "threads"),
        ("threads = 2", "threads = 2\ncolour = 1", "colour"),
        ('kind = "board"', 'kind = "toaster"', "toaster"),
        ('kind = "board"', 'kind = "host"', "host"),
        ("schema = 1", "schema = 2", "schema"),
        ("{sheet}", "{shet}", "Did you mean 'sheet'"),
        ("[devices.alpha]", "[devices.host]", "probed"),
        ('cpu = { reason = "not stated" }', "", "no figure cpu"),
        ('cpu = { reason = "not stated" }', "cpu = {}", "needs a reason"),
        ('cpu = { reason = "not stated" }', 'cpu = { value = "A76" }', "needs a source"),
        ('cpu = { reason = "not stated" }', 'cpu = { value = "A", source = "x", reason = "y" }', "either"),
        ('cpu = { reason = "not stated" }', 'cpu = { value = {}, source = "x" }', "value"),
        ('cpu = { reason = "not stated" }', 'cpu = { reason = "a" }\ncpu = { reason = "b" }', "overwrite"),
        ("[sources]", "[devices.alpha]\n[sources]", "declare"),
    ],
)
def test_the_reader_refuses(tmp_path: Path, old: str, new: str, says: str) -> None:
    text = small()
    assert old in text
    changed = text.replace(old, new, 1)
    if "[devices.host]" in new:
        changed = changed.replace("[devices.alpha.figures]", "[devices.host.figures]")
    refusal = read(tmp_path, changed)
    assert says in f"{refusal.why} {refusal.cure}"
    assert refusal.exit_code == 2


def test_the_files_of_a_folder_share_their_sources(tmp_path: Path) -> None:
    head, device = SMALL.split("[devices.alpha]")
    (tmp_path / "sources.toml").write_text(head, encoding="utf-8")
    rest = small(head="schema = 1\n[sources]\n[devices.alpha]" + device)
    (tmp_path / "boards.toml").write_text(rest, encoding="utf-8")
    (tmp_path / "more.toml").write_text(rest.replace("alpha", "beta"), encoding="utf-8")
    (tmp_path / "notes.txt").write_text("no catalogue", encoding="utf-8")
    found = load_catalogue(tmp_path)
    assert list(found) == ["alpha", "beta"]
    assert found["beta"].figures["isa"].source.startswith("Data sheet 7")


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (small(), "source 'sheet' stands in another file"),
        (small().replace("sheet", "other"), "device 'alpha' stands in a.toml too"),
        ("schema = 1", "sources"),
    ],
)
def test_a_folder_whose_files_contradict_each_other_is_refused(
    tmp_path: Path, second: str, says: str
) -> None:
    (tmp_path / "a.toml").write_text(small(), encoding="utf-8")
    (tmp_path / "b.toml").write_text(second, encoding="utf-8")
    with pytest.raises(BadInput, match=says):
        load_catalogue(tmp_path)


def test_a_folder_without_a_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"no \.toml file"):
        load_catalogue(tmp_path)


@pytest.mark.parametrize("key", COMMON_FIGURES)
def test_a_device_that_lacks_a_common_figure_is_refused(tmp_path: Path, key: str) -> None:
    lines = small().splitlines()
    refusal = read(tmp_path, "\n".join(line for line in lines if not line.startswith(f"{key} = ")))
    assert f"no figure {key}" in refusal.why or "no source" in refusal.why


def test_files_that_are_no_catalogue_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="No such file"):
        load_catalogue(tmp_path / "absent.toml")
    garbage = tmp_path / "garbage.toml"
    garbage.write_bytes(b"\xff\xfe\x00catalogue")
    with pytest.raises(BadInput):
        load_catalogue(garbage)
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (5 << 20))
    with pytest.raises(BadInput, match="larger than"):
        load_catalogue(big)


@given(
    value=st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    source=st.sampled_from(["", "a document"]),
    reason=st.sampled_from(["", "not stated"]),
)
def test_a_figure_exists_exactly_when_one_of_the_two_rules_holds(
    value: bool | int | str | None, source: str, reason: str
) -> None:
    sound = bool(reason) if value is None else bool(source) and not reason
    data = {"value": value, "source": source, "reason": reason}
    if sound:
        assert msgspec.convert(data, Figure).value == value
    else:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(data, Figure)


def test_importing_devices_brings_nothing_heavy() -> None:
    code = (
        "import sys, edgekiln.devices as d; d.load('browser'); import edgekiln.devices.show;"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'torch', 'rich', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
