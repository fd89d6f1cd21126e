"""Functions of single numbers, by their first and second derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from riemae.differential import activations
from riemae.differential.activations import Activation, Known
from riemae.differential.jets import Jet, has_jets, rule
from riemae.differential.rules.generic import generic
from riemae.differential.spellings import spellings
from riemae.differential.tangents import root_of
from riemae.differential.tape import Tape
from riemae.numerics.threads import jvp

# (input, output, order, *constants) -> ``op′`` and ``op″``, as far as the order asks for them.
Derivatives = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Elementwise:
    """The rule of functions of single numbers, with any constants that they take.

    Attributes:
        derivatives: Their closed form; None for forward mode.
        bends: Whether the second derivative may differ from 0.
        known: What makes the function one operation that can be differentiated again.
        takes: From the further arguments of the function to the constants of the closed form; to
            None for those that it does not cover, which forward mode takes. None for functions
            without such arguments.
    """

    derivatives: Derivatives | None = None
    bends: bool = True
    known: Known | None = None
    takes: Callable[..., tuple[Any, ...] | None] | None = None

    def constants(self, rest: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        """The constants of the closed form; None where there is none."""
        if self.derivatives is None:
            return None
        if self.takes is not None:
            return self.takes(*rest, **kwargs)
        return None if rest or kwargs else ()

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The jet of the result."""
        jet, *rest = args
        if not isinstance(jet, Jet) or has_jets((rest, kwargs)):
            return generic(func, args, kwargs)
        alone = not rest and not kwargs
        if alone and self.known is not None and _as_one_operation(jet):
            return _one_operation(self.known, func, jet)
        y = func(jet.value, *rest, **kwargs)
        if y.shape != jet.shape:  # constants that broadcast
            return generic(func, args, kwargs)
        tape = jet.tape
        with tape.tangents():
            x = tape.frozen(jet.value)
            out = tape.frozen(y)
            constants = self.constants(rest, kwargs)
            if constants is None or self.derivatives is None:
                op = lambda x: func(x, *rest, **kwargs)  # noqa: E731 (one expression)
                slope, bend = _by_forward_mode(op, x, tape, self.bends)
            elif self.known is not None and _one_plain_tangent(jet):
                return Jet(y, self.known.tangent(jet.first, x, out), None, tape, jet.ahead)
            else:
                order = 1 if tape.pairs is None else 2
                slope, bend = self.derivatives(x, out, order, *constants)
        return jet.chain(y, slope, bend)


Numberwise = Callable[[Tensor], Tensor]


def of_single_numbers(
    derivatives: Derivatives | None = None,
) -> Callable[[Numberwise], Numberwise]:
    """A decorator for smooth functions of one tensor, number by number, of several torch functions.

    In Taylor mode they count as one function, whose slope meets the tangents once; in reverse mode
    too, where its closed form is known.

    Args:
        derivatives: Their closed form, in functions that torch differentiates further; by default
            by forward mode through the values.
    """
    as_one = Elementwise(derivatives)

    def decorated(f: Numberwise) -> Numberwise:
        def of_value(x: Tensor) -> Tensor:
            if derivatives is not None and x.requires_grad and activations.usable(x):
                return _ByClosedForm.apply(f, derivatives, x)
            return f(x)

        @wraps(f)
        def applied(x: Tensor) -> Tensor:
            if not isinstance(x, Jet):
                return of_value(x)
            with torch._C.DisableTorchFunctionSubclass():
                return as_one(of_value, (x,), {})

        return applied

    return decorated


class _ByClosedForm(torch.autograd.Function):
    """A function of single numbers whose backward pass is one product with its slope."""

    @staticmethod
    def forward(ctx: Any, f: Numberwise, derivatives: Derivatives, x: Tensor) -> Tensor:
        y = f(x.detach())
        ctx.derivatives = derivatives
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        """The gradient of the input."""
        (grad,) = grads
        x, y = ctx.saved_tensors
        slope, _ = ctx.derivatives(x, y, 1)
        return None, None, grad * slope


def _as_one_operation(jet: Jet) -> bool:
    """Whether the result is differentiated again, by torch.autograd alone."""
    tape = jet.tape
    return (
        tape.create_graph
        and tape.recorded is None
        and activations.usable(jet.value, jet.first, jet.second)
    )


def _one_operation(known: Known, func: Any, jet: Jet) -> Jet:
    pairs = jet.tape.pairs
    listed = None
    if pairs is not None:
        listed = list(zip(pairs.i, pairs.j, strict=True))
    parts = Activation.apply(known, func, listed, jet.value, jet.first, jet.second)
    y = parts[0]
    first = parts[1]
    second = None if pairs is None else parts[2]
    return Jet(y, first, second, jet.tape, jet.ahead)


def _one_plain_tangent(jet: Jet) -> bool:
    """Whether torch's kernel for the backward pass gives all that is wanted."""
    if jet.tape.pairs is not None or jet.tape.create_graph:
        return False
    return len(root_of(jet.tangents).first) == 1  # what the chain ends with stays unasked


