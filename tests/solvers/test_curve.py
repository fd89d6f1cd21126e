"""Curves against scipy's splines and against closed forms.

Lengths and energies against scipy's quadrature.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.interpolate import CubicSpline

from riemae import Manifold, solvers
from riemae.exceptions import DTypeError, OptionError, RiemaeError, ShapeError
from riemae.solvers import Curve
from riemae.solvers.measure import Measure
from riemae.solvers.speeds import equalized, speeds

F64 = torch.float64
FLAT = solvers.MetricSpace(lambda z: torch.eye(z.shape[-1]).to(z).expand(len(z), -1, -1))
HALF_PLANE = solvers.MetricSpace(lambda z: torch.eye(2).to(z) / z[..., 1, None, None] ** 2)


def rand(*shape, seed=0, dtype=F64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def scipy_spline(nodes):
    """Not-a-knot along the axis before the last."""
    return CubicSpline(
        np.linspace(0, 1, nodes.shape[-2]), nodes.numpy(), axis=nodes.ndim - 2, bc_type="not-a-knot"
    )


def slope(errors):
    """Orders of convergence from errors at doubled resolutions."""
    errors = torch.tensor(errors, dtype=F64)
    return (errors[:-1] / errors[1:]).log2()


class TestSpline:
    @pytest.mark.parametrize("count", [2, 3, 4, 5, 9, 33])
    @pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
    def test_scipy_draws_the_same_curve(self, count, batch):
        nodes = rand(*batch, count, 2)
        curve, peer = Curve.from_nodes(nodes), scipy_spline(nodes)
        t = torch.cat([rand(20), torch.linspace(0, 1, count, dtype=F64)])
        for order, values in enumerate((curve(t), curve.velocity(t), curve.acceleration(t))):
            expected = torch.as_tensor(peer(t.numpy(), order))
            # A second derivative jumps by rounding · n² between the two pieces that meet at a knot.
            assert torch.allclose(values, expected, rtol=1e-10, atol=1e-12 * count ** (order + 1))

    def test_passes_through_its_nodes_exactly(self):
        nodes = rand(4, 9, 3)
        curve = Curve.from_nodes(nodes)
        assert torch.equal(curve(curve.times), nodes)
        assert torch.equal(curve.velocity(curve.times), curve.slopes)

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(4, 20), st.lists(st.floats(-10, 10), min_size=4, max_size=4))
    def test_reproduces_cubics(self, count, coefficients):
        c0, c1, c2, c3 = coefficients
        t, knots = torch.linspace(0, 1, 41, dtype=F64), torch.linspace(0, 1, count, dtype=F64)
        curve = Curve.from_nodes((c0 + c1 * knots + c2 * knots**2 + c3 * knots**3)[:, None])
        assert torch.allclose(
            curve(t)[:, 0], c0 + c1 * t + c2 * t**2 + c3 * t**3, rtol=1e-11, atol=1e-11
        )
        assert torch.allclose(
            curve.velocity(t)[:, 0], c1 + 2 * c2 * t + 3 * c3 * t**2, rtol=1e-10, atol=1e-9
        )
        assert torch.allclose(
            curve.acceleration(t)[:, 0], 2 * c2 + 6 * c3 * t, rtol=1e-9, atol=1e-7
        )

    @pytest.mark.parametrize(("order", "expected"), [(0, 4), (1, 3), (2, 2)])
    def test_order_of_convergence_up_to_the_ends(self, order, expected):
        t = torch.linspace(0, 1, 401, dtype=F64)
        truth = [(3 * t).sin(), 3 * (3 * t).cos(), -9 * (3 * t).sin()][order]
        errors = []
        for segments in (16, 32, 64, 128):
            curve = Curve.from_nodes(
                (3 * torch.linspace(0, 1, segments + 1, dtype=F64)).sin()[:, None]
            )
            values = (curve, curve.velocity, curve.acceleration)[order](t)[:, 0]
            errors.append((values - truth).abs().max())
        assert (slope(errors) > expected - 0.25).all()
        assert (slope(errors) < expected + 0.75).all()

    def test_twice_continuously_differentiable(self):
        curve = Curve.from_nodes(rand(3, 9, 2))
        h = 1 / curve.segments
        starts = torch.linspace(0, 1 - h, 8, dtype=F64)
        # The second derivative is linear on a piece: extrapolate it from two inner points to both
        # of its ends.
        a, b = curve.acceleration(starts + 0.25 * h), curve.acceleration(starts + 0.75 * h)
        at_stop, at_start = b + (b - a) / 2, a - (b - a) / 2
        assert torch.allclose(at_stop[:, :-1], at_start[:, 1:], rtol=1e-9, atol=1e-9)
        # The third is continuous across the second and the last but one knot (not-a-knot), and
        # nowhere else.
        third = (b - a) / (h / 2)
        jumps = third.diff(dim=1).norm(dim=-1)
        assert jumps[:, [0, -1]].max() < 1e-8
        assert jumps[:, 1:-1].min() > 1

    def test_float32(self):
        nodes = rand(2, 9, 2, dtype=torch.float32)
        t = torch.linspace(0, 1, 50)
        values = Curve.from_nodes(nodes)(t)
        assert values.dtype == torch.float32
        assert torch.allclose(
            values, Curve.from_nodes(nodes.double())(t.double()).float(), atol=1e-6
        )

    def test_inference_mode_leaves_nothing_behind(self):
        # The spline matrix of a resolution is kept; made in inference mode it must still serve
        # autograd later.
        with torch.inference_mode():
            Curve.from_nodes(rand(1, 47, 2))
        nodes = rand(1, 47, 2).requires_grad_()
        Curve.from_nodes(nodes)(0.3).sum().backward()
        assert nodes.grad.isfinite().all()


class TestEvaluation:
    curve = Curve.from_nodes(rand(2, 3, 5, 4))

    @pytest.mark.parametrize("name", ["__call__", "velocity", "acceleration"])
    def test_shapes(self, name):
        at = getattr(self.curve, name)
        assert at(0.25).shape == at(torch.tensor(0.25)).shape == (2, 3, 4)
        assert at(torch.tensor([0.25])).shape == (2, 3, 1, 4)
        assert at(torch.linspace(0, 1, 7)).shape == (2, 3, 7, 4)
        assert at(torch.empty(0)).shape == (2, 3, 0, 4)
        assert torch.equal(at(0.25), at(torch.tensor([0.1, 0.25]))[..., 1, :])

    def test_numbers_of_any_kind(self):
        for t in (1, 1.0, torch.tensor(1), torch.tensor(1.0), np.float32(1.0), np.array(1.0)):
            assert torch.equal(self.curve(t), self.curve.nodes[..., -1, :])

    @pytest.mark.parametrize("t", [-1e-3, 1.001, float("nan"), [0.5, 2.0], [0.0, float("inf")]])
    def test_outside_of_the_unit_interval(self, t):
        with pytest.raises(OptionError, match=r"times in \[0, 1\]"):
            self.curve(torch.tensor(t))

    def test_several_axes_of_times(self):
        with pytest.raises(ShapeError, match="one axis of times"):
            self.curve(torch.zeros(2, 2))

    def test_indexing(self):
        row, t = self.curve[1], 0.3
        assert self.curve.batch_shape == (2, 3)
        assert row.batch_shape == (3,)
        assert row.segments == self.curve.segments == 4
        assert torch.equal(row(t), self.curve(t)[1])
        assert torch.equal(self.curve[1, 2](t), self.curve(t)[1, 2])
        assert torch.equal(self.curve[:, 1:](t), self.curve(t)[:, 1:])
        assert torch.equal(row[torch.tensor([True, False, True])](t), row(t)[[0, 2]])
        assert [torch.equal(c(t), z) for c, z in zip(row, row(t), strict=True)] == [True] * 3

    @pytest.mark.parametrize("index", [0, (0, 0), slice(1), (..., 0)], ids=str)
    def test_no_index_cuts_a_curve_into_pieces(self, index):
        # One curve has no batch axis: an index would pick knots or coordinates.
        with pytest.raises((IndexError, RiemaeError)):
            Curve.from_nodes(rand(5, 4))[index]

    def test_ellipsis_stays_within_the_batch(self):
        assert torch.equal(self.curve[..., 1](0.3), self.curve(0.3)[:, 1])

    def test_repr(self):
        assert (
            repr(self.curve)
            == "Curve((2, 3) curves of 4 segments in 4 dimensions, torch.float64, cpu)"
        )

    def test_comparing_curves_raises_nothing(self):
        # Tensors that are compared entry by entry have no truth value.
        assert self.curve == self.curve
        assert self.curve != Curve.from_nodes(self.curve.nodes)
        assert self.curve in {self.curve: 1}

    def test_derivatives(self):
        t = torch.tensor([0.03, 0.43, 0.77], dtype=F64, requires_grad=True)
        nodes = rand(2, 6, 2).requires_grad_()
        for name in ("__call__", "velocity", "acceleration"):
            assert torch.autograd.gradcheck(
                lambda x, t, name=name: getattr(Curve.from_nodes(x), name)(t), (nodes, t)
            )

    def test_velocity_and_acceleration_are_derivatives_in_time(self):
        t = torch.tensor([0.03, 0.43, 0.77], dtype=F64)
        for low, high in (
            (self.curve, self.curve.velocity),
            (self.curve.velocity, self.curve.acceleration),
        ):
            ahead, back = low(t + 1e-6), low(t - 1e-6)
            assert torch.allclose((ahead - back) / 2e-6, high(t), rtol=1e-7, atol=1e-6)


class TestMaking:
    @pytest.mark.parametrize("segments", [1, 3, 8])
    def test_line(self, segments):
        z0, z1 = rand(3, 1, 2), rand(1, 5, 2, seed=1)
        curve = Curve.line(z0, z1, segments)
        assert curve.nodes.shape == curve.slopes.shape == (3, 5, segments + 1, 2)
        assert torch.equal(curve(0.0), z0.expand(3, 5, 2))
        assert torch.equal(curve(1.0), z1.expand(3, 5, 2))
        t = rand(9)
        assert torch.allclose(
            curve(t), z0[..., None, :] + t[:, None] * (z1 - z0)[..., None, :], rtol=1e-14
        )
        assert torch.allclose(
            curve.velocity(t), (z1 - z0)[..., None, :].expand(3, 5, 9, 2), rtol=1e-13
        )
        assert curve.acceleration(t).abs().max() < 1e-11

    @pytest.mark.parametrize(("segments", "factor"), [(1, 5), (4, 2), (6, 3), (8, 1)])
    def test_resampling_to_a_multiple_changes_no_point(self, segments, factor):
        nodes, t = rand(3, segments + 1, 2), torch.linspace(0, 1, 101, dtype=F64)
        for curve in (
            Curve.from_nodes(nodes),
            Curve(nodes, rand(3, segments + 1, 2, seed=1)),
        ):  # the latter is only C¹
            fine = curve.resample(factor * segments)
            assert fine.segments == factor * segments
            assert torch.allclose(fine(t), curve(t), atol=1e-13)
            assert torch.allclose(fine.velocity(t), curve.velocity(t), atol=1e-11)

    def test_resampling_to_anything_else_interpolates(self):
        curve = Curve.from_nodes(rand(3, 9, 2))
        for segments in (4, 5, 11):
            other = curve.resample(segments)
            assert torch.allclose(
                other.nodes, curve(torch.linspace(0, 1, segments + 1, dtype=F64)), atol=1e-14
            )
            assert torch.equal(other.slopes, Curve.from_nodes(other.nodes).slopes)

    def test_knots_lie_on_the_curve(self):
        nodes = rand(3, 9, 2)
        curve = Curve(nodes, rand(3, 9, 2, seed=1))
        for segments in (1, 2, 4, 8, 16, 24, 5, 12):
            found = curve.knots(segments)
            assert torch.allclose(
                found, curve(torch.linspace(0, 1, segments + 1, dtype=F64)), atol=1e-14
            )
            assert torch.equal(found[:, [0, -1]], nodes[:, [0, -1]])
        assert torch.equal(curve.knots(4), nodes[:, ::2])
        assert torch.equal(curve.knots(16)[:, ::2], nodes)
        with pytest.raises(OptionError, match="segments of at least 1"):
            curve.knots(0)

    def test_through_walks_a_polyline_at_constant_speed(self):
        # Pieces of length 1 and 3: after a quarter of the time the corner is reached.
        corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 3.0]], dtype=F64)
        curve = Curve.through(corners, 8)
        expected = [[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [1, 1.5], [1, 2], [1, 2.5], [1, 3]]
        assert torch.allclose(curve.nodes, torch.tensor(expected, dtype=F64), atol=1e-14)

    def test_through_keeps_to_the_times(self):
        corners, times = rand(4, 6, 3), rand(4, 6, seed=1).cumsum(-1)
        times = times - times[:, :1]
        nodes = Curve.through(corners, 16, times).nodes
        wanted = np.linspace(0, 1, 17)
        for b in range(4):
            for d in range(3):  # numpy.interp is the same thing, one number at a time
                expected = np.interp(
                    wanted * float(times[b, -1]), times[b].numpy(), corners[b, :, d].numpy()
                )
                assert np.allclose(nodes[b, :, d].numpy(), expected, rtol=1e-12, atol=1e-12)

    def test_through_takes_times_in_any_unit_and_type(self):
        corners, counted = rand(7, 2), torch.arange(7, dtype=F64)
        expected = Curve.through(corners, 8, counted).nodes
        assert torch.allclose(Curve.through(corners, 8, 1e6 * counted).nodes, expected, rtol=1e-13)
        assert torch.allclose(
            Curve.through(corners, 8, torch.arange(7)).nodes, expected, rtol=1e-13
        )
        assert torch.allclose(Curve.through(corners, 8, counted.float()).nodes, expected, rtol=1e-6)

    def test_through_meets_both_ends_whatever_the_polyline(self):
        z = rand(2, 4, 2)
        z[0] = z[0, :1]  # four times one point
        z[1, 2] = z[1, 1]  # a corner twice
        nodes = Curve.through(z, 8).nodes
        assert torch.equal(nodes[:, 0], z[:, 0])
        assert torch.equal(nodes[:, -1], z[:, -1])
        assert torch.equal(nodes[0], z[0, :1].expand(9, 2))
        assert nodes.isfinite().all()

    def test_through_wants_one_time_a_corner(self):
        for times in (torch.arange(4, dtype=F64), torch.zeros(2, 3, dtype=F64)):
            with pytest.raises(ShapeError, match="times"):
                Curve.through(rand(5, 2), 8, times)

    @pytest.mark.parametrize("shape", [(), (3,), (1, 2), (4, 1, 2), (0, 2)], ids=str)
    def test_two_nodes_at_least(self, shape):
        with pytest.raises(
            ShapeError, match=r"Curve.from_nodes: expected a curve of shape .* both end points"
        ):
            Curve.from_nodes(torch.zeros(shape))
        with pytest.raises(ShapeError, match="Curve.through"):
            Curve.through(torch.zeros(shape), 4)
        with pytest.raises(ShapeError, match="length"):
            solvers.length(FLAT, torch.zeros(shape))

    @pytest.mark.parametrize("segments", [0, -1])
    def test_one_segment_at_least(self, segments):
        z = rand(4, 2)
        for make in (lambda: Curve.line(z[0], z[1], segments), lambda: Curve.through(z, segments)):
            with pytest.raises(RiemaeError, match="segments"):
                make()
        with pytest.raises(RiemaeError, match="segments"):
            Curve.from_nodes(z).resample(segments)


def helix(z):
    """Of radius 1 in 5 dimensions; a unit of z is a radian and rises by 0.3."""
    angle = z[:, :1]
    return torch.cat([angle.cos(), angle.sin(), 0.3 * angle, z[:, 1:], 0 * angle], 1)


def measured(space, curve):
    measure = Measure.of(space, curve)
    return measure.speed, measure.weights


class TestSampledSpeeds:
    """Speeds from points of the embedding alone, against tangents and closed forms."""

    def test_length_of_a_helix(self):
        # 24 radians at constant speed on 12 segments, two of them each.
        curve = Curve.line(torch.zeros(1, 2, dtype=F64), torch.tensor([[24.0, 0.0]], dtype=F64), 12)
        speed, weights = measured(Manifold(helix).as_space(), curve)
        assert speed.shape == (1, len(weights))
        assert torch.allclose(weights.sum(), torch.tensor(1.0, dtype=F64))
        assert torch.allclose(
            (speed * weights).sum(-1), torch.tensor(24 * 1.09**0.5, dtype=F64), rtol=1e-5
        )

    def test_order_of_convergence(self):
        # One cubic, at more and more resolutions: no knot disturbs.
        nodes = Curve.from_nodes(torch.linspace(0, 2, 4, dtype=F64)[:, None] + 0.3 * rand(3, 4, 2))
        space = Manifold(
            lambda z: torch.stack([z[:, 0].exp(), z[:, 1].sin(), z[:, 0] * z[:, 1]], 1)
        ).as_space()
        true = solvers.length(space, nodes.resample(768))
        errors = []
        for segments in (6, 12, 24):
            speed, weights = measured(space, nodes.resample(segments))
            errors.append(float(((speed * weights).sum(-1) - true).abs().max()))
        assert (slope(errors) > 6.5).all()  # tends to 8

    def test_speeds_are_those_of_tangents(self):
        curve = Curve.from_nodes(
            torch.linspace(0, 2, 4, dtype=F64)[:, None] + 0.3 * rand(3, 4, 2)
        ).resample(48)
        space = Manifold(helix).as_space()
        sampled, weights = measured(space, curve)
        found = torch.stack([(sampled * weights).sum(-1), (sampled.square() * weights).sum(-1)])
        assert torch.allclose(
            found,
            torch.stack([solvers.length(space, curve), solvers.energy(space, curve)]),
            rtol=1e-9,
        )

    @pytest.mark.parametrize(
        ("space", "dtype"),
        [
            (HALF_PLANE, F64),
            (Manifold(helix).as_space(), torch.float32),
            (Manifold(helix, chunk_size=32).as_space(), F64),
        ],
        ids=["no embedding", "float32", "a curve that fills the memory"],
    )
    def test_elsewhere_tangents_are_taken(self, space, dtype):
        curve = Curve.from_nodes(rand(3, 9, 2, dtype=dtype) + 1)
        for found, expected in zip(measured(space, curve), speeds(space, curve), strict=True):
            assert torch.equal(found, expected)


class TestLength:
    def test_straight_line_in_the_half_plane(self):
        # Upwards from height a to b: ∫ dy/y = log(b/a), whatever the parametrisation. At constant
        # latent speed the energy is ∫ ((b − a)/(a + t(b − a)))² dt = (b − a)(1/a − 1/b).
        a, b = torch.tensor(0.5, dtype=F64), torch.tensor(2.0, dtype=F64)
        points = torch.stack(
            [torch.zeros(65, dtype=F64), torch.linspace(0.5, 2, 65, dtype=F64)], -1
        )
        for curve in (Curve.line(points[0], points[-1], 64), points):
            assert torch.allclose(solvers.length(HALF_PLANE, curve), (b / a).log(), rtol=1e-9)
            assert torch.allclose(
                solvers.energy(HALF_PLANE, curve), (b - a) * (1 / a - 1 / b), rtol=1e-8
            )

    def test_polyline(self):
        # 3, 4 and 12 long, in a third of the time each: length 19, energy 3 (9 + 16 + 144).
        z = torch.tensor([[0.0, 0, 0], [3, 0, 0], [3, 4, 0], [3, 4, 12]], dtype=F64)
        assert torch.allclose(solvers.length(FLAT, z), torch.tensor(19.0, dtype=F64), rtol=1e-14)
        assert torch.allclose(solvers.energy(FLAT, z), torch.tensor(507.0, dtype=F64), rtol=1e-14)

    @pytest.mark.parametrize("batch", [(), (2,), (2, 2)], ids=str)
    def test_scipy_integrates_the_same(self, batch):
        # The speed of a random curve is far from polynomial: many short pieces of one cubic show
        # the rule's accuracy.
        nodes = rand(*batch, 5, 2) + torch.tensor([0.0, 1.0], dtype=F64)
        curve = Curve.from_nodes(nodes).resample(128)
        length, energy = solvers.length(HALF_PLANE, curve), solvers.energy(HALF_PLANE, curve)
        assert length.shape == energy.shape == batch
        knots = np.linspace(0, 1, 5)
        for c, lengths in zip(
            nodes.reshape(-1, 5, 2), torch.stack([length, energy], -1).reshape(-1, 2), strict=True
        ):
            peer = scipy_spline(c)

            def speed(t, power, peer=peer):
                return (np.linalg.norm(peer(t, 1)) / peer(t)[1]) ** power

            for power, found in zip((1, 2), lengths.tolist(), strict=True):
                pieces = [
                    quad(speed, a, b, (power,), epsabs=1e-12)[0]
                    for a, b in itertools.pairwise(knots)
                ]
                assert abs(found - sum(pieces)) < 1e-9 * found

    def test_order_of_convergence(self):
        # A spline through nodes on a circle of radius 1: its length tends to the angle, 2, with h⁴.
        errors = []
        for segments in (64, 128, 256, 512):
            angle = 2 * torch.linspace(0, 1, segments + 1, dtype=F64)
            curve = Curve.from_nodes(torch.stack([angle.cos(), angle.sin()], -1))
            errors.append((solvers.length(FLAT, curve) - 2).abs())
        assert (slope(errors) > 3.6).all()

    @settings(max_examples=25, deadline=None, derandomize=True)
    @given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**20))
    def test_energy_is_at_least_the_squared_length(self, count, m, seed):
        nodes = rand(3, count, m, seed=seed)
        for curve in (nodes, Curve.from_nodes(nodes)):
            assert (
                solvers.energy(FLAT, curve) >= solvers.length(FLAT, curve) ** 2 * (1 - 1e-12)
            ).all()

    def test_gradient(self):
        nodes = (rand(2, 5, 2) + 0.5).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x: solvers.length(HALF_PLANE, Curve.from_nodes(x)), nodes
        )
        assert torch.autograd.gradcheck(lambda x: solvers.energy(HALF_PLANE, x), nodes)

    def test_a_curve_that_rests(self):
        z = rand(2, 1, 2).expand(2, 4, 2).clone().requires_grad_()
        length = solvers.length(FLAT, z)
        (gradient,) = torch.autograd.grad(length.sum(), z)
        assert length.tolist() == [0.0, 0.0]
        assert gradient.abs().max() == 0  # not NaN

    def test_empty_batch(self):
        assert solvers.length(FLAT, torch.empty(0, 3, 2)).shape == (0,)
        assert solvers.energy(FLAT, Curve.from_nodes(torch.empty(0, 3, 2))).shape == (0,)

    def test_no_curve(self):
        with pytest.raises(DTypeError, match=r"a Curve or a tensor \(\*b, n, m\), got list"):
            solvers.length(FLAT, [[0.0, 0.0], [1.0, 1.0]])

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float16])
    def test_numbers_that_cannot_carry_a_length(self, dtype):
        z = torch.tensor([[0, 0], [3, 4]]).to(dtype)
        with pytest.raises(DTypeError, match="float32 or float64"):
            solvers.length(FLAT, z)
        with pytest.raises(DTypeError, match="float32 or float64"):
            Curve.from_nodes(z)


class TestEqualized:
    def uneven(self, segments):
        """Up the half plane from 1/2 to 2, slowly at first: speed far from constant, length log
        4."""
        t = torch.linspace(0, 1, segments + 1, dtype=F64)
        return Curve.from_nodes(torch.stack([torch.zeros_like(t), 0.5 + 1.5 * t**2], -1))[None]

    def test_constant_speed_on_the_same_path(self):
        spread = []
        for segments in (16, 32, 64):
            curve = self.uneven(segments)
            even = equalized(curve, *speeds(HALF_PLANE, curve), segments)
            speed, _ = speeds(HALF_PLANE, even)
            spread.append((speed / np.log(4) - 1).abs().max())
            assert even.segments == segments
            assert torch.allclose(
                even.nodes[:, [0, -1]], curve.nodes[:, [0, -1]], rtol=1e-14, atol=1e-14
            )
            assert torch.allclose(
                solvers.length(HALF_PLANE, even), torch.tensor(np.log(4)), rtol=1e-3
            )
            assert even.nodes[..., 0].abs().max() == 0
        before = speeds(HALF_PLANE, self.uneven(64))[0]
        assert before.max() / before.min() > 10
        assert spread[-1] < 0.05
        assert spread[0] > spread[1] > spread[2]

    def test_batches_are_curve_by_curve(self):
        both = Curve.from_nodes(torch.cat([self.uneven(16).nodes, 1 + rand(1, 17, 2)]))
        speed, weights = speeds(HALF_PLANE, both)
        alone = equalized(both[1:], speed[1:], weights, 24)
        assert torch.allclose(
            equalized(both, speed, weights, 24)[1:].nodes, alone.nodes, rtol=1e-14
        )

    def test_a_curve_that_rests_stays(self):
        rest = Curve.line(rand(2, 2), rand(2, 2), 4)
        assert torch.equal(
            equalized(rest, *speeds(FLAT, rest), 8).nodes, rest.nodes[:, :1].expand(2, 9, 2)
        )
