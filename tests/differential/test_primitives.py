"""Functions whose own derivatives are wrong or missing in torch, taken by primitives: against
formulas and autograd."""

import math
import sys

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.nn import functional as F

from riemae import Manifold
from riemae.differential.primitives import with_primitives

F64 = torch.float64
C = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.9], [0.1, 0.2]], dtype=F64)
BAG = torch.randn(6, 5, generator=torch.Generator().manual_seed(1), dtype=F64)


def points(n=4, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=F64)


def network(outputs=8):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, outputs)).double().eval()


NET = network()


def apart(z, p):
    d = (z[:, None] - C).abs()
    return d.amax(-1) if p == float("inf") else d.pow(p).sum(-1).pow(1 / p)


def bag(z, **options):
    """Weights of samples that depend on the point: each row is a bag of two."""
    indices = torch.tensor([[1, 3]]).expand(len(z), 2)
    return F.embedding_bag(indices, BAG, per_sample_weights=z.tanh(), mode="sum", **options)


def flat_bag(z, last=False):
    indices, offsets = torch.tensor([1, 3]).repeat(len(z)), 2 * torch.arange(len(z) + last)
    return F.embedding_bag(
        indices,
        BAG,
        offsets,
        per_sample_weights=z.tanh().flatten(),
        mode="sum",
        include_last_offset=last,
    )


def group_formula(x, groups, weight=None, bias=None):
    y = x.reshape(len(x), groups, -1)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    y = y.reshape(x.shape)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return y if weight is None else y * weight.view(shape) + bias.view(shape)


NORM = nn.GroupNorm(2, 4).double().eval()
with torch.no_grad():
    NORM.weight.copy_(torch.tensor([1.0, 2.0, 0.5, -1.0]))
    NORM.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))

# What a decoder calls, and the same written out.
CASES = {
    "cdist": (lambda z: torch.cdist(z, C), lambda z: apart(z, 2)),
    "radial basis functions": (
        lambda z: (-(torch.cdist(z, C) ** 2)).exp(),
        lambda z: (-(apart(z, 2) ** 2)).exp(),
    ),
    "cdist, p = 1": (lambda z: torch.cdist(z, C, p=1), lambda z: apart(z, 1)),
    "cdist, p = 3": (lambda z: torch.cdist(z, C, p=3.0), lambda z: apart(z, 3)),
    "cdist, p = inf": (
        lambda z: torch.cdist(z, C, p=float("inf")),
        lambda z: apart(z, float("inf")),
    ),
    "cdist of rows": (
        lambda z: torch.cdist(NET(z).view(-1, 4, 2), C),
        lambda z: (NET(z).view(-1, 4, 1, 2) - C).square().sum(-1).sqrt(),
    ),
    "hardsigmoid": (lambda z: F.hardsigmoid(NET(z)), lambda z: (NET(z) + 3).clamp(0, 6) / 6),
    "hardsigmoid in place": (
        lambda z: F.hardsigmoid(NET(z), inplace=True).square(),
        lambda z: ((NET(z) + 3).clamp(0, 6) / 6).square(),
    ),
    "layer hardsigmoid": (
        nn.Sequential(NET, nn.Hardsigmoid()),
        lambda z: (NET(z) + 3).clamp(0, 6) / 6,
    ),
    "embedding bag": (bag, lambda z: z.tanh() @ BAG[[1, 3]]),
    "embedding bag with padding": (
        lambda z: bag(z, padding_idx=3),
        lambda z: z[:, :1].tanh() @ BAG[[1]],
    ),
    "embedding bag with offsets": (flat_bag, lambda z: z.tanh() @ BAG[[1, 3]]),
    "embedding bag with all offsets": (
        lambda z: flat_bag(z, True),
        lambda z: z.tanh() @ BAG[[1, 3]],
    ),
    "group norm": (
        lambda z: F.group_norm(NET(z).view(-1, 4, 2), 2),
        lambda z: group_formula(NET(z).view(-1, 4, 2), 2),
    ),
    "group norm behind a permutation": (
        lambda z: NORM(NET(z).view(-1, 2, 4).permute(0, 2, 1)),
        lambda z: group_formula(NET(z).view(-1, 2, 4).permute(0, 2, 1), 2, NORM.weight, NORM.bias),
    ),
    "group norm, channels last": (
        lambda z: NORM(NET(z).view(-1, 4, 2, 1).contiguous(memory_format=torch.channels_last)),
        lambda z: group_formula(NET(z).view(-1, 4, 2, 1), 2, NORM.weight, NORM.bias),
    ),
}

