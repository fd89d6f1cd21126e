"""Factors ``F`` of the metric ``G = FᵀF``, and what is read from them.

None of it squares the condition number, as forming ``G`` does.

``G`` itself has the squared condition of the Jacobian: from cond(J) = 1/√eps on (3,000 in float32,
7e7 in float64) its smallest eigenvalues are rounding. The singular values of ``F`` are right as
long as J itself is. They are taken after a QR decomposition of F with its columns scaled to length
1, so that the units of the coordinates do not matter, and in float64 whatever the dtype: of a
float32 Jacobian nothing more is lost.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.ambient import AmbientMetric, DiagonalMetric, FactorMetric
from riemae.exceptions import PrecisionWarning, SingularMetricError, stack_level
from riemae.numerics.deferral import holds
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete, evidently_finite

# A column of length 1 whose part outside of the other columns is shorter than this is dependent on
# them: rounding of QR.
_DEPENDENT = 16 * 2.0**-52
# Condition, times eps, from which on a smallest singular value has hardly more than two right
# digits.
_IMPRECISE = 0.01
# Condition below which singular values have no need of a closer look.
_HARMLESS = 1e4


def ambient_factor(
    ambient: AmbientMetric, x: Tensor, j: Tensor
) -> Tensor:  # (k, D), (k, D, m) -> (k, q, m)
    """``F`` with ``FᵀF = Jᵀ H(x) J``.

    ``S J`` where the metric has a factor S, else ``L R`` with ``J = Q R``.

    ``L Lᵀ = Qᵀ H Q`` has the condition of the ambient metric alone, whatever J's is.

    Raises:
        SingularMetricError: Where the metric is negative along a tangent direction.
    """
    if isinstance(ambient, FactorMetric):
        columns = [ambient.factor_product(x, v) for v in j.unbind(-1)]
        return torch.stack(columns, -1)
    if isinstance(ambient, DiagonalMetric):
        weights = ambient.diagonal(x)
        if holds(~(weights < 0)):
            roots = weights.sqrt()
            return roots[..., None] * j
    j, finite_jacobian = _sound(j)
    q, r = torch.linalg.qr(wide(j))
    frame = q.to(j)
    lowered = ambient.apply_to(x, frame)
    form = wide(frame.mT @ lowered)
    symmetric = (form + form.mT) / 2
    form, finite_form = _sound(symmetric)
    factor, info = torch.linalg.cholesky_ex(form)
    if holds(info == 0):
        root = factor.mT
    else:
        root = _semidefinite_root(ambient, form, j.dtype)
    ok = finite_jacobian & finite_form
    found = root @ r
    return torch.where(ok[:, None, None], found, torch.nan)


def _semidefinite_root(
    ambient: AmbientMetric, form: Tensor, dtype: torch.dtype
) -> Tensor:  # (k, m, m) -> (k, m, m)
    """``S`` with ``SᵀS = form``, by eigenvalues, of which some are 0.

    Raises:
        SingularMetricError: Where one is negative by more than the rounding of ``dtype``.
    """
    values, vectors = torch.linalg.eigh(form)
    largest = values.abs().amax(-1, keepdim=True)
    floor = tolerance(dtype).probe * largest
    negative = (values < -floor).any(-1)
    lost = concrete(negative)
    if lost is not None and bool(lost.any()):
        raise SingularMetricError(
            ambient.title,
            "a metric that is positive along the decoded manifold",
            f"a negative squared length, vᵀHv < 0, at {int(lost.sum())} of {len(lost)} points",
            "A metric is S Sᵀ: build it from a factor.",
        )
    roots = values.clamp(min=0).sqrt()
    return roots[..., None] * vectors.mT


def differentiated_later(x: Tensor) -> bool:
    """Whether somebody may differentiate what is made of ``x``."""
    by_graph = x.requires_grad and torch.is_grad_enabled()
    return by_graph or transformed()


def wide(x: Tensor) -> Tensor:
    """``x`` in float64, where the device has it."""
    if x.device.type == "mps":
        return x
    return x.double()


def triangle(f: Tensor) -> Tensor:  # (k, q, m) -> (k, m, m)
    """Upper triangular ``R`` with ``RᵀR = FᵀF``, in float64; NaN where F is not finite."""
    f, ok = _sound(wide(f))
    # A constant scale comes out as it goes in: nothing is to be differentiated in it.
    scale = _lengths(f.detach())[:, None]
    columns = f / scale
    # Without gradient Q is not needed; with it, torch wants it.
    differentiated = differentiated_later(f)
    mode = "reduced" if differentiated else "r"
    _, r = torch.linalg.qr(columns, mode=mode)
    if differentiated and r.shape[1] == r.shape[2]:
        r = _where_regular(r, columns)
    r = r * scale
    missing = r.shape[2] - r.shape[1]
    if missing > 0:
        r = F.pad(r, (0, 0, 0, missing))
    return torch.where(ok[:, None, None], r, torch.nan)


def _where_regular(r: Tensor, columns: Tensor) -> Tensor:  # (k, m, m), (k, q, m) -> (k, m, m)
    """Triangles without derivatives where they are singular.

    What is singular has no derivative, and must not spoil that of the others.
    """
    known = r.detach()
    pivots = known.diagonal(dim1=-2, dim2=-1).abs()
    dependent = pivots <= _DEPENDENT
    bad = dependent.any(-1)
    if holds(~bad):
        return r
    mask = bad[:, None, None]
    harmless = torch.eye(*columns.shape[1:]).to(columns)
    rest = torch.where(mask, harmless, columns)
    _, regular = torch.linalg.qr(rest)
    return torch.where(mask, known, regular)


def log_determinant(where: str, r: Tensor, dtype: torch.dtype) -> Tensor:  # (k, m, m) -> (k,)
    """``log |det R|`` of triangles; −inf where a column depends on the others.

    Warns:
        PrecisionWarning: Where J in this dtype cannot carry it.
    """
    scale = _lengths(r.detach())
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    pivots = diagonal.abs() / scale
    dependent = pivots.detach() <= _DEPENDENT
    regular = ~dependent.any(-1)
    # Twice where: what is singular has no derivative, and must not spoil that of the others.
    safe = torch.where(regular[:, None], pivots, 1.0)
    of_pivots = safe.log().sum(-1)
    of_scales = scale.log().sum(-1)
    logs = of_pivots + of_scales
    columns = r.detach() / scale[:, None]
    _warn_of_precision(where, columns, regular, dtype)
    return torch.where(regular, logs, -torch.inf).to(dtype)


def singular_values(where: str, r: Tensor, dtype: torch.dtype) -> Tensor:  # (k, m, m) -> (k, m)
    """Singular values of triangles, ascending, without derivatives.

    As many zeros as columns depend on the others.

    Where the condition comes from the units of the coordinates, the small ones are taken from the
    inverse, in which they are the large ones: each is right to √cond · eps at least.

    Args:
        where: Who asks.
        r: From :func:`triangle`.
        dtype: The dtype of the Jacobian that it comes from.

    Warns:
        PrecisionWarning: Where J in this dtype cannot carry them.
    """
    r, ok = _sound(r.detach())
    values = torch.linalg.svdvals(r).flip(-1)
    smallest = values[:, 0]
    largest = values[:, -1]
    harmless = smallest * _HARMLESS > largest  # False for NaN
    close = concrete(~harmless)
    if close is not None and bool(close.any()):
        rows = close.nonzero().flatten()
        refined = _refined(where, r[rows], values[rows], dtype)
        values = values.index_put((rows,), refined)
    return torch.where(ok[:, None], values, torch.nan)


def _refined(
    where: str, r: Tensor, values: Tensor, dtype: torch.dtype
) -> Tensor:  # (k, m, m), (k, m) -> (k, m)
    """Singular values of triangles from those of their inverses, where these are better."""
    lengths = _lengths(r)
    columns = r / lengths[:, None]
    relative = torch.linalg.svdvals(columns)
    vanishing = relative <= _DEPENDENT * relative[:, :1]
    zeros = vanishing.sum(-1)
    invertible = (r.diagonal(dim1=-2, dim2=-1) != 0).all(-1)
    regular = (zeros == 0) & invertible
    identity = torch.eye(r.shape[-1]).to(r)
    safe = torch.where(regular[:, None, None], r, identity)
    inverse = torch.linalg.solve_triangular(safe, identity.expand_as(safe), upper=True)
    sound = inverse.isfinite().flatten(1).all(1)
    safe_inverse = torch.where(sound[:, None, None], inverse, identity)
    small = 1 / torch.linalg.svdvals(safe_inverse)
    geometric_mean = values[:, -1:] * small[:, :1]
    below_middle = values.square() < geometric_mean
    known = regular & sound
    better = below_middle & known[:, None]
    chosen = torch.where(better, small, values)
    places = torch.arange(r.shape[-1], device=r.device)
    dependent = places < zeros[:, None]
    _warn_of_precision(where, columns, regular, dtype)
    return torch.where(dependent, 0.0, chosen)


def differentiable_singular_values(f: Tensor) -> Tensor:  # (k, q, m) -> (k, m)
    """Singular values of factors, ascending, as torch differentiates them.

    Zeros for missing rows.
    """
    f, ok = _sound(wide(f))
    descending = torch.linalg.svdvals(f)
    values = descending.flip(-1)
    missing = f.shape[-1] - values.shape[-1]
    values = F.pad(values, (missing, 0))
    return torch.where(ok[:, None], values, torch.nan)


def check_triangle(where: str, r: Tensor, dtype: torch.dtype) -> None:  # (k, m, m)
    """Whether something can be divided by triangles.

    Raises:
        SingularMetricError: Where a column depends on the others as far as ``dtype`` can tell, with
            the places.
    """
    known = r.detach()
    diagonal = known.diagonal(dim1=-2, dim2=-1)
    pivots = diagonal.abs() / _lengths(known)
    regular = pivots > tolerance(dtype).pivot
    good = regular.all(-1)
    if not holds(good):
        bad = ~good
        places = bad.nonzero().flatten().tolist()
        raise SingularMetricError(
            where,
            "a positive definite metric",
            f"a singular one at {len(places)} of {len(bad)} points (first: {places[:5]})",
            "Tangent directions are dependent there: look at the eigenvalues of the metric, or "
            "lower the dimension.",
        )


def _lengths(f: Tensor) -> Tensor:  # (k, q, m) -> (k, m)
    """Lengths of columns; 1 for those that vanish."""
    lengths = f.norm(dim=1)
    positive = lengths > 0
    return torch.where(positive, lengths, 1.0)


def _sound(f: Tensor) -> tuple[Tensor, Tensor]:  # (k, q, m) -> (k, q, m), (k,)
    """``f`` with 0 in what is not finite, which decompositions refuse, and where it was finite."""
    if evidently_finite(f):
        everywhere = torch.ones_like(f[:, 0, 0], dtype=torch.bool)
        return f, everywhere
    ok = f.isfinite().flatten(1).all(1)
    sound = torch.where(ok[:, None, None], f, 0.0)
    return sound, ok


def _warn_of_precision(where: str, scaled: Tensor, regular: Tensor, dtype: torch.dtype) -> None:
    """Announce triangles, with columns of length 1, whose condition ``dtype`` cannot carry."""
    identity = torch.eye(scaled.shape[-1]).to(scaled)
    safe = torch.where(regular[:, None, None], scaled, identity)
    # |R| |R⁻¹| by Frobenius norms: at most m times the condition.
    inverse = torch.linalg.solve_triangular(safe, identity.expand_as(safe), upper=True)
    condition = inverse.flatten(1).norm(dim=1)
    rounding = condition * tolerance(dtype).eps
    lost = concrete(rounding > _IMPRECISE)
    if lost is None or not bool(lost.any()):
        return
    largest = float(condition[lost].max())
    count = int(lost.sum())
    name = str(dtype).removeprefix("torch.")
    better = "" if dtype == torch.float64 else " Use M.to(dtype=torch.float64)."
    warnings.warn(
        f"{where}: cond(J) is {largest:.0e} at {count} of {len(lost)} points, which {name} does "
        "not carry: fewer than two digits of the smallest eigenvalue are right."
        f"{better}",
        PrecisionWarning,
        stacklevel=stack_level(),
    )
