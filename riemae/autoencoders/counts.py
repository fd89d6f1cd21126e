"""Likelihoods of counts: Poisson and negative binomial, with and without additional zeros.

===============================  ================  ==============================
name                             θ, per entry      its parts
===============================  ================  ==============================
poisson                          log λ             rate λ
negative_binomial                log μ             mean μ; variance ``μ + μ²/r``
zero_inflated_poisson            (log λ, logit π)  a zero with the chance π, else
                                                   a Poisson count
zero_inflated_negative_binomial  (log μ, logit π)  a zero with the chance π, else
                                                   a negative binomial count
===============================  ================  ==============================

Where there are two parts, θ is ``(k, 2, *shape)``. The dispersion r is a number, one for each
entry, or learned with the networks (``dispersion="learned"``).

A deviance compares with the best count of the same family. Where r is learned, that is the Poisson
distribution: no negative binomial, whatever its mean and r, gives a count a larger chance than the
Poisson distribution of this mean, because it is a mixture of Poisson distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions import NegativeBinomial as NegativeBinomialDistribution
from torch.distributions import Poisson as PoissonDistribution
from torch.nn import functional as F

from riemae.autoencoders.likelihood import Likelihood, check_range
from riemae.distributions import inflated
from riemae.exceptions import DataError, OptionError

_LARGEST = 1e4  # dispersion: as good as Poisson
_STEPS = 50  # of expectation and maximisation for the best constant
_ROWS = 2000  # samples that decide on the chance of additional zeros in it


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
        check_range(type(self).__name__, x, 0.0, float("inf"))
        return replace(self, size=_mean_size(self, x)) if self.library else self

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ [x log(x/λ) − (x − λ)]``."""
        half = _poisson(_sized(self, parameter, x), x)
        return 2 * half.flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """Rates."""
        return parameter.exp()

    def null(self, x: Tensor) -> Tensor:
        """Log of the mean; finite also for entries that are always 0."""
        return _log_mean(x)

    def distribution(self, parameter: Tensor) -> Distribution:
        """Poisson."""
        family = PoissonDistribution(parameter.exp(), validate_args=False)
        return Independent(family, parameter.ndim - 1)


