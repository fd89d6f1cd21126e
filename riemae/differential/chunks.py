"""Memory: points per chunk, and maps that are evaluated chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from riemae.differential.primitives import untraced
from riemae.differential.rowwise import Rowwise
from riemae.numerics.batch_invariance import padded_rows, row_multiple
from riemae.numerics.memory import keep_freed_memory, total_memory

# What one chunk may touch. On a processor, the tangents of the widest layer should stay in its
# cache: 256 to 1,024 points at width 256 with 8 tangents in float64 run 1.6 to 1.9 times faster
# than everything at once.
_CPU_BYTES = 8 * 2**20
_DEVICE_BYTES = 512 * 2**20
_MIN_CHUNK = 8
# Fewer points where these would fill more than one part in so many of the memory.
_LEAST_SHARE = 16

# A map under the conditions of these rows, and these rows -> a tensor or a tuple of them.
Evaluation = Callable[..., Any]


@dataclass(frozen=True)
class Chunks:
    """How the rows of one map are split.

    Attributes:
        size: Points per chunk; None to choose it by bytes.
        batch_invariant: Whether a point gets the same bits alone and in any batch: see
            :mod:`riemae.numerics.batch_invariance`.
        widths: Numbers per point in every tensor inside the map, by the kind of its conditions.
    """

    size: int | None = None
    batch_invariant: bool = False
    widths: dict[Any, list[int]] = field(default_factory=dict)

    def rows(self, f: Rowwise, z: Tensor, passes: int) -> int:
        """Points ``(k, m)`` per chunk when ``passes`` tangents of the widest layer are held."""
        if not passes:
            return len(z)
        if self.size is not None:
            return self.size
        budget = _CPU_BYTES if z.device.type == "cpu" else _DEVICE_BYTES
        widest = self.widths_of(f, z)[-1]
        bytes_per_point = widest * passes * z.element_size()
        share = total_memory(z.device) // _LEAST_SHARE
        fewest = max(1, min(_MIN_CHUNK, share // bytes_per_point))
        return max(fewest, budget // bytes_per_point)

    def apply(self, f: Rowwise, passes: int, evaluate: Evaluation, *args: Tensor) -> Any:
        """``evaluate`` of all rows, some at a time.

        Args:
            f: The map, with one condition for each of the rows or of equally many neighbours.
            passes: Tangents that are held at once; 0 for all rows in one chunk.
            evaluate: Gets the map under the conditions of some rows, and these rows.
            args: Tensors with one row per point each.
        """
        if not args[0].shape[0]:
            # Many layers refuse an empty batch: take the shapes from one point at the origin, and
            # keep none of it.
            origin = [x.new_zeros(1, *x.shape[1:]) for x in args]
            return _first_rows(evaluate(f.at(0), *origin), 0)
        # Forward mode refuses views whose elements share memory, such as expanded points.
        args = tuple(x.contiguous() for x in args)
        points = args[0]
        if points.device.type == "cpu":
            keep_freed_memory()
        size = self.rows(f, points, passes)
        if self.batch_invariant:
            widths = self.widths_of(f, points)
            multiple = row_multiple(widths, points.element_size())
            evaluate = _padded(evaluate, multiple)
            if passes:  # only the last chunk is padded
                size = multiple * max(1, round(size / multiple))
        count = points.shape[0]
        whole = f.spread(count)
        if count <= size:
            return evaluate(whole, *args)
        parts = []
        for i, chunk in enumerate(zip(*(x.split(size) for x in args), strict=True)):
            part = whole.part(i * size, size)
            parts.append(evaluate(part, *chunk))
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return torch.cat(parts)

    def widths_of(self, f: Rowwise, z: Tensor) -> list[int]:
        """Numbers per point in every tensor inside the map, from the smallest.

        They are found by a run with one point and a run with three.
        """
        known = self.widths.get(f.kind)
        if known is not None:
            return known
        if z.is_meta or not len(z):
            return [z.shape[-1]]
        point = z[:1].detach()
        one = _output_sizes(f.at(0), point)
        three = _output_sizes(f.at(0), point.repeat(3, 1))
        # Tensors that do not grow with the batch are parameters; a map whose operations differ
        # between the two runs is judged by its output.
        per_point = [(b - a) // 2 for a, b in zip(one, three, strict=False)]
        if len(one) != len(three):
            per_point = [one[-1], 1]
        different = {z.shape[-1], *per_point} - {0}
        widths = sorted(different)
        self.widths[f.kind] = widths
        return widths


def _first_rows(out: Any, count: int) -> Any:
    if isinstance(out, tuple):
        return tuple(x[:count] for x in out)
    return out[:count]


def _padded(evaluate: Evaluation, multiple: int) -> Evaluation:
    """``evaluate`` on a multiple of this number of rows."""

    def padded(f: Rowwise, *chunk: Tensor) -> Any:
        wide = [padded_rows(x, multiple) for x in chunk]
        out = evaluate(f.padded(multiple), *wide)
        return _first_rows(out, chunk[0].shape[0])

    return padded


def _output_sizes(f: Rowwise, z: Tensor) -> list[int]:
    """Numbers in the result of every torch function inside the map, and in its output."""
    with torch.no_grad(), untraced(_OutputSizes)() as seen:
        x = f.output(z)
    return [*seen.sizes, x.numel()]


class _OutputSizes(TorchFunctionMode):
    """Records how many numbers every torch function returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        size = out.numel() if isinstance(out, Tensor) else 0
        self.sizes.append(size)
        return out
