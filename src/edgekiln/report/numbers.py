"""How figures are written: three significant digits, a true minus sign, a dash for what is not known.

Nothing here rounds a figure up to a perfect one (99.97 % never reads 100 %) and nothing prints "-0.0".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

MISSING = "—"
MINUS = "−"

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def _known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _signed(text: str) -> str:
    """Typographic minus; a zero loses its sign."""
    if not text.startswith("-"):
        return text
    return MINUS + text[1:] if re.search(r"[1-9∞]", text) else text[1:]


def _infinite(value: float) -> str:
    return "∞" if value > 0 else MINUS + "∞"


def significant(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits; whole numbers from 10**digits upward, with thousands commas.

    Below 1e-4 the power of ten is written out. None and NaN give a dash.
    """
    if value is None or not _known(value):
        return MISSING
    if math.isinf(value):
        return _infinite(value)
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")
    power = math.floor(math.log10(abs(rounded)))
    if power < -4 or power >= 15:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return _signed(f"{mantissa}×10{str(int(exponent)).translate(_RAISED)}")
    if power >= digits:
        return _signed(f"{value:,.0f}")
    return _signed(f"{rounded:.{digits - 1 - power}f}")


def ms(value: float | None) -> str:
    """Milliseconds, three significant digits."""
    return significant(value)


def seconds(value: float | None) -> str:
    """Seconds; under a hundredth they read "<0.01", because a finished step is never free."""
    if value is not None and 0 < value < 0.01:
        return "<0.01"
    return fixed(value, 2) if value is not None and value < 1 else significant(value)


def megabytes(value: float | None) -> str:
    """Bytes as megabytes of 10**6 bytes, three significant digits."""
    return significant(None if value is None else value / 1e6)


def fixed(value: float | None, decimals: int) -> str:
    """``decimals`` places after the point, never "-0.0"."""
    if value is None or not _known(value):
        return MISSING
    return _infinite(value) if math.isinf(value) else _signed(f"{value:,.{decimals}f}")


def points(fraction: float | None) -> str:
    """A difference of fractions in percentage points: 0.0123 reads "1.2", 0.0004 reads "0.04"."""
    if fraction is None or not _known(fraction):
        return MISSING
    return fixed(fraction * 100, 2 if 0 < abs(fraction) < 0.00095 else 1)


def percent(fraction: float | None) -> str:
    """A fraction in percent. What is not all is never written as 100, nor what is not nothing as 0."""
    if fraction is None or not _known(fraction):
        return MISSING
    text = fixed(fraction * 100, 1)
    for decimals in (2, 3, 4):
        if not (0 < fraction < 1 and float(text.replace(",", "")) in {0.0, 100.0}):
            return text
        text = fixed(fraction * 100, decimals)
    if 0 < fraction < 1 and float(text) in {0.0, 100.0}:
        return ">99.9999" if fraction > 0.5 else "<0.0001"
    return text


def decibels(value: float | None) -> str:
    """Decibels with one place after the point; an exact copy has infinitely many."""
    return fixed(value, 1)


def interval(
    bounds: tuple[float, float] | None, write: Callable[[float | None], str], to: str = " to "
) -> str:
    """Both bounds as ``write`` writes them, the lower first; nothing where there is no interval."""
    if bounds is None or not all(_known(b) for b in bounds):
        return ""
    low, high = sorted(bounds)
    return f"{write(low)}{to}{write(high)}"


def count(value: int, one: str, many: str | None = None) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def sentence(text: str) -> str:
    """With a capital letter and a full stop, whichever of them it lacks."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if not text or text[-1] in ".!?…" else ".")


def plain(text: object) -> str:
    """A stranger's string without what moves a cursor or turns the writing direction round."""
    return _UNSAFE.sub("\ufffd", str(text))
