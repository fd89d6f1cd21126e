"""Linear functions of one tensor: shapes, selections, sums along axes.

Derivatives have one axis more, in front. vmap adds it to any linear function, at a cost; where it
is easily accounted for, the function itself takes all derivatives at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from riemae.differential.jets import Jet, Rule, has_jets, plain, rule, viewed
from riemae.differential.placement import (
    from_the_end,
    on_the_right,
    order_after,
    permuted,
    selected,
)
from riemae.differential.rules.generic import argument, generic
from riemae.differential.spellings import spellings

Args = tuple[Any, ...]
Options = dict[str, Any]
# (function, jet, value of the result, other arguments, keywords) -> what the function does to
# derivatives, whose axis is in front; None where vmap must.
Lift = Callable[[Any, Jet, Any, list[Any], Options], Callable[[Tensor], Any] | None]


def linear(func: Any, args: Args, kwargs: Options, lift: Lift | None = None) -> Any:
    """A function that is linear in its first argument and takes no other jets."""
    jet, *rest = args
    if not isinstance(jet, Jet) or has_jets(rest) or (kwargs and has_jets(kwargs)):
        return generic(func, args, kwargs)

    def op(x: Tensor) -> Any:
        return func(x, *rest, **kwargs)

    y = op(jet.value)
    if lift is _in_order and y.shape == jet.shape and y.dtype == jet.value.dtype:
        same = Jet.carrying(y, jet.tangents, jet.tape, jet.ahead)
        same.pieces = jet.pieces
        return viewed((jet,), same)
    if lift is not None:
        lifted = lift(func, jet, y, rest, kwargs)
    else:
        lifted = _reordered(jet, op) if func in PERMUTING and jet.ndim else None
    ahead = _ahead(func, jet, y, op, lift)
    if lifted is None:
        out = jet.mapped(y, op, ahead)
    else:
        out = jet.stacked(y, lifted, ahead)
    return viewed((jet,), out)


def _ahead(
    func: Any, jet: Jet, y: Any, op: Callable[[Tensor], Any], lift: Lift | None
) -> int | None | list[int | None]:
    """Where the points are in the result, if anybody asks."""
    if jet.tape.recorded is None or lift in (_in_order, _each_number, _in_memory):
        return jet.ahead
    if func in PERMUTING:
        return permuted(jet, y, op)
    if func in COMBINING:
        if jet.ahead == 1:
            return 1
        return on_the_right(jet, y)
    return selected(jet, y, op)


def _linear_like(func: Any, args: Args, kwargs: Options, lift: Lift | None = None) -> Any:
    """The same, where other arguments are tensors whose shape, dtype or device alone matters."""
    jet, *rest = args
    others = plain(rest)
    options = plain(kwargs)
    if not isinstance(jet, Jet):  # a constant takes the shape, dtype or device of a jet
        return func(jet, *others, **options)
    return linear(func, (jet, *others), options, lift)


# Lifts.


def _in_order(
    func: Any, jet: Jet, y: Any, rest: list[Any], kwargs: Options
) -> Callable[[Tensor], Any] | None:
    """Functions that leave all numbers in their order."""
    if y.dtype != jet.value.dtype:
        return None
    return lambda x: x.reshape(len(x), *y.shape)


def _reordered(jet: Jet, op: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Functions that change the order of the axes alone."""
    order = [0, *(axis + 1 for axis in order_after(jet, op))]
    return lambda x: x.permute(order)


def _each_number(
    func: Any, jet: Jet, y: Any, rest: list[Any], kwargs: Options
) -> Callable[[Tensor], Any]:
    """Functions of single numbers."""
    return lambda x: func(x, *rest, **kwargs)


def _in_memory(
    func: Any, jet: Jet, y: Any, rest: list[Any], kwargs: Options
) -> Callable[[Tensor], Any]:
    """Copies, whatever their order in memory: derivatives have an axis more than that may name."""
    return lambda x: func(x)


def _indexed(
    func: Any, jet: Jet, y: Any, rest: list[Any], kwargs: Options
) -> Callable[[Tensor], Any] | None:
    """Indices that consist of numbers and slices alone."""
    index = rest[0]
    if not isinstance(index, tuple):
        index = (index,)
    for part in index:
        if part is not None and part is not Ellipsis and type(part) not in (int, slice):
            return None
    return lambda x: func(x, (slice(None), *index))


