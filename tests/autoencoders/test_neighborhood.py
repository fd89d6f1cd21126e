"""Neighbourhood graphs against scikit-learn, scipy and networkx.

Embeddings against isometric truths.
"""

import math
import warnings

import networkx
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, spearmanr
from sklearn.manifold import Isomap
from sklearn.neighbors import NearestNeighbors

from riemae import datasets
from riemae.autoencoders import embedding
from riemae.autoencoders.neighborhood import Neighborhood
from riemae.exceptions import (
    DisconnectedGraphWarning,
    DTypeError,
    GraphError,
    MissingExtraError,
    NonFiniteError,
    OptionError,
    ShapeError,
)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=gen(seed), dtype=dtype)


def lists(hood):
    return [set(hood.of(i).tolist()) for i in range(len(hood))]


def peers(x, k):
    _, index = NearestNeighbors(n_neighbors=k).fit(x.numpy()).kneighbors()
    return [set(row.tolist()) for row in index]


def ring(n):
    return networkx.cycle_graph(n)


class TestNearest:
    @pytest.mark.parametrize("k", [1, 4, 29])
    def test_directed_is_what_scikit_learn_finds(self, k):
        x = draw(30, 3)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DisconnectedGraphWarning
            )  # with k = 1 there are several components
            assert lists(Neighborhood.nearest(x, k)) == peers(x, k)

    def test_mutual_and_union_are_intersection_and_union_of_both_directions(self):
        x = draw(60, 2)
        one = peers(x, 12)
        back = [{j for j in range(60) if i in one[j]} for i in range(60)]
        assert lists(Neighborhood.nearest(x, 12, kind="union")) == [
            a | b for a, b in zip(one, back, strict=True)
        ]
        assert lists(Neighborhood.nearest(x, 12, kind="mutual")) == [
            a & b for a, b in zip(one, back, strict=True)
        ]

    def test_images_are_flattened(self):
        x = draw(20, 1, 4, 4)
        assert lists(Neighborhood.nearest(x, 5)) == peers(x.flatten(1), 5)

    def test_lengths_are_distances(self, monkeypatch):
        monkeypatch.setattr("riemae.autoencoders.edges._CHUNK", 32)  # a few edges at a time
        x = draw(40, 3, dtype=torch.float32)
        hood = Neighborhood.nearest(x, 5)
        centre = torch.repeat_interleave(torch.arange(40), hood.degree)
        true = np.linalg.norm(x.double()[centre] - x.double()[hood.neighbors], axis=1)
        assert np.allclose(hood.lengths, true, rtol=1e-12)

    def test_a_duplicate_is_a_neighbour_and_the_centre_is_not(self):
        x = draw(12, 2)[[0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]]
        hood = Neighborhood.nearest(x, 3)
        for i in range(12):
            assert i not in hood.of(i)
            assert len(hood.of(i)) == 3
        for i in range(4):
            assert set(hood.of(i).tolist()) == set(range(4)) - {i}

    def test_numpy_and_single_precision(self):
        x = draw(25, 3, dtype=torch.float32)
        assert lists(Neighborhood.nearest(x.numpy(), 4)) == lists(Neighborhood.nearest(x, 4))

    @pytest.mark.parametrize("k", [0, 5, 6, 2.0, True])
    def test_fewer_samples_than_neighbours(self, k):
        with pytest.raises(OptionError, match=r"1 <= k < 5, the number of samples"):
            Neighborhood.nearest(draw(5, 2), k)

    def test_bad_data(self):
        x = draw(8, 2)
        x[3, 1] = math.nan
        with pytest.raises(NonFiniteError, match=r"rows \[3\]"):
            Neighborhood.nearest(x, 2)
        with pytest.raises(ShapeError, match=r"\(n, \*shape\)"):
            Neighborhood.nearest(torch.zeros(8), 2)
        with pytest.raises(OptionError, match="'mutual'"):
            Neighborhood.nearest(draw(8, 2), 2, kind="both")

    @pytest.mark.parametrize(
        ("approximate", "name"), [(False, "sklearn.neighbors"), (True, "pynndescent")]
    )
    def test_missing_packages_are_named(self, monkeypatch, approximate, name):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(MissingExtraError, match=r"riemae\[neighbors\]"):
            Neighborhood.nearest(draw(8, 2), 2, approximate=approximate)

    def test_a_mutual_graph_that_leaves_samples_alone(self):
        x = torch.tensor(
            [[0.0], [1.0], [2.1], [9.0]]
        )  # 0 and 1 name each other, 2 names 1, and no sample names 3
        with pytest.raises(GraphError, match=r"2 of 4 without \(first: \[2, 3\]\).*union"):
            Neighborhood.nearest(x, 1, kind="mutual")

    def test_components_are_announced(self):
        x = draw(14, 2)
        x[:4] += 100
        with pytest.warns(DisconnectedGraphWarning, match=r"2 components \(of 10, 4 samples\)"):
            hood = Neighborhood.nearest(x, 3)
        assert torch.equal(torch.bincount(hood.components), torch.tensor([4, 10]))
        assert "2 component(s)" in repr(hood)


