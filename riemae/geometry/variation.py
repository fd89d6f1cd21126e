"""How an ambient metric without a feature map varies along a curve, for second derivatives.

With ``x_i = f(z_i)``, ``Δ_i = x_{i+1} − x_i`` and ``W_i = ½(H(x_i) + H(x_{i+1}))``, a segment adds
``n q_i`` to the energy, ``q_i = Δ_iᵀ W_i Δ_i``. With ``A(u) = (D_{Ju} H) Δ`` its Hessian is that of
three parts:

    ``2 (J_{i+1}v − J_i u)ᵀ W (J_{i+1}v − J_i u)``               Gauss-Newton
    ``2 (A_i(u) + A_{i+1}(v))ᵀ (J_{i+1}v − J_i u)``              how H turns what it measures
    ``∂²`` of ``2 (WΔ)ᵀ(x_{i+1} − x_i) + ½ Δᵀ(H(x_i) + H(x_{i+1}))Δ``  with WΔ and Δ held fixed

H enters through *numbers* ``N(x)``, in which ``HΔ`` and ``ΔᵀHΔ`` are linear. The decoder with these
numbers behind its output, ``z -> (f, N(f))``, is one map: its Jacobian gives J and A, and the third
part is its second derivative along a covector. So one pass of the decoder's own mode gives all.

============== =============================== =================================
metric         numbers                         how many
============== =============================== =================================
diagonal       the diagonal of H               D
any other      ``HΔ`` of both segments         2 D
============== =============================== =================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.ambient import AmbientMetric
from riemae.differential.conditions import Condition
from riemae.numerics.batch_invariance import aligned
from riemae.solvers.linear import BlockTridiagonal

# A decoder: points, with conditions or None, to data (k, *shape).
Decoding = Callable[[Tensor, Condition | None], Tensor]
# Of the step before each node of a curve, and of that after it.
BothSides = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Variation(ABC):
    """The numbers through which a metric enters the energy.

    Attributes:
        ambient: The metric.
    """

    ambient: AmbientMetric

    @abstractmethod
    def map(self, decode: Decoding) -> Callable[..., Tensor]:
        """``z -> (f(z), N(f(z)))``, ``(k, m) -> (k, D + c)``."""

    @abstractmethod
    def condition(self, given: Condition | None, before: Tensor, after: Tensor) -> Condition | None:
        """What that map gets besides the points, with the steps of every node, ``(k, D)`` each."""

    @abstractmethod
    def covector(self, before: Tensor, after: Tensor) -> Tensor:  # (k, D) twice -> (k, c)
        """``w`` with ``w·N = Δ₋ᵀHΔ₋ + Δ₊ᵀHΔ₊``, of the steps before and after a node."""

    @abstractmethod
    def changes(self, slopes: Tensor, before: Tensor, after: Tensor) -> BothSides:
        """``A`` ``(*b, D, m)`` of both steps ``(*b, D)``, of ``∂N`` ``(*b, c, m)``."""

    @abstractmethod
    def weighted(self, x: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """``(W_{i-1} + W_i) J_i`` and ``W_{i-1} J_i``.

        Args:
            x: Data ``(p, n + 1, D)``.
            j: Jacobians ``(p, n − 1, D, m)``.
        """


class DiagonalVariation(Variation):
    """Of a diagonal metric."""

    def map(self, decode: Decoding) -> Callable[..., Tensor]:
        """``z -> (f, h(f))``."""

        def with_diagonal(z: Tensor, condition: Condition | None = None) -> Tensor:
            x = decode(z, condition).flatten(1)
            h = self.ambient.diagonal(x)
            return torch.cat([x, h], -1)

        return with_diagonal

    def condition(self, given: Condition | None, before: Tensor, after: Tensor) -> Condition | None:
        """The decoder's own."""
        return given

    def covector(self, before: Tensor, after: Tensor) -> Tensor:  # (k, D) twice -> (k, D)
        """The sum of the squares."""
        return before.square() + after.square()

    def changes(self, slopes: Tensor, before: Tensor, after: Tensor) -> BothSides:
        """``∂h Δ``."""
        return slopes * before[..., None], slopes * after[..., None]

    def weighted(self, x: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """One product of numbers for each."""
        flat = self.ambient.diagonal(x.flatten(0, 1))
        h = flat.view(x.shape)
        middle = (h[:, :-1] + h[:, 1:]) / 2
        before = middle[:, :-1, :, None]
        after = middle[:, 1:, :, None]
        # The layout is that of the first factor.
        return j * (before + after), j * before


class ProductVariation(Variation):
    """Of a metric known by its products alone; the map gets both steps of a node."""

    def map(self, decode: Decoding) -> Callable[..., Tensor]:
        """``z -> (f, H(f) Δ₋, H(f) Δ₊)``."""

        def with_products(z: Tensor, condition: Condition) -> Tensor:
            given, steps = condition.parted()
            x = decode(z, given).flatten(1)
            products = self.ambient.products(x, steps)
            return torch.cat([x, *products.unbind(-1)], -1)

        return with_products

    def condition(self, given: Condition | None, before: Tensor, after: Tensor) -> Condition:
        """The decoder's own, and both steps of each node."""
        return Condition.with_rows(given, torch.stack([before, after], -1))

    def covector(self, before: Tensor, after: Tensor) -> Tensor:  # (k, D) twice -> (k, 2 D)
        """The steps themselves."""
        return torch.cat([before, after], -1)

    def changes(self, slopes: Tensor, before: Tensor, after: Tensor) -> BothSides:
        """The halves of ``∂N``."""
        first, second = slopes.chunk(2, -2)
        return first, second

    def weighted(self, x: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """With H at the node and at both of its neighbours."""
        columns = j.flatten(0, 1)

        def product(points: Tensor) -> Tensor:
            return self.ambient.apply_to(points.flatten(0, 1), columns).view(j.shape)

        own = product(x[:, 1:-1])
        previous = product(x[:, :-2])
        following = product(x[:, 2:])
        before = (previous + own) / 2
        after = (own + following) / 2
        return before + after, before


def variation_of(ambient: AmbientMetric) -> Variation:
    """The cheapest way for a metric without a feature map."""
    return DiagonalVariation(ambient) if ambient.is_diagonal else ProductVariation(ambient)


def positive_part(weighted: tuple[Tensor, Tensor], j: Tensor) -> BlockTridiagonal:
    """The Gauss-Newton part, of :meth:`Variation.weighted` and J ``(p, n − 1, D, m)``."""
    both, before = weighted
    n = j.shape[1] + 1
    diagonal = 2 * n * _pulled(j, both)
    upper = -2 * n * _links(j, before)
    return BlockTridiagonal(diagonal, upper)


def remaining_part(changes: BothSides, form: Tensor, j: Tensor) -> BlockTridiagonal:
    """What is missing to the Hessian.

    Args:
        changes: ``A`` of the steps before and after each node, ``(p, n − 1, D, m)``.
        form: The third part, ``(p, n − 1, m, m)``.
        j: Jacobians, ``(p, n − 1, D, m)``.
    """
    before, after = changes
    n = j.shape[1] + 1
    turn = _pulled(before, j) - _pulled(after, j)
    own = form + n * (turn + turn.mT)
    links = _links(after, j) - _links(j, before)
    return BlockTridiagonal((own + own.mT) / 2, n * links)


def laid_out(j: Tensor) -> Tensor:  # (*b, D, m) -> (*b, D', m)
    """In one layout for any batch, each column aligned alike: products must have the same bits.

    Columns are contiguous, and longer by zeros.
    """
    return aligned(j.mT, -1).contiguous().mT


def _pulled(left: Tensor, right: Tensor) -> Tensor:  # (*b, D, m) twice -> (*b, m, m)
    """``leftᵀ right``."""
    return laid_out(left).mT @ laid_out(right)


def _links(left: Tensor, right: Tensor) -> Tensor:  # (p, n - 1, D, m) twice -> (p, n - 2, m, m)
    """``left_iᵀ right_{i+1}`` along each curve."""
    p, nodes, _, m = left.shape
    if nodes < 2:
        return left.new_zeros(p, 0, m, m)
    # Of all curves in a row, so that no part is copied; what joins two curves is left out.
    every = _pulled(left.flatten(0, 1)[:-1], right.flatten(0, 1)[1:])
    padded = F.pad(every, (0, 0, 0, 0, 0, 1))
    return padded.view(p, nodes, m, m)[:, :-1]
