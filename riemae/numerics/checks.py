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
    hint = "Try rtol=1e-4."
    if isinstance(rtol, Tensor) and rtol.numel() == 1:
        if not rtol.is_meta and not rtol.is_complex():
            rtol = float(rtol)
    if isinstance(rtol, bool) or not isinstance(rtol, Real):
        got = f"{type(rtol).__name__} {rtol!r}"
        raise DTypeError(where, "rtol > 0 as a number", got[:80], hint)
    value = float(rtol)
    if not value > 0 or math.isinf(value):
        raise OptionError(where, "rtol > 0", str(rtol), hint)
    return value


def expect_dense(where: str, name: str, z: Any) -> None:
    """A dense tensor.

    Raises:
        DTypeError: For anything else.
    """
    if not isinstance(z, Tensor):
        hint = "Try torch.as_tensor(...)."
        raise DTypeError(where, f"{name} as a torch tensor", type(z).__name__, hint)
    if z.layout != torch.strided:
        hint = f"Try {name}.to_dense()."
        raise DTypeError(where, f"{name} as a dense tensor", str(z.layout), hint)


def expect_values(where: str, name: str, z: Any) -> None:
    """A dense tensor whose numbers can be looked at, of a dtype that geometry can be computed in.

    Raises:
        DTypeError: For anything but a dense tensor of float32 or float64.
        DeviceError: For a tensor without values, on the meta device.
    """
    expect_dense(where, name, z)
    tolerance(z.dtype)
    if z.is_meta:
        hint = "Move it to a CPU or GPU."
        raise DeviceError(where, f"{name} with values", "a tensor on the meta device", hint)


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
    listed = ", ".join(map(repr, known))
    remedy = hint or f"Try {name}={known[0]!r}."
    raise OptionError(where, f"{name} among {listed}", repr(value), remedy)


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
    if known and low <= value <= high and math.isfinite(value):
        if not above or value != low:
            return
    if math.isinf(low) and math.isinf(high):
        kind_in_words = "whole" if integer else "finite"
        bounds = f"as a {kind_in_words} number"
    elif math.isinf(high):
        bounds = f"> {low:g}" if above else f"of at least {low:g}"
    elif math.isinf(low):
        bounds = f"of at most {high:g}"
    else:
        bracket = "(" if above else "["
        bounds = f"in {bracket}{low:g}, {high:g}]"
    if integer and not known and "whole" not in bounds:
        bounds += ", a whole number"
    elif not known and "number" not in bounds:
        bounds += ", a number"
    elif known and math.isinf(value) and "finite" not in bounds:
        bounds += ", finite"
    remedy = hint or f"Choose another {name}."
    raise OptionError(where, f"{name} {bounds}", repr(value), remedy)


def shape_in_words(x: Any) -> str:
    """The shape of a tensor, or the type of what is not one."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    return str(tuple(x.shape))


def dtype_in_words(x: Any) -> str:
    """The dtype of a tensor, or the type of what is not one."""
    if not isinstance(x, Tensor):
        return type(x).__name__
    return str(x.dtype)


def expect_tensor(where: str, name: str, x: Any) -> None:
    """A torch tensor.

    Raises:
        DTypeError: For anything else.
    """
    if not isinstance(x, Tensor):
        hint = f"Try torch.as_tensor({name})."
        raise DTypeError(where, f"{name} as a torch tensor", type(x).__name__, hint)


def expect_shape(where: str, name: str, x: Any, shape: Sequence[int | str], hint: str = "") -> None:
    """A tensor of a shape, in which a word stands for any size and a leading ``*b`` for a batch.

    Raises:
        DTypeError: When it is not a tensor.
        ShapeError: When the shape is another one.
    """
    expect_tensor(where, name, x)
    batched = bool(shape) and str(shape[0]).startswith("*")
    wanted = shape[1:] if batched else shape
    found = x.shape
    if batched and x.ndim >= len(wanted):
        found = x.shape[x.ndim - len(wanted) :]
    if len(found) == len(wanted):
        pairs = zip(wanted, found, strict=True)
        if all(isinstance(size, str) or size == own for size, own in pairs):
            return
    text = ", ".join(map(str, shape))
    if len(shape) == 1:
        text += ","
    remedy = hint or f"Reshape {name}."
    raise ShapeError(where, f"{name} of shape ({text})", str(tuple(x.shape)), remedy)


def expect_device(where: str, name: str, x: Any, other: str, like: Tensor) -> None:
    """A tensor on the device of another; what is not a tensor is left to other checks.

    Raises:
        DeviceError: When it is on another device.
    """
    if isinstance(x, Tensor) and x.device != like.device:
        expected = f"{name} on {other}'s device {like.device}"
        hint = f"Move one of them: {name}.to({other}.device)."
        raise DeviceError(where, expected, str(x.device), hint)


def expect_like(where: str, name: str, x: Tensor, other: str, like: Tensor) -> None:
    """A tensor of the dtype and on the device of another.

    Raises:
        DTypeError: When it is not a tensor, or of another dtype.
        DeviceError: When it is on another device.
    """
    expect_tensor(where, name, x)
    if x.dtype != like.dtype:
        expected = f"{name} of {other}'s dtype {like.dtype}"
        hint = f"Convert one of them: {name}.to({other}.dtype)."
        raise DTypeError(where, expected, str(x.dtype), hint)
    expect_device(where, name, x, other, like)


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
    remedy = hint or f"Look at {name} there."
    raise NonFiniteError(where, f"finite {name}", got, remedy)


def expect_weights(where: str, weights: Any, count: int) -> Tensor:  # (n,) -> (n,)
    """Weights of points as shares that sum to 1.

    Args:
        where: The call that asks, for the error.
        weights: One number of at least 0 for each point, known up to a factor.
        count: Number of points.

    Raises:
        DTypeError: For anything but numbers.
        ShapeError: When there is not one for each point.
        OptionError: For weights that are negative, not finite, or all 0.
    """
    hint = "They are masses, known up to a factor: one number of at least 0 for each point."
    try:
        found = torch.as_tensor(weights)
    except (TypeError, ValueError, RuntimeError) as reason:
        got = type(weights).__name__
        raise DTypeError(where, f"weights as {count} numbers", got, hint) from reason
    expect_shape(where, "weights", found, (count,), hint)
    if found.is_complex():
        raise DTypeError(where, "real weights", str(found.dtype), hint)
    if not found.is_floating_point():
        found = found.to(torch.get_default_dtype())
    allowed = bool(found.isfinite().all() & (found >= 0).all() & (found.sum() > 0))
    if not allowed:
        got = (
            f"values from {float(found.min()):.3g} to {float(found.max()):.3g}" if count else "none"
        )
        raise OptionError(where, "finite weights of at least 0, not all 0", got, hint)
    return found / found.sum()
