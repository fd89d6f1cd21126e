"""Geodesics against closed forms: accuracy, error estimates, statuses, independence of pairs."""

import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import spaces
import torch
from watching import watch

from riemae import Manifold, solvers
from riemae.exceptions import (
    DeviceError,
    DTypeError,
    FallbackWarning,
    NotConvergedError,
    OptionError,
    ShapeError,
)
from riemae.solvers import Curve, Newton, Status, shortest, state
from riemae.solvers.linear import BlockTridiagonal
from riemae.solvers.model import Secants
from riemae.solvers.shortest import Best
from riemae.solvers.state import PathState


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def solve(known, n=12, dtype=torch.float64, seed=0, **options):
    z0, z1, d = known.pairs(generator(seed), n)
    space = known.space()
    if isinstance(space, Manifold):
        space = space.to(dtype=dtype)
    return solvers.geodesic(space, z0.to(dtype), z1.to(dtype), **options), d


@pytest.mark.parametrize("known", spaces.CATALOGUE, ids=spaces.NAMES)
class TestCatalogue:
    def test_float64(self, known):
        r, d = solve(known, rtol=1e-7)
        assert r.length.dtype == torch.float64
        assert ((r.length - d).abs() <= 1e-6 * d).all()
        assert (r.is_local_minimum).all()

    def test_float32(self, known):
        r, d = solve(known, dtype=torch.float32, rtol=1e-4)
        assert r.length.dtype == r.curve.nodes.dtype == torch.float32
        assert ((r.length - d).abs() <= 1e-3 * d).all()

    def test_length_is_an_upper_bound(self, known):
        r, d = solve(known, rtol=1e-3)
        assert (r.length >= d * (1 - 1e-9)).all()
        bounded = ~r.lower_bound.isnan()
        assert (r.lower_bound[bounded] <= d[bounded] * (1 + 1e-9)).all()

    def test_symmetry(self, known):
        z0, z1, _ = known.pairs(generator(1), 6)
        there, back = (
            solvers.geodesic(known.space(), *ends, rtol=1e-7) for ends in ((z0, z1), (z1, z0))
        )
        assert torch.allclose(there.length, back.length, rtol=2e-7)


@pytest.mark.parametrize("rtol", [1e-3, 1e-4, 1e-5, 1e-7])
def test_error_estimates_are_within_a_factor_of_ten(rtol):
    claimed, real = [], []
    for known in spaces.CATALOGUE:
        r, d = solve(known, n=40, seed=2, rtol=rtol)
        claimed.append(r.error / d)
        real.append((r.length - d).abs() / d)
    claimed, real = torch.cat(claimed), torch.cat(real)
    # Both are limited by rounding, and the truths of the torus and the paraboloid by their
    # integrator.
    floor = 1e-12
    ratio = claimed.clamp(min=floor) / real.clamp(min=floor)
    assert ((ratio >= 0.1) & (ratio <= 10)).double().mean() >= 0.95
    assert (real <= rtol).all()


def test_rtol_is_a_promise():
    for rtol in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10):
        for known in (spaces.CATALOGUE[0], spaces.CATALOGUE[5], spaces.CATALOGUE[9]):
            r, d = solve(known, n=16, seed=3, rtol=rtol)
            assert ((r.length - d).abs() <= rtol * d).all()


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_scale_invariance(scale, dtype):
    z0, z1, _ = spaces.CATALOGUE[0].pairs(generator(), 6)
    z0, z1 = z0.to(dtype), z1.to(dtype)
    small = Manifold(spaces.sphere).geodesic(z0, z1)
    large = Manifold(lambda z: spaces.sphere(z) * scale).geodesic(z0, z1)
    tol = 1e-9 if dtype == torch.float64 else 1e-4
    assert torch.allclose(large.length, small.length * scale, rtol=tol)
    assert torch.allclose(large.curve.nodes, small.curve.nodes, atol=10 * tol)


def test_curve_ends_at_the_points_and_has_constant_speed():
    known = spaces.CATALOGUE[0]
    z0, z1, d = known.pairs(generator(), 5)
    r = known.space().geodesic(z0, z1, rtol=1e-7)
    assert torch.equal(r.curve(0.0), z0)
    assert torch.equal(r.curve(1.0), z1)
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    speed = known.space().norm(r.curve(t), r.curve.velocity(t))
    assert torch.allclose(speed, d[:, None].expand_as(speed), rtol=1e-3)


