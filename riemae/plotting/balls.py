"""Geodesic balls: the points within a distance of a centre."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from riemae.differential.conditions import Condition, Conditions
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_range
from riemae.plotting.canvas import axes_for, name_coordinates, remark
from riemae.plotting.inputs import expect_plane, on_manifold

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def balls(
    manifold: Manifold,
    z: Any,
    radius: float | Sequence[float] | np.ndarray | Tensor,
    points: int = 96,
    *,
    ax: Axes | None = None,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw the edges of geodesic balls: where geodesics from a centre are after a given length.

    Small ones are the ellipses of :func:`indicatrices`, larger ones show how the metric changes.
    Beyond the distance at which geodesics from the centre meet again, the line is a wave front that
    crosses itself, and only its outer parts are the edge of the ball. Where a geodesic leaves the
    decoder's domain, the line has a gap, and a remark counts them.

    Args:
        manifold: With a two-dimensional latent space.
        z: Centres ``(k, 2)``.
        radius: One or several, lengths in the data space.
        points: Geodesics per ball.
        ax: Where to draw; by default in a new figure.
        condition: What the decoder gets besides the points, one for each centre, ``(k, *shape)``,
            or one for all, ``(1, *shape)``; as in :class:`~riemae.Manifold`.
        options: For the ``LineCollection``.

    Raises:
        ShapeError: For any other latent dimension, or another number of conditions.
        OptionError: When a radius is not positive, or ``points`` is less than 4.
        NonFiniteError: When a centre is not finite.
    """
    from matplotlib.collections import LineCollection

    where = "plotting.balls"
    z = on_manifold(where, "centres z", manifold, z)
    expect_plane(where, "centres z", z)
    expect_range(where, "points", points, 4, integer=True, hint="Try 96.")
    if isinstance(radius, (np.ndarray, Tensor)):
        radius = radius.tolist()
    radii = sorted(radius) if isinstance(radius, Sequence) else [radius]
    for one in radii:
        expect_range(where, "radius", one, 0.0, above=True, hint="It is a length.")
    edges = _edges(where, manifold, z, [float(one) for one in radii], points, condition)
    style = {
        "colors": "black",
        "linewidths": 1.1,
        "label": "geodesic balls, radius " + ", ".join(f"{one:.3g}" for one in radii),
    }
    ax = axes_for(where, ax)
    ax.add_collection(LineCollection(list(edges.numpy()), **{**style, **options}))
    x, y = z.double().cpu().numpy().T
    ax.scatter(x, y, s=9, color="black", zorder=3)
    ax.autoscale_view()
    name_coordinates(ax)
    gaps = int(edges.isnan().any(-1).sum())
    if gaps:
        remark(ax, f"{gaps} of {edges.shape[:2].numel()} geodesics leave the domain")
    return ax


def _edges(
    where: str,
    manifold: Manifold,
    z: Tensor,
    radii: list[float],
    points: int,
    condition: Conditions,
) -> Tensor:  # (k, 2) -> (k r, points, 2) on the CPU
    turn = torch.linspace(0, 2 * math.pi, points, dtype=z.dtype, device=z.device)
    circle = torch.stack([turn.cos(), turn.sin()])
    given = Condition.of(where, condition, z.shape[:1], z.device)
    each = None if given is None else given.spread(len(z) * points)
    with torch.no_grad():
        # |R v| is the length of v, so that R⁻¹ takes the unit circle to tangents of length 1.
        factor = manifold.metric_factor(z, condition=given)
        spread = circle.expand(len(z), 2, points)
        tangents = torch.linalg.solve_triangular(factor, spread, upper=True).mT
        starts = z[:, None].expand_as(tangents).reshape(-1, 2)
        times = torch.tensor(radii, dtype=z.dtype, device=z.device)
        ends = manifold.exp(
            starts, tangents.reshape(-1, 2), times, throw=False, condition=each
        )  # (k points, r, 2)
    rings = ends.view(len(z), points, len(radii), 2).transpose(1, 2)
    return rings.reshape(-1, points, 2).double().cpu()
