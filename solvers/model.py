"""The quadratic model that a Newton step minimises, and what a run of steps teaches it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import revealing
from riemae.solvers.energy import Expansion
from riemae.solvers.linear import BlockTridiagonal, Factorization
from riemae.solvers.state import curves_at, on_host, placed, read

_MOST_EIGENVECTORS = 768  # rows of a matrix whose eigenvalues are made positive
_LEAST_CURVATURE = 0.02  # of Gauss-Newton's: bounds the step where the Hessian is nearly flat


@dataclass(frozen=True)
class Look:
    """What a step sees of an expansion of ``p`` curves, in one read.

    Before anything is known, Hessians are taken for positive definite, as most of them are, and all
    numbers for finite.

    Attributes:
        expansion: The expansion.
        full: The Hessian as far as it is known.
        factor: Its factorisation.
        step: ``(p, n − 1, m)``, undamped, where it is positive definite.
        decrement: ``(p,)``, ``gᵀ M⁻¹ g`` there.
        promised: The same on the host.
        energy: ``(p,)``, on the host.
        noise: ``(p,)``, on the host.
        definite: ``(p,)`` bool: the Hessian is positive definite.
        singular: ``(p,)`` bool: the metric has been seen to be singular at a node.
        finite: Whether all numbers of the expansion are, and even their sum.
    """

    expansion: Expansion
    full: BlockTridiagonal
    factor: Factorization
    step: Tensor
    decrement: Tensor
    promised: np.ndarray
    energy: np.ndarray
    noise: np.ndarray
    definite: np.ndarray
    singular: np.ndarray
    finite: bool

    @classmethod
    def at(cls, expansion: Expansion, unseen: np.ndarray) -> Look:
        """Look at an expansion.

        Args:
            expansion: Of ``p`` curves.
            unseen: ``(p,)`` bool: whether the metric may be singular along the curve is yet to be
                looked at.
        """
        g = expansion.gradient
        full = expansion.hessian or expansion.gauss_newton
        factor = full.cholesky()
        step = factor.solve(-g)
        decrement = decrement_of(g, step)
        asked = [decrement, expansion.energy, expansion.noise, factor.ok]
        rows = unseen.nonzero()[0]
        if len(rows):
            (blocks,) = curves_at(rows, expansion.gauss_newton.diagonal)
            asked.append(_rank_deficient(blocks))
        # NaN and infinity in a part of the Hessian show in the sum of its parts.
        whole = revealing(expansion.energy, g, full.diagonal, full.upper)
        total, promised, energy, noise, definite, *seen = read(whole, *asked)
        singular = np.zeros_like(unseen)
        if len(rows):
            (singular[rows],) = seen
        return cls(
            expansion=expansion,
            full=full,
            factor=factor,
            step=step,
            decrement=decrement,
            promised=promised,
            energy=energy,
            noise=noise,
            definite=definite,
            singular=singular,
            finite=bool(np.isfinite(total)),
        )


@dataclass(frozen=True)
class QuadraticModel:
    """The quadratic model of one step.

    The Hessian where it is positive definite; its absolute value where it is known to be indefinite
    (eigenvalues relative to Gauss-Newton, taken positive: the step runs down along negative
    curvature, too); Gauss-Newton elsewhere.

    Attributes:
        full: The Hessian as far as it is known.
        matrix: M, the matrix of the model.
        factor: Its factorisation.
        gauss_newton: The positive semi-definite part of the Hessian.
        correction: What is missing to the Hessian; 0 where it is unknown.
        gradient: g, ``(p, n − 1, m)``.
        step: ``(p, n − 1, m)``, undamped.
        decrement: ``(p,)``, ``gᵀ M⁻¹ g``.
        promised: The same on the host.
        singular: ``(p,)`` bool: the metric is singular along the curve.
        indefinite: ``(p,)`` bool: the Hessian is known to have negative eigenvalues.
        index: ``(p,)``, how many; −1 where unknown.
        place: ``(p,)``, where an indefinite curve stands in ``absolute``; −1 for the others.
        absolute: ``(q, (n − 1) m, (n − 1) m)``, Hessians with positive eigenvalues.
    """

    full: BlockTridiagonal
    matrix: BlockTridiagonal
    factor: Factorization
    gauss_newton: BlockTridiagonal
    correction: BlockTridiagonal
    gradient: Tensor
    step: Tensor
    decrement: Tensor
    promised: np.ndarray
    singular: np.ndarray
    indefinite: np.ndarray
    index: np.ndarray
    place: np.ndarray
    absolute: Tensor

    @classmethod
    def of(cls, look: Look, reused: np.ndarray, fresh: np.ndarray) -> QuadraticModel:
        """The model about an expansion.

        Args:
            look: At the expansion of ``p`` curves, whose numbers are finite.
            reused: ``(p,)`` bool: its matrix comes from elsewhere on the way.
            fresh: ``(p,)`` bool: it holds second derivatives of the present nodes.
        """
        gn = look.expansion.gauss_newton
        g = look.expansion.gradient
        correction = look.expansion.correction
        if correction is None:
            correction = gn.scaled(0.0)
        definite = look.definite
        index = np.where((reused | fresh) & definite, 0, -1)
        model = cls(
            full=look.full,
            matrix=look.full,
            factor=look.factor,
            gauss_newton=gn,
            correction=correction,
            gradient=g,
            step=look.step,
            decrement=look.decrement,
            promised=look.promised,
            # What was interpolated proves nothing about the metric.
            singular=look.singular | ~(definite | reused),
            indefinite=index > 0,
            index=index,
            place=np.full(len(index), -1),
            absolute=g.new_empty(0, 0, 0),
        )
        if definite.all():
            return model
        # What was kept from elsewhere proves nothing about the index: only fresh second derivatives
        # do.
        doubtful = ~definite & fresh & ~look.singular
        return model._rescued(look, doubtful, reused)

    def _rescued(self, look: Look, doubtful: np.ndarray, reused: np.ndarray) -> QuadraticModel:
        """The model where Hessians are not positive definite; those ``doubtful`` are indefinite."""
        g = self.gradient
        index = self.index
        rest = doubtful.nonzero()[0]
        those = self.full.select(placed(rest, g))
        index[rest] = on_host(those.negative_eigenvalues())
        indefinite = index > 0
        matrix = self.full.where(self.factor.ok, self.gauss_newton)
        factor = matrix.cholesky()
        place, absolute = _made_positive(self.full, self.gauss_newton, indefinite)
        step = torch.where(factor.ok[:, None, None], factor.solve(-g), 0.0)
        decrement = decrement_of(g, step)
        ok, promised = read(factor.ok, decrement)
        model = replace(
            self,
            matrix=matrix,
            factor=factor,
            step=step,
            decrement=decrement,
            promised=promised,
            singular=look.singular | ~(ok | reused),
            indefinite=indefinite,
            place=place,
            absolute=absolute,
        )
        if not len(absolute):
            return model
        step, decrement = model.solve(np.zeros(len(index)))
        return replace(model, step=step, decrement=decrement, promised=on_host(decrement))

    def newton(self, gradient: Tensor, rows: np.ndarray) -> Tensor:
        """Undamped steps from other gradients of the curves at ``rows``."""
        if len(rows) == len(self.gradient):
            return self.factor.solve(-gradient)
        wide = torch.zeros_like(self.gradient)
        where = placed(rows, gradient)
        wide[where] = -gradient
        return self.factor.solve(wide)[where]

    def solve(self, damping: np.ndarray, rows: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Damped steps and the decrements ``gᵀ(M + μ D)⁻¹g`` that they promise.

        For all curves, or for ``rows``.
        """
        matrix = self.matrix
        blocks = self.gauss_newton.diagonal
        g = self.gradient
        place = self.place
        if rows is not None and len(rows) < len(g):
            where = placed(rows, g)
            place = place[rows]
            matrix = matrix.select(where)
            blocks = blocks[where]
            g = g[where]
        factors = placed(damping, g).to(g.dtype)
        shift = factors[:, None, None, None] * blocks
        factor = matrix.add_block_diagonal(shift).cholesky()
        sound = factor.ok[:, None, None]
        step = torch.where(sound, factor.solve(-g), 0.0)
        bent = (place >= 0).nonzero()[0]
        if len(bent):
            where = placed(bent, g)
            nothing = torch.zeros_like(matrix.upper[where])
            damped = BlockTridiagonal(shift[where], nothing).dense()
            those = placed(place[bent], g)
            damped_absolute = self.absolute[those] + damped
            root = torch.linalg.cholesky_ex(damped_absolute).L
            right = -g[where].flatten(1)[..., None]
            solved = torch.cholesky_solve(right, root)[..., 0]
            step[where] = solved.view_as(g[where])
        return step, decrement_of(g, step)


