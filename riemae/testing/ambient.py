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
    differences,
    expect_points,
    normal,
    relative,
    run,
    share,
    source,
    verdict,
    worst,
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
    laws = _Laws(metric, x, tangents, source(where, generator))
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
        self.u, self.v = self._vector(generator), self._vector(generator)
        self.away = self._vector(generator)  # where to look for the derivative
        self.scale = self._bound(self.u, self.v)

    def _vector(self, generator: torch.Generator) -> Tensor:  # -> (k, D)
        if self.tangents is None:
            return normal(self.flat, generator)
        weights = normal(self.tangents[:, 0], generator)
        return (self.tangents @ weights[..., None])[..., 0]

    def _bound(self, u: Tensor, v: Tensor) -> Tensor:
        """``|u| |Hv| + |v| |Hu|``, which bounds inner products that may cancel."""
        hu, hv = self.product(u), self.product(v)
        return u.norm(dim=-1) * hv.norm(dim=-1) + v.norm(dim=-1) * hu.norm(dim=-1)

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
        gap = (self.u * self.product(self.v)).sum(-1) - (self.v * self.product(self.u)).sum(-1)
        return share(gap, self.scale)

    def positive(self) -> float:
        squares = torch.stack([(v * self.product(v)).sum(-1) for v in (self.u, self.v)])
        scales = torch.stack([self._bound(v, v) for v in (self.u, self.v)])
        if not bool((squares > 0).any()):
            return math.inf
        negative = share((-squares).clamp(min=0), scales)
        if self.tangents is None:
            return negative
        applied = self.metric.apply_to(self.at(self.x), self.tangents)
        along = (self.tangents * applied).sum(1)
        return negative if bool((along > 0).all()) else math.inf

    def linear(self) -> float:
        combined = self.product(2 * self.u - 3 * self.v)
        return relative(combined, 2 * self.product(self.u) - 3 * self.product(self.v))

    def inner(self) -> float:
        x = self.at(self.x)
        crossed = self.metric.inner(x, self.u, self.v) - (self.u * self.product(self.v)).sum(-1)
        square = self.metric.squared_norm(x, self.v) - (self.v * self.product(self.v)).sum(-1)
        return max(share(crossed, self.scale), share(square, self._bound(self.v, self.v)))

    def matrix(self) -> float:
        h = self.metric.matrix(self.at(self.x)).expand(len(self.x), -1, -1)
        return relative((h @ self.v[..., None])[..., 0], self.product(self.v))

    def diagonal(self) -> float:
        x = self.at(self.x)
        h = self.metric.matrix(x).expand(len(self.x), -1, -1)
        return relative(self.metric.diagonal(x), h.diagonal(dim1=-2, dim2=-1))

    def columns(self) -> float:
        columns = torch.stack([self.u, self.v], -1)
        expected = torch.stack([self.product(self.u), self.product(self.v)], -1)
        return relative(self.metric.apply_to(self.at(self.x), columns), expected)

    def factor(self) -> float:
        x = self.at(self.x)
        try:
            su, sv = self.metric.factor_product(x, self.u), self.metric.factor_product(x, self.v)
        except AmbientError:  # it has none
            return 0.0
        gap = (su * sv).sum(-1) - (self.u * self.product(self.v)).sum(-1)
        return share(gap, self.scale)

    def features(self) -> float:
        if not self.metric.has_features:
            return 0.0
        pushed = []
        for v in (self.u, self.v):
            derivative = jvp(self.metric.features, (self.x,), (v.view_as(self.x),))[1]
            pushed.append(derivative.flatten(1))
        gap = (pushed[0] * pushed[1]).sum(-1) - (self.u * self.product(self.v)).sum(-1)
        return share(gap, self.scale)

    def distance(self) -> float:
        """How much the lower bound exceeds the length of a short straight segment."""
        away = (self._small(self.away)).view_as(self.x)
        bound = self.metric.distance(self.x, self.x + away)
        if bound is None:
            return 0.0
        middles = (torch.arange(_PIECES).to(self.x) + 0.5) / _PIECES
        speeds = [
            self.metric.squared_norm(self.at(self.x + t * away), away.flatten(1)).clamp(min=0)
            for t in middles
        ]
        length = torch.stack([speed.sqrt() for speed in speeds]).mean(0)
        # The midpoint rule on a segment of a hundredth of the data's size.
        quadrature = 1e-4
        return share((bound - (1 + quadrature) * length).clamp(min=0), length)

    def derivative(self) -> float:
        """Of the quadratic form along a direction: by autograd, and by four points."""
        away = self._sized(self.away).view_as(self.x)

        def form(x: Tensor) -> Tensor:
            return self.metric.squared_norm(self.at(x), self.v)

        expected = differences(form, self.x, away)
        found = torch.zeros_like(expected)
        with torch.enable_grad():
            point = self.x.clone().requires_grad_()
            value = form(point)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), point, materialize_grads=True)
                found = (slope * away).flatten(1).sum(1)
        size = torch.maximum(value.detach().abs(), torch.maximum(found.abs(), expected.abs()))
        return share(found - expected, size)

    def rows(self) -> float:
        together = self.product(self.v)
        k = len(self.x)
        flipped = self.product(self.v.flip(0), torch.arange(k - 1, -1, -1)).flip(0)
        single = [self.product(self.v[i : i + 1], slice(i, i + 1)) for i in range(k)]
        return max(relative(together, flipped), relative(together, torch.cat(single)))

    def deterministic(self) -> float:
        return relative(self.product(self.v), self.product(self.v))

    def _sized(self, v: Tensor) -> Tensor:  # (k, D)
        """A direction of the size of the data, row by row."""
        size = self.flat.norm(dim=-1, keepdim=True)
        size = torch.where(size > 0, size, 1.0)
        length = v.norm(dim=-1, keepdim=True)
        return v / torch.where(length > 0, length, 1.0) * size

    def _small(self, v: Tensor) -> Tensor:  # (k, D)
        return 0.01 * self._sized(v)

    def signatures(self) -> dict[str, float]:
        """Shapes, dtypes and devices of every method, and whether arguments are left alone."""
        x, (k, d) = self.at(self.x), self.flat.shape
        columns = torch.stack([self.u, self.v], -1)
        M = self.metric
        calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], tuple[int, ...]]] = [
            (M.product, (x, self.v), (k, d)),
            (M.inner, (x, self.u, self.v), (k,)),
            (M.squared_norm, (x, self.v), (k,)),
            (M.diagonal, (x,), (k, d)),
            (M.apply_to, (x, columns), (k, d, 2)),
        ]
        kept, changed = True, 0.0
        for method, given, shape in calls:
            inputs = tuple(y.clone() for y in given)
            out = method(*inputs)
            same = out.dtype == x.dtype and out.device == x.device
            kept = kept and same and out.shape == shape
            gaps = (relative(a, b) for a, b in zip(inputs, given, strict=True))
            changed = max(changed, *gaps)
        kept = kept and worst((~self.product(self.v).isfinite()).double()) == 0
        return {"dtype": 0.0 if kept else math.inf, "inputs": changed}
