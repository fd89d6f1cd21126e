"""Whole curves as polynomials: their algebra, truths, costs, and what is left to segments."""

import numpy
import pytest
import spaces
import torch
from closed_forms import CLOSED_FORMS
from flat_spaces import FLAT_ONTO, anisotropic, chain, flow, known, sine, stack
from torch import nn

from riemae import Manifold, solvers
from riemae.numerics.offers import offers
from riemae.solvers import (
    Curve,
    Newton,
    QuasiNewton,
    Spectral,
    mode_looks,
    polynomials,
    spectral,
    state,
)
from riemae.solvers.budget import limited
from riemae.solvers.hooks import HasPulled, energy_and_gradient, pulled_of
from riemae.solvers.mode_descent import Level, ModeState
from riemae.solvers.mode_hessian import ModeHessian
from riemae.solvers.mode_metric import probed
from riemae.solvers.space import space_of
from riemae.solvers.spectral import Settings

F64 = torch.float64


def network(*widths, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(a, b), nn.SiLU()]
        return nn.Sequential(*layers[:-1]).double().requires_grad_(False)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class TestPolynomials:
    def curves(self, modes=7):
        z0, z1 = draw(2, 3, 2)
        return z0, z1, draw(3, modes, 2, seed=2)

    def test_energy_of_a_flat_space(self):
        z0, z1, c = self.curves()
        v = polynomials.velocities(polynomials.points_on(z0, z1, c, 11))
        energy = (v.square().sum(-1) * polynomials.lobatto_weights(11, v)).sum(-1)
        k = torch.arange(1, 8)
        # Legendre polynomials are orthogonal: ∫ P_k² = 1 / (2k + 1) over [0, 1].
        expected = (z1 - z0).square().sum(-1) + (c.square().sum(-1) / (2 * k + 1)).sum(-1)
        torch.testing.assert_close(energy, expected)

    def test_gradients_by_autograd(self):
        z0, z1, c = self.curves()
        c.requires_grad_()
        x = polynomials.points_on(z0, z1, c, 12)
        image = torch.cat([x.sin(), x.prod(-1, keepdim=True)], -1)
        v = polynomials.velocities(image)
        energy = (v.square().sum(-1) * polynomials.lobatto_weights(12, v)).sum()
        in_images, in_points, in_modes = torch.autograd.grad(energy, (image, x, c))
        force, fine = polynomials.force_and_fine(v)
        torch.testing.assert_close(force, in_images)
        torch.testing.assert_close(fine, polynomials.fine_share(v))
        inner = in_points[:, 1:-1]  # end points do not depend on the modes
        torch.testing.assert_close(polynomials.slope_of_inner(inner, 7), in_modes)

    def test_gradients_from_places_inside_the_curve(self):
        z0, z1, c = self.curves()
        c.requires_grad_()
        nodes = polynomials.spline_of(z0, z1, c, 4).nodes
        chords = 4 * nodes.diff(dim=1).square().sum()
        in_nodes, in_modes = torch.autograd.grad(chords, (nodes, c))
        torch.testing.assert_close(polynomials.slope_at_places(in_nodes[:, 1:-1], 7), in_modes)

    def test_stiffness_of_a_changing_metric(self):
        samples = draw(2, 4, 2, 2)
        samples = samples @ samples.mT + torch.eye(2)
        c = draw(2, 5, 2, seed=4)
        h = polynomials.stiffness(samples, 5)
        energy = (c.flatten(1)[:, None] @ h @ c.flatten(1)[..., None]).flatten() / 2
        # By a fine midpoint rule, with the metric linear between the middles of four parts.
        t = (torch.arange(20000, dtype=F64) + 0.5) / 20000
        place = (4 * t - 0.5).clamp(0, 3)
        first = place.floor().long().clamp(max=2)
        g = torch.lerp(samples[:, first], samples[:, first + 1], (place - first)[:, None, None])
        p = torch.stack([torch.special.legendre_polynomial_p(2 * t - 1, k) for k in range(1, 6)], 1)
        v = p @ c
        torch.testing.assert_close(energy, ((v[..., None, :] @ g) @ v[..., None]).mean(1).flatten())

    def test_gauss_newton_of_changing_tangents(self):
        j = draw(2, 3, 5, 2)  # (p, s, D, m)
        forms = draw(2, 3, 2, 2, seed=9)
        forms = forms + forms.mT
        own = j.mT @ j
        beside = j[:, :-1].mT @ j[:, 1:]
        c = draw(2, 5, 2, seed=4)
        # By a fine midpoint rule, with everything linear between three places, flat outside.
        t = (torch.arange(20000, dtype=F64) + 0.5) / 20000
        place = (4 * t - 1).clamp(0, 2)
        first = place.floor().long().clamp(max=1)
        share = (place - first)[:, None, None]
        along = torch.lerp(j[:, first], j[:, first + 1], share)
        rise = torch.where((place > 0) & (place < 2), 4.0, 0.0)[:, None, None]
        turn = rise * (j[:, first + 1] - j[:, first])
        form = torch.lerp(forms[:, first], forms[:, first + 1], share)
        k = torch.arange(1, 6)
        p = [torch.special.legendre_polynomial_p(2 * t - 1, n) for n in range(7)]
        v = torch.stack(p[1:6], 1) @ c
        z = ((torch.stack(p[2:], 1) - torch.stack(p[:5], 1)) / (4 * k + 2)) @ c
        moved = (along @ v[..., None] + turn @ z[..., None])[..., 0]
        flat = moved.square().sum(-1).mean(1)
        bent = ((z[..., None, :] @ form) @ z[..., None]).mean(1).flatten() / 2

        def energy(blocks, **options):
            h = polynomials.gauss_newton(torch.cat(blocks, 1), 5, **options)
            return (c.flatten(1)[:, None] @ h @ c.flatten(1)[..., None]).flatten() / 2

        torch.testing.assert_close(energy([own, beside]), flat, rtol=1e-6, atol=0)
        both = energy([own, beside, forms], forms=True)
        torch.testing.assert_close(both, flat + bent, rtol=1e-6, atol=0)

    def test_modes_of_a_curve_and_back(self):
        z0, z1, c = self.curves()
        spline = polynomials.spline_of(z0, z1, c, 512)
        torch.testing.assert_close(polynomials.modes_of(spline, 7), c, rtol=1e-6, atol=1e-6)
        assert torch.equal(spline.nodes[:, 0], z0)
        assert torch.equal(spline.nodes[:, -1], z1)
        line = Curve.line(z0, z1, 8)
        torch.testing.assert_close(polynomials.modes_of(line, 7), torch.zeros_like(c))

    def test_modes_of_a_rough_spline(self):
        spline = Curve(draw(3, 5, 2), draw(3, 5, 2, seed=8))
        x, w = (torch.from_numpy(y) for y in numpy.polynomial.legendre.leggauss(10))
        p = torch.from_numpy(numpy.polynomial.legendre.legvander(x.numpy(), 4).T[1:])
        k = torch.arange(1, 5)[:, None]
        expected = (2 * k + 1) * (p * w / 2) @ spline.velocity((x + 1) / 2)
        torch.testing.assert_close(polynomials.modes_of(spline, 4), expected)

    def test_by_how_much_a_spline_strays(self):
        z0, z1, c = self.curves()
        coarse, fine = (polynomials.spline_of(z0, z1, c, n) for n in (8, 4096))
        t = torch.cat([(torch.arange(8) + u) / 8 for u in (0.2, 0.5, 0.8)]).double()
        whole = fine.velocity(torch.from_numpy(polynomials.lobatto(33)[0]))
        strayed = coarse.velocity(t) - fine.velocity(t)
        g = draw(3, 2, 2, seed=5)
        g = g @ g.mT + torch.eye(2)
        for metric, used in ((g, g), (g[:, :0, :0], torch.eye(2).double())):
            expected = [((v @ used) * v).sum(2).mean(1) for v in (whole, strayed)]
            found = polynomials.strayed_squares(z0, z1, c, metric, (8, 64))
            torch.testing.assert_close(found[:, :2], torch.stack(expected, 1), rtol=1e-5, atol=0)
            # Velocities are off by the cube of a segment's length.
            assert ((found[:, 1] / found[:, 2]).log2() / 2 - 9).abs().max() < 0.5


