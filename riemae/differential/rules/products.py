"""Products and quotients, and layers: linear in each of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from riemae.differential.jets import Jet, has_jets, rule
from riemae.differential.placement import of_all, on_the_right, placed
from riemae.differential.rules.elementwise import CLOSED
from riemae.differential.rules.generic import add_bend, generic
from riemae.differential.rules.structural import linear
from riemae.differential.spellings import spellings
from riemae.differential.tangents import Link, bend_of, common_root, plus, slope_of
from riemae.differential.tape import BilinearBend, ElementwiseBend

Args = tuple[Any, ...]
Options = dict[str, Any]


# A layer (input, weight, bias) with a constant weight: linear except for the bias.


@rule(*spellings("linear"))
def _linear_layer(func: Any, args: Args, kwargs: Options) -> Any:
    jet, weight, *rest = args
    if not isinstance(jet, Jet) or has_jets((weight, rest, kwargs)):
        return generic(func, args, kwargs)
    y = func(jet.value, weight, *rest, **kwargs)
    ahead = on_the_right(jet, y)

    def without_bias(x: Tensor) -> Tensor:  # it takes any number of leading axes
        return func(x, weight)

    return jet.stacked(y, without_bias, ahead)


# Products of two tensors.


# Where a number of Python's has the bits of a tensor of one number.
_EXACT = (torch.float32, torch.float64)
ELEMENTWISE = tuple(spellings("mul multiply __mul__ __rmul__"))
MATRICES = tuple(spellings("matmul __matmul__ mm bmm"))


@rule(*ELEMENTWISE)
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
    jet_first = isinstance(a, Jet)
    if jet_first and isinstance(b, Jet):
        return _bilinear(func, a, b, elementwise)

    def op(x: Tensor) -> Tensor:
        return func(x, b) if jet_first else func(a, x)

    jet, constant = (a, b) if jet_first else (b, a)
    y = op(jet.value)
    ahead = on_the_right(jet, y)
    link = _link(jet, constant, y)
    if _broadcasts(func, jet, constant):
        if jet_first:
            return jet.stacked(y, lambda x: torch.matmul(x, b), ahead)
        return jet.stacked(y, lambda x: torch.matmul(a, x), ahead)
    if not elementwise or jet.shape != y.shape:
        return jet.mapped(y, op, ahead)
    if link is None:  # broadcasting takes care of the axis in front
        return jet.stacked(y, op, ahead)
    multiplied = link.mapped(op)
    return Jet.carrying(y, multiplied, jet.tape, jet.ahead)


def _broadcasts(func: Any, jet: Jet, other: Any) -> bool:
    """Whether a product of matrices takes an axis in front of the jet's as one more batch axis."""
    return func in MATRICES and isinstance(other, Tensor) and jet.ndim >= max(2, other.ndim)


def _link(jet: Jet, constant: Any, y: Tensor) -> Link | None:
    """The chain that a product with a constant continues; it may begin here, at no cost."""
    link = jet.tangents.link
    if link is None and type(constant) in (int, float) and y.dtype in _EXACT:
        one = jet.value.new_ones(())
        return Link(jet.tangents, one, None, jet.tape)
    return link


def _of_one_root(func: Any, a: Jet, b: Jet) -> Jet | None:
    """The product of two functions of the same numbers; None where they have no root in common."""
    root = common_root(a.tangents, b.tangents)
    if root is None or a.shape != b.shape:
        return None
    tape = a.tape
    y = func(a.value, b.value)
    with tape.tangents():
        x = tape.frozen(a.value)
        z = tape.frozen(b.value)
        left = slope_of(a.tangents, y)
        right = slope_of(b.tangents, y)
        slope = left * z + right * x
        bend = None
        if tape.recorded is not None:
            place = placed(a.ahead)
            recorded = ElementwiseBend(2 * left * right, root.first, tape.batch, place)
            tape.record(y, recorded)
        elif tape.carries_second:
            # Leibniz: what both contribute together, then how each bends by itself.
            inner = [(bend_of(a.tangents), z), (bend_of(b.tangents), x)]
            bends = [own * other for own, other in inner if own is not None]
            bend = sum(bends, 2 * left * right)
        link = Link(root, slope, bend, tape)
        return Jet.carrying(y, link.tangents(), tape, a.ahead)


