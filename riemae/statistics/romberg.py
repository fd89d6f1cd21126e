"""Means and squared distances of several levels, extrapolated, and by how much they are off.

Discretised on n segments, a mean is off by an expansion in even powers of 1/n, because the chord
energy is symmetric in time. So levels of 8, 16, 32, … segments are extrapolated (Romberg), and what
the last extrapolation has changed is the error estimate. Piecewise linear decoders have no such
expansion: means are off like 1/n, and only distances are extrapolated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.solvers.space import Space
from riemae.statistics.groups import Group
from riemae.statistics.minimum import Minimum

# Where the change of the last extrapolation deceives, the one before does by no more than this.
_TRUST = 1 / 8
# Levels whose changes must fall, and by which factor at least: kinks have no expansion in 1/n.
_SLOWEST = 1.3
_PATIENCE = 4
# Where decoders are piecewise linear: levels that are enough; by how much a mean is off, in units
# of what the last level has changed and at the least: curves rest on kinks, and the means of four
# such decoders were off by 2 to 5 % of the spread, whatever was asked for.
_KINKED_LEVELS = 4
_CHANGES = 2
_ATTAINED = 5e-2


def extrapolated(table: list[Tensor], value: Tensor) -> list[Tensor]:
    """The next row of Romberg's table, from the last one and a value on twice as many segments."""
    row = [value]
    for j, old in enumerate(table):
        row.append(row[j] + (row[j] - old) / (4 ** (j + 1) - 1))
    return row


def shares(depth: int) -> list[float]:
    """What each of so many levels contributes to the extrapolated value; they add up to 1."""
    found = []
    for k in range(depth):
        share = 1.0
        for j in range(depth):
            if j != k:
                share *= 4.0**k / (4.0**k - 4.0**j)
        found.append(share)
    return found


def logarithms(space: Space, z: Tensor, slopes: Tensor) -> Tensor:  # (n, m) twice -> (n, m)
    """Tangents at ``z`` whose squared lengths have these derivatives in ``z``: ``−½ G⁻¹ ∂d²``."""
    metric = space.metric(z)
    found, info = torch.linalg.solve_ex(metric, slopes[..., None])
    return torch.where((info == 0)[:, None], -found[..., 0] / 2, torch.nan)


class Romberg:
    """What the levels of some groups have told.

    Args:
        space: Where.
        like: ``(c, m)``, a tensor of the means' shape.
        fixed: Whether the starts stay where they are, and logarithms count.

    Attributes:
        centers: Rows ``(c, m)`` of the table, the best last.
        squares: ``(n,)``, likewise.
        slopes: ``(n, m)``, likewise.
        kinked: ``(c,)`` bool: second derivatives vanish on all curves.
    """

    def __init__(self, space: Space, like: Tensor, fixed: bool) -> None:
        self.space = space
        self.fixed = fixed
        self.centers: list[Tensor] = []
        self.squares: list[Tensor] = []
        self.slopes: list[Tensor] = []
        self.kinked = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        # The rows before, means as they were found, and errors as they were estimated.
        self._before: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        self._raw: list[Tensor] = []
        self._errors: list[Tensor] = []

    def add(self, found: Minimum, groups: Group) -> None:
        """The next level."""
        self._before = (self.centers, self.squares, self.slopes)
        self.kinked = self.kinked | found.kinked
        raw = self.squares[0] if self.squares else found.squares
        self._raw = [*self._raw, found.centers]
        self.centers = extrapolated(self.centers, found.centers)
        self.squares = extrapolated(self.squares, found.squares)
        self.slopes = extrapolated(self.slopes, found.slopes)
        kinked = self.kinked[groups.of]
        self.centers[-1] = torch.where(self.kinked[:, None], found.centers, self.centers[-1])
        self.slopes[-1] = torch.where(kinked[:, None], found.slopes, self.slopes[-1])
        # Squared distances are off like 1/n there.
        self.squares[-1] = torch.where(kinked, 2 * found.squares - raw, self.squares[-1])

    def error(self, found: Minimum, spread: Tensor) -> Tensor:  # (c,) -> (c,)
        """Estimated distances of the best means from the minimisers, after this level."""
        worst = self._unextrapolated(found.centers)
        # Where no kink is met, space is flat, and all levels agree.
        met = worst > torch.finfo(spread.dtype).eps ** 0.5 * spread
        worst = torch.where(met, torch.maximum(worst, _ATTAINED * spread), worst)
        error = torch.where(self.kinked, worst, self._changed(found.centers))
        error = error + found.rest * spread
        self._errors = [*self._errors, error]
        return error

    def square_errors(self, found: Minimum, groups: Group) -> Tensor:  # -> (n,)
        """Estimated errors of the best squared distances, after this level."""
        before = self._before[1]
        if not before:
            return torch.full_like(found.squares, torch.inf)
        best = self.squares[-1]
        own = (best - self.squares[-2]).abs()
        other = (best - before[-1]).abs()
        rest = (found.rest[groups.of] * found.squares).abs()
        return torch.maximum(own, _TRUST * other) + rest

    def hopeless(self) -> Tensor:  # -> (c,) bool
        """Errors that have not fallen for some levels, or cannot fall much more."""
        plenty = self.kinked & (len(self._raw) >= _KINKED_LEVELS)
        if len(self._errors) <= _PATIENCE:
            return plenty
        return plenty | (self._errors[-1] * _SLOWEST**_PATIENCE > self._errors[-1 - _PATIENCE])

    def keep(self, names: Tensor, rows: Tensor) -> None:  # (c,) bool, (k,)
        """Go on with some groups, and these points of theirs."""
        self._raw = [x[names] for x in self._raw]
        self._errors = [x[names] for x in self._errors]
        self.kinked = self.kinked[names]
        self.centers = [x[names] for x in self.centers]
        self.squares = [x[rows] for x in self.squares]
        self.slopes = [x[rows] for x in self.slopes]

    def _changed(self, centers: Tensor) -> Tensor:  # -> (c,)
        """By how much the last extrapolation has changed the means, or the logarithms."""
        before, _, slopes = self._before
        if not before:
            return torch.full_like(centers[:, 0], torch.inf)
        if self.fixed:
            table = [logarithms(self.space, centers, slope) for slope in self.slopes]
            earlier = logarithms(self.space, centers, slopes[-1])
        else:
            table = self.centers
            earlier = before[-1]
        own = self.space.norm(centers, table[-1] - table[-2])
        other = self.space.norm(centers, table[-1] - earlier)
        return torch.maximum(own, _TRUST * other)

    def _unextrapolated(self, centers: Tensor) -> Tensor:  # -> (c,)
        """The error of the means at a level, which falls like 1/n."""
        worst = torch.full_like(centers[:, 0], torch.inf)
        if len(self._raw) < 2:
            return worst
        worst = _CHANGES * self.space.norm(centers, centers - self._raw[-2])
        if len(self._raw) > 2:
            earlier = self.space.norm(centers, self._raw[-2] - self._raw[-3])
            worst = torch.maximum(worst, _CHANGES / 2 * earlier)
        return worst