class TestOwnGraphs:
    @pytest.mark.parametrize(
        "form",
        [
            torch.as_tensor,
            np.asarray,
            lambda a: torch.as_tensor(a).to_sparse(),
            lambda a: torch.as_tensor(a) > 0,
            scipy.sparse.csr_array,
            scipy.sparse.csr_matrix,
            scipy.sparse.coo_array,
        ],
        ids=["tensor", "numpy", "sparse tensor", "bool", "csr", "csr matrix", "coo"],
    )
    def test_adjacency(self, form):
        graph = networkx.gnm_random_graph(20, 50, seed=1)
        hood = Neighborhood.from_adjacency(form(networkx.to_numpy_array(graph)))
        assert lists(hood) == [set(graph[i]) for i in range(20)]
        assert (hood.lengths == 1).all()

    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
    def test_a_compressed_tensor(self):
        a = networkx.to_numpy_array(ring(6))
        assert lists(Neighborhood.from_adjacency(torch.as_tensor(a).to_sparse_csr())) == [
            {(i - 1) % 6, (i + 1) % 6} for i in range(6)
        ]

    def test_the_diagonal_is_no_neighbour(self):
        a = np.ones((4, 4))
        assert lists(Neighborhood.from_adjacency(a)) == [set(range(4)) - {i} for i in range(4)]

    def test_arrows_point_one_way(self):
        hood = Neighborhood.from_adjacency(np.array([[0, 2.5, 0], [0, 0, 1], [1, 0, 0]]))
        assert lists(hood) == [{1}, {2}, {0}]
        assert hood.lengths.tolist() == [2.5, 1, 1]

    def test_stored_zeros_are_edges_of_length_zero(self):
        a = scipy.sparse.coo_array(
            ([0.0, 0.0, 1.0, 1.0], ([0, 1, 1, 2], [1, 0, 2, 1])), shape=(3, 3)
        )
        hood = Neighborhood.from_adjacency(a)
        assert lists(hood) == [{1}, {0, 2}, {1}]
        assert int(hood.components.max()) == 0

    def test_networkx(self):
        graph = networkx.Graph()
        graph.add_nodes_from("abcd")
        graph.add_weighted_edges_from([("d", "a", 2.0), ("a", "c", 3.0)])
        graph.add_edge("b", "c")
        hood = Neighborhood.from_networkx(graph)
        assert lists(hood) == [{2, 3}, {2}, {0, 1}, {0}]
        assert hood.lengths.tolist() == [3, 2, 1, 3, 1, 2]
        assert (Neighborhood.from_networkx(graph, weight=None).lengths == 1).all()

    def test_directed_and_parallel_edges(self):
        graph = networkx.MultiDiGraph()
        graph.add_weighted_edges_from(
            [(0, 1, 5.0), (0, 1, 2.0), (1, 2, 1.0), (2, 0, 1.0), (2, 2, 1.0)]
        )
        hood = Neighborhood.from_networkx(graph)
        assert lists(hood) == [{1}, {2}, {0}]
        assert hood.lengths[0] == 2

    @pytest.mark.parametrize(
        "form", [list, np.asarray, torch.tensor], ids=["list", "numpy", "tensor"]
    )
    def test_index(self, form):
        table = form(
            [[0, 1], [0, 2], [1, 1]]
        )  # as from a library that counts a point among its own neighbours
        assert lists(Neighborhood.from_index(table)) == [{1}, {0, 2}, {1}]

    def test_lists_of_different_lengths(self):
        x = torch.tensor([[0.0], [3.0], [7.0]])
        hood = Neighborhood.from_index([[1, 2], [2], [0]], x)
        assert lists(hood) == [{1, 2}, {2}, {0}]
        assert hood.lengths.tolist() == [3, 7, 4, 7]

    @pytest.mark.parametrize(
        ("call", "error", "text"),
        [
            (lambda: Neighborhood.from_adjacency(np.ones((2, 3))), ShapeError, "square"),
            (lambda: Neighborhood.from_adjacency(np.ones(3)), ShapeError, r"\(n, n\)"),
            (
                lambda: Neighborhood.from_adjacency(torch.ones(2, 2, 2).to_sparse()),
                ShapeError,
                "square",
            ),
            (
                lambda: Neighborhood.from_adjacency(np.array([[0, -1.0], [1, 0]])),
                GraphError,
                "at least 0",
            ),
            (
                lambda: Neighborhood.from_adjacency(np.array([[0, np.nan], [1, 0]])),
                GraphError,
                "finite",
            ),
            (lambda: Neighborhood.from_adjacency(np.eye(3)), GraphError, "3 of 3 without"),
            (lambda: Neighborhood.from_adjacency(np.zeros((0, 0))), GraphError, "0 of 0 without"),
            (
                lambda: Neighborhood.from_adjacency(np.ones((3, 3)), torch.zeros(2, 1)),
                ShapeError,
                r"\(3, \*shape\)",
            ),
            (
                lambda: Neighborhood.from_networkx(networkx.star_graph(0)),
                GraphError,
                "1 of 1 without",
            ),
            (lambda: Neighborhood.from_index(torch.zeros(3, 1)), DTypeError, "integers"),
            (
                lambda: Neighborhood.from_index(torch.zeros(3, dtype=torch.int64)),
                ShapeError,
                r"\(n, k\)",
            ),
            (lambda: Neighborhood.from_index([[1], [2], [3]]), GraphError, "got 3 in row 2"),
            (lambda: Neighborhood.from_index([[1], [-1]]), GraphError, "got -1 in row 1"),
            (lambda: Neighborhood.from_index([[1], []]), GraphError, "1 of 2 without"),
        ],
    )
    def test_refuses(self, call, error, text):
        with pytest.raises(error, match=text):
            call()


