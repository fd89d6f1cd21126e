"""Rules of matrices, scans, norms, sums and writing in place, against torch.autograd.functional.

Each map runs in Taylor mode alone: value, Jacobian, second derivatives, and ``a·∂²f``; derivatives
of the second derivative are differences of it.
"""

import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from riemae.differential.modes import MODES, basis
from riemae.differential.rules.generic import watched
from riemae.differential.tape import Pairs

K, M = 3, 4
C = torch.linspace(0.3, 1.1, 12, dtype=torch.float64).view(3, 4)
MODE = MODES[0]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def square(z):
    return 2 * torch.eye(2).to(z) + 0.4 * z.sin().view(-1, 2, 2)


def definite(z):
    a = z.view(-1, 2, 2)
    return torch.eye(2).to(z) + 0.5 * a @ a.mT


MATRICES = {
    "inv": lambda z: torch.linalg.inv(square(z)).flatten(1),
    "inverse, by method": lambda z: square(z).inverse().flatten(1),
    "det": lambda z: torch.linalg.det(square(z))[:, None],
    "det, by torch": lambda z: z * torch.det(square(z))[:, None],
    "logdet": lambda z: z * torch.logdet(definite(z))[:, None],
    "slogdet": lambda z: torch.linalg.slogdet(-square(z))[1][:, None] + z.sin(),
    "solve": lambda z: torch.linalg.solve(square(z), z.view(-1, 2, 2)).flatten(1),
    "solve, vectors": lambda z: torch.linalg.solve(square(z), z[:, :2].sin()),
    "solve, one vector": lambda z: torch.linalg.solve(square(z), C[0, :2]),
    "solve, from the right": lambda z: torch.linalg.solve(
        square(z), z.view(-1, 2, 2), left=False
    ).flatten(1),
    "solve, a constant matrix": lambda z: torch.linalg.solve(
        square(C[:1]), z.sin().view(-1, 2, 2)
    ).flatten(1),
    "cholesky": lambda z: torch.linalg.cholesky(definite(z)).flatten(1),
    "points behind another axis": lambda z: (
        torch.linalg.inv(torch.stack([square(z), definite(z)])).transpose(0, 1).flatten(1)
    ),
}
SCANS = {
    "prod": lambda z: z.sin().view(-1, 2, 2).prod(-1) * (1 + z).prod(1, keepdim=True),
    "cumprod": lambda z: (1 + z / 2).cumprod(-1),
    "cumprod with a zero": lambda z: (z * C.new_tensor([1, 0, 1, 1])).cumprod(-1),
    "logcumsumexp": lambda z: torch.logcumsumexp(z.sin(), -1),
    "logcumsumexp, another axis": lambda z: z.square().view(-1, 2, 2).logcumsumexp(1).flatten(1),
    "logaddexp": lambda z: torch.logaddexp(z[:, :2, None], z[:, None, 2:].sin()).flatten(1),
    "logaddexp2": lambda z: torch.logaddexp2(z, z.square()),
}
WRITES = {
    "a column": lambda z: written(z, (slice(None), 1), lambda z: z[:, 0] * z[:, 2]),
    "columns": lambda z: written(z, (slice(None), slice(0, 2)), lambda z: z[:, 2:].sin()),
    "broadcast": lambda z: written(z, (..., [0, 3]), lambda z: z[:, 1:2].exp()),
    "a constant": lambda z: written(z, (slice(None), 2), lambda z: 0.5),
    "a tensor": lambda z: written(z, (slice(None), [3, 1]), lambda z: C[0, :2]),
    "a mask": lambda z: written(z, z > 0.2, lambda z: 0.2),
    "lists apart": lambda z: written(
        torch.stack([z, z.sin()], 1).unflatten(2, (2, 2)),
        (slice(None), [0, 1], slice(None), [1, 0]),
        lambda y: y[:, 0, :, 0].square(),
    ).flatten(1),
    "twice": lambda z: written(
        written(z, (slice(None), 0), lambda z: z[:, 1].sin()),
        (slice(None), 3),
        lambda y: y[:, 0].square(),
    ),
    "addcmul_": lambda z: (z * 1.0).addcmul_(z.sin(), z.cos(), value=0.4),
    "lerp_": lambda z: (z * 1.0).lerp_(z.sin(), 0.4),
    "masked_fill_": lambda z: (z * 1.0).masked_fill_(z > 0.5, 0.5).sin(),
    "index_add_": lambda z: (z * 1.0).index_add_(1, torch.tensor([2, 0]), z[:, :2].sin()),
    "scatter_": lambda z: z.sin().scatter_(1, torch.tensor([[2], [0], [1]])[: len(z)], z[:, 3:]),
    "dropout in evaluation": lambda z: nn.Dropout(0.4, inplace=True).eval()(z.sin()),
}
OTHERS = {
    "sums with a factor": lambda z: (
        torch.add(z, z.sin(), alpha=0.3)
        - torch.sub(C[0], z.square(), alpha=2)
        + torch.rsub(z.cos(), z, alpha=0.7)
        + torch.add(z, C[1], alpha=3)
    ),
    "randomised ReLU in evaluation": lambda z: F.rrelu(z).sin(),
    "steps": lambda z: z.sin() * z.sgn() + z.frac() * z + torch.nan_to_num(z.square()),
    "remainders": lambda z: (z % 0.7) * z + torch.fmod(z, 0.6) * z.sin(),
    "signs of constants": lambda z: torch.copysign(z.sin(), C[0]) * z,
    "moments": lambda z: torch.cat(
        [*torch.var_mean(z, -1, keepdim=True), *torch.std_mean(z.sin(), 1, keepdim=True)], 1
    ),
    "norms": lambda z: torch.stack(
        [
            torch.linalg.norm(z, dim=-1),
            torch.linalg.norm(z.view(-1, 2, 2), dim=(1, 2)),
            torch.linalg.matrix_norm(z.sin().view(-1, 2, 2)),
            F.pairwise_distance(z, z.sin() + 1),
        ],
        -1,
    ),
    "vectors": lambda z: torch.cat(
        [
            torch.linalg.vecdot(z, z.sin())[:, None],
            torch.linalg.cross(z[:, :3], z[:, 1:].square()),
            torch.linalg.multi_dot([z.sin(), C.T, C]),
        ],
        -1,
    ),
    "flat": lambda z: (z.sin().ravel().view(-1, 4) * z).unsafe_chunk(2, 1)[1],
}
MAPS = MATRICES | SCANS | WRITES | OTHERS


