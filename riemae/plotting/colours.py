"""Colours that colour-blind people can tell apart."""

from __future__ import annotations

from typing import Any

import numpy as np

from riemae.exceptions import ShapeError
from riemae.plotting.inputs import plain

# For classes: P. Tol, Colour schemes, SRON/EPS/TN/09-002, 2021, "muted", and black.
CLASSES = (
    "#332288",
    "#DDCC77",
    "#117733",
    "#88CCEE",
    "#CC6677",
    "#44AA99",
    "#882255",
    "#999933",
    "#AA4499",
    "#000000",
)
# When there are more classes than colours, the next ones have the next marker.
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
# For a few lines: M. Okabe, K. Ito, Color Universal Design, 2008.
LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
GEODESIC = "#000000"
STRAIGHT = "#D55E00"
MISSING = "#B0B0B0"
SEQUENTIAL = "viridis"
DIVERGING = "RdBu_r"
GREY = "Greys"


def is_dark(colour: str) -> bool:
    """Whether white text can be read on it: by its relative luminance, ITU-R BT.709."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5


def style_of_class(number: int) -> dict[str, Any]:
    """Colour and marker of a class."""
    marker = MARKERS[number // len(CLASSES) % len(MARKERS)]
    return {"color": CLASSES[number % len(CLASSES)], "marker": marker}


def style_of_line(number: int) -> dict[str, Any]:
    """Colour and line style of a line among several."""
    style = ("-", "--", ":", "-.")[number // len(LINES) % 4]
    return {"color": LINES[number % len(LINES)], "linestyle": style}


def plane_colours(z: Any) -> np.ndarray:  # (n, 2) -> (n, 3)
    """A colour for each point of a plane by its place, to find it again in other pictures.

    Args:
        z: Points ``(n, 2)``.

    Returns:
        Red, green and blue in [0, 1]; grey where a point is not finite.

    Raises:
        ShapeError: For any other shape.
    """
    points = plain("plotting.plane_colours", "z", z)
    if points.ndim != 2 or points.shape[1] != 2:
        wanted = "points z of shape (n, 2)"
        raise ShapeError("plotting.plane_colours", wanted, str(points.shape), "Only m = 2 is flat.")
    known = np.isfinite(points).all(1)
    colours = np.full((len(points), 3), 0.7)
    if not known.any():
        return colours
    low = points[known].min(0)
    extent = np.maximum(points[known].max(0) - low, 1e-12)
    a, b = ((points[known] - low) / extent).T
    red = 0.15 + 0.8 * a
    green = 0.3 + 0.2 * (1 - a) * b
    blue = 0.15 + 0.8 * b
    colours[known] = np.stack([red, green, blue], -1)
    return colours
