"""A matrix of distances, in the order of labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from riemae.exceptions import NonFiniteError, ShapeError
from riemae.plotting.canvas import axes_for, colour_bar, remark
from riemae.plotting.colours import MISSING, SEQUENTIAL
from riemae.plotting.inputs import labels_of, plain
from riemae.solvers import DistanceMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_TICKS = 40


def matrix(
    distances: Any,
    labels: Any = None,
    *,
    ax: Axes | None = None,
    label: str = "distance in the data space",
    colorbar: bool = True,
    **options: Any,
) -> Axes:
    """Draw a square matrix, its rows and columns in the order of the labels.

    White lines part the classes. Entries that are not finite are grey, and a remark counts them.

    Args:
        distances: ``(n, n)``, or a :class:`~riemae.solvers.DistanceMatrix`.
        labels: ``(n,)``: classes by name or number, or values to sort by. By default the order is
            kept.
        ax: Where to draw; by default in a new figure.
        label: Of the colour bar, with its units.
        colorbar: Whether there is one.
        options: For ``ax.imshow``.

    Raises:
        ShapeError: When the matrix is not square, or there is another number of labels.
        NonFiniteError: When no entry is finite.
    """
    where = "plotting.matrix"
    if isinstance(distances, DistanceMatrix):
        distances = distances.distances
    values = plain(where, "distances", distances)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        hint = "Give M.distance_matrix(points)."
        raise ShapeError(where, "distances of shape (n, n)", str(values.shape), hint)
    found = None if labels is None else labels_of(where, labels, len(values))
    missing = ~np.isfinite(values)
    if missing.all():
        hint = "See DistanceMatrix.status."
        raise NonFiniteError(where, "finite entries", "none", hint)
    if found is None:
        order = np.arange(len(values))
    else:
        sizes = found.numbers if found.values is None else found.values
        unlabelled = sizes < 0 if found.values is None else np.isnan(sizes)
        order = np.lexsort((np.where(unlabelled, 0, sizes), unlabelled))
    shown = np.where(missing, np.nan, values)[np.ix_(order, order)]
    ax = axes_for(where, ax)
    style: dict[str, Any] = {"cmap": SEQUENTIAL, "interpolation": "nearest"}
    if (values[~missing] >= 0).all():
        style["vmin"] = 0.0
    ax.set_facecolor(MISSING)
    image = ax.imshow(shown, **{**style, **options})
    if found is not None and found.values is None:
        _blocks(ax, found.names, found.numbers[order])
    elif found is not None:
        ax.set_xlabel("in ascending order of the labels")
    if colorbar:
        colour_bar(ax, image, label, shrink=0.8)
    if missing.any():
        remark(ax, f"{missing.sum()} of {missing.size} entries are not finite")
    return ax


def _blocks(ax: Axes, names: tuple[str, ...], numbers: np.ndarray) -> None:
    """Names at the middle of each class, and lines between classes."""
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    ends = np.append(starts[1:], len(numbers))
    shown = [names[number] if number >= 0 else "none" for number in numbers[starts]]
    middles = (starts + ends - 1) / 2
    if len(shown) <= _MOST_TICKS:
        turned = 90 if max(map(len, shown)) > 3 else 0
        ax.set_xticks(middles, shown, rotation=turned)
        ax.set_yticks(middles, shown)
    ax.tick_params(length=0)
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="white", linewidth=0.8)
        ax.axvline(start - 0.5, color="white", linewidth=0.8)
