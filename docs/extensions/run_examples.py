"""Run the examples and keep their figures and tables for the gallery of the documentation.

    python docs/extensions/run_examples.py                 # all of them; about half an hour
    python docs/extensions/run_examples.py world_maps

Figures are made smaller and get a palette, because they are part of the repository.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
WIDTH = 1000  # pixels
COLOURS = 128


def keep(name: str, printed: str, folder: Path) -> None:
    """Keep what an example has printed, and its figure if there is one."""
    GALLERY.mkdir(parents=True, exist_ok=True)
    lines = [line for line in printed.splitlines() if not line.startswith("Figure: ")]
    (GALLERY / f"{name}.txt").write_text("\n".join(lines).strip() + "\n", "utf-8")
    figure = folder / f"{name}.png"
    if not figure.exists():
        return
    with Image.open(figure) as image:
        picture = image.convert("RGB")
    if picture.width > WIDTH:
        height = round(picture.height * WIDTH / picture.width)
        picture = picture.resize((WIDTH, height), Image.Resampling.LANCZOS)
    picture = picture.quantize(COLOURS, dither=Image.Dither.NONE)
    picture.save(GALLERY / f"{name}.png", optimize=True)


def main() -> None:
    """Run the examples that are named, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="all by default")
    names = parser.parse_args().names
    for path in sorted((ROOT / "examples").glob("*.py")):
        if path.stem.startswith("_") or (names and path.stem not in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(path), "--out", folder]
            run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            keep(path.stem, run.stdout, Path(folder))
        print(path.stem, flush=True)


if __name__ == "__main__":
    main()
