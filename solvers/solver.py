"""What the driver asks of a path solver, and what solvers without a Hessian of their own share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError
from riemae.numerics.checks import expect_range
from riemae.numerics.offers import offers
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import precision_of
from riemae.solvers.measure import RATIO
from riemae.solvers.result import Status
from riemae.solvers.space import Space
from riemae.solvers.state import RUNNING

_ACCEPTABLE = 50  # how far above its tolerance rounding may stop a curve
C = TypeVar("C", bound="Columns")
S = TypeVar("S", bound="State")


@runtime_checkable
class Solver(Protocol):
    """Settings of a path solver: a frozen dataclass. Progress lives in a state of one resolution.

    The driver doubles the number of segments, estimates errors, and gives the verdict. A solver
    moves the nodes at one resolution, and begins anew at the next from where the coarser curve
    ended. Four things are optional: :class:`HasRefinementRatio`, :class:`HasUnrolls` and
    :class:`Foresighted` of the solver, and :class:`Refinable` of its state.

    Attributes:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Steps that a pair may take in total.
    """

    @property
    def segments(self) -> int:
        """Segments of the coarsest level."""
        ...

    @property
    def max_segments(self) -> int:
        """Segments of the finest level allowed."""
        ...

    @property
    def max_steps(self) -> int:
        """Steps that a pair may take in total."""
        ...

    def begin(self, nodes: Tensor) -> Any:  # (p, n + 1, m)
        """A state about new curves, with the fields and methods of :class:`State`."""
        ...

    def step(self, space: Space, state: Any, tol: float) -> Any:
        """One step, or a burst of them, of every curve.

        Ends curves by their status: CONVERGED where the relative length still to gain is at most
        ``tol``.
        """
        ...


class HasRefinementRatio(Protocol):
    """A solver whose errors fall by another factor than usual when the segments double."""

    @property
    def refinement_ratio(self) -> float:
        """The factor by which the error of the spline's length falls."""
        ...


class HasUnrolls(Protocol):
    """A solver that descends, and so may slide into a jump where nodes are few."""

    @property
    def unrolls(self) -> int:
        """Steps at one resolution after which a curve is looked at; 0 for never.

        A pair that has jumped begins anew on more nodes: see :mod:`riemae.solvers.unroll`.
        """
        ...


class Foresighted(Solver, Protocol):
    """A solver that can say what a level would bring before it is taken."""

    def foreseen(self, space: Space, state: Any) -> Tensor:  # of p curves -> (p,)
        """The relative length that a step from this state promises; NaN where unknown."""
        ...


@dataclass(frozen=True)
class Attempt:
    """What came of whole curves; arrays ``(q,)`` for those that are good enough.

    Attributes:
        rows: Which of them.
        length: Their lengths.
        error: Of these, absolute.
        left: The relative length that the solver has left over.
        unevenness: Root mean squared relative deviation of the speed.
        steps: Gradients that were taken.
        index: Morse index; −1 where it is unknown.
        curves: The curves by groups: their places among these, and the curves.
        starts: Shorter start curves than those that were given, for others, by groups: which of all
            curves, and the start curves.
    """

    rows: np.ndarray
    length: np.ndarray
    error: np.ndarray
    left: np.ndarray
    unevenness: np.ndarray
    steps: np.ndarray
    index: np.ndarray
    curves: list[tuple[np.ndarray, Curve]]
    starts: list[tuple[np.ndarray, Curve]] = field(default_factory=list)


class HasAttempt(Protocol):
    """A solver that first tries curves as a whole, before it takes levels of segments."""

    def attempt(self, space: Space, start: Curve, least: np.ndarray, rtol: float) -> Attempt | None:
        """Curves ``(p,)`` that are good enough; None where it has nothing to say."""
        ...


class Refinable(Protocol):
    """A state that takes to the next resolution what the coarser one has taught."""

    def refined(self, nodes: Tensor, moved: np.ndarray) -> Any:  # (p, 2 n + 1, m), (p,) bool
        """The state about finer nodes; those of curves ``moved`` were placed anew."""
        ...


def refinement_ratio(solver: Solver) -> float:
    """The factor by which the error of the spline's length falls per level; 16 by default."""
    if offers(solver, HasRefinementRatio):
        return solver.refinement_ratio
    return RATIO


def unrolls(solver: Solver) -> int:
    """Steps after which curves are looked at, whether they have jumped; 0 by default: never."""
    return solver.unrolls if offers(solver, HasUnrolls) else 0


