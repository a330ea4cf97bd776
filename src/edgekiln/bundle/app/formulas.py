"""The arithmetic of the preprocessing, written once and rendered into every language.

Each formula is one expression in Python's syntax over whole numbers and reals. Tests evaluate this very
table against Pillow, and run its C++ rendering; what is rendered for a language without a compiler here
(Swift) is the same expression, node by node.

The resampling is Pillow's: a separable filter, stretched by the scale where it shrinks, its weights in
fixed point of 22 bits, rounded to a byte after each of the two passes. Which pass comes first is a matter
of the last bit; ``down_first`` is what Pillow 13 was found to do (in 600 of 600 random cases). Earlier
releases go along the rows first, and may differ by one step of a byte.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from edgekiln.records import Preprocess

SUPPORT = {"box": 0.5, "bilinear": 1.0, "bicubic": 2.0, "lanczos": 3.0}
"""Half the width of each filter, in pixels of the smaller of the two pictures."""

_PI = "3.141592653589793"
_FILTERS = {
    "box": "1.0 if -0.5 < distance and distance <= 0.5 else 0.0",
    "bilinear": "max(1.0 - abs(distance), 0.0)",
    # Keys' cubic with a = -0.5, by Horner's rule; x is the distance without its sign.
    "bicubic": "(1.5 * x - 2.5) * x * x + 1.0 if x < 1.0 else "
    "(((x - 5.0) * x + 8.0) * x - 4.0) * -0.5 if x < 2.0 else 0.0",
    "lanczos": "1.0 if x == 0.0 else "
    f"sin(x * {_PI}) / (x * {_PI}) * (sin(x / 3.0 * {_PI}) / (x / 3.0 * {_PI})) if x < 3.0 else 0.0",
}


def formulas(spec: Preprocess) -> dict[str, str]:
    """The expressions that ``spec`` needs, by name; those of other fits and filters are left out.

    Whole: ``size`` and ``out`` (pixels of a side before and after), ``i`` (output pixel), ``j`` (input
    pixel), ``width``, ``height``, ``w``, ``h``, ``out_w``, ``out_h``, ``value``, ``alpha``, ``covered``,
    ``r``, ``g``, ``b``, ``total``. All other names are real.
    """
    found = {
        "half_up": "whole(floor(exact + 0.5))",
        "over_white": "(value * alpha + 255 * (255 - alpha)) * 128 + 16384",
        "covered": "(((covered >> 8) + covered) >> 8) >> 7",
        "luma": "(19595 * r + 38470 * g + 7471 * b + 32768) >> 16",
        "scale": "real(size) / real(out)",
    }
    if spec.interpolation != "nearest":
        found |= {
            "down_first": "out_h < h and 2 * (w - out_w) < h - out_h",
            "blur": "max(scale, 1.0)",
            "reach": f"{SUPPORT[spec.interpolation]} * blur",
            "centre": "(real(i) + 0.5) * scale",
            "first": "max(whole(centre - reach + 0.5), 0)",
            "last": "min(whole(centre + reach + 0.5), size)",
            "distance": "(real(j) - centre + 0.5) * (1.0 / blur)",
            "filter": _FILTERS[spec.interpolation],
            "fixed": "whole(share * 4194304.0 + (-0.5 if share < 0.0 else 0.5))",
            "byte": "min(max((total + 2097152) >> 22, 0), 255)",
        }
    return found | (_CROP if spec.fit == "crop" else _LETTERBOX if spec.fit == "letterbox" else {})


_CROP = {
    "narrow": "real(width) * frame_height <= real(height) * frame_width",
    "wide": "real(width) if narrow else real(height) * frame_width / frame_height",
    "high": "real(width) * frame_height / frame_width if narrow else real(height)",
    "crop_w": "wide * crop",
    "crop_h": "high * crop",
}
_LETTERBOX = {"ratio": "min(frame_width / real(width), frame_height / real(height))"}


@dataclass(frozen=True)
class Dialect:
    """How a language spells what Python's syntax says otherwise. ``{0}`` stands for the argument."""

    calls: dict[str, str]
    choice: str = "{0} ? {1} : {2}"
    shift: str = ">>"
    conjunction: str = "&&"


