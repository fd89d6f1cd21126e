"""Decoders as other packages make them: a metric as autograd has it, a default geodesic that returns, no raw error.

Each class is skipped where its package is missing. scvi-tools is in ``test_counts.py``.
"""

import warnings

import pytest
import torch
from torch import nn

from riemae import Manifold
from riemae.exceptions import ApproximationWarning, FallbackWarning, SmoothnessWarning


def pulled_back(f, z):
    """``JᵀJ`` by plain autograd, one point after the other."""
    j = torch.stack([torch.autograd.functional.jacobian(lambda p: f(p[None])[0].flatten(), p) for p in z])
    return j.mT @ j


def check(f, z, rtol=1e-4, pairs=3):
    """Metric against autograd, and a geodesic by default settings."""
    M = Manifold(f)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        warnings.simplefilter("ignore", SmoothnessWarning)
        expected = pulled_back(f, z)
        scale = expected.diagonal(dim1=-2, dim2=-1).amax()
        torch.testing.assert_close(M.metric(z).detach() / scale, expected / scale, rtol=rtol, atol=rtol)
        r = M.geodesic(z[:pairs], z[pairs : 2 * pairs])
        assert r.converged.all()
        assert (r.length >= r.lower_bound * (1 - 1e-5)).all()
        line = M.length(torch.stack([z[:pairs], z[pairs : 2 * pairs]], 1), rtol=1e-3)
        assert (r.length <= line * (1 + r.rtol)).all()
    return r


def points(n, m, dtype=torch.float32):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.fixture(scope="module")
def diffusion():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=2,
        sample_size=8,
    ).eval()


class TestDiffusers:
    """``AutoencoderKL``, the decoder of latent diffusion: group norms, attention, one output object."""

    def test_decode(self, diffusion):
        check(lambda z: diffusion.decode(z.view(-1, 2, 2, 2)).sample, points(6, 8))

    def test_its_output_object_is_unwrapped(self, diffusion):
        z = points(2, 8)
        plain = Manifold(lambda z: diffusion.decode(z.view(-1, 2, 2, 2)).sample)
        whole = Manifold(lambda z: diffusion.decode(z.view(-1, 2, 2, 2)))
        torch.testing.assert_close(whole.metric(z), plain.metric(z))

    def test_to_double(self, diffusion):
        z = points(6, 8)
        M = Manifold(lambda z: diffusion.decode(z.view(-1, 2, 2, 2)).sample)
        torch.testing.assert_close(
            M.to(dtype=torch.float64).metric(z.double()).float(), M.metric(z), rtol=1e-3, atol=1e-4
        )
        assert next(diffusion.parameters()).dtype == torch.float32


@pytest.fixture(scope="module")
def vae():
    models = pytest.importorskip("pythae.models")
    torch.manual_seed(0)
    return models.VAE(models.VAEConfig(input_dim=(1, 6, 6), latent_dim=2)).eval()


class TestPythae:
    def test_decoder(self, vae):
        check(lambda z: vae.decoder(z).reconstruction, points(8, 2), pairs=4)

    def test_module_with_its_output_object(self, vae):
        z = points(4, 2)
        expected = Manifold(lambda z: vae.decoder(z).reconstruction).metric(z)
        torch.testing.assert_close(Manifold(vae.decoder).metric(z), expected)


@pytest.fixture(scope="module")
def torchdiffeq():
    return pytest.importorskip("torchdiffeq")


class TestTorchdiffeq:
    """Neural ordinary differential equations as decoders."""

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()

        def forward(self, t, y):
            return self.net(y)

    @staticmethod
    def each(integrate, **options):
        """Adaptive steps look at the whole batch: one point after the other does not."""
        field, times = TestTorchdiffeq.Field(), torch.tensor([0.0, 1.0], dtype=torch.float64)
        flow = lambda z: integrate(field, z, times, **options)[-1]  # noqa: E731 (one expression)
        return lambda z: torch.cat([flow(one[None]) for one in z])

    def test_fixed_steps(self, torchdiffeq):
        field, times = self.Field(), torch.tensor([0.0, 1.0], dtype=torch.float64)
        f = lambda z: torchdiffeq.odeint(field, z, times, method="rk4", options={"step_size": 0.25})[-1]  # noqa: E731
        check(f, points(6, 2, torch.float64))

    def test_adaptive_steps(self, torchdiffeq):
        check(self.each(torchdiffeq.odeint, rtol=1e-9, atol=1e-9), points(4, 2, torch.float64), pairs=2)

    def test_adjoint(self, torchdiffeq):
        f = self.each(torchdiffeq.odeint_adjoint, method="rk4", options={"step_size": 0.25})
        exact = self.each(torchdiffeq.odeint, method="rk4", options={"step_size": 0.25})
        z = points(2, 2, torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ApproximationWarning)  # the adjoint equation has no second backward pass
            M = Manifold(f)
            torch.testing.assert_close(M.metric(z).detach(), pulled_back(exact, z), rtol=1e-3, atol=1e-3)
            r = M.geodesic(z[:1], z[1:], rtol=1e-3)
        assert r.converged.all()
        torch.testing.assert_close(r.length, Manifold(exact).geodesic(z[:1], z[1:]).length, rtol=2e-3, atol=0)
