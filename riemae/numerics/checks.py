"""Arguments that several calls share: looked at once, refused with where, expected, got, try."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import DeviceError, DTypeError, NonFiniteError, OptionError, ShapeError
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import concrete, evidently_finite


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


def expect_choice(
    where: str, name: str, value: Any, choices: Iterable[str], hint: str = ""
) -> None:
    """One of several words.

    Raises:
        OptionError: For any other value.
    """
    known = list(choices)
    if value in known:
        return
    listed = ", ".join(repr(choice) for choice in known)
    raise OptionError(
        where, f"{name} among {listed}", repr(value), hint or f"Try {name}={known[0]!r}."
    )


def expect_range(
    where: str,
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    integer: bool = False,
    above: bool = False,
    hint: str = "",
) -> None:
    """A number from ``low`` to ``high``.

    Args:
        where: Who asks.
        name: Of the argument.
        value: What came.
        low: The smallest value.
        high: The largest.
        integer: Whether it has to be a whole number; True and False are not.
        above: Whether ``low`` itself is too small.
        hint: What to try.

    Raises:
        OptionError: When it is not a number, not finite, or outside.
    """
    kind = Integral if integer else Real
    known = isinstance(value, kind) and not isinstance(value, bool)
    if known and low <= value <= high and math.isfinite(value) and not (above and value == low):
        return
    if math.isinf(low) and math.isinf(high):
        bounds = "as a whole number" if integer else "as a finite number"
    elif math.isinf(high):
        bounds = f"> {low:g}" if above else f"of at least {low:g}"
    elif math.isinf(low):
        bounds = f"of at most {high:g}"
    else:
        bounds = f"in {'(' if above else '['}{low:g}, {high:g}]"
    if integer and known is False:
        bounds = bounds if "whole" in bounds else f"{bounds}, a whole number"
    raise OptionError(where, f"{name} {bounds}", repr(value), hint or f"Choose another {name}.")


def expect_tensor(where: str, name: str, x: Any) -> None:
    """A torch tensor.

    Raises:
        DTypeError: For anything else.
    """
    if not isinstance(x, Tensor):
        raise DTypeError(
            where, f"{name} as a torch tensor", type(x).__name__, f"Try torch.as_tensor({name})."
        )


def expect_shape(where: str, name: str, x: Any, shape: Sequence[int | str], hint: str = "") -> None:
    """A tensor of a shape, in which a word stands for any size and a leading ``*b`` for a batch.

    Raises:
        DTypeError: When it is not a tensor.
        ShapeError: When the shape is another one.
    """
    expect_tensor(where, name, x)
    batched = bool(shape) and str(shape[0]).startswith("*")
    wanted = shape[1:] if batched else shape
    found = x.shape[len(x.shape) - len(wanted) :] if batched else x.shape
    fits = len(found) == len(wanted) and (not batched or x.ndim >= len(wanted))
    if fits and all(isinstance(a, str) or a == b for a, b in zip(wanted, found, strict=True)):
        return
    text = ", ".join(str(size) for size in shape)
    closed = f"({text},)" if len(shape) == 1 else f"({text})"
    raise ShapeError(
        where, f"{name} of shape {closed}", str(tuple(x.shape)), hint or f"Reshape {name}."
    )


def expect_like(where: str, name: str, x: Tensor, other: str, like: Tensor) -> None:
    """A tensor of the dtype and on the device of another.

    Raises:
        DTypeError: When it is not a tensor, or of another dtype.
        DeviceError: When it is on another device.
    """
    expect_tensor(where, name, x)
    if x.dtype != like.dtype:
        hint = f"Convert one of them: {name}.to({other}.dtype)."
        raise DTypeError(where, f"{name} of {other}'s dtype {like.dtype}", str(x.dtype), hint)
    if x.device != like.device:
        hint = f"Move one of them: {name}.to({other}.device)."
        raise DeviceError(where, f"{name} on {other}'s device {like.device}", str(x.device), hint)


def expect_finite(where: str, name: str, x: Tensor, hint: str = "") -> None:
    """A tensor without NaN or infinity, as far as it can be looked at.

    Raises:
        NonFiniteError: When there are some, with how many and the first places.
    """
    if evidently_finite(x):
        return
    bad = concrete(~x.isfinite())
    if bad is None or not bool(bad.any()):
        return
    places = bad.nonzero().tolist()
    got = f"NaN or infinity at {len(places)} places (first: {places[:3]})"
    raise NonFiniteError(where, f"finite {name}", got, hint or f"Look at {name} there.")
