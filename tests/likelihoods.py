"""A decoder for every family of distributions that riemae knows, used by several test files."""

from dataclasses import dataclass

import torch
from spaces import rand
from torch import distributions as td
from torch.nn import functional as F

A, B = rand(torch.Generator().manual_seed(0), 2, 2, 3)
Z = rand(torch.Generator().manual_seed(1), 4, 2)


def free(z):
    """Three unbounded parameters."""
    return (z @ A.to(z)).tanh() + 0.2 * z.sum(-1, keepdim=True)


def positive(z):
    return F.softplus(z @ B.to(z) + 0.5)


def classes(z):
    return torch.stack([free(z), positive(z), free(z) * positive(z)], -1)


def factor(z):
    """Lower triangular with positive diagonal."""
    return torch.diag_embed(positive(z)) + z[:, :1, None] * torch.ones(3, 3).to(z).tril(-1) / 2


COVARIANCE = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 0.5]], dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """A decoder that returns distributions of one family.

    Attributes:
        decoder: ``(k, 2)`` to distributions.
        has_features: Whether there is a feature map.
        divergence: Whether torch knows its divergence, and it is smooth where its arguments agree.
    """

    decoder: object
    has_features: bool
    divergence: bool = True


CASES = {
    "bernoulli": Case(lambda z: td.Bernoulli(logits=2 * free(z)), True),
    "bernoulli, probs": Case(lambda z: td.Bernoulli(probs=free(z).sigmoid()), True),
    "binomial": Case(lambda z: td.Binomial(7, logits=free(z)), True),
    "binomial, probs": Case(lambda z: td.Binomial(7, probs=free(z).sigmoid()), True),
    "geometric": Case(lambda z: td.Geometric(logits=free(z)), True),
    "geometric, probs": Case(lambda z: td.Geometric(probs=free(z).sigmoid()), True),
    "categorical": Case(lambda z: td.Categorical(logits=classes(z)), True),
    "categorical, probs": Case(lambda z: td.Categorical(probs=classes(z).exp()), True),
    "one-hot": Case(lambda z: td.OneHotCategorical(logits=classes(z)), True),
    "one-hot, probs": Case(lambda z: td.OneHotCategorical(probs=classes(z).softmax(-1)), True),
    "multinomial": Case(lambda z: td.Multinomial(5, logits=classes(z)), True, False),
    "continuous bernoulli": Case(lambda z: td.ContinuousBernoulli(logits=2 * free(z) + 3), False),
    "continuous bernoulli, probs": Case(
        lambda z: td.ContinuousBernoulli(probs=(2 * free(z) + 3).sigmoid()), False
    ),
    "poisson": Case(lambda z: td.Poisson(positive(z)), True),
    "negative binomial": Case(lambda z: td.NegativeBinomial(3.0, logits=free(z)), True, False),
    "negative binomial, probs": Case(
        lambda z: td.NegativeBinomial(3.0, probs=free(z).sigmoid()), True, False
    ),
    "negative binomial, dispersion": Case(
        lambda z: td.NegativeBinomial(positive(z), logits=free(z)), False, False
    ),
    "negative binomial, dispersion, probs": Case(
        lambda z: td.NegativeBinomial(positive(z), probs=free(z).sigmoid()), False, False
    ),
    "exponential": Case(lambda z: td.Exponential(positive(z)), True),
    "gamma": Case(lambda z: td.Gamma(positive(z), free(z).exp()), False),
    "gamma, fixed shape": Case(lambda z: td.Gamma(2.0, positive(z)), True),
    "gamma, fixed rate": Case(lambda z: td.Gamma(positive(z), 2.0), False),
    "chi2": Case(lambda z: td.Chi2(3 * positive(z)), False),
    "inverse gamma": Case(lambda z: td.InverseGamma(positive(z), free(z).exp()), False, False),
    "beta": Case(lambda z: td.Beta(positive(z), free(z).exp()), False),
    "dirichlet": Case(lambda z: td.Dirichlet(torch.stack([positive(z), free(z).exp()], -1)), False),
    "normal": Case(lambda z: td.Normal(free(z), positive(z)), False),
    "normal, fixed scale": Case(lambda z: td.Normal(free(z), 0.4), True),
    "normal, fixed mean": Case(lambda z: td.Normal(1.0, positive(z)), True),
    "log-normal": Case(lambda z: td.LogNormal(free(z), positive(z)), False),
    "logit-normal": Case(
        lambda z: td.TransformedDistribution(
            td.Normal(free(z), positive(z)), [td.SigmoidTransform()]
        ),
        False,
    ),
    "laplace": Case(lambda z: td.Laplace(free(z), positive(z)), False, False),
    "laplace, fixed mean": Case(lambda z: td.Laplace(0.0, positive(z)), True, False),
    "cauchy": Case(lambda z: td.Cauchy(free(z), positive(z)), False),
    "student": Case(lambda z: td.StudentT(4 * positive(z), free(z), positive(z)), False, False),
    "student, fixed degrees": Case(lambda z: td.StudentT(5.0, free(z), positive(z)), False, False),
    "student, fixed scale": Case(lambda z: td.StudentT(5.0, free(z), 0.4), True, False),
    "fisher-snedecor": Case(
        lambda z: td.FisherSnedecor(4 * positive(z), 3 * free(z).exp()), False, False
    ),
    "wishart": Case(
        lambda z: td.Wishart(9 + positive(z)[:, 0], scale_tril=factor(z)), False, False
    ),
    # In two dimensions: torch's draws in more do not follow its own density (their mean score is
    # not 0).
    "lkj": Case(lambda z: td.LKJCholesky(2, positive(z)), False, False),
    "half-normal": Case(lambda z: td.HalfNormal(positive(z)), True),
    "half-cauchy": Case(lambda z: td.HalfCauchy(positive(z)), True, False),
    "von mises": Case(lambda z: td.VonMises(free(z), 3 * positive(z)), False, False),
    "von mises, fixed concentration": Case(lambda z: td.VonMises(free(z), 2.0), True, False),
    "multivariate normal": Case(
        lambda z: td.MultivariateNormal(free(z), scale_tril=factor(z)), False
    ),
    "multivariate normal, covariance": Case(
        lambda z: td.MultivariateNormal(free(z), covariance_matrix=factor(z) @ factor(z).mT), False
    ),
    "multivariate normal, fixed": Case(
        lambda z: td.MultivariateNormal(free(z), COVARIANCE.to(z)), True
    ),
    "independent": Case(lambda z: td.Independent(td.Normal(free(z), positive(z)), 1), False),
}
