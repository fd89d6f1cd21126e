"""Steps that follow a damped one with its matrix: how they are taken, and what they save."""

import numpy as np
import pytest
import torch
from torch import nn
from watching import watch

from riemae import Manifold
from riemae.solvers import MetricSpace
from riemae.solvers.methods import newton_sweep
from riemae.solvers.model import Look, QuadraticModel, Secants


def steep(gain):
    """A network whose landscape has several valleys, and points of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(8, 128), nn.Tanh(), nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 64)]
        for layer in layers[::2]:
            layer.weight.data *= gain
    net = nn.Sequential(*layers).double().requires_grad_(False)
    return Manifold(net), torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1)).double()


def curved(z):
    """A metric under which long straight lines do not minimise."""
    factor = torch.exp(-2 * z.square().sum(-1))
    return (0.1 + factor)[:, None, None] * torch.eye(2).to(z)


@pytest.fixture
def model():
    """Of three curves, of which the first and the last have an indefinite Hessian."""
    line = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    through = line * torch.tensor([1.5, 0.0]).double()
    beside = through + torch.tensor([0.0, 3.0]).double()
    off = 0.02 * torch.sin(3 * line) * torch.tensor([0.0, 1.0]).double()
    nodes = torch.stack([through + off, beside + off, 1.1 * through - off])
    expansion = MetricSpace(curved).expand(nodes)
    unseen = np.zeros(3, dtype=bool)
    found = QuadraticModel.of(Look.at(expansion, unseen), reused=unseen, fresh=~unseen)
    assert found.indefinite.tolist() == [True, False, True]
    return found


class TestDamped:
    def dense(self, model, row, damping):
        blocks = model.gauss_newton.diagonal[row]
        shift = torch.block_diag(*(damping * blocks))
        place = int(model.place[row])
        matrix = model.absolute[place] if place >= 0 else model.matrix.dense()[row]
        return matrix + shift

    @pytest.mark.parametrize("rows", [[0, 1, 2], [1], [0, 2], [1, 2]])
    def test_steps_solve_the_damped_system(self, model, rows):
        rows = np.array(rows)
        damping = np.array([0.1, 0.0, 2.0])[rows]
        gradient = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(2)).double()[rows]
        found = model.damped(damping, rows).step(gradient)
        for row, mu, g, step in zip(rows, damping, gradient, found, strict=True):
            expected = torch.linalg.solve(self.dense(model, row, mu), -g.flatten())
            assert torch.allclose(step.flatten(), expected, rtol=1e-9)

    def test_curves_that_leave_change_nothing_for_the_rest(self, model):
        gradient = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(2)).double()
        damped = model.damped(np.array([0.1, 0.2, 0.3]), np.arange(3))
        every = damped.newton(gradient, np.arange(3))
        rest = damped.newton(gradient[[0, 2]], np.array([0, 2]))
        assert torch.equal(rest, every[[0, 2]])

    def test_secants_correct_it(self, model):
        rows = np.arange(3)
        step = 0.1 * torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(3)).double()
        change = 7 * step
        secants = Secants(model.damped(np.full(3, 0.5), rows), rows)
        secants.add(step, change)
        found, _ = secants.newton(change)
        assert torch.allclose(found, -step, rtol=1e-9)


def spent(manifold, ends, monkeypatch):
    """The result, and how many curves were expanded with second derivatives, and differentiated."""
    seen = {"expansions": 0, "gradients": 0}

    def expand(nodes, second_order=True):
        seen["expansions"] += second_order * len(nodes)

    def energy_and_gradient(nodes):
        seen["gradients"] += len(nodes)

    with monkeypatch.context() as patch:
        watch(patch, expand=expand, energy_and_gradient=energy_and_gradient)
        return manifold.geodesic(*ends, rtol=1e-3), seen


class TestPursuit:
    def test_gradients_take_the_place_of_expansions(self, monkeypatch):
        manifold, ends = steep(5.0)
        found, cost = spent(manifold, ends, monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(newton_sweep.Sweep, "_pursue", lambda self, rows, start, used: None)
            known, dear = spent(manifold, ends, monkeypatch)
        assert found.converged.all()
        assert known.converged.all()
        # Of six such sets of pairs, 0.73 to 0.80.
        assert cost["expansions"] <= 0.9 * dear["expansions"]
        # An expansion costs about as much as eight gradients at m = 8. There 0.93 to 0.97.
        price = 8 * cost["expansions"] + cost["gradients"]
        assert price < 8 * dear["expansions"] + dear["gradients"]
        # No longer curves come of it.
        assert (found.length <= known.length + known.error + found.error).all()

    def test_a_smooth_network_is_not_concerned(self, monkeypatch):
        manifold, ends = steep(1.0)
        called = []
        true = newton_sweep.Sweep._pursue
        monkeypatch.setattr(
            newton_sweep.Sweep,
            "_pursue",
            lambda self, rows, *rest: (called.extend(rows), true(self, rows, *rest))[1],
        )
        assert manifold.geodesic(*ends, rtol=1e-3).converged.all()
        assert not called
