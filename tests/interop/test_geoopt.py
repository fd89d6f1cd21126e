"""Latent codes as a geoopt manifold: the interface by closed forms, and geoopt's optimisers on
it."""

import math

import geoopt
import pytest
import torch
from geoopt.optim import RiemannianAdam, RiemannianSGD
from spaces import great_circle, rand, sphere
from torch.testing import assert_close

from riemae import Manifold
from riemae.exceptions import DTypeError, OptionError, SingularMetricError
from riemae.interop.geoopt import LatentManifold


def draw(seed, *shape):
    return rand(torch.Generator().manual_seed(seed), *shape)


SPHERE = LatentManifold(Manifold(sphere), retraction="exp", rtol=1e-8)
QUICK = LatentManifold(Manifold(sphere))
# On the stereographic chart the sphere's metric is λ² I with λ = 2/(1 + |z|²).


def factor(z):
    return 4 / (1 + z.square().sum(-1)) ** 2


class TestInterface:
    z, u, v = draw(0, 4, 2), draw(1, 4, 2), draw(2, 4, 2)

    def test_inner_product(self):
        expected = factor(self.z) * (self.u * self.v).sum(-1)
        assert_close(SPHERE.inner(self.z, self.u, self.v), expected)
        assert_close(SPHERE.inner(self.z, self.u, self.v, keepdim=True), expected[:, None])
        assert_close(SPHERE.norm(self.z, self.u), factor(self.z).sqrt() * self.u.norm(dim=-1))
        assert_close(
            SPHERE.component_inner(self.z, self.u)[:, 0], factor(self.z) * self.u.square().sum(-1)
        )

    def test_gradient(self):
        assert_close(SPHERE.egrad2rgrad(self.z, self.u), self.u / factor(self.z)[:, None])
        assert_close(SPHERE.egrad2rgrad(self.z[0], self.u[0]), self.u[0] / factor(self.z[0]))

    def test_distance_exp_and_log(self):
        d = great_circle(self.z, self.v)
        assert_close(SPHERE.dist(self.z, self.v), d, rtol=1e-8, atol=0)
        assert_close(SPHERE.dist(self.z, self.v, keepdim=True)[:, 0], d, rtol=1e-8, atol=0)
        velocity = SPHERE.logmap(self.z, self.v)
        assert_close(SPHERE.norm(self.z, velocity), d, rtol=1e-7, atol=0)
        assert_close(SPHERE.expmap(self.z, velocity), self.v, rtol=1e-7, atol=1e-7)

    def test_transport_is_that_of_geoopts_sphere(self):
        # The push-forward of the transported vector is the transported push-forward.
        y, moved = SPHERE.expmap_transp(self.z, 0.5 * self.u, self.v)
        M, exact = SPHERE.riemannian, geoopt.SphereExact()
        x, target, w = sphere(self.z), sphere(y), M.pushforward(self.z, self.v)
        # geoopt projects, which is not parallel transport. In closed form that is
        # w − (⟨y, w⟩/(1 + ⟨x, y⟩)) (x + y).
        along = (target * w).sum(-1, keepdim=True) / (1 + (x * target).sum(-1, keepdim=True))
        expected = w - along * (x + target)
        assert_close(M.pushforward(y, moved), expected, rtol=1e-6, atol=1e-6)
        assert_close(
            target, exact.expmap(x, M.pushforward(self.z, 0.5 * self.u)), rtol=1e-7, atol=1e-7
        )
        assert_close(SPHERE.transp(self.z, y, self.v), moved, rtol=1e-4, atol=1e-4)
        assert_close(SPHERE.retr_transp(self.z, 0.5 * self.u, self.v), (y, moved))

    def test_the_quick_retraction_is_of_second_order(self):
        errors = {"point": [], "vector": []}
        for h in (1e-1, 1e-2):
            y, moved = QUICK.retr_transp(self.z, h * self.u, self.v)
            z, exact = QUICK.expmap_transp(self.z, h * self.u, self.v)
            errors["point"].append(float((y - z).norm()))
            errors["vector"].append(float((moved - exact).norm()))
        assert math.log10(errors["point"][0] / errors["point"][1]) > 2.7  # h³
        assert math.log10(errors["vector"][0] / errors["vector"][1]) > 1.7  # h²

    def test_points_and_vectors(self):
        assert SPHERE.check_point_on_manifold(self.z)
        assert SPHERE.check_vector_on_tangent(self.z, self.u)
        assert not SPHERE.check_point_on_manifold(self.z / 0)
        assert not SPHERE.check_vector_on_tangent(self.z, self.z / 0)
        assert not SPHERE.check_point_on_manifold(draw(0, 4, 3))  # m is 2 by now
        assert_close(SPHERE.projx(self.z), self.z)
        assert SPHERE.proju(self.z, self.u[0]).shape == (4, 2)

    def test_random_codes(self):
        a, b = (SPHERE.random(3, 2, generator=torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(a, b)
        assert a.manifold is SPHERE
        assert not SPHERE.origin(3, 2).any()

    def test_refusals(self):
        with pytest.raises(DTypeError, match=r"a riemae\.Manifold, got function"):
            LatentManifold(sphere)
        with pytest.raises(OptionError, match="'second_order' or 'exp'"):
            LatentManifold(Manifold(sphere), retraction="euler")
        flat = LatentManifold(Manifold(lambda z: z[:, :1]))
        with pytest.raises(SingularMetricError):
            flat.egrad2rgrad(self.z, self.u)

    def test_repr(self):
        assert "Latent(Manifold(sphere: R^2 -> R^3" in repr(SPHERE)


def minimise(optimiser, loss, steps):
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()


NORTH = torch.tensor([0.36, 0.48, 0.8], dtype=torch.float64)


LOOSE = LatentManifold(Manifold(sphere), retraction="exp", rtol=1e-4)


@pytest.mark.parametrize(
    ("latent", "make", "steps"),
    [
        (QUICK, lambda p: RiemannianSGD(p, lr=0.5), 30),
        (QUICK, lambda p: RiemannianSGD(p, lr=0.3, momentum=0.4), 30),
        (QUICK, lambda p: RiemannianAdam(p, lr=0.15, betas=(0.6, 0.9)), 60),
        (LOOSE, lambda p: RiemannianSGD(p, lr=0.9), 4),
        (LOOSE, lambda p: RiemannianSGD(p, lr=0.9, momentum=0.05), 6),
    ],
    ids=["SGD", "momentum", "Adam", "SGD, exp", "momentum, exp"],
)
def test_a_function_is_minimised(latent, make, steps):
    # ⟨n, x⟩ on the sphere is smallest at −n; its Hessian there is the identity of the sphere,
    # whatever the chart.
    z = geoopt.ManifoldParameter(torch.tensor([[0.5, -0.2], [-1.0, 0.3]]).double(), manifold=latent)
    minimise(make([z]), lambda: (sphere(z) @ NORTH).sum(), steps)
    assert_close(sphere(z.detach()), -NORTH.expand(2, 3), rtol=0, atol=2e-3)


def test_steps_do_not_depend_on_the_chart():
    # One step of size ½ on the chart and on another one, y = sinh(z): the same points of the
    # sphere.
    start = torch.tensor([[0.5, -0.2]]).double()
    ends = []
    for chart, first in ((sphere, start), (lambda y: sphere(y.asinh()), start.sinh())):
        z = geoopt.ManifoldParameter(
            first.clone(), manifold=LatentManifold(Manifold(chart), retraction="exp", rtol=1e-9)
        )
        minimise(RiemannianSGD([z], lr=0.5), lambda z=z, chart=chart: (chart(z) @ NORTH).sum(), 1)
        ends.append(chart(z.detach()))
    assert_close(ends[0], ends[1], rtol=1e-8, atol=1e-8)


def test_frechet_mean_on_the_sphere():
    points = draw(5, 6, 2) * 0.7 + 0.2
    # The truth on the sphere: the fixed point of x ← exp_x(mean of log_x), which contracts.
    x, on_sphere = sphere(points), geoopt.SphereExact()
    mean = on_sphere.projx(x.mean(0))
    for _ in range(60):
        mean = on_sphere.expmap(mean, on_sphere.logmap(mean.expand_as(x), x).mean(0))
    z = geoopt.ManifoldParameter(torch.zeros(2).double(), manifold=QUICK)
    loss = lambda: SPHERE.dist(z.expand(6, 2), points).square().mean() / 2  # noqa: E731 (one expression)
    minimise(RiemannianSGD([z], lr=1.0), loss, 12)
    assert_close(sphere(z.detach()), mean, rtol=0, atol=1e-6)
