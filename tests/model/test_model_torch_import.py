"""PyTorch in: weights that must match, traps of the exporters, files that try to run code."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekiln.errors import BadInput, ConversionFailed
from edgekiln.model.importers import import_model
from edgekiln.records import Preprocess

torch = pytest.importorskip("torch")

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)
        with torch.no_grad():
            self.norm.running_mean += 3.0

    def forward(self, image):
        return self.head(self.drop(torch.relu(self.norm(self.conv(image)))).mean((2, 3)))

class Stubborn(nn.Module):
    '''A wrapper whose eval() does not reach its children.'''
    def __init__(self):
        super().__init__()
        self.net = Net()

    def train(self, mode=True):
        self.training = mode
        return self

    def forward(self, x):
        return self.net(x)

class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 6)

    def forward(self, ids, mask, scale=None):
        return {"vectors": self.table(ids) * mask.unsqueeze(-1), "sum": mask.sum()}

class Dice(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)

class Broken(nn.Module):
    def forward(self, x):
        return x * float("nan")

class Loops(nn.Module):
    '''Data decides how often it loops: neither exporter can follow.'''
    def forward(self, x):
        while x.sum() < 100:
            x = x + x.abs() + 1
        return x

class Branch(nn.Module):
    '''The dynamo exporter refuses the branch; the older one keeps the side taken while tracing.'''
    def forward(self, x):
        return x * 2 if x.sum() == x.sum() else x * 3

def net(): return Net()
def stubborn(): return Stubborn()
def needs(argument): return Net()
def raises(): raise RuntimeError("no such file: vocabulary")
number = 3
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory):
    """The folder of a module of nets, and that module."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "edgekiln_test_nets.py").write_text(textwrap.dedent(NETS))
    sys.path.insert(0, str(folder))
    try:
        import edgekiln_test_nets
    finally:
        sys.path.remove(str(folder))
    return folder, edgekiln_test_nets


SHAPE = {"": (2, 3, 8, 8)}


def take(nets, name: str, into: Path, **options):
    options.setdefault("input_shapes", SHAPE)
    return import_model(f"edgekiln_test_nets:{name}", into, search_path=(nets[0],), **options)


def run(path: Path, *arrays: np.ndarray) -> list[np.ndarray]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: a for i, a in zip(session.get_inputs(), arrays, strict=True)})


def test_a_factory_with_weights_gives_what_torch_gives(nets, tmp_path: Path) -> None:
    torch.manual_seed(7)
    net = nets[1].Net()
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "w.pth")
    before = list(sys.path)
    found = take(nets, "net", tmp_path / "out", weights=str(tmp_path / "w.pth"), labels=tuple("abcde"))
    assert sys.path == before
    assert found.task == "classification"
    assert [(i.name, i.shape) for i in found.signature.inputs] == [("image", (2, 3, 8, 8))]
    assert found.source.kind == "torch"
    assert "dynamo" in found.source.exporter
    assert found.source.parity_max_error < 1e-5
    assert [f.path for f in found.source.files] == ["w.pth"]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        want = net.eval()(x).numpy()
    assert np.abs(run(tmp_path / "out/model.onnx", x.numpy())[0] - want).max() < 1e-5


