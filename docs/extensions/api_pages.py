"""Every public name is on a page of ``docs/api``.

Names are placed by hand, by concept. What nobody has placed is put at the end of the page of its
package, under *Also*, so that the site is complete as soon as a name is public.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import riemae

if TYPE_CHECKING:
    from sphinx.application import Sphinx

API = Path(__file__).parents[1] / "api"
# Parts of the house without names for users; the command line has a page of its own.
INTERNAL = ("cli", "differential.modes", "differential.rules", "distributions", "geometry")
INTERNAL += ("numerics", "solvers.flows", "solvers.methods")
# Where names go that nobody has placed, by the beginning of their module.
HOMES = {
    "riemae.autoencoders": "autoencoders",
    "riemae.interop": "interop",
    "riemae.plotting": "plotting",
    "riemae.reporting": "reports",
    "riemae.citations": "reports",
    "riemae.environment": "reports",
    "riemae.solvers": "solvers",
    "riemae.storage": "data_and_files",
    "riemae": "manifold",
}
DIRECTIVE = re.compile(r"^\.\. (?:auto|py:)(\w+):: ([\w.]+)((?:\n {3}:\w.*)*)", re.M)


def is_internal(name: str) -> bool:
    """Whether a module is no business of users."""
    inner = name.removeprefix("riemae.")
    return any(inner == part or inner.startswith(f"{part}.") for part in INTERNAL)


def public_modules() -> Iterator[ModuleType]:
    """Modules with a table of names, but for those whose names their package hands on."""
    yield riemae
    for found in pkgutil.walk_packages(riemae.__path__, "riemae."):
        if is_internal(found.name) or found.name.rpartition(".")[2].startswith("_"):
            continue
        module = importlib.import_module(found.name)
        parent = importlib.import_module(found.name.rpartition(".")[0])
        handed_on = set(getattr(parent, "__all__", ()))
        if hasattr(module, "__all__") and not set(module.__all__) <= handed_on:
            yield module


def placed() -> tuple[set[str], set[str]]:
    """Names that pages place by hand, and modules that they list whole."""
    found = [DIRECTIVE.findall(path.read_text("utf-8")) for path in sorted(API.glob("*.md"))]
    rows = [row for rows in found for row in rows]
    whole = {name for kind, name, options in rows if kind == "module" and ":members:" in options}
    return {name for _, name, _ in rows}, whole


def kind_of(value: Any) -> str:
    """The directive that documents an object."""
    if inspect.isclass(value):
        return "autoclass"
    if inspect.ismodule(value):
        return "automodule"
    return "autofunction" if callable(value) else "autodata"


def unplaced() -> dict[str, list[str]]:
    """Directives for what nobody has placed, by page."""
    names, whole = placed()
    found: dict[str, list[str]] = {}
    for module in public_modules():
        if module.__name__ in whole:
            continue
        for name in module.__all__:
            full = f"{module.__name__}.{name}"
            value = getattr(module, name)
            inside = inspect.ismodule(value) and any(n.startswith(f"{full}.") for n in names)
            if name.startswith("__") or full in names or inside or is_internal(full):
                continue
            if inspect.ismodule(value) and hasattr(value, "__all__"):
                continue  # it comes by itself
            if module is not riemae and getattr(riemae, name, None) is value:
                continue  # riemae hands it on
            home = module.__name__ if module is not riemae else getattr(value, "__module__", "")
            add(found, home or "riemae", kind_of(value), full)
    for name, value in vars(riemae.Manifold).items():
        full = f"riemae.Manifold.{name}"
        if not name.startswith("_") and full not in names:
            kind = "autoproperty" if isinstance(value, property) else "automethod"
            add(found, "riemae", kind, full)
    return found


def add(found: dict[str, list[str]], module: str, kind: str, full: str) -> None:
    """Put a directive on the page of its module."""
    home = next((page for start, page in HOMES.items() if module.startswith(start)), "manifold")
    options = "\n   :members:" if kind in ("autoclass", "automodule") else ""
    found.setdefault(home, []).append(f".. {kind}:: {full}{options}")


def complete(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add what nobody has placed to the pages."""
    rows = unplaced().get(docname.removeprefix("api/")) if docname.startswith("api/") else None
    if rows:
        source[0] += "\n## Also\n\n```{eval-rst}\n" + "\n\n".join(rows) + "\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    """Complete the pages when they are read."""
    app.connect("source-read", complete)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
