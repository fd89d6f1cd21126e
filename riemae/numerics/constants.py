"""Constant arrays as tensors, made once per dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Values = Callable[..., np.ndarray]


def constant(values: Values, arguments: tuple[Any, ...], like: Tensor) -> Tensor:
    """``values(*arguments)`` as a tensor of the dtype and on the device of another.

    It is kept, and not to be written to: on an accelerator, making it anew would cost a transfer at
    every call.

    Args:
        values: Computes the array.
        arguments: Its arguments; they can be hashed.
        like: The other tensor.
    """
    if type(like) is not Tensor:  # such as the fake tensors of an export, which must not stay
        return _made(values, arguments, like.dtype, like.device)
    return _kept(values, arguments, like.dtype, like.device)


def _made(
    values: Values, arguments: tuple[Any, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    with torch.inference_mode(False):  # what is kept must do for later calls outside of it
        # In memory of its own: where NumPy's begins may matter to the last bits of products.
        return torch.tensor(values(*arguments), dtype=dtype, device=device)


_kept = lru_cache(maxsize=256)(_made)
