"""What a mode offers, and the kernels that it runs with."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp as reverse_vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from riemae.differential.primitives import with_primitives
from riemae.differential.tape import Pairs
from riemae.numerics.probe import FAILURES
from riemae.numerics.threads import TURN, Shared
from riemae.numerics.transforms import refuse_compiling

BatchedMap = Callable[[Tensor], Tensor]
Covectors = Callable[[Tensor, Tensor], Tensor]
Context = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Mode(ABC):
    """One way to differentiate.

    Attributes:
        name: What it is called in warnings and errors.
        portable: Whether fused kernels are switched off, which often lack derivatives.
        announced: Whether its use is announced by a warning.
        approximate: Whether second derivatives are differences of first ones.
        together: Whether many directions are taken by other calls than a single one.
    """

    name: str
    portable: bool = True
    announced: bool = False
    approximate: bool = False
    together: bool = False

    def active(self, second_order: bool, primitives: bool = True) -> AbstractContextManager[Any]:
        """The context in which the mode works.

        Args:
            second_order: Whether second derivatives, or those of a gradient, are wanted.
            primitives: Whether functions are replaced by primitives here, and not by the map.
        """
        wanted: list[Context] = []
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
        self, f: BatchedMap, z: Tensor, directions: Tensor, pairs: Pairs | None, create_graph: bool
    ) -> tuple[Tensor, ...]:  # (b, m), (c, b, m) -> (b, D), (c, b, D)[, (p, b, D)]
        """``f``, ``J u_i``, and for ``pairs`` ``∂²f(u_i, u_j)``.

        Args:
            f: The map.
            z: Points.
            directions: ``u``.
            pairs: The p pairs (i, j) whose second derivatives are wanted.
            create_graph: Whether the results are to be differentiated again.
        """

    def reverse(
        self, f: BatchedMap, z: Tensor, covector: Callable[[Tensor], Tensor], create_graph: bool
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
        create_graph: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``f``, ``Jv`` and ``Jᵀ lower(f, Jv)``."""
        x, tangents = self.forward(f, z, v[None], None, create_graph)
        tangent = tangents[0]
        x, pulled = self.reverse(f, z, lambda x: lower(x, tangent), create_graph)
        return x, tangent, pulled

    @abstractmethod
    def expansion(
        self, f: BatchedMap, z: Tensor, covectors: Covectors, create_graph: bool
    ) -> tuple[Tensor, Tensor, Tensor]:  # -> (b, D), (c, b, D), (s, b, m, m)
        """``f``, ``J`` (directions first), and ``a·∂²f``.

        The covectors are ``a = covectors(f, J)`` ``(s, b, D)``.
        """


def basis(z: Tensor) -> Tensor:  # (b, m) -> (m, b, m)
    """The coordinate directions at every point."""
    m = z.shape[-1]
    return torch.eye(m, dtype=z.dtype, device=z.device)[:, None].expand(m, *z.shape)


def leaf(z: Tensor, create_graph: bool) -> Tensor:
    """Points from which a reverse pass can start."""
    if create_graph and z.requires_grad:
        return z.view_as(z)
    return z.detach().requires_grad_()


def pulled_back(
    x: Tensor, ends: list[Tensor], a: Tensor, create_graph: bool, keep: bool = False
) -> tuple[Tensor, ...]:
    """``Jᵀa`` of ``x`` in each of ``ends``, by ``torch.autograd``.

    Args:
        x: The result.
        ends: What it is differentiated in.
        a: The covector, shaped like ``x``.
        create_graph: Whether ``Jᵀa`` is to be differentiated again.
        keep: Whether another reverse pass through the same graph follows.
    """
    if not x.requires_grad:
        return tuple(torch.zeros_like(y) for y in ends)
    return torch.autograd.grad(
        x,
        ends,
        a,
        retain_graph=create_graph or keep,
        create_graph=create_graph,
        materialize_grads=True,
    )


def pulled_back_all(
    x: Tensor, end: Tensor, covectors: Tensor, create_graph: bool
) -> Tensor | None:  # (c, *x.shape) -> (c, *end.shape)
    """``Jᵀa`` for many covectors a, by ``torch.autograd``; None where ``x`` is not made of ``end``.

    All at once where ``vmap`` takes the backward pass, and otherwise one after the other: those
    written for numpy, or with control flow, want plain tensors.
    """
    if not x.requires_grad:
        return None
    options = {"retain_graph": True, "create_graph": create_graph, "allow_unused": True}
    if len(covectors) > 1:
        try:
            (found,) = torch.autograd.grad(x, end, covectors, is_grads_batched=True, **options)
        except FAILURES:  # each by itself then, which raises it again if vmap is not the reason
            pass
        else:
            return found
    rows: list[Tensor] = []
    for a in covectors:
        (row,) = torch.autograd.grad(x, end, a, **options)
        if row is None:
            return None
        rows.append(row)
    return torch.stack(rows)


def with_graph(f: BatchedMap, start: Tensor) -> Tensor:
    """``f(start)``.

    Raises:
        RuntimeError: When it has no graph.
    """
    x = f(start)
    if not x.requires_grad:
        raise RuntimeError("the output has no graph that leads to the points")
    return x


# Contexts.


@contextmanager
def _portable_kernels() -> Iterator[None]:
    """Without fused attention, oneDNN, cuDNN, and the fused layers of transformers.

    They have no derivative, or none of second order. One thread at a time: to another mode, tried
    in the meantime, kernels would seem to have derivatives that they lack.
    (``torch.backends.mkldnn.flags`` would also set TF32, and warn of it.)
    """
    with TURN, sdpa_kernel(SDPBackend.MATH), _without_fused_layers():
        yield


@contextmanager
def _without_fused_layers() -> Iterator[None]:
    mkldnn = torch.backends.mkldnn.enabled
    cudnn = torch.backends.cudnn.enabled
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    torch.backends.cudnn.enabled = False  # its recurrent layers cannot be differentiated twice
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = mkldnn
        torch.backends.cudnn.enabled = cudnn
        torch.backends.mha.set_fastpath_enabled(fast_path)


_EAGER = Shared(lambda: torch.compiler.set_stance("force_eager"))


@contextmanager
def _all(contexts: list[Context]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        yield
