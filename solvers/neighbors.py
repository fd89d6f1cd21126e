"""Nearest neighbours by geodesic distance, with a certificate for each row.

The ambient distance of two points is never more than their geodesic distance. So what is farther
than a neighbour that is known, in the ambient space, need not be solved: the nearest by the length
of straight lines are solved first, and then whatever could still be nearer. Points whose ambient
distance is more than the k-th length that was found are not, whatever their geodesics are.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError, OptionError
from riemae.numerics.checks import expect_range, expect_rtol
from riemae.numerics.memory import within_memory
from riemae.numerics.precision import in_full_precision
from riemae.solvers.candidates import Rows, Search, Wanted
from riemae.solvers.executors import expect_executor
from riemae.solvers.hooks import precision_of
from riemae.solvers.matrix_identity import described
from riemae.solvers.neighborhoods import Found, Neighbors, RadiusNeighbors
from riemae.solvers.pairs import expect_point_sets
from riemae.solvers.progress import Progress, reported
from riemae.solvers.result import Status, remedies
from riemae.solvers.solver import Solver, expect_solver
from riemae.solvers.space import HasSpace, Space, space_of
from riemae.storage.blocks import BlockFolder, path_of_a_result

# Candidates for the first neighbours, in k: of 160 digit codes the ten nearest lie among the twenty
# nearest chords with a recall of 0.999.
_CANDIDATES = 3
# Without lower bounds, so many candidates in k are solved unless the call says otherwise.
_UNBOUNDED = 4


@within_memory
@in_full_precision
def neighbors(
    space: Space | HasSpace,
    points: Tensor,
    k: int = 10,
    queries: Tensor | None = None,
    *,
    rtol: float | None = None,
    solver: Solver | None = None,
    candidates: int | None = None,
    throw: bool = True,
    progress: Progress | bool | None = None,
    executor: Executor | None = None,
    out: str | PathLike[str] | None = None,
    identity: Mapping[str, object] | None = None,
) -> Neighbors:
    """The ``k`` nearest points of each query by geodesic distance; not differentiable.

    Without ``queries``, those of each point among the others, itself left out. Nothing is solved
    that is farther in the ambient space than the k-th neighbour is along its geodesic; every other
    pair is, once. Memory grows with ``q k``, and with blocks of four million pairs.

    Args:
        space: A :class:`riemae.Manifold`, or anything with the :class:`Space` protocol.
        points: ``(n, m)``.
        k: Neighbours of each query, fewer than ``n`` of the points among themselves.
        queries: ``(q, m)``; by default the points themselves.
        rtol: Relative accuracy of the lengths, as in :func:`geodesic`. Pairs whose order with the
            k-th neighbour their errors leave open are solved more finely.
        solver: Settings of the path solver, as in :func:`geodesic`.
        candidates: Geodesics that are solved for a query at most. By default as many as it takes;
            without an ambient distance ``4 k``, those with the smallest differences in the mean
            metric of both ends, and then no row is certified but where they are all points.
        throw: Raise when a geodesic misses ``rtol``; False returns the result, in which ``failed``
            names it.
        progress: Called with (queries done, queries in all); True shows a bar.
        executor: Any ``concurrent.futures.Executor``, as in :func:`distance_matrix`: geodesics are
            solved there in blocks of 1,024. The result has the same bits as without.
        out: A folder for the result, as :meth:`Neighbors.save` writes it. Until it is complete,
            finished blocks lie in ``out.blocks``, and the same call takes them from there, after a
            process was killed as well. One process writes it at a time: ``out.lock`` names it.
        identity: As in :func:`distance_matrix`.

    Raises:
        NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the result.
        ShapeError: When a set has more or fewer than two axes, or they differ in dimension.
        DTypeError: When their dtypes or devices differ, or an option has a wrong type.
        DeviceError: When a tensor has no values.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: When ``k`` is not from 1 to the number of points, or ``candidates`` less than
            ``k``.
        FileError: When ``out`` is of another run, is damaged, or cannot be written.
    """
    others = points if queries is None else queries
    most = len(points) - (queries is None) if isinstance(points, Tensor) else 0
    shared = _checked("neighbors", space, points, others, queries, rtol, solver, executor)
    hint = f"There are {most} points to choose from."
    if most < 1:
        expected = "at least two points"
        raise OptionError("neighbors", expected, f"{len(points)}", "Give more points.")
    expect_range("neighbors", "k", k, 1, most, integer=True, hint=hint)
    if candidates is not None:
        hint = "At least the neighbours themselves must be solved."
        expect_range("neighbors", "candidates", candidates, k, integer=True, hint=hint)
    with torch.no_grad(), reported("neighbors", progress, "queries") as report:
        search = _Nearest(**shared, candidates=candidates, k=k)
        result = _kept(search, report, executor, out, identity)
    options: dict[str, Any] = {"solver": solver, "candidates": candidates, "throw": throw}
    options["rtol"] = result.rtol
    again = partial(neighbors, shared["space"], shared["points"], k=k, **options)
    return _demanded("neighbors", replace(result, search=again), throw)


@within_memory
@in_full_precision
def radius_neighbors(
    space: Space | HasSpace,
    points: Tensor,
    radius: float,
    queries: Tensor | None = None,
    *,
    rtol: float | None = None,
    solver: Solver | None = None,
    candidates: int | None = None,
    throw: bool = True,
    progress: Progress | bool | None = None,
    executor: Executor | None = None,
    out: str | PathLike[str] | None = None,
    identity: Mapping[str, object] | None = None,
) -> RadiusNeighbors:
    """All points within a geodesic distance of each query; not differentiable.

    Without ``queries``, those of each point among the others, itself left out. Nothing is solved
    that is farther than the radius in the ambient space; every other pair is, once. Where the space
    knows no ambient distance, those are all pairs.

    Args:
        space: A :class:`riemae.Manifold`, or anything with the :class:`Space` protocol.
        points: ``(n, m)``.
        radius: The largest distance, not negative.
        queries: ``(q, m)``; by default the points themselves.
        rtol: Relative accuracy of the lengths, as in :func:`geodesic`. Pairs that their errors
            leave on either side of the radius are solved more finely.
        solver: Settings of the path solver, as in :func:`geodesic`.
        candidates: Geodesics that are solved for a query at most, those that are nearest in the
            ambient space; by default as many as it takes.
        throw: Raise when a geodesic misses ``rtol``; False returns the result, in which ``failed``
            names it.
        progress: Called with (queries done, queries in all); True shows a bar.
        executor: Any ``concurrent.futures.Executor``, as in :func:`distance_matrix`: geodesics are
            solved there in blocks of 1,024. The result has the same bits as without.
        out: A folder for the result, as :meth:`Neighbors.save` writes it. Until it is complete,
            finished blocks lie in ``out.blocks``, and the same call takes them from there, after a
            process was killed as well. One process writes it at a time: ``out.lock`` names it.
        identity: As in :func:`distance_matrix`.

    Raises:
        NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the result.
        ShapeError: When a set has more or fewer than two axes, or they differ in dimension.
        DTypeError: When their dtypes or devices differ, or an option has a wrong type.
        DeviceError: When a tensor has no values.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: When ``radius`` is negative, or ``candidates`` less than 1.
        FileError: When ``out`` is of another run, is damaged, or cannot be written.
    """
    where = "radius_neighbors"
    others = points if queries is None else queries
    shared = _checked(where, space, points, others, queries, rtol, solver, executor)
    expect_range(where, "radius", radius, 0)
    if candidates is not None:
        expect_range(where, "candidates", candidates, 1, integer=True)
    with torch.no_grad(), reported(where, progress, "queries") as report:
        search = _Within(**shared, candidates=candidates, radius=float(radius))
        result = _kept(search, report, executor, out, identity)
    options: dict[str, Any] = {"solver": solver, "candidates": candidates, "throw": throw}
    options["rtol"] = result.rtol
    again = partial(radius_neighbors, shared["space"], shared["points"], radius=radius, **options)
    return _demanded(where, replace(result, search=again), throw)


def _checked(
    where: str,
    space: Space | HasSpace,
    points: Tensor,
    others: Tensor,
    queries: Tensor | None,
    rtol: float | None,
    solver: Solver | None,
    executor: Executor | None,
) -> dict[str, Any]:
    """What every search takes, after a look at it."""
    expect_executor(where, executor)
    space = space_of(space, points, queries, where=where, finite=True)
    expect_point_sets(where, points=points, queries=others)
    expect_solver(where, solver)
    known = precision_of(space, points.dtype)
    return {
        "where": where,
        "space": space,
        "points": points.detach(),
        "queries": None if queries is None else queries.detach(),
        "rtol": expect_rtol(where, known.geodesic if rtol is None else rtol),
        "solver": solver,
        "slack": 16 * known.length,
    }


def _kept(
    search: Any,
    progress: Progress | None,
    executor: Executor | None,
    out: str | PathLike[str] | None,
    identity: Mapping[str, object] | None,
) -> Any:
    """The result of a search, from ``out`` where it lies there, or put there."""
    if out is None:
        return search.run(progress, executor, None)
    known, probe = described(search.space, search.points, search.queries, identity)
    about = {
        "format": f"riemae {search.kind.__name__}",
        "version": 1,
        "settings": search.settings,
        **known,
    }
    path = path_of_a_result(search.where, out, "neighbors")
    with BlockFolder(path, about, probe, search.where) as folder:
        found = folder.result(search.kind.load)
        if found is None:
            folder.begin()
            found = folder.result(search.kind.load)  # another has finished it in this moment
            if found is None:
                found = search.run(progress, executor, folder)
                folder.keep(found.save)
        elif progress is not None:
            count = len(found.certified)
            progress(count, count)
    return found.to(search.points.device)


def _demanded(where: str, result: Found, throw: bool) -> Found:
    """The result, unless a geodesic failed that must not.

    Raises:
        NotConvergedError: When ``throw`` and one misses its accuracy.
    """
    if throw and len(result.failed):
        raise NotConvergedError(
            where,
            f"every geodesic accurate to rtol={result.rtol:g}",
            result.summary(),
            f"{remedies(result.status)} The error's .result holds all neighbours and what failed; "
            "throw=False returns it.",
            result,
        )
    return result


@dataclass(kw_only=True)
class _Nearest(Search):
    """The k nearest."""

    kind = Neighbors
    k: int

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the answer, besides space and points."""
        return {**self.shared, "k": self.k}

    def run(
        self, progress: Progress | None, executor: Executor | None, folder: BlockFolder | None
    ) -> Neighbors:
        """The whole search."""
        parts = self.blocks(progress, executor, folder)
        like = self.points
        empty = np.zeros((0, self.k))

        def joined(place: int) -> Tensor:
            return torch.as_tensor(np.concatenate([part[place] for part in parts] or [empty]))

        return Neighbors(
            indices=joined(0).long().to(like.device),
            distances=joined(1).to(like),
            errors=joined(2).to(like),
            **self.facts(parts),
        )

    def looks(self) -> list[Wanted]:
        """See :meth:`Search.looks`."""
        return [self._nearest, self._rivals]

    def _nearest(self, rows: Rows) -> np.ndarray:  # -> (b, n)
        """The k that are nearest by straight lines, among those with the smallest bounds."""
        count = min(_CANDIDATES * self.k, rows.bound.shape[1] - (self.queries is None))
        near = np.argpartition(rows.order, count - 1, axis=1)[:, :count]
        straight = self.straight(rows, near)
        best = np.argpartition(straight, self.k - 1, axis=1)[:, : self.k]
        chosen = np.take_along_axis(near, best, 1)
        wanted = np.zeros(rows.bound.shape, dtype=bool)
        np.put_along_axis(wanted, chosen, True, 1)
        return wanted

    def _rivals(self, rows: Rows) -> np.ndarray:  # -> (b, n)
        """Whatever could still be nearer than the k-th length that is known."""
        bounded = bool((rows.bound[np.isfinite(rows.bound)] > 0).any())
        limit = self.candidates
        if limit is None and not bounded:
            limit = _UNBOUNDED * self.k
        rivals = (rows.status < 0) & (rows.bound < rows.reach(self.k)[:, None])
        if limit is not None:
            rivals &= self.first(rows, rivals, limit)
        return rivals

    def open(self, rows: Rows) -> np.ndarray:  # -> (b, n)
        """Pairs of which it is open whether they are among the k nearest.

        A neighbour that may be farther than the nearest of the others, and others that may be
        nearer than the farthest neighbour.
        """
        met = rows.status == Status.CONVERGED
        least = np.where(met, np.maximum(rows.length - rows.error, rows.bound), np.inf)
        most = np.where(met, rows.length, -np.inf)
        inside = self._inside(rows)
        farthest = np.where(inside, most, -np.inf).max(1)
        nearest = np.where(inside, np.inf, least).min(1)
        torn = (nearest < farthest)[:, None]
        apart = np.where(inside, most > nearest[:, None], least < farthest[:, None])
        return np.asarray(met & torn & apart)

    def _inside(self, rows: Rows) -> np.ndarray:  # -> (b, n)
        """The k shortest lengths of each row."""
        lengths = np.where(np.isnan(rows.length), np.inf, rows.length)
        nearest = lengths.argsort(1, kind="stable")[:, : self.k]
        inside = np.zeros(lengths.shape, dtype=bool)
        np.put_along_axis(inside, nearest, True, 1)
        return inside & np.isfinite(lengths)

    def chosen(self, rows: Rows) -> tuple[np.ndarray, ...]:
        """The neighbours of a block, their certificates, and what failed."""
        lengths = np.where(np.isnan(rows.length), np.inf, rows.length)
        indices = lengths.argsort(1, kind="stable")[:, : self.k]
        distances = np.take_along_axis(lengths, indices, 1)
        errors = np.take_along_axis(rows.error, indices, 1)
        missing = np.isinf(distances)
        tried = rows.status >= 0
        sound = ~(tried & (rows.status != Status.CONVERGED)).any(1)
        unseen = ~tried & (rows.bound < distances[:, -1:])
        certified = sound & ~missing.any(1) & ~unseen.any(1) & ~self.open(rows).any(1)
        indices = np.where(missing, -1, indices)
        distances = np.where(missing, np.nan, distances)
        return indices, distances, np.where(missing, np.nan, errors), certified, self.failed(rows)


