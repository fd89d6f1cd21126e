"""Reverse mode by torch.autograd alone: the numbers of autograd, all directions together."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian

from riemae.differential.derivatives import Differential
from riemae.differential.modes import PLAIN, basis
from riemae.differential.tape import Pairs
from riemae.exceptions import FallbackWarning

F64 = torch.float64


class Tanh(torch.autograd.Function):
    """In the old style: neither forward mode nor torch.func take it."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, g):
        Tanh.calls += 1
        (y,) = ctx.saved_tensors
        return g * (1 - y * y)


class Choosy(Tanh):
    """Its backward decides on values, which vmap does not take."""

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors
        return g * (1 - y * y) if bool((g.abs() < torch.inf).all()) else g


def layers(m, outputs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = nn.Linear(m, 7).double(), nn.Linear(7, outputs).double()
    return first.requires_grad_(False), last.requires_grad_(False)


@pytest.mark.parametrize("activation", [Tanh, Choosy])
@pytest.mark.parametrize(("m", "outputs"), [(2, 5), (6, 3), (6, 2), (3, 1), (1, 4)])
class TestNumbers:
    def points(self, m):
        return torch.randn(4, m, generator=torch.Generator().manual_seed(1), dtype=F64)

    def test_all_orders_are_those_of_autograd(self, activation, m, outputs):
        first, last = layers(m, outputs)

        def f(z):
            return last(activation.apply(first(z)))

        def g(z):
            return last(first(z).tanh())

        z = self.points(m)
        pairs = Pairs.all(m)
        x, j, second = PLAIN.forward(f, z, basis(z), pairs, False)
        a = torch.linspace(-1, 1, outputs, dtype=F64)
        _, _, forms = PLAIN.expansion(f, z, lambda x, j: a.expand_as(x)[None], False)
        for i, point in enumerate(z):
            torch.testing.assert_close(x[i], g(point))
            true = jacobian(g, point)
            torch.testing.assert_close(j[:, i].T, true, rtol=1e-12, atol=1e-14)
            for d in range(outputs):
                bent = hessian(lambda p, d=d: g(p)[d], point)
                found = pairs.full(second[:, i, d])
                torch.testing.assert_close(found, bent, rtol=1e-11, atol=1e-14)
            bent = hessian(lambda p: a @ g(p), point)
            torch.testing.assert_close(forms[0, i], bent, rtol=1e-11, atol=1e-14)

    def test_results_are_differentiated_again(self, activation, m, outputs):
        first, last = layers(m, outputs)
        z = self.points(m).requires_grad_()
        d = Differential(lambda z: last(activation.apply(first(z))))
        with pytest.warns(FallbackWarning):
            size = d.jacobian(z).square().sum()
        (found,) = torch.autograd.grad(size, z)
        smooth = Differential(lambda z: last(first(z).tanh()))
        (true,) = torch.autograd.grad(smooth.jacobian(z).square().sum(), z)
        torch.testing.assert_close(found, true, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("m", "outputs", "most"), [(16, 50, 2), (16, 3, 1)])
def test_backward_passes_do_not_grow_with_the_directions(m, outputs, most):
    first, last = layers(m, outputs)
    z = torch.randn(4, m, generator=torch.Generator().manual_seed(1), dtype=F64)
    Tanh.calls = 0
    PLAIN.forward(lambda z: last(Tanh.apply(first(z))), z, basis(z), None, False)
    assert Tanh.calls <= most
