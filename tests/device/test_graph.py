"""Graphs on points of a device."""

import pytest
import torch
from on_device import DTYPES, F64, assert_placed
from spaces import great_circle, sphere

from riemae import Manifold, solvers
from riemae.solvers import Graph

pytest.importorskip("sklearn")  # finds neighbours
pytestmark = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture
def points(device, dtype):
    drawn = torch.rand(24, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return (1.6 * drawn - 0.8).to(dtype).to(device)


@pytest.fixture
def graph(points) -> Graph:
    return Manifold(sphere).graph(points, k=6)


def test_paths_are_no_shorter_than_geodesics(graph, points):
    assert torch.equal(graph.points, points)
    assert graph.points.device == points.device
    far = graph.distances([0, 1])
    assert_placed(far, points.device, points.dtype)
    known = great_circle(points[:2, None].double(), points[None].double())
    assert (far.double() > known * (1 - 1e-2) - 1e-6).all()
    assert (far.double() < 1.6 * known + 1e-3).all()


def test_numbers_of_points_may_be_on_the_device(graph, points):
    sources = torch.tensor([0, 1], device=points.device)
    assert torch.equal(graph.distances(sources), graph.distances([0, 1]))
    curves = graph.curves(sources, sources.flip(0), segments=8)
    assert_placed(curves.nodes, points.device, points.dtype)
    nodes = points[graph.path(0, 1)]
    assert_placed(nodes, points.device, points.dtype)


def test_alternatives_are_points_of_the_graph(graph, points):
    for path in graph.paths(0, 5, k=2):
        assert_placed(points[path], points.device, points.dtype)


@pytest.mark.parametrize("neighbors", ["latent", "data"])
@pytest.mark.parametrize("weight", ["length", "chord"])
def test_edges(neighbors, weight, points):
    M = Manifold(sphere)
    graph = M.graph(points, k=5, weight=weight, neighbors=neighbors)
    adjacency = graph.adjacency.tocoo()
    i, j = (torch.as_tensor(x.astype("int64")) for x in (adjacency.row, adjacency.col))
    known = great_circle(points[i].double().cpu(), points[j].double().cpu())
    if weight == "chord":
        known = 2 * (known / 2).sin()
    edges = torch.as_tensor(adjacency.data)
    assert (edges >= known * (1 - 1e-2)).all()
    assert (edges <= known * 1.2).all()


def test_graph_of_a_metric_tensor(points):
    flat = solvers.MetricSpace(lambda z: torch.eye(2).to(z).expand(len(z), 2, 2))
    graph = solvers.graph(flat, points, k=5)
    assert_placed(graph.distances([0]), points.device, points.dtype)


def test_a_graph_starts_geodesics(graph, points):
    found = Manifold(sphere).geodesic(points[:1], points[3:4], graph=graph, n_starts=2, rtol=1e-3)
    known = great_circle(points[:1].double(), points[3:4].double())
    torch.testing.assert_close(found.length.double(), known, rtol=3e-3, atol=0.0)
