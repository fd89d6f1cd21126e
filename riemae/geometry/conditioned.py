"""Manifolds under several conditions at once, as one space.

Solvers work on it when every pair has its own condition.

Solvers choose, drop and double the curves that they work on, so that the place of a curve in a
batch does not tell its condition. Points therefore carry the number of their condition as one more
coordinate, ``(z, number × unit)``. Both ends of a pair have the same number; every curve between
them keeps it, at no speed and no length.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.differential.conditions import Condition
from riemae.exceptions import OptionError
from riemae.geometry.pullback import PullbackMetric
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import concrete
from riemae.solvers import Curve, GeodesicResult
from riemae.solvers.energy import Expansion
from riemae.solvers.linear import BlockTridiagonal
from riemae.solvers.products import Products

# A number must survive what arithmetic on coordinates of its size leaves of it: half a unit is so
# many roundings.
_ROUNDINGS = 64


class Labels:
    """How points get the number of their condition as a last coordinate, and lose it again.

    Args:
        condition: One for each pair, or one for all, which needs no number; None without
            conditions.
        points: Points, which the numbers should be about as large as.

    Attributes:
        labels: How many coordinates, the last ones, only say which condition a point has: 1 or 0.

    Raises:
        OptionError: When there are more conditions than the dtype can count.
    """

    def __init__(self, condition: Condition | None, points: Tensor) -> None:
        self.condition = condition
        self.labels = int(condition is not None and condition.count > 1)
        self.unit = 1.0
        if condition is None or not self.labels:
            return
        most = int(1 / (_ROUNDINGS * tolerance(points.dtype).eps))
        if condition.count > most:
            raise OptionError(
                "Manifold",
                f"at most {most} conditions in one call with {points.dtype}",
                str(condition.count),
                "Split the batch, or use float64.",
            )
        known = points.detach()
        sizes = concrete(torch.where(known.isfinite(), known.abs(), 0.0))
        largest = 0.0
        if sizes is not None and sizes.numel():
            largest = float(sizes.max())
        # A power of two, so that numbers are exact; none larger than the points, as sizes are taken
        # of all coordinates.
        exponent = math.log2((largest or 1.0) / condition.count)
        self.unit = 2.0 ** math.floor(exponent)

    def lift(
        self, z: Tensor, rows: Tensor | None = None
    ) -> Tensor:  # (p, *n, m) -> (p, *n, m + labels)
        """Points with the numbers of their conditions.

        Args:
            z: Points, those of one pair along the first axis.
            rows: The numbers of the pairs, ``(p,)``; those of all pairs by default.
        """
        if self.condition is None or not self.labels:
            return z
        if rows is None:
            rows = self.condition.rows
        number = (rows * self.unit).to(z)
        inner_axes = (1,) * (z.ndim - 1)
        column = number.view(-1, *inner_axes).expand(*z.shape[:-1], 1)
        return torch.cat([z, column], -1)

    def wide(self, v: Tensor) -> Tensor:  # (…, m) -> (…, m + labels)
        """Vectors that do not move the number."""
        return F.pad(v, (0, self.labels)) if self.labels else v

    def narrow(self, x: Tensor) -> Tensor:  # (…, m + labels) -> (…, m)
        """Points or vectors without the number."""
        return x[..., : -self.labels] if self.labels else x

    def lift_curve(self, curve: Curve | Tensor) -> Curve | Tensor:  # (*b)
        """Curves whose points have numbers."""
        if not self.labels:
            return curve
        if not isinstance(curve, Curve):
            return self._lifted(curve)
        nodes = self._lifted(curve.nodes)
        slopes = self.wide(curve.slopes)
        return Curve(nodes, slopes)

    def _lifted(self, nodes: Tensor) -> Tensor:  # (*b, n, m)
        flat = nodes.reshape(-1, *nodes.shape[-2:])
        lifted = self.lift(flat)
        return lifted.view(*nodes.shape[:-1], lifted.shape[-1])

    def narrow_curve(self, curve: Curve) -> Curve:
        """Curves without the numbers."""
        if not self.labels:
            return curve
        nodes = self.narrow(curve.nodes)
        slopes = self.narrow(curve.slopes)
        return Curve(nodes, slopes)

    def narrow_result(self, result: GeodesicResult) -> GeodesicResult:
        """A result without the numbers in its curves; they stand in ``stats["condition"]``."""
        if not self.labels:
            return result
        starts = result.curve.nodes[..., 0, :]
        stats = {**result.stats, "condition": self.rows_of(starts)}
        other = result.alternatives
        narrow_other = None if other is None else self.narrow_result(other)
        return replace(
            result,
            curve=self.narrow_curve(result.curve),
            stats=stats,
            alternatives=narrow_other,
        )

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs: the conditions without a graph."""
        condition = None if self.condition is None else self.condition.detached()
        return {**self.__dict__, "condition": condition}

    def rows_of(self, z: Tensor) -> Tensor:  # (…, m + 1) -> (…) int64
        """The numbers of the conditions of points."""
        assert self.condition is not None
        coordinate = z[..., -1].detach()
        number = (coordinate / self.unit).nan_to_num(0.0, 0.0, 0.0)
        return number.round().long().clamp(0, self.condition.count - 1)


