"""Fine-tuning by a user's trainer: what it wins, what it must not change, and what bad trainers become."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgekiln.compile.finetune.order import NoTraining, Train, Training
from edgekiln.compile.finetune.simulate import prepared
from edgekiln.compile.finetune.worker import WEIGHTS, fine_tune, supervise
from edgekiln.compile.make import plan
from edgekiln.compile.recipes import recipe
from edgekiln.compile.targets import dialect
from edgekiln.devices import load as device
from edgekiln.errors import BadInput, ConversionFailed, EdgekilnError
from edgekiln.finetuning import training
from edgekiln.intake import take_in
from edgekiln.job import Job, ModelOrder, QatOrder, load
from edgekiln.model.torch_source import build_module
from edgekiln.road import build
from fakes.command import Kiln

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "qat_digits"
RECIPES = ("fp32", "int8-static-minmax", "int8-static-minmax+qat", "int8-static-learned+qat")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's job file, beside its code and with its data, in a folder of its own."""
    folder = tmp_path_factory.mktemp("example") / "examples" / "qat_digits"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    made = runpy.run_path(str(folder / "digits.py"))
    threads = torch.get_num_threads()
    made["main"]()
    torch.set_num_threads(threads)
    text = (folder / "job.toml").read_text()
    text = text.replace("epochs = 20", "epochs = 6").replace("samples = 60", "samples = 5")
    start, end = text.index("recipes = ["), text.index("\n]\n", text.index("recipes = ["))
    (folder / "job.toml").write_text(f"{text[:start]}recipes = {json.dumps(RECIPES)}{text[end + 2 :]}")
    return folder / "job.toml"


@pytest.fixture(scope="module")
def kiln(job: Path) -> Kiln:
    return Kiln(job.parent, job.parent / "cache")


@pytest.fixture(scope="module")
def built(job: Path, kiln: Kiln) -> dict[str, Any]:
    done = kiln("build", "job.toml")
    assert done.code == 0, done.stderr
    return evidence(job)


def evidence(job: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job.parents[2] / "build/qat-digits/out/evidence.json").read_text())
    return found


def figure(built: dict[str, Any], name: str, what: str) -> float:
    proof = next(p for p in built["proofs"] if p["artifact"]["recipe"] == name)
    return float(next(e["value"] for e in proof["evidence"] if e["what"] == what))


def test_fine_tuning_wins_back_what_plain_int8_loses(built: dict[str, Any]) -> None:
    plain, tuned = (figure(built, name, "accuracy_drop") for name in RECIPES[1:3])
    assert plain > 0.2
    assert tuned < plain - 0.1
    better, plain = (figure(built, name, "agreement") for name in RECIPES[2:0:-1])
    assert better > plain + 0.1


def test_the_original_model_stays_the_judge(built: dict[str, Any]) -> None:
    """The fine-tuned float graph is far from the original: against itself SQNR would be high."""
    assert figure(built, "int8-static-minmax+qat", "sqnr_db") < 15
    assert figure(built, "fp32", "agreement") == 1.0


def test_the_report_says_what_was_trained(built: dict[str, Any]) -> None:
    proof = next(p for p in built["proofs"] if p["artifact"]["recipe"] == RECIPES[2])
    note = proof["artifact"]["passes"][0]["note"]
    assert "fine-tuned by digits:fine_tune" in note
    assert "37 of 37 float tensors changed" in note
    assert "last loss 0." in note
    assert [layer["op"] for layer in proof["artifact"]["passes"][1]["layers"]].count("Conv") == 7


def test_learned_ranges_find_their_tensors(built: dict[str, Any]) -> None:
    proof = next(p for p in built["proofs"] if p["artifact"]["recipe"] == "int8-static-learned+qat")
    assert "9 of them as training left them" in proof["artifact"]["passes"][1]["note"], "one for each grid"
    gap = figure(built, RECIPES[3], "accuracy_drop") - figure(built, RECIPES[2], "accuracy_drop")
    assert abs(gap) < 0.1, "they are those of the same tensors"


def weights_of(job: Path) -> Path:
    (found,) = (job.parent / "cache").rglob(WEIGHTS)
    return found


def test_a_second_build_trains_nothing(built: dict[str, Any], job: Path) -> None:
    before = weights_of(job).stat().st_mtime_ns
    again = build(load(job), cache=job.parent / "cache")
    assert weights_of(job).stat().st_mtime_ns == before
    assert json.loads(msgspec.json.encode(again.proofs)) == built["proofs"]


