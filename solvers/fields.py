"""Distances from one point to all nodes of a grid: the eikonal equation.

``g^{ij} ∂_i u ∂_j u = 1`` has the distance as its solution. On a grid, the inverse metric of each
node is a sum ``Σ_k ρ_k e_k e_kᵀ`` with weights of at least 0 and whole numbers as offsets, by the
reduction of E. Selling (1874); then ``Σ_k ρ_k max(0, u(x) − u(x ± e_k))² = 1`` is a scheme that
holds for metrics as skew as they come (J.-M. Mirebeau, Riemannian fast-marching on Cartesian grids
using Voronoi's first reduction of quadratic forms, SIAM J. Numer. Anal. 57, 2019). All nodes are
updated at once until none changes. Unlike a path that is bent, this finds the shortest way in the
box, whatever lies between.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from riemae.exceptions import NotConvergedError, OptionError
from riemae.numerics.checks import expect_range, expect_shape, expect_values
from riemae.numerics.precision import in_full_precision
from riemae.solvers.path import geodesic
from riemae.solvers.space import HasSpace, Space, space_of

# Nodes so near the source are solved as geodesics, in spacings and as a share of the box: level
# sets are bent there, and errors of a scheme that begins closer fall with the spacing only.
_NEAR = 4.5
_NEAR_SHARE = 0.1
_NEAR_RTOL = 1e-5
# Rounds, in nodes along the longest axis: a value travels an offset in each.
_ROUNDS = 12
_SETTLED = 1e-10
# Rounds of exchanges until a metric is reduced.
_REDUCTIONS = 200
# Of the second-order differences, the share of a change that is taken: they need not contract.
_DAMPING = 0.7


@dataclass(frozen=True, eq=False)
class DistanceField:
    """Distances from a point on a grid.

    Attributes:
        source: ``(m,)``.
        axes: m tensors, the coordinates of the nodes along each axis.
        values: ``(n_1, …, n_m)``, distances; infinity where there is no metric, or no way.
        errors: ``(n_1, …, n_m)``, estimated: next to the source, those of the geodesics that the
            field begins with; elsewhere the largest of these, and the largest difference, on the
            nodes around, to the field on every second node. Ways out of the box and back are not in
            it.
    """

    source: Tensor
    axes: tuple[Tensor, ...]
    values: Tensor
    errors: Tensor

    def nodes(self) -> Tensor:  # -> (n_1, …, n_m, m)
        """The coordinates of all nodes."""
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"), -1)

    def __repr__(self) -> str:
        sizes = " x ".join(str(n) for n in self.values.shape)
        known = self.values.isfinite()
        farthest = float(self.values[known].amax())
        error = float(self.errors[known].median())
        return f"DistanceField({sizes} nodes, up to {farthest:.4g}, median error {error:.1e})"


@in_full_precision
def distance_field(
    space: Space | HasSpace,
    source: Tensor,
    low: Tensor,
    high: Tensor,
    shape: int | Sequence[int] = 65,
) -> DistanceField:  # (m,), (m,), (m,)
    """Geodesic distances from a point to all nodes of a grid in m ≤ 3 dimensions.

    The shortest way inside the box counts. Errors fall with the square of the spacing where the
    distance is smooth, and with the spacing where two shortest ways meet. Not differentiable.

    Args:
        space: A :class:`riemae.Manifold`, or anything with the :class:`Space` protocol.
        source: The point, inside the box.
        low: Lower corner.
        high: Upper corner.
        shape: Nodes along each axis, one number for all or m of them, 9 at least; odd numbers have
            the corners on the coarse grid as well.

    Raises:
        ShapeError: When the corners are not points like the source.
        OptionError: For more than 3 dimensions, a source outside the box, or a grid too small.
        NotConvergedError: When values do not settle; its result holds them.
    """
    where = "distance_field"
    expect_values(where, "source", source)
    expect_shape(where, "source", source, ("m",), "One point.")
    m = len(source)
    expect_values(where, "low", low)
    expect_values(where, "high", high)
    source, low, high = (x.detach().to(source) for x in (source, low, high))
    expect_shape(where, "low", low, (m,), "One corner of a box.")
    expect_shape(where, "high", high, (m,), "One corner of a box.")
    if m > 3:
        hint = "Grids grow as n^m: use M.graph(points) or M.distance_matrix there."
        raise OptionError(where, "1 to 3 dimensions", str(m), hint)
    inside = bool(((low < source) & (source < high)).all()) and bool((high - low).isfinite().all())
    if not inside:
        got = f"{source.tolist()} for {low.tolist()} to {high.tolist()}"
        raise OptionError(where, "a source inside a box with low < high", got, "Widen the box.")
    given: Any = shape
    several = isinstance(given, Sequence) and not isinstance(given, str)
    sizes = tuple(given) if several else (given,) * m
    if len(sizes) != m:
        raise OptionError(where, f"shape as one number or {m}", str(shape), "Try shape=65.")
    for n in sizes:
        expect_range(where, "shape", n, 9, integer=True, hint="Nodes along an axis.")
    space = space_of(space, source[None], where=where)
    axes = tuple(
        torch.linspace(float(a), float(b), n, dtype=source.dtype, device=source.device)
        for a, b, n in zip(low, high, sizes, strict=True)
    )
    with torch.no_grad():
        steps = torch.tensor(sizes).to(source) - 1
        reach = (high - low) * (_NEAR / steps).clamp(min=_NEAR_SHARE)
        grid, fine = _solved(space, source, axes, reach)
        _, coarse = _solved(space, source, tuple(axis[::2] for axis in axes), reach)
        every = tuple(slice(None, None, 2) for _ in range(m))
        spread = _spread((fine[every] - coarse).abs().nan_to_num(torch.inf), fine.shape)
        begun = grid.begun.amax()
        # Both grids begin with the same geodesics: their difference there says nothing.
        errors = torch.where(grid.fixed, grid.begun, spread.flatten() + begun).view(fine.shape)
    return DistanceField(source, axes, fine, errors)


def _solved(
    space: Space, source: Tensor, axes: tuple[Tensor, ...], reach: Tensor
) -> tuple[_Grid, Tensor]:
    """One grid and its field, of geodesics as far from the source as ``reach`` says for each axis.

    Raises:
        NotConvergedError: When it does not settle.
    """
    grid = _Grid(space, source, axes, reach)
    values = grid.settled(grid.start(), first=True)
    return grid, grid.settled(values, first=False).view(grid.shape)


class _Grid:
    """A grid with its weights and offsets, all nodes in one row.

    Attributes:
        fixed: ``(k,)`` bool: nodes whose values are lengths of geodesics, after :meth:`start`.
        begun: ``(k,)``, errors of these; 0 elsewhere.
    """

    def __init__(
        self, space: Space, source: Tensor, axes: tuple[Tensor, ...], reach: Tensor
    ) -> None:
        self.space = space
        self.source = source
        self.shape = tuple(len(axis) for axis in axes)
        self.spacing = torch.stack([axis[1] - axis[0] for axis in axes])
        self.reach = reach
        self.nodes = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
        metric = self._metric()
        self.known = metric.isfinite().all(-1).all(-1)
        eye = torch.eye(len(axes)).to(metric)
        metric = torch.where(self.known[:, None, None], metric, eye)
        # In units of the spacing.
        scaled = metric * self.spacing[:, None] * self.spacing
        weights, offsets = selling(torch.linalg.inv(scaled))
        self.weights = weights
        ahead = [self._there(offsets * step) for step in (1, -1, 2, -2)]
        self.near, self.far = torch.stack(ahead[:2]), torch.stack(ahead[2:])

    def _metric(self) -> Tensor:
        """Of all nodes; NaN where there is none that is positive."""
        metric = self.space.metric(self.nodes)
        sound = metric.isfinite().all(-1).all(-1)
        lowest = torch.full_like(metric[:, 0, 0], -1.0)
        lowest[sound] = torch.linalg.eigvalsh(metric[sound])[:, 0]
        return torch.where((lowest > 0)[:, None, None], metric, torch.nan)

    def _there(self, offsets: Tensor) -> Tensor:  # (k, c, m) -> (k, c)
        """Numbers of the nodes at offsets; of those outside, that of a last node at infinity."""
        place = torch.zeros(offsets.shape[:2], dtype=torch.int64, device=offsets.device)
        sound = torch.ones_like(place, dtype=torch.bool)
        own = torch.arange(len(self.nodes), device=offsets.device)
        stride = len(self.nodes)
        for a, n in enumerate(self.shape):
            stride //= n
            at = (own // stride % n)[:, None] + offsets[..., a]
            sound &= (at >= 0) & (at < n)
            place += at * stride
        return torch.where(sound, place, len(self.nodes))

    def start(self) -> Tensor:
        """Distances of the nodes next to the source, infinity elsewhere."""
        values = torch.full_like(self.nodes[:, 0], torch.inf)
        near = ((self.nodes - self.source).abs() <= self.reach).all(-1)
        rows = (near & self.known).nonzero().flatten()
        ends = self.nodes[rows]
        # A node at the source itself is at no distance.
        apart = (ends != self.source).any(-1)
        found = geodesic(
            self.space,
            self.source.expand(int(apart.sum()), -1),
            ends[apart],
            rtol=max(_NEAR_RTOL, 1e3 * torch.finfo(ends.dtype).eps),
            throw=False,
        )
        lengths = torch.zeros_like(ends[:, 0])
        lengths[apart] = found.length.nan_to_num(torch.inf)
        errors = torch.zeros_like(lengths)
        errors[apart] = found.error
        values[rows] = lengths
        sound = lengths.isfinite()
        self.fixed = torch.zeros_like(self.known)
        self.fixed[rows[sound]] = True
        self.begun = torch.zeros_like(values)
        self.begun[rows[sound]] = errors[sound]
        return values

    def settled(self, values: Tensor, first: bool) -> Tensor:
        """Values that an update leaves alone, of first or of second order.

        Raises:
            NotConvergedError: When they go on changing.
        """
        most = _ROUNDS * max(self.shape)
        for _ in range(most):
            new = self._updated(values, first)
            new = torch.where(self.fixed, values, torch.where(self.known, new, torch.inf))
            if first:
                new = torch.minimum(new, values)
            else:
                known = values.isfinite() & new.isfinite()
                new = torch.where(known, values + _DAMPING * (new - values), values)
            change = (new - values).nan_to_num(0.0, posinf=torch.inf).abs().amax()
            scale = values[values.isfinite()].amax()
            values = new
            if float(change) <= max(_SETTLED, 4 * torch.finfo(values.dtype).eps) * float(scale):
                return values
        wanted = f"values that settle in {most} rounds"
        hint = "The error's result holds the field as it stands; a finer grid may help."
        got = f"a change of {float(change):.1e} in the last"
        raise NotConvergedError("distance_field", wanted, got, hint, values.view(self.shape))

    def _updated(self, values: Tensor, first: bool) -> Tensor:
        """What the scheme makes of the values around each node."""
        padded = torch.cat([values, values.new_full((1,), torch.inf)])
        both = padded[self.near]  # (2, k, c)
        side = both.argmin(0, keepdim=True)
        one = both.gather(0, side)[0]
        weights = self.weights
        if not first:
            two = padded[self.far].gather(0, side)[0]
            # (3 u − 4 u₁ + u₂) / 2 in place of u − u₁ where values fall on the way back.
            smooth = (two <= one) & one.isfinite()
            one = torch.where(smooth, (4 * one - two.nan_to_num(posinf=0.0)) / 3, one)
            weights = torch.where(smooth, 2.25 * weights, weights)
        return _root(weights, one)


def _root(weights: Tensor, known: Tensor) -> Tensor:  # (k, c), (k, c) -> (k,)
    """The u with ``Σ ρ max(0, u − v)² = 1``: of the smallest v so many as lie below it."""
    # Offsets without weight come last, as do nodes without a value.
    order = torch.where(weights > 0, known, torch.inf).argsort(1)
    v = known.gather(1, order)
    rho = weights.gather(1, order)
    rho = torch.where(v.isfinite(), rho, 0.0)
    # Relative to the smallest, or differences of large numbers would cancel.
    base = v[:, :1].nan_to_num(posinf=0.0)
    v = torch.where(rho > 0, v - base, 0.0)
    a = rho.cumsum(1)
    b = (rho * v).cumsum(1)
    c = (rho * v.square()).cumsum(1) - 1
    inner = b.square() - a * c
    root = (b + inner.clamp(min=0.0).sqrt()) / a
    bound = torch.cat([v[:, 1:], torch.full_like(base, torch.inf)], 1)
    later = torch.cat([rho[:, 1:], torch.zeros_like(base)], 1)
    bound = torch.where(later > 0, bound, torch.inf)
    sound = (a > 0) & (root <= bound) & (inner >= 0)
    first = sound.to(torch.int64).argmax(1, keepdim=True)
    found = root.gather(1, first)[:, 0] + base[:, 0]
    return torch.where(sound.any(1), found, torch.inf)


def selling(matrix: Tensor) -> tuple[Tensor, Tensor]:  # (k, m, m) -> (k, c), (k, c, m)
    """Weights and offsets with ``Σ ρ e eᵀ`` equal to a positive matrix, by Selling's reduction.

    c is 1, 3 and 6 in one, two and three dimensions. Vectors ``b_0 + … + b_m = 0`` are exchanged
    until none of their products is positive; then ``ρ_ij = −b_i · D b_j``, and ``e_ij`` stands
    upright on all the others.

    Raises:
        OptionError: When a matrix is so skew that the exchanges do not end.
    """
    k, m, _ = matrix.shape
    pairs = list(itertools.combinations(range(m + 1), 2))
    basis = torch.cat([torch.eye(m), -torch.ones(1, m)]).to(matrix)
    b = basis.expand(k, m + 1, m).clone()
    scale = matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
    for _ in range(_REDUCTIONS):
        moved = False
        for i, j in pairs:
            product = torch.einsum("ki,kij,kj->k", b[:, i], matrix, b[:, j])
            over = product > 1e-12 * scale
            if not bool(over.any()):
                continue
            moved = True
            chosen = b[over]
            turned = chosen[:, i].clone()
            if m == 1:
                chosen[:, i] = -turned
            elif m == 2:
                other = 3 - i - j
                chosen[:, other] = turned - chosen[:, j]
                chosen[:, i] = -turned
            else:
                for other in set(range(4)) - {i, j}:
                    chosen[:, other] += turned
                chosen[:, i] = -turned
            b[over] = chosen
        if not moved:
            break
    else:
        hint = "Coordinates differ by orders of magnitude in scale: choose other shape= per axis."
        raise OptionError("distance_field", "a metric that can be reduced", "one too skew", hint)
    weights, offsets = [], []
    for i, j in pairs:
        weights.append(-torch.einsum("ki,kij,kj->k", b[:, i], matrix, b[:, j]).clamp(max=0.0))
        rest = [other for other in range(m + 1) if other not in (i, j)]
        if m == 1:
            offsets.append(torch.ones_like(b[:, 0]))
        elif m == 2:
            x, y = b[:, rest[0]].unbind(-1)
            offsets.append(torch.stack([-y, x], -1))
        else:
            offsets.append(torch.linalg.cross(b[:, rest[0]], b[:, rest[1]]))
    return torch.stack(weights, 1), torch.stack(offsets, 1).round().to(torch.int64)


def _spread(coarse: Tensor, shape: tuple[int, ...]) -> Tensor:
    """For each node the largest of the coarse values around it."""
    m = coarse.ndim
    pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[m - 1]
    out = pool(coarse[None, None], 5, stride=1, padding=2)[0, 0]
    for a, n in enumerate(shape):
        nearest = (torch.arange(n, device=coarse.device) // 2).clamp(max=coarse.shape[a] - 1)
        out = out.index_select(a, nearest)
    return out
