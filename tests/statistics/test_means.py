"""Fréchet means and medians: closed forms on the sphere, the hyperbolic plane and SPD(2), planted
centres, several minima, weights, and bad input.
"""

import math

import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.exceptions import (
    DTypeError,
    NonFiniteError,
    NotConvergedError,
    OptionError,
    ShapeError,
)
from riemae.solvers import MetricSpace, Status
from riemae.statistics import (
    frechet_mean,
    geodesic_regression,
    geometric_median,
    tangent_pca,
)

F64 = torch.float64


def points(n, m, seed=0, scale=0.4):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, m, generator=generator, dtype=F64)


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


HALF_PLANE = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())


def spherical_mean(x, weights):
    """Karcher's iteration in the ambient space, by the closed form of the logarithm."""
    mean = (weights[:, None] * x).sum(0)
    mean = mean / mean.norm()
    for _ in range(500):
        angle = (x @ mean).clamp(-1, 1).acos()
        tangent = x - (x @ mean)[:, None] * mean
        size = tangent.norm(dim=-1)
        logs = torch.where(size > 0, angle / size, 0.0)[:, None] * tangent
        step = (weights[:, None] * logs).sum(0)
        mean = mean + step
        mean = mean / mean.norm()
    return mean


def hyperbolic_distances(p, q):
    return (1 + (p - q).square().sum(-1) / (2 * p[..., 1] * q[..., 1])).acosh()


def log_of(matrices):
    values, vectors = torch.linalg.eigh(matrices)
    return vectors @ torch.diag_embed(values.log()) @ vectors.mT


def network(m, seed=0, outputs=10):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(m, 24), nn.Tanh(), nn.Linear(24, outputs))
    return net.double().requires_grad_(False)


