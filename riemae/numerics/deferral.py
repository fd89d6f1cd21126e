"""Checks of values that are answered together, in one look.

A check reads a number back from the device, which then has nothing to do. In a training step, where
all checks pass but for rare exceptions, they are noted instead, everything is computed as if they
had passed, and one number is read at the end. Where one has not passed, the same is computed again
with checks at their place: it raises what it would have raised, or goes the way it would have gone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from riemae.numerics.transforms import transformed

Result = TypeVar("Result")


class _Noted:
    """Checks to be answered: masks, and sums that are finite if nothing else was found."""

    def __init__(self) -> None:
        self.masks: list[Tensor] = []
        self.sums: list[Tensor] = []

    def passed(self) -> bool:
        """Whether all of them hold; one look at each device."""
        sums = [x.to(self.sums[0]) for x in self.sums]
        finite = [torch.stack(sums).isfinite().all()] if sums else []
        masks = [*self.masks, *finite]
        if not masks:
            return True
        first = masks[0].device
        return bool(torch.stack([mask.to(first) for mask in masks]).all())


class _Here(threading.local):
    """What the present thread is noting."""

    noted: _Noted | None = None


_HERE = _Here()


def holds(ok: Tensor) -> bool:
    """Whether a condition holds everywhere.

    True as well where nobody can look (meta device, inside ``vmap``), and where the check is noted.
    """
    if ok.is_meta or noted_as_true(ok):
        return True
    try:
        return bool(ok.all())
    except RuntimeError:  # vmap forbids control flow that depends on values
        return True


def noted_as_true(ok: Tensor) -> bool:
    """Whether it is noted that a condition must hold everywhere; else the caller has to look."""
    noted = _noting(ok)
    if noted is None:
        return False
    noted.masks.append(ok.all())
    return True


def noted_as_finite(total: Tensor) -> bool:
    """Whether it is noted that a sum must be finite; else the caller has to look."""
    noted = _noting(total)
    if noted is None:
        return False
    noted.sums.append(total)
    return True


@contextmanager
def immediate() -> Iterator[None]:
    """Answer checks at once inside: for probes, which ask to find out, and at other points."""
    with _noted_in(None):
        yield


@contextmanager
def left_to_the_caller() -> Iterator[None]:
    """Answer checks with yes inside: for a caller that looks at all that comes of it itself."""
    with _noted_in(_Noted()):
        yield


def in_one_look(f: Callable[[], Result], generator: torch.Generator | None) -> Result:
    """``f()``, with its checks answered at the end; again with checks at their place if one fails.

    Args:
        f: What is computed. It may be called twice, and must be the same then.
        generator: What it draws from, which is put back before the second time. Without one, checks
            are answered at their place: torch's own generators are not touched.
    """
    if generator is None or _HERE.noted is not None or transformed():
        return f()
    state = generator.get_state()
    noted = _Noted()
    try:
        with _noted_in(noted):
            found = f()
    except Exception:  # perhaps of numbers that a check would have refused
        if noted.passed():
            raise
    else:
        if noted.passed():
            return found
    generator.set_state(state)
    return f()


@contextmanager
def _noted_in(noted: _Noted | None) -> Iterator[None]:
    before = _HERE.noted
    _HERE.noted = noted
    try:
        yield
    finally:
        _HERE.noted = before


def _noting(x: Tensor) -> _Noted | None:
    noted = _HERE.noted
    return None if noted is None or x.is_meta or transformed() else noted
