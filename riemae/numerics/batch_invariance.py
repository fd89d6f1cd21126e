"""Maps with independent rows: the same bits for a point alone and in any batch.

Matrix kernels choose their instructions by the number of rows: with MKL and oneDNN on x86 all
multiples of 8 get the same. Vectorised functions treat the last few numbers of an array apart,
unless none are left over: unless an array consists of whole pairs of vectors, of 64 bytes each. (A
graphics card promises nothing of the kind.) What remains are matrix products over an odd number of
columns, where MKL looks at where each row starts in memory, and over more than some 500 columns for
few outputs, which several threads share out. A decoder with layers or latent points of odd width
beyond 4 may still differ in the last bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.numerics.constants import Values, constant

_ROWS = 16
_FEWEST = 8
_PAIR_OF_VECTORS = 128  # bytes


def row_multiple(widths: Iterable[int], size: int) -> int:
    """The number whose multiple the number of rows must be: 8, 16 or 32.

    Args:
        widths: Numbers per row in each tensor.
        size: Bytes per number.
    """
    bytes_per_row = [width * size for width in widths]
    rows = _FEWEST
    while rows < 2 * _ROWS:
        left_over = any(rows * count % _PAIR_OF_VECTORS for count in bytes_per_row)
        if not left_over:
            break
        rows *= 2
    return rows


def padded_rows(x: Tensor, rows: int = _ROWS) -> Tensor:  # (k, *s) -> (k + r, *s)
    """``x`` with its last row repeated, up to a multiple of ``rows`` rows."""
    count = x.shape[0]  # several times as fast as `len`
    missing = -count % rows
    if not missing or not count:
        return x
    repeated = x[-1:].expand(missing, *x.shape[1:])
    return torch.cat([x, repeated])


def batch_invariant(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """``f: (k, m) -> (k, *shape)``, evaluated on a multiple of 16 rows."""

    def padded(z: Tensor) -> Tensor:
        wide = padded_rows(z)
        if len(wide) == len(z):
            return f(z)
        out = f(wide)
        if isinstance(out, Tensor) and out.shape[:1] == (len(wide),):
            return out[: len(z)]
        # What is not one row per point is shown to the caller as it is.
        return f(z)

    return padded


def aligned(x: Tensor, axis: int, size: int = 1) -> Tensor:
    """``x`` with zeros appended along ``axis`` (negative), up to a multiple of 16 numbers.

    With ``size`` numbers per entry of this axis, a multiple of 16 of them.
    """
    spare = -x.shape[axis] % (_ROWS // math.gcd(_ROWS, size))
    if not spare:
        return x
    later_axes = (0, 0) * (-axis - 1)
    return F.pad(x, (*later_axes, 0, spare))


def apply_constant(values: Values, arguments: tuple[Any, ...], x: Tensor) -> Tensor:
    """``values(*arguments) @ x`` for every member of a batch, each with the same bits as alone.

    One product per member, of sizes that leave nothing over: nothing is copied for them where ``m``
    is a multiple of 8. The matrix is kept, see :func:`~riemae.numerics.constants.constant`.

    Args:
        values: Computes the matrix ``(i, j)``.
        arguments: Its arguments; they can be hashed.
        x: ``(*b, j, m)``.
    """
    *batch, _, width = x.shape
    matrix = constant(_whole, (values, arguments), x)
    count = len(_kept(values, arguments))
    spare = -width % _FEWEST
    if len(batch) != 1:
        x = x.flatten(0, -3) if batch else x[None]
    if spare:
        x = F.pad(x, (0, spare))
    elif x.stride(2) != 1 or x.stride(1) != width:
        x = x.contiguous()
    out = torch.bmm(matrix.expand(len(x), -1, -1), x)
    if spare or count < len(matrix):
        out = out[:, :count, :width]
    return out if len(batch) == 1 else out.view(*batch, count, width)


def _whole(values: Values, arguments: tuple[Any, ...]) -> np.ndarray:
    """With rows of zeros, up to a multiple of 8."""
    matrix = _kept(values, arguments)
    return np.pad(matrix, ((0, -len(matrix) % _FEWEST), (0, 0)))


@lru_cache(maxsize=256)
def _kept(values: Values, arguments: tuple[Any, ...]) -> np.ndarray:
    return values(*arguments)