class TestMean:
    @pytest.mark.parametrize("seed", range(3))
    def test_on_the_sphere(self, seed):
        z = points(12, 2, seed)
        weights = points(12, 1, seed + 10)[:, 0].abs()
        m = frechet_mean(Manifold(sphere), z, weights, rtol=1e-9)
        exact = spherical_mean(sphere(z), weights / weights.sum())
        torch.testing.assert_close(sphere(m.point), exact, rtol=0, atol=1e-8)
        angle = (sphere(z) @ exact).clamp(-1, 1).acos()
        share = weights / weights.sum()
        torch.testing.assert_close(m.variance, (share * angle.square()).sum(), rtol=1e-8, atol=0)
        torch.testing.assert_close(m.distances, angle, rtol=1e-6, atol=1e-8)
        assert m.converged

    def test_in_the_hyperbolic_plane(self):
        """The gradient of the sum of squared closed-form distances vanishes."""
        z = points(15, 2)
        z[:, 1] = (0.5 * z[:, 1]).exp()
        m = frechet_mean(HALF_PLANE, z, rtol=1e-9)
        mean = m.point.clone().requires_grad_()
        sum_ = hyperbolic_distances(mean.expand_as(z), z).square().mean()
        (slope,) = torch.autograd.grad(sum_, mean)
        assert float(slope.norm()) < 1e-7
        torch.testing.assert_close(m.variance, sum_.detach(), rtol=1e-8, atol=0)

    def test_of_two_points_is_the_middle(self):
        M = Manifold(network(3))
        z = points(2, 3)
        m = frechet_mean(M, z, rtol=1e-8)
        r = M.geodesic(z[0], z[1], rtol=1e-9)
        torch.testing.assert_close(m.point, r.curve(0.5), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(m.distances, r.length.expand(2) / 2, rtol=1e-7, atol=0)

    def test_on_spd(self):
        """Of commuting matrices it is the exponential of the mean logarithm."""

        def whole(z):
            return torch.stack(
                [torch.stack([z[:, 0], z[:, 1]], -1), torch.stack([z[:, 1], z[:, 2]], -1)], -2
            )

        def tensor(z):
            inverse = whole(z).inverse()
            basis = whole(torch.eye(3).to(z))
            turned = torch.einsum("bij,ajk->baik", inverse, basis)
            return torch.einsum("baij,bcji->bac", turned, turned)

        angle = torch.tensor(0.6, dtype=F64)
        turn = torch.stack(
            [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
        )
        values = points(6, 2, scale=0.5).exp()
        matrices = turn @ torch.diag_embed(values) @ turn.T
        z = torch.stack([matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]], -1)
        m = frechet_mean(MetricSpace(tensor), z, rtol=1e-9)
        exact = turn @ torch.diag(values.log().mean(0).exp()) @ turn.T
        torch.testing.assert_close(whole(m.point[None])[0], exact, rtol=1e-7, atol=1e-8)
        torch.testing.assert_close(
            m.variance, (log_of(matrices) - log_of(exact)).square().sum((1, 2)).mean()
        )

    def test_of_flat_space_is_the_average(self):
        z = points(9, 3)
        m = frechet_mean(Manifold(lambda z: 3 * z), z)
        torch.testing.assert_close(m.point, z.mean(0), rtol=0, atol=1e-9)
        torch.testing.assert_close(m.variance, 9 * (z - z.mean(0)).square().sum(1).mean())

    def test_of_a_symmetric_set(self):
        p = torch.tensor([[0.2, 0.0], [-0.2, 0.0], [0.0, 0.3], [0.0, -0.3]], dtype=F64)
        assert float(frechet_mean(Manifold(sphere), p).point.abs().max()) < 1e-6

    @pytest.mark.parametrize("seed", range(3))
    def test_is_a_minimum_for_a_network(self, seed):
        M = Manifold(network(2, seed))
        z = points(10, 2, seed)
        m = frechet_mean(M, z, rtol=1e-7)
        spread = float(m.variance.sqrt())
        for angle in torch.arange(6.0):
            step = 0.02 * spread * torch.stack([angle.cos(), angle.sin()]).double()
            near = m.point + step / M.norm(m.point, step) * 0.02 * spread
            sum_ = M.geodesic(near.expand_as(z), z, rtol=1e-8).length.square().mean()
            assert float(sum_) > float(m.variance)

    def test_its_error_is_honest(self):
        z = points(12, 2)
        exact = spherical_mean(sphere(z), torch.full((12,), 1 / 12, dtype=F64))
        for rtol in (1e-2, 1e-4, 1e-6):
            m = frechet_mean(Manifold(sphere), z, rtol=rtol)
            off = (sphere(m.point) - exact).norm()
            assert float(off) <= rtol * float(m.variance.sqrt())
            assert float(off) <= 10 * float(m.error) + 1e-9

    def test_two_minima(self):
        """On both sides of a hill: a mean in the north, and one in the south."""
        hill = Manifold(
            lambda z: torch.cat([z, 3 * torch.exp(-2 * z.square().sum(-1, keepdim=True))], -1)
        )
        z = torch.tensor([[-2.0, 0.1], [2.0, 0.1], [-2.0, -0.1], [2.0, -0.1]], dtype=F64)
        starts = torch.tensor([[0.0, 2.0], [0.0, -2.0]], dtype=F64)
        found = [frechet_mean(hill, z, init=start, rtol=1e-5) for start in starts]
        assert float(found[0].point[1]) > 0.3
        assert float(found[1].point[1]) < -0.3
        torch.testing.assert_close(found[0].variance, found[1].variance, rtol=1e-3, atol=0)

    def test_other_minima_are_reported(self):
        hill = Manifold(
            lambda z: torch.cat([z, 3 * torch.exp(-2 * z.square().sum(-1, keepdim=True))], -1)
        )
        side = torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=F64)
        z = torch.cat([side, torch.tensor([[0.0, 1.8], [0.0, -1.8]], dtype=F64)])
        m = frechet_mean(hill, z, n_starts=4, rtol=1e-3)
        assert len(m.alternatives) >= 1
        assert all(float(m.variance) <= float(other.variance) for other in m.alternatives)

    def test_one_point_and_repeated_points(self):
        z = points(1, 2)
        m = frechet_mean(Manifold(sphere), z)
        assert torch.equal(m.point, z[0])
        assert float(m.variance) == 0
        assert m.converged
        again = frechet_mean(Manifold(sphere), z.expand(5, 2))
        assert torch.equal(again.point, z[0])

    def test_weights_of_zero_count_nothing(self):
        z = points(8, 2)
        weights = torch.ones(8, dtype=F64)
        weights[3:] = 0
        whole = frechet_mean(Manifold(sphere), z, weights)
        torch.testing.assert_close(
            whole.point, frechet_mean(Manifold(sphere), z[:3]).point, rtol=0, atol=1e-6
        )

    def test_in_single_precision(self):
        z = points(8, 2)
        fine = frechet_mean(Manifold(sphere), z)
        single = frechet_mean(Manifold(sphere), z.float())
        assert frechet_mean(Manifold(sphere), z[:1].float().expand(5, 2)).converged
        assert single.point.dtype == torch.float32
        torch.testing.assert_close(single.point.double(), fine.point, rtol=0, atol=1e-3)

    def test_too_few_steps(self):
        z = points(8, 2)
        with pytest.raises(NotConvergedError) as caught:
            frechet_mean(Manifold(sphere), z, max_steps=1)
        m = caught.value.result
        assert m.status == Status.MAX_STEPS
        assert m.point.shape == (2,)
        assert "MAX_STEPS" in repr(m)
        assert not frechet_mean(Manifold(sphere), z, max_steps=1, throw=False).converged

    def test_seeded(self):
        z = points(8, 2)
        first = frechet_mean(Manifold(sphere), z, n_starts=2, rtol=1e-3, generator=4)
        assert torch.equal(
            first.point,
            frechet_mean(Manifold(sphere), z, n_starts=2, rtol=1e-3, generator=4).point,
        )


