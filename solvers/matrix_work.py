"""Blocks of a matrix of distances: what computes them, here or on an executor."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from riemae.exceptions import GraphError
from riemae.solvers.budget import limited
from riemae.solvers.executors import computed
from riemae.solvers.graph import Weight
from riemae.solvers.graph import graph as build_graph
from riemae.solvers.hooks import features_of, solver_of
from riemae.solvers.matrix_layout import Layout
from riemae.solvers.path import geodesic
from riemae.solvers.progress import Progress
from riemae.solvers.solver import Solver
from riemae.solvers.space import Space

Method = Literal["geodesic", "graph", "chord"]

_NO_TIME = 1e-9  # seconds, for blocks that begin when time is up


@dataclass(frozen=True)
class Task:
    """What is asked for, checked."""

    space: Space
    a: Tensor
    b: Tensor | None
    method: Method
    rtol: float
    solver: Solver | None
    k: int
    weight: Weight
    max_decodings: int | None = None
    deadline: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the numbers, besides space and points."""
        if self.method == "geodesic":
            settings: dict[str, Any] = {"rtol": self.rtol}
            settings["solver"] = None if self.solver is None else repr(self.solver)
            if self.max_decodings is not None:
                settings["max_decodings"] = self.max_decodings
            return settings
        if self.method == "graph":
            return {"k": self.k, "weight": self.weight, "rtol": self.rtol}
        return {}


@dataclass(frozen=True)
class Work:
    """Everything that computes a block, wherever it is sent."""

    space: Any  # a Space; for graph distances the Graph, for chords None or a Space
    a: Tensor  # points; for chords of a space with features, these
    b: Tensor
    method: Method
    rtol: float
    solver: Solver | None
    layout: Layout
    max_decodings: int | None = None
    deadline: float | None = None  # by time.time(), which other processes share

    def __call__(self, block: int, progress: Progress | None = None) -> tuple[Tensor, Tensor]:
        """The values of a block, and a status for each geodesic of it (none for other methods)."""
        with torch.no_grad():
            if self.method == "geodesic":
                return self._geodesics(block, progress)
            first, last, column = self.layout.band(block)
            if self.method == "graph":
                values = self._paths
            else:
                values = self._chords
            return values(first, last, column).cpu(), torch.empty(0, dtype=torch.int8)

    def _geodesics(self, block: int, progress: Progress | None) -> tuple[Tensor, Tensor]:
        i, j = (x.to(self.a.device) for x in self.layout.pairs(block))
        solve = solver_of(self.space, geodesic)
        decodings = self._share(block)
        seconds = None
        if self.deadline is not None:
            left = self.deadline - time.time()
            seconds = max(left, _NO_TIME)
        with limited("distance_matrix", decodings, seconds):
            result = solve(
                self.a[i],
                self.b[j],
                rtol=self.rtol,
                solver=self.solver,
                throw=False,
                progress=progress,
            )
        return result.length.cpu(), result.status.to("cpu", torch.int8)

    def _share(self, block: int) -> int | None:
        """What a block may cost: in proportion to its pairs, wherever and whenever it is solved."""
        if self.max_decodings is None:
            return None
        share = self.max_decodings * self.layout.count(block) // self.layout.total
        return max(share, 1)

    def _paths(self, first: int, last: int, column: int) -> Tensor:
        # The columns are the graph's last points.
        offset = len(self.space.points) - self.layout.shape[1]
        distances: Tensor = self.space.distances(range(first, last))
        return distances[:, offset + column :]

    def _chords(self, first: int, last: int, column: int) -> Tensor:
        targets = self.b[column:]
        if self.space is None:
            # Differences, not scalar products: near points must not lose their digits.
            exact = "donot_use_mm_for_euclid_dist"
            return torch.cdist(self.a[first:last], targets, compute_mode=exact)
        distance = self.space.ambient_distance
        return torch.stack([distance(z.expand_as(targets), targets) for z in self.a[first:last]])


def work_of(task: Task, layout: Layout, progress: Progress) -> Work:
    """What the workers need, with everything done that is done once for all blocks.

    Raises:
        GraphError: For chords in a space that knows no ambient distance.
    """
    space = task.space
    a = task.a
    b = task.b
    if b is None:
        other = a
    else:
        other = b
    limits = (task.max_decodings, task.deadline)
    common = (task.method, task.rtol, task.solver, layout, *limits)
    if task.method == "graph":
        if b is None:
            joint = a
        else:
            joint = torch.cat([a, b])
        built = build_graph(
            space, joint, k=task.k, weight=task.weight, rtol=task.rtol, progress=progress
        )
        return Work(built, a[:0], a[:0], *common)
    if task.method == "chord":
        decoded = features_of(space, a)
        if decoded is not None:
            if b is None:
                return Work(None, decoded, decoded, *common)
            right = features_of(space, b)
            assert right is not None
            return Work(None, decoded, right, *common)
        if space.ambient_distance(a[:1], other[:1]) is None:
            raise GraphError(
                "distance_matrix",
                "a space with an ambient distance for method='chord'",
                type(space).__name__,
                "Use method='geodesic' or 'graph'.",
            )
    return Work(space, a, other, *common)


def results(
    work: Work, blocks: Iterable[int], executor: Executor | None, progress: Progress | None
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Blocks with their values and statuses, as they finish."""
    turns = work.method == "geodesic"
    for block, parts in computed("distance_matrix", work, blocks, executor, progress, turns):
        values, status = parts
        yield block, values, status
