"""Docstrings of riemae, as reStructuredText.

They are written to be read in a terminal: ``|x|`` is a norm there and ``*b`` stands for batch
axes, where reStructuredText sees a substitution and emphasis.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

LITERAL = re.compile(r"(``.+?``|`.+?`_?)")


def escaped(line: str) -> str:
    """The line, with bars and stars outside literals taken as they are."""
    parts = LITERAL.split(line)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(?<!\\)\|", r"\\|", parts[i])
        parts[i] = re.sub(r"(?<![\\*])\*(?!\*)(?=\w)", r"\\*", parts[i])
    return "".join(parts)


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Escape a docstring in place, except its examples."""
    lines[:] = [line if line.lstrip().startswith(">>>") else escaped(line) for line in lines]


def not_ours(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skip methods that scikit-learn adds to estimators by itself."""
    module = getattr(obj, "__module__", None) or ""
    return True if module.startswith("sklearn.") or name.endswith("_request") else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Come before napoleon, which reads the same event."""
    app.connect("autodoc-skip-member", not_ours)
    app.connect("autodoc-process-docstring", process, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
