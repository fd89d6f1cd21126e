"""The page on the command line: its commands run as printed, in the order of the page."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import COLUMNS, call, strictly, write_table

from riemae.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.S | re.M)
CELLS = "cells.h5ad"


@pytest.fixture
def home(tmp_path, monkeypatch, iris):
    """A folder with the files that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    flowers = {name: iris[name] for name in (*COLUMNS, "species")}
    write_table(tmp_path / "flowers.csv", flowers)
    x = np.array([iris[name] for name in COLUMNS]).T
    # Principal components, with a little noise that tells equal flowers apart.
    x = x - x.mean(0)
    plane = x @ np.linalg.svd(x, full_matrices=False)[2][:2].T
    plane += np.random.default_rng(0).normal(scale=1e-2, size=plane.shape)
    write_table(tmp_path / "coords.csv", {"pc1": plane[:, 0], "pc2": plane[:, 1]})
    code = re.findall(r"^```python\n(.*?)^```", PAGE, re.S | re.M)
    (tmp_path / "decoder.py").write_text("\n".join(code))
    yield tmp_path
    sys.modules.pop("decoder", None)


def write_cells(path):
    anndata = pytest.importorskip("anndata")
    pandas = pytest.importorskip("pandas")
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(0)
    kinds = rng.integers(0, 2, 60)
    means = rng.gamma(2.0, 1.0, (2, 12))
    names = [f"cell{i}" for i in range(60)]
    adata = anndata.AnnData(
        csr_matrix(rng.poisson(means[kinds]).astype(np.float32)),
        obs=pandas.DataFrame({"type": pandas.Categorical.from_codes(kinds, ["B", "T"])}, names),
        var=pandas.DataFrame(index=[f"gene{i}" for i in range(12)]),
    )
    adata.write_h5ad(path)


def run(line):
    """One command; what goes to a file with ``>`` is written there."""
    command, _, target = line.partition(" > ")
    words = shlex.split(command)
    assert words[0] == "riemae"
    r = call(*words[1:])
    assert r.exit_code == 0, (line, r.stdout, r.stderr, r.exception)
    if target:
        Path(target.strip()).write_text(r.stdout)


def test_every_command_runs_as_printed(home):
    lines = [line for block in BLOCKS for line in block.splitlines()]
    assert len(lines) > 15
    for line in lines:
        if "cells" not in line:
            run(line)
    for name in ("flowers.html", "judged.html", "curves.npz", "edges.csv", "digits/codes.csv"):
        assert (home / name).stat().st_size > 100
    assert strictly((home / "geodesic.json").read_text())["converged"] == [True]


def test_cells(home):
    write_cells(home / CELLS)
    for line in (line for block in BLOCKS for line in block.splitlines() if "cells" in line):
        run(line)
    found = pytest.importorskip("anndata").read_h5ad(home / "neighbors.h5ad")
    assert found.obsm["X_riemae"].shape == (60, 2)
    assert found.obsp["distances"].shape == (60, 60)
    assert (found.obsp["distances"].getnnz(1) == 10).all()
    assert found.uns["neighbors"]["connectivities_key"] == "connectivities"


def test_the_page_knows_every_command_and_every_method():
    from riemae.cli.commands.train import METHODS

    assert all(f"| `{name}` |" in PAGE for name in main.commands)
    assert all(name in PAGE for name in METHODS)
