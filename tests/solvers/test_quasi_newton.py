"""The quasi-Newton path solver: truths, what it costs, secants on finer levels, and how it ends."""

from dataclasses import replace

import numpy as np
import pytest
import spaces
import torch
from flat_spaces import FLAT_ONTO
from torch import nn

from riemae import Manifold, solvers
from riemae.solvers import Newton, NewtonCG, QuasiNewton, Status
from riemae.solvers.budget import limited, metered
from riemae.solvers.hooks import energy_and_gradient
from riemae.solvers.path_metric import laplacian, sampled_metric
from riemae.solvers.space import space_of

F64 = torch.float64
HONEST = [k for k in FLAT_ONTO if k.name in ("sine .2 m=2", "quintic m=2", "linear 1e3 m=5")]


def network(*widths, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for a, b in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(a, b), nn.SiLU()]
        return nn.Sequential(*layers[:-1]).double().requires_grad_(False)


def points(n, m, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, m, generator=generator, dtype=F64)


class TestTruths:
    @pytest.mark.parametrize("known", [*spaces.CATALOGUE, *HONEST], ids=lambda known: known.name)
    @pytest.mark.parametrize("rtol", [1e-2, 1e-4, 1e-6])
    def test_closed_forms(self, known, rtol):
        z0, z1, d = known.draw(8, seed=5)
        r = solvers.geodesic(known.space(), z0, z1, rtol=rtol, solver=QuasiNewton(), throw=False)
        off = (r.length - d).abs()
        assert bool(r.converged.all())
        assert bool((off <= rtol * d).all())
        assert bool((off <= 10 * r.error + 1e-9 * d).all())
        assert bool((r.index == -1).all())

    @pytest.mark.parametrize("known", spaces.CATALOGUE[:4], ids=lambda known: known.name)
    def test_in_single_precision(self, known):
        z0, z1, d = known.draw(8, seed=5, dtype=torch.float32)
        r = solvers.geodesic(known.space(), z0, z1, rtol=1e-3, solver=QuasiNewton())
        assert r.length.dtype == torch.float32
        assert bool(((r.length.double() - d).abs() <= 1e-3 * d).all())

    def test_many_dimensions_take_a_sketch(self):
        m = 80
        M = Manifold(network(m, 96, 160))
        z0, z1 = points(2, m)
        exact = M.geodesic(z0, z1, rtol=1e-6, solver=NewtonCG())
        r = M.geodesic(z0, z1, rtol=1e-4, solver=QuasiNewton())
        torch.testing.assert_close(r.length, exact.length, rtol=1e-4, atol=0)

    def test_rough_maps_converge_or_say_that_they_do_not(self):
        for known in (k for k in FLAT_ONTO if k.name in ("sine .45 m=3", "coupling m=5")):
            z0, z1, d = known.draw(6, seed=3)
            r = solvers.geodesic(
                known.space(), z0, z1, rtol=1e-2, solver=QuasiNewton(), throw=False
            )
            wrong = r.converged & ((r.length - d).abs() > 1e-2 * d)
            assert not bool(wrong.any())


def decodings(M, z0, z1, solver, rtol):
    """What a call costs, with derivatives, in values of the decoder."""
    with limited("geodesic", 10**9, None) as budget:
        space = metered(space_of(M, z0, z1), budget)
        solvers.geodesic(space, z0, z1, solver=solver, rtol=rtol)
        return budget.used


def test_wide_latent_spaces_cost_a_fraction_of_newton():
    m = 32
    M = Manifold(network(m, 64, 100))
    z0, z1 = points(3, m)
    newton, quasi = (decodings(M, z0, z1, s, 1e-3) for s in (Newton(), QuasiNewton()))
    assert quasi < newton / 2


class Costly:
    """A space that says of itself that second derivatives cost too much."""

    METHODS = (
        "metric norm acceleration squared_chords expand residual ambient_distance embedded "
        "energy_and_gradient velocities"
    )

    def __init__(self, space, points):
        inner = space_of(space, points)
        for name in self.METHODS.split():
            setattr(self, name, getattr(inner, name))

    def gradients_only(self, z):
        return True


def flat(name):
    return next(k for k in FLAT_ONTO if k.name == name)


