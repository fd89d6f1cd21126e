"""Results of a mode, as callers get them.

The points' axis comes first, and derivatives are NaN where the map has no value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.numerics.deferral import holds
from riemae.numerics.values import evidently_finite


def points_first(parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Values, Jacobians and quadratic forms of a mode, with the points' axis in front.

    ``(k, D), (m, k, D), (s, k, m, m) -> (k, D), (k, D, m), (k, s, m, m)``.
    """
    x, j, forms = parts
    columns_last = j.movedim(0, -1)
    (jacobian,) = where_defined(x, [columns_last])
    return x, jacobian, forms.transpose(0, 1)


def where_defined(x: Tensor, derivatives: list[Tensor]) -> list[Tensor]:
    """Derivatives with NaN where the map has no value: those of log may exist there."""
    if evidently_finite(x):
        return derivatives
    ok = x.isfinite().all(-1)
    if holds(ok):
        return derivatives
    out = []
    for d in derivatives:
        inner_axes = (1,) * (d.ndim - 1)
        mask = ok.view(-1, *inner_axes)
        out.append(torch.where(mask, d, torch.nan))
    return out
