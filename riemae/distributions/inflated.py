"""Counts with more zeros than their family has, as distributions of torch.

A zero comes with the chance ``π = σ(zi_logits)``, and otherwise a count of a Poisson or negative
binomial distribution, which may be 0 as well (Lambert 1992).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F


class ZeroInflated(Distribution):
    """Base class: subclasses know the mean, the variance, the density and draws of the counts."""

    support = constraints.nonnegative_integer
    mu: Tensor
    zi_logits: Tensor

    def _set(self, parameters: dict[str, Any], validate_args: bool | None) -> None:
        tensors = torch.broadcast_tensors(*map(torch.as_tensor, parameters.values()))
        for name, value in zip(parameters, tensors, strict=True):
            setattr(self, name, value)
        super().__init__(tensors[0].shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """``(1 − π) μ``."""
        return torch.sigmoid(-self.zi_logits) * self._mean()

    @property
    def variance(self) -> Tensor:
        """``(1 − π) (σ² + π μ²)``, with μ and σ² of the counts."""
        rest = torch.sigmoid(-self.zi_logits)
        return rest * (self._variance() + (1 - rest) * self._mean().square())

    def log_prob(self, value: Tensor) -> Tensor:
        """Logarithm of the chance of a count."""
        if self._validate_args:
            self._validate_sample(value)
        counted = self._log_count(value) + F.logsigmoid(-self.zi_logits)
        zero = torch.logaddexp(F.logsigmoid(self.zi_logits), counted)
        return torch.where(value == 0, zero, counted)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Counts."""
        shape = self._extended_shape(sample_shape)
        drawn = torch.poisson(self._rates(shape))
        kept = torch.bernoulli(torch.sigmoid(-self.zi_logits).expand(shape))
        return drawn * kept

    def _mean(self) -> Tensor:
        raise NotImplementedError

    def _variance(self) -> Tensor:
        raise NotImplementedError

    def _log_count(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def _rates(self, shape: torch.Size) -> Tensor:
        """Rates of the Poisson distributions from which counts are drawn."""
        raise NotImplementedError


class ZeroInflatedPoisson(ZeroInflated):
    """A Poisson count, or a zero.

    Args:
        rate: λ.
        zi_logits: Logits of the chance of the additional zero.
        validate_args: As in ``torch.distributions``.
    """

    arg_constraints = {"rate": constraints.nonnegative, "zi_logits": constraints.real}
    rate: Tensor

    def __init__(self, rate: Any, zi_logits: Any, validate_args: bool | None = None) -> None:
        self._set({"rate": rate, "zi_logits": zi_logits}, validate_args)

    def _mean(self) -> Tensor:
        return self.rate

    def _variance(self) -> Tensor:
        return self.rate

    def _log_count(self, value: Tensor) -> Tensor:
        return torch.xlogy(value, self.rate) - self.rate - torch.lgamma(value + 1)

    def _rates(self, shape: torch.Size) -> Tensor:
        return self.rate.expand(shape)


class ZeroInflatedNegativeBinomial(ZeroInflated):
    """A negative binomial count of variance ``μ + μ²/θ``, or a zero.

    Args:
        mu: μ.
        theta: θ, the inverse dispersion.
        zi_logits: Logits of the chance of the additional zero.
        validate_args: As in ``torch.distributions``.
    """

    arg_constraints = {
        "mu": constraints.nonnegative,
        "theta": constraints.positive,
        "zi_logits": constraints.real,
    }
    mu: Tensor
    theta: Tensor

    def __init__(
        self, mu: Any, theta: Any, zi_logits: Any, validate_args: bool | None = None
    ) -> None:
        self._set({"mu": mu, "theta": theta, "zi_logits": zi_logits}, validate_args)

    def _mean(self) -> Tensor:
        return self.mu

    def _variance(self) -> Tensor:
        return self.mu + self.mu.square() / self.theta

    def _log_count(self, value: Tensor) -> Tensor:
        theta = self.theta
        ways = torch.lgamma(value + theta) - torch.lgamma(theta) - torch.lgamma(value + 1)
        stops = -theta * torch.log1p(self.mu / theta)
        return ways + stops + torch.xlogy(value, self.mu / (self.mu + theta))

    def _rates(self, shape: torch.Size) -> Tensor:
        shapes = self.theta.expand(shape)
        return torch._standard_gamma(shapes) * (self.mu / self.theta).expand(shape)
