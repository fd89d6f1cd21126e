"""Means over samples with weights."""

from __future__ import annotations

from torch import Tensor


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:  # (k,), (k,) -> ()
    """The mean, or that with weights, which need not be normalised."""
    if weights is None:
        return values.mean()
    return (weights * values).sum() / weights.sum()
