"""Integrals over a box of coordinates, with respect to the Riemannian volume or another measure."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.numerics.checks import expect_range, expect_rtol

Function = Callable[[Tensor], Tensor]
Region = Sequence[tuple[float, float]] | Tensor
# Up to so many dimensions by Gauss and Legendre's rule, in others by points of Sobol's sequence.
_GRID = 3
_ORDER = 8
# Independent scrambles, whose spread is the standard error.
_SCRAMBLES = 8
_FIRST = 256
_MOST = 2**20
_BLOCK = 2**15


@dataclass(frozen=True, eq=False)
class Integral:
    """An integral.

    Attributes:
        value: ``(...)``, of the function's shape.
        error: ``(...)``: the change from the rule before, or a standard error in more than three
            dimensions.
        points: How many points were looked at.
        converged: Whether the errors are at most ``rtol`` of the values' size.
    """

    value: Tensor
    error: Tensor
    points: int
    converged: bool

    def __float__(self) -> float:
        """The value, of a function with one.

        Raises:
            ShapeError: When it has several.
        """
        if self.value.numel() != 1:
            got = str(tuple(self.value.shape))
            raise ShapeError("Integral", "one value", got, "Take .value.")
        return float(self.value)

    def __repr__(self) -> str:
        if self.value.numel() == 1:
            told = f"{float(self.value):.6g} ± {float(self.error):.1e}"
        else:
            told = f"{tuple(self.value.shape)} values, errors up to {float(self.error.amax()):.1e}"
        return f"Integral({told}, {self.points} points)"


def box(where: str, region: Any, m: int | None, like: Tensor) -> tuple[Tensor, Tensor]:
    """Corners ``(m,)`` of a region.

    Raises:
        DTypeError: When it is no list of pairs.
        ShapeError: When it has another number of coordinates than the manifold.
        OptionError: When a lower end is not below its upper end.
    """
    wanted = "region as one pair (low, high) for each coordinate"
    try:
        given = isinstance(region, Tensor)
        ends = region.detach() if given else torch.as_tensor(region, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as reason:
        hint = "Try [(0.0, 1.0), (0.0, 1.0)]."
        raise DTypeError(where, wanted, type(region).__name__, hint) from reason
    # A floating tensor says itself where and how exactly.
    if not given or not ends.is_floating_point():
        ends = ends.to(like)
    if ends.ndim != 2 or ends.shape[1] != 2 or (m is not None and len(ends) != m):
        wanted = f"region of shape ({'m' if m is None else m}, 2)"
        raise ShapeError(where, wanted, str(tuple(ends.shape)), "One pair for each coordinate.")
    low, high = ends.unbind(1)
    if not bool((low < high).all()) or not bool(ends.isfinite().all()):
        raise OptionError(where, "low < high, both finite", str(ends.tolist())[:120], "")
    return low, high


def function_values(
    where: str, name: str, f: Function, z: Tensor, single: bool = False
) -> Tensor:  # (k, m) -> (k, ...)
    """Values of a function at points; with ``single`` one for each.

    Raises:
        DTypeError: When it is not a function that returns tensors.
        ShapeError: When there are more or fewer values than points.
    """
    if not callable(f):
        raise DTypeError(where, f"{name} as a function", type(f).__name__, "(k, m) -> (k,)")
    values = f(z)
    if not isinstance(values, Tensor):
        got = type(values).__name__
        raise DTypeError(where, f"{name}(z) as a tensor", got, "Use torch's functions.")
    if values.shape[:1] != z.shape[:1] or (single and values.ndim != 1):
        wanted = f"{name}(z) of shape ({len(z)},{'' if single else ' ...'})"
        raise ShapeError(where, wanted, str(tuple(values.shape)), "One value for each point.")
    return values.to(z)


def integrate(
    where: str,
    integrand: Function,
    low: Tensor,
    high: Tensor,
    rtol: float | None,
    max_points: int | None,
    source: torch.Generator | None,
    throw: bool,
) -> Integral:
    """``∫ f dz`` over a box, ``f`` as ``(k, m) -> (k, ...)``.

    Raises:
        NotConvergedError: When ``throw`` and it is not as accurate as asked for.
    """
    m = len(low)
    most = _MOST if max_points is None else max_points
    expect_range(where, "max_points", most, 1, integer=True, hint="It counts points.")
    if rtol is None:
        fine = 1e-6 if low.dtype == torch.float64 else 1e-4
        rtol = fine if m <= _GRID else 1e-2
    rtol = expect_rtol(where, rtol)
    with torch.no_grad():
        rule = _by_grids if m <= _GRID else _by_sequences
        found = rule(_in_blocks(integrand), low, high, rtol, int(most), source)
    if throw and not found.converged:
        raise NotConvergedError(
            where,
            f"an integral to a relative accuracy of {rtol:g}",
            repr(found),
            "Raise max_points, loosen rtol, take a smaller region, or throw=False.",
            found,
        )
    return found


def _in_blocks(integrand: Function) -> Function:
    @functools.wraps(integrand)
    def called(z: Tensor) -> Tensor:
        return torch.cat([integrand(part) for part in z.split(_BLOCK)])

    return called


def _settled(value: Tensor, error: Tensor, rtol: float) -> bool:
    # Of several values, each against the largest: one may be 0.
    return bool((error <= rtol * value.abs().amax()).all()) or bool((error == 0).all())


def _by_grids(
    integrand: Function,
    low: Tensor,
    high: Tensor,
    rtol: float,
    most: int,
    source: torch.Generator | None,
) -> Integral:
    """Gauss and Legendre's rule on ever more cells, until it no longer changes."""
    m = len(low)
    before: Tensor | None = None
    points = 0
    cells = 1
    while True:
        z, weights = _grid(low, high, cells)
        points += len(z)
        value = torch.einsum("k,k...->...", weights, integrand(z))
        if before is not None:
            error = (value - before).abs()
            if _settled(value, error, rtol):
                return Integral(value, error, points, converged=True)
            if points + (2 * cells * _ORDER) ** m > most:
                return Integral(value, error, points, converged=False)
        elif points + (2 * cells * _ORDER) ** m > most:
            return Integral(value, torch.full_like(value, math.inf), points, converged=False)
        before = value
        cells *= 2


