"""Damped Newton on a discrete curve energy.

Where the Hessian is not positive definite, a Gauss-Newton model takes its place.

Which phases a curve goes through: :mod:`riemae.solvers.methods.newton_sweep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from riemae.numerics.checks import expect_choice, expect_range
from riemae.solvers.curve import Curve
from riemae.solvers.methods.newton_expansion import expand
from riemae.solvers.methods.newton_sweep import Sweep
from riemae.solvers.model import decrement_of
from riemae.solvers.solver import Attempt, check_settings
from riemae.solvers.space import Space
from riemae.solvers.spectral import Settings, attempt
from riemae.solvers.state import PathState, relative_length

# Of whole curves: degrees, with as many points as see them, by the first tolerance that is not
# above what is asked for; secants; and gradients that a pair may take.
_DEGREES = (
    (3e-3, ((6, 9), (8, 11), (11, 15))),
    (3e-4, ((7, 10), (10, 13), (14, 18))),
    (3e-5, ((7, 10), (11, 15), (14, 18), (19, 24))),
    (0.0, ((7, 10), (13, 17), (17, 22), (24, 30))),
)
_HISTORY, _MAX_GRADIENTS = 4, 30
_PATIENCE = 10  # steps at one resolution after which a curve is looked at; most end before


@dataclass(frozen=True)
class Newton:
    """Settings of the Newton path solver.

    The block-tridiagonal Hessian of the discrete energy is factorised. Where it is positive
    definite the step is Newton's. Where it is not, its eigenvalues are made positive, so that the
    step descends, and the curve goes on with Gauss-Newton's matrix, which costs less than half and
    is positive definite everywhere; the Hessian is looked at again near the geodesic, on finer
    levels for tolerances below 3e-5 alone. Derivatives cost most, so they are computed only a few
    times per curve, on its first level. The steps that follow take the gradient alone, by one
    reverse pass, and keep the matrix, corrected for what the gradients show (BFGS), as long as they
    converge fast. Finer levels begin with that matrix, interpolated. A curve whose step does not
    lower its energy is damped (Levenberg-Marquardt in the metric, so the chart does not matter)
    without a new expansion and without touching the other curves. Where the tolerance is sharp, a
    curve that has converged gets one more step on the residual of a sixth-order discretisation.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Steps that a pair may take in total.
        gauss_newton_steps: Steps without second derivatives from a new start.
        second_order: False keeps to Gauss-Newton throughout; the Morse index then stays −1.
        target: ``"minimum"`` minimises, and leaves saddles along a direction of negative curvature;
            ``"stationary"`` keeps to a start curve that is nearly a geodesic already, minimising or
            not, and minimises from any other.
        whole: Try curves as polynomials first, as :class:`Spectral` does, by gradients, and second
            derivatives at four places where those are not enough: see
            :mod:`riemae.solvers.spectral`. Segments are for the pairs of which that does not make
            sure, from the polynomial on where it is shorter. The Morse index of the others is −1,
            unknown, where gradients were enough.

    Raises:
        OptionError: For a value out of range.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 200
    gauss_newton_steps: int = 2
    second_order: bool = True
    target: Literal["minimum", "stationary"] = "minimum"
    whole: bool = False

    def __post_init__(self) -> None:
        check_settings("Newton", self)
        expect_range("Newton", "gauss_newton_steps", self.gauss_newton_steps, 0, integer=True)
        expect_choice("Newton", "target", self.target, ("minimum", "stationary"))

    @property
    def unrolls(self) -> int:
        """Pairs that have jumped begin anew, unless start curves are kept as they are."""
        return _PATIENCE if self.target == "minimum" else 0

    def attempt(self, space: Space, start: Curve, least: np.ndarray, rtol: float) -> Attempt | None:
        """Try curves ``(p,)``, of which nothing shorter than ``least`` joins the ends."""
        if not self.whole:
            return None
        return attempt(
            space=space,
            start=start,
            least=least,
            rtol=rtol,
            settings=Settings(
                levels=next(levels for least, levels in _DEGREES if rtol >= least),
                history=_HISTORY,
                max_gradients=_MAX_GRADIENTS,
                second_order=True,
            ),
        )

    def begin(self, nodes: Tensor) -> PathState:  # (p, n + 1, m)
        """A state about new curves."""
        return PathState.start(nodes)

    def foreseen(self, space: Space, state: PathState) -> Tensor:  # of p curves -> (p,)
        """The relative length that Newton's first step from this state promises, beyond rounding.

        The step of Gauss and Newton where the Hessian is not positive definite; NaN where the
        metric is singular.
        """
        carried = state.book["known"] & ~state.book["stale"]
        expansion = expand(space, state, carried, ~carried & self.second_order)
        gradient = expansion.gradient
        factor = (expansion.hessian or expansion.gauss_newton).cholesky()
        promised = decrement_of(gradient, factor.solve(-gradient))
        if not bool(factor.ok.all()):
            rough = expansion.gauss_newton.cholesky()
            less = decrement_of(gradient, rough.solve(-gradient))
            promised = torch.where(factor.ok, promised, torch.where(rough.ok, less, torch.nan))
        beyond = (promised - 2 * expansion.noise).clamp(min=0)
        return relative_length(beyond, expansion.energy)

    @np.errstate(all="ignore")  # curves with NaN are marked, and nothing is decided by their values
    def step(self, space: Space, state: PathState, tol: float) -> PathState:
        """One expansion of every curve of ``state``, and the steps that it is good for.

        A curve ends when its relative decrement is at most ``tol``, or within rounding of 0: with
        PRECISION where that is more than 50 ``tol``. On its first level, one that converges slowly
        also ends when it is roughly there. One that would not get a tenth of the way in the steps
        that it has left is STALLED.
        """
        sweep = Sweep(self, space, state, tol)
        sweep.towards_saddles()
        sweep.leave_saddles()
        sweep.count()
        sweep.last()
        sweep.run()
        sweep.descend()
        sweep.end()
        sweep.give_up()
        sweep.polish()
        return sweep.state()
