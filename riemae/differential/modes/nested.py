"""``torch.func``: forward mode, nested for second derivatives, and reverse mode twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp as reverse_vjp
from torch.func import vmap

from riemae.differential.modes.base import BatchedMap, Covectors, Mode, basis
from riemae.differential.tape import Pairs
from riemae.numerics.leftovers import unwrapping
from riemae.numerics.threads import jvp


@dataclass(frozen=True)
class Nested(Mode):
    """``torch.func``, forward mode over forward mode.

    Attributes:
        vectorised: Whether all directions are taken at once, by vmap, or one after the other.
    """

    vectorised: bool = True

    def active(self, second_order: bool, primitives: bool = True) -> AbstractContextManager[Any]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""
        return unwrapping(super().active(second_order, primitives))

    def push(self, f: BatchedMap, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``Jv``."""
        x, tangent = jvp(f, (z,), (v,))
        return x, tangent

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, create_graph: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""

        def push(v: Tensor) -> tuple[Tensor, Tensor]:
            return self.push(f, z, v)

        def push_twice(u: Tensor, v: Tensor) -> Tensor:
            def along_v(z: Tensor) -> Tensor:
                _, tangent = self.push(f, z, v)
                return tangent

            _, bent = self.push(along_v, z, u)
            return bent

        # The value does not depend on the direction: vmap computes it once and returns it expanded.
        x, first = self._along(push, directions)
        if pairs is None:
            return x[0], first
        second = self._along(push_twice, directions[pairs.i], directions[pairs.j])
        return x[0], first, second

    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, create_graph: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`.

        It takes m forward products of ``Jᵀa`` per covector.
        """
        x, j = self.forward(f, z, basis(z), None, create_graph)
        rows = covectors(x, j).unbind()
        forms = torch.stack([self._contraction(f, z, a) for a in rows])
        return x, j, (forms + forms.mT) / 2

    def _contraction(self, f: BatchedMap, z: Tensor, a: Tensor) -> Tensor:  # -> (b, m, m)
        def pulled(z: Tensor) -> Tensor:
            pull = reverse_vjp(f, z)[1]
            (slope,) = pull(a)
            return slope

        def along(direction: Tensor) -> Tensor:
            _, change = self.push(pulled, z, direction)
            return change

        columns = self._along(along, basis(z))
        return columns.movedim(0, -1)

    def _along(self, f: Callable[..., Any], *directions: Tensor) -> Any:
        """``f`` of each row of ``directions``, stacked along a new first axis."""
        if self.vectorised:
            return vmap(f)(*directions)
        rows = [f(*row) for row in zip(*directions, strict=True)]
        if isinstance(rows[0], tuple):
            return tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return torch.stack(rows)


@dataclass(frozen=True)
class Reverse(Nested):
    """``Jv`` as the derivative of ``Jᵀw`` in w: for maps without forward mode."""

    announced: bool = True
    vectorised: bool = False

    def push(self, f: BatchedMap, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``Jv``."""
        x = f(z)

        def pulled(w: Tensor) -> Tensor:
            pull = reverse_vjp(f, z)[1]
            (slope,) = pull(w)
            return slope

        transposed = reverse_vjp(pulled, torch.zeros_like(x))[1]
        (tangent,) = transposed(v)
        return x, tangent
