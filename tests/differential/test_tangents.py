"""Chains of functions of single numbers, joined tensors, and what they cost: against autograd."""

import pytest
import torch
from spaces import rand
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from riemae.differential.derivatives import Differential
from riemae.differential.jets import Jet
from riemae.differential.modes import Taylor
from riemae.differential.rules.elementwise import of_single_numbers
from riemae.differential.tape import Pairs, Tape
from riemae.distributions.special import arsinh_exp, root

WIDE, BACK = rand(torch.Generator().manual_seed(0), 2, 3, 7)
Z = rand(torch.Generator().manual_seed(1), 4, 3)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def first(z):
    return z @ WIDE.to(z)


def split_again(z):
    x = torch.cat([first(z), torch.ones(len(z), 2).to(z), first(z).exp()], -1)
    left, constant, right = x.reshape(len(z), 16).split([7, 2, 7], -1)
    return left * right + constant.sum(-1, keepdim=True)


def joined_twice(z):
    x = first(z)
    inner = torch.cat([x, torch.ones(len(z), 2).to(z), x.exp()], -1)
    return torch.cat([inner, x.sin(), inner[:, :3]], -1) * 2


def inner_written_before_it_is_joined(z):
    inner = torch.cat([first(z), first(z).exp()], -1)
    inner.mul_(3)
    return torch.cat([inner, first(z).sin()], -1).tanh()


def written_in_between(z):
    left = first(z) + 0
    x = torch.cat([left, first(z)], 1)
    left.mul_(3)
    a, b = x.chunk(2, 1)
    return a * b + left.sin()


# Each is elementwise after a product, in whole or in part.
CHAINS = {
    "one": lambda z: first(z).sin(),
    "several": lambda z: (first(z).sin().exp() * 2 - 1).tanh() / 3,
    "minus": lambda z: 1 - first(z).exp(),
    "two branches": lambda z: first(z).sin() + first(z).cos(),
    "branches of one root": lambda z: (lambda x: x.sin() * x.exp() - x.cos())(first(z)),
    "root and branch": lambda z: (lambda x: x * torch.sigmoid(1.7 * x) + x)(first(z)),
    "root minus branch": lambda z: (lambda x: x - 2 * x.tanh())(first(z)),
    "square of a chain": lambda z: (lambda y: y * y)(first(z).sin()),
    "read twice": lambda z: (lambda y: y.cos() + (y @ BACK.to(z).T) @ WIDE.to(z))(first(z).sin()),
    "read, then continued": lambda z: (lambda y: y.sum(-1, keepdim=True) * y.exp())(first(z).sin()),
    "weights per number": lambda z: first(z).sin() * WIDE[0].to(z) / BACK[0].to(z).exp(),
    "broadcast": lambda z: first(z).sin()[:, :1] * first(z).sin(),
    "in place": lambda z: first(z).sin().mul_(2).add_(1).exp_(),
    "joined and split": split_again,
    "joined twice": joined_twice,
    "inner written before it is joined": inner_written_before_it_is_joined,
    "divided first": lambda z: (first(z) / 3).sin() - (first(z) / -2).exp(),
    "written in between": written_in_between,
    "single numbers": lambda z: arsinh_exp(3 * first(z)) + root(first(z).exp()),
}


def by_autograd(f, z):
    """Jacobian and Hessian ``(k, D, m)`` and ``(k, D, m, m)`` of one row after the other."""
    row = lambda x: f(x[None])[0]  # noqa: E731
    jacobian = torch.stack([torch.func.jacrev(row)(x) for x in z])
    second = torch.stack([torch.func.jacrev(torch.func.jacrev(row))(x) for x in z])
    return jacobian, second


@pytest.mark.parametrize("name", CHAINS)
class TestChains:
    def test_derivatives_are_those_of_autograd(self, name):
        f = CHAINS[name]
        jacobian, second = by_autograd(f, Z)
        map_ = Differential(f)
        _, j, h = map_.second_jet(Z)
        assert_close(j, jacobian, **EXACT)
        assert_close(h, second, **EXACT)
        covector = rand(torch.Generator().manual_seed(2), *f(Z).shape)
        x, j, form = map_.expansion(Z, lambda _: covector)
        assert_close(x, f(Z), **EXACT)
        assert_close(j, jacobian, **EXACT)
        assert_close(form, torch.einsum("kd,kdij->kij", covector, second), **EXACT)
        modes, _ = map_.modes(Z)
        assert all(type(mode) is Taylor for mode in modes.values())

    def test_they_can_be_differentiated_again(self, name):
        f = CHAINS[name]
        start = Z.clone().requires_grad_()
        _, j, h = Differential(f).second_jet(start)
        probe = rand(torch.Generator().manual_seed(3), *h.shape)
        number = (probe * h).sum() + (probe[..., 0] * j).sum()
        (ours,) = torch.autograd.grad(number, start)
        again = Z.clone().requires_grad_()
        jacobian, second = by_autograd(f, again)
        number = (probe * second).sum() + (probe[..., 0] * jacobian).sum()
        (theirs,) = torch.autograd.grad(number, again)
        assert_close(ours, theirs, **EXACT)


