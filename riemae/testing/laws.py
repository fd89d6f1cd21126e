"""How far two results deviate, and the verdict on a set of laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from riemae.exceptions import ContractError, ShapeError
from riemae.numerics.checks import expect_values
from riemae.numerics.random import as_generator, gaussian
from riemae.numerics.tolerances import tolerance


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
    fits = x.ndim == axes if axes is not None else x.ndim >= 2
    if not fits or not len(x):
        hint = "Give one row per point, and at least one."
        raise ShapeError(where, f"{name} of shape {shape}", str(tuple(x.shape)), hint)


def source(where: str, generator: torch.Generator | int | None) -> torch.Generator:
    """The generator of the test vectors."""
    found = as_generator(where, generator)
    return torch.Generator().manual_seed(torch.seed()) if found is None else found


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal test vectors, the same numbers in every precision."""
    return gaussian(like.double(), generator).to(like)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest deviation of a batch, each row relative to its own size.

    Infinite where shapes differ, or one of two values is not finite.
    """
    if a.shape != b.shape:
        return math.inf
    rows_a, rows_b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    scale = torch.maximum(rows_a.abs().amax(1), rows_b.abs().amax(1))
    gap = (rows_a - rows_b).abs().amax(1)
    return worst(torch.where(gap == 0, 0.0, gap / scale))


def worst(deviations: Tensor) -> float:
    """The largest of several deviations; infinite for NaN."""
    return float(deviations.nan_to_num(nan=math.inf).max())


def share(gap: Tensor, scale: Tensor) -> float:
    """The largest gap relative to its scale; 0 where the gap is 0."""
    return worst(torch.where(gap == 0, 0.0, gap.abs() / scale))


def step(x: Tensor) -> float:
    """A step of a four-point difference that balances its own error and rounding."""
    return tolerance(x.dtype).eps ** 0.2


def differences(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> Tensor:
    """The derivative of ``f`` at ``x`` along ``v`` by four points: error ~ (step size)⁴."""
    h = step(x)
    near = f(x + h * v) - f(x - h * v)
    far = f(x + 2 * h * v) - f(x - 2 * h * v)
    return (8 * near - far) / (12 * h)


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
    smallest, largest = min(allowed.values()), max(allowed.values())
    limit = f"{smallest:.0e}" if smallest == largest else f"{smallest:.0e} to {largest:.0e}"
    got = ", ".join(f"{name} off by {gap:.1e}" for name, gap in broken.items())
    found = [hints[name] for name in broken if name in hints]
    raise ContractError(where, f"every law to hold to {limit}", got, " ".join(dict.fromkeys(found)))
