"""Operators of ``torch.ops.aten`` that have no function of the same name or arguments elsewhere.

Programs of ``torch.export`` consist of operators, those that went through ``run_decompositions`` of
the core ones. All others are found by name (:func:`riemae.differential.spellings.spelt`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from riemae.differential.jets import composition
from riemae.differential.spellings import spellings

_ATEN = (torch.ops.aten,)


def operators(names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that enters a composition for operators of these names."""
    return composition(*spellings(names, owners=_ATEN))


# Places.


@operators("slice")
def _slice(
    func: Any, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    place = [slice(None)] * (dim % x.ndim) + [slice(start, end, step)]
    return x[tuple(place)]


@operators("index")
def _index(func: Any, x: Any, indices: Any) -> Any:
    return x[tuple(slice(None) if place is None else place for place in indices)]


@operators("split_with_sizes")
def _split_with_sizes(func: Any, x: Any, sizes: Any, dim: int = 0) -> Any:
    return torch.split(x, list(sizes), dim)


# Copies.


@operators("_to_copy")
def _to_copy(func: Any, x: Any, *, dtype: Any = None, **rest: Any) -> Any:
    return x.clone() if dtype is None else x.to(dtype)


@operators("alias lift_fresh_copy")
def _alias(func: Any, x: Any) -> Any:
    return x.view(x.shape)


@operators("view_copy _unsafe_view")
def _view(func: Any, x: Any, size: Any) -> Any:
    return x.reshape(list(size))


# Sizes of images.

_MODES = {
    "upsample_nearest1d": "nearest",
    "upsample_nearest2d": "nearest",
    "upsample_nearest3d": "nearest",
    "_upsample_nearest_exact1d": "nearest-exact",
    "_upsample_nearest_exact2d": "nearest-exact",
    "_upsample_nearest_exact3d": "nearest-exact",
    "upsample_linear1d": "linear",
    "upsample_bilinear2d": "bilinear",
    "upsample_trilinear3d": "trilinear",
    "upsample_bicubic2d": "bicubic",
}


def _resized(mode: str) -> Callable[..., Any]:
    nearest = mode.startswith("nearest")

    def apply(func: Any, x: Any, size: Any, *rest: Any) -> Any:
        given = list(rest)
        corners = None if nearest else given.pop(0)
        scales = given[0] if len(given) == 1 else None
        if size is None and isinstance(scales, (list, tuple)):
            return F.interpolate(x, None, tuple(scales), mode, corners)
        if size is None or any(scale is not None for scale in given):
            return func(x, size, *rest)
        return F.interpolate(x, tuple(size), None, mode, corners)

    return apply


for _name, _mode in _MODES.items():
    operators(_name)(_resized(_mode))


def _padded_by(mode: str) -> Callable[..., Any]:
    return lambda func, x, widths: F.pad(x, tuple(widths), mode)


for _axes in "123":
    operators(f"reflection_pad{_axes}d")(_padded_by("reflect"))
    operators(f"replication_pad{_axes}d")(_padded_by("replicate"))


# Layers.

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operators("convolution _convolution")
def _convolution(
    func: Any,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *flags: bool,
) -> Any:
    axes = weight.ndim - 2
    if transposed:
        sizes = (stride, padding, output_padding, groups, dilation)
        return _TRANSPOSED[axes](x, weight, bias, *sizes)
    return _CONVOLUTIONS[axes](x, weight, bias, stride, padding, dilation, groups)


@operators("_softmax _safe_softmax")
def _softmax(func: Any, x: Any, dim: int, *rest: Any) -> Any:
    return torch.softmax(x, dim)


@operators("_log_softmax")
def _log_softmax(func: Any, x: Any, dim: int, *rest: Any) -> Any:
    return torch.log_softmax(x, dim)


# Of several results, programs for prediction use the first.


@operators("native_layer_norm")
def _native_layer_norm(func: Any, x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    return F.layer_norm(x, list(shape), weight, bias, eps), None, None


@operators("native_group_norm")
def _native_group_norm(
    func: Any,
    x: Any,
    weight: Any,
    bias: Any,
    count: Any,
    channels: Any,
    inner: Any,
    groups: int,
    eps: float,
) -> Any:
    return F.group_norm(x, groups, weight, bias, eps), None, None


@operators("_native_batch_norm_legit_no_training")
def _native_batch_norm(
    func: Any,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    momentum: float,
    eps: float,
) -> Any:
    return F.batch_norm(x, mean, variance, weight, bias, False, momentum, eps), None, None


@operators("_scaled_dot_product_flash_attention_for_cpu")
def _flash_attention(
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Any = None,
    scale: float | None = None,
) -> Any:
    attend = F.scaled_dot_product_attention
    return attend(query, key, value, attn_mask, dropout_p, is_causal, scale=scale), None


@operators("max_pool2d_with_indices")
def _max_pool(func: Any, x: Any, *rest: Any) -> Any:
    return F.max_pool2d(x, *rest), None


@operators("_adaptive_avg_pool2d")
def _adaptive_pool(func: Any, x: Any, size: Any) -> Any:
    return F.adaptive_avg_pool2d(x, tuple(size))
