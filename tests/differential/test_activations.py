"""Activations in Taylor mode against torch's own derivatives, and differentiated once and twice
more."""

import pytest
import spaces
import torch
from torch import nn
from torch.func import jvp

from riemae import Manifold
from riemae.differential import activations
from riemae.differential.activations import KNOWN, Activation
from riemae.differential.derivatives import Differential
from riemae.differential.tape import Pairs

OPS = {"silu": nn.functional.silu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
PAIRS = Pairs.all(2)
BOTH = list(zip(PAIRS.i, PAIRS.j, strict=True))


def draw(*shape, seed=0):
    return spaces.rand(
        torch.Generator().manual_seed(seed), *shape, low=-2.0, high=2.0
    ).requires_grad_()


def slope_of(f):
    return lambda x: jvp(f, (x,), (torch.ones_like(x),))[1]


def test_every_activation_is_tested():
    assert set(OPS) == set(KNOWN)


@pytest.mark.parametrize("name", OPS)
class TestChainRule:
    def arguments(self, carried=True):
        return draw(3, 4), draw(2, 3, 4, seed=1), draw(3, 3, 4, seed=2) if carried else None

    def test_derivatives_are_those_of_forward_mode(self, name):
        x = draw(50).detach()
        base = OPS[name](x) if KNOWN[name].of_output else x
        f = OPS[name]
        for order, derivative in enumerate(KNOWN[name].derivatives(base, 3)):
            f = slope_of(f)
            assert torch.allclose(derivative, f(x), rtol=1e-12, atol=1e-14), order

    @pytest.mark.parametrize("carried", [True, False])
    def test_second_derivatives_along_pairs(self, name, carried):
        x, first, second = self.arguments(carried)
        y, slopes, bends = Activation.apply(KNOWN[name], OPS[name], BOTH, x, first, second)
        one = slope_of(OPS[name])
        two = slope_of(one)
        expected = torch.stack([two(x) * first[i] * first[j] for i, j in BOTH])
        expected = expected + (one(x) * second if carried else 0)
        assert torch.equal(y, OPS[name](x))
        assert torch.allclose(slopes, one(x) * first, rtol=1e-12)
        assert torch.allclose(bends, expected, rtol=1e-11, atol=1e-13)

    @pytest.mark.parametrize("carried", [True, False])
    @pytest.mark.parametrize("pairs", [BOTH, [(0, 1)], None])
    def test_gradients_and_their_gradients(self, name, pairs, carried):
        carried = carried and pairs is not None
        x, first, second = self.arguments(carried)
        inputs = (
            (x, first, second[: len(pairs)].detach().requires_grad_()) if carried else (x, first)
        )

        def call(x, first, second=None):
            return Activation.apply(KNOWN[name], OPS[name], pairs, x, first, second)

        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)

    def test_each_result_alone(self, name):
        # Results that nobody uses send no gradient back.
        x, first, second = self.arguments()
        for which in range(3):
            alone = lambda *inputs, which=which: Activation.apply(KNOWN[name], OPS[name], BOTH, *inputs)[
                which
            ]  # noqa: E731
            used = (x,) if which == 0 else (x, first) if which == 1 else (x, first, second)
            rest = tuple(t.detach() for t in (x, first, second))[len(used) :]
            assert torch.autograd.gradcheck(
                lambda *inputs, rest=rest, alone=alone: alone(*inputs, *rest), used
            )


class TestInTaylorMode:
    def test_it_is_used_where_gradients_are_wanted_and_changes_no_number(self, monkeypatch):
        f = nn.Sequential(
            nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)
        ).double()
        z, v = draw(4, 2), draw(4, 2, seed=1)
        calls = []
        apply = Activation.apply
        monkeypatch.setattr(
            Activation, "apply", lambda *args: calls.append(args[0]) or apply(*args)
        )

        def results():
            d = Differential(f)
            x, j, second = d.second_jet(z)
            loss = second.square().sum() + j.sin().sum() + d.gram_product(z, v)[2].square().sum()
            return (
                x,
                j,
                second,
                *torch.autograd.grad(loss, [z, v, *f.parameters()], materialize_grads=True),
            )

        fused = results()
        assert {KNOWN["silu"], KNOWN["tanh"]} == set(calls)
        calls.clear()
        with torch.no_grad():
            Differential(f).second_jet(z)
        assert not calls
        monkeypatch.setattr(activations, "usable", lambda *tensors: False)
        for ours, theirs in zip(fused, results(), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-13)
        assert not calls

    def test_transforms_of_the_caller_go_their_own_way(self):
        f = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 4)).double()
        M, z = Manifold(f), draw(3, 2).detach()
        one_by_one = torch.func.vmap(lambda p: M.metric(p[None])[0])(z)
        assert torch.allclose(one_by_one, M.metric(z), rtol=1e-11)
        slopes = torch.func.jacrev(lambda p: M.metric(p[None])[0])(z[0])
        expected = torch.autograd.functional.jacobian(lambda p: M.metric(p[None])[0], z[0])
        assert torch.allclose(slopes, expected, rtol=1e-10)
