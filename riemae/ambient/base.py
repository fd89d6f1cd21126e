"""The ambient metric H(x): what callers ask of it, and one base for each way to give it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import grad, vjp, vmap

from riemae.ambient import checks
from riemae.ambient.kinds import BASES, check_kind
from riemae.exceptions import AmbientError
from riemae.numerics.threads import jvp
from riemae.numerics.tolerances import tolerance

if TYPE_CHECKING:
    from riemae.distributions.layout import AnyLayout


def _shipped() -> tuple[type, ...]:
    """All bases of metrics."""
    return (AmbientMetric, *(globals()[name] for name in BASES.values()))


class AmbientMetric(nn.Module):
    """A Riemannian metric ``H(x)`` on the data space: what the geometry asks of every metric.

    To write one, take the base whose method you can give; the rest follows:

    ================ ==================== ============================ =========================
    base             method               shapes                       meaning
    ================ ==================== ============================ =========================
    `FeatureMetric`  ``features(x)``      ``(k, *shape) -> (k, ...)``  φ with ``H = JφᵀJφ``; fast
    `FactorMetric`   ``factor_product``   ``(k, D) x 2 -> (k, q)``     ``S(x) v``, ``H = SᵀS``
    `DiagonalMetric` ``diagonal(x)``      ``(k, D) -> (k, D)``         diagonal of a diagonal H
    `MatrixMetric`   ``matrix(x)``        ``(k, D) -> (k, D, D)``      H, or one matrix for all
    `ProductMetric`  ``product(x, v)``    ``(k, D) x 2 -> (k, D)``     ``H(x) v``
    `InnerMetric`    ``inner(x, u, v)``   ``(k, D) x 3 -> (k,)``       ``uᵀ H(x) v``, bilinear
    ================ ==================== ============================ =========================

    With features, ``x`` has the decoder's own output shape; elsewhere it is flattened to
    ``(k, D)``. A metric is a ``torch.nn.Module``: constants that are registered as buffers follow
    ``Manifold.to``. No call changes it: what depends on the decoder is read in :meth:`bind`, which
    returns another object.

    Raises:
        AmbientError: When a subclass has none of the bases, or does not write the base's method.

    Example:
        >>> import torch
        >>> from riemae.ambient import DiagonalMetric
        >>> class Conformal(DiagonalMetric):
        ...     def diagonal(self, x):
        ...         return (1 + x.square().sum(-1, keepdim=True)).expand_as(x)
        >>> Conformal().matrix(torch.zeros(1, 2))
        tensor([[[1., 0.],
                 [0., 1.]]])
    """

    def __init__(self) -> None:
        super().__init__()
        check_kind(type(self), _shipped)

    @property
    def title(self) -> str:
        """What the metric is called in messages."""
        return type(self).__name__

    def bind(self, layout: AnyLayout | None, shape: torch.Size) -> AmbientMetric:
        """The metric for one decoder, whose first outputs are known.

        By default the metric itself; another object where more has to be known of the outputs.

        Args:
            layout: What the decoder's outputs hold; None for plain tensors.
            shape: Shape of one output.
        """
        return self

    @property
    def has_features(self) -> bool:
        """Whether there is a feature map φ, so that ``(f, H)`` has the geometry of ``(φ∘f, I)``."""
        return isinstance(self, FeatureMetric)

    @property
    def is_diagonal(self) -> bool:
        """Whether H is diagonal, and :meth:`diagonal` gives it without the rest of the matrix."""
        return isinstance(self, DiagonalMetric)

    def features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, ...)
        """Feature map φ with ``H = JφᵀJφ``.

        Raises:
            AmbientError: When the metric has none.
        """
        raise AmbientError(
            self.title, "a metric with a feature map", "one without", "Use product(x, v)."
        )

    def factor_product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, q)
        """``S(x) v`` with ``H = SᵀS``.

        Raises:
            AmbientError: When the metric is given by its matrix, its product, or its inner product.
        """
        raise AmbientError(
            self.title,
            "a factor S with H = SᵀS",
            "a metric without one",
            "Use product(x, v), or write the metric as a FactorMetric.",
        )

    def diagonal(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D)
        """The diagonal of ``H``."""
        # One matrix for all points has a diagonal for each.
        found = self.matrix(x).diagonal(dim1=-2, dim2=-1)
        return found.expand(len(x), -1)

    def matrix(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D, D)
        """``H`` as a matrix: D² numbers per point, for small D and for tests."""
        basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)

        def column(direction: Tensor) -> Tensor:
            return self.product(x, direction.expand(len(x), -1))

        columns = vmap(column, out_dims=0)(basis)
        return columns.movedim(0, -1)

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``.

        Raises:
            AmbientError: When a subclass does not give it.
        """
        hint = f"Take one of {', '.join(BASES.values())} as base."
        raise AmbientError(self.title, "a product H(x) v", "a metric without", hint)

    def apply_to(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``H(x)`` times several vectors."""

        def column(v: Tensor) -> Tensor:
            return self.product(x, v)

        applied = vmap(column, in_dims=-1)(columns)
        return applied.movedim(0, -1)

    def products(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``H(x)`` times a few vectors, one after the other.

        These are the numbers of :meth:`apply_to`, without ``vmap``: ``x`` may carry derivatives in
        Taylor mode.
        """
        return torch.stack([self.product(x, v) for v in columns.unbind(-1)], -1)

    def inner(self, x: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (k, D) x 3 -> (k,)
        """``uᵀ H(x) v``."""
        hv = self.product(x, v)
        return (u * hv).sum(-1)

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H(x) v``."""
        hv = self.product(x, v)
        return (v * hv).sum(-1)

    def squared_length(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H(x) v``; NaN where it is negative beyond rounding, as no length comes from it."""
        terms = v * self.product(x, v)
        squared = terms.sum(-1)
        size = terms.abs().sum(-1)
        rounding = 1e3 * tolerance(x.dtype).eps * size
        return torch.where(squared < -rounding, torch.nan, squared)

    def distance(self, x0: Tensor, x1: Tensor) -> Tensor | None:  # (k, *shape), (k, *shape) -> (k,)
        """A lower bound of the length of every curve from ``x0`` to ``x1``; None if unknown."""
        return None

    @property
    def foreign(self) -> bool:
        """Whether it runs a user's function, which is tested at first use."""
        return not type(self).__module__.startswith("riemae.")

    def check(self, x: Tensor, tangents: Tensor | None = None) -> None:  # (k, *shape), (k, D, c)
        """Look at ``H`` at a few points of the data space: finite, symmetric, positive.

        Semi-definite metrics pass: what matters is that the pull-back is definite.

        Args:
            x: The points.
            tangents: Directions in which ``H`` must be positive, those of the decoded manifold; by
                default two fixed ones.

        Raises:
            AmbientError: With the property that fails.
        """
        flat = x.flatten(1)
        probes = self._probes(flat)
        form = checks.check_form(self.title, self.apply_to, flat, probes)
        if tangents is None:
            checks.check_diagonal(self.title, form, flat.shape[1])
        else:
            rounding = tolerance(flat.dtype).eps ** (2 / 3)
            self.check_positive(flat, tangents, rounding)

    def check_positive(
        self, x: Tensor, tangents: Tensor, noise: float = 0.0
    ) -> None:  # (k, D), (k, D, c)
        """Refuse a metric that is negative in a direction of the span of ``tangents``.

        Args:
            x: Points.
            tangents: Directions.
            noise: Size of the error in the directions, relative to their length.

        Raises:
            AmbientError: When it is.
        """
        checks.check_positive(self.title, self.apply_to, x, tangents, noise)

    def _probes(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D, c)
        """Directions in which :meth:`check` looks at ``H``."""
        return checks.directions(x)

    def forward(self, *args: Any) -> Any:
        """An ambient metric is not a layer.

        Raises:
            AmbientError: Always.
        """
        hint = "It is not a layer: call product(x, v) or matrix(x)."
        raise AmbientError(self.title, "product(x, v) or matrix(x)", "a call", hint)


class FeatureMetric(AmbientMetric):
    """A metric ``H = JφᵀJφ``, by ``features(x) = φ(x)``: ``(k, *shape) -> (k, ...)``."""

    def factor_product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, q)
        """``Jφ v``."""
        _, pushed = jvp(self._flat_features, (x,), (v.view_as(x),))
        return pushed

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``Jφᵀ (Jφ v)``."""
        pull = vjp(self._flat_features, x)[1]
        pushed = self.factor_product(x, v)
        (pulled,) = pull(pushed)
        return pulled.flatten(1)

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``|Jφ v|²``."""
        pushed = self.factor_product(x, v)
        return pushed.square().sum(-1)

    def squared_length(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``|Jφ v|²``, never negative."""
        return self.squared_norm(x, v)

    def distance(self, x0: Tensor, x1: Tensor) -> Tensor | None:  # (k, *shape), (k, *shape) -> (k,)
        """The chord in feature space."""
        chord = self.features(x1) - self.features(x0)
        return chord.flatten(1).norm(dim=-1)

    def check(self, x: Tensor, tangents: Tensor | None = None) -> None:  # (k, *shape), (k, D, c)
        """Look at φ at a few points; ``JφᵀJφ`` needs no look at symmetry or sign."""
        checks.check_features(self.title, self.features, x)

    def _flat_features(self, x: Tensor) -> Tensor:  # (k, *shape) -> (k, q)
        return self.features(x).flatten(1)


class FactorMetric(AmbientMetric):
    """A metric ``H = SᵀS``, by ``factor_product(x, v) = S(x) v``: ``(k, D), (k, D) -> (k, q)``."""

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``Sᵀ (S v)``."""

        def factor(w: Tensor) -> Tensor:
            return self.factor_product(x, w)

        pull = vjp(factor, torch.zeros_like(v))[1]
        (pulled,) = pull(factor(v))
        return pulled

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``|S v|²``."""
        sv = self.factor_product(x, v)
        return sv.square().sum(-1)

    def squared_length(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``|S v|²``, never negative."""
        return self.squared_norm(x, v)


class DiagonalMetric(AmbientMetric):
    """A diagonal metric, by ``diagonal(x)``: ``(k, D) -> (k, D)``."""

    def factor_product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``√h v``."""
        weights = self.diagonal(x.flatten(1))
        return weights.sqrt() * v

    def matrix(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D, D)
        """``diag(h)``."""
        return torch.diag_embed(self.diagonal(x))

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``h v``."""
        return self.diagonal(x) * v

    def apply_to(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``h`` times several vectors."""
        weights = self.diagonal(x)
        return weights[..., None] * columns

    def products(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """As :meth:`apply_to`, which needs no ``vmap`` here."""
        return self.apply_to(x, columns)


class MatrixMetric(AmbientMetric):
    """A metric by ``matrix(x)``: ``(k, D) -> (k, D, D)``, or one ``(D, D)`` for all points."""

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``."""
        product = self.matrix(x) @ v[..., None]
        return product[..., 0]

    def apply_to(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``H(x)`` times several vectors."""
        return self.matrix(x) @ columns

    def products(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """As :meth:`apply_to`, which needs no ``vmap`` here."""
        return self.apply_to(x, columns)


class ProductMetric(AmbientMetric):
    """A metric by ``product(x, v) = H(x) v``: ``(k, D), (k, D) -> (k, D)``; for large D."""


class InnerMetric(AmbientMetric):
    """A metric by ``inner(x, u, v) = uᵀ H(x) v``: ``(k, D) x 3 -> (k,)``, linear in u and in v."""

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``: the inner product is linear in u, and this is its gradient, wherever u is."""

        def paired(u: Tensor) -> Tensor:
            return self.inner(x, u, v).sum()

        return grad(paired)(torch.zeros_like(v))

    def apply_to(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``H(x)`` times several vectors, by repeating the points."""
        return each_column(self.product, x, columns)

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H(x) v``."""
        return self.inner(x, v, v)

    def squared_length(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H(x) v``; NaN where it is negative."""
        squared = self.squared_norm(x, v)
        return torch.where(squared < 0, torch.nan, squared)


def each_column(
    product: Callable[[Tensor, Tensor], Tensor], x: Tensor, columns: Tensor
) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
    """``product(x, v)`` for every column v, by repeating the points.

    For functions that ``vmap`` does not understand.
    """
    k, d, c = columns.shape
    spread = x[:, None].expand(k, c, d).reshape(k * c, d)
    rows = columns.mT.reshape(k * c, d)
    products = product(spread, rows)
    return products.reshape(k, c, products.shape[-1]).mT
