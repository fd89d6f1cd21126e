"""The radius of the ball in which a mean is the only one, against curvatures in closed form."""

import math

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.solvers import MetricSpace
from riemae.statistics import frechet_mean, geometric_median

F64 = torch.float64


def points(n, m, seed=0, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, m, generator=generator, dtype=F64)


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


def torus(z):
    a, b = z.unbind(-1)
    out = 2 + a.cos()
    return torch.stack([out * b.cos(), out * b.sin(), a.sin()], -1)


AXES = torch.tensor([1.0, 1.5, 0.6], dtype=F64)


def ellipsoid(z):
    return AXES * sphere(z)


def curvature_of_ellipsoid(x):
    # K = 1 / (a² b² c² (x²/a⁴ + y²/b⁴ + z²/c⁴)²).
    return 1 / (AXES.prod().square() * (x.square() / AXES**4).sum(-1).square())


def whole(z):
    rows = [torch.stack([z[:, 0], z[:, 1]], -1), torch.stack([z[:, 1], z[:, 2]], -1)]
    return torch.stack(rows, -2)


def affine_invariant(z):
    inverse = whole(z).inverse()
    basis = whole(torch.eye(3).to(z))
    turned = torch.einsum("bij,ajk->baik", inverse, basis)
    return torch.einsum("baij,bcji->bac", turned, turned)


HALF_PLANE = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())


class TestRadius:
    @pytest.mark.parametrize("radius", [0.5, 1.0, 3.0])
    def test_of_a_sphere_is_half_of_its_injectivity_radius(self, radius):
        mean = frechet_mean(Manifold(lambda z: radius * sphere(z), latent_dim=2), points(10, 2))
        expected = torch.tensor(math.pi * radius / 2, dtype=F64)
        torch.testing.assert_close(mean.uniqueness_radius, expected)
        torch.testing.assert_close(mean.largest_curvature, expected.new_tensor(radius**-2))
        assert mean.within_uniqueness

    def test_of_medians_is_half_of_that(self):
        median = geometric_median(Manifold(sphere, latent_dim=2), points(9, 2))
        torch.testing.assert_close(median.uniqueness_radius, torch.tensor(math.pi / 4, dtype=F64))

    def test_of_spaces_without_positive_curvature_is_infinite(self):
        above = points(8, 2) + torch.tensor([0.0, 2.0], dtype=F64)
        assert torch.isinf(frechet_mean(HALF_PLANE, above).uniqueness_radius)
        near = torch.tensor([1.0, 0.0, 1.0], dtype=F64) + points(6, 3, scale=0.1)
        mean = frechet_mean(MetricSpace(affine_invariant), near)
        assert torch.isinf(mean.uniqueness_radius)
        assert mean.within_uniqueness
        flat = nn.Linear(3, 5).double()
        assert torch.isinf(frechet_mean(Manifold(flat), points(5, 3)).uniqueness_radius)

    def test_of_products_is_that_of_the_smaller_factor(self):
        def both(z):
            return torch.cat([2 * sphere(z[..., :2]), 0.5 * sphere(z[..., 2:])], -1)

        mean = frechet_mean(Manifold(both, latent_dim=4), points(6, 4))
        torch.testing.assert_close(mean.uniqueness_radius, torch.tensor(math.pi / 4, dtype=F64))

    def test_of_an_ellipsoid_comes_from_the_largest_curvature_seen(self):
        mean = frechet_mean(Manifold(ellipsoid, latent_dim=2), points(10, 2))
        seen = curvature_of_ellipsoid(ellipsoid(mean.curves.nodes)).amax()
        # A mean is where levels of curves, extrapolated, begin, and not one of them alone.
        torch.testing.assert_close(mean.largest_curvature, seen, rtol=1e-4, atol=0)

    def test_sees_the_curvature_of_the_ambient_metric(self):
        def ball(x):
            return 4 * torch.eye(2).to(x) / (1 - x.square().sum(-1)).square()[..., None, None]

        mean = frechet_mean(Manifold(nn.Identity(), ball, latent_dim=2), points(6, 2, scale=0.2))
        torch.testing.assert_close(mean.largest_curvature, torch.tensor(-1.0, dtype=F64))

    def test_knows_loops_of_periodic_coordinates(self):
        def flat(z):
            a, b = z.unbind(-1)
            return torch.stack([a.cos(), a.sin(), 2 * b.cos(), 2 * b.sin()], -1)

        M = Manifold(flat, latent_dim=2, latent=(2 * math.pi, 2 * math.pi))
        mean = frechet_mean(M, points(5, 2))
        # Half of the injectivity radius, which is half of the shorter circle's length 2π.
        expected = torch.tensor(math.pi / 2, dtype=F64)
        torch.testing.assert_close(mean.uniqueness_radius, expected, rtol=1e-3, atol=0)

    def test_is_unknown_where_decoders_have_kinks(self):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8)).double()
        mean = frechet_mean(Manifold(net), points(5, 2), throw=False)
        assert mean.uniqueness_radius.isnan()
        assert not mean.within_uniqueness

    def test_is_infinite_on_curves(self):
        def line(z):
            return torch.cat([z, z.square()], -1)

        assert torch.isinf(
            frechet_mean(Manifold(line, latent_dim=1), points(4, 1)).uniqueness_radius
        )

    def test_keeps_the_dtype(self):
        mean = frechet_mean(Manifold(sphere, latent_dim=2), points(6, 2).float())
        assert mean.uniqueness_radius.dtype == torch.float32
        assert abs(float(mean.uniqueness_radius) - math.pi / 2) < 1e-4


class TestWithin:
    def test_points_on_the_equator_are_not(self):
        z = torch.tensor([[0.0, -1.7], [0.0, 0.0], [0.0, 1.7]], dtype=F64)
        M = Manifold(sphere, latent_dim=2)
        mean = frechet_mean(M, z)
        assert not mean.within_uniqueness

    def test_points_without_weight_do_not_count(self):
        z = torch.tensor([[0.0, -1.7], [0.0, 0.1], [0.0, -0.1]], dtype=F64)
        weights = torch.tensor([0.0, 1.0, 1.0], dtype=F64)
        assert frechet_mean(Manifold(sphere, latent_dim=2), z, weights).within_uniqueness

    def test_several_starts_find_one_mean_there(self):
        for seed in range(5):
            mean = frechet_mean(Manifold(sphere, latent_dim=2), points(8, 2, seed, 0.5), n_starts=6)
            if mean.within_uniqueness:
                assert not mean.alternatives
