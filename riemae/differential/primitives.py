"""Functions of torch whose derivatives are wrong, missing or slow, as compositions of primitives.

Those can be differentiated again.

- Layer and instance norm: torch's rules for their first derivatives take the statistics for
  constants when they are differentiated again, so nested forward mode, and gradients of Jacobians,
  come out wrong (pytorch#196700, #198017).
- Group norm: its forward mode needs contiguous memory.
- The forward mode of ``glu`` cannot be differentiated again.
- ``logaddexp``, ``logcumsumexp``: their derivatives are wrong or missing where exponentials
  overflow, and second ones of the latter also where a covector vanishes.
- ``cdist``, ``hardsigmoid`` and ``embedding_bag`` have no forward mode, or none of second order.
- In ``2 * x`` torch makes a tensor of the number, whose tangent is a zero without memory. Each sum
  and product with such a zero asks a kernel written in Python for its shape, which takes
  milliseconds, and every level of nested forward mode doubles their number. A number that stays a
  number has no tangent, and gives the same bits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from riemae.differential.spellings import spellings, spelt


def with_primitives() -> TorchFunctionMode:
    """A context in which these functions consist of primitives.

    Every call of a torch function takes longer in it.
    """
    return untraced(_Primitives)()


def untraced(mode: Any) -> Any:
    """The mode, hidden from ``torch.compile``.

    Dynamo is slow to import, so this happens only where it is in use.
    """
    return _hidden_from_dynamo(mode) if "torch._dynamo" in sys.modules else mode


@lru_cache(maxsize=8)
def _hidden_from_dynamo(mode: Any) -> Any:
    return type(
        mode.__name__,
        (mode,),
        {"__torch_function__": torch.compiler.disable(mode.__torch_function__)},
    )


class _Primitives(TorchFunctionMode):
    """Primitives in the place of these functions."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        known = spelt(func)
        if known in SUBSTITUTES:
            return SUBSTITUTES[known](known, *args, **(kwargs or {}))
        if known in WITH_A_NUMBER and len(args) == 2 and not kwargs:
            x, number = args
            if type(x) is Tensor and x.is_floating_point() and type(number) in (int, float):
                return WITH_A_NUMBER[known](x, number)
        return func(*args, **(kwargs or {}))


# Each gets the function itself, then its arguments.