class TestSample:
    def test_uniform_among_the_neighbours(self):
        # Nodes with 1, 2, 3 … neighbours; chi-squared over 20,000 draws each.
        graph = networkx.gnm_random_graph(12, 30, seed=2)
        hood = Neighborhood.from_networkx(graph)
        for i in range(12):
            drawn = hood.sample(torch.full((20_000,), i), gen(i))
            counts = [int((drawn == j).sum()) for j in graph[i]]
            assert sum(counts) == 20_000
            assert len(counts) == 1 or chisquare(counts).pvalue > 1e-4

    def test_seeded_and_of_any_shape(self):
        hood = Neighborhood.nearest(draw(50, 2), 6)
        index = torch.arange(50).view(5, 10)
        a, b, c = (hood.sample(index, gen(seed)) for seed in (0, 0, 1))
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        assert a.shape == (5, 10)
        assert hood.sample(torch.empty(0, dtype=torch.int64)).shape == (0,)
        assert hood.sample(index).shape == index.shape  # torch's own generator

    @settings(max_examples=20, deadline=None, derandomize=True)
    @given(st.integers(3, 30), st.integers(0, 2**16))
    def test_only_ever_neighbours(self, n, seed):
        k = 1 + seed % (n - 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DisconnectedGraphWarning)
            hood = Neighborhood.nearest(draw(n, 2, seed=seed), k)
        index = torch.randint(n, (64,), generator=gen(seed))
        for i, j in zip(index.tolist(), hood.sample(index, gen(seed)).tolist(), strict=True):
            assert j in hood.of(i)

    def test_refuses_masks_and_floats(self):
        hood = Neighborhood.from_networkx(ring(5))
        for index in (torch.ones(5, dtype=torch.bool), torch.ones(5)):
            with pytest.raises(DTypeError, match="int64"):
                hood.sample(index)
        with pytest.raises(GraphError, match="from 0 to 4"):
            hood.of(5)

    def test_elsewhere(self):
        hood = Neighborhood.from_networkx(ring(5)).to("meta")
        assert hood.sample(torch.zeros(3, dtype=torch.int64, device="meta")).shape == (3,)


