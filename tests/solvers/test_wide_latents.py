"""Many latent dimensions by default: gradients first, metrics that are nearly singular, costs."""

import pytest
import torch
from torch import nn

from riemae import Manifold, solvers
from riemae.solvers import Status
from riemae.solvers.budget import limited
from riemae.solvers.choice import (
    GRADIENTS_FROM,
    WHOLE_DOWN_TO,
    WHOLE_DOWN_TO_ELSE,
    WHOLE_FROM,
)
from riemae.solvers.path_metric import PathMetric
from riemae.solvers.space import space_of

F64 = torch.float64


def network(*widths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for a, b in zip(widths, widths[1:], strict=False):
        linear = nn.Linear(a, b, dtype=F64).requires_grad_(False)
        linear.weight.copy_(a**-0.5 * torch.randn(b, a, generator=generator))
        linear.bias.copy_(a**-0.5 * torch.randn(b, generator=generator))
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def points(n, m, seed=2):
    return torch.randn(2, n, m, generator=torch.Generator().manual_seed(seed), dtype=F64)


def descended(net, z0, z1, segments=64, steps=400):
    """Lengths of curves that Adam has found, by nothing but torch: inscribed in 16 times as many
    points of straight pieces, so that it is theirs within 1e-4.
    """
    t = torch.linspace(0, 1, segments + 1, dtype=F64)[1:-1, None]
    inner = (z0[:, None] + t * (z1 - z0)[:, None]).requires_grad_()
    ends = z0[:, None], z1[:, None]
    optimizer = torch.optim.Adam([inner], 0.03)
    for _ in range(steps):
        optimizer.zero_grad()
        x = net(torch.cat([ends[0], inner, ends[1]], 1))
        x.diff(dim=1).square().sum().backward()
        optimizer.step()
    nodes = torch.cat([ends[0], inner.detach(), ends[1]], 1)
    share = torch.arange(16, dtype=F64)[:, None] / 16
    fine = nodes[:, :-1, None] + share * nodes.diff(dim=1)[:, :, None]
    every = torch.cat([fine.flatten(1, 2), ends[1]], 1)
    return net(every).diff(dim=1).norm(dim=-1).sum(-1)


class TestNearlySingularMetrics:
    """MLPs m → m → m → 4m, whose metrics have conditions of 1e10 and more."""

    @pytest.mark.parametrize("m", [64, 128])
    @pytest.mark.parametrize("dtype", [F64, torch.float32])
    def test_converge_and_are_no_longer_than_what_is_known(self, m, dtype):
        net = network(m, m, m, 4 * m)
        z0, z1 = points(2, m)
        known = descended(net, z0, z1)
        M = Manifold(net).to(dtype=dtype)
        r = M.geodesic(z0.to(dtype), z1.to(dtype), rtol=1e-2, throw=False)
        assert r.status.tolist() == [Status.CONVERGED] * 2
        assert bool((r.length.double() <= (1 + 1e-2) * known).all())
        assert bool((r.length >= r.lower_bound * (1 - 1e-5)).all())

    def test_what_is_not_done_says_so(self):
        m = 64
        net = network(m, m, m, 4 * m)
        z0, z1 = points(2, m)
        solver = solvers.QuasiNewton(max_steps=60)
        r = Manifold(net).geodesic(z0, z1, rtol=1e-4, solver=solver, throw=False)
        known = descended(net, z0, z1)
        assert r.status.tolist() == [Status.MAX_STEPS] * 2
        assert bool((r.error >= r.length - known).all())


def test_gradients_first_from_some_dimensions_on():
    for m, index in ((GRADIENTS_FROM - 1, 0), (GRADIENTS_FROM, -1)):
        M = Manifold(network(m, 32, 48))
        z0, z1 = points(1, m)
        assert M.geodesic(z0, z1, rtol=WHOLE_DOWN_TO / 2).index.tolist() == [index]


@pytest.mark.parametrize(
    ("dtype", "down_to"),
    [(torch.float64, WHOLE_DOWN_TO), (torch.float32, WHOLE_DOWN_TO_ELSE)],
    ids=["double", "single"],
)
def test_whole_curves_first_but_for_the_last_digits(dtype, down_to):
    for m in (WHOLE_FROM - 1, WHOLE_FROM, GRADIENTS_FROM - 1):
        for rtol in (1e-2, down_to, down_to / 2):
            M = Manifold(network(m, 32, 48)).to(dtype=dtype)
            z0, z1 = points(1, m).to(dtype)
            r = M.geodesic(z0, z1, rtol=rtol, n_starts=1)
            whole = m >= WHOLE_FROM and rtol >= down_to
            same = M.geodesic(z0, z1, rtol=rtol, solver=solvers.Newton(whole=whole))
            other = M.geodesic(z0, z1, rtol=rtol, solver=solvers.Newton(whole=not whole))
            assert torch.equal(r.curve.nodes, same.curve.nodes)
            assert not torch.equal(r.curve.nodes, other.curve.nodes)


@pytest.mark.parametrize(("m", "most"), [(8, 1.3), (32, 1.2)])
def test_cost_in_sweeps(m, most):
    # A sweep is the value and m tangents at 17 points.
    pairs = 4
    M = Manifold(network(m, 128, 256))
    z0, z1 = points(pairs, m)
    with limited("geodesic", 10**9, None) as budget:
        r = M.geodesic(z0, z1, rtol=1e-3)
    assert bool(r.converged.all())
    assert budget.used <= most * (1 + m) * 17 * pairs


@pytest.mark.parametrize("m", [24, 80])
def test_alone_and_in_a_batch(m):
    M = Manifold(network(m, 64, 128))
    z0, z1 = points(3, m)
    together = M.geodesic(z0, z1, rtol=1e-3)
    for k in range(3):
        alone = M.geodesic(z0[k : k + 1], z1[k : k + 1], rtol=1e-3)
        assert torch.equal(alone.length[0], together.length[k])
        assert torch.equal(alone.curve.nodes[0], together.curve.nodes[k])


class TestMeanMetric:
    def metric(self):
        M = Manifold(network(5, 16, 12))
        z0, z1 = points(2, 5)
        t = torch.linspace(0, 1, 9, dtype=F64)[:, None]
        nodes = z0[:, None] + t * (z1 - z0)[:, None]
        mean = M.metric(nodes[:, [2, 6]]).mean(1)
        return PathMetric.exact(space_of(M, z0, z1), nodes), mean

    def test_is_that_of_two_places(self):
        found, mean = self.metric()
        whole = found.basis @ found.values.diag_embed() @ found.basis.mT
        torch.testing.assert_close(whole, mean, rtol=1e-9, atol=1e-12)

    def test_a_share_of_its_mean_is_added(self):
        found, mean = self.metric()
        share = torch.tensor([0.0, 0.1], dtype=F64)
        raised = found.raised(share)
        whole = raised.basis @ raised.values.diag_embed() @ raised.basis.mT
        trace = mean.diagonal(dim1=1, dim2=2).mean(1)
        more = (share * trace)[:, None, None] * torch.eye(5, dtype=F64)
        torch.testing.assert_close(whole, mean + more, rtol=1e-9, atol=1e-12)