class Secants:
    """What the gradients along a run show of the Hessian.

    They are BFGS updates of the matrix that the run began with: Nocedal and Wright, Numerical
    Optimization, 2006, algorithm 7.4. Where a gradient contradicts a positive definite Hessian, the
    curve goes without that update.

    Args:
        model: Has the matrix.
        rows: ``(q,)``, the curves that run.
    """

    def __init__(self, model: QuadraticModel, rows: np.ndarray) -> None:
        self.model = model
        self.rows = rows
        # (q, n - 1, m), (q, n - 1, m), (q, 1, 1)
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor) -> Tensor:  # (q, n - 1, m), (q, n - 1, m) -> (q,)
        """Take in that the gradients have changed by ``change`` along ``step``.

        Returns:
            The curvatures along the steps, which a step by the right matrix promises to be its
            decrement.
        """
        curvature = _dot(step, change)
        tiny = torch.finfo(curvature.dtype).tiny
        inverse = (curvature > 0) / curvature.clamp(min=tiny)
        self.pairs.append((step, change, inverse))
        return curvature[:, 0, 0]

    def newton(
        self, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:  # (q, n - 1, m) -> (q, n - 1, m), (q,)
        """Steps from new gradients, and the decrements that they promise."""
        rest = gradient
        shares = []
        for s, y, inverse in reversed(self.pairs):
            shares.append(inverse * _dot(s, rest))
            rest = rest - shares[-1] * y
        step = self.model.newton(rest, self.rows)
        both = zip(self.pairs, reversed(shares), strict=True)
        for (s, y, inverse), share in both:
            step = step - (share + inverse * _dot(y, step)) * s
        return step, decrement_of(gradient, step)

    def keep(self, those: np.ndarray) -> None:
        """Go on with some of the curves."""
        if len(those) < len(self.rows):
            self.rows = self.rows[those]
            where = placed(those, self.pairs[0][0])
            self.pairs = [(s[where], y[where], inverse[where]) for s, y, inverse in self.pairs]


def _made_positive(
    hessian: BlockTridiagonal, gauss_newton: BlockTridiagonal, indefinite: np.ndarray
) -> tuple[np.ndarray, Tensor]:
    """Hessians with positive eigenvalues, of the curves ``(p,)`` where they are indefinite.

    On fine levels there are none: the eigenvectors cost more than the steps that they save, and
    Gauss-Newton descends, too.

    Returns:
        Where each curve stands among them, −1 for the others, and the matrices
        ``(q, (n − 1) m, (n − 1) m)``.
    """
    blocks = hessian.diagonal
    _, count, m, _ = blocks.shape
    place = np.full(len(indefinite), -1)
    if count * m > _MOST_EIGENVECTORS:
        return place, blocks.new_empty(0, 0, 0)
    bent = indefinite.nonzero()[0]
    if not len(bent):
        return place, blocks.new_empty(0, 0, 0)
    place[bent] = np.arange(len(bent))
    those = placed(bent, blocks)
    absolute = _absolute(hessian.select(those), gauss_newton.select(those))
    return place, absolute


def _absolute(
    hessian: BlockTridiagonal, gauss_newton: BlockTridiagonal
) -> Tensor:  # -> (q, n m, n m)
    """The Hessian with positive eigenvalues.

    ``L V |Λ| Vᵀ Lᵀ`` with ``M = L Lᵀ`` and ``L⁻¹ H L⁻ᵀ = V Λ Vᵀ``.
    """
    root = torch.linalg.cholesky_ex(gauss_newton.dense()).L
    half = torch.linalg.solve_triangular(root, hessian.dense(), upper=False)
    relative = torch.linalg.solve_triangular(root, half.mT, upper=False)
    symmetric = relative + relative.mT
    values, vectors = torch.linalg.eigh(symmetric.nan_to_num(0.0) / 2)
    wide = root @ vectors
    sizes = values.abs().clamp(min=_LEAST_CURVATURE)
    return wide @ (sizes[..., None] * wide.mT)


def _rank_deficient(blocks: Tensor) -> Tensor:  # (p, n, m, m) -> (p,)
    """Whether the metric is singular at some node, judged after scaling it to unit diagonal."""
    scale = blocks.diagonal(dim1=-2, dim2=-1).sqrt()
    # A direction without length leaves a pivot of 0.
    rows = scale[..., None]
    columns = scale[..., None, :]
    unit = (blocks / rows / columns).nan_to_num(0.0)
    factor, info = torch.linalg.cholesky_ex(unit)
    squares = factor.diagonal(dim1=-2, dim2=-1).square()
    pivots = squares.amin(-1)
    least = tolerance(blocks.dtype).rank
    return ((info != 0) | ~(pivots > least)).any(-1)


def decrement_of(gradient: Tensor, step: Tensor) -> Tensor:  # (p, n - 1, m) twice -> (p,)
    """``gᵀM⁻¹g`` when the step is ``−M⁻¹g``: twice what the quadratic model promises."""
    return -(gradient * step).sum((-1, -2))


def _dot(a: Tensor, b: Tensor) -> Tensor:  # (p, n - 1, m) twice -> (p, 1, 1)
    return (a * b).sum((-1, -2), keepdim=True)
