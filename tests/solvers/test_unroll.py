"""Curves that jump on few nodes begin anew: the mechanism, and the decoders that need it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.solvers.budget import Budget, limited, metered
from riemae.solvers.measure import Measure
from riemae.solvers.unroll import first_resolution, jumped, unrolled


class Sines(nn.Module):
    """Three layers of sines with random weights, the higher the frequency the rougher."""

    def __init__(self, frequency, m, seed, width=32):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.frequency = frequency
        sizes = (m, width, width, width)
        self.weights = []
        for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
            bound = 1 / a if i == 0 else math.sqrt(6 / a) / frequency
            draw = torch.rand(a + 1, b, generator=generator, dtype=torch.float64)
            self.weights.append(bound * (2 * draw - 1))
        self.out = torch.randn(width, 16, generator=generator, dtype=torch.float64) / 6

    def forward(self, z):
        for w in self.weights:
            z = torch.sin(self.frequency * (z @ w[:-1] + w[-1]))
        return z @ self.out


def pairs(count, m, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, m, generator=generator, dtype=torch.float64)


def polygon(decoder, curve, points=4001):  # an independent length, from below
    t = torch.linspace(0, 1, points, dtype=torch.float64)
    return decoder(curve(t)).diff(dim=-2).norm(dim=-1).sum(-1)


@pytest.mark.parametrize(("frequency", "m", "seed"), [(5.0, 2, 1), (10.0, 2, 0)])
def test_rough_decoders_converge(frequency, m, seed):
    """The straight line gets there, and its curves are geodesics."""
    decoder = Sines(frequency, m, seed)
    space = Manifold(decoder)
    z0, z1 = pairs(2, m)
    with limited("test", 10**9, None) as budget:
        r = space.geodesic(z0, z1, rtol=1e-3, n_starts=1)
    torch.testing.assert_close(r.length, polygon(decoder, r.curve), rtol=2e-4, atol=0)
    straight = polygon(decoder, solvers.Curve.line(z0, z1, 32))
    assert bool((r.length <= straight).all())
    assert bool((r.length >= r.lower_bound).all())
    # Nothing near it is shorter by more than the error: the energy's slope along random bumps.
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    points = r.curve(t).requires_grad_()
    energy = 4000 * decoder(points).diff(dim=-2).square().sum((-1, -2))
    (slope,) = torch.autograd.grad(energy.sum(), points)
    for mode in (1, 2, 3):
        bump = torch.sin(mode * torch.pi * t)[:, None]
        along = (slope * bump).sum(1).abs().amax(-1)
        size = (z1 - z0).norm(dim=-1)
        assert bool((along * size <= 0.1 * r.length.square()).all())
    assert budget.used < 12_000


def test_jumped():
    """A zigzag whose nodes are near each other in the data, and all of whose length is between."""

    def circle(z):  # (k, 1) -> (k, 2)
        return torch.cat([z.cos(), z.sin()], -1)

    space = Manifold(circle).as_space(torch.zeros(1, 1, dtype=torch.float64))
    turns = torch.linspace(0, 4 * torch.pi, 5, dtype=torch.float64)[None, :, None]
    nodes = torch.cat([turns, turns / 20])  # twice around in four chords of length 2; and an arc
    measure = Measure.of(space, solvers.Curve.from_nodes(nodes))
    np.testing.assert_allclose(measure.length, [4 * math.pi, math.pi / 5], rtol=1e-3)
    longer = measure.length + 1
    shorter = measure.length - 0.1
    assert jumped(measure, shorter).tolist() == [True, False]
    assert jumped(measure, longer).tolist() == [False, False]
    assert jumped(measure, np.full(2, np.nan)).tolist() == [False, False]


def test_first_resolution():
    assert first_resolution(8, 8, 512) == 32
    assert first_resolution(32, 8, 512) == 64
    assert first_resolution(128, 8, 512) == 256
    assert first_resolution(256, 8, 512) is None
    assert first_resolution(8, 8, 16) is None
    assert first_resolution(6, 6, 512) == 48
    assert first_resolution(3, 3, 512) == 48


def test_unrolled_alone_and_together():
    """Every curve comes out as it does alone, shorter than it went in, and resolved."""
    decoder = Sines(10.0, 2, 0)
    z0, z1 = pairs(4, 2)
    space = Manifold(decoder).as_space(z0, z1)
    start = solvers.Curve.line(z0, z1, 32)
    before = Measure.of(space, start).length
    found = unrolled(space, start, 32, 512)
    assert sorted(torch.as_tensor(np.concatenate([r for r, _ in found.values()])).tolist()) == [
        0,
        1,
        2,
        3,
    ]
    for segments, (rows, measure) in found.items():
        assert measure.curve.segments == segments
        assert bool((measure.length < before[rows]).all())
        for place, row in enumerate(rows):
            alone = unrolled(space, start[row : row + 1], 32, 512)
            torch.testing.assert_close(
                alone[segments][1].curve.nodes[0], measure.curve.nodes[place], rtol=0, atol=1e-9
            )


def test_a_budget_ends_it():
    decoder = Sines(10.0, 2, 0)
    z0, z1 = pairs(2, 2)
    bare = Manifold(decoder).as_space(z0, z1)
    start = solvers.Curve.line(z0, z1, 32)
    for most in (1, 300, 2000):
        space = metered(bare, Budget(decodings=most))
        found = unrolled(space, start, 32, 512)
        length = Measure.of(bare, start).length
        for rows, measure in found.values():
            assert bool((measure.length <= length[rows] * (1 + 1e-6)).all())
    # In the midst of it, the call still says what it has.
    rough = Sines(5.0, 2, 1)
    space = Manifold(rough)
    statuses = set()
    for most in (1000, 2000, 3000):
        r = space.geodesic(z0, z1, rtol=1e-3, max_decodings=most, throw=False)
        statuses |= {solvers.Status(int(s)) for s in r.status}
        straight = polygon(rough, start)
        assert bool((r.length <= straight * (1 + 1e-3)).all())
    assert solvers.Status.BUDGET in statuses
