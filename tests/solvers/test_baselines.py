"""Adam, L-BFGS, cubic spline, GEORCE, shooting and scipy's BVP solver, with the same driver and
truths, report a correct status."""

import math

import pytest
import spaces
import torch

from riemae import Manifold, solvers
from riemae.exceptions import DTypeError, OptionError
from riemae.solvers import (
    BVP,
    GEORCE,
    LBFGS,
    Adam,
    CubicSpline,
    Curve,
    Newton,
    Shooting,
    Solver,
    Status,
)
from riemae.solvers.hooks import energy_and_gradient
from riemae.solvers.methods.georce import GEORCE as Georce

FAST = {
    "adam": Adam(),
    "lbfgs": LBFGS(),
    "spline": CubicSpline(),
    "spline, lbfgs": CubicSpline(segments=8, segments_per_piece=2, optimizer=LBFGS()),
    "georce": GEORCE(),
}
SLOW = {"bvp": BVP(), "shooting": Shooting()}
EVERY = {**FAST, **SLOW}
EASY = [
    known
    for known in spaces.CATALOGUE
    if known.name in ("sphere", "torus", "swiss roll", "poincaré disc")
]
AMBIENT = next(known for known in spaces.CATALOGUE if known.name == "half plane, ambient")


def each(solvers_by_name):
    return pytest.mark.parametrize("solver", solvers_by_name.values(), ids=solvers_by_name.keys())


def pairs(known, n=3, seed=0):
    return known.pairs(torch.Generator().manual_seed(seed), n)


def arc(angle, n=33):
    """The equator of the unit sphere in longitude and latitude."""
    u = torch.linspace(0, angle, n, dtype=torch.float64)
    return torch.stack([u, torch.zeros_like(u)], -1)


def polar(z):
    u, v = z.unbind(-1)
    return torch.stack([v.cos() * u.cos(), v.cos() * u.sin(), v.sin()], -1)


