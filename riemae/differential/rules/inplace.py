"""Functions that write in place: ``x.op_()`` is ``x = x.op()``, unless other jets share the memory.

So is ``x[place] = value``.

A function that cannot be carried this way is refused, since its result would be silently wrong.
So is every function whose name ends in ``_`` and that is not in the table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae.differential.jets import (
    Jet,
    Rule,
    composition,
    has_jets,
    name_of,
    plain,
    refused,
    rule,
    taken_over,
    written,
)
from riemae.differential.spellings import spellings

Args = tuple[Any, ...]
Options = dict[str, Any]

# The operators x += y and its like reach a jet under the names add_ and its like.
OPERATORS = {
    "add_": "__iadd__",
    "sub_": "__isub__",
    "mul_": "__imul__",
    "div_": "__itruediv__ __idiv__",
    "pow_": "__ipow__",
}
WRITING = """
    add_ sub_ mul_ div_ pow_ neg_ abs_ clamp_ clamp_min_ clamp_max_ relu_ tanh_ sigmoid_ exp_ expm1_
    log_ log1p_ sin_ cos_ square_ sqrt_ rsqrt_ reciprocal_ erf_ erfc_ atan_ sinh_ cosh_ asinh_ tan_
    exp2_ log2_ log10_ masked_fill_ index_add_ index_copy_ index_fill_ scatter_ scatter_add_
    cumsum_ hypot_ atan2_"""
# Those that consist of other functions without writing, too.
COMPOSED = "addcmul_ addcdiv_ lerp_ addmm_ baddbmm_ cumprod_"
TURNING = "unsqueeze_ squeeze_ transpose_ t_ swapaxes_ swapdims_"
REFUSED = """
    detach data_ptr numpy __array__ as_strided __imod__ __ifloordiv__ __imatmul__
    __iand__ __ior__ __ixor__ __ilshift__ __irshift__"""


def _in_place(function: Any) -> Rule:
    """Writes the result of ``function``."""

    def apply(func: Any, args: Args, kwargs: Options) -> Any:
        if not isinstance(args[0], Jet):
            raise NotImplementedError(
                f"{name_of(func)} writes a point's derivatives into a constant"
            )
        return written(func, args[0], Jet.__torch_function__(function, (), args, kwargs))

    return apply


def _composed_in_place(function: Any) -> Callable[..., Any]:
    """Writes the result of ``function``, a composition."""

    def apply(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return written(function, x, function(x, *args, **kwargs))

    return apply


def _turned_in_place(function: Any) -> Rule:
    """``x.transpose_()`` and its like: another shape, the same memory."""

    def apply(func: Any, args: Args, kwargs: Options) -> Any:
        taken_over(args[0], Jet.__torch_function__(function, (), args, kwargs))
        return args[0]

    return apply


@rule(Tensor.__setitem__)
def _assigned(func: Any, args: Args, kwargs: Options) -> Any:
    """``x[place] = value``, with zeros for the derivatives of constants."""
    target, place, value = args
    if not isinstance(target, Jet) or has_jets(place):
        raise NotImplementedError(f"{name_of(func)} does not support Taylor mode")
    y = _replaced(target.value, place, plain(value))
    tape = target.tape
    with tape.tangents():
        first = _each_replaced(target.first, place, value, value_part=_first)
        second = None
        known = next((x.second for x in (target, value) if _bends(x)), None)
        if known is not None:
            own = torch.zeros(()) if target.second is None else target.second
            own = own.to(known).expand(len(known), *target.shape)
            second = _each_replaced(own, place, value, value_part=_second)
    return written(func, target, Jet(y, first, second, tape, target.ahead))


def _bends(x: Any) -> bool:
    return isinstance(x, Jet) and x.second is not None


def _first(x: Jet) -> Tensor | None:
    return x.first


def _second(x: Jet) -> Tensor | None:
    return x.second


def _each_replaced(
    parts: Tensor, place: Any, value: Any, value_part: Callable[[Jet], Tensor | None]
) -> Tensor:
    """All derivatives of the target, with those of the value in their place.

    One after the other: an axis in front changes what several lists of places mean.
    """
    sources = value_part(value) if isinstance(value, Jet) else None
    rows = []
    for number, part in enumerate(parts):
        source = 0.0 if sources is None else sources[number]
        rows.append(_replaced(part, place, source))
    return torch.stack(rows)


def _replaced(x: Tensor, place: Any, value: Any) -> Tensor:
    y = x.clone()
    y[place] = value
    return y


for _name in WRITING.split():
    rule(*spellings(_name, OPERATORS.get(_name, "")))(_in_place(getattr(Tensor, _name[:-1])))
for _name in COMPOSED.split():
    composition(*spellings(_name))(_composed_in_place(getattr(Tensor, _name[:-1])))
for _name in TURNING.split():
    rule(*spellings(_name))(_turned_in_place(getattr(Tensor, _name[:-1])))
rule(*spellings(REFUSED))(refused)
