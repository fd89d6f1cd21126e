"""What a pass in Taylor mode carries along: pairs of tangents, and a record of what bends.

With a record, a pass finds ``a·∂²f`` without any second derivative of ``f``. Let
``δ_y = ∂⟨a, f⟩/∂y`` be the sensitivity of the result to an intermediate ``y``, for all of them from
one reverse pass. Then

    ``a·∂²f(u, v) = Σ ⟨δ_y, ∂²op(∂x(u), ∂x(v))⟩``

over all operations ``y = op(x)``. Only operations that bend contribute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from riemae.numerics.batch_invariance import aligned


@dataclass(frozen=True)
class Pairs:
    """Pairs ``(i, j)`` of tangents, in runs of one i and consecutive j."""

    i: list[int]
    j: list[int]

    @classmethod
    def all(cls, k: int) -> Pairs:
        """``i <= j``, ordered by i."""
        both = [(i, j) for i in range(k) for j in range(i, k)]
        return cls([i for i, _ in both], [j for _, j in both])

    def __len__(self) -> int:
        return len(self.i)

    def full(self, packed: Tensor) -> Tensor:  # (..., p) -> (..., k, k)
        """The symmetric form whose entries for ``i <= j`` are given."""
        k = max(self.j) + 1
        place = torch.empty(k, k, dtype=torch.int64)
        place[self.i, self.j] = place[self.j, self.i] = torch.arange(len(self))
        return packed[..., place.to(packed.device)]

    @cached_property
    def runs(self) -> list[tuple[int, slice, slice]]:
        """``(i, slice of j, slice of pairs)``."""
        out: list[tuple[int, slice, slice]] = []
        for row, (i, j) in enumerate(zip(self.i, self.j, strict=True)):
            start = (j, row)
            if out:
                last, columns, rows = out[-1]
                if last == i and columns.stop == j:  # the run goes on
                    start = (columns.start, rows.start)
                    out.pop()
            column, first = start
            out.append((i, slice(column, j + 1), slice(first, row + 1)))
        return out


@dataclass(eq=False)
class Tape:
    """What a pass carries along.

    Attributes:
        create_graph: Whether the derivatives are to be differentiated again.
        batch: Number of points: the length of the first axis of everything that depends on them.
        pairs: The pairs of tangents with second derivatives.
        recorded: ``(y, contribution)`` of every operation that bends, when ``a·∂²f`` is wanted
            instead of ``∂²f``; ``contribution`` maps ``δ_y`` to ``(b, k, k)``.
    """

    create_graph: bool
    batch: int
    pairs: Pairs | None = None
    recorded: list[tuple[Tensor, Callable[[Tensor], Tensor]]] | None = None

    @property
    def carries_second(self) -> bool:
        """Whether jets hold second derivatives."""
        return self.pairs is not None and self.recorded is None

    def tangents(self) -> torch.set_grad_enabled:
        """The gradient mode in which tangents are computed."""
        return torch.set_grad_enabled(self.create_graph)

    def record(self, y: Tensor, contribution: Callable[[Tensor], Tensor]) -> None:
        """Note how an operation with the result ``y`` bends."""
        assert self.recorded is not None
        self.recorded.append((y, contribution))

    def frozen(self, x: Tensor) -> Tensor:
        """A value as tangents use it: without its graph, if nothing will be differentiated."""
        return x if self.create_graph else x.detach()


def bending(
    tape: Tape, sensitivities: Callable[[list[Tensor]], tuple[Tensor, ...]], z: Tensor
) -> Tensor:  # -> (b, m, m)
    """``a·∂²f`` of a recorded pass from the points ``z``.

    Args:
        tape: The tape of the pass.
        sensitivities: Gives ``∂⟨a, f⟩/∂y`` for intermediate results y.
        z: The points ``(b, m)``.
    """
    recorded = [(y, contribution) for y, contribution in tape.recorded or () if y.requires_grad]
    total = z.new_zeros(*z.shape, z.shape[-1])
    if not recorded:
        return total
    slopes = sensitivities([y for y, _ in recorded])
    with tape.tangents():
        contributions = [contribution for _, contribution in recorded]
        for contribution, slope in _gathered(contributions, slopes):
            total = total + contribution(slope)
        return total.to(z.dtype)  # parts of the map may compute in another


def _gathered(
    contributions: list[Callable[[Tensor], Tensor]], slopes: tuple[Tensor, ...]
) -> list[tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Contributions with their sensitivities; one for all functions of the same single numbers."""
    found: dict[int, tuple[Callable[[Tensor], Tensor], Tensor]] = {}
    for place, (contribution, slope) in enumerate(zip(contributions, slopes, strict=True)):
        if not isinstance(contribution, ElementwiseBend):
            found[-1 - place] = (contribution, slope)
            continue
        key = id(contribution.first)
        if key not in found:
            found[key] = (contribution, slope)
            continue
        other, before = found[key]
        assert isinstance(other, ElementwiseBend)
        weight = before * other.bend + slope * contribution.bend
        one = torch.ones_like(weight)
        found[key] = (replace(other, bend=one), weight)
    return list(found.values())


