"""Geodesic balls and kernel densities of closed forms."""

import math

import pytest
import torch

from riemae import Manifold
from riemae.exceptions import OptionError, ShapeError
from riemae.solvers import MetricSpace
from riemae.statistics import GeodesicKDE, RiemannianNormal, geodesic_ball

F64 = torch.float64
HALF_PLANE = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())


def sphere(z):
    s = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, s - 1], -1) / (1 + s)


def plane(z):
    return torch.stack([2 * z[:, 0] + z[:, 1], z[:, 1], z[:, 0]], -1)


def cylinder(z):
    return torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], -1)


def point(*values):
    return torch.tensor(values, dtype=F64)


class TestBall:
    def test_on_the_sphere(self):
        """``2π (1 − cos r)``, and a boundary at the distance r."""
        M, center = Manifold(sphere), point(0.2, 0.1)
        ball = geodesic_ball(M, center, 1.0, n_directions=12)
        assert abs(float(ball.volume) - 2 * math.pi * (1 - math.cos(1))) < 1e-5
        assert float(ball.error) < 1e-4
        away = (M.decode(ball.boundary) @ M.decode(center)).arccos()
        torch.testing.assert_close(away, torch.ones(12, dtype=F64), rtol=1e-6, atol=1e-6)
        assert bool(ball.cut.isinf().all())

    def test_on_the_hyperbolic_plane(self):
        """``2π (cosh r − 1)``."""
        ball = geodesic_ball(HALF_PLANE, point(0.0, 1.0), 1.5, n_directions=12)
        assert abs(float(ball.volume) - 2 * math.pi * (math.cosh(1.5) - 1)) < 1e-4

    def test_on_a_line_it_is_a_segment(self):
        M = Manifold(lambda z: torch.cat([z, 2 * z], -1))
        ball = geodesic_ball(M, point(0.5), 1.0)
        assert abs(float(ball.volume) - 2.0) < 1e-9
        ends = point(0.5 - 5**-0.5, 0.5 + 5**-0.5)
        torch.testing.assert_close(ball.boundary.flatten().sort().values, ends)

    def test_where_two_ways_meet_it_is_not_counted_twice(self):
        """A disc of radius 4 around a cylinder: cut off at π on both sides."""
        M = Manifold(cylinder, latent=(2 * math.pi, None))
        ball = geodesic_ball(M, point(0.0, 0.0), 4.0, n_directions=64)
        half = math.pi
        inside = 2 * (half * math.sqrt(16 - half**2) + 16 * math.asin(half / 4))
        assert abs(float(ball.volume) / inside - 1) < 5e-3
        assert bool((ball.cut < 4).any())
        # Rays are cut where they are half-way round: at π over the cosine of their angle.
        inside = ball.cut < 4
        around = ball.boundary[inside, 0].abs() / 4
        torch.testing.assert_close(ball.cut[inside], math.pi / around, rtol=5e-3, atol=0)

    def test_in_three_dimensions_within_four_standard_errors(self):
        """Of a flat space in skew coordinates, to which every direction is the same."""
        A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.2, 0.0, 2.0]], dtype=F64)
        M = Manifold(lambda z: z @ A.T)
        ball = geodesic_ball(M, point(0.1, 0.2, 0.3), 2.0, n_directions=8)
        assert abs(float(ball.volume) - 4 / 3 * math.pi * 8) < 1e-5

    def test_arguments(self):
        with pytest.raises(OptionError, match="radius"):
            geodesic_ball(HALF_PLANE, point(0.0, 1.0), 0.0)
        with pytest.raises(ShapeError, match="center"):
            geodesic_ball(HALF_PLANE, point(0.0, 1.0)[None], 1.0)


class TestKernelDensity:
    def test_in_a_flat_space_it_is_the_mean_of_normal_densities(self):
        M = Manifold(plane)
        z = torch.randn(30, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
        estimate = GeodesicKDE(M, 0.4).fit(z)
        at = z[:5] + 0.1
        squares = torch.cdist(M.decode(at), M.decode(z)).square()
        expected = (-squares / 0.32).logsumexp(1) - math.log(30 * 2 * math.pi * 0.16)
        torch.testing.assert_close(estimate.log_prob(at), expected, rtol=1e-3, atol=1e-3)

    def test_one_point_is_a_normal_distribution(self):
        z = point(0.3, 1.2)[None]
        estimate = GeodesicKDE(HALF_PLANE, 0.5, n_directions=32).fit(z)
        normal = RiemannianNormal(HALF_PLANE, z[0], 0.5)
        at = torch.tensor([[0.0, 1.0], [1.0, 1.5]], dtype=F64)
        torch.testing.assert_close(estimate.log_prob(at), normal.log_prob(at), rtol=1e-3, atol=1e-3)

    def test_far_away_it_is_nothing(self):
        estimate = GeodesicKDE(Manifold(plane), 0.1).fit(torch.zeros(2, 2, dtype=F64))
        assert bool(estimate.log_prob(torch.full((1, 2), 50.0, dtype=F64)).isneginf())

    def test_the_bandwidth_follows_scott(self):
        z = torch.randn(64, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
        M = Manifold(plane)
        x = M.decode(z)
        variance = float((x - x.mean(0)).square().sum(1).mean())
        found = GeodesicKDE(M).fit(z).bandwidth_
        assert abs(found / (64 ** (-1 / 6) * math.sqrt(variance / 2)) - 1) < 1e-3

    def test_arguments(self):
        with pytest.raises(OptionError, match="bandwidth"):
            GeodesicKDE(HALF_PLANE, 0.0)
        with pytest.raises(OptionError, match="Call fit first"):
            GeodesicKDE(HALF_PLANE, 1.0).log_prob(torch.ones(1, 2, dtype=F64))
        with pytest.raises(OptionError, match="points that differ"):
            GeodesicKDE(HALF_PLANE).fit(torch.ones(3, 2, dtype=F64))
        with pytest.raises(OptionError, match="at least 2 points"):
            GeodesicKDE(HALF_PLANE).fit(torch.ones(1, 2, dtype=F64))