DIALECTS = {
    "cpp": Dialect(
        {
            "real": "static_cast<double>({0})",
            "whole": "static_cast<int>({0})",
            "floor": "std::floor({0})",
            "abs": "std::abs({0})",
            "sin": "std::sin({0})",
            "min": "std::min({0}, {1})",
            "max": "std::max({0}, {1})",
        }
    ),
    "swift": Dialect(
        {
            "real": "Double({0})",
            "whole": "Int({0})",
            "floor": "floor({0})",
            "abs": "abs({0})",
            "sin": "sin({0})",
            "min": "min({0}, {1})",
            "max": "max({0}, {1})",
        }
    ),
    "kotlin": Dialect(
        {
            "real": "{0}.toDouble()",
            "whole": "({0}).toInt()",
            "floor": "floor({0})",
            "abs": "abs({0})",
            "sin": "sin({0})",
            "min": "minOf({0}, {1})",
            "max": "maxOf({0}, {1})",
        },
        choice="if ({0}) {1} else {2}",
        shift="shr",
    ),
    "javascript": Dialect(
        {
            "real": "{0}",
            "whole": "Math.trunc({0})",
            "floor": "Math.floor({0})",
            "abs": "Math.abs({0})",
            "sin": "Math.sin({0})",
            "min": "Math.min({0}, {1})",
            "max": "Math.max({0}, {1})",
        }
    ),
}

_OPERATORS: dict[type[ast.AST], tuple[str, int]] = {
    ast.Mult: ("*", 3),
    ast.Div: ("/", 3),
    ast.Add: ("+", 2),
    ast.Sub: ("-", 2),
    ast.RShift: (">>", 1),
}
_COMPARISONS: dict[type[ast.AST], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Eq: "=="}


def rendered(spec: Preprocess, language: str) -> dict[str, str]:
    """The formulas of ``spec`` in ``language`` (a key of DIALECTS), with the record's figures filled in."""
    figures = {
        "frame_width": repr(float(spec.width)),
        "frame_height": repr(float(spec.height)),
        "crop": repr(float(spec.crop)),
    }
    trees = {name: ast.parse(text, mode="eval").body for name, text in formulas(spec).items()}
    return {name: _text(tree, DIALECTS[language], figures) for name, tree in trees.items()}


def _text(node: ast.AST, to: Dialect, figures: dict[str, str]) -> str:
    """``node`` in the dialect. Parentheses stand wherever two languages could read it in two ways."""

    def part(inner: ast.AST, least: int = 4) -> str:
        text = _text(inner, to, figures)
        binds = _OPERATORS[type(inner.op)][1] if isinstance(inner, ast.BinOp) else 0
        plain = not isinstance(inner, ast.BinOp | ast.IfExp | ast.Compare | ast.BoolOp)
        # A shift binds tighter than a product in Swift and looser than a sum in the others.
        return text if plain or (binds > 1 and binds >= least) else f"({text})"

    match node:
        case ast.Constant(value=value):
            return repr(value)
        case ast.Name(id=name):
            return figures.get(name, name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return f"-{part(operand)}"
        case ast.BinOp(op=ast.RShift(), left=left, right=right):
            return f"{part(left)} {to.shift} {part(right)}"
        case ast.BinOp(op=op, left=left, right=right):
            sign, binds = _OPERATORS[type(op)]
            return f"{part(left, binds)} {sign} {part(right, binds + 1)}"
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return f"{part(left, 2)} {_COMPARISONS[type(op)]} {part(right, 2)}"
        case ast.BoolOp(op=ast.And(), values=values):
            return f" {to.conjunction} ".join(_text(v, to, figures) for v in values)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return to.choice.format(_text(test, to, figures), part(body, 2), part(orelse, 2))
        case ast.Call(func=ast.Name(id=name), args=args):
            simple = "{0}." in to.calls[name]  # a method call binds to the last term only
            return to.calls[name].format(*(part(a) if simple else _text(a, to, figures) for a in args))
    raise TypeError(f"a formula holds {type(node).__name__}, which no language is taught")