def test_curve_solves_the_geodesic_equation():
    known = spaces.CATALOGUE[0]
    z0, z1, _ = known.pairs(generator(), 5)
    space = known.space()
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    residuals = []
    for segments in (16, 32, 64):
        # A sharp tolerance, so that nothing but the resolution is left.
        solver = Newton(segments=segments, max_segments=2 * segments)
        r = space.geodesic(z0, z1, rtol=1e-7, solver=solver, throw=False)
        z, v = r.curve(t), r.curve.velocity(t)
        residuals.append((r.curve.acceleration(t) - space.acceleration(z, v)).abs().max())
    assert (
        residuals[0] / residuals[2] > 8
    )  # second order: a quarter at each doubling, two doublings


class TestSecants:
    """The BFGS update that a run's gradients give its matrix."""

    @staticmethod
    def hessian():
        generator = torch.Generator().manual_seed(0)
        root = torch.randn(3, 8, 8, generator=generator).double()
        return root @ root.mT + torch.eye(8).double()

    def steps(self, *changes, then=()):
        """Gives ``−M⁻¹g`` for the identity after updates ``(step, change)``; all vectors flat."""
        model = SimpleNamespace(newton=lambda gradient, rows: -gradient)
        secants = Secants(model, np.arange(3))
        for step, change in changes:
            secants.add(step.view(-1, 4, 2), change.view(-1, 4, 2))
        for rows in then:
            secants.keep(np.array(rows))

        def newton_step(gradient):
            step, decrement = secants.newton(gradient.view(-1, 4, 2))
            assert torch.allclose(decrement, -(gradient * step.flatten(1)).sum(-1))
            return step.flatten(1)

        return newton_step

    def test_the_last_secant_is_met(self):
        h = self.hessian()
        s = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).double()
        y = (h @ s[..., None])[..., 0]
        solve = self.steps((s[0], y[0]), (s[1], y[1]))
        assert torch.allclose(solve(y[1]), -s[1], rtol=1e-9)

    def test_numpy_finds_the_same(self):
        # H⁺ = (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ, as a matrix.
        h = self.hessian()
        s = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1)).double()
        y = (h @ s[..., None])[..., 0]
        g = torch.randn(3, 8, generator=torch.Generator().manual_seed(2)).double()
        found = self.steps((s[0], y[0]), (s[1], y[1]))(g)
        for i in range(3):
            inverse = np.eye(8)
            for a, b in zip(s[:, i].numpy(), y[:, i].numpy(), strict=True):
                left = np.eye(8) - np.outer(a, b) / (a @ b)
                inverse = left @ inverse @ left.T + np.outer(a, a) / (a @ b)
            assert np.allclose(-inverse @ g[i].numpy(), found[i].numpy(), rtol=1e-9)

    def test_negative_curvature_changes_nothing(self):
        h = self.hessian()
        s = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double()
        y = (h @ s[..., None])[..., 0]
        y[1:] = -y[1:]
        y[2] = 0.0
        g = torch.ones(3, 8).double()
        found = self.steps((s, y))(g)
        assert torch.equal(found[1:], -g[1:])
        assert not torch.allclose(found[0], -g[0])

    def test_curves_that_leave_change_nothing_for_the_rest(self):
        h = self.hessian()
        s = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).double()
        y = (h @ s[..., None])[..., 0]
        g = torch.ones(3, 8).double()
        found = self.steps((s, y))(g)
        assert torch.equal(self.steps((s, y), then=([0, 2], [1]))(g[2:]), found[2:])

    def test_gradients_replace_expansions(self, monkeypatch):
        # One expansion without second derivatives, one with them, and few more.
        expanded = [0, 0]

        def look(nodes, second_order=True):
            expanded[second_order] += len(nodes)

        watch(monkeypatch, expand=look)
        z0, z1, d = spaces.CATALOGUE[0].pairs(generator(), 40)
        r = Manifold(spaces.CATALOGUE[0].decoder).geodesic(z0, z1, rtol=1e-6)
        assert torch.allclose(r.length, d, rtol=1e-6)
        assert max(expanded) <= 50
        # Where the first step is all that it takes, one of each.
        expanded[:] = 0, 0
        r = Manifold(spaces.CATALOGUE[0].decoder).geodesic(z0, z0 + 0.05 * (z1 - z0), rtol=1e-3)
        assert r.is_local_minimum.all()
        assert expanded == [40, 40]


