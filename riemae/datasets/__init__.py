"""Data whose truth is known: curves, surfaces, images and point clouds.

Every function takes ``generator=``, a ``torch.Generator``, the seed of a new one, or None for
torch's own. It draws in double precision and returns a :class:`Dataset` in the dtype asked for; by
default, torch's. Noise is isotropic in the data space.
"""

from riemae.datasets.base import Dataset, clean_error, in_order, length_ratio, rank_correlation
from riemae.datasets.images import rotated_images, shifted_images
from riemae.datasets.shapes import superquadrics
from riemae.datasets.synthetic import (
    cylinder,
    noisy_sine,
    paraboloid,
    patch_with_hole,
    sparse_spiral,
    swiss_roll,
)
from riemae.datasets.tables import counts

__all__ = [
    "Dataset",
    "clean_error",
    "counts",
    "cylinder",
    "in_order",
    "length_ratio",
    "noisy_sine",
    "paraboloid",
    "patch_with_hole",
    "rank_correlation",
    "rotated_images",
    "shifted_images",
    "sparse_spiral",
    "superquadrics",
    "swiss_roll",
]
