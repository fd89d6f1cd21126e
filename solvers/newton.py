"""Damped Newton on a discrete curve energy, with a Gauss-Newton model where the Hessian is not positive definite."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from riemae.solvers.energy import Expansion, discrete_energy
from riemae.solvers.exceptions import OptionError
from riemae.solvers.linear import BlockTridiagonal, Factorization
from riemae.solvers.result import Status
from riemae.solvers.space import Space
from riemae.solvers.tolerances import tolerance

RUNNING = -1
_DAMPING_FLOOR, _DAMPING_START = 1e-3, 0.1
_ATTEMPTS = 12  # damping grows fourfold an attempt: enough to shorten a step by 4¹²
_ACCEPTABLE = 50  # how far above its tolerance rounding may stop a curve
_NEAR = 1e-3  # a start curve that the model cannot shorten by more than this share is nearly a geodesic
_TRUSTED_GAIN = 1 / 1000  # never believe that one step reduced the decrement by more than this without looking
_LEAST_CURVATURE = 0.02  # of Gauss-Newton's: bounds the step where the Hessian is nearly flat
_SLOW = 0.2  # a step that leaves more than this share of the decrement calls for new second derivatives
_ROUGH = 2e-4  # relative decrement at which a curve that converges slowly leaves its first level
# Where the solver's tolerance is at most _SHARP, curves of at least _SHARP_SEGMENTS get a last step on a sixth-order
# residual: two levels' worth of accuracy for half a sweep. It must be small to be in its asymptotic regime.
_SHARP, _SHARP_SEGMENTS, _SHARP_LIMIT = 2e-8, 32, 1e-4


@dataclass
class PathState:
    """Progress on ``p`` curves; every field has one entry a curve.

    Attributes:
        nodes: ``(p, n + 1, m)``.
        status: ``(p,)``; RUNNING, CONVERGED for this resolution, or a failure.
        decrement: ``(p,)``, the relative reduction of the length that the local model still promises.
        index: ``(p,)``, Morse index of the last Hessian; −1 before it is known.
        steps: ``(p,)``, steps taken.
        damping: ``(p,)``, in units of the Gauss-Newton block diagonal.
        kept: ``(p,)`` bool: converging to a saddle on purpose.
        diagonal: ``(p, n − 1, m, m)``, second-derivative part of the Hessian as last computed.
        upper: ``(p, n − 2, m, m)``, the same beside the diagonal.
        known: ``(p,)`` bool: whether that part exists.
        stale: ``(p,)`` bool: whether it must be computed anew.
        scalable: ``(p,)`` bool: whether it serves a finer level.
        first: ``(p,)`` bool: whether this is the curve's first level, which a second always follows.
    """

    nodes: Tensor
    status: Tensor
    decrement: Tensor
    index: Tensor
    steps: Tensor
    damping: Tensor
    kept: Tensor
    diagonal: Tensor
    upper: Tensor
    known: Tensor
    stale: Tensor
    scalable: Tensor
    first: Tensor

    @classmethod
    def start(cls, nodes: Tensor) -> PathState:
        """A state about discrete curves ``(p, n + 1, m)`` of which nothing is known."""
        p, count, m = nodes.shape
        zero = torch.zeros(p, dtype=torch.int64, device=nodes.device)
        no = [torch.zeros_like(zero, dtype=torch.bool) for _ in range(4)]
        return cls(
            nodes=nodes.clone(),
            status=zero + RUNNING,
            decrement=nodes.new_full((p,), torch.inf),
            index=zero - 1,
            steps=zero,
            damping=nodes.new_zeros(p),
            kept=no[0],
            diagonal=nodes.new_zeros(p, count - 2, m, m),
            upper=nodes.new_zeros(p, count - 3, m, m),
            known=no[1],
            stale=no[2],
            scalable=no[3],
            first=~no[3],
        )

    def refined(self, nodes: Tensor, moved: Tensor) -> PathState:
        """A state about the same curves on twice as many segments.

        Args:
            nodes: ``(p, 2 n + 1, m)``.
            moved: ``(p,)`` bool: curves whose nodes were placed anew.
        """
        fine = PathState.start(nodes)
        # c(t) = n × correction is smooth along the curve: interpolate it, with its ends extrapolated, at half the step.
        coarse = self.diagonal / 2
        ends = [2 * coarse[:, :1] - coarse[:, 1:2], coarse, 2 * coarse[:, -1:] - coarse[:, -2:-1]]
        padded = torch.cat(ends, 1) if coarse.shape[1] > 1 else coarse.repeat(1, 3, 1, 1)
        fine.diagonal[:, 0::2] = (padded[:, :-1] + padded[:, 1:]) / 2
        fine.diagonal[:, 1::2] = coarse
        fine.kept = self.kept.clone()
        fine.known = self.known & self.scalable & ~moved & ~self.kept
        fine.scalable = self.scalable.clone()
        fine.first = torch.zeros_like(self.first)
        return fine

    @classmethod
    def cat(cls, parts: list[PathState]) -> PathState:
        """One batch from several at the same resolution."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

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
    Newton's (quadratic convergence); where it is not, its eigenvalues are made positive, so that the step descends.
    Second derivatives are computed once a curve and then kept, and interpolated to finer levels, as long as steps with
    them converge fast. A curve whose step does not lower its energy is damped (Levenberg-Marquardt in the metric, so
    the chart does not matter) without a new expansion and without touching its neighbours. Where the tolerance is
    sharp, a curve that has converged gets one more step on the residual of a sixth-order discretisation.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Steps a pair may take in total.
        gauss_newton_steps: Steps without second derivatives from a new start.
        second_order: False keeps to Gauss-Newton throughout; the Morse index then stays −1.
        target: ``"minimum"`` minimises, and leaves saddles along a direction of negative curvature; ``"stationary"``
            keeps to a start curve that is nearly a geodesic already, minimising or not, and minimises from any other.

    Raises:
        OptionError: For a value out of range.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 200
    gauss_newton_steps: int = 3
    second_order: bool = True
    target: Literal["minimum", "stationary"] = "minimum"

    def __post_init__(self) -> None:
        counts = (self.segments, self.max_segments, self.max_steps, self.gauss_newton_steps)
        if not all(isinstance(n, int) for n in counts) or self.gauss_newton_steps < 0:
            raise OptionError("Newton", "whole numbers of segments and steps, none negative", repr(counts), "")
        if not 2 <= self.segments <= self.max_segments:
            raise OptionError(
                "Newton", "2 <= segments <= max_segments", f"{self.segments} and {self.max_segments}", "Try 8 and 512."
            )
        if self.max_steps < 1:
            raise OptionError("Newton", "max_steps of at least 1", str(self.max_steps), "")
        if self.target not in ("minimum", "stationary"):
            raise OptionError("Newton", "target 'minimum' or 'stationary'", repr(self.target), "")

    def begin(self, nodes: Tensor) -> PathState:  # (p, n + 1, m)
        """A state about new curves."""
        return PathState.start(nodes)

    def step(self, space: Space, state: PathState, tol: float) -> PathState:
        """One step of every curve of ``state``.

        A curve ends when its relative decrement is at most ``tol``, or within rounding of 0: with PRECISION where that
        is more than 50 ``tol``.
        """
        fresh = self._wants_second_order(state)
        expansion, status = _sound(_expand(space, state.nodes, fresh), state)
        model = _Model.of(expansion, state, fresh, check_rank=bool((state.steps == 0).any()))
        status = torch.where((status == RUNNING) & model.singular, int(Status.SINGULAR), status)
        state = replace(model.remember(state, fresh), status=status)
        live = status == RUNNING

        steps, predicted = model.solve(state.damping) if bool(state.damping.any()) else (model.step, model.decrement)
        relative = _relative(predicted * (1 + state.damping), expansion.energy)
        if self.target == "stationary":
            at_start = (state.steps == 0) & model.indefinite & (relative < _NEAR)
            keep = live & (at_start | (state.kept & model.indefinite))
            if bool(keep.any()):
                return self._towards_saddle(state, expansion, model, keep, tol)

        informed = (model.index >= 0) | (not self.second_order)
        quiet = live & informed & ((relative <= tol) | (predicted <= 2 * expansion.noise))
        if self.target == "minimum" and bool((quiet & model.indefinite).any()):
            escaped = self._escape(space, state.nodes, expansion, model, quiet & model.indefinite)
            moved = (escaped != state.nodes).flatten(1).any(1)
            state = replace(state, nodes=escaped, stale=state.stale | moved)
            quiet, live = quiet & ~moved, live & ~moved
        nodes, damping, discrepancy = self._descend(space, state, expansion, model, steps, predicted, live)

        # A step that misjudged the energy by δ leaves a decrement of 4δ²/decrement if the matrix was off, and of
        # 9δ²/decrement if the third derivative was (both exact in one dimension).
        left = _relative(9 * discrepancy.square() / predicted, expansion.energy)
        left = torch.maximum(left, _TRUSTED_GAIN * relative)
        full = live & (discrepancy < torch.inf) & (state.damping == 0) & (damping == 0)
        sound = full & informed & ~model.indefinite
        slow = left > _SLOW * relative
        ended = quiet | (sound & (left <= tol))
        # The first level is not for its own sake: where it converges slowly, the finer one has less to fight with.
        ended = ended | (sound & state.first & (left <= _ROUGH) & slow)
        if tol <= _SHARP and state.nodes.shape[1] > _SHARP_SEGMENTS:
            nodes = _polished(space, nodes, expansion, model, ended & full & ~model.indefinite)
        status = torch.where(ended, int(Status.CONVERGED), status)
        acceptable = max(_ACCEPTABLE * tol, 4 * tolerance(relative.dtype).length)
        status = torch.where(quiet & (relative > acceptable), int(Status.PRECISION), status)
        status = torch.where(live & ~ended & discrepancy.isinf(), int(Status.STALLED), status)
        decrement = torch.where(full & ~quiet, left, relative)
        return replace(
            state,
            nodes=nodes,
            status=status,
            decrement=torch.where(live, decrement, state.decrement),
            steps=state.steps + 1,
            damping=damping,
            kept=torch.zeros_like(state.kept),
            stale=state.stale | ~full | slow | (model.index < 0),
        )

    def _wants_second_order(self, state: PathState) -> Tensor:
        if not self.second_order:
            return torch.zeros_like(state.known)
        # A start curve that may be kept as it is must be judged by the full Hessian at once.
        wait = self.gauss_newton_steps if self.target == "minimum" else 0
        return torch.where(state.known, state.stale, state.steps >= wait)

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
        """Take the longest damped step that lowers the energy.

        Returns:
            Nodes, damping, and by how much the model misjudged the energy; inf where no step lowers it.
        """
        nodes, damping = state.nodes.clone(), state.damping.clone()
        discrepancy = torch.full_like(damping, torch.inf)
        pending = live.nonzero().flatten()
        for attempt in range(_ATTEMPTS):
            if not len(pending):
                break
            if attempt:
                steps, predicted = model.solve(damping, pending)
            elif len(pending) < len(steps):
                steps, predicted = steps[pending], predicted[pending]
            trial = _moved(state.nodes[pending], steps)
            gain = expansion.energy[pending] - discrete_energy(space.squared_chords(trial))
            # The quadratic model promises predicted/2; a tenth of it, up to rounding, is a step worth taking.
            enough = gain >= 0.05 * predicted - expansion.noise[pending]  # False for NaN
            taken = pending[enough]
            nodes[taken] = trial[enough]
            discrepancy[taken] = (gain - predicted / 2).abs()[enough]
            good = enough & (gain >= 0.375 * predicted - expansion.noise[pending])
            relaxed = damping[pending[good]] / 8
            damping[pending[good]] = torch.where(relaxed < _DAMPING_FLOOR, 0.0, relaxed)
            pending = pending[~enough]
            damping[pending] = (4 * damping[pending]).clamp(min=_DAMPING_START)
        return nodes, damping, discrepancy

    def _towards_saddle(
        self, state: PathState, expansion: Expansion, model: _Model, keep: Tensor, tol: float
    ) -> PathState:
        """Undamped Newton for curves near a saddle, while the others wait for their next step."""
        nodes, decrement, status = state.nodes.clone(), state.decrement.clone(), state.status.clone()
        where = keep.nonzero().flatten()
        gradient = expansion.gradient[where]
        matrix = model.full.select(where).dense()
        step, info = torch.linalg.solve_ex(matrix, -gradient.flatten(1)[..., None], check_errors=False)
        step = torch.where((info == 0)[:, None, None], step[..., 0].view_as(gradient), 0.0)
        promised = torch.maximum((gradient * step).sum((-1, -2)).abs(), model.decrement[where])
        decrement[where] = _relative(promised, expansion.energy[where])
        nodes[where] = _moved(nodes[where], step)
        status[where[decrement[where] <= tol]] = int(Status.CONVERGED)
        status[where[info != 0]] = int(Status.SINGULAR)
        return replace(
            state,
            nodes=nodes,
            decrement=decrement,
            status=status,
            steps=state.steps + keep,
            kept=keep,
            stale=state.stale | keep,
        )

    def _escape(self, space: Space, nodes: Tensor, expansion: Expansion, model: _Model, at_saddle: Tensor) -> Tensor:
        """Leave saddles along the direction of most negative curvature, to the side where the energy falls further."""
        nodes = nodes.clone()
        where = at_saddle.nonzero().flatten()
        vectors = torch.linalg.eigh(model.full.select(where).dense()).eigenvectors
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
            energies = torch.stack([discrete_energy(space.squared_chords(trial)) for trial in both])
            lower, side = energies.nan_to_num(torch.inf).min(0)
            found = lower < expansion.energy[rows] - expansion.noise[rows]
            nodes[rows[found]] = both[side, torch.arange(len(rows), device=nodes.device)][found]
            pending = pending[~found]
        return nodes


