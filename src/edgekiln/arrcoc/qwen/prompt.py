"""The prompt around a picture: what stands before and after its tokens."""

from __future__ import annotations

from typing import Any

from edgekiln.arrcoc.qwen.load import IMAGE, VISION_END, VISION_START, Loaded
from edgekiln.errors import BadInput
from edgekiln.records import Record

MOST_CHARACTERS = 8_000
"""About 2,000 tokens: more than that is no question about a picture, and would cost more than the picture."""
PLAIN = f"<|im_start|>user\n{VISION_START}{IMAGE}{VISION_END}{{question}}<|im_end|>\n<|im_start|>assistant\n"
"""Qwen3-VL's form of one turn, for a folder without a chat template."""
DOING = "reading the question"


class Prompt(Record, frozen=True, kw_only=True):
    """Token ids before and after the picture's, and those of the question alone."""

    before: list[int]
    after: list[int]
    question: list[int]

    @property
    def text_tokens(self) -> int:
        return len(self.before) + len(self.after)


def prompt(loaded: Loaded, question: str) -> Prompt:
    """The prompt for one picture and ``question``, by the model's chat template or as PLAIN.

    Raises BadInput for a question that is empty, longer than MOST_CHARACTERS, no text, or holds one of the
    tokenizer's special tokens, which would end the turn or stand for another picture; and for a template that
    does not give one picture its place.
    """
    words = check_question(question)
    tokenizer = loaded.tokenizer
    held = [t for t in tokenizer.get_added_vocab() if t in words]
    if held:
        why = f"it holds {held[0]}, which the model reads as a mark of its own"
        raise BadInput(DOING, "the question", why, "Write the question without it")
    text = PLAIN.format(question=words) if loaded.template is None else _filled(loaded, words)
    if text.count(IMAGE) != 1:
        why = f"it gives a question about one picture {text.count(IMAGE)} places for pictures"
        raise BadInput("filling", "the chat template", why, "Give the chat template of a Qwen3-VL")
    whole, asked = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, words))
    if not asked:
        raise BadInput(DOING, "the question", "the tokenizer knows nothing in it", "Ask in other words")
    place = whole.index(tokenizer.get_vocab()[IMAGE])
    return Prompt(before=whole[:place], after=whole[place + 1 :], question=asked)


def check_question(question: str) -> str:
    """``question`` without white space around it. Raises BadInput as ``prompt`` does; needs no model."""
    words = question.strip()
    if not words:
        raise BadInput(DOING, "the question", "it is empty", "Ask something about the picture")
    if len(words) > MOST_CHARACTERS:
        why = f"it has {len(words):,} characters, more than {MOST_CHARACTERS:,}"
        raise BadInput(DOING, "the question", why, "Ask a shorter question")
    try:
        words.encode()
    except UnicodeEncodeError as error:
        raise BadInput(DOING, "the question", "it is not valid text", "Write it in UTF-8") from error
    return words


def _filled(loaded: Loaded, words: str) -> str:
    turn: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}
    ]
    try:
        text = loaded.tokenizer.apply_chat_template(
            turn, chat_template=loaded.template, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a stranger's template can raise anything
        why = f"it raised {type(error).__name__}: {error}"
        raise BadInput("filling", "the chat template", why, "Give the chat template of a Qwen3-VL") from error
    return str(text)
