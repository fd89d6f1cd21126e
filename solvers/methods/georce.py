"""GEORCE: geodesics as a discrete control problem with a closed-form update."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from riemae.numerics.tolerances import tolerance
from riemae.solvers.certificate import sound
from riemae.solvers.result import Status
from riemae.solvers.solver import State, check_settings, with_index
from riemae.solvers.space import Space
from riemae.solvers.state import RUNNING

# Of the line search: halvings, and the share of the promised decrease that is enough.
_ATTEMPTS = 30
_SUFFICIENT = 1e-4


@dataclass(frozen=True)
class GEORCE:
    """Rygaard and Hauberg's algorithm, as published.

    Left-node energy, closed-form controls, backtracking line search. It minimises ``Σ u_tᵀ G(x_t)
    u_t`` over controls ``u_t`` with ``x_{t+1} = x_t + u_t``. With ``ν_t`` the gradient of ``u_tᵀ
    G(y) u_t`` in ``y`` at ``x_t``, Pontryagin's conditions ``2 G_t u_t + μ_t = 0`` and ``μ_{t−1} =
    μ_t + ν_t`` are solved for frozen ``G_t`` and ``ν_t``:

        ``μ_{T−1} = (Σ G_t⁻¹)⁻¹ (2(x_0 − x_T) − Σ_t G_t⁻¹ Σ_{j>t} ν_j)``,
        ``u_t = −½ G_t⁻¹ (μ_{T−1} + Σ_{j>t} ν_j)``.

    The left-node energy is of first order: its curves are off by O(h) where those of the chord
    energy are off by O(h²). The length reported is that of the spline, as for every solver, so it
    is right to the error estimated all the same.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Iterations that a pair may take in total.

    Raises:
        OptionError: For a value out of range.

    References:
        F. M. Rygaard, S. Hauberg, GEORCE: A fast new control algorithm for computing geodesics,
        2025, arXiv:2505.05961.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 1000

    # Nodes off by O(h) make a length that is off by O(h²).
    refinement_ratio = 4.0

    def __post_init__(self) -> None:
        check_settings("GEORCE", self)

    def begin(self, nodes: Tensor) -> State:
        """A state about new curves."""
        return State.start(nodes)

    def step(self, space: Space, state: State, tol: float) -> State:
        """One iteration of every curve."""
        x = state.nodes[:, :-1]
        u = state.nodes.diff(dim=1)
        metric, inverse, singular = _metric(space, x)
        slope_in_x = _position_gradient(space, x, u)
        gap = state.nodes[:, -1] - state.nodes[:, 0]
        new = _controls(inverse, slope_in_x, gap)

        moves = (new - u).cumsum(1)
        shift = moves[:, :-1]
        energy, slope = _along(metric, u, slope_in_x, shift)
        finite = (energy + slope).isfinite()
        nodes, moved = _searched(
            space=space, nodes=state.nodes, shift=shift, energy=energy, slope=slope
        )

        decrement = -slope / (4 * energy)
        rounding = 8 * x.shape[1] * torch.finfo(x.dtype).eps * energy
        done = (decrement <= tol) | (slope.abs() <= rounding)
        status = torch.where(moved, RUNNING, int(Status.STALLED))
        status = torch.where(done, int(Status.CONVERGED), status)
        status = torch.where(singular, int(Status.SINGULAR), status)
        status = torch.where(finite, status, int(Status.NON_FINITE))
        state = replace(
            state,
            nodes=nodes,
            status=status,
            decrement=decrement,
            steps=state.steps + 1,
        )
        return with_index(space, state, status == Status.CONVERGED)


