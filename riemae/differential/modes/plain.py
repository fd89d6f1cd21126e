"""Reverse mode twice by ``torch.autograd`` alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.differential.modes.base import BatchedMap, basis, leaf, pulled_back, with_graph
from riemae.differential.modes.nested import Reverse
from riemae.differential.tape import Pairs


@dataclass(frozen=True)
class Plain(Reverse):
    """Reverse mode twice by ``torch.autograd`` alone: for what ``torch.func`` does not take.

    Those are ``autograd.Function`` without ``setup_context``, custom operators, hooks, and maps
    that differentiate inside.
    """

    def push(self, f: BatchedMap, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``Jv``."""
        with torch.enable_grad():
            x, linear, w = self._linear(f, leaf(z, True))
            return x, _along(linear, w, v)

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, create_graph: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""
        with torch.enable_grad():
            start = leaf(z, True)
            x, linear, w = self._linear(f, start)
            first = torch.stack([_along(linear, w, v) for v in directions])
            if pairs is None:
                return x, first
            second: dict[int, Tensor] = {}  # by place among the pairs
            for i in dict.fromkeys(pairs.i):
                a = torch.zeros_like(x).requires_grad_()
                # ∂(Jᵀa u_i), linear in a
                (bent,) = pulled_back(first[i], [start], a, True, True)
                for place, left in enumerate(pairs.i):
                    if left == i:
                        v = directions[pairs.j[place]]
                        (second[place],) = pulled_back(bent, [a], v, True, True)
            in_order = [second[place] for place in range(len(pairs))]
            return x, first, torch.stack(in_order)

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""
        with torch.enable_grad():
            start = leaf(z, True)
            x = with_graph(f, start)
            a = covector(x if create_graph else x.detach())
            (pulled,) = pulled_back(x, [start], a, True)
        return x, pulled

    def _contraction(self, f: BatchedMap, z: Tensor, a: Tensor) -> Tensor:  # -> (b, m, m)
        with torch.enable_grad():
            start = leaf(z, True)
            x = with_graph(f, start)
            (slope,) = pulled_back(x, [start], a, True)
            rows = []
            for direction in basis(z):
                (row,) = pulled_back(slope, [start], direction, True, True)
                rows.append(row)
            return torch.stack(rows, -2)

    @staticmethod
    def _linear(f: BatchedMap, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``f``, ``Jᵀw`` with its graph, and w."""
        x = with_graph(f, start)
        w = torch.zeros_like(x).requires_grad_()
        (linear,) = pulled_back(x, [start], w, True)
        return x, linear, w


def _along(linear: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """The derivative of ``Jᵀw`` in w along v, which is ``Jv``.

    Raises:
        RuntimeError: When a backward pass does not say how it depends on w, as with
            ``once_differentiable`` or numpy.
    """
    found = None
    if linear.requires_grad:
        (found,) = torch.autograd.grad(
            linear, w, v, retain_graph=True, create_graph=True, allow_unused=True
        )
    if found is None:
        raise RuntimeError("its derivative cannot be differentiated again")
    return found
