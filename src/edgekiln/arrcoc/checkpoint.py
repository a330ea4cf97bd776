"""A trained scorer and reader in one safetensors file, with where they came from."""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgekiln import files
from edgekiln.arrcoc.reader import Reader
from edgekiln.arrcoc.scorers import Scorer
from edgekiln.arrcoc.words import LENGTH, TOKENS, VOCABULARY
from edgekiln.errors import BadInput, MissingExtra
from edgekiln.records import Record

VERSION = 2
TRAINED = Path(__file__).parent / "trained" / "compact.safetensors"
"""The checkpoint that comes with the program; ``About`` in it says which command made it."""
DOING = "opening the checkpoint"
TRAIN = "Train one: python -m edgekiln.arrcoc.train INTO"


class About(Record, frozen=True, kw_only=True):
    """What a checkpoint says of itself. ``words`` is the vocabulary that its embeddings go by."""

    version: int
    seed: int
    command: str
    made: str
    """The day, as YYYY-MM-DD."""
    torch: str
    scenes: int
    seconds: float
    words: str


def save(path: Path, scorer: Scorer, reader: Reader, about: About) -> None:
    """Writes both into ``path``, whole or not at all."""
    from safetensors.torch import save as dump

    state = {f"scorer.{k}": v.contiguous() for k, v in scorer.state_dict().items()}
    state |= {f"reader.{k}": v.contiguous() for k, v in reader.state_dict().items()}
    files.write_bytes(path, dump(state, {"about": msgspec.json.encode(about).decode()}))


def load(path: Path) -> tuple[Scorer, Reader, About]:
    """Both in evaluation mode, and their record.

    Raises BadInput for a file that is missing, damaged, of another version or vocabulary; MissingExtra
    without safetensors.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise MissingExtra(DOING, path, "torch") from error
    if not path.is_file():
        raise BadInput(DOING, path, "there is no such file", TRAIN)
    try:
        with safe_open(path, framework="pt") as opened:
            text = (opened.metadata() or {}).get("about", "{}")
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        version = msgspec.json.decode(text).get("version")
        if version != VERSION:
            why = f"it has version {version}, this program reads {VERSION}"
            raise BadInput(DOING, path, why, TRAIN)
        about = msgspec.json.decode(text, type=About)
        if about.words != " ".join(VOCABULARY):
            raise BadInput(DOING, path, "it was trained with another vocabulary", TRAIN)
        scorer, reader = Scorer(TOKENS, LENGTH), Reader(TOKENS, LENGTH)
        for name, module in (("scorer.", scorer), ("reader.", reader)):
            own = {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}
            module.load_state_dict(own)
    except (SafetensorError, msgspec.MsgspecError, RuntimeError, OSError) as error:
        raise BadInput(DOING, path, str(error).splitlines()[0], TRAIN) from error
    return scorer.eval(), reader.eval(), about
