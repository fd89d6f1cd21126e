"""What a loss asks for, read from the names of its parameters.

===========  =======================================================================================
parameter    what the loss gets
===========  =======================================================================================
manifold     the decoder as a :class:`~riemae.Manifold` under the ambient metric
z            the codes of the batch ``(k, m)``, with their gradient; samples of the posterior in a
             variational autoencoder
x            the data of the batch ``(k, *shape)``
encoder      a function of data to codes, ``(k, *shape) -> (k, m)``
index        the numbers of the samples in the training data ``(k,)``, counted from 0
neighbor     one neighbour of each sample ``(k, *shape)``, by a graph of nearest neighbours
weights      the weights of the samples ``(k,)``, 1 on average over the data, or None
generator    the source of all randomness of this step
decoded      the decoded codes ``(k, *shape)``; but a loss with ``decoded=False`` offers to return
             them: it may be called with ``decoded=True``, and then returns ``(loss, f(z))``
===========  =======================================================================================

A loss whose first two parameters have other names, such as ``(M, z)``, gets manifold and codes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from riemae.exceptions import OptionError

NAMES = (
    "manifold",
    "z",
    "x",
    "encoder",
    "index",
    "neighbor",
    "weights",
    "generator",
    "decoded",
)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Wants:
    """What one loss asks for.

    Attributes:
        positional: Whether it gets manifold and codes as its first two arguments.
        names: What it gets by name.
        needed: Those among the names that have no default.
        shares: Whether it can return the decoded codes.
    """

    positional: bool = True
    names: frozenset[str] = frozenset()
    needed: frozenset[str] = frozenset()
    shares: bool = False

    @classmethod
    def of(cls, name: str, loss: Callable[..., Any], options: Mapping[str, Any]) -> Wants:
        """Read the signature of a loss.

        Args:
            name: Of the term, for the error.
            loss: The loss.
            options: Arguments that the loss gets from elsewhere.

        Raises:
            OptionError: When it has a parameter without a default that nobody can fill.
        """
        try:
            found = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss)
        except (TypeError, ValueError):  # a function that is not written in Python
            return cls()
        takes_options = any(
            p.kind is inspect.Parameter.VAR_KEYWORD for p in found.parameters.values()
        )
        surplus = [] if takes_options else sorted(set(options) - set(found.parameters))
        if surplus:
            known = ", ".join(p for p in found.parameters if p not in NAMES) or "none"
            hint = "Correct their names in Term(…, options={…})."
            raise OptionError(
                "terms", f"options of {name!r} among {known}", ", ".join(surplus), hint
            )
        parameters = [p for p in found.parameters.values() if p.name not in options]
        ordered = [p for p in parameters if p.kind in _POSITIONAL]
        takes_any = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
        positional = not ordered and takes_any
        if _by_place(ordered) and (len(ordered) > 1 or takes_any):
            positional = True
            parameters = [p for p in parameters if p not in ordered[:2]]
        shares = any(p.name == "decoded" and p.default is False for p in parameters)
        by_name = [p for p in parameters if p.name in NAMES]
        names = {p.name for p in by_name} - ({"decoded"} if shares else set())
        needed = {p.name for p in by_name if p.default is inspect.Parameter.empty}
        unfilled = [p.name for p in parameters if p.name not in NAMES and _is_required(p)]
        if unfilled:
            expected = f"a loss {name!r} with parameters among {', '.join(NAMES)}"
            hint = "Give the others a default, or a value in Term(…, options={…})."
            raise OptionError("terms", expected, ", ".join(unfilled), hint)
        return cls(positional, frozenset(names), frozenset(needed), shares)


def _is_required(p: inspect.Parameter) -> bool:
    return p.default is inspect.Parameter.empty and p.kind not in _VARIADIC


def _by_place(ordered: Sequence[inspect.Parameter]) -> bool:
    """Whether the first two parameters are manifold and codes under other names, as ``(M, z)``."""
    places = zip(ordered[:2], ("manifold", "z"), strict=False)
    fits = all(_is_foreign(p) or p.name == own for p, own in places)
    return fits and any(map(_is_foreign, ordered[:2]))


def _is_foreign(p: inspect.Parameter) -> bool:
    """Whether it can only be filled by its place."""
    unnamed = p.kind is inspect.Parameter.POSITIONAL_ONLY
    return unnamed or (p.name not in NAMES and _is_required(p))
