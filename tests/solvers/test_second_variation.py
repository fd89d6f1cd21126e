"""Second derivatives of d²/2: closed forms by autograd, and differences of logarithms."""

import math

import pytest
import spaces
import torch

from riemae import Manifold
from riemae.exceptions import NotConvergedError
from riemae.solvers import MetricSpace, log, second_variation

F64 = torch.float64
PARTS = ("start_gradient", "stop_gradient", "start_hessian", "mixed", "stop_hessian")


def points(n, m, size=1.0, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    return (size * (2 * torch.rand(n, m, generator=g, dtype=F64) - 1)).to(dtype)


def on_a_sphere(x, y):
    return torch.acos((spaces.sphere(x[None]) * spaces.sphere(y[None])).sum())


def in_the_ball(x, y):
    gap = (x - y).square().sum()
    inside = (1 - x.square().sum()) * (1 - y.square().sum())
    return torch.acosh(1 + 2 * gap / inside)


def ball(z):
    return 4 / (1 - z.square().sum(-1))[:, None, None] ** 2 * torch.eye(z.shape[-1]).to(z)


def through_a_shear(x, y):
    return (sheared(x[None]) - sheared(y[None])).norm()


def sheared(z):
    return torch.stack([z[:, 0] + 0.4 * z[:, 1].sin(), z[:, 1] + 0.3 * z[:, 0] ** 2], -1)


def true(distance, x, y):
    m = len(x)
    both = torch.cat([x, y])
    energy = lambda w: distance(w[:m], w[m:]) ** 2 / 2  # noqa: E731
    slope = torch.autograd.functional.jacobian(energy, both)
    bend = torch.autograd.functional.hessian(energy, both)
    return slope[:m], slope[m:], bend[:m, :m], bend[:m, m:], bend[m:, m:]


@pytest.mark.parametrize(
    ("space", "distance", "m"),
    [
        (Manifold(spaces.sphere), on_a_sphere, 2),
        (MetricSpace(ball), in_the_ball, 2),
        (MetricSpace(ball), in_the_ball, 3),
        (Manifold(sheared), through_a_shear, 2),
    ],
    ids=["sphere", "hyperbolic plane", "hyperbolic space", "plane in bent coordinates"],
)
def test_closed_forms(space, distance, m):
    z0, z1 = points(3, m, 0.5), points(3, m, 0.5, seed=1)
    found = second_variation(space, z0, log(space, z0, z1, rtol=1e-10))
    torch.testing.assert_close(found.stop, z1, rtol=0, atol=1e-8)
    for i in range(3):
        for name, expected in zip(PARTS, true(distance, z0[i], z1[i]), strict=True):
            got = getattr(found, name)[i]
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7, msg=name)


def test_differences_of_logarithms_on_a_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 24), torch.nn.Tanh(), torch.nn.Linear(24, 6))
    M = Manifold(net.double().requires_grad_(False))
    x, y = points(1, 3, seed=2), points(1, 3, seed=3)
    found = M.second_variation(x, M.log(x, y, rtol=1e-10))

    def slope(p, q):  # ∂(½ d²)/∂p of six pairs
        return -M.metric_product(p, M.log(p, q, rtol=1e-8))

    steps = 1e-3 * torch.cat([torch.eye(3, dtype=F64), -torch.eye(3, dtype=F64)])
    still = torch.zeros_like(steps)

    def rows(of):
        there, back = of.chunk(2)
        return (there - back) / 2e-3

    tolerance = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(
        found.start_hessian[0], rows(slope(x + steps, y + still)), **tolerance
    )
    torch.testing.assert_close(
        found.stop_hessian[0], rows(slope(y + steps, x + still)), **tolerance
    )
    torch.testing.assert_close(found.mixed[0], rows(slope(x + still, y + steps)).T, **tolerance)


def test_at_a_point_itself_it_is_the_metric():
    M = Manifold(spaces.sphere)
    z = points(3, 2)
    found = M.second_variation(z, torch.zeros_like(z))
    metric = M.metric(z)
    for part, sign in ((found.start_hessian, 1), (found.mixed, -1), (found.stop_hessian, 1)):
        torch.testing.assert_close(part, sign * metric, rtol=1e-8, atol=1e-10)


def test_single_precision_and_shapes():
    M = Manifold(spaces.sphere).to(dtype=torch.float32)
    z, v = points(6, 2, 0.5, dtype=torch.float32), points(6, 2, 0.3, 1, torch.float32)
    found = M.second_variation(z.view(2, 3, 2), v.view(2, 3, 2))
    sharp = Manifold(spaces.sphere).second_variation(z.double(), v.double())
    assert found.start_hessian.shape == (2, 3, 2, 2)
    assert found.stop.shape == (2, 3, 2)
    for name in PARTS:
        got = getattr(found, name).flatten(0, 1)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), getattr(sharp, name), rtol=2e-3, atol=2e-3)


def test_a_pair_that_cannot_be_followed_is_named_and_the_others_keep_their_values():
    def cone(z):  # |z|² (dx² + dy²): a geodesic that runs into the origin ends there
        return z.square().sum(-1)[:, None, None] * torch.eye(2).to(z)

    z = torch.tensor([[1.0, 0.2], [1.0, 0.0]], dtype=F64)
    v = torch.tensor([[0.1, 0.1], [-2.0, 0.0]], dtype=F64)
    with pytest.raises(NotConvergedError, match=r"first: \[1\]") as caught:
        second_variation(MetricSpace(cone), z, v, rtol=1e-6, max_steps=40)
    alone = second_variation(MetricSpace(cone), z[:1], v[:1], rtol=1e-6)
    kept = caught.value.result
    assert kept.start_hessian[1].isnan().all()
    torch.testing.assert_close(kept.start_hessian[:1], alone.start_hessian)


def test_beyond_a_conjugate_point_the_hessian_is_that_of_the_longer_way():
    # On the sphere, ½ s² of the arc s along the geodesic has the eigenvalues 1 and s cot s.
    M = Manifold(spaces.sphere)
    z = torch.tensor([[0.3, 0.1]], dtype=F64)
    scale = M.norm(z, torch.tensor([[1.0, 0.0]], dtype=F64))
    for s in (1.0, 2.0):
        v = torch.tensor([[s, 0.0]], dtype=F64) / scale
        found = M.second_variation(z, v, rtol=1e-10)
        # Covariant: without g_k Γ^k_ij, relative to the metric.
        turn = torch.einsum("pk,pkij->pij", found.start_gradient, M.christoffel(z))
        values = (
            torch.linalg.eigvals(torch.linalg.solve(M.metric(z), found.start_hessian - turn))
            .real.sort(-1)
            .values
        )
        expected = torch.tensor([s / math.tan(s), 1.0], dtype=F64)
        torch.testing.assert_close(values[0], expected, rtol=1e-6, atol=1e-7)
