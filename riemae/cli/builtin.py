"""Data sets that can be named in place of a file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from riemae import datasets
from riemae.exceptions import MissingExtraError

_SAMPLED: dict[str, Callable[..., datasets.Dataset]] = {
    "counts": datasets.counts,
    "cylinder": datasets.cylinder,
    "noisy_sine": datasets.noisy_sine,
    "paraboloid": datasets.paraboloid,
    "patch_with_hole": datasets.patch_with_hole,
    "rotated_images": datasets.rotated_images,
    "shifted_images": datasets.shifted_images,
    "sparse_spiral": datasets.sparse_spiral,
    "superquadrics": datasets.superquadrics,
    "swiss_roll": datasets.swiss_roll,
}
# Shipped with scikit-learn.
_TABLES = {
    "breast_cancer": "load_breast_cancer",
    "digits": "load_digits",
    "iris": "load_iris",
    "wine": "load_wine",
}
_WHITE = 16.0  # of the digits' pixels

NAMES = tuple(sorted([*_SAMPLED, *_TABLES]))


@dataclass(frozen=True)
class Shipped:
    """A data set that needs no file.

    Attributes:
        values: ``(n, *shape)``.
        names: Of the columns, or None.
        labels: One for each row, or None.
        pixels: The shape of an image, where a flat row is one.
    """

    values: np.ndarray
    names: tuple[str, ...] | None
    labels: list[str] | None
    pixels: tuple[int, ...] | None = None


def shipped(name: str, seed: int) -> Shipped:
    """A data set by its name.

    Args:
        name: One of ``NAMES``.
        seed: Of those that are drawn.

    Raises:
        MissingExtraError: When scikit-learn is needed and not installed.
    """
    if name in _SAMPLED:
        return Shipped(_SAMPLED[name](generator=seed).x.numpy(), None, None)
    try:
        from sklearn import datasets as tables
    except ImportError as reason:
        hint = "Try: pip install 'riemae[demo]'"
        expected = f"scikit-learn, which ships {name}"
        raise MissingExtraError("riemae", expected, "no such package", hint) from reason
    found = getattr(tables, _TABLES[name])()
    if name == "digits":
        return Shipped(found.data / _WHITE, None, [str(digit) for digit in found.target], (1, 8, 8))
    names = tuple(
        str(column).replace(" (cm)", "").replace(" ", "_") for column in found.feature_names
    )
    return Shipped(found.data, names, [str(found.target_names[kind]) for kind in found.target])
