"""Damped Newton on a discrete curve energy, with a Gauss-Newton model where the Hessian is not
positive definite.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import OptionError
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import evidently_finite
from riemae.solvers.energy import Expansion, discrete_energy
from riemae.solvers.linear import BlockTridiagonal
from riemae.solvers.model import QuadraticModel, Secants, decrement_of
from riemae.solvers.result import Status
from riemae.solvers.space import Space, energy_and_gradient
from riemae.solvers.state import RUNNING, PathState, curves_at, on_host, placed

N = TypeVar("N", Tensor, np.ndarray)

_DAMPING_FLOOR, _DAMPING_START = 1e-3, 0.1
_ATTEMPTS = 12  # damping grows fourfold an attempt: enough to shorten a step by 4¹²
_ACCEPTABLE = 50  # how far above its tolerance rounding may stop a curve
_NEAR = (
    1e-3  # a start curve that the model cannot shorten by more than this share is nearly a geodesic
)
_TRUSTED_GAIN = (
    1 / 1000
)  # never believe that one step reduced the decrement by more than this without looking
_LONGEST_RUN = 8  # steps with one matrix
# A step that leaves more than this share of the decrement calls for a new matrix, but not the first
# two with the one at hand: what they show of the Hessian goes into it.
_SLOW, _LEARNING = 0.3, 2
_STIFF = 0.45  # a matrix that leaves no more than _SLOW of a decrement shows at least this share of it as curvature
_BELIEVED = (
    1e-4  # of the rounding error, within which one from a coarser level is believed without a step
)
_ROUGH = 2e-4  # relative decrement at which a curve that converges slowly leaves its first level
# Where the solver's tolerance is at most _SHARP, curves of at least _SHARP_SEGMENTS get a last step
# on a sixth-order residual: two levels' worth of accuracy for half a sweep. It must be small to be
# in its asymptotic regime.
_SHARP, _SHARP_SEGMENTS, _SHARP_LIMIT = 2e-8, 32, 1e-4


@dataclass(frozen=True)
class Newton:
    """Settings of the Newton path solver.

    The block-tridiagonal Hessian of the discrete energy is factorised. Where it is positive
    definite the step is Newton's; where it is not, its eigenvalues are made positive, so that the
    step descends. Derivatives cost most, so that they are computed a few times a curve, on its
    first level: the steps that follow take the gradient alone, by one reverse pass, with the matrix
    kept, and corrected for what the gradients show (BFGS), as long as they converge fast; finer
    levels begin with that matrix, interpolated. A curve whose step does not lower its energy is
    damped (Levenberg-Marquardt in the metric, so the chart does not matter) without a new expansion
    and without touching its neighbours. Where the tolerance is sharp, a curve that has converged
    gets one more step on the residual of a sixth-order discretisation.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Steps a pair may take in total.
        gauss_newton_steps: Steps without second derivatives from a new start.
        second_order: False keeps to Gauss-Newton throughout; the Morse index then stays −1.
        target: ``"minimum"`` minimises, and leaves saddles along a direction of negative curvature;
            ``"stationary"`` keeps to a start curve that is nearly a geodesic already, minimising or
            not, and minimises from any other.

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
            raise OptionError(
                "Newton", "whole numbers of segments and steps, none negative", repr(counts), ""
            )
        if not 2 <= self.segments <= self.max_segments:
            raise OptionError(
                "Newton",
                "2 <= segments <= max_segments",
                f"{self.segments} and {self.max_segments}",
                "Try 8 and 512.",
            )
        if self.max_steps < 1:
            raise OptionError("Newton", "max_steps of at least 1", str(self.max_steps), "")
        if self.target not in ("minimum", "stationary"):
            raise OptionError("Newton", "target 'minimum' or 'stationary'", repr(self.target), "")

    def begin(self, nodes: Tensor) -> PathState:  # (p, n + 1, m)
        """A state about new curves."""
        return PathState.start(nodes)

    @np.errstate(
        all="ignore"
    )  # curves with NaN are marked, and nothing is decided by what they compute
    def step(self, space: Space, state: PathState, tol: float) -> PathState:
        """One expansion of every curve of ``state``, and the steps that it is good for.

        A curve ends when its relative decrement is at most ``tol``, or within rounding of 0: with
        PRECISION where that is more than 50 ``tol``. On its first level, one that converges slowly
        also ends when it is roughly there.
        """
        nodes, book = state.nodes, state.book.copy()
        reused, fresh = book["known"] & ~book["stale"], self._wants_second_order(book)
        unseen = ~reused & ((book["steps"] == 0) | ~book["first"])
        expansion, finite = _sound(_expand(space, state, reused, fresh))
        model = QuadraticModel.of(expansion, reused, fresh, unseen)
        energy, noise, predicted = map(
            on_host, (expansion.energy, expansion.noise, model.decrement)
        )
        book["status"][model.singular] = Status.SINGULAR
        book["status"][~finite] = Status.NON_FINITE
        book["index"], book["noise"], book["scalable"] = model.index, noise, expansion.scalable
        book["known"] |= fresh
        book["stale"] &= ~fresh
        live, undamped = book["status"] == RUNNING, book["damping"] == 0

        step = model.step
        if not undamped.all():
            step, decrement = model.solve(book["damping"])
            predicted = on_host(decrement)
        relative = _relative(predicted * (1 + book["damping"]), energy)
        keep = np.zeros_like(live)
        if self.target == "stationary":
            at_start = (book["steps"] == 0) & model.indefinite & (relative < _NEAR)
            keep = live & (at_start | (book["kept"] & model.indefinite))
        if keep.any():
            nodes, live = (
                self._towards_saddle(nodes, book, expansion, model, keep, tol),
                live & ~keep,
            )

        informed = (model.index >= 0) | (not self.second_order)
        quiet = live & informed & ((relative <= tol) | (predicted <= 2 * noise))
        saddle = quiet & model.indefinite
        if self.target == "minimum" and saddle.any():
            nodes, moved = self._escape(space, nodes, expansion, model, saddle)
            book["stale"] |= moved
            quiet, live = quiet & ~moved, live & ~moved
        book["decrement"] = np.where(live, relative, book["decrement"])
        book["steps"] += 1
        book["kept"] = keep
        sound = (informed | ~reused) & ~model.indefinite & undamped
        # What a step leaves is known only once it has been taken: one is, above rounding, however
        # short. What a matrix from a coarser level promises may be too little by far. On the first
        # level, whose curve is not the answer, the Hessian itself is believed, and its last step
        # taken blindly.
        last = quiet & sound & fresh & book["first"]
        still = quiet & (~sound | (predicted <= np.where(reused, _BELIEVED, 2.0) * noise))
        running = live & sound & ~still & ~last
        if last.any():
            nodes = _moved(nodes, _masked(last, step))
        nodes, refused = self._run(
            space, nodes, book, expansion, model, reused, informed, running, tol
        )
        walking = live & ~quiet & (~sound | refused)
        if walking.any():
            nodes, lowered = self._descend(
                space, nodes, book, expansion, model, step, predicted, walking, refused
            )
            book["stale"] |= walking
            book["status"][walking & ~lowered] = Status.STALLED
        quiet &= (book["status"] == RUNNING) & ~(reused & book["stale"])
        book["status"] = np.where(
            quiet, _ended(book["decrement"], nodes.dtype, tol), book["status"]
        )
        if tol <= _SHARP and nodes.shape[1] > _SHARP_SEGMENTS:
            ended = live & sound & (book["status"] != RUNNING) & (book["status"] != Status.STALLED)
            nodes = _polished(space, nodes, expansion, model, ended)
        gn, correction = model.gauss_newton, model.correction
        return PathState(book, nodes, gn.diagonal, gn.upper, correction.diagonal, correction.upper)

    def _wants_second_order(self, book: np.ndarray) -> np.ndarray:
        if not self.second_order:
            return np.zeros_like(book["known"])
        # Far from the geodesic they are not worth having; but a start curve that may be kept as it
        # is must be judged by the full Hessian at once.
        wait = self.gauss_newton_steps * book["first"] if self.target == "minimum" else 0
        return np.where(book["known"], book["stale"], book["near"] | (book["steps"] >= wait))

    def _run(
        self,
        space: Space,
        nodes: Tensor,
        book: np.ndarray,
        expansion: Expansion,
        model: QuadraticModel,
        reused: np.ndarray,
        informed: np.ndarray,
        running: np.ndarray,
        tol: float,
    ) -> tuple[Tensor, np.ndarray]:
        """Steps with one matrix, corrected by the gradients met on the way, as long as they
        converge fast.

        The decrement left at the next nodes is measured: its gradient costs one reverse pass beside
        the energy that a step is judged by anyway.

        Returns:
            The nodes, and which curves found no lower energy at their first step; the rest goes
            into the book.
        """
        refused = np.zeros_like(running)
        rows = running.nonzero()[0]
        if not len(rows):
            return nodes, refused
        out, secants = nodes, Secants(model, rows)
        at, step, slope = curves_at(rows, nodes, model.step, expansion.gradient)
        energy, noise, promised = (
            on_host(x)[rows] for x in (expansion.energy, expansion.noise, model.decrement)
        )
        entry, reused, sure, stiff = (
            book[rows],
            reused[rows],
            informed[rows],
            np.zeros(len(rows), dtype=bool),
        )
        for taken in range(_LONGEST_RUN):
            trial = _moved(at, step)
            value, gradient = energy_and_gradient(space, trial)
            curvature = secants.add(step, gradient - slope)
            ahead, decrement = secants.newton(gradient)
            new, bend, left = map(on_host, (value, curvature, decrement))
            lower = energy - new >= 0.05 * promised - noise  # False for NaN
            stiff |= bend < _STIFF * promised
            relative, share = _relative(left, new), left / promised
            # One more step with this matrix would leave about the same share again. A matrix from a
            # coarser level has a say in whether the curve is done only if it foresees its steps:
            # one that is too stiff promises too little.
            good, doubted = share <= _SLOW, reused & stiff
            met = (relative * share.clip(_TRUSTED_GAIN, 1.0) <= tol) & (good | ~reused)
            done = lower & (met | (left <= 2 * noise)) & ~doubted
            slow, fast = lower & ~done & ((~good & (taken >= _LEARNING)) | doubted), done & good
            remaining = np.where(fast, relative * np.maximum(share, _TRUSTED_GAIN), relative)
            # The first level is not for its own sake: where it converges slowly, the finer one has
            # less to fight with.
            rough = slow & entry["first"] & (relative <= _ROUGH)
            # Without second derivatives there is no index: they are looked at before a curve may
            # end.
            entry["status"][sure & rough] = Status.CONVERGED
            entry["status"] = np.where(
                sure & done, _ended(remaining, nodes.dtype, tol), entry["status"]
            )
            entry["decrement"] = np.where(lower, remaining, entry["decrement"])
            entry["stale"], entry["near"] = slow | ~lower, done
            entry["steps"] += lower & (taken > 0)
            refused[rows] = ~lower & (not taken)

            allowed = np.where(sure, self.max_steps, self.gauss_newton_steps)
            on = lower & ~done & ~slow & (entry["steps"] < allowed) & (taken + 1 < _LONGEST_RUN)
            if not on.all():
                off = (~on).nonzero()[0]
                final = _moved(trial, _masked(fast, ahead)) if fast.any() else trial
                final = final if lower.all() else torch.where(_flags(lower, trial), final, at)
                out = _put(out, rows[off], curves_at(off, final)[0])
                book[rows[off]] = entry[off]
            on = on.nonzero()[0]
            if not len(on):
                break
            at, step, slope = curves_at(on, trial, ahead, gradient)
            rows, entry, energy, noise, promised = (x[on] for x in (rows, entry, new, noise, left))
            reused, sure, stiff = (x[on] for x in (reused, sure, stiff))
            secants.keep(on)
        return out, refused

    def _descend(
        self,
        space: Space,
        nodes: Tensor,
        book: np.ndarray,
        expansion: Expansion,
        model: QuadraticModel,
        steps: Tensor,
        predicted: np.ndarray,
        walking: np.ndarray,
        refused: np.ndarray,
    ) -> tuple[Tensor, np.ndarray]:
        """Take the longest damped step that lowers the energy.

        Of curves ``refused`` the undamped one does not.

        Returns:
            Nodes, and which curves found a lower energy; the damping goes into the book.
        """
        start, damping, lowered = nodes, book["damping"], np.zeros_like(walking)
        energy, noise = on_host(expansion.energy), on_host(expansion.noise)
        rows = walking.nonzero()[0]
        (step,), promised = curves_at(rows, steps), predicted[rows]
        known = refused[rows].nonzero()[0]
        if len(known):
            damping[rows[known]] = _DAMPING_START
            damped, less = model.solve(damping[rows[known]], rows[known])
            step, promised = _put(step, known, damped), promised.copy()
            promised[known] = on_host(less)
        for attempt in range(_ATTEMPTS):
            if attempt:
                step, less = model.solve(damping[rows], rows)
                promised = on_host(less)
            trial = _moved(curves_at(rows, start)[0], step)
            gain = energy[rows] - on_host(discrete_energy(space.squared_chords(trial)))
            # The quadratic model promises predicted/2; a tenth of it, up to rounding, is a step
            # worth taking.
            enough = gain >= 0.05 * promised - noise[rows]  # False for NaN
            taken = enough.nonzero()[0]
            if len(taken):
                nodes = _put(nodes, rows[taken], curves_at(taken, trial)[0])
            lowered[rows[taken]] = True
            good = rows[enough & (gain >= 0.375 * promised - noise[rows])]
            relaxed = damping[good] / 8
            damping[good] = np.where(relaxed < _DAMPING_FLOOR, 0.0, relaxed)
            rows = rows[~enough]
            damping[rows] = np.maximum(4 * damping[rows], _DAMPING_START)
            if not len(rows):
                break
        return nodes, lowered

    def _towards_saddle(
        self,
        nodes: Tensor,
        book: np.ndarray,
        expansion: Expansion,
        model: QuadraticModel,
        keep: np.ndarray,
        tol: float,
    ) -> Tensor:
        """Undamped Newton for the curves near a saddle."""
        rows = keep.nonzero()[0]
        where = placed(rows, nodes)
        gradient = expansion.gradient[where]
        matrix = model.full.select(where).dense()
        step, info = torch.linalg.solve_ex(
            matrix, -gradient.flatten(1)[..., None], check_errors=False
        )
        step = torch.where((info == 0)[:, None, None], step[..., 0].view_as(gradient), 0.0)
        promised = torch.maximum((gradient * step).sum((-1, -2)).abs(), model.decrement[where])
        relative, failed = on_host(_relative(promised, expansion.energy[where])), on_host(info)
        book["decrement"][rows] = relative
        book["status"][rows[relative <= tol]] = Status.CONVERGED
        book["status"][rows[failed != 0]] = Status.SINGULAR
        book["stale"] |= keep
        return _put(nodes, rows, _moved(nodes[where], step))

    def _escape(
        self,
        space: Space,
        nodes: Tensor,
        expansion: Expansion,
        model: QuadraticModel,
        at_saddle: np.ndarray,
    ) -> tuple[Tensor, np.ndarray]:
        """Leave saddles along the direction of most negative curvature, to the side where the
        energy falls further.

        Returns:
            Nodes, and which curves have left.
        """
        where, left = placed(at_saddle.nonzero()[0], nodes), np.zeros_like(at_saddle)
        vectors = torch.linalg.eigh(model.full.select(where).dense()).eigenvectors
        direction = vectors[..., 0].view_as(expansion.gradient[where])
        stiffness = (direction * expansion.gauss_newton.select(where).product(direction)).sum(
            (-1, -2)
        )
        size = (expansion.energy[where] / stiffness).sqrt()
        for attempt in range(1, _ATTEMPTS):
            stride = 0.5**attempt * size[:, None, None] * direction
            both = torch.stack([_moved(nodes[where], sign * stride) for sign in (1, -1)])
            energies = torch.stack([discrete_energy(space.squared_chords(trial)) for trial in both])
            lower, side = energies.nan_to_num(torch.inf).min(0)
            found = lower < expansion.energy[where] - expansion.noise[where]
            if bool(found.any()):
                nodes = nodes.clone()
                nodes[where[found]] = both[side, torch.arange(len(where), device=nodes.device)][
                    found
                ]
                left[on_host(where[found])] = True
            where, size, direction = where[~found], size[~found], direction[~found]
            if not len(where):
                break
        return nodes, left