class TestHessian:
    def hessian(self, p=300, dtype=F64, first=0, m=8):
        """Of more curves than are factorised at a time."""
        M = Manifold(network(m, 24, 20).to(dtype))
        z0, z1 = draw(2, 300, m).to(dtype)[:, first : first + p]
        found = ModeHessian(space_of(M, z0), Curve.line(z0, z1, 8).nodes, second_order=True)
        assert found.regular.all()
        return found

    def spoilt(self, found):
        """One matrix without a factor, and the same diagonal."""
        found.blocks[170, 3:, 0, 1] += 1e3
        found.blocks[170, 3:, 1, 0] -= 1e3

    def gradients(self, modes=6, m=8):
        return draw(300, modes, m, seed=3)

    def test_is_the_inverse_of_gauss_newton(self):
        found, g = self.hessian(), self.gradients()
        self.spoilt(found)
        found.extended(6)
        h = polynomials.gauss_newton(found.blocks, 6)
        assert torch.linalg.eigvalsh(h[170])[0] < 0
        # Without a factor of its own: that of the diagonal.
        h[170] = h[170].diagonal().diag()
        expected = torch.linalg.solve(h, g.flatten(1)).view_as(g)
        torch.testing.assert_close(found.of()(g), expected, rtol=1e-9, atol=1e-12)
        rows = torch.tensor([3, 170, 171, 299])
        assert torch.equal(found.of(rows)(g[rows]), found.of()(g)[rows])
        assert torch.equal(found.select(rows.numpy()).of()(g[rows]), found.of()(g)[rows])

    def test_goes_the_same_way_where_no_number_is_read(self, monkeypatch):
        found, g = self.hessian(), self.gradients()
        self.spoilt(found)
        found.extended(6)
        expected = found.of()(g)
        monkeypatch.setattr(state, "_ON_HOST", frozenset())
        found.extended(6)
        assert torch.equal(found.of()(g), expected)

    @pytest.mark.parametrize("dtype", [F64, torch.float32])
    @pytest.mark.parametrize("m", [1, 3, 8])
    def test_has_the_same_bits_alone(self, dtype, m):
        found, g = self.hessian(dtype=dtype, m=m), self.gradients(5, m).to(dtype)
        found.extended(5)
        h = polynomials.gauss_newton(found.blocks, 5)
        expected = torch.linalg.solve(h.double(), g.flatten(1).double()).view_as(g)
        rtol = 1e-9 if dtype == F64 else 1e-2
        torch.testing.assert_close(found.of()(g).double(), expected, rtol=rtol, atol=rtol)
        for row in (0, 112, 113, 299):
            alone = self.hessian(1, dtype, row, m)
            alone.extended(5)
            assert torch.equal(alone.of()(g[[row]]), found.of()(g)[[row]])

    def test_second_derivatives_count_as_far_as_the_energy_is_convex(self):
        found, g = self.hessian(), self.gradients()
        rows = numpy.array([1, 5, 200, 299])
        # A flat space whose metric is G, and forms that are multiples of it: with ∫ |z'|² of at
        # least π² ∫ |z|², the energy 2 |z'|² + share |z|² is convex above -2 π².
        shares = torch.tensor([5.0, -15.0, -30.0, -1e3], dtype=F64)
        counted = torch.tensor([5.0, -15.0, -15.0, 0.0], dtype=F64)
        G = found.blocks[rows, 0]
        found.anew[rows, :7] = G[:, None]
        found.anew[rows, 7:] = (shares[:, None, None] * G)[:, None]
        found.newer[rows] = True
        before = self.hessian()
        for modes in (6, 9):
            found.extended(modes)
            before.extended(modes)
            x, w = numpy.polynomial.legendre.leggauss(modes + 2)
            p = torch.from_numpy(numpy.polynomial.legendre.legvander(x, modes + 1).T)
            k = torch.arange(1, modes + 1, dtype=F64)
            phi = (p[2:] - p[:-2]) / (4 * k + 2)[:, None]
            overlaps = torch.einsum("q,kq,lq->kl", torch.from_numpy(w) / 2, phi, phi)
            flat = (2 / (2 * k + 1)).diag()
            h = torch.stack(
                [
                    torch.kron(flat + c * overlaps, metric)
                    for c, metric in zip(counted, G, strict=True)
                ]
            )
            g = self.gradients(modes)
            expected = torch.linalg.solve(h, g[rows].flatten(1)).view_as(g[rows])
            torch.testing.assert_close(found.of()(g)[rows], expected, rtol=1e-8, atol=1e-10)
            others = numpy.setdiff1d(numpy.arange(300), rows)
            assert torch.equal(found.of()(g)[others], before.of()(g)[others])


