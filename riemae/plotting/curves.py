"""Curves in a plane, and geodesics next to the straight lines between their ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from riemae.exceptions import DTypeError, ShapeError
from riemae.numerics.checks import expect_range
from riemae.plotting.canvas import axes_for, name_coordinates, outlined, remark
from riemae.plotting.colours import GEODESIC, STRAIGHT
from riemae.solvers import Curve, GeodesicResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def curves(curve: Curve, points: int = 200, *, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw a batch of latent curves ``(p,)`` in two dimensions.

    Args:
        curve: The curves.
        points: Points per curve.
        ax: Where to draw; by default in a new figure.
        options: For ``ax.plot``; a ``label`` is given to the first curve only.

    Raises:
        DTypeError: When they are not a :class:`~riemae.solvers.Curve`.
        ShapeError: For any other dimension or batch.
        OptionError: When there are fewer than two points per curve.
    """
    where = "plotting.curves"
    _expect_plane_curves(where, curve)
    expect_range(where, "points", points, 2, integer=True, hint="Try 200.")
    ax = axes_for(where, ax)
    label = options.pop("label", None)
    t = torch.linspace(0, 1, points)
    for i, z in enumerate(curve(t).detach().double().cpu().numpy()):
        ax.plot(z[:, 0], z[:, 1], label=label if i == 0 else None, **options)
    name_coordinates(ax)
    return ax


def geodesics(
    result: GeodesicResult,
    *,
    ax: Axes | None = None,
    straight: bool = True,
    lengths: bool = False,
    **options: Any,
) -> Axes:
    """Draw geodesics in a plane, next to the straight latent lines between the same ends.

    Pairs that did not converge are dotted, and a remark counts them.

    Args:
        result: Of :meth:`riemae.Manifold.geodesic`, for pairs ``(p,)``.
        ax: Where to draw; by default in a new figure.
        straight: Draw the straight lines, dashed.
        lengths: Write the length of each geodesic at its middle.
        options: For ``ax.plot`` of the geodesics.

    Raises:
        DTypeError: When ``result`` is something else.
        ShapeError: For any other dimension or batch.
    """
    where = "plotting.geodesics"
    if not isinstance(result, GeodesicResult):
        hint = "Try M.geodesic(z0, z1, throw=False)."
        got = type(result).__name__
        raise DTypeError(where, "a GeodesicResult", got, hint)
    _expect_plane_curves(where, result.curve)
    ax = axes_for(where, ax)
    start, end = result.curve(0.0), result.curve(1.0)
    if straight:
        style: dict[str, Any] = {
            "color": STRAIGHT,
            "linewidth": 1.3,
            "linestyle": "--",
            "zorder": 3,
        }
        line = Curve.line(start, end)
        curves(line, 2, ax=ax, label="straight line", path_effects=outlined(3), **style)
    style = {
        "color": GEODESIC,
        "linewidth": 2.2,
        "zorder": 3.5,
        "path_effects": outlined(4),
        "label": "geodesic",
        **options,
    }
    good = result.converged.cpu()
    curves(result.curve[good.to(result.status.device)], ax=ax, **style)
    if not bool(good.all()):
        bad = ~good
        dotted = {**style, "linestyle": ":", "label": "not converged"}
        curves(result.curve[bad.to(result.status.device)], ax=ax, **dotted)
        remark(ax, f"{int(bad.sum())} of {len(bad)} geodesics did not converge")
    x, y = torch.cat([start, end]).detach().double().cpu().numpy().T
    ax.scatter(x, y, s=34, facecolor="white", edgecolor="black", linewidths=1.2, zorder=4)
    if lengths:
        _write_lengths(ax, result)
    return ax


def _write_lengths(ax: Axes, result: GeodesicResult) -> None:
    middles = result.curve(0.5).detach().double().cpu().numpy()
    for middle, length in zip(middles, result.length.tolist(), strict=True):
        ax.annotate(
            f"{length:.3g}",
            tuple(middle),
            (0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            zorder=5,
            path_effects=outlined(3),
            gid="length",
        )


def _expect_plane_curves(where: str, curve: Any) -> None:
    if not isinstance(curve, Curve):
        hint = "Try Curve.through(points) or result.curve."
        raise DTypeError(where, "a solvers.Curve", type(curve).__name__, hint)
    if len(curve.batch_shape) != 1 or curve.nodes.shape[-1] != 2:
        raise ShapeError(
            where,
            "curves (p,) in two dimensions",
            repr(curve),
            "Give one batch axis, and a latent space of two dimensions.",
        )
