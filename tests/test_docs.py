"""The pages of the documentation run, each block after the first one of its page."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Run by a test of their own.
ELSEWHERE = {"recipes"}
# Packages that pages may show and that not every installation has.
OPTIONAL = {"anndata", "diffusers", "pandas", "pythae", "scanpy", "scvi", "transformers"}
PAGES = {
    page: re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M)
    for page in DOCS.glob("*.md")
    if page.stem not in ELSEWHERE
}
README = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.S | re.M)
BLOCKS = [
    (page.stem, i, blocks)
    for page, blocks in sorted(PAGES.items())
    for i in range(max(1, len(blocks) - 1))
]


@pytest.mark.parametrize(
    ("page", "number", "blocks"), BLOCKS, ids=[f"{page}-{i}" for page, i, _ in BLOCKS]
)
def test_block_runs_after_the_first(page, number, blocks, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write figures
    with torch.random.fork_rng():
        names = {"__name__": "__main__"}
        for block in blocks[:1] + blocks[number + 1 : number + 2]:
            try:
                exec(compile(block, f"docs/{page}.md", "exec"), names)
            except ModuleNotFoundError as reason:
                if reason.name not in OPTIONAL:
                    raise
                pytest.skip(f"{reason.name} is not installed")
    assert "nan" not in capsys.readouterr().out


def test_the_readme_runs_from_top_to_bottom(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # it writes figures and reports
    with torch.random.fork_rng():
        names = {"__name__": "__main__"}
        for block in README:
            exec(compile(block, "README.md", "exec"), names)
    assert "nan" not in capsys.readouterr().out


def test_every_ambient_metric_has_its_example():
    from riemae import ambient

    text = (DOCS / "ambient.md").read_text("utf-8")
    assert all(
        f"ambient.{name}" in text
        for name in ambient.__all__
        if name not in ("ShapedMetric", "as_ambient")
    )


def test_the_four_forms_are_one_metric():
    blocks = PAGES[DOCS / "ambient.md"]
    names = {}
    with torch.random.fork_rng():
        exec(blocks[0], names)
        exec(next(block for block in blocks if block.startswith("forms = ")), names)
    M = [
        names["Manifold"](names["decoder"], names["ambient"].Custom(**{n: f}))
        for n, f in names["forms"].items()
    ]
    for other in M[1:]:
        torch.testing.assert_close(other.metric(names["z0"]), M[0].metric(names["z0"]))
