"""How good a rung's answers are, as a share of the best that the model can do, from a bundle's evidence.

One kind of figure is taken for the whole ladder, the first of ``KINDS`` that every rung has, because a share
of right labels and a ratio of signal to noise can't be compared. Where no kind covers all, the kind that most
rungs have counts, each other rung has its own best kind, and ``quality_of`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgekiln.records import Evidence, Record

PIXELS_EXPONENT = 0.08
"""Accuracy over input size, as a power of the number of pixels. Howard et al., MobileNets (arXiv:1704.04861,
table 7), publish 70.6, 69.1, 67.2 and 64.4 % at 224, 192, 160 and 128 pixels; this gives them within 0.4 % of
themselves. Those networks were trained at their size: one that was not may lose more."""


class Known(Record, frozen=True, kw_only=True):
    """The figures of one rung by their plain names. ``suffix`` is ``@HxW`` where they are of that size;
    ``pixels_share`` its pixels over those of the model's own size, None where it has no size."""

    figures: Mapping[str, Evidence]
    suffix: str = ""
    pixels_share: float | None = None


class Quality(Record, frozen=True, kw_only=True):
    """A share of the best (0 to 1), and the figure it came from."""

    share: float
    of: str


Score = tuple[float, float]
"""What the rung scores, and what the float model does on the same samples."""


def qualities(rungs: Sequence[Known]) -> tuple[Quality, ...]:
    """The quality of each rung, in the order given. One without any figure has 0 and says so."""
    order = _order(rungs)
    tables = {kind: _shares(rungs, kind) for kind in order}
    counts = {kind: sum(v is not None for v in found) for kind, found in tables.items()}
    main = max(order, key=lambda kind: counts[kind])  # of equals the first
    mixed = counts[main] < len(rungs)
    found = []
    for at, rung in enumerate(rungs):
        kind = next((k for k in (main, *order) if tables[k][at] is not None), None)
        share = None if kind is None else tables[kind][at]
        if kind is None or share is None:
            found.append(Quality(share=0.0, of="no figure in the bundle"))
            continue
        note = ", of another kind than the others'" if mixed and kind != main else ""
        found.append(Quality(share=share, of=_named(kind, rung) + note))
    return tuple(found)


def _order(rungs: Sequence[Known]) -> list[str]:
    """``KINDS`` as they count for these rungs: what stands on few labels last, and the agreement with the
    float model at its own size only where some other size has it."""
    few = {
        kind
        for kind in LABELLED
        if any((e := r.figures.get(kind)) and e.n is not None and e.n < ENOUGH_LABELS for r in rungs)
    }
    sizes = any(_value(r, "base_agreement") is not None for r in rungs)
    order = [k for k in KINDS if k not in few and (sizes or k != "base_agreement")]
    return [*order, *(k for k in KINDS if k in few)]


def signal_share(sqnr_db: float) -> float:
    """The signal's share of signal and noise, S / (S + N): 0.990 at 20 dB, 0.5 at 0 dB. Grows with it."""
    return float(1 / (1 + 10 ** (-max(-300.0, min(300.0, sqnr_db)) / 10)))


def pixels_factor(share: float | None) -> float:
    """What fewer pixels leave of the quality (``PIXELS_EXPONENT``), for figures that leave the size out of
    account. More pixels than the model's own are not taken for better."""
    return 1.0 if share is None else float(min(1.0, share**PIXELS_EXPONENT))


def _shares(rungs: Sequence[Known], kind: str) -> list[float | None]:
    scores = [KINDS[kind](rung) for rung in rungs]
    if kind not in OF_ITS_SIZE:
        best = max((max(s) for s in scores if s is not None), default=0.0)
        return [None if s is None or best <= 0 else max(0.0, s[0] / best) for s in scores]
    return [
        None if s is None else max(0.0, min(1.0, s[0])) * pixels_factor(rung.pixels_share)
        for s, rung in zip(scores, rungs, strict=True)
    ]


def _named(kind: str, rung: Known) -> str:
    kind = "agreement" if kind == "base_agreement" and kind not in rung.figures else kind
    figure, told = rung.figures[kind], f"{kind}{rung.suffix}"
    if kind in OF_ITS_SIZE and pixels_factor(rung.pixels_share) < 1:
        return f"{told} times what fewer pixels cost (predicted)"
    return told if figure.how == "measured" else f"{told} ({figure.how})"


def _value(rung: Known, name: str) -> float | None:
    found = rung.figures.get(name)
    return None if found is None else found.value


def _expected_top1(rung: Known) -> Score | None:
    """The float model's share of right labels less the expected drop, which few samples tell apart too."""
    top1, drop, expected = (_value(rung, n) for n in ("top1", "accuracy_drop", "accuracy_drop_expected"))
    if top1 is None or drop is None or expected is None:
        return None
    return top1 + drop - expected, top1 + drop


def _top1(rung: Known) -> Score | None:
    top1, drop = _value(rung, "top1"), _value(rung, "accuracy_drop")
    return None if top1 is None else (top1, top1 + (drop or 0.0))


def _metric(rung: Known) -> Score | None:
    """The task's own metric on labels, the first pair ``NAME`` and ``NAME_float``; of an error rate what is
    left to 1."""
    name = next((n for n in rung.figures if f"{n}_float" in rung.figures), None)
    if name is None or _value(rung, "metric_drop") is None:
        return None
    own, whole = _value(rung, name), _value(rung, f"{name}_float")
    if own is None or whole is None:
        return None
    return (1 - own, 1 - whole) if name in ERROR_RATES else (own, whole)


def _base_agreement(rung: Known) -> Score | None:
    """Same classes as the float model's at its own size; of that size itself it is the agreement."""
    found = _value(rung, "base_agreement")
    if found is None and rung.pixels_share in (None, 1.0):
        found = _value(rung, "agreement")
    return None if found is None else (found, 1.0)


def _plain(name: str) -> Callable[[Known], Score | None]:
    def score(rung: Known) -> Score | None:
        found = _value(rung, name)
        return None if found is None else (found, 1.0)

    return score


def _signal(rung: Known) -> Score | None:
    found = _value(rung, "sqnr_db")
    return None if found is None else (signal_share(found), 1.0)


ERROR_RATES = frozenset(("wer", "cer"))
KINDS: dict[str, Callable[[Known], Score | None]] = {
    "accuracy_drop_expected": _expected_top1,
    "top1": _top1,
    "metric_drop": _metric,
    "base_agreement": _base_agreement,
    "agreement_expected": _plain("agreement_expected"),
    "agreement": _plain("agreement"),
    "sqnr_db": _signal,
}
"""The kinds of figures by the name of their evidence, the one that says the most first."""
LABELLED = ("accuracy_drop_expected", "top1", "metric_drop")
ENOUGH_LABELS = 200
"""Labelled samples from which on they count before agreement: of 20, one alone moves accuracy by 5 %."""
OF_ITS_SIZE = frozenset(("agreement_expected", "agreement", "sqnr_db"))
"""Kinds that hold an artifact against the float model at the same input size, so that they say nothing of
what the smaller picture costs: that is ``pixels_factor``'s."""
