"""The real worker in a control group: ``python tests/fakes/grouped_worker.py CGROUP_PROCS``."""

import os
import sys
from pathlib import Path

from edgekiln.prove.worker import main

if __name__ == "__main__":
    Path(sys.argv[1]).write_text(str(os.getpid()))
    main()