def _normal(z):
    """Normal distributions with their mean and the logarithm of their scale, no feature map."""
    return torch.distributions.Normal(z[:, :1], z[:, 1:].exp())


class TestShortestCurve:
    """A curve is measured again only where it may be shorter by what matters."""

    @staticmethod
    def level(length):
        return SimpleNamespace(length=np.array([length]), curve=Curve.line(*torch.zeros(2, 1, 2)))

    def test_a_little_longer_on_a_finer_level(self):
        best = Best(None, 1, rtol=1e-3)  # without a space nothing can be measured
        first = np.zeros(1, dtype=np.int64)
        assert best.take(first, self.level(1.0)) == 1.0
        assert best.take(first, self.level(1 + 1e-5)) == 1 + 1e-5
        assert best.take(first, self.level(1.0)) == 1.0

    @pytest.mark.parametrize("again", [1.0, 1.2])
    def test_longer_by_more_than_that(self, again, monkeypatch):
        measured = SimpleNamespace(of=lambda space, curve: self.level(again))
        monkeypatch.setattr(shortest, "Measure", measured)
        best = Best(None, 1, rtol=1e-3)
        first = np.zeros(1, dtype=np.int64)
        best.take(first, self.level(1.0))
        assert best.take(first, self.level(1.1)) == min(again, 1.1)


