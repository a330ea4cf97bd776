"""The server's side of ``edgekiln run``: which options belong together, and the link that they ask for."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from edgekiln.errors import BadInput
from edgekiln.records import Manifest
from edgekiln.runtime.hybrid import leaving
from edgekiln.runtime.hybrid.leaving import Leaving
from edgekiln.runtime.hybrid.offload import Offloader
from edgekiln.runtime.hybrid.privacy import Privacy
from edgekiln.runtime.loop import Offload
from edgekiln.runtime.vocabulary import Event, Goal, Rung

WITH_SERVER = (
    *("server_model", "server_quality", "server_ca", "server_proxy"),
    *("privacy", "most_pixels", "split"),
)
"""Options that mean nothing without ``--server``."""


def check_options(given: argparse.Namespace) -> None:
    """Raise BadInput for options of a server without one, and for those that the privacy rule has no use
    for."""
    reading = "reading"
    if given.server is None:
        for name in WITH_SERVER:
            if getattr(given, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise BadInput(reading, option, "it belongs to --server", "Add --server URL, or leave it out")
        return
    rule = given.privacy or "raw"
    if given.most_pixels is not None and rule != "reduced":
        why = f"the rule '{rule}' makes no picture smaller"
        raise BadInput(reading, "--most-pixels", why, "Add --privacy reduced, or leave it out")
    if given.split is not None and rule != "features-only":
        why = f"under the rule '{rule}' no head runs here"
        raise BadInput(reading, "--split", why, "Add --privacy features-only, or leave it out")
    if given.split is None and rule == "features-only":
        cure = "Give --split FOLDER, which edgekiln split MODEL makes"
        raise BadInput(reading, "--privacy features-only", "no split model was given", cure)
    if given.server_ca is not None and urlsplit(given.server).scheme != "https":
        why = f"{given.server} has no certificate to hold against it"
        raise BadInput(reading, "--server-ca", why, "Give the server's https:// address, or leave it out")


@contextlib.contextmanager
def leaves(given: argparse.Namespace) -> Iterator[Leaving]:
    """What leaves the machine under the rule that was given. Raises BadInput for a split model of no use."""
    if given.privacy == "features-only":
        with leaving.features(Path(given.split), given.threads) as made:
            yield made
    elif given.privacy == "reduced":
        yield leaving.reduced(given.most_pixels or Privacy(rule="reduced").most_pixels)
    else:
        yield leaving.raw()


def offload(given: argparse.Namespace, goal: Goal, form: Leaving) -> Offload | None:
    """The server's side, connected and compared with the bundle; None where no server was given."""
    if given.server is None:
        return None

    @contextlib.contextmanager
    def made(
        manifest: Manifest, ladder: Sequence[Rung], tell: Callable[[Event], None]
    ) -> Iterator[Offloader]:
        from edgekiln.runtime.hybrid.client import Client, Server
        from edgekiln.runtime.hybrid.offload import OffloadRules
        from edgekiln.runtime.hybrid.remote import connect

        takes = form.takes(manifest)
        quality = 1.0 if given.server_quality is None else given.server_quality
        rules = OffloadRules(
            mode=goal.mode,
            gain=max(0.0, quality - ladder[0].quality),
            edge_ms=ladder[0].expected_ms,
            percentile=goal.percentile,
        )
        server = Server(url=given.server, ca_file=given.server_ca, proxy=given.server_proxy)
        cure = form.serve if given.server_model else f"{form.serve} with --server-model"
        with contextlib.closing(Client(server)) as client:
            model = connect(client, given.server_model or manifest.model, takes, cure=cure)
            with contextlib.closing(Offloader(model, form.privacy, rules, tell)) as offloader:
                yield offloader

    return made
