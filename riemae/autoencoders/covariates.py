"""What a decoder gets besides the code: the batch of a cell, a class, covariates as numbers.

``fit(X, condition=labels)`` trains a decoder ``(z, c)``; the encoder sees the data alone. The
manifold of such a decoder takes ``condition=`` in its methods, as any other with conditions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riemae import storage
from riemae.autoencoders.latents import latent_of
from riemae.autoencoders.networks import Colour, mlp
from riemae.exceptions import DTypeError, NonFiniteError, OptionError, ShapeError
from riemae.manifold import Manifold

_HINT = "Give one label for each sample (n,), or covariates as numbers (n, c)."


@dataclass(frozen=True)
class Covariates:
    """How conditions become rows of numbers.

    Attributes:
        width: How many numbers a decoder gets.
        categories: The labels, each of which is one number that is 0 or 1; None for covariates that
            are numbers already.
    """

    width: int
    categories: tuple[str | int | bool, ...] | None = None

    @classmethod
    def of(cls, where: str, condition: Any) -> Covariates:
        """What the conditions of the training data say.

        Args:
            where: The call that asks, for the error.
            condition: ``(n,)`` labels, or ``(n, c)`` numbers.

        Raises:
            ShapeError: For other shapes.
            DTypeError: For labels that are neither text nor whole numbers.
        """
        array = _array(where, condition)
        if array.ndim == 2 and array.shape[1]:
            return cls(array.shape[1])
        if array.ndim != 1 or not len(array):
            expected = "labels (n,), or covariates (n, c)"
            raise ShapeError(where, f"condition as {expected}", str(array.shape), _HINT)
        if array.dtype.kind == "f":
            hint = "Covariates as numbers have two axes: condition.reshape(-1, 1)."
            raise DTypeError(where, "labels as text or whole numbers", str(array.dtype), hint)
        labels = tuple(np.unique(array).tolist())
        return cls(len(labels), labels)

    def encode(self, where: str, condition: Any, count: int, like: Tensor) -> Tensor:  # (n, c)
        """Rows of numbers.

        Args:
            where: The call that asks, for the error.
            condition: As in :meth:`of`, or one label, or one row ``(c,)`` or ``(1, c)``, for all.
            count: Number of samples.
            like: Gives dtype and device.

        Raises:
            OptionError: Without a condition, and for an unknown label.
            ShapeError: When there is not one for each sample.
            NonFiniteError: For NaN or infinity.
        """
        if condition is None:
            expected = "condition=, because the decoder was trained with one"
            raise OptionError(where, expected, "none", _HINT)
        array = _array(where, condition)
        if self.categories is None:
            if array.ndim == 1 and array.shape == (self.width,):
                array = array[None]
            expected = f"condition ({count}, {self.width}), or one row for all"
            if array.ndim != 2 or array.shape[1] != self.width or len(array) not in (1, count):
                raise ShapeError(where, expected, str(array.shape), "Give the training's columns.")
            rows = torch.as_tensor(np.array(array, dtype=float)).to(like)
        else:
            array = np.atleast_1d(array)
            if array.ndim != 1 or len(array) not in (1, count):
                expected = f"condition ({count},), or one label for all"
                raise ShapeError(where, expected, str(array.shape), "Give one label per sample.")
            rows = torch.eye(self.width)[[self._number(where, name) for name in array.tolist()]]
            rows = rows.to(like)
        if not bool(rows.isfinite().all()):
            hint = "Remove or impute them."
            raise NonFiniteError(where, "finite conditions", "NaN or infinity", hint)
        return rows.expand(count, -1).contiguous()

    def _number(self, where: str, label: Any) -> int:
        assert self.categories is not None
        if label in self.categories:
            return self.categories.index(label)
        known = ", ".join(map(repr, self.categories[:10]))
        hint = "The decoder has seen no others."
        raise OptionError(where, f"condition among {known}", repr(label), hint)

    def described(self) -> dict[str, Any]:
        """Plain values, for :meth:`read`."""
        known = None if self.categories is None else list(self.categories)
        return {"width": self.width, "categories": known}

    @classmethod
    def read(cls, described: Mapping[str, Any] | None) -> Covariates | None:
        """The conditions of a checkpoint.

        Args:
            described: From :meth:`described`, or None.
        """
        if described is None:
            return None
        known = described["categories"]
        return cls(described["width"], None if known is None else tuple(known))


class Conditioned:
    """A manifold whose methods take one condition for each point of a batch without being told.

    Args:
        manifold: Of a decoder with conditions.
        condition: ``(k, c)``.
    """

    def __init__(self, manifold: Manifold, condition: Any) -> None:
        self._manifold = manifold
        self._condition = condition

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._manifold, name)
        if not callable(found) or "condition" not in inspect.signature(found).parameters:
            return found
        return _given(found, self._condition)


def _given(method: Callable[..., Any], own: Any) -> Callable[..., Any]:
    @wraps(method)
    def call(*args: Any, condition: Any = None, **options: Any) -> Any:
        return method(*args, condition=own if condition is None else condition, **options)

    return call


class OneCondition(nn.Module):
    """A decoder under one condition, as a function of the code alone.

    Args:
        decoder: ``(z, c)``.
        condition: ``(1, c)``.
    """

    condition: Tensor

    def __init__(self, decoder: nn.Module, condition: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("condition", condition)

    def forward(self, z: Tensor) -> Any:  # (k, m)
        """What the decoder returns."""
        return self.decoder(z, self.condition.to(z).expand(len(z), -1))


@storage.register("riemae.ConditionalDecoder")
class ConditionalDecoder(nn.Module):
    """Codes and conditions side by side to parameters.

    Args:
        shape: Of the parameters of one sample.
        inputs: Numbers that the network sees of a code.
        conditions: Numbers of a condition.
        hidden: Widths.
        activation: Name of the activation.
        latent: Name of the latent space.
    """

    def __init__(
        self,
        shape: Sequence[int],
        inputs: int,
        conditions: int,
        hidden: Sequence[int],
        activation: str,
        latent: str | None = None,
    ) -> None:
        super().__init__()
        self._arguments = {
            "shape": list(shape),
            "inputs": inputs,
            "conditions": conditions,
            "hidden": list(hidden),
            "activation": activation,
            "latent": latent,
        }
        self.first = latent_of(latent).features() or nn.Identity()
        self.colour = Colour(shape)
        outputs = self.colour.center.numel()
        self.network = mlp(inputs + conditions, hidden, outputs, activation)

    def arguments(self) -> dict[str, Any]:
        """What builds a module of the same structure."""
        return dict(self._arguments)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:  # (k, m), (k, c) -> (k, *shape)
        """Parameters."""
        return self.colour(self.network(torch.cat([self.first(z), c], -1)))


def _array(where: str, condition: Any) -> np.ndarray:
    if isinstance(condition, Tensor):
        condition = condition.detach().cpu().numpy()
    array = np.asarray(condition)
    if array.dtype.kind == "O":  # text in a table
        array = np.array([str(label) for label in array.ravel()]).reshape(array.shape)
    if array.dtype.kind not in "biufU":
        raise DTypeError(where, "condition as labels or numbers", str(array.dtype), _HINT)
    if array.ndim == 2 and array.dtype.kind == "U":
        hint = "Join several labels of a sample into one."
        raise DTypeError(where, "covariates (n, c) as numbers", str(array.dtype), hint)
    return array
