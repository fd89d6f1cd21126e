"""Approximate neighbours, by pynndescent, against exact ones."""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from spaces import rand

from riemae import solvers
from riemae.autoencoders.neighborhood import Neighborhood
from riemae.exceptions import GraphError

FLAT = solvers.MetricSpace(lambda z: torch.eye(z.shape[-1]).to(z).expand(len(z), -1, -1))


def neighborhoods_find_nearly_all():
    x = torch.randn(600, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hood = Neighborhood.nearest(x, 10, approximate=True, generator=1)
    _, exact = NearestNeighbors(n_neighbors=10).fit(x.numpy()).kneighbors()
    hits = sum(len(set(hood.of(i).tolist()) & set(exact[i].tolist())) for i in range(600))
    assert hits > 0.9 * 6000
    assert all(i not in hood.of(i) for i in range(600))
    assert (hood.degree == 10).all()
    again = Neighborhood.nearest(x, 10, approximate=True, generator=1)
    assert torch.equal(hood.neighbors, again.neighbors)


def graphs_find_nearly_all():
    def edges(search):
        graph = solvers.graph(FLAT, z, k=8, coordinates=coordinates, search=search)
        return {(int(i), int(j)) for i, j in np.argwhere(graph.adjacency.toarray()) if i < j}

    generator = torch.Generator().manual_seed(9)
    z, coordinates = rand(generator, 600, 2), rand(generator, 600, 20)
    exact, found = edges("tree"), edges("approximate")
    assert len(exact & found) > 0.95 * len(exact)
    assert edges("approximate") == found


# A single test, because numba compiles for most of a minute at the first search of a process.
@pytest.mark.skipif(
    not os.environ.get("RIEMAE_THOROUGH"), reason="a minute of compiling: see the stand-in below"
)
@pytest.mark.filterwarnings("ignore")  # numba's and pynndescent's own
def test_nearly_all_neighbours_are_found():
    pytest.importorskip("pynndescent")
    neighborhoods_find_nearly_all()
    graphs_find_nearly_all()


class Descent:
    """As ``pynndescent.NNDescent``, but exact, except for a share of neighbours that it misses."""

    missing = 0.0

    def __init__(self, data, n_neighbors, random_state):
        assert random_state is not None  # otherwise it draws anew in every call
        apart, found = NearestNeighbors(n_neighbors=n_neighbors).fit(data).kneighbors()
        own = np.arange(len(data))[:, None]
        found = np.concatenate([own, found[:, :-1]], 1)
        places = np.random.default_rng(0).permutation(found.size)
        found.flat[places[: int(self.missing * found.size)]] = -1
        self.neighbor_graph = found, apart


@pytest.fixture
def descent(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynndescent", SimpleNamespace(NNDescent=Descent))
    return monkeypatch


@pytest.mark.usefixtures("descent")
def test_what_the_search_finds_is_taken_over():
    neighborhoods_find_nearly_all()
    graphs_find_nearly_all()


def test_neighbours_that_the_search_misses(descent):
    descent.setattr(Descent, "missing", 0.01)
    graphs_find_nearly_all()  # a graph has fewer edges then
    with pytest.raises(GraphError, match=r"10 neighbours for every sample, got fewer"):
        neighborhoods_find_nearly_all()
