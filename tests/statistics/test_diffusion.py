"""Random walks: moments of Brownian motion in closed form, and where Langevin dynamics settle."""

import math

import pytest
import torch

from riemae import Manifold
from riemae.exceptions import DifferentiationError, NonFiniteError, OptionError, ShapeError
from riemae.solvers import MetricSpace
from riemae.statistics import brownian_motion, langevin

F64 = torch.float64
HALF_PLANE = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())


def sphere(z):
    a, b = z.unbind(-1)
    return torch.stack([a.cos() * b.cos(), a.cos() * b.sin(), a.sin()], -1)


def within(values, truth, errors=4.0, bias=0.0):
    """The mean is the truth, up to chance and the steps' bias."""
    spread = float(values.std()) / math.sqrt(len(values))
    return abs(float(values.mean()) - truth) <= errors * spread + bias


class TestBrownianMotion:
    @pytest.mark.parametrize("time", [0.1, 0.4])
    def test_on_the_sphere(self, time):
        """``E cos θ = e^{−t}``, θ the angle from the start."""
        start = torch.tensor([0.0, 0.3], dtype=F64)
        n = 4000
        ends = brownian_motion(Manifold(sphere), start.expand(n, 2), time, 60, generator=1)
        cosines = sphere(ends) @ sphere(start[None])[0]
        assert within(cosines, math.exp(-time), bias=time / 60)

    def test_in_the_hyperbolic_plane(self):
        """``cosh d`` is an eigenfunction of the Laplacian of eigenvalue 2: ``E cosh d = e^t``."""
        time = 0.3
        start = torch.tensor([0.5, 2.0], dtype=F64)
        ends = brownian_motion(HALF_PLANE, start.expand(4000, 2), time, 60, generator=2)
        gap = (ends - start).square().sum(1) / (2 * ends[:, 1] * start[1])
        assert within(1 + gap, math.exp(time), bias=time / 30)

    def test_in_flat_space_it_is_normal(self):
        M = Manifold(lambda z: 2 * z)
        ends = brownian_motion(M, torch.zeros(4000, 3, dtype=F64), 0.8, 1, generator=3)
        assert within(ends[:, 0], 0.0)
        assert within(ends.square().sum(1), 3 * 0.8 / 4)
        assert within(ends[:, 0] * ends[:, 1], 0.0)

    def test_the_chart_does_not_matter(self):
        """The same sphere in a chart that is bent."""

        def bent(z):
            return sphere(torch.stack([z[:, 0], z[:, 1] + z[:, 0].square()], -1))

        time = 0.2
        start = torch.tensor([0.2, 0.1], dtype=F64)
        ends = brownian_motion(Manifold(bent), start.expand(4000, 2), time, 60, generator=4)
        cosines = bent(ends) @ bent(start[None])[0]
        assert within(cosines, math.exp(-time), bias=time / 60)

    def test_paths_batches_and_seeds(self):
        M = Manifold(sphere)
        z = torch.zeros(2, 3, 2, dtype=F64)
        whole = brownian_motion(M, z, 0.1, 10, path=True, generator=5)
        assert whole.shape == (2, 3, 11, 2)
        assert torch.equal(whole[:, :, 0], z)
        assert torch.equal(whole[:, :, -1], brownian_motion(M, z, 0.1, 10, generator=5))
        assert not torch.equal(whole[0, 0, -1], whole[0, 1, -1])
        assert brownian_motion(M, z[:0], 0.1).shape == (0, 3, 2)
        single = brownian_motion(M, z.float(), 0.1, 10, generator=5)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), whole[:, :, -1], rtol=0, atol=1e-5)

    def test_steps_by_default_are_short(self):
        """Where geodesics bend more in coordinates, there are more of them."""
        path = brownian_motion(HALF_PLANE, torch.tensor([[0.0, 1.0]], dtype=F64), 0.5, path=True)
        assert path.shape[1] - 1 >= 100
        flat = brownian_motion(Manifold(lambda z: z), torch.zeros(1, 2), 0.5, path=True)
        assert flat.shape[1] - 1 == 50

    def test_the_global_generator_is_left_alone(self):
        before = torch.random.get_rng_state()
        brownian_motion(Manifold(sphere), torch.zeros(1, 2, dtype=F64), 0.1, 5)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_shaped_codes(self):
        M = Manifold(lambda c: c.flatten(1), latent_shape=(2, 2))
        codes = torch.zeros(3, 2, 2, dtype=F64)
        ends = brownian_motion(M, codes, 0.1, 5)
        assert ends.shape == (3, 2, 2)
        assert torch.equal(ends, brownian_motion(M, codes.flatten(1), 0.1, 5))
        assert brownian_motion(M, codes, 0.1, 5, path=True).shape == (3, 6, 2, 2)


class TestLangevin:
    def test_settles_to_the_density(self):
        """``p ∝ e^{κ x}`` on the sphere: the mean of x is ``coth κ − 1/κ``."""
        kappa = 2.0
        z = torch.zeros(3000, 2, dtype=F64)

        def log_density(z):
            return kappa * sphere(z)[:, 0]

        ends = langevin(Manifold(sphere), z, log_density, 3.0, 150, generator=1)
        # Walks over the poles of the chart are left out: there are few.
        x = sphere(ends)[:, 0]
        x = x[x.isfinite()]
        assert len(x) > 2900
        assert within(x, 1 / math.tanh(kappa) - 1 / kappa, bias=0.03)

    def test_in_flat_space(self):
        M = Manifold(lambda z: z)
        z = torch.zeros(4000, 2, dtype=F64)
        ends = langevin(M, z, lambda z: -2 * z.square().sum(-1), 4.0, 200, generator=2)
        assert within(ends.square().sum(1), 0.5, bias=0.02)

    def test_bad_densities(self):
        M = Manifold(sphere)
        z = torch.zeros(2, 2, dtype=F64)
        with pytest.raises(ShapeError):
            langevin(M, z, lambda z: z, 0.1)
        with pytest.raises(DifferentiationError):
            langevin(M, z, lambda z: z[:, 0].detach(), 0.1)


@pytest.mark.parametrize("options", [{"time": 0.0}, {"time": -1.0}, {"time": 0.1, "steps": 0}])
def test_bad_options(options):
    with pytest.raises(OptionError):
        brownian_motion(Manifold(sphere), torch.zeros(1, 2, dtype=F64), **options)


class TestStarts:
    def test_that_are_no_points_are_refused(self):
        with pytest.raises(ShapeError, match=r"z of shape \(\*b, m\)"):
            brownian_motion(HALF_PLANE, torch.tensor(1.0), 0.1)
        with pytest.raises(NonFiniteError, match="finite z"):
            brownian_motion(HALF_PLANE, torch.tensor([[0.0, 1.0], [torch.nan, 1.0]]), 0.1)

    def test_a_walk_that_leaves_the_domain_is_not_a_number_and_stops_no_other(self):
        """``(1 − |z|²) I`` is a metric inside the disc only, whose edge is not far."""
        disc = MetricSpace(lambda z: torch.eye(2).to(z) * (1 - z.square().sum(-1))[:, None, None])
        z = torch.tensor([[0.0, 0.0], [0.0, 0.99]], dtype=F64)
        both = brownian_motion(disc, z, 0.04, 4, path=True, generator=1)
        left = both.isnan().any(-1).any(-1)
        assert left.tolist() == [False, True]
