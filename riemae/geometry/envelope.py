"""Derivatives of geodesic distances: the first by the envelope theorem, and no second in disguise.

A geodesic's length is stationary in its interior: the first derivative of the distance is that of
the length of the frozen curve. A second derivative is not: the curve moves with its ends, which the
frozen one does not know. Asked for it, autograd would return the frozen curve's, and be wrong; here
it raises, or comes from the second variation of the geodesic where that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from riemae.exceptions import DifferentiationError
from riemae.numerics.transforms import transforms
from riemae.solvers.flows.second_variation import SecondVariation

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
    "The first comes from the frozen geodesic, which says nothing of the second. In the end "
    "points, distance(..., twice=True) has it for torch.autograd, and Manifold.second_variation "
    "has the Hessian of d²/2 as matrices.",
)
_THIRD_DERIVATIVE = (
    "Manifold.distance",
    "at most two derivatives",
    "a third one",
    "Take differences of Manifold.second_variation.",
)
_AT_ONE_POINT = (
    "Manifold.distance",
    "pairs of different points for a second derivative",
    "{} of {} that coincide",
    "There d has a corner. Manifold.second_variation has the Hessian of d²/2, which is smooth.",
)


class Twice:
    """Distances of pairs ``(*b)``, and what their derivatives in both ends are made of.

    Args:
        length: ``(*b,)``.
        variation: Finds the derivatives of ``½ d²``; it is called once, when the first derivative
            is asked for.
    """

    def __init__(self, length: Tensor, variation: Callable[[], SecondVariation]) -> None:
        self.length = length
        self._variation = variation

    @cached_property
    def variation(self) -> SecondVariation:
        """The derivatives of ``½ d²``."""
        return self._variation()

    @cached_property
    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of d in both ends, ``(*b, m)`` each; 0 where points coincide."""
        found = self.variation
        length = self.length[..., None]
        first, last = (
            torch.where(length > 0, x / length, 0.0 * x)
            for x in (found.start_gradient, found.stop_gradient)
        )
        return first, last


def twice_differentiable(z0: Tensor, z1: Tensor, known: Twice) -> Tensor:
    """Distances that autograd can differentiate twice in ``z0`` and ``z1`` ``(*b, m)``.

    A third derivative raises :class:`DifferentiationError`, and so does a second one where points
    coincide.
    """
    return _Twice.apply(z0, z1, known)


class _Twice(Function):
    @staticmethod
    def forward(ctx: Any, z0: Tensor, z1: Tensor, known: Twice) -> Tensor:
        ctx.save_for_backward(z0, z1)
        ctx.known = known
        return known.length.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        first, last = _Slopes.apply(g, *ctx.saved_tensors, ctx.known)
        return first, last, None


class _Slopes(Function):
    """The gradients of distances, as functions of both ends."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, z0: Tensor, z1: Tensor, known: Twice) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(g, z0, z1)
        ctx.known = known
        first, last = known.gradients
        return g[..., None] * first, g[..., None] * last

    @staticmethod
    def backward(ctx: Any, c0: Tensor, c1: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        g, z0, z1 = ctx.saved_tensors
        known: Twice = ctx.known
        length = known.length
        together = int((length == 0).sum())
        if together:
            where, expected, got, hint = _AT_ONE_POINT
            raise DifferentiationError(where, expected, got.format(together, length.numel()), hint)
        # ∂²d = (∂²(½ d²) − ∂d ∂d) / d.
        found = known.variation
        first, last = known.gradients
        along = (first * c0 + last * c1).sum(-1)
        bent = (
            _product(found.start_hessian, c0) + _product(found.mixed, c1),
            _product(found.mixed.mT, c0) + _product(found.stop_hessian, c1),
        )
        share = (g / length)[..., None]
        turned = [
            share * (b - along[..., None] * x) for b, x in zip(bent, (first, last), strict=True)
        ]
        # A third derivative would be one in any of these.
        gate = sum(x.sum() for x in (g, z0, z1, c0, c1))
        out = [_Gate.apply(x, gate, _THIRD_DERIVATIVE) for x in (along, *turned)]
        return out[0], out[1], out[2], None


def _product(matrix: Tensor, vector: Tensor) -> Tensor:  # (*b, m, m), (*b, m) -> (*b, m)
    return (matrix @ vector[..., None])[..., 0]


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
