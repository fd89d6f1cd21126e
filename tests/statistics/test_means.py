"""Fréchet means and medians: closed forms on the sphere, the hyperbolic plane and SPD(2), planted
centres, several minima, weights, and bad input.
"""

import math

import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.exceptions import (
    DifferentiationError,
    DTypeError,
    NonFiniteError,
    NotConvergedError,
    OptionError,
    ShapeError,
)
from riemae.solvers import Curve, MetricSpace, Status
from riemae.statistics import (
    frechet_mean,
    geodesic_regression,
    geometric_median,
    tangent_pca,
)
from riemae.statistics.groups import Group
from riemae.statistics.joint import Aim
from riemae.statistics.means import means_of_groups

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


def whole(z):
    """Symmetric matrices from their three numbers."""
    rows = [torch.stack([z[:, 0], z[:, 1]], -1), torch.stack([z[:, 1], z[:, 2]], -1)]
    return torch.stack(rows, -2)


def affine_invariant(z):
    inverse = whole(z).inverse()
    basis = whole(torch.eye(3).to(z))
    turned = torch.einsum("bij,ajk->baik", inverse, basis)
    return torch.einsum("baij,bcji->bac", turned, turned)


def spherical_distances(p, z):
    return (sphere(p) * sphere(z)).sum(-1).clamp(-1, 1).acos()


def affine_invariant_distances(p, z):
    """geoopt's."""
    geoopt = pytest.importorskip("geoopt")
    return geoopt.SymmetricPositiveDefinite().dist(whole(p), whole(z))


def positive(n, seed=0):
    values = points(n, 3, seed)
    return torch.stack([values[:, 0].exp(), 0.3 * values[:, 1], values[:, 2].exp()], -1)


def implicit(distances, p, z, weights, covector, power=2):
    """Gradients of ``covector · p`` in points and weights, by autograd on closed-form distances.

    ``∂_p F = 0`` holds on, so ``dp = −(∂_pp F)⁻¹ d(∂_p F)``.
    """
    p, z, weights = (x.detach().clone().requires_grad_() for x in (p, z, weights))
    share = weights / weights.sum()
    objective = (share * distances(p.expand_as(z), z) ** power).sum()
    (slope,) = torch.autograd.grad(objective, p, create_graph=True)
    rows = [torch.autograd.grad(s, p, retain_graph=True)[0] for s in slope]
    adjoint = -torch.linalg.solve(torch.stack(rows).T, covector)
    return torch.autograd.grad(slope, (z, weights), adjoint)


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

        angle = torch.tensor(0.6, dtype=F64)
        turn = torch.stack(
            [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
        )
        values = points(6, 2, scale=0.5).exp()
        matrices = turn @ torch.diag_embed(values) @ turn.T
        z = torch.stack([matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]], -1)
        m = frechet_mean(MetricSpace(affine_invariant), z, rtol=1e-9)
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


