"""Distances from one point as a map with levels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.differential.conditions import Conditions
from riemae.exceptions import NonFiniteError, ShapeError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_choice, expect_range
from riemae.plotting.canvas import axes_for, colour_bar, name_coordinates, remark
from riemae.plotting.colours import SEQUENTIAL
from riemae.plotting.inputs import on_manifold
from riemae.plotting.maps import corners, lattice

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Neighbours of a lattice point: with 8, paths along the lattice are 6 % longer than geodesics (the
# median, in a latent space of digits), with 32 1.5 %.
_NEIGHBOURS = 32


def distance_field(
    manifold: Manifold,
    source: Any,
    low: Any,
    high: Any,
    resolution: int = 41,
    *,
    method: Literal["graph", "geodesic"] = "graph",
    levels: int = 10,
    rtol: float = 1e-2,
    ax: Axes | None = None,
    colorbar: bool = True,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw the Riemannian distances of all points of a plane from one of them, with levels.

    Levels are equally far apart in the data space: where they are dense, a small step is long.

    Args:
        manifold: With a two-dimensional latent space.
        source: The point ``(2,)``, marked by a cross.
        low: Lower left corner, ``(2,)``.
        high: Upper right corner, ``(2,)``.
        resolution: Points along each side.
        method: ``"graph"``: shortest paths along the lattice, which are 1 to 3 % too long;
            ``"geodesic"``: one geodesic to each point, which costs some ten times as much.
        levels: Lines, about.
        rtol: Relative accuracy of geodesics, or of the graph's edges. Where a geodesic misses it,
            the map is blank, and a remark counts them.
        ax: Where to draw; by default in a new figure.
        colorbar: Whether there is a colour bar.
        condition: What the decoder gets besides the points, one for the whole picture,
            ``(1, *shape)``.
        options: For ``ax.contourf``.

    Raises:
        ShapeError: For a source or corners of another shape, or several conditions.
        OptionError: For an unknown method, or a number out of range.
        NonFiniteError: When the source is not finite, or no distance is.
    """
    where = "plotting.distance_field"
    expect_choice(where, "method", method, ("graph", "geodesic"))
    expect_range(where, "levels", levels, 1, integer=True, hint="Try 10.")
    low, high = corners(where, manifold, low, high)
    source = on_manifold(where, "source", manifold, source)
    if source.shape != (2,):
        hint = "It is one point."
        raise ShapeError(where, "source of shape (2,)", str(tuple(source.shape)), hint)
    if not bool(source.isfinite().all()):
        got = str(source.tolist())
        raise NonFiniteError(where, "a finite source", got, "Choose a point of the map.")
    grid = lattice(where, low, high, resolution)
    measured = _by_graph if method == "graph" else _by_geodesics
    distances = measured(manifold, source, grid, rtol, condition)
    values = distances.double().cpu().numpy().reshape(resolution, resolution)
    if not np.isfinite(values).any():
        raise NonFiniteError(where, "finite distances", "none", "Choose another region.")
    x, y = grid.view(resolution, resolution, 2).double().cpu().numpy().transpose(2, 0, 1)
    ax = axes_for(where, ax)
    masked = np.ma.masked_invalid(values)
    filled = ax.contourf(x, y, masked, levels, **{"cmap": SEQUENTIAL, **options})
    ax.contour(x, y, masked, filled.levels, colors="white", linewidths=0.5, alpha=0.8)
    a, b = source.tolist()
    ax.scatter(a, b, marker="x", s=60, color="white", zorder=3)
    name_coordinates(ax)
    if colorbar:
        colour_bar(ax, filled, "distance from × in the data space")
    missing = int((~np.isfinite(values)).sum())
    if missing:
        remark(ax, f"no distance to {missing} of {values.size} points")
    return ax


def _by_geodesics(
    manifold: Manifold, source: Tensor, grid: Tensor, rtol: float, condition: Conditions
) -> Tensor:  # (n, 2) -> (n,)
    r = manifold.geodesic(source.expand_as(grid), grid, rtol=rtol, throw=False, condition=condition)
    return torch.where(r.converged, r.length, torch.nan)


def _by_graph(
    manifold: Manifold, source: Tensor, grid: Tensor, rtol: float, condition: Conditions
) -> Tensor:  # (n, 2) -> (n,)
    points = torch.cat([source[None].to(grid), grid])
    k = min(_NEIGHBOURS, len(grid))
    graph = manifold.graph(points, k=k, rtol=rtol, condition=condition)
    return graph.distances([0])[0, 1:]
