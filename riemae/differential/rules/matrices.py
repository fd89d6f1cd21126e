"""Inverse, determinants, solutions and Cholesky factors of square matrices, by closed forms.

The second derivatives that torch's own forward mode gives for some of them are wrong under
``vmap``, and slow for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from riemae.differential.jets import Jet, composition, rule
from riemae.differential.rules.generic import add_bend, generic
from riemae.differential.spellings import OWNERS, spellings

Args = tuple[Any, ...]
Options = dict[str, Any]
# Tangents (k, *s) -> (k, *t), and pairs of them (p, *s) twice -> (p, *t).
Push = Callable[[Tensor], Tensor]
Quadratic = Callable[[Tensor, Tensor], Tensor]

EVERYWHERE = (*OWNERS, torch.linalg)


def _curved(jet: Jet, y: Tensor, push: Push, quadratic: Quadratic) -> Jet:
    """The jet of a function of the last two axes, from its first and second derivative."""
    tape = jet.tape
    ahead = jet.ahead if jet.ndim > 2 else None
    with tape.tangents():
        first = push(jet.first)
        second = None
        if jet.second is not None:
            second = push(jet.second)
        if tape.pairs is not None:
            left = jet.first[tape.pairs.i]
            right = jet.first[tape.pairs.j]
            bent = quadratic(left, right)
            second = add_bend(tape, y, bent, second, len(first), ahead)
    return Jet(y, first, second, tape, ahead)


def _alone(args: Args, kwargs: Options) -> bool:
    """Whether one matrix for each point is all that was given."""
    return len(args) == 1 and not kwargs and isinstance(args[0], Jet)


@rule(*spellings("inv inverse", owners=EVERYWHERE))
def _inverse(func: Any, args: Args, kwargs: Options) -> Any:
    if not _alone(args, kwargs):
        return generic(func, args, kwargs)
    (jet,) = args
    y = func(jet.value)
    inverse = jet.tape.frozen(y)

    def push(x: Tensor) -> Tensor:
        return -(inverse @ x @ inverse)

    def quadratic(u: Tensor, v: Tensor) -> Tensor:
        forth = u @ inverse @ v
        back = v @ inverse @ u
        both = forth + back
        return inverse @ both @ inverse

    return _curved(jet, y, push, quadratic)


def _traces(inverse: Tensor) -> tuple[Push, Quadratic]:
    """``tr(A⁻¹x)`` and ``tr(A⁻¹u A⁻¹v)``."""

    def push(x: Tensor) -> Tensor:
        return (inverse.mT * x).sum((-2, -1))

    def product(u: Tensor, v: Tensor) -> Tensor:
        left = inverse @ u
        right = inverse @ v
        return (left.mT * right).sum((-2, -1))

    return push, product


@rule(*spellings("det", owners=EVERYWHERE))
def _determinant(func: Any, args: Args, kwargs: Options) -> Any:
    if not _alone(args, kwargs):
        return generic(func, args, kwargs)
    (jet,) = args
    y = func(jet.value)
    size = jet.tape.frozen(y)
    inverse = torch.linalg.inv(jet.tape.frozen(jet.value))
    trace, product = _traces(inverse)

    def quadratic(u: Tensor, v: Tensor) -> Tensor:
        traces = trace(u) * trace(v)
        return size * (traces - product(u, v))

    def push(x: Tensor) -> Tensor:
        return size * trace(x)

    return _curved(jet, y, push, quadratic)


def _log_volume(jet: Jet, y: Tensor) -> Jet:
    """``log |det|``, whose value is y."""
    inverse = torch.linalg.inv(jet.tape.frozen(jet.value))
    trace, product = _traces(inverse)

    def quadratic(u: Tensor, v: Tensor) -> Tensor:
        return -product(u, v)

    return _curved(jet, y, trace, quadratic)


@rule(*spellings("logdet"))
def _log_determinant(func: Any, args: Args, kwargs: Options) -> Any:
    if not _alone(args, kwargs):
        return generic(func, args, kwargs)
    (jet,) = args
    return _log_volume(jet, func(jet.value))


@rule(*spellings("slogdet", owners=EVERYWHERE))
def _sign_and_log(func: Any, args: Args, kwargs: Options) -> Any:
    if not _alone(args, kwargs):
        return generic(func, args, kwargs)
    (jet,) = args
    out = func(jet.value)
    sign, log_size = out
    return type(out)((sign, _log_volume(jet, log_size)))


@rule(*spellings("cholesky", owners=EVERYWHERE))
def _cholesky(func: Any, args: Args, kwargs: Options) -> Any:
    """``A = LLᵀ``: ``∂L(x) = L Φ(L⁻¹ x L⁻ᵀ)``, where Φ takes the lower half."""
    if not _alone(args, kwargs):
        return generic(func, args, kwargs)
    (jet,) = args
    y = func(jet.value)
    factor = jet.tape.frozen(y)
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    identities = eye.expand_as(factor)
    inverse = torch.linalg.solve_triangular(factor, identities, upper=False)

    def push(x: Tensor) -> Tensor:
        symmetric = (x + x.mT) / 2
        inner = inverse @ symmetric @ inverse.mT
        diagonal = inner.diagonal(dim1=-2, dim2=-1)
        lower = inner.tril() - torch.diag_embed(diagonal) / 2
        return factor @ lower

    def quadratic(u: Tensor, v: Tensor) -> Tensor:
        both = push(u) @ push(v).mT
        return -push(both + both.mT)

    return _curved(jet, y, push, quadratic)


@composition(torch.linalg.solve)
def _solve(func: Any, a: Any, b: Any, *, left: bool = True, out: None = None) -> Any:
    """``A⁻¹b``, where the matrix depends on the points."""
    if not isinstance(a, Jet):
        return func(a, b, left=left)
    inverse = torch.linalg.inv(a)
    if not left:
        return b @ inverse
    if b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1]):
        column = b[..., None]
        return (inverse @ column).squeeze(-1)
    return inverse @ b
