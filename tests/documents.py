"""What the documentation shows in fences, read so that a test can run it.

A fence that begins with the comment ``<!-- not run: reason -->`` on the line before is left out by
``test_readme.py`` with its reason. Everything else is classified here, or refused with its page and line.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement

SHELL = {"sh", "bash", "shell"}
PLAIN = {"", "text"}
CHECKED = {*SHELL, *PLAIN, "console", "python", "toml", "json"}
EDGEKILN = {"edgekiln", ".venv/bin/edgekiln"}
PYTHON = {"python", "python3", ".venv/bin/python"}
PIP = (
    ["pip"],
    [".venv/bin/pip"],
    ["uv", "pip"],
    [".venv/bin/uv", "pip"],
    *([p, "-m", "pip"] for p in PYTHON),
)

_OPEN = re.compile(r"^(?P<indent>[ \t]*)(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
_NOT_RUN = re.compile(r"^[ \t]*<!--[ \t]*not run\b(?P<rest>.*?)-->[ \t]*$", re.IGNORECASE)
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(?P<end>\w+)\1")
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
_LOOKS_LIKE_A_COMMAND = re.compile(
    r"^\s*(\$ |(\.venv/bin/)?(edgekiln|python3?|pip|uv|make|git|apt(-get)?|docker|curl) +[\w./-])"
)


class Unclassified(Exception):
    """A fence or a line that no test knows what to do with."""

    def __init__(self, page: str, line: int, text: str, why: str) -> None:
        super().__init__(f"{page}:{line}: {why}: {text.strip()!r}")


@dataclass(frozen=True)
class Fence:
    """``line`` is that of the fence's first line of content. ``not_run`` is the reason, or None."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One simple command: no pipe, no redirection. ``stdin`` is what a here-document gives it."""

    line: int
    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    stdin: str | None = None


# ---------------------------------------------------------------- fences


def fences(text: str, page: str) -> list[Fence]:
    """The fences of a page of markdown. Raises Unclassified for one that is not closed, and for a comment
    ``not run`` that gives no reason or stands before no fence."""
    lines = text.splitlines()
    found: list[Fence] = []
    reason: tuple[int, str] | None = None
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if opening := _OPEN.match(line):
            content, end = _content(lines, number, opening, page)
            info = opening["info"].split()
            language = info[0].lower() if info else ""
            found.append(Fence(page, number + 1, language, content, reason[1] if reason else None))
            number, reason = end, None
        elif comment := _NOT_RUN.match(line):
            reason = (number, _reason(comment["rest"], page, number, line))
        elif line.strip() and reason:
            break
    if reason:
        raise Unclassified(page, reason[0], reason[1], "a comment 'not run' before no fence")
    return found


def _content(lines: list[str], start: int, opening: re.Match[str], page: str) -> tuple[str, int]:
    """The lines from ``start`` to the closing marks, without the opening's indentation, and what follows."""
    mark, least = opening["marks"][0], len(opening["marks"])
    closing = re.compile(rf"^[ \t]*{re.escape(mark)}{{{least},}}[ \t]*$")
    for end in range(start, len(lines)):
        if closing.match(lines[end]):
            inside = [line.removeprefix(opening["indent"]) for line in lines[start:end]]
            return "".join(f"{line}\n" for line in inside), end + 1
    raise Unclassified(page, start, opening[0], "a fence that is not closed")


def _reason(rest: str, page: str, number: int, line: str) -> str:
    reason = rest.strip().removeprefix(":").strip()
    if not rest.strip().startswith(":") or len(reason.split()) < 2:
        raise Unclassified(page, number, line, "'not run' gives no reason; write <!-- not run: reason -->")
    return reason


# ---------------------------------------------------------------- commands


def commands(fence: Fence) -> list[Command]:
    """The commands of a shell or console fence, each of a kind that ``kind_of`` knows."""
    found = [command for line, text, stdin in _joined(fence) for command in _split(fence, line, text, stdin)]
    if not found:
        raise Unclassified(fence.page, fence.line, fence.text, "a fence of commands without one")
    for command in found:
        kind_of(command, fence.page)
    return found


def _joined(fence: Fence) -> Iterator[tuple[int, str, str | None]]:
    """Logical lines: continued lines joined, here-documents taken out, a console's output left out."""
    lines = iter(enumerate(fence.text.splitlines(), fence.line))
    for number, line in lines:
        if fence.language == "console":
            if not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        while line.endswith("\\"):
            line = line[:-1] + " " + next(lines, (0, ""))[1].removeprefix("> ")
        stdin = None
        if heredoc := _HEREDOC.search(line):
            line = line[: heredoc.start()] + line[heredoc.end() :]
            taken = []
            for _, inner in lines:
                if inner.strip() == heredoc["end"]:
                    break
                taken.append(f"{inner}\n")
            else:
                raise Unclassified(fence.page, number, line, "a here-document that does not end")
            stdin = "".join(taken)
        yield number, line, stdin


