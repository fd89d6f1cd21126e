"""Data on geoopt's manifolds: distances in closed form, the same geometry by both methods, and
refusals."""

import geoopt
import pytest
import torch
from spaces import great_circle, poincare, rand, sphere
from torch.testing import assert_close

from riemae import Manifold
from riemae.ambient import Custom, Euclidean, Geoopt
from riemae.exceptions import AmbientError
from riemae.testing import check_manifold


def draw(seed, *shape):
    return rand(torch.Generator().manual_seed(seed), *shape)


# Charts: decoders onto whole manifolds, so that the pull-back is the manifold's own metric.


def ball(z):
    return 0.6 * z


def hyperboloid(z):
    return torch.cat([(1 + z.square().sum(-1, keepdim=True)).sqrt(), z], -1)


def cholesky(z):  # (k, 3) -> (k, 2, 2)
    a, b, c = z.unbind(-1)
    factor = torch.stack([a.exp(), torch.zeros_like(a), b, c.exp()], -1).view(-1, 2, 2)
    return factor @ factor.mT


def frame(z):  # (k, 2) -> (k, 3, 2): Stiefel
    u, v = z.unbind(-1)
    zero, one = torch.zeros_like(u), torch.ones_like(u)
    about_z = torch.stack(
        [u.cos(), -u.sin(), zero, u.sin(), u.cos(), zero, zero, zero, one], -1
    ).view(-1, 3, 3)
    about_x = torch.stack(
        [one, zero, zero, zero, v.cos(), -v.sin(), zero, v.sin(), v.cos()], -1
    ).view(-1, 3, 3)
    return (about_z @ about_x)[:, :, :2]


def affine_invariant(x, y):
    # d² = Σ log² λ_i(x⁻¹y); the eigenvalues of x⁻¹y are those of the symmetric L⁻¹ y L⁻ᵀ.
    half = torch.linalg.solve_triangular(torch.linalg.cholesky(x), y, upper=False)
    middle = torch.linalg.solve_triangular(torch.linalg.cholesky(x), half.mT, upper=False)
    return torch.linalg.eigvalsh(middle).log().norm(dim=-1)


def curved_ball(x, y, c):
    # A ball of curvature −c is one of curvature −1 in other units: |x| √c, distances 1/√c.
    return poincare(x * c**0.5, y * c**0.5) / c**0.5


def hyperbolic(x, y):
    gap = x - y  # −⟨x, y⟩ = 1 + ⟨gap, gap⟩/2, without cancellation
    return torch.acosh(1 + (gap[:, 1:].square().sum(-1) - gap[:, 0].square()) / 2)


def two_spheres(x, y):
    return torch.hypot(great_circle(x, y), great_circle(2 * x, 2 * y) * 3)


TRUTHS = {  # name: manifold, chart, m, distance of chart points
    "Sphere": (geoopt.Sphere(), sphere, 2, great_circle),
    "SphereExact, S³": (geoopt.SphereExact(), sphere, 3, great_circle),
    "PoincareBall": (geoopt.PoincareBall(), ball, 2, lambda a, b: poincare(ball(a), ball(b))),
    "PoincareBall(c=0.5)": (
        geoopt.PoincareBall(c=0.5),
        ball,
        2,
        lambda a, b: curved_ball(ball(a), ball(b), 0.5),
    ),
    "SphereProjection": (geoopt.SphereProjection(), lambda z: z, 2, great_circle),
    "Lorentz": (
        geoopt.Lorentz(),
        hyperboloid,
        2,
        lambda a, b: hyperbolic(hyperboloid(a), hyperboloid(b)),
    ),
    "SymmetricPositiveDefinite": (
        geoopt.SymmetricPositiveDefinite(),
        cholesky,
        3,
        lambda a, b: affine_invariant(cholesky(a), cholesky(b)),
    ),
    "Scaled(Sphere)": (
        geoopt.Scaled(geoopt.Sphere(), 3.0),
        sphere,
        2,
        lambda a, b: 3 * great_circle(a, b),
    ),
    "Scaled(PoincareBall)": (
        geoopt.Scaled(geoopt.PoincareBall(), 3.0),
        ball,
        2,
        lambda a, b: 3 * poincare(ball(a), ball(b)),
    ),
    "ProductManifold": (
        geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.PoincareBall(), 2)),
        lambda z: torch.cat([sphere(z[:, :2]), ball(z[:, 2:])], -1),
        4,
        lambda a, b: torch.hypot(
            great_circle(a[:, :2], b[:, :2]), poincare(ball(a[:, 2:]), ball(b[:, 2:]))
        ),
    ),
    "ProductManifold with matrices": (
        geoopt.ProductManifold(
            (geoopt.SymmetricPositiveDefinite(), (2, 2)), (geoopt.Euclidean(), 1)
        ),
        lambda z: torch.cat([cholesky(z[:, :3]).flatten(1), z[:, 3:]], -1),
        4,
        lambda a, b: torch.hypot(
            affine_invariant(cholesky(a[:, :3]), cholesky(b[:, :3])), a[:, 3] - b[:, 3]
        ),
    ),
    "two points on a Sphere": (
        geoopt.Sphere(),
        lambda z: torch.stack([sphere(z[:, :2]), sphere(z[:, 2:])], 1),
        4,
        lambda a, b: torch.hypot(
            great_circle(a[:, :2], b[:, :2]), great_circle(a[:, 2:], b[:, 2:])
        ),
    ),
    "two points of a PoincareBall": (
        geoopt.PoincareBall(),
        lambda z: ball(z).unflatten(1, (2, 2)),
        4,
        lambda a, b: torch.hypot(
            *(poincare(ball(a[:, s]), ball(b[:, s])) for s in (slice(2), slice(2, 4)))
        ),
    ),
    "Euclidean": (geoopt.Euclidean(), lambda z: z, 2, lambda a, b: (a - b).norm(dim=-1)),
}
FLAT = {"Sphere", "SphereExact, S³", "Scaled(Sphere)", "two points on a Sphere", "Euclidean"}


