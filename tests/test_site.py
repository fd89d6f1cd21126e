"""The documentation names everything that is public, and its maps lead somewhere.

``make docs`` builds the site; what can be said without building it is tested here.
"""

import importlib
import json
import pkgutil
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
API = {path.stem: path.read_text("utf-8") for path in sorted((DOCS / "api").glob("*.md"))}
DIRECTIVES = re.findall(
    r"^\.\. (?:auto(\w+)|py:\w+):: ([\w.]+)(?:\n   :(members):)?", "\n".join(API.values()), re.M
)
WHOLE = {name for kind, name, members in DIRECTIVES if kind == "module" and members}
NAMED = {name for _, name, _ in DIRECTIVES}
# Packages that hold parts of the house and no names for users; the command line has pages.
INTERNAL = ("numerics", "geometry", "distributions", "cli", "solvers.methods", "solvers.flows")
INTERNAL += ("differential.modes", "differential.rules")


def public_modules():
    """Modules for users: riemae, and those of its packages that have a table of names."""
    yield riemae
    for found in pkgutil.walk_packages(riemae.__path__, "riemae."):
        inner = found.name.removeprefix("riemae.")
        if inner.startswith(INTERNAL) or inner.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(found.name)
        if hasattr(module, "__all__"):
            yield module


PUBLIC = [(m.__name__, name) for m in public_modules() for name in m.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[".".join(pair) for pair in PUBLIC])
def test_every_public_name_is_in_the_api(module, name):
    if name.startswith("__"):
        return
    full = f"{module}.{name}"
    known = {module, full, f"riemae.{name}"}  # a package may hand on the name of a module below it
    assert known & (WHOLE | NAMED) or any(page.startswith(f"{full}.") for page in WHOLE | NAMED), (
        f"add {full} to a page in docs/api"
    )


def test_every_method_of_a_manifold_is_in_the_api():
    methods = {name for name in vars(riemae.Manifold) if not name.startswith("_")}
    named = {name.rpartition(".")[2] for name in NAMED if name.startswith("riemae.Manifold.")}
    assert methods == named


def attribute(path):
    """What a dotted name means: an attribute, or a module."""
    try:
        return reduce(getattr, path.split(".")[1:], riemae)
    except AttributeError:
        return importlib.import_module(path)


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


def test_a_missing_name_is_noticed():
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        attribute("riemae.solvers.Simplex")


def test_every_page_of_the_api_is_in_its_contents():
    listed = API["index"].rpartition("```{toctree}")[2].split()
    assert set(API) - {"index"} <= set(listed)


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
        if file.startswith("_written/"):  # made while the site is built
            kind, name = Path(file).parent.name, Path(file).stem
            sources = {
                "gallery": ROOT / "examples" / f"{name}.py",
                "notebooks": DOCS / "notebooks" / f"{name}.ipynb",
                "benchmarks": ROOT / "benchmarks" / "results" / f"{name}.md",
            }
            assert sources[kind].exists() if kind in sources else name in {"gallery", "tables"}
        else:
            assert (path.parent / file).exists(), target


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