def _metric(space: Space, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Metric and its inverse at the nodes ``(p, T, m)``, and where it is singular ``(p,)``."""
    m = x.shape[-1]
    points = x.flatten(0, 1)
    shape = torch.Size([m, m])
    every = sound(space.metric, shape, points)
    metric = every.unflatten(0, x.shape[:2])
    factor, info = torch.linalg.cholesky_ex(metric)
    sizes = metric.diagonal(dim1=-2, dim2=-1)
    squares = factor.diagonal(dim1=-2, dim2=-1).square()
    pivots = squares / sizes
    least = tolerance(x.dtype).rank
    regular = (pivots > least).all(-1)
    singular = ((info != 0) | ~regular).any(1)
    identity = torch.eye(m).to(x)
    safe = torch.where(singular[:, None, None, None], identity, factor)
    return metric, torch.cholesky_inverse(safe), singular


def _along(
    metric: Tensor, u: Tensor, slope_in_x: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:  # -> (p,), (p,)
    """The left-node energy, and its slope where the inner nodes move along ``shift``.

    Args:
        metric: ``(p, T, m, m)``.
        u: ``(p, T, m)``, the controls.
        slope_in_x: ``(p, T, m)``, gradients of ``uᵀ G(x) u`` in ``x``.
        shift: ``(p, T − 1, m)``.
    """
    covector = metric @ u[..., None]
    pull = 2 * covector[..., 0]
    before = pull[:, :-1]
    after = pull[:, 1:]
    # dE/dx_t; the end points stand still.
    gradient = slope_in_x[:, 1:] + before - after
    slope = (gradient * shift).sum((1, 2))
    energy = (u * pull / 2).sum((1, 2))
    return energy, slope


def _controls(inverse: Tensor, slope_in_x: Tensor, gap: Tensor) -> Tensor:
    """The closed-form update, ``(p, T, m, m), (p, T, m), (p, m) -> (p, T, m)``."""
    reversed_sums = slope_in_x.flip(1).cumsum(1)
    later = reversed_sums.flip(1) - slope_in_x  # Σ_{j>t} ν_j
    shares = inverse @ later[..., None]
    rhs = -2 * gap - shares.sum(1)[..., 0]
    total = inverse.sum(1)
    solution = torch.linalg.solve_ex(total, rhs[..., None])[0]
    last = solution[..., 0]
    costate = last[:, None] + later
    doubled = inverse @ costate[..., None]
    return -doubled[..., 0] / 2


def _position_gradient(
    space: Space, x: Tensor, u: Tensor
) -> Tensor:  # (p, T, m), (p, T, m) -> (p, T, m)
    """``∂/∂x (uᵀ G(x) u)``, at the first node too, where it is not needed."""
    with torch.enable_grad():
        y = x.flatten(0, 1).detach().requires_grad_()
        direction = u.flatten(0, 1).detach()
        squared = space.norm(y, direction).square()
        if not squared.requires_grad:  # a metric that is the same everywhere
            return torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(squared.sum(), y, materialize_grads=True)
    return gradient.view_as(x)


def _searched(
    space: Space, nodes: Tensor, shift: Tensor, energy: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor]:  # -> nodes, (p,) bool
    """The longest step 1, 1/2, 1/4, … that lowers the left-node energy, if there is one."""
    nodes = nodes.clone()
    start = nodes.clone()
    stride = torch.ones_like(energy)
    moved = torch.zeros_like(energy, dtype=torch.bool)
    pending = (slope < 0).nonzero().flatten()
    for _ in range(_ATTEMPTS):
        if not len(pending):
            break
        trial = start[pending].clone()
        share = stride[pending, None, None]
        trial[:, 1:-1] += share * shift[pending]
        x = trial[:, :-1]
        u = trial.diff(dim=1)
        known = x.isfinite() & u.isfinite()
        finite = known.flatten(1).all(1)
        x = torch.where(finite[:, None, None], x, start[pending][:, :-1])
        u = torch.where(finite[:, None, None], u, start[pending][:, :-1])
        points = x.flatten(0, 1)
        squared = space.norm(points, u.flatten(0, 1)).square()
        reached = squared.view(u.shape[:2]).sum(1)
        limit = energy[pending] + _SUFFICIENT * stride[pending] * slope[pending]
        good = finite & (reached <= limit)
        rows = pending[good]
        nodes[rows] = trial[good]
        moved[rows] = True
        pending = pending[~good]
        stride[pending] /= 2
    return nodes, moved