def _polished(
    space: Space, nodes: Tensor, expansion: Expansion, model: QuadraticModel, ended: np.ndarray
) -> Tensor:
    """Correct the nodes of finished curves for the second order of the energy, where that is in
    reach.
    """
    rows = ended.nonzero()[0]
    if not len(rows):
        return nodes
    at, energy = curves_at(rows, nodes, expansion.energy)
    residual = space.residual(at)
    if residual is None:
        return nodes
    step = model.newton(residual, rows)
    size = _relative(decrement_of(residual, step), energy)
    return _put(
        nodes, rows, _moved(at, torch.where((size < _SHARP_LIMIT)[:, None, None], step, 0.0))
    )


def _expand(space: Space, state: PathState, reused: np.ndarray, fresh: np.ndarray) -> Expansion:
    """Expand all curves: those of ``fresh`` with second derivatives, those of ``reused`` about the
    matrix they have.
    """
    looks = ((reused, _remembered), (fresh, _expanded), (~(reused | fresh), _gauss_newton))
    for rows, look in looks:
        if rows.all():
            return look(space, state)
    groups = [(placed(rows.nonzero()[0], state.nodes), look) for rows, look in looks]
    parts = [look(space, state.select(rows)) for rows, look in groups if len(rows)]
    parts = [
        replace(e, correction=e.gauss_newton.scaled(0.0)) if e.correction is None else e
        for e in parts
    ]
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
        placed(state.book["noise"].copy(), energy).to(energy.dtype),
        bool(state.book["scalable"].all()),
    )


