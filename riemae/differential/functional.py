"""Derivatives of any function of rows: Jacobian, products with it, second derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

from riemae.differential.derivatives import Differential
from riemae.differential.modes import BatchedMap
from riemae.exceptions import DifferentiationError, ShapeError
from riemae.numerics.checks import shape_in_words
from riemae.numerics.dependence import dependence_around
from riemae.numerics.precision import in_full_precision
from riemae.numerics.probe import FAILURES
from riemae.numerics.random import restored
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete


@in_full_precision
def jacobian(f: BatchedMap, z: Tensor, chunk_size: int | None = None) -> Tensor:
    """Jacobian of ``f: (k, m) -> (k, *shape)`` at ``z`` ``(*b, m)``, as ``(*b, *shape, m)``.

    Raises:
        ShapeError: When ``f`` does not return one output per point.
        DifferentiationError: When torch cannot differentiate ``f``.

    Example:
        >>> import torch
        >>> from riemae.differential import jacobian
        >>> jacobian(lambda z: z ** 2, torch.tensor([[1., 2.]]))
        tensor([[[2., 0.],
                 [0., 4.]]])
    """
    d, flat, shape = _prepared("jacobian", f, z, chunk_size)
    j = d.jacobian(flat)
    return j.reshape(*z.shape[:-1], *shape, z.shape[-1])


@in_full_precision
def jvp(
    f: BatchedMap, z: Tensor, v: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``f(z)`` and ``J(z) v``, both ``(*b, *shape)``, for ``z`` and ``v`` of shape ``(*b, m)``."""
    d, flat, shape = _prepared("jvp", f, z, chunk_size)
    x, tangent = d.jvp(flat, _like(v, z, flat))
    full = (*z.shape[:-1], *shape)
    return x.reshape(full), tangent.reshape(full)


@in_full_precision
def vjp(
    f: BatchedMap, z: Tensor, w: Tensor, chunk_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """``f(z)`` ``(*b, *shape)`` and ``J(z)ᵀ w`` ``(*b, m)``, for ``w`` ``(*b, *shape)``."""
    d, flat, shape = _prepared("vjp", f, z, chunk_size)
    x, pulled = d.vjp(flat, _covector("vjp", w, z, shape, flat))
    full = (*z.shape[:-1], *shape)
    return x.reshape(full), pulled.reshape(z.shape)


@in_full_precision
def second_derivative(
    f: BatchedMap, z: Tensor, u: Tensor, v: Tensor, chunk_size: int | None = None
) -> Tensor:
    """Second directional derivative ``∂²f(u, v)`` at ``z``, ``(*b, *shape)``.

    ``z``, ``u``, ``v`` are ``(*b, m)``.
    """
    d, flat, shape = _prepared("second_derivative", f, z, chunk_size)
    return d.second_derivative(flat, _like(u, z, flat), _like(v, z, flat)).reshape(
        (*z.shape[:-1], *shape)
    )


@in_full_precision
def contraction(f: BatchedMap, z: Tensor, a: Tensor, chunk_size: int | None = None) -> Tensor:
    """``a·∂²f``, ``(*b, m, m)``: the Hessian of ``⟨a, f⟩`` for ``a`` of shape ``(*b, *shape)``."""
    d, flat, shape = _prepared("contraction", f, z, chunk_size)
    return d.contraction(flat, _covector("contraction", a, z, shape, flat)).reshape(
        *z.shape, z.shape[-1]
    )


def _prepared(
    where: str, f: BatchedMap, z: Tensor, chunk_size: int | None
) -> tuple[Differential, Tensor, torch.Size]:
    flat = z.reshape(-1, z.shape[-1])
    with torch.no_grad():
        if len(flat):
            point = flat[:1].detach()
        else:
            point = flat.new_zeros(1, z.shape[-1])
        sample = f(point)
    if not isinstance(sample, Tensor) or not sample.ndim or len(sample) != 1:
        found = shape_in_words(sample)
        raise ShapeError(
            where,
            "a map (k, m) -> (k, *shape)",
            f"output {found} for one point",
            "The first axis of the output must be the batch.",
        )
    if len(flat) and not flat.is_meta and not transformed() and concrete(flat) is not None:
        _refuse_dependence(where, f, flat, sample[0].numel(), chunk_size)
    return Differential(f, chunk_size), flat, sample.shape[1:]


def _refuse_dependence(
    where: str, f: BatchedMap, flat: Tensor, size: int, chunk_size: int | None
) -> None:
    """Refuse a map whose rows depend on each other.

    Raises:
        DifferentiationError: When they do, or when it is random.
    """
    if chunk_size == 1:  # rows never meet
        return
    limit = None if chunk_size is None else min(chunk_size, len(flat))
    try:
        with torch.no_grad(), restored(flat.device):
            found = dependence_around(f, flat.detach(), size, limit)
    except FAILURES:
        return  # the map will fail again, with its own words, in what follows
    if found is not None:
        raise DifferentiationError(where, *found.message("map"))


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
            where,
            f"covectors of shape {expected}",
            str(tuple(w.shape)),
            "A covector has its output's shape.",
        )
    return w.reshape(len(flat), shape.numel())
