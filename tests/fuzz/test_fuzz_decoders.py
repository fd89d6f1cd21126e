"""Random decoders of two to six operations of torch: every number is that of plain autograd, or
refused with a reason that holds.

Value, Jacobian, ``a·∂²f``, Christoffel symbols, scalar curvature, and the gradient of the metric,
which differentiates results again. The operations are in ``tests/decoder_*.py``; each decoder has
one of them for certain, so that ``make fuzz`` meets all. There, autograd itself is compared with
differences, which judge where it is wrong.

``RIEMAE_FUZZ=50`` runs fifty times as many decoders as without: ``make fuzz``.
"""

import copy
import itertools
import os
import random
import warnings
from dataclasses import dataclass, field

import decoder_blocks
import decoder_functions
import decoder_sequences
import pytest
import torch
from decoder_operations import OPERATIONS, WIDTH
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn.attention import SDPBackend, sdpa_kernel

from riemae import Manifold
from riemae.differential.derivatives import Differential
from riemae.exceptions import RiemaeError

TIMES = int(os.environ.get("RIEMAE_FUZZ", "1"))
BLOCKS, EACH = 4, 3
NAMES = list(OPERATIONS)
# Steps that are prime to the number of operations visit all of them.
STRIDE = 61
CATALOGUES = (decoder_functions, decoder_sequences, decoder_blocks)  # importing enters them


class Decoder(nn.Module):
    """A code, operations with linear maps behind them, and data."""

    def __init__(self, seed):
        super().__init__()
        rng = random.Random(seed)
        self.m, self.size = rng.choice([2, 2, 3]), rng.choice([5, 6])
        own = NAMES[seed * STRIDE % len(NAMES)]
        self.names = [own, *(rng.choice(NAMES) for _ in range(rng.randint(1, 5)))]
        rng.shuffle(self.names)
        self.residual = [rng.random() < 0.3 for _ in self.names]
        self.skip = rng.random() < 0.5
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = mixing(self.m, WIDTH)
            self.operations = nn.ModuleList(OPERATIONS[name]() for name in self.names)
            self.eval().double()
            widths = [self.width(operation) for operation in self.operations]
            self.mixes = nn.ModuleList(mixing(n, WIDTH) for n in widths)
            self.last = mixing(WIDTH, self.size)
        self.double().requires_grad_(False)

    @staticmethod
    def width(operation):
        with torch.no_grad():
            return operation(torch.randn(2, WIDTH, dtype=torch.float64)).reshape(2, -1).shape[1]

    def forward(self, z):
        y = self.first(z)
        for operation, mix, residual in zip(
            self.operations, self.mixes, self.residual, strict=True
        ):
            new = mix(operation(y).reshape(len(z), -1))
            y = y + new if residual else new
        x = self.last(y)
        return torch.cat([z, x], -1) if self.skip else x


def mixing(n, width):
    """A linear map that keeps sizes."""
    layer = nn.Linear(n, width)
    nn.init.normal_(layer.weight, std=n**-0.5)
    nn.init.normal_(layer.bias, std=0.3)
    return layer


@dataclass
class Truth:
    """What torch.autograd says, point by point."""

    x: torch.Tensor  # (k, D)
    j: torch.Tensor  # (k, D, m)
    h: torch.Tensor  # (k, D, m, m)

    @classmethod
    def of(cls, f, z):
        def single(p):
            return f(p[None])[0]

        def slope(p):
            return jacobian(single, p, create_graph=True)

        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            x = torch.stack([single(p).detach() for p in z])
            j = torch.stack([jacobian(single, p) for p in z])
            h = torch.stack([jacobian(slope, p) for p in z])
        return cls(x, j, h)

    @classmethod
    def by_differences(cls, f, z, step=2e-3):
        """The same by differences of the values, right to some seven digits."""

        def values(p):
            with torch.no_grad():
                return f(p[None])[0]

        def slope(p):
            return differences(values, p, step)

        return cls(
            torch.stack([values(p) for p in z]),
            torch.stack([slope(p) for p in z]),
            torch.stack([differences(slope, p, step) for p in z]),
        )

    def at(self, k):
        """Of one point."""
        return Truth(self.x[k : k + 1], self.j[k : k + 1], self.h[k : k + 1])

    def agrees(self, other, limit):
        size = other.h.abs().max() + other.j.abs().max()
        return off(self.j, other.j) < limit and off(self.h, other.h, size) < limit

    def known(self):
        """Whether these numbers, and the metric with its slope, are ones that the dtype has."""
        metric = self.j.mT @ self.j
        slope = torch.einsum("kdi,kdjl->kijl", self.j, self.h)
        return all(bool(x.isfinite().all()) for x in (self.x, self.j, self.h, metric, slope))

    def contraction(self, a):
        return torch.einsum("kdij,kd->kij", self.h, a)

    def christoffel(self):
        k, _, m = self.j.shape
        return (torch.linalg.pinv(self.j) @ self.h.flatten(2)).view(k, m, m, m)

    def scalar_curvature(self):
        """And the size of what is added up."""
        q, r = torch.linalg.qr(self.j)
        normal = self.h - torch.einsum("kda,kea,keij->kdij", q, q, self.h)
        unit = torch.linalg.inv(r)
        bent = torch.einsum("kdij,kia,kjb->kdab", normal, unit, unit)
        squares = bent.square().sum((1, 2, 3))
        trace = bent.diagonal(dim1=2, dim2=3).sum(-1)
        return trace.square().sum(-1) - squares, trace.square().sum(-1) + squares

    def slope_of_metric(self, a):
        """The gradient of ``Σ G_ij a_i a_j``."""
        return 2 * torch.einsum("kdi,kdjl,ki,kj->kl", self.j, self.h, a, a)


