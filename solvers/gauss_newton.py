"""Curves with few degrees of freedom, seen at many points: where the metric is nearly singular.

Along directions in which the metric nearly vanishes a curve may go far for little. Gradients creep
along them; and curves that are free at every node bend between nodes, where their chords do not see
them: the energy falls, the length rises. So here a curve is a spline of few pieces
(:mod:`riemae.solvers.bumps`), and its energy is that of the chords between eight times as many
points. Its Gauss-Newton matrix, projected onto the spline's coefficients, is small enough to be
factorised. It knows how tangents turn along the curve, which a metric alone does not.

A level is a number of pieces. On each the energy is minimised by Levenberg and Marquardt's method:
a multiple of the straight line's Hessian is added, which falls where the model is right. Between
two matrices a few steps are of limited-memory BFGS. Near the geodesic the matrix is the Hessian
itself: steps then converge quadratically, and a saddle is noticed. What may be left is told by the
decrement of the *undamped* matrix, and by how steps shrink; what is missing for want of pieces, by
how lengths fall from level to level.

Curves are solved one by one: their matrices are large, and their bits are those of each alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.budget import Exhausted, spent
from riemae.solvers.bumps import bends, bumps_of, curve_of, finer
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import energy_and_gradient, precision_of
from riemae.solvers.measure import Measure
from riemae.solvers.secants import curved, descent, remaining, remembered
from riemae.solvers.solver import Attempt
from riemae.solvers.space import Space

# Points per piece: of the energy, whose chords are not to cut corners, and of the matrix, which
# costs more.
_POINTS, _PLACES = 8, 4
# Of Levenberg and Marquardt: the first damping, as a share of the mean eigenvalue of the metric,
# how it rises and falls, and which shares of what the model promises decide on that.
_FIRST, _RISE, _FALL = 1e-3, 4.0, 3.0
_POOR, _RICH, _ENOUGH = 0.2, 0.6, 0.1
_HIGHEST = 1e2
# What stands for no damping: less makes no difference to decrements, even at a condition of 1e12.
_LEAST = 1e-8
_ROUNDED = 1e2  # in units of the rounding error of a number
# Steps with one matrix, and the share of what the first one has brought below which a new one is
# due.
_STEPS, _SLOW = 4, 0.3
# Steps that are remembered for how fast they shrink.
_WINDOW = 3
# A level ends with this share of what is asked for left over, or when the steps with one matrix
# bring less than this share of that. The first one need not be solved as well as that.
_SHARE = 0.25
_CREEPING = 0.05
# Second derivatives are taken where less is left than this, up to so many dimensions. A Hessian
# that is positive definite only with more damping than that is one of a saddle.
_NEAR = 1e-3
_SECOND_ORDER_UP_TO = 256
_SADDLE = 1e-5
# A level whose chords miss so much more than what is asked for is not believed.
_CHORDS = 3.0
_ROUNDING = 16
# Lengths fall by a factor of 3 to 8 less from level to level; what is claimed has a margin.
_SLOWEST, _FASTEST = 1.5, 4.0
_DOUBT = 2.0
# How uneven a speed counts as an error, as a share of its mean squared deviation, and which
# deviation is even enough for two levels to be believed.
_STRAY, _EVEN = 1.0, 1e-5


@dataclass(frozen=True)
class Settings:
    """Of :func:`attempt`.

    Attributes:
        pieces: Of the levels' curves.
        unknowns: No curve has more numbers than this.
        matrices: Matrices per level.
        history: Secants that are remembered between two of them.
    """

    pieces: tuple[int, ...]
    unknowns: int
    matrices: int
    history: int


@dataclass
class _Descent:
    """Progress of one curve.

    Attributes:
        space: The space.
        z0: ``(1, m)``.
        z1: ``(1, m)``.
        bumps: ``(1, k, m)``, coefficients.
        settings: How.
        damping: A share of the metric's mean eigenvalue.
        steps: Gradients taken so far.
        left: What the length may still fall by, relatively.
        minimum: Whether the last matrix was not that of a saddle.
    """

    space: Space
    z0: Tensor
    z1: Tensor
    bumps: Tensor
    settings: Settings
    damping: float = _FIRST
    steps: int = 0
    left: float = torch.inf
    minimum: bool = True
    energy: Tensor = field(init=False)
    gradient: Tensor = field(init=False)

    def level(self, pieces: int, goal: float) -> bool:
        """Minimise over all curves of so many pieces, until ``goal`` is left.

        False where there is no metric, no energy or no step that lowers it.
        """
        if pieces + 1 > self.bumps.shape[1]:
            self.bumps = finer(self.bumps, pieces)
        self.pieces = pieces
        self.segments = _POINTS * pieces
        self.places = _PLACES * pieces
        self.energy, self.gradient = self._look(self.bumps)
        self.gains = self.bumps.new_full((1, _WINDOW), torch.nan)
        matrix = None
        for _ in range(self.settings.matrices):
            if spent(self.space) or not bool(self.energy.isfinite()):
                return False
            before = self.bumps
            height = float(self.energy)
            if matrix is None:
                matrix = _Matrix.of(self, second_order=self._near())
                self._forget()
            if matrix is None:
                return False
            self._descend(matrix)
            if self.bumps is not before:
                matrix = None
            gained = (height - float(self.energy)) / (2 * height)
            # Where steps bring next to nothing, more pieces may; what is left stays in the error.
            creeping = self.bumps is not before and gained < _CREEPING * goal
            if (self.left <= goal or creeping) and self.minimum:
                return True
            if self.damping > _HIGHEST:
                return False
        return True

    def curve(self) -> Curve:
        """The curve on as many segments as its energy was seen on."""
        return curve_of(self.z0, self.z1, self.bumps, self.segments)

    def _look(self, bumps: Tensor) -> tuple[Tensor, Tensor]:
        """Energy ``(1,)`` and gradient ``(1, k, m)``."""
        self.steps += 1
        nodes = curve_of(self.z0, self.z1, bumps, self.segments).nodes
        energy, along = energy_and_gradient(self.space, nodes)
        return energy, bends(self.pieces, self.segments, bumps).T @ along

    def _descend(self, matrix: _Matrix) -> None:
        """A few steps with one matrix."""
        eps = _ROUNDING * precision_of(self.space, self.bumps.dtype).eps * self.segments
        grain = eps * float(self.energy)
        first, self.damping = matrix.damped(max(self.damping, matrix.least))
        begun = 0.0
        for step in range(_STEPS):
            direction = descent(self.gradient, self.moves, self.changes, first)
            promised = float(-(self.gradient * direction).sum() / 2)
            if not promised > grain / _ROUNDING:
                break
            gain = self._tried(direction, grain)
            if step == 0:
                self._damp(gain / promised)
                begun = gain
            if gain <= _ENOUGH * promised or gain < _SLOW * begun:
                break
        undamped, needed = matrix.damped(matrix.least)
        slope = -(self.gradient * undamped(self.gradient)).sum((1, 2))
        self.left = float(remaining(slope, self.gains) / (2 * self.energy))
        self.minimum = needed <= _SADDLE

    def _near(self) -> bool:
        """Whether second derivatives are worth having."""
        return self.left < _NEAR and self.bumps.shape[2] <= _SECOND_ORDER_UP_TO

    def _forget(self) -> None:
        """Forget all secants: they spoil a matrix that knows the curve's place."""
        none = self.bumps.new_zeros(1, self.settings.history, *self.bumps.shape[1:])
        self.moves = none
        self.changes = none

    def _tried(self, direction: Tensor, grain: float) -> float:
        """Take a step if it lowers the energy, and learn from it; by how much it does."""
        trial = self.bumps + direction
        energy, gradient = self._look(trial)
        finite = bool(energy.isfinite() & gradient.isfinite().all())
        if not finite:
            return -torch.inf
        gain = self.energy - energy
        # Within the rounding of energies, the slopes at both ends tell the difference better.
        shown = -((self.gradient + gradient) * direction).sum((1, 2)) / 2
        gain = torch.where(gain.abs() <= grain, shown, gain)
        if bool(gain > 0):
            # Trials that are not taken have gone too far for their secants to say much here.
            change = gradient - self.gradient
            secant = direction, change, curved(direction, change)[1]
            self.moves, self.changes = remembered(self.moves, self.changes, *secant)
            self.bumps, self.energy, self.gradient = trial, energy, gradient
            self.gains = torch.cat([gain[:, None], self.gains[:, :-1]], 1)
        return float(gain)

    def _damp(self, share: float) -> None:
        if not share >= _POOR:
            self.damping = max(_RISE * self.damping, _LEAST)
        elif share >= _RICH:
            self.damping = max(self.damping / _FALL, _LEAST)


