"""Taylor mode: first and second derivatives of a map in one pass through it, along with its value.

A :class:`Jet` stands for a tensor that depends on the points: it carries the value, tangents
``∂x(u_i)``, and second derivatives ``∂²x(u_i, u_j)`` for chosen pairs. Every torch function that is
called with a jet propagates all of them by the chain rule, so ``k`` tangents and ``p`` pairs cost
about ``1 + k + p`` evaluations, where nested forward mode computes the tangents repeatedly
(Griewank and Walther, Evaluating Derivatives, 2008, chapter 13).

How a function propagates them is its rule. :data:`RULES` holds the rules by function object;
:mod:`riemae.differential.rules` fills it, and the generic rule there takes every other function.
Taylor mode refuses what it cannot carry with a ``NotImplementedError``, and never drops it
silently: complex results, unknown functions that write in place, and writes into memory that other
jets share.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from riemae.differential.placement import placed
from riemae.differential.primitives import SUBSTITUTES
from riemae.differential.spellings import in_front, spelt
from riemae.differential.tangents import Tangents, continued, root_of
from riemae.differential.tape import ElementwiseBend, Tape

# (function, arguments, keywords) -> jets
Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
# Where the points are in a result, or in each of several.
Ahead = int | None | list[int | None]

# Rules by function object, and under ANY_OTHER the one for functions that are not in the table.
RULES: dict[Any, Rule] = {}
ANY_OTHER = "any other function"


def rule(*functions: Any) -> Callable[[Rule], Rule]:
    """A decorator that enters a rule into :data:`RULES` for these functions, given as objects."""

    def register(chosen: Rule) -> Rule:
        RULES.update(dict.fromkeys(functions, chosen))
        return chosen

    return register


# Functions that consist of others in Taylor mode, by function object.
COMPOSITIONS: dict[Any, Callable[..., Any]] = dict(SUBSTITUTES)


def composition(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that enters what takes the place of these functions into :data:`COMPOSITIONS`.

    It gets the function itself, by its own rule, and its arguments.
    """

    def register(chosen: Callable[..., Any]) -> Callable[..., Any]:
        COMPOSITIONS.update(dict.fromkeys(functions, chosen))
        return chosen

    return register


def name_of(function: Any) -> str:
    """What a function is called in errors."""
    return getattr(function, "__name__", "")


@dataclass(frozen=True)
class Pieces:
    """What a tensor was joined from.

    Attributes:
        axis: Along which, counted from the end.
        lengths: Of each piece along it.
        tangents: Of each piece; None for a constant.
    """

    axis: int
    lengths: tuple[int, ...]
    tangents: tuple[Tangents | None, ...]