def differences(f, p, step):
    """Central differences of fourth order, along new last axes."""
    columns = []
    for direction in step * torch.eye(len(p), dtype=p.dtype):
        near = f(p + direction) - f(p - direction)
        far = f(p + 2 * direction) - f(p - 2 * direction)
        columns.append((8 * near - far) / (12 * step))
    return torch.stack(columns, -1)


@dataclass
class Findings:
    """What happened to a decoder."""

    name: str
    wrong: list = field(default_factory=list)
    refused: list = field(default_factory=list)
    raw: list = field(default_factory=list)
    unknown: int = 0  # points about which nothing is known


def off(ours, theirs, size=None):
    """The largest difference, relative to the size of all."""
    size = theirs if size is None else size
    return float((ours.detach() - theirs).abs().max() / size.abs().max().clamp_min(1e-9))


def points(seed, m):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, m, generator=generator, dtype=torch.float64)


def examined(seed):
    """All numbers of one decoder, compared."""
    f = Decoder(seed)
    z = points(seed, f.m)
    found = Findings(f"{seed}: " + ", ".join(f.names))
    try:
        truth = Truth.of(copy.deepcopy(f), z)
    except (RuntimeError, NotImplementedError):  # autograd has no second derivative
        truth = None
    if TIMES == 1 and truth is not None and truth.known():
        compare(found, f, z, truth, 1e-7)
        return found
    for k in range(len(z)):
        at = z[k : k + 1]
        witness, limit = judged(f, at, truth and truth.at(k))
        if witness is None:
            found.unknown += 1
        else:
            compare(found, f, at, witness, limit)
    return found


def judged(f, z, truth):
    """What holds at a point, and how exactly.

    That is what autograd says where differences of some step agree; else what differences of two
    steps agree on. Where these do not either, they cross a kink or leave the decoder's domain.
    """
    known = []
    for step in (2e-3, 2e-4, 2e-5):
        known.append(Truth.by_differences(copy.deepcopy(f), z, step))
        if truth is not None and truth.known() and known[-1].agrees(truth, 1e-5):
            return truth, 1e-7
    for coarse, fine in itertools.pairwise(known):
        if coarse.known() and coarse.agrees(fine, 1e-4):
            return fine, 1e-3
    return None, 0.0


def compare(found, f, z, truth, limit):
    a = points(7, truth.x.shape[1])[: len(z)]
    v = z.flip(-1)
    condition = float(torch.linalg.cond(truth.j).max())
    regular = condition < 1e3
    bend = truth.h.abs().max() + truth.j.abs().max()
    curvature, size = truth.scalar_curvature() if regular else (None, 0)
    manifold = Manifold(f)
    d = Differential(f)

    def regained():
        start = z.clone().requires_grad_()
        with torch.enable_grad():
            g = manifold.metric(start)
            energy = torch.einsum("kij,ki,kj->", g, v, v)
            if not energy.requires_grad:  # the decoder is affine
                return torch.zeros_like(start)
            return torch.autograd.grad(energy, start)[0]

    calls = {
        "value": (lambda: manifold.decode(z), truth.x, truth.x, 1),
        "jacobian": (lambda: manifold.jacobian(z), truth.j, truth.j, 1),
        "contraction": (lambda: d.contraction(z, a), truth.contraction(a), bend, 1),
        "christoffel": (lambda: manifold.christoffel(z), truth.christoffel(), bend, 3),
        "curvature": (lambda: manifold.scalar_curvature(z), curvature, size + 1, 4),
        "gradient": (regained, truth.slope_of_metric(v), bend * truth.j.abs().max(), 1),
    }
    for what, (call, expected, scale, power) in calls.items():
        if power > 1 and not regular:
            continue
        try:
            result = call()
        except RiemaeError as error:
            found.refused.append(f"{what}: {error}")
        except Exception as error:
            found.raw.append(f"{what}: {type(error).__name__}: {error}")
        else:
            allowed = limit * condition**power if power > 1 else limit
            wrong = off(result, expected, scale)
            if not wrong <= allowed:
                found.wrong.append(f"{what} off by {wrong:.2g}")


def silent(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slower modes are announced, and not the matter here
        with torch.set_grad_enabled(seed % 2 == 0):
            return examined(seed)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_every_decoder_has_the_derivatives_of_autograd(block):
    count = EACH * TIMES
    unknown = 0
    for seed in range(block * count, (block + 1) * count):
        found = silent(seed)
        assert not found.wrong, (found.name, found.wrong)
        assert not found.raw, (found.name, found.raw)
        assert not found.refused, (found.name, found.refused)
        unknown += found.unknown
    assert unknown <= count / 5  # of twice as many points
