"""Learned priors, samples of variational autoencoders, and counts by the size of a cell."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from riemae import datasets, load
from riemae.autoencoders import AE, IRVAE, VAE, likelihoods
from riemae.autoencoders.objective import Objective
from riemae.autoencoders.priors import Mixture, Vamp, log_normal
from riemae.autoencoders.terms import Variation
from riemae.exceptions import DataError, OptionError

SMALL = {"hidden": (8,), "epochs": 3, "batch_size": 16}
F64 = torch.float64


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def data(n=40, d=3):
    return np.random.default_rng(0).normal(size=(n, d))


def still(module):
    return module.double().requires_grad_(False)


class TestMixture:
    def test_one_standard_component_is_the_standard_normal(self):
        prior = still(Mixture(1, 2))
        prior.means.zero_()
        z = torch.randn(9, 2, generator=gen(), dtype=F64)
        expected = -(z.square().sum(1) + 2 * math.log(2 * math.pi)) / 2
        assert torch.allclose(prior.log_density(z, nn.Identity()), expected, rtol=1e-12)

    def test_density_integrates_to_1(self):
        prior = still(Mixture(3, 1))
        prior.log_variances.copy_(torch.tensor([[-1.0], [0.0], [1.0]]))
        prior.logits.copy_(torch.tensor([1.0, 0.0, -1.0]))
        z = torch.linspace(-15, 15, 4001, dtype=F64)[:, None]
        density = prior.log_density(z, nn.Identity()).exp()
        assert float(torch.trapezoid(density, z[:, 0])) == pytest.approx(1, rel=1e-9)

    def test_samples_have_its_moments(self):
        prior = still(Mixture(2, 1))
        prior.means.copy_(torch.tensor([[-3.0], [5.0]]))
        prior.logits.copy_(torch.tensor([0.0, math.log(3)]))
        z = prior.sample(20_000, nn.Identity(), gen())
        assert float(z.mean()) == pytest.approx(-0.75 + 3.75, abs=0.1)
        assert torch.equal(z, prior.sample(20_000, nn.Identity(), gen()))

    def test_vamp_is_the_mixture_of_posteriors(self):
        x = torch.randn(20, 4, generator=gen(), dtype=F64)
        encoder = still(nn.Linear(4, 4))
        prior = still(Vamp(3, x))
        assert torch.equal(prior.inputs, x[[0, 10, 19]])
        z = torch.randn(5, 2, generator=gen(1), dtype=F64)
        each = [log_normal(z, *encoder(u[None]).chunk(2, 1)) for u in prior.inputs]
        expected = torch.stack(each).logsumexp(0) - math.log(3)
        assert torch.allclose(prior.log_density(z, encoder), expected, rtol=1e-12)


class TestDivergence:
    def test_the_estimate_has_the_mean_of_the_closed_form(self):
        x = torch.randn(40_000, 3, generator=gen(), dtype=F64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder, decoder = still(nn.Linear(3, 4)), still(nn.Linear(2, 3))
        exact = Objective(encoder, decoder, x, variation=Variation(beta=1.0))
        varied = Variation(beta=1.0, prior="mixture", components=1)
        estimated = Objective(encoder, decoder, x, variation=varied)
        with torch.no_grad():
            estimated.prior.means.zero_()
        a = exact(x, generator=gen())[1]["divergence"]
        b = estimated(x, generator=gen())[1]["divergence"]
        assert float(b.detach()) == pytest.approx(float(a), rel=0.05)


class TestVariational:
    @pytest.mark.parametrize("prior", ["normal", "mixture", "vamp"])
    def test_train_sample_save(self, prior, tmp_path):
        x = data()
        m = IRVAE(**SMALL, prior=prior, components=4).fit(x)
        assert np.isfinite(m.history_["loss"]).all()
        drawn = m.sample(7, generator=0)
        assert drawn.shape == (7, 3)
        assert torch.equal(drawn, m.sample(7, generator=0))
        noisy = m.sample(7, generator=0, noise=True)
        assert not torch.equal(drawn, noisy)
        again = load(m.save(tmp_path))
        assert torch.equal(again.sample(7, generator=0), drawn)

    def test_a_mixture_learns_two_clusters(self):
        x = np.concatenate([data(60) * 0.2 - 2, data(60) * 0.2 + 2])
        settings = {"hidden": (16,), "epochs": 120, "lr": 1e-2, "latent_dim": 1, "noise": 0.3}
        plain = VAE(**settings).fit(x)
        own = VAE(**settings, prior="mixture", components=2).fit(x)
        # The gap between the clusters is empty for the learned prior alone.
        share = [
            (m.sample(2000, generator=0).norm(dim=1) < 1.5).float().mean() for m in (plain, own)
        ]
        assert float(share[1]) < 0.5 * float(share[0])

    def test_the_posterior_in_the_form_of_the_data(self):
        x = data()
        m = VAE(**SMALL).fit(x)
        mean, deviation = m.posterior(x)
        assert np.allclose(mean, m.transform(x))
        assert deviation.shape == (40, 2)
        assert (deviation > 0).all()
        assert isinstance(m.posterior(torch.as_tensor(x))[1], torch.Tensor)

    def test_noise_has_the_deviation_of_the_likelihood(self):
        x = data(d=20)
        m = VAE(**SMALL, noise=0.5).fit(x)
        away = m.sample(500, generator=1, noise=True) - m.sample(500, generator=1)
        assert float(away.std()) == pytest.approx(0.5 * x.std(), rel=0.05)

    def test_counts_are_drawn_as_counts(self):
        x = datasets.counts(n=40, genes=5, dtype=torch.float32).x
        m = VAE(**SMALL, likelihood="negative_binomial").fit(x)
        drawn = m.sample(50, generator=0, noise=True)
        assert torch.equal(drawn, drawn.round())
        assert torch.equal(drawn, m.sample(50, generator=0, noise=True))

    @pytest.mark.parametrize("wrong", [{"prior": "flow"}, {"components": 0}])
    def test_others(self, wrong):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            VAE(**SMALL, **wrong).fit(data())
        with pytest.raises(OptionError, match="n of at least 1"):
            VAE(**SMALL).fit(data()).sample(0)


def cells(n=300, genes=4):
    """Poisson counts whose sizes vary by a factor of 10, and the rates at mean size."""
    rates = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=F64)
    sizes = torch.logspace(-0.5, 0.5, n, dtype=F64)[:, None]
    sizes = sizes / sizes.mean()
    return torch.poisson(rates * sizes * 20, generator=gen()), rates * 20


class TestLibrary:
    @pytest.mark.parametrize("kind", [likelihoods.Poisson, likelihoods.NegativeBinomial])
    def test_rates_are_those_of_a_sample_of_mean_size(self, kind):
        x, rates = cells()
        sized = kind(library=True).fitted(x)
        assert torch.allclose(sized.null(x).exp(), rates, rtol=0.05)
        # Sizes explain nearly all of what varies.
        plain = kind().fitted(x)
        assert float(sized.null_deviance(x)) < 0.1 * float(plain.null_deviance(x)) or isinstance(
            plain, likelihoods.NegativeBinomial
        )

    def test_a_double_sample_has_the_same_parameter(self):
        x, _ = cells()
        sized = likelihoods.Poisson(library=True).fitted(x)
        theta = sized.null(x).expand_as(x)
        ratio = torch.log(x.sum(1, keepdim=True) / x.sum(1).mean())
        by_hand = likelihoods.Poisson().deviance(theta + ratio, x)
        assert torch.allclose(sized.deviance(theta, x), by_hand, rtol=1e-12)

    def test_a_fit_saved_and_read(self, tmp_path):
        x, _ = cells()
        likelihood = likelihoods.NegativeBinomial("feature", library=True)
        m = AE(**SMALL, likelihood=likelihood).fit(x)
        again = load(m.save(tmp_path))
        assert again.score(x) == m.score(x)
        assert again.objective_.likelihood.size == pytest.approx(float(x.sum(1).mean()))

    def test_empty_samples(self):
        x, _ = cells()
        x[3] = 0
        with pytest.raises(DataError, match="1 without"):
            likelihoods.Poisson(library=True).fitted(x)


class TestDispersion:
    def test_one_for_each_entry(self):
        # Negative binomial counts of mean 20 with r = 1 and 50.
        r = torch.tensor([1.0, 50.0], dtype=F64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            rate = torch.distributions.Gamma(r.expand(20_000, 2), r / 20).sample()
            x = torch.poisson(rate)
        found = likelihoods.NegativeBinomial("feature").fitted(x)
        assert found.dispersion == pytest.approx((1.0, 50.0), rel=0.15)
        variance = found.distribution(x.mean(0).log()[None]).variance
        assert torch.allclose(variance[0], x.var(0), rtol=0.15)
        assert float(found.deviance(x.clamp(min=1e-9).log(), x).abs().max()) < 1e-6

    @pytest.mark.parametrize("wrong", [(1.0,), (1.0, -2.0), 0.0, "gene"])
    def test_others(self, wrong):
        x = torch.ones(5, 2, dtype=F64)
        with pytest.raises(OptionError, match="dispersion"):
            likelihoods.NegativeBinomial(wrong).fitted(x)