class Wide(TorchDispatchMode):
    """Counts operations whose result holds all tangents of a tensor."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        views = ("view", "expand", "detach", "slice", "split")
        if isinstance(out, torch.Tensor) and out.shape == self.shape:
            self.count += not any(name in str(func) for name in views)
        return out


def passes(f):
    """How many operations write all tangents ``(3, 4, 7)``."""
    tape = Tape(False, len(Z))
    directions = torch.eye(3).double()[:, None].expand(3, 4, 3)
    with torch.no_grad(), Wide((3, 4, 7)) as seen:
        _ = f(Jet(Z, directions, None, tape)).first
    return seen.count


def test_a_chain_meets_the_tangents_once():
    product = passes(first)
    for name in ("one", "several", "branches of one root", "root and branch"):
        assert passes(CHAINS[name]) == product + 1, name
    assert passes(lambda z: arsinh_exp(first(z))) == product + 1
    assert passes(lambda z: (first(z) / 3).sin()) == product + 1
    assert passes(lambda z: (first(z) * 3).sin()) == product + 1


def test_what_was_joined_is_joined_further_without_another_copy():
    tape = Tape(False, len(Z))
    directions = torch.eye(3).double()[:, None].expand(3, 4, 3)
    with torch.no_grad():
        x = first(Jet(Z, directions, None, tape))
        with Wide((3, 4, 14)) as inner, Wide((3, 4, 21)) as outer:
            two = torch.cat([x, x.exp()], -1)
            tangents = torch.cat([two, x.sin()], -1).first
        assert (inner.count, outer.count) == (0, 1)
        assert torch.equal(tangents[..., :14], two.first)


class TestReverseMode:
    """Functions of single numbers with a closed form are one operation there, too."""

    A = torch.tensor([-60.0, -3.0, 0.0, 0.4, 19.5, 20.5, 80.0]).double()
    X = torch.tensor([1e-3, 0.3, 1.0, 40.0]).double()

    @pytest.mark.parametrize(("f", "x"), [(arsinh_exp, A), (root, X)])
    def test_derivatives_of_every_order(self, f, x):
        x = x.clone().requires_grad_()
        assert len(f(x).grad_fn.next_functions) == 1
        assert f(x).grad_fn.next_functions[0][0].name().endswith("AccumulateGrad")
        middle = x[1:4].detach().requires_grad_()
        assert torch.autograd.gradcheck(f, middle)
        assert torch.autograd.gradgradcheck(f, middle)

    def test_far_from_the_middle(self):
        a = self.A.clone().requires_grad_()
        (slope,) = torch.autograd.grad(arsinh_exp(a).sum(), a, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), a)
        decay = (-2 * self.A).exp()
        assert_close(slope, (1 + decay).rsqrt(), rtol=1e-12, atol=0)
        assert_close(bend, decay * (1 + decay) ** -1.5, rtol=1e-12, atol=0)
        transformed = torch.func.vmap(torch.func.grad(arsinh_exp))(self.A)
        assert_close(transformed, (1 + decay).rsqrt(), rtol=1e-12, atol=0)

    def test_the_edge_of_a_root_has_no_derivative_and_spoils_none(self):
        x = torch.tensor([0.0, 4.0]).double().requires_grad_()
        (slope,) = torch.autograd.grad(root(x).sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x)
        assert slope.tolist() == [0.0, 0.25]
        assert bend.tolist() == [0.0, -1 / 32]


def test_what_was_joined_is_split_without_a_copy():
    def joined(z):
        x = torch.cat([first(z), torch.ones(len(z), 2).to(z)], -1)
        return x.split([7, 2], -1)[0]

    assert passes(joined) == passes(first)


def test_nothing_is_kept_once_it_was_asked_for():
    tape = Tape(False, len(Z), Pairs.all(3))
    directions = torch.eye(3).double()[:, None].expand(3, 4, 3)
    jet = Jet(Z, directions, None, tape).sin().exp()
    assert jet.tangents.link is not None
    assert jet.second.shape == (6, 4, 3)
    assert jet.tangents.link is None
    assert jet.first is jet.first


def test_a_function_of_single_numbers_is_itself_on_tensors():
    @of_single_numbers()
    def cube(x):
        """Of numbers."""
        return x * x.square()

    assert cube.__doc__ == "Of numbers."
    assert_close(cube(Z), Z**3)
    _, j, h = Differential(lambda z: cube(first(z))).second_jet(Z)
    jacobian, second = by_autograd(lambda z: first(z) ** 3, Z)
    assert_close(j, jacobian, **EXACT)
    assert_close(h, second, **EXACT)


def test_one_function_between_products_has_the_bits_of_the_plain_rule():
    x = first(Z)
    _, j, h = Differential(lambda z: F.silu(first(z)) @ BACK.to(z).T).second_jet(Z)
    s = x.sigmoid()
    t = s - s * s
    slope = torch.addcmul(s, x, t)
    bend = t * torch.addcmul(x.new_full((), 2.0), x, 1 - 2 * s)
    directions = torch.eye(3).double()[:, None].expand(3, 4, 3)
    tangents = directions @ WIDE
    column = (slope * tangents) @ BACK.T
    assert torch.equal(j, column.movedim(0, -1))
    pairs = Pairs.all(3)
    products = torch.stack(
        [(bend * tangents[i]) * tangents[k] for i, k in zip(pairs.i, pairs.j, strict=True)]
    )
    assert_close(h, pairs.full((products @ BACK.T).movedim(0, -1)), **EXACT)
