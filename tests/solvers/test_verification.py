"""Start curves that are geodesics already: kept for a fraction of a sweep, and never wrongly."""

import pytest
import spaces
import torch
from flat_spaces import FLAT_ONTO
from torch import nn

from riemae import Manifold, ambient, solvers
from riemae.exceptions import MetricError
from riemae.solvers import (
    Curve,
    Newton,
    QuasiNewton,
    Status,
    mode_looks,
    polynomials,
    verification,
)
from riemae.solvers.budget import limited
from riemae.solvers.space import space_of

F64, F32 = torch.float64, torch.float32
POINTS = 17  # of a sweep, which is values and Jacobians there


def network(*widths, seed=0, gain=1.6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(a, b), nn.SiLU()]
        net = nn.Sequential(*layers[:-1]).double().requires_grad_(False)
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.weight.mul_(gain)
    return net


def convolutions(m):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(m, 128),
            nn.SiLU(),
            nn.Unflatten(1, (8, 4, 4)),
            nn.ConvTranspose2d(8, 4, 4, 2, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(4, 1, 4, 2, 1),
            nn.Flatten(),
        ).double()


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def decodings(call, pairs):
    """What a call costs per pair, with derivatives, in values of the decoder; and its result."""
    with limited("geodesic", 10**9, None) as budget:
        found = call()
        return budget.used / pairs, found


def bent(curve, size, modes=3, seed=3):
    """Nodes of curves, moved by a few waves of random directions; the ends stay."""
    nodes = curve.resample(64).nodes
    t = torch.linspace(0, 1, 65, dtype=F64)[:, None]
    waves = [(torch.pi * k * t).sin() / k**2 for k in range(1, modes + 1)]
    p, _, m = nodes.shape
    moves = draw(modes, p, 1, m, seed=seed).to(nodes)
    return nodes + size * sum(w.to(nodes) * v for w, v in zip(waves, moves, strict=True))


def _of_angles(z):
    return z[..., 0].cos() * z[..., 1].sin(), z[..., 0].sin()


@pytest.mark.parametrize(
    ("decoder", "m", "most"),
    [
        (network(2, 64, 64, 40), 2, 0.7),
        (network(8, 128, 64), 8, 0.4),
        (network(32, 64, 100), 32, 0.2),
        (convolutions(64), 64, 0.15),
    ],
    ids=["m=2", "m=8", "m=32", "m=64"],
)
class TestWhatItCosts:
    def test_the_same_call_again(self, decoder, m, most):
        M = Manifold(decoder)
        z0, z1 = draw(2, 6, m)
        first = M.geodesic(z0, z1, rtol=1e-3)
        spent, again = decodings(lambda: M.geodesic(z0, z1, rtol=1e-3, init=first.curve), 6)
        usual, _ = decodings(
            lambda: M.geodesic(z0, z1, rtol=1e-3, init=first.curve, solver=Newton()), 6
        )
        assert spent <= most * POINTS * (1 + m)
        assert spent <= usual / 2
        torch.testing.assert_close(again.length, first.length, rtol=1e-3, atol=0)

    def test_single_precision(self, decoder, m, most):
        M = Manifold(decoder)
        z0, z1 = draw(2, 3, m)
        exact = M.geodesic(z0, z1, rtol=1e-5)
        single = M.to(dtype=F32)
        start = Curve.from_nodes(exact.curve.nodes.float())
        spent, r = decodings(
            lambda: single.geodesic(z0.float(), z1.float(), rtol=1e-3, init=start), 3
        )
        assert spent <= most * POINTS * (1 + m)
        off = (r.length.double() - exact.length).abs()
        assert bool((off <= r.error.double() + 1e-5 * exact.length).all())


