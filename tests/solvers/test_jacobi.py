"""Jacobi fields and conjugate points against constant curvature, the exponential map, and the Morse
index."""

import math

import pytest
import spaces
import torch

from riemae import Manifold, solvers
from riemae.exceptions import NotConvergedError, OptionError, ShapeError


def sphere_tensor(z, radius=1.0):
    """The round metric in stereographic coordinates, ``4 r²/(1 + |z|²)²``."""
    return (
        torch.eye(z.shape[-1]).to(z) * (2 * radius / (1 + z.square().sum(-1)))[:, None, None] ** 2
    )


def torus_tensor(z):
    """``(2 + cos v)² du² + dv²``."""
    return torch.diag_embed(torch.stack([(2 + z[:, 1].cos()) ** 2, torch.ones_like(z[:, 1])], -1))


# Written as metric tensors: forward mode through a decoder's acceleration takes three times as long
# on spaces so small.
S2, TORUS = solvers.MetricSpace(sphere_tensor), solvers.MetricSpace(torus_tensor)
DISC = solvers.MetricSpace(spaces.poincare_tensor)
PLANE = Manifold(spaces.affine)


def real(*values):  # rows
    return torch.tensor(values, dtype=torch.float64)


def inner(space, z, u, v):
    return torch.einsum("...i,...ij,...j->...", u, space.metric(z), v)


def frame(space, z, v, w):
    """Unit v, and w made orthogonal to it and unit."""
    v = v / space.norm(z, v)[..., None]
    w = w - inner(space, z, v, w)[..., None] * v
    return v, w / space.norm(z, w)[..., None]


class TestJacobi:
    @pytest.mark.parametrize(
        ("space", "size", "slope"),
        [
            (S2, torch.sin, torch.cos),
            (PLANE, lambda t: t, torch.ones_like),
            (DISC, torch.sinh, torch.cosh),
        ],
        ids=["sphere", "plane", "disc"],
    )
    def test_constant_curvature(self, space, size, slope):
        # J'' + K J = 0 with J(0) = 0, |J'(0)| = 1: sin t, t, sinh t for K = 1, 0, −1; J stays
        # orthogonal to ż.
        z, t = real([0.1, -0.2]), torch.linspace(0.5, 2.0, 3, dtype=torch.float64)
        v, w = frame(space, z, real([0.3, 0.5]), real([1.0, 0.0]))
        field = solvers.jacobi(space, z, v, slope=w, t=t)
        flat = [x[0] for x in (field.points, field.values, field.derivatives, field.velocities)]
        assert field.values.shape == (1, 3, 2)
        assert torch.allclose(space.norm(flat[0], flat[1]), size(t), rtol=1e-7)
        assert torch.allclose(space.norm(flat[0], flat[2]), slope(t).abs(), rtol=1e-7)
        assert inner(space, flat[0], flat[1], flat[3]).abs().max() < 1e-7

    def test_starting_from_a_value(self):
        # J(0) = e, J'(0) = 0 on the unit sphere: cos t.
        z = real([0.1, -0.2])
        v, w = frame(S2, z, real([0.3, 0.5]), real([1.0, 0.0]))
        field = solvers.jacobi(S2, z, v, start=w, t=1.2)
        assert field.values.shape == (1, 2)
        assert torch.allclose(
            inner(S2, field.points, field.values, field.values).sqrt(),
            real([abs(math.cos(1.2))])[0],
        )

    def test_tangential_fields(self):
        # J = (a + b t) ż for J(0) = a ż, J'(0) = b ż, on any space.
        z, v = real([0.3, 0.5], [1.0, -1.0]), real([0.4, 0.2], [-0.1, 0.6])
        field = solvers.jacobi(TORUS, z, v, start=2 * v, slope=-0.5 * v, t=1.5)
        assert torch.allclose(field.values, 1.25 * field.velocities, rtol=1e-7)
        assert torch.allclose(field.derivatives, -0.5 * field.velocities, rtol=1e-6)

    def test_is_the_derivative_of_exp(self):
        M = Manifold(spaces.torus)
        z, v, a, b = real([0.3, 0.5]), real([0.4, 0.9]), real([0.2, -0.7]), real([0.5, 0.1])
        # DJ/dt(0) = dv + Γ(v, a) when the start point moves along a and the coordinates of v along
        # dv.
        turn = torch.einsum("bkij,bi,bj->bk", M.christoffel(z), v, a)
        field = M.jacobi_field(z, v, start=a, slope=b + turn, t=0.6)
        h = 1e-3
        steps = h * real([-2], [-1], [1], [2])
        shot = M.exp(z + steps * a, v + steps * b, 0.6, rtol=1e-12)
        slope = (8 * (shot[2] - shot[1]) - (shot[3] - shot[0])) / (12 * h)
        assert torch.allclose(field.values, slope, atol=1e-8)

    def test_float32(self):
        z, v, w = (torch.tensor(x) for x in ([[0.1, -0.2]], [[0.2, 0.3]], [[0.1, 0.0]]))
        field = solvers.jacobi(S2, z, v, slope=w)
        assert field.values.dtype == torch.float32
        exact = solvers.jacobi(S2, z.double(), v.double(), slope=w.double()).values
        assert torch.allclose(field.values.double(), exact, atol=1e-4)

    def test_a_sample_that_fails_leaves_the_others_alone(self):
        z, v = real([0.1, 0.0], [0.1, 0.0]), real([0.1, 0.3], [math.inf, 0.0])
        field = solvers.jacobi(DISC, z, v, slope=v, throw=False)
        assert field.values[1].isnan().all()
        assert torch.allclose(
            field.values[0], solvers.jacobi(DISC, z[:1], v[:1], slope=v[:1]).values[0]
        )
        with pytest.raises(NotConvergedError, match=r"1 that failed \(first: \[1\]\)"):
            solvers.jacobi(DISC, z, v, slope=v)

    def test_wrong_input(self):
        z = torch.zeros(2, 2).double()
        with pytest.raises(ShapeError, match="Pair them up"):
            solvers.jacobi(DISC, z, torch.zeros(3, 2).double())
        with pytest.raises(ShapeError, match="Pair them up"):
            solvers.jacobi(DISC, z, torch.zeros(2, 2))
        for t in (math.nan, real(0.5, 0.2), real(-1.0, 1.0)):
            with pytest.raises(OptionError, match="time"):
                solvers.jacobi(DISC, z, z, t=t)


