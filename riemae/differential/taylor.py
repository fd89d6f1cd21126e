"""Taylor mode: first and second derivatives of a map in one pass through it, beside its value.

A :class:`Jet` stands for a tensor that depends on the points: it carries the value, tangents
``∂x(u_i)``, and second derivatives ``∂²x(u_i, u_j)`` for chosen pairs. Every torch function that
meets one propagates all of them by the chain rule, so ``k`` tangents and ``p`` pairs cost about
``1 + k + p`` evaluations, where nested forward mode computes the tangents again and again (Griewank
and Walther, Evaluating Derivatives, 2008, chapter 13).

Linear maps, products and common activations have rules of their own; for any other function,
``torch.func.jvp`` of that one function gives the rule. What a pass cannot carry it refuses with a
``NotImplementedError``, and never drops: complex results, unknown functions that write in place,
and writes into memory that other jets look at. A :class:`Tape` collects ``a·∂²f`` without any
second derivative of ``f``: with the sensitivity ``δ_y = ∂⟨a, f⟩/∂y`` of the result to every
intermediate ``y``, from one reverse pass,

    ``a·∂²f(u, v) = Σ ⟨δ_y, ∂²op(∂x(u), ∂x(v))⟩``

over all operations ``y = op(x)``. Only operations that bend contribute.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from riemae.differential import activations, primitives
from riemae.numerics.batch_invariance import aligned
from riemae.numerics.threads import jvp


@dataclass(frozen=True)
class Pairs:
    """Pairs ``(i, j)`` of tangents, in runs of one i and consecutive j."""

    i: list[int]
    j: list[int]

    @classmethod
    def all(cls, k: int) -> Pairs:
        """``i <= j``, ordered by i."""
        both = [(i, j) for i in range(k) for j in range(i, k)]
        return cls([i for i, _ in both], [j for _, j in both])

    def __len__(self) -> int:
        return len(self.i)

    def full(self, packed: Tensor) -> Tensor:  # (..., p) -> (..., k, k)
        """The symmetric form whose entries for ``i <= j`` are given."""
        k = max(self.j) + 1
        place = torch.empty(k, k, dtype=torch.int64)
        place[self.i, self.j] = place[self.j, self.i] = torch.arange(len(self))
        return packed[..., place.to(packed.device)]

    @property
    def runs(self) -> list[tuple[int, slice, slice]]:
        """``(i, slice of j, slice of pairs)``."""
        out: list[tuple[int, slice, slice]] = []
        for row, (i, j) in enumerate(zip(self.i, self.j, strict=True)):
            if out and out[-1][0] == i and out[-1][1].stop == j:
                out[-1] = (i, slice(out[-1][1].start, j + 1), slice(out[-1][2].start, row + 1))
            else:
                out.append((i, slice(j, j + 1), slice(row, row + 1)))
        return out


@dataclass(eq=False)
class Tape:
    """What a pass carries along.

    Attributes:
        differentiable: Whether the derivatives are to be differentiated again.
        batch: Points, the first axis of whatever depends on them.
        pairs: The pairs of tangents with second derivatives.
        recorded: ``(y, contribution)`` of every operation that bends, when ``a·∂²f`` is wanted
            instead of ``∂²f``; ``contribution`` maps ``δ_y`` to ``(b, k, k)``.
    """

    differentiable: bool
    batch: int
    pairs: Pairs | None = None
    recorded: list[tuple[Tensor, Callable[[Tensor], Tensor]]] | None = None

    @property
    def carries_second(self) -> bool:
        """Whether jets hold second derivatives."""
        return self.pairs is not None and self.recorded is None

    def tangents(self) -> torch.set_grad_enabled:
        """The gradient mode in which tangents are computed."""
        return torch.set_grad_enabled(self.differentiable)

    def frozen(self, x: Tensor) -> Tensor:
        """A value as tangents use it: without its history where nobody will ask for it."""
        return x if self.differentiable else x.detach()


def bending(
    tape: Tape, sensitivities: Callable[[list[Tensor]], tuple[Tensor, ...]], z: Tensor
) -> Tensor:  # -> (b, m, m)
    """``a·∂²f`` of a recorded pass from the points ``z``.

    Args:
        tape: Its tape.
        sensitivities: Gives ``∂⟨a, f⟩/∂y`` for intermediate results y.
        z: The points ``(b, m)``.
    """
    recorded = [(y, contribution) for y, contribution in tape.recorded or () if y.requires_grad]
    total = z.new_zeros(*z.shape, z.shape[-1])
    if not recorded:
        return total
    slopes = sensitivities([y for y, _ in recorded])
    with tape.tangents():
        for slope, (_, contribution) in zip(slopes, recorded, strict=True):
            total = total + contribution(slope)
    return total


class Jet(Tensor):
    """A tensor that depends on the points, with its derivatives.

    Attributes:
        value: ``(*s,)``.
        first: Tangents ``(k, *s)``.
        second: Second derivatives ``(p, *s)`` for the tape's pairs; None where they vanish or are
            not carried.
        tape: What the pass carries.
        sharing: All jets that look at the same memory, this one among them; None where there are no
            others.
    """

    value: Tensor
    first: Tensor
    second: Tensor | None
    tape: Tape
    sharing: list[weakref.ref[Jet]] | None = None

    @staticmethod
    def __new__(
        cls: type[Jet], value: Tensor, first: Tensor, second: Tensor | None, tape: Tape
    ) -> Jet:
        """A wrapper of the value's shape, dtype and device, without storage of its own."""
        return Tensor._make_wrapper_subclass(
            cls, value.shape, dtype=value.dtype, device=value.device
        )

    def __init__(self, value: Tensor, first: Tensor, second: Tensor | None, tape: Tape) -> None:
        if value.dtype.is_complex:  # the rules below are those of real numbers
            raise NotImplementedError("complex numbers do not know Taylor mode")
        self.value, self.first, self.second, self.tape = value, first, second, tape

    # What is looked at most, without the way through ``__torch_function__``; mypy knows both as
    # fields of a tensor.

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The value's."""
        return self.value.shape

    @property
    def ndim(self) -> int:  # type: ignore[override]
        """The value's."""
        return self.value.ndim

    def __len__(self) -> int:
        return len(self.value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refuse what did not come through ``__torch_function__``: scripts and compiled code.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(f"{func} does not know Taylor mode")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply a torch function to value and derivatives."""
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in primitives.BY_NAME:  # of functions that have rules
            return _substituted(name, func, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if name == "__get__":
                return _attribute(func, args[0])
            name = _ALIASES.get(name, name)
            rule = _RULES.get(name) or (
                _refused if name[-1:] == "_" and name[-2:] != "__" else _any
            )
            if not kwargs:
                return rule(name, func, args, kwargs)
            if kwargs.get("out") is not None:
                raise NotImplementedError(f"{name}(out=) does not know Taylor mode")
            inplace = kwargs.pop("inplace", False)
            out = rule(name, func, args, kwargs)
            return _written(name, args[0], out) if inplace else out

    def chain(self, y: Tensor, slope: Tensor, bend: Tensor | None) -> Jet:
        """The jet of ``y = op(x)``, elementwise, from the derivatives of op at the value."""
        tape = self.tape
        with tape.tangents():
            first = slope * self.first
            second = None if self.second is None else slope * self.second
            if bend is not None and tape.recorded is not None:
                tape.recorded.append((y, _Elementwise(bend, self.first, tape.batch)))
            elif bend is not None and tape.carries_second:
                second = self._bent(bend * self.first, second)
        return Jet(y, first, second, tape)

    def _bent(self, left: Tensor, second: Tensor | None) -> Tensor:
        """``second + left_i · first_j`` for all pairs, without copies of either."""
        assert self.tape.pairs is not None
        runs = self.tape.pairs.runs
        if not self.tape.differentiable:
            out = (
                left.new_empty(len(self.tape.pairs), *left.shape[1:]) if second is None else second
            )
            for i, js, rows in runs:
                if second is None:
                    torch.mul(left[i], self.first[js], out=out[rows])
                else:
                    out[rows].addcmul_(left[i], self.first[js])
            return out
        parts = [
            left[i] * self.first[js]
            if second is None
            else torch.addcmul(second[rows], left[i], self.first[js])
            for i, js, rows in runs
        ]
        return torch.cat(parts)

    def mapped(self, y: Any, op: Callable[[Tensor], Any]) -> Any:
        """The jets of ``y = op(x)`` for a linear op."""
        with self.tape.tangents():
            first = vmap(op)(self.first)
            second = None if self.second is None else vmap(op)(self.second)
        return _jets(y, first, second, self.tape)


@dataclass
class _Elementwise:
    """``Σ δ · op″ · ∂x(u_i) ∂x(u_j)`` over the numbers of each point."""

    bend: Tensor
    first: Tensor
    batch: int

    def __call__(self, slope: Tensor) -> Tensor:  # -> (b, k, k)
        k = len(self.first)
        # Each point's numbers start at the same alignment: its product must not depend on where it
        # stands.
        weighted, first = (
            aligned(x.reshape(k, self.batch, -1), -1)
            for x in (slope * self.bend * self.first, self.first)
        )
        return weighted.transpose(0, 1) @ first.permute(1, 2, 0)


@dataclass
class _Quadratic:
    """``⟨δ, ∂²op(∂x(u_i), ∂x(u_j))⟩`` over the numbers of each point, from the second derivatives
    of all pairs.
    """

    second: Tensor  # (p, *s)
    pairs: Pairs
    k: int
    batch: int

    def __call__(self, slope: Tensor) -> Tensor:  # -> (b, k, k)
        packed = (slope * self.second).reshape(len(self.second), self.batch, -1).sum(-1)
        i, j = (torch.tensor(x, device=packed.device) for x in (self.pairs.i, self.pairs.j))
        form = packed.new_zeros(self.k, self.k, self.batch)
        form = form.index_put((i, j), packed).index_put((j, i), packed)
        return form.movedim(-1, 0)


def _jets(y: Any, first: Any, second: Any, tape: Tape) -> Any:
    """Jets from values and derivatives, all alike a tensor or a sequence of tensors."""
    if isinstance(y, Tensor):
        return Jet(y, first, second, tape)
    seconds = [None] * len(y) if second is None else second
    return tuple(Jet(*parts, tape) for parts in zip(y, first, seconds, strict=True))


def _plain(x: Any) -> Any:
    """Values in the place of jets, in arguments of any nesting."""
    if isinstance(x, Jet):
        return x.value
    if isinstance(x, (list, tuple)):
        return type(x)(map(_plain, x)) if _has_jets(x) else x
    return {name: _plain(value) for name, value in x.items()} if isinstance(x, dict) else x


def _attribute(func: Any, jet: Jet) -> Any:
    name = func.__self__.__name__
    if name in ("T", "mT", "H", "mH"):
        return _viewed([jet], jet.mapped(func(jet.value), func))
    out = func(jet.value)
    if name == "real":
        return jet
    if isinstance(out, Tensor):
        raise NotImplementedError(f"Tensor.{name} does not know Taylor mode")
    return out


def _viewed(sources: Iterable[Jet], out: Any) -> Any:
    """``out``.

    Notes which of these jets look at the memory of their source, so that no write goes unnoticed.
    """
    for jet in out if isinstance(out, (tuple, list)) else (out,):
        if not isinstance(jet, Jet):
            continue
        for source in sources:
            if jet is not source and (jet.value is source.value or jet.value._is_view()):
                if source.sharing is None:
                    source.sharing = [weakref.ref(source)]
                if jet.sharing is None:
                    jet.sharing = source.sharing
                    jet.sharing.append(weakref.ref(jet))
                elif (
                    jet.sharing is not source.sharing
                ):  # of several arguments: who looks at whom is not known
                    jet.sharing.extend(source.sharing)
                    source.sharing = jet.sharing
    return out


def _written(name: str, target: Any, out: Any) -> Jet:
    """``target``, once ``out`` has been written into its memory.

    Raises:
        NotImplementedError: When something else looks at that memory, or ``out`` does not fit into
            it.
    """
    if not isinstance(target, Jet):
        raise NotImplementedError(f"{name} writes a point's derivatives into a constant")
    if out is target:
        return target
    if any(other() is not None and other() is not target for other in target.sharing or ()):
        raise NotImplementedError(f"{name} writes in place into memory that other tensors share")
    if not isinstance(out, Jet) or (out.shape, out.value.dtype) != (
        target.shape,
        target.value.dtype,
    ):
        raise NotImplementedError(f"{name} in place changes the shape or the dtype")
    target.value, target.first, target.second, target.sharing = (
        out.value,
        out.first,
        out.second,
        None,
    )
    return target


# Rules: (name, function, arguments, keywords) -> jets.


def _query(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    return func(*_plain(args), **_plain(kwargs))


def _linear(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """A function that is linear in its first argument and takes no other jets but for their
    shapes.
    """
    jet, *rest = args
    if name in _LIKE:
        rest, kwargs = _plain(rest), _plain(kwargs)
        if not isinstance(jet, Jet):  # a constant of the shape, dtype or device of a jet
            return func(jet, *rest, **kwargs)
    elif not isinstance(jet, Jet) or _has_jets(rest) or (kwargs and _has_jets(kwargs)):
        return _any(name, func, args, kwargs)
    op = lambda x: func(x, *rest, **kwargs)  # noqa: E731 (one expression)
    y = op(jet.value)
    beside = _beside(name, func, jet, y, rest, kwargs)
    return _viewed((jet,), jet.mapped(y, op) if beside is None else _stacked(jet, y, beside))


def _beside(
    name: str, func: Any, jet: Jet, y: Any, rest: Any, kwargs: dict[str, Any]
) -> Callable[[Tensor], Any] | None:
    """What does to derivatives, whose axis is in front, as this function does to the value.

    None where vmap must.
    """
    if name in _REORDERING and y.dtype == jet.value.dtype:  # the same numbers in the same order
        return lambda x: x.reshape(len(x), *y.shape)
    if name in _POINTWISE:
        return lambda x: func(x, *rest, **kwargs)
    if name == "__getitem__" and _basic(rest[0]):
        index = rest[0] if isinstance(rest[0], tuple) else rest
        return lambda x: func(x, (slice(None), *index))
    place = _AXIS.get(name)
    if place is None:
        return None
    axis = rest[place] if len(rest) > place else kwargs.get("dim")
    if type(axis) is not int or not jet.ndim:
        return None
    axis -= jet.ndim if axis >= 0 else 0  # counted from behind, where nothing is in front
    if len(rest) > place:
        rest = [*rest[:place], axis, *rest[place + 1 :]]
    else:
        kwargs = {**kwargs, "dim": axis}
    return lambda x: func(x, *rest, **kwargs)


def _basic(index: Any) -> bool:
    """Whether an index is of numbers and slices alone, which an axis in front does not disturb."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or type(part) in (int, slice) for part in parts)


def _stacked(jet: Jet, y: Any, op: Callable[[Tensor], Any]) -> Any:
    """The jets of ``y``, linear in ``jet``, where ``op`` takes all derivatives at once.

    As with vmap, which costs several times as much as a small operation itself.
    """
    with jet.tape.tangents():
        return _jets(y, op(jet.first), None if jet.second is None else op(jet.second), jet.tape)


def _affine(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """Layers ``(input, weight, bias, …)``: linear but for the bias."""
    jet, weight, *rest = args
    if not isinstance(jet, Jet) or _has_jets((weight, rest, kwargs)):
        return _any(name, func, args, kwargs)
    y = func(jet.value, weight, *rest, **kwargs)
    rest, kwargs = (
        ([None, *rest[1:]] if rest else []),
        {k: v for k, v in kwargs.items() if k != "bias"},
    )
    if name == "linear":
        tape = jet.tape
        with tape.tangents():  # takes any number of leading axes as it is
            first = func(jet.first, weight)
            second = None if jet.second is None else func(jet.second, weight)
        return Jet(y, first, second, tape)
    return jet.mapped(y, lambda x: func(x, weight, *rest, **kwargs))


def _joined(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """``cat`` and its like: linear in all members of a sequence together."""
    members, *rest = args
    if _has_jets((rest, kwargs)):
        return _any(name, func, args, kwargs)
    tape = next(x.tape for x in members if isinstance(x, Jet))
    y = func(_plain(members), *rest, **kwargs)
    jets = [x for x in members if isinstance(x, Jet)]
    k = len(jets[0].first)
    axis = rest[0] if rest else kwargs.get("dim", 0)
    # Then one step further behind the axis of the derivatives. (Members of another rank are empty:
    # cat ignores them.)
    alike = (
        name in ("cat", "concat", "stack")
        and type(axis) is int
        and len({x.ndim for x in members}) == 1
    )

    def along(part: str, count: int) -> Tensor:
        columns = [getattr(x, part) if isinstance(x, Jet) else None for x in members]
        full = [
            (x.value if isinstance(x, Jet) else x).new_zeros(count, *x.shape) if c is None else c
            for x, c in zip(members, columns, strict=True)
        ]
        if alike:
            return func(full, axis + (axis >= 0))
        return vmap(lambda *parts: func(parts, *rest, **kwargs))(*full)

    with tape.tangents():
        first = along("first", k)
        second = next((along("second", len(x.second)) for x in jets if x.second is not None), None)
    return Jet(y, first, second, tape)


def _sum(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """``a + b``, ``a − b`` and ``b − a``."""
    if kwargs or len(args) != 2:
        return _any(name, func, args, kwargs)
    a, b = args
    y = func(_plain(a), _plain(b))
    signs = {"add": (1, 1), "sub": (1, -1), "rsub": (-1, 1)}[name]
    parts = [
        _spread(x, y, sign) for x, sign in zip((a, b), signs, strict=True) if isinstance(x, Jet)
    ]
    if len(parts) == 1:
        return Jet(y, *parts[0])
    (first, second, tape), (other, another, _) = parts
    with tape.tangents():
        return Jet(y, first + other, _plus(second, another), tape)


def _broadcast(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """``broadcast_tensors``."""
    if not all(isinstance(x, Tensor) for x in args):
        return _any(name, func, args, kwargs)
    out = []
    for x, y in zip(args, func(*_plain(args)), strict=True):
        out.append(_viewed((x,), Jet(y, *_spread(x, y, 1))) if isinstance(x, Jet) else y)
    return tuple(out)


def _where(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """``where`` with a condition that has no derivatives: linear in the two others together."""
    if func is not torch.where or kwargs or len(args) != 3 or isinstance(args[0], Jet):
        return _any(name, func, args, kwargs)
    select: Any = func
    condition, *choices = args
    y = select(condition, *_plain(choices))
    if any(isinstance(x, Jet) and x.value.dtype != y.dtype for x in choices):
        return _any(name, func, args, kwargs)
    parts = [_spread(x, y, 1) if isinstance(x, Jet) else (0.0, None, None) for x in choices]
    tape = next(x.tape for x in choices if isinstance(x, Jet))
    with tape.tangents():
        first = select(condition, *(part[0] for part in parts))
        seconds = [part[1] for part in parts]
        second = None
        if any(x is not None for x in seconds):
            second = select(condition, *(0.0 if x is None else x for x in seconds))
    return Jet(y, first, second, tape)


def _product(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """Functions that are linear in each of their two arguments."""
    if kwargs or len(args) != 2:
        return _any(name, func, args, kwargs)
    a, b = args
    if isinstance(a, Jet) and isinstance(b, Jet):
        return _bilinear(name, func, a, b)
    jet = a if isinstance(a, Jet) else b
    op = (lambda x: func(x, b)) if isinstance(a, Jet) else (lambda x: func(a, x))
    y = op(jet.value)
    if name == "mul" and jet.shape == y.shape:  # broadcasting does the rest
        return _stacked(jet, y, op)
    return jet.mapped(y, op)


def _bilinear(name: str, func: Any, a: Jet, b: Jet) -> Jet:
    tape = a.tape
    y = func(a.value, b.value)
    with tape.tangents():
        va, vb = tape.frozen(a.value), tape.frozen(b.value)
        if name == "mul" and a.ndim == b.ndim:  # broadcasting does the rest
            left = right = both = func
        else:
            left, right, both = vmap(func, (0, None)), vmap(func, (None, 0)), vmap(func)
        first = left(a.first, vb) + right(va, b.first)
        second = _plus(
            None if a.second is None else left(a.second, vb),
            None if b.second is None else right(va, b.second),
        )
        if tape.pairs is not None:
            i, j = tape.pairs.i, tape.pairs.j
            quadratic = both(a.first[i], b.first[j]) + both(a.first[j], b.first[i])
            second = _bent(tape, y, quadratic, second, len(first))
    return Jet(y, first, second, tape)


def _quotient(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """``a / b`` and ``b / a``."""
    if kwargs or len(args) != 2:
        return _any(name, func, args, kwargs)
    over, under = args if name == "div" else args[::-1]
    if not isinstance(under, Jet):
        y = func(over.value, under)
        if name == "div" and y.shape == over.shape:  # broadcasting does the rest
            return _stacked(over, y, lambda x: func(x, under))
        return _linear(name, func, args, kwargs)
    inverse = _elementwise("reciprocal", torch.reciprocal, (under,), {})
    return _product("mul", torch.mul, (inverse, over), {})


def _elementwise(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """Functions of single numbers, with whatever constants they take."""
    jet, *rest = args
    if not isinstance(jet, Jet) or _has_jets((rest, kwargs)):
        return _any(name, func, args, kwargs)
    if name in activations.KNOWN and not rest and not kwargs and _fusible(jet):
        pairs = (
            None
            if jet.tape.pairs is None
            else list(zip(jet.tape.pairs.i, jet.tape.pairs.j, strict=True))
        )
        parts = activations.Activation.apply(name, func, pairs, jet.value, jet.first, jet.second)
        return Jet(parts[0], parts[1], parts[2] if pairs is not None else None, jet.tape)
    y = func(jet.value, *rest, **kwargs)
    if y.shape != jet.shape:  # constants that broadcast
        return _any(name, func, args, kwargs)
    tape = jet.tape
    with tape.tangents():
        x, out = tape.frozen(jet.value), tape.frozen(y)
        if name in _DERIVATIVES and not rest and not kwargs:
            if (
                name in activations.FUSED
                and tape.pairs is None
                and not tape.differentiable
                and len(jet.first) == 1
            ):
                return Jet(y, activations.FUSED[name](jet.first, x, out), None, tape)
            slope, bend = _DERIVATIVES[name](x, out, 1 if tape.pairs is None else 2)
        else:
            slope, bend = _derivatives(
                lambda x: func(x, *rest, **kwargs), x, tape, name not in _PIECEWISE_LINEAR
            )
    return jet.chain(y, slope, bend)


def _fusible(jet: Jet) -> bool:
    tape = jet.tape
    return (
        tape.differentiable
        and tape.recorded is None
        and activations.usable(jet.value, jet.first, jet.second)
    )


def _derivatives(
    f: Callable[[Tensor], Tensor], x: Tensor, tape: Tape, bends: bool
) -> tuple[Tensor, Tensor | None]:
    """``f′`` and ``f″`` by forward mode."""
    ones = torch.ones_like(x)
    slope = lambda x: jvp(f, (x,), (ones,))[1]  # noqa: E731 (one expression)
    if tape.pairs is None or not bends:
        return slope(x), None
    # Without gradient mode some kernels (SiLU, Mish) record a backward that has no derivative of
    # its own.
    with torch.enable_grad():
        twice: Any = jvp(slope, (x,), (ones,))
    return tape.frozen(twice[0]), tape.frozen(twice[1])


def _any(name: str, func: Any, args: Any, kwargs: Any) -> Any:
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
    if any(isinstance(x, Tensor) and x.is_complex() for x in results):
        raise NotImplementedError(f"{name} gives complex numbers, which do not know Taylor mode")
    smooth = [i for i, x in enumerate(results) if isinstance(x, Tensor) and x.is_floating_point()]
    if not smooth:
        return out

    def f(*values: Tensor) -> tuple[Tensor, ...]:
        results = pytree.tree_flatten(call(*values))[0]
        return tuple(results[i] for i in smooth)

    tape = jets[0].tape
    firsts, seconds = _any_derivatives(f, jets, [results[i] for i in smooth])
    for i, first, second in zip(smooth, firsts, seconds, strict=True):
        results[i] = Jet(results[i], first, second, tape)
    _viewed(jets, results)
    return pytree.tree_unflatten(results, shape)


def _substituted(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    inplace = kwargs.pop("inplace", False)
    out = primitives.BY_NAME[name](partial(_alone, func), *args, **kwargs)
    return _written(name, args[0], out) if inplace else out


def _alone(func: Any, *args: Any, **kwargs: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return _any("", func, args, kwargs)


def _any_derivatives(f: Any, jets: list[Jet], results: list[Tensor]) -> tuple[Any, Any]:
    tape = jets[0].tape
    values = tuple(tape.frozen(x.value) for x in jets)
    tangents = tuple(x.first for x in jets)
    push = lambda *v: jvp(f, values, v)[1]  # noqa: E731 (one expression)
    with tape.tangents():
        firsts = vmap(push)(*tangents)
        if tape.pairs is None:
            return firsts, [None] * len(firsts)
        i, j = tape.pairs.i, tape.pairs.j
        with torch.enable_grad():
            twice = vmap(lambda u, v: jvp(lambda *x: jvp(f, x, u)[1], values, v)[1])
            bent = twice(tuple(t[i] for t in tangents), tuple(t[j] for t in tangents))
        # torch marks derivatives that vanish identically: a function that is linear bends nothing.
        quadratics = tuple(None if q._is_zerotensor() else tape.frozen(q) for q in bent)
        seconds: Any = [None] * len(firsts)
        if any(x.second is not None for x in jets):
            full = (
                x.value.new_zeros(len(i), *x.shape) if x.second is None else x.second for x in jets
            )
            seconds = vmap(push)(*full)
        k = len(tangents[0])
        return firsts, [
            _bent(tape, *parts, k) for parts in zip(results, quadratics, seconds, strict=True)
        ]


def _bent(
    tape: Tape, y: Tensor, quadratic: Tensor | None, second: Tensor | None, k: int
) -> Tensor | None:
    """Record what an operation bends, or add it to the second derivatives that it passes on."""
    if tape.recorded is None or quadratic is None:
        return _plus(second, quadratic)
    assert tape.pairs is not None
    tape.recorded.append((y, _Quadratic(quadratic, tape.pairs, k, tape.batch)))
    return None


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def _spread(jet: Jet, y: Tensor, sign: int) -> tuple[Tensor, Tensor | None, Tape]:
    """The derivatives of a summand, broadcast to the sum."""
    tape = jet.tape
    with tape.tangents():
        parts = []
        for part in (jet.first, jet.second):
            if part is not None and jet.shape != y.shape:
                part = part.reshape(len(part), *(1,) * (y.ndim - jet.ndim), *jet.shape).expand(
                    -1, *y.shape
                )
            parts.append(part if part is None or sign > 0 else -part)
    first, second = parts
    assert first is not None
    return first, second, tape


def _has_jets(x: Any) -> bool:
    if isinstance(x, (list, tuple)):
        return any(map(_has_jets, x))
    return isinstance(x, Jet) or (isinstance(x, dict) and any(map(_has_jets, x.values())))


def _in_place(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """``x.op_()`` as ``x = x.op()``."""
    target, plain = args[0], getattr(Tensor, name.removesuffix("_"))
    if not isinstance(target, Jet):
        raise NotImplementedError(f"{name} writes a point's derivatives into a constant")
    return _written(name, target, Jet.__torch_function__(plain, (), args, kwargs))


def _turned_in_place(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """``x.transpose_()`` and its like: another shape, the same memory."""
    target = args[0]
    out = Jet.__torch_function__(getattr(Tensor, name.removesuffix("_")), (), args, kwargs)
    target.value, target.first, target.second = out.value, out.first, out.second
    return target


def _augmented(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """``x += y`` and its like. A constant x is bound anew: its memory cannot hold derivatives."""
    plain = getattr(Tensor, name.replace("__i", "__", 1))
    out = Jet.__torch_function__(plain, (), args, kwargs)
    return _written(name, args[0], out) if isinstance(args[0], Jet) else out


def _refused(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    raise NotImplementedError(f"{name} does not know Taylor mode")


# ``op′`` and ``op″``, as far as the order asks for them, from input and output.
_DERIVATIVES: dict[str, Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor | None]]] = {
    "silu": lambda x, y, order: activations.silu(x, order)[:2],
    "tanh": lambda x, y, order: activations.tanh(y, order)[:2],
    "sigmoid": lambda x, y, order: activations.sigmoid(y, order)[:2],
    "sin": lambda x, y, order: (x.cos(), -y),
    "cos": lambda x, y, order: (-x.sin(), -y),
    "exp": lambda x, y, order: (y, y),
    "square": lambda x, y, order: (2 * x, torch.full_like(x, 2.0)),
    "relu": lambda x, y, order: ((x > 0).to(x), None),
}
_PIECEWISE_LINEAR = frozenset(
    "relu relu6 leaky_relu hardtanh threshold abs absolute clamp clamp_min clamp_max clip floor ceil round trunc "
    "sign hardshrink softshrink prelu special_round".split()
)
_SMOOTH = (
    "silu tanh sigmoid sin cos exp square pow float_power rpow sqrt rsqrt reciprocal log log2 log10 log1p exp2 expm1 "
    "tan asin acos atan arcsin arccos arctan sinh cosh asinh acosh atanh arcsinh arccosh arctanh erf erfc erfinv "
    "logit lgamma digamma gelu softplus elu selu celu mish log_sigmoid softsign tanhshrink hardsigmoid hardswish xlogy "
    "sinc i0 deg2rad rad2deg "
    # As torch.special calls them.
    "special_digamma special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit "
    "special_expm1 special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr "
    "special_logit special_ndtr special_ndtri special_psi special_sinc special_xlog1py special_xlogy"
)
_STRUCTURAL = (
    "reshape view flatten unflatten unsqueeze squeeze permute transpose t movedim moveaxis swapaxes swapdims adjoint "
    "expand expand_as view_as reshape_as type_as broadcast_to repeat tile repeat_interleave sum mean nansum cumsum "
    "neg select narrow index_select gather take take_along_dim roll flip fliplr flipud rot90 diff diagonal diag "
    "diag_embed tril triu unfold fold chunk split tensor_split hsplit vsplit dsplit unbind to double float clone "
    "contiguous positive trace interpolate upsample avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d pixel_shuffle pixel_unshuffle channel_shuffle __getitem__"
)
_QUERIES = (
    "size dim ndimension numel nelement stride is_floating_point is_complex is_contiguous element_size get_device "
    "type __len__ __repr__ __format__ __str__ __bool__ __contains__ is_same_size is_signed is_inference is_nonzero "
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty "
    "new_full new_tensor item tolist argmax argmin argsort isnan isfinite isinf isclose allclose equal __hash__ "
    "storage_offset is_tensor is_storage result_type can_cast"
)
# Of those, what leaves all numbers in their order, what looks at each of them alone, and at which
# place after the first argument the others take the one axis along which they work.
_REORDERING = frozenset(
    "reshape view flatten unflatten unsqueeze squeeze view_as reshape_as".split()
)
_POINTWISE = frozenset("neg clone contiguous positive double float".split())
_AXIS = {
    **dict.fromkeys("sum mean cumsum unbind select narrow".split(), 0),
    **dict.fromkeys("split chunk".split(), 1),
}
_AFFINE = "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"
_IN_PLACE = (
    "add_ sub_ mul_ div_ relu_ tanh_ sigmoid_ exp_ sin_ cos_ square_ sqrt_ neg_ clamp_ pow_ reciprocal_ log_ abs_ "
    "clamp_min_ clamp_max_ erf_ erfc_ expm1_ log1p_ rsqrt_ atan_ sinh_ cosh_ asinh_"
)
# Of other arguments than the first, these look at shape, dtype and device alone.
_LIKE = frozenset("to type_as expand_as view_as reshape_as".split())
_RULES: dict[str, Callable[[str, Any, Any, Any], Any]] = {
    **dict.fromkeys(_QUERIES.split(), _query),
    **dict.fromkeys(_STRUCTURAL.split(), _linear),
    **dict.fromkeys(_AFFINE.split(), _affine),
    **dict.fromkeys(_SMOOTH.split(), _elementwise),
    **dict.fromkeys(_PIECEWISE_LINEAR, _elementwise),
    **dict.fromkeys(
        ("cat", "stack", "hstack", "vstack", "dstack", "column_stack", "concat"), _joined
    ),
    **dict.fromkeys(("add", "sub", "rsub"), _sum),
    "broadcast_tensors": _broadcast,
    "where": _where,
    **dict.fromkeys(
        ("mul", "matmul", "mm", "bmm", "dot", "mv", "outer", "inner", "kron"), _product
    ),
    **dict.fromkeys(("div", "rdiv"), _quotient),
    **dict.fromkeys(_IN_PLACE.split(), _in_place),
    **dict.fromkeys(
        "unsqueeze_ squeeze_ transpose_ t_ swapaxes_ swapdims_".split(), _turned_in_place
    ),
    **dict.fromkeys(("__iadd__", "__isub__", "__imul__", "__itruediv__", "__ipow__"), _augmented),
    **dict.fromkeys(
        "__setitem__ __set__ __delete__ detach data_ptr numpy __array__ __imod__ __ifloordiv__ __imatmul__ __iand__ "
        "__ior__ __ixor__ __ilshift__ __irshift__ as_strided set_ resize_ requires_grad_".split(),
        _refused,
    ),
}
_ALIASES = {
    **{
        f"__{name}__": name
        for name in ("add", "sub", "mul", "matmul", "pow", "neg", "rsub", "rpow", "rdiv", "abs")
    },
    "__radd__": "add",
    "__rmul__": "mul",
    "__truediv__": "div",
    "__div__": "div",
    "__rtruediv__": "rdiv",
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "negative": "neg",
    "concatenate": "concat",
}
