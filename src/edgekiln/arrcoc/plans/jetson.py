"""Jetson: each scorer an engine of its own on a stream of its own, and an engine per level of detail."""

from __future__ import annotations

from edgekiln.arrcoc.plans.drafting import look, part, readers
from edgekiln.arrcoc.plans.records import Part, Plan, Step

WHERE, TARGETS = "TensorRT engine on the GPU, stream ", ("tensorrt", "onnxruntime")
SCORERS = ("propositional", "perspectival", "participatory")


def draft(buckets: tuple[int, ...]) -> Plan:
    """The plan for one of ``edgekiln devices jetson-...``, Orin or Thor."""

    def engine(name: str, stream: str) -> Part:
        return part(name, f"{WHERE}{stream}", TARGETS)

    looks = readers(buckets, f"{WHERE}0", TARGETS)
    words = {"ids": "words.ids", "mask": "words.mask"}
    texture = {"texture": "texture.texture"}
    return Plan(
        platform="jetson",
        title="Jetson",
        devices=("jetson-orin-nano-8gb",),
        buckets=buckets,
        parts=(
            engine("texture", "0"),
            *(engine(name, str(number)) for number, name in enumerate(SCORERS, start=1)),
            engine("balance", "0, after the events of streams 1 to 3"),
            *looks,
        ),
        steps=(
            Step(name="canvas", takes={"picture": "picture"}),
            Step(name="words", takes={"question": "question"}),
            Step(name="texture", parts=("texture",), stream=0, takes={"pixels": "canvas.pixels"}),
            Step(name="propositional", parts=("propositional",), stream=1, takes=texture),
            Step(name="perspectival", parts=("perspectival",), stream=2, takes=texture),
            Step(name="participatory", parts=("participatory",), stream=3, takes={**texture, **words}),
            Step(
                name="balance",
                parts=("balance",),
                stream=0,
                takes={**{name: f"{name}.map" for name in SCORERS}, **words},
            ),
            Step(
                name="allocation",
                takes={"relevance": "balance.relevance", "pixels": "canvas.pixels"},
            ),
            look(looks, stream=0),
        ),
        goals={"scorers_ms": 25.0},
        notes=(
            "The perspectival and the participatory engine each compute the features of the texture array "
            "for themselves: that is the price of running side by side.",
            "An engine of another total is another engine: the latency left chooses which one is asked.",
        ),
        missing=(
            "CUDA streams: no GPU is here, so the three scorers were never run side by side. Here the steps "
            "run one after the other, with the same results; what the streams gain is not known.",
            "Engines: TensorRT builds them on the device (build_engine.py in each artifact).",
            "Latency by tokens: to be measured on the device (edgekiln bench BUNDLE --on ssh://...).",
        ),
    )
