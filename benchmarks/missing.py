"""Prints which packages of the tests a Python lacks, those that they need in turn included.

    python benchmarks/missing.py pyproject.toml

Whatever torch needs is left to it.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata
from pathlib import Path

# Of the extras, what the tests of a device use.
EXTRAS = ("train",)
TESTS = ("pytest>=8",)


def direct(pyproject: str) -> list[str]:
    """Requirements in the text of a pyproject.toml, by a pattern: Python 3.10 reads no TOML."""
    found = list(TESTS)
    for key in ("dependencies", *EXTRAS):
        block = re.search(rf"^{key} = \[(.*?)\]", pyproject, re.DOTALL | re.MULTILINE)
        assert block is not None, key
        found += re.findall(r'"([^"]+)"', block[1])
    return found


def name_of(requirement: str) -> str:
    """The package of a requirement such as ``scipy>=1.10``."""
    return re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0]


def missing(requirements: list[str]) -> list[str]:
    """Requirements that are not installed, also those of packages that are."""
    seen = {"torch"}
    absent = []
    queue = list(requirements)
    while queue:
        requirement = queue.pop()
        name = re.sub(r"[-_.]+", "-", name_of(requirement)).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            further = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            absent.append(requirement.split(";")[0].strip().replace(" ", ""))
            continue
        # Those under a condition are for other systems or extras.
        queue += [r for r in further if ";" not in r]
    return sorted(absent)


if __name__ == "__main__":
    wanted = direct(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(" ".join(missing(wanted)))
