"""Splines of few pieces by damped Newton steps, where the metric is nearly singular."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from riemae.numerics.checks import expect_range
from riemae.solvers.curve import Curve
from riemae.solvers.gauss_newton import Settings, attempt
from riemae.solvers.methods.quasi_newton import QuasiNewton
from riemae.solvers.solver import Attempt, check_settings
from riemae.solvers.space import Space

_GROWTH = 1.5  # of pieces from level to level
_LEVELS = 6


@dataclass(frozen=True)
class GaussNewton(QuasiNewton):
    """Settings of the solver for metrics that are nearly singular in many dimensions.

    A curve is a cubic spline of a growing number of pieces, and its energy that of chords between
    eight times as many points. It is minimised by Levenberg and Marquardt's method with the
    Gauss-Newton matrix of all its coefficients, near the geodesic with the Hessian: see
    :mod:`riemae.solvers.gauss_newton`. In 128 dimensions at a condition of 1e11 that takes some
    twenty matrices to 1e-4, where gradients take hundreds of steps and do not arrive.

    Curves for which that is not enough are left to :class:`QuasiNewton`, of which all other
    settings are. The Morse index is unknown (−1).

    Args:
        pieces: Of the first curve.
        unknowns: Numbers of one curve, at most: its matrix has as many rows.
        matrices: Matrices per level.

    Raises:
        OptionError: For a value out of range.

    References:
        J. J. Moré, The Levenberg-Marquardt algorithm: implementation and theory, Lecture Notes in
        Mathematics 630, 1978. J. Nocedal, S. J. Wright, Numerical Optimization, chapter 10, 2006.
    """

    pieces: int = 6
    unknowns: int = 6144
    matrices: int = 16

    def __post_init__(self) -> None:
        check_settings("GaussNewton", self, "history", "sketch", "matrices")
        expect_range("GaussNewton", "pieces", self.pieces, 2, integer=True)
        expect_range("GaussNewton", "unknowns", self.unknowns, 1, integer=True)

    def attempt(self, space: Space, start: Curve, least: np.ndarray, rtol: float) -> Attempt:
        """Try curves ``(p,)``, of which nothing shorter than ``least`` joins the ends."""
        pieces = [self.pieces]
        while len(pieces) < _LEVELS:
            pieces.append(round(_GROWTH * pieces[-1]))
        settings = Settings(tuple(pieces), self.unknowns, self.matrices, self.history)
        return attempt(space=space, start=start, least=least, rtol=rtol, settings=settings)