def _sound(expansion: Expansion) -> tuple[Expansion, np.ndarray]:
    """Mark curves with NaN or infinity, and put harmless numbers in their place so that the rest
    can go on.
    """
    gn, correction = expansion.gauss_newton, expansion.correction or expansion.gauss_newton
    parts = (expansion.gradient, gn.diagonal, gn.upper, correction.diagonal, correction.upper)
    if evidently_finite(expansion.energy, *parts):
        return expansion, np.ones(len(expansion.energy), dtype=bool)
    finite = expansion.energy.isfinite()
    for part in parts:
        finite = finite & part.flatten(1).isfinite().all(1)
    found = on_host(finite)
    if found.all():
        return expansion, found
    unit = torch.eye(gn.diagonal.shape[-1]).to(gn.diagonal).expand_as(gn.diagonal)
    identity = BlockTridiagonal(unit, torch.zeros_like(gn.upper))
    return (
        replace(
            expansion,
            energy=torch.where(finite, expansion.energy, 1.0),
            gradient=torch.where(finite[:, None, None], expansion.gradient, 0.0),
            gauss_newton=gn.where(finite, identity),
            correction=None if expansion.correction is None else correction.where(finite, identity),
            noise=torch.where(finite, expansion.noise, 0.0),
        ),
        found,
    )


