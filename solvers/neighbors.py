"""Nearest neighbours by geodesic distance, with a certificate for each row.

The ambient distance of two points is never more than their geodesic distance. So what is farther
than a neighbour that is known, in the ambient space, need not be solved: the nearest by the length
of straight lines are solved first, and then whatever could still be nearer. Points whose ambient
distance is more than the k-th length that was found are not, whatever their geodesics are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError, OptionError
from riemae.numerics.checks import expect_range, expect_rtol
from riemae.numerics.memory import within_memory
from riemae.numerics.precision import in_full_precision
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import features_of, precision_of, solver_of
from riemae.solvers.pairs import expect_point_sets
from riemae.solvers.path import geodesic
from riemae.solvers.progress import Progress, reported
from riemae.solvers.result import Status, remedies
from riemae.solvers.solver import Solver, expect_solver
from riemae.solvers.space import HasSpace, Space, space_of

if TYPE_CHECKING:
    import networkx
    from scipy.sparse import csr_matrix

# Candidates for the first neighbours, in k: of 160 digit codes the ten nearest lie among the twenty
# nearest chords with a recall of 0.999.
_CANDIDATES = 3
# Without lower bounds, so many candidates in k are solved unless the call says otherwise.
_UNBOUNDED = 4
_LINE_SEGMENTS = 8
# Rows of a block: so many pairs of a query and a point.
_PAIRS = 2**22
# How much finer pairs are solved whose order with the k-th neighbour their errors leave open, and
# how often.
_FINER = 1e-2
_FINEST = 1e-10
_ROUNDS = 2
# UMAP's bisection for the width of a neighbourhood.
_HALVINGS = 64
_LEAST_WIDTH = 1e-3


@dataclass(frozen=True, eq=False)
class Neighbors:
    """The k nearest points of each query, nearest first.

    Attributes:
        indices: ``(q, k)`` int64; −1 where too few geodesics have a length.
        distances: ``(q, k)``, lengths of geodesics; NaN where there is none.
        errors: ``(q, k)``, their estimated errors.
        certified: ``(q,)`` bool: nothing else is nearer. Every other point is farther in the
            ambient space already, or its geodesic was found and is longer by more than its error
            (lengths are not shorter than distances); and all that were solved for the row
            converged.
        failed: ``(f, 2)`` int64: query and point of geodesics that miss ``rtol``.
        status: Their :class:`~riemae.solvers.Status` codes, ``(f,)`` int64.
        rtol: The relative accuracy that was asked for.
        solved: How many geodesics were solved.
        points: How many points there are to choose from.
        among_themselves: Whether the queries are the points themselves.
    """

    indices: Tensor
    distances: Tensor
    errors: Tensor
    certified: Tensor
    failed: Tensor
    status: Tensor
    rtol: float
    solved: int
    points: int
    among_themselves: bool

    def to_scipy(self) -> csr_matrix:
        """Distances as a sparse matrix ``(q, points)``, in the order of the neighbours.

        A distance of 0 is an entry of its own. ``metric="precomputed"`` of scikit-learn's
        neighbours, DBSCAN and t-SNE, of HDBSCAN and UMAP take it.
        """
        from scipy.sparse import csr_matrix

        known = self.indices >= 0
        ends = np.concatenate([[0], known.sum(1).cumsum(0).cpu().numpy()])
        columns = self.indices[known].cpu().numpy()
        values = self.distances[known].cpu().numpy()
        return csr_matrix((values, columns, ends), shape=(len(self.indices), self.points))

    def connectivities(self) -> csr_matrix:
        """Weights in [0, 1] of a symmetric neighbourhood graph, ``(points, points)``.

        Those of UMAP's fuzzy simplicial set, as scanpy keeps them in
        ``obsp["connectivities"]``: of each row ``exp(−(d − ρ) / σ)`` beyond the nearest distance
        ρ, with a width σ such that they sum to log₂(k + 1), where UMAP counts a point as its own
        neighbour; then ``a + b − ab`` of both directions
        (L. McInnes, J. Healy, J. Melville, UMAP, arXiv:1802.03426, 2018, algorithms 2 and 3).

        Raises:
            OptionError: Of queries that are not the points themselves.
        """
        self._expect_square("connectivities")
        matrix = self.to_scipy()
        weights = matrix.copy()
        for row in range(len(self.indices)):
            part = slice(matrix.indptr[row], matrix.indptr[row + 1])
            weights.data[part] = _fuzzy(matrix.data[part])
        other = weights.T.tocsr()
        joined = weights + other - weights.multiply(other)
        return joined.tocsr()

    def to_networkx(self) -> networkx.Graph:
        """An undirected ``networkx.Graph`` on all points, distances as edge attribute ``weight``.

        Two points are joined when one is a neighbour of the other.

        Raises:
            OptionError: Of queries that are not the points themselves.
        """
        import networkx

        self._expect_square("to_networkx")
        graph = networkx.Graph()
        graph.add_nodes_from(range(self.points))
        rows, places = (self.indices >= 0).nonzero(as_tuple=True)
        stops = self.indices[rows, places].tolist()
        weights = self.distances[rows, places].tolist()
        edges = zip(rows.tolist(), stops, weights, strict=True)
        graph.add_weighted_edges_from(edges)
        return graph

    def summary(self) -> str:
        """How many rows are certified, and which geodesics failed."""
        told = f"{int(self.certified.sum())} of {len(self.certified)} rows certified"
        if not len(self.failed):
            return told
        counts = Counter(self.status.tolist())
        named = ", ".join(
            f"{count} {Status(code).name.lower()}" for code, count in sorted(counts.items())
        )
        first = ", ".join(str(tuple(pair)) for pair in self.failed[:3].tolist())
        return f"{told}; {named} (first pairs: {first})"

    def __repr__(self) -> str:
        q, k = self.indices.shape
        return (
            f"Neighbors({k} of {self.points} points for each of {q}: {self.summary()}; "
            f"{self.solved} geodesics at rtol={self.rtol:g})"
        )

    def _expect_square(self, where: str) -> None:
        if not self.among_themselves:
            raise OptionError(
                f"Neighbors.{where}",
                "neighbours of the points among themselves",
                "those of other queries",
                "Leave queries out, or use to_scipy().",
            )


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
) -> Neighbors:
    """The ``k`` nearest points of each query by geodesic distance; not differentiable.

    Without ``queries``, those of each point among the others, itself left out. Nothing is solved
    that is farther in the ambient space than the k-th neighbour is along its geodesic; every other
    pair is, once. Memory grows with ``q k``, and with blocks of queries times all points.

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

    Raises:
        NotConvergedError: When ``throw`` and a geodesic misses ``rtol``; it carries the result.
        ShapeError: When a set has more or fewer than two axes, or they differ in dimension.
        DTypeError: When their dtypes or devices differ, or an option has a wrong type.
        DeviceError: When a tensor has no values.
        NonFiniteError: When a point is NaN or infinite.
        OptionError: When ``k`` is not from 1 to the number of points, or ``candidates`` less than
            ``k``.
    """
    others = points if queries is None else queries
    space = space_of(space, points, queries, where="neighbors", finite=True)
    expect_point_sets("neighbors", points=points, queries=others)
    most = len(points) - (queries is None)
    hint = f"There are {most} points to choose from."
    expect_range("neighbors", "k", k, 1, most, integer=True, hint=hint)
    if candidates is not None:
        hint = "At least the neighbours themselves must be solved."
        expect_range("neighbors", "candidates", candidates, k, integer=True, hint=hint)
    expect_solver("neighbors", solver)
    known = precision_of(space, points.dtype)
    rtol = expect_rtol("neighbors", known.geodesic if rtol is None else rtol)
    with torch.no_grad(), reported("neighbors", progress, "queries") as report:
        search = _Search(
            space=space,
            points=points.detach(),
            queries=None if queries is None else queries.detach(),
            k=k,
            rtol=rtol,
            solver=solver,
            candidates=candidates,
            slack=16 * known.length,
        )
        result = search.run(report)
    if throw and len(result.failed):
        raise NotConvergedError(
            "neighbors",
            f"every geodesic accurate to rtol={rtol:g}",
            result.summary(),
            f"{remedies(result.status)} The error's .result holds all neighbours and what failed; "
            "throw=False returns it.",
            result,
        )
    return result


@dataclass
class _Rows:
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


@dataclass
class _Search:
    """One call, its arguments checked."""

    space: Space
    points: Tensor
    queries: Tensor | None
    k: int
    rtol: float
    solver: Solver | None
    candidates: int | None
    slack: float
    solved: int = 0

    def run(self, progress: Progress | None) -> Neighbors:
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
            self._solve_nearest(rows)
            self._solve_rivals(rows)
            self._settle_ties(rows)
            parts.append(self._chosen(rows))
            if progress is not None:
                progress(min(first + size, len(others)), len(others))
        return self._joined(parts, len(others))

    def _bounded(self) -> bool:
        """Whether the space knows lower bounds."""
        one = self.points[:1]
        return self.space.ambient_distance(one, one) is not None

    def _rows(
        self, first: int, queries: Tensor, features: Tensor | None, metric: Tensor | None
    ) -> _Rows:
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
        return _Rows(
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

    def _solve_nearest(self, rows: _Rows) -> None:
        """The k that are nearest by straight lines, among those with the smallest bounds."""
        count = min(_CANDIDATES * self.k, rows.bound.shape[1] - (self.queries is None))
        near = np.argpartition(rows.order, count - 1, axis=1)[:, :count]
        straight = self._straight(rows, near)
        best = np.argpartition(straight, self.k - 1, axis=1)[:, : self.k]
        chosen = np.take_along_axis(near, best, 1)
        wanted = np.zeros(rows.bound.shape, dtype=bool)
        np.put_along_axis(wanted, chosen, True, 1)
        self._solve(rows, wanted, self.rtol)

    def _straight(self, rows: _Rows, near: np.ndarray) -> np.ndarray:  # (b, c) -> (b, c)
        """Lengths of straight lines by a few chords."""
        i, j = (torch.as_tensor(x) for x in self._ends(rows, near))
        found = []
        size = max(1, _PAIRS // (64 * _LINE_SEGMENTS))
        for first in range(0, len(i), size):
            part = slice(first, first + size)
            line = Curve.line(self._query(i[part]), self.points[j[part]], _LINE_SEGMENTS)
            found.append(self.space.squared_chords(line.nodes).sqrt().sum(-1).double().cpu())
        return torch.cat(found).view(near.shape).nan_to_num(torch.inf).numpy()

    def _ends(self, rows: _Rows, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries and points ``(b c,)`` of a table of points ``(b, c)``."""
        i = rows.first + np.arange(len(near)).repeat(near.shape[1])
        return i, near.reshape(-1)

    def _query(self, i: Tensor) -> Tensor:
        others = self.points if self.queries is None else self.queries
        return others[i.to(others.device)]

    def _solve_rivals(self, rows: _Rows) -> None:
        """Whatever could still be nearer than the k-th length that is known."""
        bounded = bool((rows.bound[np.isfinite(rows.bound)] > 0).any())
        limit = self.candidates
        if limit is None and not bounded:
            limit = _UNBOUNDED * self.k
        rivals = (rows.status < 0) & (rows.bound < rows.reach(self.k)[:, None])
        if limit is not None:
            rivals &= self._first(rows, rivals, limit)
        self._solve(rows, rivals, self.rtol)

    def _first(self, rows: _Rows, rivals: np.ndarray, limit: int) -> np.ndarray:
        """The most likely rivals of each row, as many as the limit leaves."""
        order = np.where(rivals, rows.order, np.inf)
        rank = order.argsort(1, kind="stable").argsort(1, kind="stable")
        return np.asarray(rank < (limit - rows.spent)[:, None])

    def _settle_ties(self, rows: _Rows) -> None:
        """Solve more finely what may or may not be among the k nearest."""
        rtol = self.rtol
        for _ in range(_ROUNDS):
            rtol = max(_FINER * rtol, _FINEST)
            if rtol >= self.rtol:
                return
            open_ = self._open(rows)
            if not open_.any():
                return
            self._solve(rows, open_, rtol, again=True)

    def _open(self, rows: _Rows) -> np.ndarray:  # -> (b, n)
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

    def _inside(self, rows: _Rows) -> np.ndarray:  # -> (b, n)
        """The k shortest lengths of each row."""
        lengths = np.where(np.isnan(rows.length), np.inf, rows.length)
        nearest = lengths.argsort(1, kind="stable")[:, : self.k]
        inside = np.zeros(lengths.shape, dtype=bool)
        np.put_along_axis(inside, nearest, True, 1)
        return inside & np.isfinite(lengths)

    def _solve(self, rows: _Rows, wanted: np.ndarray, rtol: float, again: bool = False) -> None:
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

    def _chosen(self, rows: _Rows) -> tuple[np.ndarray, ...]:
        """The neighbours of a block, their certificates, and what failed."""
        lengths = np.where(np.isnan(rows.length), np.inf, rows.length)
        indices = lengths.argsort(1, kind="stable")[:, : self.k]
        distances = np.take_along_axis(lengths, indices, 1)
        errors = np.take_along_axis(rows.error, indices, 1)
        missing = np.isinf(distances)
        tried = rows.status >= 0
        sound = ~(tried & (rows.status != Status.CONVERGED)).any(1)
        unseen = ~tried & (rows.bound < distances[:, -1:])
        certified = sound & ~missing.any(1) & ~unseen.any(1) & ~self._open(rows).any(1)
        row, j = (tried & (rows.status != Status.CONVERGED)).nonzero()
        failed = np.stack([rows.first + row, j, rows.status[row, j]], 1)
        indices = np.where(missing, -1, indices)
        distances = np.where(missing, np.nan, distances)
        return indices, distances, np.where(missing, np.nan, errors), certified, failed

    def _joined(self, parts: list[tuple[np.ndarray, ...]], count: int) -> Neighbors:
        def joined(place: int, like: Tensor | None = None) -> Tensor:
            whole = torch.as_tensor(np.concatenate([part[place] for part in parts]))
            return whole.to(self.points.device if like is None else like)

        like = self.points
        if not count:
            none = torch.zeros(0, self.k, dtype=torch.int64, device=like.device)
            empty = like.new_zeros(0, self.k)
            certified = none[:, 0] >= 0
            failed = torch.zeros(0, 3, dtype=torch.int64)
            table = none, empty, empty, certified, failed
        else:
            table = joined(0), joined(1, like), joined(2, like), joined(3), joined(4).long().cpu()
        indices, distances, errors, certified, failed = table
        return Neighbors(
            indices=indices,
            distances=distances,
            errors=errors,
            certified=certified,
            failed=failed[:, :2],
            status=failed[:, 2],
            rtol=self.rtol,
            solved=self.solved,
            points=len(self.points),
            among_themselves=self.queries is None,
        )


def _fuzzy(distances: np.ndarray) -> np.ndarray:  # (k,) -> (k,)
    """UMAP's memberships of one row."""
    positive = distances[distances > 0]
    nearest = positive.min() if len(positive) else 0.0
    beyond = np.maximum(distances - nearest, 0.0)
    target = np.log2(len(distances) + 1)
    low, high, width = 0.0, np.inf, 1.0
    for _ in range(_HALVINGS):
        if np.exp(-beyond / width).sum() > target:
            high = width
            width = (low + high) / 2
        else:
            low = width
            width = 2 * width if np.isinf(high) else (low + high) / 2
    width = max(width, _LEAST_WIDTH * distances.mean())
    return np.exp(-beyond / width) if width > 0 else np.ones_like(distances)