@pytest.mark.parametrize("along", [0.0, 1.0], ids=["across too", "along itself"])
def test_by_how_much_a_length_may_fall(along):
    M = Manifold(spaces.sphere)
    space = space_of(M)
    z0 = torch.tensor([[0.9, 0.8], [0.7, 0.2]], dtype=F64)
    z1 = z0 + torch.tensor([[0.5, 0.3], [-0.2, 0.6]], dtype=F64)
    geodesic = M.geodesic(z0, z1, rtol=1e-9)
    start = geodesic.curve
    first = ModeHessian(space, start.nodes, second_order=False)
    first.extended(9)
    ends = M.decode(start.nodes[:, :: start.segments])
    known = ModeState.about(start, 9, 0, first, ends)
    falling = 5e-3 / torch.arange(1, 10, dtype=F64)[:, None] ** 2
    strayed = known.x + (1 - along) * falling * draw(2, 9, 2)
    # The same path at another speed.
    t = torch.linspace(0, 1, 65, dtype=F64)
    warped = Curve.from_nodes(start(t + 0.02 * along * (torch.pi * t).sin()))
    x = strayed + polynomials.modes_of(warped, 9) - known.x
    level = Level(space=space, ends=ends, degree=10, count=15, rtol=1e-3, max_gradients=9)
    told = level.shortening(known.replaced(x=x), first.of())
    real = M.length(polynomials.spline_of(z0, z1, x, 64)) / geodesic.length - 1
    torch.testing.assert_close(told, real, rtol=0.1, atol=1e-8)


