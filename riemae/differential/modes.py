"""Ways to differentiate a map ``f: (b, m) -> (b, D)``, one chunk of points at a time.

Taylor mode (:mod:`riemae.differential.taylor`) is the fastest by far; nested ``torch.func`` takes
more kinds of maps; reverse mode twice takes all that has a second backward, by ``torch.autograd``
alone where ``torch.func`` does not take it; reverse mode once, and differences of it, takes what
has no second one. :class:`riemae.differential.derivatives.Differential` tries them in this order.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp as reverse_vjp
from torch.func import vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import riemae.differential.rules  # noqa: F401 (registers the rules)
from riemae.differential.primitives import with_primitives
from riemae.differential.jets import Jet
from riemae.differential.tape import Pairs, Tape, bending
from riemae.exceptions import DifferentiationError
from riemae.numerics.threads import TURN, Shared, jvp
from riemae.numerics.transforms import refuse_compiling

BatchedMap = Callable[[Tensor], Tensor]
Covectors = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def _portable_kernels() -> Iterator[None]:
    """Switch fused attention off, oneDNN's and the transformer's fused layers, which have no
    derivative.

    One thread at a time: a mode without them that is tried in the meantime would seem to work.
    ``torch.backends.mkldnn.flags`` would also touch, and warn of, TF32.
    """
    with TURN, sdpa_kernel(SDPBackend.MATH), _without_fused_layers():
        yield


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    before, fast = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
        torch.backends.mha.set_fastpath_enabled(fast)


_EAGER = Shared(lambda: torch.compiler.set_stance("force_eager"))


@dataclass(frozen=True)
class Mode(ABC):
    """One way to differentiate.

    ``portable`` switches fused kernels off, which often lack derivatives.
    """

    name: str
    portable: bool = True
    announced: bool = False
    approximate: bool = False

    def active(self, second_order: bool, primitives: bool = True) -> AbstractContextManager[Any]:
        """What must hold while the mode is at work.

        ``primitives`` unless the map itself brings them.
        """
        wanted: list[Callable[[], AbstractContextManager[Any]]] = []
        if "torch._dynamo" in sys.modules:
            refuse_compiling()
            if hasattr(torch.compiler, "set_stance"):
                wanted.append(_EAGER)  # nothing here is to be compiled
        if primitives:
            wanted.append(with_primitives)
        if self.portable:
            wanted.append(_portable_kernels)
        if second_order or self.announced:
            # Without gradient mode some kernels (SiLU, Mish) record a backward that has no
            # derivative of its own.
            wanted.append(torch.enable_grad)
        if len(wanted) > 1:
            return _all(wanted)
        return wanted[0]() if wanted else nullcontext()

    @abstractmethod
    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, again: bool
    ) -> tuple[Tensor, ...]:  # (b, m), (c, b, m) -> (b, D), (c, b, D)[, (p, b, D)]
        """``f``, ``J u_i``, and for ``pairs`` ``∂²f(u_i, u_j)``.

        ``again``: to be differentiated again.
        """

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], again: bool
    ) -> tuple[Tensor, Tensor]:  # (b, m), (b, D) -> (b, D), (b, m)
        """``f`` and ``Jᵀw`` with ``w = covector(f)``."""
        x, pull = reverse_vjp(f, z)[:2]
        return x, pull(covector(x))[0]

    def gram(
        self,
        f: BatchedMap,
        z: Tensor,
        v: Tensor,
        lower: Callable[[Tensor, Tensor], Tensor],
        again: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``f``, ``Jv`` and ``Jᵀ lower(f, Jv)``."""
        x, tangents = self.forward(f, z, v[None], None, again)
        tangent = tangents[0]
        x, pulled = self.reverse(f, z, lambda x: lower(x, tangent), again)
        return x, tangent, pulled

    @abstractmethod
    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, again: bool
    ) -> tuple[Tensor, Tensor, Tensor]:  # -> (b, D), (c, b, D), (s, b, m, m)
        """``f``, ``J`` (directions first), and ``a·∂²f`` for covectors ``a = covectors(f, J)``
        ``(s, b, D)``.
        """


