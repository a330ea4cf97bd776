"""A ViT-tiny, a six-layer BERT and a small Llama with seeded random weights, from transformers' classes.

ViT-tiny: 12 layers, 192 wide, 3 heads (Touvron et al., "DeiT", 2021). BERT: 6 layers, 384 wide, 12 heads
(Wang et al., "MiniLM", 2020), sequences of 128 tokens.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

SEQUENCE = 128
VOCABULARY = 30522


class Logits(nn.Module):
    """A transformers model whose one output is taken out of its named tuple."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, pixel_values: Tensor) -> Tensor:
        return cast(Tensor, getattr(self.model(pixel_values), self.field))


class Hidden(nn.Module):
    """Tokens and their mask to the last layer's states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return cast(Tensor, self.model(input_ids, attention_mask=attention_mask).last_hidden_state)


def vit_tiny() -> nn.Module:
    """(N, 3, 224, 224) to (N, 1000) logits."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        num_labels=1000,
        attn_implementation="eager",
    )
    return Logits(ViTForImageClassification(config), "logits").eval()


def bert_six() -> nn.Module:
    """Token ids and mask (N, 128) int64 to states (N, 128, 384)."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        attn_implementation="eager",
    )
    return Hidden(BertModel(config, add_pooling_layer=False)).eval()
