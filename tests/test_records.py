"""Records decode strictly, hold nothing mutable by accident, and say what is not known."""

import inspect
import subprocess
import sys

import msgspec
import pytest

from edgekiln import records
from edgekiln.errors import (
    BadInput,
    ConversionFailed,
    EdgekilnError,
    MachineFault,
    MissingExtra,
    NotRunnableHere,
    did_you_mean,
)
from edgekiln.records import Budget, Build, Choice, Decision, Evidence, PassReport, Preprocess, Proof, Record
from fakes.build_record import make_build

RECORDS = [r for _, r in inspect.getmembers(records, inspect.isclass) if issubclass(r, Record)]


def replaced(data, path, value):
    """``data`` with the value at ``path`` (keys and indices) replaced, or added."""
    if not path:
        return value
    copy = list(data) if isinstance(data, list) else dict(data)
    copy[path[0]] = replaced(copy.get(path[0]) if isinstance(copy, dict) else copy[path[0]], path[1:], value)
    return copy


def test_a_whole_build_survives_json_unchanged():
    build = make_build()
    assert msgspec.json.decode(msgspec.json.encode(build), type=Build) == build


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("extra",), 1),
        (("model", "extra"), 1),
        (("model", "task"), "detecting"),
        (("model", "sha256"), 7),
        (("model", "signature", "inputs", 0, "shape"), [1.5]),
        (("model", "preprocess", "fit"), "zoom"),
        (("proofs", 0, "evidence", 0, "how"), "guessed"),
        (("proofs", 0, "evidence", 0, "n"), "20"),
        (("proofs", 0, "artifact", "files", 0, "size_bytes"), True),
        (("failures", 0, "kind"), "ignored"),
        (("decision", "choices", 0, "status"), "likely"),
        (("graph_passes", 0, "outcome"), True),
        (("decision", "budget", "latency_ms"), 50.0),
    ],
)
def test_an_unknown_key_or_a_wrong_type_at_any_depth_is_an_error(path, value):
    data = msgspec.json.decode(msgspec.json.encode(make_build()))
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(replaced(data, path, value)), type=Build)


@pytest.mark.parametrize("record", RECORDS, ids=lambda r: r.__name__)
def test_every_record_is_frozen_strict_and_built_by_keyword(record):
    config = record.__struct_config__
    assert config.frozen
    assert config.forbid_unknown_fields
    parameters = inspect.signature(record).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)


def test_a_missing_figure_needs_a_reason_and_a_figure_says_how_it_was_obtained():
    with pytest.raises(ValueError, match="reason for its absence"):
        Evidence(what="latency_p50_ms", unit="ms", value=None)
    with pytest.raises(ValueError, match="how its value was obtained"):
        Evidence(what="latency_p50_ms", unit="ms", value=3.0)
    with pytest.raises(msgspec.ValidationError, match="reason for its absence"):
        msgspec.json.decode(b'{"what": "x", "unit": "", "value": null}', type=Evidence)
    assert Evidence(what="x", unit="", value=0.0, how="measured").value == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_figure_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        Evidence(what="sqnr_db", unit="dB", value=value, how="measured")


def test_a_proof_finds_its_figures_by_name():
    proof = make_build().proofs[0]
    assert proof.value("accuracy_drop") == 0.0
    assert proof.get("size_bytes").unit == "bytes"
    assert proof.get("nonesuch") is None
    assert proof.value("nonesuch") is None
    bare = Proof(
        device="d",
        artifact=proof.artifact,
        evidence=(Evidence(what="energy_mj", unit="mJ", value=None, reason="no meter"),),
    )
    assert bare.value("energy_mj") is None
    assert bare.get("energy_mj").reason == "no meter"


def test_a_decision_is_met_only_where_every_device_has_an_artifact():
    chosen = Choice(device="a", status="proven", artifact_id="x", basis="b")
    none = Choice(device="b", status="none", artifact_id=None, basis="b")
    assert Decision(model="m", budget=Budget(), choices=(chosen,)).met
    assert not Decision(model="m", budget=Budget(), choices=(chosen, none)).met


def test_an_artifacts_size_is_that_of_all_its_files():
    artifact = make_build().proofs[0].artifact
    assert len(artifact.files) > 1
    assert artifact.size_bytes == sum(f.size_bytes for f in artifact.files)


@pytest.mark.parametrize("outcome", ["kept", "undone", "unneeded", "runtime"])
def test_only_a_kept_pass_counts_as_kept(outcome):
    report = PassReport(name="p", outcome=outcome, seconds=0, nodes_before=1, nodes_after=1)
    assert report.kept is (outcome == "kept")


def test_defaults_are_not_shared_between_records():
    first = PassReport(name="a", outcome="kept", seconds=0, nodes_before=1, nodes_after=1)
    second = PassReport(name="b", outcome="kept", seconds=0, nodes_before=1, nodes_after=1)
    first.ops_before["Conv"] = 1
    assert second.ops_before == {}


def test_the_preprocessing_defaults_only_scale_to_one():
    default = Preprocess(width=1, height=1)
    assert (default.scale, default.mean, default.std) == (1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def test_the_vocabulary_loads_nothing_heavy():
    code = (
        "import sys, edgekiln.records, edgekiln.errors, edgekiln.files, edgekiln.job, edgekiln.progress\n"
        "print([m for m in ('numpy', 'onnx', 'onnxruntime', 'torch', 'PIL', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("kind", [EdgekilnError, BadInput, NotRunnableHere, ConversionFailed, MachineFault])
def test_an_error_says_what_was_done_to_what_why_it_failed_and_the_cure(kind):
    error = kind("reading", 7, "it is a number", "Give a name")
    assert (error.doing, error.to, error.why, error.cure) == ("reading", "7", "it is a number", "Give a name")
    assert str(error) == "reading 7: it is a number. Give a name"
    assert error.exit_code == 2
    assert isinstance(error, EdgekilnError)


def test_a_missing_extra_gives_the_command_that_installs_it():
    error = MissingExtra("opening", "x.xml", "openvino")
    assert "pip install 'edgekiln[openvino]'" in error.cure
    assert error.extra == "openvino"


def test_near_names_are_offered_and_without_any_the_whole_list():
    assert did_you_mean("jetson-orin", ["jetson-orin-nano", "host"]) == "Did you mean 'jetson-orin-nano'?"
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b."
    assert did_you_mean("", ["b", "a"]) == "Known: a, b."
