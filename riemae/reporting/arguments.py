"""What a report is asked for, checked once: codes, labels, images."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, OptionError, ShapeError
from riemae.numerics.checks import expect_finite

_CLASSES = 60  # that colours and shapes tell apart; the rarest of more are shown as one
_FEW = 12  # different numbers up to which they are classes
_OTHER = "other"
_MISSING = "missing"


def as_tensor(where: str, name: str, x: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A real tensor of what a caller holds: a tensor, an array, a data frame, nested lists.

    Args:
        where: Who asks.
        name: Of the argument.
        x: What came.
        dtype: What it becomes; by default floats keep theirs, and integers become float64.

    Raises:
        DTypeError: When it holds no real numbers.
    """
    if isinstance(x, Tensor):
        found = x.detach()
    else:
        hint = "Give a tensor, an array or a data frame of numbers."
        try:
            array = np.array(x.to_numpy() if hasattr(x, "to_numpy") else x)
        except (TypeError, ValueError) as reason:
            got = f"{type(x).__name__} ({reason})"
            raise DTypeError(where, f"{name} as real numbers", got[:120], hint) from reason
        if array.dtype.kind not in "fiub":
            got = f"{type(x).__name__} of {array.dtype}"
            raise DTypeError(where, f"{name} as real numbers", got, hint)
        found = torch.as_tensor(array)
    if found.is_complex():
        raise DTypeError(where, f"{name} as real numbers", str(found.dtype), "Take its parts.")
    if dtype is None and found.dtype not in (torch.float32, torch.float64):
        dtype = torch.float64
    return found if dtype is None else found.to(dtype)


def expect_codes(where: str, z: Tensor) -> None:
    """At least two points ``(n, m)`` without NaN.

    Raises:
        ShapeError: For another shape.
        OptionError: For fewer than two.
        NonFiniteError: For NaN or infinity.
    """
    if z.ndim != 2 or not z.shape[1]:
        hint = "One row of coordinates per point; try z.reshape(len(z), -1)."
        raise ShapeError(where, "z of shape (n, m)", str(tuple(z.shape)), hint)
    if len(z) < 2:
        raise OptionError(where, "z with at least two points", str(len(z)), "Distances need pairs.")
    expect_finite(where, "z", z, "Drop these rows.")


@dataclass(frozen=True)
class Labels:
    """What points are called: classes, or numbers on a scale.

    Attributes:
        names: Of the classes; empty for numbers.
        codes: Of each point, the number of its class.
        values: Of each point, its number; empty for classes.
        texts: Of each point, its label in words.
    """

    names: tuple[str, ...]
    codes: tuple[int, ...]
    values: tuple[float, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, where: str, labels: Any, n: int) -> Labels:
        """Classes for words and few numbers, a scale for many different fractions.

        Raises:
            ShapeError: When there is not one label per point.
            DTypeError: When they are not a sequence.
        """
        if labels is None:
            return cls((), (), (), ())
        if isinstance(labels, (str, bytes)) or not hasattr(labels, "__iter__"):
            hint = "Give a list with one label per point."
            raise DTypeError(where, "labels as a sequence", type(labels).__name__, hint)
        given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        if len(given) != n or any(isinstance(label, (list, dict)) for label in given):
            got = f"{len(given)}" if len(given) != n else "nested ones"
            raise ShapeError(where, f"{n} labels, one per point", got, "Give one label per point.")
        texts = tuple(_in_words(label) for label in given)
        if _on_a_scale(given):
            return cls((), (), tuple(float(label) for label in given), texts)
        counts: dict[str, int] = {}
        for text in texts:
            counts[text] = counts.get(text, 0) + 1
        names = sorted(counts, key=_natural)
        if len(names) > _CLASSES:
            common = sorted(counts, key=lambda name: (-counts[name], name))[: _CLASSES - 1]
            names = [*sorted(common, key=_natural), _OTHER]
        place = {name: k for k, name in enumerate(names)}
        codes = tuple(place.get(text, len(names) - 1) for text in texts)
        return cls(tuple(names), codes, (), texts)


def _in_words(label: Any) -> str:
    if label is None or (isinstance(label, float) and math.isnan(label)):
        return _MISSING
    if isinstance(label, float):
        return f"{label:g}"
    return str(label)


def _on_a_scale(labels: Sequence[Any]) -> bool:
    """Whether labels are many different numbers with fractions."""
    if not all(isinstance(x, numbers.Real) and not isinstance(x, bool) for x in labels):
        return False
    values = [float(x) for x in labels]
    if any(not math.isfinite(x) for x in values):
        return False
    return len(set(values)) > _FEW and any(x != round(x) for x in values)


def _natural(name: str) -> tuple[bool, float, str]:
    """Order in which 2 comes before 10."""
    try:
        value = float(name)
    except ValueError:
        return True, 0.0, name
    return (False, value, name) if math.isfinite(value) else (True, 0.0, name)


@dataclass(frozen=True)
class Images:
    """How to show outputs as images.

    Attributes:
        channels: 1 or 3.
        height: In pixels.
        width: In pixels.
        given: Images of the points, ``(n, channels, height, width)``, or None.
    """

    channels: int
    height: int
    width: int
    given: Tensor | None

    @classmethod
    def of(cls, where: str, images: Any, n: int) -> Images | None:
        """From the shape of an image, or from the images of all points.

        Raises:
            ShapeError: When it is neither, or there is not one image per point.
        """
        if images is None:
            return None
        hint = "Try images=(28, 28), images=(3, 32, 32), or the images of all points."
        if _is_shape(images):
            shape = tuple(int(size) for size in images)
            given = None
        else:
            given = as_tensor(where, "images", images)
            if given.ndim not in (3, 4) or len(given) != n:
                expected = f"a shape, or {n} images"
                raise ShapeError(where, expected, str(tuple(given.shape)), hint)
            shape = tuple(given.shape[1:])
        if len(shape) == 2:
            shape = (1, *shape)
        if len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1:
            raise ShapeError(where, "images (H, W), (1, H, W) or (3, H, W)", str(shape), hint)
        if given is not None:
            given = given.reshape(n, *shape)
        return cls(*shape, given)

    @property
    def pixels(self) -> int:
        """Numbers per image."""
        return self.channels * self.height * self.width


def _is_shape(images: Any) -> bool:
    if not isinstance(images, (tuple, list, torch.Size)):
        return False
    return all(isinstance(x, numbers.Integral) and not isinstance(x, bool) for x in images)


def as_history(where: str, history: Any) -> dict[str, list[float]]:
    """Curves of a training: numbers by epoch, by name.

    Raises:
        DTypeError: When it is not a mapping of names to sequences of numbers.
    """
    if history is None:
        return {}
    hint = "Try history=model.history_, or {'loss': [0.9, 0.5]}."
    if not isinstance(history, Mapping):
        raise DTypeError(where, "history as a mapping", type(history).__name__, hint)
    curves = {}
    for name, values in history.items():
        try:
            curves[str(name)] = [float(value) for value in values]
        except (TypeError, ValueError) as reason:
            expected = f"history[{name!r}] as a list of numbers"
            raise DTypeError(where, expected, type(values).__name__, hint) from reason
    return curves