class TestKeptMatrix:
    """Finer levels begin with the coarse level's matrix, interpolated, and steps with it take the
    gradient alone."""

    @pytest.mark.parametrize("nodes", [2, 3, 7])
    def test_blocks_are_exact_where_the_jacobian_is_linear_along_the_curve(self, nodes):
        generator = torch.Generator().manual_seed(0)
        constant, slope = (torch.randn(3, 1, 6, 2, generator=generator).double() for _ in range(2))

        def blocks(n):
            t = torch.linspace(0, 1, n + 1, dtype=torch.float64)[1:-1, None, None]
            j = constant + t * slope
            return 4 * n * j.mT @ j, -2 * n * j[:, :-1].mT @ j[:, 1:]

        n = nodes + 1
        for found, expected in zip(state._halved(*blocks(n)), blocks(2 * n), strict=True):
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-10)

    def test_blocks_of_one_node_are_those_of_a_constant_jacobian(self):
        g = torch.tensor([[[[2.0, 1.0], [1.0, 3.0]]]]).double()
        tangents, crossings = state._halved(4 * 2 * g, g[:, :0])
        assert torch.allclose(tangents, (4 * 4 * g).expand(1, 3, 2, 2))
        assert torch.allclose(crossings, (-2 * 4 * g).expand(1, 2, 2, 2))

    def test_second_derivatives_scale_with_the_step(self):
        def t(n):
            inner = torch.linspace(0, 1, n + 1, dtype=torch.float64)[1:-1, None, None]
            return inner.expand(1, n - 1, 2, 2)

        for n in (3, 8):
            assert torch.allclose(state._interpolated((1 + t(n)) / n), (1 + t(2 * n)) / (2 * n))

    @pytest.mark.parametrize("links", [1, 2, 6])
    def test_links_are_interpolated_to_the_middles_of_the_segments(self, links):
        generator = torch.Generator().manual_seed(0)
        values, slopes = torch.randn(2, 2, 3, 3, generator=generator).double()

        def blocks(n):
            # From the middle of the second segment to that of the last but one.
            t = (torch.arange(1, n - 1).double()[:, None, None] + 0.5) / n
            t = t if links > 1 else 0 * t
            a, b = (x + t * y for x, y in zip(values, slopes, strict=True))
            return ((a - a.mT) + (b + b.mT) / n)[None]

        found = state._links_interpolated(blocks(links + 2))
        assert torch.allclose(found, blocks(2 * links + 4), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("space", ["half plane", "normal"])
    def test_hessians_of_varying_metrics_are_right_up_to_the_square_of_the_step(self, space):
        if space == "normal":
            space = Manifold(_normal).as_space(torch.zeros(1, 2).double())
        else:
            space = solvers.MetricSpace(spaces.half_plane_tensor)

        def along(n):
            return torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None]

        def error(n):
            t = along(n)
            curve = torch.cat([torch.sin(2 * t), 1 + t**2], 1)[None]
            fine = torch.cat([torch.sin(2 * along(2 * n)), 1 + along(2 * n) ** 2], 1)[None]
            known = space.expand(curve)
            assert known.scalable
            assert not known.separate
            begun = PathState.start(curve)
            begun.book["known"] = begun.book["scalable"] = True
            begun.tangents, begun.crossings = known.gauss_newton.diagonal, known.gauss_newton.upper
            begun.diagonal, begun.upper = known.correction.diagonal, known.correction.upper
            finer = begun.refined(fine, np.zeros(1, dtype=bool))
            assert finer.book["known"].all()
            whole = BlockTridiagonal(finer.tangents, finer.crossings) + BlockTridiagonal(
                finer.diagonal, finer.upper
            )
            s = math.pi * along(2 * n)[1:-1]
            v = torch.cat([s.sin() - (2 * s).sin(), (2 * s).sin() + (3 * s).sin() / 2], 1)[None]
            forms = [(v * h.product(v)).sum() for h in (whole, space.expand(fine).hessian)]
            return float(abs(forms[0] / forms[1] - 1))

        coarse, middle, fine = error(16), error(32), error(64)
        assert fine < middle / 3 < coarse / 9
        assert fine < 1e-3

    def test_finer_levels_of_varying_metrics_need_no_second_derivatives(self, monkeypatch):
        expanded = {}

        def expand(nodes, second_order=True):
            expanded[nodes.shape[1] - 1] = expanded.get(nodes.shape[1] - 1, 0) + len(nodes)

        watch(monkeypatch, expand=expand)
        z0, z1 = torch.randn(2, 40, 2, generator=generator(3)).double()
        r = Manifold(_normal).geodesic(z0, z1, rtol=1e-6)
        # In the half plane of (μ/√2, σ), stretched by √2.
        stretch = torch.tensor([2**0.5, 1.0], dtype=torch.float64)
        x, y = z0 / stretch, z1 / stretch
        heights = (x[:, 1] + y[:, 1]).exp()
        squared = (x[:, 0] - y[:, 0]) ** 2 + (x[:, 1].exp() - y[:, 1].exp()) ** 2
        d = 2 * 2**0.5 * torch.asinh((squared / (4 * heights)).sqrt())
        assert torch.allclose(r.length, d, rtol=1e-6)
        assert expanded[8] >= 40
        assert expanded.get(16, 0) <= 4

    @pytest.mark.parametrize("decoder", [spaces.sphere, spaces.torus, spaces.paraboloid])
    def test_finer_levels_need_no_second_derivatives(self, decoder, monkeypatch):
        expanded, sloped = {}, {}

        def expand(nodes, second_order=True):
            expanded[nodes.shape[1] - 1] = expanded.get(nodes.shape[1] - 1, 0) + len(nodes)

        def energy_and_gradient(nodes):
            sloped[nodes.shape[1] - 1] = sloped.get(nodes.shape[1] - 1, 0) + len(nodes)

        watch(monkeypatch, expand=expand, energy_and_gradient=energy_and_gradient)
        known = next(k for k in spaces.CATALOGUE if k.decoder is decoder)
        z0, z1, d = known.pairs(generator(), 40)
        r = Manifold(decoder).geodesic(z0, z1, rtol=1e-6)
        assert torch.allclose(r.length, d, rtol=1e-6)
        assert expanded.get(16, 0) <= 4
        assert 40 <= sloped[16] <= 160

    def test_a_matrix_that_no_longer_serves_is_computed_anew(self, monkeypatch):
        # Blocks that are three times too small: every step overshoots until the true ones are
        # looked up.
        true = state._halved
        monkeypatch.setattr(state, "_halved", lambda *blocks: tuple(x / 3 for x in true(*blocks)))
        r, d = solve(spaces.CATALOGUE[0], rtol=1e-6)
        assert r.converged.all()
        assert torch.allclose(r.length, d, rtol=1e-6)

    def test_blocks_that_are_too_stiff_end_no_curve(self, monkeypatch):
        # With them the first step of a level promises, and brings, next to nothing.
        true = state._halved
        monkeypatch.setattr(state, "_halved", lambda *blocks: tuple(1e4 * x for x in true(*blocks)))
        for rtol in (1e-3, 1e-6):
            r, d = solve(spaces.CATALOGUE[0], n=40, seed=2, rtol=rtol)
            assert r.converged.all()
            assert ((r.length - d).abs() <= 3 * r.error + 1e-11 * d).all()

    def test_blocks_that_are_no_metric_prove_nothing(self, monkeypatch):
        def spoiled(tangents, crossings):
            n = tangents.shape[1]
            return -tangents[:, :1].expand(-1, 2 * n + 1, -1, -1), 0 * tangents[:, :1].expand(
                -1, 2 * n, -1, -1
            )

        monkeypatch.setattr(state, "_halved", spoiled)
        r, d = solve(spaces.CATALOGUE[0], rtol=1e-6)
        assert r.converged.all()
        assert torch.allclose(r.length, d, rtol=1e-6)

    def test_steps_are_counted_over_all_levels(self):
        for limit in (3, 4, 5, 6):
            r, _ = solve(
                spaces.CATALOGUE[0], rtol=1e-10, throw=False, solver=Newton(max_steps=limit)
            )
            assert r.stats["steps"].max() <= limit
            assert ((r.status == Status.MAX_STEPS) | r.converged).all()