def written(z, place, value):
    y = z * 1.0
    y[place] = value(z)
    return y


def truth(f, z):
    """Value, Jacobian and second derivatives, point by point."""

    def single(p):
        return f(p[None])[0]

    def slope(p):
        return jacobian(single, p, create_graph=True)

    x = f(z)
    j = torch.stack([jacobian(single, p) for p in z])
    h = torch.stack([jacobian(slope, p) for p in z])
    return x, j, h


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", MAPS)
def test_all_derivatives_are_those_of_autograd(name):
    f = MAPS[name]
    z = draw(K, M, seed=3)
    if name == "scatter_":  # its places are per point
        z = z[:1]
    x, j, h = truth(f, z)
    a = draw(1, *x.shape, seed=7)
    pairs = Pairs.all(M)
    with watched() as generic:
        for graph in (False, True):
            with MODE.active(True):
                value, first, second = MODE.forward(f, z, basis(z), pairs, graph)
                out, _, forms = MODE.expansion(f, z, lambda x, j: a, graph)
            close(value.detach(), x)
            close(out.detach(), x)
            close(first.detach().movedim(0, -1), j)
            close(pairs.full(second.detach().movedim(0, -1)), h)
            close(forms.detach(), torch.einsum("kdij,skd->skij", h, a))
    unruled = {"index_add", "scatter", "linalg_solve"}  # linear in two, or one: forward mode
    assert set(generic) <= unruled


@pytest.mark.parametrize("name", [*MATRICES, *SCANS, *OTHERS])
def test_second_derivatives_are_differentiable(name):
    f = MAPS[name]
    z = draw(K, M, seed=3)
    w = draw(*f(z).shape, seed=9)
    v = draw(1, K, M, seed=10)

    def second(z):
        with MODE.active(True):
            return (w * MODE.forward(f, z, v, Pairs([0], [0]), True)[2][0]).sum()

    point = z.clone().requires_grad_()
    (slope,) = torch.autograd.grad(second(point), point)
    e = draw(K, M, seed=11)
    step = 1e-5
    difference = float(second(z + step * e) - second(z - step * e)) / (2 * step)
    assert math.isclose(float((slope * e).sum()), difference, rel_tol=1e-6, abs_tol=1e-6)


def test_running_sums_of_exponentials_are_right_where_autograd_is_not():
    """Its second derivative lacks entries along covectors with zeros."""

    def running(z):
        rows = [z[:, : i + 1].logsumexp(-1) for i in range(M)]
        return torch.stack(rows, -1)

    z = draw(K, M, seed=3)
    x, j, h = truth(lambda z: running(running(2 * z)), z)
    pairs = Pairs.all(M)
    with MODE.active(True):
        value, first, second = MODE.forward(
            lambda z: torch.logcumsumexp(torch.logcumsumexp(2 * z, -1), -1),
            z,
            basis(z),
            pairs,
            False,
        )
    close(value, x)
    close(first.movedim(0, -1), j)
    close(pairs.full(second.movedim(0, -1)), h)


def test_a_place_that_other_tensors_share_is_not_written_to():
    def f(z):
        y = z * 1.0
        part = y[:, :2]
        y[:, 0] = z[:, 1]
        return y + part.sum()

    z = draw(K, M)
    with pytest.raises(NotImplementedError, match="other tensors share"):
        MODE.forward(f, z, basis(z), None, False)


def test_a_constant_is_not_written_to():
    def f(z):
        y = torch.zeros_like(z)
        y[:, 0] = z[:, 1]
        return y

    z = draw(K, M)
    with pytest.raises(NotImplementedError, match="does not support Taylor mode"):
        MODE.forward(f, z, basis(z), None, False)
