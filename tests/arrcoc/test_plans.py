"""Deployment plans: each part's graph, the order that the record states, samples, jobs, what is refused."""

from __future__ import annotations

import csv
import json

import numpy as np
import onnx
import pytest
import torch

from edgekiln import job as jobs
from edgekiln.arrcoc import checkpoint
from edgekiln.arrcoc.exporting import byte_ranges, export_scorer
from edgekiln.arrcoc.information import information
from edgekiln.arrcoc.plans import PLATFORMS, drafted, write_plan
from edgekiln.arrcoc.plans.execute import ask, exported, run, started
from edgekiln.arrcoc.plans.records import LAST, PLAN, read_plan
from edgekiln.arrcoc.plans.samples import owner, with_parts
from edgekiln.arrcoc.scenes.generate import scene
from edgekiln.arrcoc.texture import texture
from edgekiln.arrcoc.words import tokens as numbers
from edgekiln.cli import main
from edgekiln.errors import BadInput
from edgekiln.model.signature import signature
from edgekiln.model.tensors import read_tensors
from fakes.untrained_compact import untrained


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("weights") / "untrained.safetensors")


@pytest.fixture(scope="module", params=PLATFORMS)
def planned(request, weights, tmp_path_factory):
    """A plan of each platform in its folder."""
    folder = tmp_path_factory.mktemp(request.param) / "plan"
    return write_plan(weights, folder, request.param, buckets=(65,), calibration=2, validation=2), folder


def test_the_propositional_graph_is_the_numpy_one(weights, tmp_path):
    import onnxruntime as ort

    export_scorer(checkpoint.load(weights)[0], "propositional", tmp_path / "p.onnx")
    session = ort.InferenceSession(tmp_path / "p.onnx", providers=["CPUExecutionProvider"])
    for picture in (scene("validation", 1)[0].picture, np.zeros((448, 448, 3), np.uint8)):
        array = texture(picture, (224, 224))
        (found,) = session.run(None, {"texture": array[None]})
        assert np.abs(found[0] - information(array, 28, 28)).max() < 1e-5


def test_a_plan_that_is_run_from_its_record_gives_the_scorers_relevance(planned, weights):
    plan, folder = planned
    made, question = scene("test", 3)
    known = started(made.picture, question.text)
    with exported(plan, folder) as runners:
        run(plan, runners, known, 65, until=LAST)
        logits = ask(plan, runners, made.picture, question.text, 65)
        with pytest.raises(BadInput, match="65"):
            ask(plan, runners, made.picture, question.text, 81)
    array = texture(made.picture, (224, 224))
    ids, mask = numbers(question.text)
    with torch.no_grad():
        wanted, _, _ = checkpoint.load(weights)[0](
            torch.from_numpy(array)[None],
            torch.from_numpy(information(array, 28, 28))[None],
            torch.from_numpy(ids)[None],
            torch.from_numpy(mask).float()[None],
        )
    allocated = next(s for s in plan.steps if s.name == "allocation")
    step, _, output = allocated.takes["relevance"].partition(".")
    # The device's LAB comes from a table; Android's texture array has 8 bits.
    assert np.abs(known[step][output] - wanted.numpy()).max() < 0.02
    assert logits.shape == (10,)
    assert np.isfinite(logits).all()


def test_the_record_can_be_read_again_and_every_source_comes_before_its_step(planned):
    plan, folder = planned
    assert read_plan(folder) == plan
    done = {"picture", "question"}
    for step in plan.steps:
        assert set(step.waits_for) <= done, step.name
        done.add(step.name)
    assert all(part.macs > 0 or part.name == "propositional" for part in plan.parts)
    assert plan.missing
    assert plan.trained_by == "no training"


def test_samples_are_what_a_part_takes_and_of_the_right_split(planned):
    plan, folder = planned
    for part, _ in with_parts(plan):
        takes = signature(onnx.load(folder / part.model))
        at = folder / owner(plan, part.name)
        for purpose in ("calibration", "validation"):
            paths = sorted((at / purpose).iterdir())
            assert len(paths) == 2
            for path in paths:
                read_tensors(path, takes)
        if "pixels" in (i.name for i in takes.inputs):
            for purpose, split in (("calibration", "train"), ("validation", "validation")):
                pixels = np.load(at / purpose / "0001.npz")["pixels"][0]
                assert np.array_equal(pixels.transpose(1, 2, 0), scene(split, 1)[0].picture)


def test_a_reader_is_judged_by_the_right_digits(planned):
    _, folder = planned
    with (folder / "look_65" / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["label"]) for r in rows] == [scene("validation", i)[1].answer for i in range(2)]
    made = jobs.load(folder / "look_65" / "job.toml")
    assert (made.model.task, made.budget.max_drop) == ("classification", 0.02)
    assert made.path(made.eval).is_file()


