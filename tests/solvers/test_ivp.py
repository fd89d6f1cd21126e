"""Exponential map, logarithm and parallel transport against closed forms, scipy, and each other."""

import math

import pytest
import spaces
import torch
from scipy.integrate import solve_ivp

from riemae import Manifold, solvers
from riemae.exceptions import NotConvergedError, OptionError, ShapeError
from riemae.solvers import Curve

F64 = torch.float64
HALF_PLANE = solvers.MetricSpace(spaces.half_plane_tensor)
# Built once: they look at their decoders once, and the tests only ask them.
SPHERE = Manifold(spaces.sphere)
TORUS = Manifold(spaces.torus)


def draw(*shape, seed=0, low=-1.0, high=1.0):
    return spaces.rand(torch.Generator().manual_seed(seed), *shape, low=low, high=high)


def polar(z):
    u, v = z.unbind(-1)
    return torch.stack([v.cos() * u.cos(), v.cos() * u.sin(), v.sin()], -1)


class TestExp:
    def test_great_circles(self):
        # x(t) = x₀ cos |v|t + (Jv/|v|) sin |v|t
        M = SPHERE
        z, v = draw(6, 2, low=-0.5, high=0.5), draw(6, 2, seed=1, low=-0.4, high=0.4)
        speed = M.norm(z, v)[:, None]
        for t in (0.3, 1.0, -0.7):
            expected = (
                M.decode(z) * (speed * t).cos() + M.pushforward(z, v) / speed * (speed * t).sin()
            )
            assert torch.allclose(M.decode(M.exp(z, v, t)), expected, atol=1e-8)

    def test_half_plane_verticals(self):
        # y' = y: straight up at unit speed
        z, v = torch.tensor([[0.5, 1.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
        end = solvers.exp(HALF_PLANE, z, v, 3.0)
        assert torch.allclose(end, torch.tensor([[0.5, math.exp(3.0)]]).double(), rtol=1e-8)

    def test_against_scipy(self):
        z, v = draw(3, 2, low=-2.0, high=2.0), 3 * draw(3, 2, seed=1)
        ends, _ = spaces.integrated(spaces.torus_acceleration, spaces.torus_speed, z, v)
        assert torch.allclose(TORUS.exp(z, v, rtol=1e-11), ends, atol=1e-8)

    def test_clairaut_on_the_torus(self):
        # (R + r cos v)² u̇ is constant along geodesics.
        M = TORUS
        z, v = draw(5, 2, low=-3.0, high=3.0), draw(5, 2, seed=1)
        curve = M.shoot(z, v, t=10.0, segments=10)
        constant = (2 + curve.nodes[..., 1].cos()) ** 2 * curve.slopes[..., 0] / 10
        first = constant[:, :1]
        assert ((constant - first).abs() <= 1e-6 * first.abs().clamp(min=1e-3)).all()

    def test_energy_over_five_turns_of_a_paraboloid(self):
        # A steep bowl, entered along a circle: the geodesic winds around it on its way out.
        M = Manifold(lambda z: spaces.paraboloid(z, 30.0))
        z, v = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
        curve = M.shoot(z, v, t=60.0, segments=60, rtol=1e-10)
        angle = torch.atan2(curve.nodes[0, :, 1], curve.nodes[0, :, 0]).diff()
        turns = (torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi).sum() / (2 * torch.pi)
        energy = M.norm(curve.nodes, curve.slopes / 60).square()
        assert turns > 5
        assert ((energy / energy[:, :1] - 1).abs() < 1e-8).all()

    def test_gradients(self):
        M = Manifold(spaces.paraboloid)
        z, v = draw(1, 2).requires_grad_(), draw(1, 2, seed=1).requires_grad_()
        assert torch.autograd.gradcheck(lambda z, v: M.exp(z, v, rtol=1e-7), (z, v), atol=1e-5)

    def test_zero_velocity_and_time(self):
        M = SPHERE
        z, v = draw(3, 2), draw(3, 2, seed=1)
        assert torch.allclose(M.exp(z, 0 * v), z)
        assert torch.allclose(M.exp(z, v, 0.0), z)

    def test_axes_and_empty(self):
        M = SPHERE
        z, v = draw(2, 3, 2), 0.1 * draw(2, seed=1)
        assert M.exp(z, v).shape == (2, 3, 2)
        assert torch.allclose(M.exp(z[0, 0], v), M.exp(z, v)[0, 0], rtol=1e-10)
        assert M.exp(z[:0], v).shape == (0, 3, 2)
        curve = M.shoot(z, v.expand_as(z), segments=8)
        assert torch.allclose(curve(1.0), M.exp(z, v), atol=1e-8)

    def test_float32(self):
        M = SPHERE
        z, v = draw(4, 2, low=-0.5, high=0.5), draw(4, 2, seed=1, low=-0.3, high=0.3)
        end = M.exp(z.float(), v.float())
        assert end.dtype == torch.float32
        assert torch.allclose(end.double(), M.exp(z, v), atol=1e-4)

    def test_a_sample_that_fails_leaves_the_others_alone(self):
        # Straight at the boundary of log's domain, and away from it.
        M = Manifold(lambda z: torch.cat([z, z[:, :1].log()], -1))
        z = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()
        v = torch.tensor([[1.0, 0.3], [float("nan"), 0.0]]).double()
        ends = solvers.exp(M, z, v, throw=False)
        assert ends[1].isnan().all()
        assert torch.allclose(ends[0], solvers.exp(M, z[:1], v[:1])[0], rtol=1e-12)
        with pytest.raises(NotConvergedError, match=r"1 that failed \(first: \[1\]\)") as caught:
            solvers.exp(M, z, v)
        assert caught.value.result.shape == (2, 2)

    def test_out_of_steps(self):
        with pytest.raises(NotConvergedError, match="max_steps"):
            solvers.exp(TORUS, draw(1, 2), draw(1, 2, seed=1), 50.0, max_steps=3)

    def test_wrong_input(self):
        M = SPHERE
        with pytest.raises(ShapeError, match="Pair them up"):
            solvers.exp(M, draw(3, 2), draw(3, 3))
        with pytest.raises(OptionError, match="rtol > 0"):
            M.exp(draw(3, 2), draw(3, 2), rtol=0.0)


class TestLog:
    @pytest.mark.parametrize("known", spaces.CATALOGUE, ids=spaces.NAMES)
    def test_round_trip(self, known):
        z0, z1, d = known.pairs(torch.Generator().manual_seed(4), 4)
        space = known.space()
        v = solvers.log(space, z0, z1, rtol=1e-7)
        assert torch.allclose(space.norm(z0, v), d, rtol=1e-6)
        ends = solvers.exp(space, z0, v)
        assert ((ends - z1).norm(dim=-1) <= 1e-6 * v.norm(dim=-1)).all()

    def test_inverse_of_exp(self):
        M = SPHERE
        z, v = draw(5, 2, low=-0.5, high=0.5), draw(5, 2, seed=1, low=-0.3, high=0.3)
        assert torch.allclose(M.log(z, M.exp(z, v), rtol=1e-8), v, atol=1e-7)

    def test_refining_helps(self):
        known = spaces.CATALOGUE[5]
        z0, z1, _ = known.pairs(torch.Generator().manual_seed(5), 4)
        space = known.space()
        miss = [
            (space.exp(z0, space.log(z0, z1, refine=refine)) - z1).norm(dim=-1).max()
            for refine in (False, True)
        ]
        assert miss[1] < 1e-5 * miss[0].clamp(min=1e-3)

    def test_equal_points(self):
        z = draw(3, 2)
        assert torch.equal(SPHERE.log(z, z), torch.zeros(3, 2).double())

    def test_failure_is_reported(self):
        M = SPHERE
        z = torch.tensor([[0.0, float("nan")]]).double()
        with pytest.raises(NotConvergedError, match="end point is NaN"):
            M.log(z, draw(1, 2))
        assert M.log(z, draw(1, 2), throw=False).shape == (1, 2)


class TestTransport:
    def test_holonomy_of_a_circle_of_latitude(self):
        # Around the circle of latitude φ on the unit sphere a vector turns by 2π sin φ against the
        # frame (east, north).
        lat = 0.7
        u = torch.linspace(0, 2 * torch.pi, 33).double()
        circle = Curve.from_nodes(torch.stack([u, torch.full_like(u, lat)], -1))
        v = torch.tensor([1.0 / math.cos(lat), 0.0]).double()  # unit vector to the east
        end = Manifold(polar).transport(circle, v)
        frame = torch.stack([end[0] * math.cos(lat), end[1]])
        turn = 2 * math.pi * math.sin(lat)
        assert torch.allclose(
            frame, torch.tensor([math.cos(turn), -math.sin(turn)]).double(), atol=1e-7
        )

    @pytest.mark.parametrize("known", spaces.CATALOGUE, ids=spaces.NAMES)
    def test_keeps_inner_products(self, known):
        z0, z1, _ = known.pairs(torch.Generator().manual_seed(6), 3)
        space = known.space()
        curve = Curve.line(z0, z1, 4)
        u, v = draw(*z0.shape, seed=1), draw(*z0.shape, seed=2)
        moved = [solvers.transport(space, curve, x) for x in (u, v)]

        def products(z, a, b):
            g = space.metric(z)
            return torch.stack(
                [torch.einsum("bij,bi,bj->b", g, x, y) for x, y in ((a, a), (a, b), (b, b))]
            )

        assert torch.allclose(products(z1, *moved), products(z0, u, v), rtol=1e-6, atol=1e-8)

    def test_geodesics_carry_their_own_velocity(self):
        M = TORUS
        z, v = draw(3, 2), draw(3, 2, seed=1)
        curve = M.shoot(z, v, segments=32)
        assert torch.allclose(M.transport(curve, v), curve.velocity(1.0), atol=1e-6)

    def test_there_and_back_and_linear(self):
        M = SPHERE
        nodes = draw(2, 5, 2, low=-0.5, high=0.5)
        u, v = draw(2, 2, seed=1), draw(2, 2, seed=2)
        there = M.transport(nodes, u)
        assert torch.allclose(M.transport(nodes.flip(1), there), u, atol=1e-7)
        assert torch.allclose(
            M.transport(nodes, 2 * u - v), 2 * there - M.transport(nodes, v), atol=1e-7
        )

    def test_zero_stays_zero(self):
        M = SPHERE
        assert torch.equal(
            M.transport(draw(2, 4, 2), torch.zeros(2, 2).double()), torch.zeros(2, 2).double()
        )

    def test_wrong_shape(self):
        with pytest.raises(ShapeError, match="one vector per curve"):
            SPHERE.transport(draw(2, 4, 2), draw(3, 2))

    def test_failure_is_reported(self):
        # A jump of the metric that no resolution resolves to rounding.
        steep = solvers.MetricSpace(
            lambda z: torch.eye(2).to(z) * (1.5 + (300 * z[:, 0]).tanh())[:, None, None]
        )
        line = Curve.line(torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.03, 0.1]).double())
        with pytest.raises(NotConvergedError, match="more segments"):
            solvers.transport(steep, line, torch.tensor([0.3, 1.0]).double(), rtol=1e-12)


def test_smooth_pieces_of_a_curve_are_looked_at_eight_times():
    rows = 0

    def counted(z):
        nonlocal rows
        rows += len(z) if len(z) > 1 else 0  # a row alone is a comparison
        return polar(z)

    M, v = Manifold(counted), draw(3, 2, seed=1)
    curve = Curve.line(draw(3, 2), draw(3, 2, seed=2)).resample(16)
    M.transport(curve, v)  # looks at the decoder
    rows = 0
    M.transport(curve, v)
    assert rows == 3 * 16 * 8


def test_scipy_agrees_on_transport():
    # v̇ᵏ = −Γᵏ_ij żⁱ vʲ on the half plane along a straight line, by DOP853 with the textbook
    # symbols.
    z0, z1 = torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 2.0]).double()

    def rhs(t, w):
        y = 1 + t
        dx, dy = 1.0, 1.0  # ż
        return [(dx * w[1] + dy * w[0]) / y, (-dx * w[0] + dy * w[1]) / y]

    truth = solve_ivp(rhs, (0, 1), [0.3, -0.8], method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    found = solvers.transport(HALF_PLANE, Curve.line(z0, z1), torch.tensor([0.3, -0.8]).double())
    assert torch.allclose(found, torch.as_tensor(truth), atol=1e-8)


def diagonal(*entries):
    return solvers.MetricSpace(
        lambda z: torch.diag_embed(torch.stack([entry(z) for entry in entries], -1))
    )


def ones(z):
    return torch.ones_like(z[:, 0])


class TestSingularCoordinates:
    """Coordinates that are singular where the space is not: the right point or a typed failure."""

    SCHWARZSCHILD = diagonal(lambda z: 1 / (1 - 2 / z[:, 0]), lambda z: z[:, 0] ** 2)
    POLAR = diagonal(ones, lambda z: z[:, 0] ** 2)
    HYPERBOLIC = diagonal(ones, lambda z: z[:, 0].sinh() ** 2)
    SPHERICAL = diagonal(ones, lambda z: z[:, 0].sin() ** 2)
    SQUARED = diagonal(
        lambda z: 1 / z[:, 0], ones
    )  # of z = x²/4, a half plane whose edge is no edge

    @pytest.mark.parametrize(
        ("space", "z", "v", "t", "dtype"),
        [
            (SCHWARZSCHILD, (3.0, 0.0), (-8.0, 0.0), 0.25, F64),
            (SCHWARZSCHILD, (3.0, 0.0), (-3.0, 0.1), 1.0, torch.float32),
            (SQUARED, (1.0, 0.0), (-1.0, 0.5), 3.0, torch.float32),
        ],
    )
    def test_a_horizon_or_a_fold_is_refused(self, space, z, v, t, dtype):
        z, v = torch.tensor([z], dtype=dtype), torch.tensor([v], dtype=dtype)
        with pytest.raises(NotConvergedError, match="speed") as caught:
            solvers.exp(space, z, v, t)
        assert "other coordinates" in caught.value.hint
        assert caught.value.result.isnan().all()

    def test_the_neighbours_are_untouched(self):
        z = torch.tensor([[3.0, 0.0], [3.0, 0.0]], dtype=F64)
        v = torch.tensor([[-8.0, 0.0], [1.0, 0.2]], dtype=F64)
        curve = solvers.shoot(self.SCHWARZSCHILD, z, v, 0.25, segments=2, throw=False)
        alone = solvers.exp(self.SCHWARZSCHILD, z[1], v[1], 0.25)
        assert curve.nodes[0, -1].isnan().all()
        assert torch.allclose(curve.nodes[1, -1], alone, rtol=1e-8)

    # Through the pole itself r goes on to negative values, (−r, φ) being (r, φ + π).
    @pytest.mark.parametrize("space", [POLAR, HYPERBOLIC, SPHERICAL])
    @pytest.mark.parametrize("dtype", [F64, torch.float32])
    def test_through_a_pole(self, space, dtype):
        z, v = torch.tensor([1.0, 0.3], dtype=dtype), torch.tensor([-1.0, 0.0], dtype=dtype)
        end = solvers.exp(space, z, v, 2.0)
        assert torch.allclose(
            end, torch.tensor([-1.0, 0.3], dtype=dtype), atol=1e-8 if dtype == F64 else 1e-4
        )

    def test_close_by_a_pole(self):
        # In the plane from (1, 0) with velocity (−1, b): at time 2 the point (−1, 2b).
        b = 0.02
        end = solvers.exp(
            self.POLAR, torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([-1.0, b], dtype=F64), 2.0
        )
        truth = torch.tensor([(1 + 4 * b * b) ** 0.5, math.atan2(2 * b, -1)], dtype=F64)
        assert torch.allclose(end, truth, atol=1e-7)

    def test_towards_the_edge_of_the_half_plane(self):
        end = solvers.exp(
            HALF_PLANE, torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([0.0, -20.0], dtype=F64)
        )
        assert torch.allclose(end, torch.tensor([0.0, math.exp(-20)], dtype=F64), atol=2e-8)

    def test_log_meets_what_it_shoots_at(self):
        z0, z1 = torch.tensor([3.0, 0.0], dtype=F64), torch.tensor([4.0, 0.5], dtype=F64)
        v = solvers.log(self.SCHWARZSCHILD, z0, z1)
        assert torch.allclose(solvers.exp(self.SCHWARZSCHILD, z0, v), z1, atol=1e-5)

    def test_an_ill_conditioned_metric_is_no_singular_one(self):
        # diag(1, 1e-12) sheared and bent: an error allowed in coordinates is a large one of a small
        # speed.
        space = diagonal(
            lambda z: 1e6 * (1 + 0.1 * z[:, 1].sin()), lambda z: 1e-6 * (1 + 0.1 * z[:, 0].sin())
        )
        z, v = torch.tensor([[0.2, 0.1]], dtype=F64), torch.tensor([[1e-6, 1.0]], dtype=F64)
        assert solvers.exp(space, z, v).isfinite().all()
