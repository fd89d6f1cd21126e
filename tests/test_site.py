"""The documentation names everything that is public, and its maps lead somewhere.

``make docs`` builds the site; what can be said without building it is tested here.
"""

import importlib
import importlib.util
import json
import re
from functools import reduce
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

import riemae
from riemae.solvers import HINTS, Status

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def extension(name):
    """A module of ``docs/extensions``, which are not installed."""
    spec = importlib.util.spec_from_file_location(name, DOCS / "extensions" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api_pages = extension("api_pages")
check_site = extension("check_site")
written_pages = extension("written_pages")
NAMED, WHOLE = api_pages.placed()
ALSO = {line.split(":: ")[1].split()[0] for v in api_pages.unplaced().values() for line in v}
PUBLIC = [(m.__name__, name) for m in api_pages.public_modules() for name in m.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[".".join(pair) for pair in PUBLIC])
def test_every_public_name_is_in_the_api(module, name):
    full = f"{module}.{name}"
    pages = WHOLE | NAMED | ALSO
    inside = any(page.startswith(f"{full}.") for page in pages)  # a module, by what is in it
    known = bool({full, f"riemae.{name}"} & pages)  # riemae may hand it on
    assert name.startswith("__") or module in WHOLE or known or inside


def test_every_method_of_a_manifold_is_in_the_api():
    methods = {name for name in vars(riemae.Manifold) if not name.startswith("_")}
    start = "riemae.Manifold."
    assert methods == {n.removeprefix(start) for n in NAMED | ALSO if n.startswith(start)}


def test_a_new_name_comes_to_the_page_of_its_package(monkeypatch):
    def simplex():
        pass

    monkeypatch.setattr(riemae.solvers, "simplex", simplex, raising=False)
    monkeypatch.setattr(riemae.solvers, "__all__", [*riemae.solvers.__all__, "simplex"])
    monkeypatch.setattr(riemae.Manifold, "simplex", simplex, raising=False)
    found = api_pages.unplaced()
    assert ".. autofunction:: riemae.solvers.simplex" in found["solvers"]
    assert ".. automethod:: riemae.Manifold.simplex" in found["manifold"]


@pytest.mark.parametrize("name", sorted(WHOLE | NAMED))
def test_what_the_api_names_exists(name):
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        assert reduce(getattr, parts[length:], module) is not None
        return


def test_every_page_of_the_api_is_in_its_contents():
    listed = (DOCS / "api" / "index.md").read_text("utf-8").rpartition("```{toctree}")[2].split()
    assert {path.stem for path in (DOCS / "api").glob("*.md")} - {"index"} <= set(listed)


class TestCheckedSite:
    """What ``make docs`` says of a site that needs a network, or has dead links."""

    def faults(self, folder, body):
        (folder / "a.html").write_text(f"<html><body>{body}</body></html>", "utf-8")
        (folder / "b.html").write_text("<h1 id='here'>B</h1>", "utf-8")
        pages = check_site.read(folder)
        return check_site.remote(folder, pages) + check_site.dead(folder, pages)

    def test_a_good_site(self, tmp_path):
        body = (
            '<a href="b.html#here">b</a> <a href="https://example.org">out</a> <a href="#">up</a>'
        )
        assert self.faults(tmp_path, body) == []

    @pytest.mark.parametrize(
        ("body", "fault"),
        [
            ('<script src="https://cdn.example.org/x.js"></script>', "loads https://cdn"),
            ('<img src="//example.org/x.png">', "loads //example"),
            ('<a href="c.html">c</a>', "does not exist"),
            ('<a href="b.html#there">b</a>', "no such anchor"),
            ('<img src="missing.png">', "does not exist"),
        ],
    )
    def test_a_fault_is_named(self, tmp_path, body, fault):
        (found,) = self.faults(tmp_path, body)
        assert found.startswith("a.html")
        assert fault in found

    def test_a_style_sheet_that_loads_a_font(self, tmp_path):
        (tmp_path / "s.css").write_text("@import url('https://fonts.example.org/f.css');", "utf-8")
        assert "s.css loads https://fonts" in self.faults(tmp_path, "")[0]


class TestWrittenPages:
    def test_contents_name_the_pages_that_exist_and_all_of_them(self, tmp_path, monkeypatch):
        for name in ("index", "first", "forgotten"):
            (tmp_path / f"{name}.md").write_text("# A page\n", "utf-8")
        monkeypatch.setattr(written_pages, "DOCS", tmp_path)
        source = ["absent\n```{toctree}\n:hidden:\n\nfirst\nabsent\n```\n"]
        written_pages.complete_contents(None, "index", source)
        head, first, more = source[0].split("```{toctree}")
        assert head == "absent\n"  # what is no entry stays
        assert "first" in first
        assert "absent" not in first
        assert more.split() == [":hidden:", ":caption:", "More", "forgotten", "```"]

    def test_links_to_the_repository_lead_to_pages(self, tmp_path, monkeypatch):
        page = tmp_path / "_written" / "gallery" / "world_maps.md"
        page.parent.mkdir(parents=True)
        page.write_text("# Maps\n", "utf-8")
        (tmp_path / "index.md").write_text("```{toctree}\nlater\n```\n", "utf-8")
        monkeypatch.setattr(written_pages, "DOCS", tmp_path)
        source = [
            "[e](later.md) [f](never.md) "
            "[a](../examples/world_maps.py) [b](../README.md#x) [c](../LICENSE) ![d](../e.png)"
        ]
        written_pages.lead_to_pages(None, "page", source)
        assert source == [
            "e [f](never.md) [a](_written/gallery/world_maps.md) [b](index.md#x) c ![d](../e.png)"
        ]

    def test_an_example_has_its_text_figure_and_code(self):
        title, page = written_pages.example_page(ROOT / "examples" / "density.py")
        assert page.startswith(f"# {title}\n")
        assert "](../../gallery/density.png)" in page
        assert "## What it prints" in page
        assert "ambient.Density" in page

    def test_a_notebook_has_its_outputs(self, tmp_path, monkeypatch):
        monkeypatch.setattr(written_pages, "WRITTEN", tmp_path)
        page = written_pages.notebook_page(DOCS / "notebooks" / "quickstart.ipynb")
        pictures = list((tmp_path / "notebooks").glob("*.png"))
        assert pictures
        assert all(f"({picture.name})" in page for picture in pictures)
        assert "condition number" in page


class TestStatuses:
    page = (DOCS / "not_converged.md").read_text("utf-8")

    @pytest.mark.parametrize("status", list(Status), ids=lambda s: s.name)
    def test_every_status_has_a_section_and_a_row(self, status):
        assert f"\n## {status.name}\n" in self.page
        assert f"| [{status.name}](#{status.name.lower().replace('_', '-')}) |" in self.page

    @pytest.mark.parametrize("status", list(Status), ids=lambda s: s.name)
    def test_every_hint_is_there_word_for_word(self, status):
        section = self.page.partition(f"\n## {status.name}\n")[2].partition("\n## ")[0]
        assert HINTS[status] in " ".join(section.split())

    @pytest.mark.parametrize("status", list(Status), ids=lambda s: s.name)
    def test_the_examples_show_the_status_that_they_are_about(self, status, capsys):
        blocks = re.findall(r"^```python\n(.*?)^```", self.page, re.S | re.M)
        section = self.page.partition(f"\n## {status.name}\n")[2].partition("\n## ")[0]
        mine = re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)
        with torch.random.fork_rng():
            names = {"__name__": "__main__"}
            exec(blocks[0], names)
            capsys.readouterr()
            for block in mine:
                exec(block, names)
        if mine and status is not Status.ABSENT:
            assert status.name.lower() in capsys.readouterr().out
        if status is Status.ABSENT:
            assert Status.ABSENT in names["r"].alternatives.status


