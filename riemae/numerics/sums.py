"""Sums over groups, with the same bits every time, on every device."""

from __future__ import annotations

from torch import Tensor


def summed(x: Tensor, of: Tensor, count: int) -> Tensor:  # (k, *b), (k,) -> (count, *b)
    """The sum of what belongs to each of ``count`` groups; differentiable.

    On a GPU ``index_add`` adds in an order left to chance, and ``index_put`` sorts before it adds.
    On the processor it is the other way around: one adds in order, the other by several threads.

    Args:
        x: What is summed.
        of: The group of each entry, int64.
        count: How many groups; one without entries has the sum 0.
    """
    zero = x.new_zeros(count, *x.shape[1:])
    if x.device.type == "cpu":
        return zero.index_add(0, of, x)
    return zero.index_put((of,), x, accumulate=True)
