"""Least energies of curves in their start: against dense matrices of automatic differentiation."""

import pytest
import torch
from torch import nn

from riemae import Manifold, ambient
from riemae.solvers import Curve, MetricSpace
from riemae.solvers.fans import Fan

F64 = torch.float64


def decoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 6))
    return net.double().requires_grad_(False)


def curved(x):
    return torch.eye(x.shape[-1]).to(x) * (1 + x.square().sum(-1))[:, None, None]


def diagonal(z):
    return torch.diag_embed(1 + z.square()) + 0.1


SPACES = {
    "network": Manifold(decoder()),
    "ambient metric": Manifold(decoder(), ambient.Custom(matrix=curved)),
    "metric tensor": MetricSpace(diagonal),
}


def bent(n, seed=0):
    """Curves from one point that are no geodesics."""
    source = torch.Generator().manual_seed(seed)
    start = torch.full((4, 3), 0.2, dtype=F64)
    stop = torch.randn(4, 3, generator=source, dtype=F64)
    nodes = Curve.line(start, stop, n).nodes.clone()
    noise = torch.randn(4, n - 1, 3, generator=source, dtype=F64)
    nodes[:, 1:-1] += 0.02 * noise
    return nodes


def dense(space, nodes):
    """Energy, gradient and Hessian in all nodes but the last."""
    n = nodes.shape[1] - 1
    moving = nodes[:, :-1].clone().requires_grad_()
    curves = torch.cat([moving, nodes[:, -1:]], 1)
    energy = n * space.squared_chords(curves).sum(-1)
    (slope,) = torch.autograd.grad(energy.sum(), moving, create_graph=True)
    flat = slope.flatten(1)
    rows = [
        torch.autograd.grad(flat[:, i].sum(), moving, retain_graph=True)[0].flatten(1)
        for i in range(flat.shape[1])
    ]
    return energy.detach(), flat.detach(), torch.stack(rows, 1)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("n", [2, 5])
def test_as_dense(name, n):
    nodes = bent(n)
    space = SPACES[name]
    space = space.as_space(nodes) if isinstance(space, Manifold) else space
    energy, slope, hessian = dense(space, nodes)
    fan = Fan.of(space, nodes)
    m = 3
    inner = hessian[:, m:, m:]
    link = hessian[:, :m, m:]
    column = slope[:, m:, None]
    solved = torch.linalg.solve(inner, torch.cat([link.mT, column], -1))
    torch.testing.assert_close(fan.energy, energy)
    torch.testing.assert_close(fan.hessian, hessian[:, :m, :m] - link @ solved[..., :m])
    reduced = slope[:, :m] - (link @ solved[..., m:])[..., 0]
    torch.testing.assert_close(fan.gradient, reduced, rtol=1e-6, atol=1e-9)
    gain = (column.mT @ solved[..., m:])[:, 0, 0] / 2
    torch.testing.assert_close(fan.gain, gain, rtol=1e-6, atol=1e-12)
    start = torch.arange(12.0, dtype=F64).view(4, 3)
    wanted = -(solved[..., m:] + solved[..., :m] @ start[..., None])[..., 0]
    steps = fan.steps(start)
    torch.testing.assert_close(steps[:, 1:-1].flatten(1), wanted)
    assert torch.equal(steps[:, 0], start)
    assert not steps[:, -1].any()
    responses = fan.responses()
    torch.testing.assert_close(responses[:, 1:-1].flatten(1, 2), -solved[..., :m])
    assert torch.equal(responses[:, 0], torch.eye(3, dtype=F64).expand(4, 3, 3))


def test_slide():
    """The derivative where all nodes go along with the start, against differences."""
    nodes = bent(6)
    space = SPACES["network"].as_space(nodes)
    fan = Fan.of(space, nodes)
    step = torch.tensor([1e-5, -2e-5, 1e-5], dtype=F64)
    taper = torch.linspace(1, 0, 7, dtype=F64)[:, None]
    there, back = (
        6 * space.squared_chords(nodes + sign * taper * step).sum(-1) for sign in (1, -1)
    )
    torch.testing.assert_close(fan.slide @ step, (there - back) / 2, rtol=1e-6, atol=0)


