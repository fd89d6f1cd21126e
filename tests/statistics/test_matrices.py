"""What is computed from distances alone: test, hierarchy, scaling, heat."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from riemae import Manifold
from riemae.exceptions import (
    DeviceError,
    DTypeError,
    GraphError,
    NonFiniteError,
    OptionError,
    ShapeError,
)
from riemae.solvers import Neighbors
from riemae.statistics import GeodesicHierarchy, GeodesicMDS, energy_test, heat_kernel

F64 = torch.float64


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def nearest(d, k):
    """Neighbors of a matrix of exact distances."""
    n = len(d)
    values, indices = (d + torch.diag(torch.full((n,), torch.inf))).topk(k, largest=False)
    none = torch.zeros(0, dtype=torch.int64)
    return Neighbors(
        indices=indices,
        distances=values,
        errors=torch.zeros_like(values),
        certified=torch.ones(n, dtype=torch.bool),
        failed=none.view(0, 2),
        status=none,
        rtol=1e-6,
        solved=n * (n - 1) // 2,
        points=n,
        among_themselves=True,
    )


class TestEnergyTest:
    def test_the_statistic_by_hand(self):
        d = torch.tensor([[0, 1, 4, 5], [1, 0, 3, 4], [4, 3, 0, 2], [5, 4, 2, 0]], dtype=F64)
        found = energy_test(d, torch.tensor([False, False, True, True]), permutations=9)
        assert abs(found.statistic - (2 * 4 - 0.5 - 1.0)) < 1e-12

    def test_its_level_is_right(self):
        """500 pairs of samples of one distribution: 5 % are refused, within three deviations."""
        refused = 0
        for seed in range(500):
            x = seeded(16, 2, seed=seed)
            split = torch.arange(16) < 8
            refused += (
                energy_test(torch.cdist(x, x), split, permutations=19, generator=seed).p_value
                <= 0.05
            )
        assert abs(refused / 500 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 500)

    def test_a_difference_is_seen(self):
        x = seeded(40, 2)
        x[20:] += 1.5
        found = energy_test(torch.cdist(x, x), np.arange(40) >= 20, permutations=199)
        assert found.p_value == 1 / 200

    def test_arguments(self):
        d = torch.cdist(seeded(6, 2), seeded(6, 2, seed=0))
        with pytest.raises(ShapeError, match="second"):
            energy_test(d, torch.zeros(5, dtype=torch.bool))
        with pytest.raises(ShapeError, match="bool"):
            energy_test(d, torch.zeros(6))
        with pytest.raises(OptionError, match="two points in each"):
            energy_test(d, torch.arange(6) == 0)
        with pytest.raises(OptionError, match="at least 4 points"):
            energy_test(d[:3, :3], torch.arange(3) == 0)


class TestHierarchy:
    @pytest.mark.parametrize("linkage", ["average", "complete", "single"])
    def test_planted_clusters_are_found(self, linkage):
        x = torch.cat([seeded(10, 2), seeded(8, 2, seed=1) + 12, seeded(5, 2, seed=2) - 12])
        found = GeodesicHierarchy(3, linkage=linkage).fit(torch.cdist(x, x))
        for part in (slice(0, 10), slice(10, 18), slice(18, 23)):
            assert len(found.labels_[part].unique()) == 1
        assert len(found.labels_.unique()) == 3
        assert found.tree_.shape == (22, 4)
        assert float(found.tree_[-1, 2]) > 10

    def test_of_geodesic_distances(self):
        M = Manifold(lambda z: torch.cat([z.cos(), z.sin()], -1))
        z = torch.tensor([[0.0], [0.1], [2.0], [2.1]], dtype=F64)
        labels = GeodesicHierarchy(2).fit_predict(M.distance_matrix(z, method="geodesic"))
        assert labels.tolist() == [0, 0, 1, 1]

    def test_copies_may_be_apart(self):
        """Three clusters stay where all distances are equal, too."""
        labels = GeodesicHierarchy(3).fit_predict(torch.zeros(5, 5, dtype=F64))
        assert len(labels.unique()) == 3

    def test_arguments(self):
        with pytest.raises(OptionError, match="linkage"):
            GeodesicHierarchy(2, linkage="ward")
        with pytest.raises(OptionError, match="at least 3 points"):
            GeodesicHierarchy(3).fit(torch.zeros(2, 2))


@pytest.mark.parametrize("fit", [GeodesicHierarchy(2).fit, GeodesicMDS(1).fit])
def test_tensors_without_a_matrix(fit):
    with pytest.raises(DTypeError, match="dense"):
        fit(torch.zeros(3, 3).to_sparse())
    with pytest.raises(DeviceError, match="meta"):
        fit(torch.zeros(3, 3, device="meta"))


class TestScaling:
    def test_points_of_the_plane_are_found_again(self):
        x = seeded(30, 2)
        d = torch.cdist(x, x)
        found = GeodesicMDS(2).fit(d)
        assert found.stress_ < 1e-6
        assert found.converged_
        y = found.embedding_
        torch.testing.assert_close(torch.cdist(y, y), d, rtol=1e-5, atol=1e-5)

    def test_from_neighbours_alone(self):
        x = seeded(60, 2)
        d = torch.cdist(x, x)
        found = GeodesicMDS(2, max_steps=3000).fit(nearest(d, 10))
        y = found.embedding_
        assert found.converged_
        torch.testing.assert_close(torch.cdist(y, y), d, rtol=1e-3, atol=1e-3)

    def test_a_sphere_does_not_fit_into_the_plane(self):
        u = torch.nn.functional.normalize(seeded(40, 3), dim=-1)
        d = (u @ u.T).clamp(-1, 1).arccos()
        assert GeodesicMDS(2).fit(d).stress_ > 0.1
        assert GeodesicMDS(3).fit(d).stress_ < GeodesicMDS(2).fit(d).stress_

    def test_copies_are_joined(self):
        x = seeded(12, 2).repeat(2, 1)
        d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        y = GeodesicMDS(2).fit_transform(nearest(d, 9))
        torch.testing.assert_close(y[:12], y[12:], rtol=1e-3, atol=1e-3)

    def test_parts_that_are_not_joined(self):
        x = torch.cat([seeded(8, 2), seeded(8, 2, seed=1) + 50])
        with pytest.raises(GraphError, match="2 parts"):
            GeodesicMDS(2).fit(nearest(torch.cdist(x, x), 3))

    def test_arguments(self):
        with pytest.raises(OptionError, match="n_components"):
            GeodesicMDS(0)
        with pytest.raises(ShapeError, match="GeodesicMDS.fit"):
            GeodesicMDS(2).fit(torch.zeros(3, 4))


class TestHeat:
    u = torch.nn.functional.normalize(seeded(1000, 3), dim=-1)
    d = (u @ u.T).clamp(-1, 1).arccos()
    near = nearest(d, 30)

    def test_harmonics_of_the_sphere_decay_with_their_eigenvalues(self):
        """``exp(−l (l + 1) t)``, to the accuracy of 1,000 points."""
        heights = self.u[:, 2]
        for f, eigenvalue in ((heights, 2), (heights.square() - 1 / 3, 6)):
            spread = heat_kernel(self.near, 0.1, 2, f)
            left = float(spread @ f / (f @ f))
            assert abs(-math.log(left) / 0.1 - eigenvalue) < 0.1 * eigenvalue

    def test_what_is_even_stays_so_and_nothing_is_negative(self):
        ones = torch.ones(1000, 1, dtype=F64)
        torch.testing.assert_close(heat_kernel(self.near, 0.3, 2, ones), ones)
        x = seeded(50, 2)
        kernel = heat_kernel(nearest(torch.cdist(x, x), 8), 0.2, 2)
        assert kernel.shape == (50, 50)
        assert float(kernel.amin()) > -1e-12
        torch.testing.assert_close(kernel.sum(1), torch.ones(50, dtype=F64))
        torch.testing.assert_close(
            heat_kernel(nearest(torch.cdist(x, x), 8), 0.0, 2), torch.eye(50, dtype=F64)
        )

    def test_it_is_the_exponential_of_its_generator(self):
        """By scipy's dense exponential; for long times, too, and with copies among the points."""
        x = seeded(20, 2)
        x = torch.cat([x, x[:5]])
        near = nearest(torch.cdist(x, x), 6)
        step = 1e-4
        small = heat_kernel(near, step, 2, bandwidth=0.5)
        generator = (linalg.logm(small.numpy()) / step).real
        for time in (0.1, 3.0, 100.0):
            exact = linalg.expm(time * generator)
            found = heat_kernel(near, time, 2, bandwidth=0.5).numpy()
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-8)
        even = heat_kernel(near, 1e6, 2, x, bandwidth=0.5)
        assert float((even - even[0]).abs().max()) < 1e-9

    def test_copies_exchange_heat(self):
        """They are the nearest neighbours of all: heat on one of them flows to the other."""
        x = seeded(12, 2)
        near = nearest(torch.cdist(x, x).fill_diagonal_(0.0).repeat(2, 2), 5)
        heat = torch.cat([torch.ones(12, dtype=F64), torch.zeros(12, dtype=F64)])
        spread = heat_kernel(near, 3.0, 2, heat)
        torch.testing.assert_close(spread[:12], spread[12:], rtol=0.2, atol=0.1)

    def test_numbers_that_are_whole_become_heat(self):
        whole = torch.arange(len(self.near.indices))
        expected = heat_kernel(self.near, 0.1, 2, whole.double())
        assert torch.equal(heat_kernel(self.near, 0.1, 2, whole), expected)

    def test_nobody_elses_random_numbers_are_drawn(self):
        before = np.random.get_state()[1].copy()
        heat_kernel(self.near, 50.0, 2, torch.ones(len(self.near.indices), dtype=F64))
        np.testing.assert_array_equal(np.random.get_state()[1], before)

    def test_it_is_a_semigroup(self):
        f = self.u[:, 0].exp()
        twice = heat_kernel(self.near, 0.1, 2, heat_kernel(self.near, 0.2, 2, f))
        torch.testing.assert_close(twice, heat_kernel(self.near, 0.3, 2, f))

    def test_arguments(self):
        with pytest.raises(OptionError, match="time"):
            heat_kernel(self.near, -1.0, 2)
        with pytest.raises(OptionError, match="dimension"):
            heat_kernel(self.near, 1.0, 0)
        with pytest.raises(ShapeError, match="values"):
            heat_kernel(self.near, 1.0, 2, torch.ones(3))
        with pytest.raises(DTypeError, match="M.neighbors"):
            heat_kernel(self.d, 1.0, 2)
        with pytest.raises(OptionError, match="a time of at most"):
            heat_kernel(self.near, 1e15, 2)
        with pytest.raises(NonFiniteError):
            heat_kernel(self.near, 1.0, 2, torch.full((len(self.near.indices),), torch.nan))
        with pytest.raises(DTypeError, match="values as a torch tensor"):
            heat_kernel(self.near, 1.0, 2, [1.0] * len(self.near.indices))
        with pytest.raises(OptionError, match="copies of one another"):
            heat_kernel(nearest(torch.zeros(6, 6, dtype=F64), 2), 1.0, 2)
        M = Manifold(lambda z: torch.cat([z, z], -1))
        z = seeded(6, 1)
        with pytest.raises(OptionError, match="queries"):
            heat_kernel(M.neighbors(z, 2, queries=z[:2]), 1.0, 1)