class TestBatches:
    def test_axes_broadcast(self):
        known = spaces.CATALOGUE[0]
        z0, z1, _ = known.pairs(generator(), 6)
        r = known.space().geodesic(z0[:2, None], z1[None, :3])
        assert r.length.shape == r.status.shape == r.index.shape == (2, 3)
        assert r.curve(torch.tensor(0.5)).shape == (2, 3, 2)
        assert r.curve(torch.linspace(0, 1, 7)).shape == (2, 3, 7, 2)
        alone = known.space().geodesic(z0[1], z1[2])
        assert alone.length.shape == ()
        assert torch.allclose(alone.length, r.length[1, 2], rtol=1e-9)
        assert torch.allclose(r[1, 2].length, alone.length, rtol=1e-9)

    def test_empty(self):
        r = Manifold(spaces.sphere).geodesic(torch.empty(0, 2), torch.empty(0, 2))
        assert r.length.shape == (0,)
        assert r.converged.all()
        assert r.curve.nodes.shape[0] == 0
        assert "no pairs" in repr(r)

    def test_equal_end_points(self):
        z = torch.tensor([[0.1, 0.2], [0.3, -0.4]])
        r = Manifold(spaces.sphere).geodesic(z, z)
        assert r.converged.all()
        assert (r.length == 0).all()
        assert (r.error == 0).all()
        assert torch.equal(r.curve(0.5), z)

    def test_a_pair_does_not_depend_on_its_neighbours(self):
        known = spaces.CATALOGUE[0]
        z0, z1, _ = known.pairs(generator(), 6)
        good = known.space().geodesic(z0, z1)
        ends = torch.cat([z1, torch.tensor([[torch.nan, 0.0], [0.0, torch.inf]]).double()])
        r = known.space().geodesic(torch.cat([z0, z0[:2]]), ends, throw=False)
        assert torch.allclose(r.length[:6], good.length, rtol=1e-12)
        assert torch.equal(r.stats["segments"][:6], good.stats["segments"])
        assert r.status[6:].tolist() == [Status.INVALID_POINT] * 2
        assert r.length[6:].isnan().all()

    def test_inputs_are_not_changed(self):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(generator(), 3)
        kept = z0.clone(), z1.clone()
        Manifold(spaces.sphere).geodesic(z0, z1)
        assert torch.equal(z0, kept[0])
        assert torch.equal(z1, kept[1])

    def test_progress(self):
        calls = []
        z0, z1, _ = spaces.CATALOGUE[0].pairs(generator(), 3)
        Manifold(spaces.sphere).geodesic(
            z0, z1, progress=lambda done, total: calls.append((done, total))
        )
        assert calls[-1] == (3, 3)