def test_forces_on_images_are_pulled_back():
    M = Manifold(network(3, 16, 5))
    nodes = draw(4, 9, 3)
    space = space_of(M, nodes[:, 0])

    def force(x):
        step = x.diff(dim=1)
        bend = nn.functional.pad(step[:, :-1] - step[:, 1:], (0, 0, 1, 1))
        return bend, 8 * step.square().sum((1, 2))

    along, energy = pulled_of(space, nodes, force)
    expected, gradient = energy_and_gradient(space, nodes)
    torch.testing.assert_close(energy, expected)
    torch.testing.assert_close(2 * 8 * along[:, 1:-1], gradient)
    # With the images of end points, which are not decoded.
    inner, same = pulled_of(space, nodes[:, 1:-1], force, M.decode(nodes[:, ::8]))
    torch.testing.assert_close(same, expected)
    torch.testing.assert_close(2 * 8 * inner, gradient)


class TestTruths:
    @pytest.mark.parametrize("known", spaces.CATALOGUE, ids=lambda known: known.name)
    @pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
    def test_closed_forms(self, known, rtol):
        z0, z1, d = known.draw(8, seed=5)
        r = solvers.geodesic(known.space(), z0, z1, rtol=rtol, solver=Spectral())
        off = (r.length - d).abs()
        assert bool((off <= rtol * d).all())
        assert bool((off <= 2 * r.error + 1e-12 * d).all())

    @pytest.mark.parametrize("known", FLAT_ONTO[::2], ids=lambda known: known.name)
    @pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
    def test_rough_maps_converge_or_say_that_they_do_not(self, known, dtype):
        z0, z1, d = known.draw(12, seed=7, dtype=dtype)
        space = known.space()
        space = space.to(dtype=dtype) if isinstance(space, Manifold) else space
        r = solvers.geodesic(space, z0, z1, rtol=1e-2, solver=Spectral(), throw=False)
        off = (r.length.double() - d).abs()
        assert not bool((r.converged & (off > 1.1e-2 * d)).any())

    def test_curves_are_those_of_the_lengths(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 8, 4)
        r = M.geodesic(z0, z1, rtol=1e-5, solver=Spectral())
        torch.testing.assert_close(M.length(r.curve, rtol=1e-7), r.length, rtol=1e-5, atol=0)
        assert torch.equal(r.curve.nodes[:, 0], z0)
        assert torch.equal(r.curve.nodes[:, -1], z1)
        exact = M.geodesic(z0, z1, rtol=1e-8, solver=Newton())
        torch.testing.assert_close(r.length, exact.length, rtol=1e-5, atol=0)
        assert bool((r.index == -1).all())
        assert bool((r.error <= 1e-5 * r.length).all())

    def test_same_bits_alone(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 7, 4)
        together = M.geodesic(z0, z1, rtol=1e-4, solver=Spectral())
        for k in range(7):
            alone = M.geodesic(z0[k : k + 1], z1[k : k + 1], rtol=1e-4, solver=Spectral())
            assert torch.equal(alone.length[0], together.length[k])
            assert torch.equal(alone.error[0], together.error[k])

    def test_from_a_bent_start(self):
        M = Manifold(network(3, 32, 12))
        z0, z1 = draw(2, 4, 3)
        straight = M.geodesic(z0, z1, rtol=1e-6, solver=Spectral())
        t = torch.linspace(0, 1, 17, dtype=F64)[:, None]
        bent = (1 - t) * z0[:, None] + t * z1[:, None] + 0.3 * (3.14159 * t).sin()
        r = M.geodesic(z0, z1, rtol=1e-6, init=bent, solver=Spectral())
        torch.testing.assert_close(r.length, straight.length, rtol=2e-6, atol=0)


