"""Templates to text, and names from strangers to literals that no language can misread."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
_CONTROL: dict[str, Callable[[int], str]] = {
    "python": lambda code: f"\\x{code:02x}",
    "cpp": lambda code: f"\\{code:03o}",
    "swift": lambda code: f"\\u{{{code:x}}}",
    "kotlin": lambda code: f"\\u{code:04x}",
    "javascript": lambda code: f"\\u{code:04x}",
}
# Line ends to some editors and compilers, and marks that turn the reading direction of what follows.
_ODD = {0x85, 0x2028, 0x2029, 0xFEFF, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def quoted(text: str, language: str) -> str:
    """``text`` as a string literal. Control characters and lone surrogates are escaped or replaced."""
    out = []
    for character in text:
        code = ord(character)
        if character in '"\\' or (language == "kotlin" and character == "$"):
            out.append("\\" + character)
        elif code < 0x20 or code == 0x7F:
            out.append(_CONTROL[language](code))
        elif 0x80 <= code < 0xA0 or code in _ODD or 0xD800 <= code < 0xE000:
            out.append("�")  # no tensor's name needs them, and each compiler refuses others
        else:
            out.append(character)
    return '"' + "".join(out) + '"'


def plain(text: str) -> str:
    """``text`` for a comment or a page: one line of printable characters that can't end a comment."""
    kept = "".join(c if c.isprintable() and c not in "\\`<>" else " " for c in text)
    return " ".join(kept.replace("*/", "* /").replace("/*", "/ *").split())[:120]


@functools.cache
def _environment(language: str) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES / language),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["quoted"] = functools.partial(quoted, language=language)
    made.filters["plain"] = plain
    return made


def fill(language: str, template: str, **values: Any) -> str:
    """The template of that name below ``templates/<language>/``, its filters ``quoted`` and ``plain``."""
    return _environment(language).get_template(template).render(**values)
