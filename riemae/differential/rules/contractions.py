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
        once = sorted(letter for letter in set(letters) if letters.count(letter) == 1)
        result = ("..." if "..." in equation else "") + "".join(once)
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
        named = [self.free + x if i in parts else x for i, x in enumerate(self.letters)]
        given = [parts.get(i, x) for i, x in enumerate(self.values)]
        return torch.einsum(f"{','.join(named)}->{self.free}{self.result}", *given)

    def transposed(self) -> Transposed | None:
        """The transpose in the second jet, ``(δ, ∂a)`` to the shape of ``∂b``.

        None where it has no equation.
        """
        a, b = self.places
        others = [i for i in range(len(self.letters)) if i not in self.places]
        constants = [self.letters[i] for i in others]
        target = self.letters[b]
        known = set("".join([self.result, self.letters[a], *constants]))
        once = len(set(target)) == len(target)
        ellipsis = any("." in x for x in (*self.letters, self.result))
        if ellipsis or not once or not set(target) <= known:
            return None
        inputs = ",".join([self.free + self.letters[a], self.result, *constants])
        equation = f"{inputs}->{self.free}{target}"
        fixed = [self.values[i] for i in others]
        return lambda slope, left: torch.einsum(equation, left, slope, *fixed)

    def bent(self, pairs: Pairs, left: Jet, right: Jet) -> Tensor:
        """The second derivative along pairs of tangents."""
        a, b = self.places
        one = self.lifted({a: left.first[pairs.i], b: right.first[pairs.j]})
        other = self.lifted({a: left.first[pairs.j], b: right.first[pairs.i]})
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
    free = next((letter for letter in _LETTERS if letter not in equation), None)
    if free is None or len(letters) != len(operands):
        return generic(func, args, kwargs)
    jets = [operands[i] for i in places]
    tape = jets[0].tape
    values = plain(operands)
    y = torch.einsum(equation, *values)
    frozen = [tape.frozen(x) for x in values]
    return _contracted(y, jets, Contraction(letters, result, free, frozen, places))


def _contracted(y: Tensor, jets: list[Jet], sum_: Contraction) -> Jet:
    """The jet of the result ``y``."""
    tape = jets[0].tape
    ahead = _ahead(jets, [sum_.letters[i] for i in sum_.places], sum_.result, y)
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
        swapped = sum_.transposed() if tape.recorded is not None else None
        if swapped is None:
            bent = sum_.bent(tape.pairs, left, right)
            second = add_bend(tape, y, bent, second, len(first), ahead)
        else:
            place = placed(right.ahead)
            tape.record(y, BilinearBend(swapped, left.first, right.first, tape.batch, place))
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