def test_curves_are_compared_with_their_start(monkeypatch):
    seen = []
    judged = spectral._Trial._judged

    def watched(trial, level, known):
        seen.append(trial.state.begun.clone())
        return judged(trial, level, known)

    monkeypatch.setattr(spectral._Trial, "_judged", watched)
    M = Manifold(network(4, 64, 30))
    z0, z1 = draw(2, 6, 4)
    M.geodesic(z0, z1, rtol=1e-5, solver=Spectral())
    line = M.length(Curve.line(z0, z1, 8))
    torch.testing.assert_close(seen[1], line, rtol=1e-4, atol=0)


class TestBeforeNewton:
    """Whole curves, and Newton for the rest."""

    @pytest.mark.parametrize("known", spaces.CATALOGUE, ids=lambda known: known.name)
    @pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-5])
    def test_closed_forms(self, known, rtol):
        z0, z1, d = known.draw(8, seed=5)
        r = solvers.geodesic(known.space(), z0, z1, rtol=rtol, solver=Newton(whole=True))
        off = (r.length - d).abs()
        assert bool((off <= rtol * d).all())
        assert bool((off <= 2 * r.error + 1e-12 * d).all())

    @pytest.mark.parametrize("rtol", [1e-2, 1e-3, 1e-4, 1e-5])
    def test_errors_are_within_a_factor_of_ten(self, rtol):
        claimed, real = [], []
        for case in [*spaces.CATALOGUE, *CLOSED_FORMS]:
            z0, z1, d = case.draw(12, seed=5)
            space = case.space()
            if z0.shape[-1] == 1 or not offers(space_of(space), HasPulled):
                continue  # what is left to segments
            r = solvers.geodesic(space, z0, z1, rtol=rtol, solver=Newton(whole=True))
            claimed.append(r.error / d)
            real.append((r.length - d).abs() / d)
        assert len(claimed) >= 20
        ratio = torch.cat(claimed).clamp(min=1e-12) / torch.cat(real).clamp(min=1e-12)
        assert float((ratio >= 0.1).double().mean()) >= 0.995
        assert float((ratio <= 10).double().mean()) >= 0.95

    def test_an_uneven_speed_is_no_error_of_the_length(self):
        # Straight lines of the chart are nearly geodesics, along which the speed varies.
        (case,) = (case for case in CLOSED_FORMS if case.name == "rotations")
        z0, z1, d = case.draw(20, seed=5)
        r = solvers.geodesic(case.space(), z0, z1, rtol=1e-2, solver=Newton(whole=True))
        off = (r.length - d).abs().clamp(min=1e-12)
        assert bool((off <= r.error).all())
        assert float((r.error / off).median()) <= 5

    def test_a_look_at_the_length_is_made_whatever_the_budget(self):
        (case,) = (case for case in CLOSED_FORMS if case.name == "rotations")
        z0, z1, d = case.draw(4, seed=5)
        for row in range(4):
            ends = z0[[row]], z1[[row]]
            whole = Newton(whole=True)
            found = [
                solvers.geodesic(
                    case.space(), *ends, rtol=1e-2, solver=whole, max_decodings=most, throw=False
                )
                for most in range(20, 100, 2)
            ]
            ended = [bool(r.converged) for r in found]
            first = found[ended.index(True)]
            assert all(ended[ended.index(True) :])
            # Of the decodings that a look takes, none has to be left.
            assert all(float(r.error) == float(first.error) for r in found if bool(r.converged))

    def test_same_bits_alone_where_speeds_are_uneven(self):
        (case,) = (case for case in CLOSED_FORMS if case.name == "rotations")
        z0, z1, _ = case.draw(8, seed=5)
        options = {"rtol": 1e-2, "solver": Newton(whole=True)}
        r = solvers.geodesic(case.space(), z0, z1, **options)
        for row in (0, 3, 7):
            alone = solvers.geodesic(case.space(), z0[[row]], z1[[row]], **options)
            assert torch.equal(alone.error, r.error[[row]])
            assert torch.equal(alone.length, r.length[[row]])

    def test_a_speed_that_is_less_even_than_steps_promise(self):
        # Nearly to the antipode: steps promise 15 times less than the speed says must be left.
        (case,) = (case for case in spaces.CATALOGUE if case.name == "sphere")
        z0, z1, d = (x[24:25] for x in case.draw(40))
        r = solvers.geodesic(case.space(), z0, z1, rtol=1e-3, solver=Newton(whole=True))
        assert float(r.length) <= (1 + 1e-3) * float(d)
        assert float(r.length - d) <= float(r.error)

    @pytest.mark.parametrize("known", FLAT_ONTO[::3], ids=lambda known: known.name)
    @pytest.mark.parametrize("rtol", [1e-2, 1e-3])
    def test_rough_maps(self, known, rtol):
        z0, z1, d = known.draw(12, seed=7)
        whole = Newton(whole=True)
        r = solvers.geodesic(known.space(), z0, z1, rtol=rtol, solver=whole, throw=False)
        off = (r.length - d).abs()
        assert not bool((r.converged & (off > 1.1 * rtol * d)).any())

    def test_half_the_cost_of_newton(self):
        M = Manifold(network(8, 64, 30))
        z0, z1 = draw(2, 16, 8)
        spent = decodings(M, z0, z1, Newton(whole=True), 1e-3)
        assert spent <= 140
        assert spent < 0.4 * decodings(M, z0, z1, Newton(), 1e-3)

    def test_start_curves_are_measured_where_curves_are_hardly_shorter(self, monkeypatch):
        seen = []
        judged = spectral._Trial._judged

        def watched(trial, level, known):
            seen.append(trial.state.begun.clone())
            return judged(trial, level, known)

        monkeypatch.setattr(spectral._Trial, "_judged", watched)
        M = Manifold(network(4, 64, 30))
        z0, z1 = 0.3 * draw(2, 6, 4)
        M.geodesic(z0, z1, rtol=1e-3, solver=Newton(whole=True))
        line = M.length(Curve.line(z0, z1, 8))
        torch.testing.assert_close(seen[0], line, rtol=1e-6, atol=0)

    def test_curves_that_are_not_good_enough_are_start_curves(self):
        M = Manifold(network(8, 64, 30))
        z0, z1 = 2 * draw(2, 6, 8)
        line = Curve.line(z0, z1, 32)
        settings = Settings(levels=((6, 9), (8, 11)), history=2, max_gradients=2, second_order=True)
        least = torch.full((6,), torch.nan).double().numpy()
        found = spectral.attempt(space_of(M, z0, z1), line, least, 1e-7, settings)
        rows = torch.from_numpy(numpy.concatenate([rows for rows, _ in found.starts]))
        assert len(rows) == 6
        for places, curve in found.starts:
            there = torch.from_numpy(places)
            line = line.exchanged(there, curve)
            assert torch.equal(curve.nodes[:, 0], z0[there])
            assert torch.equal(curve.nodes[:, -1], z1[there])
        exact = M.geodesic(z0, z1, rtol=1e-7, solver=Newton())
        straight = M.length(Curve.line(z0, z1, 32))
        # Two gradients leave a small part of what the straight lines are too long by.
        assert bool((M.length(line) - exact.length < 0.3 * (straight - exact.length)).all())

    def test_the_index_is_known_where_second_derivatives_were(self):
        M = Manifold(network(8, 64, 30))
        z0, z1 = draw(2, 12, 8)
        r = M.geodesic(2 * z0, 2 * z1, rtol=1e-5, solver=Newton(whole=True))
        assert {0} <= set(r.index.tolist()) <= {-1, 0}
        exact = M.geodesic(2 * z0, 2 * z1, rtol=1e-7, solver=Newton())
        torch.testing.assert_close(r.length, exact.length, rtol=1.1e-5, atol=0)

    @pytest.mark.parametrize("m", [4, 8])
    def test_same_bits_alone(self, m):
        M = Manifold(network(m, 64, 30))
        z0, z1 = 2 * draw(2, 7, m)
        together = M.geodesic(z0, z1, rtol=1e-4, solver=Newton(whole=True))
        for k in range(7):
            alone = M.geodesic(z0[k : k + 1], z1[k : k + 1], rtol=1e-4, solver=Newton(whole=True))
            assert torch.equal(alone.length[0], together.length[k])
            assert torch.equal(alone.error[0], together.error[k])

    def test_some_curves_at_a_time(self, monkeypatch):
        M = Manifold(network(4, 64, 30))
        z0, z1 = 2 * draw(2, 7, 4)
        together = M.geodesic(z0, z1, rtol=1e-4, solver=Newton(whole=True))
        monkeypatch.setattr(mode_looks, "_BYTES", 0)
        monkeypatch.setattr(mode_looks, "_FEWEST", 3)
        r = M.geodesic(z0, z1, rtol=1e-4, solver=Newton(whole=True))
        assert torch.equal(r.length, together.length)
        assert torch.equal(r.curve.nodes, together.curve.nodes)

    def test_kinks_cost_little_more(self):
        known = next(k for k in FLAT_ONTO if "leaky" in k.name.lower())
        z0, z1, _ = known.draw(12, seed=1)
        spent = {}
        for whole in (False, True):
            with limited("geodesic", 10**9, None) as budget:
                solver = Newton(whole=whole)
                solvers.geodesic(known.space(), z0, z1, rtol=1e-2, solver=solver, throw=False)
                spent[whole] = budget.used
        assert spent[True] < 1.35 * spent[False]


