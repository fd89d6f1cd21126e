"""A latent space under its pull-back metric as a geoopt manifold, for geoopt's optimisers."""

from __future__ import annotations

from typing import Any, Literal

import geoopt
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, OptionError
from riemae.manifold import Manifold
from riemae.numerics.metric import solve_metric

# Pieces of the geodesic along which a vector is carried: fourth order in their length.
_SEGMENTS = 8


class LatentManifold(geoopt.Manifold):
    """The latent codes ``(*b, m)`` of a decoder with the metric ``G`` that it pulls back.

    A gradient in coordinates becomes ``G⁻¹ ∂f``, the direction of steepest descent whatever the
    chart, and steps bend with the geodesics: ``geoopt.optim.RiemannianAdam`` and ``RiemannianSGD``
    optimise codes.

    Args:
        manifold: The manifold; its decoder's own parameters are not optimised here.
        retraction: How optimisers step. ``"second_order"``: ``z + v + ½ z̈`` with the geodesic's
            acceleration, and momentum carried to first order: a few evaluations of the connection.
            ``"exp"``: along the geodesic itself, and momentum by parallel transport: some hundred
            evaluations, right for steps of any size.
        rtol: Accuracy of :meth:`dist`, :meth:`logmap` and :meth:`expmap`.

    Raises:
        DTypeError: When ``manifold`` is not a :class:`~riemae.Manifold`.
        OptionError: For an unknown retraction.

    Example:
        >>> import geoopt, torch
        >>> from riemae import Manifold
        >>> from riemae.interop.geoopt import LatentManifold
        >>> latent = LatentManifold(Manifold(lambda z: torch.cat([z, z.square() / 2], -1)))
        >>> z = geoopt.ManifoldParameter(torch.tensor([[1., -1.]]).double(), manifold=latent)
        >>> optimiser = geoopt.optim.RiemannianSGD([z], lr=0.3)
        >>> for _ in range(60):
        ...     optimiser.zero_grad()
        ...     z.square().sum().backward()
        ...     _ = optimiser.step()
        >>> bool(z.abs().max() < 1e-6)
        True
    """

    name = "Latent"
    ndim = 1
    reversible = False
    __scaling__ = geoopt.Manifold.__scaling__.copy()

    def __init__(
        self,
        manifold: Manifold,
        retraction: Literal["second_order", "exp"] = "second_order",
        rtol: float = 1e-6,
    ) -> None:
        super().__init__()
        if not isinstance(manifold, Manifold):
            raise DTypeError(
                "LatentManifold",
                "a riemae.Manifold",
                type(manifold).__name__,
                "Try Manifold(decoder).",
            )
        if retraction not in ("second_order", "exp"):
            raise OptionError(
                "LatentManifold",
                "retraction 'second_order' or 'exp'",
                repr(retraction),
                "Try retraction='second_order'.",
            )
        self.riemannian, self.retraction, self.rtol = manifold, retraction, rtol

    def inner(
        self, x: Tensor, u: Tensor, v: Tensor | None = None, *, keepdim: bool = False
    ) -> Tensor:  # (*b, m) x 3 -> (*b,)
        """``uᵀ G(x) v``."""
        out = self.riemannian.inner(x, u, u if v is None else v)
        return out[..., None] if keepdim else out

    def egrad2rgrad(self, x: Tensor, u: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """``G⁻¹ u``, the gradient of a function with partial derivatives ``u``.

        Raises:
            SingularMetricError: Where ``G`` is not positive definite.
        """
        metric = self.riemannian.metric(x)
        x, u = torch.broadcast_tensors(x, u)
        m = x.shape[-1]
        flat = metric.expand(*x.shape, m).reshape(-1, m, m)
        return solve_metric("LatentManifold.egrad2rgrad", flat, u.reshape(-1, x.shape[-1])).view(
            x.shape
        )

    def dist(
        self, x: Tensor, y: Tensor, *, keepdim: bool = False
    ) -> Tensor:  # (*b, m), (*b, m) -> (*b,)
        """Geodesic distance, differentiable."""
        out = self.riemannian.distance(x, y, rtol=self.rtol)
        return out[..., None] if keepdim else out

    def expmap(self, x: Tensor, u: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """Where the geodesic from ``x`` with velocity ``u`` is at time 1."""
        return self.riemannian.exp(x, u, rtol=self.rtol)

    def logmap(self, x: Tensor, y: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """The velocity at ``x`` of the geodesic that reaches ``y`` at time 1."""
        return self.riemannian.log(x, y, rtol=self.rtol)

    def retr(self, x: Tensor, u: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """A step along ``u``."""
        if self.retraction == "exp":
            return self.expmap(x, u)
        return x + u + self.riemannian.acceleration(x, u) / 2

    def transp(self, x: Tensor, y: Tensor, v: Tensor) -> Tensor:  # (*b, m) x 3 -> (*b, m)
        """Parallel transport of ``v`` along the geodesic from ``x`` to ``y``."""
        x, y, v = torch.broadcast_tensors(x, y, v)
        curve = self.riemannian.geodesic(x.detach(), y.detach(), rtol=self.rtol).curve
        return self.riemannian.transport(curve, v)

    def expmap_transp(
        self, x: Tensor, u: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:  # (*b, m) x 3
        """:meth:`expmap` and the parallel transport of ``v`` along that geodesic."""
        x, u, v = torch.broadcast_tensors(x, u, v)
        curve = self.riemannian.shoot(x, u, segments=_SEGMENTS, rtol=self.rtol)
        return curve(1.0), self.riemannian.transport(curve, v)

    def retr_transp(self, x: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # (*b, m) x 3
        """:meth:`retr` and the transport of ``v`` along that step."""
        if self.retraction == "exp":
            return self.expmap_transp(x, u, v)
        return self.retr(x, u), self.transp_follow_retr(x, u, v)

    def transp_follow_expmap(
        self, x: Tensor, u: Tensor, v: Tensor
    ) -> Tensor:  # (*b, m) x 3 -> (*b, m)
        """Parallel transport of ``v`` along the geodesic with velocity ``u`` to t = 1."""
        return self.expmap_transp(x, u, v)[1]

    def transp_follow_retr(
        self, x: Tensor, u: Tensor, v: Tensor
    ) -> Tensor:  # (*b, m) x 3 -> (*b, m)
        """Transport of ``v`` along a step ``u``.

        Parallel, or ``v − Γ(u, v)`` with the second-order retraction.
        """
        if self.retraction == "exp":
            return self.transp_follow_expmap(x, u, v)
        # −Γ(u, v) from the quadratic form −Γ(w, w) by polarisation.
        forth, back = (self.riemannian.acceleration(x, u + w) for w in (v, -v))
        return v + (forth - back) / 4

    def proju(self, x: Tensor, u: Tensor) -> Tensor:  # (*b, m), (*b, m) -> (*b, m)
        """``u``: every vector is tangent."""
        return u.expand(torch.broadcast_shapes(x.shape, u.shape))

    def projx(self, x: Tensor) -> Tensor:  # (*b, m) -> (*b, m)
        """``x``: every point is one."""
        return x

    def random(
        self,
        *size: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> geoopt.ManifoldTensor:
        """Standard normal codes in the coordinates of the chart."""
        return geoopt.ManifoldTensor(
            torch.randn(*size, dtype=dtype, device=device, generator=generator), manifold=self
        )

    def origin(
        self,
        *size: Any,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = None,
    ) -> geoopt.ManifoldTensor:
        """Codes at the origin of the chart; ``seed`` is geoopt's, and ignored."""
        return geoopt.ManifoldTensor(torch.zeros(*size, dtype=dtype, device=device), manifold=self)

    def extra_repr(self) -> str:
        """The manifold and the retraction."""
        return f"{self.riemannian}, retraction={self.retraction!r}"

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        m = self.riemannian.latent_dim
        if len(shape) < 1 or (m is not None and shape[-1] != m):
            return False, f"'{name}' needs a last axis of {m or 'm'}, got {tuple(shape)}"
        return True, None

    def _check_point_on_manifold(
        self, x: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if not bool(x.isfinite().all()):
            return False, "a code is NaN or infinite"
        return True, None

    def _check_vector_on_tangent(
        self, x: Tensor, u: Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if not bool(u.isfinite().all()):
            return False, "a tangent is NaN or infinite"
        return True, None
