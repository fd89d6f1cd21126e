"""Random maps, first asked at the origin: every derivative is that of plain autograd, or refused.

None silently wrong.

``RIEMAE_FUZZ=50`` runs fifty times as many maps as without: ``make fuzz``.
"""

import os
import random
import warnings

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from riemae.differential.derivatives import Differential
from riemae.exceptions import DecoderError, DifferentiationError

TIMES = int(os.environ.get("RIEMAE_FUZZ", "1"))
M, WIDTH = 2, 4


def matrix(rng, rows, columns):
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / rows**0.5


def square(y):
    """Matrices (k, 2, 2) near the identity."""
    return torch.eye(2, dtype=y.dtype) + 0.3 * y.view(-1, 2, 2)


def inplace(name, *args):
    def op(y):
        y = y * 1.0
        getattr(y, name)(*args)
        return y

    return op


def on_view(view, name, *args):
    def op(y):
        y = y * 1.0
        getattr(view(y), name)(*args)
        return y

    return op


def augmented(op):
    def call(y):
        y = y + 0.5
        other = y
        y = op(y)
        return other

    return call


def iadd(y):
    y += 0.3
    return y


def imul(y):
    y *= 1.3
    return y


def isub_view(y):
    part = y[:, 1:]
    part -= 0.2
    return y


def spectrum(y):
    return torch.fft.rfft(y).abs().square()[:, [0, 1, 2, 1]]


def filtered(y):
    return torch.fft.irfft(torch.fft.rfft(y) * torch.linspace(1, 2, 3, dtype=y.dtype), n=4)


def angles(y):
    return torch.complex(y[:, :2], y[:, 2:] + 1.5).angle().repeat(1, 2)


def powers(y):
    z = torch.view_as_complex(y.reshape(-1, 2, 2).contiguous())
    return torch.view_as_real(z * z + 1j * z).reshape(-1, 4)


# Smooth on all of space but for kinks of measure zero; (k, 4) -> (k, 4).
OPS = {
    **{
        name: getattr(torch, name)
        for name in ("sin", "tanh", "sigmoid", "erf", "atan", "abs", "relu", "asinh")
    },
    **{
        name: getattr(F, name)
        for name in ("silu", "softplus", "gelu", "elu", "mish", "leaky_relu", "hardtanh")
    },
    "square": lambda y: y.square() / 2,
    "exp": lambda y: (y / 2).exp(),
    "quotient": lambda y: y / (1 + y.square().sum(-1, keepdim=True)),
    "norm": lambda y: y / (1 + y.norm(dim=-1, keepdim=True)),
    "softmax": lambda y: 2 * y.softmax(-1),
    "layer norm": lambda y: F.layer_norm(y + torch.arange(4).to(y), (4,)),
    "group norm": lambda y: F.group_norm(y + torch.arange(4).to(y), 2),
    "logsumexp": lambda y: y - y.logsumexp(-1, keepdim=True),
    "cumsum": lambda y: y.cumsum(-1),
    "cumprod": lambda y: (1 + y / 4).cumprod(-1),
    "roll": lambda y: y.roll(1, -1) * y,
    "outer": lambda y: (y[:, :2, None] * y[:, None, 2:]).flatten(1),
    "transposed": lambda y: y.T.sin().T,
    "cat": lambda y: torch.cat([y[:, :2] * y[:, 2:], y[:, 2:]], -1),
    "diff": lambda y: torch.diff(y, dim=-1, prepend=y[:, :1].sin()),
    "where": lambda y: torch.where(y > 0.1, y.sin(), y.square()),
    "sort": lambda y: y.sort(-1)[0],
    "amax": lambda y: y - y.amax(-1, keepdim=True) / 2,
    "clamp": lambda y: y.clamp(-0.7, 0.7),
    "det": lambda y: y * torch.linalg.det(square(y))[:, None],
    "inv": lambda y: torch.linalg.inv(3 * torch.eye(2).to(y) + square(y.tanh())).flatten(1),
    "solve": lambda y: torch.linalg.solve(
        3 * torch.eye(2).to(y) + square(y.tanh()), y.view(-1, 2, 2)
    ).flatten(1),
    "slogdet": lambda y: (
        y + torch.linalg.slogdet(3 * torch.eye(2).to(y) + square(y.tanh()))[1][:, None]
    ),
    "matrix exp": lambda y: torch.linalg.matrix_exp(y.view(-1, 2, 2) / 2).flatten(1),
    "spectrum": spectrum,
    "filtered": filtered,
    "angles": angles,
    "powers": powers,
    **{
        name: inplace(name)
        for name in ("sin_", "tanh_", "abs_", "erf_", "relu_", "square_", "sigmoid_", "neg_")
    },
    "mul_": inplace("mul_", 1.5),
    "clamp_min_": inplace("clamp_min_", -0.2),
    "clamp_": inplace("clamp_", -0.6, 0.9),
    "add_ itself": lambda y: (y * 1.0).add_(y.sin()),
    "elu_": lambda y: F.elu_(y * 1.0),
    "leaky_relu_": lambda y: F.leaky_relu_(y * 1.0, 0.3),
    "relu in place, bound to the input": lambda y: (x := y * 1.0, F.relu(x, inplace=True))[0],
    "silu in place, bound to the input": lambda y: (x := y * 1.0, F.silu(x, inplace=True))[0],
    "columns mul_": on_view(lambda y: y[:, :2], "mul_", 2.0),
    "row view add_": on_view(lambda y: y.view(-1, 2, 2), "add_", 0.5),
    "transposed mul_": on_view(lambda y: y.T, "mul_", 0.5),
    "chunk tanh_": on_view(lambda y: y.chunk(2, -1)[1], "tanh_"),
    "flat sin_": on_view(lambda y: y.flatten(), "sin_"),
    "unbound mul_": on_view(lambda y: y.unbind(1)[2], "mul_", 3.0),
    "iadd": augmented(iadd),
    "imul": augmented(imul),
    "isub on a view": augmented(isub_view),
}


