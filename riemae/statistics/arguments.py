"""What functions of statistics take for codes, one mechanism for all of them.

Arrays of numpy and tables of pandas stand for tensors, as they do for a manifold's methods: where
arrays alone are given, tensors that come back are arrays as well. Results that are more than a
tensor (means, components, fitted estimators) hold tensors all the same. A manifold with a
``latent_shape`` takes codes of that shape as well as flat ones; what is computed is flat.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from riemae.geometry.arrays import as_arrays, as_tensor, home, is_array
from riemae.geometry.shaped import flattened
from riemae.solvers.space import expect_space

P = ParamSpec("P")
R = TypeVar("R")

# Arguments that are codes, by name.
_CODES = frozenset("points z mean init center low high".split())
# Arguments that may be arrays, and are looked at as such.
_AS_THEY_ARE = frozenset(("distances", "groups", "second"))
# Where estimators and results keep codes, whose dtype and device others take.
_KEPT = ("mean", "point", "points_", "cluster_centers_")


def takes_codes(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` for codes of all kinds.

    They are those of its argument ``geometry``, or of its owner's.
    """
    return _adapted(function, gives_codes=False)


def takes_and_gives_codes(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` for codes of all kinds, where the tensor that comes back is codes as well."""
    return _adapted(function, gives_codes=True)


def codes_of(where: str, geometry: Any, z: Any) -> Any:
    """Codes of one of several geometries, as a tensor ``(*b, m)``.

    Raises:
        DTypeError: When the geometry is none, or the codes hold anything but numbers.
    """
    expect_space(where, geometry)
    z = as_tensor(where, z, _like([], geometry, None))
    shape = getattr(geometry, "latent_shape", None)
    return z if shape is None else flattened(where, z, shape)


def _adapted(function: Callable[P, R], gives_codes: bool) -> Callable[P, R]:
    where = function.__qualname__.replace(".__init__", "")
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        given = dict(zip(names, args, strict=False)) | kwargs
        geometry = given.get("geometry")
        owner = given.get("self")
        if "geometry" in names:
            # Where it is missing, Python says so below.
            if "geometry" in given:
                expect_space(where, geometry)
        else:
            geometry = getattr(owner, "geometry", None)
        shape = getattr(geometry, "latent_shape", None)
        arrays = any(map(is_array, given.values()))
        if not arrays and shape is None:
            return function(*args, **kwargs)
        tensors = [x for x in given.values() if isinstance(x, Tensor)]
        like = _like(tensors, geometry, None if function.__name__ == "fit" else owner)

        def adapted(name: str, x: Any) -> Any:
            if name not in _AS_THEY_ARE:
                x = as_tensor(where, x, like)
            if shape is not None and name in _CODES:
                x = flattened(where, x, shape)
            return x

        first: Any = [adapted(name, x) for name, x in zip(names, args, strict=False)]
        # Too many arguments: Python says so.
        first += args[len(names) :]
        more: Any = {name: adapted(name, x) for name, x in kwargs.items()}
        found: Any = function(*first, **more)
        if gives_codes and shape is not None and isinstance(found, Tensor):
            found = found.unflatten(-1, shape)
        return as_arrays(found) if arrays and not tensors else found

    return called


def _like(tensors: list[Tensor], geometry: Any, owner: Any) -> Tensor:
    """A tensor of the dtype and on the device that arrays are computed with in."""
    for x in tensors:
        if x.is_floating_point():
            return x
    # Mixtures keep codes in their components.
    for part in (owner, *getattr(owner, "components_", ())):
        for name in _KEPT:
            kept = getattr(part, name, None)
            if isinstance(kept, Tensor):
                return kept
    if geometry is None:
        return torch.empty(0, dtype=torch.float64)
    return home(getattr(geometry, "decoder", getattr(geometry, "tensor", geometry)))
