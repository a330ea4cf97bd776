"""What the pages show is run: every command, every snippet and every job of README, docs and examples.

Commands run for real in a working copy with a small built demo. Only flags are added, for speed: fewer
recipes, one target, fewer timed calls, a few seconds of a video; and the copy holds a sixth of the pictures.
``make`` and ``pip install`` lines are checked against the Makefile and the project's extras instead, because
they would install; ``git clone`` and ``cd`` against each other; a benchmark's options against its help,
because it takes minutes. A fence that nothing here knows fails; one that can't be run says why in the comment
``<!-- not run: reason -->`` before it, and is listed as skipped with that reason.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import documents
from documents import Command, Fence, Unclassified, classify, commands, edgekiln_arguments, fences, kind_of
from edgekiln import devices, intake, job

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FASTER = ["--target", "onnxruntime", "--recipe", "fp32", "--recipe", "int8-static-minmax", "--samples", "20"]
SECONDS = 600


def read(page: Path) -> list[Fence]:
    name = page.relative_to(ROOT).as_posix()
    return fences(page.read_text(encoding="utf-8"), name)


def all_fences() -> list[Fence]:
    """Of every page that can be read; ``test_every_page_can_be_read`` fails for the others."""
    found = []
    for page in PAGES:
        try:
            found += read(page)
        except Unclassified:
            continue
    return found


FENCES = all_fences()


# ---------------------------------------------------------------- the working copy


@pytest.fixture(scope="session")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example folders with the demo built, and what the pages call a user's own files.

    ``model.onnx`` is the demo's model as ONNX; ``photos/`` some of its calibration crops; ``labelled/`` its
    labelled photographs; ``photo.jpg`` one of them; ``job.toml`` a job of these; ``out/`` a build's output.
    """
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    example = folder / "examples" / "efficientnet_lite0"
    must(folder, [sys.executable, str(example / "data.py")])
    data = folder / "build" / "demo-data"
    thin(data / "calibration")
    thin(data / "holdout")
    shorten(folder / "examples" / "pp_ocr" / "job.toml")
    # For one of its devices, and with a latency that a busy machine meets: the pages go on from the bundle.
    only = ["--device", "host", "--latency-ms", "10000"]
    must(folder, [*program(), "build", str(example / "job.toml"), *FASTER, *only])
    shutil.copytree(data / "eval", folder / "labelled")
    shutil.copy(next((data / "eval").glob("*.jpg")), folder / "photo.jpg")
    (folder / "photos").mkdir()
    for path in (data / "calibration").iterdir():
        shutil.copy(path, folder / "photos")
    shutil.copy(intake.take_in(job.load(example / "job.toml"), folder / "cache").graph, folder / "model.onnx")
    text = 'data = "photos"\nout = "job-out"\n[model]\nsource = "model.onnx"\n'
    (folder / "job.toml").write_text(text, encoding="utf-8")
    shutil.copytree(folder / "build" / "efficientnet-lite0", folder / "out")
    return folder


def thin(pictures: Path) -> None:
    """Leave every sixth. ``data.py`` leaves alone what it made before, so that they stay so few."""
    for number, path in enumerate(sorted(pictures.iterdir())):
        if number % 6:
            path.unlink()


def shorten(path: Path) -> None:
    """A page builds this job from Python, where no flag can be added: fewer recipes and timed calls."""
    text = path.read_text(encoding="utf-8")
    assert "[search]\n" in text
    fewer = 'recipes = ["fp32", "int8-static-minmax", "int8-nncf-mixed"]\nsamples = 20\n'
    path.write_text(text.replace("[search]\n", f"[search]\n{fewer}"), encoding="utf-8")


def program() -> list[str]:
    """The console script where this environment is the checkout's own, else the module it calls."""
    script = ROOT / ".venv" / "bin" / "edgekiln"
    inside = Path(sys.prefix).resolve() == (ROOT / ".venv").resolve()
    return [str(script)] if inside and script.exists() else [sys.executable, "-m", "edgekiln"]


