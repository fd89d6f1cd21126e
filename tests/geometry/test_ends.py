"""Images of curves' ends that are kept while the curves move."""

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.solvers import Newton, hooks
from riemae.solvers.curve import Curve


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3, 32, generator=generator).double() / 2)
        self.second = nn.Parameter(torch.randn(32, 16, generator=generator).double() / 5)
        self.points = []

    def forward(self, z):
        self.points.append(len(z))
        return (z @ self.first).tanh() @ self.second


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(1)
    z0, z1 = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    decoder = Counted()
    space = Manifold(decoder).as_space(z0)
    nodes = Curve.line(z0, z1, 8).nodes + 0.1
    nodes[:, 0], nodes[:, -1] = z0, z1
    return decoder, space, z0, z1, nodes


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [3, 1], [2]])
def test_what_is_kept_changes_no_bit(problem, rows):
    decoder, space, z0, z1, nodes = problem
    kept = hooks.between(space, z0, z1)
    assert kept is not space
    assert kept.ends.images(nodes[rows][:, ::8]) is not None
    with torch.no_grad():
        pairs = [
            (space.ambient_distance(z0[rows], z1[rows]), kept.ambient_distance(z0[rows], z1[rows]))
        ]
        pairs += zip(
            space.energy_and_gradient(nodes[rows]),
            kept.energy_and_gradient(nodes[rows]),
            strict=True,
        )
        for second_order in (False, True):
            one = space.expand(nodes[rows], second_order)
            two = kept.expand(nodes[rows], second_order)
            pairs += zip(one.parts, two.parts, strict=True)
    for plain, known in pairs:
        assert torch.equal(plain, known)


def test_ends_are_decoded_once(problem):
    decoder, space, z0, z1, nodes = problem
    kept = hooks.between(space, z0, z1)
    with torch.no_grad():
        kept.expand(nodes)
        decoder.points.clear()
        kept.ambient_distance(z0, z1)
        assert not decoder.points
        kept.expand(nodes)
        assert len(decoder.points) == 1


def test_other_ends_are_decoded(problem):
    _, space, z0, z1, nodes = problem
    kept = hooks.between(space, z0, z1)
    other = nodes.flip(1)
    assert kept.ends.images(other[:, ::8]) is None
    with torch.no_grad():
        assert torch.equal(kept.expand(other).energy, space.expand(other).energy)


def test_nothing_is_kept_beyond_a_call(problem):
    decoder, _, z0, z1, _ = problem
    M = Manifold(decoder)
    before = M.geodesic(z0, z1, solver=Newton())
    assert before.space.ends is None
    with torch.no_grad():
        decoder.second.mul_(3.0)
    after = M.geodesic(z0, z1, solver=Newton())
    torch.testing.assert_close(after.length, 3 * before.length, rtol=1e-3, atol=0)
