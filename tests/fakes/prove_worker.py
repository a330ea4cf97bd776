"""The real worker with the fake engine in its table: ``python tests/fakes/prove_worker.py``."""

from edgekiln.engines import ENGINES
from edgekiln.prove.worker import main

ENGINES["fake"] = "prove_engine"

if __name__ == "__main__":
    main()
