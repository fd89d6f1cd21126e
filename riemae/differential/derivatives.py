"""Derivatives of any batched map ``f: (k, m) -> (k, *shape)``: Jacobian, JVP, VJP, second
derivatives.

Value, tangents and second derivatives come from one pass in Taylor mode
(:mod:`riemae.differential.taylor`), never from a loop over the outputs. A map that it cannot treat
falls back to nested ``torch.func``, then to portable kernels, then to reverse mode twice (``Jv`` as
the derivative of ``Jᵀw`` in w), the last announced once by a
:class:`~riemae.exceptions.FallbackWarning`. A mode is compared with plain autograd before it is
trusted. Everything works in chunks that fit a processor's cache, and every result is differentiable
again.

Trust is earned at several generic points (:func:`riemae.numerics.probe.generic`), and earned again:
at the first large batch, and at a few of the points of every eighth, sixty-fourth … call of a kind.
What autograd says is itself compared with differences of the map.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from riemae.differential.conditions import Condition
from riemae.differential.modes import MODES, NESTED, BatchedMap, Mode, Nested, Taylor, basis
from riemae.differential.primitives import untraced, with_primitives
from riemae.differential.tape import Pairs
from riemae.exceptions import (
    ApproximationWarning,
    DifferentiationError,
    FallbackWarning,
    RiemaeError,
    ShapeError,
    stack_level,
)
from riemae.numerics import probe
from riemae.numerics.batch_invariance import padded_rows, row_multiple
from riemae.numerics.random import restored
from riemae.numerics.threads import TURN
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete, evidently_finite

# What one chunk may touch. On a processor, the tangents of the widest layer should stay in its
# cache (PERFORMANCE: 256 to 1,024 points at width 256 with 8 tangents in float64 run 1.6 to 1.9
# times faster than everything at once).
_CPU_BYTES, _DEVICE_BYTES = 8 * 2**20, 512 * 2**20
_MIN_CHUNK = 16

# Kinds of derivatives: the second order, and those whose formulas need a graph whatever the
# caller's gradient mode.
_SECOND_ORDER = ("second derivatives", "contraction", "pushforward")
_IN_GRADIENT_MODE = (*_SECOND_ORDER, "gram", "vjp")

# Points at which a mode is compared with autograd, some at a time, so that rows with different
# neighbours are.
_TRIES = ([0, 1, 2], [3, 0], [2, 3, 1])
_POINTS = 4
# A trusted mode is looked at again after so many calls, then after so many times as many.
_AGAIN = 8


INFERENCE = (
    "Nothing can be differentiated through them. Make the module outside of it, and load their values: "
    "module.load_state_dict(other.state_dict())."
)


def unoptimised(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``f``, with the optimiser of ``torch.jit.script`` off: nested derivatives through it are
    silently wrong.

    See pytorch#73972 and #84681.
    """
    owner = getattr(f, "__self__", f)
    scripts: list[Any] = [f] if isinstance(f, torch.jit.ScriptFunction) else []
    if isinstance(owner, nn.Module):
        scripts = [
            m.forward
            for m in owner.modules()
            if isinstance(m, torch.jit.ScriptModule) and hasattr(m, "forward")
        ]
        scripts = [m for m in scripts if hasattr(m, "_debug_flush_compilation_cache")]
    if not scripts:
        return f

    def call(*args: Any) -> Tensor:
        for script in scripts:  # plans made by earlier calls would still be used
            script._debug_flush_compilation_cache()
        with torch.jit.optimized_execution(False):
            return f(*args)

    return call


@dataclass
class _Trusted:
    """A mode that has been compared with autograd.

    Attributes:
        mode: Which.
        due: The call at which it is compared again; 0 for never.
        large: Whether a large batch has been seen, or cannot be looked at.
        calls: How often it has been asked for.
    """

    mode: Mode
    due: int
    large: bool
    calls: int = 1


@dataclass
class _Learned:
    """What has been found out about a map, for all of its copies.

    Attributes:
        modes: By kind of derivative and by what else matters to it.
        refused: Modes that were trusted once.
        asked: Where autograd has been compared with the map itself.
        cut: Whether autograd's second derivative lacks a part, by dtype and device.
        widths: Numbers per point in every tensor inside the map, by the kind of its conditions.
        announced: Whether a warning has been given.
    """

    modes: dict[tuple[Any, ...], _Trusted] = field(default_factory=dict)
    refused: dict[tuple[Any, ...], set[Mode]] = field(default_factory=dict)
    asked: set[tuple[Any, ...]] = field(default_factory=set)
    cut: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    widths: dict[Any, list[int]] = field(default_factory=dict)
    announced: bool = False