@pytest.mark.parametrize("name", TRUTHS)
class TestClosedForms:
    def case(self, name):
        manifold, chart, m, distance = TRUTHS[name]
        z0, z1 = 0.8 * draw(1, 5, m), 0.8 * draw(2, 5, m)
        return Manifold(chart, Geoopt(manifold)), z0, z1, distance(z0, z1)

    def test_distance(self, name):
        M, z0, z1, true = self.case(name)
        r = M.geodesic(z0, z1, rtol=1e-6)
        assert_close(r.length, true, rtol=1e-5, atol=0)
        assert_close(
            r.lower_bound, true, rtol=1e-6, atol=0
        )  # the bracket closes: the chart is the whole manifold
        assert (r.lower_bound <= r.length * (1 + 1e-12)).all()

    def test_the_bound_holds_for_equal_and_nearly_equal_points(self, name):
        M, z0, z1, _ = self.case(name)
        for h in (0.0, 1e-9, 1e-6, 1e-4):
            near = z0 + h * z1
            assert (
                M.as_space().ambient_distance(z0, near)
                <= M.length(torch.stack([z0, near], 1)) * (1 + 1e-6) + 1e-12
            ).all()

    def test_laws(self, name):
        M, z0, *_ = self.case(name)
        check_manifold(M, z0)

    def test_float32(self, name):
        M, z0, z1, true = self.case(name)
        single = M.to(dtype=torch.float32)
        assert_close(
            single.distance(z0.float(), z1.float(), rtol=1e-3), true.float(), rtol=2e-3, atol=0
        )

    def test_road(self, name):
        assert Geoopt(TRUTHS[name][0]).has_features == (name in FLAT)


class TestStiefel:
    @pytest.mark.parametrize("manifold", [geoopt.CanonicalStiefel(), geoopt.EuclideanStiefel()])
    def test_inner_product(self, manifold):
        M, z, u, v = Manifold(frame, Geoopt(manifold)), draw(0, 5, 2), draw(1, 5, 2), draw(2, 5, 2)
        pushed = [M.pushforward(z, w).view(5, 3, 2) for w in (u, v)]
        assert_close(M.inner(z, u, v), manifold.inner(frame(z), *pushed), rtol=1e-11, atol=1e-12)
        check_manifold(M, z)

    def test_distance_is_unknown_or_bounded_by_the_chord(self):
        z0, z1 = draw(0, 3, 2), draw(1, 3, 2)
        assert (
            Manifold(frame, Geoopt(geoopt.CanonicalStiefel()))
            .geodesic(z0, z1)
            .lower_bound.isnan()
            .all()
        )
        flat = Manifold(frame, Geoopt(geoopt.EuclideanStiefel())).geodesic(z0, z1).lower_bound
        assert_close(flat, (frame(z0) - frame(z1)).flatten(1).norm(dim=-1), rtol=1e-12, atol=0)


