"""Images one after another, as a GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from riemae.exceptions import FileError
from riemae.numerics.checks import expect_range
from riemae.plotting.images import Channels, as_images, coloured, limits_of
from riemae.storage.atomic import write_atomically

# Frames are enlarged until they are about so high.
_HEIGHT = 160


def gif(
    images: Any,
    path: str | PathLike[str],
    *,
    shape: Sequence[int] | None = None,
    channels: Channels | None = None,
    limits: tuple[float, float] | None = None,
    fps: float = 10,
    scale: int | None = None,
    bounce: bool = True,
    cmap: str = "gray_r",
) -> Path:
    """Write images as a film that repeats; rows of images are below each other in each frame.

    Along a geodesic, every frame differs from the one before by the same length. The file appears
    whole or not at all.

    Args:
        images: As in :func:`~riemae.plotting.strip`, each column a frame;
            :func:`~riemae.plotting.decoded` makes them.
        path: The file, which is overwritten.
        shape: As in :func:`~riemae.plotting.strip`.
        channels: As in :func:`~riemae.plotting.strip`.
        limits: As in :func:`~riemae.plotting.strip`.
        fps: Frames per second, at most 50, more than which players ignore.
        scale: Times by which pixels are enlarged; by default such that frames are about 160 high.
        bounce: Go back the same way after the last frame.
        cmap: The colour map of grey images.

    Returns:
        The path.

    Raises:
        ShapeError: For images of another shape.
        OptionError: For a number out of range.
        FileError: When the file cannot be written.
    """
    from matplotlib import colormaps
    from PIL import Image

    where = "plotting.gif"
    expect_range(where, "fps", fps, 0.1, 50, hint="Try fps=10.")
    stack = as_images(where, images, shape, channels)
    low, high = limits_of(where, stack, limits)
    rows, frames, height = stack.shape[:3]
    if scale is None:
        scale = max(1, round(_HEIGHT / (rows * height)))
    expect_range(where, "scale", scale, 1, integer=True, hint="It multiplies pixels.")
    tall = np.concatenate(list(stack), axis=1)  # (frames, rows height, width, channels)
    if stack.shape[-1] == 1:
        ink = np.clip((tall[..., 0] - low) / (high - low), 0.0, 1.0)
        tall = colormaps[cmap](np.ma.masked_invalid(ink))
    else:
        tall = coloured(tall, low, high)
    pixels = np.round(255 * tall[..., :3]).astype(np.uint8)
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    order = list(range(frames))
    if bounce:
        order += order[-2:0:-1]
    film = [Image.fromarray(pixels[i]) for i in order]
    content = io.BytesIO()
    film[0].save(
        content,
        format="GIF",
        save_all=True,
        append_images=film[1:],
        duration=round(1000 / fps),
        loop=0,
    )
    file = Path(path)
    try:
        write_atomically(file, content.getvalue())
    except OSError as reason:
        hint = "Choose a folder that exists and can be written to."
        raise FileError(where, "a file that can be written", str(reason), hint) from reason
    return file
