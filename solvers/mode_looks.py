"""What looks at whole curves have in common, on the way down and where they are verified.

A look decodes a curve's points between its ends, of which the images stay, and pulls the force on
the images back. What it tells of energy, length and rounding, and what is extrapolated from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from riemae.exceptions import MetricError
from riemae.numerics.offers import offers
from riemae.solvers.hooks import Force, HasPulled, embedding_of, pulled_of
from riemae.solvers.polynomials import inner_points, lobatto_weights, slope_of_inner
from riemae.solvers.secants import Search
from riemae.solvers.space import Space

# Bytes that images of end points may take, and how few curves may share them.
_BYTES, _FEWEST = 2**28, 16
# Rounding of an energy, relative to it, so many units per point; and of a length, in units of the
# size of an image.
_ROUNDING, _GRAIN = 16, 4
# The share of a difference of lengths between two resolutions that the finer one is off by, at
# least; more where the images' highest modes have fallen by less.
LEAST_MISSED = 0.05
# Images whose highest modes have not fallen by this factor are not smooth on this scale.
DECAY = 0.7
# What further modes would gain is extrapolated from the finest ones, of which the finer half gains
# at most this share of what the coarser half does, and counts so many times.
_SLOWEST, _DOUBT = 0.9, 3
N = TypeVar("N", Tensor, np.ndarray)


@dataclass
class ModeSearch(Search):
    """Progress on ``p`` curves, whose modes are sought.

    Attributes:
        corners: ``(p, 2, m)``, the end points.
    """

    corners: Tensor

    @property
    def z0(self) -> Tensor:
        """``(p, m)``."""
        return self.corners[:, 0]

    @property
    def z1(self) -> Tensor:
        """``(p, m)``."""
        return self.corners[:, 1]

    def promised(self) -> Tensor:  # -> (p, k)
        """Twice what the step to the next trial, if it were whole, would gain by each mode."""
        step = (self.trial - self.x) / self.stride[:, None, None]
        return (self.gradient * step).abs().sum(2)


def with_ends(space: Space, nodes: Tensor) -> Iterator[tuple[slice, Tensor | None]]:
    """Blocks of curves ``(p, n + 1, m)``, with the images ``(q, 2, D)`` of their end points.

    As many as fit into memory. All at once with None where the space has no images, or pulls no
    forces back.
    """
    embedded = embedding_of(space)
    ends = nodes[:, :: nodes.shape[1] - 1]
    one = None
    if embedded is not None and offers(space, HasPulled) and len(nodes):
        one = embedded(ends[:1], lambda x: x)
    if embedded is None or one is None:
        yield slice(0, len(nodes)), None
        return
    size = max(_FEWEST, _BYTES // (one.numel() * one.element_size()))
    for begin in range(0, len(nodes), size):
        some = slice(begin, begin + size)
        yield some, one if len(nodes) == 1 else embedded(ends[some], lambda x: x)


def looked_at(
    space: Space, state: ModeSearch, count: int, force: Force, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient ``(p, k, m)`` at the trials in the modes, and what ``force`` tells of images.

    Args:
        space: The space.
        state: The curves.
        count: Points that see them, with the ends.
        force: From images ``(p, q, D)``.
        ends: ``(p, 2, D)``, the images of the end points.

    Raises:
        MetricError: For a space that has images, but pulls no force on them back.
    """
    points = inner_points(state.corners, state.trial, count)
    found = pulled_of(space, points, force, ends)
    if found is None:
        raise MetricError(
            "Space.pulled",
            "forces at the points, because embedded has images of them",
            "None",
            "Return None from both, or leave pulled out.",
        )
    along, told = found
    return slope_of_inner(along, state.x.shape[1]), told


def energy_and_length(v: Tensor) -> tuple[Tensor, Tensor]:  # (p, q, D) -> (p,) each
    """Of curves with these velocities of their images at the Gauss-Lobatto times."""
    squares = v.square().sum(-1)
    weights = lobatto_weights(v.shape[1], squares)
    return (squares * weights).sum(-1), (squares.sqrt() * weights).sum(-1)


def energy_rounding(eps: float, count: int) -> float:
    """Of an energy seen by so many points, relative to it."""
    return _ROUNDING * eps * count


def length_rounding(eps: float, count: int, length: N, size: N) -> N:  # (p,), (p,) -> (p,)
    """What rounding makes of lengths seen by so many points, between images of such sizes."""
    # What does not cancel along the curve, and what uneven speeds add.
    rough = eps * count**2 * size
    return _GRAIN * eps * (size + length) + rough**2 / length


def beyond(gains: Tensor) -> Tensor:  # (p, k) -> (p,)
    """Twice what modes finer than these would gain, extrapolated from them.

    Args:
        gains: Twice what each mode gains, or has gained.
    """
    half = gains.shape[1] // 2
    coarse, fine = gains[:, :half].sum(1), gains[:, -half:].sum(1)
    ratio = (fine / coarse).nan_to_num(0.0).clamp(max=_SLOWEST)
    return _DOUBT * fine * ratio / (1 - ratio)
