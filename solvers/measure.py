"""Lengths of curves at one resolution, and what several resolutions say of their errors.

Every level gives three independent numbers for a pair:

- the *length* of the smooth curve through the nodes, an upper bound of the distance;
- the *root energy* ``√(n Σ chord²)`` of the nodes alone, which does not see what lies between them.
  Minimised, it approaches the distance from below as ``d (1 − c h² + …)``, so two levels give an
  extrapolation without ``h²``;
- the *wobble*, the mean squared deviation of the speed from its mean. A geodesic has none. Where
  the curve between two right nodes strays by a velocity ``e``, its length is too long by the share
  ``½ ⟨e⊥²⟩``, and its speed deviates by ``e∥``.

Differences of lengths alone deceive where two levels agree by accident. The three together do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.energy import discrete_energy
from riemae.solvers.hooks import embedding_of, precision_of
from riemae.solvers.space import Space
from riemae.solvers.speeds import (
    nodes_of_samples,
    quadrature_weights,
    sampled_points,
    speeds_and_size,
    speeds_of_chords,
)
from riemae.solvers.state import read

# The ratio by which the length's error falls from one level to the next: h⁴ from the nodes. More is
# believed only once three levels have shown it, and then by half.
RATIO = 16.0
_RATIO_MIN = 1.5
_RATIO_MAX = 80.0
_BELIEVED = 2.0
# What the h⁴ part may make of the extrapolated root energy, as a share of the h² part: it was at
# most 0.07 on the first two levels of the benchmark's decoder. With three levels the change of the
# extrapolation says it.
_EXTRAPOLATION = 0.1
# Differences of levels are reported with a margin, and wider where the speed is uneven: up to so
# many times, and more where it is so uneven that the expansion in h has not begun to hold; there
# they are no longer capped by what the speed tells. Chosen for bars that cover the error in 95 % of
# cases, of steep networks as well, and are within a factor of ten of it on the closed forms of the
# tests and on decoders of digits.
_MARGIN = 1.1
_WIDER = 1.15
# The same where the differences fell faster than the nodes' h⁴: what is left has often just come
# down to h⁴, or has not begun to, and falls by 8 to 25 on the next level, whatever it did before.
_SETTLING = 1.7
# Two levels cannot show by what the error falls from one to the next. On the first levels of
# resolved curves it is 11 to 16, less in so many dimensions and more, however even the speed is,
# which tells nothing of deviations across the curve. There is no such need where the wobble falls
# by this many times and more: nodes that are right beyond h² leave lengths that are right beyond
# h⁴. Where curves stray along themselves by more than across, but not by so much more that the
# difference of lengths is an accident, and the solver had not left over so many times as much,
# lengths fall faster as well: on closed forms as the wobble does, on random networks some by 17
# only, which margins cover. So many times the usual ratio is believed.
_FROM_TWO, _MANY = 1.3, 4
_FASTER = 3 * RATIO
_FALLEN, _ALONG, _HIDDEN = 1.5, (3.0, 100.0), 100.0
# What a solver says to have left over is often the promise of a step that it has taken since. It is
# not believed where it is larger than the difference of two levels by more than this factor.
_PROMISED = 4.0
# The speed tells how far a curve strays along itself. There it also strays across, in m − 1
# directions of which each may add half as much to the length, or more where it is soft.
_ACROSS = 1.5
_SOFT = 1.75
_WIDEST = 6.0
_UNRESOLVED = 1e-5  # a mean squared deviation of the speed
# A curve whose speed exceeds the mean by more than this factor may hide a jump.
_UNEVEN = 1.5
_NUMBERS = (
    "length",
    "root_energy",
    "wobble",
    "grain",
    "blur",
    "mean",
    "fastest",
    "unevenness",
)


@dataclass(frozen=True)
class Measure:
    """Curves at one resolution; arrays ``(p,)`` but for the speeds.

    Attributes:
        curve: The curves.
        speed: ``(p, q)``, at quadrature points.
        weights: ``(q,)``, of these points.
        length: Of the curves.
        root_energy: Of their nodes, ``√(n Σ chord²)``.
        wobble: Mean squared relative deviation of the speed from its mean.
        grain: What rounding makes of the length, absolute.
        blur: What rounding of points makes of the distance between two of them, absolute.
        mean: Mean speed, by quadrature.
        fastest: Largest speed.
        unevenness: Largest relative deviation of the speed from its mean; 0 for a geodesic.
    """

    curve: Curve
    speed: Tensor
    weights: Tensor
    length: np.ndarray
    root_energy: np.ndarray
    wobble: np.ndarray
    grain: np.ndarray
    blur: np.ndarray
    mean: np.ndarray
    fastest: np.ndarray
    unevenness: np.ndarray

    @classmethod
    def of(cls, space: Space, curve: Curve) -> Measure:
        """Measure curves ``(p,)``.

        From points where the space embeds them in float64, elsewhere by tangents.
        """
        known = precision_of(space, curve.nodes.dtype)
        n = curve.segments
        embedded = embedding_of(space)
        seen = None
        if embedded is not None and curve.nodes.dtype == torch.float64:
            seen = embedded(sampled_points(curve), _summary)
        by_points = seen is not None
        if seen is not None:
            speed = seen[:, :-3]
            numbers = seen[:, -3:]
            weights = quadrature_weights(n, speed.shape[1] // n, curve.nodes)
        else:
            speed, weights, size = speeds_and_size(space, curve)
            numbers = _numbers_of_nodes(space, curve.nodes, size)
        told = read(numbers, *_statistics(speed, weights))
        root, inscribed, extent = told[0].T
        mean, wobble, largest, fastest = told[1:]
        # Nothing through these points is shorter than the polygon through them: quadrature of an
        # unresolved curve may.
        found = np.maximum(mean, inscribed)
        with np.errstate(all="ignore"):
            noise = known.eps * extent * n
            blur = 4 * known.eps * extent
            grain = known.length * found + 2 * noise**2 / found
            if by_points:  # rounding does not cancel in their differences
                grain = grain + blur * np.sqrt(4 * n)
            unevenness = np.where(mean > 0, largest, mean * 0)
        return cls(
            curve=curve,
            speed=speed,
            weights=weights,
            length=found,
            root_energy=root,
            wobble=wobble,
            grain=grain,
            blur=blur,
            mean=mean,
            fastest=fastest,
            unevenness=unevenness,
        )

    @property
    def may_hide_a_jump(self) -> np.ndarray:
        """``(p,)`` bool: the speed is so uneven that something may lie between two nodes."""
        return uneven(self.fastest, self.mean)

    def select(self, rows: np.ndarray, where: Tensor) -> Measure:
        """The curves at ``rows``, which are at ``where`` on the device."""
        columns = {name: getattr(self, name)[rows] for name in _NUMBERS}
        return replace(self, curve=self.curve[where], speed=self.speed[where], **columns)

    def put(self, rows: np.ndarray, where: Tensor, other: Measure) -> Measure:
        """These curves with others at ``rows``."""
        nodes = self.curve.nodes.clone()
        slopes = self.curve.slopes.clone()
        speed = self.speed.clone()
        nodes[where] = other.curve.nodes
        slopes[where] = other.curve.slopes
        speed[where] = other.speed
        columns = {name: getattr(self, name).copy() for name in _NUMBERS}
        for name, column in columns.items():
            column[rows] = getattr(other, name)
        return replace(self, curve=Curve(nodes, slopes), speed=speed, **columns)


def uneven(fastest: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Which curves are so much faster somewhere than on the whole that they may hide a jump."""
    return fastest > _UNEVEN * mean


