"""Layers in training mode that keep a decoder from being a map of single points."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrizations

from riemae.exceptions import DecoderError, DTypeError
from riemae.numerics import reach

# Layers that couple the batch or change their own state at every call.
_BATCH_COUPLED = (nn.modules.batchnorm._NormBase, parametrizations._SpectralNorm)
_RANDOM = (nn.modules.dropout._DropoutNd, nn.AlphaDropout, nn.RReLU)
# The same by their names: torch.jit.script hides the classes.
_BATCH_NORM_NAMES = {"BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"}
_BATCH_COUPLED_NAMES = {
    *_BATCH_NORM_NAMES,
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
}
_RANDOM_NAMES = {
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "FeatureAlphaDropout",
    "RReLU",
}


def layers_in_training(module: nn.Module | None) -> int:
    """How many layers are in training mode; 0 for a function."""
    return 0 if module is None else sum(map(_in_training, _layers(module)))


def _layers(module: nn.Module) -> list[nn.Module]:
    """A module and all of its parts, each once: for every call, so without their names."""
    found = {id(module): module}
    pending = [module]
    while pending:
        for part in pending.pop().children():
            if id(part) not in found:
                found[id(part)] = part
                pending.append(part)
    return list(found.values())


def refuse_layers_in_training(where: str, module: nn.Module) -> None:
    """Refuse layers in training mode that are random or couple the batch.

    Raises:
        DecoderError: With the name of the first one.
    """
    if not any(map(_is_refused, _layers(module))):
        return
    for name, layer in module.named_modules():
        if not _is_refused(layer):
            continue
        kind = _kind(layer)
        coupled = _is_batch_coupled(layer, kind)
        hint = "Call decoder.eval() first."
        if coupled:
            hint = (
                "Call decoder.eval() first; inside a training loop compute under "
                "riemae.frozen_statistics(decoder), where such layers use their running statistics."
            )
        got = f"{kind} {name!r} in training mode"
        raise DecoderError(where, "a decoder in evaluation mode", got, hint)


@contextmanager
def frozen_statistics(*decoders: Any) -> Iterator[None]:
    """Let layers with batch statistics use their running ones, inside a training loop.

    Batch norm in training mode couples the points of a batch, and changes its statistics at every
    call: no metric belongs to it. Under this context batch, instance and spectral norm are in
    evaluation mode. All other layers stay in the mode that they are in, and gradients reach the
    weights of all of them. On leaving, by an error too, every layer is as it was::

        for x in batches:
            loss = reconstruction(x)  # updates the running statistics
            with riemae.frozen_statistics(decoder):
                loss = loss + losses.relaxed_distortion(M, encoder(x))
            loss.backward()

    What updates the statistics comes first, as here: torch refuses a backward pass through
    statistics that have changed since.

    Args:
        decoders: Modules, or functions and bound methods that refer to modules.

    Raises:
        DTypeError: For what refers to no module.
        DecoderError: For batch norm without running statistics, which couples the batch in
            evaluation mode, too.
    """
    frozen: list[nn.Module] = []
    for decoder in decoders:
        frozen += _with_statistics(decoder)
    for layer in frozen:
        layer.training = False
    try:
        yield
    finally:
        for layer in frozen:
            layer.training = True


def _with_statistics(decoder: Any) -> list[nn.Module]:
    """Layers in training mode that couple the batch, of all modules that a decoder refers to.

    Raises:
        DTypeError: For what refers to no module.
        DecoderError: For batch norm without running statistics.
    """
    where = "frozen_statistics"
    modules = reach.modules(decoder)
    if not modules:
        hint = "Try frozen_statistics(model.decoder)."
        raise DTypeError(where, "an nn.Module, or a function of one", repr(decoder), hint)
    named = [pair for module in modules for pair in module.named_modules()]
    found: list[nn.Module] = []
    for name, layer in named:
        kind = _kind(layer)
        if not _is_batch_coupled(layer, kind):
            continue
        if kind in _BATCH_NORM_NAMES and getattr(layer, "running_mean", None) is None:
            raise DecoderError(
                where,
                "batch norm with running statistics",
                f"{kind} {name!r} without",
                "Make it with track_running_stats=True, or take GroupNorm or LayerNorm, which "
                "need no batch.",
            )
        if _in_training(layer):
            found.append(layer)
    return found


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return str(getattr(layer, "original_name", type(layer).__name__))
    return type(layer).__name__


def _in_training(layer: nn.Module) -> bool:
    # torch.jit.freeze removes the flag.
    return bool(getattr(layer, "training", False))


def _is_refused(layer: nn.Module) -> bool:
    """Whether a layer is in training mode, and random or coupled across the batch by that."""
    if not _in_training(layer):
        return False
    kind = _kind(layer)
    return _is_batch_coupled(layer, kind) or _is_random(layer, kind)


def _is_random(layer: nn.Module, kind: str) -> bool:
    if not isinstance(layer, _RANDOM) and kind not in _RANDOM_NAMES:
        return False
    probability = getattr(layer, "p", 1)
    return probability > 0


def _is_batch_coupled(layer: nn.Module, kind: str) -> bool:
    if not isinstance(layer, _BATCH_COUPLED) and kind not in _BATCH_COUPLED_NAMES:
        return False
    # Instance norm looks at one row at a time, and changes only running statistics.
    instance = isinstance(layer, _InstanceNorm) or kind.startswith("InstanceNorm")
    return not instance or getattr(layer, "running_mean", None) is not None