def _bilinear(func: Any, a: Jet, b: Jet, elementwise: bool) -> Jet:
    together = _of_one_root(func, a, b) if elementwise else None
    if together is not None:
        return together
    if elementwise and a.ndim == b.ndim:  # broadcasting takes care of the axis in front
        left = func
        right = func
        both = func
    elif a.ndim == b.ndim and _broadcasts(func, a, b):
        left = right = both = torch.matmul
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
        # What the factors' own second derivatives add.
        second = None
        if a.second is not None:
            second = left(a.second, b_value)
        if b.second is not None:
            second = plus(second, right(a_value, b.second))
        ahead = of_all((a, b), y)
        transposed = None
        if tape.recorded is not None:
            transposed = _transposed(func, a, b, y)
        if transposed is not None:
            place = placed(b.ahead)
            bend = BilinearBend(transposed, a.first, b.first, tape.batch, place)
            tape.record(y, bend)
        elif tape.pairs is not None:
            i = tape.pairs.i
            j = tape.pairs.j
            quadratic = both(a.first[i], b.first[j]) + both(a.first[j], b.first[i])
            second = add_bend(tape, y, quadratic, second, len(first), ahead)
    return Jet(y, first, second, tape, ahead)


def _transposed(func: Any, a: Jet, b: Jet, y: Tensor) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The transpose in ``b`` of the product, ``(δ, ∂a (k, *s)) -> (k, *t)``.

    None for rare kinds.
    """

    def single_numbers(slope: Tensor, left: Tensor) -> Tensor:
        products = _in_front(left, y.ndim) * slope
        return _summed(products, b.shape)

    def matrices(slope: Tensor, left: Tensor) -> Tensor:
        products = _in_front(left, y.ndim).mT @ slope
        return _summed(products, b.shape)

    if func in ELEMENTWISE:
        return single_numbers
    if func in MATRICES and a.ndim > 1 and b.ndim > 1:
        return matrices
    return None


def _in_front(x: Tensor, ndim: int) -> Tensor:
    """Derivatives ``(k, *s)`` with axes of length 1 behind the first, to ``ndim`` axes more."""
    missing = (1,) * (ndim + 1 - x.ndim)
    return x.reshape(len(x), *missing, *x.shape[1:])


def _summed(x: Tensor, shape: torch.Size) -> Tensor:
    """Derivatives ``(k, *s)`` summed over the axes along which ``shape`` was broadcast."""
    extra = x.ndim - 1 - len(shape)
    if extra:
        leading = tuple(range(1, 1 + extra))
        x = x.sum(leading)
    wide = [i for i, n in enumerate(shape, 1) if n == 1 and x.shape[i] != 1]
    if wide:
        x = x.sum(wide, keepdim=True)
    return x


# Quotients.


@rule(*spellings("div divide true_divide __truediv__ __div__"))
def _quotient(func: Any, args: Args, kwargs: Options) -> Any:
    """``a / b``."""
    if kwargs or len(args) != 2:
        return generic(func, args, kwargs)
    over, under = args
    if isinstance(under, Jet):
        return _times_reciprocal(over, under)

    def divide(x: Tensor) -> Tensor:
        return func(x, under)

    y = divide(over.value)
    if y.shape != over.shape:
        return linear(func, args, kwargs)
    link = _link(over, under, y)
    if link is None:  # broadcasting takes care of the axis in front
        return over.stacked(y, divide, over.ahead)
    divided = link.mapped(divide)
    return Jet.carrying(y, divided, over.tape, over.ahead)


@rule(*spellings("__rdiv__ __rtruediv__"))
def _reversed_quotient(func: Any, args: Args, kwargs: Options) -> Any:
    """``b / a``."""
    if kwargs or len(args) != 2 or not isinstance(args[0], Jet):
        return generic(func, args, kwargs)
    return _times_reciprocal(args[1], args[0])


def _times_reciprocal(over: Any, under: Jet) -> Any:
    inverse = CLOSED["reciprocal"](torch.reciprocal, (under,), {})
    return product(torch.mul, (inverse, over), {})