class TestStatus:
    def test_singular_decoder(self):
        flat = Manifold(lambda z: torch.stack([z.sum(-1), 2 * z.sum(-1), z.sum(-1) ** 2], -1))
        a, b = torch.zeros(1, 2).double(), torch.ones(1, 2).double()
        r = flat.geodesic(a, b, solver=Newton(), throw=False)
        assert r.status.tolist() == [Status.SINGULAR]
        assert not r.converged.any()
        with pytest.raises(NotConvergedError, match="directions without length.*NewtonCG"):
            flat.geodesic(a, b, solver=Newton())
        # By default another solver takes over. With s = z₁ + z₂ it is the curve (s, 2s, s²): ∫√(5 +
        # 4s²) ds to s = 2.
        with pytest.warns(FallbackWarning, match="singular along 1 of 1 pairs"):
            r = flat.geodesic(a, b)
        arc = 21**0.5 + 1.25 * math.asinh(4 / 5**0.5)
        assert abs(r.length.item() - arc) <= 1e-4 * arc

    def test_a_decoder_that_ignores_its_input_has_no_lengths(self):
        still = Manifold(lambda z: torch.ones(len(z), 3).to(z) + 0 * z.sum())
        r = still.geodesic(torch.zeros(2).double(), torch.ones(2).double())
        assert (r.length.item(), r.error.item()) == (0.0, 0.0)
        assert r.converged

    def test_singular_pair_leaves_the_others_alone(self):
        # A cusp along z₁ = 0: the second pair crosses no singular point.
        folded = Manifold(lambda z: torch.stack([z[:, 0] ** 3, z[:, 1]], -1))
        z0 = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).double()
        z1 = torch.tensor([[0.0, 1.0], [2.0, 1.0]]).double()
        r = folded.geodesic(z0, z1, solver=Newton(), throw=False, rtol=1e-8)
        assert r.status.tolist() == [Status.SINGULAR, Status.CONVERGED]
        assert torch.allclose(r.length[1], torch.tensor(50.0).double().sqrt(), rtol=1e-7)

    def test_out_of_the_domain(self):
        # The straight line leaves an annulus: log is NaN inside the unit circle.
        hole = Manifold(lambda z: torch.cat([z, (z.square().sum(-1, keepdim=True) - 1).log()], -1))
        z0, z1 = torch.tensor([[-2.0, 0.0]]).double(), torch.tensor([[2.0, 0.0]]).double()
        r = hole.geodesic(z0, z1, throw=False)
        assert r.status.tolist() == [Status.NON_FINITE]
        detour = torch.tensor([[-2.0, 0.0], [0.0, 2.5], [2.0, 0.0]]).double()
        assert hole.geodesic(z0, z1, init=detour).converged.all()

    def test_resolution(self):
        known = spaces.CATALOGUE[5]
        r, _ = solve(known, rtol=1e-10, throw=False, solver=Newton(max_segments=16))
        assert (r.status == Status.RESOLUTION).any()
        assert (r.length.isfinite()).all()
        assert (
            2 * r.error[~r.converged] > 1e-10 * r.length[~r.converged]
        ).all()  # a safety factor of 2

    def test_finest_level_stays_within_the_limit(self):
        known = spaces.CATALOGUE[5]
        r, _ = solve(known, rtol=1e-10, throw=False, solver=Newton(max_segments=20))
        assert int(r.stats["segments"].max()) == 16

    def test_max_steps(self):
        known = spaces.CATALOGUE[5]
        r, _ = solve(known, throw=False, solver=Newton(max_steps=2))
        assert (r.status == Status.MAX_STEPS).any()
        assert r.length.isfinite().all()

    def test_precision(self):
        r, _ = solve(spaces.CATALOGUE[0], dtype=torch.float32, rtol=1e-9, throw=False)
        assert (r.status == Status.PRECISION).all()

    def test_throw_carries_the_result_and_the_remedy(self):
        z0, z1, _ = spaces.CATALOGUE[5].pairs(generator(), 4)
        with pytest.raises(NotConvergedError, match="max_steps") as caught:
            Manifold(spaces.swiss_roll).geodesic(z0, z1, solver=Newton(max_steps=2))
        assert caught.value.result.length.shape == (4,)
        again = pickle.loads(pickle.dumps(caught.value))
        assert torch.equal(again.result.status, caught.value.result.status)

    def test_repr_and_hints(self):
        r, _ = solve(spaces.CATALOGUE[0], n=3)
        assert "3 converged" in repr(r)
        assert "locally minimising" in repr(r)
        assert all(solvers.HINTS[s] for s in Status if s != Status.CONVERGED)