# Exponentials of their differences overflow. The spectrum keeps Taylor mode out, which has rules.
APART = torch.tensor([0.0, 0.5, 800, 800.2, -900, 800.1, 2000, 1999.5], dtype=F64)


def spectrum(f):
    return lambda z: torch.fft.fft(f(NET(z) + APART) - 1000).abs().square() / 1e5


CASES |= {
    "running sums of exponentials": (
        spectrum(lambda y: torch.logcumsumexp(y, -1)),
        spectrum(lambda y: torch.stack([y[:, : i + 1].logsumexp(-1) for i in range(8)], -1)),
    ),
    "logaddexp": (
        spectrum(lambda y: torch.logaddexp(y, y.roll(1, -1))),
        spectrum(lambda y: torch.stack([y, y.roll(1, -1)]).logsumexp(0)),
    ),
    "logaddexp2": (
        spectrum(lambda y: torch.logaddexp2(y, y.roll(1, -1))),
        spectrum(
            lambda y: (
                math.log2(math.e) * (math.log(2) * torch.stack([y, y.roll(1, -1)])).logsumexp(0)
            )
        ),
    ),
}


@pytest.mark.filterwarnings(
    "ignore::riemae.exceptions.SmoothnessWarning", "ignore:geodesic. the metric is singular"
)
@pytest.mark.parametrize("name", CASES)
class TestDerivatives:
    def test_first_and_second(self, name):
        f, exact = CASES[name]
        M, z, v = Manifold(f), points(), points(4, 3)
        flat = lambda p: exact(p[None])[0].flatten()  # noqa: E731 (one expression)
        j = torch.stack([jacobian(flat, p) for p in z])
        torch.testing.assert_close(M.jacobian(z), j, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(
            M.metric_product(z, v), (j.mT @ j @ v[..., None])[..., 0], rtol=1e-10, atol=1e-12
        )
        bent = torch.stack(
            [
                torch.stack(
                    [d @ hessian(lambda q, i=i: flat(q)[i], p) @ d for i in range(j.shape[1])]
                )
                for p, d in zip(z, v, strict=True)
            ]
        )
        torch.testing.assert_close(2 * M.taylor(z, v)[2], bent, rtol=1e-9, atol=1e-11)

    def test_geodesics(self, name):
        found, expected = (
            Manifold(f).geodesic(points(2), points(2, 2), rtol=1e-3, throw=False)
            for f in CASES[name]
        )
        torch.testing.assert_close(found.length, expected.length, rtol=2e-3, atol=0)

    def test_values(self, name):
        f, exact = CASES[name]
        with with_primitives(), torch.no_grad():
            torch.testing.assert_close(f(points()), exact(points()).reshape(f(points()).shape))


class TestEdges:
    def test_distance_zero_has_the_derivative_zero(self):
        z = C.clone()
        with with_primitives():
            d = torch.cdist(z.requires_grad_(), C)
        (slope,) = torch.autograd.grad(d.diagonal().sum(), z)
        assert torch.equal(slope, torch.zeros_like(slope))

    def test_where_nothing_depends_on_the_point_torch_is_taken(self):
        table = nn.EmbeddingBag(6, 5, mode="mean").double()
        f = lambda z: torch.cat([z, table(torch.arange(2).expand(len(z), 2))], -1)  # noqa: E731 (one expression)
        torch.testing.assert_close(
            Manifold(f).metric(points()), torch.eye(2, dtype=F64).expand(4, 2, 2)
        )


# Sums, products and quotients with a number.
NUMBERS = {
    "sums": lambda z: (1 + z) + (z + 2.5) + torch.add(z, 3),
    "differences": lambda z: (z - 2) * (1.5 - z) * torch.sub(z, 1),
    "products": lambda z: (3 * z) * (z * -0.1) * torch.mul(z, 2),
    "quotients": lambda z: z / 3 + 0.7 / z + torch.div(z, 1.1),
}


@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_change_no_bit_and_ask_no_kernel_in_python(name, dtype):
    f, z = NUMBERS[name], points().to(dtype)
    asked = []

    def look(frame, event, arg):
        if "/torch/_refs/" in frame.f_code.co_filename.replace("\\", "/"):
            asked.append(frame.f_code.co_name)

    def exact(z):
        with with_primitives():
            return f(z)

    def slopes(f):
        return torch.func.jvp(f, (z,), (torch.ones_like(z),))

    expected = slopes(f)
    sys.setprofile(look)
    try:
        found = slopes(exact)
    finally:
        sys.setprofile(None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not asked
