"""The rule for every function without one of its own: ``torch.func.jvp`` through it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from riemae.differential.jets import ANY_OTHER, Jet, name_of, rule, viewed
from riemae.differential.tape import QuadraticBend, Tape
from riemae.numerics.threads import jvp

Values = tuple[Tensor, ...]


@rule(ANY_OTHER)
def generic(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Any function, by forward mode through it alone."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Jet)]
    jets: list[Jet] = [leaves[i] for i in places]

    def call(*values: Tensor) -> Any:
        filled = list(leaves)
        for i, value in zip(places, values, strict=True):
            filled[i] = value
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return func(*args, **kwargs)

    out = call(*(x.value for x in jets))
    results, shape = pytree.tree_flatten(out)
    smooth = _differentiable(func, results)
    if not smooth:
        return out

    def f(*values: Tensor) -> Values:
        results, _ = pytree.tree_flatten(call(*values))
        return tuple(results[i] for i in smooth)

    firsts, seconds = _derivatives(f, jets, [results[i] for i in smooth])
    for i, first, second in zip(smooth, firsts, seconds, strict=True):
        results[i] = Jet(results[i], first, second, jets[0].tape)
    viewed(jets, results)
    return pytree.tree_unflatten(results, shape)


def _differentiable(func: Any, results: list[Any]) -> list[int]:
    """Which of a function's results have derivatives.

    Raises:
        NotImplementedError: For complex numbers.
    """
    places = []
    for i, x in enumerate(results):
        if not isinstance(x, Tensor):
            continue
        if x.is_complex():
            raise NotImplementedError(
                f"{name_of(func)} gives complex numbers, which Taylor mode does not support"
            )
        if x.is_floating_point():
            places.append(i)
    return places


def _derivatives(
    f: Callable[..., Values], jets: list[Jet], results: list[Tensor]
) -> tuple[Any, Any]:
    """Tangents and second derivatives of all results of ``f``."""
    tape = jets[0].tape
    values = tuple(tape.frozen(x.value) for x in jets)

    def push(*tangents: Tensor) -> Values:
        return _pushed(f, values, tangents)

    def push_twice(u: Values, v: Values) -> Values:
        def along_u(*x: Tensor) -> Values:
            return _pushed(f, x, u)

        return _pushed(along_u, values, v)

    tangents = tuple(x.first for x in jets)
    with tape.tangents():
        firsts = vmap(push)(*tangents)
        if tape.pairs is None:
            return firsts, [None] * len(firsts)
        i = tape.pairs.i
        j = tape.pairs.j
        u = tuple(t[i] for t in tangents)
        v = tuple(t[j] for t in tangents)
        with torch.enable_grad():
            bent = vmap(push_twice)(u, v)
        # torch marks derivatives that vanish identically: a linear function does not bend.
        quadratics = [None if q._is_zerotensor() else tape.frozen(q) for q in bent]
        passed_on: Any = [None] * len(firsts)
        if any(x.second is not None for x in jets):
            own = [_second(x, len(i)) for x in jets]
            passed_on = vmap(push)(*own)
        k = len(tangents[0])
        seconds = []
        for y, quadratic, second in zip(results, quadratics, passed_on, strict=True):
            seconds.append(add_bend(tape, y, quadratic, second, k))
        return firsts, seconds


def _pushed(f: Callable[..., Values], values: Values, tangents: Values) -> Values:
    """The derivatives of all results of ``f`` along tangents."""
    _, pushed = jvp(f, values, tangents)
    return pushed


def _second(jet: Jet, count: int) -> Tensor:
    """Its second derivatives, zeros where they vanish."""
    if jet.second is not None:
        return jet.second
    return jet.value.new_zeros(count, *jet.shape)


def add_bend(
    tape: Tape, y: Tensor, quadratic: Tensor | None, second: Tensor | None, k: int
) -> Tensor | None:
    """Record how an operation bends, or add it to the second derivatives that it passes on.

    Args:
        tape: What the pass carries.
        y: The result of the operation.
        quadratic: ``∂²op(∂x(u_i), ∂x(u_j))`` for all pairs; None where it vanishes.
        second: ``∂op ∂²x(u_i, u_j)``; None where it vanishes.
        k: Number of tangents.
    """
    if tape.recorded is None or quadratic is None:
        return plus(second, quadratic)
    assert tape.pairs is not None
    bend = QuadraticBend(quadratic, tape.pairs, k, tape.batch)
    tape.recorded.append((y, bend))
    return None


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two derivatives; None stands for 0."""
    if a is None:
        return b
    if b is None:
        return a
    return a + b