class TestConjugatePoints:
    def test_sphere(self):
        # At every multiple of π r / |v|, all m − 1 directions at once.
        space = solvers.MetricSpace(lambda z: sphere_tensor(z, 2.0))
        z = real([0.1, 0.2, 0.3])
        v, _ = frame(space, z, real([0.3, -0.2, 0.1]), real([0.0, 0.0, 1.0]))
        found = solvers.conjugate_points(space, z, v, 6.6, rtol=1e-6)
        assert torch.allclose(found.times, real([2 * math.pi]), atol=1e-4)
        assert found.multiplicity.tolist() == [[2]]
        assert found.index.tolist() == [2]
        # It is the antipode, −z/|z|² in these coordinates.
        assert torch.allclose(found.points[:, 0], -z / z.square().sum(), rtol=1e-3)

    def test_none_where_the_curvature_is_not_positive(self):
        z, v = real([0.1, 0.2]), real([0.2, -0.1])
        for space in (DISC, PLANE):
            found = solvers.conjugate_points(space, z, v, 8.0, rtol=1e-3)
            assert found.times.shape == (1, 0)
            assert found.index.tolist() == [0]

    def test_torus_and_a_batch(self):
        # Outer equator: K = 1/(r (R + r)) = 1/3 at speed R + r = 3, so that conjugate points come
        # every π/√3; on the inner one K = −1/(r (R − r)) = −1 and there are none. Neither looks at
        # the other.
        z, v = real([0.0, 0.0], [0.0, math.pi]), real([1.0, 0.0], [1.0, 0.0])
        found = solvers.conjugate_points(TORUS, z, v, 4.0)
        step = math.pi / math.sqrt(3)
        assert torch.allclose(found.times[0], real([step, 2 * step])[0], atol=1e-7)
        assert found.times[1].isnan().all()
        assert found.multiplicity.tolist() == [[1, 1], [0, 0]]
        assert torch.allclose(found.points[0, :, 0], found.times[0], atol=1e-7)

    def test_agrees_with_the_morse_index(self):
        # The number of conjugate points is the number of negative eigenvalues of the discrete
        # Hessian.
        z, v = real([0.0, 0.2], [0.0, 0.2]), real([1.2, 0.12], [2.6, 0.26])
        path = solvers.shoot(TORUS, z, v, segments=32, rtol=1e-7)
        r = solvers.geodesic(TORUS, z, path.nodes[:, -1], init=path, rtol=1e-6)
        assert torch.allclose(r.length, TORUS.norm(z, v), rtol=1e-5)
        found = solvers.conjugate_points(TORUS, z, v, rtol=1e-6)
        assert found.index.tolist() == r.index.tolist() == [0, 1]

    def test_failures(self):
        # The metric of this surface, (1 + 1/(4x)) dx² + dy², ends at x = 0, a finite way off.
        edge = solvers.MetricSpace(
            lambda z: torch.diag_embed(
                torch.stack([1 + 1 / (4 * z[:, 0]), torch.ones_like(z[:, 1])], -1)
            )
        )
        z, v = real([1.0, 0.0]), real([-1.0, 0.0])
        with pytest.raises(NotConvergedError, match="1 that failed"):
            solvers.conjugate_points(edge, z, v, 10.0, rtol=1e-4, max_steps=12)
        assert solvers.conjugate_points(
            edge, z, v, 10.0, rtol=1e-4, max_steps=12, throw=False
        ).times.shape == (1, 0)
        for t in (0.0, -1.0, math.inf, math.nan):
            with pytest.raises(OptionError, match="positive finite time"):
                solvers.conjugate_points(edge, z, v, t)


