"""Multiple shooting: geodesics by Newton's method on the exponential map.

Its derivative comes from Jacobi fields.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae.exceptions import OptionError
from riemae.solvers.curve import Curve
from riemae.solvers.flows.jacobi import Moment, Variation, sound_connection_matrix
from riemae.solvers.result import Status
from riemae.solvers.solver import State, check_settings, with_index
from riemae.solvers.space import Space
from riemae.solvers.state import RUNNING

_ATTEMPTS = 8
_INTEGRATION_SHARE = 0.1  # the integrator must be better than the gap that is to be closed


@dataclass
class ShootingState(State):
    """Progress of multiple shooting.

    Attributes:
        velocities: ``(p, k, m)``, over unit time, at the start of each of the k shots.
    """

    velocities: Tensor


@dataclass(frozen=True)
class Shooting:
    """Settings of multiple shooting.

    The curve is cut into ``shots`` pieces. From the start of each a geodesic is integrated over its
    share of the time, with a full set of Jacobi fields; Newton's method closes the gaps in position
    and velocity between them and at the end point. With one shot it is plain shooting, which only
    works close to the solution; more shots are stabler. The nodes are points of the integrated
    geodesics, so they are exact at every resolution.

    It needs a smooth decoder and finds any geodesic near its start curve, minimising or not. Steps
    count Newton steps.

    Args:
        segments: Segments of the coarsest level; a multiple of ``shots``.
        max_segments: Segments of the finest level allowed.
        max_steps: Newton steps that a pair may take in total.
        shots: Pieces of the curve.

    Raises:
        OptionError: For a value out of range.

    References:
        J. Stoer, R. Bulirsch, Introduction to Numerical Analysis, section 7.3.5.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 100
    shots: int = 8

    def __post_init__(self) -> None:
        check_settings("Shooting", self, "shots")
        if self.segments % self.shots:
            raise OptionError(
                "Shooting",
                "segments as a multiple of shots",
                f"{self.segments} and {self.shots}",
                "Try 8 and 8.",
            )

    def begin(self, nodes: Tensor) -> ShootingState:
        """A state about new curves."""
        stride = (nodes.shape[1] - 1) // self.shots
        return ShootingState.start(
            nodes, velocities=Curve.from_nodes(nodes).slopes[:, :-1:stride].clone()
        )

    def step(self, space: Space, state: ShootingState, tol: float) -> ShootingState:
        """One Newton step of every curve."""
        stride = (state.nodes.shape[1] - 1) // self.shots
        knots = state.nodes[:, ::stride]
        velocities = state.velocities
        sharpest = 1e-11 if knots.dtype == torch.float64 else 1e-6
        rtol = max(_INTEGRATION_SHARE * tol, sharpest)
        fired = self._fire(space, knots, velocities, rtol, fields=True)
        gaps = _gaps(fired, knots, velocities)
        size = velocities.norm(dim=-1).amax(1)
        miss = _miss(gaps, size)
        finite = miss.isfinite()
        # Below what the integrator can tell there is nothing to gain.
        least = max(tol, 10 * rtol)
        done = finite & (miss <= least)

        correction = _correction(fired.fields, gaps, finite)
        pending = (finite & ~done).nonzero().flatten()
        nodes, speeds, lower = self._searched(
            space=space,
            knots=knots,
            velocities=velocities,
            correction=correction,
            miss=miss,
            pending=pending,
            rtol=rtol,
        )
        status = torch.where(lower | done, RUNNING, int(Status.STALLED))
        status = torch.where(done, int(Status.CONVERGED), status)
        status = torch.where(finite, status, int(Status.NON_FINITE))
        nodes = self._dense(
            space=space,
            old=state.nodes,
            knots=nodes,
            velocities=speeds,
            stride=stride,
            done=done,
            rtol=rtol,
        )
        state = replace(
            state,
            nodes=nodes,
            velocities=speeds,
            status=status,
            decrement=miss.square(),
            steps=state.steps + 1,
        )
        return with_index(space, state, done)

    def _searched(
        self,
        space: Space,
        knots: Tensor,
        velocities: Tensor,
        correction: tuple[Tensor, Tensor],
        miss: Tensor,
        pending: Tensor,
        rtol: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The longest of 1, 1/2, 1/4, … of the correction that closes the gaps as promised.

        Returns:
            Knots, velocities, and which of the curves ``pending`` have such a correction.
        """
        moved, turned = correction
        size = velocities.norm(dim=-1).amax(1)
        nodes = knots.clone()
        speeds = velocities.clone()
        lower = torch.zeros_like(miss, dtype=torch.bool)
        share = torch.ones_like(miss)
        for _ in range(_ATTEMPTS):
            if not len(pending):
                break
            part = share[pending, None, None]
            trial = knots[pending] + part * moved[pending]
            speed = velocities[pending] + part * turned[pending]
            fired = self._fire(space, trial, speed, rtol, fields=False)
            misses = _gaps(fired, trial, speed)
            reached = _miss(misses, size[pending])
            wanted = 1 - share[pending] / 4
            good = reached <= wanted * miss[pending]  # False for NaN
            rows = pending[good]
            nodes[rows] = trial[good]
            speeds[rows] = speed[good]
            lower[rows] = True
            pending = pending[~good]
            share[pending] /= 2
        return nodes, speeds, lower

    def _fire(
        self, space: Space, knots: Tensor, velocities: Tensor, rtol: float, fields: bool
    ) -> Moment:
        """All shots of all curves, over their share of the time.

        With the derivative in their start and velocity.
        """
        p, k, m = velocities.shape
        z = knots[:, :-1].flatten(0, 1)
        v = velocities.flatten(0, 1)
        if fields:
            count = 2 * m
        else:
            count = 0
        start = z.new_zeros(len(z), count, m)
        slope = z.new_zeros(len(z), count, m)
        if fields:
            identity = torch.eye(m).to(z)
            start[:, :m] = identity
            slope[:, m:] = identity
            # The coordinate derivative of the start velocity stands still while the start moves.
            turn = sound_connection_matrix(space, z, v)
            slope[:, :m] = -turn.mT
        flow = Variation(
            space=space,
            z=z,
            v=v,
            fields=start,
            derivatives=slope,
            reach=1.0,
            rtol=rtol,
            max_steps=2000,
        )
        end = flow.at(1.0 / k)
        if fields:  # back from covariant to coordinate derivatives
            connection = sound_connection_matrix(space, end.z, end.v)
            turned = torch.einsum("pij,pcj->pci", connection, end.fields)
            rates = end.derivatives + turned
            every = torch.cat([end.fields, rates], -1)
            end = replace(end, fields=every.mT)
        parts = (end.z, end.v, end.fields, end.derivatives)
        return Moment(*(part.unflatten(0, (p, k)) for part in parts))

    def _dense(
        self,
        space: Space,
        old: Tensor,
        knots: Tensor,
        velocities: Tensor,
        stride: int,
        done: Tensor,
        rtol: float,
    ) -> Tensor:
        """The nodes: the knots, and points between them.

        For finished curves these are points that their shots pass.
        """
        nodes = old.clone()
        nodes[:, ::stride] = knots
        rows = done.nonzero().flatten()
        if stride == 1:
            return nodes
        p, k, m = velocities.shape
        # Between the knots of an unfinished curve a spline will do: it only carries the velocities
        # to the next level.
        last = velocities[:, -1:]
        slopes = torch.cat([velocities, last], 1)
        curve = Curve(knots, slopes)
        nodes[:] = curve.resample(stride * k).nodes
        nodes[:, ::stride] = knots
        if len(rows):
            z = knots[rows, :-1].flatten(0, 1)
            v = velocities[rows].flatten(0, 1)
            none = z.new_zeros(len(z), 0, m)
            flow = Variation(
                space=space,
                z=z,
                v=v,
                fields=none,
                derivatives=none,
                reach=1.0,
                rtol=rtol,
                max_steps=2000,
            )
            for j in range(1, stride):
                time = j / (k * stride)
                passed = flow.at(time).z
                nodes[rows, j::stride] = passed.view(len(rows), k, m)
        return nodes


def _correction(
    slopes: Tensor, gaps: Tensor, finite: Tensor
) -> tuple[Tensor, Tensor]:  # -> (p, k + 1, m), (p, k, m)
    """Newton's correction, harmless numbers where a gap is not finite."""
    identity = torch.eye(gaps.shape[-1]).to(gaps)
    known = finite[:, None, None, None]
    safe = torch.where(known, slopes, identity)
    return _newton(safe, gaps.nan_to_num(0.0))


def _newton(slopes: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Corrections that close the gaps to first order.

    Of the knots ``(p, k + 1, m)`` and of the velocities ``(p, k, m)``.

    Args:
        slopes: ``(p, k, 2m, 2m)``, derivatives of where each shot ends in where it begins.
        gaps: ``(p, k, 2m)``.
    """
    p, k, both = gaps.shape
    m = both // 2
    # Row i: what shot i leaves behind, minus what shot i + 1 begins with.
    matrix = gaps.new_zeros(p, k, both, k + 1, both)
    for i in range(k):
        matrix[:, i, :, i] = slopes[:, i]
        identity = torch.eye(both).to(gaps)
        matrix[:, i, :, i + 1] = -identity
    # The first and the last point stand still, and no shot has the velocity at the end.
    unknowns = slice(m, both * k)
    equations = slice(0, both * k - m)
    full = matrix.flatten(3).flatten(1, 2)
    square = full[:, equations, unknowns]
    right = -gaps.flatten(1)[:, equations, None]
    solution, info = torch.linalg.solve_ex(square, right)
    regular = (info == 0)[:, None]
    inner = torch.where(regular, solution[..., 0], 0.0)
    padded = torch.nn.functional.pad(inner, (m, both))
    every = padded.view(p, k + 1, 2, m)
    knots = every[:, :, 0]
    velocities = every[:, :-1, 1]
    return knots, velocities


def _gaps(fired: Moment, knots: Tensor, velocities: Tensor) -> Tensor:  # -> (p, k, 2m)
    """What each shot misses the start of the next by; the velocity at the end is free."""
    position = fired.z - knots[:, 1:]
    ends = fired.v[:, -1:]
    following = torch.cat([velocities[:, 1:], ends], 1)
    turn = fired.v - following
    return torch.cat([position, turn], -1)


def _miss(gaps: Tensor, size: Tensor) -> Tensor:  # (p, k, 2m), (p,) -> (p,)
    """Largest gap relative to the speed.

    A velocity gap counts as the way it leads astray in unit time.
    """
    tiny = torch.finfo(size.dtype).tiny
    largest = gaps.abs().amax((1, 2))
    return largest / size.clamp(min=tiny)
