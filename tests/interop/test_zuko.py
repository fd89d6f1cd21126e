"""Flows of zuko as decoders; without zuko, a stand-in with its interface."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from riemae.exceptions import DTypeError
from riemae.interop import zuko as bridge

try:
    import zuko
except ImportError:
    zuko = None


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Affine:
    """``x -> (x − shift) / scale`` with a bend, as a transform of torch and zuko."""

    def __init__(self, scale, shift):
        self.scale, self.shift = scale, shift

    @property
    def inv(self):
        return lambda z: (
            torch.cat([z[:, :1], z[:, 1:] * self.scale + z[:, :1].sin()], 1) + (self.shift)
        )


class StandIn(nn.Module):
    """The interface of ``zuko.flows.Flow``: called with a context, it returns a distribution."""

    def __init__(self, context=0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.net = nn.Linear(context, 2).double() if context else None
        self.transform = self.base = None

    def forward(self, c=None):
        shift = 0.0 if c is None else self.net(c)
        scale = self.scale if c is None else self.scale + shift[:, :1].square()
        base = torch.distributions.MultivariateNormal(
            torch.zeros(2).double(), torch.eye(2).double()
        )
        return SimpleNamespace(transform=Affine(scale, shift), base=base)


def flows():
    found = {"stand-in": (StandIn(), StandIn(3))}
    if zuko is not None:
        torch.manual_seed(0)
        small = {"transforms": 2, "hidden_features": (8, 8)}
        for kind in (zuko.flows.NSF, zuko.flows.MAF):
            found[kind.__name__] = kind(2, **small).double(), kind(2, 3, **small).double()
    return found


@pytest.fixture(params=flows(), scope="module")
def pair(request):
    return flows()[request.param]


def test_jacobian_and_volume(pair):
    flow, _ = pair
    M, z = bridge.manifold(flow), draw(4, 2)
    with torch.no_grad():
        torch.testing.assert_close(M.decode(z), flow().transform.inv(z))
    j = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda p: flow().transform.inv(p[None])[0], p)
            for p in z
        ]
    )
    torch.testing.assert_close(M.metric(z), j.mT @ j)
    if hasattr(flow(), "log_prob"):  # change of variables
        x = flow().transform.inv(z)
        change = flow().base.log_prob(z) - flow().log_prob(x)
        torch.testing.assert_close(M.log_volume(z), change.detach(), rtol=1e-6, atol=1e-8)


def test_geodesics_are_straight_in_the_data(pair):
    """The base space is flat under the Euclidean metric of the data."""
    flow, _ = pair
    M = bridge.manifold(flow)
    a, b = draw(2, 2, seed=1), draw(2, 2, seed=2)
    r = M.geodesic(a, b, rtol=1e-3, throw=False)
    chord = (M.decode(a) - M.decode(b)).norm(dim=1)
    torch.testing.assert_close(r.length.detach(), chord, rtol=2e-3, atol=0)


def test_context_of_a_conditional_flow(pair):
    _, flow = pair
    z, c = draw(3, 2), draw(3, seed=5)
    one = bridge.manifold(flow, c)
    with torch.no_grad():
        expected = flow(c.expand(3, 3)).transform.inv(z)
    torch.testing.assert_close(one.decode(z), expected)
    many = bridge.manifold(flow)
    torch.testing.assert_close(many.metric(z, condition=c[None]), one.metric(z))


def test_the_flow_is_copied_and_other_things_are_refused(pair):
    flow, _ = pair
    M = bridge.manifold(flow.train())
    assert flow.training
    assert all(p.requires_grad for p in flow.parameters())
    assert not any(p.requires_grad for p in M.decoder.parameters())
    with pytest.raises(DTypeError, match="a flow of zuko"):
        bridge.manifold(nn.Linear(2, 2))
    with pytest.raises(DTypeError, match="context as a tensor"):
        bridge.manifold(flow, [1.0, 2.0])
