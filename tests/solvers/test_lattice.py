"""Short ways on the lattice that scouts come from."""

import torch

from riemae import Manifold
from riemae.solvers import MetricSpace
from riemae.solvers.curve import Curve
from riemae.solvers.lattice import ways
from riemae.solvers.space import space_of

F64 = torch.float64


def point(*values):
    return torch.tensor(values, dtype=F64)


def wall(z):
    """A wall across the plane, with a gate in the north."""
    x, y = z.unbind(-1)
    height = 4 * torch.exp(-8 * x.square()) * torch.sigmoid(12 * (1 - y))
    return torch.stack([x, y, height], -1)


def lines(*pairs):
    ends = torch.stack([torch.stack(pair) for pair in pairs])
    return Curve.line(ends[:, 0], ends[:, 1], 16)


def looked(space, curves, count=2):
    z = curves.nodes[:1, 0]
    length = Manifold(lambda z: z).length(curves) if isinstance(space, MetricSpace) else None
    if length is None:
        length = space.length(curves)
    return ways(space_of(space, z), curves, length, count, 32)


class TestWays:
    def test_they_go_through_the_gate(self):
        M = Manifold(wall)
        curves = lines((point(-1.0, 0.0), point(1.0, 0.1)))
        rows, nodes = looked(M, curves, 1)
        assert rows.tolist() == [0]
        assert torch.equal(nodes[:, [0, -1]], curves.nodes[:, [0, -1]])
        middle = nodes[0, nodes[0, :, 0].abs().argmin()]
        assert float(middle[1]) > 0.9
        assert float(M.length(nodes)) < 0.6 * float(M.length(curves))

    def test_a_detour_runs_elsewhere(self):
        M = Manifold(lambda z: torch.cat([z, (-4 * z.square().sum(-1, keepdim=True)).exp()], -1))
        rows, nodes = looked(M, lines((point(-1.0, 0.0), point(1.0, 0.0))))
        assert rows.tolist() == [0, 0]
        gap = (nodes[0] - nodes[1]).norm(dim=-1).amax()
        assert float(gap) > 0.1

    def test_alone_and_in_a_batch(self):
        """Nodes are shared, and the ways of a pair are its own."""
        M = Manifold(wall)
        generator = torch.Generator().manual_seed(0)
        ends = 2 * torch.randn(6, 2, 2, generator=generator, dtype=F64)
        curves = Curve.line(ends[:, 0], ends[:, 1], 16)
        rows, nodes = looked(M, curves)
        for row in range(6):
            _, alone = looked(M, curves[row : row + 1])
            assert torch.equal(alone, nodes[rows == row])

    def test_by_the_metric_where_there_are_no_images(self):
        """A strip in the north where everything is ten times shorter."""

        def metric(z):
            short = torch.sigmoid(40 * (z[:, 1] - 0.5))
            return (1 - 0.99 * short)[:, None, None] * torch.eye(2).to(z)

        _, nodes = looked(MetricSpace(metric), lines((point(-2.0, 0.0), point(2.0, 0.0))), 1)
        assert float(nodes[0, 16, 1]) > 0.5

    def test_where_there_is_nothing(self):
        def metric(z):
            known = (z[:, 0].abs() > 0.2)[:, None, None]
            return torch.where(known, torch.eye(2).to(z), torch.nan)

        curves = lines((point(-1.0, 0.0), point(1.0, 0.0)))
        assert not len(looked(MetricSpace(metric), curves)[0])

    def test_a_curve_that_is_a_point(self):
        M = Manifold(wall)
        here = point(0.5, 0.5)
        assert not len(looked(M, lines((here, here)))[0])
