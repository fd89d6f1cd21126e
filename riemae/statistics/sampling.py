"""Points that are uniform with respect to the Riemannian volume."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riemae.exceptions import DTypeError, NotConvergedError, OptionError, ShapeError
from riemae.numerics.checks import expect_range, expect_shape, expect_values
from riemae.numerics.random import as_generator
from riemae.solvers.space import space_of
from riemae.statistics.arguments import takes_and_gives_codes
from riemae.statistics.tangents import Somewhere, factor

# Proposals of a round, how much above the largest density seen the bound lies, and how many
# proposals for each point wanted are too many.
_ROUND = 2048
_MARGIN = 1.25
_MOST = 100_000


@takes_and_gives_codes
def sample_uniform(
    geometry: Somewhere,
    n: int,
    low: Tensor,
    high: Tensor,
    *,
    inside: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | int | None = 0,
) -> Tensor:  # (m,), (m,) -> (n, m)
    """Points of a region, uniform with respect to the Riemannian volume ``√det G dz``.

    By rejection from the uniform distribution of a box. The bound on the density is raised when a
    larger one is seen, and what was accepted before is thinned out accordingly, which leaves the
    distribution right. A peak of the density that no proposal meets is missed: at least 2,048 are
    made.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        n: How many points.
        low: Lower corner of the box, ``(m,)``.
        high: Upper corner.
        inside: The region within the box, ``(k, m) -> (k,)`` bool; all of it by default.
        generator: A generator, or the seed of a new one; None draws from torch's own.

    Raises:
        ShapeError: When the corners are not points, or ``inside`` gives no truth value for each.
        DTypeError: When ``inside`` is no function.
        OptionError: When ``low`` is not below ``high``.
        NotConvergedError: When nearly all proposals are rejected, because the region is small or
            the density peaked; it carries the points accepted.
    """
    where = "sample_uniform"
    expect_range(where, "n", n, 0, integer=True, hint="It counts points.")
    expect_values(where, "low", low)
    expect_values(where, "high", high)
    expect_shape(where, "low", low, ("m",), "One corner of a box.")
    expect_shape(where, "high", high, tuple(low.shape), "One corner of a box.")
    if not bool((low < high).all()) or not bool((high - low).isfinite().all()):
        got = f"{low.tolist()} and {high.tolist()}"
        raise OptionError(where, "low below high, both finite", got, "Swap them?")
    if inside is not None and not callable(inside):
        hint = "(k, m) -> (k,) bool"
        raise DTypeError(where, "inside as a function", type(inside).__name__, hint)
    source = as_generator(where, generator)
    low, high = low.detach(), high.detach().to(low)
    space_of(geometry, low[None], where=where)
    taken = low.new_empty(0, len(low))
    bound = 0.0
    proposals = 0
    with torch.no_grad():
        while len(taken) < n or not proposals:
            if proposals > _MOST * max(n, 1):
                raise NotConvergedError(
                    where,
                    f"{n} points",
                    f"{len(taken)} of {proposals} proposals",
                    "Give a box close to the region, and one where the volume density does not "
                    "vary by orders of magnitude.",
                    taken,
                )
            z = low + (high - low) * _uniform(source, _ROUND, len(low)).to(low)
            proposals += _ROUND
            density = _density(geometry, z, inside)
            largest = float(density.amax())
            if largest > bound:
                raised = _MARGIN * largest
                kept = _uniform(source, len(taken))[:, 0] * raised < bound
                taken = taken[kept.to(taken.device)]
                bound = raised
            if bound > 0:
                chance = _uniform(source, _ROUND)[:, 0].to(density)
                taken = torch.cat([taken, z[chance * bound < density]])
    return taken[:n]


def _uniform(source: torch.Generator | None, count: int, m: int = 1) -> Tensor:
    device = "cpu" if source is None else source.device
    return torch.rand(count, m, generator=source, dtype=torch.float64, device=device)


def _density(
    geometry: Somewhere, z: Tensor, inside: Callable[[Tensor], Tensor] | None
) -> Tensor:  # (k, m) -> (k,)
    """``√det G`` in the region, 0 elsewhere.

    Raises:
        ShapeError: When ``inside`` gives anything but one truth value for each point.
    """
    density = factor(geometry, z).diagonal(dim1=-2, dim2=-1).prod(-1).abs()
    density = density.nan_to_num(0.0, posinf=0.0)
    if inside is None:
        return density
    known = inside(z)
    if not isinstance(known, Tensor) or known.shape != z.shape[:1] or known.dtype != torch.bool:
        got = f"{known.dtype} {tuple(known.shape)}" if isinstance(known, Tensor) else str(known)
        wanted = f"inside(z) of shape ({len(z)},) and dtype bool"
        raise ShapeError("sample_uniform", wanted, got, "One truth value for each point.")
    return torch.where(known, density, 0.0)
