"""Likelihoods of counts: additional zeros, and a dispersion that is learned."""

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn

from riemae import Manifold, ambient, datasets, load, scores
from riemae.autoencoders import AE, IRAE, NRAE, VAE, Term, likelihoods
from riemae.autoencoders.counts import LearnedDispersion
from riemae.autoencoders.objective import Objective
from riemae.distributions.inflated import ZeroInflatedNegativeBinomial, ZeroInflatedPoisson
from riemae.exceptions import DataError, OptionError

F64 = torch.float64
SMALL = {"hidden": (8,), "epochs": 3, "batch_size": 16}
INFLATED = ("zero_inflated_poisson", "zero_inflated_negative_binomial")
COUNTS = torch.arange(60, dtype=F64)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def log_chances(counted, pi):  # of scipy's log chances of the counts
    zero = COUNTS.numpy() == 0
    return np.where(zero, np.log(pi + (1 - pi) * np.exp(counted)), np.log(1 - pi) + counted)


def cells(n=80, genes=4):
    """Negative binomial counts along a curve, with additional zeros."""
    t = torch.rand(n, 1, generator=gen(), dtype=F64)
    mean = (2 + torch.arange(genes) * t).exp()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ZeroInflatedNegativeBinomial(mean, torch.tensor(5.0), torch.tensor(-1.0)).sample()


