"""Products and running results along an axis, as compositions of functions that have rules."""

from __future__ import annotations

from functools import reduce
from itertools import accumulate
from operator import mul
from typing import Any

import torch

from riemae.differential.jets import composition
from riemae.differential.primitives import logaddexp, logaddexp2, logcumsumexp
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


for _function in (logaddexp, logaddexp2, logcumsumexp):
    composition(*spellings(_function.__name__))(_function)
