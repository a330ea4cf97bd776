"""Put the two photographs of text that come inside scikit-image into build/pp-ocr/pages."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

PAGES = Path(__file__).resolve().parents[2] / "build" / "pp-ocr" / "pages"


def main() -> int:
    """Copy them; the pictures stay out of the repository."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        print("scikit-image is not installed: run make setup", file=sys.stderr)
        return 2
    PAGES.mkdir(parents=True, exist_ok=True)
    for name in ("page.png", "text.png"):
        shutil.copyfile(Path(spec.origin).parent / "data" / name, PAGES / name)
    print(f"2 pages in {PAGES.relative_to(Path.cwd()) if PAGES.is_relative_to(Path.cwd()) else PAGES}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
