"""Images side by side: what a decoder gives along a curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from riemae.differential.conditions import Conditions
from riemae.exceptions import DTypeError, NonFiniteError, OptionError, ShapeError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_choice, expect_range
from riemae.plotting.canvas import axes_for
from riemae.plotting.inputs import plain
from riemae.solvers import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Channels = Literal["first", "last"]
_CHANNELS = (1, 3, 4)
# Usual ranges of pixels; the first that holds nearly all of them counts, with room for decoders.
# Whole numbers up to 255 reach a tenth of it at least.
_RANGES = ((0.0, 1.0, 0.0), (-1.0, 1.0, -1.0), (0.0, 255.0, 25.0))
_ROOM = 0.15
_NEARLY_ALL = (0.01, 0.99)


def decoded(
    manifold: Manifold, curve: Curve, frames: int = 11, *, condition: Conditions = None
) -> Tensor:  # (*b,) curves -> (*b, frames, *shape)
    """What a manifold decodes to along curves, at equal steps of time.

    For :func:`strip` and :func:`gif`. Along a geodesic, equal times are equal lengths.

    Args:
        manifold: Whose data are images.
        curve: Curves in its latent space.
        frames: How many.
        condition: As in :class:`~riemae.Manifold`, one for all points, ``(1, *shape)``.

    Raises:
        DTypeError: When ``curve`` is not a :class:`~riemae.solvers.Curve`.
        OptionError: When there are fewer than two frames.
    """
    if not isinstance(curve, Curve):
        hint = "Try result.curve or Curve.line(z0, z1)."
        raise DTypeError("plotting.decoded", "a solvers.Curve", type(curve).__name__, hint)
    expect_range("plotting.decoded", "frames", frames, 2, integer=True, hint="Try 11.")
    t = torch.linspace(0, 1, frames, dtype=curve.nodes.dtype, device=curve.nodes.device)
    z = curve(t).detach()
    with torch.no_grad():
        x = manifold.decode(z.view(-1, z.shape[-1]), condition=condition)
    return x.view(*z.shape[:-1], *x.shape[1:])


def strip(
    images: Any,
    *,
    ax: Axes | None = None,
    shape: Sequence[int] | None = None,
    channels: Channels | None = None,
    limits: tuple[float, float] | None = None,
    gap: int = 0,
    rows: Sequence[str] | None = None,
    **options: Any,
) -> Axes:
    """Draw rows of images side by side in one picture, without frames.

    Args:
        images: ``(rows, columns, height, width)``, or ``(columns, height, width)`` for one row;
            with channels ``(rows, columns, channels, height, width)`` or
            ``(rows, columns, height, width, channels)``; flat ``(rows, columns, D)`` with
            ``shape``. One channel is grey, three are red, green and blue, the fourth is opacity.
        ax: Where to draw; by default in a new figure.
        shape: Of one flat image, such as ``(8, 8)``, ``(3, 32, 32)`` or ``(32, 32, 3)``.
        channels: Where they are: ``"first"`` or ``"last"``. By default the axis that can be one, if
            there are five axes, or three in ``shape``; otherwise there are none.
        limits: Values of no ink and of full ink in grey images, of black and of white in coloured
            ones. By default the first of (0, 1), (−1, 1) and (0, 255) that holds nearly all
            values, or else the smallest and the largest.
        gap: White pixels between images.
        rows: Names of the rows.
        options: For ``ax.imshow``.

    Raises:
        ShapeError: For any other number of axes or channels.
        OptionError: When it is not clear where the channels are, and for other options.
        NonFiniteError: When all values are NaN.
    """
    where = "plotting.strip"
    expect_range(where, "gap", gap, 0, integer=True, hint="It counts pixels.")
    stack = as_images(where, images, shape, channels)
    if rows is not None and len(rows) != len(stack):
        hint = "Give one name for each row."
        raise OptionError(where, f"{len(stack)} names of rows", str(len(rows)), hint)
    low, high = limits_of(where, stack, limits)
    sheet = _sheet(stack, gap)
    grey = stack.shape[-1] == 1
    if grey:
        style = {"cmap": "gray_r", "vmin": low, "vmax": high, "interpolation": "nearest"}
        sheet = sheet[..., 0]
    else:
        style = {"interpolation": "nearest"}
        sheet = coloured(sheet, low, high)
    width = min(1.0 * stack.shape[1], 14.0)
    ax = axes_for(where, ax, (width, width * sheet.shape[0] / sheet.shape[1] + 0.1))
    ax.imshow(sheet, **{**style, **options})
    ax.set_xticks([])
    ax.set_yticks([])
    if rows is not None:
        pitch = stack.shape[2] + gap
        places = [row * pitch + (stack.shape[2] - 1) / 2 for row in range(len(rows))]
        ax.set_yticks(places, list(rows))
        ax.tick_params(length=0)
    if gap or rows is not None:
        for spine in ax.spines.values():
            spine.set_visible(False)
    return ax


def strips(
    manifold: Manifold,
    curves: Mapping[str, Curve],
    frames: int = 11,
    *,
    ax: Axes | None = None,
    shape: Sequence[int] | None = None,
    channels: Channels | None = None,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw decoded images along curves, a row per curve, with its name and length.

    Args:
        manifold: Whose data are images.
        curves: One curve ``()`` by name, such as ``{"geodesic": r.curve[0]}``.
        frames: Images per curve, at equal steps of time.
        ax: Where to draw; by default in a new figure.
        shape: Of one image, where data are flat.
        channels: As in :func:`strip`.
        condition: One for all points, ``(1, *shape)``.
        options: As in :func:`strip`.

    Raises:
        ShapeError: When a curve is a batch of several, or images have another shape.
        OptionError: When there are no curves, and as in :func:`strip`.
    """
    where = "plotting.strips"
    if not curves:
        raise OptionError(where, "at least one curve", "none", "Try {'geodesic': r.curve[0]}.")
    images = []
    names = []
    for name, curve in curves.items():
        if isinstance(curve, Curve) and len(curve.batch_shape):
            hint = "Take one of them: curve[0]."
            raise ShapeError(where, "single curves", repr(curve), hint)
        images.append(decoded(manifold, curve, frames, condition=condition))
        length = manifold.length(curve, rtol=1e-3, throw=False, condition=condition)
        names.append(f"{name}\n{float(length):.3g} long")
    given = {"gap": 1, "rows": names, **options}
    return strip(torch.stack(images), ax=ax, shape=shape, channels=channels, **given)


