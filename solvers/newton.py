"""Damped Newton on a discrete curve energy, with a Gauss-Newton model where the Hessian is not positive definite."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from riemae.solvers.energy import Expansion, discrete_energy
from riemae.solvers.exceptions import OptionError
from riemae.solvers.linear import BlockTridiagonal, Factorization
from riemae.solvers.result import Status
from riemae.solvers.space import Space, energy_and_gradient, evidently_finite
from riemae.solvers.state import RUNNING, PathState
from riemae.solvers.tolerances import tolerance

_DAMPING_FLOOR, _DAMPING_START = 1e-3, 0.1
_ATTEMPTS = 12  # damping grows fourfold an attempt: enough to shorten a step by 4¹²
_ACCEPTABLE = 50  # how far above its tolerance rounding may stop a curve
_NEAR = 1e-3  # a start curve that the model cannot shorten by more than this share is nearly a geodesic
_TRUSTED_GAIN = 1 / 1000  # never believe that one step reduced the decrement by more than this without looking
_LONGEST_RUN = 8  # steps with one matrix
_LEAST_CURVATURE = 0.02  # of Gauss-Newton's: bounds the step where the Hessian is nearly flat
# A step that leaves more than this share of the decrement calls for a new matrix, but not the first two with the one at
# hand: what they show of the Hessian goes into it.
_SLOW, _LEARNING = 0.3, 2
_STIFF = 0.45  # a matrix that leaves no more than _SLOW of a decrement shows at least this share of it as curvature
_BELIEVED = 1e-4  # of the rounding error, within which one from a coarser level is believed without a step
_ROUGH = 2e-4  # relative decrement at which a curve that converges slowly leaves its first level
# Where the solver's tolerance is at most _SHARP, curves of at least _SHARP_SEGMENTS get a last step on a sixth-order
# residual: two levels' worth of accuracy for half a sweep. It must be small to be in its asymptotic regime.
_SHARP, _SHARP_SEGMENTS, _SHARP_LIMIT = 2e-8, 32, 1e-4


@dataclass(frozen=True)
class Newton:
    """Settings of the Newton path solver.

    The block-tridiagonal Hessian of the discrete energy is factorised. Where it is positive definite the step is
    Newton's; where it is not, its eigenvalues are made positive, so that the step descends. Derivatives cost most, so
    that they are computed a few times a curve, on its first level: the steps that follow take the gradient alone, by
    one reverse pass, with the matrix kept, and corrected for what the gradients show (BFGS), as long as they converge
    fast; finer levels begin with that matrix, interpolated. A curve whose step does not lower its energy is damped
    (Levenberg-Marquardt in the metric, so the chart does not matter) without a new expansion and without touching its
    neighbours. Where the tolerance is sharp, a curve that has converged gets one more step on the residual of a
    sixth-order discretisation.

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
    gauss_newton_steps: int = 2
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
        """One expansion of every curve of ``state``, and the steps that it is good for.

        A curve ends when its relative decrement is at most ``tol``, or within rounding of 0: with PRECISION where that
        is more than 50 ``tol``. On its first level, one that converges slowly also ends when it is roughly there.
        """
        reused, fresh = state.known & ~state.stale, self._wants_second_order(state)
        expansion, status = _sound(_expand(space, state, reused, fresh), state)
        model = _Model.of(expansion, reused, fresh, ~reused & ((state.steps == 0) | ~state.first))
        status = torch.where((status == RUNNING) & model.singular, int(Status.SINGULAR), status)
        state = replace(model.remember(state, expansion, fresh), status=status)
        live, undamped = status == RUNNING, state.damping == 0

        steps, predicted = (model.step, model.decrement) if bool(undamped.all()) else model.solve(state.damping)
        relative = _relative(predicted * (1 + state.damping), expansion.energy)
        keep = torch.zeros_like(live)
        if self.target == "stationary":
            at_start = (state.steps == 0) & model.indefinite & (relative < _NEAR)
            keep = live & (at_start | (state.kept & model.indefinite))
        if bool(keep.any()):
            state, live = self._towards_saddle(state, expansion, model, keep, tol), live & ~keep

        informed = (model.index >= 0) | (not self.second_order)
        quiet = live & informed & ((relative <= tol) | (predicted <= 2 * expansion.noise))
        if self.target == "minimum" and bool((quiet & model.indefinite).any()):
            escaped = self._escape(space, state.nodes, expansion, model, quiet & model.indefinite)
            moved = (escaped != state.nodes).flatten(1).any(1)
            state = replace(state, nodes=escaped, stale=state.stale | moved)
            quiet, live = quiet & ~moved, live & ~moved
        state = replace(
            state,
            decrement=torch.where(live, relative, state.decrement),
            steps=state.steps + 1,
            kept=keep,
        )
        sound = (informed | ~reused) & ~model.indefinite & undamped
        # What a step leaves is known only once it has been taken: one is, above rounding, however short. What a matrix
        # from a coarser level promises may be too little by far.
        rounding = torch.where(reused, _BELIEVED, 2.0) * expansion.noise
        still = quiet & (~sound | (predicted <= rounding))
        state, refused = self._run(space, state, expansion, model, reused, informed, live & sound & ~still, tol)
        walking = live & ~quiet & (~sound | refused)
        if bool(walking.any()):
            nodes, damping, lowered = self._descend(space, state, expansion, model, steps, predicted, walking, refused)
            stalled = walking & ~lowered
            state = replace(state, nodes=nodes, damping=damping, stale=state.stale | walking)
            state = replace(state, status=torch.where(stalled, int(Status.STALLED), state.status))
        quiet = quiet & (state.status == RUNNING) & ~(reused & state.stale)
        state = replace(state, status=torch.where(quiet, _ended(state.decrement, tol), state.status))
        if tol <= _SHARP and state.nodes.shape[1] > _SHARP_SEGMENTS:
            ended = live & sound & (state.status != RUNNING) & (state.status != int(Status.STALLED))
            state = replace(state, nodes=_polished(space, state.nodes, expansion, model, ended))
        return state

    def _wants_second_order(self, state: PathState) -> Tensor:
        if not self.second_order:
            return torch.zeros_like(state.known)
        # Far from the geodesic they are not worth having; but a start curve that may be kept as it is must be judged by
        # the full Hessian at once.
        wait = torch.where(state.first, self.gauss_newton_steps, 0) if self.target == "minimum" else 0
        return torch.where(state.known, state.stale, state.steps >= wait)

    def _run(
        self,
        space: Space,
        state: PathState,
        expansion: Expansion,
        model: _Model,
        reused: Tensor,
        informed: Tensor,
        running: Tensor,
        tol: float,
    ) -> tuple[PathState, Tensor]:
        """Steps with one matrix, corrected by the gradients met on the way, as long as they converge fast.

        The decrement left at the next nodes is measured: its gradient costs one reverse pass beside the energy that a
        step is judged by anyway.

        Returns:
            The state, and which curves found no lower energy at their first step.
        """
        nodes, decrement, stale, count = (x.clone() for x in (state.nodes, state.decrement, state.stale, state.steps))
        energy, step, promised = expansion.energy.clone(), model.step.clone(), model.decrement.clone()
        slope, secants = expansion.gradient.clone(), _Secants(model)
        status, refused, stiff = state.status.clone(), torch.zeros_like(stale), torch.zeros_like(stale)
        pending = running.nonzero().flatten()
        for taken in range(_LONGEST_RUN):
            if not len(pending):
                break
            noise = expansion.noise[pending]
            trial = _moved(nodes[pending], step[pending])
            value, gradient = energy_and_gradient(space, trial)
            lower = energy[pending] - value >= 0.05 * promised[pending] - noise  # False for NaN
            if not bool(lower.all()):
                lost = pending[~lower]
                stale[lost], refused[lost] = True, not taken
                pending, noise, trial, value, gradient = (x[lower] for x in (pending, noise, trial, value, gradient))
            bend = secants.add(pending, step[pending], gradient - slope[pending])
            stiff[pending] |= bend < _STIFF * promised[pending]
            slope[pending] = gradient
            ahead, left = secants.newton(gradient, pending)
            relative, share = _relative(left, value), left / promised[pending]
            # One more step with this matrix would leave about the same share again. A matrix from a coarser level has a
            # say in whether the curve is done only if it foresees its steps: one that is too stiff promises too little.
            good, doubted = share <= _SLOW, reused[pending] & stiff[pending]
            met = (relative * share.clamp(_TRUSTED_GAIN, 1.0) <= tol) & (good | ~reused[pending])
            done = (met | (left <= 2 * noise)) & ~doubted
            slow, fast = ~done & ((~good & (taken >= _LEARNING)) | doubted), done & good
            nodes[pending] = _moved(trial, torch.where(fast[:, None, None], ahead, 0.0))
            remaining = torch.where(fast, relative * share.clamp(min=_TRUSTED_GAIN), relative)
            # The first level is not for its own sake: where it converges slowly, the finer one has less to fight with.
            rough = slow & state.first[pending] & (relative <= _ROUGH)
            verdict = torch.where(rough, int(Status.CONVERGED), RUNNING)
            # Without second derivatives there is no index: they are looked at before a curve may end.
            sure = informed[pending]
            status[pending] = torch.where(sure, torch.where(done, _ended(remaining, tol), verdict), RUNNING)
            decrement[pending], stale[pending] = remaining, slow
            energy[pending], step[pending], promised[pending] = value, ahead, left
            count[pending] += taken > 0
            allowed = torch.where(sure, self.max_steps, self.gauss_newton_steps)
            pending = pending[~(done | slow) & (count[pending] < allowed)]
        return replace(state, nodes=nodes, status=status, decrement=decrement, stale=stale, steps=count), refused

    def _descend(
        self,
        space: Space,
        state: PathState,
        expansion: Expansion,
        model: _Model,
        steps: Tensor,
        predicted: Tensor,
        walking: Tensor,
        refused: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Take the longest damped step that lowers the energy; of curves ``refused`` the undamped one does not.

        Returns:
            Nodes, damping, and which curves found a lower energy.
        """
        nodes, damping = state.nodes.clone(), state.damping.clone()
        lowered = torch.zeros_like(walking)
        pending = walking.nonzero().flatten()
        for attempt in range(_ATTEMPTS):
            if not len(pending):
                break
            if attempt:
                steps, predicted = model.solve(damping, pending)
            else:
                steps, predicted, known = steps[pending], predicted[pending], refused[pending]
                if bool(known.any()):
                    damping[pending[known]] = _DAMPING_START
                    steps[known], predicted[known] = model.solve(damping, pending[known])
            trial = _moved(state.nodes[pending], steps)
            gain = expansion.energy[pending] - discrete_energy(space.squared_chords(trial))
            # The quadratic model promises predicted/2; a tenth of it, up to rounding, is a step worth taking.
            enough = gain >= 0.05 * predicted - expansion.noise[pending]  # False for NaN
            taken = pending[enough]
            nodes[taken] = trial[enough]
            lowered[taken] = True
            good = enough & (gain >= 0.375 * predicted - expansion.noise[pending])
            relaxed = damping[pending[good]] / 8
            damping[pending[good]] = torch.where(relaxed < _DAMPING_FLOOR, 0.0, relaxed)
            pending = pending[~enough]
            damping[pending] = (4 * damping[pending]).clamp(min=_DAMPING_START)
        return nodes, damping, lowered

    def _towards_saddle(
        self, state: PathState, expansion: Expansion, model: _Model, keep: Tensor, tol: float
    ) -> PathState:
        """Undamped Newton for the curves near a saddle."""
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
        return replace(state, nodes=nodes, decrement=decrement, status=status, stale=state.stale | keep)

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


class _Secants:
    """What the gradients along a run show of the Hessian: BFGS updates of the matrix that the run began with.

    Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4. Where a gradient contradicts a positive definite
    Hessian, the curve goes without that update.
    """

    def __init__(self, model: _Model) -> None:
        self.model = model
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # (p, n - 1, m), (p, n - 1, m), (p, 1, 1)

    def add(self, rows: Tensor, step: Tensor, change: Tensor) -> Tensor:
        """Take in that the gradients of the curves at ``rows`` have changed by ``change`` along ``step``.

        Returns:
            The curvatures along the steps, which a step by the right matrix promises to be its decrement.
        """
        s, y = torch.zeros_like(self.model.gradient), torch.zeros_like(self.model.gradient)
        s[rows], y[rows] = step, change
        curvature = (s * y).sum((-1, -2), keepdim=True)
        self.pairs.append((s, y, torch.where(curvature > 0, 1 / curvature, 0.0)))
        return curvature[rows, 0, 0]

    def newton(self, gradient: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Steps from new gradients of the curves at ``rows``, and the decrements that they promise."""
        pairs = [(s[rows], y[rows], inverse[rows]) for s, y, inverse in self.pairs]
        rest, shares = gradient, []
        for s, y, inverse in reversed(pairs):
            shares.append(inverse * (s * rest).sum((-1, -2), keepdim=True))
            rest = rest - shares[-1] * y
        step = self.model.newton(rest, rows)
        for (s, y, inverse), share in zip(pairs, reversed(shares), strict=True):
            step = step - (share + inverse * (y * step).sum((-1, -2), keepdim=True)) * s
        return step, _decrement(gradient, step)


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
    correction: BlockTridiagonal
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
    def of(cls, expansion: Expansion, reused: Tensor, fresh: Tensor, unseen: Tensor) -> _Model:
        gn, g, correction = expansion.gauss_newton, expansion.gradient, expansion.correction
        singular = torch.zeros_like(fresh)
        if bool(unseen.any()):
            singular[unseen] = _rank_deficient(gn.diagonal[unseen])
        full = gn if correction is None else gn + correction
        factor = full.cholesky()
        index = torch.where((reused | fresh) & factor.ok, 0, -1)
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
            correction=gn.scaled(0.0) if correction is None else correction,
            gradient=g,
            step=step,
            decrement=_decrement(g, step),
            singular=singular | ~(factor.ok | reused),  # what was interpolated proves nothing about the metric
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

    def remember(self, state: PathState, expansion: Expansion, fresh: Tensor) -> PathState:
        """The state with the matrix and the index that this model rests on."""
        return replace(
            state,
            tangents=self.gauss_newton.diagonal,
            crossings=self.gauss_newton.upper,
            diagonal=self.correction.diagonal,
            upper=self.correction.upper,
            noise=expansion.noise,
            index=torch.where(state.status == RUNNING, self.index, state.index),
            known=state.known | fresh,
            stale=state.stale & ~fresh,
            scalable=torch.full_like(fresh, self.scalable),
        )

    def newton(self, gradient: Tensor, rows: Tensor) -> Tensor:
        """Undamped steps from other gradients of the curves at ``rows``."""
        if len(rows) == len(self.gradient):
            return self.factor.solve(-gradient)
        wide = torch.zeros_like(self.gradient)
        wide[rows] = -gradient
        return self.factor.solve(wide)[rows]

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
        return step, _decrement(g, step)


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
    step = model.newton(residual, where)
    size = _relative(_decrement(residual, step), expansion.energy[where])
    nodes = nodes.clone()
    nodes[where] = _moved(nodes[where], torch.where((size < _SHARP_LIMIT)[:, None, None], step, 0.0))
    return nodes


def _expand(space: Space, state: PathState, reused: Tensor, fresh: Tensor) -> Expansion:
    """Expand all curves: those of ``fresh`` with second derivatives, those of ``reused`` about the matrix they have."""
    looks = ((reused, _remembered), (fresh, _expanded), (~(reused | fresh), _gauss_newton))
    for rows, look in looks:
        if bool(rows.all()):
            return look(space, state)
    groups = [(rows.nonzero().flatten(), look) for rows, look in looks]
    parts = [look(space, state.select(rows)) for rows, look in groups if len(rows)]
    parts = [replace(e, correction=e.gauss_newton.scaled(0.0)) if e.correction is None else e for e in parts]
    return Expansion.cat(parts).select(torch.cat([rows for rows, _ in groups]).argsort())


def _expanded(space: Space, state: PathState) -> Expansion:
    return space.expand(state.nodes, True)


def _gauss_newton(space: Space, state: PathState) -> Expansion:
    return space.expand(state.nodes, False)


def _remembered(space: Space, state: PathState) -> Expansion:
    energy, gradient = energy_and_gradient(space, state.nodes)
    return Expansion(
        energy,
        gradient,
        BlockTridiagonal(state.tangents, state.crossings),
        BlockTridiagonal(state.diagonal, state.upper),
        state.noise,
        bool(state.scalable.all()),
    )


def _sound(expansion: Expansion, state: PathState) -> tuple[Expansion, Tensor]:
    """Mark curves with NaN or infinity, and put harmless numbers in their place so that the rest can go on."""
    gn, correction = expansion.gauss_newton, expansion.correction or expansion.gauss_newton
    parts = (expansion.gradient, gn.diagonal, gn.upper, correction.diagonal, correction.upper)
    if evidently_finite(expansion.energy, *parts):
        return expansion, state.status
    finite = expansion.energy.isfinite()
    for part in parts:
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


def _ended(decrement: Tensor, tol: float) -> Tensor:
    """CONVERGED, or PRECISION where rounding stopped a curve far above its tolerance."""
    acceptable = max(_ACCEPTABLE * tol, 4 * tolerance(decrement.dtype).length)
    return torch.where(decrement > acceptable, int(Status.PRECISION), int(Status.CONVERGED))


def _relative(predicted: Tensor, energy: Tensor) -> Tensor:
    """Relative reduction of the length: the energy falls by predicted/2, and length² = energy."""
    return predicted / (4 * energy)


def _decrement(gradient: Tensor, step: Tensor) -> Tensor:  # (p, n - 1, m) twice -> (p,)
    """``gᵀM⁻¹g`` when the step is ``−M⁻¹g``: twice what the quadratic model promises."""
    return -(gradient * step).sum((-1, -2))


def _moved(nodes: Tensor, step: Tensor) -> Tensor:
    return torch.cat([nodes[:, :1], nodes[:, 1:-1] + step, nodes[:, -1:]], 1)
