"""Nearest neighbours by geodesic distance, with a certificate for each row.

The ambient distance of two points is never more than their geodesic distance. So what is farther
than a neighbour that is known, in the ambient space, need not be solved: the nearest by the length
of straight lines are solved first, and then whatever could still be nearer. Points whose ambient
distance is more than the k-th length that was found are not, whatever their geodesics are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import CheckpointError, FileError, NotConvergedError, OptionError
from riemae.numerics.checks import expect_range, expect_rtol
from riemae.numerics.memory import within_memory
from riemae.numerics.precision import in_full_precision
from riemae.solvers.bounds import Near
from riemae.solvers.candidates import Before, Known, Plan, Search
from riemae.solvers.executors import expect_executor
from riemae.solvers.hooks import precision_of
from riemae.solvers.matrix_identity import described
from riemae.solvers.neighborhoods import Again, Found, Neighbors, RadiusNeighbors
from riemae.solvers.pairs import expect_point_sets
from riemae.solvers.progress import Progress, reported
from riemae.solvers.result import Status, remedies
from riemae.solvers.solver import Solver, expect_solver
from riemae.solvers.space import HasSpace, Space, space_of
from riemae.storage.blocks import BlockFolder, path_of_a_result
from riemae.storage.digests import digest
from riemae.storage.runs import refuse

# Candidates for the first neighbours, in k: of 160 digit codes the ten nearest lie among the twenty
# nearest chords with a recall of 0.999.
_CANDIDATES = 3
# Points with the smallest bounds that are listed for each query, in k: where one of the others may
# be nearer than the k-th neighbour, all are looked through once more.
_LISTED = 8
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
    kept: Neighbors | str | PathLike[str] | None = None,
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
            process was killed as well. One process writes it at a time: ``out.lock`` names it. The
            processes of a ``torch.distributed`` group, as under torchrun, give the same ``out`` and
            share the work, each on the device of its points.
        kept: A result of an earlier search among the first of the points, or the folder where its
            ``out`` lies: what it settles is not solved again, see :meth:`Neighbors.add`.
        identity: As in :func:`distance_matrix`.

    Raises:
        NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the result.
        ShapeError: When a set has more or fewer than two axes, or they differ in dimension.
        DTypeError: When their dtypes or devices differ, or an option has a wrong type.
        DeviceError: When a tensor has no values.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: When ``k`` is not from 1 to the number of points, or ``candidates`` less than
            ``k``, or ``kept`` does not fit.
        FileError: When ``out`` is of another run, is damaged, or cannot be written.
    """
    others = points if queries is None else queries
    countable = isinstance(points, Tensor) and points.ndim > 0
    most = len(points) - (queries is None) if countable else 0
    shared = _checked("neighbors", space, points, others, queries, rtol, solver, executor)
    hint = f"There are {most} points to choose from."
    if most < 1:
        expected = "at least two points" if queries is None else "at least one point"
        raise OptionError("neighbors", expected, f"{len(points)}", "Give more points.")
    expect_range("neighbors", "k", k, 1, most, integer=True, hint=hint)
    if candidates is not None:
        hint = "At least the neighbours themselves must be solved."
        expect_range("neighbors", "candidates", candidates, k, integer=True, hint=hint)
    with torch.no_grad(), reported("neighbors", progress, "queries") as report:
        search = _Nearest(**shared, candidates=candidates, k=k)
        search.before = _before(search, kept, identity)
        result = _kept(search, report, executor, out, identity)
    options: dict[str, Any] = {"solver": solver, "candidates": candidates, "throw": throw}
    options["rtol"] = result.rtol
    again = Again(partial(neighbors, shared["space"], k=k, **options), shared["points"])
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
    kept: RadiusNeighbors | str | PathLike[str] | None = None,
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
            process was killed as well. One process writes it at a time: ``out.lock`` names it. The
            processes of a ``torch.distributed`` group, as under torchrun, give the same ``out`` and
            share the work, each on the device of its points.
        kept: A result of an earlier search among the first of the points, or the folder where its
            ``out`` lies: what it settles is not solved again, see :meth:`Neighbors.add`.
        identity: As in :func:`distance_matrix`.

    Raises:
        NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the result.
        ShapeError: When a set has more or fewer than two axes, or they differ in dimension.
        DTypeError: When their dtypes or devices differ, or an option has a wrong type.
        DeviceError: When a tensor has no values.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: When ``radius`` is negative, ``candidates`` less than 1, or ``kept`` does not
            fit.
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
        search.before = _before(search, kept, identity)
        result = _kept(search, report, executor, out, identity)
    options: dict[str, Any] = {"solver": solver, "candidates": candidates, "throw": throw}
    options["rtol"] = result.rtol
    call = partial(radius_neighbors, shared["space"], radius=radius, **options)
    again = Again(call, shared["points"])
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


