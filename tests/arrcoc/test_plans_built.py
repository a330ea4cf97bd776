"""Plans' jobs through real builds, what built parts cost on the final task, and the reader in two halves."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edgekiln.arrcoc.checkpoint import TRAINED
from edgekiln.arrcoc.plans import write_plan
from edgekiln.arrcoc.plans.execute import ask, exported
from edgekiln.arrcoc.plans.judge import bundled, judge
from edgekiln.arrcoc.plans.offload import offloading
from edgekiln.arrcoc.scenes.generate import scenes
from edgekiln.errors import BadInput
from edgekiln.job import SearchOrder, load
from edgekiln.road import build
from edgekiln.runtime.hybrid.client import Server
from edgekiln.runtime.hybrid.offload import OffloadRules
from edgekiln.splitting import split
from fakes.serving import served, serving


def plan_of(platform, folder):
    """A small plan of the checkpoint that comes with the program, and its folder."""
    into = folder / "plan"
    return write_plan(TRAINED, into, platform, buckets=(65,), calibration=8, validation=4), into


@pytest.fixture(scope="module")
def jetson(tmp_path_factory):
    return plan_of("jetson", tmp_path_factory.mktemp("jetson"))


@pytest.fixture(scope="module")
def android(tmp_path_factory):
    return plan_of("android", tmp_path_factory.mktemp("android"))


def made(folder, part, target, recipe, cache):
    """What a build of one part with one recipe decided, and its bundle."""
    job = load(folder / part / "job.toml")
    search = SearchOrder(targets=(target,), recipes=(recipe,), threads=1, samples=1)
    found = build(msgspec.structs.replace(job, search=search), cache=cache)
    assert found.decision.met, [f.reason for f in found.failures]
    (choice,) = found.decision.choices
    return found, folder / part / "out" / "bundles" / f"{choice.device}.edgekiln"


def figure(found, what):
    return next(e.value for p in found.proofs for e in p.evidence if e.what == what)


def test_a_jetsons_scorer_is_built_in_int8_and_judged_on_the_final_task(jetson, tmp_path):
    plan, folder = jetson
    found, bundle = made(folder, "participatory", "tensorrt", "int8-static-mse", tmp_path)
    assert figure(found, "sqnr_db") > load(folder / "participatory" / "job.toml").budget.sqnr_db > 10
    assert found.proofs[0].artifact.precisions["int8"] > 10
    asked = list(scenes("validation", 12, 0, ("colour",)))
    with exported(plan, folder) as floats, bundled({"participatory": bundle}) as built:
        rows = judge(plan, floats, built, asked, 65)
    assert [r.name for r in rows] == ["float", "participatory"]
    assert rows[0].agreed == 12
    assert rows[0].drop == 0
    assert rows[0].right >= 6, "the checkpoint reads"
    assert rows[1].agreed >= 10
    assert rows[1].drop == (rows[0].right - rows[1].right) / 12
    assert rows[1].drop_interval[0] <= rows[1].drop <= rows[1].drop_interval[1]


@pytest.fixture
def floats(jetson):
    with exported(*jetson) as runners:
        yield runners


def test_what_a_part_costs_is_counted_on_the_answers(jetson, floats):
    """A reader that always answers 3 is right where the answer is 3, alone and together with the others."""
    plan, _ = jetson
    asked = list(scenes("test", 6, 0))
    three = {"logits": np.eye(10, dtype=np.float32)[3:4]}
    stand_ins = {"look_65": lambda given: three, "balance": floats["balance"]}
    rows = {r.name: r for r in judge(plan, floats, stand_ins, asked, 65)}
    assert set(rows) == {"float", "look_65", "balance", "all"}
    assert rows["look_65"].right == rows["all"].right == sum(q.answer == 3 for _, q in asked)
    assert rows["balance"].agreed == 6
    before = [int(ask(plan, floats, s.picture, q.text, 65).argmax()) for s, q in asked]
    assert rows["look_65"].agreed == before.count(3)
    with pytest.raises(BadInput, match="no scenes"):
        judge(plan, floats, stand_ins, [], 65)


def test_an_iphones_relevance_is_one_program_and_proved_by_the_interpreter(tmp_path):
    _, folder = plan_of("iphone", tmp_path)
    found, _ = made(folder, "relevance", "coreml", "fp16", tmp_path / "cache")
    artifact = found.proofs[0].artifact
    assert artifact.proof_engine == "coreml"
    assert figure(found, "sqnr_db") > 25


def test_an_androids_scorer_is_built_in_int8_by_litert(android, tmp_path):
    _, folder = android
    found, _ = made(folder, "scorer", "litert", "int8-litert-static", tmp_path)
    assert found.proofs[0].artifact.precisions["int8"] > 10
    assert figure(found, "sqnr_db") > load(folder / "scorer" / "job.toml").budget.sqnr_db > 10


@pytest.fixture(scope="module")
def halves(android, tmp_path_factory):
    plan, folder = android
    job = load(folder / "look_65" / "job.toml")
    out = tmp_path_factory.mktemp("split") / "parts"
    return split(msgspec.structs.replace(job, out=str(out)), plan.cuts[0].at, plan.cuts[0].beside), out


@pytest.fixture
def on_the_phone(android):
    with exported(*android) as runners:
        yield runners


def test_the_reader_in_two_halves_answers_as_the_whole_and_sends_no_pixel(android, on_the_phone, halves):
    plan, floats = android[0], on_the_phone
    parted, parts = halves
    assert [f.shape for f in parted.split.features] == [(1, 65, 96)]
    assert parted.split.parity_max_error < 1e-4
    asked = list(scenes("test", 3, 0))
    wanted = [ask(plan, floats, s.picture, q.text, 65) for s, q in asked]
    for way, places in (("edge", {"edge"}), ("cloud", {"cloud"}), ("adaptive", {"edge", "cloud"})):
        rules = OffloadRules(mode=way, gain=0.1)
        with (
            serving({"tail": served(parts / "tail.onnx")}) as server,
            offloading(plan, 65, floats, parts, Server(url=server.url), "tail", rules) as opened,
        ):
            found = [opened.ask(s.picture, q.text, 60_000.0) for s, q in asked]
        assert {a.place for a in found} <= places
        for answer, logits in zip(found, wanted, strict=True):
            assert np.abs(answer.outputs["logits"][0] - logits).max() < 0.05 * np.abs(logits).max()
        if way == "edge":
            assert server.received == []
        if way == "cloud":
            # Three messages of 65 tokens of 96 numbers; the picture alone has 600,000 bytes.
            assert len(server.received) == 3
            assert max(server.received) < parted.sent_bytes + 2000 < 15_000


def test_a_plan_without_a_server_and_another_split_model_are_refused(android, jetson, halves, tmp_path):
    plan, _ = jetson
    server = Server(url="http://127.0.0.1:9")
    with (
        pytest.raises(BadInput, match="Write a plan for android"),
        offloading(plan, 65, {}, halves[1], server, "tail", OffloadRules(mode="cloud")),
    ):
        pass
    plan, _ = android
    other = msgspec.structs.replace(plan.cuts[0], at=("elsewhere",))
    changed = msgspec.structs.replace(plan, cuts=(other,))
    with (
        pytest.raises(BadInput, match="--at elsewhere"),
        offloading(changed, 65, {}, halves[1], server, "tail", OffloadRules(mode="cloud")),
    ):
        pass