@pytest.fixture(scope="module")
def order(built: dict[str, Any], job: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The build's own order."""
    read = load(job)
    made = take_in(read, job.parent / "cache")
    found = training(read, made.model)
    assert isinstance(found, Training)
    narrow = dialect("onnxruntime", RECIPES[2], device("host")).endswith("7bit")  # a host without VNNI
    most = 63 if narrow else 127
    return Train(training=found, graph=str(made.graph), most=most, into=str(tmp_path_factory.mktemp("into")))


def test_another_process_finds_the_same_weights(order: Train, job: Path) -> None:
    """The build trained in a worker; here the same is trained in this process, which did other things."""
    fine_tune(order)
    again, first = load_file(Path(order.into) / WEIGHTS), load_file(weights_of(job))
    assert again.keys() == first.keys()
    assert [name for name in first if not np.array_equal(again[name], first[name])] == []


def test_its_name_follows_the_trainer_and_what_it_is_given(order: Train, job: Path) -> None:
    read = load(job)
    assert read.qat is not None
    made = take_in(read, job.parent / "cache").model

    def name(changed: QatOrder) -> str:
        found = training(msgspec.structs.replace(read, qat=changed), made)
        assert isinstance(found, Training)
        return found.sha256

    assert name(read.qat) == order.training.sha256
    others = [{"epochs": 9}, {"seed": 1}, {"data": "job.toml"}, {"arguments": {"rate": 1e-3}}]
    names = {name(msgspec.structs.replace(read.qat, **other)) for other in others}
    (job.parent / "beside.py").write_text("edited = True\n")
    names.add(name(read.qat))
    assert len(names - {order.training.sha256}) == 5


# ---------------------------------------------------------------- trainers that do not


TRAINERS = """
import copy
import sys
import torch

def raises(model):
    batch = None
    return batch.shape

def leaves(model):
    sys.exit(3)

def needs_more(model, learning_rate):
    pass

def nan_weights(model):
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))

def nan_loss(model):
    return torch.tensor(float("nan"))

def another_model(model):
    return torch.nn.Linear(2, 2)

def another_type(model):
    return "done"

def another_shape(model):
    model.head.weight = torch.nn.Parameter(torch.zeros(2, 4))

def a_copy(model):
    found = copy.deepcopy(model)
    with torch.no_grad():
        found.head.bias.add_(1)
    return found

class TwoAtOnce(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.head, self._model = model.head, [model]

    def forward(self, x):
        return torch.cat([self._model[0](x)] * 2, 1)

def another_output(model):
    return TwoAtOnce(model)

NOT_A_FUNCTION = 3

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

def net():
    torch.manual_seed(0)
    return Net()

def another_every_time():
    return Net()
"""


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Train:
    from edgekiln.model.importers import import_model

    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad_trainers.py").write_text(TRAINERS)
    source, shapes = "bad_trainers:net", {"": (1, 1, 8, 8)}
    made = import_model(source, folder, input_shapes=shapes, search_path=(folder,))
    found = Training(
        trainer="",
        source=source,
        weights=None,
        search_path=(str(folder),),
        shapes=shapes,
        preprocess=None,
        labels=(),
        task="classification",
        arguments={},
        data=None,
        seed=0,
        seconds=60,
        memory_bytes=None,
        sha256="",
    )
    return Train(training=found, graph=str(folder / made.path), most=127, into=str(folder))


def refusal(bad: Train, trainer: str, **changed: Any) -> EdgekilnError:
    """What is said of ``trainer`` on a plain module: simulated grids would only cost time."""
    order = msgspec.structs.replace(bad.training, trainer=trainer, **changed)
    module, model = (build_module(order.source, (Path(bad.into),)) for _ in range(2))
    with pytest.raises(EdgekilnError) as error:
        supervise(order, module, model, {"x": torch.zeros(1, 1, 8, 8)})
    return error.value


@pytest.mark.parametrize(
    ("trainer", "why"),
    [
        ("raises", r"AttributeError: 'NoneType' object has no attribute 'shape' \(bad_trainers.py, line 8\)"),
        ("leaves", "SystemExit: 3"),
        ("needs_more", "missing 1 required positional argument: 'learning_rate'"),
        ("nan_weights", "'head.weight' holds NaN"),
        ("nan_loss", "its loss is nan"),
        ("another_model", "none of the model's parameters"),
        ("another_type", "returned str"),
        ("another_shape", r"'head.weight' is \(2, 4\) after training instead of \(3, 4\)"),
        ("another_output", "its outputs were 1x3 and are 1x6"),
        ("NOT_A_FUNCTION", "not callable"),
        ("fine_tine", "has no 'fine_tine'"),
    ],
)
def test_a_bad_trainer_is_named_with_its_cause(bad: Train, trainer: str, why: str) -> None:
    error = refusal(bad, f"bad_trainers:{trainer}")
    assert error.to == f"bad_trainers:{trainer}"
    assert re.search(why, error.why), error.why
    assert error.cure


def test_a_trained_copy_is_taken_as_the_model(bad: Train) -> None:
    """A copy of an exported model has lost the way to change its mode."""
    order = msgspec.structs.replace(bad.training, trainer="bad_trainers:a_copy")
    module = build_module(order.source, (Path(bad.into),))
    before = module.state_dict()["head.bias"].clone()
    inputs = {"x": torch.zeros(1, 1, 8, 8)}
    done = supervise(order, module, prepared(module.eval(), inputs, 127, "net").model, inputs)
    assert torch.equal(module.state_dict()["head.bias"], before + 1)
    assert (done.changed, done.tensors) == (1, 4)


def test_a_missing_module_and_a_name_that_is_none(bad: Train) -> None:
    assert "no module 'absent_trainers'" in refusal(bad, "absent_trainers:fine_tune").why
    assert "package.module:function" in refusal(bad, "fine_tune").why


def test_a_factory_that_draws_its_weights_anew_is_refused(bad: Train) -> None:
    order = msgspec.structs.replace(bad.training, source="bad_trainers:another_every_time", seed=5)
    order = msgspec.structs.replace(order, trainer="bad_trainers:raises")
    with pytest.raises(BadInput, match="not the one that was imported") as error:
        fine_tune(msgspec.structs.replace(bad, training=order))
    assert "weights" in error.value.cure


def test_a_process_that_dies_costs_its_row(bad: Train) -> None:
    from edgekiln.compile.finetune.apart import _in_its_process

    dies = (sys.executable, "-c", "import os, sys; print('out of luck', file=sys.stderr); os._exit(4)")
    with pytest.raises(ConversionFailed, match=r"exit code 4.*out of luck"):
        _in_its_process(bad, 1, dies)
    hangs = (sys.executable, "-c", "import time; time.sleep(60)")
    quick = msgspec.structs.replace(bad, training=msgspec.structs.replace(bad.training, seconds=0.2))
    with pytest.raises(ConversionFailed, match=r"did not end within"):
        _in_its_process(quick, 1, hangs)


# ---------------------------------------------------------------- where nothing can be trained


def test_without_a_trainer_or_a_factory_the_row_says_what_to_do(digit_files: Path, kiln: Kiln) -> None:
    arguments = ["build", str(digit_files / "digits.onnx"), "--data", str(digit_files / "data")]
    fixed = ["--recipe", "fp32", "--recipe", "int8-static-minmax+qat", "--target", "onnxruntime"]
    done = kiln(*arguments, *fixed, "--samples", "5", "--out", "none")
    assert done.code == 0, done.stderr
    found = json.loads((kiln.folder / "none/evidence.json").read_text())
    (row,) = found["failures"]
    assert row["recipe"] == "int8-static-minmax+qat"
    assert "names no trainer" in row["reason"]
    assert "[qat]" in row["cure"]


def test_with_a_trainer_every_target_of_static_int8_tries_it() -> None:
    def tried(target: str, trainer: bool) -> list[str]:
        return [name for name, skip in plan(device("host"), target, None, trainer=trainer) if "+qat" in name]

    assert tried("onnxruntime", True) == tried("tensorrt", True) == ["int8-static-minmax+qat"]
    assert tried("openvino", True) == ["int8-static-minmax+qat"]
    assert tried("litert", True) == ["int8-litert-static+qat"]
    assert tried("executorch", True) == ["int8-xnnpack-static+qat"]
    assert tried("coreml", True) == tried("onnxruntime", False) == []


@pytest.mark.parametrize("source", ["net.onnx", "net.pt2"])
def test_a_graph_without_training_code_is_refused_with_the_cure(
    source: str, built: dict[str, Any], job: Path
) -> None:
    model = take_in(load(job), job.parent / "cache").model
    asked = Job(model=ModelOrder(source=source), qat=QatOrder(trainer="a:b"))
    found = training(asked, model)
    assert isinstance(found, NoTraining)
    assert "factory" in found.cure


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("int8-mixed-0.01+qat", "bound"),
        ("int8-static-mse+equalise+qat", "levelled"),
        ("int8-static-minmax+qat+layers", "products alone"),
        ("a16w8-static-minmax+qat", "8 bits"),
        ("int8-static-learned", "in fine-tuning"),
        ("int8-litert-dynamic+qat", "static INT8"),
        ("fp32+qat", "static INT8"),
    ],
)
def test_what_does_not_go_together_with_training_says_why(name: str, why: str) -> None:
    with pytest.raises(BadInput) as error:
        recipe(name)
    assert why in error.value.why


@pytest.mark.parametrize(
    "name",
    [
        "int8-static-minmax+qat",
        "int8-static-learned+qat+bias",
        "int8-static-mse+qat+round+bias",
        "int8-litert-static+qat+bias",
        "int8-xnnpack-static+qat",
        "int8-static-minmax+qat+bf16",
    ],
)
def test_training_comes_before_all_that_rests_on_its_weights(name: str) -> None:
    assert recipe(name).passes[0].name == "qat"