class TestNewtonTakesOver:
    """Where second derivatives cost too much, and the method of first order is stuck at kinks."""

    def both(self, name, rows, **options):
        z0, z1, d = (x[rows] for x in flat(name).draw(8, seed=5))
        space = Costly(flat(name).space(), z0)
        alone = solvers.geodesic(space, z0, z1, rtol=1e-2, solver=QuasiNewton(), throw=False)
        r = solvers.geodesic(space, z0, z1, rtol=1e-2, throw=False, **options)
        return alone, r, d

    @pytest.mark.parametrize("name", ["leaky m=8"])
    def test_what_was_left_converges(self, name):
        alone, r, d = self.both(name, [0, 1, 6])
        stuck = ~alone.converged
        assert bool(stuck.any())
        assert bool((alone.index == -1).all())
        assert bool(r.converged.all())
        assert torch.equal(r.index >= 0, stuck)
        assert torch.equal(r.length[~stuck], alone.length[~stuck])
        assert bool(((r.length - d).abs() <= 1e-2 * d).all())

    def test_what_nobody_solves_is_the_shorter_of_both(self):
        alone, r, d = self.both("leaky m=2", [5, 6])
        left = r.status == Status.MAX_STEPS
        assert int(left.sum()) == 1
        assert bool(r.length[left] < alone.length[left])
        assert bool(((r.length - d)[left] <= 10 * r.error[left]).all())

    def test_with_several_starts(self):
        _, r, d = self.both("rational-quadratic m=5", [1], n_starts=2)
        assert bool(r.converged.all())
        assert bool(((r.length - d).abs() <= 1e-2 * d).all())


class TestPreconditioner:
    def test_is_the_hessian_where_the_metric_is_constant(self):
        matrix = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
        M = Manifold(lambda z: z @ matrix.T)
        z0, z1 = points(2, 3)
        t = torch.linspace(0, 1, 9, dtype=F64)[:, None]
        nodes = z0[:, None] + t * (z1 - z0)[:, None]
        space = space_of(M, z0, z1)
        found = laplacian(sampled_metric(space, nodes), 8).dense()
        expected = space.expand(nodes, second_order=True).hessian.dense()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

    def test_one_step_ends_on_an_affine_map(self):
        M = Manifold(nn.Linear(3, 5).double())
        z0, z1 = points(4, 3)
        t = torch.linspace(0, 1, 9, dtype=F64)[:, None]
        bent = z0[:, None] + (t + 0.3 * t * (1 - t)) * (z1 - z0)[:, None]
        r = M.geodesic(z0, z1, init=bent, solver=QuasiNewton())
        assert int(r.stats["steps"].max()) <= 4
        torch.testing.assert_close(
            r.length, (M.decode(z0) - M.decode(z1)).norm(dim=-1), rtol=1e-6, atol=0
        )

    def test_the_metric_varies_along_the_curve(self):
        M = Manifold(lambda z: torch.cat([z, z.square()], -1))
        nodes = torch.linspace(0, 8, 9, dtype=F64)[None, :, None].expand(1, 9, 2)
        g = sampled_metric(space_of(M, nodes[:, 0]), nodes)
        seen = 1 + 4 * torch.tensor([1.0, 3, 5, 7], dtype=F64) ** 2
        torch.testing.assert_close(g[0, :, 0, 0], seen)
        between = laplacian(g, 8).upper[0, :, 0, 0] / -16
        middle = torch.arange(1, 7, dtype=F64) + 0.5
        assert bool(((between - 1 - 4 * middle.square()).abs() <= 4.01).all())


class TestSecants:
    def state(self):
        M = Manifold(network(2, 16, 6))
        z0, z1 = points(3, 2)
        space = space_of(M, z0, z1)
        t = torch.linspace(0, 1, 9, dtype=F64)[:, None]
        nodes = z0[:, None] + t * (z1 - z0)[:, None]
        nodes = nodes + 0.1 * torch.sin(3 * t) * t * (1 - t)
        solver = QuasiNewton()
        state = solver.begin(nodes)
        for _ in range(3):
            state = solver.step(space, state, 0.0)
        return space, solver, state

    def test_are_differences_of_gradients(self):
        space, _, state = self.state()
        before = state.nodes.clone()
        before[:, 1:-1] -= state.moves[:, 0]
        _, old = energy_and_gradient(space, before)
        torch.testing.assert_close(state.changes[:, 0], state.gradient - old, rtol=1e-9, atol=1e-12)

    def test_hold_on_finer_levels(self):
        """A move of a smooth curve changes its gradient there as the handed on secant says."""
        space, _, state = self.state()
        fine = interpolated(state.nodes)
        new = state.refined(fine, np.zeros(3, dtype=bool))
        moved = fine.clone()
        moved[:, 1:-1] += new.moves[:, 0]
        change = energy_and_gradient(space, moved)[1] - energy_and_gradient(space, fine)[1]
        off = (change - new.changes[:, 0]).flatten(1).norm(dim=1)
        assert bool((off < 0.2 * change.flatten(1).norm(dim=1)).all())

    def test_are_forgotten_where_nodes_were_placed_anew(self):
        _, _, state = self.state()
        anew = np.array([True, False, False])
        new = state.refined(interpolated(state.nodes), anew)
        assert not bool(new.moves[0].any())
        assert bool(new.moves[1].any())

    def test_no_step_raises_the_energy(self):
        space, solver, state = self.state()
        for _ in range(8):
            next_state = solver.step(space, state, 0.0)
            assert bool((next_state.energy <= state.energy * (1 + 1e-12)).all())
            state = next_state


