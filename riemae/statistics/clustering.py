"""Clusters by geodesic distance: k-means with Fréchet means, k-medoids, and a hierarchy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from riemae import solvers
from riemae.exceptions import OptionError
from riemae.numerics.checks import expect_choice, expect_range, expect_rtol
from riemae.numerics.random import as_generator
from riemae.solvers import Status
from riemae.solvers.space import Space, expect_space, space_of
from riemae.statistics.arguments import takes_codes
from riemae.statistics.lloyd import Lloyd
from riemae.statistics.matrices import Distances, distance_values
from riemae.statistics.tangents import Somewhere, expect_points, expect_steps


class GeodesicKMeans:
    """k-means by geodesic distance, its centres Fréchet means.

    Seeds are drawn as in k-means++ (D. Arthur, S. Vassilvitskii, 2007). The nearest centre of every
    point is found exactly: :func:`riemae.solvers.neighbors` leaves out what the ambient distance
    rules out.

    Args:
        geometry: A :class:`riemae.Manifold`, or a space.
        n_clusters: How many.
        n_init: Seedings; the best result counts.
        max_steps: Rounds of assigning points and moving centres.
        rtol: Relative accuracy of distances, and of centres relative to their cluster's spread.
            Less than the default takes many times as long, because centres are then shot for.
        generator: Of the seeds.

    Attributes:
        labels_: ``(n,)`` int64, the cluster of each point.
        cluster_centers_: ``(c, m)``.
        inertia_: The sum of squared distances to the nearest centre.
        n_iter_: Rounds of the best result.
        converged_: Whether its labels had settled.
        undecided_: ``(k,)`` int64, the points that may be nearer to another centre, within the
            errors of their distances: none, but for ties and for decoders with kinks.
        status_: The :class:`~riemae.solvers.Status` code of the centres: CONVERGED when all are as
            accurate as ``rtol`` asks for.

    Raises:
        OptionError: For an option out of range.
    """

    def __init__(
        self,
        geometry: Somewhere,
        n_clusters: int = 8,
        *,
        n_init: int = 1,
        max_steps: int = 50,
        rtol: float = 1e-2,
        generator: torch.Generator | int | None = 0,
    ) -> None:
        where = "GeodesicKMeans"
        expect_space(where, geometry)
        expect_range(where, "n_clusters", n_clusters, 1, integer=True, hint="It counts clusters.")
        expect_range(where, "n_init", n_init, 1, integer=True, hint="It counts seedings.")
        expect_steps(where, "max_steps", max_steps)
        self.geometry = geometry
        self.n_clusters = n_clusters
        self.n_init = n_init
        self.max_steps = max_steps
        self.rtol = expect_rtol(where, rtol)
        self.generator = generator

    @takes_codes
    def fit(self, points: Tensor) -> GeodesicKMeans:  # (n, m)
        """Find the clusters.

        Raises:
            OptionError: For fewer points than clusters.
            NotConvergedError: When a geodesic or a centre is not found at all. What is found less
                accurately than asked for shows in ``undecided_`` and ``status_``.
        """
        where = "GeodesicKMeans.fit"
        expect_points(where, points, self.n_clusters)
        points = points.detach()
        source = as_generator("GeodesicKMeans", self.generator)
        with torch.no_grad():
            space = space_of(self.geometry, points, where=where, finite=True)
            runs = [self._run(space, points, source) for _ in range(self.n_init)]
        best = min(runs, key=lambda run: run[1])
        state, self.inertia_, self.n_iter_, self.converged_ = best
        self.labels_ = state.labels
        self.cluster_centers_ = state.centers
        self.undecided_ = state.undecided()
        self.status_ = state.status
        return self

    @takes_codes
    def predict(self, points: Tensor) -> Tensor:  # (k, m) -> (k,)
        """The nearest centre of each point.

        Raises:
            OptionError: Before ``fit``.
        """
        if not hasattr(self, "cluster_centers_"):
            raise OptionError("GeodesicKMeans.predict", "a fitted model", "none", "Call fit first.")
        return self._nearest(points, self.cluster_centers_)[0]

    @takes_codes
    def fit_predict(self, points: Tensor) -> Tensor:  # (n, m) -> (n,)
        """``fit``, and its labels."""
        return self.fit(points).labels_

    def __repr__(self) -> str:
        told = f", inertia {self.inertia_:.4g}" if hasattr(self, "inertia_") else ""
        return f"GeodesicKMeans({self.n_clusters} clusters{told})"

    def _run(
        self, space: Space, points: Tensor, source: torch.Generator | None
    ) -> tuple[Lloyd, float, int, bool]:
        state = Lloyd(self.geometry, space, points, self.n_clusters, self.rtol)
        self._seed(state, source)
        state.assign()
        stale = torch.ones(self.n_clusters, dtype=torch.bool, device=points.device)
        for step in range(1, self.max_steps + 1):
            self._fill(state, stale)
            before = state.labels
            # Clusters that nobody has joined or left have their means already.
            state.refine(stale.nonzero().flatten())
            state.assign()
            stale = _changed(before, state.labels, self.n_clusters)
            if not bool(stale.any()):
                squares = state.finish()
                state.assign()
                stale = _changed(before, state.labels, self.n_clusters)
            if not bool(stale.any()):
                return state, float(squares.sum()), step, True
        inertia = float(state.high.amin(1).square().sum())
        state.status = max(state.status, int(Status.MAX_STEPS))
        return state, inertia, self.max_steps, False

    def _nearest(self, points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        found = solvers.neighbors(self.geometry, centers, 1, points, rtol=self.rtol)
        return found.indices[:, 0], found.distances[:, 0]

    def _seed(self, state: Lloyd, source: torch.Generator | None) -> None:
        """Centres at points, drawn by their squared distances to those before."""
        points = state.points
        weights = torch.ones(len(points))
        chosen: list[int] = []
        for column in range(self.n_clusters):
            if not bool(weights.sum() > 0):
                weights = torch.ones(len(points))
                weights[chosen] = 0
            drawn = torch.multinomial(weights.cpu().double(), 1, generator=source)
            chosen.append(int(drawn))
            weights = state.seed(column, points[chosen[-1]]).square()

    def _fill(self, state: Lloyd, stale: Tensor) -> None:
        """Every empty cluster gets the point that is farthest from its centre."""
        empty = torch.bincount(state.labels, minlength=self.n_clusters) == 0
        farthest = state.high.amin(1).argsort(descending=True).tolist()
        for cluster in empty.nonzero().flatten().tolist():
            sizes = torch.bincount(state.labels, minlength=self.n_clusters)
            # Nobody is left alone for it.
            point = next((i for i in farthest if sizes[state.labels[i]] > 1), None)
            if point is None:
                continue
            stale[state.labels[point]] = True
            stale[cluster] = True
            state.take(point, cluster)


def _changed(before: Tensor, after: Tensor, count: int) -> Tensor:  # -> (count,) bool
    """The clusters that points have left or joined."""
    moved = before != after
    found = torch.zeros(count, dtype=torch.bool, device=after.device)
    found[before[moved]] = True
    found[after[moved]] = True
    return found


class GeodesicKMedoids:
    """k-medoids of given distances: centres are points of the data.

    Greedy seeds, then the exchange of a medoid and another point that gains most, while one does
    (L. Kaufman, P. J. Rousseeuw, Finding Groups in Data, 1990, in the form of E. Schubert, P. J.
    Rousseeuw, Information Systems 101, 2021). It needs no generator.

    Args:
        n_clusters: How many.
        max_steps: Exchanges.

    Attributes:
        labels_: ``(n,)`` int64, the cluster of each point.
        medoid_indices_: ``(c,)`` int64, the points that are centres.
        inertia_: The sum of distances to the nearest medoid.
        n_iter_: Exchanges made.
        converged_: Whether no exchange gains any more.

    Raises:
        OptionError: For an option out of range.
    """

    def __init__(self, n_clusters: int = 8, *, max_steps: int = 300) -> None:
        where = "GeodesicKMedoids"
        expect_range(where, "n_clusters", n_clusters, 1, integer=True, hint="It counts clusters.")
        expect_steps(where, "max_steps", max_steps)
        self.n_clusters = n_clusters
        self.max_steps = max_steps

    def fit(self, distances: Distances) -> GeodesicKMedoids:  # (n, n)
        """Find the medoids of a matrix of distances, such as ``M.distance_matrix`` gives.

        Raises:
            ShapeError: When it is not square.
            OptionError: For fewer points than clusters, or distances that are NaN, infinite or
                negative.
        """
        d = distance_values("GeodesicKMedoids.fit", distances, self.n_clusters)
        medoids = _greedy(d, self.n_clusters)
        self.converged_ = False
        self.n_iter_ = 0
        while self.n_iter_ < self.max_steps:
            exchange = _best_exchange(d, medoids)
            if exchange is None:
                self.converged_ = True
                break
            place, point = exchange
            medoids[place] = point
            self.n_iter_ += 1
        self.medoid_indices_ = torch.as_tensor(medoids)
        near = d[:, medoids]
        self.labels_ = torch.as_tensor(near.argmin(1))
        self.inertia_ = float(near.min(1).sum())
        return self

    @takes_codes
    def fit_predict(self, distances: Distances) -> Tensor:  # -> (n,)
        """``fit``, and its labels."""
        return self.fit(distances).labels_

    def __repr__(self) -> str:
        told = f", inertia {self.inertia_:.4g}" if hasattr(self, "inertia_") else ""
        return f"GeodesicKMedoids({self.n_clusters} clusters{told})"


class GeodesicHierarchy:
    """Clusters that merge from single points up, by scipy's agglomerative clustering.

    Args:
        n_clusters: How many are left.
        linkage: ``"average"``, ``"complete"`` or ``"single"``: which distance of their points is
            the distance of two clusters. Ward's needs means, which a matrix does not have.

    Attributes:
        labels_: ``(n,)`` int64, the cluster of each point.
        tree_: ``(n − 1, 4)`` float64, the merges as :func:`scipy.cluster.hierarchy.linkage` gives
            them, for its ``dendrogram`` and ``fcluster``.

    Raises:
        OptionError: For an option out of range.
    """

    def __init__(self, n_clusters: int = 2, *, linkage: str = "average") -> None:
        where = "GeodesicHierarchy"
        expect_range(where, "n_clusters", n_clusters, 1, integer=True, hint="It counts clusters.")
        expect_choice(where, "linkage", linkage, ("average", "complete", "single"))
        self.n_clusters = n_clusters
        self.linkage = linkage

    def fit(self, distances: Distances) -> GeodesicHierarchy:  # (n, n)
        """Merge the points of a matrix of distances, such as ``M.distance_matrix`` gives.

        Raises:
            ShapeError: When it is not square.
            OptionError: For fewer points than clusters, fewer than two, or distances that are NaN,
                infinite or negative.
        """
        from scipy.cluster import hierarchy
        from scipy.spatial.distance import squareform

        d = distance_values("GeodesicHierarchy.fit", distances, max(2, self.n_clusters))
        # Both directions of a geodesic agree to its accuracy only.
        even = (d + d.T) / 2
        np.fill_diagonal(even, 0.0)
        tree = hierarchy.linkage(squareform(even, checks=False), method=self.linkage)
        # The last merges are left out, whatever their heights: as many clusters stay.
        labels = hierarchy.cut_tree(tree, n_clusters=self.n_clusters)[:, 0]
        self.tree_ = torch.as_tensor(tree)
        self.labels_ = torch.as_tensor(labels.astype(np.int64))
        return self

    @takes_codes
    def fit_predict(self, distances: Distances) -> Tensor:  # -> (n,)
        """``fit``, and its labels."""
        return self.fit(distances).labels_

    def __repr__(self) -> str:
        return f"GeodesicHierarchy({self.n_clusters} clusters, {self.linkage} linkage)"


def _greedy(d: np.ndarray, count: int) -> np.ndarray:
    """Medoids one after the other, each where it lowers the sum most."""
    medoids = [int(d.sum(0).argmin())]
    nearest = d[:, medoids[0]].copy()
    while len(medoids) < count:
        gains = np.maximum(nearest[:, None] - d, 0.0).sum(0)
        gains[medoids] = -1.0
        medoids.append(int(gains.argmax()))
        nearest = np.minimum(nearest, d[:, medoids[-1]])
    return np.array(medoids, dtype=np.int64)


def _best_exchange(d: np.ndarray, medoids: np.ndarray) -> tuple[int, int] | None:
    """Which medoid gives way to which point; None where no exchange lowers the sum."""
    near = d[:, medoids]
    order = near.argsort(1, kind="stable")
    rows = np.arange(len(d))
    own = order[:, 0]
    first = near[rows, own]
    if len(medoids) > 1:
        second = near[rows, order[:, 1]]
    else:
        second = np.full(len(d), np.inf)
    # What a new medoid gains where no old one goes, and what the loss of each old one changes.
    shared = np.minimum(d - first[:, None], 0.0)
    instead = np.minimum(d, second[:, None]) - first[:, None] - shared
    change = np.tile(shared.sum(0), (len(medoids), 1))
    np.add.at(change, own, instead)
    change[:, medoids] = np.inf
    place, point = np.unravel_index(change.argmin(), change.shape)
    if change[place, point] >= -1e-12 * first.sum():
        return None
    return int(place), int(point)
