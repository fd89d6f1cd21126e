"""A metric from the user's own function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from riemae.ambient.base import AmbientMetric, ProductMetric, each_column
from riemae.ambient.features import Constant, Diagonal, Euclidean
from riemae.exceptions import AmbientError
from riemae.numerics.checks import dtype_in_words
from riemae.numerics.values import own

MetricFunction = Callable[[Tensor], Tensor]
Operator = Callable[[Tensor, Tensor], Tensor]
InnerProduct = Callable[[Tensor, Tensor, Tensor], Tensor]
Call = Callable[..., Tensor]


class Custom(ProductMetric):
    """``H(x)`` by a function of your own, in whatever form it is cheapest.

    Args:
        function: ``x (k, D)`` to matrices ``(k, D, D)``, one matrix ``(D, D)``, or diagonals
            ``(k, D)``, told apart by their shapes.
        matrix: The same, always matrices: ``(k, D, D)`` or ``(D, D)``.
        diagonal: The same, always diagonals ``(k, D)``.
        operator: ``(x, v) -> H(x) v``, all ``(k, D)``; for large D.
        factor: ``(x, v) -> S(x) v`` of shape ``(k, q)``, linear in v, where ``H = SᵀS``.
        inner: ``(x, u, v) -> uᵀ H(x) v`` of shape ``(k,)``, linear in u and in v.

    Raises:
        AmbientError: When none or several are given, or something that is not a function.

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
        functions: dict[str, Callable[..., Tensor] | None] = {
            "function": function,
            "matrix": matrix,
            "diagonal": diagonal,
            "operator": operator,
            "factor": factor,
            "inner": inner,
        }
        given = {keyword: f for keyword, f in functions.items() if f is not None}
        if len(given) != 1:
            raise AmbientError(
                "Custom",
                f"exactly one of {', '.join(functions)}",
                ", ".join(given) or "none",
                "Give one function, as in Custom(diagonal=lambda x: 1 + x**2).",
            )
        ((self.form, self.function),) = given.items()
        if not callable(self.function):
            raise AmbientError(
                "Custom",
                f"{self.form} as a function",
                type(self.function).__name__,
                "Constants go into Constant or Diagonal.",
            )

    @property
    def foreign(self) -> bool:
        """Always: it is the user's function."""
        return True

    def product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, D)
        """``H(x) v``."""
        return self.apply_to(x, v[..., None])[..., 0]

    def apply_to(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``H(x)`` times several vectors.

        Raises:
            AmbientError: When the function returns a shape that does not fit.
        """
        return FORMS[self.form].apply_to(self._call, x, columns)

    def products(self, x: Tensor, columns: Tensor) -> Tensor:  # (k, D), (k, D, c) -> (k, D, c)
        """``H(x)`` times a few vectors: by one ``H`` where the function returns it."""
        if issubclass(FORMS[self.form], Matrices):
            return self.apply_to(x, columns)
        return super().products(x, columns)

    @property
    def is_diagonal(self) -> bool:
        """Whether the function was given as a diagonal."""
        return FORMS[self.form] is Diagonals

    def diagonal(self, x: Tensor) -> Tensor:  # (k, D) -> (k, D)
        """The diagonal of ``H``."""
        found = FORMS[self.form].diagonal(self._call, x)
        return super().diagonal(x) if found is None else found

    def factor_product(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k, q)
        """``S(x) v``, where it was given."""
        found = FORMS[self.form].factor_product(self._call, x, v)
        return super().factor_product(x, v) if found is None else found

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:  # (k, D), (k, D) -> (k,)
        """``vᵀ H(x) v``."""
        found = FORMS[self.form].squared_norm(self._call, x, v)
        return super().squared_norm(x, v) if found is None else found

    def _call(self, *given: Tensor) -> Tensor:
        return self.function(*(own(x, self.function) for x in given))

    def extra_repr(self) -> str:
        """The form of the function."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{self.form}={name}"


class Form:
    """How ``H`` is read from what a function returns; without state.

    Methods that return None leave the answer to what follows from :meth:`apply_to`.
    """

    @classmethod
    def apply_to(cls, call: Call, x: Tensor, columns: Tensor) -> Tensor:
        """``H(x)`` times columns: ``(k, D), (k, D, c) -> (k, D, c)``."""
        raise NotImplementedError

    @classmethod
    def diagonal(cls, call: Call, x: Tensor) -> Tensor | None:
        """The diagonal of ``H``, where the function returns it."""
        return None

    @classmethod
    def factor_product(cls, call: Call, x: Tensor, v: Tensor) -> Tensor | None:
        """``S(x) v``, where the function returns it."""
        return None

    @classmethod
    def squared_norm(cls, call: Call, x: Tensor, v: Tensor) -> Tensor | None:
        """``vᵀ H(x) v``, where the function gives it without ``H``."""
        return None


class Matrices(Form):
    """``x (k, D)`` to ``(k, D, D)``, or one ``(D, D)``; evaluated once for all columns."""

    @classmethod
    def apply_to(cls, call: Call, x: Tensor, columns: Tensor) -> Tensor:
        """``H(x)`` times columns."""
        h = _checked_dtype(call(x), x)
        if cls.is_diagonal(call, x, h):
            return h[..., None] * columns
        return _matrices(h, x) @ columns

    @classmethod
    def is_diagonal(cls, call: Call, x: Tensor, h: Tensor) -> bool:
        """Whether ``h``, the values at ``x``, are diagonals."""
        return False


class Diagonals(Matrices):
    """``x (k, D)`` to ``(k, D)``."""

    @classmethod
    def is_diagonal(cls, call: Call, x: Tensor, h: Tensor) -> bool:
        """Whether ``h``, the values at ``x``, are diagonals."""
        return h.shape == x.shape

    @classmethod
    def diagonal(cls, call: Call, x: Tensor) -> Tensor | None:
        """The diagonal of ``H``."""
        return call(x)


class Bare(Matrices):
    """Any of the forms of one argument, told apart by shape."""

    @classmethod
    def is_diagonal(cls, call: Call, x: Tensor, h: Tensor) -> bool:
        """Whether ``h``, the values at ``x``, are diagonals."""
        if h.shape != x.shape:
            return False
        if len(x) != x.shape[-1]:
            return True
        # As many points as dimensions: (k, D) and (D, D) look the same; at one point they differ.
        return call(x[:1].detach()).shape == (1, x.shape[-1])

    @classmethod
    def diagonal(cls, call: Call, x: Tensor) -> Tensor | None:
        """The diagonal of ``H``, where the function returns it."""
        h = call(x)
        return h if isinstance(h, Tensor) and cls.is_diagonal(call, x, h) else None


class OperatorForm(Form):
    """``(x, v) -> H(x) v``."""

    @classmethod
    def apply_to(cls, call: Call, x: Tensor, columns: Tensor) -> Tensor:
        """``H(x)`` times columns, by repeating the points."""
        return each_column(call, x, columns)


class FactorForm(Form):
    """``(x, v) -> S(x) v`` with ``H = SᵀS``."""

    @classmethod
    def apply_to(cls, call: Call, x: Tensor, columns: Tensor) -> Tensor:
        """``Sᵀ S`` times columns, by repeating the points."""

        def product(x: Tensor, v: Tensor) -> Tensor:
            pull = vjp(lambda w: call(x, w), torch.zeros_like(v))[1]
            return pull(call(x, v))[0]

        return each_column(product, x, columns)

    @classmethod
    def factor_product(cls, call: Call, x: Tensor, v: Tensor) -> Tensor | None:
        """``S(x) v``."""
        return call(x, v)

    @classmethod
    def squared_norm(cls, call: Call, x: Tensor, v: Tensor) -> Tensor | None:
        """``|S(x) v|²``."""
        return call(x, v).square().sum(-1)


class InnerForm(Form):
    """``(x, u, v) -> uᵀ H(x) v``."""

    @classmethod
    def apply_to(cls, call: Call, x: Tensor, columns: Tensor) -> Tensor:
        """``H(x)`` times columns: gradients in u, by repeating the points."""

        def product(x: Tensor, v: Tensor) -> Tensor:
            pull = vjp(lambda u: call(x, u, v), torch.zeros_like(v))[1]
            return pull(torch.ones_like(x[:, 0]))[0]

        return each_column(product, x, columns)

    @classmethod
    def squared_norm(cls, call: Call, x: Tensor, v: Tensor) -> Tensor | None:
        """``vᵀ H(x) v``."""
        return call(x, v, v)


# By the argument of Custom that takes such a function.
FORMS: dict[str, type[Form]] = {
    "function": Bare,
    "matrix": Matrices,
    "diagonal": Diagonals,
    "operator": OperatorForm,
    "factor": FactorForm,
    "inner": InnerForm,
}


def _checked_dtype(h: Any, x: Tensor) -> Tensor:
    """What a function returned, if it is a tensor of the data's dtype.

    Raises:
        AmbientError: When it is not.
    """
    if isinstance(h, Tensor) and h.dtype == x.dtype:
        return h
    got = dtype_in_words(h)
    hint = "Keep the dtype of the data."
    raise AmbientError("Custom", f"H as a tensor of dtype {x.dtype}", got, hint)


def _matrices(h: Tensor, x: Tensor) -> Tensor:
    """``h``, if it is one matrix per point or one for all.

    Raises:
        AmbientError: When it has another shape.
    """
    k, d = x.shape
    if h.shape[-2:] == (d, d) and h.ndim <= 3:
        return h
    raise AmbientError(
        "Custom",
        f"H of shape ({k}, {d}, {d}), ({d}, {d}) or ({k}, {d}) for x of shape ({k}, {d})",
        str(tuple(h.shape)),
        "The function gets flattened data (k, D).",
    )


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
