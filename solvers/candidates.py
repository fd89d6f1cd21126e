"""Geodesics between queries and points, as few as an answer needs, block by block.

What every search for neighbours shares: lower bounds by the ambient distance, pairs that are solved
once in both directions, and closer looks at what errors leave open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.bounds import Below, Bounds, Near
from riemae.solvers.curve import Curve
from riemae.solvers.executors import computed
from riemae.solvers.hooks import solver_of
from riemae.solvers.neighborhoods import Neighborhoods
from riemae.solvers.path import geodesic
from riemae.solvers.progress import Progress
from riemae.solvers.result import Status
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space
from riemae.storage.blocks import BlockFolder

_LINE_SEGMENTS = 8
# Lines that are measured at once.
_LINES = 2**13
# Geodesics of a block of work, and numbers that each stage has for its blocks.
_BLOCK = 1024
_STAGE = 10_000_000
_LISTS = 10 * _STAGE
_NAMES = ("length", "error", "status")
# How much finer pairs are solved that their errors leave open, and how often.
_FINER = 1e-2
_FINEST = 1e-10
_ROUNDS = 2


@dataclass(frozen=True)
class Plan:
    """What a stage solves.

    Attributes:
        pairs: ``(p, 2)``, query and point.
        beyond: ``(q,)``, no more than the bound of any pair that is neither listed as near nor
            solved after the stage; None where the stage does not change it.
    """

    pairs: np.ndarray
    beyond: np.ndarray | None = None


@dataclass(frozen=True)
class Stage:
    """Pairs to solve.

    Attributes:
        wanted: Which, with what is known.
        rtol: How accurately.
        again: Whether they were solved before.
    """

    wanted: Callable[[Known], Plan]
    rtol: float
    again: bool = False


@dataclass(frozen=True)
class Known:
    """Geodesics that were solved, by query and point, in ascending order: ``(s,)`` each.

    Attributes:
        queries: How many there are.
        points: How many there are.
        query: Of each geodesic.
        point: Of each geodesic.
        bound: Lower bounds of their lengths.
        length: NaN where there is none.
        error: Estimated.
        status: Codes.
    """

    queries: int
    points: int
    query: np.ndarray
    point: np.ndarray
    bound: np.ndarray
    length: np.ndarray
    error: np.ndarray
    status: np.ndarray

    @classmethod
    def none(cls, queries: int, points: int) -> Known:
        """Nothing."""
        whole = np.zeros(0, dtype=np.int64)
        real = np.zeros(0)
        return cls(queries, points, whole, whole, real, real, real, np.zeros(0, dtype=np.int8))

    def joined(self, pairs: np.ndarray, *values: np.ndarray, both: bool) -> Known:
        """With more pairs, that replace what was known of them.

        Args:
            pairs: ``(p, 2)``, query and point.
            values: Bounds, lengths, errors and statuses, ``(p,)`` each.
            both: Whether they hold in both directions.
        """
        new = [pairs[:, 0], pairs[:, 1], *values]
        if both:
            turned = [pairs[:, 1], pairs[:, 0], *values]
            new = [np.concatenate(part) for part in zip(new, turned, strict=True)]
        old = [self.query, self.point, self.bound, self.length, self.error, self.status]
        whole = [np.concatenate(part) for part in zip(new, old, strict=True)]
        # The first of each stays: the new ones.
        _, place = np.unique(self.key(whole[0], whole[1]), return_index=True)
        return Known(self.queries, self.points, *(x[place] for x in whole))

    def key(self, query: np.ndarray, point: np.ndarray) -> np.ndarray:
        """One number for each pair."""
        return query * self.points + point

    def has(self, query: np.ndarray, point: np.ndarray) -> np.ndarray:  # (p,), (p,) -> (p,)
        """Whether pairs were solved."""
        wanted = self.key(query, point)
        keys = self.key(self.query, self.point)
        place = np.searchsorted(keys, wanted)
        found = np.zeros(len(wanted), dtype=bool)
        there = place < len(keys)
        found[there] = keys[place[there]] == wanted[there]
        return found

    @cached_property
    def met(self) -> np.ndarray:  # (s,)
        """Which converged."""
        return np.asarray(self.status == Status.CONVERGED)

    @cached_property
    def starts(self) -> np.ndarray:  # (q + 1,)
        """Where the geodesics of each query begin."""
        return np.searchsorted(self.query, np.arange(self.queries + 1))

    @cached_property
    def lengths(self) -> np.ndarray:  # (s,)
        """Lengths, infinite where there is none."""
        return np.where(np.isnan(self.length), np.inf, self.length)

    @cached_property
    def ascending(self) -> np.ndarray:  # (s,)
        """Places of the geodesics, shortest first for each query."""
        return np.lexsort((self.point, self.lengths, self.query))

    @cached_property
    def rank(self) -> np.ndarray:  # (s,)
        """Which is the how-shortest of its query, from 0."""
        rank = np.empty(len(self.query), dtype=np.int64)
        number = np.arange(len(self.query))
        rank[self.ascending] = number - self.starts[self.query[self.ascending]]
        return rank

    def reach(self, k: int) -> np.ndarray:
        """``(q,)``, the k-th length known; infinite for fewer."""
        return self.least(np.where(self.rank == k - 1, self.lengths, np.inf))

    def least(self, values: np.ndarray) -> np.ndarray:  # (s,) -> (q,)
        """The smallest of each query; infinite where there is none."""
        found = np.full(self.queries, np.inf)
        np.minimum.at(found, self.query, values)
        return found

    def some(self, flags: np.ndarray) -> np.ndarray:  # (s,) -> (q,)
        """Whether any of each query is."""
        found = np.zeros(self.queries, dtype=bool)
        found[self.query[flags]] = True
        return found

    def spent(self) -> np.ndarray:
        """``(q,)``, geodesics solved for each query."""
        return self.starts[1:] - self.starts[:-1]

    def pairs(self, flags: np.ndarray) -> np.ndarray:  # (s,) -> (p, 2)
        """Queries and points of some."""
        return np.stack([self.query[flags], self.point[flags]], 1)


@dataclass(frozen=True)
class Geodesics:
    """Pairs to be solved, wherever they are sent, in blocks."""

    space: Space
    starts: Tensor
    stops: Tensor
    pairs: Tensor
    rtol: float
    solver: Solver | None

    @property
    def blocks(self) -> list[int]:
        """Their numbers."""
        return list(range(-(-len(self.pairs) // _BLOCK)))

    def count(self, block: int) -> int:
        """How many pairs a block has."""
        return min(_BLOCK, len(self.pairs) - block * _BLOCK)

    def __call__(self, block: int, progress: Progress | None = None) -> tuple[Tensor, ...]:
        """Lengths, errors and statuses of a block."""
        i, j = self.pairs[block * _BLOCK : (block + 1) * _BLOCK].to(self.stops.device).T
        with torch.no_grad():
            found = solver_of(self.space, geodesic)(
                self.starts[i],
                self.stops[j],
                rtol=self.rtol,
                solver=self.solver,
                throw=False,
                progress=progress,
            )
        length, error = (x.detach().double().cpu() for x in (found.length, found.error))
        return length, error, found.status.to("cpu", torch.int8)


@dataclass(frozen=True)
class Shifted:
    """Blocks of work under the numbers that they have in a folder."""

    work: Geodesics
    shift: int

    def __call__(self, block: int, progress: Progress | None = None) -> tuple[Tensor, ...]:
        """Of the block with this number."""
        return self.work(block - self.shift, progress)


class Tally:
    """Pairs that are done, told to whom they concern."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def __call__(self, count: int) -> None:
        """More are done."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


@dataclass(frozen=True)
class Blocks:
    """Where the blocks of a stage are solved and kept.

    Attributes:
        executor: Where they are solved; None for here.
        progress: Told of (pairs done, pairs in all).
        folder: Where finished blocks lie; None for nowhere.
        first: The number of the stage's first block among all.
    """

    executor: Executor | None
    progress: Progress | None
    folder: BlockFolder | None
    first: int

    def planned(self, make: Callable[[], Plan], queries: int) -> Plan:
        """What the stage solves: as the folder says, or made now.

        A stage is planned once: a plan that differs in a rounding would give blocks other pairs.
        """
        if self.folder is None:
            return make()
        shapes = {"pairs": ((-1, 2), torch.int64), "beyond": ((-1,), torch.float64)}

        def made() -> dict[str, Tensor]:
            plan = make()
            beyond = np.zeros(0) if plan.beyond is None else plan.beyond
            return {"pairs": torch.as_tensor(plan.pairs), "beyond": torch.as_tensor(beyond)}

        found = self.folder.once(self.first, made, shapes)
        beyond = found["beyond"].numpy()
        return Plan(found["pairs"].numpy(), beyond if len(beyond) == queries else None)

    def solved(self, where: str, work: Geodesics) -> tuple[np.ndarray, ...]:
        """Lengths, errors and statuses of all pairs ``(p,)``: from the folder, or solved now."""
        done = Tally(self.progress, len(work.pairs))
        kinds = (np.float64, np.float64, np.int8)
        # Values are copied: many small tensors that are kept pin the memory between them.
        values = tuple(np.empty(len(work.pairs), dtype=kind) for kind in kinds)
        for block, found in self._each(where, work):
            first = block * _BLOCK
            for whole, part in zip(values, found, strict=True):
                whole[first : first + len(part)] = part.numpy()
            done(len(found[0]))
        return values

    def _each(self, where: str, work: Geodesics) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        """Blocks, as they are there."""
        if self.folder is None:
            yield from computed(where, work, work.blocks, self.executor, None)
            return
        shift = self.first + 1
        solve = Shifted(work, shift)

        def compute(missing: Iterator[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
            for number, found in computed(where, solve, missing, self.executor, None):
                yield number, dict(zip(_NAMES, found, strict=True))

        for number in self.folder.all([shift + block for block in work.blocks], compute):
            block = number - shift
            yield block, self._read(number, work.count(block))

    def _read(self, number: int, count: int) -> tuple[Tensor, ...]:
        assert self.folder is not None
        kinds = (torch.float64, torch.float64, torch.int8)
        shapes = {name: ((count,), kind) for name, kind in zip(_NAMES, kinds, strict=True)}
        found = self.folder.read(number, shapes)
        return tuple(found[name] for name in _NAMES)


class _Share:
    """Progress of one stage, told in queries of the whole search."""

    def __init__(self, progress: Progress | None, stage: int, stages: int, queries: int) -> None:
        self.progress = progress
        self.stage = stage
        self.stages = stages
        self.queries = queries

    def __call__(self, done: int, total: int) -> None:
        if self.progress is not None:
            share = (self.stage + done / total) / self.stages
            self.progress(int(share * self.queries), self.queries)


@dataclass(frozen=True)
class Before:
    """What an earlier search among the first of the points has settled.

    Attributes:
        known: Its neighbours, as geodesics that were solved.
        certain: ``(n,)``: queries whose neighbours among the first ``n`` points are certified; of
            those, points that were added alone can change the answer.
        digest: A fingerprint of both.
    """

    known: Known
    certain: np.ndarray
    digest: str


@dataclass(kw_only=True)
class Search(ABC):
    """One search, its arguments checked.

    Attributes:
        where: The call, for errors.
        space: Where geodesics are.
        points: ``(n, m)``.
        queries: ``(q, m)``; None for the points themselves.
        rtol: Relative accuracy of the lengths.
        solver: Settings of the path solver.
        candidates: Geodesics that are solved for a query at most; None for no limit of the caller.
        slack: Relative rounding of ambient distances.
        before: What an earlier search has settled; None for nothing.
        solved: How many geodesics were.
    """

    kind: ClassVar[type[Neighborhoods]]

    where: str
    space: Space
    points: Tensor
    queries: Tensor | None
    rtol: float
    solver: Solver | None
    candidates: int | None
    slack: float
    before: Before | None = None
    solved: int = 0
    folder: BlockFolder | None = None
    beyond: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def known(
        self, progress: Progress | None, executor: Executor | None, folder: BlockFolder | None
    ) -> Known:
        """All geodesics that the answer takes.

        Each stage asks for the pairs that it needs; each pair is solved once, for both of its
        points.
        """
        self.folder = folder
        known = Known.none(self.count, len(self.points))
        if self.before is not None:
            known = self.before.known
        stages = self.stages()
        for number, stage in enumerate(stages):
            share = _Share(progress, number, len(stages), self.count)
            blocks = Blocks(executor, share, folder, first=number * _STAGE)
            plan = blocks.planned(partial(stage.wanted, known), self.count)
            if plan.beyond is not None:
                self.beyond = plan.beyond
            if stage.again and not len(plan.pairs):
                break
            known = self._solved(known, plan.pairs, stage, blocks)
        if progress is not None:
            progress(self.count, self.count)
        return known

    @property
    def shared(self) -> dict[str, Any]:
        """Settings of every search."""
        solver = None if self.solver is None else repr(self.solver)
        return {"rtol": self.rtol, "solver": solver, "candidates": self.candidates}

    def stages(self) -> list[Stage]:
        """What is solved, one after the other: the search's own, then closer looks."""
        stages = [Stage(wanted, self.rtol) for wanted in self.looks()]
        rtol = self.rtol
        for _ in range(_ROUNDS):
            finer = max(_FINER * rtol, _FINEST)
            if finer >= self.rtol:
                break
            stages.append(Stage(self._doubts, finer, again=True))
            rtol = finer
        return stages

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What changes the answer, besides space and points."""

    @abstractmethod
    def coarser(self, kept: Any) -> str | None:
        """What an earlier result lacks that this search asks for, in words; None for nothing."""

    @abstractmethod
    def looks(self) -> list[Callable[[Known], Plan]]:
        """Pairs that the answer needs; each with what those before have told."""

    @abstractmethod
    def open(self, known: Known) -> np.ndarray:  # -> (s,)
        """Geodesics whose errors leave open whether they belong to the answer."""

    @property
    def count(self) -> int:
        """Queries."""
        return len(self.points if self.queries is None else self.queries)

    @cached_property
    def bounds(self) -> Bounds:
        """Of all pairs, as they are asked for."""
        return Bounds(self.space, self.points, self.queries, self.slack)

    def near(self, count: int) -> Near:
        """The points with the smallest bounds of each query.

        Of queries whose answer is settled but for points that were added, those alone. A folder
        keeps the list.
        """
        if self.folder is None:
            return self._listed_near(count)

        def made() -> dict[str, Tensor]:
            return {n: torch.as_tensor(x) for n, x in vars(self._listed_near(count)).items()}

        table = ((self.count, count), torch.float64)
        shapes = {
            "point": (table[0], torch.int64),
            "bound": table,
            "beyond": ((self.count,), torch.float64),
        }
        found = self.folder.once(_LISTS, made, shapes)
        return Near(**{name: x.numpy() for name, x in found.items()})

    def below(self, rows: np.ndarray, limit: np.ndarray) -> Below:
        """Points with bounds below a limit, of some queries; of settled ones, those added alone."""
        found = self.bounds.below(rows, limit)
        if self.before is None:
            return found
        first = len(self.before.certain)
        settled = self.certain[found.query] & (found.point < first)
        kept = ~settled
        return Below(found.query[kept], found.point[kept], found.bound[kept], found.beyond)

    @cached_property
    def certain(self) -> np.ndarray:  # (q,)
        """Queries whose answer points that were added alone can change."""
        certain = np.zeros(self.count, dtype=bool)
        if self.before is not None:
            certain[: len(self.before.certain)] = self.before.certain
        return certain

    def _listed_near(self, count: int) -> Near:
        everyone = np.arange(self.count)
        if self.before is None:
            return self.bounds.near(everyone, count)
        certain = self.certain
        whole = self.bounds.near(everyone[~certain], count)
        added = self.bounds.near(everyone[certain], count, first=len(self.before.certain))
        near = Near(
            point=np.empty((self.count, count), dtype=np.int64),
            bound=np.empty((self.count, count)),
            beyond=np.empty(self.count),
        )
        for which, part in ((~certain, whole), (certain, added)):
            near.point[which] = part.point
            near.bound[which] = part.bound
            near.beyond[which] = part.beyond
        return near

    def facts(self, known: Known, certified: np.ndarray) -> dict[str, Any]:
        """What all results say."""
        failed = torch.as_tensor(known.pairs(~known.met)).long()
        return {
            "certified": torch.as_tensor(certified).to(self.points.device),
            "failed": failed,
            "status": torch.as_tensor(known.status[~known.met]).long(),
            "rtol": self.rtol,
            "solved": self.solved,
            "points": len(self.points),
            "among_themselves": self.queries is None,
        }

    def sound(self, known: Known) -> np.ndarray:  # -> (q,)
        """Queries of which all geodesics converged, and none is open."""
        return ~known.some(~known.met) & ~known.some(self.open(known))

    def straight(self, query: np.ndarray, point: np.ndarray) -> np.ndarray:  # (p,) -> (p,)
        """Lengths of straight lines by a few chords; infinite where there is none."""
        others = self.points if self.queries is None else self.queries
        found = [np.zeros(0)]
        for first in range(0, len(query), _LINES):
            part = slice(first, first + _LINES)
            i, j = (torch.as_tensor(x[part]).to(others.device) for x in (query, point))
            line = Curve.line(others[i], self.points[j], _LINE_SEGMENTS)
            lengths = self.space.squared_chords(line.nodes).sqrt().sum(-1)
            found.append(lengths.double().cpu().nan_to_num(torch.inf).numpy())
        return np.concatenate(found)

    def _doubts(self, known: Known) -> Plan:
        return Plan(self.unique(known.pairs(self.open(known))))

    def unique(self, pairs: np.ndarray) -> np.ndarray:  # (p, 2) -> (u, 2)
        """Every pair once: of points among themselves from the smaller number to the larger."""
        if self.queries is None:
            pairs = np.sort(pairs, axis=1)
        n = len(self.points)
        key = np.unique(pairs[:, 0] * n + pairs[:, 1])
        return np.stack([key // n, key % n], 1)

    def _solved(self, known: Known, pairs: np.ndarray, stage: Stage, blocks: Blocks) -> Known:
        """What is known, and these pairs."""
        if not len(pairs):
            return known
        work = Geodesics(
            space=self.space,
            starts=self.points if self.queries is None else self.queries,
            stops=self.points,
            pairs=torch.as_tensor(pairs),
            rtol=stage.rtol,
            solver=self.solver,
        )
        length, error, status = blocks.solved(self.where, work)
        self.solved += len(pairs)
        # What a finer look cannot reach was accurate enough for the call before.
        better = status == Status.CONVERGED if stage.again else np.full(len(pairs), True)
        pairs = pairs[better]
        bound = self.bounds.of(pairs[:, 0], pairs[:, 1])
        values = (bound, length[better], error[better], status[better])
        return known.joined(pairs, *values, both=self.queries is None)
