"""``python -m edgekiln.arrcoc.train INTO`` trains scorer and reader from nothing, keeps the checkpoint."""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path

import torch

from edgekiln.arrcoc.checkpoint import VERSION, About, save
from edgekiln.arrcoc.training import Course, train
from edgekiln.arrcoc.words import VOCABULARY


def main() -> None:
    """Runs the four stages; ``--share`` makes all of them shorter, for a try."""
    parser = argparse.ArgumentParser(prog="python -m edgekiln.arrcoc.train", description=__doc__)
    parser.add_argument("into", type=Path, help="the checkpoint, *.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the scenes of each stage")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    full = Course(threads=given.threads)
    course = Course(
        crop=int(full.crop * given.share),
        score=int(full.score * given.share),
        read=int(full.read * given.share),
        joint=int(full.joint * given.share),
        threads=given.threads,
    )
    began = time.monotonic()
    scorer, reader = train(given.seed, course, lambda line: print(line, flush=True))
    about = About(
        version=VERSION,
        seed=given.seed,
        command=f"python -m edgekiln.arrcoc.train --seed {given.seed} --share {given.share:g}",
        made=datetime.datetime.now(datetime.UTC).date().isoformat(),
        torch=str(torch.__version__),
        scenes=course.crop + course.score + course.read + course.joint,
        seconds=round(time.monotonic() - began, 1),
        words=" ".join(VOCABULARY),
    )
    save(given.into, scorer, reader, about)
    print(f"{given.into}: {about.scenes} scenes in {about.seconds:.0f} s")


if __name__ == "__main__":
    main()
