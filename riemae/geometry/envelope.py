"""Derivatives of geodesic distances: the first by the envelope theorem, and no second in disguise.

A geodesic's length is stationary in its interior: the first derivative of the distance is that of
the length of the frozen curve. A second derivative is not: the curve moves with its ends, which the
frozen one does not know. Asked for it, autograd would return the frozen curve's, and be wrong; here
it raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from riemae.exceptions import DifferentiationError
from riemae.numerics.transforms import transforms

Problem = tuple[str, str, str, str]  # where, what was expected, what came, what to try
Measured = tuple[Tensor, Tensor, Tensor]  # lengths (*b), and their gradients (*b, m) in both ends


class Ruler(NamedTuple):
    """How distances of plain tensors ``(*b, m)`` are found.

    Attributes:
        distance: As torch.autograd differentiates it.
        measure: With its gradients in both ends.
        order: How many transforms around differentiate.
    """

    distance: Callable[[Tensor, Tensor], Tensor]
    measure: Callable[[Tensor, Tensor], Measured]
    order: int


def once_differentiable(value: Tensor, problem: Problem | None = None) -> Tensor:
    """``value``, whose gradient raises :class:`DifferentiationError` when it is differentiated.

    Args:
        value: A tensor with a first derivative.
        problem: What the error says; by default that distances have no second derivative.
    """
    return _Once.apply(value, _SECOND_DERIVATIVE if problem is None else problem)


def transformed_distance(z0: Tensor, z1: Tensor, ruler: Ruler) -> Tensor:
    """Distances inside ``torch.func`` transforms: grad, jvp, vmap, jacrev.

    They are solved on plain tensors, outside of the transforms.

    Raises:
        DifferentiationError: When two transforms differentiate, one inside the other.
    """
    if ruler.order > 1:
        raise DifferentiationError(*_SECOND_DERIVATIVE)
    z0, z1 = torch.broadcast_tensors(z0, z1)
    return _Distance.apply(z0, z1, ruler)[0]


_SECOND_DERIVATIVE: Problem = (
    "Manifold.distance",
    "at most one derivative",
    "a second one",
    "The first comes from the frozen geodesic, which says nothing of the second. Take differences "
    "of gradients, "
    "(∇d(z + h) − ∇d(z − h))/2h with a small rtol, or of Manifold.log: −G(z) log(z, y) is the "
    "derivative of d²/2.",
)


class _Once(Function):
    """The identity, whose gradient passes a gate that depends on all that the value depends on."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, problem: Problem) -> Tensor:
        ctx.save_for_backward(value)
        ctx.problem = problem
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Gate.apply(gradient, *ctx.saved_tensors, ctx.problem), None


class _Gate(Function):
    """The identity in its first argument; no derivative in either."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, value: Tensor, problem: Problem) -> Tensor:
        ctx.problem = problem
        return gradient.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise DifferentiationError(*ctx.problem)


class _Distance(Function):
    """Lengths and their gradients, which are results as well.

    Differentiating them raises.
    """

    @staticmethod
    def forward(z0: Tensor, z1: Tensor, ruler: Ruler) -> Measured:
        return ruler.measure(z0, z1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Measured) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])
        ctx.save_for_forward(*output[1:])

    @staticmethod
    def backward(
        ctx: Any, g: Tensor | None, *others: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if any(other is not None for other in others):
            raise DifferentiationError(*_SECOND_DERIVATIVE)
        if g is None:
            return None, None, None
        first, last = ctx.saved_tensors
        return g[..., None] * first, g[..., None] * last, None

    @staticmethod
    def jvp(ctx: Any, t0: Tensor | None, t1: Tensor | None, _: None) -> Measured:
        first, last = ctx.saved_tensors
        ends = ((first, t0), (last, t1))
        parts = [(s * t).sum(-1) for s, t in ends if t is not None]
        unknown = torch.full_like(
            first, torch.nan
        )  # never used: a second transform is refused before
        return sum(parts[1:], parts[0]), unknown, unknown

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], z0: Tensor, z1: Tensor, ruler: Ruler
    ) -> Any:
        z0, z1 = (
            z[None].expand(info.batch_size, *z.shape) if axis is None else z.movedim(axis, 0)
            for z, axis in zip((z0, z1), in_dims, strict=False)
        )
        if transforms() or ruler.order:
            return _Distance.apply(z0, z1, ruler), (0, 0, 0)
        # Nothing is left but torch.autograd, which may want the derivatives in the decoder's
        # parameters as well.
        unknown = torch.full_like(z0, torch.nan)
        return (ruler.distance(z0, z1), unknown, unknown), (0, 0, 0)
