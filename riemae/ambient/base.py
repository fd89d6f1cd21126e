"""The ambient metric H(x): what a subclass gives, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from riemae.exceptions import AmbientError
from riemae.numerics.threads import jvp
from riemae.numerics.tolerances import tolerance

if TYPE_CHECKING:
    from riemae.distributions.layout import AnyLayout

_NOT_POSITIVE = ("a positive metric", "vᵀHv < 0", "A metric is S S ᵀ: build it from a factor.")
_GIVEN = ("features", "factor_product", "diagonal", "matrix", "product", "inner")


class AmbientMetric(nn.Module):
    """A Riemannian metric ``H(x)`` on the data space.

    A subclass overrides **one** of these; the rest follows:

    ==================== =============================== =========================================================
    method               shapes                          meaning
    ==================== =============================== =========================================================
    ``features(x)``      ``(k, *shape) -> (k, ...)``     φ with ``H = JφᵀJφ``: the fast road
    ``factor_product``   ``(k, D), (k, D) -> (k, q)``    ``S(x) v`` with ``H = SᵀS``
    ``diagonal(x)``      ``(k, D) -> (k, D)``            the diagonal of a diagonal H
    ``matrix(x)``        ``(k, D) -> (k, D, D)``         H itself, or one ``(D, D)`` for all
    ``product(x, v)``    ``(k, D), (k, D) -> (k, D)``    ``H(x) v``
    ``inner(x, u, v)``   ``(k, D) x 3 -> (k,)``          ``uᵀ H(x) v``, bilinear in u and v
    ==================== =============================== =========================================================

    With features, ``x`` has the decoder's own output shape; elsewhere it is flattened to
    ``(k, D)``. It is a ``torch.nn.Module``: register constants as buffers and they follow
    ``Manifold.to``.

    Example:
        >>> import torch
        >>> from riemae.ambient import AmbientMetric
        >>> class Conformal(AmbientMetric):
        ...     def diagonal(self, x):
        ...         return (1 + x.square().sum(-1, keepdim=True)).expand_as(x)
        >>> Conformal().matrix(torch.zeros(1, 2))
        tensor([[[1., 0.],
                 [0., 1.]]])
    """

    def __init__(self) -> None:
        super().__init__()
        if self.given_by() is None:
            raise AmbientError(
                type(self).__name__,
                f"a subclass that overrides one of {', '.join(_GIVEN)}",
                "none of them",
                "",
            )

    def given_by(self) -> str | None:
        """The method that the others rest on. A subclass whose road depends on its data overrides
        this.
        """
        kind = type(self)
        return next(
            (name for name in _GIVEN if getattr(kind, name) is not getattr(AmbientMetric, name)),
            None,
        )

    def bind(self, layout: AnyLayout | None, shape: torch.Size) -> AmbientMetric:
        """The metric for a decoder, whose first outputs are known: itself, unless it needs to know
        more of them.

        Args:
            layout: What the decoder's outputs hold; None for plain tensors.
            shape: Shape of one output.
        """
        return self

    @property
    def has_features(self) -> bool:
        """Whether ``H`` comes from a feature map, so that the geometry of ``(f, H)`` is that of
        ``(φ∘f, I)``.
        """
        return self.given_by() == "features"

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, ...)
        """Feature map φ with ``H = JφᵀJφ``.

        Raises:
            AmbientError: When the metric has none.
        """
        raise AmbientError(
            type(self).__name__, "a metric with a feature map", "one without", "Use product(x, v)."
        )

    def factor_product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, q)
        """``S(x) v`` with ``H = SᵀS``.

        Raises:
            AmbientError: When the metric is given by its matrix or its product.
        """
        given = self.given_by()
        if given == "features":
            return jvp(lambda y: self.features(y).flatten(1), (x,), (v.view_as(x),))[1]
        if given == "diagonal":
            return self.diagonal(x.flatten(1)).sqrt() * v
        raise AmbientError(
            type(self).__name__, "a factor S with H = SᵀS", f"a metric given by its {given}", ""
        )

    def diagonal(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D)
        """The diagonal of ``H``."""
        return (
            self.matrix(x).diagonal(dim1=-2, dim2=-1).expand(len(x), -1)
        )  # also from one matrix for all points

    def matrix(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D, D)
        """``H`` as a matrix: D² numbers a point, for small D and for tests."""
        if self.given_by() == "diagonal":
            return torch.diag_embed(self.diagonal(x))
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
        return vmap(lambda e: self.product(x, e.expand(len(x), -1)), out_dims=0)(basis).movedim(
            0, -1
        )

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``."""
        given = self.given_by()
        if given == "diagonal":
            return self.diagonal(x) * v
        if given == "matrix":
            return (self.matrix(x) @ v[..., None])[..., 0]
        if given == "inner":  # linear in u: its gradient is the product, wherever u is
            return grad(lambda u: self.inner(x, u, v).sum())(torch.zeros_like(v))
        if given == "features":
            return vjp(lambda y: self.features(y).flatten(1), x)[1](self.factor_product(x, v))[
                0
            ].flatten(1)
        return vjp(lambda w: self.factor_product(x, w), torch.zeros_like(v))[1](
            self.factor_product(x, v)
        )[0]

    def apply_to(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``H(x)`` times several vectors."""
        given = self.given_by()
        if given == "diagonal":
            return self.diagonal(x)[..., None] * columns
        if given == "matrix":
            return self.matrix(x) @ columns
        if given == "inner":
            return each_column(self.product, x, columns)
        return vmap(lambda v: self.product(x, v), in_dims=-1)(columns).movedim(0, -1)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (k, D) x 3 -> (k,)
        """``uᵀ H(x) v``."""
        return (u * self.product(x, v)).sum(-1)

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H(x) v``."""
        if self.given_by() == "inner":
            return self.inner(x, v, v)
        if self.given_by() in ("factor_product", "features"):
            return self.factor_product(x, v).square().sum(-1)
        return (v * self.product(x, v)).sum(-1)

    def distance(self, x0: Tensor, x1: Tensor) -> Tensor | None:  # (k, *shape), (k, *shape) -> (k,)
        """A lower bound of every curve's length from ``x0`` to ``x1``: the chord in feature space;
        None if unknown.
        """
        if not self.has_features:
            return None
        return (self.features(x1) - self.features(x0)).flatten(1).norm(dim=-1)

    @property
    def foreign(self) -> bool:
        """Whether a user's function is at work in it, which has to earn trust."""
        return not type(self).__module__.startswith("riemae.")

    def check(self, x: Tensor, tangents: Tensor | None = None) -> None:  # (k, *shape), (k, D, c)
        """Look at ``H`` at a few points of the data space: finite, symmetric, positive.

        Semi-definite metrics pass: what matters is that the pull-back is definite.

        Args:
            x: The points.
            tangents: Directions in which ``H`` must be positive: those of the decoded manifold.
                Any, unless given.

        Raises:
            AmbientError: With the property that fails.
        """
        where = type(self).__name__
        if self.has_features:
            try:
                phi = self.features(x)
            except RuntimeError as reason:
                raise AmbientError(
                    where,
                    f"features of data of shape {tuple(x.shape)} and dtype {x.dtype}",
                    f"an error: {reason}",
                    "Check its shapes, and move both at once with Manifold.to(device, dtype).",
                ) from reason
            if not isinstance(phi, Tensor) or phi.ndim < 1 or len(phi) != len(x):
                got = tuple(phi.shape) if isinstance(phi, Tensor) else type(phi).__name__
                raise AmbientError(
                    where, f"features with {len(x)} rows", str(got), "Keep the batch axis first."
                )
            if not bool(phi.isfinite().all()):
                raise AmbientError(
                    where,
                    "finite features",
                    "NaN or infinity",
                    "Check their formula at the decoder's outputs.",
                )
            if phi.dtype != x.dtype:
                raise AmbientError(
                    where, f"features of dtype {x.dtype}", str(phi.dtype), "Keep the data's dtype."
                )
            return
        flat = x.flatten(1)
        columns = self._probes(flat)
        try:
            applied = self.apply_to(flat, columns)
        except RuntimeError as reason:
            raise AmbientError(
                where,
                f"a metric on data of dimension {flat.shape[1]}",
                f"an error: {reason}",
                "Check its shapes.",
            ) from reason
        if applied.shape != columns.shape:
            raise AmbientError(
                where,
                f"H(x) v of shape {tuple(columns.shape[:-1])}",
                str(tuple(applied.shape[:-1])),
                "Check its shapes.",
            )
        if applied.dtype != flat.dtype:
            raise AmbientError(
                where,
                f"a metric of dtype {flat.dtype}",
                str(applied.dtype),
                "Keep the data's dtype.",
            )
        form = columns.mT @ applied
        if not bool(form.isfinite().all()):
            raise AmbientError(
                where,
                "a finite metric",
                "NaN or infinity",
                "Check its formula at the decoder's outputs.",
            )
        scale = form.abs().amax((-1, -2)) * flat.shape[1] ** 0.5
        if bool(
            ((form - form.mT).abs().amax((-1, -2)) > tolerance(flat.dtype).probe * scale).any()
        ):
            raise AmbientError(
                where, "a symmetric metric", "uᵀHv ≠ vᵀHu", "Symmetrise it: (H + Hᵀ)/2."
            )
        if tangents is not None:
            self.check_positive(flat, tangents, tolerance(flat.dtype).eps ** (2 / 3))
        elif bool(
            (form.diagonal(dim1=-2, dim2=-1) < -tolerance(flat.dtype).probe * scale[:, None]).any()
        ):
            raise AmbientError(where, *_NOT_POSITIVE)

    def check_positive(
        self, x: Tensor, tangents: Tensor, noise: float = 0.0
    ) -> None:  # (k, D), (k, D, c)
        """Refuse a metric that is negative in a direction of the span of ``tangents``, where it
        must not be.

        Args:
            x: Points.
            tangents: Directions.
            noise: Size of the error in the directions, relative to their length.

        Raises:
            AmbientError: When it is.
        """
        if not tangents.shape[-1]:
            return
        columns = tangents / tangents.norm(dim=1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        applied = self.apply_to(x, columns)
        form = columns.mT @ applied
        # Directions are known up to an error, and an ill-conditioned metric makes much of it.
        errors = noise * (columns * (1 + torch.arange(x.shape[1]).to(x)[:, None]).cos())
        doubt = (columns.mT @ self.apply_to(x, errors)).abs() + (
            errors.mT @ self.apply_to(x, errors)
        ).abs()
        known = form.isfinite().all(-1).all(-1)
        if not bool(known.any()):
            return
        size = applied.norm(dim=(1, 2)) * tolerance(x.dtype).probe + 64 * doubt.amax((-1, -2))
        if bool((torch.linalg.eigvalsh((form + form.mT)[known] / 2)[:, 0] < -size[known]).any()):
            raise AmbientError(type(self).__name__, *_NOT_POSITIVE)

    def _probes(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D, 2)
        """Directions in which :meth:`check` looks at ``H``."""
        probes = torch.stack([x.new_ones(x.shape[1]), torch.arange(x.shape[1]).to(x).cos()], -1)
        return probes.expand(len(x), -1, -1)

    def forward(self, *args: Any) -> Any:
        """An ambient metric is no layer.

        Raises:
            AmbientError: Always.
        """
        raise AmbientError(
            type(self).__name__, "product(x, v) or matrix(x)", "a call", "It is no layer."
        )


class ShapedMetric(AmbientMetric):
    """A metric that must know the shape of one datum, ``(n, d)`` say, where its methods get
    flattened ``(k, D)``.

    ``Manifold`` tells it the decoder's; on its own, ``check(x)`` with ``x`` of shape
    ``(k, *shape)`` or ``bind(None, shape)`` does.

    Attributes:
        data_shape: The shape of one datum, or None before it is known.
    """

    def __init__(self) -> None:
        super().__init__()
        self.data_shape: torch.Size | None = None

    def bind(self, layout: AnyLayout | None, shape: torch.Size) -> AmbientMetric:
        """Itself, told the shape of one datum.

        Raises:
            AmbientError: When it has been told another one: the metric would be wrong for one of
                two decoders.
        """
        if self.data_shape is not None and self.data_shape != torch.Size(shape):
            raise AmbientError(
                type(self).__name__,
                f"data of shape {tuple(self.data_shape)}, as before",
                str(tuple(shape)),
                "Make one metric for each decoder.",
            )
        self.data_shape = torch.Size(shape)
        return self

    def check(self, x: Tensor, tangents: Tensor | None = None) -> None:  # (k, *shape), (k, D, c)
        """As in :meth:`AmbientMetric.check`, after :meth:`bind`."""
        self.bind(None, x.shape[1:])
        super().check(x, tangents)

    def shaped(self, x: Tensor) -> Tensor:  # (k, D) or (k, *shape) -> (k, *shape)
        """``x`` in the shape of the data.

        Raises:
            AmbientError: When the shape is not known, or another.
        """
        if self.data_shape is None:
            raise AmbientError(
                type(self).__name__,
                "to know the shape of one datum",
                "none",
                "Call bind(None, shape), or use it in Manifold.",
            )
        if x[0].numel() != self.data_shape.numel() if len(x) else x.ndim < 2:
            shape = tuple(self.data_shape)
            raise AmbientError(
                type(self).__name__, f"data of shape {shape}", str(tuple(x.shape[1:])), ""
            )
        return x.reshape(len(x), *self.data_shape)


def each_column(
    product: Callable[[Tensor, Tensor], Tensor], x: Tensor, columns: Tensor
) -> Tensor:  # (k, D), (k, D, c) -> (k, q, c)
    """``product(x, v)`` for every column v, by repeating the points: for functions that vmap does
    not understand.
    """
    k, d, c = columns.shape
    spread = x[:, None].expand(k, c, d).reshape(k * c, d)
    return product(spread, columns.mT.reshape(k * c, d)).reshape(k, c, -1).mT
