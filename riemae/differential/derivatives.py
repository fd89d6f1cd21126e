"""Derivatives of any batched map ``f: (k, m) -> (k, *shape)``, by the fastest mode that is right.

They are Jacobian, JVP, VJP and second derivatives. Value, tangents and second derivatives come from
one pass in Taylor mode (:mod:`riemae.differential.jets`), never from a loop over the outputs. For a
map that it cannot treat, other modes are tried in this order: Taylor mode with portable kernels;
forward mode of ``torch.func``, nested for second derivatives, then with portable kernels, then one
direction at a time; reverse mode twice (``Jv`` as the derivative of ``Jᵀw`` in w), then by
``torch.autograd`` alone; reverse mode once and differences of it
(:mod:`riemae.differential.modes.order`). Reverse mode twice is announced once by a
:class:`~riemae.exceptions.FallbackWarning`, differences by an
:class:`~riemae.exceptions.ApproximationWarning`.

A mode is compared with plain autograd before it is trusted (:mod:`riemae.differential.trust`).
Everything works in chunks that fit into a processor's cache (:mod:`riemae.differential.chunks`).
Every result can be differentiated again, except those of differences.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from riemae.differential.chunks import Chunks
from riemae.differential.comparison import IN_GRADIENT_MODE
from riemae.differential.compiled import Compiled, Compiler
from riemae.differential.conditions import Condition
from riemae.differential.known import Known
from riemae.differential.modes import BatchedMap, Mode, Nested, Taylor, basis
from riemae.differential.results import points_first, where_defined
from riemae.differential.rowwise import Rowwise, unoptimised
from riemae.differential.rules.generic import watched
from riemae.differential.tape import Pairs
from riemae.differential.trust import Trust
from riemae.exceptions import RiemaeError
from riemae.numerics.compiling import Compiling
from riemae.numerics.memory import is_shortage

ALL_KINDS = ("jacobian", "contraction", "vjp")


class Differential:
    """Derivatives of one map.

    The map is taken as ``(k, m) -> (k, D)``, whatever the shape of its output.

    Args:
        f: ``(k, m) -> (k, *shape)``, row by row. After :meth:`conditioned` it is called with the
            :class:`~riemae.differential.conditions.Condition` of these rows as a second argument.
        chunk_size: Points per chunk; by default chosen by bytes.
        what: What the map is called in errors. None stands for a map that is built on derivatives
            which have been compared; its values may vanish except for rounding of numbers of
            size 1.
        compiling: What passes are compiled with; None to compile none.

    Attributes:
        compiler: The compiled passes; nothing is compiled before somebody watches the map
            (:meth:`~riemae.differential.compiled.Compiler.watch`).
    """

    def __init__(
        self,
        f: Callable[..., Tensor],
        chunk_size: int | None = None,
        what: str | None = "a map",
        compiling: Compiling | None = None,
    ) -> None:
        self._f = Rowwise(unoptimised(f))
        self._chunks = Chunks(chunk_size)
        self._trust = Trust(self._chunks, what)
        self.compiler = None if compiling is None else Compiler(compiling)

    # Copies share what has been found out about the map: modes are chosen, and announced, once.

    def batch_invariant(self) -> Differential:
        """The same map, with the same bits for a point alone and in any batch.

        See :mod:`riemae.numerics.batch_invariance`.
        """
        twin = copy.copy(self)
        twin._chunks = replace(self._chunks, batch_invariant=True)
        return twin

    def called(self, f: Callable[..., Tensor]) -> Differential:
        """The same map, called in another way: what has been found out about it holds for both."""
        twin = copy.copy(self)
        twin._f = replace(self._f, function=unoptimised(f))
        return twin

    def conditioned(self, condition: Condition | None) -> Differential:
        """The same map under the conditions of rows.

        There is one for each point, or one for each of equally many neighbours. At a fixed
        condition it is a map of the points alone, and modes are compared on it as such.
        """
        twin = copy.copy(self)
        twin._f = self._f.conditioned(condition)
        return twin

    @property
    def known(self) -> Known:
        """What has been found out about the map."""
        return self._trust.known

    def share(self, known: Known, same: Callable[[], bool]) -> None:
        """Take over what is known of the same function, and tell of what is found out later.

        Args:
            known: The :attr:`known` of another one, or of this.
            same: Whether the map is still that function.
        """
        self._trust.share(known, same)

    def value(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D)
        """``f(z)``."""
        return self._chunks.apply(self._f, 1, _flat_value, z)

    def jets(
        self,
        z: Tensor,
        directions: Tensor | None = None,
        pairs: Pairs | None = None,
        then: Callable[..., Any] | None = None,
    ) -> Any:  # (k, m), (k, c, m) -> (k, D), (k, D, c)[, (k, D, p)]
        """``f``, ``J u_i`` and, for ``pairs``, ``∂²f(u_i, u_j)``.

        All other forward derivatives come from this call.

        Args:
            z: Points.
            directions: ``u``, c of them at every point; by default the coordinate directions.
            pairs: The p pairs (i, j) whose second derivatives are wanted.
            then: Applied to each chunk's results while they are in the cache, with one row per
                point. Its own results are returned instead.
        """
        given: tuple[Tensor, ...] = ()
        c = z.shape[-1]
        if directions is not None:
            given = (directions,)
            c = directions.shape[1]
        if pairs is None:
            kind = "jacobian"
            passes = 1 + 2 * c
        else:
            kind = "second derivatives"
            passes = 1 + 2 * c + len(pairs)

        def formula(
            mode: Mode, f: BatchedMap, create_graph: bool, z: Tensor, *given: Tensor
        ) -> Any:
            u = given[0].transpose(0, 1) if given else basis(z)
            x, *parts = mode.forward(f, z, u, pairs, create_graph)
            points_first = [part.movedim(0, -1) for part in parts]
            parts = where_defined(x, points_first)
            if then is None:
                return (x, *parts)
            return then(x, *parts)

        return self._run(kind, passes, formula, z, *given)

    def value_and_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:  # (k, m) -> (k, D), (k, D, m)
        """``f(z)`` and ``J(z)``."""
        return self.jets(z)

    def jacobian(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D, m)
        """``J(z)``."""
        _, j = self.value_and_jacobian(z)
        return j

    def jvp(
        self, z: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor]:  # (k, m), (k, m) -> (k, D), (k, D)
        """``f(z)`` and ``Jv``."""
        x, tangents = self.jets(z, v[:, None])
        return x, tangents[..., 0]

    def vjp(
        self, z: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor]:  # (k, m), (k, D) -> (k, D), (k, m)
        """``f(z)`` and ``Jᵀw``."""

        def formula(mode: Mode, f: BatchedMap, create_graph: bool, z: Tensor, w: Tensor) -> Any:
            return mode.reverse(f, z, lambda x: w, create_graph)

        return self._run("vjp", 2, formula, z, w)

    def gram_product(
        self, z: Tensor, v: Tensor, lower: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:  # -> (k, D), (k, D), (k, m)
        """``f(z)``, ``Jv`` and ``JᵀHJv``: one forward and one reverse product.

        Args:
            z: Points.
            v: Tangents.
            lower: ``(x, Jv) -> HJv``; by default the identity.
        """
        chosen = lower or (lambda x, tangent: tangent)

        def formula(mode: Mode, f: BatchedMap, create_graph: bool, z: Tensor, v: Tensor) -> Any:
            return mode.gram(f, z, v, chosen, create_graph)

        return self._run("gram", 4, formula, z, v)

    def taylor(
        self, z: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # (k, m), (k, m) -> (k, D) x 3
        """``f(z)``, ``Jv`` and ``∂²f(v, v)``: the Taylor expansion along a line."""
        x, tangents, second = self.jets(z, v[:, None], Pairs([0], [0]))
        return x, tangents[..., 0], second[..., 0]

    def second_derivative(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (k, m) x 3 -> (k, D)
        """``∂²f(u, v)``."""
        directions = torch.stack([u, v], 1)
        _, _, second = self.jets(z, directions, Pairs([0], [1]))
        return second[..., 0]

    def second_jet(
        self, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # -> (k, D), (k, D, m), (k, D, m, m)
        """Value, Jacobian and all second derivatives."""
        pairs = Pairs.all(z.shape[-1])
        x, j, second = self.jets(z, pairs=pairs)
        return x, j, pairs.full(second)

    def hessian(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D, m, m)
        """All second derivatives."""
        _, _, second = self.second_jet(z)
        return second

    def contraction(self, z: Tensor, a: Tensor) -> Tensor:  # (k, m), (k, D) -> (k, m, m)
        """``a·∂²f``, without a D × m × m array."""

        def given(x: Tensor, j: Tensor, a: Tensor) -> Tensor:
            return a

        _, _, forms = self.contractions(z, a[:, None], given)
        return forms[:, 0]

    def contractions(
        self, z: Tensor, a: Tensor, covectors: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:  # (k, m), (k, s, D) -> (k, D), (k, D, m), (k, s, m, m)
        """``f``, ``J`` and ``c·∂²f`` for covectors ``c = covectors(f, J, a)``.

        One forward pass and s reverse ones.

        Args:
            z: Points.
            a: What the covectors are made of, s at every point.
            covectors: ``(k, D), (k, D, m), (k, s, D) -> (k, s, D)``.
        """

        def formula(mode: Mode, f: BatchedMap, create_graph: bool, z: Tensor, a: Tensor) -> Any:
            def chosen(x: Tensor, j: Tensor) -> Tensor:
                found = covectors(x, j.movedim(0, -1), a)
                return found.transpose(0, 1)

            parts = mode.expansion(f, z, chosen, create_graph)
            return points_first(parts)

        m = z.shape[-1]
        samples = a.shape[1]
        return self._run("contraction", 2 + 2 * m + samples, formula, z, a)

    def expansion(
        self, z: Tensor, covector: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:  # (k, m) -> (k, D), (k, D, m), (k, m, m)
        """``f``, ``J`` and ``a·∂²f`` with ``a = covector(f)`` of all points at once.

        One forward and one reverse pass; where these do not fit into one chunk, one for the values
        and two for each chunk.
        """
        k = z.shape[0]
        if k > self._chunks.rows(self._f, z, 2 + 2 * z.shape[-1]):
            own = covector(self.value(z))
            x, j, forms = self.contractions(z, own[:, None], lambda x, j, a: a)
            return x, j, forms[:, 0]

        def formula(mode: Mode, f: BatchedMap, create_graph: bool, z: Tensor) -> Any:
            def chosen(x: Tensor, j: Tensor) -> Tensor:
                own = covector(x[:k])
                return F.pad(own, (0, 0, 0, z.shape[0] - k))[None]

            parts = mode.expansion(f, z, chosen, create_graph)
            x, j, forms = points_first(parts)
            return x, j, forms[:, 0]

        return self._run("contraction", 0, formula, z)

    def slope(
        self, z: Tensor, covector: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:  # (k, m) -> (k, D), (k, m)
        """``f`` and ``Jᵀa`` with ``a = covector(f)``, all points at once.

        One forward and one reverse pass. ``covector`` may get more rows than there are points,
        after theirs; what it returns for them does not matter.
        """

        def formula(mode: Mode, f: BatchedMap, create_graph: bool, z: Tensor) -> Any:
            return mode.reverse(f, z, covector, create_graph)

        return self._run("vjp", 0, formula, z)

    def pushforward(self, f: BatchedMap, z: Tensor, v: Tensor) -> Tensor:
        """Directional derivative of a gradient built on this map, in the mode that works for it."""
        flat = z.reshape(-1, z.shape[-1])
        mode = self._trust.mode("pushforward", self._f, flat)
        assert isinstance(mode, Nested)
        with mode.active(second_order=True):
            _, slope = mode.push(f, z, v)
        return slope

    def modes(self, z: Tensor) -> tuple[dict[str, Mode], list[str]]:
        """Which mode is used for each kind of derivative, and functions without a rule.

        The kinds are "jacobian", "contraction" (second derivatives along a covector) and "vjp".
        """
        chosen = {kind: self._trust.mode(kind, self._f, z) for kind in ALL_KINDS}
        with watched() as names, torch.no_grad():
            self.jets(z)
            self.expansion(z, torch.ones_like)
        return chosen, sorted(set(names))

    def chunk(self, z: Tensor, passes: int) -> int:
        """Points ``(k, m)`` per chunk when ``passes`` tangents of the widest layer are held."""
        return self._chunks.rows(self._f, z, passes)

    def width(self, z: Tensor) -> int:  # (k, m)
        """Numbers per point in the widest layer."""
        return self._chunks.widths_of(self._f, z)[-1]

    def _run(
        self, kind: str, passes: int, formula: Callable[..., Any], z: Tensor, *others: Tensor
    ) -> Any:
        """A formula ``(mode, map, create_graph, *rows) -> results``, chunk by chunk.

        Raises:
            RuntimeError: What the map raises.
        """
        given = (z, *others)
        if torch.is_inference_mode_enabled() or any(x.is_inference() for x in given):
            # Nothing made in inference mode can be differentiated: work on normal copies outside of
            # it.
            grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            with torch.inference_mode(False), torch.set_grad_enabled(grad):
                copies = [x.clone() if x.is_inference() else x for x in given]
                return self._run(kind, passes, formula, *copies)
        mode = self._trust.mode(kind, self._f, z)
        create_graph = self._wants_graph(kind, given)
        second_order = kind in IN_GRADIENT_MODE
        graph = create_graph and self._is_differentiated(given)
        compiler = self._compiler_for(mode, graph, given)

        def evaluate(part: Rowwise, *chunk: Tensor) -> Any:
            if compiler is not None:
                assert isinstance(mode, Taylor)
                most = self._chunks.rows(self._f, chunk[0], passes or 2 * chunk[0].shape[-1])
                roundoff = self._trust.roundoff(self._f, z)
                compiled = Compiled(compiler, mode, part, most, roundoff, second_order, graph)
                f = part.for_mode(mode, graph, chunk[0])
                return formula(compiled, f, graph, *chunk)
            with mode.active(second_order, primitives=False):
                f = part.for_mode(mode, create_graph, chunk[0])
                out = formula(mode, f, create_graph, *chunk)
            by_graph = isinstance(mode, Nested) and (second_order or mode.announced)
            if torch.is_grad_enabled() or not by_graph:
                return out
            # A copy without the graph; detach() would also drop the tangents of a caller's forward
            # mode.
            if isinstance(out, tuple):
                return tuple(x.clone() for x in out)
            return out.clone()

        try:
            return self._chunks.apply(self._f, passes, evaluate, *given)
        except RuntimeError as reason:
            own = isinstance(reason, RiemaeError) or is_shortage(reason)
            if not isinstance(mode, Taylor) or own:
                raise
            if compiler is not None:
                compiler.stop(reason)
                return self._run(kind, passes, formula, *given)
            # A branch that no comparison has met, with something that Taylor mode cannot carry.
            key = self._trust.key(kind, self._f, z)
            self._trust.distrust(key, mode)
            return self._run(kind, passes, formula, *given)

    def _is_differentiated(self, given: tuple[Tensor, ...]) -> bool:
        """Whether results that may have a graph have one; only a compiler has to know."""
        if self.compiler is None or not len(given[0]) or any(x.requires_grad for x in given):
            return True
        first = self._f.at(0)
        return first.flat(given[0][:1]).requires_grad

    def _compiler_for(self, mode: Mode, graph: bool, given: tuple[Tensor, ...]) -> Compiler | None:
        """The compiler, where it takes this call."""
        compiler = self.compiler
        if compiler is None or not compiler.usable or not isinstance(mode, Taylor):
            return None
        if graph and not compiler.compiling.once:
            return None
        plain = all(type(x) in (Tensor, nn.Parameter) for x in given)
        return compiler if plain and not given[0].is_meta and len(given[0]) else None

    def _wants_graph(self, kind: str, given: tuple[Tensor, ...]) -> bool:
        """Whether the caller may differentiate the results."""
        if not torch.is_grad_enabled():
            return False
        z = given[0]
        if kind not in IN_GRADIENT_MODE or not len(z) or any(x.requires_grad for x in given):
            return True
        # These kinds bring a graph of their own: another is wanted only for parameters of the map.
        first = self._f.at(0)
        return first.flat(z[:1]).requires_grad


def _flat_value(f: Rowwise, z: Tensor) -> Tensor:
    chain = f.chain(z)
    return f.flat(z) if chain is None else chain(z)


def everywhere(z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
    """The coordinate directions, at every point."""
    return basis(z).transpose(0, 1)