class TestTruths:
    @pytest.mark.parametrize("known", spaces.CATALOGUE, ids=lambda known: known.name)
    def test_perfect_starts(self, known):
        z0, z1, d = known.draw(6, seed=5)
        space = known.space()
        exact = solvers.geodesic(space, z0, z1, rtol=1e-7)
        r = solvers.geodesic(space, z0, z1, rtol=1e-4, init=exact.curve)
        off = (r.length - d).abs()
        assert bool((off <= 1e-4 * d).all())
        assert bool((off <= r.error + 1e-9 * d).all())
        assert int((r.stats["steps"] <= 2).sum()) >= 5

    @pytest.mark.parametrize("known", spaces.CATALOGUE[::2], ids=lambda known: known.name)
    @pytest.mark.parametrize("rtol", [1e-2, 1e-4])
    def test_bent_starts_are_never_taken_for_more_than_they_are(self, known, rtol):
        z0, z1, d = known.draw(8, seed=6)
        space = known.space()
        exact = solvers.geodesic(space, z0, z1, rtol=1e-7)
        for size in (0.03, 0.1, 0.3, 1.0):
            start = bent(exact.curve, size * rtol**0.5 * (z1 - z0).norm(dim=-1)[:, None, None])
            r = solvers.geodesic(space, z0, z1, rtol=rtol, init=start, throw=False)
            off = (r.length - d).abs()
            assert bool((off <= rtol * d)[r.converged].all())
            assert bool((off <= 2 * r.error + 1e-9 * d)[r.converged].all())

    @pytest.mark.parametrize("known", FLAT_ONTO[1::4], ids=lambda known: known.name)
    def test_rough_maps(self, known):
        z0, z1, d = known.draw(8, seed=7)
        space = known.space()
        start = solvers.geodesic(space, z0, z1, rtol=1e-3, throw=False).curve
        r = solvers.geodesic(space, z0, z1, rtol=1e-2, init=start, throw=False)
        off = (r.length - d).abs()
        assert not bool((r.converged & (off > 1.1e-2 * d)).any())

    @pytest.mark.parametrize("share", [0.7, 0.9, 0.95, 0.97])
    def test_starts_that_are_off_in_the_softest_direction(self, share):
        # Arcs of the equator, up to close before their conjugate point, bent towards the pole.
        d = share * torch.pi
        t = torch.linspace(0, 1, 33, dtype=F64)
        space = Manifold(lambda z: torch.stack([z.cos().prod(-1), *_of_angles(z)], -1))
        for rtol in (1e-2, 1e-3, 1e-4):
            gains = rtol * torch.tensor([0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0], dtype=F64)
            # The energy's second derivative along sin(πt) is 1 − share² of a flat space's.
            size = 2 * share * (gains / (1 - share**2)).sqrt()[:, None]
            bend, slope = size * (torch.pi * t).sin(), torch.pi * size * (torch.pi * t).cos()
            bend[:, [0, -1]] = 0.0
            along = (d * t).expand_as(bend)
            start = Curve(
                torch.stack([bend, along], -1),
                torch.stack([slope, torch.full_like(slope, d)], -1),
            )
            ends = start.nodes[:, 0], start.nodes[:, -1]
            r = space.geodesic(*ends, rtol=rtol, init=start, throw=False)
            kept = r.index < 0  # Newton, which solves the others, knows the index
            assert bool(kept[:3].all())
            off = (r.length - d).abs()
            assert bool((off <= rtol * d)[r.converged].all())
            assert bool((off <= 1.1 * r.error)[kept].all())

    def test_a_decoder_after_a_step_of_training(self):
        old = network(8, 128, 64)
        z0, z1 = draw(2, 8, 8)
        curve = Manifold(old).geodesic(z0, z1, rtol=1e-5).curve
        for step in (1e-3, 1e-2, 1e-1):
            new = network(8, 128, 64)
            for k, p in enumerate(new.parameters()):
                p.add_(step * p.std() * draw(*p.shape, seed=k))
            M = Manifold(new)
            exact = M.geodesic(z0, z1, rtol=1e-7)
            r = M.geodesic(z0, z1, rtol=1e-3, init=curve)
            off = (r.length - exact.length).abs()
            assert bool((off <= 1e-3 * exact.length).all())
            assert bool((off <= r.error + 1e-6 * exact.length).all())

    def test_a_metric_on_the_ambient_space(self):
        M = Manifold(network(3, 32, 6), ambient.Density(draw(40, 6), bandwidth=2.0))
        z0, z1 = 0.5 * draw(2, 4, 3)
        exact = M.geodesic(z0, z1, rtol=1e-6)
        r = M.geodesic(z0, z1, rtol=1e-3, init=exact.curve)
        assert bool((r.stats["steps"] <= 2).all())
        off = (r.length - exact.length).abs()
        assert bool((off <= r.error).all())


class TestBlocks:
    def test_images_of_ends_are_held_for_some_curves_at_a_time(self, monkeypatch):
        M = Manifold(network(3, 32, 20))
        z0, z1 = draw(2, 40, 3)
        start = M.geodesic(z0, z1, rtol=1e-5).curve
        whole = M.geodesic(z0, z1, rtol=1e-3, init=start)
        counts = []

        def seen(space, nodes):
            for some, ends in with_ends(space, nodes):
                counts.append(len(ends))
                yield some, ends

        monkeypatch.setattr(mode_looks, "_BYTES", 1)
        with_ends = mode_looks.with_ends
        monkeypatch.setattr(verification, "with_ends", seen)
        parts = M.geodesic(z0, z1, rtol=1e-3, init=start)
        assert counts == [16, 16, 8]
        assert torch.equal(parts.length, whole.length)
        assert torch.equal(parts.error, whole.error)

    def test_a_space_that_has_images_but_no_forces(self):
        class Forceless:
            as_space = between = None  # would lead to the space inside

            def __init__(self, space):
                self.space = space

            def __getattr__(self, name):
                return getattr(self.space, name)

            def pulled(self, points, force, ends=None):
                return None

        z0, z1 = draw(2, 3, 3)
        M = Manifold(network(3, 32, 20))
        start = M.geodesic(z0, z1, rtol=1e-5).curve
        space = Forceless(space_of(M, z0, z1, where="geodesic"))
        for options in ({}, {"init": start}):
            with pytest.raises(MetricError, match="forces at the points"):
                solvers.geodesic(space, z0, z1, rtol=1e-3, **options)


