"""Arrays of numpy and tables of pandas as arguments of a manifold's methods, and of statistics.

Where points, tangents or data are arrays, so are the tensors that come back. What is more than a
tensor (geodesics, curves, neighbours, distributions) stays with torch, and so do functions that are
arguments: they get tensors, and return tensors.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError
from riemae.numerics import reach

# Dtypes that geometry is computed in.
_GEOMETRIC = (torch.float32, torch.float64)
# Types that need no look: most arguments are of one of them.
_PLAIN = (Tensor, float, int, str, type(None))


def takes_arrays(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of a manifold, for arrays as well as for tensors.

    Arrays become tensors of the dtype and on the device of the decoder's parameters, or of float64
    where it has none, or of the tensors that are given as well. Where none is, tensors come back as
    arrays. Calls without arrays are passed on as they are.

    Raises:
        DTypeError: For arrays that hold anything but numbers.
    """

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not any(map(is_array, args)) and not any(map(_has_arrays, kwargs.values())):
            return method(self, *args, **kwargs)
        where = f"Manifold.{method.__name__}"
        condition = kwargs.pop("condition", None)
        named = [*args, *kwargs.values()]
        tensors = [x for x in named if isinstance(x, Tensor)]
        like = next((x for x in tensors if x.is_floating_point()), None)
        if like is None:
            like = home(self.decoder)
        given = [as_tensor(where, x, like) for x in args]
        more = {name: as_tensor(where, x, like) for name, x in kwargs.items()}
        if condition is not None:
            more["condition"] = _condition(where, condition, like)
        found = method(self, *given, **more)
        return found if tensors else as_arrays(found)

    return called


def is_array(x: Any) -> bool:
    """Whether something is an array of numpy, or a table or a column of pandas."""
    if isinstance(x, _PLAIN):
        return False
    return isinstance(x, np.ndarray) or _is_table(x)


def _is_table(x: Any) -> bool:
    """Whether something is a table, or a column, of pandas; it is not imported to find out."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(x, (pandas.DataFrame, pandas.Series))


def _has_arrays(x: Any) -> bool:
    """Whether an argument by name is an array, or holds some, as conditions may."""
    if isinstance(x, _PLAIN):
        return False
    if isinstance(x, dict):
        return any(map(is_array, x.values()))
    if isinstance(x, (tuple, list)):
        return any(map(is_array, x))
    return is_array(x)


def home(decoder: Any) -> Tensor:
    """An empty tensor of the dtype and on the device that a decoder computes in."""
    for own in _weights(decoder):
        dtype = own.dtype if own.dtype in _GEOMETRIC else torch.float32
        return torch.empty(0, dtype=dtype, device=own.device)
    return torch.empty(0, dtype=torch.float64)


def _weights(decoder: Any) -> Iterator[Tensor]:
    for module in reach.modules(decoder):
        yield from (x for x in module.parameters() if x.is_floating_point())
        yield from (x for x in module.buffers() if x.is_floating_point())


def as_tensor(where: str, x: Any, like: Tensor) -> Any:
    """An array as a tensor of the dtype and on the device of another; anything else as it is.

    Raises:
        DTypeError: When it holds anything but numbers.
    """
    if not is_array(x):
        return x
    numbers = _numbers(where, x).astype(np.float64)
    return torch.from_numpy(numbers).to(like)


def _numbers(where: str, x: Any) -> np.ndarray:
    """The numbers of an array or a table.

    Raises:
        DTypeError: When it holds anything else.
    """
    values = np.asarray(x)
    if values.dtype.kind in "fiub":
        return values
    got = f"an array of dtype {values.dtype}"
    if hasattr(x, "dtypes") and hasattr(x, "columns"):
        wrong = [str(name) for name, kind in x.dtypes.items() if kind.kind not in "fiub"]
        got = f"a table with columns {', '.join(wrong[:5])}"
    raise DTypeError(where, "arrays of real numbers", got, "Leave other columns out.")


def _condition(where: str, condition: Any, like: Tensor) -> Any:
    """Conditions in their structure: whole numbers stay what they are."""
    if isinstance(condition, dict):
        return {name: _condition(where, x, like) for name, x in condition.items()}
    if isinstance(condition, (tuple, list)):
        return type(condition)(_condition(where, x, like) for x in condition)
    if not is_array(condition):
        return condition
    values = _numbers(where, condition)
    if values.dtype.kind == "f":
        return torch.from_numpy(values.astype(np.float64)).to(like)
    whole = values.astype(bool if values.dtype.kind == "b" else np.int64)
    return torch.from_numpy(whole).to(like.device)


def as_arrays(found: Any) -> Any:
    """Tensors of a result as arrays, in tuples as well; anything else as it is."""
    if isinstance(found, Tensor):
        return found.detach().cpu().numpy()
    if type(found) is tuple:
        return tuple(map(as_arrays, found))
    return found