def composed(seed):
    """A random map R^2 -> R^4, with its name."""
    rng = random.Random(seed)
    names = [rng.choice(list(OPS)) for _ in range(rng.randint(1, 3))]
    first = matrix(rng, M, WIDTH)
    mixes = [matrix(rng, WIDTH, WIDTH) for _ in names]
    offset = rng.choice([0.0, 0.0, 0.4])

    def f(z):
        y = z @ first + offset
        for name, mix in zip(names, mixes, strict=True):
            y = OPS[name](y) @ mix
        return torch.cat([z, y], -1)

    return f, f"{seed}: " + ", ".join(names)


def truth(f, z):
    """J and all second derivatives, one point at a time, by plain reverse mode twice."""
    single = lambda p: f(p[None])[0]  # noqa: E731
    j = torch.stack([jacobian(single, p) for p in z])
    h = torch.stack([jacobian(lambda q: jacobian(single, q, create_graph=True), p) for p in z])
    return j, h


def relative(a, b):
    return float((a - b).detach().abs().max() / (b.abs().max() + 1e-12))


def silently_wrong(seed):
    """What is wrong for one random map, nothing when every result is right or refused.

    And whether one was refused.
    """
    f, name = composed(seed)
    origin = torch.zeros(1, M, dtype=torch.float64)
    z = torch.randn(3, M, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    try:
        j, h = truth(f, z)
    except RuntimeError:  # autograd itself has no answer: nothing to compare with
        return [], False
    a = torch.randn(
        3, j.shape[1], generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64
    )
    v = z.flip(-1).contiguous()
    calls = {
        "jacobian": (lambda d, z: d.jacobian(z), j, 1e-8),
        "vjp": (lambda d, z: d.vjp(z, a[: len(z)])[1], torch.einsum("kdi,kd->ki", j, a), 1e-8),
        "gram": (
            lambda d, z: d.gram_product(z, v[: len(z)])[2],
            torch.einsum("kdi,kdj,kj->ki", j, j, v),
            1e-8,
        ),
        "hessian": (lambda d, z: d.hessian(z), h, 1e-6),
        "contraction": (
            lambda d, z: d.contraction(z, a[: len(z)]),
            torch.einsum("kdij,kd->kij", h, a),
            1e-6,
        ),
    }
    wrong, refused = [], False
    with torch.set_grad_enabled(seed % 2 == 0):
        d = Differential(f)
        for what, (call, expected, limit) in calls.items():
            try:
                call(d, origin)
                result = call(d, z)
            except (DifferentiationError, DecoderError):
                refused = True
                continue
            if (
                relative(result, expected) > limit
                and not float((result - expected).abs().max()) < 1e-10
            ):
                wrong.append(f"{name}: {what} off by {relative(result, expected):.2g}")
    return wrong, refused


@pytest.mark.parametrize("block", range(4))
def test_no_derivative_is_silently_wrong(block):
    count = 3 * TIMES
    wrong, refused = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # slower roads are announced, and not the matter here
        for seed in range(block * count, (block + 1) * count):
            found, no = silently_wrong(seed)
            wrong += found
            refused += no
    assert not wrong, "\n".join(wrong)
    assert refused <= 1 + count // 4, f"{refused} of {count} maps were refused"