def per_point(x: Tensor, batch: int, ahead: int = 1) -> Tensor:  # (k, *s) -> (k, b, n)
    """The numbers of each point side by side."""
    if ahead == 1:
        return x.reshape(len(x), batch, -1)
    return x.reshape(len(x), ahead, batch, -1).transpose(1, 2).flatten(2)


def products(
    a: Tensor, b: Tensor, batch: int, ahead: int = 1
) -> Tensor:  # (k, *s) twice -> (b, k, k)
    """``Σ a_i b_j`` over the numbers of each point."""
    # The numbers of every point start at the same alignment: the product must not depend on the
    # point's place in the batch.
    left = aligned(per_point(a, batch, ahead), -1)
    right = aligned(per_point(b, batch, ahead), -1)
    return torch.bmm(left.transpose(0, 1), right.permute(1, 2, 0))


@dataclass
class ElementwiseBend:
    """``Σ δ · op″ · ∂x(u_i) ∂x(u_j)`` over the numbers of each point."""

    bend: Tensor
    first: Tensor
    batch: int
    ahead: int = 1

    def __call__(self, slope: Tensor) -> Tensor:  # -> (b, k, k)
        """The contribution for the sensitivity ``δ``."""
        weighted = slope * self.bend * self.first
        return products(weighted, self.first, self.batch, self.ahead)


@dataclass
class BilinearBend:
    """``⟨δ, op(∂a(u_i), ∂b(u_j)) + op(∂a(u_j), ∂b(u_i))⟩`` for an operation that is bilinear.

    With the transpose ``⟨δ, op(a, b)⟩ = ⟨T(δ, a), b⟩``, that takes one product per tangent, and not
    one per pair.

    Attributes:
        transposed: ``(δ, ∂a (k, *s)) -> (k, *t)``, of the shape of ``∂b``.
        left: ``∂a``.
        right: ``∂b``.
        batch: Number of points.
        ahead: That of ``b``.
    """

    transposed: Callable[[Tensor, Tensor], Tensor]
    left: Tensor
    right: Tensor
    batch: int
    ahead: int = 1

    def __call__(self, slope: Tensor) -> Tensor:  # -> (b, k, k)
        """The contribution for the sensitivity ``δ``."""
        carried = self.transposed(slope, self.left)
        form = products(carried, self.right, self.batch, self.ahead)
        return form + form.transpose(1, 2)


@dataclass
class QuadraticBend:
    """``⟨δ, ∂²op(∂x(u_i), ∂x(u_j))⟩`` over the numbers of each point.

    Attributes:
        second: ``∂²op(∂x(u_i), ∂x(u_j))`` for all pairs, ``(p, *s)``.
        pairs: The pairs.
        k: Number of tangents.
        batch: Number of points.
        ahead: That of the result.
    """

    second: Tensor
    pairs: Pairs
    k: int
    batch: int
    ahead: int = 1

    def __call__(self, slope: Tensor) -> Tensor:  # -> (b, k, k)
        """The contribution for the sensitivity ``δ``."""
        packed = per_point(slope * self.second, self.batch, self.ahead).sum(-1)
        i = torch.tensor(self.pairs.i, device=packed.device)
        j = torch.tensor(self.pairs.j, device=packed.device)
        form = packed.new_zeros(self.k, self.k, self.batch)
        form = form.index_put((i, j), packed).index_put((j, i), packed)
        return form.movedim(-1, 0)
