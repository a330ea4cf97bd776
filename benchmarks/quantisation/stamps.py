"""Which of Tux Paint's stamps are photographs, and which ImageNet class the names of some of them are.

The stamps (Debian's ``tuxpaint-stamps-default``, GPL-2) are cut-outs of single objects, PNGs with an alpha
channel, each with a text file whose first line says in English what is to be seen. They are read where the
package put them; nothing of them is part of this repository.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgekiln.errors import BadInput
from edgekiln.files import sha256_file

ROOT = Path("/usr/share/tuxpaint/stamps")
PACKAGE = "tuxpaint-stamps-default"

LEAST_COLOURS = 100
MOST_FLAT = 0.15
"""A photograph has many colours (counted in 5 bits a channel) and few neighbours of exactly one colour; a
drawing is the reverse. Where the rule errs, the two lists below say what looking at the pictures said."""

PHOTOGRAPHS_ALSO = frozenset(
    {
        "animals/birds/albino_peahen",
        "animals/birds/pelican",
        "animals/insects/fly",
        "animals/lizards/iguana",
        "animals/mammals/bears/bear",
        "animals/mammals/rhino_black",
        "household/dishes/mug",
        "household/toilet",
        "plants/flowers/flower1",
        "plants/flowers/flower2",
        "plants/flowers/flower3",
        "plants/flowers/flower4",
        "plants/flowers/flower5",
        "plants/flowers/flower6",
        "plants/flowers/flower8",
        "plants/flowers/flower9",
        "plants/flowers/flower10",
        "plants/trees/birch",
        "seasonal/halloween/grave-c",
        "seasonal/halloween/grave-e",
        "seasonal/halloween/grave-j",
        "space/moon/moon_3qt",
        "space/moon/moon_crescent",
        "space/planets/1_mercury",
        "space/planets/4_mars",
        "symbols/money/us/coins/005nickel",
        "symbols/money/us/coins/010dime",
        "symbols/money/us/coins/025quarter",
        "symbols/money/us/coins/050kennedy-halfdollar",
        "town/monuments/inukshuk-photo",
        "town/roadsigns/give_way_sign",
        "town/roadsigns/xing_ped",
        "vehicles/auto/sedan",
        "vehicles/auto/sportscar2",
        "vehicles/auto/truck",
    }
)
DRAWINGS_ALSO = frozenset(
    {
        "clothes/button",
        "naturalforces/fire",
        "seasonal/easter/bluebird",
        "seasonal/easter/bunny-egg",
        "seasonal/easter/bunny",
        "seasonal/easter/butterfly",
        "seasonal/easter/chick-in-egg",
        "seasonal/easter/daffodil",
        "seasonal/newyears/fireworks2",
        "seasonal/newyears/party-hat",
        "symbols/faces/happy",
    }
)

CLASS_OF = {
    "animals/birds/albino_peahen": "peafowl",
    "animals/birds/crowned_crane": "crane bird",
    "animals/birds/duck": "drake",  # a mallard with the male's green head
    "animals/birds/gander": "goose",
    "animals/birds/hen": "hen",
    "animals/birds/peacock": "peafowl",
    "animals/birds/pink_flamingo": "flamingo",
    "animals/birds/rainbow-lorikeet": "lorikeet",
    "animals/birds/rooster": "rooster",
    "animals/fish/lionfish": "lionfish",
    "animals/insects/Brown_slug": "slug",
    "animals/insects/Woodlouse": "isopod",
    "animals/insects/mantis": "praying mantis",
    "animals/lizards/iguana": "green iguana",
    "animals/mammals/aquatic/orca": "killer whale",
    "animals/mammals/bears/european-bear": "brown bear",
    "animals/mammals/bears/toys/edward_bear": "teddy bear",
    "animals/mammals/camel/dromedary": "arabian camel",
    "animals/mammals/cats/tiger_sumatran": "tiger",
    "animals/mammals/dogs/fox": "red fox",
    "animals/mammals/pig_golden": "pig",
    "animals/mammals/pig_golden2": "pig",
    "animals/mammals/wildboar": "wild boar",
    "food/fruit/cherimoya": "cherimoya",
    "food/fruit/lemon": "lemon",
    "food/fruit/orange_seville": "orange",
    "food/fruit/sliced_orange": "orange",
    "food/vegetables/broccoli": "broccoli",
    "food/vegetables/corn": "corn",
    "food/vegetables/pepper": "bell pepper",
    "food/vegetables/yellowpepper": "bell pepper",
    "hobbies/camera_35mm": "reflex camera",
    "hobbies/music/brass/trumpet": "cornet trumpet",
    "hobbies/music/percussion/drum_tomtom_floor": "drum",
    "hobbies/music/percussion/drumkit": "drum",
    "hobbies/music/string/guitar_classical": "acoustic guitar",
    "household/dishes/mug": "coffee mug",
    "household/dishes/pitcher_small": "drink pitcher",
    "household/garbagecan": "trash can",
    "household/toilet": "toilet seat",  # its seat is to be seen
    "household/tools/paintbrush_large": "paintbrush",
    "household/tools/spade": "shovel",  # WordNet: a spade is a hand shovel
    "household/wheelie_bin": "trash can",
    "medical/bandage_adhesive": "Band-Aid",
    "medical/stethoscope": "stethoscope",
    "military/paratrooper": "parachute",
    "military/vehicles/f22_raptor": "military aircraft",
    "plants/mushrooms/cep": "bolete",
    "plants/mushrooms/cep-1": "bolete",
    "plants/mushrooms/cep-2": "bolete",
    "seasonal/candle": "candle",
    "sports/tennis_racket": "racket",
    "town/roadsigns/dead_end_sign": "traffic or street sign",
    "town/roadsigns/give_way_sign": "traffic or street sign",
    "town/roadsigns/no_entry_sign": "traffic or street sign",
    "town/roadsigns/no_uturn": "traffic or street sign",
    "town/roadsigns/railroad_crossing": "traffic or street sign",
    "town/roadsigns/school_sign": "traffic or street sign",
    "town/roadsigns/xing_ped": "traffic or street sign",
    "town/roadsigns/xing_school": "traffic or street sign",
    "town/uk_post_box": "mailbox",
    "town/usps_mailbox": "mailbox",
    "vehicles/cycle/pink_tricycle": "tricycle",
    "vehicles/flight/balloon360": "balloon",
    "vehicles/flight/planes/747": "airliner",
}
"""Stamps whose description is not itself the name of a class, reviewed one by one: the class's own word, a
breed or kind of it, or a word that WordNet's synset has too. Left out because no single class is certain from
the name: elephant, camel (two humps), rabbits, penguins, frogs, owls, oxen, horses, squirrels, ferrets."""

_ARTICLE = re.compile(r"^(a pair of|a bunch of|a head of|an?|the|some|two)\s+")


@dataclass(frozen=True)
class Stamp:
    """A photograph; ``name`` is its path below ROOT without the ending, ``label`` its class, or None."""

    name: str
    path: Path
    label: int | None

    @property
    def group(self) -> str:
        """Pictures of one thing (``cep``, ``cep-1``, ``cep-2``) share a group, and go to one set."""
        return re.sub(r"([-_]?[0-9]+|-[a-z])$", "", self.name)


def photographs(class_names: Sequence[str], root: Path = ROOT) -> list[Stamp]:
    """All stamps that are photographs, in the order of their names, each picture once.

    Raises BadInput where the package is not installed.
    """
    if not root.is_dir():
        raise BadInput(
            "looking for the photographs of the benchmark in",
            root,
            f"Debian's package {PACKAGE} is not installed",
            f"Run as root: apt-get install {PACKAGE}",
        )
    classes = class_indices(class_names)
    found: dict[str, Stamp] = {}
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root).with_suffix("").as_posix()
        if is_photograph(path, name):
            found.setdefault(sha256_file(path), Stamp(name, path, _label(path, name, classes)))
    return list(found.values())


def is_photograph(path: Path, name: str) -> bool:
    """Whether the stamp is a photograph: the lists first, then the rule. Mirrored copies are not."""
    if name in DRAWINGS_ALSO or name.endswith("_mirror") or "cartoon" in Path(name).parts:
        return False
    if name in PHOTOGRAPHS_ALSO:
        return True
    colours, flat = look(path)
    return colours >= LEAST_COLOURS and flat < MOST_FLAT


def look(path: Path) -> tuple[int, float]:
    """The number of colours in 5 bits a channel, and the share of horizontal neighbours that are equal, both
    over the pixels that are opaque (alpha above 200)."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGBA"))
    opaque = pixels[..., 3] > 200
    coarse = (pixels[..., :3] >> 3).astype(np.int32) @ np.array([1024, 32, 1], np.int32)
    both = opaque[:, 1:] & opaque[:, :-1]
    equal = np.all(pixels[:, 1:, :3] == pixels[:, :-1, :3], axis=-1) & both
    return len(np.unique(coarse[opaque])), float(equal.sum() / max(1, both.sum()))


def class_indices(names: Sequence[str]) -> dict[str, int]:
    """From a class's name, in lower case and without what it says in parentheses, to its index; names that
    two classes share are left out."""
    found: dict[str, int] = {}
    twice = set()
    for index, name in enumerate(names):
        plain = re.sub(r"\s*\(.*?\)", "", name).lower()
        twice |= {plain} & set(found)
        found[plain] = index
    return {name: index for name, index in found.items() if name not in twice}


def _label(path: Path, name: str, classes: dict[str, int]) -> int | None:
    if name in CLASS_OF:
        return classes[CLASS_OF[name].lower()]
    text = path.with_suffix(".txt")
    first = text.read_text(encoding="utf-8").split("\n", 1)[0] if text.is_file() else ""
    return classes.get(plain_words(first))


def plain_words(description: str) -> str:
    """``A “Granny Smith” apple.`` to ``granny smith apple``: the first phrase without its article."""
    words = re.sub("[“”\"']", "", description).strip().lower()
    words = re.split(r"[.,!?;:(–—]", words, maxsplit=1)[0].strip()
    return _ARTICLE.sub("", words)
