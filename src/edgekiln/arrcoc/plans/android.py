"""Android: the texture array in 8 bits and an INT8 scorer on the device; the reader there, on a server, or
whichever is first in time."""

from __future__ import annotations

from edgekiln.arrcoc.plans.drafting import look, part, readers
from edgekiln.arrcoc.plans.records import Cut, Plan, Step, Way

WHERE, TARGETS = "LiteRT on the CPU (XNNPACK)", ("litert", "onnxruntime")


def draft(buckets: tuple[int, ...]) -> Plan:
    """The plan for one of the Android devices of ``edgekiln devices``."""
    looks = readers(buckets, WHERE, TARGETS)
    asked = {"texture": "texture.texture", "ids": "words.ids", "mask": "words.mask"}
    return Plan(
        platform="android",
        title="Android",
        devices=("pixel-9",),
        buckets=buckets,
        parts=(
            part("texture", WHERE, TARGETS, graph="texture-bytes"),
            part("scorer", WHERE, TARGETS, graph="unified-bytes"),
            *looks,
        ),
        steps=(
            Step(name="canvas", takes={"picture": "picture"}),
            Step(name="words", takes={"question": "question"}),
            Step(name="texture", parts=("texture",), takes={"pixels": "canvas.pixels"}),
            Step(name="scorer", parts=("scorer",), takes=asked),
            Step(name="allocation", takes={"relevance": "scorer.relevance", "pixels": "canvas.pixels"}),
            look(looks),
        ),
        cuts=tuple(
            Cut(part=p.name, at=("tokens",), beside=("positions", "relevance", "ids", "mask")) for p in looks
        ),
        ways=(
            Way(mode="edge", meaning="the reader runs on the device; nothing leaves it"),
            Way(
                mode="cloud",
                meaning="the encoder runs on the device, its tokens leave in 8 bits with the relevance, "
                "their places and the question's words; the server answers, the device where it is late",
            ),
            Way(
                mode="adaptive",
                meaning="frame by frame, the server where it answers in time and its answer is better, or "
                "cheaper on a battery; else the device",
            ),
        ),
        goals={"scorers_ms": 25.0},
        notes=(
            "The texture array passes between the two files in 8 bits: each channel over its fixed range, a "
            "quarter of the memory. A job's INT8 recipes concern the arithmetic beside that.",
            "Under cloud and adaptive no pixel leaves the device, but what does is a picture's content "
            "still: the relevance says where something lies, and a network can be trained to invert tokens.",
            "The server of this plan runs the other half of the same reader, so its answers are no better; a "
            "larger reader there is what the two modes are for (OffloadRules.gain).",
        ),
        missing=(
            "A phone: LiteRT's files are run by LiteRT on this machine's processor. No time was measured.",
            "The policy for the server runs in this project's Python runtime; an app needs it in Kotlin.",
            "Kotlin for the steps between the files (canvas, words, allocation): plan.json says what they "
            "take and give, edgekiln.arrcoc.plans.host does them in Python.",
        ),
    )
