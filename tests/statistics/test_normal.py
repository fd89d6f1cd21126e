"""Normal distributions and mixtures: normalisers, moments, samples and fits of closed forms."""

import math

import pytest
import torch

from riemae import Manifold
from riemae.exceptions import OptionError, ShapeError
from riemae.solvers import MetricSpace, exponential_volume
from riemae.statistics import LAND, RiemannianNormal

F64 = torch.float64
HALF_PLANE = MetricSpace(lambda z: torch.eye(2).to(z) / z[:, 1, None, None].square())


def sphere(z):
    s = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, s - 1], -1) / (1 + s)


def cylinder(z):
    return torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], -1)


def plane(z):
    return torch.stack([2 * z[:, 0] + z[:, 1], z[:, 1], z[:, 0]], -1)


def point(*values):
    return torch.tensor(values, dtype=F64)


def radial(scale, volume, end=20.0):
    """Normaliser and mean squared distance of a rotationally symmetric plane."""
    r = torch.linspace(0, end, 100_001, dtype=F64)
    weight = (-r.square() / 2 / scale**2).exp() * volume(r)
    total = torch.trapezoid(weight, r)
    return 2 * math.pi * total, torch.trapezoid(weight * r.square(), r) / total


def test_density_in_float32():
    """Log densities differ by squared distances, those of stereographic coordinates in closed form:
    the distance from the origin is 2 arctan |z|."""

    def stereographic(z):
        s = z.square().sum(-1, keepdim=True)
        return torch.cat([2 * z, s - 1], -1) / (1 + s)

    mean = torch.zeros(2)
    normal = RiemannianNormal(Manifold(stereographic), mean, 0.4, n_directions=4)
    z = torch.tensor([[0.3, 0.1], [-0.2, 0.4], [0.0, 0.0]])
    found = normal.log_prob(z)
    assert found.dtype == torch.float32
    exact = -(2 * z.norm(dim=-1).atan()).square() / (2 * 0.4**2)
    torch.testing.assert_close(found - found[2], exact, rtol=1e-3, atol=1e-4)


class TestExponentialVolume:
    t = torch.linspace(0.2, 1.4, 4, dtype=F64)

    def directions(self, M, z):
        angles = torch.linspace(0, 6, 5, dtype=F64)
        frame = torch.linalg.inv(torch.linalg.cholesky(M.metric(z[None])).mT)[0]
        return torch.stack([angles.cos(), angles.sin()], -1) @ frame.T

    def test_on_the_sphere(self):
        """``sin r / r``."""
        M, z = Manifold(sphere), point(0.3, 0.2)
        found = exponential_volume(M, z.expand(5, 2), self.directions(M, z), self.t, rtol=1e-8)
        expected = self.t.sin() / self.t
        torch.testing.assert_close(found.density, expected.expand(5, 4), rtol=1e-7, atol=1e-8)
        slope = self.t.cos() / self.t - self.t.sin() / self.t**2
        torch.testing.assert_close(found.slope, slope.expand(5, 4), rtol=1e-6, atol=1e-7)

    def test_on_the_hyperbolic_plane(self):
        """``sinh r / r``."""
        z = point(0.3, 1.2)
        v = self.directions(HALF_PLANE, z)
        found = exponential_volume(HALF_PLANE, z.expand(5, 2), v, self.t, rtol=1e-8)
        expected = self.t.sinh() / self.t
        torch.testing.assert_close(found.density, expected.expand(5, 4), rtol=1e-7, atol=1e-8)

    def test_it_ends_behind_the_conjugate_point(self):
        M, z = Manifold(sphere), point(0.0, -0.9)
        times = torch.tensor([3.0, 3.2, 3.3], dtype=F64)
        v = torch.tensor([[0.0, 1.0]], dtype=F64)
        unit = v / M.norm(z[None], v)
        density = exponential_volume(M, z[None], unit, times, rtol=1e-7).density[0]
        assert float(density[0]) > 0
        assert not float(density[1]) > 0
        assert bool(density[2].isnan())

    def test_times_out_of_order(self):
        z = torch.zeros(1, 2, dtype=F64)
        for times in ([0.0, 1.0], [1.0, 0.5], []):
            with pytest.raises(OptionError, match="increasing"):
                exponential_volume(Manifold(plane), z, z + 1, torch.tensor(times))


