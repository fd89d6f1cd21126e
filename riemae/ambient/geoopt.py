"""Data on a manifold of the geoopt library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae.ambient.base import FeatureMetric, InnerMetric
from riemae.ambient.shaped import ShapedMetric
from riemae.exceptions import AmbientError
from riemae.numerics.tolerances import tolerance


class Geoopt(ShapedMetric, InnerMetric):
    """Data on a geoopt manifold, whose inner product is ``H``.

    The manifold's distance is the lower bound of the length of every geodesic.

    The decoder returns points of the manifold in geoopt's own coordinates: unit vectors for
    ``Sphere``, points of the ball for ``PoincareBall``, of the hyperboloid for ``Lorentz``,
    matrices for ``SymmetricPositiveDefinite`` and ``Stiefel``, concatenated parts for
    ``ProductManifold``. Extra axes before the manifold's own stand for a product of copies. Where
    the inner product is that of the surrounding space (``Sphere``, ``Euclidean``,
    ``EuclideanStiefel``, their products and multiples) the data are their own features, which is
    faster.

    ``Scaled`` multiplies lengths, as its ``dist`` does; geoopt's ``Scaled.inner`` itself is for
    velocities that were divided by the scale. ``Lorentz`` and others are metrics on tangent vectors
    of the manifold only.

    Args:
        manifold: A ``geoopt.Manifold``.

    Raises:
        AmbientError: For anything else, and for ``SymmetricPositiveDefinite`` with another metric
            than ``"AIM"``, whose inner product and distance belong to different metrics.

    Example:
        >>> import geoopt, torch
        >>> from riemae import Manifold, ambient
        >>> ball = Manifold(lambda z: z, ambient=ambient.Geoopt(geoopt.PoincareBall()))
        >>> ball.metric(torch.tensor([[0., 0.5]]).double())  # 4/(1 − |x|²)² times the identity
        tensor([[[7.1111, 0.0000],
                 [0.0000, 7.1111]]], dtype=torch.float64)
    """

    def __new__(cls, manifold: Any = None) -> Geoopt:
        """With features where the inner product is that of the surrounding space."""
        embedded = cls is Geoopt and embedding(manifold) is not None
        return super().__new__(_EmbeddedGeoopt if embedded else cls)

    def __init__(self, manifold: Any) -> None:
        super().__init__()
        import geoopt

        if not isinstance(manifold, geoopt.Manifold):
            raise AmbientError(
                "Geoopt", "a geoopt.Manifold", type(manifold).__name__, "Try geoopt.Sphere()."
            )
        for part in manifold.modules():
            if (
                isinstance(part, geoopt.SymmetricPositiveDefinite)
                and part.default_metric.value != "AIM"
            ):
                raise AmbientError(
                    "Geoopt",
                    "SymmetricPositiveDefinite('AIM')",
                    repr(part.default_metric.value),
                    "Its inner product is the affine-invariant one whatever its distance is.",
                )
        self.manifold = manifold

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (k, D) x 3 -> (k,)
        """The manifold's inner product of velocities of ``x``."""
        return inner_product(self.manifold, self.shaped(x), self.shaped(u), self.shaped(v))

    def distance(self, x0: Tensor, x1: Tensor) -> Tensor | None:  # (k, *shape), (k, *shape) -> (k,)
        """The manifold's distance.

        Where geoopt has none, the chord in feature space, if there is one.

        Several of geoopt's distances never fall below some small value, 4e-4 on the sphere. The
        distance of a point to itself is subtracted, so that the result is a lower bound.
        """
        try:
            between, *floors = (
                self.manifold.dist(a, b, keepdim=True).reshape(len(x0), -1).square().sum(-1)
                for a, b in ((x0, x1), (x0, x0), (x1, x1))
            )
        except NotImplementedError:
            return super().distance(x0, x1)
        return (between - torch.maximum(*floors)).clamp(min=0).sqrt()

    def check(self, x: Tensor, tangents: Tensor | None = None) -> None:  # (k, *shape)
        """As in :meth:`AmbientMetric.check`, on tangent vectors, if ``x`` lies on the manifold.

        Raises:
            AmbientError: When it does not.
        """
        points = x
        if self.manifold.dtype is not None:
            points = x.to(self.manifold.dtype)
        largest = float(points.abs().max())
        tol = tolerance(points.dtype).probe * (1 + largest**2)
        try:
            ok, reason = self.manifold.check_point_on_manifold(
                points, explain=True, atol=tol, rtol=tol
            )
        except (RuntimeError, ValueError) as failure:
            ok, reason = False, str(failure)
        if not ok:
            raise AmbientError(
                "Geoopt",
                f"points of {self.manifold}",
                f"data of shape {tuple(x.shape[1:])}: {reason}",
                "End the decoder with a map onto the manifold, such as manifold.projx or "
                "manifold.expmap0.",
            )
        super().check(x, tangents)

    def _probes(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D, 2)
        points = self.shaped(x)
        vectors = super()._probes(x).unbind(-1)
        tangents = [self.manifold.proju(points, self.shaped(v)).flatten(1) for v in vectors]
        return torch.stack(tangents, -1)

    @property
    def title(self) -> str:
        """What the metric is called in messages."""
        return "Geoopt"

    def _get_name(self) -> str:
        return self.title


