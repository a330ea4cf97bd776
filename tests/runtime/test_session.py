"""A session: a bundle opened to run, its answers those of the bare engine, its errors typed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from edgekiln.errors import BadInput, EdgekilnError, MachineFault, NotRunnableHere
from edgekiln.model.preprocess import apply
from edgekiln.runtime.loaded import WINDOW, resident_bytes, steady, warm
from edgekiln.runtime.session import Session, open_session
from edgekiln.runtime.vocabulary import Event
from fakes import bundles
from fakes.runtime_bundle import Part, least, network, picture, runtime_bundle

ENGINES = ("onnxruntime", "openvino")


@pytest.fixture
def ladder_bundle(tmp_path: Path) -> Path:
    return runtime_bundle(tmp_path / "ladder.edgekiln")


def packed(folder: Path, *parts: Part, **more: Any) -> Path:
    return runtime_bundle(folder / "b.edgekiln", parts, **more)


def bare(graph: onnx.ModelProto, threads: int = 2) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """ONNX Runtime as its own documentation opens it, with the options that the house uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    made = onnxruntime.InferenceSession(graph.SerializeToString(), options)
    return lambda x: np.asarray(made.run(None, {"x": x})[0])


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (a Path would hold a handle of its own)


# ---------------------------------------------------------------- answers


def test_outputs_are_the_bare_engines_bit_for_bit(tmp_path: Path) -> None:
    parts = (Part("a", channels=32, seed=1), Part("b", seed=2))
    with open_session(packed(tmp_path, *parts)) as session:
        for part in parts:
            reference = bare(network(channels=part.channels, seed=part.seed))
            for seed in range(4):
                x = picture(seed=seed)
                found = session({"x": x}, part.id)
                assert list(found) == ["y"]
                assert np.array_equal(found["y"], reference(x))


def test_openvino_outputs_are_bare_openvinos_bit_for_bit(tmp_path: Path) -> None:
    import openvino

    with open_session(packed(tmp_path, Part("fp32", engine="openvino", seed=3))) as session:
        onnx.save(network(seed=3), tmp_path / "m.onnx")
        model = openvino.convert_model(tmp_path / "m.onnx")
        options = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "2"}
        request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
        for seed in range(4):
            x = picture(seed=seed)
            assert np.array_equal(session({"x": x})["y"], request.infer({"x": x})[0])


def test_the_first_of_the_bundle_answers_until_another_is_chosen(ladder_bundle: Path) -> None:
    with open_session(ladder_bundle) as session:
        assert session.rung == "onnxruntime.fp32@64x64"
        assert session.opened == ("onnxruntime.fp32@64x64",)
        assert [r.id for r in session.ladder] == [
            "onnxruntime.fp32@64x64",
            "onnxruntime.half-width",
            "onnxruntime.fp32@32x32",
            "onnxruntime.narrow",
        ]
        x = picture((64, 64))
        narrow = session({"x": x}, "onnxruntime.narrow")["y"]
        assert not np.array_equal(session({"x": x})["y"], narrow)
        session.use("onnxruntime.narrow")
        assert session.rung == "onnxruntime.narrow"
        assert np.array_equal(session({"x": x})["y"], narrow)


def test_every_opens_all_rungs_and_sizes_of_one_file_share_an_engine(ladder_bundle: Path) -> None:
    events: list[Event] = []
    with open_session(ladder_bundle, every=True, on_event=events.append) as session:
        assert len(session.opened) == 4
        took = [e.facts["memory_bytes"] for e in events if e.kind == "opened"]
        assert (
            session.memory_bytes == sum({e.what: e.facts["memory_bytes"] for e in events}.values()) - took[1]
        )
        for rung in session.ladder:
            assert rung.size is not None
            x = picture(rung.size, seed=4)
            assert np.isfinite(session({"x": x}, rung.id)["y"]).all()
    assert [e.kind for e in events] == ["opened"] * 4 + ["closed"]


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_of_a_call_stay_unless_asked_not_to_be_copied(engine: str, tmp_path: Path) -> None:
    with open_session(packed(tmp_path, Part("fp32", engine=engine))) as session:
        one, two = ({"x": picture(seed=seed)} for seed in (1, 2))
        first = session(one)["y"]
        kept = first.copy()
        session(two)
        assert np.array_equal(first, kept)
        view = session(one, copy=False)["y"]
        assert np.array_equal(view, kept)
        other = session(two, copy=False)["y"]
        assert other.ctypes.data == view.ctypes.data
        assert not np.array_equal(view, kept), "the rule: valid until the next call"


