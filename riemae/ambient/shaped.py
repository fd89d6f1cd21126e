"""Metrics that must know the shape of one datum."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from riemae.ambient.base import AmbientMetric
from riemae.exceptions import AmbientError

if TYPE_CHECKING:
    from riemae.distributions.layout import AnyLayout


class ShapedMetric(AmbientMetric):
    """A metric that must know the shape of one datum, ``(n, d)`` say.

    Its methods get flattened ``(k, D)``, as those of every metric. It comes together with one of
    the other bases: ``class Mine(ShapedMetric, InnerMetric)``. ``Manifold`` binds it to the
    decoder's shape; by itself, ``bind(None, shape)`` returns the metric that knows its shape.

    Attributes:
        data_shape: The shape of one datum, or None before it is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.data_shape: torch.Size | None = None

    def bind(self, layout: AnyLayout | None, shape: torch.Size) -> ShapedMetric:
        """A copy that knows the shape of one datum."""
        bound = copy.copy(self)
        bound.data_shape = torch.Size(shape)
        return bound

    def check(self, x: Tensor, tangents: Tensor | None = None) -> None:  # (k, *shape), (k, D, c)
        """As in :meth:`AmbientMetric.check`, for the shape of ``x``."""
        bound = self.bind(None, x.shape[1:])
        super(ShapedMetric, bound).check(x, tangents)

    def shaped(self, x: Tensor) -> Tensor:  # (k, D) or (k, *shape) -> (k, *shape)
        """``x`` in the shape of the data.

        Raises:
            AmbientError: When the shape is not known, or another.
        """
        if self.data_shape is None:
            hint = "Use it in a Manifold, or the metric that bind(None, shape) returns."
            raise AmbientError(self.title, "to know the shape of one datum", "none", hint)
        if len(x):
            wrong = x[0].numel() != self.data_shape.numel()
        else:
            wrong = x.ndim < 2
        if wrong:
            expected = f"data of shape {tuple(self.data_shape)}"
            hint = "Bind the metric to the shape of these data: bind(None, x.shape[1:])."
            raise AmbientError(self.title, expected, str(tuple(x.shape[1:])), hint)
        return x.reshape(len(x), *self.data_shape)
