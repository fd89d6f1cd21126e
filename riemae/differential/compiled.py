"""Taylor passes that ``torch.compile`` has compiled.

``torch.compile`` cannot look into Taylor mode, and works neither around ``torch.func`` nor inside
of it (pytorch#176077, #151196). A pass is therefore recorded first, as the operations of torch that
it consists of (:mod:`riemae.differential.recording`), and the record is compiled: value and
tangents, second derivatives, reverse products, and the expansion along a covector. The covector is
made of the values, outside; so a record with a covector is cut in two.

Records have a fixed number of points. Points go through in blocks of one of a few sizes, the last
block padded, so that no number of points asks for another compilation. Each pass is compared with
the same one by itself before it is used:

============  ======================================================================
a pass is     what happens
============  ======================================================================
unknown       it is recorded, compiled, and compared
compiled      it is used
refused       it failed, or gave other numbers: it runs by itself, which is announced
============  ======================================================================

A record shows the map as it was: the values of its tensors may change, and nothing else. So whoever
holds a map tells by :meth:`Compiler.watch` what it consists of, and records of what it was before
are dropped.

A row's result is that of the row alone but for rounding: blocks of another size may round
otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from riemae.differential.comparison import Allowed
from riemae.differential.modes import BatchedMap, Taylor
from riemae.differential.modes.base import Covectors
from riemae.differential.recording import cut, recorded
from riemae.differential.rowwise import Rowwise
from riemae.differential.tape import Pairs
from riemae.exceptions import FallbackWarning, RiemaeError, stack_level
from riemae.numerics import probe
from riemae.numerics.batch_invariance import padded_rows
from riemae.numerics.compiling import Compiling, compiling_aloud, in_words, refuse_without_compiler
from riemae.numerics.deferral import immediate
from riemae.numerics.memory import is_shortage
from riemae.numerics.threads import TURN
from riemae.numerics.tolerances import coarser

# Points of a block. Up to so many blocks of one size are used before the next size is.
_SIZES: tuple[int, ...] = (16, 64)
_BLOCKS = 2
_SIZES_ON_A_DEVICE: tuple[int, ...] = (
    64,
    1024,
    8192,
)  # a call costs as much there as thousands of points
_BLOCKS_ON_A_DEVICE = 1
# Up to so many points in a block, launches take longer than what they launch.
_REPLAYED = 64
# Passes of one map that are compiled at most; others run by themselves.
_MOST = 24

UNWATCHED = (
    "it may hold what changes unnoticed (closures, hooks, scripts, objects that are no modules): "
    "give a module or a method of one"
)

# The map, and rows -> results.
Whole = Callable[..., tuple[Tensor, ...]]
Pass = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Key:
    """What is fixed in a compiled pass."""

    kind: Hashable
    size: int
    mode: Taylor
    conditions: Hashable
    rows: Hashable


@dataclass
class Compiler:
    """The compiled passes of one map.

    Attributes:
        compiling: What ``torch.compile`` is called with.
        reason: Why not everything is compiled; None where nothing stood in the way.
        passes: Both parts of each, or None for one that runs by itself.
        made: Passes that have been compiled, of this map and of what it was before.
        stopped: Whether a compiled pass failed after it had been compared.
    """

    compiling: Compiling
    reason: str | None = None
    passes: dict[Key, tuple[Pass, Pass | None] | None] = field(default_factory=dict)
    made: int = 0
    stopped: bool = False
    _watched: tuple[Hashable | None] | None = None
    _announced: bool = False

    def watch(self, identity: Hashable | None) -> None:
        """Forget all passes if the map is not the one that they were recorded of.

        Args:
            identity: What the map consists of; None where that cannot be told, so that nothing is
                compiled.
        """
        if self._watched == (identity,):
            return
        self._watched = (identity,)
        self.passes.clear()
        self.reason = None
        if identity is None:
            self._refuse(UNWATCHED)

    def stop(self, reason: BaseException) -> None:
        """Use no compiled pass any more: one has failed."""
        self.stopped = True
        self.passes.clear()
        self._refuse(in_words(reason))

    @property
    def usable(self) -> bool:
        """Whether passes may be compiled: the map is watched, and none has failed."""
        watched = self._watched is not None and self._watched[0] is not None
        return watched and not self.stopped

    def report(self) -> str:
        """What is compiled, and why not everything is, in a sentence."""
        compiled = [key for key, found in self.passes.items() if found is not None]
        parts = []
        if compiled:
            sizes = ", ".join(map(str, sorted({key.size for key in compiled})))
            parts.append(
                f"{len(compiled)} passes by torch.compile ({self.compiling.backend}), in blocks of "
                f"{sizes} points"
            )
        if self.reason is not None:
            parts.append(f"not all, because {self.reason}" if compiled else f"no: {self.reason}")
        return "; ".join(parts) or "nothing so far"

    def find(
        self, key: Key, make: Callable[[], tuple[Pass, Pass | None]]
    ) -> tuple[Pass, Pass | None] | None:
        """The pass under a key, made when it is first asked for; None where it runs by itself.

        Raises:
            OptionError: Where there is no compiler.
            RiemaeError: What the map itself raises.
        """
        if key in self.passes:
            return self.passes[key]
        with TURN:  # torch records and compiles for one thread at a time
            if key not in self.passes:
                self.passes[key] = self._tried(make)
            return self.passes[key]

    def _tried(
        self, make: Callable[[], tuple[Pass, Pass | None]]
    ) -> tuple[Pass, Pass | None] | None:
        if self.made >= _MOST:
            self._refuse(f"no more than {_MOST} passes of one map are compiled")
            return None
        try:
            with immediate():
                found = make()
        except RiemaeError:
            raise
        except Exception as reason:  # of any kind: those of compilers are not documented
            if is_shortage(reason):
                raise
            refuse_without_compiler(self.compiling, reason)
            self._refuse(in_words(reason))
            return None
        self.made += 1
        return found

    def _refuse(self, reason: str) -> None:
        """Keep the first reason, and announce it once."""
        if self.reason is None:
            self.reason = reason
        if self._announced:
            return
        self._announced = True
        warnings.warn(
            f"compile={self.compiling.given!r} does not hold for all of this map: {reason}. What "
            "is not compiled runs by itself, with the same numbers.",
            FallbackWarning,
            stacklevel=stack_level(),
        )


def block_size(count: int, most: int, device: torch.device) -> int:
    """Points in a block, for ``count`` of them of which at most ``most`` are held at once."""
    on_device = device.type != "cpu"
    sizes = _SIZES_ON_A_DEVICE if on_device else _SIZES
    blocks = _BLOCKS_ON_A_DEVICE if on_device else _BLOCKS
    allowed = [size for size in sizes if size <= most] or [max(1, most)]
    enough = (size for size in allowed if count <= blocks * size)
    return next(enough, allowed[-1])


@dataclass(frozen=True)
class Compiled:
    """Taylor mode by compiled passes: what a formula calls in place of the mode.

    Attributes:
        compiler: Where the passes are.
        mode: The mode, which takes what is not compiled.
        part: The map under the conditions of these rows.
        most: Points that may be held at once.
        roundoff: Relative rounding inside the map.
        second_order: Whether second derivatives are wanted: see
            :meth:`~riemae.differential.modes.base.Mode.active`.
        graph: Whether results are differentiated, once. All points then make one block: batches of
            a training have one size, and the last of an epoch another.
    """

    compiler: Compiler
    mode: Taylor
    part: Rowwise
    most: int
    roundoff: float
    second_order: bool
    graph: bool

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, create_graph: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""

        def whole(g: BatchedMap, z: Tensor, u: Tensor) -> tuple[Tensor, ...]:
            return self.mode.forward(g, z, u.transpose(0, 1), pairs, self.graph)

        kind = ("forward", None if pairs is None else (tuple(pairs.i), tuple(pairs.j)))
        blocks = self._blocks(z, directions.transpose(0, 1))
        found = self._found(kind, whole, blocks, 0)
        if found is None:
            with self._by_itself():
                return self.mode.forward(f, z, directions, pairs, self.graph)
        first, _ = found
        with torch.set_grad_enabled(self.graph):
            parts = [first(*block) for block in blocks]
        axes = [0, 1] if pairs is None else [0, 1, 1]
        return _joined(parts, axes, len(z))

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""

        def whole(g: BatchedMap, z: Tensor, a: Tensor) -> tuple[Tensor, ...]:
            return self.mode.reverse(g, z, lambda x: a, self.graph)

        blocks = self._blocks(z)
        found = self._found("reverse", whole, blocks, 1)
        if found is None:
            with self._by_itself():
                return self.mode.reverse(f, z, covector, self.graph)
        first, second = found
        with torch.set_grad_enabled(self.graph):
            parts = [first(*block) for block in blocks]
        (x,) = _joined(parts, [0], len(z))
        with self._by_itself():
            a = covector(x)
        return x, self._pulled(second, parts, 1, a, len(blocks[0][0]))

    def gram(
        self,
        f: BatchedMap,
        z: Tensor,
        v: Tensor,
        lower: Callable[[Tensor, Tensor], Tensor],
        create_graph: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`, not compiled."""
        with self._by_itself():
            return self.mode.gram(f, z, v, lower, self.graph)

    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, create_graph: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`~riemae.differential.modes.base.Mode`."""

        def whole(g: BatchedMap, z: Tensor, a: Tensor) -> tuple[Tensor, ...]:
            x, j, forms = self.mode.expansion(g, z, lambda x, j: a[None], self.graph)
            return x, j, forms[0]

        blocks = self._blocks(z)
        found = self._found("expansion", whole, blocks, 2)
        if found is None:
            with self._by_itself():
                return self.mode.expansion(f, z, covectors, self.graph)
        first, second = found
        with torch.set_grad_enabled(self.graph):
            parts = [first(*block) for block in blocks]
        x, j = _joined(parts, [0, 1], len(z))
        with self._by_itself(), torch.set_grad_enabled(self.graph):
            rows = covectors(x, j).unbind()
        size = len(blocks[0][0])
        forms = [self._pulled(second, parts, 2, a, size) for a in rows]
        return x, j, torch.stack(forms)

    @contextmanager
    def _by_itself(self) -> Iterator[None]:
        with self.mode.active(self.second_order, primitives=False):
            yield

    def _blocks(self, z: Tensor, *others: Tensor) -> list[list[Tensor]]:
        """Points, what goes with them, and their conditions, block by block, padded."""
        rows = [z, *others]
        if self.part.condition is not None:
            rows += self.part.condition.spread(len(z)).gathered
        if self.graph:
            return [[x.contiguous() for x in rows]]
        size = block_size(len(z), self.most, z.device)
        padded = [padded_rows(x.detach(), size).contiguous() for x in rows]
        return [list(block) for block in zip(*(x.split(size) for x in padded), strict=True)]

    def _found(self, kind: Hashable, whole: Whole, blocks: list[list[Tensor]], results: int) -> Any:
        """Both parts of a pass, compiled; None where it runs by itself.

        Args:
            kind: What the pass finds.
            whole: It, of the map, points and directions or a covector.
            blocks: Its arguments without the covector.
            results: How many results come before the covector; 0 for a pass without one.
        """
        block = blocks[0]
        rows = tuple((x.shape, x.dtype, x.device, x.requires_grad) for x in block)
        key = Key((kind, self.graph), len(block[0]), self.mode, self.part.kind, rows)
        return self.compiler.find(key, lambda: self._made(whole, block, results))

    def _made(self, whole: Whole, block: list[Tensor], results: int) -> tuple[Pass, Pass | None]:
        """A pass: recorded, compiled, and compared with the same one by itself.

        Raises:
            RuntimeError: Where the numbers differ, or torch cannot record or compile it.
        """
        # Not leaves, as codes in a training: torch compiles anew for those.
        given = [x.detach().requires_grad_(x.requires_grad).clone() for x in block]
        if results:
            with torch.no_grad():
                x = self._under(block[1:]).flat(block[0])
            w = probe.normal(x, *x.shape, source=probe.generator())
            given.insert(1, w.requires_grad_(self.graph))

        def joint(*rows: Tensor) -> tuple[Tensor, ...]:
            g = self._under(rows[2:]).for_mode(self.mode, self.graph, rows[0])
            return whole(g, *rows[:2])

        with self._by_itself(), compiling_aloud():
            expected = joint(*given)
            record = recorded(joint, given)
        compiling = self.compiler.compiling
        if not self.graph and len(block[0]) <= _REPLAYED:
            compiling = compiling.with_graphs(block[0].device)
        with torch.set_grad_enabled(self.graph), compiling_aloud():
            if not results:
                first = _kept(compiling, record)
                second = None
                found = first(*given)
            else:
                parts = cut(record, results, place=1)
                first, second = (_kept(compiling, part) for part in parts)
                reached = first(given[0], *given[2:])
                found = (*reached[:results], *second(*reached[results:], given[1]))
            self._compare(found, expected)
            if self.graph:
                weights = [x for x in record.parameters() if x.requires_grad]
                ends = [x for x in given if x.requires_grad] + weights
                self._compare(*(_slopes(x, ends) for x in (found, expected)))
        return first, second

    def _compare(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Refuse results that differ by more than rounding.

        Raises:
            RuntimeError: When they do.
        """
        for ours, theirs in zip(found, expected, strict=True):
            allowed = Allowed(coarser(theirs.dtype, self.roundoff), theirs)
            if not allowed.equal(ours.detach(), theirs.detach()):
                raise RuntimeError("the compiled pass gives other numbers")

    def _pulled(
        self, second: Pass, parts: Sequence[Sequence[Tensor]], results: int, a: Tensor, size: int
    ) -> Tensor:  # (k, D) -> (k, …)
        """What the second part of a pass makes of a covector, block by block."""
        covectors = [a] if self.graph else padded_rows(a.detach(), size).split(size)
        with torch.set_grad_enabled(self.graph):
            found = [
                second(*part[results:], own.contiguous())
                for part, own in zip(parts, covectors, strict=True)
            ]
        (out,) = _joined(found, [0], len(a))
        return out

    def _under(self, leaves: Sequence[Tensor]) -> Rowwise:
        """The map under conditions with these tensors, one row for each point."""
        condition = self.part.condition
        if condition is None:
            return self.part
        return replace(self.part, condition=condition.laid_out(list(leaves)))


def _kept(compiling: Compiling, record: Whole) -> Pass:
    """A record, compiled, whose results no later call changes."""
    found = compiling.compiled(record)
    if not compiling.replays:
        return found

    def copied(*rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.clone() for x in found(*rows))

    return copied


def _joined(parts: Sequence[Sequence[Tensor]], axes: list[int], count: int) -> Any:
    """The first results of all blocks, for the first ``count`` points.

    Args:
        parts: Results of each block.
        axes: That of the points, in each of these results.
        count: How many points there are.
    """
    out = []
    for place, axis in enumerate(axes):
        pieces = [part[place] for part in parts]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)
        out.append(whole.narrow(axis, 0, count))
    return tuple(out)


def _slopes(results: Sequence[Tensor], ends: list[Tensor]) -> tuple[Tensor, ...]:
    """Derivatives of one number made of all results."""
    source = probe.generator()
    parts = [(probe.normal(x, *x.shape, source=source) * x).sum() for x in results]
    total = torch.stack(parts).sum()
    if not total.requires_grad or not ends:
        return ()
    return torch.autograd.grad(total, ends, allow_unused=True, materialize_grads=True)
