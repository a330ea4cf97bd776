import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekiln.errors import BadInput, MachineFault
from edgekiln.prove.bench import compare, judge
from edgekiln.prove.timing import Contender, Timing, TimingFailure, measure, timing_evidence
from edgekiln.records import Artifact

FAKES = Path(__file__).parents[1] / "fakes"
FAKE_WORKER = (sys.executable, str(FAKES / "prove_worker.py"))
RAPIDOCR = Path(find_spec("rapidocr").origin).parent / "models"
CLASSIFIER = "ch_ppocr_mobile_v2.0_cls_mobile.onnx"


def artifact(name, entry="model.onnx", engine="onnxruntime", **options):
    return Artifact(
        id=name,
        target=engine,
        recipe="fp32",
        engine=engine,
        proof_engine=engine,
        entry=entry,
        files=(),
        options=options,
        tools={},
        precisions={"fp32": 1},
    )


def fake(folder, name, behaviour="good", **options):
    made = artifact(name, engine="fake", behaviour=behaviour, **options)
    return Contender(id=name, folder=str(folder), artifact=made, engine="fake")


def run_fakes(contenders, **options):
    options = {"min_samples": 20, "max_seconds": 5, "warmup_seconds": 0.2, "call_seconds": 5, **options}
    return measure(contenders, {"x": np.ones(3, np.float32)}, 1, command=FAKE_WORKER, **options)