def decodings(M, z0, z1, solver, rtol):
    """What a call costs, with derivatives, in values of the decoder."""
    with limited("geodesic", 10**9, None) as budget:
        r = M.geodesic(z0, z1, solver=solver, rtol=rtol)
        assert bool(r.converged.all())
        return budget.used / len(z0)


@pytest.mark.parametrize(("rtol", "most"), [(1e-2, 220), (1e-3, 280), (1e-5, 345)])
def test_wide_latent_spaces_cost_a_few_gradients(rtol, most):
    m = 32
    M = Manifold(network(m, 64, 100))
    z0, z1 = draw(2, 4, m)
    spent = decodings(M, z0, z1, Spectral(), rtol)
    assert spent <= most
    assert spent < 0.6 * decodings(M, z0, z1, QuasiNewton(), rtol)


class TestOnePlace:
    """Beyond 32 dimensions the metric is known in the middle of the start curve alone."""

    def convolutional(self, m=64):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Linear(m, 256), nn.SiLU(), nn.Unflatten(1, (16, 4, 4))]
            layers += [nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.SiLU()]
            layers += [nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Flatten()]
            return Manifold(nn.Sequential(*layers).double().requires_grad_(False))

    @pytest.mark.parametrize(("size", "most"), [(1.0, 0.15), (1.5, 0.2)])
    def test_transposed_convolutions_cost_a_few_gradients(self, size, most):
        M = self.convolutional()
        z0, z1 = size * draw(2, 8, 64)
        # In sweeps of the value and 64 tangents at 17 points.
        assert decodings(M, z0, z1, None, 1e-3) <= most * 17 * 65
        r = M.geodesic(z0, z1, rtol=1e-3, n_starts=1)
        exact = M.geodesic(z0, z1, rtol=1e-6, solver=QuasiNewton())
        off = r.length - exact.length
        assert bool((off <= 1e-3 * exact.length).all())
        assert bool((off <= r.error + exact.error).all())

    def test_same_bits_alone(self):
        M = self.convolutional()
        z0, z1 = 2 * draw(2, 5, 64)
        together = M.geodesic(z0, z1, rtol=1e-3, solver=Spectral())
        for k in range(5):
            alone = M.geodesic(z0[k : k + 1], z1[k : k + 1], rtol=1e-3, solver=Spectral())
            assert torch.equal(alone.length[0], together.length[k])
            assert torch.equal(alone.error[0], together.error[k])

    @pytest.mark.parametrize("dtype", [F64, torch.float32], ids=str)
    @pytest.mark.parametrize("rtol", [1e-2, 1e-3])
    def test_flat_spaces(self, dtype, rtol):
        m = 40
        maps = {
            "sine": (sine(0.2, 2.0), 1.0),
            "steeper sine": (sine(0.45, 2.0), 0.4),
            "stack": (stack(3, m, 2, sine(0.2, 2.0)), 0.7),
            "unequal": (chain(sine(0.2, 2.0), anisotropic(2, m, 400.0)), 1.0),
            "coupling": (flow(0, m, scale=0.3, gain=1.0), 0.5),
        }
        inside, count = 0, 0
        for name, (decoder, size) in maps.items():
            z0, z1, d = known(name, decoder, m, size=size).draw(12, seed=7, dtype=dtype)
            line = Curve.line(z0, z1, 8)
            # Without the bound, which is the distance here.
            none = numpy.full(len(z0), numpy.nan)
            space = space_of(Manifold(decoder), z0, z1)
            found = Spectral().attempt(space, line, none, rtol)
            exact = d.double().numpy()[found.rows]
            off = found.length - exact
            assert bool((off <= rtol * exact).all())
            inside += (off <= found.error + 1e-6 * exact).sum()
            count += len(off)
        assert count >= 36
        assert inside >= 0.95 * count

    def test_probes_tell_a_multiple_of_the_identity(self):
        m = 40
        half = draw(m, m) / m**0.5
        metric = half @ half.mT + 0.1 * torch.eye(m, dtype=F64)

        class Known:
            def norm(self, z, v):
                # More away from the middle, which is 0.
                return ((v @ metric) * v).sum(1).add(0.3 * z[:, 0].abs() * v.square().sum(1)).sqrt()

        t = torch.linspace(-1, 1, 13, dtype=F64)
        nodes = torch.zeros(2, 13, m, dtype=F64)
        nodes[1, :, 0] = t
        change, more = probed(Known(), nodes, metric.expand(2, m, m))
        # A sixth from the ends, where the first coordinate is two thirds.
        torch.testing.assert_close(more, torch.tensor([0.0, 0.2], dtype=F64))
        assert change[0] == pytest.approx(1)
        assert change[1] > 1.5

    def test_most_steps_see_few_points(self):
        seen = []
        inner = self.convolutional()
        z0, z1 = draw(2, 4, 64)
        space = space_of(inner, z0, z1)
        pulled = space.pulled
        space.pulled = lambda points, *rest: seen.append(points.shape) or pulled(points, *rest)
        try:
            solvers.geodesic(space, z0, z1, rtol=1e-3, solver=Spectral())
        finally:
            del space.pulled
        few = [shape for shape in seen if shape[1] == 4]
        assert len(few) > len(seen) / 2


