"""Which cases of large tables the ordinary run of the tests takes.

Some files try every quantity on every family, metric or decoder: thousands of cases of a few
mechanisms. The ordinary run takes every second or third case of each test there, another one from
test to test, so that every test and every case takes part. ``RIEMAE_THOROUGH=1`` takes all of them,
as ``make thorough`` does.
"""

from __future__ import annotations

import os
from collections import defaultdict

import pytest

# One of so many cases is taken.
SAMPLED = {
    "tests/ambient/test_ambient.py": 2,
    "tests/ambient/test_fisher.py": 2,
    "tests/ambient/test_geoopt.py": 2,
    "tests/ambient/test_product.py": 2,
    "tests/differential/test_arithmetic.py": 2,
    "tests/differential/test_differential.py": 2,
    "tests/differential/test_taylor.py": 2,
    "tests/differential/test_zoo.py": 2,
    "tests/distributions/test_counts.py": 2,
    "tests/distributions/test_families.py": 2,
    "tests/geometry/test_conditions.py": 2,
    "tests/solvers/test_quasi_newton.py": 2,
    "tests/test_manifold.py": 2,
    "tests/testing/test_manifold.py": 2,
    "tests/device/": 3,
}


def share_of(path: str) -> int:
    """One of how many cases is taken of a test file."""
    return next((share for name, share in SAMPLED.items() if path.startswith(name)), 1)


def sampled(
    items: list[pytest.Item], everything: bool
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests that are taken, and those that are left out, both in their order."""
    if everything or os.environ.get("RIEMAE_THOROUGH"):
        return items, []
    cases: dict[str, int] = defaultdict(int)
    functions: dict[str, dict[str, int]] = defaultdict(dict)
    taken, left = [], []
    for item in items:
        path, function = item.nodeid.split("::", 1)
        function = function.split("[", 1)[0]
        share = share_of(path)
        place = functions[path].setdefault(function, len(functions[path]))
        case = cases[f"{path}::{function}"]
        cases[f"{path}::{function}"] += 1
        single = "[" not in item.nodeid
        # The first case is always taken: a test with few cases is never without any.
        wanted = single or case == 0 or (case + place) % share == 0
        (taken if wanted else left).append(item)
    return taken, left