class TestTruths:
    @each(FAST)
    @pytest.mark.parametrize("known", [*EASY, AMBIENT], ids=lambda known: known.name)
    def test_float64(self, known, solver):
        z0, z1, d = pairs(known)
        r = solvers.geodesic(known.space(), z0, z1, rtol=1e-4, solver=solver)
        assert ((r.length - d).abs() <= 1e-4 * d).all()
        assert r.is_local_minimum.all()
        assert (r.lower_bound.isnan() | (r.lower_bound <= d)).all()

    @each(SLOW)
    def test_those_that_solve_the_equation(self, solver):
        known = EASY[2]  # the swiss roll
        z0, z1, d = pairs(known, 2)
        r = solvers.geodesic(known.space(), z0, z1, rtol=1e-4, solver=solver)
        assert (
            (r.length - d).abs() <= 1e-6 * d
        ).all()  # exact nodes leave the spline's error alone
        assert r.is_local_minimum.all()

    @each({name: FAST[name] for name in ("adam", "lbfgs", "georce")})
    def test_float32(self, solver):
        z0, z1, d = pairs(EASY[0])
        r = Manifold(spaces.sphere).geodesic(z0.float(), z1.float(), rtol=1e-3, solver=solver)
        assert r.length.dtype == torch.float32
        assert ((r.length - d).abs() <= 1e-3 * d).all()

    def test_error_estimates_hold_for_a_first_order_energy(self):
        z0, z1, d = pairs(EASY[0], 12)
        r = Manifold(spaces.sphere).geodesic(
            z0, z1, rtol=1e-3, solver=GEORCE(max_segments=16), throw=False
        )
        assert ((r.length - d).abs() <= 3 * r.error + 1e-12).all()

    def test_georce_solves_the_left_node_problem(self):
        # At the end the gradient of Σ uᵀ G(x) u, by autograd, is zero relative to that at the
        # start.
        half_plane = solvers.MetricSpace(spaces.half_plane_tensor)
        z0, z1 = torch.tensor([[0.0, 1.0]]).double(), torch.tensor([[1.0, 2.0]]).double()

        def gradient(nodes):
            nodes = nodes.detach().requires_grad_()
            u = nodes.diff(dim=1)
            energy = torch.einsum("pti,ptij,ptj->", u, half_plane.metric(nodes[:, :-1]), u)
            return torch.autograd.grad(energy, nodes)[0][:, 1:-1].norm()

        solver = Georce(segments=12)
        line = Curve.line(z0, z1, 12).nodes
        state = solver.begin(line)
        for _ in range(60):
            state = solver.step(half_plane, state, 1e-20)
        assert gradient(state.nodes) < 1e-8 * gradient(line)

    def test_georce_needs_one_step_where_the_metric_is_constant(self):
        flat = Manifold(spaces.affine)
        wild = Curve.line(torch.zeros(1, 2).double(), torch.ones(1, 2).double(), 8).nodes
        wild[0, 1:-1] += torch.linspace(-3, 5, 14).double().view(7, 2)
        state = GEORCE().step(flat, GEORCE().begin(wild), 1e-12)
        assert torch.allclose(state.nodes, Curve.line(wild[:, 0], wild[:, -1], 8).nodes, atol=1e-12)

    def test_gradient_of_the_energy(self):
        M = Manifold(spaces.torus).as_space()
        nodes = Curve.line(*pairs(EASY[1], 2)[:2], 8).nodes
        energy, gradient = energy_and_gradient(M, nodes)
        expansion = M.expand(nodes)
        assert torch.allclose(energy, expansion.energy)
        assert torch.allclose(gradient, expansion.gradient, atol=1e-12)

    def test_units_do_not_matter(self):
        z0, z1, d = pairs(EASY[0], 2)
        for scale in (1e-5, 1e5):
            for solver in (Adam(), LBFGS(), GEORCE()):
                r = Manifold(lambda z, c=scale: c * spaces.sphere(z)).geodesic(
                    z0, z1, solver=solver
                )
                assert torch.allclose(r.length, scale * d, rtol=1e-4)


class TestIndex:
    @each({"lbfgs": LBFGS(), "georce": GEORCE(), "bvp": BVP(), "shooting": Shooting()})
    def test_a_geodesic_that_does_not_minimise_is_reported_as_such(self, solver):
        # 1.1π of the equator is a saddle of the energy, and by symmetry none of these leaves it.
        curve = arc(1.1 * math.pi)
        r = Manifold(polar).geodesic(curve[0], curve[-1], init=curve, solver=solver)
        assert torch.allclose(r.length, torch.tensor(1.1 * math.pi, dtype=torch.float64), rtol=1e-4)
        assert int(r.index) == 1
        assert not bool(r.is_local_minimum)


