"""Functions that pick some of the numbers they get: maxima, pooling, sorting, masks, dropout.

Where several numbers share the maximum, each function shares the derivative as torch does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from riemae.differential.jets import Jet, composition, has_jets, rule, viewed
from riemae.differential.placement import from_the_end, selected
from riemae.differential.rules.generic import argument, generic
from riemae.differential.spellings import spellings

Args = tuple[Any, ...]
Options = dict[str, Any]


def _taken(jet: Jet, y: Tensor, op: Callable[[Tensor], Tensor]) -> Jet:
    """The jet of picked numbers, each from its own place whatever the values are."""
    recorded = jet.tape.recorded is not None
    if not recorded:
        return jet.mapped(y, op, jet.ahead)
    ahead = selected(jet, y, op)
    return jet.mapped(y, op, ahead[0])


# Along an axis, with the places of what was picked.


@rule(*spellings("sort topk kthvalue mode cummax cummin msort"))
def _picked(func: Any, args: Args, kwargs: Options) -> Any:
    jet, *rest = args
    if not isinstance(jet, Jet) or has_jets((rest, kwargs)) or not jet.ndim:
        return generic(func, args, kwargs)
    out = func(jet.value, *rest, **kwargs)
    if isinstance(out, Tensor):  # msort: along the first axis
        places = jet.value.argsort(dim=0, stable=True)
        return _taken(jet, out, lambda x: x.gather(0, places))
    return _by_places(func, jet, out, rest, kwargs)


# What stands in front of the axis among the arguments after the tensor.
_AXIS = {"topk": 1, "kthvalue": 1}


def _by_places(func: Any, jet: Jet, out: Any, rest: list[Any], kwargs: Options) -> Any:
    values, places = out
    position = _AXIS.get(func.__name__, 0)
    given = [x for x in rest if type(x) is int]
    axis = argument(given, position, kwargs, "dim", -1)
    if axis is None:
        axis = -1
    axis = from_the_end(axis, jet)
    kept = values.ndim == jet.ndim
    wide = places if kept else places.unsqueeze(axis)

    def op(x: Tensor) -> Tensor:
        found = x.gather(axis, wide)
        return found if kept else found.squeeze(axis)

    taken = _taken(jet, values, op)
    return type(out)((taken, places))


@rule(*spellings("max min median nanmedian"))
def _extreme(func: Any, args: Args, kwargs: Options) -> Any:
    jet, *rest = args
    if not isinstance(jet, Jet) or has_jets((rest, kwargs)) or not jet.ndim:
        return generic(func, args, kwargs)
    if not rest and not kwargs:
        if func.__name__ in ("max", "min"):
            return _shared(func, jet, None, False)
        return generic(func, args, kwargs)
    out = func(jet.value, *rest, **kwargs)
    if isinstance(out, Tensor):  # the larger of two, number by number
        return generic(func, args, kwargs)
    return _by_places(func, jet, out, rest, kwargs)


@rule(*spellings("amax amin"))
def _extreme_alone(func: Any, args: Args, kwargs: Options) -> Any:
    jet, *rest = args
    if not isinstance(jet, Jet) or not jet.ndim:
        return generic(func, args, kwargs)
    dim = argument(rest, 0, kwargs, "dim", ())
    keepdim = argument(rest, 1, kwargs, "keepdim", False)
    return _shared(func, jet, dim, keepdim)


def _shared(func: Any, jet: Jet, dim: Any, keepdim: bool) -> Jet:
    """The maximum or minimum along axes; the derivative is shared by all that attain it."""
    if isinstance(dim, int):
        dims = [dim]
    else:
        dims = list(dim or range(jet.ndim))
    axes = [from_the_end(axis, jet) for axis in dims]
    greatest = func.__name__ in ("max", "amax")
    extreme = torch.amax if greatest else torch.amin
    kept = extreme(jet.value, axes, keepdim=True)
    here = jet.value == kept
    attained = here.to(jet.value.dtype)
    count = attained.sum(axes, keepdim=True)
    weights = attained / count
    y = kept
    for axis in () if keepdim else sorted(axes):
        y = y.squeeze(axis)
    points_remain = -jet.ndim not in axes
    ahead = 1 if jet.ahead == 1 and points_remain else None

    def push(x: Tensor) -> Tensor:
        return (weights * x).sum(axes, keepdim=keepdim)

    return jet.stacked(y, push, ahead)


def _one_of(greater: bool, skips_nan: bool) -> Callable[..., Any]:
    """The greater or the smaller of two; what it does with NaN is as in torch."""

    def chosen(func: Any, a: Any, b: Any) -> Any:
        first = a > b if greater else a < b
        missing = b != b if skips_nan else a != a
        return torch.where(a == b, (a + b) / 2, torch.where(first | missing, a, b))

    return chosen


for _name in ("maximum", "minimum", "fmax", "fmin"):
    _greater = _name in ("maximum", "fmax")
    composition(*spellings(_name))(_one_of(_greater, skips_nan=_name[0] == "f"))


# Pooling: torch gives the places, counted within each image.

_POOLS = {
    f"{kind}max_pool{d}d": getattr(F, f"{kind}max_pool{d}d_with_indices")
    for kind in ("", "adaptive_")
    for d in (1, 2, 3)
}


def _pooling(name: str) -> Callable[..., Any]:
    axes = int(name[-2])

    def apply(func: Any, args: Args, kwargs: Options) -> Any:
        jet, *rest = args
        options = {key: x for key, x in kwargs.items() if key != "return_indices"}
        if not isinstance(jet, Jet) or has_jets((rest, kwargs)) or kwargs.get("return_indices"):
            return generic(func, args, kwargs)
        y, places = _POOLS[name](jet.value, *rest, **options)

        def op(x: Tensor) -> Tensor:
            flat = x.flatten(-axes)
            taken = flat.gather(-1, places.flatten(-axes))
            return taken.reshape(y.shape)

        return jet.mapped(y, op, jet.ahead)

    return apply


for _name in _POOLS:
    rule(*spellings(_name))(_pooling(_name))


# Masks and constants among the numbers.


@rule(*spellings("masked_fill"))
def _filled(func: Any, args: Args, kwargs: Options) -> Any:
    if kwargs or not isinstance(args[0], Jet) or has_jets(args[1:]):
        return generic(func, args, kwargs)
    jet, mask, value = args
    y = func(jet.value, mask, value)
    if y.shape != jet.shape:
        return generic(func, args, kwargs)
    return jet.stacked(y, lambda x: x.masked_fill(mask, 0.0), jet.ahead)


@rule(*spellings("pad constant_pad_nd"))
def _padded(func: Any, args: Args, kwargs: Options) -> Any:
    jet, *rest = args
    if not isinstance(jet, Jet) or has_jets((rest, kwargs)):
        return generic(func, args, kwargs)
    y = func(jet.value, *rest, **kwargs)
    mode = "constant"
    if func is F.pad:
        mode = argument(rest, 1, kwargs, "mode", "constant")
    widths = argument(rest, 0, kwargs, "pad", None)
    if mode == "constant":
        ahead = jet.ahead
        if len(widths) >= 2 * jet.ndim:  # the axis of the points, too
            ahead = None
        return jet.stacked(y, lambda x: F.pad(x, tuple(widths)), ahead)
    return jet.mapped(y, lambda x: func(x, *rest, **kwargs), jet.ahead)


@composition(*spellings("rrelu"))
def _rrelu(
    func: Any,
    x: Any,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    *generator: Any,
) -> Any:
    """Random slopes in training, their mean otherwise."""
    if training:
        return func(x, lower, upper, training, *generator)
    return F.leaky_relu(x, (lower + upper) / 2)


@rule(*spellings("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"))
def _dropped(func: Any, args: Args, kwargs: Options) -> Any:
    jet, *rest = args
    training = argument(rest, 1, kwargs, "training", True)
    if training or not isinstance(jet, Jet):
        return generic(func, args, kwargs)
    same = jet.stacked(jet.value, lambda x: x, jet.ahead)
    return viewed((jet,), same)
