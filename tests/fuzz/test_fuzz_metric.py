"""Seeded cases of ill-conditioned Jacobians under random ambient metrics, and of random polylines
on random decoders.

A few seconds as it is; ``RIEMAE_FUZZ=50`` runs fifty times as many cases, each with a seed of its
own."""

import os
import warnings

import pytest
import torch

from riemae import Manifold, ambient, scores
from riemae.exceptions import PrecisionWarning

F32, F64 = torch.float32, torch.float64
TIMES = int(os.environ.get("RIEMAE_FUZZ", "1"))

ACTIVATIONS = [
    torch.nn.SiLU,
    torch.nn.Tanh,
    torch.nn.ReLU,
    torch.nn.ELU,
    torch.nn.LeakyReLU,
    torch.nn.Hardtanh,
]


def integer(generator, low, high):
    return int(torch.randint(low, high + 1, (), generator=generator))


def uniform(generator, low=0.0, high=1.0):
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=F64))


def normal(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=F64)


def orthonormal(generator, rows, columns):
    return torch.linalg.qr(normal(generator, rows, columns))[0]


def measured(generator, matrix, dtype):
    """A decoder and an ambient metric under which the Jacobian is ``matrix``, up to an isometry."""
    d = len(matrix)
    offset = 10 ** uniform(generator, -2, 2) * normal(generator, d).to(dtype)
    kind = integer(generator, 0, 5)
    metric = None
    if kind in (1, 2):
        w = (3 * normal(generator, d)).exp()
        matrix = matrix / w.sqrt()[:, None]
        metric = ambient.Diagonal(w.to(dtype)) if kind == 1 else lambda x: w.to(x).expand_as(x)
    elif kind in (3, 4):
        factor = torch.eye(d, dtype=F64) + 0.3 * orthonormal(generator, d, d).tril(-1)
        h = (factor @ factor.T).to(dtype)
        matrix = torch.linalg.solve(factor.T, matrix)
        metric = ambient.Constant(h) if kind == 3 else lambda x: h.expand(len(x), d, d)
    elif kind == 5:
        turn = orthonormal(generator, d + 3, d).to(dtype)
        metric = ambient.FeatureMap(lambda x: x @ turn.T)
    matrix = matrix.to(dtype)
    return Manifold(lambda z: offset + z @ matrix.T, ambient=metric)


@pytest.mark.parametrize("seed", range(40 * TIMES))
def test_spectrum(seed):
    generator = torch.Generator().manual_seed(seed)
    m, dtype = integer(generator, 1, 7), (F32, F64)[seed % 2]
    d = integer(generator, m, 40)
    condition = 10 ** uniform(generator, 0, 4.5 if dtype == F32 else 12)
    s = 10 ** uniform(generator, -3, 3) * condition ** torch.linspace(-1, 0, m, dtype=F64)
    M = measured(generator, orthonormal(generator, d, m) * s @ orthonormal(generator, m, m), dtype)
    z = normal(generator, 2, m).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)
        values, volume = M.eigenvalues(z).double(), M.log_volume(z).double()
        worst = scores.condition_number(M, z).double()
    eps = torch.finfo(dtype).eps
    # What rounding of J, and of a matrix H and its factor, may change of each singular value: eps
    # times the largest.
    allowed = 100 * eps * s[-1] / s
    assert ((values.sqrt() / s - 1).abs() <= allowed).all()
    assert ((volume - s.log().sum()).abs() <= allowed.sum() + 1e-6 * (dtype == F32)).all()
    assert ((worst.sqrt() / (s[-1] / s[0]) - 1).abs() <= 2 * allowed[0]).all()


@pytest.mark.parametrize("seed", range(12 * TIMES))
def test_dependent_directions(seed):
    generator = torch.Generator().manual_seed(seed)
    m = integer(generator, 2, 6)
    rank, d = integer(generator, 1, m - 1), integer(generator, 2, 40)
    matrix = normal(generator, d, rank) @ normal(generator, rank, m)
    M, z = measured(generator, matrix, F64), normal(generator, 2, m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrecisionWarning)  # where rounding hides the dependence
        values, volume = M.eigenvalues(z), M.log_volume(z)
    size = values[:, -1:]
    assert (values[:, : m - min(rank, d)] <= 1e-24 * size).all()
    assert (volume < values[:, -1].log() * m / 2 - 25).all()


def network(generator, m):
    activation = ACTIVATIONS[integer(generator, 0, len(ACTIVATIONS) - 1)]()
    widths = [
        m,
        *(integer(generator, 8, 48) for _ in range(integer(generator, 1, 3))),
        integer(generator, 2, 40),
    ]
    gain, layers = uniform(generator, 0.7, 3.0), []
    for a, b in zip(widths, widths[1:], strict=False):
        layer = torch.nn.Linear(a, b).double()
        with torch.no_grad():
            layer.weight.copy_(gain * normal(generator, b, a) / a**0.5)
            layer.bias.copy_(normal(generator, b))
        layers += [layer, activation]
    return torch.nn.Sequential(*layers[:-1]).requires_grad_(False)


@pytest.mark.parametrize("seed", range(20 * TIMES))
def test_polylines(seed):
    generator = torch.Generator().manual_seed(seed)
    m, count = integer(generator, 1, 6), integer(generator, 2, 5)
    f, corners = network(generator, m), 2 * normal(generator, 3, count, m)
    rtol = 10 ** uniform(generator, -4.5, -2)
    t = torch.linspace(0, 1, 20_001, dtype=F64)[:, None]
    pieces = [
        [f(a + t * (b - a)).diff(dim=0).norm(dim=-1) for a, b in zip(z, z[1:], strict=False)]
        for z in corners
    ]
    M = Manifold(f)
    found, error = M.length(corners, rtol=rtol, return_error=True)
    true = torch.stack([sum(steps.sum() for steps in curve) for curve in pieces])
    # The chords cut corners by up to 1e-4; between the points of a panel a kinked map may do what
    # nobody sees.
    assert ((found - true).abs() <= 2 * error + 2e-4 * true).all()
    assert (error <= rtol * found).all()
    energy = M.energy(corners, rtol=rtol)
    share = 20_000 * (count - 1)
    true = torch.stack([sum(share * steps.square().sum() for steps in curve) for curve in pieces])
    assert ((energy - true).abs() <= (3 * rtol + 1e-3) * true).all()
