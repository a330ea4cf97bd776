"""A small random Qwen3-VL: the real architecture, every part of it, with weights that mean nothing."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

SPECIAL = (
    *("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|im_start|>", "<|im_end|>"),
)
IMAGE_TOKEN = SPECIAL.index("<|image_pad|>")
WORDS = (
    *("user", "assistant", "system", "what", "which", "where", "colour", "digit", "is", "the", "red", "one"),
    *("blue", "a", "in", "of", "picture", "?", "\n"),
)
VOCABULARY = 128
PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "size": {"longest_edge": 16_777_216, "shortest_edge": 65_536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


@functools.cache
def config(blocks: int = 4) -> Any:
    """``blocks`` is the depth of the vision encoder."""
    from transformers import Qwen3VLConfig

    # Larger random weights than the default's 0.02, with which attention and positions would hardly count.
    return Qwen3VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [4, 2, 2],
                "mrope_interleaved": True,
            },
            "initializer_range": 0.2,
        },
        vision_config={
            "depth": blocks,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 2][: blocks // 2],
            "initializer_range": 0.2,
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=4,
        vision_start_token_id=1,
        vision_end_token_id=2,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )


@functools.cache
def model(blocks: int = 4) -> Any:
    """The same weights each time; not to be changed, it is made once for all tests."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    return Qwen3VLForConditionalGeneration(config(blocks)).eval()


def write(folder: Path) -> None:
    """The model as its makers give it: configuration, safetensors, tokenizer, preprocessor; no template."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    model().save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w ]"), "removed", invert=True)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    told = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR))
