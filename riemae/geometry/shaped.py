"""Latent codes that are not flat: feature maps, token sequences.

Everything below works on codes ``(*b, m)``. A method of a manifold with a ``latent_shape`` flattens
points and tangents that arrive in that shape, and gives the points and tangents that it returns
that shape.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from riemae.exceptions import ShapeError

# Arguments that are points or tangents, by name.
_CODES = frozenset("z z0 z1 u v points queries a b init curve".split())
# Methods that return points or tangents.
_RETURNING = frozenset("pullback metric_product acceleration gradient exp log transport".split())


def shaped_codes(method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of a manifold, for codes of its ``latent_shape``."""
    names = list(inspect.signature(method).parameters)[1:]
    places = [i for i, name in enumerate(names) if name in _CODES]
    # All of its positional arguments are points.
    variadic = method.__name__ == "as_space"
    if not places and not variadic:
        return method

    @functools.wraps(method)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        shape = self.latent_shape
        if shape is None:
            return method(self, *args, **kwargs)
        where = f"Manifold.{method.__name__}"
        given = [
            flattened(where, x, shape) if variadic or i in places else x for i, x in enumerate(args)
        ]
        named = {
            name: flattened(where, x, shape) if name in _CODES else x for name, x in kwargs.items()
        }
        out = method(self, *given, **named)
        if method.__name__ in _RETURNING and isinstance(out, Tensor):
            return out.unflatten(-1, shape)
        return out

    return called


def flattened(where: str, x: Any, shape: tuple[int, ...]) -> Any:
    """Codes as ``(*b, m)``; those that are flat already, and what is not a tensor, as they are.

    Raises:
        ShapeError: For any other shape.
    """
    if not isinstance(x, Tensor) or not x.ndim:
        return x
    if x.shape[-len(shape) :] == shape:
        return x.flatten(-len(shape))
    if x.shape[-1] == math.prod(shape):
        return x
    axes = ", ".join(map(str, shape))
    raise ShapeError(
        where,
        f"codes of shape (*b, {axes}), or flat ones",
        str(tuple(x.shape)),
        "Batch axes come first; the axes of one code come last.",
    )
