"""Matrix-free Newton on a discrete curve energy.

For latent spaces too large for m × m blocks along the path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from riemae.numerics.checks import expect_range
from riemae.numerics.tolerances import tolerance
from riemae.solvers.energy import discrete_energy
from riemae.solvers.hooks import products
from riemae.solvers.krylov import Truncated, truncated_cg
from riemae.solvers.path_metric import PathMetric
from riemae.solvers.products import Product, Products
from riemae.solvers.result import Status
from riemae.solvers.solver import State, check_settings
from riemae.solvers.space import Space

_ATTEMPTS = 12  # a step is halved so often before its curve counts as stalled
_ACCEPTABLE = 50  # how far above its tolerance rounding may stop a curve
_FAR = 0.03  # relative decrement above which second derivatives are not worth having
_LEAST_FORCING = 1e-3
# Never believe that one step reduced the decrement by more than this without looking.
_TRUSTED_GAIN = 1 / 1000


@dataclass
class NewtonCGState(State):
    """Progress of matrix-free Newton.

    Attributes:
        radius: ``(p,)``, of the trust region, in the preconditioner's norm.
        basis: ``(p, m, r)``, with the next two: the preconditioner of this level, see
            :class:`PathMetric`.
        values: ``(p, r)``.
        rest: ``(p,)``.
    """

    radius: Tensor
    basis: Tensor
    values: Tensor
    rest: Tensor


@dataclass(frozen=True)
class NewtonCG:
    """Settings of the matrix-free Newton path solver.

    Each step minimises the quadratic model of the discrete energy by truncated conjugate gradients
    (Steihaug and Toint): Gauss-Newton's model far from the geodesic, the Hessian's near it. A
    product with either costs a forward and a reverse pass along the path; memory grows with
    ``m n``, never with ``m² n``. Conjugate gradients are preconditioned by the path's Laplacian
    times a sketch of its mean metric, and stopped on meeting negative curvature, on leaving the
    trust region, or as soon as the model is solved as well as the step deserves (Eisenstat and
    Walker's forcing). A step that does not lower its energy is halved, and its trust region shrinks
    with it.

    There is no factorisation, hence no Morse index: it is −1, or 1 ("at least one") where a curve
    that has converged meets negative curvature and no step along it lowers the energy. A singular
    metric is noticed only where all of it vanishes.

    A space may offer ``products(nodes)``, as :class:`riemae.Manifold` does; else its
    ``squared_chords`` are differentiated twice.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Steps that a pair may take in total.
        max_products: Products with the Hessian per step.
        sketch: Products with the metric that the preconditioner is made from, once per level.
        second_order: False keeps to Gauss-Newton throughout, where the space has it.
        floor: Least eigenvalue of the preconditioner, relative to its largest. By default that of
            rounding, so that directions in which the metric is very small are explored; 0.01 takes
            a tenth of the steps where the metric has no full rank.

    Raises:
        OptionError: For a value out of range.

    References:
        T. Steihaug, The conjugate gradient method and trust regions in large scale optimization,
        SIAM J. Numer. Anal. 20, 1983. J. Nocedal, S. J. Wright, Numerical Optimization, chapter 7,
        2006. J. Nocedal, Y. Yuan, Combining trust region and line search techniques, 1998.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 200
    max_products: int = 200
    sketch: int = 32
    second_order: bool = True
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_settings("NewtonCG", self, "max_products", "sketch")
        expect_range("NewtonCG", "floor", self.floor, 0.0, 1.0)

    def begin(self, nodes: Tensor) -> NewtonCGState:
        """A state about new curves."""
        p, _, m = nodes.shape
        rank = min(self.sketch, m)
        return NewtonCGState.start(
            nodes,
            radius=nodes.new_full((p,), torch.nan),
            basis=nodes.new_zeros(p, m, rank),
            values=nodes.new_ones(p, rank),
            rest=nodes.new_ones(p),
        )

    def step(self, space: Space, state: NewtonCGState, tol: float) -> NewtonCGState:
        """One step of every curve.

        A curve ends when its relative decrement is at most ``tol``, or within rounding of 0: with
        PRECISION where that is more than 50 ``tol``.
        """
        state = self._prepared(space, state)
        metric = PathMetric(state.basis, state.values, state.rest)
        local = products(space, state.nodes)
        energy = local.energy
        g = local.gradient
        finite = energy.isfinite() & g.flatten(1).isfinite().all(1)
        regular = (metric.rest > 0) & (energy > 0)
        live = finite & regular
        g = torch.where(live[:, None, None], g, 0.0)
        # The trust region is as large as the curve: its energy is |z|² of the path's metric.
        extent = (2 * energy).sqrt()
        radius = torch.where(state.radius.isnan(), extent, state.radius)
        rough = (g * metric.solve(g)).sum((1, 2)) / (4 * energy)
        flat = (rough > _FAR) | (not self.second_order)
        model = self._model(
            space=space,
            nodes=state.nodes,
            local=local,
            metric=metric,
            gradient=g,
            radius=radius,
            rough=rough,
            flat=flat,
            tol=tol,
        )
        nodes, stride, discrepancy = _searched(
            space=space, nodes=state.nodes, local=local, g=g, model=model, live=live
        )
        verdict = _judged(
            local=local,
            model=model,
            live=live,
            stride=stride,
            discrepancy=discrepancy,
            rough=rough,
            second=~flat | (not self.second_order),
            tol=tol,
        )
        # A preconditioner that all but vanishes in some directions proposes nothing but those: the
        # curve goes on with a milder one.
        softer, softened = metric.softened(verdict.stalled & live)
        status = _status(state.status, verdict, softened)
        status = torch.where(finite, status, int(Status.NON_FINITE))
        status = torch.where(finite & ~regular, int(Status.SINGULAR), status)
        return replace(
            state,
            nodes=nodes,
            status=status,
            decrement=torch.where(live, verdict.decrement, torch.nan),
            index=torch.where(verdict.saddle, 1, state.index),
            steps=state.steps + 1,
            radius=torch.where(softened, torch.nan, _trusted(radius, model, stride, discrepancy)),
            values=softer.values,
            rest=softer.rest,
        )

    def _prepared(self, space: Space, state: NewtonCGState) -> NewtonCGState:
        """The state with a preconditioner for curves that have none yet."""
        rows = state.decrement.isinf().nonzero().flatten()
        if not len(rows):
            return state
        new = PathMetric.sketched(space, state.nodes[rows], self.sketch).floored(self.floor)
        basis = state.basis.clone()
        values = state.values.clone()
        rest = state.rest.clone()
        basis[rows] = new.basis
        values[rows] = new.values
        rest[rows] = new.rest
        return replace(state, basis=basis, values=values, rest=rest)

    def _model(
        self,
        space: Space,
        nodes: Tensor,
        local: Products,
        metric: PathMetric,
        gradient: Tensor,
        radius: Tensor,
        rough: Tensor,
        flat: Tensor,
        tol: float,
    ) -> Truncated:
        """Truncated conjugate gradients.

        By Gauss-Newton for the curves in ``flat``, by the Hessian for the others.
        """
        # |residual| / |gradient| of order |gradient|^½ makes convergence superlinear.
        forcing = rough.sqrt().clamp(_LEAST_FORCING, 0.5)
        enough = 0.1 * tol * 2 * local.energy
        parts = []
        order = []
        for first_order in (True, False):
            rows = (flat == first_order).nonzero().flatten()
            if not len(rows):
                continue

            def product(
                some: Tensor, rows: Tensor = rows, first_order: bool = first_order
            ) -> Product:
                of = rows[some]
                if len(of) == len(nodes):
                    here = local
                else:
                    here = products(space, nodes[of])
                if first_order and here.gauss_newton is not None:
                    return here.gauss_newton
                return here.hessian

            part = truncated_cg(
                product=product,
                metric=metric.select(rows),
                gradient=gradient[rows],
                radius=radius[rows],
                forcing=forcing[rows],
                enough=enough[rows],
                most=self.max_products,
            )
            parts.append(part)
            order.append(rows)
        return Truncated.cat(parts).select(torch.cat(order).argsort())


class _Verdict(NamedTuple):
    """What a step says of its curves, ``(p,)`` each.

    Attributes:
        decrement: The relative decrement that is left.
        ended: The curve has converged.
        coarse: It has, but rounding has stopped it well above the tolerance.
        stalled: No part of the step lowers the energy.
        saddle: It has converged to a geodesic that does not minimise.
    """

    decrement: Tensor
    ended: Tensor
    coarse: Tensor
    stalled: Tensor
    saddle: Tensor


def _status(before: Tensor, verdict: _Verdict, softened: Tensor) -> Tensor:
    """The status of curves with an energy and a metric.

    Args:
        before: ``(p,)``, until now.
        verdict: What the step says.
        softened: ``(p,)`` bool: curves that go on with a milder preconditioner.
    """
    status = torch.where(verdict.ended, int(Status.CONVERGED), before)
    status = torch.where(verdict.coarse, int(Status.PRECISION), status)
    stalled = verdict.stalled & ~softened
    return torch.where(stalled, int(Status.STALLED), status)


def _judged(
    local: Products,
    model: Truncated,
    live: Tensor,
    stride: Tensor,
    discrepancy: Tensor,
    rough: Tensor,
    second: Tensor,
    tol: float,
) -> _Verdict:
    """The verdict after a step.

    Args:
        local: Energies before the step.
        model: The step that was tried.
        live: ``(p,)`` bool: curves with an energy and a metric.
        stride: ``(p,)``, the share of the step that was taken.
        discrepancy: ``(p,)``, by how much the model misjudged the energy.
        rough: ``(p,)``, the relative decrement in the preconditioner's metric.
        second: ``(p,)`` bool: the model is of second order, or need not be.
        tol: Relative decrement that ends a curve.
    """
    energy = local.energy
    noise = local.noise
    remainder = torch.where(model.bounded, 0.0, model.remainder)
    predicted = 2 * (model.gain + remainder)
    relative = predicted / (4 * energy)
    negligible = (relative <= tol) | (predicted <= 2 * noise)
    quiet = live & ~model.bounded & negligible
    moved = stride > 0
    # Negative curvature along which nothing falls: a geodesic that does not minimise, or rounding.
    level = (rough <= tol) | (model.gain <= noise)
    saddle = live & model.negative & ~moved & level
    relative = torch.where(saddle, rough, relative)

    # A step that misjudged the energy by δ leaves a decrement of up to 9δ²/decrement.
    misjudged = 9 * discrepancy.square() / predicted
    left = (misjudged + 2 * model.remainder) / (4 * energy)
    left = torch.maximum(left, _TRUSTED_GAIN * relative)
    whole = live & (stride == 1) & ~model.bounded
    settled = quiet | saddle
    ended = settled | (whole & second & (left <= tol))
    rounding = 4 * tolerance(relative.dtype).length
    acceptable = max(_ACCEPTABLE * tol, rounding)
    return _Verdict(
        decrement=torch.where(whole & ~quiet, left, relative),
        ended=ended,
        coarse=settled & (relative > acceptable),
        stalled=live & ~ended & ~moved,
        saddle=saddle,
    )


def _searched(
    space: Space,
    nodes: Tensor,
    local: Products,
    g: Tensor,
    model: Truncated,
    live: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The longest of 1, 1/2, 1/4, … of the step that lowers the energy as the model promises.

    Returns:
        Nodes, the share of the step that was taken (0 for none), and by how much the model
        misjudged the energy.
    """
    start = nodes
    energy = local.energy
    noise = local.noise
    nodes = nodes.clone()
    slope = (g * model.step).sum((1, 2))
    taken = torch.zeros_like(energy)
    discrepancy = torch.full_like(energy, torch.inf)
    pending = (live & (slope < 0)).nonzero().flatten()
    for attempt in range(_ATTEMPTS):
        if not len(pending):
            break
        t = 0.5**attempt
        trial = start[pending].clone()
        trial[:, 1:-1] += t * model.step[pending]
        gain = energy[pending] - discrete_energy(space.squared_chords(trial))
        promised = -t * slope[pending] - t * t * model.bend[pending] / 2
        good = gain >= 0.1 * promised - noise[pending]  # False for NaN
        rows = pending[good]
        nodes[rows] = trial[good]
        taken[rows] = t
        discrepancy[rows] = (gain - promised).abs()[good]
        pending = pending[~good]
    return nodes, taken, discrepancy


def _trusted(radius: Tensor, model: Truncated, stride: Tensor, discrepancy: Tensor) -> Tensor:
    """The next trust region.

    As long as the step that could be taken, or twice that where the model was right.
    """
    right = (stride == 1) & (discrepancy <= model.gain / 4)
    grown = torch.where(model.bounded & right, 2 * radius, radius)
    return torch.where((stride > 0) & (stride < 1), stride * model.norm, grown)