def test_every_job_can_be_read_and_names_what_is_there(planned):
    plan, folder = planned
    for part in plan.parts:
        made = jobs.load(folder / part.job)
        assert made.devices == plan.devices
        assert made.search.targets == part.targets
        for path in (made.model.source, made.data, made.holdout):
            assert made.path(path).exists(), (part.name, path)


def test_no_mask_is_so_large_that_8_bits_hold_nothing_beside_it(planned):
    plan, folder = planned
    for part, _ in with_parts(plan):
        if part.graph not in ("texture", "texture-bytes"):
            graph = onnx.load(folder / part.model).graph
            held = [a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute]
            held += graph.initializer
            values = [onnx.numpy_helper.to_array(t) for t in held if t.data_type == onnx.TensorProto.FLOAT]
            largest = max((float(np.abs(v).max()) for v in values if v.size), default=0.0)
            assert largest < 1000, part.name


def test_jetson_has_three_scorers_that_wait_for_nothing_but_the_texture_array():
    plan = drafted("jetson", (65, 81, 113))
    scorers = [s for s in plan.steps if s.stream in (1, 2, 3)]
    assert [s.name for s in scorers] == ["propositional", "perspectival", "participatory"]
    assert all(set(s.waits_for) <= {"texture", "words"} for s in scorers)
    balance = next(s for s in plan.steps if s.name == "balance")
    assert {s.name for s in scorers} <= set(balance.waits_for)
    assert [p.tokens for p in plan.parts if p.graph == "look"] == [65, 81, 113]
    assert any("stream" in line.lower() for line in plan.missing)


def test_the_texture_array_in_8_bits_is_the_array_to_half_a_step():
    low, step = byte_ranges()
    array = texture(scene("validation", 1)[0].picture, (224, 224))[None]
    coded = np.floor((array - low) / step + 0.5)
    assert coded.min() >= 0
    assert coded.max() <= 255
    assert (np.abs(coded * step + low - array) <= step * 0.501).all()


def test_what_no_plan_can_be_made_of_is_refused(weights, tmp_path):
    with pytest.raises(BadInput, match="no such platform"):
        drafted("jetsom")
    with pytest.raises(BadInput, match="16 for each window"):
        drafted("jetson", (65, 80))
    with pytest.raises(BadInput, match="it takes"):
        drafted("iphone", (65,), ("jetson-orin-nano-8gb",))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(BadInput, match="already"):
        write_plan(weights, tmp_path / "full", "jetson")
    with pytest.raises(BadInput, match="too few"):
        write_plan(weights, tmp_path / "new", "jetson", calibration=0)
    with pytest.raises(BadInput, match="no such file"):
        write_plan(tmp_path / "none.safetensors", tmp_path / "new", "jetson")
    assert not (tmp_path / "new").exists()


def test_a_record_of_another_version_or_a_damaged_one_is_refused(planned, tmp_path):
    _, folder = planned
    with pytest.raises(BadInput, match="there is no"):
        read_plan(tmp_path)
    told = json.loads((folder / PLAN).read_text())
    first, *others = told["parts"]
    for changed, words in (
        ({**told, "version": 9}, "version 9"),
        ({**told, "steps": 3}, "steps"),
        ({**told, "steps": told["steps"][1:]}, "takes from canvas"),
        ({**told, "steps": told["steps"][:-1]}, "no step 'look'"),
        ({**told, "parts": others}, "no such part"),
        ({**told, "parts": [{**first, "model": "../x.onnx"}, *others]}, "leaves its folder"),
        ([], "None"),
    ):
        (tmp_path / PLAN).write_text(json.dumps(changed))
        with pytest.raises(BadInput, match=words):
            read_plan(tmp_path)


def test_the_command_says_what_to_build_and_what_is_not_there(weights, tmp_path, capsys):
    """Without a checkpoint it takes the one that comes with the program."""
    into = tmp_path / "plan"
    options = ["--platform", "android", "--tokens", "65", "--calibration", "2", "--validation", "2"]
    assert main(["arrcoc", "plan", str(into), *options]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for part in read_plan(into).parts:
        assert f"edgekiln build {into}/{part.job}" in told
    assert read_plan(into).trained_by.startswith("python -m edgekiln.arrcoc.train")
    for words in ("--at tokens --beside positions", "adaptive", "not there:"):
        assert words in told
    assert main(["arrcoc", "plan", str(into), *options, "--checkpoint", str(weights)]) == 2
    assert "already" in capsys.readouterr().err
