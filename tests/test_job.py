"""A job file says what it means, and what it can't mean is an error with the near names and the cure."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekiln.errors import BadInput
from edgekiln.job import BudgetOrder, Job, ModelOrder, check, input_shapes, load, located, parse_shape
from edgekiln.records import Budget, Preprocess

MODEL = '[model]\nsource = "model.onnx"\n'
FULL = """
name = "lite"
devices = ["host", "raspberry-pi-5"]
data = "photos/"
holdout = "/absolute/more"
eval = "labelled.csv"
out = "build/lite"

[model]
source = "package.module:factory"
weights = "package:numpy/version.py"
labels = "labels.txt"
task = "classification"
input_shape = "1x3x224x224"

[preprocess]
width = 224
height = 224
fit = "crop"
crop = 0.875
interpolation = "bicubic"
mean = [127, 127, 127]
std = [128, 128, 128]
scale = 1

[budget]
max_drop = 0.01
agreement = 0.97
sqnr_db = 20
latency_ms = 50
memory_mb = 200.5
size_mb = 20
energy_mj = 3
power_watts = 7
fps = 30

[search]
targets = ["onnxruntime"]
recipes = ["fp32", "int8-static-mse"]
threads = 2
samples = 40
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "job.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        load(written(folder, text))
    assert caught.value.exit_code == 2
    assert caught.value.cure
    return caught.value


# ---------------------------------------------------------------- what a job says


def test_every_key_arrives_where_it_belongs(tmp_path):
    job = load(written(tmp_path, FULL))
    assert (job.name, job.devices, job.out) == ("lite", ("host", "raspberry-pi-5"), "build/lite")
    assert job.model.task == "classification"
    assert job.search.recipes == ("fp32", "int8-static-mse")
    assert (job.search.threads, job.search.samples) == (2, 40)
    assert job.preprocess == Preprocess(
        width=224,
        height=224,
        fit="crop",
        crop=0.875,
        interpolation="bicubic",
        mean=(127, 127, 127),
        std=(128, 128, 128),
        scale=1,
    )


def test_the_budget_is_turned_into_the_units_of_evidence(tmp_path):
    assert load(written(tmp_path, FULL)).budget.budget() == Budget(
        accuracy_drop=0.01,
        agreement=0.97,
        sqnr_db=20,
        latency_p95_ms=50,
        memory_bytes=200_500_000,
        size_bytes=20_000_000,
        energy_mj=3,
        power_watts=7,
        fps=30,
    )
    assert BudgetOrder().budget() == Budget()


def test_the_least_job_names_a_model_and_builds_for_this_machine(tmp_path):
    job = load(written(tmp_path, MODEL))
    assert (job.devices, job.data, job.budget.budget()) == (("host",), None, Budget())


def test_relative_paths_start_at_the_job_file_and_absolute_ones_stay(tmp_path):
    job = load(written(tmp_path, FULL))
    assert job.path(job.data) == tmp_path / "photos"
    assert job.path(job.holdout) == Path("/absolute/more")
    assert job.path("../beside") == tmp_path / ".." / "beside"


def test_a_package_path_is_a_file_of_that_installed_package(tmp_path):
    import numpy

    job = load(written(tmp_path, FULL))
    found = job.path(job.model.weights)
    assert found == Path(numpy.__file__).parent / "version.py"
    assert found.is_file()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("package:no_such_package/x", "no package 'no_such_package' is installed"),
        ("package:numpy/../onnx/x", "leaves the package"),
        ("package:numpy//etc/passwd", "leaves the package"),
        ("package:/etc/passwd", "no package ''"),
        ("package:../numpy/x", "no package '..'"),
        ("package:json.tool/x", "no package 'json.tool'"),
        ("package:__main__/x", "no package '__main__'"),
        ("package:", "no package ''"),
    ],
)
def test_a_package_path_that_means_no_file_of_a_package_is_refused(tmp_path, given, why):
    with pytest.raises(BadInput, match=re.escape(why)):
        located(given, tmp_path)


# ---------------------------------------------------------------- what a job can't say


