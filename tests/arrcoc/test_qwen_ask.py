"""One question about one picture, from the folder of a small random model to an answer. The answer is noise;
the way is the real one."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from edgekiln.arrcoc.budget import LatencyTooShort
from edgekiln.arrcoc.qwen import ask as asking
from edgekiln.arrcoc.qwen import patches
from edgekiln.arrcoc.qwen.ask import Reply, ask
from edgekiln.cli import main
from edgekiln.errors import BadInput
from fakes import tiny_qwen
from fakes.command import Kiln

QUESTION = "which digit is the red one ?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny_qwen.write(made)
    return made


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray(data.astronaut()[:448, :448]).save(path)
    return path


class Spoken:
    """A progress that remembers its steps."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def expect(self, steps: int) -> None:
        return None

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        self.steps.append(text)
        yield

    def note(self, text: str) -> None:
        return None


def standard_answer(model: Path, photo: Path) -> str:
    """By transformers' own generate, from all tokens of its own encoder."""
    import torch

    from edgekiln.arrcoc.qwen.load import load
    from edgekiln.arrcoc.qwen.prompt import prompt

    loaded = load(model)
    text = prompt(loaded, QUESTION)
    pixels, grid = patches.picture_patches(np.asarray(Image.open(photo)), loaded.rules)
    ids = torch.tensor([[*text.before, *[tiny_qwen.IMAGE_TOKEN] * 196, *text.after]])
    with torch.inference_mode():
        found = loaded.model.generate(
            ids,
            pixel_values=torch.from_numpy(pixels),
            image_grid_thw=torch.tensor([grid]),
            mm_token_type_ids=(ids == tiny_qwen.IMAGE_TOKEN).int(),
            max_new_tokens=12,
            do_sample=False,
        )
    return str(loaded.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("route", asking.ROUTES)
def test_with_all_tokens_the_answer_is_transformers_own(
    model: Path, photo: Path, route: asking.Route
) -> None:
    found = ask(model, photo, QUESTION, tokens=196, route=route, longest_answer=12)
    assert found.answer == standard_answer(model, photo)
    assert len(found.answer.split()) > 1
    assert (found.tokens, found.standard_tokens, found.by_level) == (196, 196, (196,))


def test_mixed_detail_inside_computes_less_than_the_whole_and_pooling_after_it_all(
    model: Path, photo: Path
) -> None:
    inside = ask(model, photo, QUESTION, tokens=110, longest_answer=4)
    after = ask(model, photo, QUESTION, tokens=110, longest_answer=4, route="after")
    assert inside.tokens == after.tokens == 109  # 49 and 20 times 3
    assert inside.by_level == (29, 80)
    assert inside.encoded_tokens == 49 + 109
    assert after.encoded_tokens == 196
    assert inside.frame == (448, 448)
    assert {s.name for s in after.stages} - {s.name for s in inside.stages} == {"pool"}


@pytest.mark.parametrize("route", asking.ROUTES)
def test_weights_of_16_bits_are_asked_in_their_own_type(
    model: Path, photo: Path, tmp_path: Path, route: asking.Route
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from edgekiln.arrcoc.qwen.load import load

    half = tmp_path / "model"
    shutil.copytree(model, half)
    tensors = {k: v.to(torch.bfloat16) for k, v in load_file(model / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors", {"format": "pt"})
    told = (half / "config.json").read_text().replace('"float32"', '"bfloat16"')
    (half / "config.json").write_text(told)
    assert load(half).model.dtype == torch.bfloat16
    found = ask(half, photo, QUESTION, tokens=60, route=route, longest_answer=2)
    assert (found.tokens, found.answer_tokens) == (58, 2)


def test_the_same_question_has_the_same_answer(model: Path, photo: Path) -> None:
    def fixed(found: Reply) -> tuple[Any, ...]:
        return found.answer, found.tokens, found.by_level, found.answer_tokens

    first, second = (ask(model, photo, QUESTION, tokens=60, longest_answer=12) for _ in range(2))
    assert fixed(first) == fixed(second)
    assert first.latency_ms is first.predicted_ms is first.met is None


def test_a_latency_chooses_the_total_by_what_was_measured_once(model: Path, tmp_path: Path) -> None:
    photo = tmp_path / "small.png"
    Image.fromarray(data.chelsea()[:256, :256]).save(photo)
    first, second = Spoken(), Spoken()
    found = ask(
        model, photo, QUESTION, latency_ms=60_000, longest_answer=2, progress=first, root=tmp_path / "cache"
    )
    assert found.tokens == found.standard_tokens == 64  # there is time for everything
    assert found.predicted_ms is not None
    assert 0 < found.predicted_ms < 60_000
    assert found.met
    assert found.first_token_ms >= sum(s.ms for s in found.stages if s.name in {"encode", "first token"})
    with pytest.raises(LatencyTooShort) as told:
        ask(model, photo, QUESTION, latency_ms=0.01, progress=second, root=tmp_path / "cache")
    assert told.value.needs_ms > 0.01
    measured = [any("measure" in step for step in spoken.steps) for spoken in (first, second)]
    assert measured == [True, False]


@pytest.mark.parametrize("kind", ["one-pixel", "grey", "alpha", "wide"])
def test_pictures_of_any_kind_are_asked_about(model: Path, tmp_path: Path, kind: str) -> None:
    photo = tmp_path / "photo.png"
    made = {
        "one-pixel": Image.new("RGB", (1, 1), "red"),
        "grey": Image.fromarray(data.page()),
        "alpha": Image.fromarray(np.dstack([data.chelsea(), data.chelsea()[:, :, 0]])),
        "wide": Image.fromarray(data.chelsea()[:10, :450]),
    }
    made[kind].save(photo)
    found = ask(model, photo, QUESTION, tokens=40, longest_answer=1)
    assert found.answer_tokens == 1
    assert found.tokens <= 40


def test_a_picture_of_100_million_pixels_is_asked_about(model: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("L", (10_000, 10_000), 90).save(photo)
    found = ask(model, photo, QUESTION, tokens=40, longest_answer=1)
    assert found.tokens == 40
    assert found.standard_tokens == 16_384


def test_question_and_picture_longer_than_the_model_takes_are_refused(model: Path, photo: Path) -> None:
    with pytest.raises(BadInput, match="the model takes 4096"):
        ask(model, photo, "is " * 2600, tokens=1, longest_answer=1500)


# ---------------------------------------------------------------- the verb


def test_the_verb_answers_in_json_from_a_process_of_its_own(kiln: Kiln, model: Path, photo: Path) -> None:
    given = ["--model", model, photo, QUESTION, "--tokens", "60", "--answer-tokens", "3"]
    done = kiln("arrcoc", "ask", *given, "--json")
    assert done.code == 0, done.stderr
    assert done.json["tokens"] == 58
    assert done.json["route"] == "inside"
    stages = [stage["name"] for stage in done.json["stages"]]
    assert stages[-3:] == ["encode", "first token", "rest of the answer"]
    assert all(stage["ms"] >= 0 for stage in done.json["stages"])


def test_the_verb_shows_answer_tokens_and_stages(
    capsys: pytest.CaptureFixture[str], model: Path, photo: Path
) -> None:
    given = ["arrcoc", "ask", "--model", str(model), str(photo), QUESTION]
    code = main(
        [*given, "--tokens", "60", "--latency-ms", "60000", "--answer-tokens", "3", "--route", "after"]
    )
    shown = " ".join(capsys.readouterr().out.split())
    assert code == 0
    assert "58 visual tokens" in shown
    assert "where the whole takes 196" in shown
    assert "60000 ms were allowed: met" in shown
    assert "pool" in shown
    assert "cut off" in shown


@pytest.mark.parametrize(
    ("question", "options", "words"),
    [
        ("", ["--tokens", "60"], ["it is empty"]),
        ("why " * 3000, ["--tokens", "60"], ["11,999 characters"]),
        (QUESTION, [], ["--latency-ms 100, or --tokens 113"]),
        (QUESTION, ["--tokens", "0"], ["0 is not in 1 to"]),
        (QUESTION, ["--latency-ms", "-1"], ["-1 ms is no time"]),
        (QUESTION, ["--latency-ms", "nan"], ["nan ms is no time"]),
        (QUESTION, ["--tokens", "60", "--answer-tokens", "0"], ["0 tokens are no answer"]),
        (QUESTION, ["--tokens", "60", "--model", "none"], ["there is no such folder"]),
        (QUESTION, ["--tokens", "60", "--drawing", "x.png"], ["--drawing is for the compact system"]),
        (QUESTION, ["--tokens", "60", "--threads", "2"], ["Leave --threads out"]),
    ],
)
def test_the_verb_refuses_in_order(
    kiln: Kiln, model: Path, photo: Path, question: str, options: list[str], words: list[str]
) -> None:
    given = options if "--model" in options else ["--model", str(model), *options]
    kiln("arrcoc", "ask", photo, question, *given).refused(*words)


def test_the_verb_refuses_what_is_no_picture(kiln: Kiln, model: Path) -> None:
    (kiln.folder / "text.png").write_text("no picture")
    for name in ("none.png", "text.png"):
        done = kiln("arrcoc", "ask", "--model", model, name, QUESTION, "--tokens", "60", "--json")
        done.refused(name)
        assert json.loads(done.stdout)["error"]["to"].endswith(name)
