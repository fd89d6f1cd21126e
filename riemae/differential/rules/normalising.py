"""Functions along an axis that normalise: softmax, log-softmax, log-sum-exp, standardisation.

Each is one operation here, by its closed form. As compositions of single functions they would take
three times as many passes over all derivatives, and record three times as much of what bends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.differential.jets import Jet, composition, has_jets, plain, rule
from riemae.differential.placement import from_the_end, placed
from riemae.differential.rules.generic import argument, generic
from riemae.differential.spellings import spellings
from riemae.differential.tangents import plus
from riemae.differential.tape import products

Args = tuple[Any, ...]
Options = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """A function along an axis to second order, at a value.

    Attributes:
        push: Its derivative: tangents ``(k, *s) -> (k, *t)``.
        quadratic: Its second derivative along pairs of tangents, ``(p, *s) twice -> (p, *t)``.
        weighted: ``(δ, ∂x (k, *s)) -> (b, k, k)``, which is ``Σ δ ∂²op(∂x(u_i), ∂x(u_j))`` per
            point.
    """

    push: Callable[[Tensor], Tensor]
    quadratic: Callable[[Tensor, Tensor], Tensor]
    weighted: Callable[[Tensor, Tensor], Tensor]


def _pushed(jet: Jet, y: Tensor, form: Form, ahead: int | None) -> Jet:
    """The jet of the result."""
    tape = jet.tape
    with tape.tangents():
        first = form.push(jet.first)
        second = None if jet.second is None else form.push(jet.second)
        if tape.recorded is not None:
            tangents = jet.first
            tape.record(y, lambda slope: form.weighted(slope, tangents))
        elif tape.pairs is not None:
            i = tape.pairs.i
            j = tape.pairs.j
            second = plus(second, form.quadratic(jet.first[i], jet.first[j]))
    return Jet(y, first, second, tape, ahead)


# Softmax and its like.


def _axis(jet: Jet, rest: tuple[Any, ...], kwargs: Options) -> int | None:
    """The axis, counted from the end; None where the call has other arguments than that."""
    given = {name: x for name, x in kwargs.items() if x is not None}
    given.pop("_stacklevel", None)
    axis = rest[0] if rest else given.pop("dim", None)
    others = [x for x in rest[1:] if x is not None and x != 3]  # 3 is the level of a warning
    if type(axis) is not int or others or given or not jet.ndim:
        return None
    return from_the_end(axis, jet)


@rule(*spellings("softmax"))
def _softmax(func: Any, args: Args, kwargs: Options) -> Any:
    jet, *rest = args
    axis = _axis(jet, tuple(rest), kwargs) if isinstance(jet, Jet) else None
    if axis is None:
        return generic(func, args, kwargs)
    y = torch.softmax(jet.value, axis)
    p = jet.tape.frozen(y)
    batch = jet.tape.batch
    ahead = jet.ahead

    def centred(x: Tensor) -> Tensor:
        return x - (p * x).sum(axis, keepdim=True)

    def quadratic(u: Tensor, v: Tensor) -> Tensor:
        together = centred(u) * centred(v)
        return p * centred(together)

    def weighted(slope: Tensor, first: Tensor) -> Tensor:
        apart = centred(first)
        weights = p * centred(slope)
        return products(weights * apart, apart, batch, placed(ahead))

    def push(x: Tensor) -> Tensor:
        return p * centred(x)

    form = Form(push, quadratic, weighted)
    return _pushed(jet, y, form, ahead)


@composition(*spellings("softmin"))
def _softmin(
    func: Any, x: Any, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
) -> Any:
    return (-x).softmax(dim, dtype)


@rule(*spellings("log_softmax"))
def _log_softmax(func: Any, args: Args, kwargs: Options) -> Any:
    jet, *rest = args
    axis = _axis(jet, tuple(rest), kwargs) if isinstance(jet, Jet) else None
    if axis is None:
        return generic(func, args, kwargs)
    y = torch.log_softmax(jet.value, axis)
    p = jet.tape.frozen(y).exp()
    batch = jet.tape.batch
    ahead = jet.ahead

    def centred(x: Tensor) -> Tensor:
        return x - (p * x).sum(axis, keepdim=True)

    def quadratic(u: Tensor, v: Tensor) -> Tensor:
        together = p * centred(u) * centred(v)
        covariance = together.sum(axis, keepdim=True)
        return -covariance.expand(len(covariance), *y.shape)

    def weighted(slope: Tensor, first: Tensor) -> Tensor:
        apart = centred(first)
        weights = -p * slope.sum(axis, keepdim=True)
        return products(weights * apart, apart, batch, placed(ahead))

    form = Form(centred, quadratic, weighted)
    return _pushed(jet, y, form, ahead)


@rule(*spellings("logsumexp"))
def _logsumexp(func: Any, args: Args, kwargs: Options) -> Any:
    jet, *rest = args
    if not isinstance(jet, Jet) or has_jets(rest):
        return generic(func, args, kwargs)
    dim = argument(rest, 0, kwargs, "dim", None)
    keepdim = argument(rest, 1, kwargs, "keepdim", False)
    dims = [dim] if isinstance(dim, int) else list(dim)
    axes = [from_the_end(axis, jet) for axis in dims]
    y = torch.logsumexp(jet.value, axes, keepdim)
    kept = jet.tape.frozen(y)
    for axis in () if keepdim else sorted(axes):
        kept = kept.unsqueeze(axis)
    log_shares = jet.tape.frozen(jet.value) - kept
    p = log_shares.exp()
    batch = jet.tape.batch
    ahead = jet.ahead

    def along(x: Tensor) -> Tensor:
        return (p * x).sum(axes, keepdim=keepdim)

    def centred(x: Tensor) -> Tensor:
        return x - (p * x).sum(axes, keepdim=True)

    def quadratic(u: Tensor, v: Tensor) -> Tensor:
        return along(centred(u) * centred(v))

    def weighted(slope: Tensor, first: Tensor) -> Tensor:
        apart = centred(first)
        weights = p * slope.reshape(kept.shape)
        return products(weights * apart, apart, batch, placed(ahead))

    form = Form(along, quadratic, weighted)
    points_remain = -jet.ndim not in axes
    if ahead != 1 or not points_remain:
        return _pushed(jet, y, form, None)
    return _pushed(jet, y, form, ahead)


# Norms of layers.


@dataclass(frozen=True)
class Standardisation:
    """``(x − mean) / √(variance + eps)`` along the last axis, to second order at a value.

    Attributes:
        y: The result ``(*s, n)``, as tangents use it.
        rate: ``1 / √(variance + eps)``, ``(*s, 1)``.
        centring: Whether the mean is subtracted; else the mean square stands for the variance.
        batch: Number of points.
        ahead: Where they are (:mod:`riemae.differential.placement`).
    """

    y: Tensor
    rate: Tensor
    centring: bool
    batch: int
    ahead: int | None

    def push(self, x: Tensor) -> Tensor:
        """The derivative along tangents."""
        centred = self._centred(x) * self.rate
        along = self._along(x) * self.rate
        return torch.addcmul(centred, self.y, along, value=-1)

    def quadratic(self, u: Tensor, v: Tensor) -> Tensor:
        """The second derivative along pairs of tangents."""
        a = self._centred(u)
        b = self._centred(v)
        a_along = self._along(u)
        b_along = self._along(v)
        together = (a * b).mean(-1, keepdim=True)
        level = 3 * a_along * b_along - together
        crossed = a_along * b + b_along * a
        return self.rate.square() * (level * self.y - crossed)

    def weighted(self, slope: Tensor, first: Tensor) -> Tensor:
        """``Σ δ ∂²op(∂x(u_i), ∂x(u_j))`` per point."""
        place = placed(self.ahead)
        scale = self.rate.square()
        centred = self._centred(first)
        along = self._along(first)
        level = (slope * self.y).sum(-1, keepdim=True) * scale
        cross = (slope * centred).sum(-1, keepdim=True) * scale
        count = self.y.shape[-1]
        squares = products(3 * level * along, along, self.batch, place)
        spread = products(level / count * centred, centred, self.batch, place)
        mixed = products(cross, along, self.batch, place)
        return squares - spread - mixed - mixed.transpose(1, 2)

    def _centred(self, x: Tensor) -> Tensor:
        if not self.centring:
            return x
        return x - x.mean(-1, keepdim=True)

    def _along(self, x: Tensor) -> Tensor:
        return (self.y * x).mean(-1, keepdim=True)


def standardised(jet: Jet, eps: float, centring: bool = True) -> Jet:  # (*s, n)
    """``(x − mean) / √(variance + eps)`` along the last axis.

    Without centring, ``x / √(mean square + eps)``.
    """
    tape = jet.tape
    x = jet.value
    centre = x - x.mean(-1, keepdim=True) if centring else x
    variance = centre.square().mean(-1, keepdim=True)
    rate = (variance + eps).rsqrt()
    y = centre * rate
    at_value = Standardisation(
        y=tape.frozen(y),
        rate=tape.frozen(rate),
        centring=centring,
        batch=tape.batch,
        ahead=jet.ahead,
    )
    form = Form(at_value.push, at_value.quadratic, at_value.weighted)
    return _pushed(jet, y, form, jet.ahead)


def _scaled(y: Any, weight: Any, bias: Any, shape: tuple[int, ...]) -> Any:
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return y


def _of_channels(x: Any) -> tuple[int, ...]:
    """The shape of one number per channel, next to ``x`` ``(b, channels, …)``."""
    inner_axes = (1,) * (x.ndim - 2)
    return (-1, *inner_axes)


def _in_groups(jet: Any, shape: tuple[int, ...], eps: float, centring: bool = True) -> Any:
    """Standardised along the last axis of another shape."""
    grouped = jet.reshape(shape)
    with torch._C.DisableTorchFunctionSubclass():
        out = standardised(grouped, eps, centring)
    return out.reshape(jet.shape)


@composition(*spellings("layer_norm"))
def _layer_norm(
    func: Any,
    x: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Any:
    """As ``torch.nn.functional.layer_norm``."""
    if not isinstance(x, Jet):
        return func(x, normalized_shape, weight, bias, eps)
    kept = x.shape[: x.ndim - len(normalized_shape)]
    y = _in_groups(x, (*kept, -1), eps)
    return _scaled(y, weight, bias, tuple(normalized_shape))


@composition(*spellings("rms_norm"))
def _rms_norm(
    func: Any, x: Any, normalized_shape: Any, weight: Any = None, eps: float | None = None
) -> Any:
    """As ``torch.nn.functional.rms_norm``."""
    if not isinstance(x, Jet):
        return func(x, normalized_shape, weight, eps)
    kept = x.shape[: x.ndim - len(normalized_shape)]
    floor = torch.finfo(x.dtype).eps if eps is None else eps
    y = _in_groups(x, (*kept, -1), floor, centring=False)
    return _scaled(y, weight, None, tuple(normalized_shape))


@composition(*spellings("group_norm"))
def _group_norm(
    func: Any,
    x: Any,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """As ``torch.nn.functional.group_norm``."""
    if not isinstance(x, Jet):
        return func(x, groups, weight, bias, eps)
    y = _in_groups(x, (len(x), groups, -1), eps)
    return _scaled(y, weight, bias, _of_channels(x))


@composition(*spellings("instance_norm"))
def _instance_norm(
    func: Any,
    x: Any,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *cudnn_enabled: bool,
) -> Any:
    """As ``torch.nn.functional.instance_norm``."""
    given = (running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    if cudnn_enabled:  # torch.instance_norm takes the weight before the statistics
        running_mean, running_var, weight, bias = weight, bias, running_mean, running_var
    own = use_input_stats and running_mean is None
    if not own or not isinstance(x, Jet):
        return func(x, *given, *cudnn_enabled)
    y = _in_groups(x, (*x.shape[:2], -1), eps)
    return _scaled(y, weight, bias, _of_channels(x))


@rule(*spellings("batch_norm"))
def _batch_norm(func: Any, args: Args, kwargs: Options) -> Any:
    """With given statistics it is affine in each channel."""
    given = _named(args, kwargs)
    jet = given["input"]
    mean = given["running_mean"]
    variance = given["running_var"]
    weight = given["weight"]
    constant = not has_jets((mean, variance, weight, given["bias"]))
    known = not given["training"] and variance is not None
    if not isinstance(jet, Jet) or not constant or not known:
        return generic(func, args, kwargs)
    slope = (variance + given["eps"]).rsqrt()
    if weight is not None:
        slope = slope * weight
    slope = slope.view(_of_channels(jet))
    y = func(*plain(args), **plain(kwargs))
    return jet.stacked(y, lambda x: x * slope, jet.ahead)


def _named(args: Args, kwargs: Options) -> dict[str, Any]:
    """Arguments of ``batch_norm``, by the names of ``torch.nn.functional``."""
    functional = "input running_mean running_var weight bias training momentum eps".split()
    other = "input weight bias running_mean running_var training momentum eps".split()
    given: dict[str, Any] = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    # torch.batch_norm takes nine arguments, and the weight before the statistics.
    names = other if len(args) == 9 else functional
    given.update(zip(names, args, strict=False))
    given.update(kwargs)
    return given


@composition(*spellings("local_response_norm"))
def _local_response_norm(
    func: Any, x: Any, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Any:
    """Among neighbouring channels; absent ones count as zeros."""
    squares = x.square().flatten(2).unsqueeze(1)
    padded = F.pad(squares, (0, 0, size // 2, (size - 1) // 2))
    mean = F.avg_pool2d(padded, (size, 1), stride=1)
    return x / (alpha * mean.reshape(x.shape) + k).pow(beta)
