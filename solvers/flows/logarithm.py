"""The logarithm: the velocity of the geodesic between two points."""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError
from riemae.numerics.checks import expect_rtol
from riemae.numerics.precision import in_full_precision
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import refuse_transforms
from riemae.solvers.curve import Curve
from riemae.solvers.flows.exponential import exp
from riemae.solvers.flows.jacobi import Variation
from riemae.solvers.path import geodesic
from riemae.solvers.solver import Solver
from riemae.solvers.space import HasSpace, Space, space_of

# Shots per pair, at most.
_SHOTS = 12
# Of a Jacobian, which Newton's method needs to some digits.
_SLOPE_RTOL = 1e-4
_SLOPE_STEPS = 2000


@in_full_precision
def log(
    space: Space | HasSpace,
    z0: Tensor,
    z1: Tensor,
    *,
    rtol: float = 1e-6,
    solver: Solver | None = None,
    init: Curve | Tensor | None = None,
    refine: bool = True,
    throw: bool = True,
) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
    """Logarithm: the velocity with which the geodesic from ``z0`` reaches ``z1`` at time 1.

    It is not differentiable.

    Args:
        space: The space.
        z0: Start points.
        z1: End points; leading axes broadcast.
        rtol: Accuracy of the path; with ``refine`` also how close ``exp(z0, v)`` comes to ``z1``,
            relative to ``|v|``.
        solver: As in :func:`~riemae.solvers.geodesic`.
        init: As in :func:`~riemae.solvers.geodesic`.
        refine: Improve the path's velocity by shooting; without it the error is of second order in
            the path's segments.
        throw: Raise when a pair fails; False returns the path's velocity for it.

    Raises:
        NotConvergedError: When ``throw`` and the path or the shooting misses ``rtol``; ``result``
            holds the velocities, or the path's result.
    """
    space = space_of(space, z0, z1, where="log")
    refuse_transforms("log", "It is not differentiable: use exp, or batch axes in place of vmap.")
    rtol = expect_rtol("log", rtol)
    result = geodesic(space, z0, z1, rtol=max(rtol, 1e-6), solver=solver, init=init, throw=throw)
    velocity = result.curve.velocity(0.0)
    if not refine or not velocity.numel():
        return velocity
    m = velocity.shape[-1]
    ends = torch.broadcast_tensors(z0, z1)
    start, stop = (x.detach().reshape(-1, m) for x in ends)
    flat = velocity.reshape(-1, m).clone()
    known = flat.isfinite().all(-1)
    moving = (flat != 0).any(-1)
    rows = (known & moving).nonzero().flatten()
    with torch.no_grad():
        missed = _Shots(space, start, stop, flat, rtol).improved(rows)
    velocity = flat.view(velocity.shape)
    if throw and len(missed):
        raise NotConvergedError(
            "log",
            f"shooting to within rtol={rtol:g}",
            f"{len(missed)} of {len(flat)} pairs that miss it (first: {missed[:5].tolist()})",
            "Loosen rtol, or take the path's velocity with refine=False: the end points may be "
            "conjugate.",
            velocity,
        )
    return velocity


class _Shots:
    """Newton's method on ``exp(start, v) = stop``, every pair of a batch alone.

    The Jacobian is computed anew only when it stops helping.

    Args:
        space: The space.
        start: ``(p, m)``.
        stop: ``(p, m)``.
        v: ``(p, m)``, improved in place.
        rtol: How close to ``stop`` a shot must come, relative to ``|v|``.

    Attributes:
        current: ``(p, m)``, the velocities of the next shots.
        best: ``(p,)``, by how much the best shots miss.
        slope: ``(p, m, m)``, the Jacobians.
    """

    def __init__(self, space: Space, start: Tensor, stop: Tensor, v: Tensor, rtol: float) -> None:
        self.space = space
        self.start = start
        self.stop = stop
        self.v = v
        self.rtol = rtol
        sharpest = 1e-10 if v.dtype == torch.float64 else 1e-5
        self.accuracy = max(rtol / 10, sharpest)
        p, m = v.shape
        self.current = v.clone()
        self.best = torch.full_like(v[:, 0], torch.inf)
        self.slope = torch.zeros(p, m, m, dtype=v.dtype, device=v.device)

    def improved(self, rows: Tensor) -> Tensor:
        """Improve the velocities at ``rows``; returns the pairs that never met ``stop``."""
        fresh = False
        for attempt in range(_SHOTS):
            reached = self._shot(rows, self.current[rows])
            miss = self.stop[rows] - reached
            size = self.current[rows].norm(dim=-1)
            relative = miss.norm(dim=-1) / size
            gap = relative.nan_to_num(torch.inf)
            helped = gap < self.best[rows] / 4
            self._remember(rows, gap)
            keep = gap > self.rtol
            if not bool(keep.any()) or attempt == _SHOTS - 1:
                break
            rows = rows[keep]
            miss = miss[keep]
            size = size[keep]
            helped = helped[keep]
            if not fresh or not bool(helped.all()):
                self._differentiate(rows, self.stop[rows] - miss, size)
                fresh = True
            column = miss[..., None]
            update, info = torch.linalg.solve_ex(self.slope[rows], column)
            solved = (info == 0)[:, None]
            update = torch.where(solved, update[..., 0], 0.0)
            self.current[rows] = self.current[rows] + update
        missed = self.best > self.rtol
        return missed.logical_and(self.best.isfinite()).nonzero().flatten()

    def _shot(self, rows: Tensor, velocity: Tensor) -> Tensor:
        return exp(self.space, self.start[rows], velocity, rtol=self.accuracy, throw=False)

    def _remember(self, rows: Tensor, gap: Tensor) -> None:
        """Keep the velocities that miss by less than any before."""
        better = rows[gap < self.best[rows]]
        self.v[better] = self.current[better]
        self.best[rows] = torch.minimum(gap, self.best[rows])

    def _differentiate(self, rows: Tensor, base: Tensor, size: Tensor) -> None:
        """Jacobians of ``v ↦ exp(start, v)``: by Jacobi fields, or by differences from ``base``."""
        z = self.start[rows]
        v = self.current[rows]
        p, m = v.shape
        basis = torch.eye(m).to(v).expand(p, m, m)
        flow = Variation(
            space=self.space,
            z=z,
            v=v,
            fields=torch.zeros_like(basis),
            derivatives=basis,
            reach=1.0,
            rtol=_SLOPE_RTOL,
            max_steps=_SLOPE_STEPS,
        )
        if flow.covariant:
            self.slope[rows] = flow.at(1.0).fields.mT
            return
        share = tolerance(v.dtype).eps ** 0.4
        difference = share * size[:, None, None]
        turned = v[:, None] + difference * basis
        # All directions in one batch.
        starts = z[:, None].expand(turned.shape)
        moved = exp(
            self.space,
            starts.flatten(0, 1),
            turned.flatten(0, 1),
            rtol=self.accuracy,
            throw=False,
        )
        self.slope[rows] = ((moved.view(p, m, m) - base[:, None]) / difference).mT
