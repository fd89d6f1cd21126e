"""Ways to differentiate a map ``f: (b, m) -> (b, D)``, one chunk of points at a time."""

from riemae.differential.modes.base import BatchedMap, Covectors, Mode, basis
from riemae.differential.modes.differences import Differences
from riemae.differential.modes.nested import Nested, Reverse
from riemae.differential.modes.order import MODES, NESTED, PLAIN, PORTABLE
from riemae.differential.modes.plain import Plain
from riemae.differential.modes.taylor import Taylor

__all__ = [
    "MODES",
    "NESTED",
    "PLAIN",
    "PORTABLE",
    "BatchedMap",
    "Covectors",
    "Differences",
    "Mode",
    "Nested",
    "Plain",
    "Reverse",
    "Taylor",
    "basis",
]