class TestDerivatives:
    """By the implicit function theorem, against closed-form distances and differences."""

    COVECTOR = torch.tensor([0.3, -0.7, 0.4], dtype=F64)

    @pytest.mark.parametrize(
        ("geometry", "distances", "z"),
        [
            (Manifold(sphere), spherical_distances, points(7, 2)),
            (HALF_PLANE, hyperbolic_distances, points(7, 2) + torch.tensor([0.0, 2.0])),
            (MetricSpace(affine_invariant), affine_invariant_distances, positive(5)),
        ],
        ids=["sphere", "hyperbolic plane", "SPD(2)"],
    )
    def test_in_points_and_weights(self, geometry, distances, z):
        z = z.clone().requires_grad_()
        weights = points(len(z), 1, 3)[:, 0].abs().requires_grad_()
        covector = self.COVECTOR[: z.shape[1]]
        m = frechet_mean(geometry, z, weights, rtol=1e-8)
        found = torch.autograd.grad(m.point @ covector, (z, weights), retain_graph=True)
        exact = implicit(distances, m.point, z, weights, covector)
        for own, other in zip(found, exact, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-8)
        share = weights / weights.sum()
        at = m.point.detach().expand_as(z)
        variance = (share * distances(at, z).square()).sum()
        torch.testing.assert_close(m.variance, variance, rtol=1e-7, atol=0)
        # The point moves, too, but to first order that changes nothing.
        found = torch.autograd.grad(m.variance, (z, weights))
        exact = torch.autograd.grad(variance, (z, weights))
        for own, other in zip(found, exact, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-8)

    def test_in_the_decoder(self):
        net = network(2).requires_grad_(True)
        z = points(7, 2)
        m = frechet_mean(Manifold(net), z, rtol=1e-9)
        first = net[0].weight
        covector = self.COVECTOR[:2]
        (moved,) = torch.autograd.grad(m.point @ covector, first, retain_graph=True)
        (spread,) = torch.autograd.grad(m.variance, first)
        step = 1e-2 * points(*first.shape, seed=5)
        found = []
        with torch.no_grad():
            for sign in (1, -1):
                first += sign * step
                found.append(frechet_mean(Manifold(net), z, rtol=1e-10))
                first -= sign * step
        there, back = found
        change = (there.point - back.point) @ covector / 2
        torch.testing.assert_close((moved * step).sum(), change, rtol=1e-3, atol=0)
        change = (there.variance - back.variance) / 2
        torch.testing.assert_close((spread * step).sum(), change, rtol=1e-3, atol=0)

    @pytest.mark.parametrize("name", ["point", "variance"])
    def test_no_second_derivative(self, name):
        z = points(5, 2).requires_grad_()
        value = getattr(frechet_mean(Manifold(sphere), z, rtol=1e-3), name)
        (slope,) = torch.autograd.grad(value.sum(), z, create_graph=True)
        with pytest.raises(DifferentiationError, match="frechet_mean"):
            torch.autograd.grad(slope.sum(), z)

    def test_nobody_asks(self):
        z = points(5, 2)
        assert not frechet_mean(Manifold(sphere), z, rtol=1e-3).point.requires_grad
        with torch.no_grad():
            m = frechet_mean(Manifold(sphere), z.requires_grad_(), rtol=1e-3)
        assert not m.point.requires_grad

    def test_of_several_starts(self):
        z = points(6, 2).requires_grad_()
        one = frechet_mean(Manifold(sphere), z, rtol=1e-6)
        some = frechet_mean(Manifold(sphere), z, rtol=1e-6, n_starts=3)
        slopes = [torch.autograd.grad(m.point[0], z)[0] for m in (one, some)]
        torch.testing.assert_close(*slopes, rtol=0, atol=1e-5)


