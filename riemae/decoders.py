"""The decoder as a map: validated once, so that the geometry never computes on something that is no map."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from riemae.differential import unoptimised
from riemae.exceptions import DecoderError, DeviceError, DTypeError, NonFiniteError
from riemae.solvers.checkpoint import digest
from riemae.solvers.space import concrete
from riemae.solvers.tolerances import tolerance

# Layers that couple the batch or change their own state at every call.
_BATCH_COUPLED = (nn.modules.batchnorm._NormBase, parametrizations._SpectralNorm)
_RANDOM = (nn.modules.dropout._DropoutNd, nn.AlphaDropout, nn.RReLU)
_BATCH_COUPLED_NAMES = {f"{kind}Norm{d}d" for kind in ("Batch", "Instance") for d in (1, 2, 3)} | {"SyncBatchNorm"}
_RANDOM_NAMES = {"Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout", "RReLU"}


class Decoder:
    """Wraps a module or a function ``(k, m) -> (k, *shape)`` and refuses what cannot be differentiated pointwise.

    Args:
        function: An ``nn.Module``, a bound method of one, or any function.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        if not callable(function) or isinstance(function, type):
            raise DTypeError(
                "Manifold",
                "a decoder that maps latent points (k, m) to data (k, *shape)",
                repr(function),
                "Pass an nn.Module instance or a function.",
            )
        self.function = function
        self._call = unoptimised(function)
        owner = getattr(function, "__self__", function)
        self.module: nn.Module | None = owner if isinstance(owner, nn.Module) else None
        self.output_shape: torch.Size | None = None

    def __call__(self, z: Tensor) -> Tensor:  # (k, m) -> (k, *shape)
        """Decode, with no more checks than the shape.

        Raises:
            DecoderError: When the output is no tensor, or has another number of rows.
        """
        x = self._call(z)
        if not isinstance(x, Tensor):
            raise DecoderError(
                "Manifold",
                f"a decoder that returns one tensor ({len(z)}, *shape)",
                type(x).__name__,
                "Return the mean, or pick one output: Manifold(lambda z: decoder(z)[0]).",
            )
        if not x.ndim or len(x) != len(z):
            raise DecoderError(
                "Manifold",
                f"a decoder that returns {len(z)} rows for {len(z)} points",
                f"shape {tuple(x.shape)}",
                "The first axis of the output must be the batch, unchanged.",
            )
        return x if x.ndim > 1 else x[:, None]  # one number a point is a data space of dimension 1

    def check_placement(self, where: str, z: Tensor) -> None:
        """Refuse points on another device or of another dtype than the decoder's floating-point parameters.

        Raises:
            DTypeError: For another dtype.
            DeviceError: For another device.
        """
        if self.module is None:
            return
        tensors = itertools.chain(self.module.parameters(), self.module.buffers())
        own = next((p for p in tensors if p.is_floating_point()), None)
        if own is None:
            return
        if own.device != z.device:
            raise DeviceError(
                where, f"z on the decoder's device {own.device}", str(z.device), f"Try z.to('{own.device}')."
            )
        if own.dtype != z.dtype:
            raise DTypeError(
                where,
                f"z of the decoder's dtype {own.dtype}",
                str(z.dtype),
                f"Convert z with z.to({own.dtype}), or the manifold with M.to(dtype={z.dtype}).",
            )

    def probe(self, where: str, z: Tensor) -> Tensor | None:  # (k, m) -> (at most 2, *shape)
        """Run the decoder on two points and refuse it unless it is a deterministic map, row by row.

        Returns:
            Its outputs at the first points, or None where values cannot be looked at (meta device, inside ``vmap``).

        Raises:
            DecoderError: When it is in training mode, random, coupled across the batch, or fails.
            DTypeError: When it changes the dtype.
            NonFiniteError: When it returns NaN or infinity.
        """
        if concrete(z) is None:
            return None
        points = z[:2].detach()
        if not len(points):
            points = z.new_zeros(1, z.shape[-1])
        real = len(points) if len(z) else 0  # rows that the caller really asked for
        if len(points) == 1 or bool((points[0] == points[1]).all()):  # equal rows cannot show that they are coupled
            points = torch.cat([points[:1], points[:1] + 1e-2 * (1 + points[:1].abs())])
            real = min(real, 1)
        with torch.no_grad(), torch.random.fork_rng(devices=_devices(points)):
            x = self._attempt(where, points)
            again = self._attempt(where, points)
            # Both rows, each among copies of itself: a cumulative sum shows only in the second.
            alone = [self._attempt(where, point.repeat(2, 1))[i] for i, point in enumerate(points)]
        if x.dtype != z.dtype:
            raise DTypeError(
                where,
                f"a decoder that keeps the dtype {z.dtype}",
                str(x.dtype),
                "Convert z, or the decoder's constants.",
            )
        bad = [i for i in range(real) if not bool(x[i].isfinite().all())]
        if bad:
            raise NonFiniteError(
                where,
                "finite decoder outputs",
                f"NaN or infinity at z = {points[bad[0]].tolist()}",
                "Does the decoder's domain contain your points? Are its weights finite?",
            )
        if _differs(x, again):
            raise DecoderError(
                where,
                "a deterministic decoder",
                "two different outputs for one input",
                "Switch sampling and dropout off: decoder.eval(), or return the mean instead of a sample.",
            )
        if _differs(x, torch.stack(alone)):
            raise DecoderError(
                where,
                "a decoder that treats every row alone",
                "an output that depends on the other rows of the batch",
                "Switch batch statistics off: decoder.eval(); attention must not run across the batch axis.",
            )
        self.output_shape = x.shape[1:]
        return x[:real]

    def _attempt(self, where: str, points: Tensor) -> Tensor:
        try:
            return self(points)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as reason:
            if isinstance(reason, DecoderError):
                raise
            raise DecoderError(
                where,
                f"a decoder that accepts points of shape {tuple(points.shape)} and dtype {points.dtype}",
                f"{type(reason).__name__}: {reason}",
                "Is the last axis of z the latent dimension, and does the decoder take a batch (k, m)?",
            ) from reason

    def refuse_training_mode(self, where: str) -> None:
        """Before anything runs: a forward pass in training mode would already change batch-norm's statistics.

        Raises:
            DecoderError: When a layer is random or couples the batch.
        """
        for name, layer in self.module.named_modules() if self.module is not None else ():
            kind = getattr(layer, "original_name", type(layer).__name__)  # torch.jit.script hides the class
            random = (isinstance(layer, _RANDOM) or kind in _RANDOM_NAMES) and getattr(layer, "p", 1) > 0
            coupled = isinstance(layer, _BATCH_COUPLED) or kind in _BATCH_COUPLED_NAMES
            if getattr(layer, "training", False) and (random or coupled):  # torch.jit.freeze removes the flag
                raise DecoderError(
                    where,
                    "a decoder in evaluation mode",
                    f"{kind} {name!r} in training mode",
                    "Call decoder.eval() first.",
                )


def fingerprint(thing: object) -> str:
    """What is known of a decoder or a metric from outside: its name, its layers and their parameters.

    The code of a plain function, and what it closes over, stay unseen.
    """
    owner = getattr(thing, "__self__", thing)
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    lines = [f"{kind.__module__}.{kind.__qualname__}"]
    if isinstance(owner, nn.Module):
        lines += [type(layer).__qualname__ for layer in owner.modules()]
        lines += [f"{name} {digest(x)}" for name, x in sorted(owner.state_dict().items()) if isinstance(x, Tensor)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _differs(a: Tensor, b: Tensor) -> bool:
    scale = a.abs().max().nan_to_num(1.0) if a.numel() else 1.0
    return bool((~((a - b).abs() <= tolerance(a.dtype).probe * scale) & a.isfinite()).any())


def _devices(z: Tensor) -> list[Any]:
    return [z.device] if z.device.type == "cuda" else []
