"""Input sizes of a job: what is read, what is refused, and which one is the base."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekiln.cli import parser
from edgekiln.cli.commands import _job
from edgekiln.errors import BadInput
from edgekiln.job import MAX_SIZES, Job, ModelOrder, check, input_sizes, load, size_text
from edgekiln.records import Preprocess


def asked(*sizes: int | str, preprocess: Preprocess | None = None) -> Job:
    return Job(model=ModelOrder(source="m.onnx", sizes=sizes), preprocess=preprocess)


def test_a_job_file_names_squares_by_a_number_and_others_by_height_and_width(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[model]\nsource = "m.onnx"\nsizes = [224, "320x416", 224]\n')
    assert input_sizes(load(tmp_path / "job.toml")) == ((224, 224), (320, 416))


def test_without_sizes_there_are_none() -> None:
    assert input_sizes(Job(model=ModelOrder(source="m.onnx"))) == ()


def test_the_command_line_takes_one_option_for_each() -> None:
    given = parser().parse_args(["build", "m.onnx", "--size", "224", "--size", "320x416"])
    assert input_sizes(_job(given)) == ((224, 224), (320, 416))


@given(st.lists(st.tuples(st.integers(1, 16384), st.integers(1, 16384)), min_size=1, max_size=MAX_SIZES))
def test_a_size_comes_back_as_it_is_written(sizes: list[tuple[int, int]]) -> None:
    assert input_sizes(asked(*map(size_text, sizes))) == tuple(dict.fromkeys(sizes))


@pytest.mark.parametrize("size", [0, -1, 16385, "", "x", "3x", "x3", "1x2x3", "0x5", "3 x 4", "4.5", "٣٢"])
def test_what_is_no_size_is_refused(size: int | str) -> None:
    with pytest.raises(BadInput, match="neither a side"):
        check(asked(size), "the job")


def test_too_many_are_refused() -> None:
    assert len(input_sizes(asked(*range(32, 32 + MAX_SIZES)))) == MAX_SIZES
    with pytest.raises(BadInput, match="more than 16"):
        input_sizes(asked(*range(32, 33 + MAX_SIZES)))


def test_the_preprocessings_size_is_the_base_and_has_to_be_among_them() -> None:
    spec = Preprocess(height=320, width=416)
    assert input_sizes(asked(224, "320x416", 96, preprocess=spec)) == ((320, 416), (224, 224), (96, 96))
    with pytest.raises(BadInput, match=r"says 320x416, which is none of 224x224, 416x320"):
        check(asked(224, "416x320", preprocess=spec), "the job")
