"""Which solvers a call for geodesics takes when it names none."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from riemae.numerics.memory import total_memory
from riemae.numerics.values import evidently_finite
from riemae.solvers.hooks import gradients_only, precision_of, width_of
from riemae.solvers.methods.gauss_newton import GaussNewton
from riemae.solvers.methods.newton import Newton
from riemae.solvers.methods.newton_cg import NewtonCG
from riemae.solvers.methods.quasi_newton import WIDE, QuasiNewton
from riemae.solvers.methods.spectral import Spectral
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space
from riemae.solvers.state import at_hand

# Steps of the solver that takes over where the metric is singular: enough where its rank is the
# same everywhere. Where a curve ran into a singular point, more of them come to nothing.
_RESORT_STEPS = 50
# Latent dimensions from which on gradients go first. On MLPs of digits, rtol 1e-3, in sweeps of
# value and Jacobian: at m = 8 Newton 5.4 and QuasiNewton 6.9, at 32 2.4 and 1.5; with transposed
# convolutions at 64 4.0 and 1.8.
GRADIENTS_FROM = WIDE
# Whole curves are tried first up to so many: the metric at two places of a curve costs fewer
# decodings than their gradients.
_WHOLE_UP_TO = 64
# And from so many on. In fewer, where tangents are cheap and decoders of several classes fold,
# segments are as fast. Below GRADIENTS_FROM also down to this tolerance only: the last digits are
# left to Newton, which knows the Morse index. At 1e-4, of Newton's time, whole curves take 0.69 for
# one pair of digits in 8 dimensions, 1.03 for 32, where small operations are what costs, and 0.66
# for 1,000; with transposed convolutions 0.32 for one, and 0.23 for 16.
WHOLE_FROM, WHOLE_DOWN_TO = 3, 3e-5
# The same where rounding, in the decoder or outside, hides more than the second number: in
# float32, at 1e-4, 4 of 784 whole curves on maps onto flat spaces were off by up to 1.9 times that.
# And on accelerators, where small operations cost more: 64 pairs to 1e-4 take 1,500, Newton 800.
WHOLE_DOWN_TO_ELSE, _EXACT = 3e-4, 1e-12
# From so many on, second derivatives follow only below this tolerance: a curve that gradients have
# not brought so far in 500 steps meets a metric so badly conditioned that they take minutes.
_COSTLY_FROM = 64
_LAST_DIGITS = 1e-4
# Gradients that have not done in so many steps, or in so many below 1e-3, creep along directions in
# which the metric nearly vanishes.
_PATIENCE, _PATIENCE_FINE = 96, 48
_FINE = 1e-3
# Measured with an MLP m → 512 → 512 → 784 on one core, 2 to 4 pairs, rtol 1e-4: NewtonCG takes as
# long as Newton at m = 32, 0.5 to 0.85 times as long at 64, 0.25 to 0.6 times at 128, where
# Newton's index and its indifference to the metric's condition weigh less; at 512 Newton holds a
# gigabyte for 4 pairs, NewtonCG a tenth of it.
MATRIX_FREE_FROM = 96
# Nodes of one curve on the levels that most curves end on, and which part of the memory there is
# their second derivatives may take: beyond, NewtonCG holds a fifth of it.
_POINTS_OF_A_CURVE = 16
_SHARE_OF_A_CURVE = 16


@dataclass(frozen=True)
class Choice:
    """Solvers, in the order in which they get their turn.

    Attributes:
        solver: For all pairs.
        further: One after the other, for pairs on which those before make no headway.
        resort: For pairs along which the metric is singular.
    """

    solver: Solver
    further: tuple[Solver, ...] = ()
    resort: NewtonCG | None = None


def choice(
    space: Space, z: Tensor, m: int, rtol: float, target: Literal["minimum", "stationary"]
) -> Choice:  # (*b, m + labels)
    """Solvers for pairs in ``space``.

    Args:
        space: The space.
        z: Points, of which the first finite one tells what the decoder costs.
        m: Latent dimensions.
        rtol: Relative accuracy that is asked for.
        target: ``"stationary"`` keeps to start curves that are nearly geodesics.
    """
    point = _first_finite(z)
    gradients = bool(len(point)) and gradients_only(space, point)
    fits = _fits(space, point, m)
    double = z.dtype == torch.float64
    exact = precision_of(space, z.dtype).eps <= _EXACT
    loose = rtol >= (WHOLE_DOWN_TO if exact and at_hand(z) else WHOLE_DOWN_TO_ELSE)
    solver = default_solver(m, target, fits, gradients, loose)
    resort = None if isinstance(solver, NewtonCG) else NewtonCG(max_steps=_RESORT_STEPS)
    if not isinstance(solver, QuasiNewton):
        return Choice(solver, resort=resort)
    further: tuple[Solver, ...] = ()
    if m < _COSTLY_FROM or rtol < _LAST_DIGITS:
        further = (_of_second_order(m, "minimum", fits),)
    # In single precision a matrix does not see directions in which the metric nearly vanishes.
    if not gradients and double:
        patience = _PATIENCE_FINE if rtol < _FINE else _PATIENCE
        solver = replace(solver, max_steps=patience)
        further = (GaussNewton(), *further)
    return Choice(solver, further, resort)


def default_solver(
    m: int,
    target: Literal["minimum", "stationary"] = "minimum",
    fits: bool = True,
    gradients: bool = False,
    loose: bool = False,
) -> Solver:
    """Settings for ``m`` latent dimensions.

    Newton with its certificate in few, where little accuracy is asked for at first for whole
    curves; gradients in many, at first for whole curves, too. Start curves that are to be kept,
    even where they do not minimise, stay with Newton, matrix-free where its blocks cost too much.

    Args:
        m: Latent dimensions.
        target: Of Newton.
        fits: Whether the second derivatives along a curve fit into memory well.
        gradients: Whether second derivatives cost far more than gradients.
        loose: Whether little accuracy is asked for.
    """
    if target == "minimum" and not gradients and GRADIENTS_FROM <= m <= _WHOLE_UP_TO:
        return Spectral()
    if target == "minimum" and (gradients or m >= GRADIENTS_FROM):
        return QuasiNewton()
    solver = _of_second_order(m, target, fits)
    if isinstance(solver, Newton) and target == "minimum" and loose and m >= WHOLE_FROM:
        return replace(solver, whole=True)
    return solver


def _of_second_order(
    m: int, target: Literal["minimum", "stationary"], fits: bool
) -> Newton | NewtonCG:
    """Newton, matrix-free where its blocks cost too much."""
    if m < MATRIX_FREE_FROM and fits:
        return Newton(target=target)
    return NewtonCG()


def _first_finite(z: Tensor) -> Tensor:  # (*b, m) -> (1, m)
    """The first point without NaN and infinity; ``(0, m)`` where there is none."""
    flat = z.detach().reshape(-1, z.shape[-1])
    first = flat[:1]
    if evidently_finite(first):
        return first
    return flat[flat.isfinite().all(-1)][:1]


def _fits(space: Space, point: Tensor, m: int) -> bool:  # (1, m) or (0, m)
    """Whether the second derivatives at the nodes of one curve fit into memory well.

    They hold a value, m tangents and m second derivatives of the widest layer at 16 points: that
    may be a sixteenth of the memory there is in all. It does not depend on what is free.
    """
    if not len(point):
        return True
    numbers = width_of(space, point) * (1 + 2 * m)
    wanted = _POINTS_OF_A_CURVE * numbers * point.element_size()
    return wanted <= total_memory(point.device) // _SHARE_OF_A_CURVE