def test_methods_of_a_manifold():
    M = Manifold(spaces.sphere)
    z, v, w = real([0.1, 0.2]), real([0.3, 0.1]), real([0.0, 0.2])
    ours, theirs = M.jacobi_field(z[0], v, slope=w, t=0.5), solvers.jacobi(S2, z, v, slope=w, t=0.5)
    assert torch.allclose(ours.values, theirs.values, atol=1e-8)
    found = M.conjugate_points(z[0], v[0], 0.5, rtol=1e-4)
    assert found.times.shape == (0,)
    assert int(found.index) == 0
    with pytest.raises(ShapeError, match=r"Manifold\.jacobi_field"):
        M.jacobi_field(z, torch.zeros(1, 3).double())


class WithoutCurvature:
    """A manifold's space that does not tell its curvature."""

    def __init__(self, space):
        self.space = space

    def __getattr__(self, name):
        if name in ("deviation", "turning", "as_space", "__reduce__"):
            raise AttributeError(name)
        return getattr(self.space, name)


class TestCurvatureAlongAVelocity:
    """What a decoder's space knows, against tensors, closed forms, and forward mode."""

    @staticmethod
    def network(m, width, data):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = torch.nn.Sequential(
                torch.nn.Linear(m, width), torch.nn.Tanh(), torch.nn.Linear(width, data)
            )
        return Manifold(layers.double().requires_grad_(False))

    @staticmethod
    def vectors(m, count=3):
        generator = torch.Generator().manual_seed(1)
        return torch.randn(count, 5, m, generator=generator, dtype=torch.float64).unbind()

    def test_it_is_that_of_the_tensors(self):
        M = self.network(3, 16, 8)
        z, v, w = self.vectors(3)
        space = M.as_space(z)
        turning, bending = space.deviation(z, v).unbind(1)
        gamma = M.christoffel(z)
        torch.testing.assert_close(turning, torch.einsum("bkij,bi->bkj", gamma, v))
        torch.testing.assert_close(space.turning(z, v), turning)
        # R_ijkl = ⟨R(e_i, e_j) e_k, e_l⟩
        lowered = torch.einsum("bijkl,bi,bj,bk->bl", M.riemann(z), w, v, v)
        ours = torch.einsum("bkl,bli,bi->bk", M.metric(z), bending, w)
        torch.testing.assert_close(ours, lowered)

    def test_on_a_sphere_of_radius_two(self):
        # R(w, v) v = (⟨v, v⟩ w − ⟨w, v⟩ v) / r²
        M = Manifold(lambda z: 2 * spaces.sphere(z))
        z, v, w = self.vectors(4)
        bending = M.as_space(z).deviation(z, v)[:, 1]
        vv, wv = M.inner(z, v, v), M.inner(z, w, v)
        expected = (vv[:, None] * w - wv[:, None] * v) / 4
        torch.testing.assert_close((bending @ w[..., None])[..., 0], expected)

    def test_fields_transport_and_conjugate_points_are_those_of_forward_mode(self):
        M = self.network(3, 16, 8)
        z, v, w = self.vectors(3)
        known = M.as_space(z)
        unknown = WithoutCurvature(known)
        curve = solvers.shoot(known, z, 0.5 * v, segments=4)
        calls = [
            lambda space: solvers.jacobi(space, z, v, w, w.flip(0)).values,
            lambda space: solvers.jacobi(space, z, v, w, w.flip(0)).derivatives,
            lambda space: solvers.transport(space, curve, w),
        ]
        for call in calls:
            torch.testing.assert_close(call(known), call(unknown), rtol=1e-6, atol=1e-8)

    def test_conjugate_points_of_a_decoded_sphere(self):
        M = Manifold(lambda z: 2 * spaces.sphere(z))
        z, v = self.vectors(3, 2)
        v = v / M.norm(z, v)[:, None]
        found = M.conjugate_points(z, v, t=10.0)  # at distance 2π, all fields but one vanish
        torch.testing.assert_close(found.times, torch.full_like(found.times, 2 * math.pi))
        assert found.multiplicity.tolist() == [[2]] * 5

    def test_a_singular_start_fails_alone(self):
        # The metric has rank 1 at z = 0.
        M = Manifold(lambda z: torch.cat([z[:, :1], z[:, :1] * z[:, 1:], z[:, 1:] ** 2], -1))
        z = real([0.0, 0.0], [1.0, 1.0])
        v = real([0.0, 1.0], [0.1, 0.2])
        found = solvers.jacobi(M, z, v, None, v, throw=False)
        assert found.values[0].isnan().all()
        assert found.values[1].isfinite().all()

    def test_gradients_reach_the_decoder(self):
        M = self.network(2, 8, 5)
        weight = M.decoder[0].weight
        z, v, w = self.vectors(2)

        def size():
            return solvers.jacobi(M, z[:2], v[:2], None, w[:2], t=0.3).values.square().sum()

        weight.requires_grad_()
        (slope,) = torch.autograd.grad(size(), weight)
        step = 1e-5
        with torch.no_grad():
            weight[0, 0] += step
            high = size()
            weight[0, 0] -= 2 * step
            low = size()
            weight[0, 0] += step
        weight.requires_grad_(False)
        torch.testing.assert_close(slope[0, 0], (high - low) / (2 * step), rtol=1e-5, atol=1e-8)
