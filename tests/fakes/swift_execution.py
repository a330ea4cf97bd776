"""Swift's plain arithmetic, executed without a Swift compiler: its syntax tree, put into Python's words.

Only what the bundles' ``Preprocess.swift`` uses is known: structs and classes of numbers and arrays, loops,
conditions, calls. Whatever else occurs raises. Operators keep the order in which they stand, and both
languages agree on it here, because shifts and their operands are always in parentheses.
"""

from __future__ import annotations

import keyword
import math
from typing import Any

import numpy as np

_WORDS = {"&&": "and", "||": "or", "true": "True", "false": "False", "let": "", "var": "", "&": ""}


def parse(source: str) -> Any:
    """The root node of the syntax tree."""
    import tree_sitter
    import tree_sitter_swift

    language = tree_sitter.Language(tree_sitter_swift.language())
    return tree_sitter.Parser(language).parse(source.encode()).root_node


def faults(node: Any) -> list[str]:
    """Where the tree has nodes that are wrong or missing: line, column, kind."""
    found = []
    if node.is_error or node.is_missing:
        found.append(f"{node.start_point[0] + 1}:{node.start_point[1] + 1} {node.type}")
    for child in node.children:
        found += faults(child)
    return found


def executed(source: str) -> dict[str, Any]:
    """The classes and structs of ``source`` as Python classes, by name."""
    root = parse(source)
    assert faults(root) == []
    lines: list[str] = []
    for node in root.children:
        if node.type == "class_declaration":
            _type(node, lines)
    names: dict[str, Any] = {
        **{"abs": abs, "min": min, "max": max, "floor": math.floor, "ceil": math.ceil, "sin": math.sin},
        **{"Int": int, "Double": float, "Float": np.float32, "UInt8": _byte},
    }
    exec("\n".join(lines), names)  # our own translation of our own template
    return names


def _byte(value: int) -> int:
    assert isinstance(value, int), "UInt8 of a real would round towards zero"
    assert 0 <= value <= 255, "Swift stops the program here"
    return value


def _type(node: Any, lines: list[str]) -> None:
    """A struct or class: its stored properties become attributes, its functions methods."""
    body = node.child_by_field_name("body").children
    name = _words(node.child_by_field_name("name"), set())
    stored, inner = [], []
    for child in body:
        if child.type == "class_declaration":
            _type(child, inner)
        elif child.type == "property_declaration" and "static" not in child.text.decode():
            stored.append(child)
    lines += inner
    own = {_words(p.child_by_field_name("name"), set()) for p in stored}
    own |= {_words(c.child_by_field_name("name"), set()) for c in body if c.type == "function_declaration"}
    lines += [f"class {name}:", "    def __init__(self, **given):"]
    for prop in stored:
        value = prop.child_by_field_name("value")
        made = "None" if value is None else _words(value, own)
        key = _words(prop.child_by_field_name("name"), set())
        lines.append(f"        self.{key} = given.get({key!r}, {made})")
    lines.append("        pass")
    for child in body:
        if child.type == "function_declaration":
            _function(child, own, lines)


def _function(node: Any, own: set[str], lines: list[str]) -> None:
    parameters = [c for c in node.children if c.type == "parameter"]
    names = [_words(p.child_by_field_name("name"), set()) for p in parameters]
    name = _words(node.child_by_field_name("name"), set())
    lines.append(f"    def {name}(self, {', '.join(names)}):")
    body = node.child_by_field_name("body")
    _block(body, own - set(names), lines, "        ")


def _block(node: Any, own: set[str], lines: list[str], indent: str) -> None:
    statements = [s for c in node.children if c.type == "statements" for s in c.children]
    for statement in statements:
        _statement(statement, own, lines, indent)
    if not statements:
        lines.append(f"{indent}pass")


def _statement(node: Any, own: set[str], lines: list[str], indent: str) -> None:
    match node.type:
        case "comment":
            return
        case "property_declaration":
            name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
            lines.append(f"{indent}{_words(name, set())} = {_words(value, own)}")
        case "for_statement":
            item = _words(node.child_by_field_name("item"), set())
            span = node.child_by_field_name("collection")
            ends = [_words(span.child_by_field_name(e), own) for e in ("start", "end")]
            lines.append(f"{indent}for {item} in range({', '.join(ends)}):")
            _block(node, own, lines, indent + "    ")
        case "if_statement":
            lines.append(f"{indent}if {_words(node.child_by_field_name('condition'), own)}:")
            blocks = [c for c in node.children if c.type == "statements"]
            for block, head in zip(blocks, ("", f"{indent}else:"), strict=False):
                lines += [head] if head else []
                for statement in block.children:
                    _statement(statement, own, lines, indent + "    ")
        case "assignment" | "call_expression" | "control_transfer_statement":
            lines.append(indent + _words(node, own))
        case _:
            raise NotImplementedError(f"{node.type}: {node.text.decode()}")


def _words(node: Any, own: set[str]) -> str:
    """An expression. ``own`` are the names that stand for members of ``self``."""
    part = lambda child: _words(child, own)  # noqa: E731
    match node.type:
        case "simple_identifier":
            name = node.text.decode()
            name += "_" if keyword.iskeyword(name) else ""  # "from" is a name in Swift
            return f"self.{name}" if name in own else name
        case "ternary_expression":
            test, yes, no = (part(node.child_by_field_name(f)) for f in ("condition", "if_true", "if_false"))
            return f"({yes} if {test} else {no})"
        case "navigation_expression":
            target = part(node.child_by_field_name("target"))
            suffix = node.child_by_field_name("suffix").text.decode()
            return f"len({target})" if suffix == ".count" else target + suffix
        case "call_expression":
            return _call(node, own)
        case "value_argument":
            return part(node.child_by_field_name("value"))
        case "directly_assignable_expression" | "statements":
            return " ".join(part(c) for c in node.children)
        case "comment":
            return ""
    if not node.children:
        text = node.text.decode()
        return _WORDS.get(text, text)
    return " ".join(part(child) for child in node.children)


def _call(node: Any, own: set[str]) -> str:
    what, suffix = node.children
    arguments = [c for c in suffix.children[0].children if c.type == "value_argument"]
    values = [_words(a, own) for a in arguments]
    labels = [c.text.decode() for a in arguments for c in a.children if c.type == "value_argument_label"]
    if what.type == "array_literal" and labels == ["repeating", "count"]:
        return f"[{values[0]}] * ({values[1]})"
    if suffix.children[0].children[0].type == "[":
        return f"{_words(what, own)}[{', '.join(values)}]"
    if labels == ["keepingCapacity"]:
        return _words(what, own).removesuffix(".removeAll") + ".clear()"
    if labels:
        values = [f"{key}={value}" for key, value in zip(labels, values, strict=True)]
    return f"{_words(what, own)}({', '.join(values)})"
