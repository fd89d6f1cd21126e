"""Derivatives of any batched map ``f: (k, m) -> (k, *shape)``: Jacobian, JVP, VJP, second derivatives.

Jacobians are built from ``m`` forward-mode products, never from a loop over the outputs. Where forward mode does not
exist for an operation, portable kernels are tried, then reverse mode twice (``Jv`` as the derivative of ``Jᵀw`` in w),
announced once by a :class:`~riemae.exceptions.FallbackWarning`. Everything works in chunks that fit a processor's
cache, and every result is differentiable again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp as forward_jvp
from torch.func import vjp as reverse_vjp
from torch.func import vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from riemae.exceptions import DifferentiationError, FallbackWarning, RiemaeError, ShapeError
from riemae.solvers.exceptions import stack_level
from riemae.solvers.space import concrete
from riemae.solvers.tolerances import tolerance

BatchedMap = Callable[[Tensor], Tensor]

# What one chunk may touch. On a processor, the tangents of the widest layer should stay in its cache (PERFORMANCE:
# 256 to 1,024 points at width 256 with 8 tangents in float64 run 1.6 to 1.9 times faster than everything at once).
_CPU_BYTES, _DEVICE_BYTES = 8 * 2**20, 512 * 2**20
_MIN_CHUNK = 16
_SECOND_ORDER = ("second derivative", "second derivatives", "contraction")


@dataclass(frozen=True)
class _Mode:
    """One way to differentiate: forward or twice reverse, portable kernels or not, vectorised directions or a loop."""

    name: str
    forward: bool
    portable: bool
    vectorised: bool

    @contextmanager
    def active(self, second_order: bool) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_untraced(_ExactNorms)())
            if self.portable:
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                stack.enter_context(_without_fused_layers())
            if second_order or not self.forward:
                # Without gradient mode some kernels (SiLU, Mish) record a backward that has no derivative of its own.
                stack.enter_context(torch.enable_grad())
            yield

    def push(self, f: BatchedMap, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """``f(z)`` and ``Jv``."""
        if self.forward:
            x, tangent = forward_jvp(f, (z,), (v,))  # type: ignore[misc]
            return x, tangent
        x = f(z)
        pull = reverse_vjp(lambda w: reverse_vjp(f, z)[1](w)[0], torch.zeros_like(x))[1]
        return x, pull(v)[0]

    def along(self, f: Callable[..., Tensor], *directions: Tensor) -> Tensor:
        """``f`` of each row of ``directions``, stacked along a new last axis."""
        if self.vectorised:
            # torch 2.13 miscounts out_dims=-1 for outputs that do not depend on the direction: stack first, then move.
            return vmap(f)(*directions).movedim(0, -1)
        return torch.stack([f(*row) for row in zip(*directions, strict=True)], -1)


_MODES = (
    _Mode("forward mode", forward=True, portable=False, vectorised=True),
    _Mode("forward mode with portable kernels", forward=True, portable=True, vectorised=True),
    _Mode("forward mode, one direction at a time", forward=True, portable=True, vectorised=False),
    _Mode("reverse mode twice", forward=False, portable=True, vectorised=False),
)


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    """Switch oneDNN's and the transformer's fused layers off, which have no derivative.

    ``torch.backends.mkldnn.flags`` would also touch, and warn of, TF32.
    """
    before, fast = torch.backends.mkldnn.enabled, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
        torch.backends.mha.set_fastpath_enabled(fast)


def unoptimised(f: BatchedMap) -> BatchedMap:
    """``f``, with the optimiser of ``torch.jit.script`` off: nested derivatives through it are silently wrong.

    See pytorch#73972 and #84681.
    """
    owner = getattr(f, "__self__", f)
    scripts: list[Any] = [f] if isinstance(f, torch.jit.ScriptFunction) else []
    if isinstance(owner, nn.Module):
        scripts = [
            m.forward for m in owner.modules() if isinstance(m, torch.jit.ScriptModule) and hasattr(m, "forward")
        ]
        scripts = [m for m in scripts if hasattr(m, "_debug_flush_compilation_cache")]
    if not scripts:
        return f

    def call(z: Tensor) -> Tensor:
        for script in scripts:  # plans made by earlier calls would still be used
            script._debug_flush_compilation_cache()
        with torch.jit.optimized_execution(False):
            return f(z)

    return call


class Differential:
    """Derivatives of one map, which is taken as ``(k, m) -> (k, D)`` whatever the shape of its output.

    Args:
        f: ``(k, m) -> (k, *shape)``, row by row.
        chunk_size: Points a chunk; chosen by bytes unless given.
    """

    def __init__(self, f: BatchedMap, chunk_size: int | None = None) -> None:
        self._function = unoptimised(f)
        self._chunk_size = chunk_size
        self._modes: dict[tuple[Any, ...], _Mode] = {}
        self._width: int | None = None
        self._announced = False

    def value(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D)
        """``f(z)``."""
        return self._chunked(1, lambda z: self._flat(z), z)

    def value_and_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:  # (k, m) -> (k, D), (k, D, m)
        """``f(z)`` and ``J(z)``, by m forward products that share one primal."""
        x, j = self._run("jacobian", 1 + z.shape[-1], self._value_and_jacobian, z)
        return x, _where_defined(x, j)

    def jacobian(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D, m)
        """``J(z)``."""
        return self.value_and_jacobian(z)[1]

    def jvp(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # (k, m), (k, m) -> (k, D), (k, D)
        """``f(z)`` and ``Jv``."""
        x, tangent = self._run("jvp", 2, lambda mode, z, v: mode.push(self._flat, z, v), z, v)
        return x, _where_defined(x, tangent)

    def vjp(self, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:  # (k, m), (k, D) -> (k, D), (k, m)
        """``f(z)`` and ``Jᵀw``."""
        return self._run("vjp", 2, self._vjp, z, w)

    def second_derivative(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:  # (k, m) x 3 -> (k, D)
        """``∂²f(u, v)``, by one forward product of a forward product."""
        return self._run("second derivative", 4, self._second, z, u, v)

    def second_jet(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # -> (k, D), (k, D, m), (k, D, m, m)
        """Value, Jacobian and all second derivatives: forward products of forward products that share what they can.

        One primal, m + m first-order and m² second-order tangents a point.
        """
        m = z.shape[-1]
        x, j, second = self._run("second derivatives", 1 + 2 * m + m * m, self._second_jet, z)
        return x, _where_defined(x, j), second

    def hessian(self, z: Tensor) -> Tensor:  # (k, m) -> (k, D, m, m)
        """All second derivatives."""
        return self.second_jet(z)[2]

    def contraction(self, z: Tensor, a: Tensor) -> Tensor:  # (k, m), (k, D) -> (k, m, m)
        """``a·∂²f``, by m forward products of ``Jᵀa``: no D × m × m array."""
        return self._run("contraction", 3 * (1 + z.shape[-1]), self._contraction, z, a)

    def pushforward(self, f: BatchedMap, z: Tensor, v: Tensor) -> Tensor:
        """Directional derivative of a gradient built on this map, in the mode that works for it."""
        points = z.reshape(-1, z.shape[-1])
        trial = lambda mode, z: self._contraction(mode, z, self._flat(z).detach())  # noqa: E731 (one expression)
        mode = self._mode("contraction", points, trial, (points,))
        with mode.active(second_order=True):
            return mode.push(f, z, v)[1]

    def chunk(self, z: Tensor, passes: int) -> int:
        """Points ``(k, m)`` a chunk when ``passes`` tangents of the widest layer are held at once."""
        if self._chunk_size is not None:
            return self._chunk_size
        budget = _CPU_BYTES if z.device.type == "cpu" else _DEVICE_BYTES
        return max(_MIN_CHUNK, budget // (self._widest(z) * passes * z.element_size()))

    # The formulas, one chunk at a time.

    def _flat(self, z: Tensor) -> Tensor:
        x = self._function(z)
        if not isinstance(x, Tensor) or not x.ndim or len(x) != len(z):
            raise ShapeError(
                "differential",
                f"a map (k, m) -> (k, *shape) that returns {len(z)} rows for {len(z)} points",
                str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__,
                "The first axis of the output must be the batch.",
            )
        return x.reshape(len(z), -1)

    def _value_and_jacobian(self, mode: _Mode, z: Tensor) -> tuple[Tensor, Tensor]:
        basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        if mode.vectorised:
            # The primal does not depend on the direction: computed once, vmap returns it expanded. (out_dims=None would
            # say so, but torch refuses it inside an outer vmap.)
            x, rows = vmap(lambda e: mode.push(self._flat, z, e.expand_as(z)))(basis)
            return x[0], rows.movedim(0, -1)
        pushed = [mode.push(self._flat, z, e.expand_as(z)) for e in basis]
        return pushed[0][0], torch.stack([tangent for _, tangent in pushed], -1)

    def _vjp(self, mode: _Mode, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x, pull = reverse_vjp(self._flat, z)[:2]
        return x, pull(w)[0]

    def _second(self, mode: _Mode, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return mode.push(lambda z: mode.push(self._flat, z, v)[1], z, u)[1]

    def _second_jet(self, mode: _Mode, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        tangents = lambda z: self._value_and_jacobian(mode, z)  # noqa: E731 (one expression)
        if not mode.vectorised:
            columns = [mode.push(lambda z: tangents(z)[1], z, e.expand_as(z))[1] for e in basis]
            second = torch.stack(columns, -1)
            return *tangents(z), (second + second.mT) / 2
        # Value and Jacobian do not depend on the outer direction: vmap computes them once and returns them expanded.
        push = lambda e: _split(forward_jvp(tangents, (z,), (e.expand_as(z),)))  # noqa: E731 (one expression)
        (x, jacobian), second = vmap(push)(basis)
        second = second.movedim(0, -1)
        return x[0], jacobian[0], (second + second.mT) / 2

    def _contraction(self, mode: _Mode, z: Tensor, a: Tensor) -> Tensor:
        basis = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        pulled = lambda z: reverse_vjp(self._flat, z)[1](a)[0]  # noqa: E731 (one expression)
        form = mode.along(lambda e: mode.push(pulled, z, e.expand_as(z))[1], basis)
        return (form + form.mT) / 2

    # Modes and chunks.

    def _run(self, kind: str, passes: int, formula: Callable[..., Any], z: Tensor, *others: Tensor) -> Any:
        if torch.is_inference_mode_enabled() or z.is_inference() or any(x.is_inference() for x in others):
            # Nothing made in inference mode can be differentiated: work on normal copies outside of it.
            grad = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
            with torch.inference_mode(False), torch.set_grad_enabled(grad):
                z, *others = (x.clone() if x.is_inference() else x for x in (z, *others))  # type: ignore[assignment]
                return self._run(kind, passes, formula, z, *others)
        mode = self._mode(kind, z, formula, (z, *others))
        second_order = kind in _SECOND_ORDER

        def evaluate(*chunk: Tensor) -> Any:
            if torch.is_grad_enabled():
                with mode.active(second_order):
                    return formula(mode, *chunk)
            with mode.active(second_order):
                out = formula(mode, *chunk)
            if mode.forward and not second_order:
                return out  # nothing was recorded
            # A copy without the graph; detach() would also drop the tangents of a caller's forward mode.
            return tuple(x.clone() for x in out) if isinstance(out, tuple) else out.clone()

        return self._chunked(passes, evaluate, z, *others)

    def _chunked(self, passes: int, f: Callable[..., Any], *args: Tensor) -> Any:
        if not len(args[0]):
            # Many layers refuse an empty batch: take the shapes from one point at the origin, and keep none of it.
            out = f(*(x.new_zeros(1, *x.shape[1:]) for x in args))
            return tuple(x[:0] for x in out) if isinstance(out, tuple) else out[:0]
        # Forward mode refuses views whose elements share memory, such as expanded points.
        args = tuple(x.contiguous() for x in args)
        size = self.chunk(args[0], passes)
        if len(args[0]) <= size:
            return f(*args)
        parts = [f(*chunk) for chunk in zip(*(x.split(size) for x in args), strict=True)]
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return torch.cat(parts)

    def _mode(self, kind: str, z: Tensor, formula: Callable[..., Any], args: tuple[Tensor, ...]) -> _Mode:
        """The first mode that can do ``formula``, tried on one point and remembered.

        Raises:
            DifferentiationError: When none can.
            RiemaeError: What the map itself raises about its input.
        """
        # Kernels differ by dtype, and without gradient mode: what works in one need not work in the other.
        key = (kind, z.device.type, z.dtype, torch.is_grad_enabled())
        if key not in self._modes:
            sample = [x[:1].detach().contiguous() if len(x) else x.new_zeros(1, *x.shape[1:]) for x in args]
            reasons = []
            for mode in _MODES:
                try:
                    with mode.active(kind in _SECOND_ORDER):
                        formula(mode, *sample)
                        self._check_against_autograd(kind, mode, sample[0])
                except RiemaeError:
                    raise
                except (RuntimeError, AssertionError, ValueError) as reason:
                    lines = str(reason).strip().splitlines() or [type(reason).__name__]  # an assertion may say nothing
                    reasons.append(f"{mode.name}: {lines[0]}")
                    continue
                self._modes[key] = mode
                if not mode.forward:
                    self._announce(reasons)
                break
            else:
                raise DifferentiationError(
                    "differential",
                    f"a map that torch can differentiate ({kind})",
                    "; ".join(reasons),
                    "Is every operation of the decoder a differentiable torch operation?",
                )
        return self._modes[key]

    def _check_against_autograd(self, kind: str, mode: _Mode, z: Tensor) -> None:
        """Refuse a mode that is silently wrong: plain reverse mode must find the same numbers.

        Wrong are hand-written ``jvp`` rules, ``torch.no_grad`` inside the map (forward mode does not heed it), fused
        layers whose first derivative cannot be differentiated rightly again (pytorch#198017), and ``torch.jit.script``
        hidden in a closure, which loses derivatives from its second call on (pytorch#73972): hence three tries.

        Raises:
            RuntimeError: When the numbers differ.
        """
        if z.is_meta or concrete(z) is None or torch._C._functorch.peek_interpreter_stack() is not None:
            return
        again = kind not in _SECOND_ORDER and torch.is_grad_enabled()  # results are differentiated by the caller
        v = torch.linspace(1, 2, z.shape[-1], dtype=z.dtype, device=z.device).expand_as(z)
        for _ in range(3):
            point = z.detach().clone().requires_grad_()
            try:
                with _MODES[-1].active(second_order=True):
                    x = self._flat(point)
                    w = torch.linspace(1, 2, x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
                    expected = self._slope(w * x, point, v)
                    if again or kind in _SECOND_ORDER:
                        expected = self._slope(expected, point, v)
            except RuntimeError:  # no second backward: nothing to compare with
                return
            if kind == "contraction":
                actual = v * (self._contraction(mode, point, w) @ v[..., None])[..., 0]
            elif kind in _SECOND_ORDER:
                actual = w * self._second(mode, point, v, v)
            elif kind == "vjp":
                actual = v * self._vjp(mode, point, w)[1]
            else:
                actual = w * mode.push(self._flat, point, v)[1]
            if again:
                actual = self._slope(actual, point, v)
            scale = actual.abs().sum() + expected.abs().sum() + (w * x).abs().sum()
            if (actual.sum() - expected.sum()).abs() > tolerance(z.dtype).check * scale:
                raise RuntimeError("it contradicts torch.autograd")

    @staticmethod
    def _slope(x: Tensor, point: Tensor, v: Tensor) -> Tensor:
        if not x.requires_grad:
            return torch.zeros_like(point)
        return torch.autograd.grad(x.sum(), point, create_graph=True, materialize_grads=True)[0] * v

    def _announce(self, reasons: list[str]) -> None:
        if not self._announced:
            self._announced = True
            warnings.warn(
                f"Forward-mode derivatives do not exist for this map ({reasons[0]}); using reverse mode twice, "
                "which is slower but exact.",
                FallbackWarning,
                stacklevel=stack_level(),
            )

    def _widest(self, z: Tensor) -> int:
        """Numbers a point in the widest tensor inside ``f``, found by running one and three points through it."""
        if self._width is None:
            if z.is_meta or not len(z):
                return max(z.shape[-1], 1)
            sizes = []
            for count in (1, 3):
                with torch.no_grad(), _untraced(_OutputSizes)() as seen:
                    x = self._function(z[:1].detach().repeat(count, 1))
                sizes.append([*seen.sizes, x.numel()])
            # Tensors that do not grow with the batch are parameters; a map whose operations differ between
            # the two runs is judged by its output.
            per_point = [(b - a) // 2 for a, b in zip(sizes[0], sizes[1], strict=False)]
            if len(sizes[0]) != len(sizes[1]):
                per_point = [sizes[0][-1]]
            self._width = max(1, z.shape[-1], *per_point)
        return self._width


def _split(pushed: Any) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """``((x, J), (ẋ, J̇)) -> (x, J), J̇``."""
    return pushed[0], pushed[1][1]


def _where_defined(x: Tensor, derivative: Tensor) -> Tensor:
    """A derivative may exist where the map has no value (log): NaN there, so that nothing is built on it."""
    ok = concrete(x.isfinite().all(-1))
    if ok is None or bool(ok.all()):
        return derivative
    return torch.where(ok.view(-1, *(1,) * (derivative.ndim - 1)), derivative, torch.nan)


def _untraced(mode: Any) -> Any:
    """The mode as ``torch.compile`` must see it: not at all. Dynamo is slow to import, so only where it is in use."""
    return _hidden_from_dynamo(mode) if "torch._dynamo" in sys.modules else mode


@lru_cache(maxsize=8)
def _hidden_from_dynamo(mode: Any) -> Any:
    return type(mode.__name__, (mode,), {"__torch_function__": torch.compiler.disable(mode.__torch_function__)})


class _ExactNorms(TorchFunctionMode):
    """Layer and instance norm from primitives.

    torch's own rules for their first derivatives take the statistics for constants when differentiated again: nested
    forward mode, and gradients of Jacobians, come out wrong (pytorch#196700, #198017).
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN204
        kwargs = kwargs or {}
        if func in (F.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **kwargs)
        if func in (F.instance_norm, torch.instance_norm):
            return _instance_norm(func, *args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    x = _standardised(x, tuple(range(-len(normalized_shape), 0)), eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _instance_norm(
    func: Callable[..., Tensor],
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *cudnn_enabled: bool,
) -> Tensor:
    if not use_input_stats or running_mean is not None:
        return func(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, *cudnn_enabled)
    x = _standardised(x, tuple(range(2, x.ndim)), eps)
    shape = (-1,) + (1,) * (x.ndim - 2)
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


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


def jacobian(f: BatchedMap, z: Tensor, chunk_size: int | None = None) -> Tensor:
    """Jacobian of ``f: (k, m) -> (k, *shape)`` at ``z`` ``(*b, m)``, as ``(*b, *shape, m)``.

    Raises:
        ShapeError: When ``f`` does not return one output a point.
        DifferentiationError: When torch cannot differentiate ``f``.

    Example:
        >>> import torch
        >>> from riemae.differential import jacobian
        >>> jacobian(lambda z: z ** 2, torch.tensor([[1., 2.]]))
        tensor([[[2., 0.],
                 [0., 4.]]])
    """
    d, flat, shape = _prepared("jacobian", f, z, chunk_size)
    return d.jacobian(flat).reshape(*z.shape[:-1], *shape, z.shape[-1])


def jvp(f: BatchedMap, z: Tensor, v: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """``f(z)`` and ``J(z) v``, both ``(*b, *shape)``, for ``z`` and ``v`` of shape ``(*b, m)``."""
    d, flat, shape = _prepared("jvp", f, z, chunk_size)
    x, tangent = d.jvp(flat, _like(v, z, flat))
    return x.reshape((*z.shape[:-1], *shape)), tangent.reshape((*z.shape[:-1], *shape))


def vjp(f: BatchedMap, z: Tensor, w: Tensor, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    """``f(z)`` ``(*b, *shape)`` and ``J(z)ᵀ w`` ``(*b, m)``, for ``w`` of shape ``(*b, *shape)``."""
    d, flat, shape = _prepared("vjp", f, z, chunk_size)
    x, pulled = d.vjp(flat, _covector("vjp", w, z, shape, flat))
    return x.reshape((*z.shape[:-1], *shape)), pulled.reshape(z.shape)


def second_derivative(f: BatchedMap, z: Tensor, u: Tensor, v: Tensor, chunk_size: int | None = None) -> Tensor:
    """Second directional derivative ``∂²f(u, v)`` at ``z``, ``(*b, *shape)``; ``z``, ``u``, ``v`` are ``(*b, m)``."""
    d, flat, shape = _prepared("second_derivative", f, z, chunk_size)
    return d.second_derivative(flat, _like(u, z, flat), _like(v, z, flat)).reshape((*z.shape[:-1], *shape))


def contraction(f: BatchedMap, z: Tensor, a: Tensor, chunk_size: int | None = None) -> Tensor:
    """``a·∂²f``, ``(*b, m, m)``: the Hessian of ``⟨a, f⟩`` for ``a`` of shape ``(*b, *shape)``."""
    d, flat, shape = _prepared("contraction", f, z, chunk_size)
    return d.contraction(flat, _covector("contraction", a, z, shape, flat)).reshape(*z.shape, z.shape[-1])


def _prepared(where: str, f: BatchedMap, z: Tensor, chunk_size: int | None) -> tuple[Differential, Tensor, torch.Size]:
    flat = z.reshape(-1, z.shape[-1])
    with torch.no_grad():
        sample = f(flat[:1].detach() if len(flat) else flat.new_zeros(1, z.shape[-1]))
    if not isinstance(sample, Tensor) or not sample.ndim or len(sample) != 1:
        raise ShapeError(
            where,
            "a map (k, m) -> (k, *shape)",
            f"output {tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__} for one point",
            "The first axis of the output must be the batch.",
        )
    return Differential(f, chunk_size), flat, sample.shape[1:]


def _like(v: Tensor, z: Tensor, flat: Tensor) -> Tensor:
    try:
        return v.expand_as(z).reshape(flat.shape)
    except RuntimeError:
        raise ShapeError(
            "differential",
            f"tangents of shape {tuple(z.shape)}",
            str(tuple(v.shape)),
            "A tangent has its point's shape.",
        ) from None


def _covector(where: str, w: Tensor, z: Tensor, shape: torch.Size, flat: Tensor) -> Tensor:
    expected = (*z.shape[:-1], *shape)
    if w.shape != expected:
        raise ShapeError(
            where, f"covectors of shape {expected}", str(tuple(w.shape)), "A covector has its output's shape."
        )
    return w.reshape(len(flat), shape.numel())