@dataclass(frozen=True)
class _Matrix:
    """The matrix of a quadratic model in the coefficients of one curve, in double precision.

    Attributes:
        whole: ``(k m, k m)``.
        line: ``(k, k)``, the same for one coordinate in a metric of 1.
        size: Mean eigenvalue of the metric.
        least: What stands for no damping.
        m: Latent dimensions.
    """

    whole: Tensor
    line: Tensor
    size: float
    least: float
    m: int

    @classmethod
    def of(cls, descent: _Descent, second_order: bool) -> _Matrix | None:
        """About a curve; None without a metric."""
        bumps = descent.bumps
        _, k, m = bumps.shape
        n = descent.places
        nodes = curve_of(descent.z0, descent.z1, bumps, n).nodes
        expansion = descent.space.expand(nodes, second_order=second_order)
        blocks = expansion.hessian or expansion.gauss_newton
        shapes = bends(descent.pieces, n, bumps).double()
        own = blocks.diagonal[0].double()
        metric = expansion.gauss_newton.diagonal[0]
        size = float(metric.diagonal(dim1=1, dim2=2).mean()) / (4 * n)
        if not 0 < size < torch.inf:
            return None
        whole = _projected(shapes, shapes, own)
        across = _projected(shapes[:-1], shapes[1:], blocks.upper[0].double())
        whole = whole + across + across.permute(2, 3, 0, 1)
        rises = torch.nn.functional.pad(shapes, (0, 0, 1, 1)).diff(dim=0)
        line = 2 * n * rises.T @ rises
        eps = torch.finfo(bumps.dtype).eps
        return cls(whole.reshape(k * m, k * m), line, size, max(_LEAST, _ROUNDED * eps), m)

    def damped(self, damping: float) -> tuple[Callable[[Tensor], Tensor], float]:
        """The inverse with a multiple of the line's Hessian added, and the multiple.

        It is raised until the sum is positive definite.
        """
        k = len(self.line)
        while True:
            whole = self.whole.clone().view(k, self.m, k, self.m)
            along = whole.diagonal(dim1=1, dim2=3)  # (k, k, m)
            along += (damping * self.size * self.line)[..., None]
            root, info = torch.linalg.cholesky_ex(whole.view_as(self.whole))
            if not int(info) or damping > _HIGHEST:
                break
            damping *= _RISE

        def inverse(g: Tensor) -> Tensor:  # (1, k, m)
            found = torch.cholesky_solve(g.double().reshape(-1, 1), root)
            return found.reshape(g.shape).to(g)

        return inverse, damping


