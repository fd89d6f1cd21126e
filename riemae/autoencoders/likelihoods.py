"""Likelihoods: how far a reconstruction is from the data, and what the decoder's numbers mean.

Those of counts are in :mod:`riemae.autoencoders.counts`, and what a likelihood is in
:mod:`riemae.autoencoders.likelihood`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliDistribution
from torch.distributions import Distribution, Independent
from torch.distributions import Normal as NormalDistribution
from torch.distributions import OneHotCategorical as CategoricalDistribution
from torch.nn import functional as F

from riemae.autoencoders.counts import (
    LearnedDispersion,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from riemae.autoencoders.likelihood import Likelihood, check_range
from riemae.exceptions import DataError, OptionError

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "Chamfer",
    "LearnedDispersion",
    "Likelihood",
    "NegativeBinomial",
    "Poisson",
    "SquaredError",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "as_likelihood",
]


@dataclass(frozen=True)
class SquaredError(Likelihood):
    """``|x − θ|²``: a Gaussian of unit variance."""

    linear = True

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``|x − θ|²``."""
        return (x - parameter).square().flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """θ itself."""
        return parameter

    def null(self, x: Tensor) -> Tensor:
        """The mean."""
        return x.mean(0)

    def distribution(self, parameter: Tensor) -> Distribution:
        """Normal of unit variance."""
        family = NormalDistribution(parameter, 1.0, validate_args=False)
        return Independent(family, parameter.ndim - 1)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Data in [0, 1]; θ are logits."""

    def fitted(self, x: Tensor) -> Likelihood:
        """Checks the range."""
        check_range("Bernoulli", x, 0.0, 1.0)
        return self

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ KL(x, p)``, summed over the entries."""
        cross = F.binary_cross_entropy_with_logits(parameter, x, reduction="none")
        entropy = -(torch.xlogy(x, x) + torch.xlogy(1 - x, 1 - x))
        return 2 * (cross - entropy).flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """Probabilities."""
        return parameter.sigmoid()

    def null(self, x: Tensor) -> Tensor:
        """Logits of the mean; finite also for entries that are always 0 or always 1."""
        margin = 0.5 / (len(x) + 1)
        return x.mean(0).clamp(margin, 1 - margin).logit()

    def distribution(self, parameter: Tensor) -> Distribution:
        """Bernoulli."""
        family = BernoulliDistribution(logits=parameter, validate_args=False)
        return Independent(family, parameter.ndim - 1)


@dataclass(frozen=True)
class Categorical(Likelihood):
    """One-hot rows or probabilities along the last axis; θ are logits."""

    def fitted(self, x: Tensor) -> Likelihood:
        """Checks that the last axis sums to 1.

        Raises:
            DataError: When it does not.
        """
        check_range("Categorical", x, 0.0, 1.0)
        gap = float((x.sum(-1) - 1).abs().max())
        if gap > 1e-3:
            raise DataError(
                "Categorical",
                "one-hot vectors or probabilities along the last axis",
                f"sums that miss 1 by up to {gap:.3g}",
                "Encode labels with torch.nn.functional.one_hot.",
            )
        return self

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ KL(x, p)``."""
        half = torch.xlogy(x, x) - x * parameter.log_softmax(-1)
        return 2 * half.flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """Probabilities."""
        return parameter.softmax(-1)

    def null(self, x: Tensor) -> Tensor:
        """Log of the mean; finite also for categories that never occur."""
        return x.mean(0).clamp(min=0.5 / len(x)).log()

    def distribution(self, parameter: Tensor) -> Distribution:
        """Categorical."""
        family = CategoricalDistribution(logits=parameter, validate_args=False)
        return Independent(family, parameter.ndim - 2) if parameter.ndim > 2 else family


@dataclass(frozen=True)
class Chamfer(Likelihood):
    """Point clouds ``(n, points, d)``, as sets.

    The deviance is the mean squared distance of each point to the nearest point of the other cloud,
    summed over both directions.
    """

    linear = True

    def fitted(self, x: Tensor) -> Likelihood:
        """Checks the shape.

        Raises:
            DataError: When the samples are not lists of points.
        """
        if x.ndim != 3:
            raise DataError(
                "Chamfer",
                "point clouds (n, points, d)",
                f"shape {tuple(x.shape)}",
                "Stack clouds of equally many points along the first axis.",
            )
        return self

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``mean_i min_j |x_i − θ_j|² + mean_j min_i |x_i − θ_j|²``."""
        # The nearest points are found without a gradient. The distances to them are then computed
        # again, with one.
        with torch.no_grad():
            distance = torch.cdist(x, parameter)
            nearest_output = distance.argmin(2)
            nearest_data = distance.argmin(1)
        of_data = (x - _picked(parameter, nearest_output)).square().sum(-1).mean(1)
        of_output = (parameter - _picked(x, nearest_data)).square().sum(-1).mean(1)
        return of_data + of_output

    def mean(self, parameter: Tensor) -> Tensor:
        """θ itself."""
        return parameter

    def null(self, x: Tensor) -> Tensor:
        """The centre of all points, repeated for each point, because sets have no mean."""
        return x.mean((0, 1)).expand(x.shape[1:])

    def null_deviance(self, x: Tensor) -> Tensor:
        """Mean deviance between one cloud and the next."""
        return self.deviance(x.roll(1, 0), x).mean()


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "squared_error": SquaredError,
    "bernoulli": Bernoulli,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
    "zero_inflated_poisson": ZeroInflatedPoisson,
    "zero_inflated_negative_binomial": ZeroInflatedNegativeBinomial,
    "categorical": Categorical,
    "chamfer": Chamfer,
}


def as_likelihood(likelihood: str | Likelihood) -> Likelihood:
    """A likelihood from its name; an instance is returned as it is.

    Raises:
        OptionError: For anything else.
    """
    if isinstance(likelihood, Likelihood):
        return likelihood
    if likelihood not in LIKELIHOODS:
        names = ", ".join(LIKELIHOODS)
        raise OptionError(
            "likelihood",
            f"one of {names}, or a Likelihood",
            repr(likelihood),
            "Try likelihood='squared_error'.",
        )
    return LIKELIHOODS[likelihood]()


def _picked(cloud: Tensor, index: Tensor) -> Tensor:  # (k, n, d), (k, q) -> (k, q, d)
    """The points of each cloud at ``index``."""
    return cloud.gather(1, index[..., None].expand(-1, -1, cloud.shape[-1]))
