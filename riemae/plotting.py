"""Pictures of a two-dimensional latent space; matplotlib is imported where one is made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riemae.differential.conditions import Condition, Conditions
from riemae.exceptions import ShapeError, SingularMetricError
from riemae.manifold import Manifold
from riemae.solvers import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def magnification(
    manifold: Manifold,
    axes: Axes,
    low: Tensor,
    high: Tensor,
    resolution: int = 160,
    *,
    condition: Conditions = None,
    **options: Any,
) -> Any:
    """Draw the log₁₀ of the magnification factor ``√det G`` as the background of a latent space.

    Args:
        manifold: With a two-dimensional latent space.
        axes: Where to draw.
        low: Lower left corner, ``(2,)``.
        high: Upper right corner, ``(2,)``.
        resolution: Points a side.
        condition: What the decoder gets besides the points, one for the whole picture,
            ``(1, *shape)``; as in :class:`~riemae.Manifold`.
        options: For ``axes.imshow``.

    Returns:
        The image, for ``figure.colorbar``.

    Raises:
        ShapeError: For any other latent dimension, or several conditions.
    """
    if low.shape != (2,) or high.shape != (2,):
        raise ShapeError(
            "plotting.magnification",
            "corners of shape (2,)",
            f"{tuple(low.shape)} and {tuple(high.shape)}",
            "Only m = 2 is flat.",
        )
    low, high = low.detach(), high.detach()
    x, y = (
        torch.linspace(a, b, resolution, dtype=low.dtype, device=low.device)
        for a, b in zip(low.tolist(), high.tolist(), strict=True)
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).view(-1, 2)
    one = Condition.of("plotting.magnification", condition, torch.Size([1]), low.device)
    shared = None if one is None else one.spread(len(grid))
    with torch.no_grad():
        values = manifold.log_volume(grid, condition=shared).view(
            resolution, resolution
        ) / math.log(10)
    image = axes.imshow(
        values.cpu().numpy(),
        extent=(float(low[0]), float(high[0]), float(low[1]), float(high[1])),
        origin="lower",
        aspect="auto",
        **{"cmap": "Greys", "interpolation": "bilinear", **options},
    )
    axes.set_xlim(float(low[0]), float(high[0]))
    axes.set_ylim(float(low[1]), float(high[1]))
    return image


def curves(curve: Curve, axes: Axes, points: int = 200, **options: Any) -> None:
    """Draw a batch of latent curves ``(p,)`` in two dimensions.

    Args:
        curve: The curves.
        axes: Where to draw.
        points: Points a curve.
        options: For ``axes.plot``; a ``label`` is given to the first curve only.

    Raises:
        ShapeError: For any other dimension or batch.
    """
    if len(curve.batch_shape) != 1 or curve.nodes.shape[-1] != 2:
        raise ShapeError(
            "plotting.curves",
            "curves (p,) in two dimensions",
            repr(curve),
            "Give one batch axis, and a latent space of two dimensions.",
        )
    label = options.pop("label", None)
    for i, z in enumerate(curve(torch.linspace(0, 1, points)).detach().cpu().numpy()):
        axes.plot(z[:, 0], z[:, 1], label=label if i == 0 else None, **options)


def strip(images: Tensor, axes: Axes, **options: Any) -> None:
    """Draw images ``(rows, columns, height, width)`` side by side in one picture, without frames.

    Args:
        images: Grey images.
        axes: Where to draw.
        options: For ``axes.imshow``.

    Raises:
        ShapeError: For any other number of axes.
    """
    if images.ndim != 4:
        raise ShapeError(
            "plotting.strip",
            "images of shape (rows, columns, height, width)",
            str(tuple(images.shape)),
            "Take one channel, and a row per curve.",
        )
    rows, columns, height, width = images.shape
    sheet = images.permute(0, 2, 1, 3).reshape(rows * height, columns * width)
    axes.imshow(
        sheet.detach().cpu().numpy(), **{"cmap": "gray_r", "vmin": 0.0, "vmax": 1.0, **options}
    )
    axes.set_xticks([])
    axes.set_yticks([])


def indicatrices(
    manifold: Manifold,
    axes: Axes,
    z: Tensor,
    radius: float | None = None,
    points: int = 48,
    *,
    condition: Conditions = None,
    **options: Any,
) -> float:
    """Draw circles of the metric, ``vᵀ G(z) v = radius²``, around latent points.

    They are round and equal for an isometry.

    Args:
        manifold: With a two-dimensional latent space.
        axes: Where to draw.
        z: Centres ``(k, 2)``.
        radius: Length in the data space; by default such that ellipses of the median size around
            neighbours do not touch.
        points: Points an ellipse.
        condition: What the decoder gets besides the points, one for each centre, ``(k, *shape)``,
            or one for all, ``(1, *shape)``; as in :class:`~riemae.Manifold`.
        options: For the lines.

    Returns:
        The radius.

    Raises:
        ShapeError: For any other latent dimension, or another number of conditions.
        SingularMetricError: Where the metric has no inverse.
    """
    from matplotlib.collections import LineCollection

    if z.ndim != 2 or z.shape[1] != 2:
        raise ShapeError(
            "plotting.indicatrices", "centres (k, 2)", str(tuple(z.shape)), "Only m = 2 is flat."
        )
    with torch.no_grad():
        factor, info = torch.linalg.cholesky_ex(manifold.metric(z.detach(), condition=condition))
    if bool(info.any()):
        got = f"a singular one at {int((info > 0).sum())} of {len(z)} points"
        raise SingularMetricError(
            "plotting.indicatrices", "a metric of full rank", got, "Leave these out."
        )
    turn = torch.linspace(0, 2 * math.pi, points, dtype=z.dtype, device=z.device)
    circle = torch.stack([turn.cos(), turn.sin()])
    # v = L⁻ᵀ c has vᵀ L Lᵀ v = |c|².
    shapes = torch.linalg.solve_triangular(
        factor.mT, circle.expand(len(z), 2, points), upper=True
    ).mT
    if radius is None:
        gap = (
            torch.cdist(z, z).fill_diagonal_(torch.inf).min(1).values.median()
            if len(z) > 1
            else z.new_ones(())
        )
        size = shapes.norm(dim=-1).mean(1).median()
        radius = float(0.4 * gap / size)
    lines = (z.detach()[:, None] + radius * shapes).cpu().numpy()
    axes.add_collection(
        LineCollection(list(lines), **{"colors": "black", "linewidths": 0.9, **options})
    )
    axes.autoscale_view()
    return radius


def spread_points(z: Tensor, count: int) -> Tensor:  # (n, m) -> (count, m)
    """Some of the points, far from each other.

    First the one next to the mean, then always the farthest from all so far.
    """
    from_mean = (z - z.mean(0)).norm(dim=1)
    chosen = [int(from_mean.argmin())]
    distance = torch.full((len(z),), torch.inf, dtype=z.dtype, device=z.device)
    for _ in range(min(count, len(z)) - 1):
        last = z[chosen[-1]]
        distance = torch.minimum(distance, (z - last).norm(dim=1))
        chosen.append(int(distance.argmax()))
    return z[chosen]


def plane_colours(z: Tensor) -> Any:  # (n, 2) -> (n, 3)
    """A colour for each point of a plane by its place, to find it again in other pictures."""
    low, high = z.amin(0), z.amax(0)
    extent = (high - low).clamp(min=1e-12)
    a, b = ((z - low) / extent).unbind(-1)
    red = 0.15 + 0.8 * a
    green = 0.3 + 0.2 * (1 - a) * b
    blue = 0.15 + 0.8 * b
    return torch.stack([red, green, blue], -1).cpu().numpy()
