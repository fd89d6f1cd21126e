"""The numbers that decide what the Newton solver does next, all in one place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Constants of the Newton solver.

    They were chosen on closed forms and on decoders of digits; none of them changes what is
    accepted, only how fast it is reached.

    Attributes:
        acceptable: A curve that rounding stops counts as CONVERGED up to this multiple of the
            tolerance, and as PRECISION above it.
        attempts: Tries to lower the energy by a damped step, or to leave a saddle. Damping grows
            fourfold per try, so that 12 of them shorten a step by 4¹².
        damping_start: The first damping, in units of the Gauss-Newton block diagonal.
        damping_floor: Damping that has fallen below this value is set to 0.
        near: A start curve that the model cannot shorten by more than this share of its length is
            nearly a geodesic.
        trusted_gain: One step is never believed to have reduced the decrement by a smaller factor
            than this without looking.
        longest_run: Steps with one matrix.
        slow: A step that leaves more than this share of the decrement calls for a new matrix.
        learning: The first steps of a run that may be slow all the same: what they show of the
            Hessian goes into the matrix.
        stiff: A matrix that leaves no more than ``slow`` of a decrement shows at least this share
            of it as curvature.
        believed: The share of the rounding error within which a decrement from a coarser level's
            matrix is believed without a step.
        rough: Relative decrement at which a curve that converges slowly leaves its first level.
        close: Relative decrement from which on second derivatives are taken again on a first level
            where they have not served.
        loose: Finer levels do without them down to this tolerance: Gauss-Newton's matrix gains a
            share of what is left per step, the Hessian digits.
        patience: Steps after which a curve's headway is looked at.
        headway: A curve that will not gain this share of what its model promises, in all the steps
            that it has left, is given up.
        sharp: Tolerances up to this one get a last step on a sixth-order residual. It is worth two
            levels of accuracy and costs half an expansion.
        sharp_segments: Segments that such a curve must have at least.
        sharp_limit: Relative size up to which such a step is taken: it is only right where it is
            small.
        enough: A step must lower the energy by this share of the decrement (a tenth of what the
            quadratic model promises).
        good: One that lowers it by this share (three quarters) may be damped less next time.
    """

    acceptable: int = 50
    attempts: int = 12
    damping_start: float = 0.1
    damping_floor: float = 1e-3
    near: float = 1e-3
    trusted_gain: float = 1 / 1000
    longest_run: int = 8
    slow: float = 0.3
    learning: int = 2
    stiff: float = 0.45
    believed: float = 1e-4
    rough: float = 2e-4
    close: float = 2e-5
    loose: float = 1e-7
    patience: int = 20
    headway: float = 0.1
    sharp: float = 2e-8
    sharp_segments: int = 32
    sharp_limit: float = 1e-4
    enough: float = 0.05
    good: float = 0.375


LIMITS = Limits()
