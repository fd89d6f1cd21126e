"""Damped Newton on a discrete curve energy, with a Gauss-Newton model where the Hessian is not positive definite."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from riemae.solvers.energy import Expansion
from riemae.solvers.exceptions import OptionError
from riemae.solvers.linear import BlockTridiagonal
from riemae.solvers.result import Status
from riemae.solvers.space import Space
from riemae.solvers.tolerances import tolerance

RUNNING = -1
_DAMPING_FLOOR, _DAMPING_START = 1e-3, 0.1
_ATTEMPTS = 12  # damping grows fourfold an attempt: enough to shorten a step by 4¹²
_NEAR = 1e-3  # a start curve that the model cannot shorten by more than this share is nearly a geodesic


@dataclass
class PathState:
    """Progress on ``p`` curves; every field has one entry a curve.

    Attributes:
        nodes: ``(p, n + 1, m)``.
        status: ``(p,)``; RUNNING, CONVERGED for this resolution, or a failure.
        decrement: ``(p,)``, the relative reduction of the length that the local model still promises.
        index: ``(p,)``, Morse index at the last expansion; −1 before it is known.
        steps: ``(p,)``, steps taken.
        damping: ``(p,)``, in units of the Gauss-Newton block diagonal.
        kept: ``(p,)`` bool: converging to a saddle on purpose.
    """

    nodes: Tensor
    status: Tensor
    decrement: Tensor
    index: Tensor
    steps: Tensor
    damping: Tensor
    kept: Tensor

    def select(self, index: Tensor) -> PathState:
        """The curves at ``index``."""
        return PathState(*(getattr(self, f.name)[index] for f in fields(self)))

    def update(self, index: Tensor, other: PathState) -> None:
        """Write ``other`` back to the curves at ``index``."""
        for f in fields(self):
            getattr(self, f.name)[index] = getattr(other, f.name)


@dataclass(frozen=True)
class Newton:
    """Settings of the Newton path solver.

    Each step factorises the block-tridiagonal Hessian of the discrete energy. Where it is positive definite the step is
    Newton's (quadratic convergence); elsewhere it is Gauss-Newton's, which always descends. A curve whose step does not
    lower its energy is damped (Levenberg-Marquardt in the metric, so the chart does not matter) without a new expansion
    and without touching its neighbours.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Steps a pair may take in total.
        gauss_newton_steps: Steps without second derivatives at the start of the coarsest level.
        second_order: False keeps to Gauss-Newton throughout; the Morse index then stays −1.
        target: ``"minimum"`` minimises, and leaves saddles along a direction of negative curvature; ``"stationary"``
            keeps to a start curve that is nearly a geodesic already, minimising or not, and minimises from any other.

    Raises:
        OptionError: For a value out of range.
    """

    segments: int = 8
    max_segments: int = 256
    max_steps: int = 200
    gauss_newton_steps: int = 1
    second_order: bool = True
    target: Literal["minimum", "stationary"] = "minimum"

    def __post_init__(self) -> None:
        if not 2 <= self.segments <= self.max_segments:
            raise OptionError(
                "Newton", "2 <= segments <= max_segments", f"{self.segments} and {self.max_segments}", "Try 8 and 256."
            )
        if self.max_steps < 1:
            raise OptionError("Newton", "max_steps of at least 1", str(self.max_steps), "")
        if self.target not in ("minimum", "stationary"):
            raise OptionError("Newton", "target 'minimum' or 'stationary'", repr(self.target), "")

    def init(self, nodes: Tensor) -> PathState:
        """A state that starts from discrete curves ``(p, n + 1, m)``."""
        p = len(nodes)
        count = torch.zeros(p, dtype=torch.int64, device=nodes.device)
        return PathState(
            nodes=nodes.clone(),
            status=count + RUNNING,
            decrement=nodes.new_full((p,), torch.inf),
            index=count - 1,
            steps=count.clone(),
            damping=nodes.new_zeros(p),
            kept=torch.zeros_like(count, dtype=torch.bool),
        )

    def step(self, space: Space, state: PathState, tol: float) -> PathState:
        """One step of every curve of ``state``; a curve ends when its relative decrement is at most ``tol``."""
        # A start curve that may be kept as it is must be judged by the full Hessian at once.
        early = self.target == "minimum" and state.nodes.shape[1] - 1 == self.segments
        second_order = self.second_order and not (early and int(state.steps.max()) < self.gauss_newton_steps)
        expansion, status = _sound(space.expand(state.nodes, second_order), state)
        model = _Model.of(expansion)
        status = torch.where((status == RUNNING) & model.singular, int(Status.SINGULAR), status)
        live = status == RUNNING

        steps, predicted = model.solve(state.damping) if bool(state.damping.any()) else (model.step, model.decrement)
        relative = _relative(predicted * (1 + state.damping), expansion.energy)
        index = torch.where(live, model.index, state.index)
        if self.target == "stationary":
            at_start = (state.steps == 0) & model.indefinite & (relative < _NEAR)
            keep = live & (at_start | (state.kept & model.indefinite))
            if bool(keep.any()):
                return self._towards_saddle(state, expansion, model, status, index, keep, tol)

        quiet = (relative <= tol) | (predicted <= 2 * expansion.noise)
        may_end = live & quiet & (second_order or not self.second_order)
        if self.target == "minimum" and bool((may_end & model.indefinite).any()):
            escaped = self._escape(space, state.nodes, expansion, may_end & model.indefinite)
            moved = (escaped != state.nodes).flatten(1).any(1)
            state = PathState(**{**_fields(state), "nodes": escaped})
            may_end = may_end & ~moved
            live = live & ~moved
        nodes, damping, stalled = self._descend(space, state, expansion, model, steps, predicted, live)
        limited = may_end & (relative > tol)
        status = torch.where(may_end, int(Status.CONVERGED), status)
        status = torch.where(limited, int(Status.PRECISION), status)
        status = torch.where(live & stalled & ~may_end, int(Status.STALLED), status)
        kept = torch.zeros_like(state.kept)
        return PathState(
            nodes, status, torch.where(live, relative, state.decrement), index, state.steps + 1, damping, kept
        )

    def _descend(
        self,
        space: Space,
        state: PathState,
        expansion: Expansion,
        model: _Model,
        steps: Tensor,
        predicted: Tensor,
        live: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the longest damped step that lowers the energy; returns nodes, damping, and which curves found none."""
        nodes, damping = state.nodes.clone(), state.damping.clone()
        pending = live.nonzero().flatten()
        for attempt in range(_ATTEMPTS):
            if not len(pending):
                break
            if attempt:
                steps, predicted = model.solve(damping, pending)
            elif len(pending) < len(steps):
                steps, predicted = steps[pending], predicted[pending]
            trial = _moved(state.nodes[pending], steps)
            gain = expansion.energy[pending] - space.curve_energy(trial)
            # The quadratic model promises predicted/2; a tenth of it, up to rounding, is a step worth taking.
            enough = gain >= 0.05 * predicted - expansion.noise[pending]  # False for NaN
            taken = pending[enough]
            nodes[taken] = trial[enough]
            good = enough & (gain >= 0.375 * predicted - expansion.noise[pending])
            relaxed = damping[pending[good]] / 8
            damping[pending[good]] = torch.where(relaxed < _DAMPING_FLOOR, 0.0, relaxed)
            pending = pending[~enough]
            damping[pending] = (4 * damping[pending]).clamp(min=_DAMPING_START)
        stalled = torch.zeros_like(live)
        stalled[pending] = True
        return nodes, damping, stalled

    def _towards_saddle(
        self,
        state: PathState,
        expansion: Expansion,
        model: _Model,
        status: Tensor,
        index: Tensor,
        keep: Tensor,
        tol: float,
    ) -> PathState:
        """Undamped Newton for curves near a saddle, while the others wait for their next step."""
        assert expansion.hessian is not None
        nodes, decrement = state.nodes.clone(), state.decrement.clone()
        where = keep.nonzero().flatten()
        gradient = expansion.gradient[where]
        step, info = torch.linalg.solve_ex(
            expansion.hessian.select(where).dense(), -gradient.flatten(1)[..., None], check_errors=False
        )
        step = step[..., 0].view_as(gradient)
        nodes[where] = _moved(nodes[where], torch.where((info == 0)[:, None, None], step, 0.0))
        promised = (gradient * step).sum((-1, -2)).abs()
        decrement[where] = _relative(torch.maximum(promised, model.decrement[where]), expansion.energy[where])
        status = status.clone()
        status[where[decrement[where] <= tol]] = int(Status.CONVERGED)
        status[where[info != 0]] = int(Status.SINGULAR)
        return PathState(nodes, status, decrement, index, state.steps + keep, state.damping, keep)

    def _escape(self, space: Space, nodes: Tensor, expansion: Expansion, at_saddle: Tensor) -> Tensor:
        """Leave saddles along the direction of most negative curvature, to the side where the energy falls further."""
        assert expansion.hessian is not None
        nodes = nodes.clone()
        where = at_saddle.nonzero().flatten()
        values, vectors = torch.linalg.eigh(expansion.hessian.select(where).dense())
        direction = vectors[..., 0].view_as(expansion.gradient[where])
        stiffness = (direction * expansion.gauss_newton.select(where).product(direction)).sum((-1, -2))
        size = (expansion.energy[where] / stiffness).sqrt()
        pending = torch.arange(len(where), device=nodes.device)
        for attempt in range(1, _ATTEMPTS):
            if not len(pending):
                break
            rows = where[pending]
            stride = 0.5**attempt * size[pending, None, None] * direction[pending]
            both = torch.stack([_moved(nodes[rows], sign * stride) for sign in (1, -1)])
            energies = torch.stack([space.curve_energy(trial) for trial in both]).nan_to_num(torch.inf)
            lower, side = energies.min(0)
            found = lower < expansion.energy[rows] - expansion.noise[rows]
            nodes[rows[found]] = both[side, torch.arange(len(rows), device=nodes.device)][found]
            pending = pending[~found]
        return nodes


