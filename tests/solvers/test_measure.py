"""Error estimates, near pairs, singular metrics, and results that are never longer than what was
known before."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.exceptions import FallbackWarning
from riemae.solvers import Curve, Newton, NewtonCG, Status
from riemae.solvers.measure import Evidence, Measure

ROWS = np.arange(1)


def sine(z):
    """Onto the plane, so that distances are those of the images.

    Its speed varies by a factor of 19.
    """
    return z + 0.45 * (2 * z).sin()


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(*sizes, activation=nn.SiLU, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in zip(sizes, sizes[1:], strict=False):
        layer = nn.Linear(a, b, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.randn(b, a, generator=generator, dtype=torch.float64) / a**0.5)
            layer.bias.copy_(torch.randn(b, generator=generator, dtype=torch.float64) / 2)
        layers += [layer, activation()]
    return nn.Sequential(*layers[:-1]).eval()


class TestEvidence:
    def told(self, lengths, roots, wobble=0.0, ratio=16.0, dimension=2):
        evidence = Evidence(1)
        for length, root in zip(lengths, roots, strict=True):
            evidence.add(ROWS, np.array([length]), np.array([root]))
        said = evidence.error(ROWS, np.array([wobble]), ratio, dimension)
        return tuple(float(x[0]) for x in said)

    def test_one_level_says_nothing(self):
        assert all(math.isnan(x) for x in self.told([1.0], [0.9]))

    def test_fourth_order(self):
        # L(h) = 1 + h⁴ and a root energy of 1 − h²: at h = 1/8 the error is 8⁻⁴. The bar is nearly
        # twice as wide, because lengths often fall by less than h⁴ on the first levels.
        lengths, roots = ([1 + h**4 for h in (1 / 4, 1 / 8)], [1 - h**2 for h in (1 / 4, 1 / 8)])
        error, worst = self.told(lengths, roots)
        assert 8**-4 <= error <= 2 * 8**-4
        assert worst <= error

    def of_two(self, lengths, wobbles=(0.0, 0.0), left=(0.0, 0.0), ratio=16.0):
        """The error that two levels claim, whose root energies say nothing against them."""
        evidence = Evidence(1)
        for length, root, *rest in zip(lengths, (1 - 1e-2, 1 - 2e-3), wobbles, left, strict=True):
            evidence.add(ROWS, np.array([length]), np.array([root]))
            evidence.end(ROWS, *(np.array([x]) for x in rest))
        return float(evidence.error(ROWS, np.array(wobbles[1:]), ratio, 5)[0][0])

    @pytest.mark.parametrize("ratio", [12, 14, 16])
    def test_two_levels_of_an_even_speed_may_fall_by_less_than_fourth_order(self, ratio):
        # So they do on the first levels of spheres of many dimensions.
        e = 1e-6
        error = self.of_two([1 + ratio * e, 1 + e], wobbles=(1.6e-8, 1e-9))
        assert e <= error <= 1.5 * e

    def test_two_levels_whose_speed_has_settled_faster_need_no_more(self):
        # Where even the speed falls by h⁶, lengths do as well.
        e = 1e-6
        error = self.of_two([1 + 60 * e, 1 + e], wobbles=(6.4e-8, 1e-9))
        assert error <= 1.2 * 59 / 15 * e

    def test_lengths_of_two_levels_fall_faster_where_curves_stray_along_themselves(self):
        # On closed forms by h⁷, as the wobble does; of networks, some by little more than h⁴.
        e = 1e-9
        for fallen in (20, 128):
            error = self.of_two([1 + fallen * e, 1 + e], wobbles=(640 * e, 5 * e))
            assert 0.8 * e <= error <= 7 * e
        # Solvers of second order are not believed to be of fourth.
        error = self.of_two([1 + 8 * e, 1 + e], wobbles=(400 * e, 5 * e), ratio=4.0)
        assert e <= error <= 7 * e
        # Of a difference that may be an accident, h⁴ is believed.
        for before in (64, 1e5):
            error = self.of_two([1 + 128 * e, 1 + e], wobbles=(before * e, before / 128 * e))
            assert error >= 127 / 15 * e

    @pytest.mark.parametrize("stray", [0.1, 0.25, 0.4])
    def test_a_solver_that_ends_early_may_hide_what_nodes_leave(self, stray):
        # Deviations of 1 and −stray from the geodesic make (1 − stray)² of the length, and the
        # nodes of the next level are right to 1/16.
        e = 1e-6
        lengths = [1 + 16 * e * (1 - stray) ** 2, 1 + e]
        error = self.of_two(lengths, left=(16 * e * stray**2, 0.0))
        assert e <= error <= 2 * e
        # The promise of a step that has been taken since is larger than all of the difference.
        assert self.of_two(lengths, left=(1e-3, 0.0)) == self.of_two(lengths)

    def test_what_a_solver_leaves_at_the_end_adds_to_what_nodes_leave(self):
        e = 1e-6
        plain, joined = (self.of_two([1 + 17 * e, 1 + e], left=(0.0, x)) for x in (0.0, 0.1 * e))
        # The claim adds what is left over itself, (1 + √0.1)² = 1.73.
        assert plain + 0.63 * e <= joined <= plain + e

    def test_three_levels_show_a_second_order_method(self):
        # L(h) = 1 + h² falls by 4 only, which two levels cannot know.
        lengths = [1 + h**2 for h in (1 / 4, 1 / 8, 1 / 16)]
        error, _ = self.told(lengths, [1.0] * 3)
        assert 16**-2 <= error <= 3 * 16**-2

    @pytest.mark.parametrize("ratio", [10, 16, 25])
    def test_what_has_just_been_resolved_falls_more_slowly(self, ratio):
        # Errors that fell by 400, and fall by h⁴ or so from there: the next level would say it. In
        # four dimensions, the speed shows a third of what three others add to the length.
        e = 1e-8
        lengths = [1 + 400 * ratio * e, 1 + ratio * e, 1 + e]
        roots = [1 - 1e-3 * h**2 + 1e-4 * h**4 for h in (1, 1 / 2, 1 / 4)]
        error, worst = self.told(lengths, roots, wobble=e / 3, dimension=4)
        assert e <= error <= 4 * e
        # Nothing strays across a curve in one dimension, and an even speed shows that all is well.
        assert self.told(lengths, roots, wobble=e / 1e3, dimension=1)[0] <= 0.7 * e

    def test_levels_that_agree_by_accident_do_not_deceive(self):
        # The root energies stand still: the distance is 1, whatever the two lengths say.
        error, worst = self.told([1.06, 1.06], [1.0, 1.0])
        assert error >= 0.06
        assert worst >= 0.06

    def test_an_uneven_speed_holds_the_verdict_back(self):
        # What the root energies leave open, h² parts of 0.2, is decided by the speed.
        even, uneven = (
            self.told([1.002, 1.002], [0.75, 0.94], wobble)[1] for wobble in (1e-9, 0.005)
        )
        assert even < 1e-6
        assert uneven >= 0.005

    def test_a_length_that_grows_is_too_long_by_the_difference(self):
        assert self.told([1.0, 1.01], [0.99, 1.0])[0] >= 0.01


class TestFlatOnto:
    def test_the_pair_that_two_levels_deceived(self):
        a, b = torch.tensor([5.1, 6.2]).double(), torch.tensor([0.6, 0.6]).double()
        r = Manifold(sine).geodesic(a, b, rtol=1e-3)
        distance = (sine(a) - sine(b)).norm()
        assert r.converged
        assert abs(r.length - distance) <= min(1e-3 * distance, r.error + 1e-12)

    @pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
    def test_a_plane_rolled_up_has_no_tight_lower_bound(self, rtol):
        # x → (cos x, sin x, …) is isometric: the distance is still that of the images in the plane,
        # but their chord in space is far shorter, and says nothing about the error.
        def rolled(z):
            x = sine(z)
            return torch.stack([x[:, 0].cos(), x[:, 0].sin(), x[:, 1]], 1)

        a, b = 2 * rand(2, 40, 2)
        near = (sine(a) - sine(b))[:, 0].abs() < 2.5
        a, b = a[near], b[near]
        distance = (sine(a) - sine(b)).norm(dim=-1)
        r = Manifold(rolled).geodesic(a, b, rtol=rtol, throw=False)
        off = (r.length - distance).abs()
        assert r.converged.double().mean() > 0.8
        assert bool((off <= rtol * distance)[r.converged].all())
        assert (off <= r.error + 1e-12).double().mean() >= 0.8
        assert bool((off <= 10 * r.error + 1e-12).all())

    def test_velocities_are_those_of_the_line(self):
        # On the preimages of even points of a straight line, J ż is the line's own direction.
        x = torch.linspace(-2, 3, 17).double()[:, None] * torch.tensor([1.0, 0.4]).double()
        z = x.clone()
        for _ in range(60):  # Newton, coordinate by coordinate
            z = z - (sine(z) - x) / (1 + 0.9 * (2 * z).cos())
        expected = (x[-1] - x[0]) / (1 + 0.9 * (2 * z).cos())
        assert torch.allclose(Manifold(sine).as_space().velocities(z[None])[0], expected, rtol=1e-9)

    def test_velocities_where_there_are_none(self):
        assert (
            Manifold(lambda z: z.sum(-1, keepdim=True)).as_space().velocities(rand(2, 9, 2)) is None
        )
        assert (
            Manifold(lambda z: z, ambient=lambda x: 1 + x.square())
            .as_space()
            .velocities(rand(2, 9, 2))
            is None
        )


class TestNearPairs:
    """The true distance of near points is |J Δz|, up to the square of their distance."""

    @pytest.mark.parametrize("gap", [1e-4, 1e-5, 1e-6])
    @pytest.mark.parametrize("offset", [0.0, 10.0])
    def test_float32(self, gap, offset):
        net = network(2, 16, 5, activation=nn.Tanh)
        a = rand(10, 2).float()
        b = a + gap * torch.tensor([1.0, 0.5])
        truth = Manifold(net).norm(((a + b) / 2).double(), (b - a).double())
        M = Manifold(lambda z: net.float()(z) + offset)
        try:
            r = M.geodesic(a, b, rtol=1e-3)
        finally:
            net.double()
        assert bool(((r.length.double() - truth).abs() <= 1e-4 * truth).all())
        assert bool(((r.length.double() - truth).abs() <= r.error).all())
        assert bool((r.index == 0).all())

    @pytest.mark.parametrize("gap", [1e-9, 1e-12])
    @pytest.mark.parametrize("space", ["decoder", "tensor"])
    def test_float64(self, gap, space):
        a = rand(10, 2) / 4 + torch.tensor([0.0, 2.0])
        b = a + gap * torch.tensor([1.0, 0.5])
        gap = b - a  # as it is after rounding
        if space == "tensor":
            half_plane = solvers.MetricSpace(
                lambda z: torch.eye(2).to(z) / z[:, 1, None, None] ** 2
            )
            r, truth = solvers.geodesic(half_plane, a, b, rtol=1e-6), gap.norm(dim=-1) / a[:, 1]
        else:
            M = Manifold(network(2, 16, 5))
            r, truth = M.geodesic(a, b, rtol=1e-6), M.norm(a, gap)
        assert bool(((r.length - truth).abs() <= 1e-6 * truth).all())

    def test_one_among_others_does_not_raise(self):
        net = network(2, 16, 5).float()
        a = rand(4, 2).float()
        b = torch.cat([a[:1] + 1e-6, rand(3, 2, seed=1).float()])
        r = Manifold(net).geodesic(a, b)
        assert bool(r.converged.all())

    @pytest.mark.parametrize("width", [1.0, 0.3, 0.03, 0.01])
    @pytest.mark.parametrize("slope", [0.2, 0.97, 1.03, 4.0])
    def test_kinks_on_the_way(self, width, slope):
        # Onto the line, one to one, with a piece of another slope: the distance is that of the
        # images. Far from the origin they are so near in float32 that their straight line is kept.
        def bent(z):
            return 30 + z + (slope - 1) * (z.relu() - (z - width).relu())

        a, b = -0.5 * rand(40, 1) - 0.01, 0.5 + 0.5 * rand(40, 1)
        a, b = a.clamp(max=-0.01).float(), b.clamp(min=0.05).float()
        truth = (bent(b.double()) - bent(a.double()))[:, 0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = Manifold(bent).geodesic(a, b, rtol=1e-4, throw=False)
        off = (r.length.double() - truth).abs()
        assert bool((off <= 1e-4 * truth)[r.converged].all())
        assert bool((off <= r.error)[r.error.isfinite()].all())
        assert int(r.converged.sum()) >= 10

    def test_a_curve_that_was_given_is_not_thrown_away(self):
        # Once round a circle and back to nearly the start: near, but meant.
        circle = Manifold(lambda z: torch.cat([z.cos(), z.sin()], -1))
        t = torch.linspace(0, 2 * torch.pi, 33).double()[:, None]
        z1 = t[-1:]
        r = circle.geodesic(torch.zeros(1, 1).double(), z1, init=t[None])
        assert torch.allclose(r.length, torch.full((1,), 2 * torch.pi).double(), rtol=1e-4)


def unused(z):
    """Two coordinates that nothing depends on."""
    return CORE(z[:, :3])


CORE = network(3, 24, 10, activation=nn.Tanh)
MIX = torch.linalg.qr(rand(5, 5, seed=5))[0][:, :3]


class TestConstantRank:
    """A metric that is singular everywhere alike is that of a space of lower dimension."""

    @pytest.mark.parametrize(
        ("decoder", "m", "reduce"),
        [
            (unused, 5, lambda z: z[:, :3]),
            (lambda z: CORE(z @ MIX), 5, lambda z: z @ MIX),
            (
                lambda z: CORE(torch.stack([z[:, 0] + z[:, 1], z[:, 2], z[:, 3]], 1)),
                4,
                lambda z: torch.stack([z[:, 0] + z[:, 1], z[:, 2], z[:, 3]], 1),
            ),
            (lambda z: CORE(z[:, :3].sinh() + 0 * z[:, 3:4]), 4, lambda z: z[:, :3].sinh()),
        ],
        ids=["unused", "mixed", "redundant", "unused behind a bend"],
    )
    def test_default(self, decoder, m, reduce):
        a, b = 0.7 * rand(2, 6, m)
        expected = Manifold(CORE).distance(reduce(a), reduce(b), rtol=1e-8)
        with pytest.warns(FallbackWarning, match="NewtonCG"):
            r = Manifold(decoder).geodesic(a, b, rtol=1e-5)
        assert bool(((r.length - expected).abs() <= 1e-5 * expected).all())
        assert bool((r.index == -1).all())
        # Whole curves raise a metric's eigenvalues within rounding of 0.
        r = Manifold(decoder).geodesic(a, b, rtol=1e-4)
        assert bool(((r.length - expected).abs() <= 1e-4 * expected).all())

    def test_normalised_latents(self):
        # z/|z| leaves a sphere: distances are great circles, whatever the radii.
        a, b = rand(2, 8, 3)
        unit = nn.functional.normalize
        with pytest.warns(FallbackWarning, match="NewtonCG"):
            r = Manifold(lambda z: unit(z, dim=-1)).geodesic(a, b, rtol=1e-4)
        angle = (unit(a, dim=-1) * unit(b, dim=-1)).sum(-1).acos()
        assert bool(((r.length - angle).abs() <= 1e-4 * angle).all())

    def test_more_coordinates_than_features(self):
        # A linear map onto a line: distances are differences of its values.
        w = rand(4, 1)
        a, b = rand(2, 5, 4)
        with pytest.warns(FallbackWarning, match="NewtonCG"):
            r = Manifold(lambda z: (z @ w).sinh()).geodesic(a, b)
        assert torch.allclose(r.length, ((a @ w).sinh() - (b @ w).sinh())[:, 0].abs(), rtol=1e-4)

    def test_a_solver_that_was_chosen_is_kept_and_its_hint_names_the_other(self):
        a, b = rand(2, 3, 5)
        r = Manifold(unused).geodesic(a, b, solver=Newton(), throw=False)
        assert bool((r.status == Status.SINGULAR).all())
        assert "NewtonCG" in solvers.HINTS[Status.SINGULAR]
        assert bool((r.error.isnan() | (r.error >= r.length - r.lower_bound)).all())

    def test_no_metric_at_all_stays_singular(self):
        r = Manifold(lambda z: 0 * z.repeat(1, 2)).geodesic(
            rand(3, 2), rand(3, 2, seed=1), throw=False
        )
        assert bool((r.status == Status.SINGULAR).all())


class TestNeverLonger:
    def test_than_its_start(self):
        # A good curve is thrown away by the first level of 8 segments where tangents nearly vanish.
        m = 8
        net = network(m, m, m, 4 * m)
        scale = torch.logspace(0, -2, m, dtype=torch.float64)
        M = Manifold(lambda z: net(z * scale))
        a, b = 3 * rand(2, 2, m)
        good = M.geodesic(a, b, rtol=1e-5, throw=False)
        for solver in (None, NewtonCG(max_products=5, max_steps=30)):
            again = M.geodesic(a, b, rtol=1e-3, init=good.curve, solver=solver, throw=False)
            assert bool((again.length <= good.length * (1 + 1e-12)).all())

    @pytest.mark.parametrize(
        "solver",
        [
            Newton(max_steps=1),
            NewtonCG(max_steps=1),
            solvers.LBFGS(max_steps=2),
            solvers.QuasiNewton(max_steps=2),
        ],
    )
    def test_than_the_straight_line(self, solver):
        net = network(2, 32, 32, 8, activation=nn.Tanh)
        M = Manifold(lambda z: net(3 * z))
        a, b = rand(2, 10, 2)
        line = Curve.line(a, b, 64)
        r = M.geodesic(a, b, solver=solver, throw=False)
        assert bool((r.length <= solvers.length(M, line) * (1 + 1e-6)).all())

    def test_a_failed_pair_has_an_honest_error_or_none(self):
        net = network(2, 32, 32, 8, activation=nn.Tanh)
        M = Manifold(lambda z: net(3 * z))
        a, b = rand(2, 10, 2)
        best = M.geodesic(a, b, rtol=1e-6, n_starts=4, throw=False).length
        for solver in (Newton(max_steps=2), NewtonCG(max_steps=2), solvers.Adam(max_steps=20)):
            r = M.geodesic(a, b, solver=solver, throw=False)
            failed = r.status == Status.MAX_STEPS
            assert bool(failed.any())
            assert bool((r.error.isnan() | (r.error >= r.length - best))[failed].all())


class TestRounding:
    @pytest.mark.parametrize("offset", [0.0, 1e3, 1e6])
    def test_an_offset_of_the_data_is_in_the_error(self, offset):
        # Lengths come from differences of features, which lose what the offset takes.
        def sphere(z, offset=offset):
            s = z.square().sum(-1, keepdim=True)
            return torch.cat([2 * z, s - 1], -1) / (1 + s) + offset

        a, b = rand(2, 40, 2)
        p, q = (sphere(x, 0.0) for x in (a, b))
        truth = 2 * torch.atan2((p - q).norm(dim=-1), (p + q).norm(dim=-1))
        p, q = (
            (
                torch.cat([2 * z, z.square().sum(-1, keepdim=True) - 1], -1)
                / (1 + z.square().sum(-1, keepdim=True))
            )
            for z in (a, b)
        )
        truth = 2 * torch.atan2((p - q).norm(dim=-1), (p + q).norm(dim=-1))
        r = Manifold(sphere).geodesic(a, b, rtol=1e-9, throw=False)
        assert ((r.length - truth).abs() <= r.error + 1e-13).double().mean() >= 0.95

    def test_grain_grows_with_the_size_of_the_data(self):
        curve = Curve.line(torch.zeros(1, 2).double(), torch.ones(1, 2).double(), 8)
        shifted = (Manifold(lambda z, c=c: z + c).as_space() for c in (0.0, 1e6))
        small, large = (Measure.of(space, curve).grain for space in shifted)
        assert large > 1e4 * small