def _by_forward_mode(
    f: Callable[[Tensor], Tensor], x: Tensor, tape: Tape, bends: bool
) -> tuple[Tensor, Tensor | None]:
    """``f′`` and ``f″``."""
    ones = torch.ones_like(x)

    def slope(x: Tensor) -> Tensor:
        return jvp(f, (x,), (ones,))[1]

    if tape.pairs is None or not bends:
        return slope(x), None
    # Without gradient mode some kernels (SiLU, Mish) record a backward that has no derivative of
    # its own.
    with torch.enable_grad():
        first, second = jvp(slope, (x,), (ones,))
    return tape.frozen(first), tape.frozen(second)


# Closed forms.


def _silu(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
    return activations.silu(x, order)[:2]


def _tanh(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
    return activations.tanh(y, order)[:2]


def _sigmoid(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
    return activations.sigmoid(y, order)[:2]


def _sin(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    return x.cos(), -y


def _cos(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    return -x.sin(), -y


def _exp(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    return y, y


def _square(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    return 2 * x, torch.full_like(x, 2.0)


def _reciprocal(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    square = y * y
    return -square, 2 * square * y


def _sqrt(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    slope = 0.5 / y
    return slope, -slope * slope / y


def _rsqrt(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    cube = y * y * y
    return -0.5 * cube, 0.75 * cube * y * y


def _log(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor]:
    slope = x.reciprocal()
    return slope, -slope * slope


def _relu(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, None]:
    return (x > 0).to(x), None


def _softplus(
    x: Tensor, y: Tensor, order: int, beta: float, threshold: float
) -> tuple[Tensor, Tensor | None]:
    scaled = beta * x
    linear = scaled > threshold  # there torch takes x itself
    s = scaled.sigmoid()
    slope = s.masked_fill(linear, 1.0)
    if order < 2:
        return slope, None
    return slope, (beta * (s - s * s)).masked_fill(linear, 0.0)


def _softplus_takes(beta: float = 1.0, threshold: float = 20.0) -> tuple[float, float]:
    return beta, threshold


def _gelu(x: Tensor, y: Tensor, order: int) -> tuple[Tensor, Tensor | None]:
    square = x * x
    density = (-0.5 * square).exp() / math.sqrt(2 * math.pi)
    slope = 0.5 + 0.5 * (x * math.sqrt(0.5)).erf() + x * density
    if order < 2:
        return slope, None
    return slope, density * (2 - square)


def _gelu_takes(approximate: str = "none") -> tuple[()] | None:
    return () if approximate == "none" else None


def _elu(x: Tensor, y: Tensor, order: int, alpha: float) -> tuple[Tensor, Tensor | None]:
    positive = x > 0
    falling = alpha * x.clamp(max=0).exp()
    slope = falling.masked_fill(positive, 1.0)
    if order < 2:
        return slope, None
    return slope, falling.masked_fill(positive, 0.0)


def _elu_takes(
    alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> tuple[float] | None:
    return (alpha,) if scale == 1 and input_scale == 1 else None


# The table.

SMOOTH = Elementwise()
PIECEWISE_LINEAR = Elementwise(bends=False)
CLOSED = {
    "silu": Elementwise(_silu, known=activations.KNOWN["silu"]),
    "tanh": Elementwise(_tanh, known=activations.KNOWN["tanh"]),
    "sigmoid": Elementwise(_sigmoid, known=activations.KNOWN["sigmoid"]),
    "sin": Elementwise(_sin),
    "cos": Elementwise(_cos),
    "exp": Elementwise(_exp),
    "square": Elementwise(_square),
    "reciprocal": Elementwise(_reciprocal),
    "sqrt": Elementwise(_sqrt),
    "rsqrt": Elementwise(_rsqrt),
    "log": Elementwise(_log),
    "relu": Elementwise(_relu, bends=False),
    "softplus": Elementwise(_softplus, takes=_softplus_takes),
    "gelu": Elementwise(_gelu, takes=_gelu_takes),
    "elu": Elementwise(_elu, takes=_elu_takes),
}
SMOOTH_NAMES = """
    pow __pow__ __rpow__ float_power log2 log10 log1p exp2 expm1 tan
    asin acos atan arcsin arccos arctan sinh cosh asinh acosh atanh arcsinh arccosh arctanh
    erf erfc erfinv logit lgamma digamma selu celu mish log_sigmoid logsigmoid
    softsign tanhshrink hardswish xlogy sinc i0 deg2rad rad2deg"""
PIECEWISE_LINEAR_NAMES = """
    relu6 leaky_relu hardtanh threshold abs absolute __abs__ clamp clamp_min clamp_max clip floor
    ceil round trunc fix frac sign sgn copysign fmod remainder __mod__ nan_to_num hardshrink
    softshrink prelu"""
SPECIAL_NAMES = """
    digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammaln i0 i0e i1 i1e log1p log_ndtr logit
    ndtr ndtri psi sinc xlog1py xlogy"""

rule(*spellings(SMOOTH_NAMES))(SMOOTH)
rule(*spellings(SPECIAL_NAMES, owners=(torch.special,)))(SMOOTH)
rule(*spellings(PIECEWISE_LINEAR_NAMES))(PIECEWISE_LINEAR)
for _name, _rule in CLOSED.items():
    rule(*spellings(_name))(_rule)
