"""What a likelihood is: how far a reconstruction is from the data.

Every likelihood measures this distance by its *deviance*, which is twice the log-likelihood ratio
against a model that reproduces the data exactly. It is 0 at best, and for a Gaussian of unit
variance it is the squared error.

The deviance divided by that of the best constant (the null model) is the fraction of deviance left
unexplained: 0 for a perfect model, 1 for one that ignores its input. It does not depend on the
dimension or the units of the data. Weights of geometric terms are relative to this fraction.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from riemae.exceptions import DataError, OptionError


class Likelihood:
    """Base class. The decoder's output is the *parameter* θ.

    A subclass gives ``deviance``, ``mean`` and ``null``, and what differs from the defaults. One
    that is a torch module has parameters of its own, which are trained with the networks.

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

    def parameter_shape(self, shape: torch.Size) -> torch.Size:
        """The shape of θ for one sample; by default that of the sample.

        Args:
            shape: Of one sample.
        """
        return shape

    def deviance(self, parameter: Tensor, x: Tensor) -> Tensor:  # (k, …), (k, *shape) -> (k,)
        """Deviance of each sample, summed over its entries; never negative."""
        raise NotImplementedError

    def mean(self, parameter: Tensor) -> Tensor:  # (k, …) -> (k, *shape)
        """Expected data."""
        raise NotImplementedError

    def null(self, x: Tensor) -> Tensor:  # (n, *shape) -> (…)
        """θ of the best constant."""
        raise NotImplementedError

    def null_deviance(self, x: Tensor) -> Tensor:  # (n, *shape) -> ()
        """Mean deviance of the best constant."""
        null = self.null(x)
        return self.deviance(null.expand(len(x), *null.shape), x).mean()

    def distribution(self, parameter: Tensor) -> Distribution:
        """The distribution of the data, for its Fisher-Rao metric.

        Raises:
            OptionError: When there is none.
        """
        raise OptionError(
            type(self).__name__, "a likelihood with a density", "a distance", "Use another ambient."
        )


def check_range(where: str, x: Tensor, low: float, high: float) -> None:
    """Refuse data outside of a range.

    Raises:
        DataError: When there are any.
    """
    if bool((x < low).any() | (x > high).any()):
        raise DataError(
            where,
            f"data between {low:g} and {high:g}",
            f"values from {float(x.min()):.4g} to {float(x.max()):.4g}",
            "Rescale the data, or use likelihood='squared_error'.",
        )