def _split(fence: Fence, line: int, text: str, stdin: str | None) -> Iterator[Command]:
    """The simple commands of a line; ``&&`` and ``;`` part them, comments go."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        tokens = list(lexer)
    except ValueError as error:
        raise Unclassified(fence.page, line, text, str(error)) from error
    parts: list[list[str]] = [[]]
    for token in tokens:
        if token in {"&&", ";"}:
            parts.append([])
        elif token and set(token) <= set("();<>|&"):
            raise Unclassified(fence.page, line, text, f"no test runs {token!r}; simplify it or mark it")
        else:
            parts[-1].append(token)
    for part in parts:
        environment = {}
        while part and _ASSIGNMENT.fullmatch(part[0]):
            name, _, value = part.pop(0).partition("=")
            environment[name] = value
        if part:
            yield Command(line, tuple(part), environment, stdin)
        elif environment:
            raise Unclassified(fence.page, line, text, "an assignment without a command")


def kind_of(command: Command, page: str = "") -> str:
    """make, edgekiln, python, pip, clone or cd. Raises Unclassified for anything else."""
    words = list(command.words)
    if words[0] == "make":
        return "make"
    if words[0] in EDGEKILN or (words[0] in PYTHON and words[1:3] == ["-m", "edgekiln"]):
        return "edgekiln"
    if any(words[: len(pip) + 1] == [*pip, "install"] for pip in PIP):
        return "pip"
    if words[0] in PYTHON and len(words) > 1 and (words[1] in {"-", "-c"} or words[1].endswith(".py")):
        return "python"
    if words[:2] == ["git", "clone"]:
        return "clone"
    if words[0] == "cd" and len(words) == 2:
        return "cd"
    why = "no test knows this command; change it, or put <!-- not run: reason --> before the fence"
    raise Unclassified(page, command.line, shlex.join(words), why)


def edgekiln_arguments(command: Command) -> list[str]:
    """What follows ``edgekiln`` or ``python -m edgekiln``."""
    return list(command.words[1:] if command.words[0] in EDGEKILN else command.words[3:])


# ---------------------------------------------------------------- what is checked without running


def wrong_make_targets(command: Command, makefile: str) -> list[str]:
    """Targets of the command that the Makefile does not have."""
    known = set(re.findall(r"^([A-Za-z][\w-]*):(?!=)", makefile, re.MULTILINE))
    asked = [w for w in command.words[1:] if not w.startswith("-") and not _ASSIGNMENT.fullmatch(w)]
    return [target for target in asked if target not in known]


def wrong_requirements(command: Command, project: dict[str, Any]) -> list[str]:
    """Of a ``pip install``: extras that the project does not have, and packages that are not the project."""
    extras = set(project["optional-dependencies"])
    after = command.words[command.words.index("install") + 1 :]
    wrong = []
    for word in after:
        if word.startswith("-"):
            continue
        try:
            asked = Requirement(re.sub(r"^\.(?=\[|$)", project["name"], word))
        except InvalidRequirement:
            wrong.append(word)
            continue
        if asked.name != project["name"] or not asked.extras <= extras:
            wrong.append(word)
    return wrong


def wrong_clone(fence: Fence, found: list[Command]) -> list[str]:
    """Folders that a fence enters although no ``git clone`` before it made them."""
    made: set[str] = set()
    wrong = []
    for command in found:
        if command.words[:2] == ("git", "clone"):
            made.add(Path(command.words[-1]).name.removesuffix(".git"))
        elif command.words[0] == "cd" and command.words[1] not in made:
            wrong.append(f"{fence.page}:{command.line}: cd {command.words[1]}")
    return wrong


def check_plain(fence: Fence) -> None:
    """A fence without a language holds output or a drawing. Raises Unclassified where it holds a command."""
    for number, line in enumerate(fence.text.splitlines(), fence.line):
        if _LOOKS_LIKE_A_COMMAND.match(line):
            raise Unclassified(
                fence.page, number, line, "it looks like a command; name the fence sh or console"
            )


def toml_kind(fence: Fence) -> str:
    """``job``, ``part`` (tables of a job) or ``devices`` (rows of the catalogue)."""
    try:
        data = tomllib.loads(fence.text)
    except tomllib.TOMLDecodeError as error:
        raise Unclassified(fence.page, fence.line, fence.text, f"no TOML ({error})") from error
    if isinstance(data.get("devices"), dict):
        return "devices"
    if "model" in data:
        return "job"
    if data and set(data) <= {"preprocess", "budget", "qat", "search"}:
        return "part"
    raise Unclassified(fence.page, fence.line, fence.text, "neither a job nor rows of the catalogue")


def classify(fence: Fence) -> str:
    """The fence's language, once everything in it is known to have a test. Raises Unclassified."""
    if fence.language not in CHECKED:
        why = f"no test knows fences of '{fence.language}'"
        raise Unclassified(fence.page, fence.line, fence.text.split("\n")[0], why)
    if fence.language in {*SHELL, "console"}:
        commands(fence)
        return "commands"
    if fence.language in PLAIN:
        check_plain(fence)
        return "plain"
    if fence.language == "toml":
        return f"toml {toml_kind(fence)}"
    if fence.language == "json":
        try:
            json.loads(fence.text)
        except ValueError as error:
            raise Unclassified(fence.page, fence.line, fence.text, f"no JSON ({error})") from error
    return fence.language