@pytest.mark.parametrize(
    ("text", "near", "where"),
    [
        ("dat = 'x'\n" + MODEL, "'data'", ""),
        ("device = ['host']\n" + MODEL, "'devices'", ""),
        (MODEL + "wieghts = 'x'\n", "'weights'", "[model]"),
        (MODEL + "[preprocess]\nwidht = 3\nheight = 3\n", "'width'", "[preprocess]"),
        (MODEL + "[budget]\nlatency = 3\n", "'latency_ms'", "[budget]"),
        (MODEL + "[budget]\naccuracy_drop = 0.1\n", "'max_drop'", "[budget]"),
        (MODEL + "[search]\nthread = 3\n", "'threads'", "[search]"),
        (MODEL + "[serach]\nthreads = 3\n", "'search'", ""),
    ],
)
def test_an_unknown_key_at_any_level_is_named_with_its_near_ones(tmp_path, text, near, where):
    error = refused(tmp_path, text)
    assert "unknown key" in error.why
    assert where in error.why
    assert near in error.cure


def test_the_base_folder_is_no_key(tmp_path):
    error = refused(tmp_path, "base = '/'\n" + MODEL)
    assert "unknown key 'base'" in error.why
    assert "base" not in error.cure


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("name = 3\n" + MODEL, "$.name"),
        ("devices = 'host'\n" + MODEL, "$.devices"),
        ("model = 'model.onnx'\n", "$.model"),
        ("", "model"),
        ("[model]\n", "source"),
        (MODEL + "task = 'detecting'\n", "$.model.task"),
        (MODEL + "input_shape = [1, 3]\n", "$.model.input_shape"),
        (MODEL + "[budget]\nlatency_ms = '50'\n", "$.budget.latency_ms"),
        (MODEL + "[budget]\nlatency_ms = true\n", "$.budget.latency_ms"),
        (MODEL + "[preprocess]\nwidth = 224\n", "height"),
        (MODEL + "[preprocess]\nwidth = 2.5\nheight = 2\n", "$.preprocess.width"),
        (MODEL + "[search]\nthreads = 1.5\n", "$.search.threads"),
        ("name = 2020-01-01\n" + MODEL, "$.name"),
    ],
)
def test_a_wrong_type_names_the_key(tmp_path, text, what):
    assert what in refused(tmp_path, text).why


@pytest.mark.parametrize(
    "text",
    [
        "name = \n",
        "[model\n",
        "a = 1\na = 2\n",
        "\x00",
        "a = " + "[" * 5000,
        "a = " + "9" * 5000,
        "a = 2020-13-45",
    ],
)
def test_what_is_not_toml_is_said_to_be_so(tmp_path, text):
    assert "not valid TOML" in refused(tmp_path, text).why


def test_bytes_that_are_no_text_a_folder_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "large.toml").write_bytes(b"#" * (1 << 21))
    expected = {
        "binary.toml": "not valid TOML",
        "nothing.toml": "no such file",
        ".": "can't be read",
        "large.toml": "larger than",
    }
    for name, why in expected.items():
        with pytest.raises(BadInput, match=why):
            load(tmp_path / name)


@pytest.mark.parametrize(
    "figures",
    [
        *[f"{k} = -1" for k in BudgetOrder.__struct_fields__ if k != "sqnr_db"],
        *[f"{k} = 0" for k in BudgetOrder.__struct_fields__ if k not in {"sqnr_db", "max_drop"}],
        *[f"{k} = nan" for k in BudgetOrder.__struct_fields__],
        *[f"{k} = inf" for k in BudgetOrder.__struct_fields__],
        "size_mb = 1e308",
        "max_drop = 1",
        "max_drop = 5",
        "agreement = 1.01",
        "agreement = 97",
    ],
)
def test_a_budget_that_nothing_can_meet_or_miss_is_refused(tmp_path, figures):
    error = refused(tmp_path, f"{MODEL}[budget]\n{figures}\n")
    assert figures.split(" ")[0] in error.why


@pytest.mark.parametrize("figures", ["sqnr_db = -3", "max_drop = 0", "agreement = 1", "max_drop = 0.999"])
def test_a_budget_at_its_ends_is_taken(tmp_path, figures):
    load(written(tmp_path, f"{MODEL}[budget]\n{figures}\n"))


@pytest.mark.parametrize(
    "text",
    ["threads = 0", "threads = -2", "samples = 0", "samples = -1", "tune_seconds = -1", "tune_seconds = nan"],
)
def test_a_count_below_one_is_refused(tmp_path, text):
    assert text.split(" ")[0] in refused(tmp_path, f"{MODEL}[search]\n{text}\n").why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("epochs = 0", "epochs"),
        ("steps = -1", "steps"),
        ("seed = 4294967296", "seed"),
        ("seconds = 0", "seconds"),
        ("arguments = { epochs = 3 }", "epochs stands in [qat.arguments]"),
    ],
)
def test_figures_of_a_training_that_nothing_can_mean_are_refused(tmp_path, text, why):
    assert why in refused(tmp_path, f'{MODEL}[qat]\ntrainer = "train:fine_tune"\n{text}\n').why