def _before(search: Search, kept: Any, identity: Mapping[str, object] | None) -> Before | None:
    """What an earlier search has settled.

    Raises:
        OptionError: When it is not one among the first of the points, or asked for less.
        FileError: When the folder holds no result of these points, settings and space.
    """
    if kept is None:
        return None
    if search.queries is not None:
        hint = "The result's query() takes queries."
        raise OptionError(search.where, "kept without queries", "both", hint)
    if isinstance(kept, (str, PathLike)):
        kept = _found_at(search, kept, identity)
    reason = _unfit(search, kept)
    if reason is not None:
        wanted = "kept as a result among the first of these points, at least as fine"
        raise OptionError(search.where, wanted, reason, "Leave kept out to search anew.")
    query, point, length, error = (x.cpu().numpy() for x in kept.edges())
    none = Known.none(len(search.points), len(search.points))
    failed = none.key(*kept.failed.numpy().T)
    turned = none.key(*kept.failed.numpy().T[::-1])
    good = ~np.isin(none.key(query, point), np.concatenate([failed, turned]))
    pairs = np.stack([query, point], 1)[good]
    length, error = length[good].astype(float), error[good].astype(float)
    bound = search.bounds.of(*pairs.T)
    if bool((length * (1 + 1e-3) < bound).any()):
        wanted = "kept as a result of this space"
        hint = "Leave kept out to search anew."
        raise OptionError(search.where, wanted, "distances below those in data space", hint)
    status = np.full(len(pairs), Status.CONVERGED, dtype=np.int8)
    known = none.joined(pairs, bound, length, error, status, both=True)
    return Before(
        known,
        kept.certified.cpu().numpy(),
        digest(torch.cat([x.cpu().double().flatten() for x in (kept.certified, *kept.edges())])),
    )


def _found_at(
    search: Search, kept: str | PathLike[str], identity: Mapping[str, object] | None
) -> Any:
    """The result in a folder, of the first of the points.

    Raises:
        FileError: When there is none.
    """
    path = path_of_a_result(search.where, kept, "neighbors")
    try:
        found = search.kind.load(path)
    except CheckpointError as reason:
        refuse(search.where, path, "a whole result", str(reason), reason)
    about, probe = _described(search, search.points[: found.points], identity)
    folder = BlockFolder(path, about, probe, search.where)
    return folder.result(search.kind.load)


def _unfit(search: Search, kept: Any) -> str | None:
    """Why a result is of no use for a search; None when it is."""
    if not isinstance(kept, search.kind):
        return type(kept).__name__
    if not kept.among_themselves:
        return "neighbours of other queries"
    if kept.points > len(search.points):
        return f"one of {kept.points} points, more than there are"
    if kept.search is not None:
        first = search.points[: kept.points]
        if not torch.equal(kept.search.points.to(first.device), first):
            return "one of other points"
    if kept.rtol > search.rtol:
        return f"one at rtol={kept.rtol:g}"
    return search.coarser(kept)


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
    about, probe = _described(search, search.points, identity)
    about["kept"] = None if search.before is None else search.before.digest
    path = path_of_a_result(search.where, out, "neighbors")
    with BlockFolder(path, about, probe, search.where) as folder:
        found = folder.result(search.kind.load)
        if found is None:
            folder.begin()
            found = folder.result(search.kind.load)  # another has finished it in this moment
            if found is None:
                found = _together(search, progress, executor, folder)
        elif progress is not None:
            count = len(found.certified)
            progress(count, count)
    return found.to(search.points.device)


