"""Reverse mode once, and central differences of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemae.differential.modes.base import BatchedMap, Covectors, basis, pulled_back_all, with_graph
from riemae.differential.modes.nested import Nested
from riemae.differential.tape import Pairs
from riemae.exceptions import DifferentiationError


@dataclass(frozen=True)
class Differences(Nested):
    """``J`` row by row in reverse mode, and central differences of it.

    For maps with a single backward pass: ``once_differentiable`` functions, backward passes by
    numpy, adjoint equations. The results cannot be differentiated again; an attempt raises an error
    that says so.
    """

    announced: bool = True
    approximate: bool = True

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, create_graph: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""
        x, j = self._rows(f, z)
        first = torch.einsum("bdm,cbm->cbd", j, directions)
        if pairs is None:
            return _closed(create_graph, x, first)
        smallest = torch.finfo(z.dtype).tiny
        parts: list[Tensor] = []
        for i, columns, _ in pairs.runs:
            u = directions[i]
            length = u.abs().amax(-1, keepdim=True)
            h = _step(z) / length.clamp(min=smallest)
            _, ahead = self._rows(f, z + h * u)
            _, behind = self._rows(f, z - h * u)
            change = (ahead - behind) / (2 * h[..., None])
            parts.append(torch.einsum("bdm,cbm->cbd", change, directions[columns]))
        return _closed(create_graph, x, first, torch.cat(parts))

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""
        x, pulled = self._pull(f, z, covector)
        out: tuple[Tensor, Tensor] = _closed(create_graph, x, pulled)  # type: ignore[assignment]
        return out

    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, create_graph: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`.

        It takes 2 m more reverse passes per covector.
        """
        x, j = self._rows(f, z)
        first = j.movedim(-1, 0)
        rows = covectors(x, first).detach().unbind()
        form = torch.stack([self._form(f, z, a) for a in rows])
        out: tuple[Tensor, Tensor, Tensor] = _closed(  # type: ignore[assignment]
            create_graph, x, first, (form + form.mT) / 2
        )
        return out

    def _form(self, f: BatchedMap, z: Tensor, a: Tensor) -> Tensor:  # -> (b, m, m)
        """``a·∂²f``, not symmetric to the last digits."""

        def pulled(z: Tensor) -> Tensor:
            _, slope = self._pull(f, z, lambda x: a)
            return slope

        h = _step(z)
        rows = []
        for direction in basis(z):
            ahead = pulled(z + h * direction)
            behind = pulled(z - h * direction)
            rows.append((ahead - behind) / (2 * h))
        return torch.stack(rows, -2)

    @staticmethod
    def _pull(
        f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """``f`` and ``Jᵀw``, without graph."""
        with torch.enable_grad():
            start = z.detach().requires_grad_()
            x = with_graph(f, start)
            w = covector(x.detach()).detach()
            (pulled,) = torch.autograd.grad(x, start, w, materialize_grads=True)
        return x.detach(), pulled

    @staticmethod
    def _rows(f: BatchedMap, z: Tensor) -> tuple[Tensor, Tensor]:  # -> (b, D), (b, D, m)
        """``f`` and ``J``, without graph."""
        with torch.enable_grad():
            start = z.detach().requires_grad_()
            x = with_graph(f, start)
            units = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[:, None]
            j = None
            if len(units):
                covectors = units.expand(-1, *x.shape)
                j = pulled_back_all(x, start, covectors, False)
        value = x.detach()
        if j is None:
            nothing = z.new_zeros(len(z), x.shape[1], z.shape[1])
            return value, nothing
        return value, j.movedim(0, 1)


def _step(z: Tensor) -> Tensor:  # (b, m) -> (b, 1)
    """Steps of central differences for which truncation and rounding errors are alike small."""
    size = z.detach().abs().amax(-1, keepdim=True)
    return torch.finfo(z.dtype).eps ** (1 / 3) * (1 + size)


class _End(torch.autograd.Function):
    """Results that cannot be differentiated any further."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        """The parts as they are."""
        return tuple(x.clone() for x in parts)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Refuse.

        Raises:
            DifferentiationError: Always.
        """
        raise DifferentiationError(
            "differential",
            "results that are not differentiated again",
            "a derivative of them, where the decoder's own derivative has none",
            "Work under torch.no_grad(), or give the decoder a backward pass that can be "
            "differentiated.",
        )


def _closed(create_graph: bool, *parts: Tensor) -> tuple[Tensor, ...]:
    """Results that raise an error when they are differentiated again."""
    if not create_graph:
        return parts
    start = torch.zeros((), requires_grad=True)
    constants = [x.detach() for x in parts]
    out: tuple[Tensor, ...] = _End.apply(start, *constants)
    return out
