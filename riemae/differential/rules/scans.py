"""Products and running results along an axis, as compositions of functions that have rules."""

from __future__ import annotations

import math
from functools import reduce
from itertools import accumulate
from operator import mul
from typing import Any

import torch

from riemae.differential.jets import composition
from riemae.differential.spellings import spellings

# Along longer axes, forward mode through the function itself takes less than one step a number.
LONGEST = 32


def _short(x: Any, dim: Any, dtype: Any) -> bool:
    return type(dim) is int and dtype is None and x.ndim > 0 and 0 < x.shape[dim] <= LONGEST


@composition(*spellings("prod"))
def _prod(func: Any, x: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    if dim is None:
        return func(x, dtype=dtype)
    if not _short(x, dim, dtype):
        return func(x, dim, keepdim, dtype=dtype)
    y = reduce(mul, x.unbind(dim))
    return y.unsqueeze(dim) if keepdim else y


@composition(*spellings("cumprod"))
def _cumprod(func: Any, x: Any, dim: Any, *, dtype: Any = None) -> Any:
    if not _short(x, dim, dtype):
        return func(x, dim, dtype=dtype)
    products = list(accumulate(x.unbind(dim), mul))
    return torch.stack(products, dim)


@composition(*spellings("logcumsumexp"))
def _logcumsumexp(func: Any, x: Any, dim: Any) -> Any:
    """Each is the log-sum-exp of a row of which the rest is masked."""
    if not _short(x, dim, None):
        return func(x, dim)
    along = x.movedim(dim, -1)
    n = along.shape[-1]
    later = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
    rows = along.unsqueeze(-2).expand(*along.shape[:-1], n, n)
    y = rows.masked_fill(later, -math.inf).logsumexp(-1)
    return y.movedim(-1, dim)


@composition(*spellings("logaddexp"))
def _logaddexp(func: Any, a: Any, b: Any) -> Any:
    both = torch.broadcast_tensors(a, b)
    return torch.stack(both, -1).logsumexp(-1)


@composition(*spellings("logaddexp2"))
def _logaddexp2(func: Any, a: Any, b: Any) -> Any:
    log_two = math.log(2)
    return torch.logaddexp(a * log_two, b * log_two) / log_two
