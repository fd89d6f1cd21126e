"""Pages that are written while the site is built, into ``docs/_written``.

The gallery (from ``examples/`` and what ``docs/extensions/run_examples.py`` kept of them), the
notebooks, and the tables of ``benchmarks/results``. Pages that no table of contents names are put
at the end of that of ``index.md``, and names of pages that do not exist are left out of it. Links
from a page to files of the repository, as they work where Markdown is read, lead to these pages.
"""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).parents[1]
ROOT = DOCS.parent
WRITTEN = DOCS / "_written"

GROUPS = {
    "First steps": ("first_geodesic", "your_own_metric", "world_maps"),
    "Metrics of the data space": ("density", "counts", "cells", "point_clouds"),
    "Autoencoders with a good geometry": (
        "fig13_isometric_square",
        "digits_irvae",
        "fig12_minimum_curvature",
        "fig9_10_neighborhood_reconstruction",
        "fig11_denoising_curve",
        "fig11_sparse_curve",
        "mnist_curves",
        "fisher_and_clouds",
    ),
}
ABBREVIATIONS = {"irvae", "mnist"}
BENCHMARKS = {
    "geodesics": "Geodesics, next to other packages",
    "hard_set": "Pairs with several geodesics",
    "curvature": "Curvature",
    "training": "Training",
    "zoo": "Decoders of real shape",
    "device": "On an accelerator",
}


