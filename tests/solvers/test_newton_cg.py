"""Matrix-free Newton: closed forms in many dimensions, agreement with Newton and dense matrices, no
m × m array."""

import math
from dataclasses import replace

import pytest
import spaces
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from riemae import Manifold, ambient, solvers
from riemae.exceptions import FallbackWarning, NotConvergedError, OptionError
from riemae.solvers import Curve, MetricSpace, Newton, NewtonCG, Solver, Status
from riemae.solvers.choice import MATRIX_FREE_FROM
from riemae.solvers.hooks import products
from riemae.solvers.krylov import truncated_cg
from riemae.solvers.path_metric import PathMetric
from riemae.solvers.space import space_of


def draws(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mlp(m, width=64, out=100, seed=0):
    gaussian = torch.Generator().manual_seed(seed)
    sizes = [m, width, width, out]
    weights = [
        torch.randn(b, a, generator=gaussian, dtype=torch.float64) / math.sqrt(a)
        for a, b in zip(sizes, sizes[1:], strict=False)
    ]

    def decoder(z):
        first, second, last = (w.to(z) for w in weights)
        return torch.tanh(torch.tanh(z @ first.T) @ second.T) @ last.T

    return decoder


def ball_tensor(z):
    """Poincaré's ball of any dimension, curvature −1."""
    return torch.eye(z.shape[-1]).to(z) * 4 / (1 - z.square().sum(-1))[..., None, None] ** 2


def two_spheres(z):
    """Stereographic charts of S³² and of S³¹ with radius 2, side by side."""
    return torch.cat([spaces.sphere(z[..., :32]), spaces.sphere(z[..., 32:], 2.0)], -1)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


class TestProducts:
    @pytest.mark.parametrize("known", spaces.CATALOGUE, ids=lambda known: known.name)
    def test_with_the_hessian_and_gauss_newton_as_matrices(self, known):
        z0, z1, _ = known.pairs(torch.Generator().manual_seed(0), 3)
        nodes = Curve.line(z0, z1, 7).nodes
        nodes[:, 1:-1] += 0.01 * draws(1, *nodes[:, 1:-1].shape)
        space = space_of(known.space(), z0)
        expansion, ours = space.expand(nodes), products(space, nodes)
        v = draws(2, *nodes[:, 1:-1].shape)
        close = {
            "rtol": 1e-10,
            "atol": 1e-10 * float(expansion.gauss_newton.diagonal.detach().abs().max()),
        }
        assert torch.allclose(ours.energy, expansion.energy, rtol=1e-12)
        assert torch.allclose(ours.gradient, expansion.gradient, **close)
        assert torch.allclose(ours.hessian(v), expansion.hessian.product(v), **close)
        if ours.gauss_newton is not None:
            assert torch.allclose(ours.gauss_newton(v), expansion.gauss_newton.product(v), **close)

    def test_manifolds_bring_gauss_newton_and_a_bare_metric_does_not(self):
        nodes = draws(0, 2, 5, 3) / 10
        assert products(Manifold(spaces.sphere).as_space(), nodes).gauss_newton is not None
        assert products(MetricSpace(ball_tensor), nodes).gauss_newton is None

    def test_a_constant_decoder(self):
        nodes = draws(0, 2, 5, 3)
        ours = Manifold(lambda z: torch.ones_like(z) + 0 * z.detach()).as_space().products(nodes)
        v = torch.ones(2, 3, 3).double()
        assert ours.hessian(v).abs().max() == ours.gauss_newton(v).abs().max() == 0


class TestConjugateGradients:
    """Against dense linear algebra in float64."""

    @pytest.fixture
    def problem(self):
        M, nodes = Manifold(mlp(6)).as_space(), draws(0, 3, 6, 6)
        local = products(M, nodes)
        matrix = M.expand(nodes, False).gauss_newton.dense()
        metric = PathMetric.sketched(M, nodes, 4)
        far = torch.full((3,), 1e9).double()
        return M, nodes, local, matrix, metric, far

    def run(self, problem, radius, forcing=1e-12, matrix=None):
        M, nodes, local, dense, metric, _ = problem
        chosen = dense if matrix is None else matrix

        def product(rows):
            return lambda v: (chosen[rows] @ v.flatten(1)[..., None])[..., 0].view_as(v)

        small = torch.full_like(radius, forcing)
        return truncated_cg(product, metric, local.gradient, radius, small, 0 * small, 200)

    def test_they_solve_the_system(self, problem):
        _, _, local, matrix, _, far = problem
        out = self.run(problem, far)
        exact = -torch.linalg.solve(matrix, local.gradient.flatten(1))
        assert torch.allclose(out.step.flatten(1), exact, rtol=1e-8, atol=1e-10)
        assert torch.allclose(out.gain, -(local.gradient.flatten(1) * exact).sum(1) / 2, rtol=1e-10)
        assert torch.allclose(
            out.bend, (exact * (matrix @ exact[..., None])[..., 0]).sum(1), rtol=1e-8
        )
        assert not out.bounded.any()
        assert not out.negative.any()

    def test_the_trust_region_ends_them_on_its_boundary(self, problem):
        _, _, local, matrix, metric, far = problem
        whole = self.run(problem, far)
        out = self.run(problem, whole.norm / 3)
        assert out.bounded.all()
        # The norm by its definition: ⟨s, M s⟩ with M s from the dense inverse of the
        # preconditioner.
        eye = torch.eye(out.step[0].numel()).double().view(-1, *out.step.shape[1:])
        for i in range(3):
            inverse = metric.select(torch.full((len(eye),), i)).solve(eye).flatten(1)
            s = out.step[i].flatten()
            size = (s @ torch.linalg.solve(inverse, s)).sqrt()
            assert torch.allclose(size, whole.norm[i] / 3, rtol=1e-8)
        assert (out.gain > 0).all()
        assert (out.gain < whole.gain).all()

    def test_negative_curvature_is_followed_to_the_boundary(self, problem):
        *_, matrix, _, far = problem
        shifted = matrix - 1.5 * torch.linalg.eigvalsh(matrix)[:, -1, None, None] * torch.eye(
            matrix.shape[-1]
        )
        out = self.run(problem, torch.ones(3).double(), matrix=shifted)
        assert out.negative.all()
        assert out.bounded.all()
        assert torch.allclose(out.norm, torch.ones(3).double(), rtol=1e-10)
        assert (out.gain > 0).all()

    def test_few_products_where_the_metric_is_constant(self):
        # GN = 2n T ⊗ G: with a complete sketch the preconditioner is its inverse.
        M = Manifold(lambda z: z @ draws(5, 5, 9).to(z)).as_space()
        nodes = draws(0, 2, 9, 5)
        local, metric = products(M, nodes), PathMetric.sketched(M, nodes, 5)
        assert torch.allclose(
            metric.solve(local.hessian(local.gradient)), local.gradient, rtol=1e-6, atol=1e-6
        )

    def test_a_pair_is_solved_as_if_it_were_alone(self, problem):
        M, nodes, local, matrix, metric, far = problem
        together = self.run(problem, far)
        one = torch.tensor([1])
        alone = truncated_cg(
            lambda rows: lambda v: (matrix[one] @ v.flatten(1)[..., None])[..., 0].view_as(v),
            metric.select(one),
            local.gradient[one],
            far[one],
            torch.full((1,), 1e-12).double(),
            torch.zeros(1).double(),
            200,
        )
        assert torch.allclose(alone.step[0], together.step[1], rtol=1e-8, atol=1e-12)
        assert int(alone.iterations[0]) == int(together.iterations[1])


class TestTruths:
    def pairs(self, m, size, seed=0, n=3):
        z = draws(seed, 2, n, m)
        return size * z / z.norm(dim=-1, keepdim=True)

    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
    def test_sphere_in_64_dimensions(self, dtype, rtol):
        z0, z1 = self.pairs(64, 0.8)
        r = Manifold(spaces.sphere).geodesic(
            z0.to(dtype), z1.to(dtype), rtol=rtol, solver=NewtonCG()
        )
        assert r.length.dtype == dtype
        assert torch.allclose(r.length.double(), spaces.great_circle(z0, z1), rtol=rtol)
        assert (r.index == -1).all()

    @pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-3)])
    def test_hyperbolic_ball_in_32_dimensions_by_its_metric_alone(self, dtype, rtol):
        z0, z1 = self.pairs(32, 0.7)
        r = solvers.geodesic(
            MetricSpace(ball_tensor), z0.to(dtype), z1.to(dtype), rtol=rtol, solver=NewtonCG()
        )
        assert torch.allclose(r.length.double(), spaces.poincare(z0, z1), rtol=rtol)

    def test_hyperbolic_space_as_an_ambient_metric(self):
        # H = 1/x₁² on data that the identity decodes: the half space, where d = arcosh(1 + |Δ|²/(2
        # x₁ y₁)).
        M = Manifold(lambda z: z, ambient=lambda x: (1 / x[:, 1:2] ** 2).expand_as(x))
        z0, z1 = draws(0, 2, 3, 12) / 3
        z0[:, 1], z1[:, 1] = 1.0, 2.0
        r = M.geodesic(z0, z1, rtol=1e-6, solver=NewtonCG())
        assert torch.allclose(r.length, spaces.half_plane(z0, z1), rtol=1e-6)

    def test_product_of_spheres(self):
        # Distances of a Riemannian product add up in squares.
        z0, z1 = self.pairs(63, 0.9)
        r = Manifold(two_spheres).geodesic(z0, z1, rtol=1e-6, solver=NewtonCG())
        first = spaces.great_circle(z0[:, :32], z1[:, :32])
        second = spaces.great_circle(z0[:, 32:], z1[:, 32:], 2.0)
        assert torch.allclose(r.length, torch.hypot(first, second), rtol=1e-6)

    def test_affine_maps_with_a_condition_of_a_thousand(self):
        m = 64
        scale = torch.logspace(0, -3, m).double()
        turn = torch.linalg.qr(draws(1, 80, m)).Q
        z0, z1 = draws(0, 2, 3, m)
        bent = Curve.line(z0, z1, 32).nodes
        bent[:, 1:-1] += 0.3 * draws(3, 3, 31, m)
        M = Manifold(lambda z: (z * scale.to(z)) @ turn.to(z).T)
        r = M.geodesic(z0, z1, init=bent, rtol=1e-8, solver=NewtonCG())
        assert torch.allclose(r.length, ((z1 - z0) * scale).norm(dim=-1), rtol=1e-8)

    @pytest.mark.parametrize("known", spaces.CATALOGUE, ids=lambda known: known.name)
    def test_the_catalogue(self, known):
        z0, z1, d = known.pairs(torch.Generator().manual_seed(4), 3)
        r = solvers.geodesic(known.space(), z0, z1, rtol=1e-5, solver=NewtonCG())
        assert ((r.length - d).abs() <= 1e-5 * d).all()
        assert ((r.length - d).abs() <= 3 * r.error + 1e-12).all()

    @pytest.mark.parametrize(
        "given", [None, ambient.FeatureMap(torch.tanh), lambda x: 1 + x.square()]
    )
    def test_newton_finds_the_same(self, given):
        M = Manifold(mlp(16), ambient=given)
        z0, z1 = 1.5 * draws(3, 2, 3, 16)
        ours, theirs = (M.geodesic(z0, z1, rtol=1e-6, solver=s) for s in (NewtonCG(), Newton()))
        assert torch.allclose(ours.length, theirs.length, rtol=2e-6)
        assert (
            ours.curve.nodes[:, ::4] - theirs.curve.resample(ours.curve.segments).nodes[:, ::4]
        ).abs().max() < 1e-2

    def test_gauss_newton_alone_gets_there(self):
        z0, z1 = self.pairs(16, 0.6)
        r = Manifold(spaces.sphere).geodesic(z0, z1, rtol=1e-5, solver=NewtonCG(second_order=False))
        assert torch.allclose(r.length, spaces.great_circle(z0, z1), rtol=1e-5)

    def test_units_do_not_matter(self):
        z0, z1 = self.pairs(8, 0.8)
        for scale in (1e-5, 1e5):
            r = Manifold(lambda z, c=scale: c * spaces.sphere(z / c)).geodesic(
                scale * z0, scale * z1, solver=NewtonCG()
            )
            assert torch.allclose(r.length, scale * spaces.great_circle(z0, z1), rtol=1e-4)