def test_chunks_and_indefinite_curves(monkeypatch):
    """Curves around the sphere the long way: no minimum, so Gauss-Newton takes over."""

    def sphere(z):
        a, b = z.unbind(-1)
        return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)

    space = Manifold(sphere).as_space()
    stop = torch.tensor([[0.0, 5.5], [0.0, 0.7], [0.1, 5.8]], dtype=F64)
    nodes = Curve.line(torch.zeros_like(stop), stop, 8).nodes
    fan = Fan.of(space, nodes)
    assert fan.definite.tolist() == [False, True, False]
    assert fan.regular.all()
    monkeypatch.setattr("riemae.solvers.fans._BYTES", 1)
    torch.testing.assert_close(Fan.of(space, nodes).steps(stop), fan.steps(stop))


@pytest.mark.parametrize("name", SPACES)
def test_again(name):
    """Second derivatives stay, gradients are those of the curves that have moved."""
    nodes = bent(5)
    moved = nodes.clone()
    moved[:, :-1] += 0.01 * torch.randn(4, 5, 3, generator=torch.Generator(), dtype=F64)
    space = SPACES[name]
    space = space.as_space(nodes) if isinstance(space, Manifold) else space
    fan = Fan.of(space, nodes)
    same = fan.again(space, nodes)
    torch.testing.assert_close(same.gradient, fan.gradient)
    torch.testing.assert_close(same.rests, fan.rests)
    found = fan.again(space, moved)
    _, _, hessian = dense(space, nodes)
    energy, slope, _ = dense(space, moved)
    solved = torch.linalg.solve(hessian[:, 3:, 3:], slope[:, 3:, None])
    torch.testing.assert_close(found.energy, energy)
    reduced = slope[:, :3] - (hessian[:, :3, 3:] @ solved)[..., 0]
    torch.testing.assert_close(found.gradient, reduced, rtol=1e-6, atol=1e-9)
    gain = (slope[:, None, 3:] @ solved)[:, 0, 0] / 2
    torch.testing.assert_close(found.gain, gain, rtol=1e-6, atol=1e-12)
    assert torch.equal(found.hessian, fan.hessian)


def test_finer():
    """Along lines of a quadratic map Jacobians are linear: what is interpolated is exact."""

    def quadratic(z):
        a, b, c = z.unbind(-1)
        return torch.cat([z, torch.stack([a * b, b * c, a * a - c * c], -1)], -1)

    space = Manifold(quadratic).as_space()
    stop = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    lines = Curve.line(torch.full_like(stop, 0.2), stop, 4)
    gaps = []
    for n in (4, 8):
        fine = lines.knots(2 * n)
        found = Fan.of(space, lines.knots(n)).finer(space, fine).expansion
        wanted = Fan.of(space, fine).expansion
        torch.testing.assert_close(found.energy, wanted.energy)
        torch.testing.assert_close(found.gradient, wanted.gradient)
        torch.testing.assert_close(found.gauss_newton.diagonal, wanted.gauss_newton.diagonal)
        torch.testing.assert_close(found.gauss_newton.upper, wanted.gauss_newton.upper)
        ours, theirs = found.correction.diagonal, wanted.correction.diagonal
        torch.testing.assert_close(ours[:, 1:], theirs[:, 1:], rtol=1e-6, atol=1e-9)
        gaps.append(ours[:, 0] - theirs[:, 0])
    # The force on the start is its chord, exact to first order.
    torch.testing.assert_close(gaps[1], gaps[0] / 2)
    tensor = SPACES["metric tensor"]
    assert Fan.of(tensor, lines.nodes).finer(tensor, lines.knots(8)) is None
