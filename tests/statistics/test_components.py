"""Principal components in the tangent space: planted directions, flat space, and the way back."""

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.exceptions import OptionError, ShapeError
from riemae.solvers import MetricSpace
from riemae.statistics import frechet_mean, tangent_pca

F64 = torch.float64


def points(n, m, seed=0, scale=0.3):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, m, generator=generator, dtype=F64)


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


def test_of_flat_space_is_pca():
    turn = torch.linalg.qr(points(3, 3, 5))[0]
    stretch = torch.tensor([3.0, 1.0, 0.3], dtype=F64)
    z = points(40, 3) * stretch @ turn.T
    t = tangent_pca(Manifold(lambda z: torch.cat([2 * z, 0 * z], -1)), z)
    centred = 2 * (z - z.mean(0))
    values, vectors = torch.linalg.eigh(centred.T @ centred / 40)
    torch.testing.assert_close(t.explained_variance, values.flip(0))
    dots = (2 * t.components @ vectors.flip(1)).abs()
    torch.testing.assert_close(dots, torch.eye(3, dtype=F64), rtol=0, atol=1e-6)
    torch.testing.assert_close(t.explained_variance_ratio.sum(), torch.ones((), dtype=F64))


def test_planted_on_the_sphere():
    """Points at arc lengths along a great circle through (0, 0), and a few across."""
    M = Manifold(sphere)
    direction = torch.tensor([0.6, 0.8], dtype=F64)  # a unit tangent at (0, 0)
    across = torch.tensor([-0.8, 0.6], dtype=F64)
    arcs = torch.linspace(-0.8, 0.8, 9, dtype=F64)
    tangents = torch.cat([arcs[:, None] * direction, 0.1 * across[None], -0.1 * across[None]])
    z = M.exp(torch.zeros_like(tangents), tangents)
    t = tangent_pca(M, z, rtol=1e-8)
    torch.testing.assert_close(t.mean, torch.zeros(2, dtype=F64), rtol=0, atol=1e-8)
    torch.testing.assert_close(t.components[0], direction, rtol=0, atol=1e-7)
    expected = torch.stack([arcs.square().sum(), torch.tensor(0.02, dtype=F64)]) / 11
    torch.testing.assert_close(t.explained_variance, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(t.scores[:9, 0], arcs, rtol=0, atol=1e-6)


def test_variances_add_up_to_that_of_the_mean():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 12)).double()
    M = Manifold(net.requires_grad_(False))
    z = points(15, 3)
    weights = points(15, 1, 3)[:, 0].abs()
    mean = frechet_mean(M, z, weights)
    t = tangent_pca(M, z, weights=weights, mean=mean)
    torch.testing.assert_close(t.explained_variance.sum(), mean.variance, rtol=1e-6, atol=0)
    # Orthonormal in the metric of the mean.
    g = M.metric(mean.point)
    gram = t.components @ g @ t.components.T
    torch.testing.assert_close(gram, torch.eye(3, dtype=F64), rtol=0, atol=1e-9)
    # All components: there and back.
    torch.testing.assert_close(t.inverse_transform(t.scores), z, rtol=0, atol=1e-5)
    torch.testing.assert_close(t.transform(z), t.scores, rtol=0, atol=1e-5)


def test_fewer_components_than_dimensions_and_points():
    z = points(2, 3)
    t = tangent_pca(Manifold(lambda z: z), z, n_components=2)
    assert t.components.shape == (2, 3)
    assert float(t.explained_variance_ratio[0]) == pytest.approx(1)
    assert float(t.explained_variance[1]) < 1e-20
    assert "100%" in repr(t)


def test_at_another_point_and_in_a_metric_space():
    half_plane = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())
    z = points(6, 2)
    z[:, 1] = z[:, 1].exp()
    at = torch.tensor([0.0, 1.0], dtype=F64)
    t = tangent_pca(half_plane, z, mean=at)
    assert torch.equal(t.mean, at)
    distances = t.scores.norm(dim=1)
    exact = (1 + (z - at).square().sum(1) / (2 * z[:, 1])).acosh()
    torch.testing.assert_close(distances, exact, rtol=1e-6, atol=0)


def test_bad_input():
    M = Manifold(sphere)
    z = points(5, 2)
    with pytest.raises(OptionError, match="at least 2 points"):
        tangent_pca(M, z[:1])
    with pytest.raises(OptionError, match="n_components"):
        tangent_pca(M, z, n_components=3)
    with pytest.raises(ShapeError):
        tangent_pca(M, z, mean=z)
    with pytest.raises(OptionError, match="mean"):
        tangent_pca(M, z, mean=frechet_mean(M, z[:3]))
    with pytest.raises(ShapeError):
        tangent_pca(M, z, n_components=1).inverse_transform(z)
