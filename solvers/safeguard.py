"""No result is longer than the curve that it started from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.certificate import unevenness
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import precision_of
from riemae.solvers.measure import Measure
from riemae.solvers.result import GeodesicResult, Status
from riemae.solvers.space import Space
from riemae.solvers.state import on_host, placed, read

# Solves start curves ``(q,)`` at their own resolution.
Again = Callable[[Curve], GeodesicResult]


@dataclass(frozen=True)
class Told:
    """What is asked of a result ``(p,)`` on the host, in one transfer."""

    status: np.ndarray
    index: np.ndarray
    length: np.ndarray
    bound: np.ndarray
    steps: np.ndarray

    @classmethod
    def of(cls, result: GeodesicResult) -> Told:
        """Of a result."""
        steps = result.stats["steps"]
        return cls(*read(result.status, result.index, result.length, result.lower_bound, steps))


@dataclass(frozen=True)
class _Longer:
    """Results that are longer than their start curves.

    Attributes:
        rows: ``(q,)``, which pairs.
        start: ``(q,)``, their start curves.
        own: The measure of these.
        found: ``(q,)``, what came of them.
    """

    rows: Tensor
    start: Curve
    own: Measure
    found: GeodesicResult


def not_longer(
    space: Space,
    start: Curve,
    lengths: np.ndarray,
    result: GeodesicResult,
    told: Told,
    rtol: float,
    again: Again | None,
) -> GeodesicResult:
    """The results, none longer than the curve that it started from.

    On the way down from few segments a curve may slide out of a shallow valley. Then a descent from
    the start curve at its own resolution, or in the end that curve itself, takes its place.

    Args:
        space: The space.
        start: The start curves ``(p,)``.
        lengths: Lengths of their polygons, which are shorter than the curves; NaN where
            unknown.
        result: What came of them.
        told: The same on the host.
        rtol: The accuracy.
        again: Solves start curves at their own resolution; None where that has been done.
    """
    slack = 16 * precision_of(space, start.nodes.dtype).length
    suspects = _suspects(lengths, told, slack)
    if not len(suspects):
        return result
    longer = _longer(space, start, result, suspects, slack)
    if longer is None:
        return result
    own = longer.own
    found = longer.found
    far = (on_host(found.length) > (1 + rtol) * own.length).nonzero()[0]
    if len(far) and again is not None:
        those = placed(far, longer.rows)
        anew = again(longer.start[those])
        better = placed(on_host(anew.length < found.length[those]).nonzero()[0], those)
        found = exchanged(found, those[better], anew[better])
    found = _capped(replace(longer, found=found), slack, rtol)
    return exchanged(result, longer.rows, found)


def _suspects(lengths: np.ndarray, told: Told, slack: float) -> np.ndarray:
    """Which results are longer than the polygons of their start curves."""
    # A geodesic that does not minimise may be longer than a curve near it. False for NaN.
    saddle = (told.status == Status.CONVERGED) & (told.index > 0)
    return ((told.length > (1 + slack) * lengths) & ~saddle).nonzero()[0]


def _longer(
    space: Space, start: Curve, result: GeodesicResult, suspects: np.ndarray, slack: float
) -> _Longer | None:
    """Which of the suspects are longer than their start curves themselves."""
    rows = placed(suspects, start.nodes)
    part = start[rows]
    found = result[rows]
    own = Measure.of(space, part)
    worse = on_host(found.length) > (1 + slack) * own.length
    if not worse.any():
        return None
    keep = worse.nonzero()[0]
    where = placed(keep, rows)
    return _Longer(
        rows=rows[where], start=part[where], own=own.select(keep, where), found=found[where]
    )


def _capped(longer: _Longer, slack: float, rtol: float) -> GeodesicResult:
    """The start curves themselves, in place of results that are still longer.

    Such a result has failed as a minimum, by at least the difference.
    """
    own = longer.own
    found = longer.found
    rows = longer.rows
    length, bar, code = read(found.length, found.error, found.status)
    excess = length - own.length
    failed = excess > slack * own.length
    if not failed.any():
        return found
    allowed = rtol * own.length
    error = np.maximum(bar, excess)
    converged = (code == Status.CONVERGED) & (excess <= allowed)
    # What holds the longer one's length to rtol holds the shorter one's, too: its error is less by
    # the excess.
    error = np.where(converged, np.minimum(error, allowed), error)
    cut_short = code == Status.BUDGET
    failure = np.where(cut_short, int(Status.BUDGET), int(Status.STALLED))
    status = np.where(converged, int(Status.CONVERGED), failure)

    def number(x: np.ndarray) -> Tensor:
        return placed(x, rows).to(longer.start.nodes.dtype)

    kept = replace(
        found,
        length=number(own.length),
        error=number(error),
        status=placed(status, rows),
        curve=longer.start,
        speed_deviation=unevenness(own.speed, own.weights),
    )
    return GeodesicResult.where(placed(failed, rows), kept, found)


def exchanged(result: GeodesicResult, rows: Tensor, other: GeodesicResult) -> GeodesicResult:
    """The result with other pairs at ``rows``."""
    if not len(rows):
        return result
    place = torch.zeros_like(result.status)
    place[rows] = torch.arange(len(rows), device=rows.device)
    there = torch.zeros_like(result.converged)
    there[rows] = True
    return GeodesicResult.where(there, other[place], result)
