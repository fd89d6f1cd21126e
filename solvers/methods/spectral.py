"""Curves as polynomials where they are smooth, and as segments where they are not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from riemae.numerics.checks import expect_range
from riemae.solvers.curve import Curve
from riemae.solvers.methods.quasi_newton import QuasiNewton
from riemae.solvers.mode_metric import ONE_PLACE_BEYOND
from riemae.solvers.solver import Attempt, check_settings
from riemae.solvers.space import Space
from riemae.solvers.spectral import COARSE, Settings, attempt, levels


@dataclass(frozen=True)
class Spectral(QuasiNewton):
    """Settings of the spectral path solver, which takes gradients only.

    A geodesic of a smooth decoder is a smooth curve: a polynomial of degree 8 is often within 1e-4
    of its length, one of degree 18 within 1e-7, and eleven to two dozen points see its energy as
    well. So a curve is first tried as one polynomial of growing degree, by preconditioned
    limited-memory BFGS: see :mod:`riemae.solvers.spectral`. Its error is known from the next
    degree: what all modes together would gain, and by how much the lengths differ.

    Where that is not good enough in a few steps, as at kinks and in narrow valleys, where the
    metric changes too much along the curve, and for spaces without a feature map, the pair is left
    to :class:`QuasiNewton`, of which all other settings are. There are no second derivatives: the
    Morse index is unknown (−1).

    Args:
        degree: Of the first polynomial, at most; beyond 32 dimensions one of degree 4 goes before.
        max_gradients: That a pair may take before it is left to segments.

    Raises:
        OptionError: For a value out of range.

    References:
        D. C. Liu, J. Nocedal, On the limited memory BFGS method for large scale optimization,
        Mathematical Programming 45, 1989. L. N. Trefethen, Spectral Methods in MATLAB, 2000.
    """

    degree: int = 8
    max_gradients: int = 24

    def __post_init__(self) -> None:
        check_settings("Spectral", self, "history", "sketch")
        expect_range("Spectral", "degree", self.degree, 4, integer=True)
        expect_range("Spectral", "max_gradients", self.max_gradients, 2, integer=True)

    def attempt(self, space: Space, start: Curve, least: np.ndarray, rtol: float) -> Attempt | None:
        """Try curves ``(p,)``, of which nothing shorter than ``least`` joins the ends."""
        # Where the metric is known at one place alone, more steps are taken: most of them with few
        # points.
        wide = start.nodes.shape[2] > ONE_PLACE_BEYOND
        return attempt(
            space=space,
            start=start,
            least=least,
            rtol=rtol,
            settings=Settings(
                levels=levels(self.degree, rtol, COARSE if wide else None),
                history=self.history,
                max_gradients=self.max_gradients,
            ),
        )