def _projected(left: Tensor, right: Tensor, blocks: Tensor) -> Tensor:
    """``Σ_i left_ik right_il block_i``, ``(k, m, k, m)``."""
    n, k = left.shape
    m = blocks.shape[-1]
    pairs = (left[:, :, None] * right[:, None]).reshape(n, k * k)
    found = pairs.T @ blocks.reshape(n, m * m)
    return found.view(k, k, m, m).permute(0, 2, 1, 3)


def attempt(
    space: Space, start: Curve, least: np.ndarray, rtol: float, settings: Settings
) -> Attempt:
    """Try curves ``(p,)``, one by one.

    Args:
        space: The space.
        start: Start curves.
        least: ``(p,)``, lower bounds of the lengths, NaN where unknown.
        rtol: The relative accuracy.
        settings: How.

    Returns:
        Those that are good enough.
    """
    rows: list[int] = []
    found: list[tuple[float, ...]] = []
    curves: list[tuple[np.ndarray, Curve]] = []
    for row in range(len(start.nodes)):
        if spent(space):
            break
        one = start[torch.tensor([row], device=start.nodes.device)]
        try:
            done = _solved(space, one, float(least[row]), rtol, settings)
        except Exhausted:
            break
        if done is not None:
            curves.append((np.array([len(rows)]), done[1]))
            rows.append(row)
            found.append(done[0])
    length, error, left, uneven, steps = np.array(found, dtype=float).reshape(-1, 5).T
    return Attempt(
        rows=np.array(rows, dtype=np.int64),
        length=length,
        error=error,
        left=left,
        unevenness=uneven,
        steps=steps,
        index=np.full(len(rows), -1),
        curves=curves,
    )


def _solved(
    space: Space, start: Curve, least: float, rtol: float, settings: Settings
) -> tuple[tuple[float, ...], Curve] | None:
    """Length, error, what is left, unevenness and steps of one curve, and it; None for none."""
    z0, z1 = start.nodes[:, 0], start.nodes[:, -1]
    m = z0.shape[1]
    pieces = [s for s in settings.pieces if (s + 1) * m <= settings.unknowns]
    if len(pieces) < 2:
        return None
    run = _Descent(space, z0, z1, bumps_of(start, pieces[0]), settings)
    lengths: list[float] = []
    for count in pieces:
        if not run.level(count, (_SHARE if lengths else 1.0) * rtol):
            return None
        curve = run.curve()
        measure = Measure.of(space, curve)
        length, grain, root = (
            float(x[0]) for x in (measure.length, measure.grain, measure.root_energy)
        )
        if not length > 0 or length < least - grain:
            return None
        lengths.append(length)
        wobble = float(measure.wobble[0])
        # A geodesic's speed is even: one that is not strays from it, by at least as much.
        error = max(_further(lengths), _STRAY * wobble * length) + run.left * length + grain
        if length >= least:
            error = min(error, length - least + grain)
        # Two levels of an uneven curve may agree by accident.
        enough = len(lengths) > 2 or wobble <= _EVEN
        seen = enough and abs(length - root) <= _CHORDS * rtol * length
        if error <= rtol / (1 + rtol) * length and seen and run.minimum:
            uneven = wobble**0.5
            return (length, error, run.left, uneven, run.steps), curve
    return None


def _further(lengths: list[float]) -> float:
    """What further levels may take off the last length, from those of all levels; NaN for one."""
    falls = np.abs(np.diff(lengths))
    if not len(falls):
        return np.nan
    last = float(falls[-1])
    if len(falls) < 2:
        return _DOUBT * last
    with np.errstate(all="ignore"):
        ratio = float(np.clip(falls[-2] / last, _SLOWEST, _FASTEST))
    return _DOUBT * last / (ratio - 1)
