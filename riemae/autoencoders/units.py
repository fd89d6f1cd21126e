"""What sets the units of a loss: the data, the metric of their space, and their extent in it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from riemae import ambient as ambients
from riemae.ambient import AmbientMetric, as_ambient
from riemae.autoencoders.likelihoods import Likelihood, SquaredError
from riemae.autoencoders.terms import Variation
from riemae.exceptions import AmbientError, DataError, NonFiniteError, OptionError

_SAMPLES = 2000  # of the data, on which their squared extent is measured


def check_finite(data: Tensor) -> None:  # (n, *shape)
    """Refuse NaN and infinity.

    Raises:
        NonFiniteError: When there are any.
    """
    if bool(data.isfinite().all()):
        return
    bad = ~data.flatten(1).isfinite().all(1)
    rows = bad.nonzero().flatten().tolist()
    got = f"NaN or infinity at rows {rows[:5]}"
    raise NonFiniteError("autoencoder", "finite data", got, "Remove them.")


def check_varied(null: Tensor, data: Tensor) -> None:  # (), (n, *shape)
    """Refuse data whose null deviance is 0 up to rounding.

    Raises:
        DataError: When it is.
    """
    squared_size = float(data.square().flatten(1).sum(1).mean())
    rounding = torch.finfo(data.dtype).eps ** 2 * squared_size
    if not float(null) > rounding:
        expected = "data that vary"
        got = "the same sample again and again"
        raise DataError("autoencoder", expected, got, "Are all features constant?")


def metric_of(
    ambient: Any, variation: Variation, likelihood: Likelihood, data: Tensor
) -> AmbientMetric | None:
    """A copy of the metric, in the data's dtype and on their device; None for the Euclidean one.

    Args:
        ambient: As in :class:`~riemae.Manifold`, or ``"fisher"``.
        variation: What the autoencoder changes in the plain one.
        likelihood: Of the data.
        data: Give the dtype and the device.

    Raises:
        OptionError: For a metric that the variation cannot use, or an unknown name.
    """
    if ambient is None:
        return None
    if isinstance(ambient, str):
        return _named(ambient, variation)
    if variation.order is not None and not isinstance(likelihood, SquaredError):
        raise OptionError(
            "NRAE",
            "likelihood='squared_error' with an ambient metric",
            type(likelihood).__name__,
            "Leave ambient out: NRAE then measures neighbours by the likelihood.",
        )
    if not isinstance(ambient, Tensor | AmbientMetric) and hasattr(ambient, "__array__"):
        ambient = torch.as_tensor(ambient)
    return copy.deepcopy(as_ambient(ambient)).to(data)


def _named(ambient: str, variation: Variation) -> AmbientMetric:
    if ambient != "fisher":
        hint = "Other metrics are objects of riemae.ambient."
        raise OptionError("autoencoder", "ambient 'fisher', or a metric", repr(ambient), hint)
    if variation.order is not None:
        raise OptionError(
            "NRAE",
            "a metric on the data space",
            "'fisher', a metric on distributions",
            "NRAE's own loss already uses the likelihood: leave ambient out.",
        )
    return ambients.FisherRao()


def squared_extent(metric: AmbientMetric | None, data: Tensor) -> Tensor:  # (n, *shape) -> ()
    """Mean squared distance of the data from their mean, ``E|x − x̄|²_H``.

    Args:
        metric: Of the data space; None for the Euclidean.
        data: Of more than 2,000 samples, the first 2,000 are used.

    Raises:
        AmbientError: When the metric does not fit the data, or gives them no extent.
    """
    data = data[:_SAMPLES]
    away = data - data.mean(0)
    if metric is None:
        return away.flatten(1).square().sum(1).mean()
    try:
        metric.check(data[:2])
        metric = metric.bind(None, data.shape[1:])
        x = data if metric.has_features else data.flatten(1)
        extent = metric.squared_norm(x, away.flatten(1)).mean().detach()
    except AmbientError:
        raise
    except (RuntimeError, ValueError) as reason:
        expected = f"a metric on data {tuple(data.shape[1:])}"
        hint = "Does the metric belong to these data?"
        raise AmbientError("autoencoder", expected, str(reason).splitlines()[0], hint) from reason
    if not bool(extent > 0):
        expected = "a metric under which the data vary"
        hint = "Is it zero in the directions of the data?"
        raise AmbientError("autoencoder", expected, f"extent {float(extent)}", hint)
    return extent