def _along_axis(place: int) -> Lift:
    """Functions along one axis, which is their argument at this place after the first."""

    def lift(
        func: Any, jet: Jet, y: Any, rest: list[Any], kwargs: Options
    ) -> Callable[[Tensor], Any] | None:
        axis = argument(rest, place, kwargs, "dim", None)
        if type(axis) is not int or not jet.ndim:
            return None
        axis = from_the_end(axis, jet)
        if len(rest) > place:
            others = [*rest[:place], axis, *rest[place + 1 :]]
            return lambda x: func(x, *others, **kwargs)
        options = {**kwargs, "dim": axis}
        return lambda x: func(x, *rest, **options)

    return lift


def _with_lift(lift: Lift) -> Rule:
    return lambda func, args, kwargs: linear(func, args, kwargs, lift)


# The table.

LINEAR = """
    permute transpose t movedim moveaxis swapaxes swapdims adjoint expand broadcast_to repeat tile
    repeat_interleave nansum index_select gather take take_along_dim roll flip fliplr flipud rot90
    diff diagonal diag diag_embed tril triu unfold fold tensor_split hsplit vsplit dsplit trace
    interpolate upsample avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d pixel_shuffle pixel_unshuffle channel_shuffle"""
rule(*spellings(LINEAR))(linear)
# Only the order of the axes changes.
PERMUTING = set(spellings("permute transpose t movedim moveaxis swapaxes swapdims adjoint"))
# Numbers of one point are combined, and its axis stays where it is, counted from the right.
COMBINING = set(
    spellings(
        """interpolate upsample avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_avg_pool3d diff cumsum"""
    )
)
rule(*spellings("reshape view flatten ravel unflatten unsqueeze squeeze"))(_with_lift(_in_order))
rule(*spellings("neg negative __neg__ positive __pos__ double float"))(_with_lift(_each_number))
rule(*spellings("clone contiguous"))(_with_lift(_in_memory))
rule(*spellings("__getitem__"))(_with_lift(_indexed))
rule(*spellings("sum mean cumsum unbind select narrow"))(_with_lift(_along_axis(0)))
rule(*spellings("to type_as expand_as"))(_linear_like)


@rule(*spellings("split chunk unsafe_split unsafe_chunk"))
def _split(func: Any, args: Args, kwargs: Options) -> Any:
    """What was joined is parted as it was, without a copy, and constants come out as such."""
    jet, *rest = args
    pieces = jet.pieces if isinstance(jet, Jet) else None
    axis = argument(rest, 1, kwargs, "dim", 0)
    if pieces is not None and axis in (pieces.axis, pieces.axis + jet.ndim):
        parts = func(jet.value, *rest, **kwargs)
        lengths = tuple(part.shape[pieces.axis] for part in parts)
        if lengths == pieces.lengths:
            out = []
            for part, tangents in zip(parts, pieces.tangents, strict=True):
                if tangents is not None:
                    part = Jet.carrying(part, tangents, jet.tape, jet.ahead)
                out.append(part)
            return viewed((jet,), tuple(out))
        if len(parts) == 1:
            same = Jet.carrying(parts[0], jet.tangents, jet.tape, jet.ahead)
            same.pieces = pieces
            return viewed((jet,), (same,))
    return linear(func, args, kwargs, _along_axis(1))


@rule(*spellings("view_as reshape_as"))
def _reshaped_like(func: Any, args: Args, kwargs: Options) -> Any:
    return _linear_like(func, args, kwargs, _in_order)


# Attributes: the getter of ``Tensor.T`` is called with the tensor alone.
_TRANSPOSED = [getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH")]
PERMUTING.update(_TRANSPOSED)


@rule(*_TRANSPOSED)
def _transposed(func: Any, args: Args, kwargs: Options) -> Any:
    return linear(func, args[:1], {})


@rule(Tensor.real.__get__)  # type: ignore[attr-defined]
def _real(func: Any, args: Args, kwargs: Options) -> Any:
    return args[0]
