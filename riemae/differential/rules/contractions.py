"""Sums of products: einsum, and functions that it can stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riemae.differential.jets import Jet, composition, plain, rule
from riemae.differential.placement import axis_of, placed
from riemae.differential.rules.generic import add_bend, generic
from riemae.differential.spellings import spellings
from riemae.differential.tangents import plus
from riemae.differential.tape import BilinearBend, Pairs

Args = tuple[Any, ...]
Options = dict[str, Any]
# (δ, ∂a (k, *s)) -> (k, *t)
Transposed = Callable[[Tensor, Tensor], Tensor]


def _explicit(equation: str) -> tuple[list[str], str]:
    """The letters of each operand and of the result."""
    compact = equation.replace(" ", "")
    given, arrow, result = compact.partition("->")
    operands = given.split(",")
    if not arrow:
        letters = "".join(operands).replace(".", "")
        once = [letter for letter in sorted(set(letters)) if letters.count(letter) == 1]
        result = "".join(once)
        if "..." in equation:
            result = "..." + result
    return operands, result


_LETTERS = "zyxwvutsrqponmlkjihgfedcba"


@dataclass(frozen=True)
class Contraction:
    """A sum of products with one or two jets among its operands.

    Attributes:
        letters: Of the axes of each operand.
        result: Of those of the result.
        free: A letter that is not in use: the axis of the derivatives.
        values: The operands, as tangents use them.
        places: Which of them are jets.
    """

    letters: list[str]
    result: str
    free: str
    values: list[Tensor]
    places: list[int]

    def lifted(self, parts: dict[int, Tensor]) -> Tensor:
        """The same sum with derivatives, whose axis is in front, for some of the operands."""
        named = list(self.letters)
        given = list(self.values)
        for i, part in parts.items():
            named[i] = self.free + named[i]
            given[i] = part
        operands = ",".join(named)
        return torch.einsum(f"{operands}->{self.free}{self.result}", *given)

    def transposed(self) -> Transposed | None:
        """The transpose in the second jet, ``(δ, ∂a)`` to the shape of ``∂b``.

        None where it has no equation.
        """
        a, b = self.places
        others = [i for i in range(len(self.letters)) if i not in self.places]
        constants = [self.letters[i] for i in others]
        target = self.letters[b]
        wanted = set(target)
        known = set(self.result + self.letters[a])
        known.update(*constants)
        once = len(wanted) == len(target)
        ellipsis = "." in self.result or any("." in x for x in self.letters)
        if ellipsis or not once or not wanted <= known:
            return None
        tangent = self.free + self.letters[a]
        inputs = ",".join([tangent, self.result, *constants])
        equation = f"{inputs}->{self.free}{target}"
        fixed = [self.values[i] for i in others]

        def transpose(slope: Tensor, left: Tensor) -> Tensor:
            return torch.einsum(equation, left, slope, *fixed)

        return transpose

    def bent(self, pairs: Pairs, left: Jet, right: Jet) -> Tensor:
        """The second derivative along pairs of tangents."""
        a, b = self.places
        i = pairs.i
        j = pairs.j
        one = self.lifted({a: left.first[i], b: right.first[j]})
        other = self.lifted({a: left.first[j], b: right.first[i]})
        return one + other


@rule(*spellings("einsum"))
def _einsum(func: Any, args: Args, kwargs: Options) -> Any:
    equation, *operands = args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    places = [i for i, x in enumerate(operands) if isinstance(x, Jet)]
    if not isinstance(equation, str) or kwargs or len(places) > 2:
        return generic(func, args, kwargs)
    letters, result = _explicit(equation)
    unused = [letter for letter in _LETTERS if letter not in equation]
    if not unused or len(letters) != len(operands):
        return generic(func, args, kwargs)
    jets = [operands[i] for i in places]
    tape = jets[0].tape
    values = plain(operands)
    y = torch.einsum(equation, *values)
    contraction = Contraction(
        letters=letters,
        result=result,
        free=unused[0],
        values=[tape.frozen(x) for x in values],
        places=places,
    )
    return _contracted(y, jets, contraction)


def _contracted(y: Tensor, jets: list[Jet], sum_: Contraction) -> Jet:
    """The jet of the result ``y``."""
    tape = jets[0].tape
    letters = [sum_.letters[i] for i in sum_.places]
    ahead = _ahead(jets, letters, sum_.result, y)
    with tape.tangents():
        first: Any = None
        second: Any = None
        for i, jet in zip(sum_.places, jets, strict=True):
            first = plus(first, sum_.lifted({i: jet.first}))
            if jet.second is not None:
                second = plus(second, sum_.lifted({i: jet.second}))
        if len(jets) == 1 or tape.pairs is None:
            return Jet(y, first, second, tape, ahead)
        left, right = jets
        swapped = None
        if tape.recorded is not None:
            swapped = sum_.transposed()
        if swapped is None:
            bent = sum_.bent(tape.pairs, left, right)
            second = add_bend(tape, y, bent, second, len(first), ahead)
        else:
            place = placed(right.ahead)
            bend = BilinearBend(swapped, left.first, right.first, tape.batch, place)
            tape.record(y, bend)
    return Jet(y, first, second, tape, ahead)


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
            in_front = jet.ahead == 1 and y.shape[:1] == jet.shape[:1]
            found.add(1 if in_front else None)
            continue
        if names[axis] not in result:
            return None
        before = y.shape[: result.index(names[axis])]
        found.add(math.prod(before) * shared)
    if len(found) > 1:
        return None
    return found.pop()


@composition(*spellings("bilinear"))
def _bilinear(func: Any, a: Any, b: Any, weight: Any, bias: Any = None) -> Any:
    rows_a = a.flatten(0, -2)
    rows_b = b.flatten(0, -2)
    flat = torch.einsum("oij,bi,bj->bo", weight, rows_a, rows_b)
    y = flat.reshape(*a.shape[:-1], len(weight))
    if bias is None:
        return y
    return y + bias


@composition(torch.linalg.vecdot)
def _vecdot(func: Any, a: Any, b: Any, *, dim: int = -1, out: None = None) -> Any:
    return (a * b).sum(dim)


@composition(torch.linalg.cross)
def _cross(func: Any, a: Any, b: Any, *, dim: int = -1, out: None = None) -> Any:
    a, b = torch.broadcast_tensors(a, b)
    ahead = a.roll(-1, dim) * b.roll(-2, dim)
    return ahead - a.roll(-2, dim) * b.roll(-1, dim)


@composition(torch.linalg.multi_dot)
def _chain(func: Any, matrices: Any, *, out: None = None) -> Any:
    y, *rest = matrices
    for matrix in rest:
        y = y @ matrix
    return y


# A sum and a product in one.


@composition(*spellings("addmm addmv baddbmm"))
def _added_product(func: Any, x: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    product = a @ b
    if alpha != 1:
        product = product * alpha
    if beta != 1:
        x = x * beta
    return product + x


@composition(*spellings("addcmul"))
def _addcmul(func: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    product = a * b
    if value != 1:
        product = product * value
    return x + product


@composition(*spellings("addcdiv"))
def _addcdiv(func: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    quotient = a / b
    if value != 1:
        quotient = quotient * value
    return x + quotient


@composition(*spellings("lerp"))
def _lerp(func: Any, a: Any, b: Any, weight: Any) -> Any:
    return a + weight * (b - a)
