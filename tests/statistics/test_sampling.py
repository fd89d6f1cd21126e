"""Uniform points by a chi-square test of area, and distances over retrained models."""

import math

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.solvers import MetricSpace
from riemae.statistics import compare_distances, sample_uniform

F64 = torch.float64
# The 99.99 % quantile of the chi-square distribution with 9 degrees of freedom.
CHI_SQUARE_9 = 33.72


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


def torus(z):
    a, b = z.unbind(-1)
    r = 2 + a.cos()
    return torch.stack([r * b.cos(), r * b.sin(), a.sin()], -1)


def chi_square(x, low, high):
    """Of ten cells between the bounds, where x is uniform."""
    counts = torch.histc(x, 10, low, high)
    expected = len(x) / 10
    return float(((counts - expected).square() / expected).sum())


def corner(*values):
    return torch.tensor(values, dtype=F64)


class TestUniform:
    def test_on_the_sphere(self):
        """The sine of the latitude is uniform."""
        z = sample_uniform(Manifold(sphere), 4000, corner(-1.3, -1.0), corner(1.5, 1.0))
        assert z.shape == (4000, 2)
        assert chi_square(z[:, 0].sin(), math.sin(-1.3), math.sin(1.5)) < CHI_SQUARE_9
        assert chi_square(z[:, 1], -1.0, 1.0) < CHI_SQUARE_9

    def test_on_the_torus(self):
        """``2 a + sin a`` is uniform."""
        z = sample_uniform(Manifold(torus), 4000, corner(-3.0, 0.0), corner(3.0, 6.0), generator=1)
        ends = [2 * a + math.sin(a) for a in (-3.0, 3.0)]
        assert chi_square(2 * z[:, 0] + z[:, 0].sin(), *ends) < CHI_SQUARE_9

    def test_in_the_half_plane(self):
        """``1 / y`` is uniform."""
        space = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())
        z = sample_uniform(space, 4000, corner(0.0, 0.5), corner(1.0, 3.0), generator=2)
        assert chi_square(1 / z[:, 1], 1 / 3, 2.0) < CHI_SQUARE_9

    def test_in_a_region(self):
        z = sample_uniform(
            Manifold(lambda z: 3 * z),
            3000,
            corner(-1.0, -1.0),
            corner(1.0, 1.0),
            inside=lambda z: z.norm(dim=-1) < 0.8,
        )
        assert float(z.norm(dim=-1).max()) < 0.8
        assert chi_square(z.norm(dim=-1).square(), 0.0, 0.64) < CHI_SQUARE_9

    def test_dtype_seed_and_none(self):
        low, high = corner(-1.0, -1.0), corner(1.0, 1.0)
        M = Manifold(sphere)
        assert torch.equal(
            sample_uniform(M, 10, low, high, generator=5),
            sample_uniform(M, 10, low, high, generator=5),
        )
        assert sample_uniform(M, 5, low.float(), high.float()).dtype == torch.float32
        assert sample_uniform(M, 0, low, high).shape == (0, 2)

    def test_bad_input(self):
        M = Manifold(sphere)
        with pytest.raises(OptionError, match="below"):
            sample_uniform(M, 3, corner(1.0, 0.0), corner(0.0, 1.0))
        with pytest.raises(ShapeError):
            sample_uniform(M, 3, corner(0.0, 0.0), corner(1.0))
        with pytest.raises(ShapeError, match="truth"):
            sample_uniform(M, 3, corner(0.0, 0.0), corner(1.0, 1.0), inside=lambda z: z)
        with pytest.raises(OptionError, match="n"):
            sample_uniform(M, -1, corner(0.0, 0.0), corner(1.0, 1.0))
        with pytest.raises(NotConvergedError) as caught:
            sample_uniform(M, 1, corner(0.0, 0.0), corner(1.0, 1.0), inside=lambda z: z[:, 0] > 2)
        assert caught.value.result.shape == (0, 2)


class TestComparison:
    def models(self):
        """One surface in three charts: geodesics are the same, codes are not."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 8)).double()
        net.requires_grad_(False)
        z = torch.randn(12, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
        charts = [corner(1.0, 1.0), corner(2.0, 0.5), corner(0.3, 3.0)]
        manifolds = [Manifold(lambda y, s=s: net(y / s)) for s in charts]
        return manifolds, [z * s for s in charts]

    def test_geodesics_do_not_depend_on_the_chart(self):
        manifolds, codes = self.models()
        pairs = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])
        d = compare_distances(manifolds, codes, pairs, rtol=1e-5)
        assert d.geodesic.shape == (3, 4)
        assert float(d.variation().max()) < 1e-4
        assert float(d.variation("chord").max()) < 1e-9
        assert float(d.variation("euclidean").min()) > 0.05
        assert bool((d.status == 0).all())
        torch.testing.assert_close(d.standard_error("euclidean"), d.euclidean.std(0) / math.sqrt(3))
        assert "geodesic" in repr(d)

    def test_bad_input(self):
        manifolds, codes = self.models()
        pairs = torch.tensor([[0, 1]])
        with pytest.raises(OptionError, match="two"):
            compare_distances(manifolds[:1], codes[:1], pairs)
        with pytest.raises(DTypeError, match="integers"):
            compare_distances(manifolds, codes, pairs.double())
        with pytest.raises(ShapeError, match="pairs"):
            compare_distances(manifolds, codes, pairs[0])
        with pytest.raises(ShapeError, match="codes"):
            compare_distances(manifolds, [codes[0][:3], *codes[1:]], pairs)
        with pytest.raises(OptionError, match="from 0 to 11"):
            compare_distances(manifolds, codes, torch.tensor([[0, 12]]))
        with pytest.raises(OptionError, match="kind|geodesic"):
            compare_distances(manifolds, codes, pairs).variation("other")
