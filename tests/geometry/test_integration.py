"""Integrals: areas of surfaces, measures of one's own, many dimensions."""

import math

import pytest
import torch
from spaces import sphere
from torch import nn

from riemae import Manifold
from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError

F64 = torch.float64
ALL_ROUND = [(-math.pi / 2, math.pi / 2), (0.0, 2 * math.pi)]


def latitude(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


def linear(m, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer = nn.Linear(m, m + 1, bias=False).double()
    weight = layer.weight.detach()
    gram = weight.T @ weight
    return layer, float(torch.linalg.det(gram).sqrt())


class TestVolume:
    def test_of_the_sphere(self):
        found = Manifold(latitude).volume(ALL_ROUND)
        assert abs(float(found) - 4 * math.pi) < 1e-9
        assert found.converged
        assert float(found.error) < 1e-6 * 4 * math.pi

    @pytest.mark.parametrize("m", [1, 2, 3, 5])
    def test_of_a_linear_map_is_its_determinant(self, m):
        layer, volume = linear(m)
        found = Manifold(layer).volume([(-1.0, 1.0)] * m)
        assert abs(float(found) / (2**m * volume) - 1) < 1e-9

    def test_gauss_and_bonnet(self):
        """The curvature of a torus integrates to 0, over its outer half to 4π."""

        def torus(z):
            a, b = z.unbind(-1)
            r = 2 + a.cos()
            return torch.stack([r * b.cos(), r * b.sin(), a.sin()], -1)

        M = Manifold(torus)
        full = (0.0, 2 * math.pi)
        whole = M.integrate(M.gaussian_curvature, [full, full], rtol=1e-4, throw=False)
        assert abs(float(whole)) < 1e-6
        half = M.integrate(M.gaussian_curvature, [(-math.pi / 2, math.pi / 2), full], rtol=1e-5)
        assert abs(float(half) - 4 * math.pi) < 1e-4

    def test_in_many_dimensions_within_four_standard_errors(self):
        """``∏ (1 + x²)`` over the unit cube is ``(4/3)^m``."""

        def f(z):
            return (1 + z.square()).prod(-1)

        layer, volume = linear(6)
        found = Manifold(layer).integrate(f, [(0.0, 1.0)] * 6, rtol=1e-3, generator=3)
        assert found.converged
        assert abs(float(found) - volume * (4 / 3) ** 6) < 4 * float(found.error) + 1e-12
        again = Manifold(layer).integrate(f, [(0.0, 1.0)] * 6, rtol=1e-3, generator=3)
        assert float(again) == float(found)


class TestIntegrate:
    def test_several_values_at_once(self):
        def moments(z):
            return torch.stack([z[:, 0].sin().square(), torch.ones_like(z[:, 0])], 1)

        found = Manifold(latitude).integrate(moments, ALL_ROUND)
        expected = torch.tensor([4 * math.pi / 3, 4 * math.pi], dtype=F64)
        torch.testing.assert_close(found.value, expected)

    def test_a_density_takes_the_place_of_the_volume(self):
        found = Manifold(latitude).integrate(
            lambda z: z[:, 0].square(), [(0, 1), (0, 1)], density=lambda z: 2 * z[:, 1]
        )
        assert abs(float(found) - 1 / 3) < 1e-12

    def test_the_region_says_the_dtype(self):
        region = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        found = Manifold(sphere).volume(region)
        assert found.value.dtype == torch.float32
        exact = Manifold(sphere).volume(region.double())
        assert abs(float(found) - float(exact)) < 1e-4

    def test_shaped_codes_are_flat(self):
        layer, volume = linear(4)
        M = Manifold(nn.Sequential(nn.Flatten(), layer), latent_shape=(2, 2))
        assert abs(float(M.volume([(0.0, 1.0)] * 4)) / volume - 1) < 1e-6


class TestBadInput:
    def test_a_kink_that_no_rule_resolves_is_said(self):
        M = Manifold(latitude)
        region = [(0.0, 1.0), (0.0, 1.0)]

        def step(z):
            return (z[:, 0] < 0.37).double()

        with pytest.raises(NotConvergedError, match="rtol") as caught:
            M.integrate(step, region, max_points=2000)
        found = caught.value.result
        assert not found.converged
        assert abs(float(found) - math.sin(0.37)) <= float(found.error)
        assert not M.integrate(step, region, max_points=2000, throw=False).converged

    @pytest.mark.parametrize(
        ("region", "error"),
        [
            ([(0.0, 1.0)] * 3, ShapeError),
            ([(1.0, 0.0), (0.0, 1.0)], OptionError),
            ([(0.0, math.inf), (0.0, 1.0)], OptionError),
            ("everywhere", DTypeError),
        ],
    )
    def test_no_region(self, region, error):
        M = Manifold(latitude, latent_dim=2)
        with pytest.raises(error, match="Manifold.volume"):
            M.volume(region)

    def test_functions_that_are_none(self):
        M = Manifold(latitude)
        region = [(0.0, 1.0), (0.0, 1.0)]
        with pytest.raises(DTypeError, match="f as a function"):
            M.integrate(3.0, region)
        with pytest.raises(ShapeError, match="one value|One value"):
            M.integrate(lambda z: z.sum(), region)
        with pytest.raises(ShapeError, match="density"):
            M.integrate(lambda z: z[:, 0], region, density=lambda z: z)
        with pytest.raises(ShapeError, match="Integral"):
            float(M.integrate(lambda z: z, region))
