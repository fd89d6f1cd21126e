"""Layers in training mode that keep a decoder from being a map of single points."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

from riemae.exceptions import DecoderError

# Layers that couple the batch or change their own state at every call.
_BATCH_COUPLED = (nn.modules.batchnorm._NormBase, parametrizations._SpectralNorm)
_RANDOM = (nn.modules.dropout._DropoutNd, nn.AlphaDropout, nn.RReLU)
# The same by their names: torch.jit.script hides the classes.
_BATCH_COUPLED_NAMES = {
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "SyncBatchNorm",
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
    layers = module.modules() if module is not None else ()
    return sum(_in_training(layer) for layer in layers)


def refuse_layers_in_training(where: str, module: nn.Module) -> None:
    """Refuse layers in training mode that are random or couple the batch.

    Raises:
        DecoderError: With the name of the first one.
    """
    for name, layer in module.named_modules():
        if not _in_training(layer):
            continue
        kind = _kind(layer)
        if _is_random(layer, kind) or _is_batch_coupled(layer, kind):
            raise DecoderError(
                where,
                "a decoder in evaluation mode",
                f"{kind} {name!r} in training mode",
                "Call decoder.eval() first.",
            )


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return str(getattr(layer, "original_name", type(layer).__name__))
    return type(layer).__name__


def _in_training(layer: nn.Module) -> bool:
    # torch.jit.freeze removes the flag.
    return bool(getattr(layer, "training", False))


def _is_random(layer: nn.Module, kind: str) -> bool:
    if not isinstance(layer, _RANDOM) and kind not in _RANDOM_NAMES:
        return False
    probability = getattr(layer, "p", 1)
    return probability > 0


def _is_batch_coupled(layer: nn.Module, kind: str) -> bool:
    return isinstance(layer, _BATCH_COUPLED) or kind in _BATCH_COUPLED_NAMES
