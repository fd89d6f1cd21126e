"""Neighbours where distances are known exactly: closed forms, and geoopt's distances."""

import geoopt
import numpy as np
import pytest
import torch
from closed_forms import CLOSED_FORMS
from spaces import rand, sphere

from riemae import Manifold
from riemae.ambient import Geoopt
from riemae.solvers import neighbors, radius_neighbors

F64 = torch.float64
N, K = 14, 3
SPACES = {s.name: s for s in CLOSED_FORMS}
# Under a metric tensor alone there is no bound, so that all points have to be candidates.
NAMES = ("cone", "categorical", "rotations", "SPD(2)", "S² x H² x R", "poincaré ball, m=5")


def cholesky(z):  # (k, 3) -> (k, 2, 2)
    a, b, c = z.unbind(-1)
    factor = torch.stack([a.exp(), torch.zeros_like(a), b, c.exp()], -1).view(-1, 2, 2)
    return factor @ factor.mT


def ball(z):
    return 0.6 * z


# Manifolds of geoopt under a chart of the whole manifold, and its dimension.
GEOOPT = {
    "sphere": (geoopt.SphereExact(), sphere, 2),
    "ball": (geoopt.PoincareBall(), ball, 2),
    "SPD": (geoopt.SymmetricPositiveDefinite(), cholesky, 3),
}
SEEDS = [("sphere", 0), ("sphere", 1), ("sphere", 2), ("sphere", 3), ("ball", 4), ("ball", 5)]
SEEDS += [("ball", 6), ("SPD", 7), ("SPD", 8), ("SPD", 9)]


def table(distance, z):
    """All distances, infinite from a point to itself."""
    n = len(z)
    i = torch.arange(n).repeat_interleave(n)
    d = distance(z[i], z.repeat(n, *[1] * (z.ndim - 1))).view(n, n)
    return d.fill_diagonal_(torch.inf)


def assert_exact(found, d, rtol):
    exact = d.topk(K, largest=False)
    assert bool(found.certified.all())
    assert torch.equal(found.indices, exact.indices)
    torch.testing.assert_close(found.distances, exact.values, rtol=2 * rtol, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_closed_forms(name):
    known = SPACES[name]
    z = known.points(torch.Generator().manual_seed(5), N)
    space, d = known.space(), table(known.distance, z)
    found = neighbors(space, z, K, rtol=1e-5, candidates=N - 1)
    assert_exact(found, d, 1e-5)
    radius = float(d.topk(K, largest=False).values[:, -1].median()) * 1.001
    within = radius_neighbors(space, z, radius, rtol=1e-5)
    query, point, _, _ = within.edges()
    inside = (d <= radius).nonzero()
    assert torch.equal(torch.stack([query, point], 1).unique(dim=0), inside)


@pytest.mark.parametrize(("name", "seed"), SEEDS)
def test_geoopt_knows_the_same(name, seed):
    manifold, chart, m = GEOOPT[name]
    z = rand(torch.Generator().manual_seed(seed), N, m, low=-0.8, high=0.8)
    x = chart(z)
    d = table(lambda a, b: manifold.dist(a, b), x)
    found = Manifold(chart, ambient=Geoopt(manifold)).neighbors(z, K, rtol=1e-5)
    assert_exact(found, d, 1e-5)


def test_scipy_finds_the_same_paths_in_the_graph():
    """Dijkstra along the neighbour graph, by scipy on its matrix, by hand on the edges."""
    from scipy.sparse.csgraph import shortest_path

    z = rand(torch.Generator().manual_seed(1), N, 2, low=-0.8, high=0.8)
    found = Manifold(sphere).neighbors(z, K, rtol=1e-4)
    whole = np.full((N, N), np.inf)
    query, point, length, _ = (x.numpy() for x in found.edges())
    whole[query, point] = length
    np.fill_diagonal(whole, 0.0)
    for middle in range(N):  # Floyd and Warshall
        whole = np.minimum(whole, whole[:, [middle]] + whole[[middle]])
    np.testing.assert_allclose(shortest_path(found.to_scipy()), whole, rtol=1e-12)