def test_safetensors_and_state_dicts_are_the_same_weights_and_bytes_do_not_vary(nets, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = nets[1].Net()
    torch.save(net.state_dict(), tmp_path / "w.pt")
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    code = textwrap.dedent(f"""
        from pathlib import Path
        from edgekiln.model.importers import import_model
        m = import_model("edgekiln_test_nets:net", Path({str(tmp_path / "b")!r}), input_shapes={SHAPE!r},
            weights={str(tmp_path / "w.safetensors")!r}, search_path=(Path({str(nets[0])!r}),))
        print(m.sha256)
    """)
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = take(nets, "net", tmp_path / "a", weights=str(tmp_path / "w.pt"))
    assert other.stdout.split() == [found.sha256]
    data = (tmp_path / "a/model.onnx").read_bytes()
    assert str(nets[0]).encode() not in data
    assert b"stack_trace" not in data


def test_a_wrapper_that_ignores_eval_is_put_into_evaluation_mode_all_the_same(nets, tmp_path: Path) -> None:
    spec = Preprocess(width=8, height=8)
    found = take(nets, "stubborn", tmp_path, input_shapes=None, preprocess=spec)
    assert found.signature.inputs[0].shape == (1, 3, 8, 8)
    assert found.source.parity_max_error < 1e-5
    kinds = {n.op_type for n in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "Dropout" not in kinds
    x = torch.randn(1, 3, 8, 8).numpy()
    first, again = (run(tmp_path / "model.onnx", x)[0] for _ in range(2))
    assert np.array_equal(first, again)
    assert any("no weights" in w for w in found.warnings)


def test_token_ids_are_tried_where_floats_are_refused_and_outputs_keep_their_keys(
    nets, tmp_path: Path
) -> None:
    found = take(nets, "Text", tmp_path, input_shapes={"ids": (1, 5), "mask": (1, 5)})
    assert [(i.name, i.dtype) for i in found.signature.inputs] == [("ids", "int64"), ("mask", "float32")]
    assert [o.name for o in found.signature.outputs] == ["vectors", "sum"]
    with pytest.raises(BadInput, match="mask"):
        take(nets, "Text", tmp_path, input_shapes={"ids": (1, 5)})
    with pytest.raises(BadInput, match="Did you mean 'mask'"):
        take(nets, "Text", tmp_path, input_shapes={"ids": (1, 5), "maks": (1, 5)})


def test_the_older_exporter_takes_over_and_says_so(nets, tmp_path: Path) -> None:
    found = take(nets, "Branch", tmp_path)
    assert "torchscript" in found.source.exporter
    assert any("older" in w for w in found.warnings)


def test_an_export_that_differs_from_torch_is_refused_whatever_the_exporter_says() -> None:
    from edgekiln.model.torch_export import compare

    want = {"y": np.array([[1.0, -200.0]], np.float32)}
    assert compare(want, [np.array([[1.0, -200.1]], np.float32)]) == (pytest.approx(0.1, rel=1e-3), "")
    assert "differs from torch by 8.1" in compare(want, [np.array([[9.1, -200.0]], np.float32)])[1]
    assert compare(want, [np.array([[np.nan, -200.0]], np.float32)])[1]
    assert compare(want, [np.array([1.0, -200.0], np.float32)])[1]
    assert compare(want, [])[1]
    assert compare({"i": np.array([1, 2])}, [np.array([1, 3])])[1]
    assert compare({"m": np.array([-np.inf])}, [np.array([-np.inf])]) == (0.0, "")


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("nett", "Did you mean 'net'"),
        ("number", "not callable"),
        ("needs", "without arguments"),
        ("raises", "vocabulary"),
        ("Dice", "random"),
        ("Broken", "NaN"),
    ],
)
def test_a_factory_that_gives_no_usable_model_is_refused_with_the_cure(nets, tmp_path, name, word) -> None:
    with pytest.raises(BadInput, match=word):
        take(nets, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_no_exporter_follows_fails_as_a_conversion(nets, tmp_path: Path) -> None:
    with pytest.raises(ConversionFailed, match="dynamo"):
        take(nets, "Loops", tmp_path / "out")


def test_unknown_modules_and_missing_shapes_name_the_flag(nets, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--search-path"):
        import_model("edgekiln_no_such_module:net", tmp_path, input_shapes=SHAPE)
    with pytest.raises(BadInput, match="--input-shape"):
        take(nets, "net", tmp_path, input_shapes=None)
    with pytest.raises(BadInput, match="Check --input-shape"):
        take(nets, "net", tmp_path, input_shapes={"": (1, 4, 8, 8)})


def test_without_torch_the_extra_is_named_and_an_import_of_the_room_stays_light() -> None:
    code = textwrap.dedent("""
        import sys
        sys.modules["torch"] = None  # as if it were not installed
        from pathlib import Path
        import edgekiln.model.cost, edgekiln.model.data, edgekiln.model.preprocess
        from edgekiln.errors import MissingExtra
        from edgekiln.model.importers import import_model
        print([m for m in ("onnx", "onnxruntime", "PIL", "sympy") if m in sys.modules])
        for source in ("some.module:net", "net.pt2"):
            try:
                import_model(source, Path("never_written"))
            except MissingExtra as error:
                print(error.cure)
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", *["Run: pip install 'edgekiln[torch]'"] * 2]


# ---------------------------------------------------------------- weights


def test_names_and_shapes_that_do_not_match_are_listed(nets, tmp_path: Path) -> None:
    state = dict(nets[1].Net().state_dict())
    state["extra.weight"] = state.pop("head.bias")
    state["head.weight"] = torch.zeros(7, 4)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BadInput) as caught:
        take(nets, "net", tmp_path / "out", weights=str(tmp_path / "w.pth"))
    assert "1 missing: head.bias" in caught.value.why
    assert "1 unexpected: extra.weight" in caught.value.why
    assert "head.weight (7, 4) instead of (5, 4)" in caught.value.why


class Boom:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.path),)


def test_weights_that_would_run_code_do_not(nets, tmp_path: Path) -> None:
    torch.save({"conv.weight": Boom(tmp_path / "boom")}, tmp_path / "evil.pth")
    torch.save({"w": Boom(tmp_path / "boom")}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save(nets[1].Net(), tmp_path / "module.pt")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    for name in ("evil.pth", "old.pth", "module.pt", "text.pth", "bad.safetensors", "gone.pth"):
        with pytest.raises(BadInput):
            take(nets, "net", tmp_path / "out", weights=str(tmp_path / name))
    assert not (tmp_path / "boom").exists()
    for name in ("module.pt", "evil.pth"):
        with pytest.raises(BadInput, match=r"package\.module:factory"):
            import_model(str(tmp_path / name), tmp_path / "out")
    assert not (tmp_path / "boom").exists()


# ---------------------------------------------------------------- exported programs


@pytest.fixture(scope="module")
def program(nets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved program of Net whose batch is dynamic."""
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.manual_seed(3)
    axes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    exported = torch.export.export(nets[1].Net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=axes)
    torch.export.save(exported, path)
    return path


def altered(program: Path, into: Path, change=None, extra=None, drop=()) -> Path:
    """A copy of ``program``: ``change`` edits the JSON of the graph, ``extra`` adds or replaces parts."""
    with zipfile.ZipFile(program) as source, zipfile.ZipFile(into, "w") as out:
        root = source.namelist()[0].split("/")[0]
        parts = {n.removeprefix(f"{root}/"): source.read(n) for n in source.namelist()}
        if change:
            graph = json.loads(parts["models/model.json"])
            change(graph)
            parts["models/model.json"] = json.dumps(graph).encode()
        for name, data in (parts | (extra or {})).items():
            if name not in drop:
                out.writestr(f"{root}/{name}", data)
    return into


def test_an_exported_program_keeps_its_dynamic_batch_and_its_numbers(nets, program, tmp_path: Path) -> None:
    found = import_model(str(program), tmp_path)
    assert found.source.kind == "exported-program"
    assert found.source.parity_max_error < 1e-5
    assert isinstance(found.signature.inputs[0].shape[0], str)
    x = torch.randn(3, 3, 8, 8)
    want = torch.export.load(program).module()(x).detach().numpy()
    assert np.abs(run(tmp_path / "model.onnx", x.numpy())[0] - want).max() < 1e-5


def test_a_program_exported_in_training_mode_is_refused_with_the_cure(nets, tmp_path: Path) -> None:
    exported = torch.export.export(nets[1].Net().train(), (torch.randn(2, 3, 8, 8),))
    torch.export.save(exported, tmp_path / "t.pt2")
    with pytest.raises(BadInput, match=r"model\.eval\(\)"):
        import_model(str(tmp_path / "t.pt2"), tmp_path / "out")


def evil_operator(graph) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def evil_file(graph) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def evil_name(graph) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["name"] = "x = 1\nimport os"


def evil_shape(text: str):
    def change(graph) -> None:
        sizes = graph["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = text

    return change


def test_the_altered_copy_of_a_program_is_sound_by_itself(program, tmp_path: Path) -> None:
    copy = altered(program, tmp_path / "same.pt2", change=lambda graph: None)
    assert import_model(str(copy), tmp_path).source.parity_max_error < 1e-5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (evil_operator, r"torch\.os\.system"),
        (evil_file, "from_file"),
        (evil_name, "name that is none"),
        (evil_shape("__import__('os').mkdir('boom')"), "shape expression"),
        (evil_shape("Symbol('s0').func"), "shape expression"),
        (evil_shape("9**9**9"), "shape expression"),
        (evil_shape("print(1)"), "shape expression"),
    ],
)
def test_a_program_whose_graph_would_run_code_is_refused(program, tmp_path: Path, change, word: str) -> None:
    path = altered(program, tmp_path / "evil.pt2", change)
    with pytest.raises(BadInput, match=word):
        import_model(str(path), tmp_path / "out")


def test_pickles_in_a_program_are_never_opened(program, tmp_path: Path) -> None:
    import io

    evil = io.BytesIO()
    torch.save((Boom(tmp_path / "boom"),), evil)
    with zipfile.ZipFile(program) as source:
        root = source.namelist()[0].split("/")[0]
        table = json.loads(source.read(f"{root}/data/weights/model_weights_config.json"))
    first = next(iter(table["config"].values()))
    first["use_pickle"] = True
    parts = {
        "samples": {"data/sample_inputs/model.pt": evil.getvalue()},
        "weights": {
            "data/weights/model_weights_config.json": json.dumps(table).encode(),
            f"data/weights/{first['path_name']}": evil.getvalue(),
        },
    }
    for name, extra in parts.items():
        path = altered(program, tmp_path / f"{name}.pt2", extra=extra)
        with pytest.raises(BadInput):
            import_model(str(path), tmp_path / "out")
    legacy = {"data/weights/model.pt": evil.getvalue(), "data/aotinductor/model/x.so": b"\x7fELF"}
    path = altered(program, tmp_path / "legacy.pt2", extra=legacy)
    assert import_model(str(path), tmp_path / "out").source.parity_max_error < 1e-5, "left out, not opened"
    assert not (tmp_path / "boom").exists()


def test_guards_in_a_program_are_not_compiled(program, tmp_path: Path) -> None:
    def change(graph) -> None:
        graph["guards_code"] = [f"__import__('os').mkdir({str(tmp_path / 'boom')!r}) is None"]

    import_model(str(altered(program, tmp_path / "g.pt2", change)), tmp_path / "out")
    assert not (tmp_path / "boom").exists()


def test_a_broken_archive_is_refused(program, tmp_path: Path) -> None:
    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:-500])
    (tmp_path / "text.pt2").write_text("hello")
    altered(program, tmp_path / "less.pt2", drop=("data/weights/model_weights_config.json",))
    for name in ("cut", "text", "less", "gone"):
        with pytest.raises(BadInput):
            import_model(str(tmp_path / f"{name}.pt2"), tmp_path / "out")
