"""Where the points are in a tensor: which axis is theirs after axes have been moved.

Derivatives of second order are summed per point, so that the points must be told apart in every
intermediate result. Most keep them on their first axis. Sequence models move them behind the axis
of time, attention heads share an axis with them. All of that is one number: *ahead*, the product of
the lengths of the axes in front of the points. A tensor that depends on ``b`` points is, read in
order, ``(ahead, b, rest)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from riemae.differential.tape import Tape


class Placed(Protocol):
    """What is asked of a jet here."""

    tape: Tape
    ahead: int | None

    @property
    def shape(self) -> torch.Size:
        """The shape of its value."""
        ...

    @property
    def ndim(self) -> int:
        """The number of axes of its value."""
        ...


def placed(ahead: int | None) -> int:
    """``ahead``, where it must be known.

    Raises:
        NotImplementedError: Where it is not.
    """
    if ahead is None:
        raise NotImplementedError("Taylor mode lost track of which axis is that of the points")
    return ahead


def axis_of(shape: Sequence[int], ahead: int) -> tuple[int, int]:
    """The axis that holds the points, and the length of what shares it in front of them."""
    before = 1
    for axis, length in enumerate(shape):
        if ahead < before * length:
            return axis, ahead // before
        before *= length
    return 0, 1


def from_the_end(axis: int, jet: Placed) -> int:
    """An axis counted from the end, so that no axis in front matters."""
    if axis < 0:
        return axis
    return axis - jet.ndim


def on_the_right(jet: Placed, y: Tensor) -> int | None:
    """``ahead`` of a result whose last axes are those of the jet: broadcasting, products.

    None where it is unknown.
    """
    if jet.ahead is None or jet.tape.recorded is None:
        return jet.ahead
    shape = jet.shape
    if jet.ahead == 1 and y.shape[:1] == shape[:1] and y.ndim == len(shape):
        return 1
    if jet.tape.batch == 1:
        return 1
    axis, shared = axis_of(shape, jet.ahead)
    place = axis + y.ndim - len(shape)
    if place < 0 or y.shape[place] != shape[axis]:
        return None
    return math.prod(y.shape[:place]) * shared


def of_all(jets: Sequence[Placed], y: Tensor) -> int | None:
    """``ahead`` of a result of several jets; None where they do not agree."""
    if jets[0].tape.recorded is None:
        return 1
    places = {on_the_right(jet, y) for jet in jets}
    return places.pop() if len(places) == 1 else None


def joined(jets: Sequence[Placed], members: int, y: Tensor, along: int | None) -> int | None:
    """``ahead`` of members that are stacked, or put one behind the other.

    Args:
        jets: Those members that depend on the points.
        members: How many there are in all.
        y: The result.
        along: The axis of the result along which they were joined; None where it is unknown.
    """
    first = jets[0]
    ahead = first.ahead
    tape = first.tape
    if tape.recorded is None or tape.batch == 1:
        return 1
    if ahead is None or any(jet.ahead != ahead for jet in jets):
        return None
    if along is None:
        behind = y.shape[:1] == first.shape[:1]
        return ahead if behind else None
    axis, shared = axis_of(first.shape, ahead)
    stacked = y.ndim > first.ndim
    if not stacked and axis == along:
        complete = ahead == 1 and len(jets) == members
        return members if complete else None
    if stacked and along <= axis:
        axis = axis + 1
    return math.prod(y.shape[:axis]) * shared


def order_after(jet: Placed, op: Callable[[Tensor], Tensor]) -> list[int]:
    """Which axis stands where after an op that only changes the order of the axes."""
    lengths = range(1, jet.ndim + 1)
    return [length - 1 for length in op(torch.empty(*lengths)).shape]


def permuted(jet: Placed, y: Tensor, op: Callable[[Tensor], Tensor]) -> int | None:
    """``ahead`` after an op that only changes the order of the axes."""
    if jet.tape.batch == 1:
        return 1
    if jet.ahead is None:
        return None
    axis, shared = axis_of(jet.shape, jet.ahead)
    place = order_after(jet, op).index(axis)
    return math.prod(y.shape[:place]) * shared


def selected(jet: Placed, y: Any, op: Callable[[Tensor], Any]) -> list[int | None]:
    """``ahead`` of each result of an op that copies, selects or moves numbers."""
    results = (y,) if isinstance(y, Tensor) else y
    as_many = all(x.shape[:1] == jet.shape[:1] for x in results)
    if jet.ahead == 1 and as_many:
        return [1] * len(results)
    batch = jet.tape.batch
    if batch == 1:
        return [1] * len(results)
    if jet.ahead is None:
        return [None] * len(results)
    owners = torch.arange(batch, dtype=torch.float32).view(1, batch, 1)
    rest = math.prod(jet.shape) // (jet.ahead * batch)
    try:
        moved = op(owners.expand(jet.ahead, batch, rest).reshape(jet.shape))
    except RuntimeError:  # indices on another device
        return [None] * len(results)
    return [_read(x, batch) for x in ((moved,) if isinstance(moved, Tensor) else moved)]


def _read(owners: Tensor, batch: int) -> int | None:
    """``ahead`` of numbers that say which point they are of; None where they are in disorder."""
    flat = owners.flatten()
    changes = (flat != flat[:1]).nonzero()
    if len(changes):
        rest = int(changes[0])
    else:
        rest = len(flat)
    ahead, left = divmod(len(flat), batch * rest)
    if left or not ahead:
        return None
    expected = torch.arange(batch, dtype=flat.dtype).view(1, batch, 1).expand(ahead, batch, rest)
    return ahead if torch.equal(flat.view(ahead, batch, rest), expected) else None