def refined(solver: Solver, state: Any, nodes: Tensor, moved: np.ndarray) -> Any:
    """The state about finer nodes; by default a new one."""
    if offers(state, Refinable):
        return state.refined(nodes, moved)
    return solver.begin(nodes)


@dataclass
class Columns:
    """Tensors with one entry per curve."""

    @classmethod
    def cat(cls: type[C], parts: list[C]) -> C:
        """One batch from several at the same resolution."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def select(self: C, index: Tensor) -> C:
        """The curves at ``index``."""
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    def replaced(self: C, **columns: Tensor) -> C:
        """With other tensors for some, and the same ones for the rest.

        As by ``dataclasses.replace``, in a third of the time.

        Raises:
            TypeError: For a name that is no column.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__, **columns)
        if len(other.__dict__) > len(self.__dict__):
            raise TypeError(f"{type(self).__name__} has no {set(columns) - set(self.__dict__)}")
        return other

    def update(self: C, index: Tensor, other: C, names: Iterable[str] | None = None) -> None:
        """Write ``other`` back to the curves at ``index``: all of it, or the columns named."""
        for name in [f.name for f in fields(self)] if names is None else names:
            getattr(self, name)[index] = getattr(other, name)


@dataclass
class State(Columns):
    """Progress on ``p`` curves; every field is a tensor with one entry per curve.

    Attributes:
        nodes: ``(p, n + 1, m)``.
        status: ``(p,)``; RUNNING, CONVERGED for this resolution, or a failure.
        decrement: ``(p,)``, relative length still to gain at this resolution; infinite before the
            first step, NaN where unknown.
        index: ``(p,)``, Morse index; −1 before it is known.
        steps: ``(p,)``, steps taken at this resolution and at coarser ones: the driver hands them
            on.
    """

    nodes: Tensor
    status: Tensor
    decrement: Tensor
    index: Tensor
    steps: Tensor

    @classmethod
    def start(cls: type[S], nodes: Tensor, **more: Tensor) -> S:
        """A state about curves of which nothing is known."""
        zero = torch.zeros(len(nodes), dtype=torch.int64, device=nodes.device)
        infinite = nodes.new_full((len(nodes),), torch.inf)
        return cls(
            nodes=nodes.clone(),
            status=zero + RUNNING,
            decrement=infinite,
            index=zero - 1,
            steps=zero,
            # Each with memory of its own: curves are written to in place.
            **{name: x.clone() for name, x in more.items()},
        )


def check_settings(name: str, solver: Solver, *counts: str) -> None:
    """Check what all solvers have in common.

    Args:
        name: Of the solver, for errors.
        solver: Its settings.
        counts: Names of further settings that count something: whole numbers of at least 1.

    Raises:
        OptionError: For a number out of range; True and False are not numbers.
    """
    expect_range(name, "segments", solver.segments, 2, integer=True, hint="Try segments=8.")
    expect_range(
        name,
        "max_segments",
        solver.max_segments,
        solver.segments,
        integer=True,
        hint="It is the number of segments of the finest level: try max_segments=512.",
    )
    for count in ("max_steps", *counts):
        expect_range(name, count, getattr(solver, count), 1, integer=True)


def newton_decrement(space: Space, state: S, tol: float, basis: Tensor | None = None) -> S:
    """The state with the decrement, the index and the status that the Hessian gives its curves.

    The common yardstick of all solvers that minimise the chord energy: ``gᵀH⁻¹g``, with
    Gauss-Newton in place of ``H`` where that is not positive definite.

    Args:
        space: The space.
        state: Curves; only those that run are judged.
        tol: Relative decrement that ends a curve.
        basis: ``(n − 1, k)``, when the interior nodes move in its range only. The decrement then
            counts what they would bring if each moved alone: what the basis cannot follow is an
            error, too.
    """
    expansion = space.expand(state.nodes, True)
    hessian = expansion.hessian
    assert hessian is not None
    gradient = expansion.gradient
    full = hessian.dense()
    flat = expansion.gauss_newton.dense()
    kept: Tensor | None = None
    if basis is not None:
        kept = _decrement(gradient, flat) / (4 * expansion.energy)
        gradient, full, flat = _in_range(basis, gradient, full, flat)
    finite = _all_finite(expansion.energy, gradient, full)
    predicted, definite, singular = _predicted(gradient, full, flat, finite)
    relative = predicted / (4 * expansion.energy)
    index = torch.where(definite, 0, -1)
    rest = (finite & ~definite & ~singular).nonzero().flatten()
    if len(rest):
        index[rest] = hessian.select(rest).negative_eigenvalues()

    quiet = (relative <= tol) | (predicted <= 2 * expansion.noise)
    rounding = 4 * precision_of(space, relative.dtype).length
    coarse = relative > max(_ACCEPTABLE * tol, rounding)
    status = torch.full_like(state.status, RUNNING)
    status = torch.where(quiet, int(Status.CONVERGED), status)
    status = torch.where(quiet & coarse, int(Status.PRECISION), status)
    status = torch.where(singular, int(Status.SINGULAR), status)
    status = torch.where(finite, status, int(Status.NON_FINITE))
    if kept is None:
        left = relative
    else:
        left = torch.fmax(relative, kept)
    left = torch.where(finite, left, torch.nan)
    running = state.status == RUNNING
    return replace(
        state,
        status=torch.where(running, status, state.status),
        decrement=torch.where(running, left, state.decrement),
        index=torch.where(running, index, state.index),
    )


