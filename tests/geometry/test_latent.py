"""Periodic and curved latent spaces: wrapped distances in closed form, start curves, distortion."""

import geoopt
import pytest
import torch
from spaces import clifford_torus, great_circle, poincare, rand, sphere, torus
from torch.testing import assert_close

from riemae import Manifold, ambient
from riemae.exceptions import DecoderError, NotConvergedError, OptionError, ShapeError
from riemae.geometry.latent import Chart, Periodic
from riemae.solvers import Newton

TURN = 2 * torch.pi


def draw(seed, *shape, size=1.0):
    return rand(torch.Generator().manual_seed(seed), *shape, low=-size, high=size)


def wrapped(gap, period=TURN):
    return (gap + period / 2) % period - period / 2


FLAT = Manifold(clifford_torus, latent=(TURN, TURN))
ROUND = Manifold(torus, latent=(TURN, TURN))


class TestPeriodic:
    def test_clifford_torus(self):
        # Flat: the distance is that of the wrapped difference.
        z0, z1 = draw(0, 12, 2, size=9), draw(1, 12, 2, size=9)
        true = wrapped(z1 - z0).norm(dim=-1)
        r = FLAT.geodesic(z0, z1, rtol=1e-6)
        assert_close(r.length, true, rtol=1e-6, atol=0)
        assert_close(r.curve.nodes[:, 0], z0)
        turns = (r.curve(1.0) - z1) / TURN
        assert_close(turns, turns.round(), rtol=0, atol=1e-12)
        assert (
            Manifold(clifford_torus).geodesic(z0, z1).length > 1.01 * true
        ).any()  # what it would be without

    def test_meridians_of_a_torus(self):
        # |dx| ≥ r |dv|, with equality along a meridian: the distance of points at one u is r |Δv|,
        # wrapped.
        u, v0, v1 = draw(0, 6, size=4), draw(1, 6, size=6), draw(2, 6, size=6)
        d = ROUND.distance(torch.stack([u, v0], -1), torch.stack([u + TURN, v1], -1), rtol=1e-6)
        assert_close(d, wrapped(v1 - v0).abs(), rtol=1e-6, atol=0)

    def test_the_inner_equator_of_a_torus(self):
        # |dx| ≥ (R − r)|du|, with equality along v = π.
        u0, u1 = draw(1, 6, size=6), draw(2, 6, size=6)
        pi = torch.full_like(u0, torch.pi)
        d = ROUND.distance(torch.stack([u0, pi], -1), torch.stack([u1, -pi], -1), rtol=1e-6)
        assert_close(d, wrapped(u1 - u0).abs(), rtol=1e-6, atol=0)

    def test_the_longer_way_in_coordinates_can_be_the_shorter_one(self):
        # Along the outer equator (radius 3) the coordinates are 3.0 apart in one direction and 3.28
        # in the other, but a hill in the first half makes the first path longer.
        def hill(z):
            x = torus(z)
            height = 3 * torch.exp(4 * (torch.cos(z[:, :1] - 1.5) - 1))
            return torch.cat([x, height], -1)

        z0, z1 = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[3.0, 0.0]]).double()
        r = Manifold(hill, latent=(TURN, TURN)).geodesic(z0, z1)
        assert r.curve(1.0)[0, 0] < 0
        assert r.length < 0.95 * Manifold(hill).geodesic(z0, z1).length

    def test_whole_turns_change_nothing(self):
        z0, z1 = draw(3, 5, 2, size=3), draw(4, 5, 2, size=3)
        around = z1 + TURN * torch.tensor([[1, 0], [0, -1], [2, 1], [-1, -1], [0, 3]])
        assert_close(
            ROUND.distance(z0, around, rtol=1e-6),
            ROUND.distance(z0, z1, rtol=1e-6),
            rtol=2e-6,
            atol=0,
        )
        assert_close(
            ROUND.distance(z0, z0 + TURN, rtol=1e-6), torch.zeros(5).double(), rtol=0, atol=1e-7
        )

    def test_one_coordinate_may_have_no_period(self):
        M = Manifold(
            lambda z: torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], -1), latent=(TURN, None)
        )
        z0, z1 = draw(0, 8, 2, size=9), draw(1, 8, 2, size=9)
        true = torch.hypot(wrapped((z1 - z0)[:, 0]), (z1 - z0)[:, 1])
        assert_close(M.distance(z0, z1, rtol=1e-6), true, rtol=1e-6, atol=0)

    def test_gradient_of_a_wrapped_distance(self):
        z0, z1 = draw(0, 6, 2, size=9), draw(1, 6, 2, size=9).requires_grad_()
        (gradient,) = torch.autograd.grad(FLAT.distance(z0, z1, rtol=1e-6).sum(), z1)
        gap = wrapped(z1.detach() - z0)
        assert_close(gradient, gap / gap.norm(dim=-1, keepdim=True), rtol=1e-4, atol=1e-4)

    def test_logarithm_and_distance_matrix(self):
        z0, z1 = draw(0, 3, 2, size=9), draw(1, 3, 2, size=9)
        assert_close(FLAT.log(z0, z1), wrapped(z1 - z0), rtol=1e-6, atol=1e-6)
        true = wrapped(z0[:, None] - z0).norm(dim=-1)
        assert_close(FLAT.distance_matrix(z0, rtol=1e-6), true, rtol=1e-6, atol=1e-12)

    def test_a_start_curve_of_ones_own_is_kept(self):
        z0, z1 = torch.tensor([[0.0, 0.0]]).double(), torch.tensor([[5.0, 0.0]]).double()
        assert_close(
            FLAT.geodesic(z0, z1, init=torch.stack([z0, z1], 1), rtol=1e-8).length,
            torch.tensor([5.0]).double(),
        )
        assert_close(FLAT.geodesic(z0, z1).length, torch.tensor([TURN - 5.0]).double())

    def test_wrap(self):
        z = torch.tensor([[4.0, 40.0], [-4.0, 3.0]])
        assert_close(
            Periodic((TURN, None)).wrap(z), torch.tensor([[4.0 - TURN, 40.0], [TURN - 4.0, 3.0]])
        )

    def test_failures_are_loud_and_carry_the_result(self):
        z0, z1 = draw(3, 3, 2, size=3), draw(4, 3, 2, size=3)
        with pytest.raises(NotConvergedError) as failure:
            ROUND.geodesic(z0, z1, rtol=1e-9, solver=Newton(max_segments=8))
        assert failure.value.result.length.shape == (3,)
        nan = z0.clone()
        nan[1] = torch.nan
        r = ROUND.geodesic(nan, z1, throw=False)
        assert r.converged.tolist() == [True, False, True]

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda: Manifold(torus, latent=(0.0, None)), OptionError, "positive periods"),
            (lambda: Manifold(torus, latent=(None, None)), OptionError, "positive periods"),
            (lambda: Manifold(torus, latent=("2π", None)), OptionError, "numbers or None"),
            (
                lambda: Manifold(torus, latent=3.0),
                OptionError,
                "tuple of periods or a geoopt manifold",
            ),
            (
                lambda: Manifold(torus, latent=(3.0, TURN)).distance(draw(0, 2), draw(1, 2)),
                DecoderError,
                "coordinate 0",
            ),
            (
                lambda: Manifold(torus, latent=(TURN,)).distance(draw(0, 2), draw(1, 2)),
                ShapeError,
                "1 coordinates",
            ),
        ],
    )
    def test_what_is_refused(self, call, error, message):
        with pytest.raises(error, match=message):
            call()