class TestTwoRoads:
    def test_a_sphere_by_features_and_by_its_inner_product(self):
        # ⟨u, v⟩ of the embedding, hidden in a function: no feature map to be found.
        slow = Manifold(sphere, Custom(inner=lambda x, u, v: (u * v).sum(-1)))
        fast, plain = Manifold(sphere, Geoopt(geoopt.Sphere())), Manifold(sphere, Euclidean())
        z = draw(0, 4, 2)
        for quantity in ("metric", "christoffel", "gaussian_curvature", "extrinsic_curvature"):
            for other in (slow, plain):
                assert_close(
                    getattr(other, quantity)(z), getattr(fast, quantity)(z), rtol=1e-9, atol=1e-9
                )

    def test_curvature(self):
        z = 0.5 * draw(0, 4, 2)
        K = Manifold(ball, Geoopt(geoopt.PoincareBall(c=2.0))).gaussian_curvature(z)
        assert_close(K, torch.full_like(K, -2.0), rtol=1e-9, atol=0)
        K = Manifold(hyperboloid, Geoopt(geoopt.Lorentz())).gaussian_curvature(z)
        assert_close(K, torch.full_like(K, -1.0), rtol=1e-9, atol=0)

    def test_spd_where_eigenvalues_meet(self):
        # At the identity, where eigenvectors have no derivative: G = tr(J_i J_j), and
        # check_manifold differentiates it.
        M = Manifold(cholesky, Geoopt(geoopt.SymmetricPositiveDefinite()))
        z = torch.zeros(2, 3).double()
        j = M.jacobian(z)
        assert_close(M.metric(z), j.mT @ j)
        check_manifold(M, z)

    def test_a_curve_inside_the_sphere_is_longer_than_the_bound(self):
        M = Manifold(lambda t: sphere(torch.cat([t, t**2], -1)), Geoopt(geoopt.Sphere()))
        r = M.geodesic(torch.tensor([[-1.0]]).double(), torch.tensor([[1.0]]).double())
        assert r.lower_bound < 0.99 * r.length

    def test_gradients_reach_the_curvature_of_a_learned_ball(self):
        learned = geoopt.PoincareBall(c=1.0, learnable=True)
        M = Manifold(ball, Geoopt(learned))
        M.distance(draw(0, 3, 2), draw(1, 3, 2)).sum().backward()
        h = 1e-3
        ends = [
            curved_ball(ball(draw(0, 3, 2)), ball(draw(1, 3, 2)), 1 + s * h).sum() for s in (-1, 1)
        ]
        k = learned.isp_c  # c = softplus(isp_c)
        expected = (ends[1] - ends[0]) / (2 * h) * torch.sigmoid(k.detach())
        assert_close(k.grad.double(), expected.double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Geoopt("sphere"), r"a geoopt\.Manifold, got str"),
        (lambda: Geoopt(geoopt.Sphere).check(draw(0, 2, 3)), r"a geoopt\.Manifold"),
        (
            lambda: Geoopt(geoopt.Sphere()).check(draw(0, 2, 3)),
            r"points of Sphere manifold.*norm\(x\) != 1.*projx",
        ),
        (lambda: Geoopt(geoopt.PoincareBall()).check(2 + draw(0, 2, 3)), "out of the bounds"),
        (lambda: Geoopt(geoopt.Lorentz()).check(draw(0, 2, 3)), "minkowski quadratic form"),
        (lambda: Geoopt(geoopt.SymmetricPositiveDefinite()).check(draw(0, 2, 2, 2)), "transpose"),
        (lambda: Geoopt(geoopt.SymmetricPositiveDefinite()).check(draw(0, 2, 4)), "dim"),
        (
            lambda: Geoopt(geoopt.ProductManifold((geoopt.Sphere(), 3))).check(draw(0, 2, 4)),
            "last dimension",
        ),
        (
            lambda: Manifold(lambda z: z, Geoopt(geoopt.Sphere())).metric(draw(0, 2, 3)),
            "points of Sphere",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(AmbientError, match=message):
        make()


def test_a_metric_that_contradicts_its_distance_is_refused():
    with pytest.warns(UserWarning, match="not fully implemented"):
        manifold = geoopt.SymmetricPositiveDefinite("LEM")
    with pytest.raises(AmbientError, match="'AIM'.*got 'LEM'"):
        Geoopt(manifold)
