"""A number at every point of a plane: volume, curvature, distortion, condition, or any function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.differential.conditions import Condition, Conditions
from riemae.exceptions import DTypeError, NonFiniteError, OptionError, ShapeError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_choice, expect_range
from riemae.plotting.canvas import axes_for, colour_bar, name_coordinates, remark
from riemae.plotting.colours import DIVERGING, GREY, SEQUENTIAL
from riemae.plotting.inputs import on_manifold

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# A few places have a curvature far beyond all others; colours end at this quantile of |values|.
_USUAL = 0.98
_LEAST = 1e-12  # of distortions, on a logarithmic scale
_CURVATURES = {
    "gaussian": "Gaussian curvature (1 / length²)",
    "scalar": "scalar curvature (1 / length²)",
    "extrinsic": "extrinsic curvature Tr($G^{-1}C$) (1 / length²)",
}
_DISTORTIONS = {
    "isometry": "deviation from an isometry",
    "scaled_isometry": "deviation from a scaled isometry",
    "conformal": "deviation from a conformal map",
    "area": "squared deviation of log volume",
}


def field(
    function: Callable[[Tensor], Tensor],
    low: Any,
    high: Any,
    resolution: int = 100,
    *,
    ax: Axes | None = None,
    label: str = "",
    colorbar: bool | str = True,
    **options: Any,
) -> Axes:
    """Draw a function of two latent coordinates as a map.

    Args:
        function: ``(k, 2) -> (k,)``. Where it is not finite, the map is blank, and a remark says in
            how many places.
        low: Lower left corner, ``(2,)``; its dtype and device are those of the points.
        high: Upper right corner, ``(2,)``.
        resolution: Points along each side.
        ax: Where to draw; by default in a new figure.
        label: Of the colour bar, with its units.
        colorbar: Whether there is one, or its side, such as ``"left"``.
        options: For ``ax.imshow``.

    Raises:
        ShapeError: For corners of another shape, or another number of values.
        OptionError: When ``high`` is not above ``low``, or ``resolution`` is less than 2.
        NonFiniteError: When the function is finite nowhere.
    """
    where = "plotting.field"
    low, high = corners(where, None, low, high)
    grid = lattice(where, low, high, resolution)
    with torch.no_grad():
        values = function(grid)
    if not isinstance(values, Tensor) or values.numel() != len(grid):
        got = str(tuple(values.shape)) if isinstance(values, Tensor) else type(values).__name__
        raise ShapeError(
            where, f"values ({len(grid)},) of the function", got, "One for each point."
        )
    return draw_map(where, values, low, high, ax, label, colorbar, options)


def magnification(
    manifold: Manifold,
    low: Any,
    high: Any,
    resolution: int = 160,
    *,
    ax: Axes | None = None,
    colorbar: bool | str = True,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw the log₁₀ of the magnification factor ``√det G``: how much volume a piece decodes to.

    Args:
        manifold: With a two-dimensional latent space.
        low: Lower left corner, ``(2,)``.
        high: Upper right corner, ``(2,)``. :func:`region` finds both.
        resolution: Points along each side.
        ax: Where to draw; by default in a new figure.
        colorbar: Whether there is one, or its side, such as ``"left"``.
        condition: What the decoder gets besides the points, one for the whole picture,
            ``(1, *shape)``; as in :class:`~riemae.Manifold`.
        options: For ``ax.imshow``.

    Raises:
        ShapeError: For any other latent dimension, or several conditions.
        OptionError: When ``high`` is not above ``low``, or ``resolution`` is less than 2.
    """
    where = "plotting.magnification"
    low, high = corners(where, manifold, low, high)
    grid = lattice(where, low, high, resolution)
    shared = one_condition(where, condition, grid)
    with torch.no_grad():
        values = manifold.log_volume(grid, condition=shared) / math.log(10)
    label = r"magnification $\log_{10}\sqrt{\det\,G}$"
    return draw_map(where, values, low, high, ax, label, colorbar, {"cmap": GREY, **options})


