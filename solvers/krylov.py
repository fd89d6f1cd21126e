"""Truncated conjugate gradients on many curves at once.

They work in a metric of the path that is cheap to invert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from riemae.solvers.path_metric import PathMetric
from riemae.solvers.products import Product

# Curves that are done are carried along until fewer than this share of the batch is left.
_LEAST = 0.5


@dataclass
class Truncated:
    """Where conjugate gradients were stopped, one entry per curve.

    Attributes:
        step: ``(p, n − 1, m)``.
        gain: ``(p,)``, by how much the quadratic model falls.
        bend: ``(p,)``, ``stepᵀ H step``.
        remainder: ``(p,)``, estimate of how much further it would fall to its minimum; inf where it
            has none.
        norm: ``(p,)``, size of the step in the path's metric.
        negative: ``(p,)`` bool: whether a direction of negative curvature was met.
        bounded: ``(p,)`` bool: whether the step ends on the trust region's boundary.
        iterations: ``(p,)``.
    """

    step: Tensor
    gain: Tensor
    bend: Tensor
    remainder: Tensor
    norm: Tensor
    negative: Tensor
    bounded: Tensor
    iterations: Tensor

    @classmethod
    def cat(cls, parts: list[Truncated]) -> Truncated:
        """One batch from several."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def select(self, rows: Tensor) -> Truncated:
        """The curves at ``rows``."""
        return Truncated(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass
class _Progress:
    """Conjugate gradients under way, one entry per curve; ``q`` of them.

    Attributes:
        rows: ``(q,)``, which curves.
        step: ``(q, n − 1, m)``.
        residual: ``(q, n − 1, m)``, the gradient of the model there.
        direction: ``(q, n − 1, m)``, where to go next.
        rz: ``(q,)``, ⟨residual, M⁻¹ residual⟩.
        gain: ``(q,)``, by how much the model has fallen.
        bend: ``(q,)``, ``stepᵀ H step``.
        ss: ``(q,)``, ⟨step, step⟩ in the path's metric.
        sd: ``(q,)``, ⟨step, direction⟩.
        dd: ``(q,)``, ⟨direction, direction⟩.
        softest: ``(q,)``, the least curvature met, relative to the metric.
        gains: ``(q, k + 1)``, after each product.
    """

    rows: Tensor
    step: Tensor
    residual: Tensor
    direction: Tensor
    rz: Tensor
    gain: Tensor
    bend: Tensor
    ss: Tensor
    sd: Tensor
    dd: Tensor
    softest: Tensor
    gains: Tensor

    @classmethod
    def begin(cls, gradient: Tensor, z: Tensor) -> _Progress:
        """At steps of 0, with ``z = M⁻¹ gradient``."""
        zero = gradient.new_zeros(len(gradient))
        rz = _dot(gradient, z)
        return cls(
            rows=torch.arange(len(gradient), device=gradient.device),
            step=torch.zeros_like(gradient),
            residual=gradient,
            direction=-z,
            rz=rz,
            gain=zero,
            bend=zero,
            ss=zero,
            sd=zero,
            dd=rz,
            softest=torch.full_like(zero, torch.inf),
            gains=zero[:, None],
        )

    def select(self, keep: Tensor) -> _Progress:
        return _Progress(*(getattr(self, f.name)[keep] for f in fields(self)))

    def advance(self, stride: Tensor, turned: Tensor, negative: Tensor) -> None:
        """Go along the direction, of which ``turned`` is the product with the Hessian."""
        curvature = _dot(self.direction, turned)
        across = _dot(self.step, turned)
        squared = stride.square()
        share = stride[:, None, None]
        self.bend = self.bend + 2 * stride * across + squared * curvature
        self.step = self.step + share * self.direction
        self.gain = self.gain + stride * self.rz - squared * curvature / 2
        self.ss = self.ss + 2 * stride * self.sd + squared * self.dd
        soft = torch.where(negative, torch.inf, curvature / self.dd)
        self.softest = torch.minimum(self.softest, soft)
        self.residual = self.residual + share * turned
        self.gains = torch.cat([self.gains, self.gain[:, None]], 1)

    def remainder(self, rz: Tensor, k: int) -> Tensor:
        """What is left to gain after k products.

        At most ``½ rᵀM⁻¹r`` over the least eigenvalue of ``M⁻¹H``, of which ``softest`` is an upper
        bound, but a poor one where the metric nearly vanishes: as much may come as the last half
        has brought.
        """
        half_way = self.gains[:, k // 2]
        late = self.gain - half_way
        return torch.maximum(rz / (2 * self.softest), late)

    def turn(self, stride: Tensor, rz: Tensor, z: Tensor) -> None:
        """The next direction, conjugate to those before."""
        beta = rz / self.rz
        self.sd = beta * (self.sd + stride * self.dd)
        self.dd = rz + beta.square() * self.dd
        self.rz = rz
        previous = beta[:, None, None] * self.direction
        self.direction = previous - z


def truncated_cg(
    product: Callable[[Tensor], Product],
    metric: PathMetric,
    gradient: Tensor,
    radius: Tensor,
    forcing: Tensor,
    enough: Tensor,
    most: int,
) -> Truncated:
    """Approximate minimisers of ``gᵀs + ½ sᵀHs`` in ``|s| ≤ radius``.

    By preconditioned conjugate gradients. A curve stops at the boundary, on meeting negative
    curvature (from where it goes on to the boundary), or once the gradient of the model has fallen
    by ``forcing``, or once what is left to gain is below ``enough``. The norm is that of the
    preconditioner, in which the iterates grow steadily, so that the boundary is crossed once.

    Args:
        product: ``rows -> H·`` for the curves at ``rows`` ``(q,)``; called again when few are left.
        metric: The preconditioner.
        gradient: ``g``, ``(p, n − 1, m)``.
        radius: ``(p,)``.
        forcing: ``(p,)``, relative size of the residual that ends a curve.
        enough: ``(p,)``.
        most: Products per curve.

    References:
        T. Steihaug, The conjugate gradient method and trust regions in large scale optimization,
        SIAM J. Numer. Anal., 1983; Ph. L. Toint, 1981. J. Nocedal, S. J. Wright, Numerical
        Optimization, chapter 7, algorithm 7.2.
    """
    out = _nothing(gradient)
    z = metric.solve(gradient)
    run = _Progress.begin(gradient, z)
    limit = forcing.square() * run.rz
    alive = run.rz > 0
    local = metric
    apply = product(run.rows)
    for k in range(1, most + 1):
        if not bool(alive.any()):
            break
        left = float(alive.sum())
        if left <= _LEAST * len(alive):
            run = run.select(alive)
            local = local.select(alive)
            apply = product(run.rows)
            alive = alive[alive]
        turned = apply(run.direction)
        stride, negative, bounded = _stride(run, turned, radius)
        run.advance(stride, turned, negative)
        z = local.solve(run.residual)
        new = _dot(run.residual, z)
        rest = run.remainder(new, k)
        remainder = torch.where(bounded, torch.inf, rest)
        fallen = new <= limit[run.rows]
        spent = remainder <= enough[run.rows]
        done = bounded | fallen | spent
        written = alive & (done | (k == most))
        _write(
            out=out,
            run=run,
            at=written,
            remainder=remainder,
            negative=negative,
            bounded=bounded,
            count=k,
        )
        alive = alive & ~done
        run.turn(stride, new, z)
    return out


def _stride(run: _Progress, turned: Tensor, radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far to go along the direction.

    To the minimum along it; to the boundary where that lies beyond, or where there is none.

    Returns:
        The stride ``(q,)``, whether the curvature is negative, and whether the boundary is met.
    """
    curvature = _dot(run.direction, turned)
    stride = run.rz / curvature
    crossing = run.ss + 2 * stride * run.sd + stride.square() * run.dd
    edge = radius[run.rows].square()
    negative = ~(curvature > 0)
    bounded = negative | (crossing >= edge)
    inside = (edge - run.ss).clamp(min=0)
    room = run.sd.square() + run.dd * inside
    to_edge = (room.sqrt() - run.sd) / run.dd
    stride = torch.where(bounded, to_edge, stride)
    return stride, negative, bounded


def _nothing(gradient: Tensor) -> Truncated:
    """Steps of 0."""
    p = len(gradient)
    device = gradient.device
    return Truncated(
        step=torch.zeros_like(gradient),
        gain=gradient.new_zeros(p),
        bend=gradient.new_zeros(p),
        remainder=gradient.new_zeros(p),
        norm=gradient.new_zeros(p),
        negative=torch.zeros(p, dtype=torch.bool, device=device),
        bounded=torch.zeros(p, dtype=torch.bool, device=device),
        iterations=torch.zeros(p, dtype=torch.int64, device=device),
    )


def _write(
    out: Truncated,
    run: _Progress,
    at: Tensor,
    remainder: Tensor,
    negative: Tensor,
    bounded: Tensor,
    count: int,
) -> None:
    """Enter the curves at ``at``, which stop here."""
    rows = run.rows[at]
    out.step[rows] = run.step[at]
    out.gain[rows] = run.gain[at]
    out.bend[rows] = run.bend[at]
    out.remainder[rows] = remainder[at]
    square = run.ss[at].clamp(min=0)
    out.norm[rows] = square.sqrt()
    out.negative[rows] = negative[at]
    out.bounded[rows] = bounded[at]
    out.iterations[rows] = count


def _dot(a: Tensor, b: Tensor) -> Tensor:  # (p, n, m), (p, n, m) -> (p,)
    return (a * b).sum((1, 2))
