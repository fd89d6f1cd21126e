"""Certified nearest neighbours: brute force, closed forms, certificates, formats, and bad input."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.ambient import Custom
from riemae.exceptions import (
    DTypeError,
    NonFiniteError,
    NotConvergedError,
    OptionError,
    ShapeError,
)
from riemae.solvers import Newton, Status

F64 = torch.float64
BLOCKS = sys.modules["riemae.solvers.candidates"]
BOUNDS = sys.modules["riemae.solvers.bounds"]
RESULTS = sys.modules["riemae.solvers.neighborhoods"]


def network(m, seed, widths=(32, 24)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden, outputs = widths
        net = nn.Sequential(nn.Linear(m, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
    return net.double().requires_grad_(False)


def points(n, m, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed), dtype=F64)


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


def brute(M, p, k, queries=None, rtol=1e-6):
    d = M.distance_matrix(
        p if queries is None else queries, None if queries is None else p, rtol=rtol
    )
    if queries is None:
        d.fill_diagonal_(torch.inf)
    return d.topk(k, largest=False)


class TestTruths:
    @pytest.mark.parametrize("seed", range(10))
    def test_as_brute_force(self, seed):
        m = 2 + seed % 4
        M = Manifold(network(m, seed))
        p = points(30, m, seed)
        n = M.neighbors(p, k=5, rtol=1e-4)
        exact = brute(M, p, 5)
        assert bool(n.certified.all())
        assert torch.equal(n.indices, exact.indices)
        torch.testing.assert_close(n.distances, exact.values, rtol=1e-4, atol=0)
        assert bool(((n.distances - exact.values).abs() <= 10 * n.errors + 1e-9).all())
        assert n.solved < 30 * 29 // 2

    def test_on_the_sphere(self):
        p = 0.4 * points(60, 2)
        n = Manifold(sphere).neighbors(p, k=4, rtol=1e-5)
        angle = (sphere(p) @ sphere(p).T).clamp(-1, 1).acos().fill_diagonal_(torch.inf)
        exact = angle.topk(4, largest=False)
        assert bool(n.certified.all())
        assert torch.equal(n.indices, exact.indices)
        torch.testing.assert_close(n.distances, exact.values, rtol=1e-5, atol=1e-7)

    def test_of_other_queries(self):
        M = Manifold(network(3, 1))
        p, q = points(40, 3), points(7, 3, seed=5)
        n = M.neighbors(p, k=3, queries=q)
        exact = brute(M, p, 3, q)
        assert torch.equal(n.indices, exact.indices)
        assert n.to_scipy().shape == (7, 40)

    def test_a_query_that_is_one_of_the_points_finds_it(self):
        p = points(20, 2)
        n = Manifold(network(2, 0)).neighbors(p, k=2, queries=p[4:6])
        assert n.indices[:, 0].tolist() == [4, 5]
        assert bool((n.distances[:, 0] == 0).all())

    def test_the_chord_deceives(self):
        """Along a spiral, the nearest in the ambient space are on the next turn."""

        def spiral(t):
            return torch.cat([t * t.cos(), t * t.sin()], -1)

        t = torch.linspace(6.0, 30.0, 60, dtype=F64)[:, None]
        n = Manifold(spiral).neighbors(t, k=2)
        inner = n.indices[1:-1].sort(1).values
        assert torch.equal(inner, torch.arange(1, 59)[:, None] + torch.tensor([[-1, 1]]))
        assert bool(n.certified.all())
        near = Manifold(spiral).distance_matrix(t, method="chord").fill_diagonal_(torch.inf)
        assert not torch.equal(near.topk(2, largest=False).indices[1:-1].sort(1).values, inner)

    def test_under_an_ambient_metric_without_distances(self):
        M = Manifold(network(2, 3), ambient=Custom(lambda x: 1 + x.square()))
        p = points(12, 2)
        n = M.neighbors(p, k=3, candidates=11)
        assert bool(n.certified.all())
        assert torch.equal(n.indices, brute(M, p, 3).indices)
        # Eight candidates each, and those for which a point is a candidate of another's.
        assert not bool(M.neighbors(points(40, 2), k=2).certified.any())

    def test_in_single_precision(self):
        p = points(25, 2)
        net = network(2, 2)
        wide = Manifold(net).neighbors(p, k=3)
        single = Manifold(net).to(dtype=torch.float32).neighbors(p.float(), k=3)
        assert single.distances.dtype == torch.float32
        assert torch.equal(single.indices[single.certified], wide.indices[single.certified])
        assert float(single.certified.double().mean()) > 0.9


class TestCertificates:
    def test_equal_distances_are_no_certificate(self):
        """On a square grid, which of the equally near comes first is chance."""
        grid = torch.cartesian_prod(*[torch.arange(4.0, dtype=F64)] * 2)
        n = Manifold(lambda z: z).neighbors(grid, k=1)
        assert not bool(n.certified.any())
        assert bool((n.distances == 1).all())
        whole = Manifold(lambda z: z).neighbors(grid, k=15)
        assert bool(whole.certified.all())

    def test_a_limit_on_candidates(self):
        M = Manifold(network(3, 4))
        p = points(40, 3)
        few = M.neighbors(p, k=5, candidates=5)
        whole = M.neighbors(p, k=5)
        assert few.solved < whole.solved
        assert not bool(few.certified.all())
        assert torch.equal(few.indices[few.certified], whole.indices[few.certified])

    def test_a_pair_that_fails_is_named_and_its_row_is_not_certified(self):
        M = Manifold(network(2, 5))
        p = 3 * points(12, 2)
        solver = Newton(max_steps=1)
        with pytest.raises(NotConvergedError) as caught:
            M.neighbors(p, k=2, solver=solver, rtol=1e-9)
        n = caught.value.result
        assert len(n.failed)
        assert bool((n.status != Status.CONVERGED).all())
        assert not bool(n.certified[n.failed[:, 0]].any())
        assert "row" in n.summary()

    @pytest.mark.parametrize("pairs", [1, 60, 100])
    def test_blocks_do_not_matter(self, monkeypatch, pairs):
        M = Manifold(network(4, 6, (64, 64)))
        p = points(30, 4)
        whole = M.neighbors(p, k=4)
        monkeypatch.setattr(BOUNDS, "_PAIRS", pairs)
        parts = M.neighbors(p, k=4)
        assert torch.equal(whole.indices, parts.indices)
        assert torch.equal(whole.distances, parts.distances)
        assert torch.equal(whole.certified, parts.certified)

    def test_an_executor_gives_the_same_bits(self, monkeypatch):
        M = Manifold(network(2, 5))
        p = points(40, 2)
        here = M.neighbors(p, k=4)
        monkeypatch.setattr(BLOCKS, "_BLOCK", 16)
        with ThreadPoolExecutor(2) as pool:
            there = M.neighbors(p, k=4, executor=pool)
            around = M.radius_neighbors(p, 0.5, executor=pool)
        assert torch.equal(there.indices, here.indices)
        assert torch.equal(there.distances, here.distances)
        assert torch.equal(there.errors, here.errors)
        assert there.solved == here.solved
        assert torch.equal(around.distances, M.radius_neighbors(p, 0.5).distances)
        with pytest.raises(DTypeError, match="get_executor"):
            M.neighbors(p, k=4, executor="all")

    def test_every_pair_is_solved_once(self):
        M = Manifold(network(2, 7))
        p = points(15, 2)
        n = M.neighbors(p, k=14, rtol=1e-4)
        assert n.solved == 15 * 14 // 2

    def test_progress(self):
        seen = []
        Manifold(network(2, 7)).neighbors(points(9, 2), k=2, progress=lambda *x: seen.append(x))
        assert seen[-1] == (9, 9)


@pytest.fixture(scope="module")
def found():
    return Manifold(network(2, 8)).neighbors(points(40, 2), k=6)


class TestFormats:
    def test_sparse(self, found):
        matrix = found.to_scipy()
        assert matrix.nnz == 240
        row = matrix[3].toarray()[0]
        assert set(np.flatnonzero(row)) == set(found.indices[3].tolist())
        np.testing.assert_array_equal(row[found.indices[3]], found.distances[3])

    def test_scikit_learn_takes_it(self, found):
        neighbors = pytest.importorskip("sklearn.neighbors")
        model = neighbors.KNeighborsClassifier(3, metric="precomputed")
        labels = (points(40, 2)[:, 0] > 0).long().numpy()
        matrix = found.to_scipy()
        model.fit(matrix, labels)
        assert model.predict(matrix).shape == (40,)

    def test_graph(self, found):
        graph = found.to_networkx()
        assert graph.number_of_nodes() == 40
        i, j = 0, int(found.indices[0, 0])
        assert graph[i][j]["weight"] == float(found.distances[0, 0])

    def test_connectivities(self, found):
        weights = found.connectivities()
        assert abs(weights - weights.T).max() < 1e-12
        assert 0 < weights.data.min()
        assert weights.data.max() <= 1
        # Before both directions are joined, a row sums to log2(k + 1).
        for row in found.distances[:5].numpy():
            one = RESULTS._fuzzy(row)
            assert one.max() == 1
            np.testing.assert_allclose(one.sum(), np.log2(7), rtol=1e-6)
        pattern = found.to_scipy() != 0
        assert ((pattern + pattern.T) != (weights != 0)).nnz == 0

    def test_connectivities_as_umap(self, found):
        umap = pytest.importorskip("umap.umap_")
        own = torch.arange(40)[:, None]  # a point is its own neighbour there
        graph, *_ = umap.fuzzy_simplicial_set(
            points(40, 2).numpy(),
            7,
            np.random.RandomState(0),
            "precomputed",
            knn_indices=torch.cat([own, found.indices], 1).numpy(),
            knn_dists=torch.cat([0.0 * own, found.distances], 1).numpy().astype("float32"),
        )
        np.testing.assert_allclose(graph.toarray(), found.connectivities().toarray(), atol=1e-3)

    def test_text(self, found):
        assert "40 of 40 rows certified" in repr(found)

    def test_square_formats_of_queries(self):
        p = points(10, 2)
        n = Manifold(network(2, 8)).neighbors(p, k=2, queries=p[:3] + 0.1)
        for name in ("connectivities", "to_networkx"):
            with pytest.raises(OptionError, match="queries"):
                getattr(n, name)()


class TestEdges:
    def test_a_point_without_a_value_is_nobodys_neighbour(self):
        """Nor is it certified that it is not: its geodesics fail, and are named."""

        def torn(z):
            return torch.cat([z, z[:, :1].log()], -1)

        p = points(8, 2).abs() + 0.2
        p[3, 0] = -1.0
        for queries in (None, p[:2] + 0.01):
            n = solvers.neighbors(Manifold(torn).as_space(p[:2]), p, 1, queries, throw=False)
            assert 3 in n.failed[:, 1].tolist()
            assert not bool(n.certified.any())
            assert int(n.indices[0, 0]) not in (3, 0 if queries is None else 3)

    def test_repeated_points(self):
        p = points(8, 2).repeat(2, 1)
        n = Manifold(network(2, 9)).neighbors(p, k=1)
        assert torch.equal(n.indices[:, 0], (torch.arange(16) + 8) % 16)
        assert bool((n.distances == 0).all())
        assert n.to_scipy().nnz == 16

    def test_two_points(self):
        n = Manifold(network(2, 9)).neighbors(points(2, 2), k=1)
        assert n.indices.tolist() == [[1], [0]]

    def test_no_queries(self):
        n = Manifold(network(2, 9)).neighbors(points(5, 2), k=2, queries=points(0, 2))
        assert n.indices.shape == (0, 2)
        assert n.to_scipy().shape == (0, 5)

    def test_a_condition_for_all(self):
        def decoder(z, c):
            return torch.cat([z, c * z.square()], -1)

        p = points(15, 2)
        c = torch.tensor([[0.7]], dtype=F64)
        n = Manifold(decoder).neighbors(p, k=3, condition=c)
        plain = Manifold(lambda z: torch.cat([z, 0.7 * z.square()], -1)).neighbors(p, k=3)
        assert torch.equal(n.indices, plain.indices)
        torch.testing.assert_close(n.distances, plain.distances)

    @pytest.mark.parametrize(
        ("options", "error", "says"),
        [
            ({"k": 0}, OptionError, "k"),
            ({"k": 5}, OptionError, "4 points"),
            ({"k": 2.0}, (OptionError, DTypeError), "k"),
            ({"k": 2, "candidates": 1}, OptionError, "candidates"),
            ({"k": 2, "rtol": -1.0}, OptionError, "rtol"),
            ({"k": 2, "queries": points(3, 3)}, ShapeError, "2"),
            ({"k": 2, "queries": points(3, 2).float()}, DTypeError, "dtype"),
        ],
    )
    def test_bad_options(self, options, error, says):
        with pytest.raises(error, match=says):
            solvers.neighbors(Manifold(network(2, 9)), points(5, 2), **options)

    def test_bad_points(self):
        M = Manifold(network(2, 9))
        with pytest.raises(NonFiniteError):
            M.neighbors(torch.tensor([[0.0, torch.nan], [1.0, 2.0]], dtype=F64), k=1)
        with pytest.raises(ShapeError):
            solvers.neighbors(M, points(4, 2)[None], 1)
        with pytest.raises(OptionError, match="at least two points, got 1"):
            M.neighbors(points(1, 2), k=1)


class TestRadius:
    @pytest.mark.parametrize("seed", range(4))
    def test_as_brute_force(self, seed):
        M = Manifold(network(2 + seed, seed))
        p = points(30, 2 + seed, seed)
        d = M.distance_matrix(p, rtol=1e-7).fill_diagonal_(torch.inf)
        radius = float(d.flatten().sort().values[120:122].mean())
        n = M.radius_neighbors(p, radius, rtol=1e-4)
        assert bool(n.certified.all())
        assert n.solved < 30 * 29 // 2
        rows, columns, distances, errors = n.edges()
        inside = (d <= radius).nonzero()
        assert set(map(tuple, inside.tolist())) == set(
            zip(rows.tolist(), columns.tolist(), strict=True)
        )
        torch.testing.assert_close(distances, d[rows, columns], rtol=1e-4, atol=0)
        assert bool((errors >= 0).all())
        for query in (0, -1):
            assert bool((n[query][1].diff() >= 0).all())

    def test_of_other_queries(self):
        M = Manifold(network(2, 1))
        p, q = points(40, 2), points(7, 2, seed=5)
        n = M.radius_neighbors(p, 0.5, queries=q)
        d = M.distance_matrix(q, p, rtol=1e-7)
        assert torch.equal(torch.as_tensor(n.to_scipy().toarray() > 0), d <= 0.5)
        assert n.to_scipy().shape == (7, 40)

    def test_formats(self):
        M = Manifold(network(2, 1))
        n = M.radius_neighbors(points(20, 2), 0.4)
        graph = n.to_networkx()
        assert graph.number_of_nodes() == 20
        assert 2 * graph.number_of_edges() == len(n.indices)
        assert "certified" in repr(n)
        with pytest.raises(IndexError):
            n[20]

    def test_nothing_is_near(self):
        n = Manifold(network(2, 1)).radius_neighbors(points(8, 2), 0.0)
        assert n.starts.tolist() == [0] * 9
        assert n.to_scipy().nnz == 0
        assert bool(n.certified.all())

    def test_exactly_on_the_radius_is_no_certificate(self):
        """Of a length that is longer by its error, either may be true."""
        p = points(20, 2)
        M = Manifold(network(2, 1))
        distance = float(M.distance(p[:1], p[1:2], rtol=1e-8).detach())
        n = M.radius_neighbors(p[:2], distance * (1 - 1e-13), rtol=1e-3)
        assert not bool(n.certified.all())

    def test_a_limit_on_candidates(self):
        M = Manifold(network(3, 4))
        p = points(30, 3)
        few = M.radius_neighbors(p, 1.5, candidates=2)
        whole = M.radius_neighbors(p, 1.5)
        assert few.solved < whole.solved
        assert not bool(few.certified.all())
        assert bool(whole.certified.all())

    def test_under_an_ambient_metric_without_distances(self):
        M = Manifold(network(2, 3), ambient=Custom(lambda x: 1 + x.square()))
        n = M.radius_neighbors(points(10, 2), 0.8)
        assert bool(n.certified.all())
        assert n.solved == 45

    def test_a_pair_that_fails_is_named(self):
        M = Manifold(network(2, 5))
        with pytest.raises(NotConvergedError, match="radius_neighbors") as caught:
            M.radius_neighbors(3 * points(8, 2), 9.0, solver=Newton(max_steps=1), rtol=1e-9)
        n = caught.value.result
        assert len(n.failed)
        assert not bool(n.certified[n.failed[:, 0]].any())

    def test_no_queries(self):
        n = Manifold(network(2, 9)).radius_neighbors(points(5, 2), 1.0, queries=points(0, 2))
        assert n.to_scipy().shape == (0, 5)

    @pytest.mark.parametrize(
        "options", [{"radius": -1.0}, {"radius": 1.0, "candidates": 0}, {"radius": torch.inf}]
    )
    def test_bad_options(self, options):
        with pytest.raises(OptionError):
            Manifold(network(2, 9)).radius_neighbors(points(5, 2), **options)


class TestKept:
    """A result answers queries of new points."""

    def test_nearest(self):
        M = Manifold(network(2, 1))
        p, q = points(30, 2), points(6, 2, seed=3)
        index = M.neighbors(p, k=4, rtol=1e-5)
        again = index.query(q)
        whole = M.neighbors(p, k=4, queries=q, rtol=1e-5)
        assert torch.equal(again.indices, whole.indices)
        assert torch.equal(again.distances, whole.distances)
        assert again.rtol == 1e-5
        assert index.query(q, k=2).indices.shape == (6, 2)
        assert torch.equal(again.query(q).indices, whole.indices)

    def test_within(self):
        M = Manifold(network(2, 1))
        p, q = points(30, 2), points(6, 2, seed=3)
        index = M.radius_neighbors(p, 0.6)
        whole = M.radius_neighbors(p, 0.6, queries=q)
        assert torch.equal(index.query(q).indices, whole.indices)
        assert len(index.query(q, radius=0.1).indices) <= len(whole.indices)

    def test_wrong_queries(self):
        index = Manifold(network(2, 1)).neighbors(points(9, 2), k=2)
        with pytest.raises(ShapeError):
            index.query(points(3, 4))
        with pytest.raises(NonFiniteError):
            index.query(points(3, 2) / 0)


def assert_as_one(more, whole):
    """What a search among all points finds, from an earlier result and new points."""
    both = more.certified & whole.certified
    assert bool(both.all())
    for a, b in zip(more.edges()[:2], whole.edges()[:2], strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(more.edges()[2], whole.edges()[2], rtol=1e-6, atol=0)


class TestAdded:
    """Points that are added to a result."""

    @pytest.mark.parametrize("seed", range(4))
    def test_nearest(self, seed):
        M = Manifold(network(3, seed))
        p = points(60, 3, seed)
        first = M.neighbors(p[:50], k=4, rtol=1e-5)
        more = first.add(p[50:])
        whole = M.neighbors(p, k=4, rtol=1e-5)
        assert_as_one(more, whole)
        assert torch.equal(more.indices, brute(M, p, 4).indices)
        assert more.solved < whole.solved / 2
        assert more.points == 60

    def test_every_new_pair_is_solved_once(self, monkeypatch):
        asked = []
        solve = BLOCKS.geodesic

        def told(space, start, stop, **options):
            asked.extend(map(tuple, torch.cat([start, stop], 1).tolist()))
            return solve(space, start, stop, **options)

        monkeypatch.setattr(BLOCKS, "geodesic", told)
        net = network(2, 2)
        jacobian = torch.func.vmap(torch.func.jacfwd(net))
        space = solvers.MetricSpace(lambda z: jacobian(z).mT @ jacobian(z))
        p = points(14, 2)
        first = solvers.neighbors(space, p[:12], 3, candidates=11, rtol=1e-4)
        assert bool(first.certified.all())
        asked.clear()
        more = first.add(p[12:], candidates=13)
        old = {tuple(z) for z in p[:12].tolist()}
        assert len(asked) == len(set(asked)) == more.solved
        assert all(not ({a[:2], a[2:]} <= old) for a in asked)
        assert_as_one(more, solvers.neighbors(space, p, 3, candidates=13, rtol=1e-4))

    def test_within(self):
        M = Manifold(network(2, 1))
        p = points(50, 2)
        first = M.radius_neighbors(p[:40], 0.5)
        more = first.add(p[40:])
        whole = M.radius_neighbors(p, 0.5)
        assert_as_one(more, whole)
        assert more.solved < whole.solved
        assert torch.equal(more.starts, whole.starts)
        again = M.radius_neighbors(p, 0.4, kept=first)
        assert_as_one(again, M.radius_neighbors(p, 0.4))

    def test_again_and_again(self):
        M = Manifold(network(2, 3))
        p = points(40, 2)
        grown = M.neighbors(p[:10], k=3)
        for i in range(10, 40, 6):
            grown = grown.add(p[i : i + 6])
        assert_as_one(grown, M.neighbors(p, k=3))

    def test_nothing(self):
        M = Manifold(network(2, 3))
        first = M.neighbors(points(20, 2), k=3)
        same = first.add(points(0, 2))
        assert same.solved == 0
        assert_as_one(same, first)

    def test_rows_that_were_not_certain_are_searched_again(self):
        M = Manifold(network(3, 4))
        p = points(50, 3)
        rough = M.neighbors(p[:40], k=5, candidates=5)
        assert not bool(rough.certified.all())
        assert_as_one(rough.add(p[40:], candidates=None), M.neighbors(p, k=5))

    def test_what_failed_is_named_again(self):
        M = Manifold(network(2, 5))
        p = 3 * points(12, 2)
        options = {"solver": Newton(max_steps=1), "rtol": 1e-9, "throw": False}
        first = M.neighbors(p[:10], k=2, **options)
        more = first.add(p[10:])
        whole = M.neighbors(p, k=2, **options)
        assert len(first.failed)
        assert torch.equal(more.failed, whole.failed)
        assert torch.equal(more.certified, whole.certified)

    def test_arrays_and_other_shapes(self):
        M = Manifold(network(2, 3))
        p = points(20, 2)
        first = M.neighbors(p[:15], k=3)
        assert torch.equal(first.add(p[15:].numpy()).indices, M.neighbors(p, k=3).indices)
        with pytest.raises(ShapeError):
            first.add(points(3, 4))
        with pytest.raises(DTypeError):
            first.add(p[15:].float())
        with pytest.raises(NonFiniteError):
            first.add(p[15:] / 0)

    def test_what_does_not_fit(self):
        M = Manifold(network(2, 3))
        p = points(20, 2)
        first = M.neighbors(p[:15], k=3)
        for options, says in (
            ({"k": 4}, "one of 3 neighbours"),
            ({"k": 3, "rtol": 1e-6}, "rtol"),
            ({"k": 3, "points": p[5:]}, "other points"),
            ({"k": 3, "points": p[:10]}, "more than there are"),
            ({"k": 3, "queries": p[:2]}, "both"),
            ({"k": 3, "kept": M.radius_neighbors(p[:15], 0.1)}, "RadiusNeighbors"),
            ({"k": 3, "kept": M.neighbors(p[:15], k=3, queries=p[:2])}, "other queries"),
        ):
            with pytest.raises(OptionError, match=says):
                M.neighbors(**{"points": p, "kept": first, **options})
        with pytest.raises(OptionError, match="queries"):
            M.neighbors(p[:15], k=3, queries=p[:2]).add(p[15:])

    def test_a_result_of_another_space(self, tmp_path):
        """One from a file does not know its space; distances below those in data space tell."""
        M = Manifold(network(2, 3))
        p = points(20, 2)
        first = solvers.Neighbors.load(M.neighbors(p[:15], k=3).save(tmp_path / "n"))
        with pytest.raises(OptionError, match="kept="):
            first.add(p[15:])
        assert_as_one(M.neighbors(p, k=3, kept=first), M.neighbors(p, k=3))
        with pytest.raises(OptionError, match="this space"):
            Manifold(lambda z: 10 * z).neighbors(p, k=3, kept=first)
