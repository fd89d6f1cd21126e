"""Convolutions: linear in the input, or products where the weights depend on the points as well.

The second kind is what style-based generators are made of (StyleGAN2): the code scales the weights,
and all images of a batch are convolved as groups of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.differential.jets import Jet, Rule, has_jets, rule
from riemae.differential.rules.generic import generic
from riemae.differential.spellings import spellings

Args = tuple[Any, ...]
Options = dict[str, Any]


def _with_constant_weights(func: Any, args: Args, kwargs: Options) -> Any:
    jet, weight, *rest = args
    if not isinstance(jet, Jet) or has_jets((weight, rest, kwargs)):
        return generic(func, args, kwargs)
    y = func(jet.value, weight, *rest, **kwargs)
    others = [None, *rest[1:]] if rest else []
    options = {name: value for name, value in kwargs.items() if name != "bias"}

    def without_bias(x: Tensor) -> Tensor:
        return func(x, weight, *others, **options)

    return jet.mapped(y, without_bias)


def _pair(number: Any, along: int, missing: int) -> tuple[int, int]:
    """An option for both axes of an image, the first of which a sequence lacks."""
    given = (number,) if isinstance(number, int) else tuple(number)
    if along == 1:
        return missing, given[0]
    return given[0], given[-1]


def _as_image(x: Any, along: int) -> Any:
    return x.unsqueeze(-2) if along == 1 else x


def _convolved(
    x: Any,
    weight: Any,
    bias: Any,
    along: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Any:
    """Patches of the input as columns, times the weights."""
    image, kernels = _as_image(x, along), _as_image(weight, along)
    height, width = kernels.shape[-2:]
    sizes = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            image.shape[-2:], (height, width), stride, padding, dilation, strict=True
        )
    ]
    columns = F.unfold(image, (height, width), dilation, padding, stride)
    columns = columns.reshape(len(x), groups, -1, columns.shape[-1])
    flat = kernels.reshape(groups, len(weight) // groups, -1)
    y = torch.einsum("ngkl,gok->ngol", columns, flat)
    y = y.reshape(len(x), len(weight), *sizes[-along:])
    return y if bias is None else y + bias.reshape(-1, *[1] * along)


def _spread(
    x: Any,
    weight: Any,
    bias: Any,
    along: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
    more: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Any:
    """The transpose: products with the weights as columns, added up where patches overlap."""
    image, kernels = _as_image(x, along), _as_image(weight, along)
    kernel = tuple(kernels.shape[-2:])
    sizes = tuple(
        (n - 1) * s - 2 * p + d * (k - 1) + 1 + o
        for n, k, s, p, d, o in zip(
            image.shape[-2:], kernel, stride, padding, dilation, more, strict=True
        )
    )
    inputs = x.shape[1] // groups
    rows = image.reshape(len(x), groups, inputs, -1)
    flat = kernels.reshape(groups, inputs, -1)
    columns = torch.einsum("ngcl,gck->ngkl", rows, flat)
    columns = columns.reshape(len(x), -1, columns.shape[-1])
    y = F.fold(columns, sizes, kernel, dilation, padding, stride)
    y = y.reshape(len(x), -1, *sizes[-along:])
    return y if bias is None else y + bias.reshape(-1, *[1] * along)


def _by_columns(
    along: int,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A convolution as a product; None for what is left to the generic rule."""
    if isinstance(padding, str) or x.ndim != along + 2:
        return None
    numbers = _pair(padding, along, 0)
    steps = _pair(stride, along, 1), _pair(dilation, along, 1)
    return _convolved(x, weight, bias, along, steps[0], numbers, steps[1], groups)


def _spread_by_columns(
    along: int,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """The same of a transposed one."""
    if x.ndim != along + 2:
        return None
    steps = _pair(stride, along, 1), _pair(dilation, along, 1)
    edges = _pair(padding, along, 0), _pair(output_padding, along, 0)
    return _spread(x, weight, bias, along, steps[0], *edges, steps[1], groups)


def _with(along: int, product: Callable[..., Any]) -> Rule:
    def apply(func: Any, args: Args, kwargs: Options) -> Any:
        if along < 3 and any(isinstance(weight, Jet) for weight in args[1:2]):
            with torch._C._EnableTorchFunction():  # what it consists of has rules
                y = product(along, *args, **kwargs)
            if y is not None:
                return y
        return _with_constant_weights(func, args, kwargs)

    return apply


for _along in (1, 2, 3):
    rule(*spellings(f"conv{_along}d"))(_with(_along, _by_columns))
    rule(*spellings(f"conv_transpose{_along}d"))(_with(_along, _spread_by_columns))