def interpolated(nodes):
    fine = nodes.new_zeros(len(nodes), 2 * nodes.shape[1] - 1, nodes.shape[2])
    fine[:, ::2] = nodes
    fine[:, 1::2] = (nodes[:, 1:] + nodes[:, :-1]) / 2
    return fine


class TestEnds:
    def test_a_trial_outside_the_domain_is_shortened(self):
        # The metric ends at y = 0, which long steps cross.
        space = solvers.MetricSpace(
            lambda z: torch.eye(2).to(z) / z[..., 1:2, None].clamp(min=0) ** 2
        )
        z0 = torch.tensor([[-3.0, 0.1], [0.0, 1.0]], dtype=F64)
        z1 = torch.tensor([[3.0, 0.1], [1.0, 2.0]], dtype=F64)
        gap = (z1 - z0).square().sum(-1)
        d = torch.acosh(1 + gap / (2 * z0[:, 1] * z1[:, 1]))
        r = solvers.geodesic(space, z0, z1, rtol=1e-3, solver=QuasiNewton())
        torch.testing.assert_close(r.length, d, rtol=1e-3, atol=0)

    def test_a_curve_through_nan(self):
        space = solvers.MetricSpace(
            lambda z: torch.eye(2).to(z) / torch.where(z[..., :1, None].abs() < 0.1, torch.nan, 1.0)
        )
        z0 = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=F64)
        z1 = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=F64)
        r = solvers.geodesic(space, z0, z1, solver=QuasiNewton(), throw=False)
        assert r.status.tolist() == [Status.NON_FINITE, Status.CONVERGED]

    def test_without_a_metric(self):
        M = Manifold(lambda z: 0 * z + 1)
        z0, z1 = points(1, 2)
        solver = QuasiNewton()
        state = solver.begin(interpolated(torch.stack([z0, z1], 1)))
        state = solver.step(space_of(M, z0, z1), state, 1e-6)
        assert state.status.tolist() == [Status.SINGULAR]

    def test_unused_dimensions_are_no_obstacle(self):
        net = network(2, 16, 6)
        full, thin = Manifold(lambda z: net(z[:, :2])), Manifold(net)
        z0, z1 = points(3, 4)
        r = full.geodesic(z0, z1, rtol=1e-4, solver=QuasiNewton())
        expected = thin.distance(z0[:, :2], z1[:, :2], rtol=1e-6)
        torch.testing.assert_close(r.length, expected, rtol=1e-4, atol=0)

    def test_steps_are_limited(self):
        M = Manifold(network(2, 32, 8))
        solver = QuasiNewton(max_steps=2)
        r = M.geodesic(*points(4, 2), rtol=1e-6, solver=solver, throw=False)
        assert bool((r.stats["steps"] <= 2).all())
        assert bool((r.status == Status.MAX_STEPS).all())

    def test_alone_and_in_a_batch(self):
        M = Manifold(network(6, 32, 20))
        z0, z1 = points(5, 6)
        together = M.geodesic(z0, z1, rtol=1e-4, solver=QuasiNewton())
        for k in range(5):
            alone = M.geodesic(z0[k : k + 1], z1[k : k + 1], rtol=1e-4, solver=QuasiNewton())
            assert torch.equal(alone.length[0], together.length[k])
            assert torch.equal(alone.curve.nodes[0], together.curve.nodes[k])

    def test_settings_are_kept_in_a_frozen_object(self):
        assert replace(QuasiNewton(), history=3).history == 3