class _EmbeddedGeoopt(Geoopt, FeatureMetric):
    """A manifold whose inner product is that of the surrounding space."""

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, ...)
        """The data themselves, scaled part by part."""
        isometry = embedding(self.manifold)
        assert isometry is not None
        return isometry(x)


def inner_product(
    manifold: Any, x: Tensor, u: Tensor, v: Tensor
) -> Tensor:  # (k, *shape) x 3 -> (k,)
    """Inner product of velocities of points of a geoopt manifold, differentiable to any order."""
    import geoopt

    if isinstance(manifold, geoopt.Scaled):
        return manifold.scale.to(x) ** 2 * inner_product(manifold.base, x, u, v)
    if isinstance(manifold, geoopt.ProductManifold):
        parts = [
            inner_product(
                part,
                *(manifold.take_submanifold_value(y, i).flatten(0, x.ndim - 2) for y in (x, u, v)),
            )
            for i, part in enumerate(manifold.manifolds)
        ]
        sums = [p.view(len(x), -1).sum(-1) for p in parts]
        return torch.stack(sums).sum(0)
    if isinstance(manifold, geoopt.SymmetricPositiveDefinite):
        # tr(x⁻¹ u x⁻¹ v). Not by eigenvectors, as geoopt does: they have no derivative where
        # eigenvalues meet. Nor by torch.linalg.solve, whose third derivatives contradict each other
        # (torch 2.13, forward against reverse mode).
        factor = torch.linalg.cholesky(x)
        left, right = (torch.cholesky_solve(w, factor) for w in (u, v))
        return (left * right.mT).flatten(1).sum(-1)
    if isinstance(manifold, geoopt.Stereographic):
        # λ² ⟨u, v⟩ with λ = 2/(1 + k|x|²); geoopt's is a torch.jit.script function: wrong in nested
        # derivatives.
        squared = x.square().sum(-1, keepdim=True)
        factor = 2 / (1 + manifold.k.to(x) * squared)
        return (factor**2 * u * v).flatten(1).sum(-1)
    found = manifold.inner(x, u, v, keepdim=True)
    return found.reshape(len(x), -1).sum(-1)


def metric_tensor(manifold: Any, z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
    """The metric of a geoopt manifold in the coordinates of its points."""
    basis = torch.eye(z.shape[-1]).to(z)
    rows = [
        [inner_product(manifold, z, u.expand_as(z), v.expand_as(z)) for v in basis] for u in basis
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def embedding(manifold: Any) -> Callable[[Tensor], Tensor] | None:
    """The isometric map of a manifold into a Euclidean space; None where there is none.

    It exists where the inner product is that of the surrounding space.
    """
    import geoopt

    if isinstance(manifold, (geoopt.Sphere, geoopt.Euclidean, geoopt.EuclideanStiefel)):
        return lambda x: x
    if isinstance(manifold, geoopt.Scaled):
        base = embedding(manifold.base)
        scaled = manifold
        if base is None:
            return None
        return lambda x: scaled.scale.to(x) * base(x)
    if isinstance(manifold, geoopt.ProductManifold):
        maps = [embedding(part) for part in manifold.manifolds]
        if any(part is None for part in maps):
            return None
        take = manifold.take_submanifold_value
        return lambda x: torch.cat(
            [f(take(x, i, reshape=False)) for i, f in enumerate(maps) if f is not None], -1
        )
    return None
