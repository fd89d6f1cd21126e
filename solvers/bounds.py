"""Lower bounds of distances between queries and points, and who is near by them.

The ambient distance of two points is never more than their geodesic distance. What a search needs
of all pairs is little: the few smallest bounds of each query, and what lies below a limit. Blocks
of pairs are looked at one after the other, and nothing that grows with all pairs is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from riemae.numerics.tolerances import tolerance
from riemae.solvers.hooks import features_of
from riemae.solvers.space import Space

# Pairs of a query and a point in a block.
_PAIRS = 2**22
# Products find the nearest, differences say how near: so many more are looked at, because rounding
# of products may exchange some.
_SPARE = 16
# Queries that tell whether bounds are of use.
_LOOKS = 16


@dataclass(frozen=True)
class Near:
    """Points with the smallest bounds of each query, ascending, and a bound of all others.

    Attributes:
        point: ``(q, c)`` int64; −1 where there are fewer.
        bound: ``(q, c)``; infinite where there is no point.
        beyond: ``(q,)``, no more than the bound of any point that is not listed; infinite where
            there is none.
    """

    point: np.ndarray
    bound: np.ndarray
    beyond: np.ndarray


@dataclass(frozen=True)
class Below:
    """Pairs with bounds below a limit, by query and then by how likely they are near.

    Attributes:
        query: ``(p,)``.
        point: ``(p,)``.
        bound: ``(p,)``.
        beyond: ``(r,)``, no more than the bound of any other point, for each query asked for.
    """

    query: np.ndarray
    point: np.ndarray
    bound: np.ndarray
    beyond: np.ndarray


@dataclass(frozen=True)
class _Dense:
    """All pairs of some queries, on the host.

    Attributes:
        bound: ``(b, n)``; infinite for a point and itself.
        order: ``(b, n)``, what the nearest are looked for by: smaller is more likely.
    """

    bound: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class _Screen:
    """Features whose products tell roughly how far points are.

    Attributes:
        mean: ``(F,)``.
        centred: ``(n, F)``, features less their mean.
        squares: ``(n,)``, their squared norms.
    """

    mean: Tensor
    centred: Tensor
    squares: Tensor

    def rounding(self, norms: Tensor) -> Tensor:  # (b, 1) -> (b, 1)
        """How wrong squared distances by products may be, at squared norms of the queries."""
        eps = tolerance(self.mean.dtype).eps
        products = 4 * (len(self.mean) + 4) * eps * (norms + self.squares.max())
        size = norms.sqrt() + self.squares.max().sqrt()
        # The mean is taken off with a rounding of its own.
        return products + 8 * eps * size * (self.mean.norm() + size)


class Bounds:
    """Lower bounds between queries and points.

    Args:
        space: Where they are.
        points: ``(n, m)``.
        queries: ``(q, m)``; None for the points themselves, each without itself.
        slack: Relative rounding of ambient distances.
    """

    def __init__(self, space: Space, points: Tensor, queries: Tensor | None, slack: float) -> None:
        self.space = space
        self.points = points
        self.queries = points if queries is None else queries
        self.itself = queries is None
        self.keep = 1 - slack
        self._features = self._featured(points)
        self.known = self._features is not None or self._has_distance()
        self._metric = None if self.known else space.metric(points)
        own = self._features if queries is None else self._featured(queries[:0])
        self._own = own if queries is None else None
        self._screen = self._screened()

    @cached_property
    def useful(self) -> bool:
        """Whether bounds are more than 0, as far as some queries tell."""
        if not self.known:
            return False
        some = np.unique(np.linspace(0, len(self.queries) - 1, _LOOKS).astype(int))
        if not len(self.queries):
            return True
        return any(
            bool((bound[np.isfinite(bound)] > 0).any())
            for block in self._blocks(some)
            for bound in [self._dense(block).bound]
        )

    def near(self, rows: np.ndarray, count: int, first: int = 0) -> Near:
        """The ``count`` nearest points from number ``first`` on, of some queries ``(r,)``."""
        parts = [self._near(some, count, first) for some in self._blocks(rows)]
        return Near(
            point=np.concatenate([part.point for part in parts] or [np.zeros((0, count), int)]),
            bound=np.concatenate([part.bound for part in parts] or [np.zeros((0, count))]),
            beyond=np.concatenate([part.beyond for part in parts] or [np.zeros(0)]),
        )

    def below(self, rows: np.ndarray, limit: np.ndarray) -> Below:
        """Points whose bound is below a limit ``(r,)``, of some queries ``(r,)``."""
        parts = []
        done = 0
        for some in self._blocks(rows):
            parts.append(self._below(some, limit[done : done + len(some)]))
            done += len(some)
        whole = np.zeros(0, dtype=np.int64)
        return Below(
            query=np.concatenate([part.query for part in parts] or [whole]),
            point=np.concatenate([part.point for part in parts] or [whole]),
            bound=np.concatenate([part.bound for part in parts] or [np.zeros(0)]),
            beyond=np.concatenate([part.beyond for part in parts] or [np.zeros(0)]),
        )

    def of(self, query: np.ndarray, point: np.ndarray) -> np.ndarray:  # (p,), (p,) -> (p,)
        """Bounds of pairs; 0 where nothing is known."""
        if not self.known:
            return np.zeros(len(query))
        found = []
        width = 64 if self._features is None else max(self._features.shape[1], 1)
        size = max(1, _PAIRS // width)
        for first in range(0, len(query), size):
            i = self._index(query[first : first + size])
            j = self._index(point[first : first + size])
            if self._features is None:
                distance = self.space.ambient_distance(self.queries[i], self.points[j])
                assert distance is not None
            else:
                apart = self._own_features(i) - self._features[j]
                distance = torch.linalg.vector_norm(apart, dim=-1)
            found.append(self._kept(distance))
        return np.nan_to_num(np.concatenate(found or [np.zeros(0)]), nan=0.0, posinf=np.inf)

    # Blocks by differences: every pair on the host.

    def _dense(self, rows: np.ndarray) -> _Dense:
        i = self._index(rows)
        n = len(self.points)
        if self._metric is not None:
            bound = np.zeros((len(rows), n))
            order = self._mean_norms(self.queries[i])
        else:
            bound = self._ambient(i)
            order = bound.copy()
        # Where nothing is known, a point may be near, and comes last.
        bound = np.where(np.isnan(bound), 0.0, bound)
        order = np.where(np.isfinite(order), order, np.finfo(order.dtype).max)
        if self.itself:
            number = np.arange(len(rows))
            bound[number, rows] = np.inf
            order[number, rows] = np.inf
        return _Dense(bound, order)

    def _ambient(self, i: Tensor) -> np.ndarray:  # (b,) -> (b, n)
        if self._features is not None:
            # Differences, not scalar products: near points must not lose their digits.
            exact = "donot_use_mm_for_euclid_dist"
            found = torch.cdist(self._own_features(i), self._features, compute_mode=exact)
            return self._kept(found)
        rows = []
        for z in self.queries[i]:
            distance = self.space.ambient_distance(z.expand_as(self.points), self.points)
            assert distance is not None
            rows.append(distance)
        return self._kept(torch.stack(rows))

    def _mean_norms(self, queries: Tensor) -> np.ndarray:  # -> (b, n)
        """Differences in the mean metric of both ends: an order where no bound is known."""
        assert self._metric is not None
        rows = []
        for z, g in zip(queries, self.space.metric(queries), strict=True):
            v = self.points - z
            mean = (self._metric + g) / 2
            rows.append(torch.einsum("ni,nij,nj->n", v, mean, v).clamp(min=0).sqrt())
        return np.asarray(torch.stack(rows).double().cpu().numpy())

    # Blocks by products: the nearest and the near ones alone come to the host.

    def _screened(self) -> _Screen | None:
        """What products are taken of; None where features have no value: those must not hide."""
        if self._features is None or not len(self._features):
            return None
        features = self._features
        if features.dtype.itemsize < torch.float32.itemsize:
            features = features.float()
        # Norms about the mean are smaller, and with them the rounding of products.
        mean = features.mean(0)
        centred = features - mean
        squares = centred.square().sum(1)
        if not bool(squares.isfinite().all()):
            return None
        return _Screen(mean, centred, squares)

    def _products(self, rows: np.ndarray) -> tuple[Tensor, Tensor] | None:
        """Squared distances ``(b, n)`` by products, and how wrong they may be, ``(b, 1)``."""
        screen = self._screen
        if screen is None:
            return None
        i = self._index(rows)
        if self.itself:
            own = screen.centred[i]
        else:
            own = self._own_features(i).to(screen.mean) - screen.mean
        norms = own.square().sum(1, keepdim=True)
        if not bool(norms.isfinite().all()):
            return None
        found = torch.addmm(norms + screen.squares, own, screen.centred.T, alpha=-2)
        if self.itself:
            found[torch.arange(len(rows), device=i.device), i] = torch.inf
        return found, screen.rounding(norms)

    def _near(self, rows: np.ndarray, count: int, first: int) -> Near:
        products = None
        if len(self.points) - first > count + _SPARE:
            products = self._products(rows)
        if products is None:
            return self._nearest_of(self._dense(rows), count, first)
        found, wrong = products
        least, place = found[:, first:].topk(count + _SPARE, dim=1, largest=False)
        point = place.cpu().numpy() + first
        query = rows.repeat(point.shape[1])
        bound = self.of(query, point.reshape(-1)).reshape(point.shape)
        beyond = self._kept((least[:, -1:] - wrong).clamp(min=0).sqrt())[:, 0]
        order = np.lexsort((point, bound), axis=1)
        bound = np.take_along_axis(bound, order, 1)
        point = np.take_along_axis(point, order, 1)
        beyond = np.minimum(beyond, bound[:, count])
        return Near(point[:, :count], bound[:, :count], beyond)

    def _nearest_of(self, dense: _Dense, count: int, first: int) -> Near:
        bound, order = dense.bound[:, first:], dense.order[:, first:]
        b, n = bound.shape
        taken = min(count, n)
        place = np.tile(np.arange(n), (b, 1))
        if taken < n:
            place = np.argpartition(order, taken - 1, axis=1)[:, :taken]
        place = np.sort(place, axis=1)
        rank = np.take_along_axis(order, place, 1).argsort(1, kind="stable")
        place = np.take_along_axis(place, rank, 1)
        near = Near(
            point=np.full((b, count), -1),
            bound=np.full((b, count), np.inf),
            beyond=np.full(b, np.inf),
        )
        near.bound[:, :taken] = np.take_along_axis(bound, place, 1)
        itself = np.isinf(np.take_along_axis(order, place, 1))
        near.point[:, :taken] = np.where(itself, -1, place + first)
        if taken < n:
            rest = bound.copy()
            np.put_along_axis(rest, place, np.inf, 1)
            near.beyond[:] = rest.min(1)
        return near

    def _below(self, rows: np.ndarray, limit: np.ndarray) -> Below:
        products = self._products(rows)
        if products is None:
            dense = self._dense(rows)
            row, point = (dense.bound < limit[:, None]).nonzero()
            order = dense.order[row, point]
            bound = dense.bound[row, point]
            others = np.where(dense.bound < limit[:, None], np.inf, dense.bound)
            beyond = others.min(1, initial=np.inf)
        else:
            found, wrong = products
            most = torch.as_tensor(limit / self.keep).to(found)[:, None]
            inside = found - wrong <= most.square() * (1 + 16 * tolerance(found.dtype).eps)
            if self.itself:
                inside &= found.isfinite()
            least = found.masked_fill_(inside, torch.inf).amin(1, keepdim=True) - wrong
            beyond = self._kept(least.clamp(min=0).sqrt())[:, 0]
            row, point = inside.nonzero().cpu().numpy().T
            bound = self.of(rows[row], point)
            outside = bound >= limit[row]
            np.minimum.at(beyond, row[outside], bound[outside])
            row, point, bound = row[~outside], point[~outside], bound[~outside]
            order = bound
        rank = np.lexsort((point, order, row))
        return Below(rows[row[rank]], point[rank], bound[rank], beyond)

    # Pieces.

    def _blocks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        size = max(1, _PAIRS // max(len(self.points), 1))
        for first in range(0, len(rows), size):
            yield rows[first : first + size]

    def _index(self, numbers: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(numbers)).to(self.points.device)

    def _kept(self, distance: Tensor) -> np.ndarray:
        """Distances, less their rounding."""
        return np.asarray(self.keep * distance.double().cpu().numpy())

    def _featured(self, z: Tensor) -> Tensor | None:
        found = features_of(self.space, z)
        return None if found is None else found.flatten(1)

    def _own_features(self, i: Tensor) -> Tensor:
        if self._own is not None:
            return self._own[i]
        # Pairs name a query many times.
        which, place = i.unique(return_inverse=True)
        found = self._featured(self.queries[which])
        assert found is not None
        return found[place]

    def _has_distance(self) -> bool:
        one = self.points[:1]
        return self.space.ambient_distance(one, one) is not None
