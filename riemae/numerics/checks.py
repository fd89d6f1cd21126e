"""Arguments that several calls share: looked at once, refused with where, expected, got, try."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import DeviceError, DTypeError, OptionError
from riemae.numerics.tolerances import tolerance


def expect_rtol(where: str, rtol: Any) -> float:
    """A relative accuracy: a positive number, or a tensor with one.

    Raises:
        DTypeError: When it is not a number, such as a string or several of them.
        OptionError: When it is not positive.
    """
    if isinstance(rtol, Tensor) and rtol.numel() == 1 and not (rtol.is_meta or rtol.is_complex()):
        rtol = float(rtol)
    if isinstance(rtol, bool) or not isinstance(rtol, Real):
        raise DTypeError(
            where, "rtol > 0 as a number", f"{type(rtol).__name__} {rtol!r}"[:80], "Try rtol=1e-4."
        )
    if not float(rtol) > 0 or math.isinf(float(rtol)):
        raise OptionError(where, "rtol > 0", str(rtol), "Try rtol=1e-4.")
    return float(rtol)


def expect_dense(where: str, name: str, z: Any) -> None:
    """A dense tensor.

    Raises:
        DTypeError: For anything else.
    """
    if not isinstance(z, Tensor):
        raise DTypeError(
            where, f"{name} as a torch tensor", type(z).__name__, "Try torch.as_tensor(...)."
        )
    if z.layout != torch.strided:
        raise DTypeError(
            where, f"{name} as a dense tensor", str(z.layout), f"Try {name}.to_dense()."
        )


def expect_values(where: str, name: str, z: Any) -> None:
    """A dense tensor whose numbers can be looked at, of a dtype that geometry can be computed in.

    Raises:
        DTypeError: For anything but a dense tensor of float32 or float64.
        DeviceError: For a tensor without values, on the meta device.
    """
    expect_dense(where, name, z)
    tolerance(z.dtype)
    if z.is_meta:
        raise DeviceError(
            where, f"{name} with values", "a tensor on the meta device", "Move it to a CPU or GPU."
        )
