"""Likelihoods: how far a reconstruction is from the data, and what the decoder's numbers mean.

Every likelihood measures this distance by its *deviance*, which is twice the log-likelihood ratio
against a model that reproduces the data exactly. It is 0 at best, and for a Gaussian of unit
variance it is the squared error.

The deviance divided by that of the best constant (the null model) is the fraction of deviance left
unexplained: 0 for a perfect model, 1 for one that ignores its input. It does not depend on the
dimension or the units of the data. Weights of geometric terms are relative to this fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributions import Bernoulli as BernoulliDistribution
from torch.distributions import Distribution, Independent
from torch.distributions import NegativeBinomial as NegativeBinomialDistribution
from torch.distributions import Normal as NormalDistribution
from torch.distributions import OneHotCategorical as CategoricalDistribution
from torch.distributions import Poisson as PoissonDistribution
from torch.nn import functional as F

from riemae.exceptions import DataError, OptionError

_LARGEST = 1e4  # dispersion: as good as Poisson


class Likelihood:
    """Base class. The decoder's output, the *parameter* θ, has the shape of the data.

    A subclass gives ``deviance``, ``mean`` and ``null``, and what differs from the defaults.

    Attributes:
        linear: Whether θ is a point of the data space, in its units. The networks then work in
            units of the data's spread.
    """

    linear = False

    def fitted(self, x: Tensor) -> Likelihood:  # (n, *shape)
        """This likelihood with the settings that it takes from the data; by default there are none.

        Raises:
            DataError: When the data do not have this likelihood's form or range.
        """
        return self

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:  # (k, *shape), (k, *shape) -> (k,)
        """Deviance of each sample, summed over its entries; never negative."""
        raise NotImplementedError

    def mean(self, parameter: Tensor) -> Tensor:  # (k, *shape) -> (k, *shape)
        """Expected data."""
        raise NotImplementedError

    def null(self, x: Tensor) -> Tensor:  # (n, *shape) -> (*shape,)
        """θ of the best constant."""
        raise NotImplementedError

    def null_deviance(self, x: Tensor) -> Tensor:  # (n, *shape) -> ()
        """Mean deviance of the best constant."""
        return self.deviance(self.null(x).expand_as(x), x).mean()

    def distribution(self, parameter: Tensor) -> Distribution:
        """The distribution of the data, for its Fisher-Rao metric.

        Raises:
            OptionError: When there is none.
        """
        raise OptionError(
            type(self).__name__, "a likelihood with a density", "a distance", "Use another ambient."
        )


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
        _check_range("Bernoulli", x, 0.0, 1.0)
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
class Poisson(Likelihood):
    """Counts; θ are log rates.

    Args:
        library: Whether rates are relative to the size of each sample, its sum of counts. θ is then
            that of a sample of mean size, and so is all geometry; a sample of twice that size has
            twice the rates.
        size: Mean size of the samples, by default that of the data.
    """

    library: bool = False
    size: float | None = None

    def fitted(self, x: Tensor) -> Likelihood:
        """Checks the range, and measures the mean size when it is None.

        Raises:
            DataError: For samples without counts, when rates are relative to their size.
        """
        _check_range("Poisson", x, 0.0, float("inf"))
        return replace(self, size=_mean_size("Poisson", x, self.size)) if self.library else self

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ [x log(x/λ) − (x − λ)]``."""
        if self.library:
            parameter = parameter + _log_size(x, self.size)
        half = torch.xlogy(x, x) - x * parameter - x + parameter.exp()
        return 2 * half.flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """Rates."""
        return parameter.exp()

    def null(self, x: Tensor) -> Tensor:
        """Log of the mean; finite also for entries that are always 0."""
        # With sizes, the sum of the relative ones is n, and the best rates are the same.
        return x.mean(0).clamp(min=0.5 / len(x)).log()

    def distribution(self, parameter: Tensor) -> Distribution:
        """Poisson."""
        family = PoissonDistribution(parameter.exp(), validate_args=False)
        return Independent(family, parameter.ndim - 1)


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Overdispersed counts with variance ``μ + μ²/r``; θ are log means.

    Args:
        dispersion: r; the larger it is, the closer to Poisson. By default one number for all
            entries, estimated from the data by the method of moments; ``"feature"`` estimates one
            for each entry; a tuple gives them.
        library: As in :class:`Poisson`.
        size: As in :class:`Poisson`.
    """

    dispersion: float | str | Sequence[float] | None = None
    library: bool = False
    size: float | None = None

    def fitted(self, x: Tensor) -> Likelihood:
        """Checks the range, and estimates r when it is None.

        Raises:
            OptionError: When r is given and not positive, or not one for each entry.
            DataError: For samples without counts, when means are relative to their size.
        """
        where = "NegativeBinomial"
        _check_range(where, x, 0.0, float("inf"))
        size = _mean_size(where, x, self.size) if self.library else None
        if self.dispersion is not None and self.dispersion != "feature":
            self._check_dispersion(x[0].numel())
            return replace(self, size=size)
        relative = x / _log_size(x, size).exp() if self.library else x
        mean = relative.mean(0)
        variance = relative.var(0, correction=min(1, len(x) - 1))
        excess = variance - mean
        if self.dispersion is None:
            r = float(mean.square().sum() / excess.sum()) if bool(excess.sum() > 0) else _LARGEST
            return replace(self, dispersion=min(max(r, 1 / _LARGEST), _LARGEST), size=size)
        each = torch.where(excess > 0, mean.square() / excess.clamp(min=1e-30), _LARGEST)
        clamped = each.clamp(1 / _LARGEST, _LARGEST)
        return replace(self, dispersion=tuple(clamped.flatten().tolist()), size=size)

    def _check_dispersion(self, entries: int) -> None:
        given = self.dispersion
        several = isinstance(given, Sequence) and not isinstance(given, str)
        values = list(given) if several else [given]  # type: ignore[arg-type]
        positive = all(isinstance(r, int | float) and r > 0 for r in values)
        if positive and (not several or len(values) == entries):
            return
        raise OptionError(
            "NegativeBinomial",
            f"a positive dispersion, or {entries} of them",
            str(given)[:80],
            "Try dispersion=1.0, 'feature', or None for the method of moments.",
        )

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ [x log(x/μ) − (x + r) log((x + r)/(μ + r))]``."""
        r = self._r(parameter)
        if self.library:
            parameter = parameter + _log_size(x, self.size)
        ratio = torch.log((x + r) / (parameter.exp() + r))
        half = torch.xlogy(x, x) - x * parameter - (x + r) * ratio
        return 2 * half.flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """Means."""
        return parameter.exp()

    def null(self, x: Tensor) -> Tensor:
        """Log of the mean; finite also for entries that are always 0."""
        # With sizes, the sum of the relative ones is n, and the best rates are the same.
        return x.mean(0).clamp(min=0.5 / len(x)).log()

    def distribution(self, parameter: Tensor) -> Distribution:
        """Negative binomial in torch's parameters: a total count of r, and odds of μ/r."""
        total = self._r(parameter).expand_as(parameter)
        logits = parameter - total.log()
        family = NegativeBinomialDistribution(total, logits=logits, validate_args=False)
        return Independent(family, parameter.ndim - 1)

    def _r(self, parameter: Tensor) -> Tensor:  # (k, *shape) -> () or (*shape,)
        if self.dispersion is None or isinstance(self.dispersion, str):
            raise OptionError(
                "NegativeBinomial", "a dispersion", "None", "Call fitted(x) first, or give one."
            )
        r = torch.as_tensor(self.dispersion, dtype=parameter.dtype, device=parameter.device)
        return r if r.ndim == 0 else r.view(parameter.shape[1:])


