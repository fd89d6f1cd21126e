"""Pictures of a two-dimensional latent space. Needs matplotlib, imported where a picture is made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from riemae.exceptions import ShapeError
from riemae.manifold import Manifold
from riemae.solvers import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def magnification(
    manifold: Manifold, axes: Axes, low: Tensor, high: Tensor, resolution: int = 160, **options: Any
) -> Any:
    """Draw the log₁₀ of the magnification factor ``√det G`` as the background of a latent space.

    Args:
        manifold: With a two-dimensional latent space.
        axes: Where to draw.
        low: Lower left corner, ``(2,)``.
        high: Upper right corner, ``(2,)``.
        resolution: Points a side.
        options: For ``axes.imshow``.

    Returns:
        The image, for ``figure.colorbar``.

    Raises:
        ShapeError: For any other latent dimension.
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
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    with torch.no_grad():
        values = manifold.log_volume(grid) / math.log(10)
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
        raise ShapeError("plotting.curves", "curves (p,) in two dimensions", repr(curve), "")
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
            "plotting.strip", "images of shape (rows, columns, height, width)", str(tuple(images.shape)), ""
        )
    rows, columns, height, width = images.shape
    sheet = images.permute(0, 2, 1, 3).reshape(rows * height, columns * width)
    axes.imshow(sheet.detach().cpu().numpy(), **{"cmap": "gray_r", "vmin": 0.0, "vmax": 1.0, **options})
    axes.set_xticks([])
    axes.set_yticks([])
