"""What an ambient metric must satisfy at a few points: finite, symmetric, positive."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from riemae.exceptions import AmbientError
from riemae.numerics.checks import shape_in_words
from riemae.numerics.tolerances import tolerance

Apply = Callable[[Tensor, Tensor], Tensor]  # (k, D), (k, D, c) -> (k, D, c)

_NOT_POSITIVE = ("a positive metric", "vᵀHv < 0", "A metric is S Sᵀ: build it from a factor S.")
_FORMULA = "Check its formula at the decoder's outputs."
_SHAPES = "Check its shapes; the batch axis comes first."


def directions(x: Tensor) -> Tensor:  # (k, D) -> (k, D, 2)
    """Two directions, the same at every point, in which a metric is looked at."""
    ones = x.new_ones(x.shape[1])
    waves = torch.arange(x.shape[1]).to(x).cos()
    both = torch.stack([ones, waves], -1)
    return both.expand(len(x), -1, -1)


def check_features(where: str, features: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Evaluate a feature map at ``x`` ``(k, *shape)``.

    Raises:
        AmbientError: When it fails, loses rows, changes the dtype, or returns NaN or infinity.
    """
    try:
        phi = features(x)
    except RuntimeError as reason:
        raise AmbientError(
            where,
            f"features of data of shape {tuple(x.shape)} and dtype {x.dtype}",
            f"an error: {reason}",
            "Check its shapes, and move both at once with Manifold.to(device, dtype).",
        ) from reason
    if not isinstance(phi, Tensor) or phi.ndim < 1 or len(phi) != len(x):
        got = shape_in_words(phi)
        hint = "Keep the batch axis first."
        raise AmbientError(where, f"features with {len(x)} rows", got, hint)
    if not bool(phi.isfinite().all()):
        raise AmbientError(where, "finite features", "NaN or infinity", _FORMULA)
    if phi.dtype != x.dtype:
        hint = "Keep the data's dtype."
        raise AmbientError(where, f"features of dtype {x.dtype}", str(phi.dtype), hint)


def check_form(where: str, apply_to: Apply, x: Tensor, columns: Tensor) -> Tensor:
    """Apply a metric to ``columns`` ``(k, D, c)`` at ``x`` ``(k, D)``.

    Returns:
        The form ``columnsᵀ H columns``, ``(k, c, c)``.

    Raises:
        AmbientError: When it fails, has another shape or dtype, is not finite, or not symmetric.
    """
    dimension = x.shape[1]
    try:
        applied = apply_to(x, columns)
    except RuntimeError as reason:
        expected = f"a metric on data of dimension {dimension}"
        raise AmbientError(where, expected, f"an error: {reason}", _SHAPES) from reason
    if applied.shape != columns.shape:
        raise AmbientError(
            where,
            f"H(x) v of shape {tuple(columns.shape[:-1])}",
            str(tuple(applied.shape[:-1])),
            _SHAPES,
        )
    if applied.dtype != x.dtype:
        hint = "Keep the data's dtype."
        raise AmbientError(where, f"a metric of dtype {x.dtype}", str(applied.dtype), hint)
    form = columns.mT @ applied
    if not bool(form.isfinite().all()):
        raise AmbientError(where, "a finite metric", "NaN or infinity", _FORMULA)
    asymmetry = (form - form.mT).abs().amax((-1, -2))
    allowed = tolerance(x.dtype).probe * form_size(form, dimension)
    if bool((asymmetry > allowed).any()):
        hint = "Symmetrise it: (H + Hᵀ)/2."
        raise AmbientError(where, "a symmetric metric", "uᵀHv ≠ vᵀHu", hint)
    return form


def check_diagonal(where: str, form: Tensor, dimension: int) -> None:
    """Refuse a form ``(k, c, c)`` with a negative squared length.

    Raises:
        AmbientError: When there is one, beyond rounding.
    """
    size = form_size(form, dimension)[:, None]
    floor = tolerance(form.dtype).probe * size
    squared_lengths = form.diagonal(dim1=-2, dim2=-1)
    if bool((squared_lengths < -floor).any()):
        raise AmbientError(where, *_NOT_POSITIVE)


def check_positive(where: str, apply_to: Apply, x: Tensor, tangents: Tensor, noise: float) -> None:
    """Refuse a metric that is negative in the span of ``tangents`` ``(k, D, c)``.

    Args:
        where: Whose metric it is.
        apply_to: ``H(x)`` times several vectors.
        x: Points ``(k, D)``.
        tangents: Directions.
        noise: Size of the error in the directions, relative to their length.

    Raises:
        AmbientError: When it is negative, beyond what the error in the directions explains.
    """
    if not tangents.shape[-1]:
        return
    lengths = tangents.norm(dim=1, keepdim=True)
    columns = tangents / lengths.clamp(min=torch.finfo(x.dtype).tiny)
    applied = apply_to(x, columns)
    form = columns.mT @ applied
    # Directions are known up to an error, and an ill-conditioned metric makes it large.
    waves = (1 + torch.arange(x.shape[1]).to(x)[:, None]).cos()
    errors = noise * (columns * waves)
    first_order = (columns.mT @ apply_to(x, errors)).abs()
    second_order = (errors.mT @ apply_to(x, errors)).abs()
    doubt = first_order + second_order
    known = form.isfinite().all(-1).all(-1)
    if not bool(known.any()):
        return
    rounding = applied.norm(dim=(1, 2)) * tolerance(x.dtype).probe
    allowed = rounding + 64 * doubt.amax((-1, -2))
    symmetric = (form + form.mT)[known] / 2
    smallest = torch.linalg.eigvalsh(symmetric)[:, 0]
    if bool((smallest < -allowed[known]).any()):
        raise AmbientError(where, *_NOT_POSITIVE)


def form_size(form: Tensor, dimension: int) -> Tensor:  # (k, c, c) -> (k,)
    """How large a form is, to compare its errors with."""
    largest = form.abs().amax((-1, -2))
    return largest * dimension**0.5