class TestStatus:
    def test_a_bad_pair_leaves_the_others_alone(self):
        z0, z1 = 0.1 * draws(0, 2, 3, 32)
        alone = Manifold(spaces.sphere).geodesic(z0, z1, solver=NewtonCG())
        broken = z0.clone()
        broken[1, 5] = torch.nan
        r = Manifold(spaces.sphere).geodesic(broken, z1, solver=NewtonCG(), throw=False)
        assert r.status.tolist() == [Status.CONVERGED, Status.INVALID_POINT, Status.CONVERGED]
        assert torch.allclose(r.length[[0, 2]], alone.length[[0, 2]], rtol=1e-12)
        assert torch.equal(r.stats["steps"][[0, 2]], alone.stats["steps"][[0, 2]])

    def test_out_of_the_domain(self):
        # log is NaN at the second pair's start curve, not at its ends.
        M = Manifold(lambda z: torch.cat([z, (z.square().sum(-1, keepdim=True) - 0.1).log()], -1))
        z0 = torch.tensor([[1.0, 0.3, 0.0], [1.0, 0.0, 0.0]]).double()
        z1 = torch.tensor([[1.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]).double()
        r = M.geodesic(z0, z1, solver=NewtonCG(), throw=False)
        assert r.status.tolist() == [Status.CONVERGED, Status.NON_FINITE]

    def test_out_of_steps(self):
        z0, z1 = 2 * draws(0, 2, 2, 16)
        with pytest.raises(NotConvergedError) as caught:
            Manifold(mlp(16)).geodesic(z0, z1, rtol=1e-8, solver=NewtonCG(max_steps=2))
        assert (caught.value.result.status == Status.MAX_STEPS).all()
        assert caught.value.result.length.isfinite().all()

    def test_out_of_resolution(self):
        z0, z1 = 3 * draws(0, 2, 2, 16)
        r = Manifold(mlp(16)).geodesic(
            z0, z1, rtol=1e-10, solver=NewtonCG(max_segments=8), throw=False
        )
        assert (r.status == Status.RESOLUTION).all()

    def test_float32_says_when_it_cannot(self):
        z0, z1 = draws(0, 2, 2, 16).float()
        r = Manifold(mlp(16)).geodesic(z0, z1, rtol=1e-9, solver=NewtonCG(), throw=False)
        assert not r.converged.any()
        assert r.length.isfinite().all()

    def test_a_metric_that_vanishes(self):
        M = Manifold(lambda z: 0 * z)
        r = M.geodesic(*draws(0, 2, 2, 5), solver=NewtonCG(), throw=False)
        assert (r.status == Status.SINGULAR).all()

    def test_a_saddle_is_left_for_a_minimum(self):
        # 1.3π of a great circle, slightly pushed off it, falls to the short way round: 0.7π.
        u = torch.linspace(0, 1.3 * math.pi, 33).double()
        v = 0.05 * torch.sin(math.pi * torch.linspace(0, 1, 33)).double()
        points = torch.stack([v.cos() * u.cos(), v.cos() * u.sin(), v.sin()], -1)
        turn = torch.linalg.qr(draws(3, 3, 3)).Q
        points = points @ turn
        curve = points[:, :2] / (1 - points[:, 2:])  # stereographic
        r = Manifold(spaces.sphere).geodesic(curve[0], curve[-1], init=curve, solver=NewtonCG())
        assert torch.allclose(r.length, torch.tensor(0.7 * math.pi).double(), rtol=1e-4)


class TestMemory:
    def largest(self, solver, m=96, segments=8):
        M = Manifold(lambda z: torch.cat([z, z[..., :4].sin()], -1))
        z0 = draws(0, 2, m)
        z1 = z0 + 0.01 * draws(1, 2, m)
        start = replace(solver, segments=segments, max_segments=segments)
        with LargestTensor() as seen:
            M.geodesic(z0, z1, solver=start, rtol=1e-3, throw=False)
        return seen.numbers

    def test_no_block_a_node(self):
        m, n, p = 96, 8, 2
        assert self.largest(NewtonCG()) < p * n * m * m / 4
        assert self.largest(Newton()) >= p * (n - 1) * m * m  # the spy sees what it is meant to see

    def test_no_square_array_at_all(self):
        m = 512
        M = Manifold(lambda z: torch.cat([z, z.square().sum(-1, keepdim=True)], -1))
        z0, z1 = draws(0, 2, 1, m) / math.sqrt(m)
        with LargestTensor() as seen:
            M.geodesic(z0, z1, solver=NewtonCG(segments=4, max_segments=8), rtol=1e-3, throw=False)
        assert seen.numbers < m * m / 2


class TestSettings:
    @pytest.mark.parametrize(
        "options",
        [{"segments": 1}, {"max_steps": 0}, {"max_products": 0}, {"sketch": 0}, {"sketch": 2.5}],
    )
    def test_out_of_range(self, options):
        with pytest.raises(OptionError, match="NewtonCG"):
            NewtonCG(**options)

    def test_the_protocol_of_solvers(self):
        assert isinstance(NewtonCG(), Solver)
        with pytest.raises(AttributeError):  # frozen
            NewtonCG().segments = 3

    def test_large_spaces_with_start_curves_get_it_unasked(self):
        for m, index in ((MATRIX_FREE_FROM, -1), (MATRIX_FREE_FROM - 1, 0)):
            z0, z1 = draws(0, 2, 1, m) / (2 * math.sqrt(m))
            r = Manifold(spaces.sphere).geodesic(z0, z1, init=torch.stack([z0, z1], 1))
            assert torch.allclose(r.length, spaces.great_circle(z0, z1), rtol=1e-4)
            assert r.index.tolist() == [index]  # only Newton knows the index


@pytest.mark.parametrize("sizes", [(12, 5), (8, 4), (6, 3)])
@pytest.mark.parametrize("seed", [1, 2, 6])
def test_more_latent_dimensions_than_data(sizes, seed):
    # Where the decoder is onto, straight lines of the data can be followed: distances are chords.
    # Before the preconditioner was softened, these stalled, or converged 4 rtol too long.
    m, d = sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = torch.nn.Linear(m, 16), torch.nn.GELU(), torch.nn.Linear(16, d)
        net = torch.nn.Sequential(*layers).double()
        z = torch.randn(4, m, dtype=torch.float64)
    with pytest.warns(FallbackWarning, match="singular along"):
        r = Manifold(net).geodesic(z, z + 0.3, rtol=1e-3)
    chord = (net(z) - net(z + 0.3)).norm(dim=-1)
    torch.testing.assert_close(r.length, chord.detach(), rtol=1e-3, atol=0.0)
    assert bool((r.length >= chord * (1 - 1e-12)).all())
