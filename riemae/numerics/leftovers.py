"""No wrapped tensor of ``torch.func`` is left in a user's module.

Inside ``torch.func``, results of torch are wrapped, constants as well. A module that stores one
(``self.grid = self.grid.to(z)``, weights computed by a hook) would keep the wrapper, which cannot
be copied or saved. Functions of the user that run inside are therefore noted, weakly, and tensors
that their modules hold are unwrapped when the transforms have ended.
"""

from __future__ import annotations

import threading
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from riemae.numerics.reach import modules

_DEPTH = 3  # dictionaries of lists …
_functorch = torch._C._functorch


class _Noted(threading.local):
    """Functions that have run inside transforms of this thread, by identity."""

    def __init__(self) -> None:
        self.functions: dict[int, Callable[[], Any]] = {}


_noted = _Noted()


def note(function: Callable[..., Any]) -> None:
    """Remember a function of the user that is about to be called, if inside of ``torch.func``."""
    if _functorch.peek_interpreter_stack() is None:
        return
    # Weakly, because a caller's own transforms may never end in one of ours.
    reference = weakref.WeakMethod if isinstance(function, types.MethodType) else weakref.ref
    try:
        _noted.functions[id(function)] = reference(function)
    except TypeError:  # an object with slots alone, in which no module is found
        pass


@contextmanager
def unwrapping(context: AbstractContextManager[Any]) -> Iterator[None]:
    """The context; at its end, no module of a noted function holds a wrapped tensor.

    Inside a caller's own transforms this is left to the next that ends outside of them.
    """
    try:
        with context:
            yield
    finally:
        if _noted.functions and _functorch.peek_interpreter_stack() is None:
            noted = list(_noted.functions.values())
            _noted.functions.clear()
            for function in noted:
                for module in modules(function()):
                    _unwrap(module)


def _unwrap(module: nn.Module) -> None:
    for part in module.modules():
        _plain(vars(part), _DEPTH)


def _plain(value: Any, depth: int) -> Any:
    """The value, without wrappers; containers that can change are changed in place."""
    if isinstance(value, Tensor):
        while _functorch.is_functorch_wrapped_tensor(value):
            value = _functorch.get_unwrapped(value)
        return value
    if not depth:
        return value
    if isinstance(value, dict):
        places = list(value.items())
    elif isinstance(value, list):
        places = list(enumerate(value))
    elif type(value) is tuple:
        parts = [_plain(x, depth - 1) for x in value]
        same = all(x is y for x, y in zip(parts, value, strict=True))
        return value if same else tuple(parts)
    else:
        return value
    for place, old in places:
        new = _plain(old, depth - 1)
        if new is not old:
            value[place] = new
    return value
