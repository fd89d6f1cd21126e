"""What may be drawn: tensors on any device, arrays, lists, data frames; and labels of points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from riemae.exceptions import DTypeError, NonFiniteError, ShapeError
from riemae.manifold import Manifold

# With at most so many different values, numbers are names of classes.
_MOST_CLASSES = 40


def plain(where: str, name: str, x: Any) -> np.ndarray:
    """Real numbers as an array in double precision.

    Raises:
        DTypeError: For anything else.
    """
    if isinstance(x, Tensor):
        x = x.detach()
        if x.is_meta or x.layout != torch.strided or x.is_complex():
            got = f"{x.dtype} {x.layout} on {x.device}"
            hint = f"Try {name}.to_dense(), {name}.abs()."
            raise DTypeError(where, f"{name} as dense real numbers", got, hint)
        return x.double().cpu().numpy()
    hint = "Give a tensor or an array."
    if np.iscomplexobj(x):
        raise DTypeError(where, f"{name} as real numbers", "complex ones", hint)
    try:
        return np.asarray(x).astype(np.float64)
    except (TypeError, ValueError) as reason:
        raise DTypeError(where, f"{name} as real numbers", str(reason), hint) from reason


def on_manifold(
    where: str, name: str, manifold: Manifold, z: Any
) -> Tensor:  # what a manifold is asked about
    """Latent points as a tensor: as they are, or else of the decoder's dtype and device.

    Raises:
        DTypeError: When they are not numbers, or ``manifold`` is not a manifold.
    """
    if not isinstance(manifold, Manifold):
        hint = "Try riemae.Manifold(decoder)."
        raise DTypeError(where, "a riemae.Manifold first", type(manifold).__name__, hint)
    if isinstance(z, Tensor):
        return z.detach()
    array = plain(where, name, z)
    decoder = manifold.decoder
    if isinstance(decoder, nn.Module):
        for own in chain(decoder.parameters(), decoder.buffers()):
            if own.is_floating_point():
                return torch.as_tensor(array, dtype=own.dtype, device=own.device)
    kept = getattr(z, "dtype", None)
    return torch.as_tensor(array, dtype=torch.float32 if kept == np.float32 else torch.float64)


def expect_plane(where: str, name: str, z: Any) -> None:
    """Points ``(n, 2)``.

    Raises:
        ShapeError: For any other shape.
    """
    if z.ndim != 2 or z.shape[1] != 2:
        hint = "Only m = 2 is flat: choose two coordinates, or train with latent_dim=2."
        raise ShapeError(where, f"{name} of shape (n, 2)", str(tuple(z.shape)), hint)


def finite_rows(where: str, name: str, z: Tensor) -> Tensor:  # (n, m) -> (n,) bool
    """Which rows are finite.

    Raises:
        NonFiniteError: When none is.
    """
    known = z.isfinite().all(1)
    if not bool(known.any()):
        got = f"{len(z)} with NaN or infinity" if len(z) else "none"
        raise NonFiniteError(where, f"finite points {name}", got, f"Look at {name}.")
    return known


@dataclass(frozen=True)
class Labels:
    """Labels of points.

    Attributes:
        names: Of classes, in their order; empty for values on a scale.
        numbers: ``(n,)``, the class of each point, −1 for none.
        values: ``(n,)`` on a scale, or None for classes.
    """

    names: tuple[str, ...]
    numbers: np.ndarray
    values: np.ndarray | None = None


def labels_of(where: str, labels: Any, count: int) -> Labels:
    """Classes by name or number, or values on a scale.

    Strings, whole numbers, truth values and categories are classes, and so are fractions with few
    different values; many different fractions are a scale.

    Raises:
        ShapeError: When there is not one for each point.
    """
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.float() if labels.dtype == torch.bfloat16 else labels
    categories = getattr(getattr(labels, "dtype", None), "categories", None)
    array = np.asarray(labels)
    if array.shape != (count,):
        hint = "Give one label for each point."
        raise ShapeError(where, f"labels of shape ({count},)", str(array.shape), hint)
    missing = _missing(array)
    if array.dtype.kind == "f":
        distinct = np.unique(array[~missing])
        whole = bool((distinct == np.round(distinct)).all())
        if len(distinct) > _MOST_CLASSES or not (whole or len(distinct) <= _MOST_CLASSES // 4):
            return Labels((), np.zeros(count, dtype=np.int64), array.astype(np.float64))
        named: Callable[[Any], str] = "{:g}".format
    else:
        named = str
        if array.dtype.kind in "iu" and len(np.unique(array)) > _MOST_CLASSES:
            return Labels((), np.zeros(count, dtype=np.int64), array.astype(np.float64))
    present = list(dict.fromkeys(array[~missing].tolist()))
    order = list(categories) if categories is not None else _sorted(present)
    order = [value for value in order if value in set(present)]
    place = {value: i for i, value in enumerate(order)}
    numbers = np.full(count, -1, dtype=np.int64)
    numbers[~missing] = [place[value] for value in array[~missing].tolist()]
    return Labels(tuple(map(named, order)), numbers)


def _missing(array: np.ndarray) -> np.ndarray:
    """NaN and None."""
    if array.dtype.kind == "f":
        return np.isnan(array)
    if array.dtype.kind == "O":
        return np.array([value is None or value != value for value in array], dtype=bool)
    return np.zeros(len(array), dtype=bool)


def _sorted(values: list[Any]) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:  # numbers and strings together
        return sorted(values, key=str)