@dataclass(frozen=True)
class Categorical(Likelihood):
    """One-hot rows or probabilities along the last axis; θ are logits."""

    def fitted(self, x: Tensor) -> Likelihood:
        """Checks that the last axis sums to 1.

        Raises:
            DataError: When it does not.
        """
        _check_range("Categorical", x, 0.0, 1.0)
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


def _check_range(where: str, x: Tensor, low: float, high: float) -> None:
    if bool((x < low).any() | (x > high).any()):
        raise DataError(
            where,
            f"data between {low:g} and {high:g}",
            f"values from {float(x.min()):.4g} to {float(x.max()):.4g}",
            "Rescale the data, or use likelihood='squared_error'.",
        )


def _mean_size(where: str, x: Tensor, given: float | None) -> float:
    """Mean sum of the counts of a sample.

    Raises:
        DataError: When a sample has no counts.
    """
    sizes = x.flatten(1).sum(1)
    if not bool((sizes > 0).all()):
        empty = int((sizes <= 0).sum())
        hint = "Remove these samples, or use library=False."
        raise DataError(where, "samples with counts", f"{empty} without", hint)
    return float(sizes.mean()) if given is None else given


def _log_size(x: Tensor, mean: float | None) -> Tensor:  # (k, *shape) -> (k, 1, …)
    """Logarithm of the size of each sample, relative to the mean size."""
    sizes = x.flatten(1).sum(1).clamp(min=1e-6) / (1.0 if mean is None else mean)
    return sizes.log().view(-1, *[1] * (x.ndim - 1))


def _picked(cloud: Tensor, index: Tensor) -> Tensor:  # (k, n, d), (k, q) -> (k, q, d)
    """The points of each cloud at ``index``."""
    return cloud.gather(1, index[..., None].expand(-1, -1, cloud.shape[-1]))
