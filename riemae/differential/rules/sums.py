"""Functions that are linear in several tensors together: sums, ``cat``, ``where``, broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from riemae.differential.jets import (
    Jet,
    Pieces,
    Rule,
    composition,
    has_jets,
    plain,
    rule,
    viewed,
)
from riemae.differential.placement import joined, of_all, on_the_right
from riemae.differential.rules.generic import argument, generic
from riemae.differential.spellings import spellings
from riemae.differential.tangents import (
    Link,
    Tangents,
    bend_of,
    common_root,
    plus,
    slope_of,
)
from riemae.differential.tape import Tape

Args = tuple[Any, ...]
Options = dict[str, Any]


def _sum(signs: tuple[int, int]) -> Rule:
    """``± a ± b``."""

    def apply(func: Any, args: Args, kwargs: Options) -> Any:
        if len(args) != 2 or set(kwargs) - {"alpha"}:
            return generic(func, args, kwargs)
        if kwargs:
            args = _scaled(args, signs, kwargs["alpha"])
        a, b = args
        y = func(plain(a), plain(b))
        jets = [x for x in args if isinstance(x, Jet)]
        ahead = of_all(jets, y)
        chained = _chained(args, signs, jets, y)
        if chained is not None:
            return Jet.carrying(y, chained, jets[0].tape, ahead)
        parts = []
        for x, sign in zip(args, signs, strict=True):
            if isinstance(x, Jet):
                parts.append(_spread(x, y, sign))
        whole = parts[0]
        if len(parts) > 1:
            whole = _added(*parts)
        return Jet(y, *whole, ahead)

    return apply


Spread = tuple[Tensor, Tensor | None, Tape]


def _added(one: Spread, other: Spread) -> Spread:
    """The derivatives of a sum, from those of its summands."""
    first, second, tape = one
    other_first, other_second, _ = other
    with tape.tangents():
        both = first + other_first
        bent = plus(second, other_second)
    return both, bent, tape


def _scaled(args: Args, signs: tuple[int, int], alpha: float) -> Args:
    """The summands, ``alpha`` times the one that it belongs to: the first of ``rsub``."""
    place = 0 if signs[0] < 0 else 1
    x = args[place]
    if isinstance(x, Jet):
        y = x.value * alpha
        x = x.stacked(y, lambda part: part * alpha, x.ahead)
    else:
        x = x * alpha
    if place == 0:
        return x, args[1]
    return args[0], x


rule(*spellings("add __add__ __radd__"))(_sum((1, 1)))
rule(*spellings("sub subtract __sub__"))(_sum((1, -1)))
rule(*spellings("rsub __rsub__"))(_sum((-1, 1)))


def _chained(args: Args, signs: tuple[int, int], jets: list[Jet], y: Tensor) -> Tangents | None:
    """The tangents of the sum where they need not be found yet; None elsewhere."""
    if any(jet.shape != y.shape for jet in jets):
        return None
    tape = jets[0].tape
    if len(jets) == 1:
        tangents = jets[0].tangents
        place = 0 if args[0] is jets[0] else 1
        if signs[place] > 0:
            return tangents
        if tangents.link is None:
            return None
        return tangents.link.mapped(torch.neg)
    left, right = (jet.tangents for jet in jets)
    root = common_root(left, right)
    if root is None:
        return None
    with tape.tangents():
        if signs[0] < 0:
            left = _negated(left, y, tape)
        if signs[1] < 0:
            right = _negated(right, y, tape)
        slope = slope_of(left, y) + slope_of(right, y)
        bend = plus(bend_of(left), bend_of(right))
        return Link(root, slope, bend, tape).tangents()


def _negated(x: Tangents, y: Tensor, tape: Tape) -> Tangents:
    link = x.link
    if link is None:
        link = Link(x, torch.ones_like(y), None, tape)
    return link.mapped(torch.neg)


def _spread(jet: Jet, y: Tensor, sign: int) -> Spread:
    """The derivatives of a summand, broadcast to the sum."""
    with jet.tape.tangents():
        first = _spread_part(jet, jet.first, y, sign)
        second = None
        if jet.second is not None:
            second = _spread_part(jet, jet.second, y, sign)
    return first, second, jet.tape


def _spread_part(jet: Jet, part: Tensor, y: Tensor, sign: int) -> Tensor:
    if jet.shape != y.shape:
        missing = (1,) * (y.ndim - jet.ndim)
        aligned = part.reshape(len(part), *missing, *jet.shape)
        part = aligned.expand(-1, *y.shape)
    return part if sign > 0 else -part


@rule(torch.broadcast_tensors)
def _broadcast(func: Any, args: Args, kwargs: Options) -> Any:
    if not all(isinstance(x, Tensor) for x in args):
        return generic(func, args, kwargs)
    out = []
    values = func(*plain(args))
    for x, y in zip(args, values, strict=True):
        if isinstance(x, Jet):
            spread = Jet(y, *_spread(x, y, 1), on_the_right(x, y))
            out.append(viewed((x,), spread))
        else:
            out.append(y)
    return tuple(out)


@rule(torch.where)
def _where(func: Any, args: Args, kwargs: Options) -> Any:
    """``where`` with a condition that has no derivatives: linear in the two others together."""
    if kwargs or len(args) != 3 or isinstance(args[0], Jet):
        return generic(func, args, kwargs)
    condition, *choices = args
    y = func(condition, *plain(choices))
    if any(isinstance(x, Jet) and x.value.dtype != y.dtype for x in choices):
        return generic(func, args, kwargs)
    jets = [x for x in choices if isinstance(x, Jet)]
    parts: list[Any] = []
    for x in choices:
        if isinstance(x, Jet):
            parts.append(_spread(x, y, 1))
        else:
            parts.append((0.0, None, None))
    tape = jets[0].tape
    with tape.tangents():
        firsts = [part[0] for part in parts]
        first = func(condition, *firsts)
        seconds = [part[1] for part in parts]
        second = None
        if any(x is not None for x in seconds):
            filled = [0.0 if x is None else x for x in seconds]
            second = func(condition, *filled)
    return Jet(y, first, second, tape, of_all(jets, y))


@composition(Tensor.where)
def _where_method(func: Any, x: Any, condition: Any, other: Any) -> Any:
    return torch.where(condition, x, other)


def _joined(func: Any, args: Args, kwargs: Options, with_axis: bool) -> Any:
    """``cat`` and functions like it, linear in all members of a sequence together.

    ``with_axis``: whether the next argument is an axis of the result.
    """
    members, *rest = args
    if has_jets((rest, kwargs)):
        return generic(func, args, kwargs)
    jets = [x for x in members if isinstance(x, Jet)]
    y = func(plain(members), *rest, **kwargs)
    axis = argument(rest, 0, kwargs, "dim", 0)
    # With the axis of the derivatives in front, others are one further behind. (Members of another
    # rank are empty: cat ignores them.)
    ranks = {x.ndim for x in members}
    alike = with_axis and type(axis) is int and len(ranks) == 1

    def join(columns: Sequence[Tensor]) -> Tensor:
        if alike:
            return func(columns, axis + (axis >= 0))
        return vmap(lambda *parts: func(parts, *rest, **kwargs))(*columns)

    tape = jets[0].tape
    # As they are now: a jet may be written to before anybody asks.
    carried = [x.tangents if isinstance(x, Jet) else None for x in members]
    values = [plain(x) for x in members]
    along = axis % y.ndim if alike else None
    stacked = along is None or y.ndim > members[0].ndim
    parts = (values, carried) if stacked else _parted(members, axis % y.ndim - y.ndim)

    def found() -> tuple[Tensor, Tensor | None]:
        with tape.tangents():
            return _joined_parts(join, *parts)

    ahead = joined(jets, len(members), y, along)
    if along is None or stacked:
        return Jet(y, *found(), tape, ahead)
    tangents = Tangents(found)
    if len(members) == 1:
        tangents = jets[0].tangents
    out = Jet.carrying(y, tangents, tape, ahead)
    lengths = tuple(x.shape[along] for x in values)
    out.pieces = Pieces(along - y.ndim, lengths, tuple(carried))
    if len(members) == 1 and jets[0].pieces is not None:
        out.pieces = jets[0].pieces
    return out


def _parted(members: Sequence[Any], axis: int) -> tuple[list[Tensor], list[Tangents | None]]:
    """Values and tangents of members; of those joined along this axis before, of their pieces.

    Then no derivative is copied twice.
    """
    values: list[Tensor] = []
    carried: list[Tangents | None] = []
    for x in members:
        pieces = x.pieces if isinstance(x, Jet) else None
        if pieces is not None and pieces.axis == axis:
            values.extend(x.value.split(pieces.lengths, axis))
            carried.extend(pieces.tangents)
        else:
            values.append(plain(x))
            carried.append(x.tangents if isinstance(x, Jet) else None)
    return values, carried


def _joined_parts(
    join: Callable[[Sequence[Tensor]], Tensor],
    values: Sequence[Tensor],
    carried: Sequence[Tangents | None],
) -> tuple[Tensor, Tensor | None]:
    """The derivatives of what is joined; ``carried`` is None for constants."""
    firsts: list[Tensor | None] = []
    seconds: list[Tensor | None] = []
    for tangents in carried:
        firsts.append(None if tangents is None else tangents.first)
        seconds.append(None if tangents is None else tangents.second)
    first = join(_columns(values, firsts))
    if all(part is None for part in seconds):
        return first, None
    second = join(_columns(values, seconds))
    return first, second


def _columns(members: Sequence[Tensor], parts: Sequence[Tensor | None]) -> list[Tensor]:
    """Derivatives of all members of a sequence; zeros for constants."""
    count = next(len(part) for part in parts if part is not None)
    full = []
    for x, part in zip(members, parts, strict=True):
        column = part
        if column is None:
            column = x.new_zeros(count, *x.shape)
        full.append(column)
    return full


@rule(*spellings("cat concat concatenate stack"))
def _joined_along_an_axis(func: Any, args: Args, kwargs: Options) -> Any:
    return _joined(func, args, kwargs, with_axis=True)


@rule(*spellings("hstack vstack dstack column_stack"))
def _joined_otherwise(func: Any, args: Args, kwargs: Options) -> Any:
    return _joined(func, args, kwargs, with_axis=False)