class TestPeriodicCoordinates:
    """A cylinder whose data lie on both sides of the seam."""

    M = Manifold(
        lambda z: torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], -1),
        latent=(2 * math.pi, None),
    )
    Z = torch.tensor([[3.0, 0.0], [-3.0, 0.1], [3.1, 0.3], [-2.9, -0.2]], dtype=F64)

    @pytest.mark.parametrize("f", [frechet_mean, geometric_median])
    def test_as_without_a_seam(self, f):
        unwrapped = self.Z.clone()
        unwrapped[unwrapped[:, 0] < 0, 0] += 2 * math.pi
        expected = f(Manifold(lambda z: z), unwrapped)
        found = f(self.M, self.Z)
        torch.testing.assert_close(
            self.M.decode(found.point[None]), self.M.decode(expected.point[None]), rtol=0, atol=1e-6
        )
        torch.testing.assert_close(found.variance, expected.variance, rtol=1e-5, atol=0)

    def test_neighbours(self):
        n = self.M.neighbors(self.Z, 2)
        gaps = (self.Z[:, None] - self.Z[None]).abs()
        gaps[..., 0] = torch.minimum(gaps[..., 0], 2 * math.pi - gaps[..., 0])
        exact = gaps.norm(dim=-1).fill_diagonal_(torch.inf).topk(2, largest=False)
        assert torch.equal(n.indices, exact.indices)
        torch.testing.assert_close(n.distances, exact.values, rtol=1e-4, atol=0)

    def test_components_and_regression(self):
        pca = tangent_pca(self.M, self.Z)
        mean = frechet_mean(self.M, self.Z)
        torch.testing.assert_close(pca.explained_variance.sum(), mean.variance)
        t = torch.tensor([0.0, 1.0, 0.5, 0.7], dtype=F64)
        assert float(geodesic_regression(self.M, t, self.Z).distances.max()) < 0.5