def curvature(
    manifold: Manifold,
    low: Any,
    high: Any,
    kind: Literal["gaussian", "scalar", "extrinsic"] = "gaussian",
    resolution: int = 80,
    *,
    ax: Axes | None = None,
    colorbar: bool | str = True,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw a curvature of the decoded surface as a map.

    Blue is negative, where geodesics part as on a saddle; red is positive, where they meet again as
    on a sphere. The largest 2 % of the values have the last colour of the bar.

    Args:
        manifold: As in :func:`magnification`.
        low: As in :func:`magnification`.
        high: As in :func:`magnification`.
        kind: ``"gaussian"``; ``"scalar"``, which is twice that; or ``"extrinsic"``, how fast the
            tangent plane turns, never negative.
        resolution: Points along each side.
        ax: As in :func:`magnification`.
        colorbar: As in :func:`magnification`.
        condition: As in :func:`magnification`.
        options: For ``ax.imshow``.

    Raises:
        OptionError: For an unknown kind, and as in :func:`magnification`.
        ShapeError: As in :func:`magnification`.
    """
    where = "plotting.curvature"
    expect_choice(where, "kind", kind, _CURVATURES)
    low, high = corners(where, manifold, low, high)
    grid = lattice(where, low, high, resolution)
    shared = one_condition(where, condition, grid)
    compute = getattr(manifold, f"{kind}_curvature")
    values = _where_regular(manifold, compute, grid, shared)
    size = np.abs(values.double().cpu().numpy())
    top = _usual(where, size)
    signed = kind != "extrinsic"
    limits = {"cmap": DIVERGING if signed else SEQUENTIAL, "vmin": -top if signed else 0.0}
    style = {**limits, "vmax": top, **options}
    label = _CURVATURES[kind]
    return draw_map(where, values, low, high, ax, label, colorbar, style)


def distortion(
    manifold: Manifold,
    low: Any,
    high: Any,
    kind: Literal["isometry", "scaled_isometry", "conformal", "area"] = "scaled_isometry",
    resolution: int = 100,
    *,
    ax: Axes | None = None,
    colorbar: bool | str = True,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw how far the decoder is from keeping distances, angles or areas: log₁₀, as a map.

    See :meth:`riemae.Manifold.distortion`. Scales that a kind leaves free are fitted to the region
    that is drawn. 1e-12 stands for everything below.

    Args:
        manifold: As in :func:`magnification`.
        low: As in :func:`magnification`.
        high: As in :func:`magnification`.
        kind: As in :meth:`riemae.Manifold.distortion`.
        resolution: Points along each side.
        ax: As in :func:`magnification`.
        colorbar: As in :func:`magnification`.
        condition: As in :func:`magnification`.
        options: For ``ax.imshow``.

    Raises:
        OptionError: For an unknown kind, and as in :func:`magnification`.
        ShapeError: As in :func:`magnification`.
    """
    where = "plotting.distortion"
    expect_choice(where, "kind", kind, _DISTORTIONS)
    low, high = corners(where, manifold, low, high)
    grid = lattice(where, low, high, resolution)
    shared = one_condition(where, condition, grid)
    with torch.no_grad():
        values = manifold.distortion(grid, kind, local=True, condition=shared)
    decades = values.clamp(min=_LEAST).log10()
    label = rf"{_DISTORTIONS[kind]}, $\log_{{10}}$"
    return draw_map(where, decades, low, high, ax, label, colorbar, options)


def condition_number(
    manifold: Manifold,
    low: Any,
    high: Any,
    resolution: int = 100,
    *,
    ax: Axes | None = None,
    colorbar: bool | str = True,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw ``√(λ_max / λ_min)`` of the metric on a logarithmic scale: 1 where circles stay round.

    Args:
        manifold: As in :func:`magnification`.
        low: As in :func:`magnification`.
        high: As in :func:`magnification`.
        resolution: Points along each side.
        ax: As in :func:`magnification`.
        colorbar: As in :func:`magnification`.
        condition: As in :func:`magnification`.
        options: For ``ax.imshow``.

    Raises:
        ShapeError: As in :func:`magnification`.
        OptionError: As in :func:`magnification`.
    """
    where = "plotting.condition_number"
    low, high = corners(where, manifold, low, high)
    grid = lattice(where, low, high, resolution)
    shared = one_condition(where, condition, grid)
    with torch.no_grad():
        least, most = manifold.eigenvalues(grid, condition=shared).unbind(-1)
    values = (most / least).sqrt().log10()
    style = {"vmin": 0.0, **options}
    label = r"longest : shortest stretch, $\log_{10}$"
    return draw_map(where, values, low, high, ax, label, colorbar, style)


def corners(
    where: str, manifold: Manifold | None, low: Any, high: Any
) -> tuple[Tensor, Tensor]:  # -> (2,), (2,)
    """Both corners of a map as tensors of one dtype.

    Raises:
        ShapeError: For any other shape.
        DTypeError: For what is no numbers.
        OptionError: When ``high`` is not above ``low``.
    """
    from matplotlib.axes import Axes

    if isinstance(low, Axes):
        raise DTypeError(where, "a corner of the map", "Axes", "Axes are given by name: ax=.")
    if manifold is not None:
        low, high = (
            on_manifold(where, name, manifold, x) for name, x in (("low", low), ("high", high))
        )
    else:
        low, high = (
            x.detach() if isinstance(x, Tensor) else torch.as_tensor(x, dtype=torch.float64)
            for x in (low, high)
        )
    if low.shape != (2,) or high.shape != (2,):
        got = f"{tuple(low.shape)} and {tuple(high.shape)}"
        raise ShapeError(where, "corners of shape (2,)", got, "Only m = 2 is flat.")
    if not bool((high > low).all()) or not bool((high - low).isfinite().all()):
        got = f"{low.tolist()} and {high.tolist()}"
        hint = "Try plotting.region(z)."
        raise OptionError(where, "a finite lower left and upper right corner", got, hint)
    return low, high


def lattice(where: str, low: Tensor, high: Tensor, resolution: int) -> Tensor:  # -> (r², 2)
    """Points of a lattice, row by row from below.

    Raises:
        OptionError: When ``resolution`` is not a whole number of at least 2.
    """
    expect_range(where, "resolution", resolution, 2, integer=True, hint="Try 100.")
    x, y = (
        torch.linspace(a, b, resolution, dtype=low.dtype, device=low.device)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    )
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)


def one_condition(where: str, condition: Conditions, points: Tensor) -> Conditions:
    """The one condition of a picture, for every point."""
    one = Condition.of(where, condition, torch.Size([1]), points.device)
    return None if one is None else one.spread(len(points))


def draw_map(
    where: str,
    values: Tensor,
    low: Tensor,
    high: Tensor,
    ax: Axes | None,
    label: str,
    colorbar: bool | str,
    options: dict[str, Any],
) -> Axes:
    """An image of values ``(r²,)``, its colour bar, and how many are blank.

    Raises:
        NonFiniteError: When all of them would be.
    """
    side = math.isqrt(values.numel())
    numbers = values.detach().double().cpu().numpy().reshape(side, side)
    blank = ~np.isfinite(numbers)
    if blank.all():
        raise NonFiniteError(where, "finite values somewhere", "none", "Choose another region.")
    ax = axes_for(where, ax)
    image = ax.imshow(
        np.where(blank, np.nan, numbers),
        extent=(float(low[0]), float(high[0]), float(low[1]), float(high[1])),
        origin="lower",
        aspect="auto",
        **{"cmap": SEQUENTIAL, "interpolation": "bilinear", **options},
    )
    ax.set_xlim(float(low[0]), float(high[0]))
    ax.set_ylim(float(low[1]), float(high[1]))
    name_coordinates(ax)
    if colorbar:
        bottom, top = image.get_clim()
        above = bool((numbers[~blank] > top).any())
        below = bool((numbers[~blank] < bottom).any())
        extend = {(True, True): "both", (True, False): "max", (False, True): "min"}
        place = colorbar if isinstance(colorbar, str) else "right"
        ends = extend.get((above, below), "neither")
        colour_bar(ax, image, label, extend=ends, location=place, shrink=0.8)
    if blank.any():
        remark(ax, f"no finite value at {blank.sum()} of {blank.size} points")
    return ax


def _usual(where: str, values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    if not len(known):
        raise NonFiniteError(where, "finite values somewhere", "none", "Choose another region.")
    return float(np.quantile(known, _USUAL)) or float(known.max()) or 1.0


def _where_regular(
    manifold: Manifold, compute: Callable[..., Tensor], grid: Tensor, shared: Conditions
) -> Tensor:  # -> (n,)
    """Values where the metric has an inverse, NaN elsewhere."""
    with torch.no_grad():
        least, most = manifold.eigenvalues(grid, condition=shared).unbind(-1)
        regular = least > 4 * torch.finfo(grid.dtype).eps * most
        values = torch.full_like(most, torch.nan)
        if bool(regular.any()):
            rows = None if shared is None else shared.select(regular)
            values[regular] = compute(grid[regular], condition=rows)
    return values
