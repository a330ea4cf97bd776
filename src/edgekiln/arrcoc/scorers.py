"""The learned scorers of relevance, as torch modules that export to ONNX with static shapes.

Perspectival: how much a place stands out, whatever is asked. Participatory: how much it has to do with the
question, by cross-attention between the places and the question's words. Both read the features of one small
convolutional network over the texture array; the third scorer, propositional, needs no weights and is in
``information``. ``Scorer`` holds all of them with the balance, the form for a device with one accelerator.

Batches are (B, ...); nothing crosses a batch. Maps are logits on the finest token grid, (B, rows, columns).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekiln.arrcoc.channels import COLOURED, POSITIONS

AIMS = ((0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.5, 0.5))
"""Corners and centre, y and x in 0..1: what a question by place can point to beside the edges."""
CELLS = 28
SURE = 4.0
"""How much more than a cell of distance it counts at first whether a glyph is there."""
FEATURES = 32
"""Width of a place's and of a word's vector."""
HEADS = 4
FORBIDDEN = 1e4
"""What a word or a token that is none loses of its score."""
HUES = 8
"""Colours that the training names."""


class Words(nn.Module):
    """A question's words as vectors that know of one another: embedding, place in the question, attention.

    Takes ids int64 (B, W) and mask float32 (B, W) of 0 and 1; gives (B, W, D).
    """

    def __init__(self, vocabulary: int, length: int, width: int = FEATURES) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(torch.randn(length, width) * 0.1)
        self.attention = Attention(width)
        self.mix = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        words: Tensor = self.embedding(ids) + self.place
        words = words + self.attention(words, words, mask)
        found: Tensor = words + self.mix(words)
        return found


class Attention(nn.Module):
    """Scaled dot-product attention with heads (Vaswani et al. 2017), of queries (B, N, D) over keys (B, M, D)
    of which those with mask 0 do not count."""

    def __init__(self, width: int, heads: int = HEADS) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        return x.reshape(batch, count, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.split(self.query(queries)), self.split(self.key(keys)), self.split(self.value(keys)))
        scores = q @ k.transpose(-1, -2) * self.scale + (mask[:, None, None, :] - 1) * FORBIDDEN
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(queries.shape)
        found: Tensor = self.out(mixed)
        return found


def convolution(
    taken: int, given: int, size: int, stride: int = 1, padding: int = 0
) -> tuple[nn.Module, ...]:
    """A convolution with batch normalisation, which exporting folds into it, and a ReLU."""
    return (
        nn.Conv2d(taken, given, size, stride=stride, padding=padding, bias=False),
        nn.BatchNorm2d(given),
        nn.ReLU(),
    )


class Features(nn.Module):
    """The texture array (B, 13, 8R, 8C) to a vector for each token of the finest grid: (B, D, R, C).

    Where ``places`` (1, 3, R, C) holds the means of y, x and eccentricity over each token, as it does in
    exported files of whole pictures, the first ``COLOURED`` channels are enough. The convolutions see no
    more of it: gradients they make themselves, and ONNX Runtime's blocked form takes fewer than eight
    channels or a multiple of four; over thirteen the first convolution cost as much as all after it.
    """

    places: Tensor | None

    def __init__(self, width: int = FEATURES) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(COLOURED, 16, 4, stride=2, padding=1),
            *convolution(16, 24, 3, padding=1),
            nn.MaxPool2d(2),
            *convolution(24, 48, 3, padding=1),
            nn.MaxPool2d(2),
            *convolution(48, width, 1),
        )
        self.where = nn.Conv2d(3, width, 1)  # y, x and eccentricity, past everything that blurs them
        self.register_buffer("places", None, persistent=False)

    def forward(self, texture: Tensor) -> Tensor:
        places = functional.avg_pool2d(texture[:, POSITIONS], 8) if self.places is None else self.places
        found: Tensor = self.layers(texture[:, :COLOURED]) + self.where(places)
        return found


class Perspectival(nn.Module):
    """Salience: features (B, D, R, C) to logits (B, R, C)."""

    def __init__(self, width: int = FEATURES) -> None:
        super().__init__()
        self.layers = nn.Sequential(*convolution(width, 16, 3, padding=1), nn.Conv2d(16, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.layers(features)[:, 0]
        return found


class Participatory(nn.Module):
    """Each place asks the words: features (B, D, R, C) and words (B, W, D) to logits (B, R, C).

    What a place hears from the words is multiplied with what it holds: only so can a colour that is named and
    a colour that is there meet. Whether a place is the leftmost can't be told from it alone: so each is held
    against the best of all, by what it holds and by how far it is from where the words point.
    """

    def __init__(self, width: int = FEATURES) -> None:
        super().__init__()
        self.attention = Attention(width)
        self.held = nn.Linear(width, 2 * width)
        self.heard = nn.Linear(width, 2 * width)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1))
        self.towards = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(AIMS) + 3))
        """What each of ``distances`` counts, and last how much the comparison does: nothing where a colour
        is asked for."""

    def forward(self, features: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        batch, _, rows, columns = features.shape
        places = features.flatten(2).transpose(1, 2)
        heard = self.attention(places, words, mask)
        both = self.held(places) * self.heard(heard)
        here = self.out(both)[..., 0]
        towards = self.towards(_mean(words, mask))
        far = towards[:, :-1] @ distances(rows, columns)
        standing = softplus(towards[:, -1:]) * (-SURE * softplus(-here) - far)
        found: Tensor = here + standing - standing.amax(1, keepdim=True)
        return found.reshape(batch, rows, columns)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) of parts that stay small: what a quantiser has for e^x leaves nothing of the places that
    count, and float16 ends at e^11."""
    found: Tensor = x.relu() + ((-x.abs()).exp() + 1).log()
    return found