class TestResults:
    def test_curves_are_those_of_the_lengths(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 8, 4)
        start = M.geodesic(z0, z1, rtol=1e-5).curve
        r = M.geodesic(z0, z1, rtol=1e-4, init=start)
        assert bool((r.stats["steps"] <= 2).any())
        torch.testing.assert_close(M.length(r.curve, rtol=1e-7), r.length, rtol=1e-4, atol=0)
        assert torch.equal(r.curve.nodes[:, 0], z0)
        assert torch.equal(r.curve.nodes[:, -1], z1)

    @pytest.mark.parametrize(
        "space",
        [Manifold(network(4, 64, 30)), solvers.MetricSpace(spaces.poincare_tensor)],
        ids=["images", "tangents"],
    )
    def test_same_bits_alone(self, space):
        m = 4 if isinstance(space, Manifold) else 2
        z0, z1 = 0.3 * draw(2, 6, m)
        start = solvers.geodesic(space, z0, z1, rtol=1e-5).curve
        together = solvers.geodesic(space, z0, z1, rtol=1e-4, init=start)
        for k in range(6):
            alone = solvers.geodesic(
                space, z0[k : k + 1], z1[k : k + 1], rtol=1e-4, init=start[k : k + 1]
            )
            assert torch.equal(alone.length[0], together.length[k])
            assert torch.equal(alone.error[0], together.error[k])

    def test_the_index_is_counted_when_asked_for(self):
        # 1.2 π of a great circle: one conjugate point.
        u = torch.linspace(0, 1.2 * torch.pi, 64, dtype=F64)
        arc = torch.stack([u.cos(), u.sin()], -1)
        M = Manifold(spaces.sphere)
        assert int(M.geodesic(arc[0], arc[-1], init=arc).index) == -1
        assert int(M.geodesic(arc[0], arc[-1], init=arc, certify=True).index) == 1

    def test_solvers_that_are_asked_for_solve(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 3, 4)
        start = M.geodesic(z0, z1).curve
        r = M.geodesic(z0, z1, init=start, solver=Newton())
        assert bool((r.index >= 0).all())
        r = M.geodesic(z0, z1, init=start, solver=QuasiNewton())
        again = solvers.geodesic(M, z0, z1, init=start, solver=QuasiNewton(), n_starts=1)
        assert torch.equal(r.length, again.length)

    def test_bad_starts_and_bad_points(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 4, 4)
        exact = M.geodesic(z0, z1, rtol=1e-6)
        nodes = exact.curve.resample(64).nodes.clone()
        nodes[0] += 0.5 * draw(65, 4)  # noise, which is nobody's polynomial
        nodes[1, 7] = torch.nan
        z0[2, 0] = torch.inf
        r = M.geodesic(z0, z1, init=nodes, throw=False)
        codes = [Status.CONVERGED, Status.NON_FINITE, Status.INVALID_POINT, Status.CONVERGED]
        assert r.status.tolist() == codes
        assert abs(float(r.length[3] - exact.length[3])) <= 1e-4 * float(exact.length[3])

    def test_a_budget_may_end_it(self):
        M = Manifold(network(4, 64, 30))
        z0, z1 = draw(2, 4, 4)
        start = M.geodesic(z0, z1).curve
        r = M.geodesic(z0, z1, init=start, max_decodings=100, throw=False)
        assert bool((r.status == Status.BUDGET).all())


class TestPolynomials:
    def test_coarsened_images_are_those_of_the_interpolant(self):
        t = torch.from_numpy(polynomials.lobatto(12)[0])
        s = torch.from_numpy(polynomials.lobatto(7)[0])
        x = draw(3, 12, 4)
        powers = torch.linalg.solve(t[:, None] ** torch.arange(12), x)
        expected = s[:, None] ** torch.arange(12) @ powers
        torch.testing.assert_close(polynomials.coarsened(x, 7), expected, rtol=1e-6, atol=1e-6)

    def test_velocities_by_autograd(self):
        z0, z1, c = *draw(2, 3, 2), draw(3, 6, 2, seed=2)
        points = polynomials.points_on(z0, z1, c, 12)
        # Twelve points hold a polynomial of degree 7 exactly.
        expected = polynomials.velocities(points)
        torch.testing.assert_close(polynomials.velocities_on(z0, z1, c, 12), expected)

    def test_finest_modes_of_numbers(self):
        t = torch.from_numpy(polynomials.lobatto(8)[0])
        legendre = torch.special.legendre_polynomial_p
        y = 3 * legendre(2 * t - 1, 6) - 2 * legendre(2 * t - 1, 7) + 5 * legendre(2 * t - 1, 2)
        torch.testing.assert_close(polynomials.fine_size(y[None]), torch.tensor([5.0]).double())
