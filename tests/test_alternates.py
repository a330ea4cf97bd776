"""Which artifacts ship beside the chosen one."""

import msgspec
import pytest

from edgekiln.alternates import alternates
from edgekiln.devices import load
from edgekiln.records import Budget, Choice
from fakes.build_record import artifact, proof

HOST = load("host")


def made(target, recipe, p50, agreement=1.0, size=10, engine=None, drop=0.0, memory=1e8):
    one = artifact(target, recipe, size)
    one = msgspec.structs.replace(one, engine=engine or target)
    return proof("host", one, p50=p50, drop=drop, agreement=agreement, sqnr=30.0, memory=memory)


def order(proofs, budget=None, most=2, device=HOST, chosen=0):
    name = proofs[chosen].artifact.id if chosen is not None else None
    choice = Choice(device=device.name, status="proven", artifact_id=name, basis="")
    found = alternates(device, choice, proofs, budget or Budget(), most)
    return [(p.artifact.target, p.artifact.recipe) for p in found]


def test_another_engine_comes_first_and_then_another_recipe():
    proofs = [
        made("openvino", "int8", 2.0),
        made("openvino", "bf16", 3.0),
        made("onnxruntime", "int8", 4.0),
        made("onnxruntime", "fp32", 8.0),
    ]
    assert order(proofs) == [("onnxruntime", "int8"), ("openvino", "bf16")]
    assert order(proofs, most=9)[2:] == [("onnxruntime", "fp32")]
    assert order(proofs, most=0) == []


def test_none_ships_that_breaks_the_limits_on_quality_or_memory_though_it_may_be_slow():
    proofs = [
        made("openvino", "int8", 2.0),
        made("onnxruntime", "poor", 1.0, drop=0.2),
        made("onnxruntime", "fat", 1.0, memory=9e9),
        made("onnxruntime", "fp32", 80.0),
    ]
    budget = Budget(accuracy_drop=0.01, latency_p95_ms=10.0, memory_bytes=10**9)
    assert order(proofs, budget, most=9) == [("onnxruntime", "fp32")]


@pytest.mark.parametrize("name", ["iphone-16-pro", "galaxy-s24", "browser"])
def test_an_app_gets_one_model(name):
    proofs = [made("litert", "int8", 2.0), made("onnxruntime", "fp32", 8.0)]
    assert order(proofs, device=load(name)) == []


def test_where_nothing_was_chosen_nothing_takes_over():
    assert order([made("openvino", "int8", 2.0)], chosen=None) == []
