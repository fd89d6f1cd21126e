"""Reverse mode twice by ``torch.autograd`` alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.differential.modes.base import (
    BatchedMap,
    basis,
    leaf,
    pulled_back,
    pulled_back_all,
    with_graph,
)
from riemae.differential.modes.nested import Reverse
from riemae.differential.tape import Pairs

# A reverse pass through an output costs about so many times the derivative along a direction.
_OUTPUT = 2


@dataclass(frozen=True)
class Plain(Reverse):
    """Reverse mode twice by ``torch.autograd`` alone: for what ``torch.func`` does not take.

    Those are ``autograd.Function`` without ``setup_context``, custom operators, hooks, and maps
    that differentiate inside. All directions are taken together where vmap takes the backward pass.
    """

    together: bool = True

    def push(self, f: BatchedMap, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``Jv``."""
        with torch.enable_grad():
            start = leaf(z, True)
            x = with_graph(f, start)
            linear, w = self._linear(x, start)
            return x, _along(linear, w, v[None])[0]

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, create_graph: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`~riemae.differential.modes.base.Mode`.

        By the outputs where they are few, and otherwise by the directions.
        """
        with torch.enable_grad():
            start = leaf(z, True)
            x = with_graph(f, start)
            if _OUTPUT * x.shape[1] <= len(directions):
                return self._by_outputs(x, start, directions, pairs, create_graph)
            linear, w = self._linear(x, start)
            first = _along(linear, w, directions)
            if pairs is None:
                return x, first
            return x, first, self._bent(x, start, first, directions, pairs)

    @staticmethod
    def _bent(
        x: Tensor, start: Tensor, first: Tensor, directions: Tensor, pairs: Pairs
    ) -> Tensor:  # -> (p, b, D)
        """``∂²f(u_i, u_j)``: one reverse pass for each i, and another for its j together."""
        second: dict[int, Tensor] = {}  # by place among the pairs
        for i in dict.fromkeys(pairs.i):
            a = torch.zeros_like(x).requires_grad_()
            # ∂(Jᵀa u_i), linear in a
            (bent,) = pulled_back(first[i], [start], a, True, True)
            places = [place for place, left in enumerate(pairs.i) if left == i]
            columns = directions[[pairs.j[place] for place in places]]
            rows = pulled_back_all(bent, a, columns, True)
            if rows is None:  # f is linear in this direction
                rows = x.new_zeros(len(places), *x.shape)
            second.update(zip(places, rows, strict=True))
        return torch.stack([second[place] for place in range(len(pairs))])

    @staticmethod
    def _by_outputs(
        x: Tensor, start: Tensor, directions: Tensor, pairs: Pairs | None, create_graph: bool
    ) -> tuple[Tensor, ...]:
        """The same by a reverse pass for each output, and by another for its gradient.

        Raises:
            RuntimeError: When the graph leads nowhere, or results that are to be differentiated
                again cannot be.
        """
        count = x.shape[1]
        units = torch.eye(count, dtype=x.dtype, device=x.device)[:, None]
        j = pulled_back_all(x, start, units.expand(-1, *x.shape), True)
        if j is None:
            raise RuntimeError("the output has no graph that leads to the points")
        first = torch.einsum("dbm,cbm->cbd", j, directions)
        if create_graph and j.requires_grad:  # once_differentiable functions raise here
            torch.autograd.grad(j.sum(), start, retain_graph=True, allow_unused=True)
        if pairs is None:
            return x, first
        lefts = list(dict.fromkeys(pairs.i))
        place = {i: at for at, i in enumerate(lefts)}
        columns: list[Tensor] = []
        for gradient in j:
            change = pulled_back_all(gradient, start, directions[lefts], True)
            if change is None:  # an output that is linear
                change = j.new_zeros(len(lefts), *start.shape)
            left = change[[place[i] for i in pairs.i]]
            columns.append((left * directions[list(pairs.j)]).sum(-1))
        return x, first, torch.stack(columns, -1)

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
            form = pulled_back_all(slope, start, basis(z), True)
            if form is None:
                return z.new_zeros(*z.shape, z.shape[-1])
            return form.movedim(0, -2)

    @staticmethod
    def _linear(x: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """``Jᵀw`` of ``x`` with its graph, and w."""
        w = torch.zeros_like(x).requires_grad_()
        (linear,) = pulled_back(x, [start], w, True)
        return linear, w


def _along(linear: Tensor, w: Tensor, directions: Tensor) -> Tensor:  # (c, b, m) -> (c, b, D)
    """The derivatives of ``Jᵀw`` in w along directions, which are ``J u``.

    Raises:
        RuntimeError: When a backward pass does not say how it depends on w, as with
            ``once_differentiable`` or numpy.
    """
    found = pulled_back_all(linear, w, directions, True)
    if found is None:
        raise RuntimeError("its derivative cannot be differentiated again")
    return found
