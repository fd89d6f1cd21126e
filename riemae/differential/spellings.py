"""All objects that stand for one function: ``torch.x``, ``torch.Tensor.x``, ``F.x`` and others.

A table that is keyed by function objects is filled by names, at import: a function that this
version of torch does not have is left out.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional as F

OWNERS = (torch, Tensor, F, torch.special, torch._C._nn, torch.ops.aten)


def spellings(*names: str, owners: tuple[Any, ...] = OWNERS) -> list[Any]:
    """The functions of these names, as objects, in the modules of torch and in ``Tensor``.

    Args:
        names: Names of functions, several in one string at will. Names such as ``__add__`` are
            looked for in ``Tensor`` only.
        owners: Where to look.
    """
    found: list[Any] = []
    for name in " ".join(names).split():
        for owner in (Tensor,) if name.startswith("__") else owners:
            function = getattr(owner, name, None)
            if callable(function) and function not in found:
                found.append(function)
    return found


# Families of operators that have modules of their own.
_PREFIXES = {"linalg_": torch.linalg, "special_": torch.special, "fft_": torch.fft}


def spelt(function: Any) -> Any:
    """What a function is called in tables; of an operator's overload, the operator.

    Programs of ``torch.export`` call overloads, such as ``torch.ops.aten.add.Tensor``.
    """
    return _operator(function) if type(function) is OpOverload else function


@cache
def _operator(overload: OpOverload) -> Any:
    operator = overload.overloadpacket
    if overload.namespace != "aten":
        return overload
    name = operator.__name__
    if name == "pad":  # the only one of this name that knows modes
        return F.pad
    for prefix, module in _PREFIXES.items():
        function = getattr(module, name.removeprefix(prefix), None)
        if name.startswith(prefix) and function is not None:
            return function
    return operator


# What torch calls the first argument of its functions, and the second of some.
_FIRST = ("input", "tensors", "self")
_SECOND = {
    "weight": """
        linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d prelu""",
    "other": """
        add sub subtract mul multiply div divide true_divide rsub matmul maximum minimum fmax fmin
        atan2 hypot logaddexp logaddexp2 xlogy inner outer kron""",
    "mat2": "mm bmm",
    "exponent": "pow float_power",
}
_SECOND_OF = {
    function: name for name, functions in _SECOND.items() for function in spellings(functions)
}


def in_front(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...]:  # which takes them out of the keywords
    """The positional arguments, with the tensors that were given by their names.

    ``F.linear(input=x, weight=w)`` is ``F.linear(x, w)``: rules look at tensors by their place.
    """
    if not args:
        first = next((name for name in _FIRST if name in kwargs), None)
        if first is None:
            return args
        args = (kwargs.pop(first),)
    second = _SECOND_OF.get(function)
    if len(args) == 1 and second in kwargs:
        args = (*args, kwargs.pop(second))
    return args
