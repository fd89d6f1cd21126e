"""Norms and moments, as compositions of functions that have rules."""

from __future__ import annotations

import math
from typing import Any

import torch

from riemae.differential.jets import composition
from riemae.differential.spellings import spellings


def _root(squares: Any) -> Any:
    """``√``, with derivative 0 at 0, as torch's norms have it."""
    away = squares > 0
    return torch.where(away, torch.where(away, squares, 1.0).sqrt(), 0.0)


def length(x: Any, p: Any, dim: Any, keepdim: bool) -> Any:
    """The p-norm along axes; None for all of them."""
    axes = tuple(range(x.ndim)) if dim is None else dim
    if p == 2:
        return _root(x.square().sum(axes, keepdim=keepdim))
    if p == 1:
        return x.abs().sum(axes, keepdim=keepdim)
    if p in (math.inf, -math.inf):
        return (x.abs().amax if p > 0 else x.abs().amin)(axes, keepdim=keepdim)
    if p == 0:
        raise NotImplementedError("the number of entries that are not 0 has no derivative")
    powers = x.abs().pow(p).sum(axes, keepdim=keepdim)
    away = powers > 0
    return torch.where(away, torch.where(away, powers, 1.0).pow(1 / p), 0.0)


@composition(torch.linalg.vector_norm)
def _vector_norm(
    func: Any, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    return length(x if dtype is None else x.to(dtype), ord, dim, keepdim)


@composition(*spellings("norm"))
def _norm(
    func: Any,
    x: Any,
    p: Any = "fro",
    dim: Any = None,
    keepdim: bool = False,
    out: None = None,
    dtype: Any = None,
) -> Any:
    if p not in ("fro", None) and not isinstance(p, (int, float)):
        raise NotImplementedError(f"the norm {p!r} does not support Taylor mode")
    order = p if isinstance(p, (int, float)) else 2
    return length(x if dtype is None else x.to(dtype), order, dim, keepdim)


@composition(*spellings("normalize"))
def _normalize(
    func: Any, x: Any, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None
) -> Any:
    return x / length(x, p, dim, True).clamp_min(eps)


@composition(torch.linalg.norm)
def _any_norm(
    func: Any, x: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, **options: Any
) -> Any:
    """Of vectors, and the Frobenius norm of matrices."""
    vector = type(dim) is int or (dim is None and x.ndim == 1)
    if options.get("dtype") is not None or not (ord is None or vector):
        return func(x, ord, dim, keepdim, **options)
    return length(x, 2 if ord is None else ord, dim, keepdim)


@composition(torch.linalg.matrix_norm)
def _matrix_norm(
    func: Any, x: Any, ord: Any = "fro", dim: Any = (-2, -1), keepdim: bool = False, **options: Any
) -> Any:
    if ord != "fro" or options.get("dtype") is not None:
        return func(x, ord, dim, keepdim, **options)
    return length(x, 2, tuple(dim), keepdim)


@composition(*spellings("pairwise_distance"))
def _pairwise(
    func: Any, a: Any, b: Any, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Any:
    return length(a - b + eps, p, -1, keepdim)


@composition(*spellings("cosine_similarity"))
def _cosine(func: Any, a: Any, b: Any, dim: int = 1, eps: float = 1e-8) -> Any:
    a, b = torch.broadcast_tensors(a, b)
    length_a = length(a, 2, dim, False).clamp_min(eps)
    length_b = length(b, 2, dim, False).clamp_min(eps)
    return (a * b).sum(dim) / (length_a * length_b)


def _variance(
    x: Any,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """The mean square distance from the mean along axes."""
    if isinstance(dim, bool):  # var(unbiased)
        unbiased = dim
        dim = None
    if dim is None:
        axes = tuple(range(x.ndim))
    elif isinstance(dim, int):
        axes = (dim,)
    else:
        axes = tuple(dim)
    if correction is None:
        biased = unbiased is not None and not unbiased
        correction = 0 if biased else 1
    count = math.prod(x.shape[axis] for axis in axes)
    centred = x - x.mean(axes, keepdim=True)
    squares = centred.square().sum(axes, keepdim=keepdim)
    degrees = max(count - correction, 0)
    return squares / degrees


@composition(*spellings("var"))
def _var(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return _variance(x, *args, **kwargs)


@composition(*spellings("var_mean"))
def _var_mean(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return _variance(x, *args, **kwargs), _mean_like(x, *args, **kwargs)


@composition(*spellings("std_mean"))
def _std_mean(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return _root(_variance(x, *args, **kwargs)), _mean_like(x, *args, **kwargs)


def _mean_like(
    x: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, *, correction: Any = None
) -> Any:
    """The mean along the axes of :func:`_variance`."""
    every = dim is None or isinstance(dim, bool)
    axes = tuple(range(x.ndim)) if every else dim
    return x.mean(axes, keepdim=keepdim)


@composition(*spellings("std"))
def _std(func: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    return _root(_variance(x, *args, **kwargs))
