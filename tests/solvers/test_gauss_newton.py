"""Splines with few degrees of freedom, for metrics that are nearly singular."""

import numpy as np
import pytest
import spaces
import torch
from flat_spaces import FLAT_ONTO
from scipy.interpolate import BSpline
from torch import nn

from riemae import Manifold, solvers
from riemae.exceptions import OptionError
from riemae.solvers import GaussNewton, Newton, QuasiNewton, Status
from riemae.solvers.bumps import bends, bumps_of, curve_of, finer
from riemae.solvers.curve import Curve
from riemae.solvers.gauss_newton import _Descent, _Matrix
from riemae.solvers.space import space_of

F64 = torch.float64
KNOWN = [
    *spaces.CATALOGUE[:4],
    *(k for k in FLAT_ONTO if k.name in ("quintic m=2", "linear 1e3 m=5")),
]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def network(*widths, seed=0, flat=1.0):
    """A random SiLU network; ``flat`` is the least of the singular values of its first layer."""
    source = generator(seed)
    layers = []
    for a, b in zip(widths, widths[1:], strict=False):
        linear = nn.Linear(a, b, dtype=F64).requires_grad_(False)
        linear.weight.copy_(a**-0.5 * torch.randn(b, a, generator=source, dtype=F64))
        linear.bias.copy_(a**-0.5 * torch.randn(b, generator=source, dtype=F64))
        layers += [linear, nn.SiLU()]
    u, s, vh = torch.linalg.svd(layers[0].weight, full_matrices=False)
    s = s * torch.logspace(0, np.log10(flat), len(s), dtype=F64)
    layers[0].weight.copy_(u @ s.diag() @ vh)
    return nn.Sequential(*layers[:-1])


def points(n, m, seed=2):
    return torch.randn(2, n, m, generator=generator(seed), dtype=F64)


def attempted(space, z0, z1, rtol, solver=None):
    """What is accepted of straight lines."""
    space = space_of(space, z0, z1)
    unknown = np.full(len(z0), np.nan)
    with torch.no_grad():
        return (solver or GaussNewton()).attempt(space, Curve.line(z0, z1, 8), unknown, rtol)


class TestBumps:
    @pytest.mark.parametrize("pieces", [2, 3, 6, 9])
    def test_are_scipys_b_splines(self, pieces):
        knots = np.concatenate([np.zeros(3), np.linspace(0, 1, pieces + 1), np.ones(3)])
        t = np.linspace(0, 1, 4 * pieces + 1)
        spline = BSpline(knots, np.eye(pieces + 3), 3)
        zero = torch.zeros(1, 1, dtype=F64)
        every = torch.eye(pieces + 1, dtype=F64)[:, :, None]
        curve = curve_of(zero.expand(pieces + 1, 1), zero.expand(pieces + 1, 1), every, 4 * pieces)
        assert np.allclose(curve.nodes[:, :, 0].T, spline(t)[:, 1:-1], atol=1e-14)
        assert np.allclose(curve.slopes[:, :, 0].T, spline.derivative()(t)[:, 1:-1], atol=1e-12)
        inner = bends(pieces, 4 * pieces, zero)
        assert np.allclose(inner, spline(t)[1:-1, 1:-1], atol=1e-14)

    def test_find_their_own_curves_again_and_are_refined(self):
        z0, z1 = points(2, 3)
        bumps = torch.randn(2, 7, 3, generator=generator(0), dtype=F64)
        curve = curve_of(z0, z1, bumps, 48)
        torch.testing.assert_close(bumps_of(curve, 6), bumps, rtol=1e-9, atol=1e-9)
        fine = curve_of(z0, z1, finer(bumps, 12), 48)
        torch.testing.assert_close(fine.nodes, curve.nodes, rtol=1e-9, atol=1e-9)


class TestMatrix:
    def run(self, second_order):
        M = Manifold(network(3, 16, 7))
        z0, z1 = points(1, 3)
        bumps = 0.3 * torch.randn(1, 5, 3, generator=generator(1), dtype=F64)
        run = _Descent(space_of(M, z0, z1), z0, z1, bumps, None)
        run.pieces, run.segments, run.places = 4, 32, 16
        return M, run, _Matrix.of(run, second_order=second_order)

    def energy(self, M, run):
        """The energy of the chords between the places, by autograd's means alone."""

        def value(bumps):
            x = M.decode(curve_of(run.z0, run.z1, bumps.view(1, 5, 3), run.places).nodes)
            return run.places * x.diff(dim=1).square().sum()

        return value

    def test_is_the_hessian_of_the_energy(self):
        M, run, matrix = self.run(True)
        expected = torch.autograd.functional.hessian(self.energy(M, run), run.bumps.flatten())
        torch.testing.assert_close(matrix.whole, expected, rtol=1e-8, atol=1e-8)

    def test_is_gauss_newtons(self):
        M, run, matrix = self.run(False)

        def chords(bumps):
            x = M.decode(curve_of(run.z0, run.z1, bumps.view(1, 5, 3), run.places).nodes)
            return (run.places**0.5 * x.diff(dim=1)).flatten()

        tangents = torch.autograd.functional.jacobian(chords, run.bumps.flatten())
        torch.testing.assert_close(matrix.whole, 2 * tangents.T @ tangents, rtol=1e-8, atol=1e-8)

    def test_what_is_added_is_the_hessian_of_straight_lines(self):
        _, run, matrix = self.run(False)
        flat = Manifold(lambda z: z)
        run.space = space_of(flat, run.z0, run.z1)
        line = _Matrix.of(run, second_order=False)
        expected = torch.kron(matrix.line, torch.eye(3, dtype=F64))
        torch.testing.assert_close(line.whole, expected, rtol=1e-9, atol=1e-9)