def _described(
    search: Search, points: Tensor, identity: Mapping[str, object] | None
) -> tuple[dict[str, Any], list[float]]:
    """What identifies a result on the disk, and a probe of its space."""
    known, probe = described(search.space, points, search.queries, identity)
    about = {
        "format": f"riemae {search.kind.__name__}",
        "version": 2,
        "settings": search.settings,
    }
    return {**about, **known}, probe


def _together(
    search: Any, progress: Progress | None, executor: Executor | None, folder: BlockFolder
) -> Any:
    """The result of a search that several processes may share.

    Raises:
        FileError: When the folder cannot be read or written.
    """
    try:
        found = search.run(progress, executor, folder)
    except FileError:
        # Another process has finished it, and removed the blocks.
        found = folder.result(search.kind.load) if folder.shared else None
        if found is None:
            raise
        return found
    folder.keep(found.save)
    return found


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

    def coarser(self, kept: Neighbors) -> str | None:
        """See :meth:`Search.coarser`."""
        count = kept.indices.shape[1]
        return f"one of {count} neighbours" if count < self.k else None

    def run(
        self, progress: Progress | None, executor: Executor | None, folder: BlockFolder | None
    ) -> Neighbors:
        """The whole search."""
        known = self.known(progress, executor, folder)
        rank = known.rank
        inside = (rank < self.k) & np.isfinite(known.lengths)
        at = known.query[inside], rank[inside]
        shape = (self.count, self.k)
        indices = np.full(shape, -1, dtype=np.int64)
        indices[at] = known.point[inside]
        distances = np.full(shape, np.nan)
        distances[at] = known.length[inside]
        errors = np.full(shape, np.nan)
        errors[at] = known.error[inside]
        like = self.points
        return Neighbors(
            indices=torch.as_tensor(indices).to(like.device),
            distances=torch.as_tensor(distances).to(like),
            errors=torch.as_tensor(errors).to(like),
            **self.facts(known, self._certified(known, distances)),
        )

    def _certified(self, known: Known, distances: np.ndarray) -> np.ndarray:
        near = self._near
        farthest = distances[:, -1]
        unseen = self._untried(known, near) & (near.bound < farthest[:, None])
        seen = ~unseen.any(1) & (self.beyond >= farthest)
        return np.asarray(self.sound(known) & seen)

    @property
    def _limit(self) -> int | None:
        """Geodesics that are solved for a query at most."""
        if self.candidates is None and not self.bounds.useful:
            return _UNBOUNDED * self.k
        return self.candidates

    @property
    def _listed(self) -> int:
        """Points that are listed as near, for each query."""
        choice = len(self.points) - (self.queries is None)
        return min(max(_LISTED * self.k, self._limit or 0), choice)

    @cached_property
    def _near(self) -> Near:
        """The list of points with the smallest bounds."""
        return self.near(self._listed)

    def looks(self) -> list[Callable[[Known], Plan]]:
        """See :meth:`Search.looks`."""
        return [self._nearest, self._rivals]

    def _nearest(self, known: Known) -> Plan:
        """The k that are nearest by straight lines, among those with the smallest bounds."""
        point = self._near.point[:, : _CANDIDATES * self.k]
        fresh = (point >= 0) & ~self.certain[:, None]
        query, column = fresh.nonzero()
        lines = np.full(point.shape, np.inf)
        lines[query, column] = self.straight(query, point[query, column])
        best = lines.argsort(1, kind="stable")[:, : self.k]
        wanted = np.zeros(point.shape, dtype=bool)
        np.put_along_axis(wanted, best, True, 1)
        query, column = (wanted & fresh).nonzero()
        pairs = np.stack([query, point[query, column]], 1)
        return Plan(self.unique(pairs[~known.has(*pairs.T)]))

    def _rivals(self, known: Known) -> Plan:
        """Whatever could still be nearer than the k-th length that is known."""
        near = self._near
        reach = known.reach(self.k)
        rivals = self._untried(known, near) & (near.bound < reach[:, None])
        limit = self._limit
        searched = near.beyond < reach
        if limit is not None:
            left = limit - known.spent()
            searched &= rivals.sum(1) < left
            rivals &= rivals.cumsum(1) <= left[:, None]
        # Of queries whose list is too short, all points.
        rows = searched.nonzero()[0]
        rivals &= ~searched[:, None]
        query, column = rivals.nonzero()
        pairs = [np.stack([query, near.point[query, column]], 1)]
        beyond = near.beyond.copy()
        if len(rows):
            more = self.below(rows, reach[rows])
            untried = ~known.has(more.query, more.point)
            query, point = more.query[untried], more.point[untried]
            if limit is not None:
                rank = np.arange(len(query)) - np.searchsorted(query, query)
                within = rank < left[query]
                np.minimum.at(beyond, query[~within], 0.0)
                query, point = query[within], point[within]
            pairs.append(np.stack([query, point], 1))
            beyond[rows] = more.beyond
        return Plan(self.unique(np.concatenate(pairs)), beyond)

    def _untried(self, known: Known, near: Near) -> np.ndarray:  # -> (q, c)
        """Points of the list that were not solved."""
        query = np.arange(self.count).repeat(near.point.shape[1])
        point = near.point.reshape(-1)
        listed = point >= 0
        untried = listed.copy()
        untried[listed] = ~known.has(query[listed], point[listed])
        return untried.reshape(near.point.shape)

    def open(self, known: Known) -> np.ndarray:  # -> (s,)
        """Geodesics of which it is open whether they are among the k nearest.

        A neighbour that may be farther than the nearest of the others, and others that may be
        nearer than the farthest neighbour.
        """
        met = known.met
        least = np.where(met, np.maximum(known.length - known.error, known.bound), np.inf)
        inside = (known.rank < self.k) & np.isfinite(known.lengths)
        farthest = -known.least(np.where(inside & met, -known.length, np.inf))
        nearest = known.least(np.where(inside, np.inf, least))
        apart = np.where(inside, known.length > nearest[known.query], least < farthest[known.query])
        torn = nearest < farthest
        return np.asarray(met & torn[known.query] & apart)


