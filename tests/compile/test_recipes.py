"""A recipe's name decodes to its passes, every time the same, and a wrong name gets the near ones."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.compile.quantise.static import DIALECTS
from edgekiln.compile.recipes import KNOWN, needs_calibration, recipe
from edgekiln.compile.targets import TARGETS, dialect
from edgekiln.devices import load, load_catalogue
from edgekiln.engines import ENGINES
from edgekiln.errors import BadInput
from edgekiln.records import Recipe


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_recipe_decodes_to_itself_and_survives_json(name):
    found = recipe(name)
    assert found.name == name
    assert recipe(name) == found
    assert msgspec.json.decode(msgspec.json.encode(found), type=Recipe) == found


def test_what_each_recipe_does():
    passes = {n: [(p.name, p.params) for p in recipe(n).passes] for n in KNOWN}
    assert passes == {
        "fp32": [],
        "fp16": [("precision", {"type": "fp16"})],
        "bf16": [("precision", {"type": "bf16"})],
        "int8-static-minmax": [("quantise-static", {"rule": "minmax", "per_channel": True})],
        "int8-static-percentile-99.99": [
            ("quantise-static", {"rule": "percentile", "per_channel": True, "percentile": 99.99})
        ],
        "int8-static-mse": [("quantise-static", {"rule": "mse", "per_channel": True})],
        "int8-static-entropy": [("quantise-static", {"rule": "entropy", "per_channel": True})],
        "int8-dynamic": [("quantise-dynamic", {"per_channel": True})],
        "int8-nncf-performance": [("quantise-nncf", {"preset": "performance"})],
        "int8-nncf-mixed": [("quantise-nncf", {"preset": "mixed"})],
        "a16w8-static-minmax": [
            ("quantise-static", {"rule": "minmax", "per_channel": True, "activation_bits": 16})
        ],
        "int8-litert-dynamic": [("quantise-litert", {"recipe": "dynamic_wi8_afp32"})],
        "int4-litert-dynamic": [("quantise-litert", {"recipe": "dynamic_wi4_afp32"})],
        "int8-litert-weight": [("quantise-litert", {"recipe": "weight_only_wi8_afp32"})],
        "int8-litert-static": [("quantise-litert", {"recipe": "static_wi8_ai8"})],
        "a16w8-litert-static": [("quantise-litert", {"recipe": "static_wi8_ai16"})],
        "int8-xnnpack-static": [("quantise-xnnpack", {"dynamic": False})],
        "int8-xnnpack-dynamic": [("quantise-xnnpack", {"dynamic": True})],
        "w8-channel": [("compress-weights", {"kind": "linear", "bits": 8, "granularity": "per_channel"})],
        "w4-block32": [
            ("compress-weights", {"kind": "linear", "bits": 4, "granularity": "per_block", "block": 32})
        ],
        **{
            f"w4-block32+{method}": [
                (
                    "compress-weights",
                    {"kind": "linear", "bits": 4, "granularity": "per_block", "block": 32, "method": method},
                )
            ]
            for method in ("gptq", "awq")
        },
        "w8-block32": [
            ("compress-weights", {"kind": "linear", "bits": 8, "granularity": "per_block", "block": 32})
        ],
        "palette4": [("compress-weights", {"kind": "palette", "bits": 4})],
        "palette6": [("compress-weights", {"kind": "palette", "bits": 6})],
        "palette8": [("compress-weights", {"kind": "palette", "bits": 8})],
        "palette4-w8": [("compress-weights", {"kind": "palette", "bits": 4, "table_bits": 8})],
        "palette-mixed-6": [
            ("palettise", {"bits": 6.0}),
            ("compress-weights", {"kind": "palette", "bits": 0}),
        ],
    }


def test_what_is_found_on_data_needs_calibration():
    assert {n for n in KNOWN if needs_calibration(recipe(n))} == {
        n
        for n in KNOWN
        if "-static" in n or n.startswith("int8-nncf") or n.endswith(("+gptq", "+awq", "mixed-6"))
    }


@given(st.decimals(min_value="50.01", max_value="99.999999", places=4))
def test_any_percentile_above_fifty_can_be_named(percentile):
    found = recipe(f"int8-static-percentile-{percentile}")
    assert found.passes[0].params["percentile"] == float(percentile)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "int8",
        "int8-static",
        "int8-static-loudest",
        "a16w8-static-entropy",
        "int8-static-percentile",
        "int8-static-percentile-",
        "int8-static-percentile-50",
        "int8-static-percentile-101",
        "int8-static-percentile-1e1",
        "int8-static-percentile-99.99999999",
        "int8-nncf-",
        "int8-nncf-best",
        "FP32",
        "fp32 ",
        "../fp32",
    ],
)
def test_a_name_that_means_nothing_is_refused(name):
    with pytest.raises(BadInput, match="no recipe has this name") as caught:
        recipe(name)
    assert caught.value.cure


@pytest.mark.parametrize(("name", "near"), [("int8-static-mes", "int8-static-mse"), ("pf16", "fp16")])
def test_a_near_name_is_offered(name, near):
    with pytest.raises(BadInput) as caught:
        recipe(name)
    assert near in caught.value.cure


@given(st.text(max_size=30))
def test_no_name_gives_another_error(name):
    try:
        assert recipe(name).name == name
    except BadInput:
        assert name not in KNOWN


# ---------------------------------------------------------------- the table of targets


def test_every_target_has_a_converter_engines_and_recipes_that_exist():
    for name, target in TARGETS.items():
        assert target.name == name
        assert callable(target.convert)
        assert {target.engine, target.proof_engine} <= set(ENGINES)
        assert [recipe(r).name for r in target.recipes] == list(target.recipes)
        assert name == "qnn" or target.recipes[0] in {"fp32", "fp16"}


def test_every_target_that_a_device_names_is_there():
    for device in load_catalogue().values():
        assert set(device.targets) <= set(TARGETS)


def test_a_graph_for_a_device_is_written_in_the_dialect_that_it_is_fast_in():
    pc, board = load("intel-n100"), load("raspberry-pi-5")
    plain = msgspec.structs.replace(pc, features=("avx2",))
    vnni = msgspec.structs.replace(pc, features=("avx2", "avx_vnni"))
    assert dialect("onnxruntime", "int8-static-mse", plain) == "ort-7bit"
    assert dialect("onnxruntime", "int8-static-mse", vnni) == "ort"
    assert dialect("onnxruntime", "int8-static-mse", board) == "ort"
    assert dialect("onnxruntime", "fp32", plain) == "ort"
    assert dialect("tensorrt", "int8-static-mse", board) == "tensorrt"
    assert dialect("openvino", "int8-nncf-mixed", plain) == "openvino"


def test_every_static_recipe_of_every_target_has_its_dialect():
    for target in TARGETS.values():
        for name in target.recipes:
            if name.startswith("int8-static"):
                for device in load_catalogue().values():
                    assert dialect(target.name, name, device) in DIALECTS
