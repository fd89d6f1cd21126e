"""Sums of products: einsum, and functions that it can stand for."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from riemae.differential.jets import Jet, composition, rule
from riemae.differential.placement import axis_of, placed
from riemae.differential.rules.generic import add_bend, generic, plus
from riemae.differential.spellings import spellings
from riemae.differential.tape import BilinearBend

Args = tuple[Any, ...]
Options = dict[str, Any]


def _explicit(equation: str) -> tuple[list[str], str]:
    """The letters of each operand and of the result."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    operands = given.split(",")
    if not arrow:
        letters = "".join(operands).replace(".", "")
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        result = ("..." if "..." in equation else "") + "".join(once)
    return operands, result


@rule(*spellings("einsum"))
def _einsum(func: Any, args: Args, kwargs: Options) -> Any:
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    places = [i for i, x in enumerate(operands) if isinstance(x, Jet)]
    if not isinstance(equation, str) or kwargs or len(places) > 2:
        return generic(func, args, kwargs)
    letters, result = _explicit(equation)
    free = next((c for c in "zyxwvutsrqponmlkjihgfedcba" if c not in equation), None)
    if free is None or len(letters) != len(operands):
        return generic(func, args, kwargs)
    jets: list[Jet] = [operands[i] for i in places]
    tape = jets[0].tape
    values = [x.value if isinstance(x, Jet) else x for x in operands]
    y = torch.einsum(equation, *values)
    frozen = [tape.frozen(x) for x in values]
    ahead = _ahead(jets, [letters[i] for i in places], result, y)

    def lifted(parts: dict[int, Tensor]) -> Tensor:
        """The same sum with derivatives, whose axis is in front, for some of the operands."""
        named = [free + x if i in parts else x for i, x in enumerate(letters)]
        given = [parts.get(i, x) for i, x in enumerate(frozen)]
        return torch.einsum(f"{','.join(named)}->{free}{result}", *given)

    with tape.tangents():
        first: Any = None
        second: Any = None
        for i, jet in zip(places, jets, strict=True):
            first = plus(first, lifted({i: jet.first}))
            if jet.second is not None:
                second = plus(second, lifted({i: jet.second}))
        if len(jets) == 2 and tape.pairs is not None:
            a, b = places
            left, right = jets
            swapped = _transposed(letters, places, result, frozen, free)
            if tape.recorded is not None and swapped is not None:
                bend = BilinearBend(
                    swapped, left.first, right.first, tape.batch, placed(right.ahead)
                )
                tape.record(y, bend)
            else:
                before = tape.pairs.i
                behind = tape.pairs.j
                bent = lifted({a: left.first[before], b: right.first[behind]})
                bent = bent + lifted({a: left.first[behind], b: right.first[before]})
                second = add_bend(tape, y, bent, second, len(first), ahead)
    return Jet(y, first, second, tape, ahead)


def _transposed(
    letters: list[str], places: list[int], result: str, frozen: list[Tensor], free: str
) -> Any:
    """The transpose in the second jet, ``(δ, ∂a)`` to the shape of ``∂b``.

    None where it has no equation.
    """
    a, b = places
    others = [i for i in range(len(letters)) if i not in places]
    known = set(result + letters[a] + "".join(letters[i] for i in others))
    simple = len(set(letters[b])) == len(letters[b]) and set(letters[b]) <= known
    if not simple or any("." in x for x in (*letters, result)):
        return None
    inputs = ",".join([free + letters[a], result, *(letters[i] for i in others)])
    equation = f"{inputs}->{free}{letters[b]}"
    return lambda slope, left: torch.einsum(equation, left, slope, *(frozen[i] for i in others))


def _ahead(jets: list[Jet], letters: list[str], result: str, y: Tensor) -> int | None:
    """Where the letter of the points stands in the result."""
    found: set[int | None] = set()
    for jet, names in zip(jets, letters, strict=True):
        if jet.ahead is None:
            return None
        if jet.tape.recorded is None or jet.tape.batch == 1:
            found.add(1)
            continue
        axis, shared = axis_of(jet.shape, jet.ahead)
        if "." in names or "." in result:
            found.add(1 if jet.ahead == 1 and y.shape[:1] == jet.shape[:1] else None)
            continue
        if names[axis] not in result:
            return None
        found.add(math.prod(y.shape[: result.index(names[axis])]) * shared)
    return found.pop() if len(found) == 1 else None


@composition(*spellings("bilinear"))
def _bilinear(func: Any, a: Any, b: Any, weight: Any, bias: Any = None) -> Any:
    y = torch.einsum("oij,bi,bj->bo", weight, a.flatten(0, -2), b.flatten(0, -2))
    y = y.reshape(*a.shape[:-1], len(weight))
    return y if bias is None else y + bias


# A sum and a product in one.


@composition(*spellings("addmm addmv baddbmm"))
def _added_product(func: Any, x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = a @ b
    scaled = product if alpha == 1 else product * alpha
    return scaled + (x if beta == 1 else x * beta)


@composition(*spellings("addcmul"))
def _addcmul(func: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return x + (a * b if value == 1 else a * b * value)


@composition(*spellings("addcdiv"))
def _addcdiv(func: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return x + (a / b if value == 1 else a / b * value)


@composition(*spellings("lerp"))
def _lerp(func: Any, a: Any, b: Any, weight: Any) -> Any:
    return a + weight * (b - a)
