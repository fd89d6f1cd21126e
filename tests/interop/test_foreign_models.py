"""Models of scvi-tools, pythae and diffusers as manifolds.

Where a package is missing, a stand-in with the same interface takes its place.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from count_distributions import NegativeBinomial
from torch import nn

from riemae.ambient import FisherRao
from riemae.exceptions import DTypeError, OptionError
from riemae.interop import diffusers, pythae, scvi
from riemae.interop.frozen import frozen


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Generative(nn.Module):
    """The interface of ``scvi.module.VAE``: shares of a library, that depend on the batch."""

    n_latent = 2

    def __init__(self, genes=12):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.1), nn.Tanh())
            self.share = nn.Linear(16, genes)
        self.px_r = nn.Parameter(torch.zeros(genes))

    def generative(self, z, library, batch_index, cont_covs=None):
        one_hot = nn.functional.one_hot(batch_index[:, 0], 2).to(z)
        inputs = torch.cat([z, one_hot], 1)
        share = self.share(self.net(inputs)).softmax(-1)
        if cont_covs is not None:
            share = (share + cont_covs.abs()).softmax(-1)
        mean = library.exp() * share
        return {"px": NegativeBinomial(mu=mean, theta=self.px_r.exp().expand_as(mean))}


class Manager:
    """The interface of ``scvi.data.AnnDataManager``."""

    counts = np.array([[10, 20], [30, 40], [1, 2]])

    def get_from_registry(self, name):
        assert name == "X"
        return self.counts

    def get_state_registry(self, name):
        assert name == "batch"
        return SimpleNamespace(categorical_mapping=np.array(["left", "right"]))


def model():
    return SimpleNamespace(module=Generative(), adata_manager=Manager())


class TestScvi:
    def test_counts_under_their_fisher_information(self):
        given = model()
        M = scvi.manifold(given)
        z = draw(4, 2)
        assert M.metric(z).shape == (4, 2, 2)
        assert isinstance(M.ambient, FisherRao)
        mean = M.distribution(z).mean
        torch.testing.assert_close(mean.sum(-1), torch.full((4,), 30.0))  # the median of counts
        assert bool(M.geodesic(z[:2], z[2:], rtol=1e-2).converged.all())
        assert given.module.training  # the model itself is left as it was
        assert given.module.px_r.requires_grad
        assert not any(p.requires_grad for p in M.decoder.parameters())

    def test_library_and_batch(self):
        given = model()
        z = draw(4, 2)
        mean = scvi.manifold(given, library=500.0).distribution(z).mean
        torch.testing.assert_close(mean.sum(-1), torch.full((4,), 500.0))
        by_name = scvi.manifold(given, "right", 500.0).metric(z)
        assert torch.equal(scvi.manifold(given, 1, 500.0).metric(z), by_name)
        assert not torch.allclose(scvi.manifold(given, "left", 500.0).metric(z), by_name)

    def test_covariates(self):
        z = draw(3, 2)
        M = scvi.manifold(model(), covariates={"cont_covs": draw(1, 12)})
        assert not torch.allclose(M.metric(z), scvi.manifold(model()).metric(z))

    def test_without_data(self):
        given = SimpleNamespace(module=Generative())
        with pytest.raises(OptionError, match="library"):
            scvi.manifold(given)
        assert scvi.manifold(given, 1, 100.0).metric(draw(2, 2)).shape == (2, 2, 2)
        with pytest.raises(OptionError, match="batch"):
            scvi.manifold(given, "right", 100.0)

    @pytest.mark.parametrize("batch", ["middle", 2, -1, True])
    def test_unknown_batch(self, batch):
        with pytest.raises(OptionError, match="'left', 'right'"):
            scvi.manifold(model(), batch)

    def test_bad_input(self):
        with pytest.raises(OptionError, match="library"):
            scvi.manifold(model(), library=0.0)
        for wrong in (Generative(), object(), SimpleNamespace(module=nn.Linear(2, 2))):
            with pytest.raises(DTypeError, match="scvi-tools"):
                scvi.manifold(wrong)

    @pytest.mark.filterwarnings("ignore")
    def test_the_real_one(self):
        package = pytest.importorskip("scvi")
        anndata = pytest.importorskip("anndata")
        counts = np.random.default_rng(0).poisson(2.0, size=(40, 8)).astype(np.float32)
        data = anndata.AnnData(counts)
        data.obs["batch"] = ["a"] * 20 + ["b"] * 20
        package.model.SCVI.setup_anndata(data, batch_key="batch")
        given = package.model.SCVI(data, n_latent=2, n_hidden=8, gene_likelihood="nb")
        given.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False)
        M = scvi.manifold(given, "b", library=100.0)
        z = torch.as_tensor(given.get_latent_representation())[:4]
        mean = M.distribution(z).mean
        torch.testing.assert_close(mean.sum(-1), torch.full((4,), 100.0), rtol=1e-3, atol=0.0)
        assert not torch.allclose(scvi.manifold(given, "a", library=100.0).metric(z), M.metric(z))


class TestPythae:
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 9), nn.Dropout(0.2), nn.Tanh())

        def forward(self, z):
            return {"reconstruction": self.net(z).view(-1, 1, 3, 3)}

    def test_stand_in(self):
        given = nn.Module()
        given.decoder, given.latent_dim = self.Decoder(), 2
        M = pythae.manifold(given)
        assert M.latent_dim == 2
        assert M.decode(draw(3, 2)).shape == (3, 1, 3, 3)
        assert M.metric(draw(3, 2)).shape == (3, 2, 2)
        assert given.training

    @pytest.mark.filterwarnings("ignore")
    def test_the_real_one(self):
        models = pytest.importorskip("pythae.models")
        given = models.VAE(models.VAEConfig(input_dim=(1, 4, 4), latent_dim=2))
        z = draw(4, 2)
        M = pythae.manifold(given)
        torch.testing.assert_close(M.decode(z), given.decoder(z).reconstruction)
        assert M.metric(z).shape == (4, 2, 2)

    def test_bad_input(self):
        with pytest.raises(DTypeError, match="pythae"):
            pythae.manifold(nn.Linear(2, 3))


@pytest.fixture(scope="module")
def vae():
    package = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return package.AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
            up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
            block_out_channels=(4, 8),
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=2,
            sample_size=4,
            scaling_factor=0.5,
        )


class TestDiffusers:
    def test_codes_have_their_shape_and_scale(self, vae):
        M = diffusers.manifold(vae)
        assert M.latent_shape == (2, 2, 2)
        z = draw(3, 2, 2, 2)
        with torch.no_grad():
            torch.testing.assert_close(M.decode(z), vae.decode(z / 0.5).sample)
        assert M.metric(z).shape == (3, 8, 8)
        assert M.pushforward(z, z).shape == (3, 16)
        assert diffusers.manifold(vae, size=4).latent_shape == (2, 4, 4)
        assert vae.training

    def test_geodesic(self, vae):
        M = diffusers.manifold(vae)
        z = draw(2, 2, 2, 2)
        found = M.geodesic(z[0], z[1], rtol=1e-2)
        assert bool(found.converged)
        assert float(found.length) <= float(M.length(torch.stack([z[0], z[1]])))

    def test_bad_input(self):
        with pytest.raises(DTypeError, match="AutoencoderKL"):
            diffusers.manifold(nn.Linear(2, 2))


class TestFrozen:
    def test_copies(self):
        net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        copy = frozen("here", net, "a network")
        assert net.training
        assert not copy.training
        assert copy[0].weight is not net[0].weight
        assert torch.equal(copy[0].weight, net[0].weight)

    def test_what_is_missing(self):
        with pytest.raises(DTypeError, match=r"here: expected a network, got Linear without x\."):
            frozen("here", nn.Linear(2, 2), "a network", "weight", "x")