@dataclass(frozen=True)
class _Model:
    """The quadratic model of one step: the Hessian where it is positive definite, Gauss-Newton elsewhere."""

    matrix: BlockTridiagonal
    gauss_newton: BlockTridiagonal
    gradient: Tensor
    step: Tensor  # undamped
    decrement: Tensor  # gᵀ M⁻¹ g, M the matrix
    singular: Tensor
    indefinite: Tensor
    index: Tensor

    @classmethod
    def of(cls, expansion: Expansion) -> _Model:
        gn, g = expansion.gauss_newton, expansion.gradient
        singular = _rank_deficient(gn.diagonal)
        index = torch.full_like(singular, -1, dtype=torch.int64)
        matrix = gn if expansion.hessian is None else expansion.hessian
        factor = matrix.cholesky()
        if expansion.hessian is not None:
            index = torch.where(factor.ok, 0, index)
            if not bool(factor.ok.all()):
                rest = (~factor.ok & ~singular).nonzero().flatten()
                index[rest] = matrix.select(rest).negative_eigenvalues()
                matrix = matrix.where(factor.ok, gn)
                factor = matrix.cholesky()
        step = torch.where(factor.ok[:, None, None], factor.solve(-g), 0.0)
        return cls(matrix, gn, g, step, -(g * step).sum((-1, -2)), singular | ~factor.ok, index > 0, index)

    def solve(self, damping: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Damped steps and the decrements ``gᵀ(M + μ D)⁻¹g`` that they promise, for all curves or for ``rows``."""
        matrix, blocks, g = self.matrix, self.gauss_newton.diagonal, self.gradient
        if rows is not None:
            matrix, blocks, g, damping = matrix.select(rows), blocks[rows], g[rows], damping[rows]
        factor = matrix.add_block_diagonal(damping[:, None, None, None] * blocks).cholesky()
        step = torch.where(factor.ok[:, None, None], factor.solve(-g), 0.0)
        return step, -(g * step).sum((-1, -2))


def _sound(expansion: Expansion, state: PathState) -> tuple[Expansion, Tensor]:
    """Mark curves with NaN or infinity, and put harmless numbers in their place so that the rest can go on."""
    hessian = expansion.hessian or expansion.gauss_newton
    finite = expansion.energy.isfinite()
    for part in (
        expansion.gradient,
        expansion.gauss_newton.diagonal,
        expansion.gauss_newton.upper,
        hessian.diagonal,
        hessian.upper,
    ):
        finite = finite & part.flatten(1).isfinite().all(1)
    status = torch.where(finite, state.status, int(Status.NON_FINITE))
    if bool(finite.all()):
        return expansion, status
    identity = BlockTridiagonal(
        torch.eye(state.nodes.shape[-1]).to(state.nodes).expand_as(hessian.diagonal), torch.zeros_like(hessian.upper)
    )
    return (
        Expansion(
            energy=torch.where(finite, expansion.energy, 1.0),
            gradient=torch.where(finite[:, None, None], expansion.gradient, 0.0),
            gauss_newton=expansion.gauss_newton.where(finite, identity),
            hessian=None if expansion.hessian is None else expansion.hessian.where(finite, identity),
            noise=torch.where(finite, expansion.noise, 0.0),
        ),
        status,
    )


def _rank_deficient(blocks: Tensor) -> Tensor:  # (p, n, m, m) -> (p,)
    """Whether the metric is singular at some node, judged after scaling it to unit diagonal."""
    scale = blocks.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = (blocks / scale[..., None] / scale[..., None, :]).nan_to_num(0.0)  # a zero direction leaves a zero pivot
    factor, info = torch.linalg.cholesky_ex(unit)
    pivots = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    return ((info != 0) | ~(pivots > tolerance(blocks.dtype).rank)).any(-1)


def _relative(predicted: Tensor, energy: Tensor) -> Tensor:
    """Relative reduction of the length: the energy falls by predicted/2, and length² = energy."""
    return predicted / (4 * energy)


def _moved(nodes: Tensor, step: Tensor) -> Tensor:
    return torch.cat([nodes[:, :1], nodes[:, 1:-1] + step, nodes[:, -1:]], 1)


def _fields(state: PathState) -> dict[str, Tensor]:
    return {f.name: getattr(state, f.name) for f in fields(state)}
