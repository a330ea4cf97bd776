"""The rules of the house, read from the source: who imports whom, and what is never written.

Each rule is a function from a parsed file to its violations, so that the tests below can also show each
rule a file that breaks it.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "edgekiln"
MAX_LINES = 450
SELF_EXPLAINING_LINES = 3

# A room may import from lower layers, and sideways as long as no two rooms import each other.
# A new room needs a place here before anything else about it is decided.
LAYERS = (
    {"errors"},
    {"records"},
    {"files", "interrupt"},
    {"model", "devices", "sensors", "bundle", "engines", "cache", "job", "progress"},
    {"prove", "runtime", "forecast"},
    {"compile", "choose", "labelling", "ship", "serve", "language", "arrcoc"},
    {"report", "intake", "alternates"},
    {"baseline", "finetuning", "rows"},
    {"calibrated", "tuned"},
    {"road", "benching", "diagnosis", "explanation", "inspection", "verification", "splitting"},
    {"prediction", "soaking"},
    {"api"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
# A device carries neither converters nor proofs; making and proving know nothing of shipping.
FORBIDDEN = {
    "engines": {"compile", "prove"},
    "runtime": {"compile", "prove"},
    "compile": {"runtime", "ship", "serve"},
    "prove": {"runtime", "ship", "serve"},
}
REPORT_READERS = {"road", "cli", "report"}


def python_files() -> list[Path]:
    """Every file that ships or is shown: the package, the examples, the benchmarks."""
    folders = [PACKAGE, ROOT / "examples", ROOT / "benchmarks"]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """``edgekiln.compile.graph`` for its file, ``edgekiln.compile`` for the folder's ``__init__.py``."""
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The second part of a dotted name; the package itself is ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


MODULES = {module_name(path) for path in PACKAGE.rglob("*.py")}


def imported_modules(tree: ast.AST, module: str, is_package: bool, modules: set[str]) -> Iterator[str]:
    """Dotted names of this package that a file imports, anywhere in it.

    A string that names a module counts as well: tables of modules and ``python -m`` are imports too.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "edgekiln")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            if base.split(".")[0] == "edgekiln":
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    if inner in modules:
                        yield inner
                    elif (base, alias.name) != ("edgekiln", "__version__"):
                        yield base
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"edgekiln(\.\w+)+", node.value)
            and node.value in modules
        ):
            yield node.value


def wrong_imports(imports: dict[str, set[str]]) -> list[str]:
    """Violations in ``imports``: from each module's dotted name to the dotted names it imports."""
    found = []
    for module, targets in sorted(imports.items()):
        here = room_of(module)
        for target in sorted(targets):
            there = room_of(target)
            if missing := [room for room in (here, there) if room not in LEVEL]:
                found.append(f"{module}: the room '{missing[0]}' has no place in LAYERS")
            elif there == here:
                continue
            elif LEVEL[there] > LEVEL[here]:
                found.append(f"{module} imports {target}, which is above it")
            elif there in FORBIDDEN.get(here, ()):
                found.append(f"{module} imports {target}: '{here}' never imports '{there}'")
            elif there == "report" and here not in REPORT_READERS:
                found.append(f"{module} imports {target}: only road and cli know the report")
    return found


