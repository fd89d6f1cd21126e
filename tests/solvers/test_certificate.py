"""The certificate of a geodesic: residual of the geodesic equation, evenness of the speed, and the
printed result."""

import math
import pickle

import pytest
import spaces
import torch

from riemae import Manifold, solvers
from riemae.exceptions import OptionError
from riemae.solvers import Curve, Newton, Status
from riemae.solvers.certificate import unevenness
from riemae.solvers.speeds import speeds


def polar(z):
    u, v = z.unbind(-1)
    return torch.stack([v.cos() * u.cos(), v.cos() * u.sin(), v.sin()], -1)


def latitude(lat, angle=2.0, segments=32):
    u = torch.linspace(0, angle, segments + 1, dtype=torch.float64)
    return Curve.from_nodes(torch.stack([u, torch.full_like(u, lat)], -1))


def solved(n=5, seed=0, **options):
    z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(seed), n)
    return Manifold(spaces.sphere).geodesic(z0, z1, **options)


class TestResidual:
    @pytest.mark.parametrize("lat", [0.0, 0.4, -1.1])
    def test_circles_of_latitude(self, lat):
        # Geodesic curvature tan(lat), speed and length L = cos(lat) × angle: |∇_ż ż|/L = tan(lat) L
        # = sin(lat) × angle
        turn = solvers.geodesic_residual(Manifold(polar), latitude(lat))
        assert torch.allclose(
            turn, torch.tensor(abs(math.sin(lat)) * 2, dtype=torch.float64), rtol=1e-10, atol=1e-12
        )

    def test_does_not_depend_on_units(self):
        small, large = (
            solvers.geodesic_residual(Manifold(lambda z, c=c: c * polar(z)), latitude(0.4))
            for c in (1e-3, 1e3)
        )
        assert torch.allclose(small, large, rtol=1e-9)

    def test_tangential_acceleration_counts(self):
        # z = t² on a line: z̈ = 2 and length 1.
        t = torch.linspace(0, 1, 9, dtype=torch.float64)
        curve = Curve.from_nodes((t * t)[:, None])
        assert torch.allclose(
            solvers.geodesic_residual(Manifold(lambda z: z), curve), torch.tensor(2.0).double()
        )

    def test_falls_with_the_square_of_the_step(self):
        # A small tolerance, so that only the resolution matters.
        solvers_ = (Newton(segments=n, max_segments=2 * n) for n in (16, 32))
        coarse, fine = (solved(rtol=1e-7, solver=s, throw=False).residual for s in solvers_)
        assert (coarse / fine > 3).all()
        assert (fine < 0.02).all()

    def test_a_straight_line_is_far_from_a_geodesic(self):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(0), 5)
        line = solvers.geodesic_residual(Manifold(spaces.sphere), Curve.line(z0, z1, 64))
        assert (line > 10 * solved(rtol=1e-6).residual).all()

    def test_a_pair_does_not_depend_on_its_neighbours(self):
        r = solved(n=6, rtol=1e-8)
        assert len(r.stats["segments"].unique()) > 1
        for k in range(6):
            assert torch.allclose(r[k].residual, r.residual[k], rtol=1e-10)

    def test_where_nothing_can_be_said(self):
        folded = Manifold(lambda z: torch.stack([z[:, 0] ** 3, z[:, 1]], -1))  # singular on z₁ = 0
        z0 = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, float("nan")]]).double()
        z1 = torch.tensor([[0.0, 1.0], [2.0, 1.0], [1.0, 1.0], [1.0, 1.0]]).double()
        turn = folded.geodesic(z0, z1, solver=Newton(), throw=False).residual
        assert turn.isnan().tolist() == [True, False, False, True]
        assert turn[2] == 0

    def test_pickle(self):
        r = solved()
        known = r.residual
        again = pickle.loads(pickle.dumps(r))
        assert torch.equal(again.residual, known)
        cold = pickle.loads(pickle.dumps(solved()))
        assert torch.equal(cold.length, r.length)
        with pytest.raises(OptionError, match=r"solvers\.geodesic_residual"):
            _ = cold.residual

    def test_a_decoder_that_cannot_be_pickled_does_not_hinder(self):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(0), 2)
        r = Manifold(lambda z: spaces.sphere(z)).geodesic(z0, z1)
        assert torch.equal(pickle.loads(pickle.dumps(r)).length, r.length)


class TestSpeed:
    def test_unevenness_of_a_known_speed(self):
        # z = t² has speed 2t and mean 1; the last of three Gauss points of the last quarter is
        # farthest from it.
        t = torch.linspace(0, 1, 5, dtype=torch.float64)
        curve = Curve.from_nodes((t * t)[None, :, None])
        last = 1 - (1 - math.sqrt(3 / 5)) / 8
        found = unevenness(*speeds(Manifold(lambda z: z), curve))
        assert torch.allclose(found, torch.tensor([2 * last - 1], dtype=torch.float64), rtol=1e-12)

    def test_geodesics_have_constant_speed(self):
        r = solved(rtol=1e-8)
        t = torch.linspace(0, 1, 301, dtype=torch.float64)
        speed = Manifold(spaces.sphere).norm(r.curve(t), r.curve.velocity(t))
        seen = (speed / r.length[:, None] - 1).abs().amax(-1)
        assert (r.speed_deviation < 1e-2).all()
        assert (r.speed_deviation <= 1.2 * seen + 1e-12).all()

    def test_points_and_failures(self):
        z0 = torch.tensor([[0.1, 0.2], [float("nan"), 0.0]]).double()
        r = Manifold(spaces.sphere).geodesic(z0, z0, throw=False)
        assert r.speed_deviation[0] == 0
        assert r.speed_deviation[1].isnan()


class TestRepr:
    def test_sums_up(self):
        r = solved()
        assert "speed even to" in repr(r)
        assert "residual" not in repr(r)  # printing computes nothing
        assert r.residual.isfinite().all()
        assert "residual at most" in repr(r)

    def test_of_failures_alone(self):
        z = torch.full((2, 2), torch.nan).double()
        r = Manifold(spaces.sphere).geodesic(z, z, throw=False)
        assert "2 invalid_point" in repr(r)

    def test_indexing_and_choosing_keep_the_certificate(self):
        z0, z1, _ = spaces.CATALOGUE[0].pairs(torch.Generator().manual_seed(0), 5)
        M = Manifold(spaces.sphere)
        a, b = (M.geodesic(z0, z1, rtol=rtol) for rtol in (1e-4, 1e-8))
        first = torch.arange(5) % 2 == 0
        both = solvers.GeodesicResult.where(first, a, b)
        assert torch.equal(
            both.speed_deviation, torch.where(first, a.speed_deviation, b.speed_deviation)
        )
        assert both.residual.shape == (5,)
        assert a[1:3].speed_deviation.shape == (2,)
        assert a[0].residual.shape == ()
        assert (both.status == Status.CONVERGED).all()
