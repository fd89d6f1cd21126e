"""Kinks of a decoder.

They show in layers, in functions, or in second derivatives that vanish where second differences do
not.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from riemae.differential.derivatives import Differential
from riemae.differential.primitives import untraced
from riemae.differential.tape import Pairs
from riemae.exceptions import SmoothnessWarning, stack_level
from riemae.geometry.pullback import PullbackMetric
from riemae.numerics.deferral import immediate
from riemae.numerics.random import restored
from riemae.numerics.tolerances import tolerance
from riemae.numerics.values import concrete

# Second derivatives that may be there at once: 128 MiB in float64.
_NUMBERS_AT_ONCE = 2**24

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


def warn_if_flat(core: PullbackMetric, flat: Tensor) -> None:
    """Warn, once per manifold, that a piecewise linear decoder has no curvature to speak of.

    Warns:
        SmoothnessWarning: When a layer is piecewise linear, or second derivatives vanish where
            differences do not.
    """
    if core.findings.warned or concrete(flat) is None or not len(flat):
        return
    core.findings.warned = True
    with immediate():
        found = kinks(core, flat)
    if found is None:
        if core.findings.told is not None:
            core.findings.told()
    else:
        warnings.warn(
            f"The decoder has {found}: it is (partly) piecewise linear, its curvature sits in "
            "kinks that derivatives do not see, and what is reported here means little. Use SiLU, "
            "ELU, GELU, Softplus or tanh.",
            SmoothnessWarning,
            stacklevel=stack_level(),
        )


_PIECEWISE_LINEAR_NAMES = frozenset(kind.__name__ for kind in _PIECEWISE_LINEAR)
# Functions with kinks that networks are built of. Clamps and moduli are left out: they are often
# guards, which do not act where points lie.
_KINKED = frozenset(
    "relu relu_ relu6 leaky_relu leaky_relu_ prelu rrelu rrelu_ hardtanh hardtanh_ hardsigmoid "
    "hardswish threshold threshold_ hardshrink softshrink max_pool1d max_pool2d max_pool3d".split()
)


class _Seen(TorchFunctionMode):
    """Remembers the first function with kinks that is called."""

    found: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _KINKED and self.found is None:
            self.found = name.rstrip("_")
        return func(*args, **(kwargs or {}))


def kinks_by_name(core: PullbackMetric, flat: Tensor) -> str | None:  # (k, m)
    """A layer or function with kinks that the decoder consists of, in words.

    They are looked for once per manifold.
    """
    findings = core.findings
    if not findings.looked:
        if concrete(flat) is None or not len(flat):
            return None
        findings.kinks = _named(core, flat)
        findings.looked = True
    return findings.kinks


def _named(core: PullbackMetric, flat: Tensor) -> str | None:
    module = core.decoder.module
    for layer in () if module is None else module.modules():
        # torch.jit.script hides the class.
        name = getattr(layer, "original_name", type(layer).__name__)
        if isinstance(layer, _PIECEWISE_LINEAR) or name in _PIECEWISE_LINEAR_NAMES:
            return f"a layer {name}"
    with torch.no_grad(), restored(flat.device), untraced(_Seen)() as seen:
        core.select(slice(1)).immersion.value(flat[:1].detach())
    return None if seen.found is None else f"a function {seen.found}"


def kinks(core: PullbackMetric, flat: Tensor) -> str | None:
    """What makes the decoder piecewise linear, in words; None when it is smooth."""
    named = kinks_by_name(core, flat)
    if named is not None:
        return named
    if len(flat) and _bends_without_curving(core.select(slice(4)).immersion, flat[:4].detach()):
        return "second derivatives that vanish where second differences do not"
    return None


def _bends_without_curving(immersion: Differential, z: Tensor) -> bool:
    """Whether second derivatives vanish at a point where second differences do not."""
    with torch.no_grad():
        x, j, size_of_second = _second_order(immersion, z)
        reach = 1 + z.abs().amax()
        gap = torch.zeros_like(z[:, 0])
        for e in torch.eye(z.shape[-1]).to(z):
            ahead = immersion.value(z + reach * e)
            behind = immersion.value(z - reach * e)
            ends = ahead + behind
            gap = torch.maximum(gap, (ends - 2 * x).norm(dim=-1))
        slope = j.flatten(1).norm(dim=-1)
        size = x.norm(dim=-1) + slope * reach
        eps = tolerance(z.dtype).eps
        bend = size_of_second * reach**2
        vanish = bend <= 10 * eps * size
        return bool((vanish & (gap > 1e4 * eps * size)).any())


def _second_order(immersion: Differential, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, Jacobians, and the norm of all second derivatives ``(k,)``.

    Where these are many, they are never all there at once.
    """
    m = z.shape[-1]
    width = immersion.value(z).shape[-1]
    at_once = _NUMBERS_AT_ONCE // (len(z) * width)
    if m * m <= at_once:
        x, j, second = immersion.second_jet(z)
        return x, j, second.flatten(1).norm(dim=-1)
    pairs = Pairs.all(m)
    total = torch.zeros_like(z[:, 0])
    size = max(at_once, m)
    for first in range(0, len(pairs), size):
        i = pairs.i[first : first + size]
        j_of_pair = pairs.j[first : first + size]
        x, j, second = immersion.jets(z, pairs=Pairs(i, j_of_pair))
        on_diagonal = torch.tensor(i) == torch.tensor(j_of_pair)
        times = torch.where(on_diagonal, 1.0, 2.0).to(z)
        total = total + second.square().sum(1) @ times
    return x, j, total.sqrt()
