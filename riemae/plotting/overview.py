"""A latent space in one picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from riemae.differential.conditions import Conditions
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_choice, expect_range
from riemae.plotting.canvas import axes_for
from riemae.plotting.curves import geodesics as draw_geodesics
from riemae.plotting.ellipses import indicatrices, spread_points
from riemae.plotting.inputs import expect_plane, on_manifold
from riemae.plotting.maps import condition_number, curvature, distortion, magnification
from riemae.plotting.scatter import codes, region
from riemae.solvers import GeodesicResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Background = Literal["magnification", "curvature", "distortion", "condition_number"]
_BACKGROUNDS: dict[str, Callable[..., Axes]] = {
    "magnification": magnification,
    "curvature": curvature,
    "distortion": distortion,
    "condition_number": condition_number,
}


def latent(
    manifold: Manifold,
    z: Any,
    labels: Any = None,
    *,
    ax: Axes | None = None,
    background: Background | None = "magnification",
    colorbar: bool | str = "left",
    resolution: int = 120,
    ellipses: int = 0,
    geodesics: GeodesicResult | None = None,
    label: str = "label",
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw a two-dimensional latent space: codes by class on a map of the geometry.

    Args:
        manifold: With a two-dimensional latent space.
        z: Codes of the data, ``(n, 2)``.
        labels: As in :func:`~riemae.plotting.codes`.
        ax: Where to draw; by default in a new figure.
        background: ``"magnification"``, ``"curvature"``, ``"distortion"``, ``"condition_number"``,
            or None.
        colorbar: Whether the background has a colour bar, or on which side.
        resolution: Points of the background along each side.
        ellipses: How many codes get their circle of the metric.
        geodesics: Geodesics to draw with their straight lines.
        label: What the labels are.
        condition: One for the whole picture, ``(1, *shape)``.
        options: For ``ax.scatter`` of the codes.

    Raises:
        ShapeError: For any other latent dimension, or another number of labels.
        OptionError: For an unknown background, or a number out of range.
        NonFiniteError: When no code is finite.
    """
    where = "plotting.latent"
    z = on_manifold(where, "z", manifold, z)
    expect_plane(where, "z", z)
    expect_range(where, "ellipses", ellipses, 0, integer=True, hint="It counts ellipses.")
    low, high = region(z)
    if geodesics is not None:  # which may leave the region of the codes
        low, high = _around(geodesics, low, high)
    if background is not None:
        expect_choice(where, "background", background, _BACKGROUNDS)
        ax = axes_for(where, ax, (8.5, 6.0))
        draw = _BACKGROUNDS[background]
        style = {"alpha": 0.6, "colorbar": colorbar, "condition": condition}
        draw(manifold, low, high, resolution=resolution, ax=ax, **style)
    ax = axes_for(where, ax, (7.5, 6.0))
    if ellipses:
        chosen = spread_points(z, ellipses)
        indicatrices(manifold, chosen, ax=ax, condition=condition, zorder=2.5)
    if geodesics is not None:
        draw_geodesics(geodesics, ax=ax)
    codes(z, labels, ax=ax, label=label, **options)
    _legend_of_lines(ax)
    ax.set_xlim(float(low[0]), float(high[0]))
    ax.set_ylim(float(low[1]), float(high[1]))
    return ax


def _legend_of_lines(ax: Axes) -> None:
    """What lines are, where there is no legend of classes that says it as well."""
    from matplotlib.collections import PathCollection

    if ax.get_legend() is not None:
        return
    shown = [
        (handle, text)
        for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)
        if not isinstance(handle, PathCollection)
    ]
    if shown:
        ax.legend(*zip(*shown, strict=True), framealpha=0.85, loc="best", fontsize=9)


def _around(geodesics: GeodesicResult, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The box that also holds the curves."""
    lines = geodesics.curve(torch.linspace(0, 1, 200)).detach().to(low).reshape(-1, 2)
    around = region(torch.cat([low[None], high[None], lines]), 0.02)
    inside = (lines >= low).all() & (lines <= high).all()
    return (low, high) if bool(inside) else around
