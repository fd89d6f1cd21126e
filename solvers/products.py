"""Products of the discrete energy's Hessian with vectors, without a matrix.

They go through one retained graph. ``(∂²E) v`` is the derivative of ``⟨∂E, v⟩``, one more reverse
pass through the graph of the gradient (Pearlmutter, *Fast exact multiplication by the Hessian*,
1994): for ``n`` nodes as much work as a forward and a reverse product at each, and the primal is
not computed again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.numerics.metric import safe_sqrt
from riemae.solvers.energy import discrete_energy, rounding

Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Products:
    """A discrete energy to second order, without a matrix.

    It is that of ``p`` curves with ``n − 1`` interior nodes.

    Attributes:
        energy: ``(p,)``.
        gradient: ``(p, n − 1, m)``.
        noise: ``(p,)``, the rounding error to expect in ``energy``.
        hessian: ``(p, n − 1, m) -> (p, n − 1, m)``.
        gauss_newton: The same with the positive semi-definite part of the Hessian; None where
            it is unknown.
    """

    energy: Tensor
    gradient: Tensor
    noise: Tensor
    hessian: Product
    gauss_newton: Product | None = None


def from_graph(
    interior: Tensor, chords: Tensor, size: Tensor, gauss_newton: Product | None = None
) -> Products:
    """Products from the graph of the squared chords.

    Args:
        interior: The leaf ``(p, n − 1, m)`` that the chords were computed from.
        chords: ``(p, n)``, in gradient mode.
        size: ``(p, n)``, norm of the points whose differences the chords are.
        gauss_newton: As in :class:`Products`.
    """
    with torch.enable_grad():
        energy = discrete_energy(chords)
        gradient = torch.zeros_like(interior)
        if energy.requires_grad:
            (gradient,) = torch.autograd.grad(
                energy.sum(), interior, create_graph=True, materialize_grads=True
            )

    noise = rounding(size.detach(), safe_sqrt(chords.detach()))

    def hessian(v: Tensor) -> Tensor:
        return pulled(gradient, interior, v)

    return Products(
        energy=energy.detach(),
        gradient=gradient.detach(),
        noise=noise,
        hessian=hessian,
        gauss_newton=gauss_newton,
    )


def pulled(output: Tensor, leaf: Tensor, covector: Tensor) -> Tensor:
    """``Jᵀ covector`` of a graph that is kept.

    Zero where the output does not depend on the leaf.
    """
    if not output.requires_grad:
        return torch.zeros_like(leaf)
    return torch.autograd.grad(output, leaf, covector, retain_graph=True, materialize_grads=True)[
        0
    ].detach()
