"""What a solver asks of a space, and a space given by its metric tensor alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from riemae.exceptions import DTypeError, MetricError, ShapeError
from riemae.numerics import probe
from riemae.numerics.batch_invariance import batch_invariant
from riemae.numerics.contradiction import contradiction, explained
from riemae.numerics.dependence import dependence
from riemae.numerics.metric import root, solve_metric
from riemae.numerics.offers import lacking, offers
from riemae.numerics.threads import jvp
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete, own
from riemae.solvers.energy import (
    Expansion,
    expand_by_autodiff,
    gauss_newton_blocks,
    rounding,
)


@runtime_checkable
class Space(Protocol):
    """A Riemannian space in one chart: what every solver may ask of it.

    :class:`MetricSpace` is one; a :class:`riemae.Manifold` has one. Batches have one leading axis:
    ``k`` points, or ``p`` discrete curves of ``n + 1`` nodes. ``squared_chords`` must be
    differentiable by reverse mode; for the matrix-free solver twice, unless the space has
    ``products``. What a space may offer besides is in ``riemae.solvers.hooks``: there every
    optional hook has a protocol of its own, and a default.
    """

    def metric(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        """Metric tensor ``G(z)``."""
        ...

    def norm(self, z: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k,)
        """Length of tangent vectors, ``sqrt(vᵀ G(z) v)``."""
        ...

    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
        """Right-hand side of the geodesic equation ``z̈ = −Γ(v, v)``."""
        ...

    def squared_chords(self, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n)
        """Squared length of each segment, second-order accurate.

        ``n`` times their sum is the discrete energy.
        """
        ...

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """The discrete energy with its derivatives in the interior nodes."""
        ...

    def residual(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n - 1, m)
        """The gradient of the discrete energy in a discretisation of higher order.

        None where there is none.
        """
        ...

    def ambient_distance(self, z0: Tensor, z1: Tensor) -> Tensor | None:  # (k, m), (k, m) -> (k,)
        """A lower bound of the geodesic distance, or None when none is known."""
        ...


@runtime_checkable
class HasSpace(Protocol):
    """What has a space that solvers can work on, such as :class:`riemae.Manifold`."""

    def as_space(self, *points: Tensor, where: str = "as_space", finite: bool = False) -> Space:
        """The space, after a look at points ``(*b, m)`` that the call ``where`` begins with."""
        ...


def space_of(
    space: Space | HasSpace, *points: Any, where: str = "as_space", finite: bool = False
) -> Space:
    """The space that a call works on: every function for users begins with this.

    Args:
        space: A space, or what has one.
        points: Points that the call is about, checked by what has the space; None is left out.
        where: The name of the call.
        finite: Whether NaN and infinity are refused; else they are reported with the results.

    Raises:
        DTypeError: When it is neither a space nor has one.
    """
    expect_space(where, space)
    if offers(space, HasSpace):
        known = (z for z in points if z is not None)
        return space.as_space(*known, where=where, finite=finite)
    return cast(Space, space)


def expect_space(where: str, space: Any) -> None:
    """Something that solvers work on.

    Raises:
        DTypeError: For anything else, such as the class of one.
    """
    is_class = isinstance(space, type)
    if not is_class and (offers(space, HasSpace) or offers(space, Space)):
        return
    got = f"the class {space.__name__}" if is_class else type(space).__name__
    missing = lacking(space, Space)
    if not is_class and "metric" not in missing:  # meant to be one
        got += f" without {', '.join(missing)}"
    hint = "Try riemae.Manifold(decoder), or solvers.MetricSpace(tensor)."
    raise DTypeError(where, "a riemae.Manifold or a space", got, hint)


@dataclass(frozen=True)
class MetricSpace:
    """A space whose metric tensor is written by hand; no decoder, no ambient space.

    Functions of :mod:`riemae.solvers` take it as it is. ``riemae.Manifold(space)`` has all methods
    of a manifold as well: curvature, volume, differential operators, neighbours; and the statistics
    take that.

    Args:
        tensor: ``G``, maps ``(k, m)`` to symmetric positive definite ``(k, m, m)``, row by row,
            differentiable by torch. It is looked at when it is first used, and at the first large
            batch.

    Example:
        The upper half plane, where ``d(p, q) = arcosh(1 + |p − q|² / (2 p_y q_y))``:

        >>> import torch
        >>> from riemae import solvers
        >>> half_plane = solvers.MetricSpace(lambda z: torch.eye(2).to(z) / z[..., 1:2, None] ** 2)
        >>> a, b = torch.tensor([[0., 1.]]).double(), torch.tensor([[1., 2.]]).double()
        >>> round(solvers.geodesic(half_plane, a, b, rtol=1e-8).length.item(), 6)
        0.962424
    """

    tensor: Callable[[Tensor], Tensor]
    _looked_at: set[tuple[Any, ...]] = field(
        default_factory=set, init=False, repr=False, compare=False
    )

    def metric(self, z: Tensor) -> Tensor:  # (*b, m) -> (*b, m, m)
        """``G(z)``.

        Raises:
            ShapeError: When ``tensor`` does not return ``(k, m, m)``.
            DTypeError: When it does not return a tensor, or one of another dtype than the points.
            MetricError: When the first look finds no metric.
        """
        flat = z.reshape(-1, z.shape[-1])
        self._bind(flat)
        return self._tensor(flat).reshape(*z.shape, z.shape[-1])

    def _bind(self, flat: Tensor) -> None:
        key = (flat.dtype, flat.device.type, len(flat) >= probe.LARGE_BATCH)
        if key not in self._looked_at:
            self._look(key, flat)

    def _tensor(self, flat: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        where = "MetricSpace.metric"
        z = flat
        m = flat.shape[-1]
        g = batch_invariant(self.tensor)(own(flat, self.tensor))
        if not isinstance(g, Tensor) or g.dtype != z.dtype:
            if isinstance(g, Tensor):
                got = str(g.dtype)
            else:
                got = type(g).__name__
            hint = "Make its constants like the points: torch.eye(m).to(z)."
            raise DTypeError(where, f"a metric tensor of dtype {z.dtype}", got, hint)
        if g.shape != (len(flat), m, m):
            shape = (len(flat), m, m)
            points = tuple(flat.shape)
            wanted = f"a metric tensor of shape {shape} for points of shape {points}"
            hint = (
                "The function gets a batch of points (k, m) and returns one m x m matrix for each."
            )
            raise ShapeError(where, wanted, str(tuple(g.shape)), hint)
        return g

    def _look(self, key: tuple[Any, ...], flat: Tensor) -> None:
        """Ask of the function, once, what a metric tensor must be.

        Raises:
            MetricError: With the property that fails.
        """
        if not len(flat) or flat.is_meta or transformed() or concrete(flat) is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            flat = flat.detach().clone()
            g = self._first(flat)
            metric_known = g.isfinite().flatten(1).all(-1)
            point_finite = flat.isfinite().all(-1)
            known = metric_known & point_finite
            if not bool(known.any()):
                return  # nothing to learn here: the next points may tell more
            flat = flat[known]
            g = g[known]
            around = probe.generic(self._entries, flat, probe.FEW)
            near = self._tensor(around)
            sound = near.isfinite().flatten(1).all(-1)
            here = torch.cat([g, near[sound]])
            _expect_symmetric(here)
            _expect_positive(flat, g)
            self._expect_rows_alone(flat, around)
        self._expect_derivative(flat, around)
        self._looked_at.add(key)

    def _first(self, flat: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        """What the function makes of the first points.

        Raises:
            MetricError: When it fails.
        """
        try:
            return self._tensor(flat)
        except (IndexError, RuntimeError) as reason:
            if isinstance(reason, torch.OutOfMemoryError):
                return self._tensor(flat)  # which is told apart by its caller, again
            got = f"{type(reason).__name__} for points of shape {tuple(flat.shape)}: {reason}"
            hint = "Have the points as many coordinates as the metric?"
            raise MetricError("MetricSpace", "a metric tensor", got, hint) from reason

    def _entries(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m²)
        return self._tensor(z).flatten(1)

    def _expect_rows_alone(self, flat: Tensor, around: Tensor) -> None:
        """A function of each point alone.

        Raises:
            MetricError: When it depends on chance, on the other rows or on their number.
        """
        stride = -(-len(flat) // probe.ROWS)
        known = torch.cat([flat[::stride], around])
        rows = known[: probe.ROWS]
        try:
            found = dependence(lambda z: self.tensor(own(z, self.tensor)), rows)
        except probe.FAILURES as reason:
            got = f"{type(reason).__name__} for some of {len(rows)} points: {reason}"
            wanted = "a function of any number of points"
            raise MetricError("MetricSpace", wanted, got, "Keep the batch axis.") from reason
        if found is None or found.sound:
            return
        if found.kind == "chance":
            wanted = "a deterministic metric tensor"
            got = f"two different ones at one point (by {found.size:.1g})"
        else:
            wanted = "a metric tensor that treats every row alone"
            got = (
                "one that depends on the other rows of the batch, or on their number or order "
                f"({found.size:.1g})"
            )
        raise MetricError("MetricSpace", wanted, got, "It must be a function of the point alone.")

    def _expect_derivative(self, flat: Tensor, around: Tensor) -> None:
        """A derivative that torch.autograd knows.

        Raises:
            MetricError: When differences contradict it.
        """
        direction = probe.normal(around, *around.shape, source=probe.generator())
        v = direction * probe.spread(flat)

        def line(t: Tensor) -> Tensor:
            return around + t[:, None] * v

        contradicted = contradiction(self._entries, line, len(around), around)
        if contradicted is not None:
            got, remedy = explained(contradicted, self._entries)
            wanted = "a metric tensor whose derivative torch.autograd knows"
            raise MetricError("MetricSpace", wanted, got, remedy)

    def norm(self, z: Tensor, v: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b,)
        """``sqrt(vᵀ G(z) v)``; NaN where that is the root of a negative number."""
        return root(_quadratic(self.metric(z), v))

    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """``−Γ(v, v) = −G⁻¹ [(D_v G) v − ½ ∇_z (vᵀ G v)]``.

        Raises:
            SingularMetricError: Where ``G`` is not positive definite.
        """
        flat = z.reshape(-1, z.shape[-1])
        w = v.reshape(-1, z.shape[-1])
        self._bind(flat[:1])  # looked at before it is differentiated
        # [k, i, j, l] = ∂_l G_ij, by the same points once for each direction: vmap would refuse
        # tensors that are written entry by entry.
        k, m = flat.shape
        points = flat.repeat(m, 1)
        directions = torch.eye(m).to(flat).repeat_interleave(k, 0)
        metric, derivative, *_ = jvp(self.metric, (points,), (directions,))
        metric = metric[:k]
        derivative = derivative.unflatten(0, (m, k)).movedim(0, -1)
        force = (
            torch.einsum("kijl,kj,kl->ki", derivative, w, w)
            - torch.einsum("kijl,ki,kj->kl", derivative, w, w) / 2
        )
        return -solve_metric("MetricSpace.acceleration", metric, force).view_as(z)

    def squared_chords(self, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n)
        """``Δzᵀ ½(G_i + G_{i+1}) Δz``; both ends of a segment, never the left alone."""
        g = self.metric(nodes)
        middle = (g[:, :-1] + g[:, 1:]) / 2
        return _quadratic(middle, nodes.diff(dim=1))

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """Energy, gradient and Hessian by automatic differentiation of :meth:`squared_chords`."""
        g = self.metric(nodes)
        middle = (g[:, :-1] + g[:, 1:]) / 2
        start = nodes[:, :-1]
        squares = _quadratic(middle, start)
        size = squares.clamp(min=0).sqrt()
        squared_chords = _quadratic(middle, nodes.diff(dim=1))
        speed = squared_chords.clamp(min=0).sqrt()
        return expand_by_autodiff(
            squared_chords=self.squared_chords,
            nodes=nodes,
            gauss_newton=gauss_newton_blocks(middle, middle, middle),
            noise=rounding(size, speed),
            second_order=second_order,
            scalable=True,
        )

    def residual(self, nodes: Tensor) -> Tensor | None:
        """None: the energy's own gradient is all there is."""
        return None

    def ambient_distance(self, z0: Tensor, z1: Tensor) -> Tensor | None:
        """None: there is no ambient space."""
        return None


def _expect_symmetric(g: Tensor) -> None:
    size = g.abs().amax((-1, -2))
    deviation = (g - g.mT).abs().amax((-1, -2))
    if bool((deviation > tolerance(g.dtype).probe * size).any()):
        wanted = "a symmetric metric tensor"
        got = "an asymmetric one"
        raise MetricError("MetricSpace", wanted, got, "Try (G + Gᵀ)/2.")


def _expect_positive(points: Tensor, g: Tensor) -> None:
    low = torch.linalg.eigvalsh(g)[:, 0]
    rounding = tolerance(g.dtype).probe
    size = g.abs().amax((-1, -2))
    if bool((low < -rounding * size).all()):
        wanted = "a positive definite metric tensor"
        got = f"a negative eigenvalue, {float(low[0]):.3g}, at {points[0].tolist()}"
        hint = "Is its sign right, and are the points inside its domain?"
        raise MetricError("MetricSpace", wanted, got, hint)


def _quadratic(g: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("...i,...ij,...j->...", v, g, v)