class TestNormaliser:
    @pytest.mark.parametrize("scale", [0.3, 1.0])
    def test_on_the_hyperbolic_plane(self, scale):
        found = RiemannianNormal(HALF_PLANE, point(0.3, 1.2), scale)
        expected, _ = radial(scale, torch.sinh)
        off = abs(float(found.log_normalizer) - float(expected.log()))
        assert off < float(found.log_normalizer_error) < 1e-4

    def test_on_the_sphere(self):
        found = RiemannianNormal(Manifold(sphere), point(0.1, 0.05), 0.4, n_directions=8)
        expected, _ = radial(0.4, torch.sin, math.pi)
        off = abs(float(found.log_normalizer) - float(expected.log()))
        assert off < float(found.log_normalizer_error) < 1e-4

    def test_what_may_lie_behind_the_end_of_the_domain_is_in_the_error(self):
        """A plane of which the half with x > 1 is missing: 16 % of a normal at 0."""
        gap = MetricSpace(
            lambda z: torch.eye(2).to(z) * torch.where(z[:, :1, None] < 1, 1.0, torch.nan)
        )
        found = RiemannianNormal(gap, point(0.0, 0.0), 1.0, n_directions=8)
        share = float(found.log_normalizer.exp()) / (2 * math.pi)
        assert 0.7 < share < 0.9
        assert float(found.log_normalizer_error) > 0.1

    def test_on_a_cylinder_without_conjugate_points(self):
        """Behind the line opposite, another geodesic is shorter: half of it counts."""
        scale = 1.5
        M = Manifold(cylinder, latent=(2 * math.pi, None))
        found = RiemannianNormal(M, point(0.4, 0.0), scale, n_directions=64)
        around = scale * math.sqrt(2 * math.pi) * math.erf(math.pi / scale / math.sqrt(2))
        along = scale * math.sqrt(2 * math.pi)
        assert abs(float(found.log_normalizer) - math.log(around * along)) < 3e-3

    def test_a_covariance_in_a_flat_space(self):
        M = Manifold(plane)
        C = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=F64)
        found = RiemannianNormal(M, point(1.0, 2.0), covariance=C)
        stretch = torch.linalg.det(M.metric(point(0.0, 0.0)))
        expected = 2 * math.pi * (torch.linalg.det(C) * stretch).sqrt()
        assert abs(float(found.log_normalizer - expected.log())) < 1e-6
        z = torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64)
        normal = torch.distributions.MultivariateNormal(point(1.0, 2.0), C)
        torch.testing.assert_close(
            found.log_prob(z), normal.log_prob(z) - stretch.log() / 2, rtol=1e-5, atol=1e-5
        )

    def test_in_three_dimensions_within_four_standard_errors(self):
        """Hyperbolic space: ``4π ∫ exp(−r²/2σ²) sinh² r dr``."""
        space = MetricSpace(lambda z: torch.eye(3).to(z) / z[:, 2, None, None].square())
        C = 0.16 * torch.diag(torch.tensor([1.0, 1.0, 1.3], dtype=F64))
        found = RiemannianNormal(space, point(0.0, 0.0, 1.0), 0.4, n_directions=32)
        r = torch.linspace(0, 6, 50_001, dtype=F64)
        total = torch.trapezoid((-r.square() / 0.32).exp() * r.sinh().square(), r)
        assert abs(float(found.log_normalizer) - math.log(4 * math.pi * float(total))) < 1e-4
        skew = RiemannianNormal(space, point(0.0, 0.0, 1.0), covariance=C, n_directions=32)
        more = RiemannianNormal(
            space, point(0.0, 0.0, 1.0), covariance=C, n_directions=32, generator=1
        )
        apart = float(skew.log_normalizer - more.log_normalizer)
        spread = math.hypot(float(skew.log_normalizer_error), float(more.log_normalizer_error))
        assert 0 < abs(apart) < 4 * spread < 0.1

    def test_float32_keeps_its_dtype(self):
        found = RiemannianNormal(HALF_PLANE, torch.tensor([0.3, 1.2]), 0.3)
        expected, _ = radial(0.3, torch.sinh)
        assert found.log_normalizer.dtype == torch.float32
        assert abs(float(found.log_normalizer) - float(expected.log())) < 1e-3