class Conditioned:
    """The :class:`~riemae.solvers.space.Space` of a pull-back under the conditions of pairs.

    Args:
        core: The pull-back, which has seen such points.
        condition: One for each pair, or one for all.
        names: How points tell their condition.

    Attributes:
        labels: How many coordinates, the last ones, do so.
    """

    def __init__(self, core: PullbackMetric, condition: Condition, names: Labels) -> None:
        self.core = core
        self.condition = condition
        self.names = names
        self.labels = names.labels
        self.wide = names.wide
        self.narrow = names.narrow

    def restored(self, curve: Curve, stats: dict[str, Tensor]) -> Curve:
        """The curves of a result as this space knows them."""
        if not self.labels:
            return curve
        number = (stats["condition"] * self.names.unit).to(curve.nodes)
        column = number[..., None, None].expand(*curve.nodes.shape[:-1], 1)
        nodes = torch.cat([curve.nodes, column], -1)
        return Curve(nodes, self.wide(curve.slopes))

    def _conditions(self, z: Tensor) -> Condition:  # (k, m + labels)
        if not self.labels:
            return self.condition.single("Manifold")
        rows = self.names.rows_of(z)
        return self.condition.chosen(rows)

    def _apart(self, z: Tensor) -> tuple[PullbackMetric, Tensor]:  # (k, m + labels) -> (k, m)
        points = self.narrow(z)
        return self._bound(self._conditions(z), points), points

    def _bound(self, condition: Condition, points: Tensor) -> PullbackMetric:  # (k, m)
        if len(points):  # once: another process has seen no point yet
            self.core.bind(points, condition.spread(len(points)))
        return self.core.at(condition)

    def __reduce__(self) -> tuple[Any, ...]:
        return Conditioned, (self.core, self.condition.detached(), self.names)

    # Points (k, m + labels).

    def width(self, z: Tensor) -> int:  # (k, m + labels)
        """As :meth:`riemae.geometry.pullback.PullbackMetric.width`."""
        core, points = self._apart(z)
        return core.width(points)

    def gradients_only(self, z: Tensor) -> bool:  # (k, m + labels)
        """As :meth:`riemae.geometry.pullback.PullbackMetric.gradients_only`."""
        core, points = self._apart(z)
        return core.gradients_only(points)

    def metric(self, z: Tensor) -> Tensor:  # (k, m + labels) -> (k, m + labels, m + labels)
        """The metric tensor; the number has one of its own, of the same size."""
        core, points = self._apart(z)
        g = core.metric(points)
        if not self.labels:
            return g
        diagonal = g.diagonal(dim1=-2, dim2=-1)
        mean = diagonal.mean(-1)
        corner = F.pad(mean[:, None, None], (points.shape[-1], 0) * 2)
        return F.pad(g, (0, 1, 0, 1)) + corner

    def norm(self, z: Tensor, v: Tensor) -> Tensor:  # (k, m + labels), (k, m + labels) -> (k,)
        """Lengths of tangent vectors, as far as they do not move the number."""
        core, points = self._apart(z)
        return core.norm(points, self.narrow(v))

    def acceleration(
        self, z: Tensor, v: Tensor
    ) -> Tensor:  # (k, m + labels), (k, m + labels) -> (k, m + labels)
        """The geodesic equation's right-hand side."""
        core, points = self._apart(z)
        found = core.acceleration(points, self.narrow(v))
        return self.wide(found)

    # Curves (p, n + 1, m + labels), each at the number of its first point.

    def _along(self, nodes: Tensor) -> tuple[PullbackMetric, Tensor]:
        core, _ = self._apart(nodes[:, 0])
        return core, self.narrow(nodes)

    def squared_chords(self, nodes: Tensor) -> Tensor:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.squared_chords`."""
        core, nodes = self._along(nodes)
        return core.squared_chords(nodes)

    def embedded(self, points: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor | None:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.embedded`."""
        core, points = self._along(points)
        return core.embedded(points, then)

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.expand`.

        To move all numbers of a curve costs what moving its points does.
        """
        core, narrow = self._along(nodes)
        found = core.expand(narrow, second_order)
        if not self.labels:
            return found
        n = nodes.shape[1] - 1
        diagonal = found.gauss_newton.diagonal.diagonal(dim1=-2, dim2=-1)
        size = diagonal.flatten(1).mean(1) / (4 * n)
        corrected = None
        if found.correction is not None:
            corrected = _padded(found.correction, n, torch.zeros_like(size))
        return replace(
            found,
            gradient=self.wide(found.gradient),
            gauss_newton=_padded(found.gauss_newton, n, size),
            correction=corrected,
        )

    def energy_and_gradient(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.energy_and_gradient`."""
        core, narrow = self._along(nodes)
        energy, gradient = core.energy_and_gradient(narrow)
        return energy, self.wide(gradient)

    def products(self, nodes: Tensor) -> Products:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.products`."""
        core, narrow = self._along(nodes)
        found = core.products(narrow)
        if not self.labels:
            return found

        def labelled(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            def applied(v: Tensor) -> Tensor:
                number = v[..., -1:]
                return torch.cat([product(self.narrow(v)), number], -1)

            return applied

        known = found.gauss_newton
        return replace(
            found,
            gradient=self.wide(found.gradient),
            hessian=labelled(found.hessian),
            gauss_newton=None if known is None else labelled(known),
        )

    def residual(self, nodes: Tensor) -> Tensor | None:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.residual`."""
        core, narrow = self._along(nodes)
        found = core.residual(narrow)
        return None if found is None else self.wide(found)

    def velocities(self, nodes: Tensor) -> Tensor | None:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.velocities`."""
        core, narrow = self._along(nodes)
        found = core.velocities(narrow)
        return None if found is None else self.wide(found)

    def ambient_distance(self, z0: Tensor, z1: Tensor) -> Tensor | None:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.ambient_distance`."""
        batch = z0.shape[:-1]
        first = z0.reshape(-1, z0.shape[-1])
        last = z1.reshape(-1, z1.shape[-1])
        core, start = self._apart(first)
        found = core.ambient_distance(start, self.narrow(last))
        return None if found is None else found.view(batch)

    def ambient_features(self, z: Tensor) -> Tensor | None:
        """As :meth:`riemae.geometry.pullback.PullbackMetric.ambient_features`."""
        core, points = self._apart(z)
        return core.ambient_features(points)


def _padded(matrix: BlockTridiagonal, n: int, size: Tensor) -> BlockTridiagonal:
    """Blocks with one more coordinate, whose energy is ``size · n Σ (difference)²``."""
    m = matrix.diagonal.shape[-1]

    def padded(blocks: Tensor, factor: int) -> Tensor:
        number = (factor * n * size)[:, None, None, None]
        corner = number.expand(*blocks.shape[:2], 1, 1)
        return F.pad(blocks, (0, 1, 0, 1)) + F.pad(corner, (m, 0, m, 0))

    diagonal = padded(matrix.diagonal, 4)
    upper = padded(matrix.upper, -2)
    return BlockTridiagonal(diagonal, upper)