def start(
    folder: Path, command: list[str], stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH", ""))))
    known = {**os.environ, "PYTHONPATH": search, "EDGEKILN_CACHE": str(folder / "cache")}
    return subprocess.run(
        command,
        cwd=folder,
        env=known | environment,
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def must(folder: Path, command: list[str]) -> None:
    done = start(folder, command)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def faster(arguments: list[str]) -> list[str]:
    """The arguments of ``edgekiln``, with those flags for speed that they do not state themselves.

    ``--samples`` above 20 becomes 20: that is the least that has a P95. Streams run for the least, 5 s.
    """
    if arguments[:1] == ["run"] and "--input" in arguments and "--duration" not in arguments:
        return [*arguments, "--duration", "5s"]
    if arguments[:1] not in (["build"], ["bench"]):
        return arguments
    given = list(arguments)
    if "--samples" in given:
        place = given.index("--samples") + 1
        given[place] = str(min(int(given[place]), 20))
    flags = list(zip(FASTER[::2], FASTER[1::2], strict=True))
    for name, value in flags:
        belongs = given[0] == "build" or name == "--samples"
        if belongs and name not in arguments:
            given += [name, value]
    return given


def run(command: Command, folder: Path, where: str) -> None:
    """Run or check one command. Fails with what it printed."""
    kind = kind_of(command)
    if kind == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert documents.wrong_make_targets(command, makefile) == [], f"{where}: no such target"
    elif kind == "pip":
        assert documents.wrong_requirements(command, PROJECT) == [], (
            f"{where}: not this project, or no such extra"
        )
    elif kind == "edgekiln":
        arguments = edgekiln_arguments(command)
        done = start(folder, [*program(), *faster(arguments)], command.stdin, **command.environment)
        # 1 is a build whose budget no artifact met on this machine: the command works, and says so.
        sound = {0, 1} if arguments[:1] == ["build"] else {0}
        assert done.returncode in sound, f"{where}: {arguments}\n{done.stdout}\n{done.stderr}"
    elif kind == "python" and command.words[1].startswith("benchmarks/"):
        check_benchmark(command, where)
    elif kind == "python":
        done = start(folder, [sys.executable, *command.words[1:]], command.stdin, **command.environment)
        assert done.returncode == 0, f"{where}: {command.words}\n{done.stdout}\n{done.stderr}"
    else:
        assert kind in {"clone", "cd"}, f"{where}: nothing runs a {kind}"


def check_benchmark(command: Command, where: str) -> None:
    """A benchmark takes minutes and has tests of its own: here its script and its options must exist."""
    done = benchmark_help(command.words[1])
    assert done.returncode == 0, f"{where}: {done.stderr}"
    unknown = [w for w in command.words[2:] if w.startswith("--") and w.split("=")[0] not in done.stdout]
    assert unknown == [], f"{where}: no such option"


@functools.cache
def benchmark_help(script: str) -> subprocess.CompletedProcess[str]:
    return start(ROOT, [sys.executable, script, "--help"])


def check_toml(fence: Fence, folder: Path, into: Path) -> None:
    """A job is loaded as it is, a part of one behind a model, a device with the figures it leaves out."""
    kind = documents.toml_kind(fence)
    if kind == "devices":
        check_devices(fence, into)
        return
    path = into / "job.toml"
    path.write_text(
        ('[model]\nsource = "model.onnx"\n' if kind == "part" else "") + fence.text, encoding="utf-8"
    )
    loaded = job.load(path)
    assert loaded.model.source


def check_devices(fence: Fence, into: Path) -> None:
    """Rows of the catalogue, completed as the page says: missing figures with a reason, cited documents."""
    rows = tomllib.loads(fence.text)["devices"]
    wanted = devices.load("raspberry-pi-5").figures
    cited = {part.split("}")[0] for part in fence.text.split('"{')[1:]}
    lines = ["schema = 1", "[sources]", *(f'{name} = "A document"' for name in sorted(cited)), fence.text]
    for name, row in rows.items():
        # The page's last table is the figures' one, so that what it leaves out can follow it.
        assert fence.text.rindex(f"[devices.{name}.figures]") > fence.text.rindex(f"[devices.{name}]")
        lines += [f'{key} = {{ reason = "not stated" }}' for key in wanted if key not in row["figures"]]
    path = into / "catalogue.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert set(devices.load_catalogue(path)) == set(rows)


# ---------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_page_can_be_read(page: Path) -> None:
    read(page)


@pytest.mark.parametrize("fence", FENCES, ids=str)
def test_nothing_on_a_page_goes_untested_in_silence(fence: Fence) -> None:
    if fence.not_run is None:
        classify(fence)


@pytest.mark.parametrize(
    "fence", [f for f in FENCES if f.language not in {*documents.PLAIN, "json"} or f.not_run], ids=str
)
def test_what_a_page_shows_works(fence: Fence, copy: Path, tmp_path: Path) -> None:
    if fence.not_run is not None:
        pytest.skip(f"{fence} not run: {fence.not_run}")
    if fence.language == "toml":
        check_toml(fence, copy, tmp_path)
    elif fence.language == "python":
        done = start(copy, [sys.executable, "-c", fence.text])
        assert done.returncode == 0, f"{fence}\n{done.stdout}\n{done.stderr}"
    else:
        found = commands(fence)
        assert documents.wrong_clone(fence, found) == []
        for command in found:
            run(command, copy, f"{fence.page}:{command.line}")


# ---------------------------------------------------------------- and would it notice?


def fenced(language: str, text: str) -> Fence:
    (found,) = fences(f"before\n```{language}\n{text}\n```\nafter\n", "page.md")
    return found


@pytest.mark.parametrize(
    ("language", "text", "says"),
    [
        ("sh", "frobnicate --now", "page.md:3: no test knows this command"),
        ("sh", "make demo\ncurl https://example.com", "page.md:4"),
        ("sh", "edgekiln devices | grep jetson", r"'\|'"),
        ("sh", "edgekiln devices > list.txt", "'>'"),
        ("sh", "echo $(edgekiln devices)", r"'\$\(|\('"),
        ("sh", "# only a comment", "without one"),
        ("sh", "edgekiln run 'x", "quotation"),
        ("sh", "python - <<'END'\nprint(1)", "here-document"),
        ("sh", "export X=1", "no test knows"),
        ("console", "edgekiln devices", "without one"),
        ("console", "$ rm -rf build", "no test knows"),
        ("python3.11", "import os", "python3.11"),
        ("swift", "let x = 1", "swift"),
        ("", "edgekiln build model.onnx", "looks like a command"),
        ("text", "$ make demo", "looks like a command"),
        ("toml", "[project]\nname = 'x'", "neither a job nor"),
        ("toml", "a = ", "no TOML"),
        ("json", "{", "no JSON"),
    ],
)
def test_what_no_test_knows_is_refused_with_its_line(language: str, text: str, says: str) -> None:
    with pytest.raises(Unclassified, match=says):
        classify(fenced(language, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("```sh\nmake demo\n", "page.md:1: a fence that is not closed"),
        ("<!-- not run -->\n```sh\nx\n```\n", "page.md:1: 'not run' gives no reason"),
        ("<!-- not run: -->\n```sh\nx\n```\n", "gives no reason"),
        ("<!-- not run: needs a network -->\n\nProse.\n", "before no fence"),
        ("<!-- not run: needs a network -->\nProse.\n```sh\nx\n```\n", "before no fence"),
    ],
)
def test_a_page_that_hides_something_is_refused(text: str, says: str) -> None:
    with pytest.raises(Unclassified, match=says):
        fences(text, "page.md")


def test_a_marked_fence_keeps_its_reason_and_the_next_one_is_run() -> None:
    text = "<!-- not run: needs root rights -->\n\n```sh\napt-get install x\n```\n\n```sh\nmake demo\n```\n"
    marked, next_one = fences(text, "page.md")
    assert (marked.not_run, marked.line) == ("needs root rights", 4)
    assert (next_one.not_run, next_one.line) == (None, 8)


def test_fences_inside_lists_and_longer_ones_are_read() -> None:
    inside, longer = fences("- so:\n\n    ```sh\n    make demo\n    ```\n\n````text\n```\n````\n", "page.md")
    assert inside.text == "make demo\n"
    assert longer.text == "```\n"


def test_commands_are_told_apart_with_their_lines_environment_and_documents() -> None:
    fence = fenced(
        "sh",
        "git clone https://example.com/edgekiln.git && cd edgekiln  # the code\n"
        "X=1 .venv/bin/edgekiln build \\\n  job.toml --out 'a b'\n"
        "pip install 'edgekiln[openvino]'\n"
        ".venv/bin/python - <<'END'\nprint('#')\nEND\n"
        "python -m edgekiln devices; make demo",
    )
    found = commands(fence)
    assert [kind_of(c) for c in found] == ["clone", "cd", "edgekiln", "pip", "python", "edgekiln", "make"]
    assert [c.line for c in found] == [3, 3, 4, 6, 7, 10, 10]
    assert edgekiln_arguments(found[2]) == ["build", "job.toml", "--out", "a b"]
    assert found[2].environment == {"X": "1"}
    assert found[4].stdin == "print('#')\n"
    assert documents.wrong_clone(fence, found) == []
    assert documents.wrong_clone(fence, found[1:]) == ["page.md:3: cd edgekiln"]


def test_a_console_fence_holds_commands_behind_prompts_and_output_around_them() -> None:
    found = commands(fenced("console", "$ edgekiln doctor\ntarget | ability > yes\n$ make test\nok"))
    assert [c.words for c in found] == [("edgekiln", "doctor"), ("make", "test")]


def test_targets_and_extras_that_do_not_exist_are_noticed() -> None:
    install = Command(1, ("pip", "install", "-e", ".[openvino,coffee]"))
    assert documents.wrong_requirements(install, PROJECT) == [".[openvino,coffee]"]
    assert documents.wrong_requirements(Command(1, ("pip", "install", "requests")), PROJECT) == ["requests"]
    assert documents.wrong_requirements(Command(1, ("pip", "install", "edgekiln[all]")), PROJECT) == []
    makefile = "demo: setup\n\t@true\nX := 1\n"
    asked = Command(1, ("make", "demo", "-j2", "V=1", "coffee", "X"))
    assert documents.wrong_make_targets(asked, makefile) == ["coffee", "X"]


@pytest.mark.parametrize(
    "text",
    [
        "name = 'x'\nmodle = 1\n[model]\nsource = 'model.onnx'",
        "[model]\nsource = 'model.onnx'\n[budget]\nmax_drip = 0.01",
        "[preprocess]\nwidth = 224\nheight = 224\nfit = 'squeeze'",
        "[devices.x]\ntitle = 'X'\nkind = 'toaster'\n[devices.x.figures]\ncpu = { reason = 'no' }",
    ],
)
def test_a_job_or_a_device_that_the_program_refuses_fails(text: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"unknown key|toaster|squeeze"):
        check_toml(fenced("toml", text), tmp_path, tmp_path)


def test_a_command_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:3.*no-such-device"):
        run(Command(3, ("edgekiln", "devices", "no-such-device")), tmp_path, "page.md:3")


def test_a_benchmark_and_an_option_that_do_not_exist_are_noticed(tmp_path: Path) -> None:
    run(Command(3, ("python", "benchmarks/overhead.py", "--quick", "--rounds", "7")), tmp_path, "page.md:3")
    with pytest.raises(AssertionError, match=r"page\.md:3"):
        run(Command(3, ("python", "benchmarks/coffee.py")), tmp_path, "page.md:3")
    with pytest.raises(AssertionError, match="no such option"):
        run(Command(3, ("python", "benchmarks/overhead.py", "--coffee")), tmp_path, "page.md:3")


def test_only_flags_for_speed_are_added() -> None:
    assert faster(["devices"]) == ["devices"]
    assert faster(["build", "job.toml"]) == ["build", "job.toml", *FASTER]
    given = faster(["build", "x.onnx", "--target", "openvino", "--samples", "500"])
    assert given[:6] == ["build", "x.onnx", "--target", "openvino", "--samples", "20"]
    assert given.count("--target") == 1
    assert faster(["bench", "x.onnx"]) == ["bench", "x.onnx", "--samples", "20"]
    assert faster(["run", "x.edgekiln", "a.jpg"]) == ["run", "x.edgekiln", "a.jpg"]
    assert faster(["run", "x.edgekiln", "--input", "v.mp4"])[-2:] == ["--duration", "5s"]