def _grid(low: Tensor, high: Tensor, cells: int) -> tuple[Tensor, Tensor]:  # -> (k, m), (k,)
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(_ORDER)
    inner = torch.as_tensor((nodes + 1) / 2, device=low.device).to(low)
    share = torch.as_tensor(weights / 2, device=low.device).to(low) / cells
    starts = torch.arange(cells, device=low.device).to(low)
    one = ((starts[:, None] + inner) / cells).flatten()
    share = share.repeat(cells)
    m = len(low)
    unit = torch.cartesian_prod(*[one] * m).view(-1, m)
    weight = torch.cartesian_prod(*[share] * m).view(-1, m).prod(1)
    return low + unit * (high - low), weight * (high - low).prod()


def _by_sequences(
    integrand: Function,
    low: Tensor,
    high: Tensor,
    rtol: float,
    most: int,
    source: torch.Generator | None,
) -> Integral:
    """Means over scrambled Sobol sequences, twice as long each time."""
    m = len(low)
    device = "cpu" if source is None else source.device
    seeds = torch.randint(2**31, (_SCRAMBLES,), generator=source, device=device).tolist()
    sequences = [torch.quasirandom.SobolEngine(m, scramble=True, seed=seed) for seed in seeds]
    sums: Tensor | None = None
    taken = 0
    count = _FIRST
    size = (high - low).prod()
    while True:
        units = torch.stack([one.draw(count, dtype=torch.float64) for one in sequences])
        z = low + units.to(low).flatten(0, 1) * (high - low)
        values = integrand(z)
        new = values.unflatten(0, (_SCRAMBLES, count)).sum(1)
        sums = new if sums is None else sums + new
        taken += count
        means = size * sums / taken
        value = means.mean(0)
        error = means.std(0) / _SCRAMBLES**0.5
        if _settled(value, error, rtol):
            return Integral(value, error, taken * _SCRAMBLES, converged=True)
        if 2 * taken * _SCRAMBLES > most:
            return Integral(value, error, taken * _SCRAMBLES, converged=False)
        count = taken