def write(path: Path, text: str) -> None:
    """Write a page where it has changed, so that an unchanged one is not read again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text("utf-8") != text:
        path.write_text(text, "utf-8")


def fenced(language: str, text: str) -> str:
    """A block of code, in a fence that is longer than those inside."""
    longest = max((len(run) for run in re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}\n"


def example_page(path: Path) -> tuple[str, str]:
    """The title of an example, and its page: docstring, figure, what it printed, code."""
    source = path.read_text("utf-8")
    title, _, rest = (ast.get_docstring(ast.parse(source)) or path.stem).partition("\n")
    # Commands are indented in docstrings, or begin with the interpreter.
    rest = re.sub(r"(?m)^(python examples/)", r"    \1", rest)
    page = [f"# {title.rstrip('.')}\n", rest.strip("\n") + "\n"]
    if (DOCS / "gallery" / f"{path.stem}.png").exists():
        page.append(f"![{title}](../../gallery/{path.stem}.png)\n")
    printed = DOCS / "gallery" / f"{path.stem}.txt"
    if printed.exists():
        page += ["## What it prints\n", fenced("text", printed.read_text("utf-8"))]
    page += ["## Code\n", f"`examples/{path.name}`\n", fenced("python", source)]
    return title.rstrip("."), "\n".join(page)


def short(name: str) -> str:
    """A title of a few words: ``fig13_isometric_square`` is "Figure 13: isometric square"."""
    figure = re.fullmatch(r"fig(\d+(?:_\d+)*)_(.+)", name)
    words = (figure[2] if figure else name).split("_")
    text = " ".join(word.upper() if word in ABBREVIATIONS else word for word in words)
    if figure is None:
        return text[0].upper() + text[1:]
    return f"Figure {figure[1].replace('_', ', ')}: {text}"


def gallery() -> None:
    """A page for every example, and one that shows them all."""
    examples = sorted(p for p in (ROOT / "examples").glob("*.py") if not p.stem.startswith("_"))
    titles = {}
    for path in examples:
        titles[path.stem], page = example_page(path)
        write(WRITTEN / "gallery" / f"{path.stem}.md", page)
    named = {name for names in GROUPS.values() for name in names}
    groups = {**GROUPS, "More": tuple(sorted(set(titles) - named))}
    lines = [
        "# Gallery\n",
        "Each example is a script in `examples/`; `--quick` makes it a test of seconds.\n",
    ]
    for group, names in groups.items():
        present = [name for name in names if name in titles]
        if not present:
            continue
        lines += [f"## {group}\n", "::::{grid} 1 2 3 3\n:gutter: 3\n"]
        for name in present:
            lines += [f":::{{grid-item-card}} {titles[name]}", f":link: gallery/{name}"]
            lines += [":link-type: doc"]
            if (DOCS / "gallery" / f"{name}.png").exists():
                lines += [f":img-bottom: ../gallery/{name}.png"]
            lines += [":::\n"]
        lines += ["::::\n"]
    entries = [f"{short(name)} <gallery/{name}>" for name in titles]
    lines += ["```{toctree}\n:hidden:\n", *entries, "```\n"]
    write(WRITTEN / "gallery.md", "\n".join(lines))


def notebook_page(path: Path) -> str:
    """A notebook with its outputs as a page."""
    cells = json.loads(path.read_text("utf-8"))["cells"]
    page = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            page.append(re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.md)", source) + "\n")
            continue
        page.append(fenced("python", source))
        for place, output in enumerate(cell["outputs"]):
            page.append(shown(output, WRITTEN / "notebooks" / f"{path.stem}_{number}_{place}.png"))
    page.append(f"{{download}}`The notebook itself <../../notebooks/{path.name}>`\n")
    return "\n".join(page)


def shown(output: dict[str, Any], picture: Path) -> str:
    """One output of a cell; a picture is written to a file."""
    data = output.get("data", {})
    if "image/png" in data:
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(base64.b64decode(data["image/png"]))
        return f"![What the cell above draws]({picture.name})\n"
    text = output.get("text") or data.get("text/plain") or output.get("traceback", "")
    return fenced("text", "".join(text))


def notebooks() -> None:
    """A page for every notebook."""
    for path in sorted((DOCS / "notebooks").glob("*.ipynb")):
        write(WRITTEN / "notebooks" / f"{path.stem}.md", notebook_page(path))


def benchmarks() -> None:
    """A page for every table that ``make bench`` and its relatives have written."""
    present = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    entries = []
    for name in [*BENCHMARKS, *(p.stem for p in present if p.stem not in BENCHMARKS)]:
        if not any(path.stem == name for path in present):
            continue
        include = f"```{{include}} ../../../benchmarks/results/{name}.md\n:relative-images:\n```\n"
        write(WRITTEN / "benchmarks" / f"{name}.md", include)
        title = BENCHMARKS.get(name)
        entry = f"benchmarks/{name}"
        entries.append(f"{title} <{entry}>" if title else entry)
    text = (
        "# Tables\n\nWhat `make bench`, `python -m benchmarks.zoo` and `make device` have written,"
        " whole.\n\n```{toctree}\n:maxdepth: 1\n\n" + "\n".join(entries) + "\n```\n"
    )
    write(WRITTEN / "tables.md", text)


def write_all(app: Sphinx, config: Any) -> None:
    """Before pages are looked for."""
    gallery()
    notebooks()
    benchmarks()


LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?:\.\./|notebooks/)[^)\s#]*|\w+\.md)(#[^)\s]*)?\)")


def is_planned(file: str) -> bool:
    """Whether a page does not exist yet, and the contents already name it."""
    entry = f"\n{file.removesuffix('.md')}\n"
    return not (DOCS / file).exists() and entry in (DOCS / "index.md").read_text("utf-8")


def page_of(file: str) -> str | None:
    """The page that shows a file of the repository; None where there is none."""
    path = Path(file)
    if file.rstrip("/") in ("../examples", "../benchmarks/results"):
        return "_written/gallery.md" if "examples" in file else "_written/tables.md"
    if file == "../README.md":
        return "index.md"
    folders = {"examples": "gallery", "results": "benchmarks", "notebooks": "notebooks"}
    page = f"_written/{folders.get(path.parent.name)}/{path.stem}.md"
    return page if (DOCS / page).exists() else None


def lead_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links of a page of ``docs`` to files outside lead to their pages, or are left as text."""
    if "/" in docname:
        return

    def replaced(found: re.Match[str]) -> str:
        if "/" not in found[2]:
            return found[1] if is_planned(found[2]) else found[0]
        page = page_of(found[2])
        return found[1] if page is None else f"[{found[1]}]({page}{found[3] or ''})"

    source[0] = LINK.sub(replaced, source[0])


def complete_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """The table of contents of ``index.md`` names the pages that exist, and all of them."""
    if docname != "index":
        return
    lines, named, inside = [], {"index"}, False
    for line in source[0].splitlines():
        inside = line.startswith("```{toctree}") or (inside and not line.startswith("```"))
        entry = re.fullmatch(r"[\w/]+", line) if inside else None
        if entry is not None:
            named.add(line)
        if entry is None or (DOCS / f"{line}.md").exists():
            lines.append(line)
    rest = sorted({path.stem for path in DOCS.glob("*.md")} - named)
    more = ["```{toctree}", ":hidden:", ":caption: More", "", *rest, "```"] if rest else []
    source[0] = "\n".join([*lines, "", *more]) + "\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Write pages first, and mend the table of contents when it is read."""
    app.connect("config-inited", write_all)
    app.connect("source-read", complete_contents)
    app.connect("source-read", lead_to_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
