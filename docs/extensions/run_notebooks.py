"""Run the notebooks of the documentation and keep what they show.

    pip install nbclient ipykernel
    python docs/extensions/run_notebooks.py

The site shows them as they are kept. Tests run their cells without a kernel.
"""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
KEPT = {"kernelspec", "language_info"}


def main() -> None:
    """Run all of them in place."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
        for cell in notebook.cells:
            cell.metadata = {}
        notebook.metadata = {k: v for k, v in notebook.metadata.items() if k in KEPT}
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(path.name, f"{path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
