"""The pull-back metric of a decoder, point by point: metric tensor, connection, volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae.ambient import AmbientMetric
from riemae.differential.conditions import Condition
from riemae.differential.derivatives import Differential, everywhere
from riemae.differential.tape import Pairs
from riemae.exceptions import SingularMetricError
from riemae.geometry.decoder import Decoder
from riemae.geometry.factors import (
    ambient_factor,
    differentiable_singular_values,
    differentiated_later,
    log_determinant,
    singular_values,
    triangle,
)
from riemae.geometry.paths import PathMetric
from riemae.geometry.variation import ProductVariation
from riemae.numerics.metric import safe_sqrt, solve_metric
from riemae.numerics.threads import jvp
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete

# Fewer points than the quadrature of the shortest curve has; padded to 16, they would cost more.
_FEW = 4
# Numbers of an output from which products with an ambient metric decide what a step costs.
_MANY = 64


class PullbackMetric(PathMetric):
    """The pull-back ``G = Jᵀ H(f(z)) J`` of an ambient metric, on flat batches of checked points.

    It is the :class:`~riemae.solvers.Space` that solvers work on.

    Args:
        decoder: The map ``f``.
        ambient: The metric ``H``; None is Euclidean for tensors, Fisher-Rao for distributions.
        chunk_size: Points handled at once, or None to choose by bytes.

    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Of what was learned about decoder and metric, its arithmetic travels; the rest is found
        # again at first use.
        condition = None if self.condition is None else self.condition.detached()
        return _rebuilt, (self.decoder.arguments, self.given, self.chunk_size, condition)

    def as_space(
        self, *points: Tensor, where: str = "as_space", finite: bool = False
    ) -> PullbackMetric:
        """Itself, once the decoder is in eval mode: functions of riemae.solvers begin with this."""
        self.decoder.refuse_training_mode(f"Manifold.{where}")
        self.watch()
        return self

    def width(self, flat: Tensor) -> int:  # (k, m)
        """Numbers per point in the decoder's widest layer."""
        self.bind(flat)
        return self.immersion.width(flat)

    def gradients_only(self, flat: Tensor) -> bool:  # (k, m)
        """Whether second derivatives cost far more than gradients.

        So under an ambient metric on many numbers that is known by its products alone: every
        tangent takes one of those, and its derivatives.
        """
        self.bind(flat)
        if self.embedding is not None or not isinstance(self.variation, ProductVariation):
            return False
        shape = self.decoder.output_shape
        return shape is not None and shape.numel() >= _MANY

    def metric(self, flat: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        """``G = Jᵀ H(f(z)) J`` (equation 3)."""
        self.bind(flat)
        if self.embedding is not None:
            return self.embedding.jets(flat, then=lambda x, j: j.mT @ j)

        def pulled(x: Tensor, j: Tensor) -> Tensor:
            g = j.mT @ self.ambient.apply_to(x, j)
            return (g + g.mT) / 2

        g = self.immersion.jets(flat, then=pulled)
        return self._positive(g) if self.ambient.foreign else g

    def factor(self, flat: Tensor, then: Callable[[Tensor], Any]) -> Any:  # (k, m) -> (k, …)
        """``then`` of factors ``F`` ``(k, q, m)`` of the metric, ``G = FᵀF``, chunk by chunk."""
        self.bind(flat)
        if self.embedding is not None:
            return self.embedding.jets(flat, then=lambda x, j: then(j))

        def reduced(x: Tensor, j: Tensor) -> Any:
            return then(ambient_factor(self.ambient, x, j))

        return self.immersion.jets(flat, then=reduced)

    def triangle(self, where: str, flat: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        """Upper triangular ``R`` with ``RᵀR = G``, in float64."""
        r = self.factor(flat, triangle)
        return self.finite(where, r, flat)

    def log_volume(self, where: str, flat: Tensor) -> Tensor:  # (k, m) -> (k,)
        """``log √det G``."""
        r = self.triangle(where, flat)
        return log_determinant(f"Manifold.{where}", r, flat.dtype)

    def singular_values(self, where: str, flat: Tensor) -> Tensor:  # (k, m) -> (k, m)
        """Square roots of the eigenvalues of ``G``, ascending."""
        # Some modes switch gradients on for themselves: a graph alone does not say who wants one.
        wanted = torch.is_grad_enabled() or transformed()

        def reduced(f: Tensor) -> Tensor:
            # Triangles have closer values, but no derivatives where G is singular; factors have.
            return f if wanted and differentiated_later(f) else triangle(f)

        factors = self.factor(flat, reduced)
        differentiated = differentiated_later(factors)
        r = triangle(factors.detach()) if differentiated else factors
        r = self.finite(where, r.detach(), flat)
        values = singular_values(f"Manifold.{where}", r, flat.dtype)
        if differentiated:
            own = differentiable_singular_values(factors)
            values = values + (own - own.detach())
        return values.to(flat.dtype)

    def metric_product(self, flat: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
        """``G v`` by one forward and one reverse product, through one primal pass."""
        self.bind(flat)
        if self.embedding is not None:
            _, _, product = self.embedding.gram_product(flat, v)
        else:
            _, _, product = self.immersion.gram_product(flat, v, self.ambient.product)
        return product

    def inner(self, flat: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (k, m) x 3 -> (k,)
        """``uᵀ G(z) v`` by two tangents of one pass."""
        self.bind(flat)
        directions = torch.stack([u, v], 1)
        x, tangents = self.first_order.jets(flat, directions)
        left, right = tangents.unbind(-1)
        lowered = left if self.embedding is not None else self.ambient.product(x, left)
        return (lowered * right).sum(-1)

    def norm(self, flat: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k,)
        """``sqrt(vᵀ G(z) v)`` by one forward product; its gradient at v = 0 is 0."""
        self.bind(flat)

        def squared(x: Tensor, tangents: Tensor) -> Tensor:
            tangent = tangents[..., 0]
            if self.embedding is not None:
                size = tangent.square().sum(-1)
            else:
                size = self.ambient.squared_length(x, tangent)
            # A derivative may exist where the map has no value (log): no length comes from it.
            defined = x.abs().amax(-1).isfinite()
            return torch.where(defined, size, torch.nan)

        map_ = self.first_order if len(flat) <= _FEW else self.batch_invariant
        squares = map_.jets(flat, v[:, None], then=squared)
        return safe_sqrt(squares)

    def taylor(
        self, flat: Tensor, v: Tensor, order: int
    ) -> tuple[Tensor, ...]:  # (k, m), (k, m) -> (k, D) each
        """``f(z)``, ``Jv`` and, for order 2, ``½ ∂²f(v, v)``, in one pass."""
        if order == 1:
            return self.immersion.jvp(flat, v)
        x, first, second = self.immersion.taylor(flat, v)
        return x, first, second / 2

    def christoffel(
        self, flat: Tensor, where: str = "christoffel"
    ) -> Tensor:  # (k, m) -> (k, m, m, m)
        """``Γᵏ_ij`` as ``[k, i, j]``.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        self.bind(flat)
        if self.embedding is not None:
            pairs = Pairs.all(flat.shape[-1])

            def reduced(x: Tensor, j: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
                return j.mT @ j, j.mT @ second

            metric, packed = self.embedding.jets(flat, None, pairs, reduced)
            lowered = pairs.full(packed)
        else:
            metric, slope = self.metric_and_derivative(flat)  # slope[b, i, j, l] = ∂_l G_ij
            positive = slope.permute(0, 1, 3, 2) + slope
            lowered = (positive - slope.permute(0, 3, 1, 2)) / 2
        self.finite(where, metric, flat)
        return solve_metric(f"Manifold.{where}", metric, lowered)

    def acceleration(self, flat: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
        """``−Γ(v, v)`` without Christoffel symbols: ``G z̈ = −Jᵀ(H ∂²f(v, v) + force of H)``.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        self.bind(flat)
        m = flat.shape[-1]

        def reduced(x: Tensor, tangents: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            j = tangents[..., :m]
            if self.embedding is not None:
                return j.mT @ j, j.mT @ second
            velocity = tangents[..., m]
            bend = self.ambient.product(x, second[..., 0])
            force = bend + _ambient_force(self.ambient, x, velocity)
            metric = j.mT @ self.ambient.apply_to(x, j)
            return metric, j.mT @ force[..., None]

        directions = torch.cat([everywhere(flat), v[:, None]], 1)
        along_v = Pairs([m], [m])
        metric, pulled = self.first_order.jets(flat, directions, along_v, reduced)
        self.finite("acceleration", metric, flat)
        return -solve_metric("Manifold.acceleration", metric, pulled[..., 0])

    def turning(self, flat: Tensor, v: Tensor) -> Tensor | None:  # (k, m), (k, m) -> (k, m, m)
        """The matrices of ``w ↦ Γ(v, w) = G⁻¹ Jᵀ ∂²φf(v, w)``; None without a feature map.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        self.bind(flat)
        if self.embedding is None:
            return None
        m = flat.shape[-1]

        def reduced(x: Tensor, tangents: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            j = tangents[..., :m]
            return j.mT @ j, j.mT @ second

        directions = torch.cat([everywhere(flat), v[:, None]], 1)
        with_v = Pairs(list(range(m)), [m] * m)
        metric, pulled = self.first_order.jets(flat, directions, with_v, reduced)
        self.finite("transport", metric, flat)
        return solve_metric("Manifold.transport", metric, pulled)

    def deviation(self, flat: Tensor, v: Tensor) -> Tensor | None:  # (k, m) twice -> (k, 2, m, m)
        """The matrices of ``w ↦ Γ(v, w)`` and of ``w ↦ R(w, v) v``; None without a feature map.

        By the Gauss equation, with ``II`` the normal part of ``∂²φf``:
        ``⟨R(w, v) v, u⟩ = ⟨II(v, v), II(w, u)⟩ − ⟨II(v, w), II(v, u)⟩``. One pass with m + 1 second
        derivatives and one along the covector ``II(v, v)``: nothing is differentiated thrice.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        self.bind(flat)
        if self.embedding is None:
            return None
        m = flat.shape[-1]

        def reduced(x: Tensor, tangents: Tensor, second: Tensor) -> tuple[Tensor, ...]:
            j = tangents[..., :m]
            metric = j.mT @ j
            pulled = j.mT @ second
            # What is singular is found out below, where all points are seen.
            factor, _ = torch.linalg.cholesky_ex(metric)
            normal = second - j @ torch.cholesky_solve(pulled, factor)
            beside = normal[..., :m]
            return metric, pulled[..., :m], beside.mT @ beside, normal[..., m]

        directions = torch.cat([everywhere(flat), v[:, None]], 1)
        with_v = Pairs([*range(m), m], [m] * (m + 1))
        metric, pulled, across, ahead = self.first_order.jets(flat, directions, with_v, reduced)
        where = "jacobi_field"
        self.finite(where, metric, flat)
        along = self.first_order.contraction(flat, ahead)
        both = torch.cat([pulled, along - across], -1)
        solved = solve_metric(f"Manifold.{where}", metric, both)
        return solved.unflatten(-1, (2, m)).transpose(1, 2)

    def metric_and_derivative(
        self, flat: Tensor
    ) -> tuple[Tensor, Tensor]:  # (k, m) -> (k, m, m), (k, m, m, m)
        """``G`` and ``∂_l G_ij`` as ``[i, j, l]``, from ∂f, ∂²f and ∂H."""
        self.bind(flat)
        x, j, second = self.immersion.second_jet(flat)
        hj = self.ambient.apply_to(x, j)
        bend = torch.einsum("kdi,kdjl->kijl", hj, second)

        def lowered(y: Tensor) -> Tensor:
            return self.ambient.apply_to(y, j)

        slopes = []
        for column in j.unbind(-1):
            transposed = j.mT
            _, change = jvp(lowered, (x,), (column,))
            slopes.append(transposed @ change)
        metric = j.mT @ hj
        bends = bend + bend.transpose(1, 2)
        return metric, bends + torch.stack(slopes, -1)

    @property
    def connection(self) -> Differential:
        """Derivatives of the Christoffel symbols; called under the points' conditions.

        Made where they are asked for: they refer to the metric, which refers to them.
        """
        origin = self if self.origin is None else self.origin
        assert isinstance(origin, PullbackMetric)
        if origin._connection is None:
            origin._connection = Differential(origin._symbols, self.chunk_size, what=None)
            if origin.beside is not None:
                origin._connection.share(*origin.beside)
        return origin._connection

    def _symbols(self, z: Tensor, condition: Condition | None = None) -> Tensor:
        return self.at(condition).christoffel(z)

    def _positive(self, g: Tensor) -> Tensor:  # (k, m, m) -> (k, m, m)
        """``g``, of an ambient metric by a user's function.

        Raises:
            SingularMetricError: Where it has a negative eigenvalue, with the places.
        """
        if not len(g) or transformed() or concrete(g) is None:
            return g
        known = g.detach()
        diagonal = known.diagonal(dim1=-2, dim2=-1)
        # A Cholesky factor of the metric, scaled to unit diagonal and shifted by rounding, exists
        # where the metric is positive but for rounding.
        roots = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        scale = roots[..., None]
        identity = torch.eye(g.shape[-1]).to(g)
        shift = tolerance(g.dtype).probe * identity
        _, info = torch.linalg.cholesky_ex(known * scale * scale.mT + shift)
        finite = g.isfinite().flatten(1).all(-1)
        bad = (info != 0) & finite
        if not bool(bad.any()):
            return g
        places = bad.nonzero().flatten().tolist()
        first = known[bad][0]
        low = float(torch.linalg.eigvalsh(first)[0])
        raise SingularMetricError(
            self.ambient.title,
            "a metric that is positive along the decoded manifold",
            f"a negative squared length ({low:.3g}) at {len(places)} of {len(g)} points "
            f"(first: {places[:5]})",
            "A metric is S Sᵀ: build it from a factor.",
        )


def _ambient_force(
    ambient: AmbientMetric, x: Tensor, velocity: Tensor
) -> Tensor:  # (k, D), (k, D) -> (k, D)
    """``(D_ẋ H) ẋ − ½ ∇ₓ(ẋᵀ H ẋ)``: how a metric that varies in space bends straight lines."""

    def lowered(y: Tensor) -> Tensor:
        return ambient.product(y, velocity)

    def squared(y: Tensor) -> Tensor:
        return ambient.squared_norm(y, velocity).sum()

    _, along = jvp(lowered, (x,), (velocity,))
    across = torch.func.grad(squared)(x)
    return along - across / 2


def _rebuilt(
    arguments: tuple[Any, ...],
    ambient: AmbientMetric | None,
    chunk_size: int | None,
    condition: Condition | None,
) -> PullbackMetric:
    return PullbackMetric(Decoder(*arguments), ambient, chunk_size).at(condition)
