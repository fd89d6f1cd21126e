"""Products and quotients, and layers: linear in each of their tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from riemae.differential.jets import Jet, has_jets, rule
from riemae.differential.rules.elementwise import SMOOTH
from riemae.differential.rules.generic import add_bend, generic, plus
from riemae.differential.rules.structural import linear
from riemae.differential.spellings import spellings

Args = tuple[Any, ...]
Options = dict[str, Any]


# Layers (input, weight, bias, …), with a constant weight: linear except for the bias.


@rule(*spellings("linear"))
def _linear_layer(func: Any, args: Args, kwargs: Options) -> Any:
    jet, weight, *rest = args
    if not isinstance(jet, Jet) or has_jets((weight, rest, kwargs)):
        return generic(func, args, kwargs)
    y = func(jet.value, weight, *rest, **kwargs)

    def without_bias(x: Tensor) -> Tensor:  # takes any number of leading axes
        return func(x, weight)

    return jet.stacked(y, without_bias)


@rule(*spellings("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"))
def _convolution(func: Any, args: Args, kwargs: Options) -> Any:
    jet, weight, *rest = args
    if not isinstance(jet, Jet) or has_jets((weight, rest, kwargs)):
        return generic(func, args, kwargs)
    y = func(jet.value, weight, *rest, **kwargs)
    others = [None, *rest[1:]] if rest else []
    options = {name: value for name, value in kwargs.items() if name != "bias"}

    def without_bias(x: Tensor) -> Tensor:
        return func(x, weight, *others, **options)

    return jet.mapped(y, without_bias)


# Products of two tensors.


@rule(*spellings("mul multiply __mul__ __rmul__"))
def product(func: Any, args: Args, kwargs: Options) -> Any:
    """Products of single numbers, which broadcast."""
    return _product(func, args, kwargs, elementwise=True)


@rule(*spellings("matmul __matmul__ mm bmm dot mv outer inner kron"))
def _matrix_product(func: Any, args: Args, kwargs: Options) -> Any:
    return _product(func, args, kwargs, elementwise=False)


def _product(func: Any, args: Args, kwargs: Options, elementwise: bool) -> Any:
    if kwargs or len(args) != 2:
        return generic(func, args, kwargs)
    a, b = args
    if isinstance(a, Jet) and isinstance(b, Jet):
        return _bilinear(func, a, b, elementwise)

    def op(x: Tensor) -> Tensor:
        if isinstance(a, Jet):
            return func(x, b)
        return func(a, x)

    jet = a if isinstance(a, Jet) else b
    y = op(jet.value)
    if elementwise and jet.shape == y.shape:  # broadcasting takes care of the axis in front
        return jet.stacked(y, op)
    return jet.mapped(y, op)


def _bilinear(func: Any, a: Jet, b: Jet, elementwise: bool) -> Jet:
    if elementwise and a.ndim == b.ndim:  # broadcasting takes care of the axis in front
        left = right = both = func
    else:
        left = vmap(func, (0, None))
        right = vmap(func, (None, 0))
        both = vmap(func)
    tape = a.tape
    y = func(a.value, b.value)
    with tape.tangents():
        a_value = tape.frozen(a.value)
        b_value = tape.frozen(b.value)
        first = left(a.first, b_value) + right(a_value, b.first)
        by_a = None if a.second is None else left(a.second, b_value)
        by_b = None if b.second is None else right(a_value, b.second)
        second = plus(by_a, by_b)
        if tape.pairs is not None:
            i = tape.pairs.i
            j = tape.pairs.j
            straight = both(a.first[i], b.first[j])
            crossed = both(a.first[j], b.first[i])
            quadratic = straight + crossed
            second = add_bend(tape, y, quadratic, second, len(first))
    return Jet(y, first, second, tape)


# Quotients.


@rule(*spellings("div divide true_divide __truediv__ __div__"))
def _quotient(func: Any, args: Args, kwargs: Options) -> Any:
    """``a / b``."""
    if kwargs or len(args) != 2:
        return generic(func, args, kwargs)
    over, under = args
    if isinstance(under, Jet):
        return _times_reciprocal(over, under)

    def divided(x: Tensor) -> Tensor:
        return func(x, under)

    y = divided(over.value)
    if y.shape == over.shape:  # broadcasting takes care of the axis in front
        return over.stacked(y, divided)
    return linear(func, args, kwargs)


@rule(*spellings("__rdiv__ __rtruediv__"))
def _reversed_quotient(func: Any, args: Args, kwargs: Options) -> Any:
    """``b / a``."""
    if kwargs or len(args) != 2 or not isinstance(args[0], Jet):
        return generic(func, args, kwargs)
    return _times_reciprocal(args[1], args[0])


def _times_reciprocal(over: Any, under: Jet) -> Any:
    inverse = SMOOTH(torch.reciprocal, (under,), {})
    return product(torch.mul, (inverse, over), {})
