"""Rules of Taylor mode: how each function of torch propagates derivatives.

Importing a module here enters its rules into :data:`riemae.differential.jets.RULES`.
"""

from riemae.differential.rules import (
    attention,
    contractions,
    convolutions,
    elementwise,
    generic,
    inplace,
    matrices,
    normalising,
    norms,
    operators,
    products,
    queries,
    recurrent,
    scans,
    selections,
    structural,
    sums,
)

__all__ = [
    "attention",
    "contractions",
    "convolutions",
    "elementwise",
    "generic",
    "inplace",
    "matrices",
    "normalising",
    "norms",
    "operators",
    "products",
    "queries",
    "recurrent",
    "scans",
    "selections",
    "structural",
    "sums",
]
