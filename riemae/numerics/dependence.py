"""Whether a row's output depends on chance, or on the other rows of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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


@dataclass(frozen=True)
class Dependence:
    """What the output of a row depends on besides the row.

    Attributes:
        kind: ``"chance"``, ``"rows"``, or only ``"rounding"``.
        size: The difference, relative to the output.
    """

    kind: str
    size: float

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
        return Dependence("chance", size)
    size = _coupling(f, points, x, alone)
    if not size:
        return None
    # Rounding that the function itself amplifies is not coupling: a row moved by its last digits
    # shows how much that is.
    near = _kept(f, points * (1 + 4 * tolerance(points.dtype).eps))
    if not torch.equal(near.isfinite(), x.isfinite()):
        return Dependence("rows", size)
    if size <= 32 * _largest_difference(x, near):
        return None
    # float32 arithmetic behind float64 points leaves differences of its own size between batches.
    rounded = points.dtype == torch.float64 and size < 256 * tolerance(torch.float32).eps
    return Dependence("rounding" if rounded else "rows", size)


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