class TestStartCurves:
    def arc(self, angle, n=64):
        """The equator of the sphere in polar coordinates, from longitude 0 to ``angle``."""
        u = torch.linspace(0, angle, n, dtype=torch.float64)
        return torch.stack([u, torch.zeros_like(u)], -1)

    def polar(self, z):
        u, v = z.unbind(-1)
        return torch.stack([v.cos() * u.cos(), v.cos() * u.sin(), v.sin()], -1)

    @pytest.mark.parametrize(("share", "index"), [(0.9, 0), (1.1, 1), (1.9, 1), (2.1, 2)])
    def test_morse_index_counts_conjugate_points(self, share, index):
        # On the unit sphere every multiple of π along a geodesic is a conjugate point of
        # multiplicity 1 (n = 2).
        arc = self.arc(share * torch.pi)
        M = Manifold(self.polar)
        r = M.geodesic(arc[0], arc[-1], init=arc, rtol=1e-6, certify=True)
        assert int(r.index) == index
        assert torch.allclose(r.length, torch.tensor(share * torch.pi).double(), rtol=1e-6)
        assert bool(r.is_local_minimum) == (index == 0)

    @pytest.mark.parametrize("n", [2, 3, 4])
    def test_beyond_the_antipode_of_a_sphere_of_any_dimension(self, n):
        # All n − 1 normal directions turn back at the antipode at once. The unit circle is a great
        # circle.
        u = self.arc(1.2 * torch.pi)[:, 0]
        circle = torch.nn.functional.pad(torch.stack([u.cos(), u.sin()], -1), (0, n - 2))
        M = Manifold(spaces.sphere)
        r = M.geodesic(circle[0], circle[-1], init=circle, rtol=1e-6, certify=True)
        assert torch.allclose(r.length, u[-1], rtol=1e-6)
        assert int(r.index) == n - 1
        assert not bool(r.is_local_minimum)

    @pytest.mark.parametrize("nodes", [40, 49, 60, 65])
    def test_arcs_of_more_than_half_a_circle_are_kept(self, nodes):
        # In the stereographic chart, whose end points coincide for the full circle.
        u = torch.linspace(0, 2 * torch.pi, 65).double()
        circle = torch.stack([u.cos(), u.sin()], -1)
        circle[-1] = circle[0]
        r = Manifold(spaces.sphere).geodesic(
            circle[0], circle[nodes - 1], init=circle[:nodes], rtol=1e-6, certify=True
        )
        assert torch.allclose(r.length, u[nodes - 1], rtol=1e-6)
        assert int(r.index) == 1

    def test_a_start_curve_that_never_leaves_its_point(self):
        z = torch.tensor([[0.1, 0.2], [0.3, -0.4]]).double()
        nodes = torch.stack([z, z, torch.stack([z[0], z[0]])], 1)  # (2, 3, m): stays, and moves
        r = Manifold(spaces.sphere).geodesic(z, nodes[:, -1], init=nodes)
        assert r.converged.all()
        assert float(r.length[0]) == 0.0

    def test_a_start_curve_with_nan_leaves_the_others_alone(self):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(generator(), 2)
        nodes = Curve.line(z0, z1, 8).nodes.clone()
        nodes[1, 3] = torch.nan
        r = Manifold(spaces.sphere).geodesic(z0, z1, init=nodes, throw=False)
        assert r.status.tolist() == [Status.CONVERGED, Status.NON_FINITE]

    @pytest.mark.parametrize("init", ["graph", 3.0, torch.zeros(3, 2)])
    def test_what_is_no_start_curve(self, init):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(generator(), 2)
        with pytest.raises(DTypeError, match="init"):
            Manifold(spaces.sphere).geodesic(z0, z1, init=init)

    def test_minimum_leaves_a_saddle(self):
        # The equator is the unit circle of the stereographic chart: 1.1π of it is a saddle, and the
        # way back across the south pole leads to 0.9π.
        u = self.arc(1.1 * torch.pi)[:, 0]
        arc = torch.stack([u.cos(), u.sin()], -1)
        M = Manifold(spaces.sphere)
        kept = M.geodesic(arc[0], arc[-1], init=arc, rtol=1e-6, certify=True)
        left = Manifold(spaces.sphere).geodesic(
            arc[0], arc[-1], init=arc, rtol=1e-6, solver=Newton(target="minimum")
        )
        assert torch.allclose(kept.length, torch.tensor(1.1 * torch.pi).double(), rtol=1e-6)
        assert torch.allclose(left.length, torch.tensor(0.9 * torch.pi).double(), rtol=1e-6)
        assert (int(kept.index), int(left.index)) == (1, 0)

    def test_minimum_leaves_a_symmetric_saddle(self):
        # Straight over the top of a hill no force acts sideways, yet around it the way is shorter.
        # The length of the way over the top is that of the graph of y = h exp(−4x²), by scipy's
        # quadrature.
        from scipy.integrate import quad

        hill = Manifold(
            lambda z: torch.cat([z, 1.5 * (-4 * z.square().sum(-1, keepdim=True)).exp()], -1)
        )
        z0, z1 = torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 0.0]).double()
        over, _ = quad(lambda x: (1 + (12 * x * math.exp(-4 * x * x)) ** 2) ** 0.5, -1, 1)
        line = torch.stack([z0, z1])
        kept = hill.geodesic(z0, z1, rtol=1e-6, init=line)
        assert torch.allclose(
            hill.length(Curve.line(z0, z1, 64)), torch.tensor(over).double(), rtol=1e-6
        )
        around = hill.geodesic(z0, z1, rtol=1e-6)
        assert bool(around.is_local_minimum)
        assert float(around.length) < 0.95 * over
        assert around.curve(0.5)[1].abs() > 0.3
        assert kept.length >= around.length * (1 - 1e-6)

    def test_start_curve_chooses_the_way_round(self):
        z0, z1 = torch.tensor([0.0, 0.0]).double(), torch.tensor([2 * torch.pi - 1, 0.0]).double()
        tube = Manifold(spaces.cylinder)
        assert torch.allclose(
            tube.geodesic(z0, z1).length, torch.tensor(1.5 * (2 * torch.pi - 1)).double()
        )

    def test_one_curve_for_all_pairs(self):
        z0, z1, d = spaces.CATALOGUE[0].pairs(generator(), 4)
        r = Manifold(spaces.sphere).geodesic(z0, z1, init=Curve.line(z0[0], z1[0]), rtol=1e-6)
        assert torch.allclose(r.length, d, rtol=1e-5)

    def test_wrong_batch(self):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(generator(), 4)
        with pytest.raises(ShapeError, match="one curve for all pairs"):
            Manifold(spaces.sphere).geodesic(z0, z1, init=Curve.line(z0[:3], z1[:3]))


