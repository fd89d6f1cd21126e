"""Dormand and Prince's method of order 8, every sample of a batch with its own steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from riemae.numerics.checks import expect_rtol
from riemae.numerics.tolerances import tolerance

# Step control of Hairer, Nørsett, Wanner, Solving Ordinary Differential Equations I, section II.4.
_SAFETY = 0.9
_SHRINK = 0.2
_GROW = 8.0
_ORDER = 8


def advance(
    rhs: Callable[[Tensor], Tensor],
    y: Tensor,
    duration: float | Tensor,
    stride: Tensor,
    scale: Tensor,
    steps: Tensor,
    failed: Tensor,
    max_steps: int,
    sound: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Integrate ``ẏ = rhs(y)`` over ``duration``, every sample with its own steps.

    Args:
        rhs: ``(k, d) -> (k, d)``, NaN where a sample has none.
        y: States ``(p, d)``.
        duration: Time, one for all or ``(p,)``; negative runs backwards.
        stride: ``(p,)``, step to try first.
        scale: ``(p, d)``, error allowed in each component.
        steps: ``(p,)``, steps spent; counted up in place.
        failed: ``(p,)`` bool; samples that failed are skipped, new failures marked in place.
        max_steps: Steps that a sample may take.
        sound: ``(states (k, d), rows (k,)) -> (k,)`` bool, whether a state is one that the solution
            can have. A step that leads elsewhere is repeated with a smaller one, as if its error
            were too large.

    Returns:
        The states at the end, and the step each sample would try next.
    """
    spans = torch.as_tensor(duration, dtype=y.dtype, device=y.device).expand(len(y))
    sign = spans.sign()
    total = spans.abs()
    left = total.clone()
    # Of the time: shorter steps are lost in rounding.
    if y.dtype == torch.float64:
        least = 1e-13
    else:
        least = 1e-7
    while True:
        rows = ((left > 1e-12 * total) & ~failed).nonzero().flatten()
        if not len(rows):
            return y, stride
        h = torch.minimum(stride[rows], left[rows])
        signed = sign[rows] * h
        trial, error = _dop853(rhs, y[rows], signed, scale[rows])
        good = error <= 1  # False for NaN
        if sound is not None:
            small = good.nonzero().flatten()
            kept = sound(trial[small].detach(), rows[small])
            good = good.index_put((small,), kept)
            judged = torch.where(kept, error[small], torch.inf)
            error = error.index_put((small,), judged)
        reached = torch.where(good[:, None], trial, y[rows])
        y = y.index_put((rows,), reached)
        left[rows] = torch.where(good, left[rows] - h, left[rows])
        grown = h * _growth(error, good)
        # A step cut short by the end of the interval says nothing about how long the next may be.
        cut_short = good & (h < stride[rows])
        stride[rows] = torch.where(cut_short, stride[rows], grown)
        steps[rows] += 1
        exhausted = steps[rows] >= max_steps
        too_short = h < least * total[rows]
        failed[rows] |= exhausted | too_short


def _growth(error: Tensor, good: Tensor) -> Tensor:
    """How much longer the next step may be; no longer at all after one that was not good."""
    factor = _SAFETY * error.clamp(min=1e-12) ** (-1 / _ORDER)
    factor = factor.nan_to_num(_SHRINK).clamp(_SHRINK, _GROW)
    return torch.where(good, factor, factor.clamp(max=1.0))


def _dop853(
    rhs: Callable[[Tensor], Tensor], y: Tensor, h: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of Dormand and Prince's 8(5,3) method, and its error relative to ``scale``.

    The coefficients are scipy's.
    """
    step = h[:, None]
    stages = [rhs(y)]
    method = method_of_order_8()
    for row in method.A[1:]:
        stages.append(rhs(y + step * combined(row, stages)))
    new = y + step * combined(method.B, stages)
    # The error estimates weigh the slope at the new state by 0: it is left to the next step.
    with torch.no_grad():
        high = combined(method.E5, stages) / scale
        fifth = high.square().mean(-1)
        low = combined(method.E3, stages) / scale
        third = low.square().mean(-1)
        tiny = torch.finfo(y.dtype).tiny
        denominator = (fifth + 0.01 * third).clamp(min=tiny)
        return new, h.abs() * fifth / denominator.sqrt()


@lru_cache(maxsize=1)
def method_of_order_8() -> Any:
    """The coefficients, from scipy's class; imported when they are needed."""
    from scipy.integrate import DOP853

    return DOP853


def combined(weights: Any, stages: list[Tensor]) -> Tensor:
    """The weighted sum of stages; those of weight 0 are left out."""
    total = torch.zeros_like(stages[0])
    for weight, stage in zip(weights, stages, strict=False):
        if weight:
            total = total + float(weight) * stage
    return total


def accuracy_of(
    where: str, rtol: float | None, like: Tensor, double: float, single: float
) -> float:
    """``rtol`` as it was given, or the default of the dtype of ``like``.

    Raises:
        OptionError: When it is not positive.
        DTypeError: When it is not a number.
    """
    tolerance(like.dtype)
    if rtol is None:
        if like.dtype == torch.float64:
            return double
        return single
    return expect_rtol(where, rtol)