def _numbers_of_nodes(
    space: Space, nodes: Tensor, size: Tensor
) -> Tensor:  # (p, n + 1, m), (p,) -> (p, 3)
    """As :func:`_of_nodes`; without images, nothing is known of the polygon."""
    embedded = embedding_of(space)
    if embedded is not None:
        seen = embedded(nodes, _of_nodes)
        if seen is not None:
            return seen
    root = discrete_energy(space.squared_chords(nodes)).sqrt()
    return torch.stack([root, torch.zeros_like(root), size], 1)


def _statistics(speed: Tensor, weights: Tensor) -> tuple[Tensor, ...]:  # (p, q), (q,)
    """Mean speeds, the wobble, the largest relative deviation, and the largest speed."""
    mean = (speed * weights).sum(-1)
    deviation = speed / mean[:, None] - 1
    wobble = (deviation.square() * weights).sum(-1)
    return mean, wobble, deviation.abs().amax(-1), speed.amax(-1)


def _summary(x: Tensor) -> Tensor:  # (p, s n + 1, D) -> (p, 4 n + 3)
    """Speeds, the root energy of the nodes, the length of the polygon through all points, sizes."""
    chords = x[:, 1:] - x[:, :-1]
    speed = speeds_of_chords(chords)
    inscribed = torch.linalg.vector_norm(chords, dim=-1).sum(-1, keepdim=True)
    numbers = _of_nodes(nodes_of_samples(x))
    return torch.cat([speed, numbers[:, :1], inscribed, numbers[:, 2:]], 1)