@pytest.mark.parametrize("engine", ENGINES)
def test_arrays_of_any_layout_give_the_same(engine: str, tmp_path: Path) -> None:
    with open_session(packed(tmp_path, Part("fp32", engine=engine))) as session:
        x = picture(seed=5)
        expected = session({"x": x})["y"]
        turned = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        frozen = x.copy()
        frozen.flags.writeable = False
        odd = np.zeros(x.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
        odd[:] = x
        for given in (turned, frozen, odd):
            assert np.array_equal(session({"x": given})["y"], expected)
        turned[:] = 0
        assert not np.array_equal(session({"x": turned})["y"], expected), "no stale copy answers"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frame_goes_straight_into_the_bound_buffer(engine: str, tmp_path: Path) -> None:
    part = Part("fp32", engine=engine, sizes=((32, 32), (24, 40)))
    with open_session(packed(tmp_path, part)) as session:
        frame = np.random.default_rng(0).integers(0, 256, (57, 83, 3), dtype=np.uint8)
        for rung in session.ladder:
            held = session.input_buffer(rung.id)
            assert held["x"].ctypes.data % 64 == 0
            given = session.preprocess(frame, rung.id)
            assert given["x"] is held["x"]
            assert rung.size is not None
            spec = session.manifest.preprocess
            assert spec is not None
            at_size = msgspec.structs.replace(spec, height=rung.size[0], width=rung.size[1])
            assert np.array_equal(held["x"], apply(at_size, Image.fromarray(frame)))
            copied = {"x": held["x"].copy()}
            assert np.array_equal(session(given, rung.id)["y"], session(copied, rung.id)["y"])


def test_a_batch_is_filled_picture_by_picture(tmp_path: Path) -> None:
    with open_session(packed(tmp_path, Part("fp32", batch="batch"))) as session:
        frames = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
        held = session.input_buffer(axes={"batch": 3})
        for at, frame in enumerate(frames):
            session.preprocess(frame, into=held, at=at)
        together = session(held)["y"]
        assert together.shape == (3, 10)
        alone = [session(session.preprocess(frame))["y"] for frame in frames]
        assert np.allclose(together, np.concatenate(alone), atol=1e-5)
        with pytest.raises(BadInput, match="no place 3"):
            session.preprocess(frames[0], into=held, at=3)
        with pytest.raises(BadInput, match="no open axis 'depth'"):
            session.input_buffer(axes={"depth": 3})


def test_labels_are_the_bundles(ladder_bundle: Path) -> None:
    with open_session(ladder_bundle) as session:
        assert session.labels == tuple(f"class-{i}" for i in range(10))


def test_an_engine_without_a_path_of_its_own_works_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strings go through the plain runner."""
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)],
        "g",
        [value("x", TensorProto.FLOAT, [1, 3, 2, 2])],
        [value("y", TensorProto.STRING, [1, 3, 2, 2])],
    )
    graph = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    events: list[Event] = []
    with open_session(packed(tmp_path, Part("text", graph=graph)), on_event=events.append) as session:
        found = session({"x": np.ones((1, 3, 2, 2), np.float32)})["y"]
    assert found.ravel().tolist() == ["1"] * 12
    assert events[0].facts["in_place"] is False


# ---------------------------------------------------------------- what can't be


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, r"the inputs \[\] were given"),
        ({"z": picture()}, "'z'"),
        ({"x": picture(), "z": picture()}, "'z'"),
        ({"x": picture((32, 31))}, "takes 1x3x32x32"),
        ({"x": picture()[0]}, "takes 1x3x32x32"),
        ({"x": picture(batch=2)}, "takes 1x3x32x32"),
        ({"x": picture().astype(np.float64)}, "is float64, the rung takes float32"),
        ({"x": picture().astype(">f4")}, "is >f4"),
        ({"x": picture().tolist()}, "is a list"),
        ({"x": np.ma.masked_array(picture())}, "MaskedArray"),
        ({"x": None}, "NoneType"),
    ],
)
def test_wrong_inputs_are_bad_input_and_the_next_call_is_fine(
    engine: str, given: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with open_session(packed(tmp_path, Part("fp32", engine=engine))) as session:
        expected = session({"x": picture()})["y"]
        with pytest.raises(BadInput, match=why):
            session(given)
        assert np.array_equal(session({"x": picture()})["y"], expected)


def test_axes_that_only_the_artifact_fixes_are_checked_too(tmp_path: Path) -> None:
    """The model's signature leaves the batch open, the artifact was made for one picture."""
    bundle = packed(tmp_path, Part("open", batch="batch"), Part("one"))
    with open_session(bundle) as session:
        assert session({"x": picture(batch=2)})["y"].shape == (2, 10)
        with pytest.raises(BadInput, match="takes 1x3x32x32"):
            session({"x": picture(batch=2)}, "onnxruntime.one")


def test_a_rung_that_nobody_knows_is_bad_input_that_names_the_near_ones(ladder_bundle: Path) -> None:
    with open_session(ladder_bundle) as session:
        for call in (session.use, session.prepare, session.release, session.input_buffer):
            with pytest.raises(BadInput, match=r"onnxruntime\.narrow"):
                call("onnxruntime.narow")
        with pytest.raises(BadInput, match=r"onnxruntime\.narrow"):
            session({"x": picture((64, 64))}, "onnxruntime.narow")


def test_an_artifact_that_its_engine_refuses_is_a_row_and_the_next_one_answers(tmp_path: Path) -> None:
    odd = network()
    odd.graph.node[0].op_type = "NoSuchOperator"
    events: list[Event] = []
    bundle = packed(tmp_path, Part("odd", graph=odd), Part("good"))
    with open_session(bundle, on_event=events.append) as session:
        assert session.rung == "onnxruntime.good"
        assert [c.rung.id for c in session.candidates] == ["onnxruntime.good"]
        (row,) = session.unusable
        assert row.artifact_id == "onnxruntime.odd"
        assert "NoSuchOperator" in row.why
        with pytest.raises(NotRunnableHere, match="NoSuchOperator"):
            session({"x": picture()}, "onnxruntime.odd")
    assert [e.kind for e in events] == ["refused", "opened", "closed"]


def test_a_bundle_without_any_artifact_that_runs_lists_each_reason(tmp_path: Path) -> None:
    odd = network()
    odd.graph.node[0].op_type = "NoSuchOperator"
    web, other = Part("fp32", engine="web", proof_engine="web"), Part("odd", graph=odd)
    before = len(list(Path(os.environ.get("TMPDIR", "/tmp")).glob("edgekiln-*")))
    with pytest.raises(NotRunnableHere) as found:
        open_session(packed(tmp_path, web, other))
    assert "web.fp32: it runs in a browser" in found.value.why
    assert "onnxruntime.odd" in found.value.why
    assert "NoSuchOperator" in found.value.why
    after = len(list(Path(os.environ.get("TMPDIR", "/tmp")).glob("edgekiln-*")))
    assert after <= before, "nothing unpacked is left"


@pytest.mark.parametrize("where", ["model/model.onnx", "alternates/1/model.onnx", "manifest.json"])
def test_a_corrupt_bundle_is_refused(where: str, ladder_bundle: Path, tmp_path: Path) -> None:
    held = bundles.members(ladder_bundle)
    data = bytearray(held[where])
    data[len(data) // 2] ^= 0x40
    held[where] = bytes(data)
    with pytest.raises(BadInput):
        open_session(bundles.write(tmp_path / "odd.edgekiln", held))
    with pytest.raises(BadInput):
        open_session(tmp_path / "none.edgekiln")


def test_a_preprocessing_that_can_not_be_meant_is_refused_at_once(
    ladder_bundle: Path, tmp_path: Path
) -> None:
    def forged(told: Any) -> None:
        told["preprocess"]["std"] = [0.0, 1.0, 1.0]

    with pytest.raises(BadInput, match="std or scale is 0"):
        open_session(bundles.repack(ladder_bundle, tmp_path / "odd.edgekiln", bundles.keep, forged))


def test_a_model_of_no_single_picture_takes_arrays_alone(tmp_path: Path) -> None:
    with open_session(packed(tmp_path, Part("fp32"), preprocess=False)) as session:
        with pytest.raises(BadInput, match="takes no single picture"):
            session.preprocess(np.zeros((4, 4, 3), np.uint8))
        assert session(session.input_buffer())["y"].shape == (1, 10)


def gathering() -> onnx.ModelProto:
    """``x`` (1, 3, 2, 2) to the entries of (1, 2, 3) at its own values: 3 and more fail in the engine."""
    value = helper.make_tensor_value_info
    held = helper.make_tensor("held", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    made = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["at"], to=TensorProto.INT64),
            helper.make_node("Gather", ["held", "at"], ["y"]),
        ],
        "g",
        [value("x", TensorProto.FLOAT, [1, 3, 2, 2])],
        [value("y", TensorProto.FLOAT, [1, 3, 2, 2])],
        [held],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_engine_that_fails_in_a_call_is_a_machine_fault_and_goes_on(tmp_path: Path) -> None:
    with open_session(packed(tmp_path, Part("gather", graph=gathering()))) as session:
        fine, wrong = (np.full((1, 3, 2, 2), n, np.float32) for n in (2, 9))
        assert (session({"x": fine})["y"] == 3).all()
        with pytest.raises(MachineFault, match="out of data bounds"):
            session({"x": wrong})
        assert (session({"x": fine})["y"] == 3).all()


# ---------------------------------------------------------------- memory


def test_the_engine_used_longest_ago_makes_room_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every engine takes 10 MB here; the real figure depends on what malloc has left over."""
    asked = iter(range(1000))
    monkeypatch.setattr("edgekiln.runtime.loading.resident_bytes", lambda: 10_000_000 * next(asked))
    parts = [Part(name, seed=n) for n, name in enumerate("abc")]
    a, b, c = (part.id for part in parts)
    events: list[Event] = []
    x = {"x": picture()}
    bundle = packed(tmp_path, *parts)
    with open_session(bundle, memory_bytes=25_000_000, on_event=events.append) as session:
        found = {}
        for rung, held in ((b, {a, b}), (c, {a, c}), (a, {a, c}), (b, {a, b}), (a, {a, b})):
            found[rung] = session(x, rung)["y"]
            assert set(session.opened) == held
            assert session.memory_bytes == 20_000_000
        closed = [(e.what, e.done) for e in events if e.kind == "memory"]
        assert closed == [(b, "its engine is closed"), (c, "its engine is closed")]
        for part in parts:
            assert np.array_equal(found[part.id], bare(network(seed=part.seed))(x["x"]))


def test_an_engine_that_takes_memory_is_said_to_take_it(tmp_path: Path) -> None:
    bundle = packed(tmp_path, Part("small"), Part("large", channels=900))
    with open_session(bundle) as session:
        before = session.memory_bytes
        session.prepare("onnxruntime.large")
        assert 900 * 900 * 9 * 4 <= session.memory_bytes - before < 40 * 900 * 900 * 9


def test_what_fits_no_bound_is_refused_with_its_size(ladder_bundle: Path) -> None:
    with pytest.raises(NotRunnableHere, match=r"the session may hold 0\.0 MB"):
        open_session(ladder_bundle, memory_bytes=1000)


def test_a_released_engine_is_opened_again_by_its_next_call(ladder_bundle: Path) -> None:
    with open_session(ladder_bundle) as session:
        x = {"x": picture((64, 64))}
        expected = session(x)["y"]
        session.release(session.rung)
        assert session.opened == ()
        assert session.memory_bytes == 0
        assert np.array_equal(session(x)["y"], expected)
        assert session.opened == (session.rung,)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system has no /proc")
def test_a_million_calls_leave_memory_and_file_handles_as_they_were(tmp_path: Path) -> None:
    with open_session(packed(tmp_path, Part("least", graph=least())), threads=1) as session:
        buffer = session.input_buffer()
        fresh = [{"x": picture((8, 8), seed=seed)} for seed in range(64)]

        def many(count: int) -> None:
            for at in range(count // 4):
                session(buffer)
                session(buffer, copy=False)
                session(fresh[at % 64])
                session({"x": fresh[at % 64]["x"].copy()})

        many(20_000)
        before, handles = resident_bytes(), descriptors()
        many(1_000_000)
        assert descriptors() <= handles
        assert resident_bytes() - before < 2 << 20, "2 bytes a call"


def test_opening_and_closing_leaves_no_handle_no_thread_and_no_folder(
    ladder_bundle: Path, tmp_path: Path
) -> None:
    def once() -> Session:
        with open_session(ladder_bundle, every=True) as session:
            session({"x": picture((64, 64))})
            assert session._held.folder.is_dir()
        return session

    once()
    handles, threads = descriptors(), threading.active_count()
    for _ in range(5):
        closed = once()
        assert not closed._held.folder.exists()
    assert descriptors() <= handles
    assert threading.active_count() == threads


# ---------------------------------------------------------------- closing and threads


def test_closing_twice_is_no_error_and_a_later_call_is_typed(ladder_bundle: Path) -> None:
    session = open_session(ladder_bundle)
    session.close()
    session.close()
    for call in (
        lambda: session({"x": picture((64, 64))}),
        lambda: session({"x": picture((64, 64))}, "onnxruntime.narrow"),
        lambda: session.prepare("onnxruntime.narrow"),
        lambda: session.input_buffer("onnxruntime.narrow"),
        lambda: session.rung,
    ):
        with pytest.raises(BadInput, match="the session is closed"):
            call()


def test_an_error_inside_closes_it_too(ladder_bundle: Path) -> None:
    folders = []

    def fails() -> None:
        with open_session(ladder_bundle) as session:
            folders.append(session._held.folder)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not folders[0].exists()


def heavy(tmp_path: Path) -> Path:
    """A call takes tens of milliseconds."""
    return packed(tmp_path, Part("heavy", channels=64, sizes=((256, 256),)))


def test_closing_waits_for_the_call_that_runs(tmp_path: Path) -> None:
    session = open_session(heavy(tmp_path), threads=1, warm_s=0.0)
    x = {"x": picture((256, 256))}
    expected = session(x)["y"]
    answers: list[NDArray[Any]] = []
    refused: list[EdgekilnError] = []
    running = threading.Event()

    def calls() -> None:
        try:
            while True:
                running.set()
                answers.append(session(x)["y"])
        except EdgekilnError as error:
            refused.append(error)

    workers = [threading.Thread(target=calls) for _ in range(3)]
    for worker in workers:
        worker.start()
    running.wait()
    time.sleep(0.1)
    session.close()
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()
    assert [type(e) for e in refused] == [BadInput] * 3
    assert all(np.array_equal(one, expected) for one in answers)


def test_a_call_that_outlasts_the_closing_frees_its_engine_itself(tmp_path: Path) -> None:
    session = open_session(heavy(tmp_path), threads=1, warm_s=0.0)
    loaded = session._all.loaded()[0]
    inside, go = threading.Event(), threading.Event()
    runner = loaded.runner
    assert runner is not None

    class Hangs:
        def __call__(self, inputs: Any) -> Any:
            inside.set()
            go.wait(20)
            return runner(inputs)

        def close(self) -> None:
            runner.close()

    loaded.runner = Hangs()
    found: list[Any] = []
    worker = threading.Thread(target=lambda: found.append(session({"x": picture((256, 256))})))
    worker.start()
    inside.wait()
    session.close(wait_s=0.05)
    assert loaded.runner is not None
    go.set()
    worker.join(20)
    assert found[0]["y"].shape == (1, 10)
    assert loaded.runner is None


def test_an_engine_that_can_not_be_closed_keeps_no_other_from_it(tmp_path: Path) -> None:
    events: list[Event] = []
    bundle = packed(tmp_path, Part("a"), Part("b"))
    session = open_session(bundle, every=True, on_event=events.append)
    folder = session._held.folder

    class Stubborn:
        def __call__(self, inputs: Any) -> Any:
            return {}

        def close(self) -> None:
            raise OSError("the device is gone")

    first, second = session._all.loaded()
    first.runner = Stubborn()
    session.close()
    assert second.runner is None
    assert not folder.exists()
    told = [(e.kind, e.what, e.why) for e in events[-2:]]
    assert told[0] == ("crashed", "onnxruntime.a", "closing its engine fails: the device is gone")
    assert told[1][0] == "closed"


def test_several_threads_get_each_their_own_answers(ladder_bundle: Path) -> None:
    with open_session(ladder_bundle, threads=1, every=True) as session:
        rungs = [r.id for r in session.ladder]
        sizes = {r.id: r.size or (0, 0) for r in session.ladder}
        given = {(r, seed): picture(sizes[r], seed=seed) for r in rungs for seed in range(5)}
        expected = {key: session({"x": x}, key[0])["y"] for key, x in given.items()}
        wrong: list[tuple[str, int]] = []

        def calls(offset: int) -> None:
            keys = list(given)
            for at in range(400):
                key = keys[(at * 7 + offset) % len(keys)]
                if not np.array_equal(session({"x": given[key]}, key[0])["y"], expected[key]):
                    wrong.append(key)

        workers = [threading.Thread(target=calls, args=(n,)) for n in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert not wrong


def test_a_release_between_calls_of_other_threads_loses_none(tmp_path: Path) -> None:
    with open_session(packed(tmp_path, Part("fp32")), threads=1, warm_s=0.0) as session:
        x = {"x": picture()}
        expected = session(x)["y"]
        errors: list[BaseException] = []

        def calls() -> None:
            try:
                for _ in range(300):
                    assert np.array_equal(session(x)["y"], expected)
            except BaseException as error:
                errors.append(error)

        workers = [threading.Thread(target=calls) for _ in range(2)]
        for worker in workers:
            worker.start()
        for _ in range(15):
            session.release(session.rung)
        for worker in workers:
            worker.join(30)
        assert not errors


# ---------------------------------------------------------------- warm, light


def test_the_warm_up_ends_when_calls_are_alike_and_is_bounded() -> None:
    clock = [0.0]

    def calls(seconds: list[float]) -> Callable[[], None]:
        left = iter(seconds)

        def call() -> None:
            clock[0] += next(left)

        return call

    found = warm(calls([0.1, 0.05] + [0.01] * 60), 9.0, lambda: clock[0])
    assert found.steady
    assert 2 * WINDOW <= found.calls <= 2 * WINDOW + 2 + WINDOW
    rising = [0.01 * 1.3**n for n in range(60)]
    assert not warm(calls(rising), 1.0, lambda: clock[0]).steady
    assert warm(calls([2.0] * 60), 1.0, lambda: clock[0]).calls == 1
    assert not steady([1.0] * (2 * WINDOW - 1))


CHILD = """
import sys
from pathlib import Path
import edgekiln.runtime.session
light = sorted({m.partition('.')[0] for m in sys.modules} & HEAVY)
with edgekiln.runtime.session.open_session(Path(sys.argv[1]), every=True) as session:
    for rung in session.ladder:
        session(session.input_buffer(rung.id), rung.id)
print(light, sorted({m.partition('.')[0] for m in sys.modules} & HEAVY))
"""
HEAVY = {"onnx", "torch", "onnxruntime", "openvino", "PIL", "scipy", "rich", "cv2", "psutil"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_session_process_imports_its_engine_and_nothing_else_that_is_heavy(
    engine: str, tmp_path: Path
) -> None:
    bundle = packed(tmp_path, Part("a", engine=engine), Part("b", engine=engine, seed=1))
    done = subprocess.run(
        [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{CHILD}", str(bundle)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"[] ['{engine}']"