class TestManyAtOnce:
    def test_groups_as_one_by_one(self):
        M = Manifold(network(3))
        z = points(24, 3)
        of = torch.arange(24) % 4
        groups = Group(of, torch.full((24,), 1 / 6, dtype=F64), 4)
        space = M.as_space(z)
        found = means_of_groups(M, space, z[:4], z, groups, Aim(1e-7, 100))
        assert (found.status == Status.CONVERGED).all()
        for name in range(4):
            alone = frechet_mean(M, z[of == name], rtol=1e-7)
            torch.testing.assert_close(found.joint.centers[name], alone.point, rtol=0, atol=1e-6)
            torch.testing.assert_close(found.distances[of == name], alone.distances)

    def test_one_that_fails_does_not_touch_the_others(self):
        z = points(12, 2)
        of = torch.arange(12) % 2
        groups = Group(of, torch.full((12,), 1 / 6, dtype=F64), 2)
        M = Manifold(sphere)
        curves = Curve.line(z[:2][of], z, 8)
        curves.nodes[3, 4] = torch.nan
        found = means_of_groups(M, M.as_space(z), z[:2], z, groups, Aim(1e-6, 100), curves)
        assert found.status[1] == Status.NON_FINITE
        assert torch.equal(found.joint.centers[1], z[1])
        alone = frechet_mean(M, z[of == 0])
        torch.testing.assert_close(found.joint.centers[0], alone.point, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
    def test_errors_of_networks_are_honest(self, rtol):
        for seed in range(3):
            M = Manifold(network(4, seed))
            z = points(20, 4, seed, scale=0.8)
            fine = frechet_mean(M, z, rtol=1e-9)
            m = frechet_mean(M, z, rtol=rtol)
            off = M.norm(fine.point, m.point - fine.point)
            assert float(off) <= float(m.error) + float(fine.error)
            assert float(m.error) <= rtol * float(m.variance.sqrt())

    def test_a_saddle_is_left(self):
        """From the top of a hill between two minima, where the slope is zero."""
        hill = Manifold(
            lambda z: torch.cat([z, 2 * torch.exp(-2 * z.square().sum(-1, keepdim=True))], -1)
        )
        z = torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=F64)
        m = frechet_mean(hill, z, init=torch.zeros(2, dtype=F64), rtol=1e-4)
        assert m.index == 0
        top = frechet_mean(hill, z, init=torch.tensor([0.0, 1.0], dtype=F64), rtol=1e-4)
        torch.testing.assert_close(m.variance, top.variance, rtol=1e-3, atol=0)


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

    @pytest.mark.parametrize("f", [frechet_mean, geometric_median])
    def test_copies_are_no_other_minima(self, f):
        z = torch.cat([self.Z, self.Z + torch.tensor([2 * math.pi, 0.0], dtype=F64)])
        found = f(self.M, z, n_starts=8)
        assert found.alternatives == ()

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

    @pytest.mark.parametrize("seed", range(8))
    def test_minimises_closed_form_distances(self, seed):
        """Nelder and Mead find nothing lower from the points and from the median itself."""
        minimize = pytest.importorskip("scipy.optimize").minimize
        z = points(3 + seed, 2, seed, scale=0.5)
        weights = points(3 + seed, 1, seed + 50)[:, 0].abs()
        space, distances = Manifold(sphere), spherical_distances
        if seed % 2:
            z[:, 1] = z[:, 1].exp()
            space, distances = HALF_PLANE, hyperbolic_distances
        share = weights / weights.sum()

        def objective(p):
            return float((share * distances(torch.as_tensor(p).expand_as(z), z)).sum())

        m = geometric_median(space, z, weights, rtol=1e-7)
        starts = [*z, z.mean(0), m.point]
        options = {"xatol": 1e-9, "fatol": 1e-13}
        found = [minimize(objective, p, method="Nelder-Mead", options=options) for p in starts]
        # Closed forms of distance 0 are off by the root of a rounding.
        assert objective(m.point) <= min(one.fun for one in found) + 3e-8
        torch.testing.assert_close(float(m.objective), objective(m.point), rtol=0, atol=3e-8)
        assert m.converged

    def test_a_point_of_the_data_is_met_exactly(self):
        """Its weight is more than what the others pull with, or just less."""
        angle = torch.tensor([0.0, 2.0, 4.0], dtype=F64)
        ring = 0.4 * torch.stack([angle.cos(), angle.sin()], -1)
        z = torch.cat([torch.zeros(1, 2, dtype=F64), ring])
        pull = float(ring.sum(0).norm()) / 0.4
        for held, exact in ((1.02, True), (0.98, False)):
            weights = torch.tensor([held * pull, 1.0, 1.0, 1.0], dtype=F64)
            m = geometric_median(Manifold(lambda z: torch.cat([z, z], -1)), z, weights, rtol=1e-8)
            assert torch.equal(m.point, z[0]) == exact
            assert (float(m.error) == 0) == exact
            assert m.converged
            if not exact:
                assert 0 < float(m.point.norm()) < 0.05

    @pytest.mark.parametrize("where", ["sphere", "half plane"])
    def test_derivatives(self, where):
        """Against the implicit function theorem on closed-form distances."""
        z = points(7, 2, seed=4)
        space, distances = Manifold(sphere), spherical_distances
        if where == "half plane":
            z[:, 1] = z[:, 1].exp()
            space, distances = HALF_PLANE, hyperbolic_distances
        weights = torch.linspace(1, 2, 7, dtype=F64)
        z.requires_grad_()
        weights.requires_grad_()
        m = geometric_median(space, z, weights, rtol=1e-8)
        covector = torch.tensor([0.7, -0.4], dtype=F64)
        found = torch.autograd.grad(covector @ m.point, (z, weights), retain_graph=True)
        wanted = implicit(distances, m.point, z, weights, covector, power=1)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
        (slope,) = torch.autograd.grad(m.objective, z)
        inside = z.detach().clone().requires_grad_()
        share = (weights / weights.sum()).detach()
        known = (share * distances(m.point.detach().expand_as(inside), inside)).sum()
        torch.testing.assert_close(
            slope, torch.autograd.grad(known, inside)[0], rtol=1e-5, atol=1e-7
        )

    def test_follows_the_point_that_it_is(self):
        z = torch.cat([points(1, 2).expand(3, 2), points(2, 2, seed=7)]).requires_grad_()
        m = geometric_median(Manifold(sphere), z)
        (slope,) = torch.autograd.grad(m.point.sum(), z)
        torch.testing.assert_close(slope, torch.eye(5, dtype=F64)[0, :, None].expand(5, 2))

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


