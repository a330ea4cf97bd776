"""iPhone: one program from the picture to the relevance, and a reader per level of detail, in Core ML."""

from __future__ import annotations

from edgekiln.arrcoc.plans.drafting import look, part, readers
from edgekiln.arrcoc.plans.records import Plan, Step

WHERE, TARGETS = "Core ML, on the units that it chooses (Neural Engine, GPU, CPU)", ("coreml",)


def draft(buckets: tuple[int, ...]) -> Plan:
    """The plan for one of ``edgekiln devices iphone-...``."""
    looks = readers(buckets, WHERE, TARGETS, "float32")
    asked = {"pixels": "canvas.pixels", "ids": "words.ids", "mask": "words.mask"}
    return Plan(
        platform="iphone",
        title="iPhone",
        devices=("iphone-16-pro",),
        buckets=buckets,
        parts=(part("relevance", WHERE, TARGETS, pictures="float32"), *looks),
        steps=(
            Step(name="canvas", takes={"picture": "picture"}),
            Step(name="words", takes={"question": "question"}),
            Step(name="relevance", parts=("relevance",), takes=asked),
            Step(name="allocation", takes={"relevance": "relevance.relevance", "pixels": "canvas.pixels"}),
            look(looks),
        ),
        goals={"scorers_ms": 25.0},
        notes=(
            "Core ML takes no bytes: pixels, coarse and windows are MLMultiArrays of float32 that hold whole "
            "numbers of 0 to 255; ids are int32.",
        ),
        missing=(
            "An iPhone: each program is proved by this project's interpreter of the saved package, which is "
            "not the Neural Engine's arithmetic. No time was measured.",
            "Swift for the steps between the programs (canvas, words, allocation): plan.json says what they "
            "take and give, edgekiln.arrcoc.plans.host does them in Python.",
        ),
    )