def _all_finite(energy: Tensor, gradient: Tensor, hessian: Tensor) -> Tensor:  # -> (p,)
    """Curves without NaN or infinity in their energy and its derivatives."""
    energy_finite = energy.isfinite()
    gradient_finite = gradient.flatten(1).isfinite().all(1)
    hessian_finite = hessian.isfinite().all((1, 2))
    return energy_finite & gradient_finite & hessian_finite


def _predicted(
    gradient: Tensor, hessian: Tensor, gauss_newton: Tensor, finite: Tensor
) -> tuple[Tensor, Tensor, Tensor]:  # -> (p,), (p,), (p,)
    """``gᵀH⁻¹g`` of dense matrices, with Gauss-Newton's where the Hessian is not positive definite.

    Returns:
        The decrements, whether the Hessian is positive definite, and whether neither matrix is.
    """
    sound = finite[:, None, None]
    column = gradient.flatten(1)[..., None]
    hessian = torch.where(sound, hessian, 0.0)
    gauss_newton = torch.where(sound, gauss_newton, 0.0)
    column = torch.where(sound, column, 0.0)
    factor, info = torch.linalg.cholesky_ex(hessian)
    rough, failed = torch.linalg.cholesky_ex(gauss_newton)
    definite = info == 0
    root = torch.where(definite[:, None, None], factor, rough)
    solved = torch.cholesky_solve(column, root)
    predicted = (column * solved).sum((1, 2))
    singular = ~definite & (failed != 0)
    return predicted, definite, singular


def _in_range(
    basis: Tensor, gradient: Tensor, full: Tensor, flat: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient and both matrices in the coordinates of a basis ``(n − 1, k)`` of the nodes."""
    identity = torch.eye(gradient.shape[-1]).to(basis)
    wide = torch.kron(basis, identity)
    moved = torch.einsum("ij,jkm->ikm", basis.T, gradient.movedim(1, 0))
    gradient = moved.movedim(0, 1)
    full = wide.T @ full @ wide
    flat = wide.T @ flat @ wide
    return gradient, full, flat


def _decrement(gradient: Tensor, matrix: Tensor) -> Tensor:  # (p, n, m), (p, n m, n m) -> (p,)
    """``gᵀH⁻¹g``; NaN where the matrix is not positive definite."""
    g = gradient.flatten(1)[..., None]
    finite = matrix.isfinite().all(-1, keepdim=True)
    matrix = torch.where(finite, matrix, 0.0)
    factor, info = torch.linalg.cholesky_ex(matrix)
    solved = torch.cholesky_solve(g, factor)
    decrement = (g * solved).sum((1, 2))
    return torch.where(info == 0, decrement, torch.nan)


def with_index(space: Space, state: S, done: Tensor) -> S:
    """The state with the Morse index of finished curves, from the Hessian of the chord energy."""
    rows = done.nonzero().flatten()
    if not len(rows):
        return state
    known = State.start(state.nodes[rows])
    index = state.index.clone()
    index[rows] = newton_decrement(space, known, 0.0).index
    return replace(state, index=index)


def expect_solver(where: str, solver: Any) -> None:
    """None, or the settings of a path solver: an instance, not its class.

    Raises:
        DTypeError: For anything else.
    """
    if solver is None or (offers(solver, Solver) and not isinstance(solver, type)):
        return
    if isinstance(solver, type):
        hint = f"Make an instance: {solver.__name__}()."
    else:
        hint = "Try solvers.Newton()."
    raise DTypeError(where, "a solver such as solvers.Newton()", repr(solver), hint)
