"""Pairs so near that rounding moves a curve's nodes further than the metric bends it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riemae.numerics.tolerances import tolerance
from riemae.solvers.certificate import sound_acceleration, unevenness
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import precision_of
from riemae.solvers.outcome import Outcome
from riemae.solvers.queue import Queue
from riemae.solvers.result import Status
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space
from riemae.solvers.speeds import speeds
from riemae.solvers.state import on_host, placed, read

# Points of a straight line that is kept, where its speed is looked at.
_LOOKS = 24


def keep_near(
    space: Space,
    solver: Solver,
    queue: Queue,
    out: Outcome,
    least: np.ndarray,
    rtol: float,
    tolerated: float,
) -> None:
    """Settle near pairs: their straight line is kept, and measured by tangents.

    Rounding leaves tangents alone. With the covariant acceleration ``a`` of a straight line at
    velocity ``v``, its length exceeds the geodesic's by the share ``|a|² / 24|v|²``.

    Args:
        space: The space.
        solver: The solver.
        queue: Pairs that wait; those that are settled leave it.
        out: What is known; settled pairs are entered.
        least: ``(p,)``, lower bounds of the lengths, NaN where unknown.
        rtol: The relative accuracy.
        tolerated: Relative rounding of a chord up to which pairs are left to the solver.
    """
    if not len(queue.rows):
        return
    known = precision_of(space, queue.start.nodes.dtype)
    eps = known.eps
    noise = eps * solver.segments * queue.size / queue.lengths
    near = noise > tolerated  # False for NaN
    if not near.any():
        return
    start = queue.start.nodes
    those = placed(near.nonzero()[0], start)
    nodes = start[those]
    ends = nodes[:, :: nodes.shape[1] - 1]
    # One segment: differences of nodes in between would be rounding.
    curve = Curve.line(ends[:, 0], ends[:, 1])
    speed, weights = speeds(space, curve)
    length, excess, unseen = _measured(space, ends, speed, weights)
    error = (excess + known.length) * length + unseen
    # A narrow fold between the points that are looked at shows in the distance of the ends, which
    # no curve is shorter than.
    bound = least[queue.rows[near]]
    rounding = 4 * eps * queue.size[near]
    error = np.fmax(error, np.maximum(bound - length - rounding, 0.0))
    straight = _straight(nodes, queue.start.segments, tolerance(nodes.dtype).eps)
    settled = (straight & (error <= rtol * length)).nonzero()[0]
    rows = queue.rows[near][settled]
    those = placed(settled, speed)
    out.length[rows] = length[settled]
    out.error[rows] = error[settled]
    out.decrement[rows] = excess[settled]
    out.status[rows] = Status.CONVERGED
    out.index[rows] = 0
    out.speed_deviation[rows] = on_host(unevenness(speed[those], weights))
    out.keep(rows, curve[those])
    queue.keep(~np.isin(queue.rows, rows))


def _straight(nodes: Tensor, segments: int, eps: float) -> np.ndarray:  # (q, n + 1, m) -> (q,)
    """Whether start curves are straight lines, up to rounding."""
    start = nodes[:, 0]
    stop = nodes[:, -1]
    line = Curve.line(start, stop, segments).nodes
    size = line.abs().amax((1, 2), keepdim=True)
    rounding = 16 * eps * size
    close = (nodes - line).abs() <= rounding
    return on_host(close.all(2).all(1))


def _measured(
    space: Space, ends: Tensor, speed: Tensor, weights: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths of straight lines, their excess as a share of them, and what quadrature misses.

    Args:
        space: The space.
        ends: ``(q, 2, m)``.
        speed: ``(q, k)``, at the points of the quadrature.
        weights: ``(k,)``.
    """
    middle = ends.mean(1)
    velocity = ends[:, 1] - ends[:, 0]
    turn = space.norm(middle, sound_acceleration(space, middle, velocity))
    long = (speed * weights).sum(-1)
    # A kink between the few points of the quadrature shows in the mean of many.
    number = torch.arange(_LOOKS, device=ends.device)
    times = (number + 0.5).to(ends) / _LOOKS
    start = ends[:, :1]
    way = times[:, None] * velocity[:, None]
    along = start + way
    points = along.flatten(0, 1)
    velocities = velocity.repeat_interleave(_LOOKS, 0)
    looks = space.norm(points, velocities)
    looked = looks.view(-1, _LOOKS).mean(-1)
    length, excess, many = read(long, (turn / long).square() / 24, looked)
    return length, excess, np.abs(many - length)
