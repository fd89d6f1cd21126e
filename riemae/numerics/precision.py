"""Arithmetic in the precision of the tensors, whatever autocast says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
_AUTOCAST = ("cpu", "cuda")


def in_full_precision(method: Callable[P, R]) -> Callable[P, R]:
    """``method`` with autocast switched off.

    Half precision cannot carry derivatives, and results keep their dtype.
    """

    @functools.wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch._C._is_any_autocast_enabled():
            return method(*args, **kwargs)
        kinds = [kind for kind in _AUTOCAST if torch.is_autocast_enabled(kind)]
        with ExitStack() as stack:
            for kind in kinds:
                stack.enter_context(torch.autocast(kind, enabled=False))
            return method(*args, **kwargs)

    return called