def rooms_that_import_each_other(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    edges = {
        (room_of(module), room_of(target))
        for module, targets in imports.items()
        for target in targets
        if room_of(module) != room_of(target)
    }
    return sorted((a, b) for a, b in edges if a < b and (b, a) in edges)


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def all_imports() -> dict[str, set[str]]:
    """What each module imports; not to be changed, it is read once for all tests."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        module = module_name(path)
        found[module] = set(imported_modules(parsed(path), module, path.name == "__init__.py", MODULES))
    return found


def dotted(node: ast.AST) -> str:
    """``torch.load`` for the expression that says so, and an empty string for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def keyword(call: ast.Call, name: str) -> object:
    """The literal value of a keyword argument; None where it is absent or not a literal."""
    for argument in call.keywords:
        if argument.arg == name and isinstance(argument.value, ast.Constant):
            return argument.value.value
    return None


def top_level_imports(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The packages that one import statement names."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.split(".")[0] for name in names}


UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
INSTALLERS = {"pip", "pip3", "ensurepip", "easy_install"}


def unpickles(tree: ast.AST) -> Iterator[int]:
    """Lines that could run code from a data file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and UNPICKLERS & top_level_imports(node):
            yield node.lineno
        if isinstance(node, ast.Call):
            function = dotted(node.func)
            if function == "torch.load" and keyword(node, "weights_only") is not True:
                yield node.lineno
            if keyword(node, "allow_pickle") is True:
                yield node.lineno


def uses_a_shell(tree: ast.AST) -> Iterator[int]:
    """Lines that hand a string to a shell."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (dotted(node.func) in SHELLS or keyword(node, "shell") is True):
            yield node.lineno


def installs_packages(tree: ast.AST) -> Iterator[int]:
    """Lines that import an installer or put one on a command line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and INSTALLERS & top_level_imports(node):
            yield node.lineno
        if isinstance(node, ast.List | ast.Tuple):
            words = {e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)}
            if words & INSTALLERS:
                yield node.lineno


def lacks_docstring(tree: ast.Module) -> Iterator[int]:
    """Public functions without a docstring, unless the whole function is a line or three.

    A ``main`` is described by its module.
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name[0] != "_":
            length = (node.end_lineno or node.lineno) - node.body[0].lineno + 1
            described = node if node.name != "main" else tree
            if ast.get_docstring(described) is None and length > SELF_EXPLAINING_LINES:
                yield node.lineno


Rule = Callable[[ast.Module], Iterator[int]]
RULES: dict[str, Rule] = {
    "reads no pickles": unpickles,
    "uses no shell": uses_a_shell,
    "installs no packages at run time": installs_packages,
    "documents its public functions": lacks_docstring,
}


def test_imports_run_one_way() -> None:
    assert wrong_imports(all_imports()) == []


def test_no_two_rooms_import_each_other() -> None:
    assert rooms_that_import_each_other(all_imports()) == []


def test_the_imports_of_this_package_are_seen_at_all() -> None:
    imports = all_imports()
    assert "edgekiln.errors" in imports["edgekiln.files"]
    assert "edgekiln.engines.onnxruntime" in imports["edgekiln.engines"], "a table of modules counts"


@pytest.mark.parametrize("rule", RULES)
def test_every_file(rule: str) -> None:
    broken = [
        f"{path.relative_to(ROOT)}:{line}" for path in python_files() for line in RULES[rule](parsed(path))
    ]
    assert broken == [], f"a file that breaks the rule '{rule}'"


def test_files_stay_short_enough_to_read() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert {path.name: n for path, n in lengths.items() if n > MAX_LINES} == {}


# ---------------------------------------------------------------- and would they notice?


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("edgekiln.records", "from edgekiln.files import entry", "above"),
        ("edgekiln.prove.parity", "def f():\n    import edgekiln.compile.graph", "above"),
        ("edgekiln.runtime.session", "from edgekiln.prove import parity", "never"),
        ("edgekiln.engines.onnxruntime", "from ..compile import graph", "above"),
        ("edgekiln.compile.graph", "from edgekiln.runtime import session", "never"),
        ("edgekiln.compile.graph", "TABLE = {'a': 'edgekiln.ship.rollout'}", "never"),
        ("edgekiln.prove.parity", "from edgekiln import road", "above"),
        ("edgekiln.serve.gateway", "from edgekiln.report import page", "above"),
        ("edgekiln.intake", "from edgekiln.report import page", "only road and cli"),
        ("edgekiln.attic.old", "from edgekiln import errors", "no place"),
    ],
)
def test_a_wrong_import_is_noticed(module: str, source: str, complaint: str) -> None:
    modules = {"edgekiln.road", "edgekiln.ship.rollout", "edgekiln.compile.graph", "edgekiln.errors"}
    imports = {module: set(imported_modules(ast.parse(source), module, False, modules))}
    assert [complaint in line for line in wrong_imports(imports)] == [True]


def test_rooms_of_one_layer_that_import_each_other_are_noticed() -> None:
    imports = {"edgekiln.model.onnx": {"edgekiln.devices"}, "edgekiln.devices": {"edgekiln.model"}}
    assert wrong_imports(imports) == []
    assert rooms_that_import_each_other(imports) == [("devices", "model")]


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (unpickles, "import pickle"),
        (unpickles, "from joblib import load"),
        (unpickles, "torch.load(path)"),
        (unpickles, "torch.load(path, weights_only=False)"),
        (unpickles, "np.load(path, allow_pickle=True)"),
        (uses_a_shell, "subprocess.run(line, shell=True)"),
        (uses_a_shell, "os.system(line)"),
        (installs_packages, "subprocess.run([sys.executable, '-m', 'pip', 'install', 'x'])"),
        (installs_packages, "import ensurepip"),
        (lacks_docstring, "def f(x):\n    x += 1\n    x += 2\n    x += 3\n    return x"),
    ],
)
def test_a_broken_rule_is_noticed(rule: Rule, source: str) -> None:
    assert list(rule(ast.parse(source))) == [1]


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (unpickles, "torch.load(path, weights_only=True)"),
        (uses_a_shell, "subprocess.run(['ls'], shell=False)"),
        (installs_packages, "cure = 'Run: pip install edgekiln[torch]'"),
        (lacks_docstring, "def double(x):\n    return 2 * x"),
    ],
)
def test_a_kept_rule_is_left_alone(rule: Rule, source: str) -> None:
    assert list(rule(ast.parse(source))) == []