def layer_norm(
    func: Callable[..., Tensor],
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """As ``torch.nn.functional.layer_norm``."""
    x = _standardised(x, tuple(range(-len(normalized_shape), 0)), eps)
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def instance_norm(
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
    """As ``torch.nn.functional.instance_norm``.

    Where the statistics are not those of the input, ``func`` itself has the right derivatives.
    """
    given = (x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if cudnn_enabled:  # torch.instance_norm takes the weight before the statistics
        running_mean, running_var, weight, bias = weight, bias, running_mean, running_var
    if not use_input_stats or running_mean is not None:
        return func(*given, *cudnn_enabled)
    x = _standardised(x, tuple(range(2, x.ndim)), eps)
    shape = (-1,) + (1,) * (x.ndim - 2)
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()


def group_norm(
    func: Callable[..., Tensor],
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    """As ``torch.nn.functional.group_norm``."""
    x = _standardised(x.reshape(len(x), groups, -1), (2,), eps).reshape(x.shape)
    shape = (-1,) + (1,) * (x.ndim - 2)
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


# The same as operators of exported programs; those for prediction use the first result alone.


def native_layer_norm(
    func: Callable[..., Any],
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, None, None]:
    """As ``torch.native_layer_norm``."""
    return layer_norm(func, x, normalized_shape, weight, bias, eps), None, None


def native_group_norm(
    func: Callable[..., Any],
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: int,
    channels: int,
    inner: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, None, None]:
    """As ``torch.native_group_norm``."""
    return group_norm(func, x, groups, weight, bias, eps), None, None


def native_batch_norm(func: Callable[..., Any], *args: Any) -> Any:
    """As ``torch.ops.aten._native_batch_norm_legit``; instance norm comes down to it."""
    x, weight, bias, *_, training, _, eps = args
    if len(args) != 6 or not training:  # with given statistics, its own derivatives are right
        return func(*args)
    x = _standardised(x, (0, *range(2, x.ndim)), eps)
    shape = (-1,) + (1,) * (x.ndim - 2)
    x = x if weight is None else x * weight.view(shape)
    return (x if bias is None else x + bias.view(shape)), None, None


def cdist(
    func: Callable[..., Tensor],
    x1: Tensor,
    x2: Tensor,
    p: float = 2.0,
    compute_mode: str | None = None,
) -> Tensor:  # (*b, r, d), (*b, s, d) -> (*b, r, s)
    """As ``torch.cdist``, with derivative 0 at distance 0."""
    apart = (x1.unsqueeze(-2) - x2.unsqueeze(-3)).abs()
    if p == 1:
        return apart.sum(-1)
    if math.isinf(p):
        return apart.amax(-1)
    if p == 0:
        return func(x1, x2, p=p)
    powers = (apart.square() if p == 2 else apart.pow(p)).sum(-1)
    away = powers > 0
    return torch.where(away, torch.where(away, powers, 1.0).pow(1 / p), 0.0)


def hardsigmoid(func: Callable[..., Tensor], x: Tensor, inplace: bool = False) -> Tensor:
    """As ``torch.nn.functional.hardsigmoid``."""
    y = (x + 3).clamp(0, 6) / 6
    return x.copy_(y) if inplace else y


def embedding_bag(
    func: Callable[..., Tensor],
    indices: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """As ``torch.nn.functional.embedding_bag``, where sample weights depend on the points."""
    rest = (
        max_norm,
        norm_type,
        scale_grad_by_freq,
        mode,
        sparse,
        per_sample_weights,
        include_last_offset,
        padding_idx,
    )
    if mode != "sum" or per_sample_weights is None or max_norm is not None:
        return func(indices, weight, offsets, *rest)
    if padding_idx is not None:
        per_sample_weights = per_sample_weights * (indices != padding_idx)
    rows = per_sample_weights[..., None] * weight[indices]
    if offsets is None:
        return rows.sum(1)
    starts = offsets[:-1] if include_last_offset else offsets
    ends = torch.cat(
        [offsets[1:], offsets.new_tensor([] if include_last_offset else [len(indices)])]
    )
    bags = torch.repeat_interleave(ends - starts)
    return torch.zeros_like(rows[:1]).expand(len(starts), -1).index_add(0, bags, rows)


def glu(func: Callable[..., Tensor], x: Tensor, dim: int = -1) -> Tensor:
    """As ``torch.nn.functional.glu``, whose forward mode cannot be differentiated again."""
    value, gate = x.chunk(2, dim)
    return value * gate.sigmoid()


def logaddexp(func: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    """As ``torch.logaddexp``."""
    both = torch.broadcast_tensors(a, b)
    return torch.stack(both, -1).logsumexp(-1)


def logaddexp2(func: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    """As ``torch.logaddexp2``."""
    log_two = math.log(2)
    return logaddexp(func, a * log_two, b * log_two) / log_two


def logcumsumexp(func: Callable[..., Tensor], x: Tensor, dim: int) -> Tensor:
    """As ``torch.logcumsumexp``, by sums over 2, 4, 8, … numbers."""
    if x.ndim == 0:
        return x
    y = x.movedim(dim, -1)
    reach = 1
    while reach < y.shape[-1]:
        summed = logaddexp(func, y[..., reach:], y[..., :-reach])
        y = torch.cat([y[..., :reach], summed], -1)
        reach *= 2
    return y.movedim(-1, dim)


def divide_number(x: Tensor, number: float) -> Tensor:
    """``number / x``, as torch computes it."""
    return torch.ops.aten.mul.Scalar(x.reciprocal(), number)


# By function object, for a tensor and a number in this order.
WITH_A_NUMBER: dict[Any, Callable[[Tensor, float], Tensor]] = {
    **dict.fromkeys(spellings("add __add__ __radd__"), torch.ops.aten.add.Scalar),
    **dict.fromkeys(spellings("sub __sub__"), torch.ops.aten.sub.Scalar),
    **dict.fromkeys(spellings("mul __mul__ __rmul__"), torch.ops.aten.mul.Scalar),
    **dict.fromkeys(spellings("div __truediv__"), torch.ops.aten.div.Scalar),
    **dict.fromkeys(spellings("__rtruediv__"), divide_number),
}

# By function object. torch.embedding_bag takes its arguments in another order than F.embedding_bag.
SUBSTITUTES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(spellings("layer_norm"), layer_norm),
    **dict.fromkeys(spellings("instance_norm"), instance_norm),
    **dict.fromkeys(spellings("group_norm"), group_norm),
    **dict.fromkeys(spellings("cdist"), cdist),
    **dict.fromkeys(spellings("hardsigmoid"), hardsigmoid),
    **dict.fromkeys(spellings("glu"), glu),
    **dict.fromkeys(spellings("logaddexp"), logaddexp),
    **dict.fromkeys(spellings("logaddexp2"), logaddexp2),
    **dict.fromkeys(spellings("logcumsumexp"), logcumsumexp),
    F.embedding_bag: embedding_bag,
    torch.ops.aten.native_layer_norm: native_layer_norm,
    torch.ops.aten.native_group_norm: native_group_norm,
    torch.ops.aten._native_batch_norm_legit: native_batch_norm,
}
