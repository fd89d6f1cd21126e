"""The contract of an ambient metric, as a check that runs on anybody's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae.ambient import AmbientMetric, as_ambient
from riemae.exceptions import AmbientError
from riemae.numerics.checks import expect_shape
from riemae.numerics.threads import jvp
from riemae.numerics.tolerances import tolerance
from riemae.testing.laws import (
    Call,
    by_autograd,
    differences,
    expect_points,
    kept_and_changed,
    normal,
    relative,
    run,
    share,
    source,
    verdict,
)

_FORMS = "All methods describe one H: override one of them, or all that you override must agree."
_HINTS = {
    "symmetric": "H is symmetric: use (H + Hᵀ)/2.",
    "positive": "H is positive: build it from a factor, H = SᵀS.",
    "linear": "product(x, v) is linear in v: it is H(x) v.",
    "inner": _FORMS,
    "matrix": _FORMS,
    "diagonal": _FORMS,
    "columns": _FORMS,
    "factor": "factor_product(x, v) is S(x) v with H = SᵀS.",
    "features": "features(x) is φ with H = JφᵀJφ.",
    "distance": "distance(x0, x1) must not exceed the length of any curve.",
    "derivative": "H is differentiated by torch.autograd: use smooth torch functions of x.",
    "rows": "H(x) of one row must not depend on the other rows of the batch.",
    "deterministic": "Draw random numbers once, when the metric is made.",
    "dtype": "Keep shape, dtype and device of the data: register constants as buffers.",
    "inputs": "Do not change arguments in place.",
}
_PIECES = 64  # of a straight segment whose length is measured


def check_ambient(
    metric: Any,
    x: Tensor,
    generator: torch.Generator | int | None = 0,
    *,
    tangents: Tensor | None = None,
) -> dict[str, float]:
    """Check on data of your choice that an ambient metric obeys the laws of its protocol.

    =============== ================================================================================
    check           law
    =============== ================================================================================
    symmetric       ``uᵀHv = vᵀHu``
    positive        ``vᵀHv ≥ 0``; more than 0 along some directions, and along all ``tangents``
    linear          ``H(au + bv) = a Hu + b Hv``
    inner           ``inner`` and ``squared_norm`` agree with ``product``
    matrix          ``matrix(x) v = product(x, v)``
    diagonal        ``diagonal(x)`` is the diagonal of ``matrix(x)``
    columns         ``apply_to`` is ``product``, column by column
    factor          ``⟨Su, Sv⟩ = uᵀHv``, where there is a factor
    features        ``⟨Jφ u, Jφ v⟩ = uᵀHv``, where there is a feature map
    distance        ``distance`` is at most the length of the straight segment
    derivative      the derivative of ``vᵀH(x)v`` in x agrees with differences
    rows            the result of a row does not depend on the other rows
    deterministic   the same call gives the same result
    dtype, inputs   shapes, dtype and device are kept; no input is changed
    =============== ================================================================================

    Args:
        metric: As in :class:`~riemae.Manifold`: an :class:`~riemae.ambient.AmbientMetric`, weights,
            a matrix, or a function.
        x: Data ``(k, *shape)``, at which the metric is smooth.
        generator: Randomness of the test vectors; an integer is a seed.
        tangents: Directions ``(k, D, c)`` in which the metric must be positive, such as the
            Jacobian of a decoder. Test vectors are then drawn from their span, for metrics that
            hold on the tangent vectors of a surface only.

    Returns:
        The worst relative deviation found by each check.

    Raises:
        ShapeError: When ``x`` is not ``(k, *shape)`` with k of at least 1, or ``tangents`` do not
            fit.
        AmbientError: When the metric cannot be used with these data at all.
        ContractError: Naming every law that is broken, and by how much.

    Example:
        >>> import torch
        >>> from riemae import ambient
        >>> from riemae.testing import check_ambient
        >>> metric = ambient.Diagonal(torch.tensor([1.0, 4.0]).double())
        >>> max(check_ambient(metric, torch.zeros(3, 2).double()).values())
        0.0
    """
    where = "check_ambient"
    expect_points(where, "x", x, "(k, *shape), k of at least 1", None)
    x = x.detach()
    if tangents is not None:
        expect_shape(where, "tangents", tangents, (len(x), x[0].numel(), "c"))
        tangents = tangents.detach()
    metric = as_ambient(metric).bind(None, x.shape[1:])
    vectors = source(where, generator)
    laws = _Laws(metric, x, tangents, vectors)
    with torch.no_grad():
        # First, and alone when it fails: the other checks calculate with these outputs.
        report = laws.signatures()
        if not any(report.values()):
            report |= run(laws.checks())
    return verdict(where, report, tolerance(x.dtype).check, _HINTS)


class _Laws:
    """The laws of one metric at given data, with test vectors."""

    def __init__(
        self, metric: AmbientMetric, x: Tensor, tangents: Tensor | None, generator: torch.Generator
    ) -> None:
        self.metric = metric
        self.x = x
        self.tangents = tangents
        self.flat = x.flatten(1)
        self.u = self._vector(generator)
        self.v = self._vector(generator)
        self.away = self._vector(generator)  # where to look for the derivative
        self.scale = self._bound(self.u, self.v)

    def _vector(self, generator: torch.Generator) -> Tensor:  # -> (k, D)
        if self.tangents is None:
            return normal(self.flat, generator)
        weights = normal(self.tangents[:, 0], generator)
        combined = self.tangents @ weights[..., None]
        return combined[..., 0]

    def _bound(self, u: Tensor, v: Tensor) -> Tensor:
        """``|u| |Hv| + |v| |Hu|``, which bounds inner products that may cancel."""
        hu = self.product(u)
        hv = self.product(v)
        one = u.norm(dim=-1) * hv.norm(dim=-1)
        other = v.norm(dim=-1) * hu.norm(dim=-1)
        return one + other

    def _form(self, u: Tensor, v: Tensor) -> Tensor:
        """``uᵀHv``."""
        return (u * self.product(v)).sum(-1)

    def at(self, x: Tensor) -> Tensor:
        """Points in the form that the metric's methods take: in their own shape, or flat."""
        return x if self.metric.has_features else x.flatten(1)

    def product(self, v: Tensor, rows: Any = slice(None)) -> Tensor:
        """``H(x) v`` at some of the data."""
        return self.metric.product(self.at(self.x[rows]), v)

    def checks(self) -> dict[str, Callable[[], float]]:
        """Every check by the name of its law."""
        return {
            "symmetric": self.symmetric,
            "positive": self.positive,
            "linear": self.linear,
            "inner": self.inner,
            "matrix": self.matrix,
            "diagonal": self.diagonal,
            "columns": self.columns,
            "factor": self.factor,
            "features": self.features,
            "distance": self.distance,
            "derivative": self.derivative,
            "rows": self.rows,
            "deterministic": self.deterministic,
        }

    def symmetric(self) -> float:
        there = self._form(self.u, self.v)
        back = self._form(self.v, self.u)
        return share(there - back, self.scale)

    def positive(self) -> float:
        squares = torch.stack([self._form(v, v) for v in (self.u, self.v)])
        scales = torch.stack([self._bound(v, v) for v in (self.u, self.v)])
        if not bool((squares > 0).any()):
            return math.inf
        negative = share((-squares).clamp(min=0), scales)
        if self.tangents is None:
            return negative
        applied = self.metric.apply_to(self.at(self.x), self.tangents)
        along = (self.tangents * applied).sum(1)
        if not bool((along > 0).all()):
            return math.inf
        return negative

    def linear(self) -> float:
        combined = self.product(2 * self.u - 3 * self.v)
        hu = self.product(self.u)
        hv = self.product(self.v)
        return relative(combined, 2 * hu - 3 * hv)

    def inner(self) -> float:
        x = self.at(self.x)
        inner = self.metric.inner(x, self.u, self.v)
        crossed = share(inner - self._form(self.u, self.v), self.scale)
        squares = self.metric.squared_norm(x, self.v)
        bound = self._bound(self.v, self.v)
        square = share(squares - self._form(self.v, self.v), bound)
        return max(crossed, square)

    def matrix(self) -> float:
        h = self.metric.matrix(self.at(self.x))
        every = h.expand(len(self.x), -1, -1)
        product = (every @ self.v[..., None])[..., 0]
        return relative(product, self.product(self.v))

    def diagonal(self) -> float:
        x = self.at(self.x)
        h = self.metric.matrix(x).expand(len(self.x), -1, -1)
        expected = h.diagonal(dim1=-2, dim2=-1)
        return relative(self.metric.diagonal(x), expected)

    def columns(self) -> float:
        columns = torch.stack([self.u, self.v], -1)
        found = self.metric.apply_to(self.at(self.x), columns)
        products = [self.product(self.u), self.product(self.v)]
        return relative(found, torch.stack(products, -1))

    def factor(self) -> float:
        x = self.at(self.x)
        try:
            su = self.metric.factor_product(x, self.u)
            sv = self.metric.factor_product(x, self.v)
        except AmbientError:  # it has none
            return 0.0
        found = (su * sv).sum(-1)
        return share(found - self._form(self.u, self.v), self.scale)

    def features(self) -> float:
        if not self.metric.has_features:
            return 0.0
        pushed = []
        for v in (self.u, self.v):
            _, derivative = jvp(self.metric.features, (self.x,), (v.view_as(self.x),))
            pushed.append(derivative.flatten(1))
        found = (pushed[0] * pushed[1]).sum(-1)
        return share(found - self._form(self.u, self.v), self.scale)

    def distance(self) -> float:
        """How much the lower bound exceeds the length of a short straight segment."""
        away = self._small(self.away).view_as(self.x)
        bound = self.metric.distance(self.x, self.x + away)
        if bound is None:
            return 0.0
        velocity = away.flatten(1)
        speeds = []
        for t in (torch.arange(_PIECES).to(self.x) + 0.5) / _PIECES:
            middle = self.at(self.x + t * away)
            squared = self.metric.squared_norm(middle, velocity)
            speeds.append(squared.clamp(min=0).sqrt())
        length = torch.stack(speeds).mean(0)
        # The midpoint rule on a segment of a hundredth of the data's size.
        quadrature = 1e-4
        excess = bound - (1 + quadrature) * length
        return share(excess.clamp(min=0), length)

    def derivative(self) -> float:
        """Of the quadratic form along a direction: by autograd, and by four points."""
        away = self._sized(self.away).view_as(self.x)

        def form(x: Tensor) -> Tensor:
            return self.metric.squared_norm(self.at(x), self.v)

        expected = differences(form, self.x, away)
        value, slope = by_autograd(form, self.x)
        found = (slope * away).flatten(1).sum(1)
        larger = torch.maximum(found.abs(), expected.abs())
        size = torch.maximum(value.abs(), larger)
        return share(found - expected, size)

    def rows(self) -> float:
        together = self.product(self.v)
        k = len(self.x)
        backwards = torch.arange(k - 1, -1, -1)
        flipped = self.product(self.v.flip(0), backwards).flip(0)
        single = []
        for i in range(k):
            row = slice(i, i + 1)
            single.append(self.product(self.v[row], row))
        of_order = relative(together, flipped)
        of_neighbours = relative(together, torch.cat(single))
        return max(of_order, of_neighbours)

    def deterministic(self) -> float:
        once = self.product(self.v)
        again = self.product(self.v)
        return relative(once, again)

    def _sized(self, v: Tensor) -> Tensor:  # (k, D)
        """A direction of the size of the data, row by row."""
        size = self.flat.norm(dim=-1, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        length = v.norm(dim=-1, keepdim=True)
        length = torch.where(length > 0, length, 1.0)
        return v / length * size

    def _small(self, v: Tensor) -> Tensor:  # (k, D)
        return 0.01 * self._sized(v)

    def signatures(self) -> dict[str, float]:
        """Shapes, dtypes and devices of every method, and whether arguments are left alone."""
        x = self.at(self.x)
        k, d = self.flat.shape
        columns = torch.stack([self.u, self.v], -1)
        M = self.metric
        calls: list[Call] = [
            (M.product, (x, self.v), (k, d)),
            (M.inner, (x, self.u, self.v), (k,)),
            (M.squared_norm, (x, self.v), (k,)),
            (M.diagonal, (x,), (k, d)),
            (M.apply_to, (x, columns), (k, d, 2)),
        ]
        kept, changed = kept_and_changed(calls, x)
        finite = bool(self.product(self.v).isfinite().all())
        return {"dtype": 0.0 if kept and finite else math.inf, "inputs": changed}