@dataclass(frozen=True)
class _Model:
    """The quadratic model of one step.

    The Hessian where it is positive definite; its absolute value where it is known to be indefinite (eigenvalues
    relative to Gauss-Newton, taken positive: the step runs down along negative curvature, too); Gauss-Newton elsewhere.
    """

    full: BlockTridiagonal  # the Hessian as far as it is known
    matrix: BlockTridiagonal
    factor: Factorization
    gauss_newton: BlockTridiagonal
    gradient: Tensor
    step: Tensor  # undamped
    decrement: Tensor  # gᵀ M⁻¹ g, M the matrix
    singular: Tensor
    indefinite: Tensor
    index: Tensor
    scalable: bool
    place: Tensor  # (p,), where an indefinite curve stands in `absolute`; −1 for the others
    absolute: Tensor  # (q, (n − 1) m, (n − 1) m)

    @classmethod
    def of(cls, expansion: Expansion, state: PathState, fresh: Tensor, check_rank: bool) -> _Model:
        gn, g = expansion.gauss_newton, expansion.gradient
        singular = _rank_deficient(gn.diagonal) if check_rank else torch.zeros_like(fresh)
        correction = BlockTridiagonal(state.diagonal, state.upper)
        if expansion.correction is not None:
            correction = expansion.correction.where(fresh, correction)
        known = state.known | fresh
        full = gn + correction
        factor = full.cholesky()
        index = torch.where(known & factor.ok, 0, -1)
        matrix = full
        if not bool(factor.ok.all()):
            # What was kept from elsewhere proves nothing about the index: only fresh second derivatives do.
            rest = (~factor.ok & fresh & ~singular).nonzero().flatten()
            index[rest] = full.select(rest).negative_eigenvalues()
            matrix = full.where(factor.ok, gn)
            factor = matrix.cholesky()
        bent = (index > 0).nonzero().flatten()
        place = torch.full_like(index, -1)
        place[bent] = torch.arange(len(bent), device=place.device)
        absolute = _absolute(full.select(bent), gn.select(bent)) if len(bent) else g.new_empty(0, 0, 0)
        step = torch.where(factor.ok[:, None, None], factor.solve(-g), 0.0)
        model = cls(
            full=full,
            matrix=matrix,
            factor=factor,
            gauss_newton=gn,
            gradient=g,
            step=step,
            decrement=-(g * step).sum((-1, -2)),
            singular=singular | ~factor.ok,
            indefinite=index > 0,
            index=index,
            scalable=expansion.scalable,
            place=place,
            absolute=absolute,
        )
        if not len(bent):
            return model
        step, decrement = model.solve(torch.zeros_like(expansion.energy))
        return replace(model, step=step, decrement=decrement)

    def remember(self, state: PathState, fresh: Tensor) -> PathState:
        """The state with the second derivatives and the index that this model rests on."""
        return replace(
            state,
            diagonal=self.full.diagonal - self.gauss_newton.diagonal,
            upper=self.full.upper - self.gauss_newton.upper,
            index=torch.where(state.status == RUNNING, self.index, state.index),
            known=state.known | fresh,
            stale=state.stale & ~fresh,
            scalable=torch.full_like(fresh, self.scalable),
        )

    def solve(self, damping: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Damped steps and the decrements ``gᵀ(M + μ D)⁻¹g`` that they promise, for all curves or for ``rows``."""
        matrix, blocks, g, place = self.matrix, self.gauss_newton.diagonal, self.gradient, self.place
        if rows is not None:
            matrix, blocks, g, damping, place = matrix.select(rows), blocks[rows], g[rows], damping[rows], place[rows]
        shift = damping[:, None, None, None] * blocks
        factor = matrix.add_block_diagonal(shift).cholesky()
        step = torch.where(factor.ok[:, None, None], factor.solve(-g), 0.0)
        bent = (place >= 0).nonzero().flatten()
        if len(bent):
            nothing = torch.zeros_like(matrix.upper[bent])
            dense = self.absolute[place[bent]] + BlockTridiagonal(shift[bent], nothing).dense()
            root = torch.linalg.cholesky_ex(dense).L
            step[bent] = torch.cholesky_solve(-g[bent].flatten(1)[..., None], root)[..., 0].view_as(g[bent])
        return step, -(g * step).sum((-1, -2))


def _absolute(hessian: BlockTridiagonal, gauss_newton: BlockTridiagonal) -> Tensor:  # -> (q, n m, n m)
    """``L V |Λ| Vᵀ Lᵀ`` with ``M = L Lᵀ`` and ``L⁻¹ H L⁻ᵀ = V Λ Vᵀ``: the Hessian with positive eigenvalues."""
    root = torch.linalg.cholesky_ex(gauss_newton.dense()).L
    half = torch.linalg.solve_triangular(root, hessian.dense(), upper=False)
    relative = torch.linalg.solve_triangular(root, half.mT, upper=False)
    values, vectors = torch.linalg.eigh((relative + relative.mT).nan_to_num(0.0) / 2)
    wide = root @ vectors
    return wide @ (values.abs().clamp(min=_LEAST_CURVATURE)[..., None] * wide.mT)


def _polished(space: Space, nodes: Tensor, expansion: Expansion, model: _Model, ended: Tensor) -> Tensor:
    """Correct the nodes of finished curves for the second order of the energy, where that is in reach."""
    where = ended.nonzero().flatten()
    residual = space.residual(nodes[where]) if len(where) else None
    if residual is None:
        return nodes
    step = -model.matrix.select(where).cholesky().solve(residual)
    size = _relative(-(residual * step).sum((-1, -2)), expansion.energy[where])
    nodes = nodes.clone()
    nodes[where] = _moved(nodes[where], torch.where((size < _SHARP_LIMIT)[:, None, None], step, 0.0))
    return nodes


def _expand(space: Space, nodes: Tensor, fresh: Tensor) -> Expansion:
    """Expand all curves, those of ``fresh`` with second derivatives."""
    if bool(fresh.all()) or not bool(fresh.any()):
        return space.expand(nodes, bool(fresh.any()))
    order = torch.cat([(~fresh).nonzero().flatten(), fresh.nonzero().flatten()])
    plain, full = space.expand(nodes[~fresh], False), space.expand(nodes[fresh], True)
    assert full.correction is not None
    return Expansion.cat([replace(plain, correction=plain.gauss_newton.scaled(0.0)), full]).select(order.argsort())


def _sound(expansion: Expansion, state: PathState) -> tuple[Expansion, Tensor]:
    """Mark curves with NaN or infinity, and put harmless numbers in their place so that the rest can go on."""
    gn, correction = expansion.gauss_newton, expansion.correction or expansion.gauss_newton
    finite = expansion.energy.isfinite()
    for part in (expansion.gradient, gn.diagonal, gn.upper, correction.diagonal, correction.upper):
        finite = finite & part.flatten(1).isfinite().all(1)
    status = torch.where(finite, state.status, int(Status.NON_FINITE))
    if bool(finite.all()):
        return expansion, status
    identity = BlockTridiagonal(
        torch.eye(state.nodes.shape[-1]).to(state.nodes).expand_as(gn.diagonal), torch.zeros_like(gn.upper)
    )
    return (
        replace(
            expansion,
            energy=torch.where(finite, expansion.energy, 1.0),
            gradient=torch.where(finite[:, None, None], expansion.gradient, 0.0),
            gauss_newton=gn.where(finite, identity),
            correction=None if expansion.correction is None else correction.where(finite, identity),
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
