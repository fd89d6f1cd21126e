"""Generic points, at which a function is looked at before its numbers are trusted.

They are the given points, moved by seeded noise of the size of their spread: the origin, the
natural first query, hides much (odd functions, inactive branches). Two questions are asked there:
whether the rows of the function are independent of each other and of chance
(:mod:`riemae.numerics.dependence`), and whether its derivative is its own
(:mod:`riemae.numerics.contradiction`). Callers turn answers into typed errors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rows that are compared with each other; fewer where the output of one row is large.
ROWS = 16
FEW = 4
LARGE_OUTPUT = 4096
# A batch of this size shows what smaller ones may hide.
LARGE_BATCH = 64
_SEED = 20_011
# What a function may raise outside of its domain.
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ArithmeticError)

RowMap = Callable[[Tensor], Tensor]


def generator() -> torch.Generator:
    """A source of the same random numbers at every probe; the global generator is not used."""
    return torch.Generator().manual_seed(_SEED)


def normal(like: Tensor, *shape: int, source: torch.Generator) -> Tensor:
    """Normal random numbers of another tensor's dtype and device."""
    drawn = torch.randn(shape, generator=source, dtype=torch.float64)
    return drawn.to(like)


def spread(z: Tensor) -> Tensor:  # (k, m) -> (m,)
    """The size of a step that leaves a neighbourhood.

    It is the spread of the points, or their size where they do not differ.
    """
    size = z.abs().amax() if z.numel() else z.new_zeros(())
    size = torch.where(size > 0, size, torch.ones_like(size))
    if len(z) < 2 or bool((z == z[:1]).all()):
        return size.expand(z.shape[-1])
    deviation = z.std(0, unbiased=False)
    return torch.maximum(deviation, size / 8)


def moved(
    z: Tensor, count: int, scale: float = 1.0
) -> tuple[Tensor, Tensor]:  # (k, m) -> (count, m), (count, m)
    """Rows of ``z``, first and last among them, and the noise to be added to each."""
    source = generator()
    rows = torch.randint(len(z), (count,), generator=source)
    ends = torch.tensor([0, len(z) - 1])
    rows[:2] = ends[: min(2, count)]
    known = z.detach()
    base = known[rows.to(z.device)]
    size = scale * spread(known)
    return base, size * normal(z, *base.shape, source=source)


def generic(
    f: RowMap, z: Tensor, count: int, rows: int | None = None
) -> Tensor:  # (k, m) -> (count, m)
    """Points that are typical of ``z`` and not special, inside the domain of ``f``.

    The last has a distance of at least 1 from the given point next to it.

    Args:
        f: Rows to rows.
        z: Points.
        count: How many are wanted.
        rows: The largest number of rows in one call of ``f``; None for any.
    """
    base, noise = moved(z, count)
    # Near-duplicates do not show the size of the space: one point lies further away.
    size = noise[-1].norm()
    smallest = torch.finfo(z.dtype).tiny
    to_one = 1 / size.clamp(min=smallest)
    noise[-1] = noise[-1] * torch.where(size < 1, to_one, 1.0)
    points = base.clone()
    missing = torch.ones(count, dtype=torch.bool, device=z.device)
    for factor in (1.0, 1 / 8, 1 / 64):
        trial = base + factor * noise
        with torch.no_grad():
            try:
                parts = [_finite(f(part)) for part in trial.split(rows or count)]
            except FAILURES:
                continue
        finite = torch.cat(parts)
        found = finite & missing
        points = torch.where(found[:, None], trial, points)
        missing = missing & ~finite
        if not bool(missing.any()):
            break
    return points


def _finite(x: Tensor) -> Tensor:  # (k, *shape) -> (k,)
    return x.isfinite().reshape(len(x), -1).all(-1)
