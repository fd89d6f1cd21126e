"""Layer and instance norm from primitives, whose derivatives can be differentiated again.

torch's own rules for their first derivatives take the statistics for constants when differentiated again: nested
forward mode, and gradients of Jacobians, come out wrong (pytorch#196700, #198017).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def with_exact_norms() -> TorchFunctionMode:
    """A context in which layer and instance norm consist of primitives. Every torch function in it takes longer."""
    return untraced(_ExactNorms)()


def untraced(mode: Any) -> Any:
    """The mode as ``torch.compile`` must see it: not at all. Dynamo is slow to import, so only where it is in use."""
    return _hidden_from_dynamo(mode) if "torch._dynamo" in sys.modules else mode


@lru_cache(maxsize=8)
def _hidden_from_dynamo(mode: Any) -> Any:
    return type(mode.__name__, (mode,), {"__torch_function__": torch.compiler.disable(mode.__torch_function__)})


class _ExactNorms(TorchFunctionMode):
    """Layer and instance norm from primitives."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (F.layer_norm, torch.layer_norm):
            return layer_norm(*args, **kwargs)
        if func in (F.instance_norm, torch.instance_norm):
            return instance_norm(func, *args, **kwargs)
        return func(*args, **kwargs)


def layer_norm(
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
    """As ``torch.nn.functional.instance_norm``; ``func`` where the statistics are not the input's."""
    if not use_input_stats or running_mean is not None:
        return func(x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps, *cudnn_enabled)
    x = _standardised(x, tuple(range(2, x.ndim)), eps)
    shape = (-1,) + (1,) * (x.ndim - 2)
    x = x if weight is None else x * weight.view(shape)
    return x if bias is None else x + bias.view(shape)


def _standardised(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + eps).rsqrt()