class TestStatus:
    @each(FAST)
    def test_out_of_steps(self, solver):
        from dataclasses import replace

        z0, z1, _ = pairs(EASY[2])
        r = solvers.geodesic(
            EASY[2].space(), z0, z1, solver=replace(solver, max_steps=1), throw=False
        )
        assert (r.status == Status.MAX_STEPS).any()
        assert not r.converged[r.status == Status.MAX_STEPS].any()
        assert r.length.isfinite().all()

    @each(EVERY)
    def test_one_bad_pair_leaves_the_others_alone(self, solver):
        z0, z1, _ = pairs(EASY[3], 1)
        space = EASY[3].space()
        options = {"solver": solver, "rtol": 1e-2, "throw": False}
        alone = solvers.geodesic(space, z0, z1, **options)
        bad = torch.tensor([[torch.nan, 0.0]]).double()
        r = solvers.geodesic(space, torch.cat([z0, bad]), torch.cat([z1, z1]), **options)
        assert r.status.tolist() == [Status.CONVERGED, Status.INVALID_POINT]
        assert torch.allclose(r.length[0], alone.length[0], rtol=1e-10)

    @each(EVERY)
    def test_out_of_the_domain(self, solver):
        # The straight line leaves an annulus: log is NaN inside the unit circle.
        hole = Manifold(lambda z: torch.cat([z, (z.square().sum(-1, keepdim=True) - 1).log()], -1))
        z0, z1 = torch.tensor([[-2.0, 0.0]]).double(), torch.tensor([[2.0, 0.0]]).double()
        r = hole.geodesic(z0, z1, solver=solver, throw=False)
        assert r.status.tolist() == [Status.NON_FINITE]

    def test_singular_metric(self):
        flat = Manifold(lambda z: torch.stack([z.sum(-1), 2 * z.sum(-1), z.sum(-1) ** 2], -1))
        a, b = torch.zeros(1, 2).double(), torch.ones(1, 2).double()
        assert flat.geodesic(a, b, solver=GEORCE(), throw=False).status.tolist() == [
            Status.SINGULAR
        ]
        for solver in (BVP(), Shooting()):
            assert flat.geodesic(a, b, solver=solver, throw=False).status.tolist() == [
                Status.NON_FINITE
            ]

    def test_resolution(self):
        z0, z1, _ = pairs(EASY[0])
        r = Manifold(spaces.sphere).geodesic(
            z0, z1, rtol=1e-7, solver=GEORCE(max_segments=16), throw=False
        )
        assert (r.status == Status.RESOLUTION).any()

    def test_float32_says_when_it_can_no_more(self):
        z0, z1, _ = pairs(EASY[0])
        r = Manifold(spaces.sphere).geodesic(
            z0.float(), z1.float(), rtol=1e-9, solver=LBFGS(), throw=False
        )
        assert not r.converged.any()


class TestSettings:
    @pytest.mark.parametrize(
        ("make", "options"),
        [
            (Adam, {"learning_rate": 0.0}),
            (Adam, {"segments": 1}),
            (Adam, {"burst": 0}),
            (LBFGS, {"history": 0}),
            (LBFGS, {"max_steps": 0}),
            (GEORCE, {"segments": 32, "max_segments": 16}),
            (GEORCE, {"segments": 8.0}),
            (CubicSpline, {"segments": 10, "segments_per_piece": 4}),
            (CubicSpline, {"segments": 4, "segments_per_piece": 4}),
            (CubicSpline, {"segments_per_piece": 0}),
            (Shooting, {"segments": 8, "shots": 3}),
            (BVP, {"max_nodes": 0}),
        ],
    )
    def test_out_of_range(self, make, options):
        with pytest.raises(OptionError, match=make.__name__):
            make(**options)

    @each(EVERY)
    def test_all_follow_the_protocol(self, solver):
        assert isinstance(solver, Solver)
        with pytest.raises(AttributeError):  # frozen
            solver.segments = 3

    def test_what_is_no_solver(self):
        with pytest.raises(DTypeError, match="solver"):
            Manifold(spaces.sphere).geodesic(torch.zeros(1, 2), torch.ones(1, 2), solver="newton")

    def test_one_shot(self):
        z0, z1, d = pairs(EASY[3], 1)
        r = solvers.geodesic(EASY[3].space(), z0, z1, rtol=1e-3, solver=Shooting(shots=1))
        assert torch.allclose(r.length, d, rtol=1e-4)

    def test_search_with_another_solver(self):
        z0, z1, d = pairs(EASY[3], 2)
        r = solvers.geodesic(EASY[3].space(), z0, z1, solver=LBFGS(), n_starts=3)
        assert torch.allclose(r.length, d, rtol=1e-4)
        assert r.alternatives.length.shape == (1, 2)

    def test_newton_needs_fewer_steps(self):
        z0, z1, _ = pairs(EASY[2])
        steps = [
            int(solvers.geodesic(EASY[2].space(), z0, z1, solver=s).stats["steps"].max())
            for s in (Newton(), LBFGS(), Adam())
        ]
        assert steps == sorted(steps)
