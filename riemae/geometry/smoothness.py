"""Kinks of a decoder: layers, functions, or second derivatives that vanish where second differences
do not.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from riemae.differential.derivatives import Differential
from riemae.differential.primitives import untraced
from riemae.exceptions import SmoothnessWarning, stack_level
from riemae.geometry.pullback import Pullback
from riemae.numerics.random import restored
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import concrete

_PIECEWISE_LINEAR = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Hardtanh,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
    nn.Hardsigmoid,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)


def warn_if_flat(core: Pullback, flat: Tensor) -> None:
    """Warn, once a manifold, that a piecewise linear decoder has no curvature to speak of.

    Warns:
        SmoothnessWarning: When a layer is piecewise linear, or second derivatives vanish where
            differences do not.
    """
    if core.smoothness_known or concrete(flat) is None or not len(flat):
        return
    core.smoothness_known = True
    found = kinks(core, flat)
    if found is not None:
        warnings.warn(
            f"The decoder has {found}: it is (partly) piecewise linear, its curvature sits in kinks that derivatives "
            "do not see, and what is reported here means little. Use SiLU, ELU, GELU, Softplus or tanh.",
            SmoothnessWarning,
            stacklevel=stack_level(),
        )


_PIECEWISE_LINEAR_NAMES = frozenset(kind.__name__ for kind in _PIECEWISE_LINEAR)
# Functions with kinks that a network is built of; clamps and moduli are often mere guards, away
# from where they act.
_KINKED = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu rrelu_ hardtanh hardtanh_ hardsigmoid hardswish threshold "
    "threshold_ hardshrink softshrink max_pool1d max_pool2d max_pool3d".split()
)


class _Seen(TorchFunctionMode):
    """Remembers the first function with kinks that is called."""

    found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _KINKED and self.found is None:
            self.found = name.rstrip("_")
        return func(*args, **(kwargs or {}))


def kinks_by_name(core: Pullback, flat: Tensor) -> str | None:  # (k, m)
    """A layer or function with kinks that the decoder consists of, in words.

    Looked for once a manifold.
    """
    if not core.kinks:
        if concrete(flat) is None or not len(flat):
            return None
        core.kinks.append(_named(core, flat))
    return core.kinks[0]


def _named(core: Pullback, flat: Tensor) -> str | None:
    for layer in core.decoder.module.modules() if core.decoder.module is not None else ():
        name = getattr(
            layer, "original_name", type(layer).__name__
        )  # torch.jit.script hides the class
        if isinstance(layer, _PIECEWISE_LINEAR) or name in _PIECEWISE_LINEAR_NAMES:
            return f"a layer {name}"
    with torch.no_grad(), restored(flat.device), untraced(_Seen)() as seen:
        core.select(slice(1)).immersion.value(flat[:1].detach())
    return None if seen.found is None else f"a function {seen.found}"


def kinks(core: Pullback, flat: Tensor) -> str | None:
    """What makes the decoder piecewise linear, in words; None when it is smooth."""
    named = kinks_by_name(core, flat)
    if named is not None:
        return named
    if len(flat) and _bends_without_curving(core.select(slice(4)).immersion, flat[:4].detach()):
        return "second derivatives that vanish where second differences do not"
    return None


def _bends_without_curving(immersion: Differential, z: Tensor) -> bool:
    with torch.no_grad():
        x, j, second = immersion.second_jet(z)
        reach = 1 + z.abs().amax()
        gap = torch.zeros_like(z[:, 0])
        for e in torch.eye(z.shape[-1]).to(z):
            gap = torch.maximum(
                gap,
                (immersion.value(z + reach * e) + immersion.value(z - reach * e) - 2 * x).norm(
                    dim=-1
                ),
            )
        size = x.norm(dim=-1) + j.flatten(1).norm(dim=-1) * reach
        eps = tolerance(z.dtype).eps
        vanish = second.flatten(1).norm(dim=-1) * reach**2 <= 10 * eps * size
        return bool((vanish & (gap > 1e4 * eps * size)).any())