@dataclass(kw_only=True)
class _Within(Search):
    """Those within a radius."""

    kind = RadiusNeighbors
    radius: float

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the answer, besides space and points."""
        return {**self.shared, "radius": self.radius}

    def run(
        self, progress: Progress | None, executor: Executor | None, folder: BlockFolder | None
    ) -> RadiusNeighbors:
        """The whole search."""
        parts = self.blocks(progress, executor, folder)
        like = self.points
        counts, indices, distances, errors = (
            np.concatenate([part[place] for part in parts] or [np.zeros(0)]) for place in range(4)
        )
        starts = np.concatenate([[0], counts.cumsum()])
        return RadiusNeighbors(
            radius=self.radius,
            starts=torch.as_tensor(starts).long().to(like.device),
            indices=torch.as_tensor(indices).long().to(like.device),
            distances=torch.as_tensor(distances).to(like),
            errors=torch.as_tensor(errors).to(like),
            **self.facts(parts),
        )

    def looks(self) -> list[Wanted]:
        """See :meth:`Search.looks`."""
        return [self._inside_by_bound]

    def _inside_by_bound(self, rows: Rows) -> np.ndarray:  # -> (b, n)
        wanted = rows.bound <= self.radius
        if self.candidates is not None:
            wanted &= self.first(rows, wanted, self.candidates)
        return wanted

    def open(self, rows: Rows) -> np.ndarray:  # -> (b, n)
        """See :meth:`Search.open`: longer than the radius, by less than the error.

        A length is not less than the distance, so what is no longer than the radius is inside.
        """
        met = rows.status == Status.CONVERGED
        least = np.maximum(rows.length - rows.error, rows.bound)
        return np.asarray(met & (rows.length > self.radius) & (least <= self.radius))

    def chosen(self, rows: Rows) -> tuple[np.ndarray, ...]:
        """See :meth:`Search.chosen`."""
        tried = rows.status >= 0
        inside = tried & (rows.length <= self.radius)
        sound = ~(tried & (rows.status != Status.CONVERGED)).any(1)
        unseen = ~tried & (rows.bound <= self.radius)
        certified = sound & ~unseen.any(1) & ~self.open(rows).any(1)
        row, j = inside.nonzero()
        order = np.lexsort((rows.length[row, j], row))
        row, j = row[order], j[order]
        length, error = rows.length[row, j], rows.error[row, j]
        return inside.sum(1), j, length, error, certified, self.failed(rows)
