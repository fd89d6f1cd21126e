"""Distance fields on grids: closed forms, skew charts, holes."""

import math

import pytest
import torch

from riemae import Manifold
from riemae.exceptions import OptionError, ShapeError
from riemae.solvers import MetricSpace, distance_field, geodesic
from riemae.solvers.fields import selling

F64 = torch.float64
HALF_PLANE = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())


def point(*values):
    return torch.tensor(values, dtype=F64)


def hyperbolic(z, w):
    return torch.arccosh(1 + (z - w).square().sum(-1) / (2 * z[..., 1] * w[1]))


def sphere(z):
    s = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, s - 1], -1) / (1 + s)


class TestSelling:
    @pytest.mark.parametrize("m", [1, 2, 3])
    def test_the_sum_is_the_matrix(self, m):
        generator = torch.Generator().manual_seed(m)
        root = torch.randn(40, m, m, generator=generator, dtype=F64)
        root = root * point(1.0, 5.0, 30.0)[:m]
        matrix = root @ root.mT + 1e-2 * torch.eye(m, dtype=F64)
        weights, offsets = selling(matrix)
        assert float(weights.amin()) >= 0
        e = offsets.to(F64)
        again = torch.einsum("kc,kci,kcj->kij", weights, e, e)
        torch.testing.assert_close(again, matrix, rtol=1e-9, atol=1e-9)


class TestClosedForms:
    def test_the_hyperbolic_plane(self):
        source = point(0.1, 1.3)
        found = distance_field(HALF_PLANE, source, point(-1.0, 0.5), point(1.0, 2.5), 65)
        exact = hyperbolic(found.nodes(), source)
        off = (found.values - exact).abs()
        assert float(off.amax()) < 4e-3
        assert float(off.median()) < 1e-3
        assert float((off <= found.errors + 1e-12).double().mean()) > 0.99

    def test_errors_next_to_the_source_are_those_of_geodesics(self):
        """Those nodes are solved alike on both grids, whose difference is 0 there."""
        source = point(0.13, 1.27)
        found = distance_field(HALF_PLANE, source, point(-1.0, 0.5), point(1.0, 2.5), 21)
        assert torch.equal(found.axes[0], torch.linspace(-1.0, 1.0, 21, dtype=F64))
        near = ((found.nodes() - source).abs() < 0.45).all(-1)
        z = found.nodes()[near]
        known = geodesic(HALF_PLANE, source.expand_as(z), z, rtol=1e-5)
        torch.testing.assert_close(found.errors[near], known.error, rtol=1e-6, atol=1e-18)
        assert float(found.errors[near].amin()) > 0
        off = (found.values - hyperbolic(found.nodes(), source))[near].abs()
        assert bool((off <= found.errors[near] + 1e-12).all())
        assert float(found.errors[~near].amin()) >= float(found.errors[near].amax())

    def test_errors_fall_with_the_square_of_the_spacing(self):
        source = point(0.1, 1.3)
        corners = point(-1.0, 0.8), point(1.0, 2.8)
        medians = []
        for n in (33, 129):
            found = distance_field(HALF_PLANE, source, *corners, n)
            medians.append(float((found.values - hyperbolic(found.nodes(), source)).abs().median()))
        assert medians[1] < medians[0] / 4

    def test_a_skew_chart_of_the_sphere(self):
        A = torch.tensor([[1.0, 0.6], [0.0, 0.5]], dtype=F64)
        M = Manifold(lambda z: sphere(z @ A.T))
        source = point(0.3, 0.2)
        found = distance_field(M, source, point(-1.0, -1.0), point(1.0, 1.0), (65, 49))
        x = M.decode(found.nodes())
        off = (found.values - (x @ M.decode(source)).clamp(-1, 1).arccos()).abs()
        assert found.values.shape == (65, 49)
        assert float(off.amax()) < 1.5e-2
        assert float(off.median()) < 2e-3

    def test_a_line(self):
        M = Manifold(lambda z: torch.cat([z.exp(), 2 * z.exp()], -1))
        found = distance_field(M, point(0.3), point(-1.0), point(1.0), 201)
        exact = 5**0.5 * (found.axes[0].exp() - math.exp(0.3)).abs()
        torch.testing.assert_close(found.values, exact, rtol=1e-3, atol=2e-4)

    def test_space_in_skew_coordinates(self):
        """A flat space: the scheme is exact for the planes that distances are far away, nearly."""
        A = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.3], [0.2, 0.0, 1.0]], dtype=F64)
        M = Manifold(lambda z: z @ A.T)
        source = point(0.1, 0.0, -0.1)
        found = distance_field(M, source, point(-1.0, -1.0, -1.0), point(1.0, 1.0, 1.0), 21)
        exact = ((found.nodes() - source) @ A.T).norm(dim=-1)
        off = (found.values - exact).abs()
        assert float(off.amax()) < 0.06
        assert float(off.median()) < 0.02


class TestShortestOfAll:
    def test_it_goes_round_a_hill_on_the_shorter_side(self):
        """Bent paths stay on the side where they begin: a field knows both."""

        def hill(z):
            d = (z - point(0.0, 0.1)).square().sum(-1, keepdim=True)
            return torch.cat([z, 3 * (-4 * d).exp()], -1)

        M = Manifold(hill)
        source, target = point(-1.0, 0.0), point(1.0, 0.0)
        found = distance_field(M, source, point(-1.5, -1.5), point(1.5, 1.5), (97, 97))
        row = int((found.axes[0] - 1.0).abs().argmin())
        column = int((found.axes[1] - 0.0).abs().argmin())
        best = M.geodesic(source, target, n_starts=12, rtol=1e-5).length
        assert abs(float(found.values[row, column]) / float(best) - 1) < 5e-3

    def test_a_hole_is_gone_around(self):
        """No metric inside the unit square's middle: the way is bent at its corners."""

        def metric(z):
            inside = (z.abs() < 0.5).all(-1)
            one = torch.eye(2).to(z).expand(len(z), 2, 2)
            return torch.where(inside[:, None, None], torch.nan, one)

        space = MetricSpace(metric)
        found = distance_field(space, point(-0.9, 0.0), point(-1.0, -1.0), point(1.0, 1.0), 81)
        assert bool(found.values[40, 40].isinf())
        around = 2 * math.hypot(0.4, 0.5) + 1.0
        at = int((found.axes[0] - 0.9).abs().argmin())
        assert abs(float(found.values[at, 40]) / around - 1) < 0.03


class TestBadInput:
    def test_arguments(self):
        low, high = point(-1.0, 0.5), point(1.0, 2.0)
        with pytest.raises(OptionError, match="inside a box"):
            distance_field(HALF_PLANE, point(3.0, 1.0), low, high)
        with pytest.raises(OptionError, match="inside a box"):
            distance_field(HALF_PLANE, point(0.0, 1.0), high, low)
        with pytest.raises(OptionError, match="shape"):
            distance_field(HALF_PLANE, point(0.0, 1.0), low, high, 5)
        with pytest.raises(OptionError, match="one number or 2"):
            distance_field(HALF_PLANE, point(0.0, 1.0), low, high, (9, 9, 9))
        with pytest.raises(ShapeError, match="low"):
            distance_field(HALF_PLANE, point(0.0, 1.0), point(0.0), high)
        flat = Manifold(lambda z: z * 1.0)
        with pytest.raises(OptionError, match="1 to 3 dimensions"):
            distance_field(flat, torch.zeros(4, dtype=F64), -point(*[1.0] * 4), point(*[1.0] * 4))
