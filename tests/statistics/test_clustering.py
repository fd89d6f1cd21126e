"""Clusters by geodesic distance: planted ones, exhaustive search, seeds, and bad input."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.exceptions import OptionError, ShapeError
from riemae.solvers import Status, distance_matrix
from riemae.statistics import GeodesicKMeans, GeodesicKMedoids, frechet_mean
from riemae.statistics.lloyd import Lloyd

F64 = torch.float64
CENTERS = torch.tensor([[0.5, 0.0], [-0.4, 0.6], [-0.4, -0.7]], dtype=F64)


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


def planted(n=10, seed=0, scale=0.05):
    generator = torch.Generator().manual_seed(seed)
    noise = scale * torch.randn(3, n, 2, generator=generator, dtype=F64)
    return (CENTERS[:, None] + noise).flatten(0, 1), torch.arange(3).repeat_interleave(n)


def same_partition(a, b):
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(b.tolist()))


def brute_force(M, z, count, seed):
    source = torch.Generator().manual_seed(seed)
    weights = torch.ones(len(z), dtype=F64)
    chosen = []
    for _ in range(count):
        chosen.append(int(torch.multinomial(weights, 1, generator=source)))
        weights = M.distance_matrix(z, z[chosen]).square().amin(1)
    centers = z[chosen].clone()
    labels = M.distance_matrix(z, centers).argmin(1)
    for _ in range(50):
        centers = torch.stack(
            [frechet_mean(M, z[labels == c], rtol=1e-5).point for c in range(count)]
        )
        distances = M.distance_matrix(z, centers)
        before, labels = labels, distances.argmin(1)
        if torch.equal(before, labels):
            return labels, centers, float(distances.square().amin(1).sum())
    raise AssertionError("does not settle")


class TestKMeans:
    def test_planted(self):
        z, truth = planted()
        M = Manifold(sphere)
        k = GeodesicKMeans(M, 3, n_init=2).fit(z)
        assert same_partition(k.labels_, truth)
        assert k.converged_
        assert k.status_ == Status.CONVERGED
        assert not len(k.undecided_)
        means = torch.stack([frechet_mean(M, z[truth == c]).point for c in range(3)])
        gaps = torch.cdist(k.cluster_centers_, means).amin(1)
        assert float(gaps.max()) < 1e-3
        assert k.inertia_ == pytest.approx(
            sum(float(frechet_mean(M, z[truth == c]).variance) * 10 for c in range(3)), rel=1e-2
        )
        assert torch.equal(k.predict(z), k.labels_)
        assert "inertia" in repr(k)

    def test_the_ambient_distance_deceives(self):
        """Two turns of a spiral, side by side: geodesic clusters follow the turns."""

        def spiral(t):
            return torch.cat([t * t.cos(), t * t.sin()], -1)

        turns = [torch.linspace(a, a + 3.0, 12, dtype=F64) for a in (10.0, 16.3)]
        t = torch.cat(turns)[:, None]
        k = GeodesicKMeans(Manifold(spiral), 2, n_init=3).fit(t)
        assert same_partition(k.labels_, torch.arange(2).repeat_interleave(12))

    @pytest.mark.parametrize("seed", range(4))
    def test_as_brute_force(self, seed):
        """Lloyd's algorithm with all distances, from the same seeds."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 5)).double()
        M = Manifold(net.requires_grad_(False))
        z = torch.randn(40, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
        labels, centers, inertia = brute_force(M, z, 4, seed)
        k = GeodesicKMeans(M, 4, rtol=1e-4, generator=seed).fit(z)
        assert k.converged_
        assert torch.equal(k.labels_, labels)
        torch.testing.assert_close(k.cluster_centers_, centers, rtol=0, atol=1e-3)
        assert k.inertia_ == pytest.approx(inertia, rel=1e-3)

    def test_few_geodesics_decide(self):
        """Where clusters are apart, the ambient distance rules out nearly all pairs."""
        z, truth = planted(30)
        M = Manifold(sphere)
        state = Lloyd(M, M.as_space(z), z, 3, 1e-2)
        for column in range(3):
            state.seed(column, CENTERS[column])
        state.assign()
        assert torch.equal(state.labels, truth)
        # The first centre is far from all others; the next ones are compared where they may win.
        assert state.solved < 2 * len(z)
        before = state.solved
        state.refine(torch.arange(3))
        state.assign()
        assert state.solved == before

    def test_bounds_hold(self):
        """After centres have moved, lower bounds and upper bounds are those of real distances."""
        z, _ = planted(8, scale=0.3)
        M = Manifold(sphere)
        state = Lloyd(M, M.as_space(z), z, 3, 1e-3)
        for column in range(3):
            state.seed(column, z[8 * column])
        state.assign()
        state.refine(torch.arange(3))
        images = sphere(state.centers)
        exact = (sphere(z) @ images.T).clamp(-1, 1).acos()
        assert (state.low <= exact + 1e-9).all()
        assert (state.high >= exact - 1e-4).all()

    def test_seeds(self):
        z, _ = planted(6)
        one = GeodesicKMeans(Manifold(sphere), 3, generator=3).fit(z)
        two = GeodesicKMeans(Manifold(sphere), 3, generator=3).fit(z)
        assert torch.equal(one.cluster_centers_, two.cluster_centers_)

    def test_as_many_clusters_as_points_and_repeated_points(self):
        z, _ = planted(1)
        k = GeodesicKMeans(Manifold(sphere), 3).fit(z)
        assert sorted(k.labels_.tolist()) == [0, 1, 2]
        assert k.inertia_ == pytest.approx(0, abs=1e-12)
        again = GeodesicKMeans(Manifold(sphere), 2).fit(z[:1].expand(4, 2))
        assert again.inertia_ == pytest.approx(0, abs=1e-12)

    def test_bad_input(self):
        M = Manifold(sphere)
        z, _ = planted(1)
        with pytest.raises(OptionError, match="at least 4 points"):
            GeodesicKMeans(M, 4).fit(z)
        with pytest.raises(OptionError, match="n_clusters"):
            GeodesicKMeans(M, 0)
        with pytest.raises(OptionError, match="fit"):
            GeodesicKMeans(M, 2).predict(z)


class TestKMedoids:
    @pytest.mark.parametrize("seed", range(4))
    def test_no_exchange_is_better(self, seed):
        """Against all sets of medoids, where there are few."""
        generator = np.random.default_rng(seed)
        x = generator.normal(size=(12, 2))
        d = np.linalg.norm(x[:, None] - x[None], axis=-1)
        k = GeodesicKMedoids(3).fit(d)
        best = min(
            d[:, list(chosen)].min(1).sum() for chosen in itertools.combinations(range(12), 3)
        )
        assert k.converged_
        assert k.inertia_ <= 1.05 * best
        for place, point in itertools.product(range(3), range(12)):
            other = k.medoid_indices_.clone()
            other[place] = point
            assert d[:, other].min(1).sum() >= k.inertia_ - 1e-9

    def test_planted(self):
        z, truth = planted()
        M = Manifold(sphere)
        k = GeodesicKMedoids(3).fit(M.distance_matrix(z))
        assert same_partition(k.labels_, truth)
        whole = GeodesicKMedoids(3).fit_predict(distance_matrix(M, z, return_result=True))
        assert torch.equal(whole, k.labels_)
        assert torch.equal(k.labels_[k.medoid_indices_], torch.arange(3))

    def test_one_cluster(self):
        d = np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)))
        k = GeodesicKMedoids(1).fit(d)
        assert k.medoid_indices_.tolist() == [2]
        assert k.inertia_ == 6

    def test_bad_input(self):
        with pytest.raises(ShapeError):
            GeodesicKMedoids(2).fit(np.zeros((3, 2)))
        with pytest.raises(OptionError, match="finite"):
            GeodesicKMedoids(1).fit(np.array([[0.0, np.nan], [1.0, 0.0]]))
        with pytest.raises(OptionError, match="at least 3"):
            GeodesicKMedoids(3).fit(np.zeros((2, 2)))


@pytest.mark.parametrize("seed", range(2))
def test_kinks_raise_nothing(seed):
    """A piecewise linear decoder's labels are those of real distances, but for undecided points."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 8)).double()
    M = Manifold(net.requires_grad_(False))
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)
    k = GeodesicKMeans(M, 3).fit(z)
    assert k.status_ == Status.RESOLUTION
    assert k.converged_
    there = k.cluster_centers_[None].expand(20, 3, 2)
    found = M.geodesic(there, z[:, None].expand(20, 3, 2), rtol=1e-2, throw=False).length
    decided = torch.ones(20, dtype=torch.bool)
    decided[k.undecided_] = False
    own = found.gather(1, k.labels_[:, None])[:, 0]
    assert (own <= 1.05 * found.amin(1))[decided].all()
