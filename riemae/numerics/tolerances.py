"""Numerical tolerances, in one table keyed by dtype."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from riemae.exceptions import DTypeError


@dataclass(frozen=True)
class Tolerance:
    """What a floating-point type can promise.

    Attributes:
        eps: Spacing of the numbers around 1.
        length: Smallest relative error of a curve length that can be claimed.
        rank: A metric, scaled to unit diagonal, with a squared Cholesky pivot below this counts as
            singular.
        pivot: A Jacobian, its columns scaled to length 1, with a pivot of its QR decomposition
            below this counts as singular where something is divided by it.
        probe: Relative difference up to which two evaluations of one decoder count as equal.
        check: Relative difference up to which two ways to one quantity count as equal.
        geodesic: Accuracy to which geodesics are solved by default.
    """

    eps: float
    length: float
    rank: float
    pivot: float
    probe: float
    check: float
    geodesic: float


_TABLE = {
    torch.float64: Tolerance(
        eps=2.0**-52, length=1e-14, rank=1e-14, pivot=2e-14, probe=1e-9, check=1e-8, geodesic=1e-4
    ),
    torch.float32: Tolerance(
        eps=2.0**-23, length=1e-6, rank=3e-6, pivot=1e-5, probe=1e-4, check=2e-3, geodesic=1e-3
    ),
}


# Lengths are claimed to so many times the spacing of the numbers inside a decoder, and geodesics
# are solved to so many times by default.
_CLAIMED = 4
_SOLVED = 12


@lru_cache(maxsize=64)
def coarser(dtype: torch.dtype, roundoff: float) -> Tolerance:
    """The row of the table for results that carry no more digits than ``roundoff`` leaves.

    Args:
        dtype: Of the results.
        roundoff: Relative rounding inside the function that they come from; 0 for that of the
            dtype.
    """
    usual = tolerance(dtype)
    if roundoff <= usual.eps:
        return usual
    return replace(
        usual,
        eps=roundoff,
        length=max(usual.length, _CLAIMED * roundoff),
        probe=max(usual.probe, _CLAIMED * roundoff),
        check=max(usual.check, 2 * _CLAIMED * roundoff),
        geodesic=max(usual.geodesic, _SOLVED * roundoff),
    )


def tolerance(dtype: torch.dtype) -> Tolerance:
    """The row of the table for ``dtype``.

    Raises:
        DTypeError: For anything but float32 and float64; half precision cannot carry second
            derivatives.
    """
    try:
        return _TABLE[dtype]
    except KeyError:
        raise DTypeError(
            "riemae",
            "a tensor of dtype float32 or float64",
            str(dtype),
            "Convert with .float() or .double().",
        ) from None
