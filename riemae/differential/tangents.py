"""The derivatives that a jet carries: as they are, or found when they are first asked for.

A chain of functions of single numbers has one slope and one bend with respect to the tensor at its
start, its *root*, whatever the count of tangents. So a chain multiplies its slopes, and meets the
tangents once, where something reads them that is not elementwise. With ``y = op(x)``, ``op′`` the
slope and ``op″`` the bend,

    ``y_i = op′ x_i``,   ``y_ij = op′ x_ij + op″ x_i x_j``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemae.differential.tape import Pairs, Tape

# Tangents (k, *s), and second derivatives (p, *s); None where they vanish or are not carried.
Parts = tuple[Tensor, Tensor | None]


class Tangents:
    """First and second derivatives of one tensor.

    Args:
        find: How they are found.
        found: What they are, where that is known.
        link: The chain that they are of, until they are found; None elsewhere.
    """

    def __init__(
        self,
        find: Callable[[], Parts] | None = None,
        found: Parts | None = None,
        link: Link | None = None,
    ) -> None:
        self._find = find
        self._found = found
        self.link = link

    @property
    def first(self) -> Tensor:
        """Tangents ``(k, *s)``."""
        return self._parts()[0]

    @property
    def second(self) -> Tensor | None:
        """Second derivatives ``(p, *s)``; None where they vanish or are not carried."""
        return self._parts()[1]

    def _parts(self) -> Parts:
        if self._found is None:
            assert self._find is not None
            self._found = self._find()
            # Nothing is kept of what they were found from.
            self._find = None
            self.link = None
        return self._found


@dataclass(frozen=True, eq=False)
class Link:
    """A chain of functions of single numbers, from its root to a tensor.

    Attributes:
        root: The derivatives of the tensor at its start.
        slope: Its first derivative ``(*s,)``.
        bend: Its second derivative; None where it vanishes or is not carried.
        tape: What the pass carries.
    """

    root: Tangents
    slope: Tensor
    bend: Tensor | None
    tape: Tape

    def tangents(self) -> Tangents:
        """The derivatives at its end, to be found later."""
        return Tangents(self._parts, link=self)

    def mapped(self, op: Callable[[Tensor], Tensor]) -> Tangents:
        """Those of the chain followed by a function that is linear and elementwise."""
        with self.tape.tangents():
            bend = None if self.bend is None else op(self.bend)
            return Link(self.root, op(self.slope), bend, self.tape).tangents()

    def _parts(self) -> Parts:
        first = self.root.first
        second = self.root.second
        with self.tape.tangents():
            pushed = None if second is None else self.slope * second
            if self.bend is not None:
                assert self.tape.pairs is not None
                pushed = bent(
                    self.bend * first, first, pushed, self.tape.pairs, self.tape.create_graph
                )
            return self.slope * first, pushed


def root_of(x: Tangents) -> Tangents:
    """The start of the chain that they are of; themselves where there is none."""
    return x if x.link is None else x.link.root


def common_root(a: Tangents, b: Tangents) -> Tangents | None:
    """Where chains branch off from one tensor; None where they do not.

    Of two tangents that are no chains there is none: nothing would be saved.
    """
    root = root_of(a)
    chained = a.link is not None or b.link is not None
    return root if chained and root_of(b) is root else None


def slope_of(x: Tangents, y: Tensor) -> Tensor:
    """Of the chain, ``(*s,)``; ones like ``y`` for the root itself."""
    return torch.ones_like(y) if x.link is None else x.link.slope


def bend_of(x: Tangents) -> Tensor | None:
    """Of the chain; None where it vanishes."""
    return None if x.link is None else x.link.bend


def continued(x: Tangents, slope: Tensor, bend: Tensor | None, tape: Tape) -> Tangents:
    """``x`` followed by one more function with these derivatives."""
    link = x.link
    if link is None:
        return Link(x, slope, bend, tape).tangents()
    inner = None if link.bend is None else slope * link.bend
    outer = None if bend is None else bend * link.slope.square()
    return Link(link.root, slope * link.slope, plus(inner, outer), tape).tangents()


def plus(a: Any, b: Any) -> Any:
    """The sum of two derivatives; None stands for 0."""
    if a is None or b is None:
        return b if a is None else a
    return a + b


def bent(
    left: Tensor, first: Tensor, second: Tensor | None, pairs: Pairs, create_graph: bool
) -> Tensor:
    """``second + left_i · first_j`` for all pairs, without copies of either.

    Written into ``second``, where nothing will be differentiated.
    """
    runs = pairs.runs
    if create_graph:
        parts = [_bent_run(left[i], first[js], second, rows) for i, js, rows in runs]
        return torch.cat(parts)
    if second is not None:
        out = second
    else:
        out = left.new_empty(len(pairs), *left.shape[1:])
    for i, js, rows in runs:
        if second is None:
            torch.mul(left[i], first[js], out=out[rows])
        else:
            out[rows].addcmul_(left[i], first[js])
    return out


def _bent_run(left: Tensor, right: Tensor, second: Tensor | None, rows: slice) -> Tensor:
    """The same for one i and consecutive j, without writing in place."""
    if second is None:
        return left * right
    return torch.addcmul(second[rows], left, right)
