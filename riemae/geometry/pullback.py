"""Decoder and ambient metric together: everything that a point's geometry is computed from, on flat
batches.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from riemae.ambient import AmbientMetric, Euclidean, FisherRao
from riemae.ambient.uncertain import bound
from riemae.differential.conditions import Condition, Conditions
from riemae.differential.derivatives import Differential, everywhere
from riemae.differential.modes import PORTABLE
from riemae.differential.taylor import Pairs
from riemae.distributions.layout import EnsembleLayout
from riemae.exceptions import (
    AmbientError,
    DeviceError,
    DTypeError,
    NonFiniteError,
    ShapeError,
    SingularMetricError,
)
from riemae.geometry.decoder import Decoder
from riemae.geometry.factors import (
    ambient_factor,
    differentiable_singular_values,
    differentiated_later,
    log_determinant,
    singular_values,
    triangle,
)
from riemae.numerics import probe
from riemae.numerics.batch_invariance import aligned
from riemae.numerics.checks import expect_dense
from riemae.numerics.metric import safe_sqrt, solve_metric
from riemae.numerics.probe import FEW, LARGE_BATCH, ROWS
from riemae.numerics.threads import TURN, jvp
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete, evidently_finite
from riemae.solvers.energy import (
    Expansion,
    bending,
    chord_force,
    differentiated,
    discrete_energy,
    expand_by_autodiff,
    expand_chord,
    gauss_newton_blocks,
    image_velocity,
    rounding,
)
from riemae.solvers.products import Products, from_graph, pulled

# Fewer points than the quadrature of the shortest curve; padded to 16, they would feel the
# difference.
_FEW = 4


class Pullback:
    """The pull-back of an ambient metric by a decoder, on flat batches ``(k, m)``: what
    ``Manifold`` rests on.

    Args:
        decoder: The map ``f``.
        ambient: The metric ``H``; None is Euclidean for tensors, Fisher-Rao for distributions.
        latent_dim: m, or None to take it from the first points.
        chunk_size: Points handled at once, or None to choose by bytes.

    Attributes:
        immersion: Derivatives of ``f``, as a map to ``R^D`` with its Euclidean inner product.
        given: The metric as it was given.
        embedding: Derivatives of ``φ∘f`` where the ambient metric has a feature map φ; None
            elsewhere. The immersion itself under the Euclidean metric.
        batch_invariant: The embedding, or the immersion where there is none, with the same bits for
            a point in any batch: what curves are solved with. A few points by themselves are
            cheaper with the others.
        connection: Derivatives of the Christoffel symbols; to be called under the points'
            conditions.
        smoothness_known: Whether a warning of kinks has been given, or was not needed.
        kinks: A layer or function with kinks, once somebody has looked: see
            :func:`riemae.geometry.smoothness.kinks_by_name`.
        condition: The conditions of the points, where the decoder takes one: see :meth:`at`.
    """

    def __init__(
        self,
        decoder: Decoder,
        ambient: AmbientMetric | None,
        latent_dim: int | None,
        chunk_size: int | None,
    ) -> None:
        self.decoder = decoder
        self.latent_dim = latent_dim
        self.chunk_size = chunk_size
        self.immersion = Differential(decoder, chunk_size, "a decoder")
        self.given = ambient
        self._bound = False
        self._shape: torch.Size | None = None  # of one output
        self._set_ambient(Euclidean() if ambient is None else ambient)
        self.condition: Condition | None = None
        # What is known of kinks, shared with the copies under conditions.
        self._smoothness: set[str] = set()
        self.kinks: list[str | None] = []
        self._probed: set[tuple[Any, ...]] = set()
        self._all_failed = (
            False  # the decoder has no value at any of the points of a call that reports by status
        )
        self._large: set[tuple[Any, ...]] = set()  # where a large batch has been looked at

    def at(self, condition: Condition | None) -> Pullback:
        """This pull-back under conditions: one for each of the points, or curves, that its methods
        get.
        """
        if condition is None:
            return self
        twin = copy.copy(self)
        twin.condition = condition
        twin.immersion = self.immersion.conditioned(condition)
        own = self.embedding is self.immersion
        twin.embedding = (
            twin.immersion
            if own
            else None
            if self.embedding is None
            else self.embedding.conditioned(condition)
        )
        twin.batch_invariant = self.batch_invariant.conditioned(condition)
        return twin

    def select(self, rows: Any) -> Pullback:
        """Under the conditions of some of the points or curves."""
        return self if self.condition is None else self.at(self.condition.select(rows))

    def _parts(self, curves: Tensor, size: int) -> Iterator[tuple[Pullback, Tensor]]:  # (p, …)
        """Some curves at a time, each part under its own conditions."""
        if len(curves) <= size:
            yield self, curves
            return
        for first in range(0, len(curves), size):
            rows = slice(first, first + size)
            yield self.select(rows), curves[rows]

    @property
    def smoothness_known(self) -> bool:
        """Whether the decoder has been looked at for kinks."""
        return bool(self._smoothness)

    @smoothness_known.setter
    def smoothness_known(self, known: bool) -> None:
        self._smoothness.clear()
        self._smoothness.update({"known"} if known else ())

    def output_shape(self, flat: Tensor) -> torch.Size:  # (k, m)
        """Of one output of the decoder."""
        shape = self.decoder.output_shape
        if shape is not None:
            return shape
        # Values could not be looked at: meta device or vmap.
        first = flat[:1] if len(flat) else flat.new_zeros(1, flat.shape[-1])
        c = self.condition
        return self.decoder(
            first, c if c is None else c.select(slice(1)) if len(c) else c.blank()
        ).shape[1:]

    def _set_ambient(self, ambient: AmbientMetric) -> None:
        self.ambient = ambient
        self.embedding: Differential | None = None
        if isinstance(ambient, Euclidean):
            self.embedding = self.immersion
        elif ambient.has_features:
            features = lambda *z: ambient.features(self.decoder(*z)).flatten(1)  # noqa: E731 (one expression)
            self.embedding = Differential(
                features, self.chunk_size, "features of the decoded points"
            )
        self.batch_invariant = (self.embedding or self.immersion).batch_invariant()
        symbols = lambda z, c=None: self.at(c).christoffel("Manifold.christoffel", z)  # noqa: E731 (one expression)
        self.connection = Differential(symbols, self.chunk_size, what=None)

    def bind(self, flat: Tensor, condition: Condition | None = None) -> None:  # (k, m)
        """Tell the ambient metric, once, what the decoder returns: distributions, members of an
        ensemble, or tensors.

        Args:
            flat: Points.
            condition: One for each.

        Raises:
            AmbientError: When the metric cannot measure that.
        """
        if self._bound:
            return
        self.decoder.inspect(flat, condition)
        layout = self.decoder.layout
        shape = self._shape = self.at(condition).output_shape(flat)
        given = self.given
        if given is None:
            member = layout.member if isinstance(layout, EnsembleLayout) else layout
            given = Euclidean() if member is None else FisherRao()
        ambient = bound(given, layout, shape)
        if ambient is not self.ambient and not (
            isinstance(ambient, Euclidean) and isinstance(self.ambient, Euclidean)
        ):
            self._set_ambient(ambient)
        self._bound = True

    def points(
        self, where: str, z: Tensor, finite: bool = True, condition: Condition | None = None
    ) -> Tensor:  # (*b, m) -> (k, m)
        """Validate points, probe the decoder at first use, and flatten the leading axes.

        Args:
            where: The method that is called.
            z: Points.
            finite: Whether to refuse NaN and infinity.
            condition: One for each point, or for each of equally many neighbours.

        Raises:
            DTypeError: For no tensor, or another dtype than the decoder's.
            ShapeError: For a wrong last axis.
            NonFiniteError: For NaN or infinity, unless ``finite`` is False.
        """
        where = f"Manifold.{where}"
        expect_dense(where, "z", z)
        tolerance(z.dtype)
        m = self.latent_dim
        if not z.ndim or (m is not None and z.shape[-1] != m) or not z.shape[-1]:
            hint = "Batch axes come first" + (
                "; try z.T." if z.ndim == 2 and z.shape[0] == m else "."
            )
            raise ShapeError(where, f"z of shape (*b, {m or 'm'})", str(tuple(z.shape)), hint)
        changed = self.decoder.refuse_training_mode(where)
        self.decoder.check_placement(where, z)
        flat = z.reshape(-1, z.shape[-1])
        if condition is not None and len(flat):
            condition = condition.spread(len(flat))
        kind = (z.dtype, z.device, None if condition is None else condition.kind)
        if changed:  # what was trusted was another function
            self._probed.clear()
            self._large.clear()
        probed = kind in self._probed
        ok = concrete(flat.isfinite().all(-1)) if finite or not probed else None
        if finite and ok is not None and not bool(ok.all()):
            rows = (~ok).nonzero().flatten().tolist()
            raise NonFiniteError(
                where,
                "finite points",
                f"NaN or infinity at {len(rows)} of {len(flat)} points (first: {rows[:5]})",
                "Remove these rows, or look at what produced them.",
            )
        if not probed:
            with TURN:  # one thread finds out what the decoder is, the others what it found
                sound, those = (
                    (flat, condition)
                    if ok is None
                    else (flat[ok], condition and condition.select(ok))
                )
                x = self.decoder.probe(
                    where, sound, finite and not self._all_failed, self.chunk_size, those
                )
                self._all_failed = not finite and x is not None and not len(x)
                self.bind(sound, those)
                if x is not None and len(x):
                    self._check_ambient(sound, those)
                    self._probed.add(kind)
                self.latent_dim = z.shape[-1]
        if len(flat) >= LARGE_BATCH and kind not in self._large:
            if probed and concrete(flat) is not None:
                assert self.decoder.output_shape is not None
                sound, those = flat, condition
                if not evidently_finite(flat):
                    known = flat.isfinite().all(-1)
                    sound, those = flat[known], condition and condition.select(known)
                if len(sound):
                    self.decoder.probe_rows(
                        where, sound, self.decoder.output_shape.numel(), self.chunk_size, those
                    )
            self._large.add(kind)
        return flat

    def _check_ambient(self, flat: Tensor, condition: Condition | None = None) -> None:  # (k, m)
        """Look at the ambient metric where the decoded points lie, and in the directions in which
        they may move.

        All of them are decoded under the first point's condition.

        Raises:
            AmbientError: When it is none: random, coupled across the batch, not positive, or when
                torch.autograd does not know its derivative.
        """
        ambient, shape = self.ambient, self._shape
        assert shape is not None
        one = (
            None
            if condition is None
            else condition.select(slice(1))
            if len(condition)
            else condition.blank()
        )
        decoded = lambda z: self.decoder(z, one and one.spread(len(z))).flatten(1)  # noqa: E731 (one expression)
        limit = max(self.chunk_size or ROWS * FEW, FEW)
        rows = min(
            ROWS, limit // min(flat.shape[-1], FEW)
        )  # some functions get a row for every direction
        with torch.inference_mode(False), torch.no_grad():
            flat = flat.detach().clone() if len(flat) else flat.new_zeros(1, flat.shape[-1])
            given, x = _with_values(decoded, flat[:2])
            if not ambient.foreign or ambient.has_features:
                ambient.check(x.view(len(x), *shape))
            else:
                options = {"tangents": self._directions(decoded, given)}
                if (
                    "tangents" not in inspect.signature(ambient.check).parameters
                ):  # a subclass with a check of its own
                    options = {}
                ambient.check(x.view(len(x), *shape), **options)
                picked = flat[
                    torch.linspace(0, len(flat) - 1, min(len(flat), rows)).long().to(flat.device)
                ]
                given, x = _with_values(decoded, picked)
                ambient.check_positive(
                    x, self._directions(decoded, given), tolerance(x.dtype).eps ** (2 / 3)
                )
            if not ambient.foreign:
                return
            source = probe.generator()
            points = probe.generic(
                decoded, flat, min(ROWS if x.shape[1] <= 64 else FEW, limit), self.chunk_size
            )
            v = probe.normal(points, *points.shape, source=source) * probe.spread(flat)
            x = decoded(points)
            columns = probe.normal(x, *x.shape, 1, source=source)
        sound = x.isfinite().all(-1)
        if not bool(sound.any()):
            return
        d = x.shape[1]

        def lowered(packed: Tensor) -> Tensor:  # H(x) u, with u in the row
            y, u = packed.split(d, -1)
            return (
                ambient.features(y.view(len(y), *shape)).flatten(1)
                if ambient.has_features
                else (ambient.apply_to(y, u[..., None])[..., 0])
            )

        where = type(ambient).__name__
        packed = torch.cat([x, columns[..., 0]], -1)
        try:
            with torch.no_grad():
                found = probe.dependence(lowered, packed[sound], FEW)
        except probe.FAILURES as reason:
            raise AmbientError(
                where,
                "a metric of any number of points",
                f"{type(reason).__name__}: {reason}",
                "Keep the batch axis.",
            ) from reason
        if found is not None:
            raise AmbientError(where, *found.message("metric"))
        steps = columns[:FEW, :, 0]
        path = lambda t: torch.cat([decoded(points[:FEW] + t[:, None] * v[:FEW]), steps], -1)  # noqa: E731
        contradicted = probe.contradiction(lowered, path, len(steps), points)
        if contradicted is not None:
            got, remedy = probe.explained(contradicted, lowered)
            raise AmbientError(
                where, "a function whose derivative torch.autograd knows", got, remedy
            )

    @staticmethod
    def _directions(
        decoded: Callable[[Tensor], Tensor], z: Tensor
    ) -> Tensor:  # (k, m) -> (k, D, c)
        """Directions in which decoded points move, by differences of the decoder: those of its
        first coordinates.
        """
        axes = torch.eye(z.shape[-1]).to(z)[:FEW]
        step = tolerance(z.dtype).eps ** (1 / 3) * (1 + z.abs().amax())
        sides = [decoded(z + step * e) - decoded(z - step * e) for e in axes]
        return torch.stack(sides, -1).nan_to_num(0.0, 0.0, 0.0) / (2 * step)

    def placed(
        self, where: str, z: Tensor, condition: Conditions, finite: bool = True
    ) -> tuple[Pullback, Tensor]:  # (*b, m) -> (k, m)
        """The pull-back under the conditions of points, and the points, validated and flattened."""
        if condition is None or not isinstance(z, Tensor) or not z.ndim:
            return self, self.points(where, z, finite)
        given = Condition.of(f"Manifold.{where}", condition, z.shape[:-1], z.device)
        flat = self.points(where, z, finite, given)
        return self.at(given), flat

    def tangents(self, where: str, z: Tensor, *vectors: Tensor) -> tuple[Any, ...]:
        """Validated points and tangents, flattened after broadcasting, and the batch shape."""
        return self.placed_tangents(where, None, z, *vectors)[1:]

    def placed_tangents(
        self, where: str, condition: Conditions, z: Tensor, *vectors: Tensor
    ) -> tuple[Any, ...]:
        """The pull-back under the conditions of points, then points and tangents, flattened after
        broadcasting.

        All are validated; the batch shape comes last.

        Raises:
            ShapeError: When they do not broadcast.
            DTypeError: When their dtypes differ.
            DeviceError: When their devices differ.
            NonFiniteError: When a tangent is NaN or infinite.
        """
        for x in (z, *vectors):
            if not isinstance(x, Tensor):
                raise DTypeError(
                    f"Manifold.{where}",
                    "torch tensors",
                    type(x).__name__,
                    "Try torch.as_tensor(...).",
                )
        if any(v.shape[-1:] != z.shape[-1:] for v in vectors):
            if condition is None:
                self.points(where, z)
            raise ShapeError(
                f"Manifold.{where}",
                f"tangent vectors with the last axis of z {tuple(z.shape)}",
                ", ".join(str(tuple(v.shape)) for v in vectors),
                "A tangent vector has the shape of its point, (*b, m).",
            )
        try:
            z, *vectors = torch.broadcast_tensors(z, *vectors)
        except RuntimeError:
            raise ShapeError(
                f"Manifold.{where}",
                f"tangent vectors that broadcast with z of shape {tuple(z.shape)}",
                ", ".join(str(tuple(v.shape)) for v in vectors),
                "A tangent vector has the shape of its point, (*b, m).",
            ) from None
        given = Condition.of(f"Manifold.{where}", condition, z.shape[:-1], z.device)
        flat = self.points(where, z, condition=given)
        for v in vectors:
            if v.device != z.device:
                raise DeviceError(
                    f"Manifold.{where}",
                    f"tangents on {z.device}",
                    str(v.device),
                    "Move one of them.",
                )
            ok = concrete(v.isfinite().all(-1))
            if ok is not None and not bool(ok.all()):
                raise NonFiniteError(
                    f"Manifold.{where}",
                    "finite tangents",
                    "NaN or infinity",
                    "Look at what produced them.",
                )
            if v.dtype != z.dtype:
                raise DTypeError(
                    f"Manifold.{where}",
                    f"tangents of dtype {z.dtype}",
                    str(v.dtype),
                    "Convert one of them.",
                )
        return (self.at(given), flat, *(v.reshape(flat.shape) for v in vectors), z.shape[:-1])

    def finite(self, where: str, out: Tensor, flat: Tensor) -> Tensor:
        """``out``, one row a point.

        Raises:
            NonFiniteError: When it holds NaN or infinity, with the places.
        """
        if evidently_finite(out):
            return out
        ok = concrete(out.isfinite().reshape(len(out), -1).all(1)) if len(out) else None
        if ok is not None and not bool(ok.all()):
            first = int((~ok).nonzero()[0])
            raise NonFiniteError(
                f"Manifold.{where}",
                "finite values",
                f"NaN or infinity at {int((~ok).sum())} of {len(ok)} points (first: z = {flat[first].tolist()})",
                "Is the point inside the decoder's domain, and is the decoder smooth there?",
            )
        return out

    def metric(self, flat: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        """``G = Jᵀ H(f(z)) J``."""
        if self.embedding is not None:
            return self.embedding.jets(flat, then=lambda x, j: j.mT @ j)

        def pulled(x: Tensor, j: Tensor) -> Tensor:
            g = j.mT @ self.ambient.apply_to(x, j)
            return (g + g.mT) / 2

        g = self.immersion.jets(flat, then=pulled)
        return self._positive(g) if self.ambient.foreign else g

    def _positive(self, g: Tensor) -> Tensor:  # (k, m, m) -> (k, m, m)
        """``g``, of an ambient metric by a user's function.

        Raises:
            SingularMetricError: Where it has a negative eigenvalue, with the places.
        """
        if not len(g) or transformed() or concrete(g) is None:
            return g
        diagonal = g.detach().diagonal(dim1=-2, dim2=-1)
        # Where a decomposition of the metric scaled to unit diagonal exists, it is positive but for
        # rounding.
        scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()[..., None]
        shift = tolerance(g.dtype).probe * torch.eye(g.shape[-1]).to(g)
        bad = (
            torch.linalg.cholesky_ex(g.detach() * scale * scale.mT + shift)[1] != 0
        ) & g.isfinite().flatten(1).all(-1)
        if bool(bad.any()):
            places = bad.nonzero().flatten().tolist()
            low = float(torch.linalg.eigvalsh(g.detach()[bad][0])[0])
            raise SingularMetricError(
                type(self.ambient).__name__,
                "a metric that is positive along the decoded manifold",
                f"a negative squared length ({low:.3g}) at {len(places)} of {len(g)} points (first: {places[:5]})",
                "A metric is S S ᵀ: build it from a factor.",
            )
        return g

    def factor(self, flat: Tensor, then: Callable[[Tensor], Any]) -> Any:  # (k, m) -> (k, …)
        """``then`` of factors ``F`` ``(k, q, m)`` of the metric, ``G = FᵀF``, chunk by chunk: see
        riemae.factors.
        """
        if self.embedding is not None:
            return self.embedding.jets(flat, then=lambda x, j: then(j))
        return self.immersion.jets(flat, then=lambda x, j: then(ambient_factor(self.ambient, x, j)))

    def triangle(self, where: str, flat: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
        """Upper triangular ``R`` with ``RᵀR = G``, in float64."""
        return self.finite(where, self.factor(flat, triangle), flat)

    def log_volume(self, where: str, flat: Tensor) -> Tensor:  # (k, m) -> (k,)
        """``log √det G``."""
        return log_determinant(f"Manifold.{where}", self.triangle(where, flat), flat.dtype)

    def singular_values(self, where: str, flat: Tensor) -> Tensor:  # (k, m) -> (k, m)
        """Square roots of the eigenvalues of ``G``, ascending."""
        # Triangles have closer values, and no derivatives where G is singular; the factors
        # themselves have.
        wanted = (
            torch.is_grad_enabled() or transformed()
        )  # some modes switch gradients on for themselves
        factors = self.factor(
            flat, lambda f: f if wanted and differentiated_later(f) else triangle(f)
        )
        again = differentiated_later(factors)
        r = triangle(factors.detach()) if again else factors
        values = singular_values(
            f"Manifold.{where}", self.finite(where, r.detach(), flat), flat.dtype
        )
        if again:
            own = differentiable_singular_values(factors)
            values = values + (own - own.detach())
        return values.to(flat.dtype)

    def metric_product(self, flat: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k, m)
        """``G v`` by one forward and one reverse product, through one primal pass."""
        if self.embedding is not None:
            return self.embedding.gram_product(flat, v)[2]
        return self.immersion.gram_product(flat, v, self.ambient.product)[2]

    def taylor(
        self, flat: Tensor, v: Tensor, order: int
    ) -> tuple[Tensor, ...]:  # (k, m), (k, m) -> (k, D) each
        """``f(z)``, ``Jv`` and, for order 2, ``½ ∂²f(v, v)``, in one pass."""
        if order == 1:
            return self.immersion.jvp(flat, v)
        x, first, second = self.immersion.taylor(flat, v)
        return x, first, second / 2

    def christoffel(self, where: str, flat: Tensor) -> Tensor:  # (k, m) -> (k, m, m, m)
        """``Γᵏ_ij`` as ``[k, i, j]``.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        if self.embedding is not None:
            pairs = Pairs.all(flat.shape[-1])
            reduced = lambda x, j, second: (j.mT @ j, j.mT @ second)  # noqa: E731 (one expression)
            metric, packed = self.embedding.jets(flat, None, pairs, reduced)
            lowered = pairs.full(packed)
        else:
            metric, d = self._metric_and_derivative(flat)  # d[b, i, j, l] = ∂_l G_ij
            lowered = (d.permute(0, 1, 3, 2) + d - d.permute(0, 3, 1, 2)) / 2
        self.finite(where.removeprefix("Manifold."), metric, flat)
        return solve_metric(where, metric, lowered)

    def acceleration(
        self, where: str, flat: Tensor, v: Tensor
    ) -> Tensor:  # (k, m), (k, m) -> (k, m)
        """``−Γ(v, v)`` without Christoffel symbols.

        Raises:
            SingularMetricError: Where the metric is not positive definite.
        """
        m = flat.shape[-1]

        def reduced(x: Tensor, tangents: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
            j, velocity = tangents[..., :m], tangents[..., m]
            if self.embedding is not None:
                return j.mT @ j, j.mT @ second
            force = self.ambient.product(x, second[..., 0]) + _ambient_force(
                self.ambient, x, velocity
            )
            return j.mT @ self.ambient.apply_to(x, j), j.mT @ force[..., None]

        directions = torch.cat([everywhere(flat), v[:, None]], 1)
        metric, pulled = (self.embedding or self.immersion).jets(
            flat, directions, Pairs([m], [m]), reduced
        )
        self.finite(where.removeprefix("Manifold."), metric, flat)
        return -solve_metric(where, metric, pulled[..., 0])

    def inner(self, flat: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (k, m) x 3 -> (k,)
        """``uᵀ G(z) v`` by two tangents of one pass."""
        x, tangents = (self.embedding or self.immersion).jets(flat, torch.stack([u, v], 1))
        left, right = tangents.unbind(-1)
        return (
            (left if self.embedding is not None else self.ambient.product(x, left)) * right
        ).sum(-1)

    def norm(self, flat: Tensor, v: Tensor) -> Tensor:  # (k, m), (k, m) -> (k,)
        """``sqrt(vᵀ G(z) v)`` by one forward product; its gradient at v = 0 is 0."""
        road = (self.embedding or self.immersion) if len(flat) <= _FEW else self.batch_invariant

        def squared(x: Tensor, tangents: Tensor) -> Tensor:
            tangent = tangents[..., 0]
            size = (
                tangent.square().sum(-1)
                if self.embedding is not None
                else self._squared_norm(x, tangent)
            )
            # A derivative may exist where the map has no value (log): no length comes from it.
            return torch.where(x.isfinite().all(-1), size, torch.nan)

        return safe_sqrt(road.jets(flat, v[:, None], then=squared))

    def _squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H v``; NaN where that is negative beyond rounding: no length comes from it."""
        given = self.ambient.given_by()
        if given != "product" and given != "diagonal" and given != "matrix":
            squared = self.ambient.squared_norm(x, v)
            return torch.where(squared < 0, torch.nan, squared) if given == "inner" else squared
        terms = v * self.ambient.product(x, v)
        squared = terms.sum(-1)
        return torch.where(
            squared < -1e3 * tolerance(x.dtype).eps * terms.abs().sum(-1), torch.nan, squared
        )

    def embedded(
        self, points: Tensor, then: Callable[[Tensor], Tensor]
    ) -> Tensor | None:  # (p, c, m) -> (p, …)
        """``then`` ``(p, c, D) -> (p, …)`` of the features along curves, some curves at a time.

        None without any, and where those of one curve are too many to be held at once.
        """
        self.bind(points[:, 0])
        curves = (
            0
            if self.embedding is None
            else self.batch_invariant.chunk(points.flatten(0, 1), 1) // points.shape[1]
        )
        if not curves:
            return None
        split = self._parts(points, curves)
        parts = [
            then(part.batch_invariant.value(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
            for part, x in split
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def squared_chords(self, nodes: Tensor) -> Tensor:  # (p, n + 1, m) -> (p, n)
        """Squared segments of discrete curves, ``|φ(f(z_{i+1})) − φ(f(z_i))|²``.

        Without a feature map ``Δxᵀ ½(H(x_i) + H(x_{i+1})) Δx``.
        """
        self.bind(nodes[:, 0])
        x = self.batch_invariant.value(nodes.flatten(0, 1)).unflatten(0, nodes.shape[:2])
        return self._squared_steps(x, x.diff(dim=1))

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """The energy ``n Σ squared_chords`` with its derivatives, some curves at a time to bound
        memory.
        """
        self.bind(nodes[:, 0])
        p, count, m = nodes.shape
        curves = max(
            1,
            self.immersion.chunk(nodes.flatten(0, 1), 1 + (2 if second_order else 1) * m) // count,
        )
        return Expansion.cat(
            [part._expand(x, second_order) for part, x in self._parts(nodes, curves)]
        )

    def energy_and_gradient(
        self, nodes: Tensor
    ) -> tuple[Tensor, Tensor]:  # (p, n + 1, m) -> (p,), (p, n - 1, m)
        """The energy ``n Σ squared_chords`` and its gradient, by one reverse pass, some curves at a
        time.
        """
        self.bind(nodes[:, 0])
        curves = max(1, self.immersion.chunk(nodes.flatten(0, 1), 2) // nodes.shape[1])
        parts = [part._slope(x) for part, x in self._parts(nodes, curves)]
        if len(parts) == 1:
            return parts[0]
        energies, gradients = zip(*parts, strict=True)
        return torch.cat(energies), torch.cat(gradients)

    def products(self, nodes: Tensor) -> Products:  # (p, n + 1, m)
        """The energy ``n Σ squared_chords`` with products of its Hessian, by reverse passes through
        one kept graph.

        The Gauss-Newton product is ``Jᵀ(W (Jv))``: ``Jv`` as the derivative of ``Jᵀw`` in w, W the
        path's Laplacian.
        """
        self.bind(nodes[:, 0])
        p, count, _ = nodes.shape
        n = count - 1
        # Fused kernels often lack second backward passes.
        with PORTABLE.active(second_order=True):
            ends = (
                self.batch_invariant.value(nodes[:, ::n].detach().flatten(0, 1))
                .detach()
                .view(p, 2, -1)
            )
            interior = nodes[:, 1:-1].detach().requires_grad_()
            x = self.batch_invariant.value(interior.flatten(0, 1)).view(p, n - 1, -1)
            # A linear map of w with the graph of J, made when it is first asked for.
            w = torch.zeros_like(x).requires_grad_()
            path = torch.cat([ends[:, :1], x, ends[:, 1:]], 1)
            chords = self._squared_steps(path, path.diff(dim=1))
        points = path.detach()
        graph: list[Tensor] = []

        def gauss_newton(v: Tensor) -> Tensor:
            if not x.requires_grad:
                return torch.zeros_like(v)
            if not graph:
                with torch.enable_grad():
                    graph.extend(
                        torch.autograd.grad(
                            x, interior, w, create_graph=True, materialize_grads=True
                        )
                    )
            step = torch.nn.functional.pad(pulled(graph[0], w, v), (0, 0, 1, 1)).diff(dim=1)
            return pulled(x, interior, -2 * n * self._lowered(points, step).diff(dim=1))

        start = points[:, :-1]
        return from_graph(
            interior, chords, safe_sqrt(self._squared_steps(points, start)), gauss_newton
        )

    def residual(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n - 1, m)
        """The gradient of the chord energy with second differences of sixth order, or None without
        a feature map.
        """
        self.bind(nodes[:, 0])
        if self.embedding is None:
            return None
        x = self.batch_invariant.value(nodes.flatten(0, 1)).unflatten(0, nodes.shape[:2])
        interior = nodes[:, 1:-1]
        # Of a multiple of 16 curves, so that one of them alone has the same bits: see
        # riemae.numerics.batch_invariance.
        bend = bending(aligned(x, -3))[: len(x)]
        pulled = self.batch_invariant.vjp(interior.flatten(0, 1), bend.flatten(0, 1))[1]
        return pulled.view(interior.shape)

    def velocities(self, nodes: Tensor) -> Tensor | None:  # (p, n + 1, m) -> (p, n + 1, m)
        """The velocities with which a geodesic passes its nodes: ``ż`` with ``Jż`` closest to the
        image's velocity.

        The image of a geodesic turns in directions normal to the manifold only, however unevenly
        its coordinates move, so that finite differences are taken of the image. None without a
        feature map, or with more latent dimensions than features; NaN or far too fast where J is
        singular.
        """
        self.bind(nodes[:, 0])
        if self.embedding is None:
            return None
        p, count, m = nodes.shape
        if self.select(slice(1)).batch_invariant.value(nodes[:1, 0]).shape[-1] < m:
            return None
        curves = max(1, self.immersion.chunk(nodes.flatten(0, 1), 1 + m) // count)

        def projected(core: Pullback, part: Tensor) -> Tensor:
            x, j = (
                y.unflatten(0, part.shape[:2])
                for y in core.batch_invariant.value_and_jacobian(part.flatten(0, 1))
            )
            # Of a multiple of 16 curves, so that one of them alone has the same bits: see
            # riemae.numerics.batch_invariance.
            velocity = image_velocity(aligned(x, -3))[: len(x)]
            # Columns of unit length: the units of the coordinates are no matter of condition.
            scale = safe_sqrt(j.square().sum(-2, keepdim=True))
            q, r = torch.linalg.qr(j / scale)
            lowered = (q.mT @ velocity[..., None])[..., 0]
            solved = torch.linalg.solve_triangular(r, lowered[..., None], upper=True)[..., 0]
            return solved / scale[..., 0, :]

        return torch.cat([projected(part, x) for part, x in self._parts(nodes, curves)])

    def ambient_distance(
        self, z0: Tensor, z1: Tensor
    ) -> Tensor | None:  # (*b, m), (*b, m) -> (*b,)
        """Distance of the decoded points in the ambient space, a lower bound of the geodesic's.

        None when unknown.
        """
        self.bind(z0.reshape(-1, z0.shape[-1]))
        if self.embedding is not None and type(self.ambient).distance is AmbientMetric.distance:
            ends = torch.stack([z0, z1], -2).flatten(0, -2)
            first, last = (
                self.batch_invariant.value(ends).unflatten(0, (-1, 2)).unbind(1)
            )  # the chord
            return (last - first).norm(dim=-1).view(z0.shape[:-1])
        assert self._shape is not None
        decoded = [self.immersion.value(z.reshape(-1, z.shape[-1])) for z in (z0, z1)]
        distance = self.ambient.distance(*(x.view(len(x), *self._shape) for x in decoded))
        return None if distance is None else distance.view(z0.shape[:-1])

    def _metric_and_derivative(
        self, flat: Tensor
    ) -> tuple[Tensor, Tensor]:  # -> (k, m, m), (k, m, m, m)
        """``G`` and ``∂_l G_ij`` as ``[k, i, j, l]``, from first and second derivatives of f and
        first ones of H.
        """
        x, j, second = self.immersion.second_jet(flat)
        hj = self.ambient.apply_to(x, j)
        bend = torch.einsum("kdi,kdjl->kijl", hj, second)
        slope = [
            j.mT @ jvp(lambda y: self.ambient.apply_to(y, j), (x,), (j[..., i],))[1]
            for i in range(j.shape[-1])
        ]
        return j.mT @ hj, bend + bend.transpose(1, 2) + torch.stack(slope, -1)

    def _squared_steps(
        self, x: Tensor, step: Tensor
    ) -> Tensor:  # (p, n + 1, D), (p, n, D) -> (p, n)
        """``stepᵀ ½(H(x_i) + H(x_{i+1})) step``, or its square where features have been taken."""
        if self.embedding is not None:
            return step.square().sum(-1)
        ends = [
            self.ambient.squared_norm(y.flatten(0, 1), step.flatten(0, 1))
            for y in (x[:, :-1], x[:, 1:])
        ]
        return ((ends[0] + ends[1]) / 2).view(step.shape[:2])

    def _lowered(self, x: Tensor, step: Tensor) -> Tensor:  # (p, n + 1, D), (p, n, D) -> (p, n, D)
        """``½(H(x_i) + H(x_{i+1})) step``."""
        if self.embedding is not None:
            return step
        ends = [
            self.ambient.product(y.flatten(0, 1), step.flatten(0, 1)) for y in (x[:, :-1], x[:, 1:])
        ]
        return ((ends[0] + ends[1]) / 2).view(step.shape)

    def _expand(self, nodes: Tensor, second_order: bool) -> Expansion:
        expand = self._expand_features if self.embedding is not None else self._expand_general
        return expand(nodes, second_order)

    def _slope(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        if self.embedding is not None:
            return self._slope_of_features(nodes)
        return differentiated(self.squared_chords, nodes)

    def _expand_features(self, nodes: Tensor, second_order: bool) -> Expansion:
        p, count, m = nodes.shape
        # The end points do not move: their values are needed, their derivatives are not.
        ends = self.batch_invariant.value(nodes[:, :: count - 1].flatten(0, 1)).view(p, 2, -1)
        interior = nodes[:, 1:-1].flatten(0, 1)

        def joined(x: Tensor) -> Tensor:
            return torch.cat([ends[:, :1], x.view(p, count - 2, -1), ends[:, 1:]], 1)

        form = None
        if second_order:
            force = lambda x: chord_force(joined(x).diff(dim=1)).flatten(0, 1)  # noqa: E731 (one expression)
            x, j, form = self.batch_invariant.expansion(interior, force)
            form = form.view(p, count - 2, m, m)
        else:
            x, j = self.batch_invariant.value_and_jacobian(interior)
        # In one layout for any number of curves, each Jacobian aligned alike: products must have
        # the same bits.
        j = aligned(j.unflatten(0, (p, -1)), -2, m).contiguous()
        return expand_chord(aligned(joined(x), -1, m), j, form)

    def _slope_of_features(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        p, count, m = nodes.shape
        steps = []

        def force(x: Tensor) -> Tensor:
            out, x = torch.zeros_like(x), x[: p * count].view(p, count, -1)
            steps.append(x[:, 1:] - x[:, :-1])
            out[: p * count].view(x.shape)[:, 1:-1] = chord_force(steps[0])
            return out

        pulled = self.batch_invariant.slope(nodes.flatten(0, 1), force)[1]
        energy = discrete_energy(aligned(steps[0], -1, m).square().sum(-1))
        return energy, 2 * (count - 1) * pulled.view(p, count, m)[:, 1:-1]

    def _expand_general(self, nodes: Tensor, second_order: bool) -> Expansion:
        p, count, _ = nodes.shape
        x, j = self.batch_invariant.value_and_jacobian(nodes.flatten(0, 1))
        x, j = (y.unflatten(0, (p, count)) for y in (x, j))
        ends = [(s, x[:, s].flatten(0, 1)) for s in (slice(None, -1), slice(1, None))]

        def weighted(columns: Tensor) -> Tensor:
            """``½(H_i + H_{i+1})`` of each segment times columns ``(p, n, D, c)``."""
            flat = columns.flatten(0, 1)
            first, last = (self.ambient.apply_to(y, flat) for _, y in ends)
            return ((first + last) / 2).view(columns.shape)

        left, right = j[:, :-1], j[:, 1:]
        w_left, w_right = weighted(left), weighted(right)
        step = x.diff(dim=1)
        size, speed = (
            safe_sqrt(self.ambient.squared_norm(ends[0][1], y.flatten(0, 1))).view(step.shape[:2])
            for y in (x[:, :-1], step)
        )
        return expand_by_autodiff(
            self.squared_chords,
            nodes,
            gauss_newton_blocks(left.mT @ w_left, right.mT @ w_right, left.mT @ w_right),
            rounding(size, speed),
            second_order,
            lambda f, z, v: self.immersion.pushforward(f, z, v),
        )


def _with_values(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """The points at which ``f`` is finite, and its values there."""
    x = f(z)
    ok = x.isfinite().all(-1)
    return z[ok], x[ok]


def _ambient_force(
    ambient: AmbientMetric, x: Tensor, velocity: Tensor
) -> Tensor:  # (k, D), (k, D) -> (k, D)
    """``(D_ẋ H) ẋ − ½ ∇ₓ(ẋᵀ H ẋ)``: how a metric that varies in space bends straight lines."""
    along = jvp(lambda y: ambient.product(y, velocity), (x,), (velocity,))[1]
    across = torch.func.grad(lambda y: ambient.squared_norm(y, velocity).sum())(x)
    return along - across / 2
