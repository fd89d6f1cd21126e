"""Whether a row's output depends on chance, or on the other rows of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.numerics.arithmetic import LARGEST, coarsest, in_double
from riemae.numerics.probe import (
    FAILURES,
    FEW,
    LARGE_BATCH,
    LARGE_OUTPUT,
    ROWS,
    RowMap,
    generator,
    moved,
)
from riemae.numerics.tolerances import tolerance

# Cosine of the differences at two points from which on they are the same differences.
_COHERENT = 0.5


@dataclass(frozen=True)
class Dependence:
    """What the output of a row depends on besides the row.

    Attributes:
        kind: ``"chance"``, ``"rows"``, or only ``"rounding"``; ``"noise"`` where it is rounding
            that the function's own arithmetic explains.
        size: The difference, relative to the output.
    """

    kind: str
    size: float

    @property
    def sound(self) -> bool:
        """Whether the function is a deterministic map of rows in spite of it."""
        return self.kind == "noise"

    def message(self, what: str) -> tuple[str, str, str]:
        """Expected, got, try: for an error about a function of this name."""
        if self.kind == "chance":
            return (
                f"a deterministic {what}",
                f"two different outputs for one input (by {self.size:.1g})",
                f"Switch sampling and dropout off: {what}.eval(), or return the mean instead of a "
                "sample.",
            )
        if self.kind == "rounding":
            return (
                f"a {what} that treats every row alone, in float64",
                f"outputs that differ by {self.size:.1g} with the other rows of the batch, as "
                "rounding in float32 does",
                "Convert all of it with .double(), or use float32 points: something inside the "
                f"{what} is in float32.",
            )
        return (
            f"a {what} that treats every row alone",
            "an output that depends on the other rows of the batch, or on their number or order "
            f"(by {self.size:.1g})",
            f"Switch batch statistics off: {what}.eval(); attention must not run across the batch "
            "axis.",
        )


def dependence_around(
    f: RowMap, z: Tensor, size: int, limit: int | None = None
) -> Dependence | None:  # (k, m)
    """:func:`dependence` among many rows: given points, and others near them and further away.

    Where very many points are given, they alone are used. The other rows may lie outside of the
    domain: if the function fails there, the given ones alone are used, too.

    Args:
        f: Rows to rows.
        z: The given points, at least one.
        size: Numbers in the output of one row.
        limit: The largest number of rows in one call; None for any.
    """
    count = min(ROWS if size <= LARGE_OUTPUT else FEW, limit or ROWS)
    alone = None if count == ROWS else 2
    number = min(len(z), count)
    evenly = torch.linspace(0, len(z) - 1, number).long()
    given = z[evenly.to(z.device)]
    if len(z) >= LARGE_BATCH:
        return dependence(f, given, alone)
    near = torch.add(*moved(z, count, 1.0))
    far = torch.add(*moved(z, count, 4.0))
    some = given[: max(1, count // 4)]
    half = near[: count // 2]
    rows = torch.cat([some, half, far])[:count]
    try:
        return dependence(f, rows, alone)
    except FAILURES:
        return dependence(f, given, alone)


def dependence(
    f: RowMap, points: Tensor, alone: int | None = None
) -> Dependence | None:  # (k, ...)
    """Whether a row's output depends on chance, on the other rows, on their number or their order.

    Where it does so by rounding in coarse arithmetic alone, the kind is ``"noise"``.

    Args:
        f: Rows to rows.
        points: The rows.
        alone: How many rows are also taken by themselves; by default the first, the last and those
            furthest out.
    """
    x = _kept(f, points)
    repeated = _kept(f, points)
    size = _difference(x, repeated)
    if size > 0:
        rounded = size < LARGEST and _exact_elsewhere(f, points, alone)
        return Dependence("noise" if rounded else "chance", size)
    size = _coupling(f, points, x, alone)
    if not size:
        return None
    coarse = coarsest(f, points) is not None
    if not coarse:
        # Rounding that the function itself amplifies is not coupling: a row moved by its last
        # digits shows how much that is.
        near = _kept(f, points * (1 + 4 * tolerance(points.dtype).eps))
        if not torch.equal(near.isfinite(), x.isfinite()):
            return Dependence("rows", size)
        if size <= 32 * _largest_difference(x, near):
            return Dependence("noise", size)
    if size < LARGEST and _is_noise(f, points, x, alone):
        return Dependence("noise", size)
    # float32 arithmetic behind float64 points leaves differences of its own size between batches.
    rounded = points.dtype == torch.float64 and size < 256 * tolerance(torch.float32).eps
    return Dependence("rounding" if rounded else "rows", size)


def batch_noise(f: RowMap, points: Tensor) -> float:  # (k, ...)
    """How much the first row changes with the size of the batch, where that is rounding; else 0."""
    x = _kept(f, points)
    if not _difference(x[:1], _kept(f, points[:1])):
        return 0.0
    found = dependence(f, points)
    return found.size if found is not None and found.sound else 0.0


# Rounding, or coupling?


def _is_noise(f: RowMap, points: Tensor, x: Tensor, alone: int | None) -> bool:
    """Whether differences between batches are rounding in the function's own arithmetic.

    Kernels choose their order of summation by the shape of a batch, and never by what other rows
    hold. Rounding vanishes in float64, and changes all over when a point moves a little; coupling
    does neither.
    """
    try:
        if _heeds_others(f, points, x):
            return False
        return _exact_elsewhere(f, points, alone) or _scattered(f, points)
    except FAILURES:
        return False


def _heeds_others(f: RowMap, points: Tensor, x: Tensor) -> bool:
    """Whether a row notices what other rows hold, in a batch of one shape."""
    count = len(points)
    places = torch.arange(count, device=points.device)
    for parity in (0, 1):
        own = places % 2 == parity
        for other in (points.flip(0), points[:1].expand_as(points), points[-1:].expand_as(points)):
            mask = own.view(-1, *(1,) * (points.ndim - 1))
            mixed = torch.where(mask, points, other)
            if _difference(x[own], _kept(f, mixed)[own]):
                return True
    return False


def _exact_elsewhere(f: RowMap, points: Tensor, alone: int | None) -> bool:
    """Whether the same function in float64 is a deterministic map of rows."""
    exact = in_double(f)
    try:
        x = _kept(exact, points.double())
        same = _difference(x, _kept(exact, points.double())) == 0
        return same and _coupling(exact, points.double(), x, alone) == 0
    except FAILURES:  # it cannot be computed in float64
        return False


def _scattered(f: RowMap, points: Tensor) -> bool:
    """Whether differences between batches have nothing to do with those at points nearby."""
    here = _gaps(f, points)
    if not bool(here.any()):
        return False
    for step in (2.0**-6, -(2.0**-7)):
        near = _gaps(f, points * (1 + step))
        size = here.norm() * near.norm()
        if bool((here * near).sum().abs() >= _COHERENT * size):
            return False
    return True


def _gaps(f: RowMap, points: Tensor) -> Tensor:
    """Differences of rows among many, among half as many, and by themselves."""
    half = max(1, len(points) // 2)
    x = _kept(f, points)
    fewer = x[:half] - _kept(f, points[:half])
    single = torch.cat([_kept(f, points[i : i + 1]) for i in range(half)])
    return torch.stack([fewer, x[:half] - single]).double().nan_to_num(0.0, 0.0, 0.0)


def _coupling(f: RowMap, points: Tensor, x: Tensor, alone: int | None) -> float:
    """How far outputs are from ``x`` among fewer rows in another order, and by themselves."""
    count = len(points)
    shuffled = x.clone()
    single = x.clone()
    if count <= 2:  # each among copies of itself: some layers refuse a single row
        for i in range(count):
            copies = points[i].expand(2, *points.shape[1:]).contiguous()
            single[i] = _kept(f, copies)[i]
    else:
        order = torch.randperm(count, generator=generator()).to(points.device)
        for half in order.tensor_split(2):
            shuffled[half] = _kept(f, points[half])
        if alone is None:
            chosen = _extremes(points)
        else:
            chosen = {0, count - 1, *order[: max(alone - 2, 0)].tolist()}
        for i in chosen:
            single[i] = _kept(f, points[i : i + 1])[0]
    return max(_difference(x, shuffled), _difference(x, single))


def _extremes(points: Tensor) -> set[int]:
    """First and last row, and those with extreme first coordinates, sums, and sizes."""
    flat = points.reshape(len(points), -1)
    first_columns = flat[:, :2].unbind(-1)
    looks = [*first_columns, flat.sum(-1), flat.square().sum(-1)]
    extremes = {int(i) for look in looks for i in (look.argmax(), look.argmin())}
    return {0, len(points) - 1, *extremes}


def _kept(f: RowMap, points: Tensor) -> Tensor:
    """A copy of the output: a function may write its next one into the same memory."""
    return f(points).detach().clone()


def _difference(a: Tensor, b: Tensor) -> float:
    """:func:`_largest_difference`, and 0 where it is rounding."""
    if not a.numel():
        return 0.0
    size = _largest_difference(a, b)
    return size if size > tolerance(a.dtype).probe else 0.0


def _largest_difference(a: Tensor, b: Tensor) -> float:
    """The largest difference relative to a row's size.

    Where ``a`` is not finite, nothing is compared.
    """
    sizes = a.nan_to_num(0.0, 0.0, 0.0).abs()
    rows = sizes.reshape(len(a), -1).amax(-1)
    inner_axes = (1,) * (a.ndim - 1)
    scale = torch.maximum(rows, rows.median() / 128).view(-1, *inner_axes)
    relative = (a - b).abs() / torch.where(scale > 0, scale, 1.0)
    gap = torch.where(a.isfinite(), relative, 0.0)
    gap = torch.where(gap.isnan(), torch.inf, gap)  # only one of the two is a number
    return float(gap.amax())
