"""Looking at the numbers in a tensor, where that is possible."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae.numerics.deferral import noted_as_finite
from riemae.numerics.leftovers import note


def concrete(x: Tensor) -> Tensor | None:
    """``x`` if its values can be looked at.

    None on the meta device and inside ``torch.func.vmap``.
    """
    if x.is_meta:
        return None
    try:
        bool(x.any())
    except RuntimeError:  # vmap forbids control flow that depends on values
        return None
    return x


def own(x: Tensor, function: Callable[..., Any]) -> Tensor:
    """A copy for a function of the user, which may write into its arguments.

    Tensors of other classes are returned as they are.

    Args:
        x: The argument.
        function: What is called with it; what its modules keep of it stays a plain tensor.
    """
    note(function)
    if type(x) in (Tensor, torch.nn.Parameter):
        return x.clone()
    return x


def revealing(*tensors: Tensor) -> Tensor:  # -> ()
    """The sum of all numbers, in which NaN and infinity would show; a sum may overflow as well."""
    sums = [(x.detach() if x.requires_grad else x).sum() for x in tensors]
    return torch.stack(sums).sum() if len(sums) > 1 else sums[0]


def evidently_finite(*tensors: Tensor) -> bool:
    """Whether the sum is finite: NaN and infinity would show in it.

    It costs a fifth of looking at every number. False means nothing: a sum may overflow, and some
    tensors cannot be looked at. True where the check is noted: :mod:`riemae.numerics.deferral`.
    """
    total = revealing(*tensors)
    if total.is_meta:
        return False
    if noted_as_finite(total):
        return True
    try:  # in one look, where `concrete` would need two
        return math.isfinite(total.item())
    except RuntimeError:  # inside vmap
        return False