@dataclass(frozen=True)
class ZeroInflatedPoisson(Poisson):
    """Counts with additional zeros; θ are log rates, and logits of the chance of such a zero.

    Args:
        library: As in :class:`Poisson`.
        size: As in :class:`Poisson`.
    """

    def parameter_shape(self, shape: torch.Size) -> torch.Size:
        """``(2, *shape)``."""
        return torch.Size([2, *shape])

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ log(1/P(x))`` relative to a Poisson count of mean x."""
        log_rate, gate = parameter.unbind(1)
        half = _inflated(_poisson(_sized(self, log_rate, x), x), gate, x)
        return 2 * half.flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """``(1 − π) λ``."""
        return _kept(parameter)

    def null(self, x: Tensor) -> Tensor:
        """The most likely constants, by expectation and maximisation."""
        return _best_inflated(self, x, _poisson)

    def distribution(self, parameter: Tensor) -> Distribution:
        """A zero-inflated Poisson distribution."""
        log_rate, gate = parameter.unbind(1)
        family = inflated.ZeroInflatedPoisson(log_rate.exp(), gate, validate_args=False)
        return Independent(family, log_rate.ndim - 1)


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """Overdispersed counts with variance ``μ + μ²/r``; θ are log means.

    Args:
        dispersion: r; the larger it is, the closer to Poisson. By default one number for all
            entries, estimated from the data by the method of moments; ``"feature"`` estimates one
            for each entry; ``"learned"`` starts from these and trains them with the networks; a
            tuple gives them.
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
        check_range(type(self).__name__, x, 0.0, float("inf"))
        size = _mean_size(self, x) if self.library else None
        sized = replace(self, size=size)
        if self.dispersion == "learned":
            return LearnedDispersion(sized, sized._moments(x))
        if self.dispersion is not None and self.dispersion != "feature":
            self._check_dispersion(x[0].numel())
            return sized
        return sized._estimated(x)

    def _estimated(self, x: Tensor) -> NegativeBinomial:
        if self.dispersion == "feature":
            return replace(self, dispersion=tuple(self._moments(x).flatten().tolist()))
        mean, excess = self._excess(x)
        r = float(mean.square().sum() / excess.sum()) if bool(excess.sum() > 0) else _LARGEST
        return replace(self, dispersion=min(max(r, 1 / _LARGEST), _LARGEST))

    def _moments(self, x: Tensor) -> Tensor:  # (n, *shape) -> (*shape,)
        """R of each entry by the method of moments."""
        mean, excess = self._excess(x)
        each = torch.where(excess > 0, mean.square() / excess.clamp(min=1e-30), _LARGEST)
        return each.clamp(1 / _LARGEST, _LARGEST)

    def _excess(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean, and how much larger the variance is."""
        relative = x / _log_size(x, self.size).exp() if self.library else x
        mean = relative.mean(0)
        return mean, relative.var(0, correction=min(1, len(x) - 1)) - mean

    def _check_dispersion(self, entries: int) -> None:
        given: Any = self.dispersion
        several = isinstance(given, Sequence) and not isinstance(given, str)
        values = [*given] if several else [given]
        positive = all(isinstance(r, int | float) and r > 0 for r in values)
        if positive and (not several or len(values) == entries):
            return
        raise OptionError(
            type(self).__name__,
            f"a positive dispersion, or {entries} of them",
            str(given)[:80],
            "Try dispersion=1.0, 'feature', 'learned', or None for the method of moments.",
        )

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ [x log(x/μ) − (x + r) log((x + r)/(μ + r))]``."""
        half = _binomial(_sized(self, parameter, x), x, self._r(parameter))
        return 2 * half.flatten(1).sum(1)

    def learned_deviance(self, parameter: Tensor, x: Tensor, r: Tensor) -> Tensor:
        """``2 Σ log(Q(x)/P(x))``, where Q is the Poisson distribution of mean x.

        Args:
            parameter: θ.
            x: Counts.
            r: Dispersion of each entry.
        """
        half = _learned(_sized(self, parameter, x), x, r)
        return 2 * half.flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """Means."""
        return parameter.exp()

    def null(self, x: Tensor) -> Tensor:
        """Log of the mean; finite also for entries that are always 0."""
        return _log_mean(x)

    def learned_null(self, x: Tensor, r: Tensor) -> Tensor:
        """The best constant for a given dispersion.

        Args:
            x: Counts.
            r: Dispersion of each entry.
        """
        return _log_mean(x)

    def distribution(self, parameter: Tensor) -> Distribution:
        """Negative binomial in torch's parameters: a total count of r, and odds of μ/r."""
        return self.learned_distribution(parameter, self._r(parameter))

    def learned_distribution(self, parameter: Tensor, r: Tensor) -> Distribution:
        """The distribution for a given dispersion.

        Args:
            parameter: θ.
            r: Dispersion of each entry, or of all.
        """
        total = r.expand_as(parameter)
        logits = parameter - total.log()
        family = NegativeBinomialDistribution(total, logits=logits, validate_args=False)
        return Independent(family, parameter.ndim - 1)

    def _r(self, parameter: Tensor) -> Tensor:  # (k, *shape) -> () or (*shape,)
        if self.dispersion is None or isinstance(self.dispersion, str):
            raise OptionError(
                type(self).__name__, "a dispersion", "None", "Call fitted(x) first, or give one."
            )
        r = torch.as_tensor(self.dispersion, dtype=parameter.dtype, device=parameter.device)
        return r if r.ndim == 0 else r.view(parameter.shape[1:])


@dataclass(frozen=True)
class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Overdispersed counts with additional zeros; θ are log means, and logits of such a zero.

    Args:
        dispersion: r, as in :class:`NegativeBinomial`; by default it is learned. Moments cannot
            tell dispersion from additional zeros, so they are refused.
        library: As in :class:`Poisson`.
        size: As in :class:`Poisson`.
    """

    dispersion: float | str | Sequence[float] | None = "learned"

    def _estimated(self, x: Tensor) -> NegativeBinomial:
        raise OptionError(
            type(self).__name__,
            "dispersion='learned', or positive numbers",
            repr(self.dispersion),
            "Moments of the counts cannot tell dispersion from additional zeros.",
        )

    def parameter_shape(self, shape: torch.Size) -> torch.Size:
        """``(2, *shape)``."""
        return torch.Size([2, *shape])

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ log(1/P(x))`` relative to a negative binomial count of mean x."""
        log_mean, gate = parameter.unbind(1)
        counted = _binomial(_sized(self, log_mean, x), x, self._r(log_mean))
        return 2 * _inflated(counted, gate, x).flatten(1).sum(1)

    def learned_deviance(self, parameter: Tensor, x: Tensor, r: Tensor) -> Tensor:
        """``2 Σ log(Q(x)/P(x))``, where Q is the Poisson distribution of mean x.

        Args:
            parameter: θ.
            x: Counts.
            r: Dispersion of each entry.
        """
        log_mean, gate = parameter.unbind(1)
        counted = _learned(_sized(self, log_mean, x), x, r)
        return 2 * _inflated(counted, gate, x).flatten(1).sum(1)

    def mean(self, parameter: Tensor) -> Tensor:
        """``(1 − π) μ``."""
        return _kept(parameter)

    def null(self, x: Tensor) -> Tensor:
        """The most likely constants, by expectation and maximisation."""
        return self.learned_null(x, self._r(x))

    def learned_null(self, x: Tensor, r: Tensor) -> Tensor:
        """The best constants for a given dispersion.

        Args:
            x: Counts.
            r: Dispersion of each entry, or of all.
        """

        def half(log_mean: Tensor, counts: Tensor) -> Tensor:
            return _binomial(log_mean, counts, r)

        return _best_inflated(self, x, half)

    def learned_distribution(self, parameter: Tensor, r: Tensor) -> Distribution:
        """A zero-inflated negative binomial distribution.

        Args:
            parameter: θ.
            r: Dispersion of each entry, or of all.
        """
        log_mean, gate = parameter.unbind(1)
        theta = r.expand_as(log_mean)
        family = inflated.ZeroInflatedNegativeBinomial(
            log_mean.exp(), theta, gate, validate_args=False
        )
        return Independent(family, log_mean.ndim - 1)

    def distribution(self, parameter: Tensor) -> Distribution:
        """A zero-inflated negative binomial distribution."""
        return self.learned_distribution(parameter, self._r(parameter[:, 0]))


class LearnedDispersion(nn.Module, Likelihood):
    """Negative binomial counts whose dispersion is trained with the networks, one per entry.

    ``NegativeBinomial("learned").fitted(x)`` makes it. The whole likelihood of the counts is
    maximised, in which r has its place, and not only the distance of means.

    Args:
        settings: The likelihood with its other settings.
        start: r of each entry ``(*shape,)`` at the start.
    """

    def __init__(self, settings: NegativeBinomial, start: Tensor) -> None:
        super().__init__()
        self.settings = settings
        self.log_dispersion = nn.Parameter(start.detach().log())

    @property
    def dispersion(self) -> Tensor:  # (*shape,)
        """R of each entry."""
        return self.log_dispersion.exp()

    def fitted(self, x: Tensor) -> Likelihood:  # (n, *shape)
        """A copy, which goes on from the dispersion that was learned.

        Raises:
            OptionError: For data of another shape.
        """
        check_range(type(self.settings).__name__, x, 0.0, float("inf"))
        if x.shape[1:] != self.log_dispersion.shape:
            expected = f"data (n, {', '.join(map(str, self.log_dispersion.shape))})"
            hint = "Give the likelihood by its name, so that it starts anew."
            raise OptionError(type(self.settings).__name__, expected, str(tuple(x.shape)), hint)
        return LearnedDispersion(self.settings, self.dispersion.to(x))

    def parameter_shape(self, shape: torch.Size) -> torch.Size:
        """That of the settings."""
        return self.settings.parameter_shape(shape)

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:
        """``2 Σ log(Q(x)/P(x))``, where Q is the Poisson distribution of mean x."""
        return self.settings.learned_deviance(parameter, x, self.dispersion)

    def mean(self, parameter: Tensor) -> Tensor:
        """Expected data."""
        return self.settings.mean(parameter)

    def null(self, x: Tensor) -> Tensor:
        """The best constant for the present dispersion."""
        return self.settings.learned_null(x, self.dispersion.detach())

    def distribution(self, parameter: Tensor) -> Distribution:
        """The distribution of the counts."""
        return self.settings.learned_distribution(parameter, self.dispersion)


# Half of a deviance, entry by entry: log means and counts to numbers of at least 0.


def _poisson(log_mean: Tensor, x: Tensor) -> Tensor:
    return torch.xlogy(x, x) - x * log_mean - x + log_mean.exp()


def _binomial(log_mean: Tensor, x: Tensor, r: Tensor) -> Tensor:
    ratio = torch.log((x + r) / (log_mean.exp() + r))
    return torch.xlogy(x, x) - x * log_mean - (x + r) * ratio


def _learned(log_mean: Tensor, x: Tensor, r: Tensor) -> Tensor:
    """Relative to the Poisson distribution; in float64, because Γ(x + r)/Γ(r) cancels."""
    counts = x.double()
    total = r.double()
    log_odds = log_mean.double() - total.log()
    ways = torch.lgamma(counts + total) - torch.lgamma(total)
    binomial = ways + total * F.logsigmoid(-log_odds) + counts * F.logsigmoid(log_odds)
    best = torch.xlogy(counts, counts) - counts
    return (best - binomial).clamp(min=0).to(x.dtype)


def _inflated(half: Tensor, gate: Tensor, x: Tensor) -> Tensor:
    """With additional zeros: at x = 0, ``half`` is −log of the chance of a zero."""
    zero = -torch.logaddexp(F.logsigmoid(gate), F.logsigmoid(-gate) - half)
    return torch.where(x == 0, zero, half + F.softplus(gate))


def _kept(parameter: Tensor) -> Tensor:  # (k, 2, *shape) -> (k, *shape)
    log_mean, gate = parameter.unbind(1)
    return (log_mean + F.logsigmoid(-gate)).exp()


def _log_mean(x: Tensor) -> Tensor:  # (n, *shape) -> (*shape,)
    """Log of the mean; with sizes, the relative ones sum to n, and the best rates are the same."""
    return x.mean(0).clamp(min=0.5 / len(x)).log()


def _best_inflated(settings: Poisson | NegativeBinomial, x: Tensor, half: object) -> Tensor:
    """Log means and gates ``(2, *shape)`` of the most likely constant (Dempster et al. 1977).

    With sizes of the samples and negative binomials the step for the mean is that of Poisson
    counts, which is close.
    """
    assert callable(half)
    # Evenly spread rows say enough on two numbers per entry.
    x = x[:: max(1, len(x) // _ROWS)]
    shift = _log_size(x, settings.size) if settings.library else torch.zeros_like(x[:, :1])
    empty = x == 0
    least = 0.5 / (len(x) + 1)
    log_mean = _log_mean(x)
    chance = torch.full_like(log_mean, 0.1)
    for _ in range(_STEPS):
        log_zero = -half(log_mean + shift, torch.zeros_like(x))
        rest = (1 - chance) * log_zero.exp()
        added = torch.where(empty, chance / (chance + rest), 0.0)  # (n, *shape)
        chance = added.mean(0).clamp(least, 1 - least)
        counted = ((1 - added) * shift.exp()).sum(0)
        total = ((1 - added) * x).sum(0).clamp(min=0.5)
        log_mean = (total / counted.clamp(min=0.5)).log()
    return torch.stack([log_mean, chance.logit()])


def _sized(settings: Poisson | NegativeBinomial, log_mean: Tensor, x: Tensor) -> Tensor:
    return log_mean + _log_size(x, settings.size) if settings.library else log_mean


def _mean_size(settings: Poisson | NegativeBinomial, x: Tensor) -> float:
    """Mean sum of the counts of a sample.

    Raises:
        DataError: When a sample has no counts.
    """
    sizes = x.flatten(1).sum(1)
    if not bool((sizes > 0).all()):
        empty = int((sizes <= 0).sum())
        hint = "Remove these samples, or use library=False."
        raise DataError(type(settings).__name__, "samples with counts", f"{empty} without", hint)
    return float(sizes.mean()) if settings.size is None else settings.size


def _log_size(x: Tensor, mean: float | None) -> Tensor:  # (k, *shape) -> (k, 1, …)
    """Logarithm of the size of each sample, relative to the mean size."""
    sizes = x.flatten(1).sum(1).clamp(min=1e-6) / (1.0 if mean is None else mean)
    return sizes.log().view(-1, *[1] * (x.ndim - 1))
