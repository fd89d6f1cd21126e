"""Decoders that fold: curves along which the Hessian is often indefinite."""

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.solvers import Newton
from tests.watching import watch


class Folding(nn.Module):
    """A network of 16 places whose weights vary about 0 with the code."""

    def __init__(self):
        super().__init__()
        self.register_buffer("places", torch.randn(16, 2))
        self.weights = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 40))

    def forward(self, z):
        first, bias, second = self.weights(z).split([16, 8, 16], -1)
        hidden = torch.tanh(self.places @ first.unflatten(-1, (2, 8)) + bias[:, None])
        return hidden @ second.unflatten(-1, (8, 2))


@pytest.fixture(scope="module")
def problem():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        manifold = Manifold(Folding().double().requires_grad_(False))
        return manifold, *torch.randn(2, 12, 4, dtype=torch.float64)


def test_second_derivatives_wait_until_a_curve_is_near(problem, monkeypatch):
    manifold, z0, z1 = problem
    points = [0, 0]

    def look(nodes, second_order=True):
        points[second_order] += nodes.shape[0] * nodes.shape[1]

    watch(monkeypatch, expand=look)
    r = manifold.geodesic(z0, z1, rtol=1e-3, solver=Newton())
    # By the Hessian throughout it is 14 times as many with second derivatives as without.
    assert points[1] < points[0]
    assert bool((r.index == 0).all())


@pytest.mark.parametrize("rtol", [1e-2, 1e-3])
def test_lengths_are_those_of_the_geodesics_near_by(problem, rtol):
    manifold, *ends = problem
    z0, z1 = (z[[0, 2, 8]] for z in ends)  # of those that took most steps
    r = manifold.geodesic(z0, z1, rtol=rtol, n_starts=1)
    sharp = manifold.geodesic(z0, z1, rtol=1e-5, init=r.curve)
    off = (r.length - sharp.length).abs()
    assert bool((off <= rtol * r.length).all())
    assert bool((off <= 2 * r.error).all())
