"""Rules of Taylor mode: how each function of torch propagates derivatives.

Importing a module here enters its rules into :data:`riemae.differential.jets.RULES`.
"""

from riemae.differential.rules import elementwise, generic, products, queries, structural, sums
from riemae.differential.rules import inplace as inplace

__all__ = ["elementwise", "generic", "inplace", "products", "queries", "structural", "sums"]
