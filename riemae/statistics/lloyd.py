"""Lloyd's algorithm with geodesics only where they decide something.

Every distance of a point and a centre is known by two bounds. The lower one is the ambient
distance, or what an earlier geodesic leaves of it after the centre has moved (the triangle
inequality, as C. Elkan, ICML 2003, uses it; here distances have error bars). The upper one is the
length of a real curve: the last geodesic, whose start has gone along with its centre. A geodesic is
solved where these bounds leave open which centre is nearest.

Means are found by Newton's method from these curves, for all clusters at once. While points change
sides, the coarsest level is enough.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.exceptions import NotConvergedError
from riemae.solvers import Curve, Status
from riemae.solvers.fans import tapered
from riemae.solvers.hooks import features_of
from riemae.solvers.result import remedies
from riemae.solvers.space import Space
from riemae.statistics.groups import Group
from riemae.statistics.joint import SEGMENTS, Aim
from riemae.statistics.means import means_of_groups
from riemae.statistics.minimum import minimised
from riemae.statistics.tangents import Somewhere, paths, roughly_known

# Relative decrement of the last step of means while points change sides. The step is taken, so that
# about as large a share of the spread is left.
_ROUGH = 1e-3
_LOOKS = 50
# Accuracy of the distances that seeds are drawn by.
_SEEDS = 2e-2
# Pairs whose order is open although both were solved are solved again, so much more finely.
_FINER = 1e-2
# Rounding of ambient distances, relative.
_SLACK = 64


class Lloyd:
    """Centres, and what is known of their distances to the points.

    Args:
        geometry: Where.
        space: Its space.
        points: ``(n, m)``.
        count: How many centres there will be.
        rtol: Relative accuracy of distances, and of centres relative to the spread of their
            clusters.

    Attributes:
        centers: ``(c, m)``.
        labels: ``(n,)`` int64.
        low: ``(n, c)``, lower bounds of the distances.
        high: ``(n, c)``, upper bounds; infinite where no curve is known.
        exact: ``(n, c)`` bool: they come from a geodesic to the centre where it is now.
        nodes: ``(n, c, s + 1, m)``, curves from the centres to the points.
        solved: Geodesics that were solved.
        status: The code of the means; of one that is known worse than asked for, if there is one.
    """

    def __init__(
        self, geometry: Somewhere, space: Space, points: Tensor, count: int, rtol: float
    ) -> None:
        n, m = points.shape
        self.geometry = geometry
        self.space = space
        self.points = points
        self.rtol = rtol
        self.features = features_of(space, points)
        self.centers = points.new_full((count, m), torch.nan)
        self.labels = torch.zeros(n, dtype=torch.int64, device=points.device)
        self.low = points.new_zeros(n, count)
        self.high = points.new_full((n, count), torch.inf)
        self.exact = torch.zeros(n, count, dtype=torch.bool, device=points.device)
        self.nodes = points.new_full((n, count, SEGMENTS + 1, m), torch.nan)
        self.solved = 0
        self.status = int(Status.CONVERGED)

    def place(self, column: int, center: Tensor) -> None:
        """Put a centre ``(m,)`` to where nothing is known of it but ambient distances."""
        self.centers[column] = center
        self.low[:, column] = 0.0
        self.high[:, column] = torch.inf
        self.exact[:, column] = False
        self._bound(torch.tensor([column], device=center.device))

    def seed(self, column: int, center: Tensor) -> Tensor:  # -> (n,)
        """A further centre, with the distances to the nearest of all so far."""
        nearest = self.high[:, :column].amin(1) if column else self.high[:, 0].clone()
        self.place(column, center)
        rows = (self.low[:, column] < nearest).nonzero().flatten()
        self._solve(rows, torch.full_like(rows, column), max(self.rtol, _SEEDS))
        return torch.minimum(nearest, self.high[:, column])

    def take(self, row: int, column: int) -> None:
        """Make a point the only member of a cluster, with its centre there."""
        self.place(column, self.points[row])
        rows = torch.tensor([row], device=self.points.device)
        self._solve(rows, torch.full_like(rows, column), self.rtol)
        self.labels = self.labels.clone()
        self.labels[row] = column

    def assign(self) -> None:
        """The nearest centre of every point.

        Raises:
            NotConvergedError: When a geodesic that decides is not found.
        """
        for rtol in (self.rtol, self.rtol, _FINER * self.rtol):
            # Rivals of the nearest, and the nearest itself where it has any.
            least = self.high.amin(1, keepdim=True)
            open_ = self.low < least
            torn = (open_.sum(1) > 1)[:, None]
            wanted = open_ & torn
            if rtol == self.rtol:
                wanted &= ~self.exact
            rows, columns = wanted.nonzero(as_tuple=True)
            if not len(rows):
                continue
            self._solve(rows, columns, rtol)
        self.labels = self.high.argmin(1)

    def undecided(self) -> Tensor:  # -> (k,)
        """The points that may be nearer to another centre, within the errors."""
        own = torch.nn.functional.one_hot(self.labels, len(self.centers)).to(torch.bool)
        others = torch.where(own, torch.inf, self.low).amin(1)
        return (others < self.high.amin(1)).nonzero().flatten()

    def refine(self, names: Tensor) -> None:
        """Move some centres ``(k,)`` to the means of their clusters, roughly."""
        rows, groups = self._members(names)
        curves = self.nodes[rows, self.labels[rows]]
        # Half of the nodes are enough: what they move by, the others follow.
        coarse = curves[:, ::2]
        found = minimised(self.space, coarse, groups, _ROUGH, torch.full_like(names, _LOOKS))
        curves = curves + Curve.from_nodes(found.nodes - coarse).knots(SEGMENTS)
        moved = found.centers.isfinite().all(1)
        centers = torch.where(moved[:, None], found.centers, self.centers[names])
        self._move(names, centers)
        kept = moved[groups.of]
        self._keep(rows[kept], curves[kept])

    def finish(self) -> Tensor:  # -> (n,)
        """Move all centres to their means, accurately; returns the squared distances to them.

        Raises:
            NotConvergedError: When one is not found.
        """
        names = torch.arange(len(self.centers), device=self.points.device)
        names = names[torch.bincount(self.labels, minlength=len(names)) > 0]
        rows, groups = self._members(names)
        found = means_of_groups(
            self.geometry,
            self.space,
            self.centers[names],
            self.points[rows],
            groups,
            Aim(self.rtol, _LOOKS),
            Curve.from_nodes(self.nodes[rows, self.labels[rows]]),
        )
        known = roughly_known(found.status)
        known &= found.joint.centers.isfinite().all(1)
        failed = (~known).nonzero().flatten()
        self.status = int(found.status.max())
        if len(failed):
            raise NotConvergedError(
                "GeodesicKMeans.fit",
                f"centres accurate to rtol={self.rtol:g} of the spread of their clusters",
                f"{len(failed)} of {len(names)} that are not, first number {int(failed[0])}",
                remedies(found.status),
                found.joint.centers,
            )
        self._move(names, found.joint.centers)
        nodes = found.joint.nodes.clone()
        nodes[:, 0] = found.joint.centers[groups.of]
        self._keep(rows, nodes)
        squares = torch.empty_like(found.joint.squares)
        squares[rows] = found.joint.squares
        return squares

    def _members(self, names: Tensor) -> tuple[Tensor, Group]:
        """The points of some clusters, none of them empty."""
        places = self.labels.new_full((len(self.centers),), -1)
        places[names] = torch.arange(len(names), device=names.device)
        of = places[self.labels]
        rows = (of >= 0).nonzero().flatten()
        of = of[rows]
        sizes = torch.bincount(of, minlength=len(names)).to(self.points)
        return rows, Group(of, 1 / sizes[of], len(names))

    def _move(self, names: Tensor, centers: Tensor) -> None:
        """Put centres elsewhere; bounds and curves go along."""
        before = self.centers[names]
        line = Curve.line(before, centers, SEGMENTS)
        step = _length(self.space, line)
        self.low[:, names] = (self.low[:, names] - step).clamp(min=0)
        self.high[:, names] = self.high[:, names] + step
        still = step == 0
        self.exact[:, names] &= still
        taper = torch.nn.functional.pad(tapered(SEGMENTS, centers), (0, 1))
        self.nodes[:, names] += taper[:, None] * (centers - before)[:, None]
        self.centers[names] = centers
        self._bound(names)

    def _keep(self, rows: Tensor, nodes: Tensor) -> None:
        """Curves from the points' own centres."""
        columns = self.labels[rows]
        self.nodes[rows, columns] = nodes
        self.high[rows, columns] = _length(self.space, Curve.from_nodes(nodes))

    def _bound(self, names: Tensor) -> None:
        """Ambient distances are lower bounds."""
        if self.features is None:
            return
        images = features_of(self.space, self.centers[names])
        assert images is not None
        chords = torch.cdist(self.features, images, compute_mode="donot_use_mm_for_euclid_dist")
        slack = 1 - _SLACK * torch.finfo(chords.dtype).eps
        self.low[:, names] = torch.maximum(self.low[:, names], slack * chords)

    def _solve(self, rows: Tensor, columns: Tensor, rtol: float) -> None:
        """Geodesics of pairs.

        Raises:
            NotConvergedError: When one is not found.
        """
        if not len(rows):
            return
        found = paths(self.geometry, self.centers[columns], self.points[rows], rtol)
        self.solved += len(rows)
        known = roughly_known(found.status)
        known &= found.length.isfinite()
        failed = (~known).nonzero().flatten()
        if len(failed):
            pairs = torch.stack([rows[failed], columns[failed]], 1)[:3].tolist()
            raise NotConvergedError(
                "GeodesicKMeans",
                f"every geodesic accurate to rtol={rtol:g}",
                f"{len(failed)} of {len(rows)} that are not, first points and centres {pairs}",
                remedies(found.status),
                found,
            )
        self.nodes[rows, columns] = found.curve.knots(SEGMENTS)
        self.high[rows, columns] = found.length
        # Nothing is known from below where the error is unknown.
        shorter = (found.length - found.error).nan_to_num(0.0, neginf=0.0)
        self.low[rows, columns] = torch.maximum(self.low[rows, columns], shorter)
        self.exact[rows, columns] = rtol <= self.rtol


def _length(space: Space, curve: Curve) -> Tensor:  # -> (p,)
    """Lengths of curves, not less than they are but for what the polygons do not show.

    Polygons through twice as many points fall short by a quarter; as much again is the margin.
    """
    fine = curve.knots(2 * curve.segments)
    inner = space.squared_chords(fine).clamp(min=0).sqrt().sum(1)
    outer = space.squared_chords(fine[:, ::2]).clamp(min=0).sqrt().sum(1)
    return inner + 2 / 3 * (inner - outer).abs()
