"""The rule for every function without one of its own: ``torch.func.jvp`` through it alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from riemae.differential.jets import ANY_OTHER, Jet, name_of, rule, viewed
from riemae.differential.placement import placed
from riemae.differential.tangents import plus
from riemae.differential.tape import QuadraticBend, Tape
from riemae.numerics.threads import jvp

Values = tuple[Tensor, ...]

# Names of functions that came here, where somebody wants to know (:func:`watched`).
_SEEN: ContextVar[list[str] | None] = ContextVar("seen", default=None)


@contextmanager
def watched() -> Iterator[list[str]]:
    """Collect the names of functions that have no rule of their own."""
    names: list[str] = []
    token = _SEEN.set(names)
    try:
        yield names
    finally:
        _SEEN.reset(token)


@rule(ANY_OTHER)
def generic(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any function, by forward mode through it alone."""
    seen = _SEEN.get()
    if seen is not None:
        seen.append(name_of(func))
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Jet)]
    jets: list[Jet] = [leaves[i] for i in places]

    def call(*values: Tensor) -> Any:
        args, kwargs = pytree.tree_unflatten(_filled(leaves, places, values), spec)
        return func(*args, **kwargs)

    out = call(*(x.value for x in jets))
    results, shape = pytree.tree_flatten(out)
    smooth = _smooth_places(func, results)
    if not smooth:
        return out

    def f(*values: Tensor) -> Values:
        results = pytree.tree_flatten(call(*values))[0]
        return tuple(results[i] for i in smooth)

    # Which axis is that of the points is known only where all arguments have it in front.
    ahead = 1 if all(x.ahead == 1 for x in jets) else None
    smooth_results = [results[i] for i in smooth]
    firsts, seconds = _derivatives(f, jets, smooth_results, ahead)
    for i, first, second in zip(smooth, firsts, seconds, strict=True):
        results[i] = Jet(results[i], first, second, jets[0].tape, ahead)
    viewed(jets, results)
    return pytree.tree_unflatten(results, shape)


def _filled(leaves: Sequence[Any], places: Sequence[int], values: Values) -> list[Any]:
    """Arguments with values at the places of jets."""
    filled = list(leaves)
    for i, value in zip(places, values, strict=True):
        filled[i] = value
    return filled


def _smooth_places(func: Any, results: Sequence[Any]) -> list[int]:
    """Which results have derivatives: tensors of real numbers.

    Raises:
        NotImplementedError: When there are complex numbers.
    """
    smooth = []
    for i, x in enumerate(results):
        if not isinstance(x, Tensor):
            continue
        if x.is_complex():
            raise NotImplementedError(
                f"{name_of(func)} gives complex numbers, which Taylor mode does not support"
            )
        if x.is_floating_point():
            smooth.append(i)
    return smooth


def _derivatives(
    f: Callable[..., Values], jets: list[Jet], results: list[Tensor], ahead: int | None
) -> tuple[Any, Any]:
    """Tangents and second derivatives of all results of ``f``."""
    tape = jets[0].tape
    values = tuple(tape.frozen(x.value) for x in jets)

    def push(*tangents: Tensor) -> Values:
        return jvp(f, values, tangents)[1]

    def push_twice(u: Values, v: Values) -> Values:
        return jvp(lambda *x: jvp(f, x, u)[1], values, v)[1]

    tangents = tuple(x.first for x in jets)
    with tape.tangents():
        firsts = vmap(push)(*tangents)
        if tape.pairs is None:
            return firsts, [None] * len(firsts)
        i = tape.pairs.i
        j = tape.pairs.j
        with torch.enable_grad():
            bent = vmap(push_twice)(_at(tangents, i), _at(tangents, j))
        # torch marks derivatives that vanish identically: a linear function does not bend.
        quadratics = tuple(None if q._is_zerotensor() else tape.frozen(q) for q in bent)
        seconds: Any = [None] * len(firsts)
        if any(x.second is not None for x in jets):
            seconds = vmap(push)(*(_second(x, len(i)) for x in jets))
        k = len(tangents[0])
        added = []
        for y, quadratic, second in zip(results, quadratics, seconds, strict=True):
            added.append(add_bend(tape, y, quadratic, second, k, ahead))
        return firsts, added


def _at(tangents: Values, places: Any) -> Values:
    """One tangent of each of some pairs."""
    return tuple(t[places] for t in tangents)


def argument(rest: Sequence[Any], place: int, kwargs: dict[str, Any], name: str, other: Any) -> Any:
    """What was given at a place or by name, else ``other``."""
    if len(rest) > place:
        return rest[place]
    return kwargs.get(name, other)


def _second(jet: Jet, count: int) -> Tensor:
    """Its second derivatives, zeros where they vanish."""
    if jet.second is not None:
        return jet.second
    return jet.value.new_zeros(count, *jet.shape)


def add_bend(
    tape: Tape,
    y: Tensor,
    quadratic: Tensor | None,
    second: Tensor | None,
    k: int,
    ahead: int | None = 1,
) -> Tensor | None:
    """Record how an operation bends, or add it to the second derivatives that it passes on.

    Args:
        tape: What the pass carries.
        y: The result of the operation.
        quadratic: ``∂²op(∂x(u_i), ∂x(u_j))`` for all pairs; None where it vanishes.
        second: ``∂op ∂²x(u_i, u_j)``; None where it vanishes.
        k: Number of tangents.
        ahead: Of the result (:mod:`riemae.differential.placement`).
    """
    if tape.recorded is None or quadratic is None:
        return plus(second, quadratic)
    assert tape.pairs is not None
    bend = QuadraticBend(quadratic, tape.pairs, k, tape.batch, placed(ahead))
    tape.record(y, bend)
    return None
