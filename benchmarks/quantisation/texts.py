"""English text that is on every machine with Python (the language reference in ``pydoc_data``), as sentences
and as pictures of pages."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from quantisation.networks import MINILM, SEQUENCE, package_file

FONTS = (
    "DejaVuSans",
    "DejaVuSerif",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "STIXGeneral",
    "DejaVuSerif-Italic",
)
PAGE = (1472, 704)


def sentences() -> list[str]:
    """Sentences of 5 to 40 words, each once, in the order of their hash: any cut of it is a random sample."""
    from pydoc_data.topics import topics

    found = set()
    for text in topics.values():
        for paragraph in text.split("\n\n"):
            words = re.sub(r"\s+", " ", paragraph).strip()
            for sentence in re.split(r"(?<=[.!?]) ", words):
                if (
                    re.fullmatch(r"[A-Z][^\n*=|<>\\`]{20,300}[.!?]", sentence)
                    and 5 <= len(sentence.split()) <= 40
                ):
                    found.add(sentence)
    return sorted(found, key=lambda sentence: hashlib.sha256(sentence.encode()).digest())


def tokens(texts: list[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """MiniLM's own tokens of each text: ``input_ids`` and ``attention_mask``, (1, SEQUENCE) int64."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(package_file(f"{MINILM}/model/tokenizer.json")))
    tokenizer.enable_truncation(SEQUENCE)
    tokenizer.enable_padding(length=SEQUENCE)
    for text in texts:
        found = tokenizer.encode(text)
        yield {
            "input_ids": np.array([found.ids], np.int64),
            "attention_mask": np.array([found.attention_mask], np.int64),
        }


def pages(count: int, first: int, lines: list[str]) -> Iterator[Image.Image]:
    """``count`` pages of the given sentences, each of another font, size, tint, slope and noise; ``first`` is
    the seed of the first, so that two sets differ."""
    fonts = _fonts()
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        yield _page(random, fonts[int(random.integers(len(fonts)))], lines)


def photographed() -> list[Image.Image]:
    """The two real pictures of text inside scikit-image."""
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "data"
    return [Image.open(folder / name).convert("RGB") for name in ("page.png", "text.png")]


def _fonts() -> list[Path]:
    spec = find_spec("matplotlib")
    assert spec is not None
    assert spec.origin is not None
    return [Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf" for name in FONTS]


def _page(random: np.random.Generator, font_file: Path, lines: list[str]) -> Image.Image:
    size = int(random.integers(22, 64))
    font = ImageFont.truetype(str(font_file), size)
    light = tuple(int(n) for n in random.integers(205, 256, 3))
    dark = tuple(int(n) for n in random.integers(0, 90, 3))
    page = Image.new("RGB", PAGE, light)
    draw = ImageDraw.Draw(page)
    left, y = int(random.integers(20, 200)), int(random.integers(10, 80))
    while y < PAGE[1] - size:
        text = lines[int(random.integers(len(lines)))]
        draw.text((left, y), text[: int(random.integers(12, 90))], fill=dark, font=font)
        y += int(size * random.uniform(1.3, 2.4))
    page = page.rotate(float(random.uniform(-3, 3)), Image.Resampling.BICUBIC, fillcolor=light)
    noisy = np.asarray(page, np.float32) + random.normal(0, float(random.uniform(0, 8)), (*PAGE[::-1], 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