class TestMedian:
    def test_half_of_the_weight_is_needed_to_move_it(self):
        """Three of five in one place: the median is there, whatever the others do."""
        z = torch.cat([points(1, 2).expand(3, 2), points(2, 2, seed=7)])
        m = geometric_median(Manifold(sphere), z)
        torch.testing.assert_close(m.point, z[0], rtol=0, atol=1e-8)

    def test_on_the_sphere(self):
        """The unit tangents to the data add up to nothing."""
        z = points(11, 2)
        m = geometric_median(Manifold(sphere), z, rtol=1e-8)
        M = Manifold(sphere)
        units = m.logarithms / m.distances[:, None]
        total = units.sum(0)
        assert float(M.norm(m.point, total)) < 1e-5
        torch.testing.assert_close(m.objective, m.distances.mean())

    def test_on_a_line(self):
        z = torch.tensor([[0.0], [1.0], [2.0], [7.0], [50.0]], dtype=F64)
        m = geometric_median(Manifold(lambda z: torch.cat([z, 2 * z], -1)), z)
        torch.testing.assert_close(m.point, torch.tensor([2.0], dtype=F64), rtol=0, atol=1e-5)

    def test_is_not_the_mean(self):
        z = torch.cat([points(10, 2, scale=0.05), torch.tensor([[1.0, 0.5]], dtype=F64)])
        M = Manifold(sphere)
        mean, median = frechet_mean(M, z).point, geometric_median(M, z).point
        assert float(median.norm()) < float(mean.norm()) / 2


class TestBadInput:
    @pytest.mark.parametrize("f", [frechet_mean, geometric_median])
    def test_typed(self, f):
        M = Manifold(sphere)
        z = points(5, 2)
        with pytest.raises(OptionError, match="at least 1 point"):
            f(M, z[:0])
        with pytest.raises(ShapeError):
            f(M, z[0])
        with pytest.raises(NonFiniteError):
            f(M, z * torch.nan)
        with pytest.raises(OptionError, match="weights"):
            f(M, z, -torch.ones(5))
        with pytest.raises(OptionError, match="weights"):
            f(M, z, torch.ones(4))
        with pytest.raises(DTypeError, match="weights"):
            f(M, z, [1.0] * 5)
        with pytest.raises(OptionError, match="rtol"):
            f(M, z, rtol=0.0)
        with pytest.raises(OptionError, match="n_starts"):
            f(M, z, n_starts=0)
        with pytest.raises(ShapeError, match="init"):
            f(M, z, init=z)

    def test_a_geodesic_that_fails(self):
        def torn(z):
            return torch.where(z[:, :1] < 0.5, torch.cat([z, z.square()], -1), torch.nan)

        z = points(6, 2)
        z[0, 0] = 0.9
        with pytest.raises(NonFiniteError, match="0.9"):
            frechet_mean(Manifold(torn), z)

    def test_a_geodesic_through_nowhere(self):
        def torn(z):
            hole = ((z[:, :1] - 0.5).abs() < 0.1) & (z[:, 1:].abs() < 9)
            return torch.where(hole, torch.nan, torch.cat([z, z.square()], -1))

        z = points(6, 2)
        z[0, 0] = 0.9
        with pytest.raises(NotConvergedError) as caught:
            frechet_mean(Manifold(torn), z)
        assert caught.value.result.failed.tolist() == [0]


def test_a_space_of_solvers():
    z = points(6, 2)
    z[:, 1] = z[:, 1].exp()
    assert isinstance(frechet_mean(HALF_PLANE, z).variance, torch.Tensor)
    assert solvers.geodesic(HALF_PLANE, z[0], z[1]).converged
    assert math.isfinite(float(geometric_median(HALF_PLANE, z).objective))


class TestRough:
    """An accuracy of a hundredth of the spread takes paths, and no shots."""

    @pytest.mark.parametrize("find", [frechet_mean, geometric_median])
    def test_as_the_accurate_one_to_a_hundredth(self, find, monkeypatch):
        z = torch.randn(12, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) / 3
        space = MetricSpace(
            lambda z: 4 * torch.eye(2).to(z) / (1 + z.square().sum(-1))[:, None, None].square()
        )
        exact = find(space, z, rtol=1e-6)

        def refused(*_, **__):
            raise AssertionError("a shot")

        monkeypatch.setattr("riemae.solvers.log", refused)
        rough = find(space, z, rtol=1e-2)
        assert rough.converged
        off = space.norm(exact.point[None], (rough.point - exact.point)[None])[0]
        assert off <= rough.error <= 1e-2 * rough.variance.sqrt()
