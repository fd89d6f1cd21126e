"""A metric from the user's own function."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vjp

from riemae.ambient.base import AmbientMetric, each_column
from riemae.ambient.features import Constant, Diagonal, Euclidean
from riemae.exceptions import AmbientError
from riemae.numerics.values import own

MetricFunction = Callable[[Tensor], Tensor]
Operator = Callable[[Tensor, Tensor], Tensor]
InnerProduct = Callable[[Tensor, Tensor, Tensor], Tensor]


class Custom(AmbientMetric):
    """``H(x)`` by a function of your own, in whatever form it is cheapest.

    Args:
        function: ``x (k, D)`` to matrices ``(k, D, D)``, one matrix ``(D, D)``, or diagonals
            ``(k, D)``, told apart by what it returns for one point.
        matrix: The same, always matrices: ``(k, D, D)`` or ``(D, D)``.
        diagonal: The same, always diagonals ``(k, D)``.
        operator: ``(x, v) -> H(x) v``, all ``(k, D)``; for large D.
        factor: ``(x, v) -> S(x) v`` of shape ``(k, q)``, linear in v, where ``H = SᵀS``.
        inner: ``(x, u, v) -> uᵀ H(x) v`` of shape ``(k,)``, linear in u and in v.

    Raises:
        AmbientError: Unless exactly one is given.

    Example:
        >>> import torch
        >>> from riemae import Manifold, ambient
        >>> H = ambient.Custom(diagonal=lambda x: 1 + x ** 2)
        >>> Manifold(lambda z: z, ambient=H).metric(torch.tensor([[0., 2.]]))
        tensor([[[1., 0.],
                 [0., 5.]]])
    """

    def __init__(
        self,
        function: MetricFunction | None = None,
        *,
        matrix: MetricFunction | None = None,
        diagonal: MetricFunction | None = None,
        operator: Operator | None = None,
        factor: Operator | None = None,
        inner: InnerProduct | None = None,
    ) -> None:
        super().__init__()
        forms: dict[str, Callable[..., Tensor] | None] = {
            "function": function,
            "matrix": matrix,
            "diagonal": diagonal,
            "operator": operator,
            "factor": factor,
            "inner": inner,
        }
        given = {name: f for name, f in forms.items() if f is not None}
        if len(given) != 1:
            raise AmbientError(
                "Custom", f"exactly one of {', '.join(forms)}", ", ".join(given) or "none", ""
            )
        ((self.form, self.function),) = given.items()
        if not callable(self.function):
            got = type(self.function).__name__
            raise AmbientError(
                "Custom",
                f"{self.form} as a function",
                got,
                "Constants go into Constant or Diagonal.",
            )

    @property
    def foreign(self) -> bool:
        """Always: it is the user's function."""
        return True

    def _call(self, *given: Tensor) -> Tensor:
        return self.function(*map(own, given))

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``."""
        return self.apply_to(x, v[..., None])[..., 0]

    def apply_to(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``H(x)`` times several vectors; the function is evaluated once.

        Raises:
            AmbientError: When the function returns a shape that is no metric.
        """
        if self.form in ("operator", "factor", "inner"):
            return each_column(self._product, x, columns)
        h = self._call(x)
        if not isinstance(h, Tensor) or h.dtype != x.dtype:
            got = str(h.dtype) if isinstance(h, Tensor) else type(h).__name__
            raise AmbientError(
                "Custom", f"H as a tensor of dtype {x.dtype}", got, "Keep the dtype of the data."
            )
        if self._resolved(x) == "diagonal" and h.shape == x.shape:
            return h[..., None] * columns
        if h.shape[-2:] != (x.shape[-1], x.shape[-1]) or h.ndim > 3:
            k, d = x.shape
            raise AmbientError(
                "Custom",
                f"H of shape ({k}, {d}, {d}), ({d}, {d}) or ({k}, {d}) for x of shape ({k}, {d})",
                str(tuple(h.shape)),
                "The function gets flattened data (k, D).",
            )
        return h @ columns

    def diagonal(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D)
        """The diagonal of ``H``."""
        return self._call(x) if self._resolved(x) == "diagonal" else super().diagonal(x)

    def factor_product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, q)
        """``S(x) v``, where it was given."""
        return self._call(x, v) if self.form == "factor" else super().factor_product(x, v)

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H(x) v``."""
        if self.form == "factor":
            return self._call(x, v).square().sum(-1)
        return self._call(x, v, v) if self.form == "inner" else super().squared_norm(x, v)

    def _product(self, x: Tensor, v: Tensor) -> Tensor:
        if self.form == "operator":
            return self._call(x, v)
        zero = torch.zeros_like(v)
        if self.form == "factor":
            return vjp(lambda w: self._call(x, w), zero)[1](self._call(x, v))[0]
        return vjp(lambda w: self._call(x, w, v), zero)[1](torch.ones_like(x[:, 0]))[0]

    def _resolved(self, x: Tensor) -> str:
        """The form of the function.

        A bare one shows it on one point, where ``(1, D)`` and ``(D, D)`` differ.
        """
        if self.form == "function":
            sample = x[:1].detach() if len(x) else x.new_zeros(1, x.shape[-1])
            self.form = "diagonal" if self._call(sample).shape == (1, x.shape[-1]) else "matrix"
        return self.form

    def given_by(self) -> str | None:
        """See :class:`AmbientMetric`."""
        return "product"

    def extra_repr(self) -> str:
        """The form of the function."""
        return f"{self.form}={getattr(self.function, '__name__', type(self.function).__name__)}"


def as_ambient(metric: object) -> AmbientMetric:
    """An :class:`AmbientMetric` from what ``Manifold(ambient=)`` accepts.

    None is Euclidean; a tensor ``(D,)`` or ``(D, D)`` is a constant metric; a callable is
    :class:`Custom`.

    Raises:
        AmbientError: For anything else.
    """
    if metric is None:
        return Euclidean()
    if isinstance(metric, AmbientMetric):
        return metric
    if isinstance(metric, Tensor):
        return Diagonal(metric) if metric.ndim == 1 else Constant(metric)
    if callable(metric) and not isinstance(metric, type):
        return Custom(metric)
    raise AmbientError(
        "Manifold",
        "an AmbientMetric, a callable x -> H(x), or a tensor",
        repr(metric) if isinstance(metric, type) else type(metric).__name__,
        "For instance ambient.Euclidean().",
    )
