"""Codes as points of a plane, by class or by value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import NonFiniteError
from riemae.plotting.canvas import axes_for, colour_bar, name_coordinates, remark
from riemae.plotting.colours import CLASSES, MISSING, SEQUENTIAL, is_dark, style_of_class
from riemae.plotting.inputs import Labels, expect_plane, finite_rows, labels_of, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# So many classes are written next to their points.
_MOST_NAMES = 20


def codes(
    z: Any,
    labels: Any = None,
    *,
    ax: Axes | None = None,
    names: bool = True,
    legend: bool | None = None,
    label: str = "label",
    **options: Any,
) -> Axes:
    """Draw latent points, coloured by class or by value.

    Args:
        z: ``(n, 2)``. Rows with NaN are left out, and a remark counts them.
        labels: ``(n,)``: classes by name or number, or values on a scale, which get a colour bar.
            None and NaN are drawn in grey.
        ax: Where to draw; by default in a new figure.
        names: Write the name of each class at the median of its points.
        legend: Whether classes have a legend, right of the axes; by default where their names are
            not written.
        label: What the labels are: the title of the legend, or of the colour bar.
        options: For ``ax.scatter``.

    Raises:
        ShapeError: For any other latent dimension, or another number of labels.
        NonFiniteError: When no point is finite.
    """
    where = "plotting.codes"
    points = plain(where, "z", z)
    expect_plane(where, "z", points)
    known = finite_rows(where, "z", torch.as_tensor(points)).numpy()
    found = None if labels is None else labels_of(where, labels, len(points))
    ax = axes_for(where, ax)
    style = {"s": _size(len(points)), "linewidths": 0, **options}
    if found is None:
        ax.scatter(*points[known].T, **{"color": CLASSES[0], "alpha": 0.6, **style})
    elif found.values is not None:
        _scale(ax, points[known], found.values[known], label, style)
    else:
        _classes(ax, points[known], found, found.numbers[known], style)
        written = names and len(found.names) <= _MOST_NAMES
        if written:
            _name(ax, points[known], found, found.numbers[known])
        if legend or (legend is None and not written):
            _legend(ax, label)
    name_coordinates(ax)
    if not known.all():
        remark(ax, f"{int((~known).sum())} of {len(points)} points are not finite")
    return ax


def region(z: Any, margin: float = 0.06) -> tuple[Tensor, Tensor]:  # (n, m) -> (m,), (m,)
    """The box around points, a margin wider: what maps of a latent space are drawn on.

    Args:
        z: ``(n, m)``; rows with NaN do not count.
        margin: On each side, as a share of the extent.

    Returns:
        Lower and upper corner, of the dtype and on the device of ``z``.

    Raises:
        NonFiniteError: When no point is finite.
    """
    points = z.detach() if isinstance(z, Tensor) else torch.as_tensor(plain("region", "z", z))
    if points.ndim != 2:
        expect_plane("plotting.region", "z", points)
    points = points[finite_rows("plotting.region", "z", points)]
    low, high = points.amin(0), points.amax(0)
    extent = high - low
    # A set of equal points still has a neighbourhood.
    extent = torch.where(extent > 0, extent, torch.ones_like(extent))
    return low - margin * extent, high + margin * extent


def _size(count: int) -> float:
    """Smaller points where there are many: 20 square points for 100, 6 for 2,000."""
    return float(np.clip(20 * (100 / max(count, 1)) ** 0.4, 2, 30))


def _scale(
    ax: Axes, points: np.ndarray, values: np.ndarray, label: str, style: dict[str, Any]
) -> None:
    there = np.isfinite(values)
    if not there.any():
        hint = "Leave labels out."
        raise NonFiniteError("plotting.codes", "finite labels", "none", hint)
    ax.scatter(*points[~there].T, **{**style, "color": MISSING})
    drawn = ax.scatter(*points[there].T, **{"c": values[there], "cmap": SEQUENTIAL, **style})
    colour_bar(ax, drawn, label)


def _classes(
    ax: Axes, points: np.ndarray, labels: Labels, numbers: np.ndarray, style: dict[str, Any]
) -> None:
    if (numbers < 0).any():
        ax.scatter(*points[numbers < 0].T, **{"color": MISSING, "label": "no label", **style})
    for number, name in enumerate(labels.names):
        chosen = points[numbers == number]
        ax.scatter(*chosen.T, **{**style_of_class(number), "label": name, "alpha": 0.8, **style})


def _name(ax: Axes, points: np.ndarray, labels: Labels, numbers: np.ndarray) -> None:
    for number, name in enumerate(labels.names):
        chosen = points[numbers == number]
        colour = style_of_class(number)["color"]
        if len(chosen):
            ax.annotate(
                name,
                tuple(np.median(chosen, axis=0)),
                ha="center",
                va="center",
                fontsize=9.5,
                color="white" if is_dark(colour) else "black",
                bbox={"boxstyle": "round,pad=0.22", "fc": colour, "ec": "white"},
                zorder=5,
                gid="class",
            )


def _legend(ax: Axes, title: str) -> None:
    handles, texts = ax.get_legend_handles_labels()
    if texts:
        ax.legend(
            handles,
            texts,
            title=title,
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            markerscale=2,
        )