def distances(rows: int, columns: int) -> Tensor:
    """Of each place from the upper edge, from the left one, and from ``AIMS``: (2 + A, R * C), in cells of
    the compact system's finest grid. The log of a chance stays near 0 for all that are surely a glyph, so
    that among those the distance decides."""
    rows, columns = int(rows), int(columns)  # while it is traced for an export they are tensors
    y = ((torch.arange(rows) + 0.5) / rows).repeat_interleave(columns)
    x = ((torch.arange(columns) + 0.5) / columns).repeat(rows)
    aims = (((y - at_y) ** 2 + (x - at_x) ** 2).sqrt() for at_y, at_x in AIMS)
    return torch.stack([y, x, *aims]) * CELLS


class Balance(nn.Module):
    """How much each of the three counts, by the question: words (B, W, D) to weights (B, 3) that sum to 1."""

    def __init__(self, width: int = FEATURES) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, words: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.weigh(_mean(words, mask)).softmax(-1)
        return found


def _mean(words: Tensor, mask: Tensor) -> Tensor:
    """The question as one vector (B, D)."""
    found: Tensor = (words * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
    return found


class Scorer(nn.Module):
    """Texture (B, 13, 8R, 8C), information (B, R, C) in 0..1, ids and mask (B, W) to the relevance (B, R, C)
    in 0..1, the three maps (B, 3, R, C) in 0..1 and their weights (B, 3)."""

    def __init__(self, vocabulary: int, length: int) -> None:
        super().__init__()
        self.features, self.words = Features(), Words(vocabulary, length)
        self.perspectival, self.participatory = Perspectival(), Participatory()
        self.balance = Balance()
        self.hue = nn.Conv2d(FEATURES, HUES, 1)
        """Which colour a glyph has: only training asks, so that the features tell colours apart early."""

    def forward(
        self, texture: Tensor, information: Tensor, ids: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        features, words = self.features(texture), self.words(ids, mask)
        salient = self.perspectival(features).sigmoid()
        asked = self.participatory(features, words, mask).sigmoid()
        maps = torch.stack([information, salient, asked], 1)
        weights = self.balance(words, mask)
        return mixed(maps, weights), maps, weights


def mixed(maps: Tensor, weights: Tensor) -> Tensor:
    """The weighted geometric mean of maps (B, 3, R, C): a place that one scorer rules out stays out, as far
    as that scorer counts. The arithmetic mean of the guide lets salience alone buy tokens."""
    logs = maps.clamp(1e-4, 1).log()
    return (logs * weights[:, :, None, None]).sum(1).exp()
