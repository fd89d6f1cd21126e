"""Decoders of other packages: the metric is that of autograd, a geodesic by default settings is
returned, and no raw error is raised.

Each class is skipped where its package is missing. scvi-tools itself is in
``test_counts.py``, a decoder of its layers here.
"""

import warnings

import pytest
import torch
from count_distributions import NegativeBinomial
from torch import nn

from riemae import Manifold
from riemae.exceptions import ApproximationWarning, FallbackWarning, SmoothnessWarning


def pulled_back(f, z):
    """``JᵀJ`` by plain autograd, one point after the other."""
    j = torch.stack(
        [torch.autograd.functional.jacobian(lambda p: f(p[None])[0].flatten(), p) for p in z]
    )
    return j.mT @ j


def check(f, z, rtol=1e-4, pairs=3):
    """Metric against autograd, and a geodesic by default settings."""
    M = Manifold(f)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FallbackWarning)
        warnings.simplefilter("ignore", SmoothnessWarning)
        expected = pulled_back(f, z)
        scale = expected.diagonal(dim1=-2, dim2=-1).amax()
        torch.testing.assert_close(
            M.metric(z).detach() / scale, expected / scale, rtol=rtol, atol=rtol
        )
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
    """``AutoencoderKL``, the decoder of latent diffusion: group norms, attention, one output
    object."""

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
        """Adaptive steps depend on the whole batch, so points are decoded one after the other."""
        field, times = TestTorchdiffeq.Field(), torch.tensor([0.0, 1.0], dtype=torch.float64)
        flow = lambda z: integrate(field, z, times, **options)[-1]  # noqa: E731 (one expression)
        return lambda z: torch.cat([flow(one[None]) for one in z])

    def test_fixed_steps(self, torchdiffeq):
        field, times = self.Field(), torch.tensor([0.0, 1.0], dtype=torch.float64)
        options = {"method": "rk4", "options": {"step_size": 0.25}}

        def f(z):
            return torchdiffeq.odeint(field, z, times, **options)[-1]

        check(f, points(6, 2, torch.float64))

    def test_adaptive_steps(self, torchdiffeq):
        check(
            self.each(torchdiffeq.odeint, rtol=1e-9, atol=1e-9),
            points(4, 2, torch.float64),
            pairs=2,
        )

    def test_adjoint(self, torchdiffeq):
        f = self.each(torchdiffeq.odeint_adjoint, method="rk4", options={"step_size": 0.25})
        exact = self.each(torchdiffeq.odeint, method="rk4", options={"step_size": 0.25})
        z = points(2, 2, torch.float64)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ApproximationWarning
            )  # the adjoint equation has no second backward pass
            M = Manifold(f)
            torch.testing.assert_close(
                M.metric(z).detach(), pulled_back(exact, z), rtol=1e-3, atol=1e-3
            )
            r = M.geodesic(z[:1], z[1:], rtol=1e-3)
        assert r.converged.all()
        torch.testing.assert_close(
            r.length, Manifold(exact).geodesic(z[:1], z[1:]).length, rtol=2e-3, atol=0
        )


class ScviDecoder(nn.Module):
    """The layers of scvi-tools' decoder: ReLU behind batch norm, shares of a library, a dispersion
    for each gene."""

    def __init__(self, seed, m=2, hidden=32, genes=60):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            norm = nn.BatchNorm1d(hidden, eps=1e-3, momentum=0.01)
            self.layers = nn.Sequential(nn.Linear(m, hidden), norm, nn.ReLU())
            self.share, self.dispersion = nn.Linear(hidden, genes), nn.Parameter(torch.randn(genes))
            for _ in range(300):  # statistics of codes
                self.layers(torch.randn(512, m))
        with torch.no_grad():
            self.share.weight *= 3
        self.eval().requires_grad_(False)

    def forward(self, z):
        mean = 1000.0 * self.share(self.layers(z)).softmax(-1)
        return NegativeBinomial(mu=mean, theta=self.dispersion.exp().expand_as(mean))


class TestScviLayers:
    """Without the package: shapes, kinks and counts as its decoders have them, in float32."""

    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("far", [1.0, 3.0])
    def test_default_geodesics(self, seed, far):
        g = torch.Generator().manual_seed(1)
        a, b = far * torch.randn(50, 2, generator=g), far * torch.randn(50, 2, generator=g)
        r = Manifold(ScviDecoder(seed)).geodesic(a, b)  # raises when a pair misses its accuracy
        assert r.rtol == 1e-2
        assert (r.error <= r.rtol * r.length * (1 + 1e-5)).all()
        assert (r.length >= r.lower_bound * (1 - 1e-5)).all()

    def test_a_start_that_is_a_little_shorter_keeps_the_verdict(self):
        # The result is accurate to rtol, but slightly longer than the straight line, which replaces
        # it with the same accuracy.
        g = torch.Generator().manual_seed(1)
        a, b = torch.randn(50, 2, generator=g), torch.randn(50, 2, generator=g)
        M = Manifold(ScviDecoder(0))
        r = M.geodesic(a[1:3], b[1:3])
        exact = M.to(dtype=torch.float64).geodesic(
            a[1:3].double(), b[1:3].double(), rtol=1e-3, throw=False
        )
        assert ((r.length - exact.length).abs() <= r.error + exact.error).all()

    def test_a_graph_of_cells(self):
        M = Manifold(ScviDecoder(0))
        z = points(60, 2)
        graph = M.graph(z, k=5).adjacency.tocoo()
        i, j = (torch.as_tensor(c).long() for c in graph.coords)
        exact = M.to(dtype=torch.float64).length(torch.stack([z[i], z[j]], 1).double(), rtol=1e-4)
        assert (torch.as_tensor(graph.data) / exact - 1).abs().max() < 1e-2