class TestOptions:
    def test_mixed_dtypes(self):
        with pytest.raises(DTypeError, match="one dtype"):
            Manifold(spaces.sphere).geodesic(torch.zeros(1, 2), torch.ones(1, 2).double())

    def test_half_precision(self):
        with pytest.raises(DTypeError, match="float32 or float64"):
            Manifold(spaces.sphere).geodesic(torch.zeros(1, 2).half(), torch.ones(1, 2).half())

    def test_mixed_devices(self):
        space = solvers.MetricSpace(spaces.poincare_tensor)
        with pytest.raises(DeviceError, match="one device"):
            solvers.geodesic(space, torch.zeros(1, 2), torch.zeros(1, 2, device="meta"))

    def test_no_tensor(self):
        with pytest.raises(DTypeError, match="torch tensor"):
            solvers.geodesic(
                solvers.MetricSpace(spaces.poincare_tensor), [0.0, 0.0], torch.zeros(2)
            )

    @pytest.mark.parametrize("shapes", [((3, 2), (4, 2)), ((3, 2), (3, 3)), ((), (2,))])
    def test_shapes_that_do_not_pair_up(self, shapes):
        with pytest.raises(ShapeError, match="Pair them up"):
            solvers.geodesic(
                solvers.MetricSpace(spaces.poincare_tensor), *(torch.zeros(s) for s in shapes)
            )

    @pytest.mark.parametrize("rtol", [0.0, -1.0, float("nan")])
    def test_rtol(self, rtol):
        with pytest.raises(OptionError, match="rtol > 0"):
            Manifold(spaces.sphere).geodesic(torch.zeros(1, 2), torch.ones(1, 2), rtol=rtol)

    @pytest.mark.parametrize(
        "options",
        [{"segments": 1}, {"segments": 32, "max_segments": 16}, {"max_steps": 0}, {"target": "x"}],
    )
    def test_newton_settings(self, options):
        with pytest.raises(OptionError, match="Newton"):
            Newton(**options)

    def test_gauss_newton_alone(self):
        r, d = solve(spaces.CATALOGUE[0], solver=Newton(second_order=False), rtol=1e-6)
        assert torch.allclose(r.length, d, rtol=1e-5)
        assert (r.index == -1).all()

    def test_large_systems_take_the_block_road(self):
        known = spaces.CATALOGUE[5]
        fine, d = solve(known, n=3, solver=Newton(segments=128), rtol=1e-8)
        assert torch.allclose(fine.length, d, rtol=1e-8)