@contextmanager
def _all(contexts: list[Callable[[], AbstractContextManager[Any]]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield


def basis(z: Tensor) -> Tensor:  # (b, m) -> (m, b, m)
    """The coordinate directions at every point."""
    m = z.shape[-1]
    return torch.eye(m, dtype=z.dtype, device=z.device)[:, None].expand(m, *z.shape)


@dataclass(frozen=True)
class Taylor(Mode):
    """All derivatives in one pass."""

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, again: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`Mode`."""
        with torch.set_grad_enabled(again):
            tape = Tape(again, len(z), pairs)
            x, *parts = self._parts(f(Jet(z, directions, None, tape)), len(directions))
        if pairs is None:
            return x, parts[0]
        second = parts[1] if len(parts) > 1 else parts[0].new_zeros(len(pairs), *x.shape)
        return x, parts[0], second

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], again: bool
    ) -> tuple[Tensor, Tensor]:
        """As in :class:`Mode`."""
        start = _leaf(z, again)
        x = f(start)
        out = x if again else x.detach()
        return out, _pulled(x, [start], covector(out), again)[0]

    def gram(
        self,
        f: BatchedMap,
        z: Tensor,
        v: Tensor,
        lower: Callable[[Tensor, Tensor], Tensor],
        again: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`Mode`; the reverse pass goes through the primal of the forward one."""
        start, tape = _leaf(z, again), Tape(again, len(z))
        x, tangents = self._parts(f(Jet(start, v[None], None, tape)), 1)[:2]
        out = x if again else x.detach()
        with torch.set_grad_enabled(again):
            covector = lower(out, tangents[0])
        return out, tangents[0], _pulled(x, [start], covector, again)[0]

    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, again: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`Mode`, from one forward pass, and one reverse pass a covector."""
        m = z.shape[-1]
        start, tape = _leaf(z, again), Tape(again, len(z), Pairs.all(m), recorded=[])
        x, j = self._parts(f(Jet(start, basis(z), None, tape)), m)[:2]
        out = x if again else x.detach()
        with torch.set_grad_enabled(again):
            rows = covectors(out, j).unbind()
        forms = []
        for i, a in enumerate(rows):
            pull = partial(_pulled, x, a=a, again=again, keep=i + 1 < len(rows))
            forms.append(bending(tape, pull, z))
        with torch.set_grad_enabled(again):
            return out, j, torch.stack(forms)

    @staticmethod
    def _parts(x: Any, k: int) -> tuple[Tensor, ...]:
        if isinstance(x, Jet):
            return (x.value, x.first) if x.second is None else (x.value, x.first, x.second)
        return x, x.new_zeros(k, *x.shape)  # a constant map


def _leaf(z: Tensor, again: bool) -> Tensor:
    """Points from which a reverse pass can start."""
    return z.view_as(z) if again and z.requires_grad else z.detach().requires_grad_()


def _pulled(
    x: Tensor, ends: list[Tensor], a: Tensor, again: bool, keep: bool = False
) -> tuple[Tensor, ...]:
    if not x.requires_grad:
        return tuple(torch.zeros_like(y) for y in ends)
    return torch.autograd.grad(
        x, ends, a, retain_graph=again or keep, create_graph=again, materialize_grads=True
    )


@dataclass(frozen=True)
class Nested(Mode):
    """``torch.func``, forward mode over forward mode.

    ``vectorised`` over the directions or one after the other.
    """

    vectorised: bool = True

    def push(self, f: BatchedMap, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``Jv``."""
        x, tangent = jvp(f, (z,), (v,))
        return x, tangent

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, again: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`Mode`."""
        # The primal does not depend on the direction: vmap computes it once and returns it
        # expanded.
        x, first = self._along(lambda v: self.push(f, z, v), directions)
        if pairs is None:
            return x[0], first
        second = self._along(
            lambda u, v: self.push(lambda z: self.push(f, z, v)[1], z, u)[1],
            directions[pairs.i],
            directions[pairs.j],
        )
        return x[0], first, second

    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, again: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`Mode`, by m forward products of ``Jᵀa`` a covector."""
        x, j = self.forward(f, z, basis(z), None, again)
        forms = torch.stack([self._contraction(f, z, a) for a in covectors(x, j).unbind()])
        return x, j, (forms + forms.mT) / 2

    def _contraction(self, f: BatchedMap, z: Tensor, a: Tensor) -> Tensor:  # -> (b, m, m)
        pulled = lambda z: reverse_vjp(f, z)[1](a)[0]  # noqa: E731 (one expression)
        return self._along(lambda e: self.push(pulled, z, e)[1], basis(z)).movedim(0, -1)

    def _along(self, f: Callable[..., Any], *directions: Tensor) -> Any:
        """``f`` of each row of ``directions``, stacked along a new first axis."""
        if self.vectorised:
            return vmap(f)(*directions)
        rows = [f(*row) for row in zip(*directions, strict=True)]
        if isinstance(rows[0], tuple):
            return tuple(torch.stack(column) for column in zip(*rows, strict=True))
        return torch.stack(rows)


@dataclass(frozen=True)
class Reverse(Nested):
    """``Jv`` as the derivative of ``Jᵀw`` in w: for maps without forward mode."""

    announced: bool = True
    vectorised: bool = False

    def push(self, f: BatchedMap, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``Jv``."""
        x = f(z)
        pull = reverse_vjp(lambda w: reverse_vjp(f, z)[1](w)[0], torch.zeros_like(x))[1]
        return x, pull(v)[0]


@dataclass(frozen=True)
class Plain(Reverse):
    """Reverse mode twice by torch.autograd alone: for what ``torch.func`` does not take.

    Those are ``autograd.Function`` without ``setup_context``, custom operators, hooks, maps that
    differentiate inside.
    """

    def push(self, f: BatchedMap, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f`` and ``Jv``."""
        with torch.enable_grad():
            x, linear, w = self._linear(f, _leaf(z, True))
            return x, _along(linear, w, v)

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, again: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`Mode`."""
        with torch.enable_grad():
            start = _leaf(z, True)
            x, linear, w = self._linear(f, start)
            first = torch.stack([_along(linear, w, v) for v in directions])
            if pairs is None:
                return x, first
            second = []
            for i in dict.fromkeys(pairs.i):
                a = torch.zeros_like(x).requires_grad_()
                bent = _pulled(first[i], [start], a, True, True)[0]  # ∂(Jᵀa u_i), linear in a
                columns = [j for left, j in zip(pairs.i, pairs.j, strict=True) if left == i]
                second += [_pulled(bent, [a], directions[j], True, True)[0] for j in columns]
            order = [
                n for i in dict.fromkeys(pairs.i) for n, left in enumerate(pairs.i) if left == i
            ]
            places = sorted(range(len(order)), key=order.__getitem__)
            return x, first, torch.stack([second[n] for n in places])

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], again: bool
    ) -> tuple[Tensor, Tensor]:
        """As in :class:`Mode`."""
        with torch.enable_grad():
            start = _leaf(z, True)
            x = _graph(f, start)
            return x, _pulled(x, [start], covector(x if again else x.detach()), True)[0]

    def _contraction(self, f: BatchedMap, z: Tensor, a: Tensor) -> Tensor:  # -> (b, m, m)
        with torch.enable_grad():
            start = _leaf(z, True)
            slope = _pulled(_graph(f, start), [start], a, True)[0]
            rows = [_pulled(slope, [start], e, True, True)[0] for e in basis(z)]
            return torch.stack(rows, -2)

    @staticmethod
    def _linear(f: BatchedMap, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``f``, ``Jᵀw`` with its graph, and w."""
        x = _graph(f, start)
        w = torch.zeros_like(x).requires_grad_()
        return x, _pulled(x, [start], w, True)[0], w


@dataclass(frozen=True)
class Differences(Nested):
    """``J`` row by row in reverse mode, and central differences of it: for maps with one backward
    pass alone.

    Those are ``once_differentiable`` functions, backward passes by numpy, adjoint equations. What
    comes of it cannot be differentiated again, and says so.
    """

    announced: bool = True
    approximate: bool = True

    def forward(
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, again: bool
    ) -> tuple[Tensor, ...]:
        """As in :class:`Mode`."""
        x, j = self._rows(f, z)
        first = torch.einsum("bdm,cbm->cbd", j, directions)
        if pairs is None:
            return _closed(again, x, first)
        parts: list[Tensor] = []
        for i, columns, _ in pairs.runs:
            u = directions[i]
            h = _reach(z) / u.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
            change = (self._rows(f, z + h * u)[1] - self._rows(f, z - h * u)[1]) / (
                2 * h[..., None]
            )
            parts.append(torch.einsum("bdm,cbm->cbd", change, directions[columns]))
        return _closed(again, x, first, torch.cat(parts))

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], again: bool
    ) -> tuple[Tensor, Tensor]:
        """As in :class:`Mode`."""
        x, pulled = self._pull(f, z, covector)
        out: tuple[Tensor, Tensor] = _closed(again, x, pulled)  # type: ignore[assignment]
        return out

    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, again: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in :class:`Mode`, by 2 m more reverse passes a covector."""
        x, j = self._rows(f, z)
        first, h, forms = j.movedim(-1, 0), _reach(z), []
        for a in covectors(x, first).detach().unbind():
            fixed = partial(_first, a)
            rows = [
                (self._pull(f, z + h * e, fixed)[1] - self._pull(f, z - h * e, fixed)[1]) / (2 * h)
                for e in basis(z)
            ]
            forms.append(torch.stack(rows, -2))
        form = torch.stack(forms)
        out: tuple[Tensor, Tensor, Tensor] = _closed(again, x, first, (form + form.mT) / 2)  # type: ignore[assignment]
        return out

    @staticmethod
    def _pull(
        f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            start = z.detach().requires_grad_()
            x = _graph(f, start)
            return x.detach(), torch.autograd.grad(
                x, start, covector(x.detach()).detach(), materialize_grads=True
            )[0]

    @staticmethod
    def _rows(f: BatchedMap, z: Tensor) -> tuple[Tensor, Tensor]:  # -> (b, D), (b, D, m)
        with torch.enable_grad():
            start = z.detach().requires_grad_()
            x = _graph(f, start)
            rows = [
                torch.autograd.grad(column.sum(), start, retain_graph=True, materialize_grads=True)[
                    0
                ]
                for column in x.unbind(1)
            ]
        return x.detach(), torch.stack(rows, 1) if rows else z.new_zeros(len(z), 0, z.shape[1])


def _first(a: Tensor, _: Tensor) -> Tensor:
    return a


def _reach(z: Tensor) -> Tensor:  # (b, m) -> (b, 1)
    """Steps of central differences in which their own error and rounding are alike small."""
    return torch.finfo(z.dtype).eps ** (1 / 3) * (1 + z.detach().abs().amax(-1, keepdim=True))


class _End(torch.autograd.Function):
    """What nobody can differentiate any further."""

    @staticmethod
    def forward(ctx: Any, _: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        """The parts as they are."""
        return tuple(x.clone() for x in parts)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """Refuse.

        Raises:
            DifferentiationError: Always.
        """
        raise DifferentiationError(
            "differential",
            "results that are not differentiated again",
            "a derivative of them, where the decoder's own has none",
            "Work under torch.no_grad(), or give the decoder a backward pass that can be differentiated.",
        )


def _closed(again: bool, *parts: Tensor) -> tuple[Tensor, ...]:
    """Results that say so when somebody differentiates them again."""
    if not again:
        return parts
    out: tuple[Tensor, ...] = _End.apply(
        torch.zeros((), requires_grad=True), *(x.detach() for x in parts)
    )
    return out


def _along(linear: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """The derivative of ``Jᵀw`` in w along v, which is ``Jv``.

    Raises:
        RuntimeError: When a backward pass does not say how it depends on w, as with
            ``once_differentiable`` or numpy.
    """
    found = None
    if linear.requires_grad:
        (found,) = torch.autograd.grad(
            linear, w, v, retain_graph=True, create_graph=True, allow_unused=True
        )
    if found is None:
        raise RuntimeError("its derivative cannot be differentiated again")
    return found


def _graph(f: BatchedMap, start: Tensor) -> Tensor:
    x = f(start)
    if not x.requires_grad:
        raise RuntimeError("the output has no graph that leads to the points")
    return x


NESTED = (
    Nested("forward mode", portable=False),
    Nested("forward mode with portable kernels"),
    Nested("forward mode, one direction at a time", vectorised=False),
    Reverse("reverse mode twice"),
)
PORTABLE = Taylor("Taylor mode with portable kernels")
PLAIN = Plain("reverse mode twice by torch.autograd")
DIFFERENCES = Differences("reverse mode once", vectorised=False)
MODES = (Taylor("Taylor mode", portable=False), PORTABLE, *NESTED, PLAIN, DIFFERENCES)
