"""Put what `make demo` printed into README.md, between the two markers.

.venv/bin/edgekiln build examples/efficientnet_lite0/job.toml | .venv/bin/python scripts/demo_in_readme.py
"""

import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- demo table: begin -->", "<!-- demo table: end -->"


def main() -> int:
    """Read the build's output from standard input; keep its table and what stands under it."""
    lines = [line.rstrip() for line in sys.stdin.read().strip("\n").splitlines()]
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    shown = "\n".join(["", "```text", *lines, "```", ""])
    README.write_text(f"{before}{BEGIN}{shown}{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
