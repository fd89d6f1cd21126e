"""Arithmetic in the precision of the tensors, whatever autocast and TF32 say."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

from riemae.numerics.threads import Shared
from riemae.numerics.transforms import refuse_compiling

P = ParamSpec("P")
R = TypeVar("R")
_AUTOCAST = ("cpu", "cuda")


def in_full_precision(method: Callable[P, R]) -> Callable[P, R]:
    """``method`` with autocast and TF32 switched off, and refused inside ``torch.compile``.

    Half precision cannot carry derivatives, and results keep their dtype. On an accelerator torch
    computes convolutions of float32 numbers with the ten bits of TF32 by default: a row then
    changes by 3e-4 with the number of rows, so that lengths would not have the digits that their
    error bars promise.
    """

    @functools.wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        refuse_compiling()  # at the door: further inside tracing fails with errors of torch
        autocast = torch._C._is_any_autocast_enabled()
        if not autocast and not _coarse_products():
            return method(*args, **kwargs)
        with ExitStack() as stack:
            if autocast:
                for kind in _AUTOCAST:
                    if torch.is_autocast_enabled(kind):
                        stack.enter_context(torch.autocast(kind, enabled=False))
            if _coarse_products():
                stack.enter_context(_exact_products())
            return method(*args, **kwargs)

    return called


def _coarse_products() -> bool:
    """Whether products of float32 numbers may have fewer bits than float32."""
    return torch.get_float32_matmul_precision() != "highest" or torch.cuda.is_initialized()


@contextmanager
def _switched_off() -> Iterator[None]:
    matmul = torch.get_float32_matmul_precision()
    convolutions = _cudnn_tf32()
    if matmul != "highest":
        torch.set_float32_matmul_precision("highest")
    if convolutions:
        torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        if matmul != "highest":
            torch.set_float32_matmul_precision(matmul)
        if convolutions:
            torch.backends.cudnn.allow_tf32 = True


def _cudnn_tf32() -> bool:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:  # set by the newer of torch's two interfaces, layer by layer
        return True


# Flags of the whole process: the first thread sets them, the last restores them.
_exact_products = Shared(_switched_off)