class Differential:
    """Derivatives of one map, which is taken as ``(k, m) -> (k, D)`` whatever the shape of its
    output.

    Args:
        f: ``(k, m) -> (k, *shape)``, row by row. After :meth:`conditioned` it is called with the
            :class:`~riemae.differential.conditions.Condition` of these rows as a second argument.
        chunk_size: Points a chunk; chosen by bytes unless given.
        what: What the map is called in errors; None for a map of riemae's own making, built on
            derivatives that have been looked at, whose values may vanish but for rounding of
            numbers of size 1.
    """

    def __init__(
        self, f: Callable[..., Tensor], chunk_size: int | None = None, what: str | None = "a map"
    ) -> None:
        self._function = unoptimised(f)
        self._chunk_size = chunk_size
        self._what = what
        self._learned = _Learned()
        self._condition: Condition | None = None
        self._batch_invariant = False

    def batch_invariant(self) -> Differential:
        """The same map, with the same bits for a point alone and in any batch: see
        :mod:`riemae.numerics.batch_invariance`.
        """
        twin = copy.copy(self)  # modes are found, and announced, once
        twin._batch_invariant = True
        return twin

    def called(self, f: Callable[..., Tensor]) -> Differential:
        """The same map, called in another way: what has been found out about it holds for both."""
        twin = copy.copy(self)
        twin._function = unoptimised(f)
        return twin

    def conditioned(self, condition: Condition | None) -> Differential:
        """The same map under the conditions of rows, one for each point or for each of equally many
        neighbours.

        At a fixed condition it is a map of the points alone, and as such it is looked at.
        """
        twin = copy.copy(self)
        twin._condition = condition
        return twin

    def _at(self, row: int) -> Differential:
        """The map under the condition of one row, for any points."""
        c = self._condition
        if c is None:
            return self
        return self.conditioned(c.select([row % len(c)]) if len(c) else c.blank())

    def value(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D)
        """``f(z)``."""
        return self._chunked(1, lambda part, z: part._flat(z), z)

    def jets(
        self,
        z: Tensor,
        directions: Tensor | None = None,
        pairs: Pairs | None = None,
        then: Callable[..., Any] | None = None,
    ) -> Any:  # (k, m), (k, c, m) -> (k, D), (k, D, c)[, (k, D, p)]
        """``f``, ``J u_i`` and, for ``pairs``, ``∂²f(u_i, u_j)``: what all forward derivatives come
        from.

        Args:
            z: Points.
            directions: ``u``, c of them at every point; the coordinate directions unless given.
            pairs: The p pairs (i, j) whose second derivatives are wanted.
            then: Applied to each chunk's results while they are in the cache; one row a point. Its
                own results are returned instead.
        """
        c = z.shape[-1] if directions is None else directions.shape[1]
        kind = "second derivatives" if pairs is not None else "jacobian"

        def formula(mode: Mode, f: BatchedMap, again: bool, z: Tensor, *given: Tensor) -> Any:
            u = given[0].transpose(0, 1) if given else basis(z)
            x, *parts = mode.forward(f, z, u, pairs, again)
            parts = _where_defined(x, [part.movedim(0, -1) for part in parts])
            return (x, *parts) if then is None else then(x, *parts)

        given = () if directions is None else (directions,)
        return self._run(kind, 1 + 2 * c + (0 if pairs is None else len(pairs)), formula, z, *given)

    def value_and_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:  # (k, m) -> (k, D), (k, D, m)
        """``f(z)`` and ``J(z)``."""
        return self.jets(z)

    def jacobian(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D, m)
        """``J(z)``."""
        return self.value_and_jacobian(z)[1]

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
        return self._run(
            "vjp", 2, lambda mode, f, again, z, w: mode.reverse(f, z, lambda x: w, again), z, w
        )

    def gram_product(
        self, z: Tensor, v: Tensor, lower: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:  # -> (k, D), (k, D), (k, m)
        """``f(z)``, ``Jv`` and ``JᵀHJv``: one forward and one reverse product through one primal.

        Args:
            z: Points.
            v: Tangents.
            lower: ``(x, Jv) -> HJv``; the identity unless given.
        """
        chosen = lower or (lambda x, tangent: tangent)
        return self._run(
            "gram", 4, lambda mode, f, again, z, v: mode.gram(f, z, v, chosen, again), z, v
        )

    def taylor(
        self, z: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # (k, m), (k, m) -> (k, D) x 3
        """``f(z)``, ``Jv`` and ``∂²f(v, v)``: the Taylor expansion along a line."""
        x, tangents, second = self.jets(z, v[:, None], Pairs([0], [0]))
        return x, tangents[..., 0], second[..., 0]

    def second_derivative(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (k, m) x 3 -> (k, D)
        """``∂²f(u, v)``."""
        return self.jets(z, torch.stack([u, v], 1), Pairs([0], [1]))[2][..., 0]

    def second_jet(
        self, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # -> (k, D), (k, D, m), (k, D, m, m)
        """Value, Jacobian and all second derivatives."""
        pairs = Pairs.all(z.shape[-1])
        x, j, second = self.jets(z, pairs=pairs)
        return x, j, pairs.full(second)

    def hessian(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D, m, m)
        """All second derivatives."""
        return self.second_jet(z)[2]

    def contraction(self, z: Tensor, a: Tensor) -> Tensor:  # (k, m), (k, D) -> (k, m, m)
        """``a·∂²f``: no D × m × m array."""
        return self.contractions(z, a[:, None], lambda x, j, a: a)[2][:, 0]

    def contractions(
        self, z: Tensor, a: Tensor, covectors: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:  # (k, m), (k, s, D) -> (k, D), (k, D, m), (k, s, m, m)
        """``f``, ``J`` and ``c·∂²f`` for covectors ``c = covectors(f, J, a)``: one forward pass, s
        reverse ones.

        Args:
            z: Points.
            a: What the covectors are made of, some at every point.
            covectors: ``(k, D), (k, D, m), (k, s, D) -> (k, s, D)``.
        """

        def formula(mode: Mode, f: BatchedMap, again: bool, z: Tensor, a: Tensor) -> Any:
            chosen = lambda x, j: covectors(x, j.movedim(0, -1), a).transpose(0, 1)  # noqa: E731 (one expression)
            return self._points_first(mode.expansion(f, z, chosen, again))

        return self._run("contraction", 2 + 2 * z.shape[-1] + a.shape[1], formula, z, a)

    def expansion(
        self, z: Tensor, covector: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:  # (k, m) -> (k, D), (k, D, m), (k, m, m)
        """``f``, ``J`` and ``a·∂²f`` with ``a = covector(f)``, all points at once: one forward, one
        reverse pass.
        """
        k = len(z)

        def formula(mode: Mode, f: BatchedMap, again: bool, z: Tensor) -> Any:
            spread = lambda x, j: F.pad(covector(x[:k]), (0, 0, 0, len(z) - k))[None]  # noqa: E731 (one expression)
            x, j, forms = self._points_first(mode.expansion(f, z, spread, again))
            return x, j, forms[:, 0]

        return self._run("contraction", 0, formula, z)

    def slope(
        self, z: Tensor, covector: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:  # (k, m) -> (k, D), (k, m)
        """``f`` and ``Jᵀa`` with ``a = covector(f)``, all points at once: one forward, one reverse
        pass.

        ``covector`` may meet more rows than there are points, behind theirs, and what it says of
        them does not matter.
        """
        return self._run("vjp", 0, lambda mode, f, again, z: mode.reverse(f, z, covector, again), z)

    def pushforward(self, f: BatchedMap, z: Tensor, v: Tensor) -> Tensor:
        """Directional derivative of a gradient built on this map, in the mode that works for it."""
        points = z.reshape(-1, z.shape[-1])
        mode = self._mode("pushforward", points)
        assert isinstance(mode, Nested)
        with mode.active(second_order=True):
            return mode.push(f, z, v)[1]

    def chunk(self, z: Tensor, passes: int) -> int:
        """Points ``(k, m)`` a chunk when ``passes`` tangents of the widest layer are held at
        once.
        """
        if not passes:
            return len(z)
        if self._chunk_size is not None:
            return self._chunk_size
        budget = _CPU_BYTES if z.device.type == "cpu" else _DEVICE_BYTES
        return max(_MIN_CHUNK, budget // (self._seen(z)[-1] * passes * z.element_size()))

    # The formulas, one chunk at a time.

    def _flat(self, z: Tensor) -> Tensor:
        x = self._evaluated(z)
        if not isinstance(x, Tensor) or not x.ndim or len(x) != len(z):
            raise ShapeError(
                "differential",
                f"a map (k, m) -> (k, *shape) that returns {len(z)} rows for {len(z)} points",
                str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__,
                "The first axis of the output must be the batch.",
            )
        return x if x.ndim == 2 else x.reshape(len(z), -1)

    def _evaluated(self, z: Tensor) -> Tensor:
        if self._condition is None:
            return self._function(z)
        return self._function(z, self._condition.spread(len(z)))

    def _map(self, mode: Mode, again: bool) -> BatchedMap:
        """The map as a formula differentiates it: what happens inside it is looked at, not the
        arithmetic around it.

        Jets bring primitives of their own, and one reverse pass that nobody differentiates needs
        none.
        """
        return self._flat if isinstance(mode, Taylor) and not again else self._exact

    def _exact(self, z: Tensor) -> Tensor:
        with with_primitives():
            return self._flat(z)

    @staticmethod
    def _points_first(parts: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x, j, forms = parts
        return x, _where_defined(x, [j.movedim(0, -1)])[0], forms.transpose(0, 1)

    # Modes and chunks.

    def _run(
        self, kind: str, passes: int, formula: Callable[..., Any], z: Tensor, *others: Tensor
    ) -> Any:
        if (
            torch.is_inference_mode_enabled()
            or z.is_inference()
            or any(x.is_inference() for x in others)
        ):
            # Nothing made in inference mode can be differentiated: work on normal copies outside of
            # it.
            grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            with torch.inference_mode(False), torch.set_grad_enabled(grad):
                z, *others = (x.clone() if x.is_inference() else x for x in (z, *others))  # type: ignore[assignment]
                return self._run(kind, passes, formula, z, *others)
        mode, again = self._mode(kind, z), torch.is_grad_enabled()
        if (
            again
            and kind in _IN_GRADIENT_MODE
            and len(z)
            and not any(x.requires_grad for x in (z, *others))
        ):
            again = (
                self._at(0)._flat(z[:1]).requires_grad
            )  # a reverse pass brings a graph of its own: none unless wanted
        second_order = kind in _IN_GRADIENT_MODE

        def evaluate(part: Differential, *chunk: Tensor) -> Any:
            with mode.active(second_order, primitives=False):
                out = formula(mode, part._map(mode, again), again, *chunk)
            if (
                torch.is_grad_enabled()
                or not isinstance(mode, Nested)
                or not (second_order or mode.announced)
            ):
                return out
            # A copy without the graph; detach() would also drop the tangents of a caller's forward
            # mode.
            return tuple(x.clone() for x in out) if isinstance(out, tuple) else out.clone()

        try:
            return self._chunked(passes, evaluate, z, *others)
        except RuntimeError as reason:  # a branch that no probe has met, with something that Taylor mode does not carry
            if not isinstance(mode, Taylor) or isinstance(
                reason, (RiemaeError, torch.OutOfMemoryError)
            ):
                raise
            self._distrust(self._key(kind, z), mode)
            return self._run(kind, passes, formula, z, *others)

    def _chunked(self, passes: int, f: Callable[..., Any], *args: Tensor) -> Any:
        """``f`` of this map, with the conditions of the rows at hand, and of these rows.

        Some rows at a time.
        """
        if not len(args[0]):
            # Many layers refuse an empty batch: take the shapes from one point at the origin, and
            # keep none of it.
            out = f(self._at(0), *(x.new_zeros(1, *x.shape[1:]) for x in args))
            return tuple(x[:0] for x in out) if isinstance(out, tuple) else out[:0]
        # Forward mode refuses views whose elements share memory, such as expanded points.
        args = tuple(x.contiguous() for x in args)
        if self._batch_invariant:
            evaluate, rows = f, row_multiple(self._seen(args[0]), args[0].element_size())

            def f(part: Differential, *chunk: Tensor) -> Any:
                if part._condition is not None:
                    part = part.conditioned(part._condition.padded_rows(rows))
                out = evaluate(part, *(padded_rows(x, rows) for x in chunk))
                k = len(chunk[0])
                return tuple(x[:k] for x in out) if isinstance(out, tuple) else out[:k]

        size = self.chunk(args[0], passes)
        whole = (
            self
            if self._condition is None
            else self.conditioned(self._condition.spread(len(args[0])))
        )
        if len(args[0]) <= size:
            return f(whole, *args)
        chunks = zip(*(x.split(size) for x in args), strict=True)
        parts = [f(whole._rows(i * size, size), *chunk) for i, chunk in enumerate(chunks)]
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return torch.cat(parts)

    def _rows(self, first: int, count: int) -> Differential:
        c = self._condition
        return self if c is None else self.conditioned(c.select(slice(first, first + count)))

    def _key(self, kind: str, z: Tensor) -> tuple[Any, ...]:
        # Kernels differ by dtype, and without gradient mode: what works in one need not work in the
        # other. Inside a caller's torch.func nothing can be checked, and torch.autograd is out of
        # reach.
        return (kind, z.device.type, z.dtype, torch.is_grad_enabled(), self._kind, transformed())

    @property
    def _kind(self) -> Any:
        """Of the conditions: with others a decoder may be another map."""
        return None if self._condition is None else self._condition.kind

    def _mode(self, kind: str, z: Tensor) -> Mode:
        """The first mode that can differentiate the map, tried on a few points and remembered.

        Raises:
            DifferentiationError: When none can, or when what autograd says is not the derivative of
                the map.
            RiemaeError: What the map itself raises about its input.
        """
        key = self._key(kind, z)
        trusted = self._learned.modes.get(key)
        if trusted is not None:
            trusted.calls += 1
            if trusted.calls == trusted.due or (len(z) >= probe.LARGE_BATCH and not trusted.large):
                with TURN:
                    self._at(trusted.calls)._look_again(key, trusted, z)
                trusted = self._learned.modes.get(key)
        if trusted is not None:
            return trusted.mode
        with TURN:  # other threads switch kernels off, which makes modes work that do not
            trusted = self._learned.modes.get(key)
            return self._at(0)._chosen(key, z) if trusted is None else trusted.mode

    def _chosen(self, key: tuple[Any, ...], z: Tensor) -> Mode:
        kind, transformed = key[0], key[-1]
        comparable = not z.is_meta and not transformed and concrete(z) is not None
        start = z.detach().contiguous() if len(z) else z.new_zeros(1, z.shape[-1])
        sample = start[:1]
        if comparable:
            sample = torch.cat(
                [probe.generic(self._flat, start, _POINTS - 1, self.chunk(start, 1)), sample]
            )
            self._ask(start, sample)
        reasons: list[str] = []
        for mode in NESTED if transformed or kind == "pushforward" else MODES:
            if mode in self._learned.refused.get(key, ()) or (
                mode.approximate and not _once(reasons)
            ):
                continue
            if mode.announced and not mode.approximate and comparable and self._cut(start, sample):
                reasons.append(f"{mode.name}: its derivative cannot be differentiated again")
                continue
            try:
                with mode.active(kind in _IN_GRADIENT_MODE):
                    known = self._check(kind, mode, sample, comparable)
            except RiemaeError:
                raise
            except Exception as reason:
                expected = (RuntimeError, AssertionError, ValueError)
                if isinstance(mode, Nested) and not isinstance(reason, expected):
                    raise
                lines = str(reason).strip().splitlines() or [
                    type(reason).__name__
                ]  # an assertion may say nothing
                reasons.append(f"{mode.name}: {lines[0]}")
                continue
            if known:  # where the map has no value, nothing has been learned
                self._learned.modes[key] = _Trusted(
                    mode, due=_AGAIN if comparable else 0, large=not comparable
                )
                self._learned.modes[key].large |= len(z) >= probe.LARGE_BATCH
            if mode.announced:
                self._announce(reasons, mode.approximate)
            return mode
        if any("nference tensor" in reason for reason in reasons):
            got, remedy = "weights or constants made under torch.inference_mode()", INFERENCE
        elif (rounded := self._rounded(sample)) is not None:
            got = f"numbers of {rounded} inside of it"
            remedy = f"Rounding has no derivative: convert all of it to {z.dtype}, or z to the dtype that it computes in."
        else:
            got, remedy = (
                _distinct(reasons),
                "Is every operation of the decoder a differentiable torch operation?",
            )
        raise DifferentiationError(
            "differential", f"a map that torch can differentiate ({kind})", got, remedy
        )

    def _rounded(self, sample: Tensor) -> torch.dtype | None:
        """A dtype inside the map that carries fewer digits than the points."""
        try:
            with torch.no_grad(), restored(sample.device), untraced(_Dtypes)() as seen:
                self._flat(sample.detach())
        except Exception:  # it is being explained already
            return None
        coarse = [d for d in seen.found if torch.finfo(d).eps > torch.finfo(sample.dtype).eps]
        return max(coarse, key=lambda d: torch.finfo(d).eps, default=None)

    def _look_again(self, key: tuple[Any, ...], trusted: _Trusted, z: Tensor) -> None:
        """Compare a trusted mode with autograd at points of this call: branches, regions, and
        states change.

        Raises:
            RiemaeError: What the map itself raises about its input, or what is wrong with its
                derivative.
        """
        if trusted.calls == trusted.due:
            trusted.due *= _AGAIN
        if concrete(z) is None:
            return
        if not trusted.large and len(z) >= probe.LARGE_BATCH:
            sample = probe.generic(self._flat, z.detach(), _POINTS, self.chunk(z, 1))
            self._learned.asked.discard((*key[1:3], self._kind))
            self._ask(z.detach(), sample)
            trusted.large = True
        else:  # off the points themselves, which may lie on a kink
            base, noise = probe.moved(z.detach(), _POINTS, 1e-3)
            sample = base + noise
        kind = key[0]
        try:
            with trusted.mode.active(kind in _IN_GRADIENT_MODE):
                self._check(kind, trusted.mode, sample, True, _TRIES[:1])
        except RiemaeError:
            raise
        except (RuntimeError, AssertionError, ValueError, TypeError) as reason:
            self._distrust(key, trusted.mode)
            warnings.warn(
                f"{trusted.mode.name} fails for this map at some of these points ({str(reason).splitlines()[0]}): "
                f"another one is used from now on. Earlier results ({kind}) may be wrong there: compute them again.",
                FallbackWarning,
                stacklevel=stack_level(),
            )

    def _distrust(self, key: tuple[Any, ...], mode: Mode) -> None:
        self._learned.refused.setdefault(key, set()).add(mode)
        self._learned.modes.pop(key, None)

    def _ask(self, z: Tensor, points: Tensor) -> None:
        """Compare what autograd reports with differences of the map, once for every dtype and
        device.

        Raises:
            DifferentiationError: When it is not the derivative of the map.
        """
        key = (z.device.type, z.dtype, self._kind)
        if self._what is None or key in self._learned.asked:
            return
        k = min(len(points), _POINTS - 1)  # of generic points: a given one may lie on a kink
        points = points[:k]
        with torch.inference_mode(False):
            v = probe.normal(points, *points.shape, source=probe.generator()) * probe.spread(z)
            path = lambda t: points + t[:, None] * v  # noqa: E731 (one expression)
            rows, plain = self.chunk(z, 1), partial(NESTED[-1].active, second_order=True)
            found = probe.contradiction(self._flat, path, k, points, rows, plain)
            if found is None:
                self._learned.asked.add(key)
                return
            got, remedy = probe.explained(found, self._flat)
        raise DifferentiationError(
            "differential", f"{self._what} whose derivative torch.autograd knows", got, remedy
        )

    def _cut(self, z: Tensor, points: Tensor) -> bool:
        """Whether a part of autograd's second derivative is missing, silently:
        ``once_differentiable`` beside others.

        Reverse mode twice would lack that part of the first derivative.
        """
        key = (z.device.type, z.dtype, self._kind)
        if key not in self._learned.cut:
            points = points[: _POINTS - 1]
            with torch.inference_mode(False):
                v = probe.normal(points, *points.shape, source=probe.generator()) * probe.spread(z)
                path = lambda t: points + t[:, None] * v  # noqa: E731 (one expression)
                rows, plain = self.chunk(z, 1), partial(NESTED[-1].active, second_order=True)
                found = probe.contradiction(self._slopes, path, len(points), points, rows, plain)
            self._learned.cut[key] = found is not None
        return self._learned.cut[key]

    def _slopes(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m)
        """``Jᵀw`` for one w."""
        with torch.enable_grad():
            start = z if z.requires_grad else z.detach().requires_grad_()
            x = self._flat(start)
            w = torch.linspace(1, 2, x.shape[1], dtype=x.dtype, device=x.device)
            pulled = _slope((w * x).sum(), start)
        return pulled if z.requires_grad else pulled.detach()

    def _check(
        self,
        kind: str,
        mode: Mode,
        points: Tensor,
        comparable: bool,
        tries: Sequence[list[int]] = _TRIES,
    ) -> bool:  # (k, m)
        """Refuse a mode that fails or is silently wrong: plain reverse mode must find the same
        numbers.

        Wrong are hand-written ``jvp`` rules, ``torch.no_grad`` inside the map (forward mode does
        not heed it), fused layers whose first derivative cannot be differentiated rightly again
        (pytorch#198017), second derivatives of torch's linear algebra, in Taylor mode a map whose
        intermediate results do not keep the points apart along their first axis, and
        ``torch.jit.script`` hidden in a closure, which loses derivatives from its second call on
        (pytorch#73972): hence three tries, each point among other ones, with covectors of its own.

        Returns:
            Whether the map has a value at one of the points, so that something has been learned.

        Raises:
            RuntimeError: When the numbers differ.
            DifferentiationError: When a row's value depends on the other rows.
        """
        limit, eps = tolerance(points.dtype).check, tolerance(points.dtype).eps
        source, known = probe.generator(), False
        for rows in tries if comparable else ([0],):
            rows = [row for row in rows if row < len(points)][: max(1, self.chunk(points, 1))]
            point = points.detach()[rows].clone()
            point = point.requires_grad_() if comparable else point
            # One direction for all points, without memory of its own, as coordinate directions are:
            # some layers mind.
            v = torch.linspace(1, 2, point.shape[-1], dtype=point.dtype, device=point.device)
            v = (probe.normal(point, *v.shape, source=source) if comparable else v).expand_as(point)
            with torch.no_grad():
                x = self._flat(point.detach())
                if comparable:
                    floor = (
                        1e3 * eps * float(x.abs().nan_to_num(0.0, 0.0, 0.0).max())
                        if x.numel()
                        else 0.0
                    )
                    alone = self._flat(point.detach()[:1])
                    if not torch.allclose(x[:1], alone, rtol=limit, atol=floor, equal_nan=True):
                        raise DifferentiationError(
                            "differential",
                            "a map that treats every row alone",
                            "an output that depends on the other rows of the batch",
                            "Switch batch statistics off with eval(); attention must not run across the batch axis.",
                        )
            w = probe.normal(x, *x.shape, source=source) if comparable else torch.ones_like(x)
            value, found = self._probe(kind, mode, point, v, w)
            if not comparable:
                return True
            if not torch.allclose(value, x, rtol=limit, atol=floor, equal_nan=True):
                raise RuntimeError("its values are not those of the map")
            known = known or bool(x.isfinite().all(-1).any())
            if not self._agrees(kind, mode, point, v, found):
                return True  # no second backward: nothing to compare with
        return known

    def _agrees(
        self,
        kind: str,
        mode: Mode,
        point: Tensor,
        v: Tensor,
        found: list[tuple[Tensor, Tensor, int]],
    ) -> bool:
        """Compare with plain autograd; False when it has no answer.

        Raises:
            RuntimeError: When the numbers differ.
        """
        if mode.approximate and kind in _SECOND_ORDER:
            return False
        again = (
            torch.is_grad_enabled() and kind not in _SECOND_ORDER
        )  # results are differentiated by the caller
        limit, eps = tolerance(point.dtype).check, tolerance(point.dtype).eps
        compared = []
        try:
            with NESTED[-1].active(second_order=True):
                x = self._flat(point)
                if not x.requires_grad and not isinstance(mode, Nested):
                    raise RuntimeError(
                        "the map is constant, or leaves torch"
                    )  # nested modes know which
                for actual, w, power in found:
                    pulled = _slope((w * x).sum(), point)
                    products = pulled * v
                    expected = products.sum(-1)
                    bend, second = torch.zeros_like(point), True
                    if again or kind in _SECOND_ORDER:
                        try:
                            bend = _slope(expected.sum(), point)
                        except RuntimeError:  # the first derivative is compared all the same
                            if kind in _SECOND_ORDER or not isinstance(mode, Nested):
                                raise
                            second = False
                    # Rounding is relative to what was added up; to all of it where a row's own
                    # derivatives vanish.
                    size, bent = products.detach().abs().sum(-1), (bend * v).detach().abs().sum(-1)
                    noise = (w * x).detach().abs().sum(-1) + size + bent
                    if self._what is None:
                        noise = noise + w.abs().sum(-1)
                    floor = 1e3 * eps * noise.nan_to_num(0.0, 0.0, 0.0).max()
                    if kind in _SECOND_ORDER:
                        compared.append((actual, (bend * v).sum(-1), bent, floor))
                    else:
                        compared.append((actual, expected, size, floor))
                    if again and second and not mode.approximate:
                        slopes = power * bend
                        compared.append(
                            (_slope(actual.sum(), point), slopes, slopes.detach().abs(), floor)
                        )
        except RuntimeError:
            if not isinstance(mode, Nested):
                raise
            return False
        sound = (
            x.detach().isfinite().all(-1)
        )  # where the map has no value, its derivatives mean nothing
        for ours, theirs, size, floor in compared:
            off = (ours - theirs).abs() > limit * (size + ours.detach().abs()) + floor
            if bool(off[sound].any()):
                raise RuntimeError("it contradicts torch.autograd")
        return True

    def _probe(
        self, kind: str, mode: Mode, z: Tensor, v: Tensor, w: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, int]]]:  # -> (k, D), [((k,), (k, D), power)]
        """``f`` and, by the way that ``kind`` takes, numbers ``⟨w, Jv⟩`` or ``⟨w, ∂²f(v, v)⟩`` with
        their covectors.

        ``⟨w, Jv⟩`` with ``w = Jv`` changes with the point twice as fast as with a constant w: hence
        a power.
        """
        again = torch.is_grad_enabled() and kind not in _SECOND_ORDER
        f = self._map(mode, again)
        if kind == "jacobian":
            x, first = mode.forward(f, z, v[None], None, again)
            return x, [((w * first[0]).sum(-1), w, 1)]
        if kind == "vjp":
            x, pulled = mode.reverse(f, z, lambda x: w, again)
            return x, [((v * pulled).sum(-1), w, 1)]
        if kind == "gram":
            x, tangent, pulled = mode.gram(f, z, v, lambda x, tangent: tangent, again)
            return x, [((w * tangent).sum(-1), w, 1), ((pulled * v).sum(-1), tangent.detach(), 2)]
        if kind == "second derivatives":
            x, _, second = mode.forward(f, z, v[None], Pairs([0], [0]), again)
            return x, [((w * second[0]).sum(-1), w, 1)]
        x, _, forms = mode.expansion(f, z, lambda x, j: w[None], again)
        return x, [((v[:, None] @ forms[0] @ v[..., None])[:, 0, 0], w, 1)]

    def _announce(self, reasons: list[str], approximate: bool) -> None:
        if not self._learned.announced:
            self._learned.announced = True
            reason = next(reason for reason in reasons if reason.startswith("forward mode"))
            if approximate:
                warnings.warn(
                    f"Second derivatives do not exist for this map ({reason}): where they are needed, they are "
                    "differences of first ones, right to some nine digits in float64 and three in float32. Results "
                    "cannot be differentiated.",
                    ApproximationWarning,
                    stacklevel=stack_level(),
                )
                return
            warnings.warn(
                f"Forward-mode derivatives do not exist for this map ({reason}); using reverse mode twice, "
                "which is slower but exact.",
                FallbackWarning,
                stacklevel=stack_level(),
            )

    def _seen(self, z: Tensor) -> list[int]:
        """Numbers a point in every tensor inside ``f``, found by running one and three points
        through it.
        """
        known = self._learned.widths.get(self._kind)
        if known is not None:
            return known
        if z.is_meta or not len(z):
            return [z.shape[-1]]
        sizes, first = [], self._at(0)
        for count in (1, 3):
            with torch.no_grad(), untraced(_OutputSizes)() as seen:
                x = first._evaluated(z[:1].detach().repeat(count, 1))
            sizes.append([*seen.sizes, x.numel()])
        # Tensors that do not grow with the batch are parameters; a map whose operations differ
        # between the two runs is judged by its output.
        per_point = [(b - a) // 2 for a, b in zip(sizes[0], sizes[1], strict=False)]
        if len(sizes[0]) != len(sizes[1]):
            per_point = [sizes[0][-1], 1]
        widths = self._learned.widths[self._kind] = sorted({z.shape[-1], *per_point} - {0})
        return widths


def _once(reasons: list[str]) -> bool:
    """Whether what is missing is a derivative of the derivative."""
    last = reasons[-1] if reasons else ""
    return "differentiated again" in last or "differentiate twice" in last


def _distinct(reasons: list[str]) -> str:
    """Each reason once, behind the modes that it stopped."""
    found: dict[str, list[str]] = {}
    for reason in reasons:
        name, _, text = reason.partition(": ")
        found.setdefault(text, []).append(name)
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())


def everywhere(z: Tensor) -> Tensor:  # (k, m) -> (k, m, m)
    """The coordinate directions, at every point."""
    return basis(z).transpose(0, 1)


def _slope(x: Tensor, point: Tensor) -> Tensor:
    if not x.requires_grad:
        return torch.zeros_like(point)
    return torch.autograd.grad(x, point, create_graph=True, materialize_grads=True)[0]


def _where_defined(x: Tensor, derivatives: list[Tensor]) -> list[Tensor]:
    """Derivatives may exist where the map has no value (log): NaN there, so that nothing is built
    on them.
    """
    if evidently_finite(x):
        return derivatives
    ok = concrete(x.isfinite().all(-1))
    if ok is None or bool(ok.all()):
        return derivatives
    return [torch.where(ok.view(-1, *(1,) * (d.ndim - 1)), d, torch.nan) for d in derivatives]


class _OutputSizes(TorchFunctionMode):
    """Records how many numbers every torch function returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.sizes.append(out.numel() if isinstance(out, Tensor) else 0)
        return out


class _Dtypes(TorchFunctionMode):
    """Collects the floating-point dtypes to which numbers are converted."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[torch.dtype] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.is_floating_point():
            given = [x for x in args if isinstance(x, Tensor) and x.is_floating_point()]
            if any(torch.finfo(x.dtype).eps < torch.finfo(out.dtype).eps for x in given):
                self.found.add(out.dtype)
        return out
