"""Tissot's indicatrices: circles of the metric, as ellipses in the latent space."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riemae.differential.conditions import Condition, Conditions
from riemae.exceptions import SingularMetricError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_range
from riemae.plotting.canvas import axes_for, name_coordinates, remark
from riemae.plotting.inputs import expect_plane, finite_rows, on_manifold

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Ellipses of the median size around neighbours fill so much of the way to each other.
_FILL = 0.4


def indicatrices(
    manifold: Manifold,
    z: Any,
    radius: float | None = None,
    points: int = 48,
    *,
    ax: Axes | None = None,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw circles of the metric, ``vᵀ G(z) v = radius²``, around latent points.

    They are round and equal for an isometry. Where one is small, a small step in the latent space
    is a long one in the data space.

    Args:
        manifold: With a two-dimensional latent space.
        z: Centres ``(k, 2)``; :func:`spread_points` chooses some. Rows with NaN are left out, and a
            remark counts them.
        radius: Length in the data space; by default such that ellipses of the median size around
            neighbours do not touch. The collection's label, for a legend, names it.
        points: Points per ellipse.
        ax: Where to draw; by default in a new figure.
        condition: What the decoder gets besides the points, one for each centre, ``(k, *shape)``,
            or one for all, ``(1, *shape)``; as in :class:`~riemae.Manifold`.
        options: For the ``LineCollection``.

    Raises:
        ShapeError: For any other latent dimension, or another number of conditions.
        OptionError: When ``radius`` is not positive, or ``points`` is less than 4.
        NonFiniteError: When no centre is finite.
        SingularMetricError: Where the metric has no inverse.
    """
    from matplotlib.collections import LineCollection

    where = "plotting.indicatrices"
    z = on_manifold(where, "centres z", manifold, z)
    expect_plane(where, "centres z", z)
    expect_range(where, "points", points, 4, integer=True, hint="Try 48.")
    if radius is not None:
        expect_range(where, "radius", radius, 0.0, above=True, hint="It is a length.")
    shared = Condition.of(where, condition, z.shape[:1], z.device)
    known = finite_rows(where, "centres z", z)
    if not bool(known.all()):
        shared = None if shared is None else shared.select(known)
    centres = z[known]
    shapes = _unit_circles(manifold, centres, points, shared)
    if radius is None:
        radius = default_radius(centres, shapes)
    lines = (centres[:, None] + radius * shapes).double().cpu().numpy()
    style = {"colors": "black", "linewidths": 0.9, "label": f"metric circles, radius {radius:.2g}"}
    ax = axes_for(where, ax)
    ax.add_collection(LineCollection(list(lines), **{**style, **options}))
    ax.autoscale_view()
    name_coordinates(ax)
    if len(centres) < len(z):
        remark(ax, f"{len(z) - len(centres)} of {len(z)} centres are not finite")
    return ax


def spread_points(z: Tensor, count: int) -> Tensor:  # (n, m) -> (count, m)
    """Some of the points, far from each other.

    First the one next to the mean, then always the farthest from all so far. Rows with NaN do not
    count.
    """
    z = z[z.isfinite().all(1)]
    if not len(z):
        return z
    from_mean = (z - z.mean(0)).norm(dim=1)
    chosen = [int(from_mean.argmin())]
    distance = torch.full((len(z),), torch.inf, dtype=z.dtype, device=z.device)
    for _ in range(min(count, len(z)) - 1):
        last = z[chosen[-1]]
        distance = torch.minimum(distance, (z - last).norm(dim=1))
        chosen.append(int(distance.argmax()))
    return z[chosen]


def default_radius(centres: Tensor, shapes: Tensor) -> float:  # (k, 2), (k, p, 2)
    """Such that shapes of the median size around neighbours do not touch."""
    gap = centres.new_ones(())
    if len(centres) > 1:
        apart = torch.cdist(centres, centres).fill_diagonal_(torch.inf)
        nearest = apart.min(1).values
        if bool((nearest > 0).any()):  # points that are given twice say nothing
            gap = nearest[nearest > 0].median()
    size = shapes.norm(dim=-1).mean(1).median()
    return float(_FILL * gap / size)


def _unit_circles(
    manifold: Manifold, z: Tensor, points: int, condition: Conditions
) -> Tensor:  # (k, 2) -> (k, points, 2)
    """Tangents of length 1.

    Raises:
        SingularMetricError: Where the metric has no inverse.
    """
    with torch.no_grad():
        factor, info = torch.linalg.cholesky_ex(manifold.metric(z, condition=condition))
    if bool(info.any()):
        got = f"a singular one at {int((info > 0).sum())} of {len(z)} points"
        hint = "Leave these out."
        raise SingularMetricError("plotting.indicatrices", "a metric of full rank", got, hint)
    turn = torch.linspace(0, 2 * math.pi, points, dtype=z.dtype, device=z.device)
    circle = torch.stack([turn.cos(), turn.sin()])
    # v = L⁻ᵀ c has vᵀ L Lᵀ v = |c|².
    spread = circle.expand(len(z), 2, points)
    return torch.linalg.solve_triangular(factor.mT, spread, upper=True).mT
