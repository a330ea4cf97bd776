"""``edgekiln verify``: is a bundle whole, and does its artifact still give what was recorded?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec.structs import replace
from numpy.typing import NDArray

from edgekiln.bundle import GOLDEN_FOLDER
from edgekiln.bundle.unpack import opened
from edgekiln.engines import Arrays, Runner
from edgekiln.errors import BadInput, EdgekilnError
from edgekiln.prove import golden
from edgekiln.records import Record
from edgekiln.runtime.once import open_runner


class Verification(Record, frozen=True, kw_only=True):
    """``files`` were all checked by hash. ``golden`` is None where it could not be run (``reason``);
    ``problems`` names each output that moved beyond its tolerance. ``signed`` is False: nothing is yet."""

    device: str
    artifact: str
    files: int
    golden: bool | None
    problems: tuple[str, ...] = ()
    reason: str = ""
    engine: str = ""
    signed: bool = False


def verify(path: Path, threads: int = 2) -> Verification:
    """Check hashes and manifest, then run the golden inputs. BadInput for a bundle that is not whole."""
    with opened(path) as held:
        manifest = held.manifest
        found = Verification(
            device=manifest.device, artifact=manifest.artifact.id, files=len(manifest.files), golden=None
        )
        if manifest.golden is None:
            return replace(found, reason="the bundle records no golden outputs")
        try:
            runner, note = open_runner(held, threads)
        except EdgekilnError as error:
            return replace(found, reason=f"{error.why}. {error.cure}")
        try:
            problems = golden.check(manifest.golden, held.folder / GOLDEN_FOLDER, _careful(runner, path))
        finally:
            runner.close()
        engine = note or manifest.artifact.engine
        return replace(found, golden=not problems, problems=tuple(problems), engine=engine)


def _careful(runner: Runner, bundle: Path) -> Runner:
    """``runner``, whose engine's own exceptions become BadInput: recorded inputs come from a stranger."""

    class Careful:
        def __call__(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
            try:
                return runner(inputs)
            except Exception as error:
                why = f"its artifact does not take its recorded inputs ({str(error).strip()[:300]})"
                cure = "Do not use it: fetch it again from its source, or build it again"
                raise BadInput("running the golden inputs of", bundle, why, cure) from error

        def close(self) -> None:
            runner.close()

    return Careful()
