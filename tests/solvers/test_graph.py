"""Neighbourhood graphs against networkx, scipy and scikit-learn.

Their paths against true geodesics.
"""

import sys
import warnings

import networkx
import numpy as np
import pytest
import spaces
import torch
from scipy.sparse import csgraph
from sklearn.neighbors import NearestNeighbors

from riemae import Manifold, ambient, solvers
from riemae.exceptions import (
    DisconnectedGraphWarning,
    DTypeError,
    GraphError,
    MissingExtraError,
    NonFiniteError,
    OptionError,
    RiemaeError,
    ShapeError,
)
from riemae.solvers.speeds import _QUADRATURE_POINTS

F64 = torch.float64
SPHERE = Manifold(spaces.sphere)
HALF_PLANE = solvers.MetricSpace(spaces.half_plane_tensor)
FLAT = solvers.MetricSpace(lambda z: torch.eye(z.shape[-1]).to(z).expand(len(z), -1, -1))


def points(n, seed=0, low=-0.9, high=0.9):
    return spaces.rand(torch.Generator().manual_seed(seed), n, 2, low=low, high=high)


def edges(graph):
    rows, columns = graph.adjacency.nonzero()
    return {(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if i < j}


def two_clusters(sizes=(6, 4), gap=50.0):
    z = points(sum(sizes))
    z[sizes[0] :] += gap
    return z


class TestEdges:
    @pytest.mark.parametrize("k", [1, 3, 10])
    def test_scikit_learn_finds_the_same_neighbours(self, k):
        z = points(80)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DisconnectedGraphWarning
            )  # with k = 1 there are many components
            found = edges(SPHERE.graph(z, k=k))
        _, neighbours = (
            NearestNeighbors(n_neighbors=k).fit(z.numpy()).kneighbors()
        )  # a point is not its own neighbour
        assert found == {
            tuple(sorted((i, int(j)))) for i, row in enumerate(neighbours) for j in row
        }

    def test_neighbours_by_other_coordinates(self):
        z, coordinates = points(40), points(40, seed=1)
        assert edges(solvers.graph(FLAT, z, k=4, coordinates=coordinates)) == edges(
            solvers.graph(FLAT, coordinates, k=4)
        )
        assert edges(solvers.graph(FLAT, z, k=4)) != edges(solvers.graph(FLAT, coordinates, k=4))

    @pytest.mark.parametrize(
        "weights", [None, torch.tensor([1.0, 1.0, 25.0], dtype=F64)], ids=["euclidean", "diagonal"]
    )
    def test_neighbours_among_the_data(self, weights):
        # The data as the ambient metric sees them: √weights times the decoded points.
        z = points(60, low=-2.0, high=2.0)
        space = Manifold(
            spaces.sphere, ambient=None if weights is None else ambient.Diagonal(weights)
        )
        data = spaces.sphere(z) * (1.0 if weights is None else weights.sqrt())
        _, neighbours = NearestNeighbors(n_neighbors=5).fit(data.numpy()).kneighbors()
        expected = {tuple(sorted((i, int(j)))) for i, row in enumerate(neighbours) for j in row}
        found = space.graph(z, k=5, neighbors="data")
        assert edges(found) == expected
        assert edges(found) != edges(space.graph(z, k=5))
        assert torch.equal(found.points, z)

    def test_lengths_of_straight_latent_lines(self):
        # In the half plane |q − p| ∫ dt/(p_y + t (q_y − p_y)) = |q − p| log(q_y/p_y)/(q_y − p_y). A
        # Gauss rule of s points misses a share of about π/2 ρ²ˢ of it, with ρ = (√q_y − √p_y)/(√q_y
        # + √p_y).
        z = points(30, low=0.5, high=2.0)
        graph = solvers.graph(HALF_PLANE, z, k=5)
        i, j = (torch.as_tensor(c).long() for c in graph.adjacency.nonzero())
        step, roots = z[j] - z[i], z[:, 1].sqrt()
        expected = step.norm(dim=1) * (z[j, 1] / z[i, 1]).log() / step[:, 1]
        share = (
            2 * ((roots[i] - roots[j]) / (roots[i] + roots[j])) ** (2 * _QUADRATURE_POINTS) + 1e-12
        )
        assert ((torch.as_tensor(graph.adjacency.data) / expected - 1).abs() <= share).all()
        assert (graph.adjacency != graph.adjacency.T).nnz == 0

    def test_long_edges_are_not_cut_short(self):
        # Straight up from height 1/100 to 1 the line is the geodesic, log 100 long: no shorter path
        # exists.
        z = torch.tensor([[0.0, 0.01], [0.0, 1.0]], dtype=F64)
        length = float(solvers.graph(HALF_PLANE, z, k=1).distances([0])[0, 1])
        assert length == pytest.approx(np.log(100), rel=1e-3)

    @staticmethod
    def kinked(wide=0.0):
        """A piecewise linear map, with a narrow fold of some width where z₀ is a half.

        Counts the points it gets.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [torch.nn.Linear(2, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8)]
            net = torch.nn.Sequential(*layers).double().requires_grad_(False)
        seen = []

        def decoder(z):
            seen.append(len(z))
            fold = (wide - (z[:, :1] - 0.5).abs()).relu() * 20 if wide else 0 * z[:, :1]
            return torch.cat([3 * net(z), fold], 1)

        return Manifold(decoder), seen

    def test_kinks_are_measured_to_rtol_and_by_few_points(self):
        M, seen = self.kinked()
        z = points(60)
        M.metric(z)  # the probes of the first use
        seen.clear()
        found = M.graph(z, k=6)
        count, spent = found.adjacency.nnz // 2, sum(seen)
        i, j = (torch.as_tensor(c).long() for c in found.adjacency.nonzero())
        exact = M.length(torch.stack([z[i], z[j]], 1), rtol=1e-6)
        assert (torch.as_tensor(found.adjacency.data) / exact - 1).abs().max() < 1e-2
        assert spent <= 50 * count  # panels alone take 144 points an edge

    @pytest.mark.parametrize("wide", [0.2, 0.05, 0.02])
    def test_a_fold_on_an_edge_is_not_cut_off(self, wide):
        M, _ = self.kinked(wide)
        z = torch.tensor([[0.0, 0.1], [1.0, 0.2]], dtype=F64)
        length = float(M.graph(z, k=1).distances([0])[0, 1])
        assert length == pytest.approx(float(M.length(z, rtol=1e-6)), rel=1e-2)

    def test_near_points_far_from_the_origin_in_float32(self):
        # Differences of images are rounding: polygons have no say.
        M = Manifold(lambda z: 1e4 + torch.cat([z, z.relu(), (z - 0.3).relu()], 1))
        z = 0.3 + 1e-3 * points(20).float()
        found = M.graph(z, k=4)
        i, j = (torch.as_tensor(c).long() for c in found.adjacency.nonzero())
        exact = M.to(dtype=F64).length(torch.stack([z[i], z[j]], 1).double(), rtol=1e-6)
        assert (torch.as_tensor(found.adjacency.data) / exact - 1).abs().max() < 1e-2

    def test_chords(self):
        z = points(30)
        graph = SPHERE.graph(z, k=5, weight="chord")
        i, j = (torch.as_tensor(c).long() for c in graph.adjacency.nonzero())
        expected = (spaces.sphere(z[i]) - spaces.sphere(z[j])).norm(dim=1)
        assert np.allclose(graph.adjacency.data, expected.numpy(), rtol=1e-12)
        assert (graph.adjacency.data < SPHERE.graph(z, k=5).adjacency.data).all()

    def test_duplicates(self):
        z = points(12)[[0, 0, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6]]
        graph = SPHERE.graph(z, k=3)
        assert graph.adjacency.diagonal().tolist() == [0.0] * 12
        stored = graph.adjacency.tocoo()  # zeros included
        assert (stored.row != stored.col).all()
        d = graph.distances()
        assert d[:5, :5].abs().max() == 0
        assert d[0, 7:].min() > 0
        assert torch.allclose(d[0, 5:], d[4, 5:], rtol=1e-14)
        degree = np.diff(graph.adjacency.indptr)
        assert degree.min() >= 3  # edges of length zero are edges
        assert graph.to_networkx().number_of_edges() == graph.adjacency.nnz // 2
        assert (
            np.diff(SPHERE.graph(z[:5], k=2).adjacency.indptr).min() >= 2
        )  # nothing but duplicates


class TestDistances:
    @pytest.mark.parametrize("space", [SPHERE, FLAT], ids=["sphere", "flat"])
    def test_networkx_and_scipy_agree(self, space):
        graph = (
            space.graph(points(60), k=6)
            if space is SPHERE
            else solvers.graph(space, points(60), k=6)
        )
        d = graph.distances()
        peer = dict(networkx.all_pairs_dijkstra_path_length(graph.to_networkx()))
        expected = torch.tensor([[peer[i][j] for j in range(60)] for i in range(60)], dtype=F64)
        assert torch.allclose(d, expected, rtol=1e-12)
        assert np.allclose(
            d.numpy(), csgraph.floyd_warshall(graph.adjacency, directed=False), rtol=1e-12
        )
        assert torch.allclose(d, d.T, rtol=1e-14)

    def test_sources(self):
        graph = SPHERE.graph(points(20), k=5)
        d = graph.distances()
        for sources in ([3, 0, 3], torch.tensor([3, 0, 3]), np.array([3, 0, 3]), (3, 0, 3)):
            assert torch.equal(graph.distances(sources), d[[3, 0, 3]])
        assert torch.equal(graph.distances(range(20)), d)
        assert torch.equal(graph.distances(torch.tensor(7)), d[7:8])
        assert (
            graph.distances([]).shape
            == graph.distances(torch.empty(0, dtype=torch.int64)).shape
            == (0, 20)
        )

    @pytest.mark.parametrize("sources", [[20], [-1], [0, 99]], ids=str)
    def test_sources_out_of_range(self, sources):
        graph = SPHERE.graph(points(20), k=5)
        with pytest.raises(GraphError, match="a point from 0 to 19"):
            graph.distances(sources)
        with pytest.raises(GraphError, match="a point from 0 to 19"):
            graph.path(0, sources[-1])

    @pytest.mark.parametrize(
        "sources",
        [[True] + [False] * 19, torch.arange(20) == 3, [1.7]],
        ids=["list", "mask", "float"],
    )
    def test_sources_are_whole_numbers(self, sources):
        # A mask read as numbers would answer for points 0 and 1; 1.7 for point 1.
        with pytest.raises(RiemaeError, match="Graph"):
            SPHERE.graph(points(20), k=5).distances(sources)

    def test_float32(self):
        z = points(40).float()
        graph = SPHERE.graph(z, k=6)
        d = graph.distances()
        assert graph.points.dtype == d.dtype == torch.float32
        assert torch.allclose(d.double(), SPHERE.graph(z.double(), k=6).distances(), rtol=1e-5)
        assert graph.curves([0], [1]).nodes.dtype == torch.float32

    def test_never_shorter_than_the_geodesic_and_closer_on_denser_points(self):
        pairs, excess = points(10, seed=5), []
        true = spaces.great_circle(pairs[:5], pairs[5:])
        for n in (100, 400, 1600, 6400):
            d = SPHERE.graph(torch.cat([pairs, points(n)]), k=12).distances(range(5))[
                range(5), range(5, 10)
            ]
            assert (d >= true * (1 - 1e-9)).all()
            excess.append(float((d / true - 1).mean()))
        # Denser points alone do not straighten the zigzag of k neighbours: its k must grow along.
        finest = SPHERE.graph(torch.cat([pairs, points(6400)]), k=100).distances(range(5))[
            range(5), range(5, 10)
        ]
        assert (finest >= true * (1 - 1e-9)).all()
        assert excess[-1] < excess[0]
        assert float((finest / true - 1).mean()) < 0.01 < excess[0]


class TestPaths:
    def test_networkx_finds_paths_as_short(self):
        graph = SPHERE.graph(points(60), k=4)
        peer = graph.to_networkx()
        for i, j in ((0, 59), (3, 17), (40, 2)):
            path = graph.path(i, j)
            assert (path[0], path[-1]) == (i, j)
            assert path == networkx.dijkstra_path(peer, i, j)
            assert all(type(node) is int for node in path)
            assert networkx.path_weight(peer, path, "weight") == pytest.approx(
                float(graph.distances([i])[0, j]), rel=1e-12
            )

    def test_whole_numbers_of_any_kind(self):
        graph = SPHERE.graph(points(30), k=4)
        for i, j in ((torch.tensor(2), torch.tensor(9)), (np.int64(2), np.int64(9))):
            assert [int(node) for node in graph.path(i, j)] == graph.path(2, 9)
        with pytest.raises(RiemaeError, match="Graph"):
            graph.path(1.5, 9)

    def test_to_itself(self):
        graph = SPHERE.graph(points(20), k=4)
        assert graph.path(3, 3) == [3]
        curve = graph.curves([3], [3])
        assert torch.equal(curve.nodes, graph.points[3].expand_as(curve.nodes))

    def test_curves_follow_the_paths_at_constant_speed(self):
        graph = SPHERE.graph(points(60), k=6)
        i, j = torch.tensor([0, 3, 8]), torch.tensor([59, 17, 2])
        curve = graph.curves(i, j, segments=24)
        assert curve.nodes.shape == (3, 25, 2)
        assert torch.equal(curve.nodes[:, 0], graph.points[i])
        assert torch.equal(curve.nodes[:, -1], graph.points[j])
        for p in range(3):
            nodes = graph.path(int(i[p]), int(j[p]))
            when = graph.distances([int(i[p])])[
                0, nodes
            ]  # a corner is passed when so much of the path is walked
            for d in range(2):
                wanted = np.linspace(0, float(when[-1]), 25)
                expected = np.interp(wanted, when.numpy(), graph.points[nodes, d].numpy())
                assert np.allclose(curve.nodes[p, :, d].numpy(), expected, rtol=1e-10, atol=1e-12)

    def test_curves_start_geodesics(self):
        # Round the long way of a cylinder that only the graph knows: its points leave no other way.
        turn = torch.linspace(0, 1.6 * torch.pi, 40, dtype=F64)
        z = torch.stack([turn, 0.3 * turn.sin()], -1)
        tube = Manifold(spaces.cylinder)
        graph = tube.graph(z, k=2)
        r = tube.geodesic(z[:1], z[-1:], init=graph.curves([0], [39]), rtol=1e-8)
        expected = torch.hypot(1.5 * turn[-1], z[-1, 1])  # flat: a straight line in (r u, h)
        assert torch.allclose(r.length, expected, rtol=1e-8)
        assert (r.length <= graph.distances([0])[0, 39]).all()

    def test_no_curves(self):
        curve = SPHERE.graph(points(20), k=4).curves([], [], segments=8)
        assert curve.nodes.shape == (0, 9, 2)


def ring(n=60):
    """Points once around a cylinder: two ways lead from one to its opposite."""
    turn = torch.arange(n, dtype=F64) * 2 * torch.pi / n
    return torch.stack([turn.cos(), turn.sin()], -1)


class TestAlternatives:
    def test_both_ways_round_a_ring_and_no_third(self):
        graph = solvers.graph(FLAT, ring(), k=2)
        near, far = graph.paths(0, 20, k=5)
        assert near.tolist() == list(range(21))
        assert far.tolist() == [0, *range(59, 19, -1)]
        assert near.dtype == torch.int64

    def test_both_sides_of_a_hole(self):
        # An annulus, from its west to its east: the ways through north and south are equally long
        # up to the grid.
        z = points(1500, low=-2.0, high=2.0)
        z = torch.cat([torch.tensor([[-1.5, 0.0], [1.5, 0.0]], dtype=F64), z])
        z = z[(z.norm(dim=1) > 1) & (z.norm(dim=1) < 2)]
        first, second = solvers.graph(FLAT, z, k=8).paths(0, 1, k=2)
        sides = [z[path, 1].sign().sum() for path in (first, second)]
        assert sides[0] * sides[1] < 0
        # Around the hole of radius 1 from distance 1.5: two tangents of √(1.5² − 1) and the arc π −
        # 2 arccos(1/1.5)
        shortest = 2 * np.sqrt(1.25) + np.pi - 2 * np.arccos(1 / 1.5)
        for path in (first, second):
            assert shortest <= float(z[path].diff(dim=0).norm(dim=1).sum()) <= 1.15 * shortest

    @pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.9])
    def test_alternatives_run_apart_shortest_first(self, overlap):
        graph = SPHERE.graph(points(400), k=6)
        peer = graph.to_networkx()
        found = [path.tolist() for path in graph.paths(0, 1, k=6, overlap=overlap)]
        assert found[0] == graph.path(0, 1)
        weights = [networkx.path_weight(peer, path, "weight") for path in found]
        assert weights == sorted(weights)
        seen = set()
        for path, weight in zip(found, weights, strict=True):
            assert networkx.is_simple_path(peer, path)
            assert (path[0], path[-1]) == (0, 1)
            shared = sum(
                peer[a][b]["weight"] for a, b in zip(path, path[1:], strict=False) if {a, b} <= seen
            )
            assert shared <= overlap * weight * (1 + 1e-12) or not seen
            seen |= set(path).union(*(peer[node] for node in path))
        assert len(found) > 1 or overlap == 0.0

    def test_the_k_shortest_are_those_of_networkx(self):
        graph = SPHERE.graph(points(40), k=4)
        expected = networkx.shortest_simple_paths(graph.to_networkx(), 3, 17, weight="weight")
        found = graph.paths(3, 17, k=4, overlap=1.0)
        assert [path.tolist() for path in found] == [next(expected) for _ in range(4)]

    def test_to_itself(self):
        graph = SPHERE.graph(points(20), k=4)
        assert [path.tolist() for path in graph.paths(3, 3)] == [[3]]
        assert [path.tolist() for path in graph.paths(3, 3, overlap=1.0)] == [[3]]

    @pytest.mark.parametrize("overlap", [0.5, 1.0])
    def test_no_path(self, overlap):
        with pytest.warns(DisconnectedGraphWarning):
            graph = solvers.graph(FLAT, two_clusters(), k=3)
        with pytest.raises(GraphError, match="points 0 and 9 in one component"):
            graph.paths(0, 9, overlap=overlap)

    @pytest.mark.parametrize(
        "options", [{"k": 0}, {"k": 1.5}, {"overlap": -0.1}, {"overlap": 1.1}], ids=str
    )
    def test_options(self, options):
        with pytest.raises(OptionError, match="k of at least 1 and overlap from 0 to 1"):
            SPHERE.graph(points(20), k=4).paths(0, 1, **options)


class TestSearch:
    @pytest.mark.parametrize("d", [2, 8, 40])
    def test_exact_searches_agree(self, d):
        coordinates = spaces.rand(torch.Generator().manual_seed(9), 300, d)
        z = points(300)
        found = [
            edges(solvers.graph(FLAT, z, k=6, coordinates=coordinates, search=s))
            for s in ("tree", "brute", "auto")
        ]
        assert found[0] == found[1] == found[2]

    def test_in_the_data_of_a_manifold(self):
        z = points(60)
        assert edges(SPHERE.graph(z, k=4, neighbors="data", search="brute")) == edges(
            SPHERE.graph(z, k=4, neighbors="data")
        )

    @pytest.mark.parametrize(
        ("search", "module", "extra"),
        [("brute", "sklearn.neighbors", "demo"), ("approximate", "pynndescent", "neighbors")],
    )
    def test_a_library_that_is_missing_is_named(self, search, module, extra, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtraError, match=rf"riemae\[{extra}\]"):
            SPHERE.graph(points(20), k=3, search=search)

    def test_an_unknown_search(self):
        with pytest.raises(
            OptionError, match="search among 'auto', 'tree', 'brute', 'approximate', got 'hash'"
        ):
            SPHERE.graph(points(20), k=3, search="hash")

    def test_edges_are_measured_some_at_a_time(self, monkeypatch):
        z, sizes = points(200, low=0.05, high=2.0), []
        whole = solvers.graph(HALF_PLANE, z, k=5)
        monkeypatch.setattr("riemae.solvers.edges._EDGES", 64)
        tensor = lambda z: (sizes.append(len(z)), spaces.half_plane_tensor(z))[1]  # noqa: E731 (one expression)
        parts = solvers.graph(solvers.MetricSpace(tensor), z, k=5)
        assert np.allclose(parts.adjacency.data, whole.adjacency.data, rtol=1e-13)
        assert max(sizes) <= 64 * _QUADRATURE_POINTS + 16
        assert len(sizes) > 10


class TestComponents:
    def test_disconnected(self):
        z = two_clusters()
        with pytest.warns(DisconnectedGraphWarning) as caught:
            graph = solvers.graph(FLAT, z, k=3)
        text = str(caught[0].message)
        assert "2 components" in text
        assert "component 0: 6 points with point 0" in text
        assert "component 1: 4 points with point 6" in text
        assert "Raise k" in text
        assert graph.components.tolist() == [0] * 6 + [1] * 4
        assert graph.components.dtype == torch.int64
        d = graph.distances()
        assert d[:6, 6:].isinf().all()
        assert d[:6, :6].isfinite().all()
        with pytest.raises(
            GraphError, match=r"points 0 and 9 in one component, got components 0 and 1\. Raise k"
        ):
            graph.path(0, 9)
        with pytest.raises(GraphError, match="in one component"):
            graph.curves([0, 0], [1, 9])
        assert graph.curves([6], [9]).nodes.isfinite().all()
        assert repr(graph) == f"Graph(10 points, {graph.adjacency.nnz // 2} edges, 2 component(s))"

    def test_many_components_are_counted_not_listed(self):
        z = (
            10.0 * torch.arange(8, dtype=F64)[:, None] + torch.tensor([0.0, 0.1], dtype=F64)
        ).reshape(-1, 1)
        with pytest.warns(
            DisconnectedGraphWarning,
            match=r"8 components .*component 4: 2 points with point 8, and 3 more",
        ):
            assert solvers.graph(FLAT, z, k=1).components.max() == 7

    def test_the_warning_points_at_the_caller(self):
        z = two_clusters()
        for make in (
            lambda: solvers.graph(FLAT, z, k=3),
            lambda: Manifold(lambda z: z).graph(z, k=3),
        ):
            with pytest.warns(DisconnectedGraphWarning) as caught:
                make()
            assert caught[0].filename == __file__

    @pytest.mark.parametrize("function", [torch.sqrt, torch.log])
    def test_edges_out_of_the_domain_join_nothing(self, function):
        # No value between −1 and 1, where every line from left to right passes; but the logarithm
        # has a finite derivative there, log |z|'s: a length must not come from it alone.
        split = Manifold(lambda z: torch.cat([z, function(z.square() - 1)], -1))
        z = torch.tensor([[-2.0], [-1.5], [1.5], [2.0]], dtype=F64)
        with pytest.warns(DisconnectedGraphWarning, match="2 components"):
            graph = split.graph(z, k=3)
        assert np.isfinite(graph.adjacency.data).all()
        assert graph.components.tolist() == [0, 0, 1, 1]
        assert graph.distances()[:2, 2:].isinf().all()


class TestNetworkx:
    def test_keeps_nodes_edges_and_weights(self):
        graph = SPHERE.graph(points(30), k=4)
        peer = graph.to_networkx()
        assert sorted(peer.nodes) == list(range(30))
        assert {tuple(sorted(e)) for e in peer.edges} == edges(graph)
        assert all(w == graph.adjacency[i, j] for i, j, w in peer.edges(data="weight"))

    def test_keeps_isolated_nodes(self):
        lonely = SPHERE.graph(points(1), k=1).to_networkx()
        assert (list(lonely.nodes), list(lonely.edges)) == ([0], [])


class TestSmallAndWrong:
    def test_one_point(self):
        graph = SPHERE.graph(points(1), k=1)
        assert graph.distances().tolist() == [[0.0]]
        assert graph.path(0, 0) == [0]
        assert repr(graph) == "Graph(1 points, 0 edges, 1 component(s))"

    def test_no_points(self):
        graph = solvers.graph(FLAT, points(0), k=1)
        assert graph.distances().shape == (0, 0)
        assert graph.components.shape == (0,)
        assert repr(graph) == "Graph(0 points, 0 edges, 0 component(s))"
        with pytest.raises(GraphError, match="Graph"):
            graph.path(0, 0)

    @pytest.mark.parametrize("k", [-1, 0, 20, 21])
    def test_k_out_of_range(self, k):
        with pytest.raises(OptionError, match=rf"1 <= k < 20, the number of points, got k={k}"):
            SPHERE.graph(points(20), k=k)

    def test_too_few_points_are_named(self):
        # "1 <= k < 1" would ask for the impossible.
        with pytest.raises(OptionError, match="point") as caught:
            SPHERE.graph(points(1))
        assert "1 <= k < 1," not in str(caught.value)

    def test_the_largest_k_joins_all_to_all(self):
        assert len(edges(SPHERE.graph(points(8), k=7))) == 28

    @pytest.mark.parametrize(
        "make", [SPHERE.graph, lambda z: solvers.graph(FLAT, z)], ids=["manifold", "space"]
    )
    def test_points_that_are_not_finite(self, make):
        z = points(20)
        z[3, 0], z[7, 1] = torch.nan, torch.inf
        with pytest.raises(NonFiniteError, match=r"\[3, 7\]"):
            make(z)

    def test_coordinates_that_are_not_finite(self):
        coordinates = points(20)
        coordinates[5] = torch.nan
        with pytest.raises(NonFiniteError, match=r"rows \[5\]"):
            solvers.graph(FLAT, points(20), k=2, coordinates=coordinates)

    @pytest.mark.parametrize("shape", [(20,), (2, 10, 2), ()], ids=str)
    def test_shapes(self, shape):
        with pytest.raises(ShapeError, match=r"points of shape \(n, m\)"):
            solvers.graph(FLAT, torch.zeros(shape))
        with pytest.raises(ShapeError, match=r"coordinates of shape \(20, d\)"):
            solvers.graph(
                FLAT, points(20), coordinates=torch.zeros(shape) if shape != (20,) else points(19)
            )

    def test_whole_numbers_are_no_points(self):
        # Integers would be truncated on every way: all lengths 0.
        with pytest.raises(DTypeError, match="float32 or float64"):
            solvers.graph(FLAT, torch.tensor([[0, 0], [3, 4], [6, 8]]), k=1)

    def test_unknown_options(self):
        with pytest.raises(OptionError, match="weight among 'length', 'chord', got 'energy'"):
            SPHERE.graph(points(20), k=3, weight="energy")
        with pytest.raises(OptionError, match="neighbors among 'latent', 'data', got 'both'"):
            SPHERE.graph(points(20), k=3, neighbors="both")

    def test_chord_without_an_ambient_distance(self):
        for make in (
            lambda w: solvers.graph(HALF_PLANE, points(20, low=0.5, high=2.0), k=3, weight=w),
            lambda w: spaces.half_plane_as_ambient().graph(
                points(20, low=0.5, high=2.0), k=3, weight=w
            ),
        ):
            assert make("length").adjacency.nnz >= 60
            with pytest.raises(GraphError, match="ambient distance .*weight='length'"):
                make("chord")

    def test_comparing_graphs_raises_nothing(self):
        graph = SPHERE.graph(points(20), k=3)
        assert graph == graph
        assert graph != SPHERE.graph(points(20), k=3)
        assert graph in {graph: 1}

    def test_nothing_is_differentiated_or_changed(self):
        z = points(20).requires_grad_()
        kept = z.detach().clone()
        graph = SPHERE.graph(z, k=3, neighbors="data")
        assert not graph.points.requires_grad
        assert not graph.distances().requires_grad
        assert torch.equal(z, kept)
