"""Artifacts that are damaged, before they are opened and while they run: real bundles, engines and files."""

import os
from pathlib import Path

import numpy as np
import pytest

from edgekiln.bundle.unpack import opened
from edgekiln.errors import NoAnswer
from edgekiln.runtime.degrade import Chain
from edgekiln.runtime.standing import Rules
from edgekiln.runtime.vocabulary import Candidate, Rung
from fakes.guarded import eventually, picture
from fakes.runtime_bundle import Part, network, runtime_bundle

RULES = Rules(first_s=0.05, most_s=0.2, flaps=1000, files_every_s=0.05)
PARTS = (
    Part("fp32", channels=8),
    Part("fp32", engine="openvino", channels=8),
    Part("narrow", channels=4, seed=1),
)
DEADLINE_MS = 5000.0


def cut(path):
    """In place, as a disk error or a bad update does it."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)


def exchange(path):
    """Another sound model of the same signature lies in its place."""
    aside = path.with_name("other")
    aside.write_bytes(network(32, 32, channels=5, seed=9).SerializeToString())
    aside.replace(path)


def delete(path):
    path.unlink()


HOW = (cut, flip, exchange, delete)


@pytest.fixture
def bundle(tmp_path):
    with opened(runtime_bundle(tmp_path / "host.edgekiln", PARTS)) as held:
        made = []
        for artifact, folder in held.artifacts:
            rung = Rung(id=artifact.id, artifact_id=artifact.id, quality=1.0, quality_of="test")
            made.append(
                Candidate(rung=rung, artifact=artifact, folder=str(folder), engine=artifact.engine, threads=1)
            )
        yield held, made


def chain_of(held, candidates, **more):
    events = []
    chain = Chain(
        candidates, outputs=held.manifest.signature.outputs, rules=RULES, tell=events.append, **more
    )
    return chain, events


def damaged_file(candidate):
    """The artifact's largest file: the graph, or OpenVINO's weights."""
    files = [Path(candidate.folder) / entry.path for entry in candidate.artifact.files]
    return max(files, key=lambda path: path.stat().st_size)


def ask(chain):
    found = chain.answer(lambda c: picture(), DEADLINE_MS)
    assert np.isfinite(found.outputs["y"]).all()
    return found


def in_service(chain, name):
    def asked():
        found = ask(chain)
        return found if found.rung == name else None

    return eventually(asked)


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("how", HOW)
def test_an_artifact_damaged_before_the_start_is_refused_and_comes_back_when_whole(bundle, which, how):
    held, candidates = bundle
    others = [c.rung.id for c in candidates if c is not candidates[which]]
    victim = candidates[which]
    path = damaged_file(victim)
    whole = path.read_bytes()
    how(path)
    chain, events = chain_of(held, [victim, *(c for c in candidates if c is not victim)])
    assert ask(chain).rung in others
    eventually(lambda: any((e.kind, e.what) == ("corrupt", victim.rung.id) for e in events))
    assert ask(chain).rung in others
    path.write_bytes(whole)
    in_service(chain, victim.rung.id)
    chain.close()


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("how", HOW)
def test_an_artifact_that_is_damaged_while_it_runs(bundle, which, how):
    """In place: out of service until whole. Replaced or gone: the engine goes on with the old one."""
    held, candidates = bundle
    victim = candidates[which]
    chain, events = chain_of(held, [victim, *(c for c in candidates if c is not victim)])
    right = in_service(chain, victim.rung.id).outputs["y"]
    path = damaged_file(victim)
    whole = path.read_bytes()
    how(path)
    eventually(lambda: any((e.kind, e.what) == ("corrupt", victim.rung.id) for e in events))
    for _ in range(20):
        found = ask(chain)
        if how in (cut, flip):
            assert found.rung != victim.rung.id
        else:
            np.testing.assert_array_equal(found.outputs["y"], right)
    path.write_bytes(whole)
    np.testing.assert_array_equal(in_service(chain, victim.rung.id).outputs["y"], right)
    chain.close()


def test_a_file_that_is_only_touched_is_no_damage(bundle):
    held, candidates = bundle
    chain, events = chain_of(held, candidates)
    in_service(chain, candidates[0].rung.id)
    os.utime(damaged_file(candidates[0]))
    eventually(lambda: chain._post[candidates[0].rung.id].noted is not None)
    assert ask(chain).rung == candidates[0].rung.id
    assert "corrupt" not in {e.kind for e in events}
    chain.close()


def test_with_every_artifact_gone_there_is_a_typed_error_at_once_and_recovery_when_one_is_back(bundle):
    held, candidates = bundle
    files = {path: path.read_bytes() for path in map(damaged_file, candidates)}
    for path in files:
        path.unlink()
    chain, _ = chain_of(held, candidates)
    eventually(lambda: all(p.why for p in chain._post.values()))
    with pytest.raises(NoAnswer, match="can't be read"):
        ask(chain)
    path, whole = list(files.items())[1]
    path.write_bytes(whole)

    def back():
        try:
            return ask(chain)
        except NoAnswer:
            return None

    assert eventually(back).rung == candidates[1].rung.id
    chain.close()
