"""``python -m edgekiln`` is the command line."""

import sys

from edgekiln.cli import main

sys.exit(main())