def _ended(decrement: np.ndarray, dtype: torch.dtype, tol: float) -> np.ndarray:
    """CONVERGED, or PRECISION where rounding stopped a curve far above its tolerance."""
    acceptable = max(_ACCEPTABLE * tol, 4 * tolerance(dtype).length)
    return np.where(decrement > acceptable, int(Status.PRECISION), int(Status.CONVERGED))


def _relative(predicted: N, energy: N) -> N:
    """Relative reduction of the length: the energy falls by predicted/2, and length² = energy."""
    return predicted / (4 * energy)


def _put(whole: Tensor, rows: np.ndarray, part: Tensor) -> Tensor:
    """``whole`` with other curves at increasing ``rows``; what was given is not written to."""
    if len(rows) == len(whole):
        return part
    whole = whole.clone()
    whole[placed(rows, whole)] = part
    return whole


def _masked(rows: np.ndarray, step: Tensor) -> Tensor:
    """Steps of the curves that take one, and none for the others."""
    return step if rows.all() else torch.where(_flags(rows, step), step, 0.0)


def _flags(x: np.ndarray, like: Tensor) -> Tensor:  # (p,) -> (p, 1, 1)
    return placed(x, like)[:, None, None]


def _moved(nodes: Tensor, step: Tensor) -> Tensor:
    nodes = nodes.clone()
    nodes[:, 1:-1] += step
    return nodes