class TestTruths:
    @pytest.mark.parametrize("known", KNOWN, ids=lambda known: known.name)
    @pytest.mark.parametrize("rtol", [1e-2, 1e-4])
    def test_what_is_accepted_is_right(self, known, rtol):
        z0, z1, d = known.draw(6, seed=5)
        found = attempted(known.space(), z0, z1, rtol)
        truth = d.numpy()[found.rows]
        off = np.abs(found.length - truth)
        assert len(found.rows) >= 3
        assert (off <= rtol * truth).all()
        assert (off <= 2 * found.error + 1e-9 * truth).all()

    def test_what_is_left_goes_to_gradients(self):
        known = next(k for k in FLAT_ONTO if k.name == "leaky m=2")
        z0, z1, d = known.draw(4, seed=5)
        r = solvers.geodesic(known.space(), z0, z1, rtol=1e-2, solver=GaussNewton(), throw=False)
        wrong = r.converged & ((r.length - d).abs() > 1e-2 * d)
        assert not bool(wrong.any())

    def test_alone_and_in_a_batch(self):
        M = Manifold(network(12, 24, 30, flat=1e-4))
        z0, z1 = points(3, 12)
        together = M.geodesic(z0, z1, rtol=1e-3, solver=GaussNewton(), throw=False)
        for k in range(3):
            some = slice(k, k + 1)
            alone = M.geodesic(z0[some], z1[some], rtol=1e-3, solver=GaussNewton(), throw=False)
            assert torch.equal(alone.length[0], together.length[k])

    def test_too_many_numbers_are_left_alone(self):
        M = Manifold(network(6, 12, 10))
        z0, z1 = points(2, 6)
        assert len(attempted(M, z0, z1, 1e-2, GaussNewton(unknowns=30)).rows) == 0
        r = M.geodesic(z0, z1, rtol=1e-2, solver=GaussNewton(unknowns=30))
        expected = M.geodesic(z0, z1, rtol=1e-2, solver=QuasiNewton())
        assert torch.equal(r.length, expected.length)

    def test_refuses_nonsense(self):
        with pytest.raises(OptionError, match="pieces"):
            GaussNewton(pieces=1)


def trained(m, seed, dead=0, scale=1.0):
    """A decoder of an autoencoder of sklearn's digits, trained for some seconds, and codes."""
    from sklearn.datasets import load_digits

    x = torch.as_tensor(load_digits().data[:600], dtype=torch.float32) / 16
    mask = torch.ones(m)
    mask[m - dead :] = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, m))
        decoder = nn.Sequential(nn.Linear(m, 96), nn.SiLU(), nn.Linear(96, 64))
        optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 3e-3)
        for _ in range(150):
            rows = torch.randint(len(x), (100,))
            z = encoder(x[rows]) * mask
            loss = (decoder(z) - x[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        z = scale * encoder(x) * mask
        decoder[0].weight /= scale
    return decoder.double().requires_grad_(False), z.double()


KINDS = {
    "48": {"m": 48},
    "48, dead units": {"m": 48, "dead": 12},
    "96": {"m": 96},
    "48, other scale": {"m": 48, "scale": 30.0},
}


class TestAutoencoders:
    """Trained decoders with more latent dimensions than they need."""

    @pytest.mark.parametrize("kind", KINDS)
    def test_tolerances_agree(self, kind):
        decoder, z = trained(seed=0, **KINDS[kind])
        M = Manifold(decoder)
        z0, z1 = z[:2], z[100:102]
        sharp = M.geodesic(z0, z1, rtol=1e-5, n_starts=1, throw=False)
        assert bool(sharp.converged.all())
        for rtol in (1e-2, 1e-3, 1e-4):
            r = M.geodesic(z0, z1, rtol=rtol, n_starts=1, throw=False)
            off = r.length - sharp.length
            assert bool(r.converged.all())
            assert bool((off.abs() <= rtol * sharp.length).all())
            assert bool((off <= 3 * r.error + 2 * sharp.error).all())

    def test_a_second_order_method_agrees(self):
        decoder, z = trained(seed=1, m=48)
        M = Manifold(decoder)
        r = M.geodesic(z[:2], z[100:102], rtol=1e-4, n_starts=1)
        again = M.geodesic(
            z[:2], z[100:102], rtol=1e-5, solver=Newton(segments=32), init=r.curve, throw=False
        )
        assert bool((again.length >= r.length * (1 - 1e-4)).all())


class TestNearlySingular:
    def test_converges_where_gradients_creep(self):
        """An MLP whose metric has a condition of 3e10.

        A curve of degree 26 found by dense Levenberg-Marquardt steps, by nothing but torch, has a
        length of 1.79854 by 4000 chords.
        """
        m, known = 128, 1.79854
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [nn.Linear(m, m), nn.SiLU(), nn.Linear(m, m), nn.SiLU(), nn.Linear(m, 4 * m)]
        M = Manifold(nn.Sequential(*layers).double().requires_grad_(False))
        z0, z1 = torch.randn(2, 2, m, generator=generator(0), dtype=F64)[:, 1:]
        r = M.geodesic(z0, z1, rtol=1e-4, n_starts=1, throw=False)
        assert r.status.tolist() == [Status.CONVERGED]
        assert bool((r.length <= (1 + 1e-4) * known).all())
        assert bool((r.length - known <= 2 * r.error).all())