class TestKinks:
    """A piecewise linear decoder: what is known roughly is said to be."""

    @pytest.mark.parametrize("find", [frechet_mean, geometric_median])
    @pytest.mark.parametrize("seed", range(2))
    def test_its_error_is_honest(self, find, seed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = nn.Sequential(nn.Linear(2, 24), nn.ReLU(), nn.Linear(24, 8)).double()
        z = points(12, 2, seed, scale=1.0)
        M = Manifold(net.requires_grad_(False))
        m = find(M, z, rtol=1e-6, throw=False)
        spread = m.variance.sqrt()
        if find is frechet_mean:
            assert m.status == Status.RESOLUTION
            with pytest.raises(NotConvergedError, match="RESOLUTION"):
                find(M, z, rtol=1e-6)
        assert m.error <= 0.3 * spread
        # What it minimises is not lower, beyond its error, where other searches look.
        power = 2 if find is frechet_mean else 1
        for step in 0.3 * torch.eye(2, dtype=F64):
            for near in (m.point + step, m.point - step):
                lengths = M.geodesic(near.expand_as(z), z, rtol=1e-2, throw=False).length
                assert (lengths**power).mean() > 0.99 * m.objective

    def test_of_a_linear_decoder_is_exact(self):
        z = points(9, 3)
        net = nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 5)).double().requires_grad_(False)
        m = frechet_mean(Manifold(net), z)
        torch.testing.assert_close(m.point, z.mean(0), rtol=0, atol=1e-9)


class TestSingularCoordinates:
    """Around a place where coordinates have no metric there is no minimum to come to rest at."""

    @staticmethod
    def plane(z):
        r, angle = z.unbind(-1)
        return torch.stack([r * angle.cos(), r * angle.sin()], -1)

    @pytest.mark.parametrize("decoder", [sphere, plane])
    def test_error_is_not_small(self, decoder):
        angle = torch.arange(6, dtype=F64) * math.pi / 3 - 2.9
        height = torch.tensor([1.2, 1.25, 1.1, 1.3, 1.22, 1.15], dtype=F64)
        M = Manifold(decoder, latent_dim=2)
        mean = frechet_mean(M, torch.stack([height, angle], -1), throw=False)
        assert not mean.converged
        assert mean.error.isinf()
        # The curves are real ones all the same.
        assert mean.variance.isfinite()
        assert mean.variance >= 0

    # The metric is singular on the fold: that another solver takes over there is announced.
    @pytest.mark.filterwarnings("ignore::riemae.exceptions.FallbackWarning")
    def test_curves_do_not_jump_across_a_fold(self):
        fold = Manifold(lambda z: torch.stack([z[..., 0].square(), z[..., 1]], -1), latent_dim=2)
        # By way of the fold the distance of (2, 0) and (−2, 0) is 8, though their images are one.
        z = torch.tensor([[2.0, 0.0], [-2.0, 0.0], [1.5, 0.1], [-1.8, 0.3]], dtype=F64)
        for init in (z[0], None):
            mean = frechet_mean(fold, z, init=init, throw=False)
            assert not mean.converged
            assert mean.error.isinf()