def test_a_sketch_beyond_sixty_four_dimensions():
    m = 80
    M = Manifold(network(m, 96, 160))
    z0, z1 = draw(2, 2, m)
    exact = M.geodesic(z0, z1, rtol=1e-6, solver=solvers.NewtonCG())
    r = M.geodesic(z0, z1, rtol=1e-4, solver=Spectral())
    torch.testing.assert_close(r.length, exact.length, rtol=1e-4, atol=0)


class TestWhatIsLeftToSegments:
    def test_a_metric_that_changes_too_fast_costs_no_gradient(self):
        # The share of the sine's period between two places where the metric is known is large.
        known = next(k for k in FLAT_ONTO if k.name == "sine .45 m=5")
        z0, z1, _ = known.draw(4, seed=1)
        space = space_of(known.space(), z0, z1)
        looks = []
        inner = space.pulled
        space.pulled = lambda points, *rest: looks.append(points.shape) or inner(points, *rest)
        try:
            solvers.geodesic(space, z0, z1, rtol=1e-3, solver=Spectral(), throw=False)
        finally:
            del space.pulled
        assert len(looks) <= 2

    def test_spaces_without_images(self):
        known = next(k for k in spaces.CATALOGUE if k.name == "half plane")
        z0, z1, d = known.draw(4, seed=1)
        r = solvers.geodesic(known.space(), z0, z1, rtol=1e-6, solver=Spectral())
        other = solvers.geodesic(known.space(), z0, z1, rtol=1e-6, solver=QuasiNewton())
        assert torch.equal(r.length, other.length)

    def test_too_few_gradients(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 4, 4)
        r = M.geodesic(z0, z1, rtol=1e-6, solver=Spectral(max_gradients=2))
        assert bool((r.stats["segments"] >= 16).all())
        exact = M.geodesic(z0, z1, rtol=1e-6, solver=Newton())
        torch.testing.assert_close(r.length, exact.length, rtol=2e-6, atol=0)

    def test_a_budget_may_end_it(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 4, 4)
        r = M.geodesic(z0, z1, solver=Spectral(), max_decodings=300, throw=False)
        assert bool((r.status == solvers.Status.BUDGET).all())
        assert bool((r.length >= r.lower_bound).all())

    def test_points_that_are_not_finite(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 4, 4)
        z0[1, 0] = torch.nan
        r = M.geodesic(z0, z1, solver=Spectral(), throw=False)
        assert r.status[1] == solvers.Status.INVALID_POINT
        assert bool(r.converged[[0, 2, 3]].all())


def test_near_pairs_in_single_precision():
    M = Manifold(network(4, 64, 30).float())
    z0 = draw(4, 4).float()
    z1 = z0 + 1e-5 * draw(4, 4, seed=3).float()
    r = M.geodesic(z0, z1, solver=Spectral(), throw=False)
    newton = M.geodesic(z0, z1, throw=False)
    wrong = (r.length - newton.length).abs() > 1e-3 * newton.length + r.error + newton.error
    assert not bool((r.converged & wrong).any())
