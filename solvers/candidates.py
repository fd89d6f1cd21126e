"""Geodesics between queries and points, as few as an answer needs, block by block.

What every search for neighbours shares: lower bounds by the ambient distance, pairs that are solved
once in both directions, and closer looks at what errors leave open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae.solvers.curve import Curve
from riemae.solvers.hooks import features_of, solver_of
from riemae.solvers.path import geodesic
from riemae.solvers.progress import Progress
from riemae.solvers.result import Status
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space

_LINE_SEGMENTS = 8
# Rows of a block: so many pairs of a query and a point.
_PAIRS = 2**22
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


@dataclass(kw_only=True)
class Search(ABC):
    """One search, its arguments checked.

    Attributes:
        space: Where geodesics are.
        points: ``(n, m)``.
        queries: ``(q, m)``; None for the points themselves.
        rtol: Relative accuracy of the lengths.
        solver: Settings of the path solver.
        candidates: Geodesics that are solved for a query at most; None for no limit of the caller.
        slack: Relative rounding of ambient distances.
        solved: How many geodesics were.
    """

    space: Space
    points: Tensor
    queries: Tensor | None
    rtol: float
    solver: Solver | None
    candidates: int | None
    slack: float
    solved: int = 0

    def blocks(self, progress: Progress | None) -> list[tuple[np.ndarray, ...]]:
        """What :meth:`chosen` says of every block of queries."""
        others = self.points if self.queries is None else self.queries
        n = len(self.points)
        size = max(1, _PAIRS // max(n, 1))
        features = features_of(self.space, self.points)
        metric = None
        if features is None and not self._bounded():
            metric = self.space.metric(self.points)
        parts = []
        for first in range(0, len(others), size):
            rows = self._rows(first, others[first : first + size], features, metric)
            self.look(rows)
            self._settle(rows)
            parts.append(self.chosen(rows))
            if progress is not None:
                progress(min(first + size, len(others)), len(others))
        return parts

    @abstractmethod
    def look(self, rows: Rows) -> None:
        """Solve what the answer needs."""

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

    def _settle(self, rows: Rows) -> None:
        """Solve more finely what is open."""
        rtol = self.rtol
        for _ in range(_ROUNDS):
            rtol = max(_FINER * rtol, _FINEST)
            if rtol >= self.rtol:
                return
            open_ = self.open(rows)
            if not open_.any():
                return
            self.solve(rows, open_, rtol, again=True)

    def solve(self, rows: Rows, wanted: np.ndarray, rtol: float, again: bool = False) -> None:
        """Solve some pairs of a block, each once in both directions."""
        row, j = wanted.nonzero()
        if not len(row):
            return
        i = rows.first + row
        if self.queries is None:
            # From the smaller number to the larger: so a pair has the same bits in every block.
            pairs = np.stack([np.minimum(i, j), np.maximum(i, j)], 1)
        else:
            pairs = np.stack([i, j], 1)
        unique, place = np.unique(pairs, axis=0, return_inverse=True)
        start, stop = (torch.as_tensor(x) for x in unique.T)
        solve = solver_of(self.space, geodesic)
        result = solve(
            self._query(start),
            self.points[stop.to(self.points.device)],
            rtol=rtol,
            solver=self.solver,
            throw=False,
            progress=None,
        )
        place = place.reshape(-1)
        status = result.status.cpu().numpy()[place]
        length, error = (x.double().cpu().numpy()[place] for x in (result.length, result.error))
        # What a finer look cannot reach was accurate enough for the call before.
        better = np.full(len(row), True) if not again else status == Status.CONVERGED
        at = row[better], j[better]
        rows.length[at] = length[better]
        rows.error[at] = error[better]
        rows.status[at] = status[better]
        if not again:
            np.add.at(rows.spent, row, 1)
        self.solved += len(unique)
