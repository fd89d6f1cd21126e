"""The decoder as a map: what is not a map is refused once, before geometry is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.utils import parametrizations

from riemae.differential.conditions import Condition
from riemae.differential.jets import Jet
from riemae.differential.rowwise import unoptimised
from riemae.differential.trust import INFERENCE
from riemae.distributions.layout import (
    AnyLayout,
    EnsembleLayout,
    Layout,
    Members,
    distributions,
    invalid_rows,
    parameters,
    read,
)
from riemae.distributions.numerical import unvalidated
from riemae.exceptions import AmbientError, DecoderError, DeviceError, DTypeError, NonFiniteError
from riemae.numerics import probe, reach
from riemae.numerics.dependence import Dependence, dependence, dependence_around
from riemae.numerics.random import restored
from riemae.numerics.values import concrete, own

# Layers that couple the batch or change their own state at every call.
_BATCH_COUPLED = (nn.modules.batchnorm._NormBase, parametrizations._SpectralNorm)
_RANDOM = (nn.modules.dropout._DropoutNd, nn.AlphaDropout, nn.RReLU)
_BATCH_COUPLED_NAMES = {f"{kind}Norm{d}d" for kind in ("Batch", "Instance") for d in (1, 2, 3)} | {
    "SyncBatchNorm"
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


class Decoder:
    """A module or a function ``(k, m) -> (k, *shape)`` that acts on every row by itself.

    What cannot be differentiated point by point is refused.

    Args:
        function: An ``nn.Module``, a bound method of one, or any function; of points, or of points
            and conditions.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        if not callable(function) or isinstance(function, type):
            raise DTypeError(
                "Manifold",
                "a decoder that maps latent points (k, m) to data (k, *shape)",
                repr(function),
                "Pass an nn.Module instance or a function.",
            )
        self.function = function
        self._function = unoptimised(function)
        owner = getattr(function, "__self__", function)
        self.module: nn.Module | None = owner if isinstance(owner, nn.Module) else None
        self.output_shape: torch.Size | None = None
        # What the outputs hold; None for tensors, and before the first call.
        self.layout: AnyLayout | None = None
        self._training: int | None = None  # layers in training mode when the decoder was looked at

    def __call__(
        self, z: Tensor, condition: Condition | None = None
    ) -> Tensor:  # (k, m) -> (k, *shape)
        """Decode, with no more checks than the shape.

        Distributions as one tensor of their parameters.

        Args:
            z: Points.
            condition: One for each.

        Raises:
            DecoderError: When the output is neither tensor nor distribution, or has another number
                of rows.
        """
        if self.output_shape is not None and self.layout is None:
            return self._evaluated(z, condition)
        with unvalidated():
            return self._evaluated(z, condition)

    def _called(self, z: Tensor, condition: Condition | None) -> Any:
        return self._call(z) if condition is None else self._call(z, condition.values())

    def _evaluated(self, z: Tensor, condition: Condition | None) -> Tensor:
        return self._tensor(z, self._called(z, condition))

    def _call(self, z: Tensor, *conditions: Any) -> Any:
        # A copy of its own: the decoder may write in place into what it gets.
        return self._function(own(z), *conditions)

    def _tensor(self, z: Tensor, output: Any) -> Tensor:
        x, layout = read(_single(output))
        if x.layout != torch.strided or (x.ndim > 1 and not x.numel() and len(z)):
            hint = "Let it return x.to_dense(), of at least one number per point."
            got = f"{x.layout}" if x.layout != torch.strided else f"shape {tuple(x.shape)}"
            raise DecoderError(
                "Manifold", "a decoder that returns dense tensors with numbers in them", got, hint
            )
        if layout is not None:
            x = _without(x, invalid_rows(output))
        if self.layout is None:
            self.layout = layout
        if layout != self.layout:
            raise DecoderError(
                "Manifold",
                "a decoder that returns the same structure at every call",
                "another one than before",
                "Families and shapes must not depend on the point.",
            )
        if not x.ndim or len(x) != len(z):
            raise DecoderError(
                "Manifold",
                f"a decoder that returns {len(z)} rows for {len(z)} points",
                f"shape {tuple(x.shape)}",
                "The first axis of the output must be the batch, unchanged.",
            )
        x = x if x.ndim > 1 else x[:, None]  # one number per point is a data space of dimension 1
        if self.output_shape is not None and x.shape[1:] != self.output_shape:
            raise DecoderError(
                "Manifold",
                f"a decoder that returns outputs of shape {tuple(self.output_shape)} at every "
                "call, as at first",
                str(tuple(x.shape[1:])),
                "Make a new Manifold for a decoder that has changed.",
            )
        return x

    def check_placement(self, where: str, z: Tensor) -> None:
        """Refuse points on another device, or of another dtype, than the decoder's parameters.

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
                where,
                f"z on the decoder's device {own.device}",
                str(z.device),
                f"Try z.to('{own.device}').",
            )
        if own.dtype != z.dtype:
            raise DTypeError(
                where,
                f"z of the decoder's dtype {own.dtype}",
                str(z.dtype),
                f"Convert z with z.to({own.dtype}), or the manifold with M.to(dtype={z.dtype}).",
            )

    def probe(
        self,
        where: str,
        z: Tensor,
        finite: bool = True,
        rows: int | None = None,
        condition: Condition | None = None,
    ) -> Tensor | None:  # (k, m) -> (at most 2, *shape)
        """Run the decoder on some points; refuse it unless it is a deterministic map, row by row.

        The first two points come first, then more of them together with points around: see
        :mod:`riemae.numerics.probe`.

        Args:
            where: The method that is called.
            z: Points.
            finite: Whether to refuse NaN and infinity at the first points.
            rows: At most so many points in one call.
            condition: One for each point.

        Returns:
            Its outputs at the first points, those that are not finite left out, or None where
            values cannot be looked at (meta device, inside ``vmap``).

        Raises:
            DecoderError: When it is in training mode, random, coupled across the batch, or fails.
            DTypeError: When it changes the dtype.
            NonFiniteError: When it returns NaN or infinity.
        """
        if concrete(z) is None:
            return None
        self.output_shape = None  # a decoder may change between two probes
        if not len(z):
            z, condition = (
                z.new_zeros(1, z.shape[-1]),
                None if condition is None else condition.blank(),
            )
            real = 0
        else:
            real = min(len(z), 2)  # rows that the caller really asked for
        m, apart = z.shape[-1], _Labelled(condition)
        points = apart.join(z[:2].detach())
        # Equal rows cannot show that they are coupled.
        if len(points) == 1 or bool((points[0, :m] == points[1, :m]).all()):
            points = torch.cat([points[:1], points[:1] + 1e-2 * (1 + points[:1].abs())])
            real = min(real, 1)
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(restored(points.device))
            if not finite:  # parameters outside of their range concern single pairs
                stack.enter_context(unvalidated())
            attempt = lambda y: self._attempt(where, *apart.split(y))  # noqa: E731 (one expression)
            x = attempt(points).clone()
            if x.dtype != z.dtype:
                raise DTypeError(
                    where,
                    f"a decoder that keeps the dtype {z.dtype}",
                    str(x.dtype),
                    "Convert z, or the decoder's constants.",
                )
            self._refuse_dependence(where, dependence(attempt, points))
            bad = [i for i in range(real) if not bool(x[i].isfinite().all())]
            if bad and finite:
                raise NonFiniteError(
                    where,
                    "finite decoder outputs",
                    f"NaN or infinity at z = {points[bad[0], :m].tolist()}",
                    "Does the decoder's domain contain your points? Are its weights finite?",
                )
            self.probe_rows(
                where, z if real else apart.split(points)[0], x[0].numel(), rows, condition
            )
        self.output_shape = x.shape[1:]
        self._training = self._layers_in_training()
        return x[[i for i in range(real) if i not in bad]]

    def probe_rows(
        self,
        where: str,
        z: Tensor,
        size: int,
        rows: int | None = None,
        condition: Condition | None = None,
    ) -> None:  # (k, m)
        """Refuse a decoder whose rows notice each other among many points.

        Looked at are the given points and others around them.

        Points move to other rows' conditions, too: neither the points nor the conditions of others
        may matter.

        Args:
            where: The method that is called.
            z: Points; where there are many, it is these alone.
            size: Numbers in the output of one point.
            rows: At most so many points in one call.
            condition: One for each point, or for all of them.

        Raises:
            DecoderError: When it is random, coupled across the batch, or fails.
        """
        apart = _Labelled(condition)
        points = apart.join(z.detach())
        with torch.no_grad(), restored(z.device), unvalidated():
            try:
                found = dependence_around(
                    lambda y: self._evaluated(*apart.split(y)), points, size, rows
                )
            except DecoderError:
                raise
            except probe.FAILURES as reason:
                self._attempt(where, *apart.split(points[: min(len(z), rows or probe.ROWS)]))
                raise DecoderError(
                    where,
                    "a decoder that accepts any number of rows",
                    f"{type(reason).__name__} for some of them: {reason}",
                    "Does it remove axes of length 1, or look at statistics of the batch?",
                ) from reason
        self._refuse_dependence(where, found)

    @staticmethod
    def _refuse_dependence(where: str, found: Dependence | None) -> None:
        if found is not None:
            raise DecoderError(where, *found.message("decoder"))

    def _attempt(self, where: str, points: Tensor, condition: Condition | None) -> Tensor:
        try:
            return self._evaluated(
                points, condition
            )  # with torch's own checks of distributions' parameters
        except (*probe.FAILURES, AttributeError, LookupError) as reason:
            if isinstance(reason, (DecoderError, AmbientError)):
                raise
            _refuse_missing_condition(where, condition, reason)
            raise DecoderError(
                where,
                f"a decoder that accepts points of shape {tuple(points.shape)} and dtype "
                f"{points.dtype}" + _with_conditions(condition),
                f"{type(reason).__name__}: {reason}",
                self._advice(points, reason)
                + (
                    ""
                    if condition is None
                    else " Does it take conditions of this form, one for each row?"
                ),
            ) from reason

    def _advice(self, points: Tensor, reason: Exception) -> str:
        """What to try when the decoder fails at its first points."""
        held = [
            x
            for part in reach.modules(self.function)
            for x in itertools.chain(part.parameters(), part.buffers())
        ]
        others = {x.dtype for x in held if x.is_floating_point()} - {points.dtype}
        if "dtype" in str(reason) or "scalar type" in str(reason):
            found = (
                f" It refers to networks in {', '.join(map(str, sorted(others, key=str)))}."
                if others
                else ""
            )
            return (
                f"It computes in another dtype than {points.dtype}.{found} Give z in the decoder's "
                "dtype, or convert "
                "all that it uses, its constants included; M.to(dtype=...) reaches modules and "
                "tensors in closures, "
                "defaults, globals and bound methods."
            )
        if any(x.is_inference() for x in held):
            return INFERENCE
        if isinstance(reason, (AttributeError, LookupError)):
            return (
                "Pass what takes a tensor (k, m), such as Manifold(model.decoder), or wrap the "
                "call: Manifold(lambda z: model.decode(z)[0])."
            )
        hint = (
            "Is the last axis of z the latent dimension, and does the decoder take a batch (k, m)?"
        )
        if "must match" in str(reason):
            hint += (
                " What has a row for each point, such as its class, belongs into condition=, for a "
                "decoder f(z, c)."
            )
        return hint

    def inspect(self, z: Tensor, condition: Condition | None = None) -> None:  # (k, m)
        """Find out what distributions hold, and which of their parameters do not vary.

        A parameter without a path to z in autograd's graph is fixed. Inside a function transform
        nobody can look: everything is taken to vary, which is always right, if slower.
        """
        if self.output_shape is not None and self.layout is None:
            return  # the probe has seen tensors
        with unvalidated(), torch.inference_mode(False):
            points = (z[:2] if len(z) else z.new_zeros(1, z.shape[-1])).detach().clone()
            if condition is not None:
                condition = condition.select(slice(2)) if len(z) else condition.blank()
            with torch.no_grad():
                self(points, condition)
            if self.layout is None or concrete(z) is None:
                return
            try:
                with torch.enable_grad():
                    points.requires_grad_()
                    free = [
                        _varying(d, points) for d in distributions(self._called(points, condition))
                    ]
            except RuntimeError:  # a functorch transform is active
                return
        if isinstance(self.layout, EnsembleLayout):
            if self.layout.member is not None:
                size = len(self.layout.member.heads)
                free = [set.union(*free[i::size]) for i in range(size)]
                self.layout = replace(self.layout, member=_with_fixed(self.layout.member, free))
        else:
            self.layout = _with_fixed(self.layout, free)

    def _layers_in_training(self) -> int:
        layers = self.module.modules() if self.module is not None else ()
        return sum(bool(getattr(layer, "training", False)) for layer in layers)

    def refuse_training_mode(self, where: str) -> bool:
        """Refuse training mode before anything runs, which would change batch norm's statistics.

        Returns:
            Whether layers have gone into training mode, or out of it, since the probe.

        Raises:
            DecoderError: When a layer is random or couples the batch.
        """
        training = self._layers_in_training()
        for name, layer in (
            self.module.named_modules() if self.module is not None and training else ()
        ):
            if not getattr(layer, "training", False):  # torch.jit.freeze removes the flag
                continue
            kind = getattr(
                layer, "original_name", type(layer).__name__
            )  # torch.jit.script hides the class
            random = (isinstance(layer, _RANDOM) or kind in _RANDOM_NAMES) and getattr(
                layer, "p", 1
            ) > 0
            coupled = isinstance(layer, _BATCH_COUPLED) or kind in _BATCH_COUPLED_NAMES
            if random or coupled:
                raise DecoderError(
                    where,
                    "a decoder in evaluation mode",
                    f"{kind} {name!r} in training mode",
                    "Call decoder.eval() first.",
                )
        return self._training is not None and self._training != training


def _single(output: Any) -> Any:
    """The one tensor of a tuple, a dict, or an output object of that kind.

    Anything else as it is.
    """
    if (
        isinstance(output, (tuple, list, dict))
        and not isinstance(output, Members)
        and len(output) == 1
    ):
        (only,) = output.values() if isinstance(output, dict) else output
        return only if isinstance(only, Tensor) else output
    return output


class _Labelled:
    """Points with the number of their row as one more coordinate.

    What moves points then moves their conditions along.
    """

    def __init__(self, condition: Condition | None) -> None:
        self.condition = condition

    def join(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m + 1), or z itself without conditions
        return (
            z if self.condition is None else torch.cat([z, torch.arange(len(z)).to(z)[:, None]], 1)
        )

    def split(self, points: Tensor) -> tuple[Tensor, Condition | None]:
        c = self.condition
        if c is None:
            return points, None
        rows = points[:, -1].nan_to_num(0.0, 0.0, 0.0).round().long().clamp(0, len(c) - 1)
        return points[:, :-1].contiguous(), c.select(rows)


def _refuse_missing_condition(where: str, condition: Condition | None, reason: Exception) -> None:
    """Say so where a decoder failed because it takes a condition and got none, or the reverse.

    Raises:
        DecoderError: When that is what the reason says.
    """
    if not isinstance(reason, TypeError) or "positional argument" not in str(reason):
        return
    if condition is None:
        raise DecoderError(
            where,
            "a condition for each point, or one for all: the decoder takes a condition",
            f"none ({reason})",
            "Pass condition=, of shape (*b, *shape) for points of shape (*b, m).",
        ) from reason
    raise DecoderError(
        where,
        "no condition: the decoder takes points alone",
        f"a condition ({reason})",
        "Leave condition= out, or write the decoder as a function of z and c.",
    ) from reason


def _with_conditions(condition: Condition | None) -> str:
    if condition is None:
        return ""
    shapes = ", ".join(
        f"{(len(condition), *x.shape[1:])} and dtype {x.dtype}" for x in condition.leaves
    )
    return f", with conditions of shape {shapes}"


def _without(x: Tensor, invalid: Tensor | None) -> Tensor:  # (k, *shape), (k,) -> (k, *shape)
    """``x``, NaN in rows whose parameters lie outside of their family."""
    if invalid is None:
        return x
    mask = invalid.view(-1, *(1,) * (x.ndim - 1))
    if isinstance(x, Jet):
        x.value = torch.where(mask, torch.nan, x.value)
        return x
    return torch.where(mask, torch.nan, x)


def _varying(distribution: Distribution, points: Tensor) -> set[str]:
    """Names of the parameters, and ``"support"``, that autograd can trace back to the points."""

    def reaches(value: Any) -> bool:
        if not isinstance(value, Tensor) or not value.requires_grad:
            return False
        return (
            torch.autograd.grad(value.sum(), points, retain_graph=True, allow_unused=True)[0]
            is not None
        )

    free = {name for name, value in parameters(distribution).items() if reaches(value)}
    try:
        bounds = vars(distribution.support).values() if distribution.support is not None else ()
    except NotImplementedError:
        return free
    return free | {"support" for bound in bounds if reaches(bound)}


def _with_fixed(layout: Layout, free: list[set[str]]) -> Layout:
    heads = [
        replace(head, fixed=frozenset(head.names) - names, moving_support="support" in names)
        for head, names in zip(layout.heads, free, strict=True)
    ]
    return replace(layout, heads=tuple(heads))