@dataclass(kw_only=True)
class _Within(Search):
    """Those within a radius."""

    kind = RadiusNeighbors
    radius: float

    @property
    def settings(self) -> dict[str, Any]:
        """What changes the answer, besides space and points."""
        return {**self.shared, "radius": self.radius}

    def coarser(self, kept: RadiusNeighbors) -> str | None:
        """See :meth:`Search.coarser`."""
        return f"one within {kept.radius:g}" if kept.radius < self.radius else None

    def run(
        self, progress: Progress | None, executor: Executor | None, folder: BlockFolder | None
    ) -> RadiusNeighbors:
        """The whole search."""
        known = self.known(progress, executor, folder)
        place = known.ascending
        place = place[known.lengths[place] <= self.radius]
        counts = np.bincount(known.query[place], minlength=self.count)
        like = self.points
        certified = self.sound(known) & (self.beyond > self.radius)
        return RadiusNeighbors(
            radius=self.radius,
            starts=torch.as_tensor(np.concatenate([[0], counts.cumsum()])).long().to(like.device),
            indices=torch.as_tensor(known.point[place]).long().to(like.device),
            distances=torch.as_tensor(known.length[place]).to(like),
            errors=torch.as_tensor(known.error[place]).to(like),
            **self.facts(known, certified),
        )

    def looks(self) -> list[Callable[[Known], Plan]]:
        """See :meth:`Search.looks`."""
        return [self._inside_by_bound]

    def _inside_by_bound(self, known: Known) -> Plan:
        everyone = np.arange(self.count)
        # What is exactly on the radius is within.
        limit = np.full(self.count, np.nextafter(self.radius, np.inf))
        found = self.below(everyone, limit)
        untried = ~known.has(found.query, found.point)
        query, point = found.query[untried], found.point[untried]
        beyond = found.beyond
        if self.candidates is not None:
            rank = np.arange(len(query)) - np.searchsorted(query, query)
            within = rank < self.candidates
            np.minimum.at(beyond, query[~within], 0.0)
            query, point = query[within], point[within]
        return Plan(self.unique(np.stack([query, point], 1)), beyond)

    def open(self, known: Known) -> np.ndarray:  # -> (s,)
        """See :meth:`Search.open`: longer than the radius, by less than the error.

        A length is not less than the distance, so what is no longer than the radius is inside.
        """
        least = np.maximum(known.length - known.error, known.bound)
        outside = known.length > self.radius
        return np.asarray(known.met & outside & (least <= self.radius))