def test_a_trainer_is_given_what_the_table_says(tmp_path):
    text = f'{MODEL}[qat]\ntrainer = "train:fine_tune"\nsteps = 9\narguments = {{ rate = 0.5, name = "a" }}\n'
    qat = load(written(tmp_path, text)).qat
    assert qat is not None
    assert qat.given() == {"rate": 0.5, "name": "a", "steps": 9}
    assert load(written(tmp_path, MODEL)).qat is None


def test_a_job_without_devices_is_refused_however_it_was_made(tmp_path):
    assert "no device" in refused(tmp_path, "devices = []\n" + MODEL).why
    with pytest.raises(BadInput, match="no device"):
        check(Job(model=ModelOrder(source="m.onnx"), devices=()), "the call")


def test_the_command_line_tells_the_cure_and_exits_with_2(tmp_path):
    path = written(tmp_path, MODEL + "[budget]\nlatency = 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "edgekiln", "build", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "'latency_ms'" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [path]


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("text", "shape"),
    [("1x3x224x224", (1, 3, 224, 224)), ("8", (8,)), ("1,3", (1, 3)), ("01x3", (1, 3)), ("1x10", (1, 10))],
)
def test_a_shape_is_numbers_with_x_between(text, shape):
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    "text",
    [*["", "x", "1x", "0x3", "1x0", "00x3", "-1x3", "1x3x", "1.5", "batchx3", "٠x3", "²"], "1 x 3", "1x3\n"],
)
def test_what_is_no_shape_is_refused_with_an_example(text):
    with pytest.raises(BadInput, match="1x3x224x224"):
        parse_shape(text)


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=10))
def test_every_shape_survives_being_written(shape):
    assert parse_shape("x".join(map(str, shape))) == tuple(shape)


@given(st.text(alphabet="0123456789x,٣ -", max_size=12))
def test_no_text_gives_an_empty_or_zero_shape(text):
    try:
        shape = parse_shape(text)
    except BadInput:
        return
    assert shape
    assert min(shape) >= 1


def test_shapes_are_given_bare_or_by_name():
    assert input_shapes(ModelOrder(source="m")) == {}
    assert input_shapes(ModelOrder(source="m", input_shape="1x3")) == {"": (1, 3)}
    by_name = {"ids": "1x128", "mask": "1x128"}
    assert input_shapes(ModelOrder(source="m", input_shape=by_name)) == {"ids": (1, 128), "mask": (1, 128)}


# ---------------------------------------------------------------- anything at all

NAMES = "model source devices budget max_drop size_mb search samples preprocess width"
KEYS = st.sampled_from(NAMES.split()) | st.text(alphabet="ab`$.- @", max_size=20)
VALUES = st.sampled_from(
    [
        "1",
        "-1",
        "0.5",
        "nan",
        "inf",
        "1e308",
        "true",
        '"x"',
        '"`"',
        "[]",
        '["host"]',
        "[1,[2]]",
        "{}",
        "1979-05-27",
    ]
)
LINES = st.one_of(
    st.tuples(KEYS, VALUES).map(lambda kv: f'"{kv[0]}" = {kv[1]}'),
    KEYS.map(lambda k: f'["{k}"]'),
    st.text(st.characters(codec="utf-8"), max_size=20),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LINES, max_size=8), st.booleans())
def test_whatever_a_job_file_holds_loading_it_gives_a_job_or_bad_input(tmp_path, lines, sound):
    path = written(tmp_path, "\n".join([*lines, MODEL] if sound else lines))
    try:
        job = load(path)
    except BadInput:
        return
    job.budget.budget()
    assert job.devices


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="xy`$.[] -at:", max_size=30))
def test_a_key_that_looks_like_the_decoders_own_words_is_only_unknown(tmp_path, key):
    for text in (f'"{key}" = 1\n{MODEL}', f'{MODEL}[budget]\n"{key}" = 1\n'):
        with pytest.raises(BadInput, match=r"unknown key|not valid TOML"):
            load(written(tmp_path, text))
    with pytest.raises(BadInput, match="unknown key"):
        load(written(tmp_path, f'"{key}` - at `$.nosuch" = 1\n{MODEL}'))