class TestCharts:
    def test_poincare_ball(self):
        # The identity decodes into the same ball: start curves are geodesics, and nothing is left
        # to do.
        angle = torch.tensor([0.0, 1.0, 2.0]).double()
        z0 = 0.9 * torch.stack([angle.cos(), angle.sin()], -1)
        z1 = 0.8 * torch.stack([(angle + 1.2).cos(), (angle + 1.2).sin()], -1)
        inside = ambient.Geoopt(geoopt.PoincareBall())
        M, plain = (
            Manifold(lambda z: z, inside, latent=geoopt.PoincareBall()),
            Manifold(lambda z: z, inside),
        )
        r, straight = M.geodesic(z0, z1, rtol=1e-6), plain.geodesic(z0, z1, rtol=1e-6)
        assert_close(r.length, poincare(z0, z1), rtol=1e-6, atol=0)
        assert (r.stats["steps"] < straight.stats["steps"]).all()
        assert_close(M.log(z0, z1), geoopt.PoincareBall().logmap(z0, z1), rtol=1e-5, atol=1e-5)

    def test_sphere(self):
        M = Manifold(sphere, latent=geoopt.SphereProjection())
        z0, z1 = draw(0, 6, 2, size=1.5), draw(1, 6, 2, size=1.5)
        assert_close(M.distance(z0, z1, rtol=1e-6), great_circle(z0, z1), rtol=1e-6, atol=0)

    def test_product(self):
        space = geoopt.ProductManifold((geoopt.PoincareBall(), 2), (geoopt.Euclidean(), 1))
        M = Manifold(lambda z: z, ambient.Geoopt(space), latent=space)
        z0, z1 = draw(0, 4, 3, size=0.6), draw(1, 4, 3, size=0.6)
        true = torch.hypot(poincare(z0[:, :2], z1[:, :2]), z0[:, 2] - z1[:, 2])
        assert_close(M.distance(z0, z1, rtol=1e-6), true, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("scale", [1.0, 2.0])
    def test_distortion_is_relative_to_the_latent_space(self, scale):
        ball = geoopt.PoincareBall()
        M = Manifold(lambda z: z, ambient.Geoopt(geoopt.Scaled(ball, scale)), latent=ball)
        z = draw(0, 20, 2, size=0.6)
        # G = scale² times the latent metric: λ = scale², so Σ (1 − λ)² = 2 (1 − scale²)².
        assert_close(
            M.distortion(z), torch.tensor(2 * (1 - scale**2) ** 2).double(), rtol=1e-9, atol=1e-12
        )
        assert_close(
            M.distortion(z, "scaled_isometry"), torch.tensor(0.0).double(), rtol=0, atol=1e-12
        )
        assert (
            M.distortion(
                z,
                "scaled_isometry",
                latent_metric=lambda z: torch.eye(2).to(z).expand(len(z), 2, 2),
            )
            > 0.1
        )
        assert_close(
            M.distortion(z, latent_metric=geoopt.Scaled(ball, scale)), torch.tensor(0.0).double()
        )

    @pytest.mark.parametrize("manifold", [geoopt.Sphere(), geoopt.Lorentz(), geoopt.Stiefel()])
    def test_embedded_manifolds_are_no_charts(self, manifold):
        with pytest.raises(OptionError, match="in coordinates.*PoincareBall or SphereProjection"):
            Manifold(sphere, latent=manifold)

    def test_points_outside_the_ball_are_refused(self):
        M = Manifold(sphere, latent=geoopt.PoincareBall())
        with pytest.raises(OptionError, match=r"points of PoincareBall.*projx"):
            M.geodesic(draw(0, 2), 3 + draw(1, 2))


def test_the_latent_space_stays_with_the_manifold():
    assert isinstance(FLAT.latent, Periodic)
    assert repr(FLAT.latent) == "Periodic(6.283, 6.283)"
    there = FLAT.to(dtype=torch.float32)
    z0, z1 = draw(0, 4, 2, size=9).float(), draw(1, 4, 2, size=9).float()
    assert_close(
        there.distance(z0, z1, rtol=1e-3), wrapped(z1 - z0).norm(dim=-1), rtol=1e-3, atol=0
    )
    assert isinstance(Manifold(sphere, latent=geoopt.PoincareBall()).latent, Chart)
    assert Manifold(sphere).latent is None
