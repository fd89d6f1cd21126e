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
from riemae.numerics.threads import jvp
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete, own
from riemae.solvers.energy import (
    Expansion,
    discrete_energy,
    expand_by_autodiff,
    gauss_newton_blocks,
    rounding,
)


@runtime_checkable
class Space(Protocol):
    """A Riemannian space in one chart. :class:`riemae.Manifold` is one; so is :class:`MetricSpace`.

    Batches have one leading axis: ``k`` points, or ``p`` discrete curves of ``n + 1`` nodes.
    ``squared_chords`` must be differentiable by reverse mode. Optional:
    ``energy_and_gradient(nodes)``, where there is a faster road than that;
    ``embedded(points, then)``, which returns ``then`` ``(p, c, D) -> (p, …)`` of the images of
    points ``(p, c, m)`` in a Euclidean space where curves have the lengths that they have here, or
    None; ``velocities(nodes)``, ``(p, n + 1, m)``, with which a geodesic passes its nodes, or None:
    where coordinates move unevenly they make a better curve than a spline through the nodes alone;
    and ``products(nodes)``, which returns :class:`~riemae.solvers.Products`, for the matrix-free
    solver: without it ``squared_chords`` must be differentiable twice. A family of spaces may be
    given as one: its ``labels`` is how many coordinates, the last ones, only say which member of
    the family a point is of. All points of a pair have the same labels, along which nothing moves,
    and ``restored(curve, stats)`` gives the curves of a result their labels back.
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
        """Squared length of each segment, second-order accurate: ``n`` times their sum is the
        discrete energy.
        """
        ...

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """The discrete energy with its derivatives in the interior nodes."""
        ...

    def residual(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n - 1, m)
        """The gradient of the discrete energy in a discretisation of higher order, or None when
        there is none.
        """
        ...

    def ambient_distance(self, z0: Tensor, z1: Tensor) -> Tensor | None:  # (k, m), (k, m) -> (k,)
        """A lower bound of the geodesic distance, or None when none is known."""
        ...


@dataclass(frozen=True)
class MetricSpace:
    """A space whose metric tensor is written by hand; no decoder, no ambient space.

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
            DTypeError: When it returns no tensor, or one of another dtype than the points.
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
        z, m = flat, flat.shape[-1]
        g = batch_invariant(self.tensor)(own(flat))
        if not isinstance(g, Tensor) or g.dtype != z.dtype:
            raise DTypeError(
                "MetricSpace.metric",
                f"a metric tensor of dtype {z.dtype}",
                str(g.dtype) if isinstance(g, Tensor) else type(g).__name__,
                "Make its constants like the points: torch.eye(m).to(z).",
            )
        if g.shape != (len(flat), m, m):
            raise ShapeError(
                "MetricSpace.metric",
                f"a metric tensor of shape ({len(flat)}, {m}, {m}) for points of shape {tuple(flat.shape)}",
                str(tuple(g.shape)),
                "The function gets a batch of points (k, m) and returns one m x m matrix for each.",
            )
        return g

    def _look(self, key: tuple[Any, ...], flat: Tensor) -> None:
        """Ask of the function, once, what a metric tensor must be.

        Raises:
            MetricError: With the property that fails.
        """
        if not len(flat) or flat.is_meta or transformed() or concrete(flat) is None:
            return
        where = "MetricSpace"
        with torch.inference_mode(False), torch.no_grad():
            flat = flat.detach().clone()
            g = self._tensor(flat)
            known = g.isfinite().flatten(1).all(-1) & flat.isfinite().all(-1)
            if not bool(known.any()):
                return  # nothing to learn here: the next points may tell more
            flat, g = flat[known], g[known]
            around = probe.generic(lambda z: self._tensor(z).flatten(1), flat, probe.FEW)
            near = self._tensor(around)
            here = torch.cat([g, near[near.isfinite().flatten(1).all(-1)]])
            size = here.abs().amax((-1, -2))
            if bool(
                ((here - here.mT).abs().amax((-1, -2)) > tolerance(flat.dtype).probe * size).any()
            ):
                raise MetricError(
                    where, "a symmetric metric tensor", "an asymmetric one", "Try (G + Gᵀ)/2."
                )
            low = torch.linalg.eigvalsh(g)[:, 0]
            if bool((low < -tolerance(flat.dtype).probe * g.abs().amax((-1, -2))).all()):
                raise MetricError(
                    where,
                    "a positive definite metric tensor",
                    f"a negative eigenvalue, {float(low[0]):.3g}, at {flat[0].tolist()}",
                    "Is its sign right, and are the points inside its domain?",
                )
            rows = torch.cat([flat[:: -(-len(flat) // probe.ROWS)], around])[: probe.ROWS]
            try:
                found = dependence(lambda z: self.tensor(own(z)), rows)
            except probe.FAILURES as reason:
                got = f"{type(reason).__name__} for some of {len(rows)} points: {reason}"
                raise MetricError(
                    where, "a function of any number of points", got, "Keep the batch axis."
                ) from reason
        if found is not None:
            chance = found.kind == "chance"
            raise MetricError(
                where,
                "a deterministic metric tensor"
                if chance
                else "a metric tensor that treats every row alone",
                f"two different ones at one point (by {found.size:.1g})"
                if chance
                else f"one that depends on the other rows of the batch, or on their number or order ({found.size:.1g})",
                "It must be a function of the point alone.",
            )
        v = probe.normal(around, *around.shape, source=probe.generator()) * probe.spread(flat)
        contradicted = contradiction(
            lambda z: self._tensor(z).flatten(1),
            lambda t: around + t[:, None] * v,
            len(around),
            around,
        )
        if contradicted is not None:
            got, remedy = explained(contradicted, lambda z: self._tensor(z).flatten(1))
            raise MetricError(
                where, "a metric tensor whose derivative torch.autograd knows", got, remedy
            )
        self._looked_at.add(key)

    def norm(self, z: Tensor, v: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b,)
        """``sqrt(vᵀ G(z) v)``; NaN where that is the root of a negative number."""
        return root(_quadratic(self.metric(z), v))

    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """``−Γ(v, v) = −G⁻¹ [(D_v G) v − ½ ∇_z (vᵀ G v)]``.

        Raises:
            SingularMetricError: Where ``G`` is not positive definite.
        """
        flat, w = z.reshape(-1, z.shape[-1]), v.reshape(-1, z.shape[-1])
        self._bind(flat[:1])  # looked at before it is differentiated
        # [k, i, j, l] = ∂_l G_ij, by the same points once for each direction: vmap would refuse
        # tensors that are written entry by entry.
        k, m = flat.shape
        points, directions = flat.repeat(m, 1), torch.eye(m).to(flat).repeat_interleave(k, 0)
        metric, derivative, *_ = jvp(self.metric, (points,), (directions,))
        metric, derivative = metric[:k], derivative.unflatten(0, (m, k)).movedim(0, -1)
        force = (
            torch.einsum("kijl,kj,kl->ki", derivative, w, w)
            - torch.einsum("kijl,ki,kj->kl", derivative, w, w) / 2
        )
        return -solve_metric("MetricSpace.acceleration", metric, force).view_as(z)

    def squared_chords(self, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n)
        """``Δzᵀ ½(G_i + G_{i+1}) Δz``; both ends of a segment, never the left alone."""
        g = self.metric(nodes)
        return _quadratic((g[:, :-1] + g[:, 1:]) / 2, nodes.diff(dim=1))

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """Energy, gradient and Hessian by automatic differentiation of :meth:`squared_chords`."""
        g = self.metric(nodes)
        middle = (g[:, :-1] + g[:, 1:]) / 2
        size, speed = (
            _quadratic(middle, v).clamp(min=0).sqrt() for v in (nodes[:, :-1], nodes.diff(dim=1))
        )
        return expand_by_autodiff(
            self.squared_chords,
            nodes,
            gauss_newton_blocks(middle, middle, middle),
            rounding(size, speed),
            second_order,
        )

    def residual(self, nodes: Tensor) -> Tensor | None:
        """None: the energy's own gradient is all there is."""
        return None

    def ambient_distance(self, z0: Tensor, z1: Tensor) -> Tensor | None:
        """None: there is no ambient space."""
        return None


def energy_and_gradient(
    space: Space, nodes: Tensor
) -> tuple[Tensor, Tensor]:  # (p, n + 1, m) -> (p,), (p, n - 1, m)
    """The discrete energy and its gradient in the interior nodes: by the space's own method of this
    name, if any.
    """
    own: Any = getattr(space, "energy_and_gradient", None)
    return differentiated(space.squared_chords, nodes) if own is None else own(nodes)


def labels_of(space: Space) -> int:
    """How many coordinates, the last ones, are labels: the space's own ``labels``, if any."""
    return int(getattr(space, "labels", 0))


def embedding_of(
    space: Space,
) -> Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor | None] | None:
    """The space's own ``embedded``, if any."""
    found: Any = getattr(space, "embedded", None)
    return cast("Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor | None] | None", found)


def velocities_of(space: Space, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n + 1, m)
    """The velocities with which a geodesic passes its nodes: by the space's own ``velocities``, if
    any.
    """
    own: Any = getattr(space, "velocities", None)
    return None if own is None else cast("Tensor | None", own(nodes))


def differentiated(
    squared_chords: Callable[[Tensor], Tensor], nodes: Tensor
) -> tuple[Tensor, Tensor]:  # (p, n + 1, m) -> (p,), (p, n - 1, m)
    """The discrete energy and its gradient by reverse mode through ``squared_chords``."""
    with torch.inference_mode(False), torch.enable_grad():
        nodes = (
            nodes.clone() if nodes.is_inference() else nodes
        )  # what is made in inference mode has no derivative
        interior = nodes[:, 1:-1].detach().requires_grad_()
        energy = discrete_energy(
            squared_chords(torch.cat([nodes[:, :1], interior, nodes[:, -1:]], 1))
        )
        (gradient,) = torch.autograd.grad(energy.sum(), interior)
    return energy.detach(), gradient


def _quadratic(g: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("...i,...ij,...j->...", v, g, v)