class TestSamplesAndFits:
    normal = RiemannianNormal(HALF_PLANE, point(0.0, 1.0), 0.5)

    def test_samples_have_the_second_moment(self):
        z = self.normal.sample(300, generator=0)
        d = torch.arccosh(1 + (z - self.normal.mean).square().sum(-1) / (2 * z[:, 1]))
        _, expected = radial(0.5, torch.sinh)
        squares = d.square()
        deviation = (squares.mean() - expected) / (squares.std() / 300**0.5)
        assert abs(float(deviation)) < 4
        assert torch.equal(z, self.normal.sample(300, generator=0))

    def test_the_scale_is_found_again(self):
        z = self.normal.sample(300, generator=1)
        found = RiemannianNormal.fit(HALF_PLANE, z)
        # The standard error of a scale is σ / √(2 m n).
        assert abs(float(found.scale) - 0.5) < 4 * 0.5 / (4 * 300) ** 0.5
        assert float((found.mean - self.normal.mean).norm()) < 4 * 0.5 / 300**0.5

    def test_the_fit_is_the_likeliest(self):
        z = self.normal.sample(60, generator=2)
        found = RiemannianNormal.fit(HALF_PLANE, z, kind="full")
        best = float(found.log_prob(z).mean())
        C = found.covariance
        skew = torch.tensor([[1.0, 0.2], [0.2, 1.0]], dtype=F64)
        for other in (
            RiemannianNormal(HALF_PLANE, found.mean, covariance=1.2 * C),
            RiemannianNormal(HALF_PLANE, found.mean, covariance=C * skew),
            RiemannianNormal(HALF_PLANE, found.mean + 0.08, covariance=C),
        ):
            assert float(other.log_prob(z).mean()) < best

    def test_points_of_a_normal_in_the_plane(self):
        """In a flat space the fit is the sample's mean and covariance."""
        noise = torch.randn(40, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
        z = noise @ torch.tensor([[1.0, 0.4], [0.0, 0.5]], dtype=F64) + 1
        weights = torch.linspace(0.1, 1.0, 40, dtype=F64)
        found = RiemannianNormal.fit(Manifold(plane), z, weights, kind="full")
        share = weights / weights.sum()
        mean = share @ z
        centred = z - mean
        torch.testing.assert_close(found.mean, mean, rtol=1e-3, atol=1e-3)
        expected = torch.einsum("k,ki,kj->ij", share, centred, centred)
        torch.testing.assert_close(found.covariance, expected, rtol=2e-3, atol=1e-3)


class TestMixture:
    def test_planted_components_are_found(self):
        C = torch.tensor([[0.03, 0.01], [0.01, 0.02]], dtype=F64)
        # Narrow ones are nearly normal in coordinates.
        noise = torch.randn(100, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
        one = point(0.0, 1.0) + noise[:60] @ torch.linalg.cholesky(C).T
        two = point(2.0, 1.0) + 0.1 * noise[60:]
        z = torch.cat([one, two])
        found = LAND(HALF_PLANE, 2, n_directions=16).fit(z)
        assert found.converged_
        first = int(found.labels_[0])
        assert bool((found.labels_[:60] == first).all())
        assert bool((found.labels_[60:] == 1 - first).all())
        assert abs(float(found.weights_[first]) - 0.6) < 0.02
        large = found.components_[first]
        assert float((large.mean - point(0.0, 1.0)).norm()) < 0.15
        assert float((large.covariance - C).norm() / C.norm()) < 0.5
        assert torch.equal(found.predict(z), found.labels_)
        torch.testing.assert_close(found.predict_proba(z).sum(1), torch.ones(100, dtype=F64))
        assert abs(float(found.log_prob(z).mean()) - found.log_likelihood_) < 1e-9
        assert found.sample(7).shape == (7, 2)
        free = 2 * (2 + 3) + 1
        expected = -200 * found.log_likelihood_ + free * math.log(100)
        assert abs(found.bic(z) - expected) < 1e-6

    def test_before_fit(self):
        with pytest.raises(OptionError, match="Call fit first"):
            LAND(HALF_PLANE).log_prob(torch.ones(1, 2))


class TestBadInput:
    def test_arguments(self):
        mean = point(0.0, 1.0)
        C = torch.eye(2, dtype=F64)
        with pytest.raises(OptionError, match="either scale or covariance"):
            RiemannianNormal(HALF_PLANE, mean)
        with pytest.raises(OptionError, match="either scale or covariance"):
            RiemannianNormal(HALF_PLANE, mean, 1.0, covariance=C)
        with pytest.raises(OptionError, match="scale"):
            RiemannianNormal(HALF_PLANE, mean, -1.0)
        with pytest.raises(ShapeError, match="covariance"):
            RiemannianNormal(HALF_PLANE, mean, covariance=torch.eye(3, dtype=F64))
        with pytest.raises(OptionError, match="positive definite"):
            RiemannianNormal(HALF_PLANE, mean, covariance=-C)
        with pytest.raises(ShapeError, match="mean"):
            RiemannianNormal(HALF_PLANE, mean[None], 1.0)
        with pytest.raises(OptionError, match="kind"):
            RiemannianNormal.fit(HALF_PLANE, torch.ones(3, 2, dtype=F64), kind="round")
        with pytest.raises(OptionError, match="n_components"):
            LAND(HALF_PLANE, 0)
        with pytest.raises(OptionError, match="at least 4 points"):
            LAND(HALF_PLANE, 2).fit(torch.ones(3, 2, dtype=F64))

    def test_points_that_are_all_one(self):
        with pytest.raises(OptionError, match="spread in every direction"):
            RiemannianNormal.fit(HALF_PLANE, torch.ones(4, 2, dtype=F64))

    def test_points_on_a_line_have_no_covariance(self):
        z = torch.stack([torch.zeros(5, dtype=F64), torch.linspace(1, 2, 5, dtype=F64)], 1)
        with pytest.raises(OptionError, match="isotropic"):
            RiemannianNormal.fit(HALF_PLANE, z, kind="full")


def test_a_mixture_of_a_decoder_that_is_still_trained():
    decoder = torch.nn.Linear(2, 3).double()
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = LAND(Manifold(decoder), 1, max_steps=1, n_directions=8).fit(z)
    assert not found.weights_.requires_grad
