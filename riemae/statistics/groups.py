"""Groups of points, and sums over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.numerics import sums


@dataclass(frozen=True)
class Group:
    """Points and their means: ``n`` points in ``c`` groups, none of them empty.

    Attributes:
        of: ``(n,)`` int64, the group of each point.
        weights: ``(n,)``, which add up to 1 in every group.
        count: How many groups.
    """

    of: Tensor
    weights: Tensor
    count: int

    def mean(self, x: Tensor) -> Tensor:  # (n, *b) -> (c, *b)
        """Weighted means of what belongs to the points."""
        weights = self.weights.view(len(x), *[1] * (x.ndim - 1))
        # What has no weight may be NaN.
        return sums.summed(torch.where(weights > 0, weights * x, 0.0), self.of, self.count)

    def all(self, x: Tensor) -> Tensor:  # (n,) bool -> (c,) bool
        """Whether all members with any weight are."""
        missing = (~x & (self.weights > 0)).to(torch.int64)
        counts = torch.zeros(self.count, dtype=torch.int64, device=x.device)
        return counts.index_add(0, self.of, missing) == 0

    def first(self) -> Tensor:  # -> (c,)
        """One member of each group."""
        places = torch.arange(len(self.of), device=self.of.device)
        zero = torch.zeros(self.count, dtype=torch.int64, device=self.of.device)
        return zero.scatter(0, self.of, places)

    def part(self, keep: Tensor) -> tuple[Group, Tensor]:  # (c,) bool
        """Some groups, and the rows of their points."""
        rows = keep[self.of].nonzero().flatten()
        places = keep.cumsum(0) - 1
        return Group(places[self.of[rows]], self.weights[rows], int(keep.sum())), rows
