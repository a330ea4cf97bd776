"""The compact reader: tokens of several levels of detail and a question's words to one of ten answers.

A token is the vector that a small convolutional network without padding makes of the 40x40 pixels around a
square of 16x16 pixels at the token's level. So a token is the same whether it is computed alone, in a window
of 4x4 or with all of its level: levels and windows can be mixed freely, and only what was allocated costs.
The network reads the relevance as a fourth channel: it says which of several glyphs was meant.

A stack of 2 cross-attentions then lets the words ask the tokens; beside it the digit on the most relevant
token is read, as far as the question is one that asks to read, and the relevance is summed, as far as it is
one that asks to count.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekiln.arrcoc.scorers import FORBIDDEN, Attention, Words, convolution

WIDTH = 96
ANSWERS = 10
FAR = 25.0
"""No number that is wrong loses more: five off are as wrong as nine."""
LEVELS = 5
"""One more than the quadtree's: level -1 is that of uniform grids that are no power of two."""


class Encoder(nn.Module):
    """Pictures (B, 4, 16n + 24, 16m + 24) in 0..1, red, green, blue, relevance: tokens (B, n * m, D).

    Receptive field 40, stride 16, no padding. A digit is found at each of 6 x 6 places by the same weights
    and the best place is kept: Where the last step is a convolution with stride instead, each place has to be
    learned for itself, and in the time that training has nothing is.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(4, 16, 3),
            *convolution(16, 32, 4, stride=2),
            *convolution(32, 48, 3),
            nn.MaxPool2d(2),
            *convolution(48, 96, 3),
            *convolution(96, width, 1),
            nn.MaxPool2d(6, 4),
        )

    def forward(self, pictures: Tensor) -> Tensor:
        found: Tensor = self.layers(pictures - 0.5).flatten(2).transpose(1, 2)
        return found


class Reader(nn.Module):
    """Encoder and decoder. ``forward`` takes the tokens that ``encoder`` made."""

    def __init__(self, vocabulary: int, length: int, width: int = WIDTH) -> None:
        super().__init__()
        self.encoder = Encoder(width)
        self.words = Words(vocabulary, length, width)
        self.place = nn.Linear(2 + LEVELS + 1, width)
        self.norm = nn.LayerNorm(width)
        self.first, self.second = Attention(width), Attention(width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.digit = nn.Linear(width, ANSWERS)
        """Which digit a token lies on. It learns with the encoder, before anything else here does."""
        self.choose, self.reads = nn.Linear(width, 1), nn.Linear(width, 1)
        self.sure = nn.Parameter(torch.tensor(8.0))
        """How much a token's relevance counts when it is chosen to be read."""
        self.counts = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 1, 3, padding=1))
        """How much of each place's relevance counts as one of what is counted."""
        self.asks = nn.Linear(width, 1)
        """How much an answer loses by its distance from what was counted."""
        self.out = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, ANSWERS))

    def seen(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The tokens as the words meet them: with their place, level and relevance, normalised."""
        level = functional.one_hot(positions[..., 2].long() + 1, LEVELS).to(tokens.dtype)
        where = torch.cat([positions[..., :2] * 2 - 1, positions[..., 3:], level], -1)
        found: Tensor = self.norm(tokens + self.place(where))
        return found

    def forward(
        self, tokens: Tensor, positions: Tensor, held: Tensor, relevance: Tensor, ids: Tensor, mask: Tensor
    ) -> Tensor:
        """Logits (B, 10).

        ``tokens`` (B, N, D); ``positions`` (B, N, 4): centre y and x in 0..1, level (-1..3), relevance;
        ``held`` (B, N): 1 for a token, 0 for padding; ``relevance`` (B, R, C); ``ids`` and ``mask`` (B, W).
        """
        seen = self.seen(tokens, positions)
        words = self.words(ids, mask)
        words = words + self.first(words, seen, held)
        words = words + self.mix(words)
        words = words + self.second(words, seen, held)
        pooled = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        shares = self.counts(relevance[:, None])[:, 0].sigmoid() * 2
        counted = (relevance * shares).sum((1, 2))[:, None]
        far = ((counted - torch.arange(ANSWERS, device=counted.device)) ** 2).clamp(max=FAR)
        wanted = self.choose(seen)[..., 0] + self.sure * positions[..., 3] + (held - 1) * FORBIDDEN
        read = (wanted.softmax(1)[..., None] * self.digit(tokens)).sum(1)
        known: Tensor = self.out(pooled) + self.reads(pooled).sigmoid() * read
        found: Tensor = known - functional.softplus(self.asks(pooled)) * far
        return found