class TestPaperMap:
    page = (DOCS / "paper_map.md").read_text("utf-8")

    def test_every_equation_has_a_row(self):
        rows = "\n".join(line for line in self.page.splitlines() if line.startswith("| ("))
        first = [line.split("|")[1] for line in rows.splitlines()]
        numbers = set()
        for cell in first:
            found = [int(n) for n in re.findall(r"\d+", cell)]
            numbers |= set(range(found[0], found[-1] + 1)) if "to" in cell else set(found)
        assert numbers == set(range(1, 22))

    def test_every_equation_that_docstrings_cite_is_in_it(self):
        cited = set()
        for folder in (ROOT / "riemae", ROOT / "solvers"):
            for path in folder.rglob("*.py"):
                for found in re.findall(
                    r"[Ee]quations? (\d+)(?: (?:to|and) (\d+))?", path.read_text("utf-8")
                ):
                    cited |= {int(n) for n in found if n}
        assert {3, 10, 16} <= cited <= set(range(1, 22))

    def test_what_it_names_exists(self):
        table = self.page.partition("## Notation")[0] + self.page.partition("## Further")[2]
        names = set(re.findall(r"`(?:riemae\.)?((?:[a-z_]+\.|Manifold\.)[A-Za-z_]+)[`(]", table))
        assert len(names) > 25
        for name in names:
            first, _, rest = name.partition(".")
            start = {"losses": "riemae.autoencoders.losses"}.get(first, f"riemae.{first}")
            found = riemae.Manifold if first == "Manifold" else importlib.import_module(start)
            assert reduce(getattr, rest.split("."), found) is not None

    def test_its_files_exist(self):
        files = re.findall(r"`((?:riemae|solvers)/[\w/]+\.py)`", self.page)
        assert len(files) > 20
        assert all((ROOT / file).is_file() for file in files)


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_links_and_pictures_of_a_page_exist(path):
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file = target.partition("#")[0]
        if not file or "://" in file:
            continue
        assert (path.parent / file).exists() or written_pages.is_planned(file), target


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert "://" in target or (ROOT / target).exists(), target


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_was_kept_as_it_ran(path, capsys, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"]
    assert any("image/png" in o.get("data", {}) for cell in code for o in cell["outputs"])
    before = mpl.get_backend()
    mpl.use("Agg")
    try:
        with torch.random.fork_rng():
            names = {"__name__": "__main__"}
            for cell in code:
                exec(compile("".join(cell["source"]), path.name, "exec"), names)
    finally:
        mpl.pyplot.close("all")
        mpl.use(before)
    assert "nan" not in capsys.readouterr().out
