"""The whole loop on real bundles, real engines and real sources: every frame is accounted for."""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekiln import interrupt
from edgekiln.bundle.unpack import opened
from edgekiln.cli import main
from edgekiln.errors import BadInput
from edgekiln.runtime.events import read
from edgekiln.runtime.loop import Order, play
from edgekiln.runtime.vocabulary import Answer, Goal
from fakes.guarded import eventually
from fakes.runtime_bundle import Part, runtime_bundle
from fakes.serving import Condition, chaos_proxy, served, serving


class Onlooker:
    def __init__(self):
        self.events, self.snapshots, self.shown = [], [], None

    @contextlib.contextmanager
    def __call__(self, shown):
        self.shown = shown
        yield self

    def event(self, event):
        self.events.append(event)

    def show(self, found):
        self.snapshots.append(found)


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "host.edgekiln"
    runtime_bundle(path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for at in range(12):
        Image.fromarray(draw.integers(0, 256, (48, 64, 3), np.uint8)).save(folder / f"{at:02}.png")
    return folder


def ours():
    return [t.name for t in threading.enumerate() if t.name.startswith("edgekiln")]


def order(bundle, *inputs, deadline_ms=2000.0, **more):
    goal = {name: more.pop(name) for name in ("mode", "most_batch", "most_every") if name in more}
    return Order(
        bundle=str(bundle),
        inputs=tuple(map(str, inputs)),
        goal=Goal(deadline_ms=deadline_ms, **goal),
        threads=1,
        pace=more.pop("pace", "fast"),
        **more,
    )


def test_every_picture_of_a_folder_is_answered_and_counted(bundle, photos, tmp_path):
    seen, results = Onlooker(), []
    log = tmp_path / "events.jsonl"
    found = play(order(bundle, photos), seen, log=log, answered=results.append)
    assert found.ended == "whole"
    assert [r.index for r in results] == list(range(12))
    assert all(isinstance(r.answer, Answer) for r in results)
    total = found.snapshot.total
    assert (total.entered, total.done, sum(total.dropped.values()), sum(total.failed.values())) == (
        12,
        12,
        0,
        0,
    )
    assert found.ladder == seen.shown.ladder
    assert seen.snapshots[-1].total == total
    assert {line.event.kind for line in read(log).lines if line.event} >= {"opened", "source-ended"}
    until = time.monotonic() + 5
    while ours() and time.monotonic() < until:  # an engine's thread closes it after the chain has ended
        time.sleep(0.02)
    assert ours() == []


def test_two_streams_are_both_answered_to_their_ends(bundle, photos):
    found = play(order(bundle, photos, photos), Onlooker())
    counts = found.snapshot.streams
    assert len(counts) == 2
    assert all(c.done == 12 for c in counts.values())


def test_several_sources_find_out_how_many_calls_at_once_pay(bundle, photos):
    seen = Onlooker()
    found = play(order(bundle, photos, photos), seen)
    assert found.snapshot.total.done == 24
    (told,) = [e for e in seen.events if "calls at once" in e.what]
    assert "1 at once" in told.why
    assert "2 at once" in told.why


def test_calls_at_once_answer_all_frames_in_their_order(bundle, photos):
    seen, results = Onlooker(), []
    found = play(order(bundle, photos, calls=2), seen, answered=results.append)
    assert found.snapshot.total.done == 12
    assert [r.index for r in results] == list(range(12))
    assert not [e for e in seen.events if "calls at once" in e.what]
    until = time.monotonic() + 5
    while ours() and time.monotonic() < until:
        time.sleep(0.02)
    assert ours() == []


def test_a_rung_that_can_not_keep_the_deadline_is_left_by_the_policies_and_does_not_rest(tmp_path, photos):
    """Its first calls are cut off: the steering has to hear of that, or it would ask for it for ever."""
    path = tmp_path / "b.edgekiln"
    runtime_bundle(
        path, parts=[Part("fp32", sizes=((256, 256),), channels=128), Part("narrow", channels=4, quality=0.8)]
    )
    seen = Onlooker()
    found = play(order(path, photos, deadline_ms=60.0, pace=5.0, repeat=True, seconds=6.0), seen)
    assert found.snapshot.setting.rung.endswith("narrow")
    used = {name: use.frames for name, use in found.snapshot.rungs.items()}
    assert max(used, key=used.__getitem__).endswith("narrow")
    assert [e for e in seen.events if e.kind == "timeout"]
    opened_s = max(e.at_s for e in seen.events if e.kind == "opened")
    assert not [e for e in seen.events if e.kind == "fallback" and e.at_s > opened_s], "no rests"


def test_a_deadline_that_nothing_can_keep_is_told_and_ends_in_typed_misses(bundle, photos):
    results = []
    found = play(order(bundle, photos, deadline_ms=0.5), Onlooker(), answered=results.append)
    total = found.snapshot.total
    assert total.entered == 12
    assert total.done + sum(total.dropped.values()) + sum(total.failed.values()) == 12
    assert all(r.answer.late if isinstance(r.answer, Answer) else r.answer.why for r in results)


def test_a_bundle_whose_first_artifact_is_corrupt_is_answered_by_the_next(tmp_path, photos):
    path = tmp_path / "b.edgekiln"
    runtime_bundle(path, parts=[Part("fp32", options={"threads": "no number"}), Part("int8", seed=3)])
    seen = Onlooker()
    found = play(order(path, photos), seen)
    assert found.snapshot.total.done == 12
    rungs = {name: use.frames for name, use in found.snapshot.rungs.items() if use.frames}
    assert {name: n for name, n in rungs.items() if "int8" in name} == rungs
    assert "threads" in next(e for e in seen.events if e.kind != "opened").why


def test_ctrl_c_keeps_what_happened(bundle, photos):
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with interrupt.watched():
        found = play(order(bundle, photos, pace=20.0, repeat=True), Onlooker())
    assert found.ended == "interrupted"
    assert found.snapshot.total.done > 0


def test_live_frames_are_dropped_and_counted_where_the_engine_is_too_slow(tmp_path, photos):
    path = tmp_path / "slow.edgekiln"
    runtime_bundle(path, parts=[Part("fp32", sizes=((256, 256),), channels=96)])
    found = play(order(path, photos, pace=500.0, repeat=True, seconds=3.0, mode="fixed"), Onlooker())
    total = found.snapshot.total
    dropped = sum(total.dropped.values())
    assert dropped > 0
    assert total.done > 0
    assert total.entered >= total.done + dropped + sum(total.failed.values())


def test_a_model_that_takes_no_picture_is_refused_before_any_frame(tmp_path, photos):
    path = tmp_path / "b.edgekiln"
    runtime_bundle(path, preprocess=False)
    with pytest.raises(BadInput, match="takes no single picture"):
        play(order(path, photos), Onlooker())


def test_a_source_that_is_none_is_bad_input(bundle, tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        play(order(bundle, tmp_path / "no.mp4"), Onlooker())


# ---------------------------------------------------------------- the command


def test_the_command_writes_answers_and_a_summary(bundle, photos, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["run", str(bundle), "--input", str(photos), "--fast", "--latency-ms", "2000", "--out", str(out)]
    assert main([*argv, "--threads", "1", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert any("snapshot" in line for line in lines)
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [a["frame"] for a in answers] == list(range(12))
    assert all(a["place"] == "edge" and a["latency_ms"] > 0 for a in answers)
    assert json.loads((out / "summary.json").read_text())["ended"] == "whole"
    assert "<svg" in (out / "summary.html").read_text()


@pytest.fixture
def server(bundle):
    with opened(bundle) as held:
        artifact, folder = held.artifacts[0]
        model = served(folder / artifact.entry)
        with serving({held.manifest.model: model}) as running:
            yield f"http://127.0.0.1:{running.server_address[1]}", model


def places(out):
    return [json.loads(line)["place"] for line in (out / "answers.jsonl").read_text().splitlines()]


def streamed(bundle, photos, out, *more):
    argv = ["run", str(bundle), "--input", str(photos), "--fast", "--latency-ms", "2000", "--out", str(out)]
    return main([*argv, "--threads", "1", "--json", *more])


def test_a_server_answers_in_mode_cloud_and_gets_nothing_in_mode_edge(bundle, photos, tmp_path, server):
    address, model = server
    assert streamed(bundle, photos, tmp_path / "a", "--mode", "cloud", "--server", address) == 0
    assert set(places(tmp_path / "a")) == {"cloud"}
    assert model.calls == 12
    assert streamed(bundle, photos, tmp_path / "b", "--mode", "edge", "--server", address) == 0
    assert set(places(tmp_path / "b")) == {"edge"}
    assert model.calls == 12


def test_a_server_that_is_not_there_is_told_before_the_first_frame(bundle, photos, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    where = f"http://127.0.0.1:{port}"
    assert streamed(bundle, photos, tmp_path / "a", "--mode", "cloud", "--server", where) == 2
    assert "cure:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--latency-ms", "50"], "belongs to --input"),
        ([], "neither a picture nor --input"),
        (["a.jpg", "--input", "x"], "beside --input"),
        (["--input", "x", "--latency-ms", "-1"], "not above 0"),
        (["--input", "x", "--least-quality", "3"], "no share"),
        (["--input", "x", "--mode", "cloud"], "no server"),
        (["--input", "x", "--duration", "soon"], "no duration"),
        (["--input", "x", "--duration", "1s"], "no duration"),
        (["--input", "x", "--calls", "2", "--isolate", "always"], "one call at a time"),
    ],
)
def test_options_that_mean_nothing_are_refused_with_the_cure(bundle, argv, why, capsys):
    assert main(["run", str(bundle), *argv]) == 2
    told = capsys.readouterr().err
    assert why in told
    assert "cure:" in told


def test_the_bundle_is_left_as_it_was(bundle, photos):
    before = Path(bundle).read_bytes()
    play(order(bundle, photos), Onlooker())
    assert Path(bundle).read_bytes() == before


def test_a_link_that_goes_down_is_an_event_of_the_session(bundle, photos, tmp_path):
    log = tmp_path / "events.jsonl"
    with opened(bundle) as held:
        artifact, folder = held.artifacts[0]
        model = served(folder / artifact.entry)
        with serving({held.manifest.model: model}) as running, chaos_proxy(running.server_address[:2]) as way:

            def cut():
                eventually(lambda: model.calls >= 5, 60.0)
                way.set(Condition(fault="refuse"))

            threading.Thread(target=cut).start()
            more = ["--mode", "cloud", "--server", way.url, "--log", str(log), "--loop", "--duration", "8s"]
            argv = ["run", str(bundle), "--input", str(photos), "--fps", "20", "--latency-ms", "500"]
            assert main([*argv, "--json", *more]) == 0
    told = [line.event for line in read(log).lines if line.event]
    assert "link-down" in {e.kind for e in told}
    assert "fallback" in {e.kind for e in told if e.what == "cloud"}