def matmuls(path, count, size=160):
    weight = np.random.default_rng(0).normal(0, 0.05, (size, size)).astype(np.float32)
    nodes = [helper.make_node("MatMul", [f"t{i}", "w"], [f"t{i + 1}"]) for i in range(count)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [size, size]) for n in ("t0", f"t{count}")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [onnx.numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return {"t0": np.ones((size, size), np.float32)}


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z" or os.getpid() == int(Path(f"/proc/{pid}/stat").read_text().split()[3])


def gone(pid, seconds=5.0):
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


@pytest.fixture(scope="module")
def real_run():
    """Two copies of a real classifier that differ in threads' spinning, in ONNX Runtime."""
    contenders = [
        Contender(
            id=name,
            folder=str(RAPIDOCR),
            artifact=artifact(name, entry=CLASSIFIER, spinning=spinning),
            engine="onnxruntime",
        )
        for name, spinning in (("calm", False), ("spinning", True))
    ]
    picture = {"x": np.zeros((1, 3, 48, 192), np.float32)}
    return measure(contenders, picture, 1, min_samples=100, max_seconds=20, warmup_seconds=1)


def test_a_real_model_is_timed_with_all_its_figures(real_run):
    import onnxruntime

    for timing in real_run:
        assert isinstance(timing, Timing), timing
        assert len(timing.samples_ms) == sum(timing.blocks) >= 100
        assert min(timing.samples_ms) > 0
        assert timing.engine_version == onnxruntime.__version__
        assert timing.load_ms > 0
        assert timing.first_ms > 0
        assert timing.warmup_calls >= 5
        assert timing.threads == 1
        # The library alone is some 20 MB of pages, and a Python with numpy some 25 MB before it.
        assert timing.peak_rss_bytes > timing.baseline_rss_bytes + 5e6
        assert timing.baseline_rss_bytes > 5e6
    assert [t.spinning for t in real_run] == [False, True]


def test_contenders_alternate_round_by_round_in_changing_order(real_run):
    a, b = real_run
    assert sorted(a.turns + b.turns) == list(range(len(a.turns) + len(b.turns)))
    assert [turn // 2 for turn in a.turns] == [turn // 2 for turn in b.turns] == list(range(len(a.turns)))
    assert len({turn % 2 for turn in a.turns}) == 2, "a was always first or always second"
    assert [len(block) for block in a.blocks_ms] == list(a.blocks)
    assert tuple(x for block in a.blocks_ms for x in block) == a.samples_ms


def test_evidence_says_how_each_figure_was_obtained(real_run):
    evidence = {e.what: e for e in timing_evidence(real_run[1], "this machine", {"cpu_model": "a CPU"})}
    assert set(evidence) == {
        "latency_p50_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "load_ms",
        "peak_memory_bytes",
        "engine_memory_bytes",
    }
    p50, p95, p99 = (evidence[f"latency_p{q}_ms"] for q in (50, 95, 99))
    assert p50.value == pytest.approx(np.median(real_run[1].samples_ms))
    assert p50.interval[0] <= p50.value <= p50.interval[1]
    assert p50.value <= p95.value <= p99.value
    memory = evidence["peak_memory_bytes"].value - evidence["engine_memory_bytes"].value
    assert memory == real_run[1].baseline_rss_bytes
    around = p50.environment
    assert (around["threads"], around["alternated_contenders"], around["spinning"]) == (1, 2, True)
    assert around["cpu_model"] == "a CPU"
    assert around["warmup_calls"] == real_run[1].warmup_calls
    assert around["machine_fitness"]
    assert {e.how for e in evidence.values()} == {"measured"}


def test_too_few_samples_leave_the_tail_null_with_its_reason(tmp_path):
    (timing,) = run_fakes([fake(tmp_path, "slow", ms=30)], min_samples=6)
    evidence = {e.what: e for e in timing_evidence(timing, "here", {})}
    assert evidence["latency_p50_ms"].value >= 30
    for what in ("latency_p95_ms", "latency_p99_ms"):
        assert evidence[what].value is None
        assert f"{len(timing.samples_ms)} samples" in evidence[what].reason
        assert evidence[what].how is None


def test_only_one_contender_computes_at_a_time(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    found = run_fakes([fake(tmp_path / name, name) for name in ("a", "b", "c")], seed=4)
    assert all(isinstance(t, Timing) for t in found)
    lines = [line.split() for name in "abc" for line in (tmp_path / name / "log").read_text().splitlines()]
    calls = sorted((int(start), int(end)) for _, start, end in lines)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(calls))


def test_the_seed_repeats_the_order_and_another_changes_it(tmp_path):
    contenders = [fake(tmp_path, name) for name in ("a", "b", "c")]
    first, again, other = (
        [t.turns[:10] for t in run_fakes(contenders, seed=seed, warmup_seconds=0)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_threads_are_fixed_in_the_workers_environment(tmp_path):
    measure([fake(tmp_path, "a")], {"x": np.ones(1)}, 2, command=FAKE_WORKER, min_samples=1, warmup_seconds=0)
    assert (tmp_path / "a.environment").read_text() == "2 2"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_pinning_is_said_and_not_the_default(tmp_path):
    (free,), (pinned,) = (
        run_fakes([fake(tmp_path, "a")], min_samples=2, warmup_seconds=0, pin=pin) for pin in (False, True)
    )
    assert free.cores == ()
    assert pinned.cores == (min(os.sched_getaffinity(0)),)
    said = [timing_evidence(t, "", {})[0].environment["pinned_cores"] for t in (free, pinned)]
    assert said == ["not pinned", str(pinned.cores[0])]


@pytest.mark.parametrize(
    ("behaviour", "kind", "says"),
    [
        ("crash", "crashed", "SIGSEGV"),
        ("exit", "crashed", "exit code 7"),
        ("killed", "crashed", "memory ran out"),
        ("hang", "hung", "no answer within"),
        ("hungry", "refused", "out of memory"),
        ("raise", "refused", "invalid dimensions"),
        ("garbage", "garbled", "hello from a library"),
        ("refuse", "refused", "no such instruction"),
    ],
)
@pytest.mark.parametrize("good_calls", [0, 12])
def test_a_contender_that_fails_is_a_row_and_the_others_go_on(tmp_path, behaviour, kind, says, good_calls):
    bad = fake(tmp_path, "bad", behaviour, good_calls=good_calls)
    hangs = behaviour == "hang"
    first, failed, last = run_fakes(
        [fake(tmp_path, "first"), bad, fake(tmp_path, "last")],
        call_seconds=2 if hangs else 10,
        open_seconds=4 if hangs and not good_calls else 60,
        warmup_seconds=0.05,
        min_samples=40,
    )
    assert isinstance(failed, TimingFailure)
    assert (failed.id, failed.kind) == ("bad", kind)
    assert says in failed.reason
    assert failed.cure
    for timing in (first, last):
        assert isinstance(timing, Timing)
        assert len(timing.samples_ms) >= 40
    assert gone(int((tmp_path / "bad.pid").read_text()))


def test_the_workers_last_words_are_kept(tmp_path):
    (failed,) = run_fakes([fake(tmp_path, "bad", "crash")])
    assert "assertion failed in kernel 17" in failed.stderr


def test_what_a_library_prints_on_stdout_does_not_disturb(tmp_path):
    (timing,) = run_fakes([fake(tmp_path, "chatty", "chatty")])
    assert isinstance(timing, Timing), timing


def test_a_graph_the_engine_refuses_is_a_row_with_the_engines_reason(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")
    broken = Contender(id="b", folder=str(tmp_path), artifact=artifact("b"), engine="onnxruntime")
    missing = Contender(id="m", folder=str(tmp_path), artifact=artifact("m"), engine="nosuch")
    first, second = measure([broken, missing], {"x": np.ones(1)}, 1, min_samples=1)
    assert (first.kind, second.kind) == ("refused", "refused")
    assert "protobuf" in first.reason.lower()
    assert "unknown engine 'nosuch'" in second.reason


def test_the_time_budget_ends_a_slow_run_after_at_least_one_round(tmp_path):
    contenders = [fake(tmp_path, "slow", ms=120), fake(tmp_path, "fast")]
    slow, fast = run_fakes(contenders, min_samples=10_000, max_seconds=0.3, warmup_seconds=0.1)
    assert 1 <= len(slow.samples_ms) < 20
    assert len(slow.turns) == len(fast.turns)


def test_whatever_raises_in_the_parent_ends_every_worker(tmp_path):
    def stop(text, done, total):
        if text == "timing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fakes([fake(tmp_path, "a"), fake(tmp_path, "b")], progress=stop)
    pids = [int((tmp_path / f"{name}.pid").read_text()) for name in ("a", "b")]
    assert not any(alive(pid) for pid in pids), "killed and reaped before measure returned"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_an_interrupted_parent_even_in_a_hung_call(tmp_path, how):
    script = f"""
        import sys
        sys.path[:0] = {[str(Path(__file__).parent)]!r}
        from test_timing import fake, run_fakes
        from pathlib import Path
        folder = Path({str(tmp_path)!r})
        run_fakes([fake(folder, "idle"), fake(folder, "hung", "hang", good_calls=1)], call_seconds=60)
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stderr=subprocess.DEVNULL)
    files = [tmp_path / f"{name}.pid" for name in ("idle", "hung")]
    deadline = time.monotonic() + 20
    while not all(f.exists() and f.read_text() for f in files) and time.monotonic() < deadline:
        time.sleep(0.05)
    pids = [int(f.read_text()) for f in files]
    assert all(alive(pid) for pid in pids)
    parent.send_signal(how)
    parent.wait(timeout=10)
    assert all(gone(pid) for pid in pids)


def test_ids_must_differ_and_counts_be_positive(tmp_path):
    with pytest.raises(BadInput, match="different ids"):
        run_fakes([fake(tmp_path, "a"), fake(tmp_path, "a")])
    with pytest.raises(BadInput, match="at least 1"):
        run_fakes([fake(tmp_path, "a")], min_samples=0)
    with pytest.raises(MachineFault, match="no-such-python"):
        measure([fake(tmp_path, "a")], {"x": np.ones(1)}, 1, command=("/no-such-python",))


def test_an_input_may_have_any_name(tmp_path):
    names = {"x": np.ones(1), "file": np.ones(1), "args/0:1": np.zeros((), np.int64)}
    (timing,) = measure([fake(tmp_path, "a")], names, 1, command=FAKE_WORKER, min_samples=1, warmup_seconds=0)
    assert isinstance(timing, Timing), timing


def test_bench_finds_the_graph_with_a_tenth_of_the_work_faster(tmp_path):
    contenders = []
    for name, count in (("long", 60), ("short", 6)):
        (tmp_path / name).mkdir()
        inputs = matmuls(tmp_path / name / "model.onnx", count)
        # Both graphs name their input alike; the outputs differ and do not matter.
        made = Contender(id=name, folder=str(tmp_path / name), artifact=artifact(name), engine="onnxruntime")
        contenders.append(made)
    result = compare(*contenders, inputs, 1, min_samples=60, max_seconds=10)
    assert result.tie is False
    assert result.ratio.interval[0] > 2
    assert result.verdict.startswith("short is ")
    assert "x faster than long [" in result.verdict
    swapped = judge(result.b, result.a)
    assert swapped.verdict == result.verdict


def test_bench_of_the_same_contender_shows_no_difference(real_run):
    copy = real_run[0]
    result = judge(copy, copy)
    assert result.tie is True
    assert result.verdict.startswith("no difference that this run can show")


def test_bench_reports_a_failure_and_keeps_the_other_sides_figures(real_run):
    failure = TimingFailure(id="bad", kind="crashed", reason="it fell over", cure="")
    result = judge(real_run[0], failure)
    assert result.verdict == "bad could not be timed: it fell over"
    assert result.a_percentiles is not None
    assert (result.b_percentiles, result.ratio, result.tie) == (None, None, None)
    alone = judge(real_run[0], None)
    assert "timed alone" in alone.verdict