def _of_nodes(x: Tensor) -> Tensor:  # (p, n + 1, D) -> (p, 3)
    """The root energy of nodes, the length of the polygon through them, and their size."""
    chords = x[:, 1:] - x[:, :-1]
    squares = chords.square().sum(-1)
    size = torch.linalg.vector_norm(x, dim=-1).amax(-1)
    root = discrete_energy(squares).sqrt()
    inscribed = squares.sqrt().sum(-1)
    return torch.stack([root, inscribed, size], 1)


class Evidence:
    """Lengths and root energies of ``p`` pairs on their last three levels.

    And the error estimate that they support.

    Attributes:
        lengths: ``(3, p)``, the oldest first; NaN before there is one.
        roots: ``(3, p)``, root energies.
        wobbles: ``(2, p)``, on the last two levels.
        left: ``(2, p)``, the length that the solver had left over there, absolute.
    """

    def __init__(self, p: int) -> None:
        self.lengths, self.roots = np.full((2, 3, p), np.nan)
        self.wobbles, self.left = np.full((2, 2, p), np.nan)

    def add(self, rows: np.ndarray, length: np.ndarray, root_energy: np.ndarray) -> None:
        """Take in a finer level of the pairs at ``rows``."""
        for kept, new in ((self.lengths, length), (self.roots, root_energy)):
            kept[0, rows] = kept[1, rows]
            kept[1, rows] = kept[2, rows]
            kept[2, rows] = new

    def end(self, rows: np.ndarray, wobble: np.ndarray, left: np.ndarray) -> None:
        """Take in how the solver left the curves that were added last."""
        for kept, new in ((self.wobbles, wobble), (self.left, left)):
            kept[0, rows] = kept[1, rows]
            kept[1, rows] = new

    def replace(self, rows: np.ndarray, length: np.ndarray) -> None:
        """A better curve through the same nodes."""
        self.lengths[2, rows] = length

    def extrapolation(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The root energy without its ``h²`` part, and how far it can be trusted.

        NaN at the first level.
        """
        oldest, previous, now = self.roots[:, rows]
        limit = (4 * now - previous) / 3
        doubt = _EXTRAPOLATION * np.abs(now - previous)
        earlier = (4 * previous - oldest) / 3
        change = np.abs(limit - earlier) / 3
        return limit, np.fmin(doubt, change)

    def unexplained(self, rows: np.ndarray) -> np.ndarray:
        """What the length exceeds the extrapolated root energy by, beyond any doubt about that.

        NaN at first.
        """
        limit, doubt = self.extrapolation(rows)
        gap = np.abs(self.lengths[2, rows] - limit)
        return np.maximum(gap - doubt, 0.0)

    def thin(self, rows: np.ndarray, wobble: np.ndarray) -> np.ndarray:
        """``(q,)`` bool: little speaks for a length.

        Two levels of uneven curves, or three whose differences are not those of a series: one that
        is far smaller than that before may be small by accident, or the first one between curves of
        the same valley.

        Args:
            rows: The pairs.
            wobble: Theirs at the last level.
        """
        oldest, previous, now = self.lengths[:, rows]
        shown = np.abs((oldest - previous) / (previous - now))
        two = np.isnan(oldest) & ~np.isnan(previous)
        return (two & (wobble > _UNRESOLVED)) | (shown > _RATIO_MAX)

    def error(
        self, rows: np.ndarray, wobble: np.ndarray, ratio: float, dimension: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Absolute error of the last lengths, and what it may be at worst; NaN at the first level.

        A length is accepted by the worst. The wobble belongs to it alone: where only the speed
        along the right path is uneven, the length has no error at all.

        Args:
            rows: The pairs.
            wobble: Theirs at the last level.
            ratio: By which the solver's error falls per level, until three levels show another.
            dimension: Of the space.
        """
        oldest, previous, now = self.lengths[:, rows]
        change = np.abs(previous - now)
        shown = np.abs((oldest - previous) / (previous - now))
        careful, hopeful = _divisors(shown, ratio)
        # The previous length is that of a real curve: a longer one is too long by all of the
        # difference.
        longer = now - previous
        between = np.maximum(change / hopeful, longer)
        faster = np.where(self._settled(rows, wobble), _FALLEN * ratio - 1, 0.0)
        careful, hopeful = np.maximum(careful, faster), np.maximum(hopeful, faster)
        limit, doubt = self.extrapolation(rows)
        gap = np.abs(now - limit)
        # A gap that the extrapolation's own error cannot explain is the curve's.
        unexplained = np.where(gap > doubt, gap + doubt, 0.0)
        stray = np.fmin(wobble * now, gap + doubt)
        worst = np.maximum(np.maximum(between, unexplained), stray)
        reported = np.maximum(np.maximum(change / hopeful, longer), unexplained)
        unresolved = np.minimum(wobble / _UNRESOLVED, 1.0)
        settling = shown > RATIO  # False for NaN
        least = np.where(settling, _SETTLING, _WIDER)
        wider = least + (_WIDEST - least) * unresolved
        doubtful = np.maximum(np.maximum(change / careful, longer), unexplained)
        # Along directions in which a curve is soft it strays further than its speed tells.
        soft = _SOFT * np.sqrt(unresolved) * doubtful
        around = np.where(settling, max(1.0, _ACROSS * (dimension - 1)), 1.0)
        strays = np.fmin(around * wobble * now, gap + doubt)
        wide = np.maximum(soft, np.fmin(strays, wider * doubtful))
        if dimension >= _MANY:
            wide = np.fmax(wide, self._from_two(rows, wobble, careful))
        return _MARGIN * np.maximum(reported, wide), worst

    def _settled(self, rows: np.ndarray, wobble: np.ndarray) -> np.ndarray:
        """``(q,)`` bool: two levels from one to the other of which lengths fall faster than h⁴.

        Args:
            rows: The pairs.
            wobble: Theirs at the last level.
        """
        oldest, previous, now = self.lengths[:, rows]
        before, left = self.wobbles[0, rows], self.left[0, rows]
        change = np.abs(previous - now)
        along = before * now
        likely = (_ALONG[0] * change <= along) & (along <= _ALONG[1] * change)
        likely &= ~(left > _HIDDEN * change) & (wobble <= _UNRESOLVED)
        told: np.ndarray = np.isnan(oldest) & (before > _FASTER * wobble) & likely
        return told

    def _from_two(self, rows: np.ndarray, wobble: np.ndarray, divisor: np.ndarray) -> np.ndarray:
        """The least error of pairs with two levels that fall by h⁴ or so; NaN for others.

        Args:
            rows: The pairs.
            wobble: Theirs at the last level.
            divisor: What the difference of the two lengths is to be divided by.
        """
        oldest, previous, now = self.lengths[:, rows]
        change = np.abs(previous - now)
        before, after = self.left[:, rows]
        # Where the solver ended early, that may hide a part of what the nodes leave.
        hidden = _believed(change, before)
        shown = change + hidden + _crossed(change, hidden)
        least = _FROM_TWO * shown / divisor
        # What is left over itself is added with the claim.
        least = least + _crossed(least, _believed(least, after))
        faster = self.wobbles[0, rows] > _FASTER * wobble
        told = np.isnan(oldest) & ~faster
        return np.where(told, least, np.nan)


def _believed(length: np.ndarray, left: np.ndarray) -> np.ndarray:
    """What a solver has left over, as far as a length that the nodes leave makes it credible.

    0 where it is unknown.
    """
    return np.where(left <= _PROMISED * length, np.minimum(left, length), 0.0)


def _crossed(length: np.ndarray, left: np.ndarray) -> np.ndarray:
    """What two deviations that lengthen a curve by these lengths add together, besides their sum.

    The solver's curve strays from the shortest one through few nodes, as that does from the
    geodesic. Lengths grow with the square of the whole deviation.
    """
    crossed: np.ndarray = 2 * np.sqrt(length * left)
    return crossed


def _divisors(shown: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """What a difference of lengths is to be divided by: with care, and with hope.

    Args:
        shown: By which the differences have fallen; NaN with two levels.
        ratio: By which they are said to fall.
    """
    falls = shown.clip(_RATIO_MIN, _RATIO_MAX) - 1
    first = np.isnan(shown)
    # A large ratio is often that of a curve which has just been resolved; the next is smaller.
    careful = np.where(first, ratio - 1, np.minimum(falls, RATIO - 1))
    hopeful = np.where(first, ratio - 1, np.maximum(careful, falls / _BELIEVED))
    return careful, hopeful
