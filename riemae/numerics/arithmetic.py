"""The arithmetic that a function of rows computes in, which may be coarser than that of its points.

Half precision inside (``net(z.bfloat16()).float()``, ``torch.autocast``), single precision behind
float64 points, and matrix products with fewer bits: results then have fewer digits than their
dtype. How many is measured, by the same function in float64.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from riemae.numerics.probe import FAILURES, RowMap, generator, normal

# An error of this size is not one of rounding.
LARGEST = 0.25
# Errors below so many times the spacing of the dtype are its own.
_UNTOUCHED = 256
_HALF = (torch.float16, torch.bfloat16)


def is_half(dtype: torch.dtype) -> bool:
    """Whether a dtype has 16 bits, too few to compute geometry in."""
    return dtype in _HALF


def roundoff(f: RowMap, points: Tensor) -> float:  # (k, …)
    """Relative rounding of a function's values and slopes; 0 where it is that of the points' dtype.

    It is the spacing of the coarsest numbers inside, or more where the same function in float64
    shows more.

    Args:
        f: Rows to rows.
        points: Where it is looked at.
    """
    dtype = coarsest(f, points)
    if dtype is None:
        return 0.0
    errors: list[float] = []
    for look in (_values, _slopes):
        try:
            found = look(f, points)
            with double_arithmetic():  # around reverse passes, too
                exact = look(f, points.double())
            error = _distance(found, exact)
        except FAILURES:  # no copy in float64 can be made, or no derivative taken
            continue
        if error < LARGEST:
            errors.append(error)
    spacing = torch.finfo(dtype).eps
    if errors and max(errors) < _UNTOUCHED * torch.finfo(points.dtype).eps:
        return 0.0  # what is converted does not depend on the points
    return max([spacing, *errors])


def coarsest(f: RowMap, points: Tensor) -> torch.dtype | None:
    """The coarsest dtype to which a function converts; None where none is coarser than the points'.

    None as well where this cannot be seen.
    """
    own = torch.finfo(points.dtype).eps
    watcher = _Watcher()
    try:
        with torch.no_grad(), watcher:
            f(points.detach())
    except FAILURES:
        return None
    coarse = [dtype for dtype in watcher.found if torch.finfo(dtype).eps > own]
    return max(coarse, key=lambda dtype: torch.finfo(dtype).eps, default=None)


def double_arithmetic() -> AbstractContextManager[Any]:
    """A context in which all floating-point arithmetic is done in float64, reverse passes too."""
    return _Double()


def in_double(f: RowMap) -> RowMap:
    """The same function with all arithmetic in float64, whatever it converts to.

    It raises an error where that is not possible.
    """

    def exact(points: Tensor) -> Tensor:
        with _Double():
            return f(points)

    return exact


def _values(f: RowMap, points: Tensor) -> Tensor:  # (k, …) -> (k, D)
    with torch.no_grad():
        return f(points).detach().flatten(1).clone()


def _slopes(f: RowMap, points: Tensor) -> Tensor:  # (k, …) -> (k, …)
    """``Jᵀw`` for one w."""
    with torch.enable_grad():
        start = points.detach().clone().requires_grad_()
        x = f(start)
        w = normal(x, *x.shape, source=generator())
        (slope,) = torch.autograd.grad((w * x).sum(), start)
    return slope


def _distance(x: Tensor, exact: Tensor) -> float:  # (k, D), (k, D)
    """The root mean square of the distance, relative to that of the rows that are finite."""
    finite = (x.isfinite() & exact.isfinite()).flatten(1).all(1)
    gap = (x[finite].double() - exact[finite].double()).norm()
    size = exact[finite].double().norm()
    return float(gap / size) if bool(size > 0) else 0.0


_HIDDEN: set[type] = set()  # modes that the compiler has been told not to follow


class _Mode(TorchDispatchMode):
    """A dispatch mode that torch.compile does not look into."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Else the first use imports the compiler, which takes longer than a geodesic.
        return False

    def __enter__(self) -> Any:
        # A compiled function inside would have the compiler follow what is done here, too, once for
        # every operation, until it warns of the many times.
        kind = type(self)
        if "torch._dynamo" in sys.modules and kind not in _HIDDEN:
            _HIDDEN.add(kind)
            hidden = torch.compiler.disable(kind.__torch_dispatch__)
            # A method is exchanged for itself on purpose, which mypy takes for a slip.
            kind.__torch_dispatch__ = hidden  # type: ignore[method-assign]
        return super().__enter__()


class _Watcher(_Mode):
    """Collects the floating-point dtypes of results that are coarser than what they are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            given = [x for x in args if isinstance(x, Tensor) and x.is_floating_point()]
            if any(torch.finfo(x.dtype).eps < torch.finfo(out.dtype).eps for x in given):
                self.found.add(out.dtype)
        return out


class _Double(_Mode):
    """Every operation gets float64 in place of other floating-point numbers, and makes float64."""

    def __enter__(self) -> Any:
        # Recurrent layers compare the dtypes of input and weights before they compute, except under
        # autocast, whose conversions are operations like others and so end in float64.
        self._autocast = torch.autocast("cpu", torch.bfloat16, cache_enabled=False)
        self._autocast.__enter__()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        super().__exit__(*reason)
        self._autocast.__exit__(*reason)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        wanted = given.get("dtype")
        if wanted is not None and wanted.is_floating_point:
            given["dtype"] = torch.float64
        aliases = [argument.alias_info for argument in func._schema.arguments]
        known = [alias for alias in aliases if alias is not None]
        if known and not any(alias.is_write for alias in known):
            return func(*args, **given)  # a view, of numbers of any kind
        target = torch.float64
        if known and isinstance(args[0], Tensor):  # written into as it is
            target = args[0].dtype
        if not target.is_floating_point:
            return func(*args, **given)

        def converted(x: Any) -> Any:
            floating = isinstance(x, Tensor) and x.is_floating_point()
            return x.to(target) if floating and x.dtype != target else x

        return func(*tree_map(converted, args), **tree_map(converted, given))
