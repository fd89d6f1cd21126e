"""Common activations in Taylor mode, each as one operation of torch.autograd.

It keeps only what it cannot compute again. Written as single torch functions, the chain rule
``op′(x) x_i`` and ``op′(x) x_ij + op″(x) x_i x_j`` would keep every factor until the backward pass:
a training step would need twice the memory, and a dozen kernels more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemae.numerics.threads import in_forward_mode

Derivatives = tuple[Tensor, Tensor | None, Tensor | None]


def silu(x: Tensor, order: int) -> Derivatives:
    """From the input."""
    # s′ = t = s(1 − s), t′ = t u with u = 1 − 2s, u′ = −2t
    s = x.sigmoid()
    t = s - s * s
    first = torch.addcmul(s, x, t)
    if order < 2:
        return first, None, None
    u = torch.rsub(s, 1, alpha=2)  # 1 − 2s
    two = x.new_full((), 2.0)
    second = t * torch.addcmul(two, x, u)
    if order < 3:
        return first, second, None
    thrice = 3 * u
    third = t * torch.addcmul(thrice, x, u * u - 2 * t)
    return first, second, third


def tanh(y: Tensor, order: int) -> Derivatives:
    """From the output."""
    first = 1 - y * y
    second = -2 * y * first if order > 1 else None
    third = first * (4 - 6 * first) if order > 2 else None
    return first, second, third


def sigmoid(y: Tensor, order: int) -> Derivatives:
    """From the output."""
    first = y - y * y
    second = first * (1 - 2 * y) if order > 1 else None
    third = first * (1 - 6 * first) if order > 2 else None
    return first, second, third


class _SiluSlope(torch.autograd.Function):
    """``g σ′(x)``, keeping g and x alone.

    torch's own kernel has no derivative, and its formula keeps every factor.
    """

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return torch.ops.aten.silu_backward(g, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grads
        g, x = ctx.saved_tensors
        slope, bend, _ = silu(x, 2)
        assert bend is not None
        by_g = grad * slope
        by_x = grad * g * bend
        return by_g, by_x


@dataclass(frozen=True, eq=False)
class Known:
    """An activation whose derivatives are known in closed form.

    Attributes:
        derivatives: First, second and third derivative up to an order, from the input, or from the
            output.
        of_output: Whether derivatives, and the backward pass, take the output.
        backward: ``(g, input or output) -> g op′``, which can be differentiated again.
        tangent: ``(x_i, input, output) -> op′ x_i`` in one pass, by torch's kernel for the backward
            pass. It pays off for one tangent; several tangents share ``op′``.
    """

    derivatives: Callable[[Tensor, int], Derivatives]
    of_output: bool
    backward: Callable[[Tensor, Tensor], Tensor]
    tangent: Callable[[Tensor, Tensor, Tensor], Tensor]


def _silu_tangent(first: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.silu_backward(first, x)


def _tanh_tangent(first: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward(first, y)


def _sigmoid_tangent(first: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return torch.ops.aten.sigmoid_backward(first, y)


KNOWN = {
    "silu": Known(silu, False, _SiluSlope.apply, _silu_tangent),
    "tanh": Known(tanh, True, torch.ops.aten.tanh_backward, _tanh_tangent),
    "sigmoid": Known(sigmoid, True, torch.ops.aten.sigmoid_backward, _sigmoid_tangent),
}


class Activation(torch.autograd.Function):
    """``y = op(x)``, ``op′ x_i`` and, for pairs, ``op′ x_ij + op″ x_i x_j``.

    The backward pass consists of differentiable operations on what was kept, so it can be
    differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        known: Known,
        op: Callable[[Tensor], Tensor],
        pairs: list[tuple[int, int]] | None,
        x: Tensor,
        first: Tensor,
        second: Tensor | None,
    ) -> tuple[Tensor, ...]:  # (*s,), (k, *s), (p, *s) -> (*s,), (k, *s)[, (p, *s)]
        """Value, tangents and, if there are pairs, second derivatives.

        ``second`` is None where the second derivatives of the input vanish.
        """
        y = op(x)
        base = y if known.of_output else x
        ctx.known = known
        ctx.pairs = pairs
        ctx.save_for_backward(base, first, second)
        ctx.set_materialize_grads(False)
        slope, bend, _ = known.derivatives(base, 1 if pairs is None else 2)
        if bend is None:
            return y, slope * first
        assert pairs is not None
        if second is None:
            out = first.new_empty(len(pairs), *first.shape[1:])
        else:
            out = slope * second
        left = bend * first
        for row, (i, j) in enumerate(pairs):
            if second is None:
                torch.mul(left[i], first[j], out=out[row])
            else:
                out[row].addcmul_(left[i], first[j])
        return y, slope * first, out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of input, tangents and second derivatives."""
        by_value, by_first, by_second = (*grads, None)[:3]
        base, first, second = ctx.saved_tensors
        known: Known = ctx.known
        by_input = None if by_value is None else known.backward(by_value, base)
        if by_first is None and by_second is None:
            return None, None, None, by_input, None, None
        slope, bend, third = known.derivatives(base, 2 if by_second is None else 3)
        assert bend is not None
        tangent = None
        other = None
        along_bend = None
        if by_first is not None:
            along_bend = (by_first * first).sum(0)
            tangent = slope * by_first
        if by_second is not None:
            assert third is not None
            mixed = _mixed(by_second, first, ctx.pairs)
            tangent = _plus(tangent, bend * mixed)
            along_third = (mixed * first).sum(0) / 2
            by_input = _plus(by_input, third * along_third)
            if second is not None:
                other = slope * by_second
                along_second = (by_second * second).sum(0)
                along_bend = _plus(along_bend, along_second)
        if along_bend is not None:
            by_input = _plus(by_input, bend * along_bend)
        return None, None, None, by_input, tangent, other


def _mixed(by_second: Tensor, first: Tensor, pairs: list[tuple[int, int]]) -> Tensor:  # -> (k, *s)
    """The gradient of ``Σ g_ij x_i x_j`` in the ``x_i``."""
    rows: list[Tensor | None] = [None] * len(first)
    for g, (i, j) in zip(by_second, pairs, strict=True):
        for a, b in ((i, j), (j, i)):
            before = rows[a]
            if before is None:
                rows[a] = g * first[b]
            else:
                rows[a] = torch.addcmul(before, g, first[b])
    filled = [torch.zeros_like(first[0]) if row is None else row for row in rows]
    return torch.stack(filled)


def _plus(a: Tensor | None, b: Tensor) -> Tensor:
    if a is None:
        return b
    return a + b


def usable(*tensors: Tensor | None) -> bool:
    """Whether :class:`Activation` may be used for these tensors.

    They must be plain tensors, outside of a caller's transforms and forward mode.
    """
    if not torch.is_grad_enabled():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None or in_forward_mode():
        return False
    return all(x is None or type(x) in (Tensor, torch.nn.Parameter) for x in tensors)
