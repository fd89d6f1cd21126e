"""Kinds of ambient metrics: which method a subclass writes, and which base gives the rest."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from riemae.exceptions import AmbientError

# The method that a subclass writes, and the base that gives the rest.
BASES = {
    "features": "FeatureMetric",
    "factor_product": "FactorMetric",
    "diagonal": "DiagonalMetric",
    "matrix": "MatrixMetric",
    "product": "ProductMetric",
    "inner": "InnerMetric",
}

Metric = TypeVar("Metric", bound=nn.Module)

# Classes that have passed.
_PASSED: weakref.WeakSet[type] = weakref.WeakSet()


def check_kind(kind: type, bases_of: Callable[[], tuple[type, ...]]) -> None:
    """Refuse a metric that writes no method from which the rest follows.

    Args:
        kind: The metric's class.
        bases_of: Gives the bases.

    Raises:
        AmbientError: When it has none of the bases, or does not write the base's method.
    """
    if kind in _PASSED:
        return
    shipped = bases_of()
    bases = {base.__name__ for base in kind.__mro__ if base in shipped}
    own: set[str] = set()
    for base in kind.__mro__:
        if base not in shipped:
            own.update(vars(base))
    written = [name for name in BASES if name in own]
    if any(BASES[name] in bases for name in written):
        _PASSED.add(kind)
        return
    if bases & set(BASES.values()):
        possible = [name for name, base in BASES.items() if base in bases]
        wanted = " or ".join(possible)
        got = "one without it"
        if written:
            got = f"one that overrides {', '.join(written)}"
        hint = f"Write {wanted} in {kind.__name__}, or take another base."
        raise AmbientError(kind.__name__, f"a metric that overrides {wanted}", got, hint)
    if written:
        first = written[0]
        hint = f"It overrides {first}: take {BASES[first]} as its base."
    else:
        hint = "Take DiagonalMetric, say, and write its method diagonal(x)."
    expected = f"a subclass of one of {', '.join(BASES.values())}"
    raise AmbientError(kind.__name__, expected, "one of AmbientMetric alone", hint)


def as_kind(metric: nn.Module, kind: type[Metric]) -> Metric:
    """A metric of another class with the settings and tensors of a given one."""
    other = kind.__new__(kind)
    other.__dict__.update(metric.__dict__)
    return other