def as_images(
    where: str, images: Any, shape: Sequence[int] | None, channels: Channels | None
) -> np.ndarray:  # -> (rows, columns, height, width, channels)
    """Images with rows and columns, the channels last.

    Raises:
        ShapeError: For any other number of axes or channels.
        OptionError: When it is not clear where the channels are.
    """
    if channels is not None:
        expect_choice(where, "channels", channels, ("first", "last"))
    x = plain(where, "images", images)
    if shape is not None:
        x = _shaped(where, x, tuple(shape))
        axes = len(shape)
    elif channels is not None:
        axes = 3
    else:
        axes = 3 if x.ndim == 5 else 2
    if x.ndim not in (axes + 1, axes + 2) or 0 in x.shape:
        wanted = "images of shape (rows, columns, height, width), or with channels"
        hint = "Give shape= for flat images, and channels= for coloured ones."
        raise ShapeError(where, wanted, str(x.shape), hint)
    x = x if x.ndim == axes + 2 else x[None]
    if axes == 2:
        return x[..., None]
    if channels is None:
        channels = _found_channels(where, x)
    x = np.moveaxis(x, 2, -1) if channels == "first" else x
    if x.shape[-1] not in _CHANNELS:
        hint = "Choose three of them, or say channels='first' or 'last'."
        raise ShapeError(where, "1, 3 or 4 channels", f"{x.shape[-1]} of {x.shape}", hint)
    return x


def limits_of(
    where: str, images: np.ndarray, limits: tuple[float, float] | None
) -> tuple[float, float]:
    """The range of values to draw.

    Raises:
        NonFiniteError: When no value is finite.
        OptionError: When the limits are in another order.
    """
    if limits is not None:
        low, high = (float(x) for x in limits)
        if not low < high:
            raise OptionError(where, "limits (low, high)", str(limits), "Try limits=(0, 1).")
        return low, high
    known = images[np.isfinite(images)]
    if not known.size:
        raise NonFiniteError(where, "finite images", "NaN or infinity only", "Look at them.")
    below, above = np.quantile(known, _NEARLY_ALL)
    for low, high, reached in _RANGES:
        room = _ROOM * (high - low)
        if low - room <= below and reached <= above <= high + room:
            return low, high
    least, most = float(known.min()), float(known.max())
    return (least, most) if least < most else (least - 1, most + 1)


def coloured(sheet: np.ndarray, low: float, high: float) -> np.ndarray:
    """Red, green and blue in [0, 1]; white where a value is missing."""
    scaled = np.clip((sheet - low) / (high - low), 0.0, 1.0)
    return np.where(np.isfinite(sheet).all(-1, keepdims=True), scaled, 1.0)


def _shaped(where: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if len(shape) not in (2, 3) or any(not isinstance(s, int) or s < 1 for s in shape):
        hint = "Try shape=(28, 28)."
        raise OptionError(where, "the shape of one image", repr(shape), hint)
    size = int(np.prod(shape))
    flat = x.ndim in (2, 3) and x.shape[-1] == size
    if not flat and x.shape[-len(shape) :] != shape:
        hint = "Its sizes multiply to the number of values per image."
        raise ShapeError(where, f"images of {size} values, {shape}", str(x.shape), hint)
    return x.reshape(*x.shape[:-1], *shape) if flat else x


def _found_channels(where: str, x: np.ndarray) -> Channels:
    sizes = x.shape[2], x.shape[-1]
    first, last = (size in _CHANNELS for size in sizes)
    if first and last and 3 in sizes and sizes[0] != sizes[1]:
        first, last = (size == 3 for size in sizes)  # a few pixels are rarer than three colours
    if first == last:
        got = f"images of shape {x.shape[2:]}"
        hint = "Say channels='first' or channels='last'."
        raise OptionError(where, "one axis of 1, 3 or 4 channels", got, hint)
    return "first" if first else "last"


def _sheet(stack: np.ndarray, gap: int) -> np.ndarray:
    """One picture of all images, NaN in the gaps."""
    rows, columns, height, width, depth = stack.shape
    padded = np.full((rows, columns, height + gap, width + gap, depth), np.nan)
    padded[:, :, :height, :width] = stack
    sheet = padded.transpose(0, 2, 1, 3, 4)
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), depth)
    return sheet[: sheet.shape[0] - gap, : sheet.shape[1] - gap]