class TestEmbedding:
    def test_isomap_is_scikit_learns(self):
        x = datasets.swiss_roll(300, generator=1, dtype=torch.float64).x
        found = Neighborhood.nearest(x, 8).embedding(2, dtype=torch.float64)
        peer = torch.as_tensor(Isomap(n_neighbors=8, n_components=2).fit_transform(x.numpy()))
        peer = peer / peer.std(0, unbiased=False).max()
        assert torch.allclose(found.abs(), peer.abs(), atol=1e-6)

    def test_isomap_unrolls(self):
        roll = datasets.swiss_roll(800, generator=0)
        z = Neighborhood.nearest(roll.x, 10).embedding(2)
        assert datasets.rank_correlation(roll, z) > 0.99
        assert datasets.rank_correlation(roll, roll.x) < 0.6

    def test_a_path_is_exact(self):
        # Shortest paths of a chain are distances on a line: classical scaling returns the line
        # itself.
        t = draw(15, 1).sort(0).values
        hood = Neighborhood.from_index(
            [[j for j in (i - 1, i + 1) if 0 <= j < 15] for i in range(15)], t
        )
        z = hood.embedding(1, dtype=torch.float64)
        line = (t - t.mean()) / t.std(unbiased=False)
        assert min((z - line).abs().max(), (z + line).abs().max()) < 1e-9

    def test_landmarks_change_little(self):
        roll = datasets.swiss_roll(600, generator=0, dtype=torch.float64)
        hood = Neighborhood.nearest(roll.x, 10)
        matrix = hood._matrix()
        graph = matrix.maximum(matrix.T).tocsr()
        all_of_them, some = embedding.isomap(graph, 2, 600), embedding.isomap(graph, 2, 60)
        assert np.allclose(all_of_them, some, atol=0.1)
        assert not np.array_equal(all_of_them, some)

    def test_laplacian_of_a_ring_is_a_circle(self):
        # Eigenvectors of a cycle are cos and sin of 2πi/n: two coordinates on a circle, whatever
        # their phase.
        z = Neighborhood.from_networkx(ring(40)).embedding(2, "laplacian", dtype=torch.float64)
        assert torch.allclose(z.square().sum(1), torch.tensor(2.0).double(), atol=1e-9)
        step = torch.atan2(z[:, 1], z[:, 0]).diff().remainder(2 * math.pi)
        assert torch.allclose(step, step[:1].expand(39), atol=1e-9)

    def test_laplacian_of_a_path(self):
        # Random walk on a path of n nodes: the second eigenvector is cos(π i/(n − 1)); n above and
        # below the switch from dense to sparse.
        for n in (60, 700):
            z = Neighborhood.from_networkx(networkx.path_graph(n)).embedding(
                1, "laplacian", dtype=torch.float64
            )[:, 0]
            true = torch.cos(math.pi * torch.arange(n).double() / (n - 1))
            true = true / true.std(unbiased=False)
            true = true - true.mean()
            assert min((z - true).abs().max(), (z + true).abs().max()) < 1e-5

    @pytest.mark.parametrize("method", ["isomap", "laplacian"])
    def test_scaled(self, method):
        z = Neighborhood.nearest(draw(100, 3), 8).embedding(2, method)
        assert z.dtype == torch.get_default_dtype()
        assert z.shape == (100, 2)
        assert z.mean(0).abs().max() < 1e-6
        spread = z.std(0, unbiased=False)
        assert abs(float(spread.max()) - 1) < 1e-5
        assert torch.equal(z, Neighborhood.nearest(draw(100, 3), 8).embedding(2, method))

    def test_components_are_joined_by_their_nearest_samples(self):
        t = torch.cat([torch.arange(10.0), torch.arange(14.0, 24.0), torch.arange(60.0, 64.0)])[
            :, None
        ]
        with pytest.warns(DisconnectedGraphWarning, match="3 components"):
            hood = Neighborhood.nearest(t, 2)
        with pytest.warns(DisconnectedGraphWarning, match=r"joined by 2 edge\(s\)"):
            z = hood.embedding(1)
        assert datasets.in_order(z, t)
        assert abs(spearmanr(z[:, 0], t[:, 0]).statistic) == pytest.approx(1)
        # The chain of components is a line again, so the embedding is exact.
        line = (t - t.mean()) / t.std(unbiased=False)
        assert min((z - line).abs().max(), (z + line).abs().max()) < 1e-5

    def test_components_of_a_graph_without_data(self):
        with pytest.warns(DisconnectedGraphWarning):
            hood = Neighborhood.from_networkx(networkx.disjoint_union(ring(4), ring(5)))
        with pytest.raises(GraphError, match=r"2 components.*x="):
            hood.embedding(1)

    def test_nothing_but_duplicates_in_one_place(self):
        x = torch.cat([torch.zeros(3, 1), torch.arange(1.0, 6.0)[:, None]])
        hood = Neighborhood.nearest(x, 3)
        z = hood.embedding(1)
        assert z[:3].std() < 1e-4
        assert datasets.in_order(z[2:], x[2:])

    def test_bad_options(self):
        hood = Neighborhood.from_networkx(ring(5))
        for m in (0, 4):
            with pytest.raises(OptionError, match="1 <= m <= 3"):
                hood.embedding(m)
        with pytest.raises(OptionError, match="laplacian"):
            hood.embedding(1, "umap")