class Jet(Tensor):
    """A tensor that depends on the points, with its derivatives.

    Attributes:
        value: ``(*s,)``.
        tangents: Tangents ``first`` ``(k, *s)``, and ``second`` derivatives ``(p, *s)`` for the
            tape's pairs; None where these vanish or are not carried.
        pieces: What the tensor was joined from, for :func:`torch.split`; None where that is not
            known.
        tape: What the pass carries.
        ahead: Product of the lengths of the axes in front of that of the points; None where that
            is unknown (:mod:`riemae.differential.placement`). Only the sums of a recorded pass ask.
        sharing: All jets that share this memory, including this one; None where there are no
            others.
    """

    value: Tensor
    tangents: Tangents
    tape: Tape
    ahead: int | None
    pieces: Pieces | None = None
    sharing: list[weakref.ref[Jet]] | None = None

    @staticmethod
    def __new__(
        cls: type[Jet],
        value: Tensor,
        first: Tensor,
        second: Tensor | None,
        tape: Tape,
        ahead: int | None = 1,
    ) -> Jet:
        """A wrapper of the value's shape, dtype and device, without storage of its own."""
        return Tensor._make_wrapper_subclass(
            cls, value.shape, dtype=value.dtype, device=value.device
        )

    def __init__(
        self,
        value: Tensor,
        first: Tensor,
        second: Tensor | None,
        tape: Tape,
        ahead: int | None = 1,
    ) -> None:
        self._holds(value, Tangents(found=(first, second)), tape, ahead)

    @classmethod
    def carrying(cls, value: Tensor, tangents: Tangents, tape: Tape, ahead: int | None = 1) -> Jet:
        """A jet whose derivatives may still have to be found."""
        jet = Tensor._make_wrapper_subclass(
            cls, value.shape, dtype=value.dtype, device=value.device
        )
        jet._holds(value, tangents, tape, ahead)
        return jet

    def _holds(self, value: Tensor, tangents: Tangents, tape: Tape, ahead: int | None) -> None:
        if value.dtype.is_complex:  # the rules are those of real numbers
            raise NotImplementedError("Taylor mode does not support complex numbers")
        self.value = value
        self.tangents = tangents
        self.tape = tape
        self.ahead = ahead

    @property
    def first(self) -> Tensor:
        """Tangents."""
        return self.tangents.first

    @property
    def second(self) -> Tensor | None:
        """Second derivatives."""
        return self.tangents.second

    # The most frequent queries, without the cost of ``__torch_function__``. (For mypy, both are
    # fields of a tensor.)

    # Attributes of a tensor, which these properties answer from the value: hence the ignores.
    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The shape of the value."""
        return self.value.shape

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The number of axes of the value."""
        return self.value.ndim

    def __len__(self) -> int:
        return len(self.value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse what did not come through ``__torch_function__``: scripts and compiled code.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{func} does not support Taylor mode")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply a torch function to value and derivatives."""
        kwargs = dict(kwargs or {})
        func = spelt(func)
        if kwargs:
            args = in_front(func, args, kwargs)
        if func in COMPOSITIONS:  # of functions that have rules
            return _composed(func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            chosen = rule_of(func)
            if not kwargs:
                return chosen(func, args, kwargs)
            if kwargs.get("out") is not None:
                raise NotImplementedError(f"{name_of(func)}(out=) does not support Taylor mode")
            inplace = kwargs.pop("inplace", False)
            out = chosen(func, args, kwargs)
            return written(func, args[0], out) if inplace else out

    def chain(self, y: Tensor, slope: Tensor, bend: Tensor | None) -> Jet:
        """The jet of ``y = op(x)``, elementwise, from the derivatives of op at the value."""
        tape = self.tape
        with tape.tangents():
            if bend is not None and tape.recorded is not None:
                self.record(y, bend, self.tangents)
                bend = None
            elif not tape.carries_second:
                bend = None
            tangents = continued(self.tangents, slope, bend, tape)
        return Jet.carrying(y, tangents, tape, self.ahead)

    def record(self, y: Tensor, bend: Tensor, inner: Tangents) -> None:
        """Note the bend of ``y``, a function of single numbers of what has these tangents."""
        if inner.link is not None:
            bend = bend * inner.link.slope.square()
        first = root_of(inner).first
        self.tape.record(y, ElementwiseBend(bend, first, self.tape.batch, placed(self.ahead)))

    def mapped(self, y: Any, op: Callable[[Tensor], Any], ahead: Ahead = 1) -> Any:
        """The jets of ``y = op(x)`` for a linear op, which vmap applies to all derivatives."""
        return self.stacked(y, vmap(op), ahead)

    def stacked(self, y: Any, op: Callable[[Tensor], Any], ahead: Ahead = 1) -> Any:
        """The jets of ``y``, linear in this one, where ``op`` takes all derivatives at once.

        That gives the numbers of vmap, which costs several times as much as a small operation.
        ``ahead`` is that of ``y``, one for each if there are several.
        """
        with self.tape.tangents():
            first = op(self.first)
            second = None if self.second is None else op(self.second)
        return _jets(y, first, second, self.tape, ahead)


def _jets(y: Any, first: Any, second: Any, tape: Tape, ahead: Ahead) -> Any:
    """Jets from values and derivatives, each a tensor or a sequence of tensors."""
    if isinstance(y, Tensor):
        return Jet(y, first, second, tape, ahead[0] if isinstance(ahead, list) else ahead)
    seconds = [None] * len(y) if second is None else second
    places = ahead if isinstance(ahead, list) else [ahead] * len(y)
    parts = zip(y, first, seconds, places, strict=True)
    return tuple(Jet(x, u, bent, tape, place) for x, u, bent, place in parts)


def plain(x: Any) -> Any:
    """Values in place of jets, in arguments of any nesting."""
    if isinstance(x, Jet):
        return x.value
    if isinstance(x, (list, tuple)):
        return type(x)(map(plain, x)) if has_jets(x) else x
    if isinstance(x, dict):
        return {name: plain(value) for name, value in x.items()}
    return x


def has_jets(x: Any) -> bool:
    """Whether there are jets in arguments of any nesting."""
    if isinstance(x, (list, tuple)):
        return any(map(has_jets, x))
    return isinstance(x, Jet) or (isinstance(x, dict) and any(map(has_jets, x.values())))


# Which rule takes a function.


def rule_of(func: Any) -> Rule:
    """The rule of any function."""
    return RULES.get(func) or _unregistered(func)


def _unregistered(func: Any) -> Rule:
    """The rule of a function that is not in the table."""
    name = name_of(func)
    if name == "__get__":
        return _attribute
    if name in ("__set__", "__delete__") or (name[-1:] == "_" and name[-2:] != "__"):
        return refused
    return RULES[ANY_OTHER]


def _attribute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attributes that are not tensors: those of the value."""
    out = func(args[0].value)
    if isinstance(out, Tensor):
        raise NotImplementedError(f"Tensor.{name_of(func.__self__)} does not support Taylor mode")
    return out


def refused(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The rule of functions that Taylor mode cannot carry.

    Raises:
        NotImplementedError: Always.
    """
    raise NotImplementedError(f"{name_of(func)} does not support Taylor mode")


def _composed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function that is replaced by others, which meet the jets one after the other."""

    def itself(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return RULES[ANY_OTHER](func, args, kwargs)

    inplace = kwargs.pop("inplace", False)
    out = COMPOSITIONS[func](itself, *args, **kwargs)
    return written(func, args[0], out) if inplace else out


# Memory that jets share.


def viewed(sources: Iterable[Jet], out: Any) -> Any:
    """``out``, after noting which of these jets share memory with their source.

    So no write into that memory goes unnoticed.
    """
    for jet in out if isinstance(out, (tuple, list)) else (out,):
        if isinstance(jet, Jet):
            for source in sources:
                if jet is not source and (jet.value is source.value or jet.value._is_view()):
                    _share(jet, source)
    return out


def _share(jet: Jet, source: Jet) -> None:
    if source.sharing is None:
        source.sharing = [weakref.ref(source)]
    if jet.sharing is None:
        jet.sharing = source.sharing
        jet.sharing.append(weakref.ref(jet))
    elif jet.sharing is not source.sharing:
        # There are several arguments, and which of them the result shares memory with is unknown.
        jet.sharing.extend(source.sharing)
        source.sharing = jet.sharing


def written(func: Any, target: Any, out: Any) -> Jet:
    """``target``, once ``out`` has been written into its memory.

    Raises:
        NotImplementedError: When another jet shares that memory, or ``out`` does not fit into it.
    """
    name = name_of(func)
    if not isinstance(target, Jet):
        raise NotImplementedError(f"{name} writes a point's derivatives into a constant")
    if out is target:
        return target
    sharing = [other() for other in target.sharing or ()]
    if any(x is not None and x is not target and x is not out for x in sharing):
        raise NotImplementedError(f"{name} writes in place into memory that other tensors share")
    fits = isinstance(out, Jet) and out.shape == target.shape
    if not fits or out.value.dtype != target.value.dtype:
        raise NotImplementedError(f"{name} in place changes the shape or the dtype")
    taken_over(target, out)
    target.sharing = None
    return target


def taken_over(target: Jet, out: Jet) -> None:
    """Give ``target`` the value and the derivatives of ``out``."""
    target.value = out.value
    target.tangents = out.tangents
    target.pieces = out.pieces
    target.ahead = out.ahead
