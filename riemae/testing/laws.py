"""How far two results deviate, and the verdict on a set of laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from riemae.exceptions import ContractError, ShapeError
from riemae.numerics.checks import expect_values
from riemae.numerics.random import as_generator, gaussian
from riemae.numerics.tolerances import tolerance

# A function, what it is given, and the shape of its result.
Call = tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[int, ...]]


def expect_points(where: str, name: str, x: Tensor, shape: str, axes: int | None) -> None:
    """At least one point, of a dtype that geometry can be computed in.

    Args:
        where: Who asks.
        name: Of the argument.
        x: What came.
        shape: Shape of the argument, in words.
        axes: How many axes; None for two or more.

    Raises:
        ShapeError: For another shape, or no points.
    """
    expect_values(where, name, x)
    if axes is None:
        fits = x.ndim >= 2
    else:
        fits = x.ndim == axes
    if not fits or not len(x):
        hint = "Give one row per point, and at least one."
        raise ShapeError(where, f"{name} of shape {shape}", str(tuple(x.shape)), hint)


def source(where: str, generator: torch.Generator | int | None) -> torch.Generator:
    """The generator of the test vectors."""
    found = as_generator(where, generator)
    if found is not None:
        return found
    seed = torch.seed()
    return torch.Generator().manual_seed(seed)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal test vectors, the same numbers in every precision."""
    drawn = gaussian(like.double(), generator)
    return drawn.to(like)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest deviation of a batch, each row relative to its own size.

    Infinite where shapes differ, or one of two values is not finite.
    """
    if a.shape != b.shape:
        return math.inf
    rows_a = a.reshape(len(a), -1)
    rows_b = b.reshape(len(b), -1)
    size_a = rows_a.abs().amax(1)
    size_b = rows_b.abs().amax(1)
    scale = torch.maximum(size_a, size_b)
    gap = (rows_a - rows_b).abs().amax(1)
    share_of_scale = torch.where(gap == 0, 0.0, gap / scale)
    return worst(share_of_scale)


def worst(deviations: Tensor) -> float:
    """The largest of several deviations; infinite for NaN."""
    known = deviations.nan_to_num(nan=math.inf)
    return float(known.max())


def share(gap: Tensor, scale: Tensor) -> float:
    """The largest gap relative to its scale; 0 where the gap is 0."""
    relative_gap = gap.abs() / scale
    return worst(torch.where(gap == 0, 0.0, relative_gap))


def step(x: Tensor) -> float:
    """A step of a four-point difference that balances its own error and rounding."""
    return tolerance(x.dtype).eps ** 0.2


def differences(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The derivative of ``f`` at ``x`` along ``v`` by four points: error ~ (step size)⁴."""
    h = step(x)
    ahead = f(x + h * v)
    behind = f(x - h * v)
    near = ahead - behind
    far_ahead = f(x + 2 * h * v)
    far_behind = f(x - 2 * h * v)
    far = far_ahead - far_behind
    return (8 * near - far) / (12 * h)


def by_autograd(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Value of ``f`` at ``x``, and the gradient of its sum; 0 where f does not depend on x."""
    with torch.enable_grad():
        point = x.detach().clone().requires_grad_()
        value = f(point)
        gradient = torch.zeros_like(point)
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), point, materialize_grads=True)
    return value.detach(), gradient.detach()


def first_order_share(errors: Sequence[Tensor], visible: Tensor) -> float:
    """How much slower than h² errors fall from the first to the last of three halved steps.

    Args:
        errors: Errors at three steps, each half of the one before.
        visible: Where the last error is more than rounding.
    """
    slope = (errors[0] / errors[-1]).log2() / 2
    missing = (1.5 - slope).clamp(min=0)
    return worst(torch.where(visible, missing, 0.0))


def kept_and_changed(calls: Sequence[Call], like: Tensor) -> tuple[bool, float]:
    """Whether results have the promised form, and how far arguments were changed in place.

    Args:
        calls: Functions, what they are given, and the shapes of their results.
        like: A tensor of the dtype and the device that results must have.
    """
    kept = True
    changed = 0.0
    for method, given, shape in calls:
        inputs = tuple(x.clone() for x in given)
        out = method(*inputs)
        same_kind = out.dtype == like.dtype and out.device == like.device
        kept = kept and same_kind and out.shape == shape
        gaps = (relative(a, b) for a, b in zip(inputs, given, strict=True))
        changed = max(changed, *gaps)
    return kept, changed


def run(checks: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """The deviation that each check finds."""
    return {name: check() for name, check in checks.items()}


def verdict(
    where: str, report: dict[str, float], tol: float | Mapping[str, float], hints: Mapping[str, str]
) -> dict[str, float]:
    """The report, when every law holds.

    Args:
        where: Who asks.
        report: The worst deviation from each law.
        tol: How much deviation is allowed, for all laws or for each.
        hints: What to look at, by law.

    Raises:
        ContractError: Naming every law that is broken, and by how much.
    """
    allowed = tol if isinstance(tol, Mapping) else dict.fromkeys(report, tol)
    broken = {name: gap for name, gap in report.items() if not gap <= allowed[name]}
    if not broken:
        return report
    smallest = min(allowed.values())
    largest = max(allowed.values())
    limit = f"{smallest:.0e}"
    if largest != smallest:
        limit += f" to {largest:.0e}"
    deviations = [f"{name} off by {gap:.1e}" for name, gap in broken.items()]
    got = ", ".join(deviations)
    found = [hints[name] for name in broken if name in hints]
    different = dict.fromkeys(found)
    raise ContractError(where, f"every law to hold to {limit}", got, " ".join(different))
