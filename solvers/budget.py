"""What a call may spend, in decodings and seconds, counted at the space that solvers work on.

One decoding is the decoder's (or the metric's) value at one point. A derivative in one direction
counts as another one, and so does a reverse pass. What is counted is what solvers ask for, so that
the number depends neither on chunks nor on the machine.

A solver is stopped *before* the call that would exceed the budget, and keeps the curves that it had
before its step. Looks at curves, which say how long they are, are counted but always made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from riemae.numerics.checks import expect_range
from riemae.solvers import hooks
from riemae.solvers.energy import Expansion
from riemae.solvers.products import Product, Products
from riemae.solvers.space import Space


class Exhausted(Exception):
    """A budget does not allow the next call; nobody outside of the solvers sees it."""


@dataclass
class Budget:
    """What may still be spent.

    Attributes:
        decodings: In all; None for any number.
        deadline: When time is up, by ``time.monotonic``; None for never.
        outer: The budget of the call that this call is a part of.
        used: Decodings so far.
        refused: Whether a call has been refused: then all that follow are.
    """

    decodings: int | None = None
    deadline: float | None = None
    outer: Budget | None = None
    used: int = 0
    refused: bool = False

    @property
    def spent(self) -> bool:
        """Whether nothing is left."""
        if self.refused or (self.outer is not None and self.outer.spent):
            return True
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return True
        return self.decodings is not None and self.used >= self.decodings

    def charge(self, decodings: int, strict: bool) -> None:
        """Count decodings that are about to be made.

        Args:
            decodings: How many.
            strict: Whether to refuse more than are left.

        Raises:
            Exhausted: When they are refused.
        """
        if strict and not self._allows(decodings):
            self.refused = True
            raise Exhausted
        self.used += decodings
        if self.outer is not None:
            self.outer.charge(decodings, strict=False)

    def _allows(self, decodings: int) -> bool:
        if self.refused:
            return False
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return False
        if self.decodings is not None and self.used + decodings > self.decodings:
            return False
        return self.outer is None or self.outer._allows(decodings)


# The budget of the call under way, for calls inside of it.
_CURRENT: ContextVar[Budget | None] = ContextVar("riemae_budget", default=None)


@contextmanager
def limited(
    where: str, max_decodings: int | None, max_seconds: float | None
) -> Iterator[Budget | None]:
    """The budget of a call, within that of the call around it; None where nothing is limited.

    Args:
        where: The call, for errors.
        max_decodings: Decodings in all.
        max_seconds: Seconds from now.

    Raises:
        OptionError: For a number that is not positive.
    """
    check_limits(where, max_decodings, max_seconds)
    outer = _CURRENT.get()
    if max_decodings is None and max_seconds is None:
        yield outer
        return
    deadline = None if max_seconds is None else time.monotonic() + max_seconds
    budget = Budget(max_decodings, deadline, outer)
    token = _CURRENT.set(budget)
    try:
        yield budget
    finally:
        _CURRENT.reset(token)


def check_limits(where: str, max_decodings: int | None, max_seconds: float | None) -> None:
    """Refuse limits that are not positive numbers.

    Raises:
        OptionError: For any other.
    """
    if max_decodings is not None:
        hint = "It counts values of the decoder at one point: try max_decodings=1_000_000."
        expect_range(where, "max_decodings", max_decodings, 1, integer=True, hint=hint)
    if max_seconds is not None:
        hint = "Try max_seconds=60."
        expect_range(where, "max_seconds", max_seconds, 0.0, above=True, hint=hint)


class Metered:
    """A space whose calls are charged to a budget; it offers the hooks that the space has.

    Args:
        space: The space.
        budget: What is charged.
        strict: Whether calls beyond the budget are refused.
    """

    def __init__(self, space: Space, budget: Budget, strict: bool) -> None:
        self.space = space
        self.budget = budget
        self.strict = strict
        # Hooks are recognised by their names, so only those of the space may be here.
        for name in ("labels", "restored"):
            if hasattr(space, name):
                setattr(self, name, getattr(space, name))
        priced: dict[str, Callable[..., int]] = {
            "embedded": _points,
            "pulled": _twice,
            "velocities": _sweep,
            "ambient_features": _points,
        }
        for name, price in priced.items():
            if hasattr(space, name):
                setattr(self, name, self._charged(getattr(space, name), price))

    def _charged(self, call: Callable[..., Any], price: Callable[..., int]) -> Callable[..., Any]:
        def charged(points: Tensor, *rest: Any) -> Any:
            self._charge(price(points))
            return call(points, *rest)

        return charged

    def _charge(self, decodings: int) -> None:
        self.budget.charge(decodings, self.strict)

    def metric(self, z: Tensor) -> Tensor:
        """As the space's."""
        self._charge(_sweep(z))
        return self.space.metric(z)

    def norm(self, z: Tensor, v: Tensor) -> Tensor:
        """As the space's."""
        self._charge(2 * _points(z))
        return self.space.norm(z, v)

    def acceleration(self, z: Tensor, v: Tensor) -> Tensor:
        """As the space's: a sweep, and one second derivative."""
        self._charge(_sweep(z) + _points(z))
        return self.space.acceleration(z, v)

    def squared_chords(self, nodes: Tensor) -> Tensor:
        """As the space's; with a reverse pass where gradients are recorded."""
        passes = 2 if torch.is_grad_enabled() else 1
        self._charge(passes * _points(nodes))
        return self.space.squared_chords(nodes)

    def expand(self, nodes: Tensor, second_order: bool = True) -> Expansion:
        """As the space's: values; in the interior m tangents, and as many second-order passes."""
        points = _points(nodes)
        moving = _points(nodes[:, 1:-1])
        orders = 2 if second_order else 1
        self._charge(points + orders * moving * nodes.shape[-1])
        return self.space.expand(nodes, second_order)

    def residual(self, nodes: Tensor) -> Tensor | None:
        """As the space's."""
        self._charge(2 * _points(nodes))
        return self.space.residual(nodes)

    def ambient_distance(self, z0: Tensor, z1: Tensor) -> Tensor | None:
        """As the space's."""
        self._charge(2 * _points(z0))
        return self.space.ambient_distance(z0, z1)

    def energy_and_gradient(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """As the space's: a forward and a reverse pass."""
        self._charge(2 * _points(nodes))
        return hooks.energy_and_gradient(self.space, nodes)

    def between(self, z0: Tensor, z1: Tensor) -> Metered:
        """As the space's, charged to the same budget; what it keeps is paid for at each use."""
        return Metered(hooks.between(self.space, z0, z1), self.budget, self.strict)

    def products(self, nodes: Tensor) -> Products:
        """As the space's: a forward and a reverse pass, and as much for every product."""
        price = 2 * _points(nodes)
        self._charge(price)
        found = hooks.products(self.space, nodes)

        def charged(product: Product) -> Product:
            def applied(v: Tensor) -> Tensor:
                self._charge(price)
                return product(v)

            return applied

        known = found.gauss_newton
        return replace(
            found,
            hessian=charged(found.hessian),
            gauss_newton=None if known is None else charged(known),
        )


def metered(space: Space, budget: Budget | None) -> Space:
    """The space with its calls charged to a budget, if there is one."""
    if budget is None:
        return space
    return Metered(space, budget, strict=False)


def strict(space: Space) -> Space:
    """The space for a solver: calls beyond the budget are refused."""
    if isinstance(space, Metered):
        return Metered(space.space, space.budget, strict=True)
    return space


def lenient(space: Space) -> Space:
    """The space for looks at curves: calls are counted, and never refused."""
    if isinstance(space, Metered):
        return Metered(space.space, space.budget, strict=False)
    return space


def bare(space: Space) -> Space:
    """The space itself."""
    if isinstance(space, Metered):
        return space.space
    return space


def spent(space: Space) -> bool:
    """Whether a space has a budget, of which nothing is left."""
    return isinstance(space, Metered) and space.budget.spent


def _points(z: Tensor) -> int:  # (…, m)
    return z.shape[:-1].numel()


def _twice(z: Tensor) -> int:  # (…, m)
    """Values and a reverse pass."""
    return 2 * _points(z)


def _sweep(z: Tensor) -> int:  # (…, m)
    """Values and m tangents."""
    return _points(z) * (1 + z.shape[-1])