class TestDistributions:
    def test_poisson_against_scipy(self):
        family = ZeroInflatedPoisson(torch.tensor(2.5, dtype=F64), torch.tensor(-0.4, dtype=F64))
        pi = 1 / (1 + np.exp(0.4))
        expected = log_chances(stats.poisson.logpmf(COUNTS.numpy(), 2.5), pi)
        assert np.allclose(family.log_prob(COUNTS).numpy(), expected, rtol=1e-12)

    def test_negative_binomial_against_scipy(self):
        values = [torch.tensor(v, dtype=F64) for v in (2.5, 1.7, -0.4)]
        family = ZeroInflatedNegativeBinomial(*values)
        pi = 1 / (1 + np.exp(0.4))
        counted = stats.nbinom.logpmf(COUNTS.numpy(), 1.7, 1.7 / (1.7 + 2.5))
        assert np.allclose(family.log_prob(COUNTS).numpy(), log_chances(counted, pi), rtol=1e-11)

    @pytest.mark.parametrize(
        "family",
        [
            ZeroInflatedPoisson(torch.tensor([2.5, 0.3]), torch.tensor([-0.4, 1.0])),
            ZeroInflatedNegativeBinomial(
                torch.tensor([2.5, 0.3]), torch.tensor([1.7, 4.0]), torch.tensor([-0.4, 1.0])
            ),
        ],
    )
    def test_moments_are_those_of_the_chances_and_of_draws(self, family):
        counts = torch.arange(200.0)[:, None]
        chance = family.log_prob(counts).exp()
        assert torch.allclose(chance.sum(0), torch.ones(2), atol=1e-5)
        mean = (chance * counts).sum(0)
        assert torch.allclose(family.mean, mean, rtol=1e-4)
        spread = (chance * (counts - mean).square()).sum(0)
        assert torch.allclose(family.variance, spread, rtol=1e-3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            drawn = family.sample((40_000,))
        assert drawn.shape == (40_000, 2)
        assert torch.allclose(drawn.mean(0), mean, rtol=0.05)
        assert torch.allclose(drawn.var(0), spread, rtol=0.08)

    @pytest.mark.parametrize("name", INFLATED)
    def test_fisher_information_is_the_covariance_of_the_score(self, name):
        # Summed over all counts of any chance, in coordinates (log mean, gate).
        likelihood = likelihoods.as_likelihood(name)
        if name.endswith("binomial"):
            likelihood = likelihoods.ZeroInflatedNegativeBinomial(3.0)

        def decode(z):  # (k, 2) -> one count
            return likelihood.distribution(z[..., None])

        point = torch.tensor([[0.7, -0.5]], dtype=F64)
        counts = torch.arange(400, dtype=F64)[:, None]

        def log_prob(theta):
            return decode(theta.expand(400, 2)).log_prob(counts)

        score = torch.func.jacfwd(log_prob)(point)[:, 0]  # (400, 2)
        chance = log_prob(point).exp()
        expected = torch.einsum("n,ni,nj->ij", chance, score, score)
        found = Manifold(decode, ambient.FisherRao()).metric(point)[0]
        assert torch.allclose(found, expected, rtol=1e-9)


class TestDeviance:
    @pytest.mark.parametrize("name", INFLATED)
    def test_it_is_twice_the_log_ratio(self, name):
        likelihood = likelihoods.as_likelihood(name)
        best = stats.poisson.logpmf(COUNTS.numpy(), np.maximum(COUNTS.numpy(), 1e-300))
        if name.endswith("binomial"):
            likelihood = likelihoods.ZeroInflatedNegativeBinomial(3.0)
            x = COUNTS.numpy()
            best = stats.nbinom.logpmf(x, 3.0, 3.0 / (3.0 + x))
        theta = torch.tensor([[0.7], [-0.5]], dtype=F64).expand(60, 2, 1)
        found = likelihood.deviance(theta, COUNTS[:, None])
        own = likelihood.distribution(theta).log_prob(COUNTS[:, None])
        assert torch.allclose(found, 2 * (torch.as_tensor(best) - own), rtol=1e-9, atol=1e-9)
        assert (found >= 0).all()

    def test_without_additional_zeros_it_is_the_plain_one(self):
        x = cells()
        theta = torch.randn(80, 4, generator=gen(), dtype=F64)
        both = torch.stack([theta, torch.full_like(theta, -60)], 1)
        pairs = [
            (likelihoods.Poisson(), likelihoods.ZeroInflatedPoisson()),
            (likelihoods.NegativeBinomial(3.0), likelihoods.ZeroInflatedNegativeBinomial(3.0)),
        ]
        for plain, more in pairs:
            assert torch.allclose(more.deviance(both, x), plain.deviance(theta, x), rtol=1e-12)
            assert torch.allclose(more.mean(both), plain.mean(theta))

    @pytest.mark.parametrize("kind", ["NegativeBinomial", "ZeroInflatedNegativeBinomial"])
    def test_a_learned_dispersion_maximises_the_likelihood(self, kind):
        # Gradients in r are those of the log likelihood, and no pair of μ and r goes below 0.
        x = cells()
        likelihood = getattr(likelihoods, kind)("learned").fitted(x)
        assert isinstance(likelihood, LearnedDispersion)
        null = likelihood.null(x)
        theta = null.expand(len(x), *null.shape)
        loss = likelihood.deviance(theta, x).sum()
        (slope,) = torch.autograd.grad(loss, likelihood.log_dispersion)
        free = likelihood.log_dispersion.detach().clone().requires_grad_()
        own = likelihood.settings.learned_distribution(theta, free.exp()).log_prob(x).sum()
        (expected,) = torch.autograd.grad(-2 * own, free)
        assert torch.allclose(slope, expected, rtol=1e-8)
        for log_r in (-6.0, 0.0, 6.0):
            with torch.no_grad():
                likelihood.log_dispersion.fill_(log_r)
            perfect = x.clamp(min=1e-9).log()
            if kind.startswith("Zero"):
                perfect = torch.stack([perfect, torch.full_like(perfect, -30)], 1)
            assert (likelihood.deviance(perfect, x) >= 0).all()

    def test_the_null_model_is_the_most_likely_constant(self):
        x = cells()
        likelihood = likelihoods.ZeroInflatedPoisson()
        null = likelihood.null(x)
        for gene in range(4):

            def cost(theta, gene=gene):
                both = torch.as_tensor(theta, dtype=F64).view(1, 2, 1).expand(80, 2, 1)
                return float(likelihood.deviance(both, x[:, gene : gene + 1]).mean())

            best = optimize.minimize(cost, [2.0, -1.0], method="Nelder-Mead", tol=1e-9)
            assert cost(null[:, gene].numpy()) == pytest.approx(best.fun, rel=1e-4)

    def test_sizes(self):
        x = cells()
        twice = torch.cat([x, 2 * x])
        twice = twice[twice.sum(1) > 0]
        for kind in (likelihoods.ZeroInflatedPoisson, likelihoods.ZeroInflatedNegativeBinomial):
            sized = kind(library=True).fitted(twice)
            null = sized.null(twice)
            assert null.shape == (2, 4)
            # A cell of twice the mean size has twice the rates.
            ratio = (twice.sum(1) / twice.sum(1).mean()).log()[:, None]
            theta = null.expand(len(twice), 2, 4)
            shifted = torch.stack([theta[:, 0] + ratio, theta[:, 1]], 1)
            plain = kind().fitted(twice)
            if isinstance(plain, LearnedDispersion):
                plain.log_dispersion.data.copy_(sized.log_dispersion.data)
            assert torch.allclose(
                sized.deviance(theta, twice), plain.deviance(shifted, twice), rtol=1e-9
            )

    def test_refused(self):
        x = cells()
        for wrong in (None, "feature"):
            with pytest.raises(OptionError, match="cannot tell dispersion"):
                likelihoods.ZeroInflatedNegativeBinomial(wrong).fitted(x)
        with pytest.raises(DataError, match="between 0"):
            likelihoods.ZeroInflatedPoisson().fitted(x - 1)
        learned = likelihoods.NegativeBinomial("learned").fitted(x)
        with pytest.raises(OptionError, match="data"):
            learned.fitted(x[:, :2])


class TestFits:
    @pytest.mark.parametrize("kind", [AE, NRAE, VAE, IRAE])
    @pytest.mark.parametrize("name", INFLATED)
    def test_train_save_load(self, kind, name, tmp_path):
        x = cells()
        options = {"ambient": "fisher"} if kind is IRAE else {}
        m = kind(**SMALL, **options, likelihood=name).fit(x)
        assert np.isfinite(m.history_["loss"]).all()
        assert m.inverse_transform(m.transform(x)).shape == x.shape
        again = load(m.save(tmp_path))
        assert again.score(x) == m.score(x)
        assert torch.equal(again.transform(x), m.transform(x))
        g = m.manifold_.metric(m.transform(x)[:3])
        assert torch.equal(again.manifold_.metric(m.transform(x)[:3]), g)
        if kind is VAE:
            drawn = m.sample(40, generator=0, noise=True)
            assert drawn.shape == (40, 4)
            assert torch.equal(drawn, drawn.round())

    def test_learned_dispersion_finds_the_dispersion(self, tmp_path):
        # Constant means: the dispersion is all that there is to learn.
        r = torch.tensor([1.0, 30.0], dtype=F64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            x = torch.poisson(torch.distributions.Gamma(r.expand(3000, 2), r / 20).sample())
        likelihood = likelihoods.NegativeBinomial("learned").fitted(x)
        with torch.no_grad():
            likelihood.log_dispersion.fill_(1.0)  # away from where it starts
        null = likelihood.null(x)
        optimizer = torch.optim.LBFGS(likelihood.parameters(), max_iter=50)

        def closure():
            optimizer.zero_grad()
            loss = likelihood.deviance(null.expand_as(x), x).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        assert torch.allclose(likelihood.dispersion, r, rtol=0.1)

    def test_it_is_trained_saved_and_shown(self, tmp_path):
        x = cells()
        likelihood = likelihoods.NegativeBinomial("learned", library=True)
        x = x[x.sum(1) > 0]
        m = VAE(**SMALL, likelihood=likelihood).fit(x)
        start = likelihood.fitted(x).dispersion
        found = m.likelihood_.dispersion
        assert found.shape == (4,)
        assert not torch.allclose(found, start, rtol=1e-4)
        again = load(m.save(tmp_path))
        assert torch.equal(again.likelihood_.dispersion, found)
        assert again.likelihood.dispersion == "learned"
        # A further fit starts from what was learned, and leaves the first model alone.
        other = VAE(**SMALL, likelihood=m.likelihood_).fit(x)
        assert torch.equal(m.likelihood_.dispersion, found)
        assert not torch.equal(other.likelihood_.dispersion, found)

    def test_the_metric_follows_the_dispersion_in_training(self):
        # Manifolds serve the whole training: r must not stay what it was at first.
        x = cells()
        likelihood = likelihoods.NegativeBinomial("learned").fitted(x)
        encoder, decoder = nn.Linear(4, 2).double(), nn.Linear(2, 4).double()
        objective = Objective(encoder, decoder, x, likelihood, "fisher")
        z = torch.randn(5, 2, generator=gen(), dtype=F64)
        objective.manifold.metric(z)
        with torch.no_grad():
            objective.likelihood.log_dispersion.fill_(0.3)
        r = float(np.exp(0.3))
        mean = decoder(z).exp()
        weight = mean * r / (mean + r)  # Fisher information of a log mean
        w = decoder.weight
        expected = torch.einsum("kd,di,dj->kij", weight, w, w)
        assert torch.allclose(objective.manifold.metric(z), expected, rtol=1e-9)

    def test_a_flat_latent_space_of_counts(self):
        # The recipe of FlatVI: an isometry, up to a learned scale, under the Fisher metric.
        x = datasets.counts(n=200, genes=10).x
        found = []
        for terms in ({}, {"absolute_isometry": Term(1.0, schedule="linear")}):
            m = VAE(
                hidden=(32,),
                epochs=40,
                lr=5e-3,
                likelihood=likelihoods.NegativeBinomial("learned", library=True),
                ambient="fisher",
                terms=terms,
            ).fit(x)
            z = torch.as_tensor(m.transform(x))
            mcn = float(scores.condition_number(m.manifold_, z).mean())
            found.append((mcn, float(scores.vor(m.manifold_, z)), m))
        plain, flat = found
        assert flat[0] < 0.4 * plain[0]
        assert flat[1] < 0.4 * plain[1]
        assert flat[2].score(x) > plain[2].score(x) - 0.02
        # What is learned as c is the scale that the metric has.
        loss = flat[2].objective_.terms["absolute_isometry"].loss
        c = float(loss.unit * loss.log_scale.exp())
        z = torch.as_tensor(flat[2].transform(x))
        size = float(flat[2].manifold_.eigenvalues(z).mean()) ** 0.5
        assert 0.7 < size / c < 1.3
