"""Functions that are linear in several tensors together: sums, ``cat``, ``where``, broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from riemae.differential.jets import Jet, Rule, has_jets, plain, rule, viewed
from riemae.differential.rules.generic import generic, plus
from riemae.differential.spellings import spellings
from riemae.differential.tape import Tape

Args = tuple[Any, ...]
Options = dict[str, Any]


def _sum(signs: tuple[int, int]) -> Rule:
    """``± a ± b``."""

    def apply(func: Any, args: Args, kwargs: Options) -> Any:
        if kwargs or len(args) != 2:
            return generic(func, args, kwargs)
        a, b = args
        y = func(plain(a), plain(b))
        parts = []
        for x, sign in zip(args, signs, strict=True):
            if isinstance(x, Jet):
                parts.append(_spread(x, y, sign))
        if len(parts) == 1:
            return Jet(y, *parts[0])
        (first, second, tape), (other_first, other_second, _) = parts
        with tape.tangents():
            return Jet(y, first + other_first, plus(second, other_second), tape)

    return apply


rule(*spellings("add __add__ __radd__"))(_sum((1, 1)))
rule(*spellings("sub subtract __sub__"))(_sum((1, -1)))
rule(*spellings("rsub __rsub__"))(_sum((-1, 1)))


def _spread(jet: Jet, y: Tensor, sign: int) -> tuple[Tensor, Tensor | None, Tape]:
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
        part = part.reshape(len(part), *missing, *jet.shape)
        part = part.expand(-1, *y.shape)
    return part if sign > 0 else -part


@rule(torch.broadcast_tensors)
def _broadcast(func: Any, args: Args, kwargs: Options) -> Any:
    if not all(isinstance(x, Tensor) for x in args):
        return generic(func, args, kwargs)
    out = []
    values = func(*plain(args))
    for x, y in zip(args, values, strict=True):
        if isinstance(x, Jet):
            jet = Jet(y, *_spread(x, y, 1))
            out.append(viewed((x,), jet))
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
    jets = [x for x in choices if isinstance(x, Jet)]
    if any(x.value.dtype != y.dtype for x in jets):
        return generic(func, args, kwargs)
    firsts: list[Any] = []
    seconds: list[Any] = []
    for x in choices:
        if isinstance(x, Jet):
            first, second, _ = _spread(x, y, 1)
            firsts.append(first)
            seconds.append(0.0 if second is None else second)
        else:
            firsts.append(0.0)
            seconds.append(0.0)
    tape = jets[0].tape
    with tape.tangents():
        first = func(condition, *firsts)
        second = None
        if any(isinstance(x, Tensor) for x in seconds):
            second = func(condition, *seconds)
    return Jet(y, first, second, tape)


def _joined(func: Any, args: Args, kwargs: Options, with_axis: bool) -> Any:
    """``cat`` and functions like it, linear in all members of a sequence together.

    ``with_axis``: whether the next argument is an axis of the result.
    """
    members, *rest = args
    if has_jets((rest, kwargs)):
        return generic(func, args, kwargs)
    jets = [x for x in members if isinstance(x, Jet)]
    y = func(plain(members), *rest, **kwargs)
    axis = rest[0] if rest else kwargs.get("dim", 0)
    # With the axis of the derivatives in front, others are one further behind. (Members of another
    # rank are empty: cat ignores them.)
    ranks = {x.ndim for x in members}
    alike = with_axis and type(axis) is int and len(ranks) == 1

    def joined(*parts: Tensor) -> Tensor:
        return func(parts, *rest, **kwargs)

    def join(columns: Sequence[Tensor]) -> Tensor:
        if alike:
            return func(columns, axis + (axis >= 0))
        return vmap(joined)(*columns)

    tape = jets[0].tape
    with tape.tangents():
        count = len(jets[0].first)
        first = join(_columns(members, count, lambda x: x.first))
        seconds = [x.second for x in jets if x.second is not None]
        second = None
        if seconds:
            count = len(seconds[0])
            second = join(_columns(members, count, lambda x: x.second))
    return Jet(y, first, second, tape)


def _columns(
    members: Sequence[Tensor], count: int, part: Callable[[Jet], Tensor | None]
) -> list[Tensor]:
    """Derivatives of all members of a sequence; zeros for constants."""
    full = []
    for x in members:
        column = part(x) if isinstance(x, Jet) else None
        if column is None:
            column = plain(x).new_zeros(count, *x.shape)
        full.append(column)
    return full


@rule(*spellings("cat concat concatenate stack"))
def _joined_along_an_axis(func: Any, args: Args, kwargs: Options) -> Any:
    return _joined(func, args, kwargs, with_axis=True)


@rule(*spellings("hstack vstack dstack column_stack"))
def _joined_otherwise(func: Any, args: Args, kwargs: Options) -> Any:
    return _joined(func, args, kwargs, with_axis=False)
