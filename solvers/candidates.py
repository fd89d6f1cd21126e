"""Geodesics between queries and points, as few as an answer needs, block by block.

What every search for neighbours shares: lower bounds by the ambient distance, pairs that are solved
once in both directions, and closer looks at what errors leave open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.executors import computed
from riemae.solvers.hooks import features_of, solver_of
from riemae.solvers.path import geodesic
from riemae.solvers.progress import Progress
from riemae.solvers.result import Status
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space
from riemae.storage.blocks import BlockFolder

_LINE_SEGMENTS = 8
# Rows of a block of bounds: so many pairs of a query and a point.
_PAIRS = 2**22
# Geodesics of a block of work, and numbers that each stage has for its blocks.
_BLOCK = 1024
_STAGE = 10_000_000
_NAMES = ("length", "error", "status")
# How much finer pairs are solved that their errors leave open, and how often.
_FINER = 1e-2
_FINEST = 1e-10
_ROUNDS = 2


@dataclass
class Rows:
    """What is known of a block of queries ``(b,)`` and all points ``(n,)``, on the host.

    Attributes:
        first: The number of the first query.
        bound: ``(b, n)``, lower bounds; infinite for a point and itself.
        order: ``(b, n)``, what the first neighbours are looked for by: smaller is more likely.
        length: ``(b, n)``, of the geodesics that were solved; NaN for others.
        error: ``(b, n)``.
        status: ``(b, n)`` codes; −1 where nothing was solved.
        spent: ``(b,)``, geodesics solved for each.
    """

    first: int
    bound: np.ndarray
    order: np.ndarray
    length: np.ndarray
    error: np.ndarray
    status: np.ndarray
    spent: np.ndarray

    def reach(self, k: int) -> np.ndarray:
        """``(b,)``, the k-th length known; infinite for fewer."""
        lengths = np.where(np.isnan(self.length), np.inf, self.length)
        return np.partition(lengths, k - 1, axis=1)[:, k - 1]


Wanted = Callable[[Rows], np.ndarray]


@dataclass(frozen=True)
class Stage:
    """Pairs to solve.

    Attributes:
        wanted: Which, of a block.
        rtol: How accurately.
        again: Whether they were solved before.
    """

    wanted: Wanted
    rtol: float
    again: bool = False


@dataclass(frozen=True)
class Known:
    """Geodesics that were solved, by query and point, in ascending order: ``(s,)`` each."""

    query: np.ndarray
    point: np.ndarray
    length: np.ndarray
    error: np.ndarray
    status: np.ndarray

    @classmethod
    def none(cls) -> Known:
        """Nothing."""
        whole = np.zeros(0, dtype=np.int64)
        return cls(whole, whole, np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.int8))

    def joined(
        self,
        pairs: np.ndarray,
        length: np.ndarray,
        error: np.ndarray,
        status: np.ndarray,
        both: bool,
    ) -> Known:
        """With more pairs, that replace what was known of them.

        Args:
            pairs: ``(p, 2)``, query and point.
            length: ``(p,)``.
            error: ``(p,)``.
            status: ``(p,)``.
            both: Whether they hold in both directions.
        """
        query, point = pairs.T
        if both:
            query, point = np.concatenate([query, point]), np.concatenate([point, query])
            length, error, status = (np.concatenate([x, x]) for x in (length, error, status))
        query = np.concatenate([query, self.query])
        point = np.concatenate([point, self.point])
        values = [
            np.concatenate([new, old])
            for new, old in ((length, self.length), (error, self.error), (status, self.status))
        ]
        # The first of each stays: the new ones.
        _, place = np.unique(np.stack([query, point], 1), axis=0, return_index=True)
        return Known(query[place], point[place], *(x[place] for x in values))

    def fill(self, rows: Rows) -> None:
        """Write what is known of a block of queries."""
        first, last = np.searchsorted(self.query, [rows.first, rows.first + len(rows.spent)])
        part = slice(first, last)
        row = self.query[part] - rows.first
        at = row, self.point[part]
        rows.length[at] = self.length[part]
        rows.error[at] = self.error[part]
        rows.status[at] = self.status[part]
        np.add.at(rows.spent, row, 1)


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

    def solved(self, where: str, work: Geodesics) -> list[tuple[Tensor, ...]]:
        """Lengths, errors and statuses of all blocks in order: from the folder, or solved now."""
        parts: dict[int, tuple[Tensor, ...]] = {}
        finished = self.folder.finished() if self.folder is not None else set()
        for block in work.blocks:
            if self.first + block in finished:
                parts[block] = self._read(block, work.count(block))
        missing = [block for block in work.blocks if block not in parts]
        done = sum(len(part[0]) for part in parts.values())
        for block, found in computed(where, work, missing, self.executor, None):
            parts[block] = found
            if self.folder is not None:
                named = dict(zip(_NAMES, found, strict=True))
                self.folder.write(self.first + block, named)
            done += len(found[0])
            if self.progress is not None:
                self.progress(done, len(work.pairs))
        return [parts[block] for block in work.blocks]

    def _read(self, block: int, count: int) -> tuple[Tensor, ...]:
        assert self.folder is not None
        kinds = (torch.float64, torch.float64, torch.int8)
        shapes = {name: ((count,), kind) for name, kind in zip(_NAMES, kinds, strict=True)}
        found = self.folder.read(self.first + block, shapes)
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
        solved: How many geodesics were.
    """

    where: str
    space: Space
    points: Tensor
    queries: Tensor | None
    rtol: float
    solver: Solver | None
    candidates: int | None
    slack: float
    solved: int = 0

    def blocks(
        self, progress: Progress | None, executor: Executor | None, folder: BlockFolder | None
    ) -> list[tuple[np.ndarray, ...]]:
        """What :meth:`chosen` says of every block of queries.

        Each stage asks, block by block, for the pairs that it needs; each pair is solved once, for
        both of its points.
        """
        known = Known.none()
        stages = self.stages()
        for number, stage in enumerate(stages):
            asked = [
                np.stack([rows.first + i, j], 1)
                for rows in self._all_rows(known)
                for i, j in [stage.wanted(rows).nonzero()]
            ]
            pairs = np.concatenate(asked) if asked else np.zeros((0, 2), dtype=np.int64)
            if stage.again and not len(pairs):
                break
            share = _Share(progress, number, len(stages), self._queries())
            blocks = Blocks(executor, share, folder, first=number * _STAGE)
            known = self._solved(known, self._unique(pairs), stage, blocks)
        answer = [self.chosen(rows) for rows in self._all_rows(known)]
        if progress is not None:
            progress(self._queries(), self._queries())
        return answer

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
            stages.append(Stage(self.open, finer, again=True))
            rtol = finer
        return stages

    @abstractmethod
    def looks(self) -> list[Wanted]:
        """Pairs ``(b, n)`` that the answer needs; each with what those before have told."""

    @abstractmethod
    def open(self, rows: Rows) -> np.ndarray:  # -> (b, n)
        """Pairs whose errors leave open whether they belong to the answer."""

    @abstractmethod
    def chosen(self, rows: Rows) -> tuple[np.ndarray, ...]:
        """The answer for a block, in the end."""

    def failed(self, rows: Rows) -> np.ndarray:  # -> (f, 3)
        """Query, point and status of the geodesics of a block that miss their accuracy."""
        row, j = ((rows.status >= 0) & (rows.status != Status.CONVERGED)).nonzero()
        return np.stack([rows.first + row, j, rows.status[row, j]], 1)

    def facts(self, parts: list[tuple[np.ndarray, ...]]) -> dict[str, Any]:
        """What all results say, of blocks whose last entries are certificates and failures."""
        certified = [part[-2] for part in parts] or [np.zeros(0, dtype=bool)]
        failures = [part[-1] for part in parts] or [np.zeros((0, 3), dtype=np.int64)]
        failed = torch.as_tensor(np.concatenate(failures)).long()
        return {
            "certified": torch.as_tensor(np.concatenate(certified)).to(self.points.device),
            "failed": failed[:, :2],
            "status": failed[:, 2],
            "rtol": self.rtol,
            "solved": self.solved,
            "points": len(self.points),
            "among_themselves": self.queries is None,
        }

    def _bounded(self) -> bool:
        """Whether the space knows lower bounds."""
        one = self.points[:1]
        return self.space.ambient_distance(one, one) is not None

    def _queries(self) -> int:
        return len(self.points if self.queries is None else self.queries)

    def _all_rows(self, known: Known) -> Iterator[Rows]:
        """Blocks of queries, with bounds and with what is known."""
        others = self.points if self.queries is None else self.queries
        n = len(self.points)
        size = max(1, _PAIRS // max(n, 1))
        features = features_of(self.space, self.points)
        metric = None
        if features is None and not self._bounded():
            metric = self.space.metric(self.points)
        for first in range(0, len(others), size):
            rows = self._rows(first, others[first : first + size], features, metric)
            known.fill(rows)
            yield rows

    def _rows(
        self, first: int, queries: Tensor, features: Tensor | None, metric: Tensor | None
    ) -> Rows:
        """Lower bounds of a block, and nothing else."""
        b = len(queries)
        n = len(self.points)
        if metric is not None:
            bound = np.zeros((b, n))
            order = self._mean_norms(queries, metric)
        else:
            bound = self._ambient(queries, features)
            order = bound.copy()
        # Where nothing is known, a point may be near, and comes last.
        bound = np.where(np.isnan(bound), 0.0, bound)
        order = np.where(np.isfinite(order), order, np.finfo(order.dtype).max)
        if self.queries is None:
            own = np.arange(b)
            bound[own, first + own] = np.inf
            order[own, first + own] = np.inf
        return Rows(
            first=first,
            bound=bound,
            order=order,
            length=np.full((b, n), np.nan),
            error=np.full((b, n), np.nan),
            status=np.full((b, n), -1, dtype=np.int8),
            spent=np.zeros(b, dtype=np.int64),
        )

    def _ambient(self, queries: Tensor, features: Tensor | None) -> np.ndarray:  # -> (b, n)
        """Ambient distances, less their rounding."""
        if features is not None:
            here = features_of(self.space, queries)
            assert here is not None
            # Differences, not scalar products: near points must not lose their digits.
            exact = "donot_use_mm_for_euclid_dist"
            found = torch.cdist(here.flatten(1), features.flatten(1), compute_mode=exact)
        else:
            rows = []
            for z in queries:
                distance = self.space.ambient_distance(z.expand_as(self.points), self.points)
                assert distance is not None
                rows.append(distance)
            found = torch.stack(rows)
        return np.asarray((1 - self.slack) * found.double().cpu().numpy())

    def _mean_norms(self, queries: Tensor, metric: Tensor) -> np.ndarray:  # -> (b, n)
        """Differences in the mean metric of both ends: an order where no bound is known."""
        rows = []
        for z, g in zip(queries, self.space.metric(queries), strict=True):
            v = self.points - z
            rows.append(torch.einsum("ni,nij,nj->n", v, (metric + g) / 2, v).clamp(min=0).sqrt())
        return np.asarray(torch.stack(rows).double().cpu().numpy())

    def straight(self, rows: Rows, near: np.ndarray) -> np.ndarray:  # (b, c) -> (b, c)
        """Lengths of straight lines by a few chords."""
        i, j = (torch.as_tensor(x) for x in self._ends(rows, near))
        found = []
        size = max(1, _PAIRS // (64 * _LINE_SEGMENTS))
        for first in range(0, len(i), size):
            part = slice(first, first + size)
            line = Curve.line(self._query(i[part]), self.points[j[part]], _LINE_SEGMENTS)
            found.append(self.space.squared_chords(line.nodes).sqrt().sum(-1).double().cpu())
        return torch.cat(found).view(near.shape).nan_to_num(torch.inf).numpy()

    def _ends(self, rows: Rows, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries and points ``(b c,)`` of a table of points ``(b, c)``."""
        i = rows.first + np.arange(len(near)).repeat(near.shape[1])
        return i, near.reshape(-1)

    def _query(self, i: Tensor) -> Tensor:
        others = self.points if self.queries is None else self.queries
        return others[i.to(others.device)]

    def first(self, rows: Rows, rivals: np.ndarray, limit: int) -> np.ndarray:
        """The most likely rivals of each row, as many as the limit leaves."""
        order = np.where(rivals, rows.order, np.inf)
        rank = order.argsort(1, kind="stable").argsort(1, kind="stable")
        return np.asarray(rank < (limit - rows.spent)[:, None])

    def _unique(self, pairs: np.ndarray) -> np.ndarray:  # (p, 2) -> (u, 2)
        """Every pair once: of points among themselves from the smaller number to the larger."""
        if self.queries is None:
            pairs = np.sort(pairs, axis=1)
        return np.unique(pairs, axis=0)

    def _solved(
        self,
        known: Known,
        pairs: np.ndarray,
        stage: Stage,
        blocks: Blocks,
    ) -> Known:
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
        parts = blocks.solved(self.where, work)
        length, error, status = (
            torch.cat([part[place] for part in parts]).numpy() for place in range(3)
        )
        self.solved += len(pairs)
        # What a finer look cannot reach was accurate enough for the call before.
        better = status == Status.CONVERGED if stage.again else np.full(len(pairs), True)
        more = pairs[better], length[better], error[better], status[better]
        return known.joined(*more, both=self.queries is None)
