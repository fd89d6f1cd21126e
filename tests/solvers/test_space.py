"""Spaces by their metric tensor against closed forms and geoopt.

Derivatives of energies against torch.autograd.
"""

from dataclasses import dataclass

import geoopt
import pytest
import spaces
import torch
from torch.autograd.functional import hessian, jacobian

from riemae import Manifold, ambient, solvers
from riemae.exceptions import DTypeError, MetricError, RiemaeError, ShapeError, SingularMetricError
from riemae.solvers import MetricSpace, Space
from riemae.solvers.energy import Expansion
from riemae.solvers.hooks import energy_and_gradient
from riemae.solvers.space import HasSpace

F64 = torch.float64
DISC, HALF_PLANE = MetricSpace(spaces.poincare_tensor), MetricSpace(spaces.half_plane_tensor)
BALL = geoopt.PoincareBall(c=1.0)


def draws(*shape, seed=0, size=1.0):
    return spaces.rand(torch.Generator().manual_seed(seed), *shape, low=-size, high=size)


def mlp(m, d, seed=0):
    """Two tanh layers with weights large enough to bend the curves."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(s, generator=generator, dtype=F64) for s in ((m, 12), (12, d)))
    return lambda z: torch.tanh(z @ first.to(z)) @ second.to(z)


def skewed(z):
    """A metric that is neither diagonal nor conformal."""
    s = z.square().sum(-1)[..., None, None]
    return (1 + s) * torch.eye(z.shape[-1]).to(z) + torch.einsum(
        "...i,...j->...ij", z.sin(), z.sin()
    )


@dataclass(frozen=True)
class Case:
    """A space, and its discrete energy as plain torch for one curve: steps ``(n, D)`` and weights
    ``(n, D, D)``."""

    space: object
    m: int
    data: object  # points (n + 1, m) -> (n + 1, D)
    weight: object  # data (n + 1, D) -> H (n + 1, D, D)

    def steps_and_weights(self, nodes):
        x = self.data(nodes)
        h = self.weight(x)
        return x.diff(dim=0), (h[:-1] + h[1:]) / 2

    def squared_chords(self, nodes):
        step, weight = self.steps_and_weights(nodes)
        return torch.einsum("ni,nij,nj->n", step, weight, step)


def identity(x):
    return torch.eye(x.shape[-1], dtype=x.dtype).expand(len(x), -1, -1)


def latent(space, tensor, m=2):
    return Case(space, m, lambda z: z, tensor)


def decoded(decoder, weight=identity, m=2, **options):
    return Case(Manifold(decoder, **options).as_space(), m, decoder, weight)


CASES = {
    "poincaré disc": latent(DISC, spaces.poincare_tensor),
    "half plane": latent(
        MetricSpace(lambda z: spaces.half_plane_tensor(z + 2)),
        lambda z: spaces.half_plane_tensor(z + 2),
    ),
    "skewed metric in 3-D": latent(MetricSpace(skewed), skewed, 3),
    "sphere": decoded(spaces.sphere),
    "mlp": decoded(mlp(2, 5)),
    "mlp in 3-D": decoded(mlp(3, 6), m=3),
    "mlp, one point a chunk": decoded(mlp(2, 5), chunk_size=1),
    "mlp, features": Case(
        Manifold(mlp(2, 5), ambient=ambient.FeatureMap(torch.exp)).as_space(),
        2,
        lambda z: mlp(2, 5)(z).exp(),
        identity,
    ),
    "mlp, custom matrix": decoded(mlp(2, 4), skewed, ambient=ambient.Custom(matrix=skewed)),
    "mlp, custom operator": decoded(
        mlp(2, 4),
        skewed,
        ambient=ambient.Custom(operator=lambda x, v: (skewed(x) @ v[..., None])[..., 0]),
    ),
    "sphere, custom diagonal": decoded(
        spaces.sphere,
        lambda x: torch.diag_embed(1 + x**2),
        ambient=ambient.Custom(diagonal=lambda x: 1 + x**2),
    ),
    "custom, one point a chunk": decoded(
        mlp(2, 4), skewed, ambient=ambient.Custom(matrix=skewed), chunk_size=1
    ),
}


@pytest.mark.parametrize("name", ["poincaré disc", "mlp", "mlp, custom matrix"])
def test_inference_mode(name):
    case = CASES[name]
    z0, z1 = draws(2, 3, case.m, size=0.6)
    expected = solvers.geodesic(case.space, z0, z1).length
    with torch.inference_mode():
        found = solvers.geodesic(case.space, z0.clone(), z1.clone()).length
    assert torch.equal(found, expected)


@pytest.mark.parametrize("segments", [2, 3, 4, 7])
@pytest.mark.parametrize("name", CASES)
class TestExpansion:
    def test_autograd_finds_the_same_derivatives(self, name, segments):
        case = CASES[name]
        nodes = draws(3, segments + 1, case.m, size=0.6)
        kept = nodes.clone()
        found = case.space.expand(nodes)
        assert torch.equal(nodes, kept)
        chords = case.space.squared_chords(nodes)
        for p, curve in enumerate(nodes):
            assert torch.allclose(chords[p], case.squared_chords(curve), rtol=1e-12)

            def energy(interior, curve=curve):
                return (
                    segments
                    * case.squared_chords(torch.cat([curve[:1], interior, curve[-1:]])).sum()
                )

            interior, size = curve[1:-1], (segments - 1) * case.m
            second = hessian(energy, interior).reshape(size, size)
            first = jacobian(energy, interior)
            assert torch.allclose(found.energy[p], energy(interior), rtol=1e-12)
            assert torch.allclose(
                found.gradient[p], first, rtol=1e-9, atol=1e-10 * float(first.abs().max())
            )
            assert torch.allclose(
                found.hessian.dense()[p], second, rtol=1e-9, atol=1e-10 * float(second.abs().max())
            )

    def test_the_gradient_alone_is_the_same(self, name, segments):
        case = CASES[name]
        nodes = draws(3, segments + 1, case.m, size=0.6)
        energy, gradient = energy_and_gradient(case.space, nodes)
        expected = case.space.expand(nodes, second_order=False)
        assert not gradient.requires_grad
        assert torch.allclose(energy, expected.energy, rtol=1e-12)
        assert torch.allclose(gradient, expected.gradient, rtol=1e-9, atol=1e-11)

    def test_gauss_newton_keeps_the_tangents_only(self, name, segments):
        # 2n Σ (∂Δx)ᵀ W (∂Δx), from the Jacobian of the steps with the weights held fast.
        case = CASES[name]
        nodes = draws(2, segments + 1, case.m, size=0.6)
        found = case.space.expand(nodes, second_order=False)
        assert found.hessian is None
        full = case.space.expand(nodes)
        for one, other in (
            (found.gauss_newton.dense(), full.gauss_newton.dense()),
            (found.gradient, full.gradient),
        ):
            assert torch.allclose(one, other, rtol=1e-12, atol=1e-12 * float(other.abs().max()))
        assert (
            torch.linalg.eigvalsh(found.gauss_newton.dense()).min() > 0
        )  # these metrics are definite
        for p, curve in enumerate(nodes):

            def steps(interior, curve=curve):
                return case.steps_and_weights(torch.cat([curve[:1], interior, curve[-1:]]))[0]

            weight = case.steps_and_weights(curve)[1]
            j = jacobian(steps, curve[1:-1]).flatten(2)
            expected = 2 * segments * torch.einsum("nia,nij,njb->ab", j, weight, j)
            assert torch.allclose(found.gauss_newton.dense()[p], expected, rtol=1e-10, atol=1e-11)


class TestGaussNewton:
    @pytest.mark.parametrize(
        "space",
        [
            Manifold(spaces.affine).as_space(),
            Manifold(spaces.affine, ambient=torch.tensor([1.0, 4.0, 9.0, 0.5]).double()).as_space(),
            Manifold(
                spaces.affine, ambient=ambient.Custom(matrix=lambda x: 2 * torch.eye(4).to(x))
            ).as_space(),
            MetricSpace(lambda z: (spaces.AFFINE.T @ spaces.AFFINE).to(z).expand(len(z), 2, 2)),
        ],
        ids=["affine", "diagonal", "custom", "metric"],
    )
    def test_is_all_there_is_in_a_flat_space(self, space):
        found = space.expand(draws(3, 6, 2))
        assert torch.allclose(
            found.hessian.dense(), found.gauss_newton.dense(), rtol=1e-10, atol=1e-10
        )

    def test_semidefinite_where_the_metric_is(self):
        # Both latent directions decode alike: rank 1 of 2 at every node.
        rank_one = Manifold(lambda z: torch.stack([z.sum(-1), z.sum(-1) ** 2], -1)).as_space()
        values = torch.linalg.eigvalsh(rank_one.expand(draws(3, 6, 2)).gauss_newton.dense())
        assert (values[:, :4].abs() < 1e-12 * values[:, -1:]).all()
        assert (values[:, 4:] > 1).all()


class TestResidual:
    """``−2 h Jᵀ x″`` at the interior nodes, of a curve ``x(t) = f(z(t))``; h is 1/n."""

    @pytest.mark.parametrize("decoder", [spaces.sphere, mlp(2, 5)], ids=["sphere", "mlp"])
    def test_sixth_order(self, decoder):
        def z(t):
            return torch.stack([0.5 * torch.sin(2 * t), 0.4 * torch.cos(3 * t)], -1)

        errors = []
        for n in (32, 64, 128):
            t = torch.linspace(0, 1, n + 1, dtype=F64)
            inner, ones = t[1:-1], torch.ones(n - 1, dtype=F64)

            def velocity(t, ones=ones):
                return torch.func.jvp(lambda t: decoder(z(t)), (t,), (ones,))[1]

            second = torch.func.jvp(velocity, (inner,), (ones,))[1]
            j = torch.stack([jacobian(lambda p: decoder(p[None])[0], p) for p in z(inner)])
            expected = -2 / n * torch.einsum("ndi,nd->ni", j, second)
            errors.append(
                (Manifold(decoder).as_space().residual(z(t)[None])[0] - expected).abs().max() * n
            )
        orders = torch.stack(errors[:-1]).div(torch.stack(errors[1:])).log2()
        assert (orders > 4.5).all()  # one less at the ends, where the stencils are one-sided

    @pytest.mark.parametrize("n", [2, 3, 4, 6, 9])
    def test_exact_for_polynomials(self, n):
        # Stencils of n + 1 nodes, seven at most: exact for z = t^d up to d = min(n, 6), where z″ =
        # d (d − 1) t^(d − 2).
        t = torch.linspace(0, 1, n + 1, dtype=F64)
        for d in range(2, min(n, 6) + 1):
            found = Manifold(lambda z: 3 * z).as_space().residual((t**d)[None, :, None])[0, :, 0]
            expected = -2 / n * 9 * d * (d - 1) * t[1:-1] ** (d - 2)
            assert torch.allclose(found, expected, rtol=1e-10, atol=1e-11)

    def test_none_without_features(self):
        nodes = draws(2, 9, 2, size=0.6)
        assert DISC.residual(nodes) is None
        assert CASES["mlp, custom matrix"].space.residual(nodes) is None


class TestNoise:
    CASES = {
        "sphere": (Manifold(spaces.sphere).as_space(), 0.6),
        "far from the origin": (Manifold(lambda z: spaces.sphere(z) + 100).as_space(), 0.6),
        "mlp": (Manifold(mlp(2, 20)).as_space(), 0.6),
        "custom": (
            Manifold(mlp(2, 4), ambient=ambient.Custom(matrix=skewed)).as_space(),
            0.6,
        ),
        "poincaré disc": (DISC, 0.6),
    }

    @pytest.mark.parametrize("segments", [4, 8, 32])
    @pytest.mark.parametrize("name", CASES)
    def test_bounds_the_rounding_error(self, name, segments):
        space, size = self.CASES[name]
        ends = draws(2, 200, 2, size=size)
        nodes = solvers.Curve.line(*ends, segments).nodes.float()
        single, double = (space.expand(x, second_order=False) for x in (nodes, nodes.double()))
        error = (single.energy.double() - double.energy).abs()
        assert single.noise.shape == (200,)
        assert (error <= single.noise).all()
        if segments <= 8:  # and it is no wild guess
            assert error.max() >= 0.01 * single.noise.min()
            assert (error / single.noise).max() >= 0.02


class TestExpansionBatches:
    @pytest.mark.parametrize("name", CASES)
    def test_a_curve_does_not_depend_on_its_neighbours(self, name):
        case = CASES[name]
        nodes = draws(4, 6, case.m, size=0.6)
        together, alone = case.space.expand(nodes), case.space.expand(nodes[2:3])
        for field in ("energy", "gradient", "noise"):
            assert torch.allclose(
                getattr(together, field)[2:3], getattr(alone, field), rtol=1e-11, atol=1e-12
            )
        assert torch.allclose(
            together.hessian.dense()[2:3], alone.hessian.dense(), rtol=1e-10, atol=1e-10
        )

    def test_nan_stays_in_its_own_curve(self):
        nodes = draws(3, 5, 2, size=0.6)
        nodes[1, 2] = torch.nan
        for space in (DISC, Manifold(spaces.sphere).as_space(), CASES["mlp, custom matrix"].space):
            found = space.expand(nodes)
            assert found.energy.isfinite().tolist() == [True, False, True]
            assert found.hessian.dense().isfinite().flatten(1).all(1).tolist() == [
                True,
                False,
                True,
            ]

    @pytest.mark.parametrize("second_order", [True, False])
    def test_cat(self, second_order):
        a, b = (DISC.expand(draws(p, 5, 2, size=0.6, seed=p), second_order) for p in (2, 3))
        both = Expansion.cat([a, b])
        assert torch.equal(both.energy, torch.cat([a.energy, b.energy]))
        assert torch.equal(both.gauss_newton.dense()[2:], b.gauss_newton.dense())
        assert (both.hessian is None) == (not second_order)
        assert Expansion.cat([a]) is a


class TestMetricSpace:
    def test_geoopt_knows_the_same_poincare_disc(self):
        z, v, w = draws(20, 2, size=0.65), draws(20, 2, seed=1), draws(20, 2, seed=2)
        inner = torch.einsum("ki,kij,kj->k", v, DISC.metric(z), w)
        assert torch.allclose(inner, BALL.inner(z, v, w, keepdim=True)[:, 0], rtol=1e-12)
        assert torch.allclose(DISC.norm(z, v), BALL.norm(z, v), rtol=1e-12)
        r = solvers.geodesic(DISC, z[:10], z[10:], rtol=1e-8)
        assert torch.allclose(r.length, BALL.dist(z[:10], z[10:]), rtol=1e-8)
        for t in (0.25, 0.5):  # the place on a curve is accurate to second order only, h² = 1/64²
            assert torch.allclose(
                r.curve(t), BALL.geodesic(torch.tensor(t, dtype=F64), z[:10], z[10:]), atol=1e-3
            )

    @pytest.mark.parametrize("batch", [(), (6,), (2, 3)], ids=str)
    def test_accelerations_in_closed_form(self, batch):
        # A conformal metric e^{2φ} I has z̈ = |v|² ∇φ − 2 (∇φ·v) v. Disc: ∇φ = 2z/(1 − |z|²); half
        # plane: (0, −1/y).
        z, v = draws(*batch, 2, size=0.65), draws(*batch, 2, seed=1)
        for space, points, slope in (
            (DISC, z, 2 * z / (1 - z.square().sum(-1, keepdim=True))),
            (
                HALF_PLANE,
                z + 2,
                torch.stack([torch.zeros_like(z[..., 0]), -1 / (z[..., 1] + 2)], -1),
            ),
        ):
            expected = (
                v.square().sum(-1, keepdim=True) * slope - 2 * (slope * v).sum(-1, keepdim=True) * v
            )
            assert torch.allclose(space.acceleration(points, v), expected, rtol=1e-11, atol=1e-12)
            assert space.metric(points).shape == (*batch, 2, 2)
            assert space.norm(points, v).shape == batch

    def test_knows_no_ambient_distance(self):
        assert DISC.ambient_distance(draws(3, 2), draws(3, 2)) is None

    def test_constant_metric(self):
        flat = MetricSpace(lambda z: torch.eye(2).to(z).expand(len(z), 2, 2))
        assert flat.acceleration(draws(4, 2), draws(4, 2, seed=1)).abs().max() == 0

    def test_entries_written_one_by_one(self):
        # How most people would write it: zeros, then the entries. ds² = dr² + r² dθ², where r̈ = r
        # θ̇², θ̈ = −2 ṙ θ̇/r.
        def polar(z):
            g = torch.zeros(len(z), 2, 2, dtype=z.dtype)
            g[:, 0, 0] = 1
            g[:, 1, 1] = z[:, 0] ** 2
            return g

        z, v = draws(5, 2) + 2, draws(5, 2, seed=1)
        expected = torch.stack([z[:, 0] * v[:, 1] ** 2, -2 * v[:, 0] * v[:, 1] / z[:, 0]], -1)
        space = MetricSpace(polar)
        r = solvers.geodesic(space, z[:1], z[1:2], rtol=1e-8)
        x = torch.stack(
            [z[:, 0] * z[:, 1].cos(), z[:, 0] * z[:, 1].sin()], -1
        )  # it is the flat plane
        assert torch.allclose(r.length, (x[0] - x[1]).norm(), rtol=1e-7)
        assert torch.allclose(space.acceleration(z, v), expected, rtol=1e-12)


class TestWrong:
    @pytest.mark.parametrize(
        "tensor",
        [
            lambda z: torch.eye(2).to(z),
            lambda z: torch.eye(3).to(z).expand(len(z), 3, 3),
            lambda z: torch.ones_like(z),
            lambda z: torch.eye(2).to(z).expand(len(z) + 1, 2, 2),
        ],
        ids=["one for all", "3 × 3", "diagonal", "a row too many"],
    )
    def test_shape_of_the_tensor(self, tensor):
        space, z = MetricSpace(tensor), draws(5, 2)
        for call in (
            lambda: space.metric(z),
            lambda: space.norm(z, z),
            lambda: space.acceleration(z, z),
            lambda: space.expand(z[None]),
            lambda: solvers.geodesic(space, z[:1], z[1:2]),
        ):
            with pytest.raises(
                ShapeError,
                match=r"MetricSpace.metric: expected a metric tensor of shape \(\d+, 2, 2\)",
            ):
                call()

    def test_no_tensor(self):
        with pytest.raises(RiemaeError, match=r"MetricSpace.metric.*list"):
            MetricSpace(lambda z: [[1.0, 0.0], [0.0, 1.0]]).metric(draws(5, 2))

    def test_another_dtype_than_the_points(self):
        single = MetricSpace(lambda z: torch.eye(2).expand(len(z), 2, 2))
        assert single.norm(draws(5, 2).float(), draws(5, 2).float()).shape == (5,)
        with pytest.raises(DTypeError, match="MetricSpace"):
            single.norm(draws(5, 2), draws(5, 2))

    @pytest.mark.parametrize("entry", [0.0, -1.0])
    def test_places_where_the_metric_is_not_positive_definite(self, entry):
        space = MetricSpace(
            lambda z: torch.diag_embed(torch.stack([torch.ones_like(z[:, 0]), z[:, 0]], -1))
        )
        z = torch.tensor([[1.0, 0], [entry, 0], [2, 0], [entry, 1]], dtype=F64)
        with pytest.raises(
            SingularMetricError, match=r"at 2 of 4 points \(first: \[1, 3\]\)"
        ) as caught:
            space.acceleration(z, torch.ones_like(z))
        assert "MetricSpace.acceleration" in str(caught.value)
        assert space.acceleration(z[[0, 2]], torch.ones(2, 2, dtype=F64)).isfinite().all()
        # There is no decoder whose latent_dim could be lowered.
        assert "decoder" not in str(caught.value)


class TestProtocol:
    def test_manifold_has_a_space_and_a_metric_space_is_one(self):
        assert isinstance(Manifold(spaces.sphere), HasSpace)
        assert isinstance(Manifold(spaces.sphere).as_space(), Space)
        assert not isinstance(DISC, HasSpace)
        assert isinstance(DISC, Space)

    @pytest.mark.parametrize("thing", [object(), torch.nn.Linear(2, 3), spaces.sphere, None])
    def test_other_things_are_not(self, thing):
        assert not isinstance(thing, Space)

    def test_functions_that_fail_at_the_points_say_so(self):
        half_plane = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None] ** 2)
        with pytest.raises(MetricError, match=r"IndexError for points of shape \(3, 1\)"):
            half_plane.metric(torch.ones(3, 1, dtype=torch.float64))

    def test_a_space_of_ones_own(self):
        class Stretched:
            """The disc at twice its size, with nothing but the protocol's methods."""

            metric = staticmethod(lambda z: 4 * DISC.metric(z))
            norm = staticmethod(lambda z, v: 2 * DISC.norm(z, v))
            acceleration = staticmethod(DISC.acceleration)
            squared_chords = staticmethod(lambda nodes: 4 * DISC.squared_chords(nodes))
            residual = staticmethod(lambda nodes: None)
            ambient_distance = staticmethod(DISC.ambient_distance)

            @staticmethod
            def expand(nodes, second_order=True):
                return MetricSpace(Stretched.metric).expand(nodes, second_order)

        z = draws(2, 4, 2, size=0.6)
        assert isinstance(Stretched(), Space)
        r = solvers.geodesic(Stretched(), z[0], z[1], rtol=1e-8)
        assert torch.allclose(r.length, 2 * BALL.dist(z[0], z[1]), rtol=1e-8)
        assert solvers.graph(Stretched(), z.flatten(0, 1), k=7).distances().isfinite().all()
