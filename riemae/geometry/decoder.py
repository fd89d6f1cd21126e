"""The decoder as a map: what is not a map is refused once, before geometry is computed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from riemae.differential.chain import Layered
from riemae.differential.conditions import Condition
from riemae.differential.rowwise import unoptimised
from riemae.distributions.layout import AnyLayout, invalid_rows, read
from riemae.distributions.numerical import unvalidated
from riemae.exceptions import AmbientError, DecoderError, DeviceError, DTypeError, NonFiniteError
from riemae.geometry.failures import (
    explained_failure,
    refuse_flex_attention,
    refuse_quantized,
)
from riemae.geometry.outputs import (
    refuse_other_rows,
    refuse_other_shape,
    refuse_other_structure,
    refuse_sparse_or_empty,
    single_tensor,
    without_rows,
)
from riemae.geometry.structure import Description, identity
from riemae.geometry.training_mode import layers_in_training, refuse_layers_in_training
from riemae.geometry.varying import varying_parameters, with_fixed
from riemae.numerics import probe
from riemae.numerics.arithmetic import is_half, roundoff
from riemae.numerics.compiling import Compiling
from riemae.numerics.dependence import Dependence, dependence, dependence_around
from riemae.numerics.random import restored
from riemae.numerics.values import concrete, own


class Decoder(Layered):
    """A module or a function ``(k, m) -> (k, *shape)`` that acts on every row by itself.

    What cannot be differentiated point by point is refused.

    Args:
        function: An ``nn.Module``, a bound method of one, or any function; of points, or of points
            and conditions.
        latent_shape: The shape of one code as the function takes it; None for ``(m,)``.
        output: What is taken of that which the function returns; None for all of it.
        compiling: What its derivatives are compiled with; None to compile nothing.
        converted: What points and conditions are converted to, for a module in half precision that
            does not do so; None where the function takes them as they are. Probes find it out.
        roundoff: Relative rounding inside; 0 where it is that of the points' dtype. So do they.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        latent_shape: tuple[int, ...] | None = None,
        output: Callable[[Any], Any] | None = None,
        compiling: Compiling | None = None,
        converted: torch.dtype | None = None,
        roundoff: float = 0.0,
    ) -> None:
        if not callable(function) or isinstance(function, type):
            raise DTypeError(
                "Manifold",
                "a decoder that maps latent points (k, m) to data (k, *shape)",
                repr(function),
                "Pass an nn.Module instance or a function.",
            )
        self.function = function
        self.latent_shape = latent_shape
        self.output = output
        self.compiling = compiling
        self._function: Callable[..., Any] | None = None  # without torch.jit's optimiser
        owner = getattr(function, "__self__", function)
        self.module: nn.Module | None = owner if isinstance(owner, nn.Module) else None
        self.output_shape: torch.Size | None = None
        # What the outputs hold; None for tensors, and before the first call.
        self.layout: AnyLayout | None = None
        self.converted = converted
        self.roundoff = roundoff
        self._inspected = False  # whether the layout is known in full
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
        if condition is None:
            return self._call(z)
        return self._call(z, condition.values())

    def _evaluated(self, z: Tensor, condition: Condition | None) -> Tensor:
        output = self._called(z, condition)
        return self._tensor(z, output)

    def _call(self, z: Tensor, *conditions: Any) -> Any:
        # A copy of its own: the decoder may write in place into what it gets.
        codes = own(z, self.function)
        if self.converted is not None:
            codes, conditions = tree_map(partial(_converted, self.converted), (codes, conditions))
        if self.latent_shape is not None:
            codes = codes.unflatten(-1, self.latent_shape)
        if self._function is None:
            self._function = unoptimised(self.function)
        try:
            found = self._function(codes, *conditions)
        except Exception as reason:
            refuse_flex_attention(reason, z)
            raise
        return found if self.output is None else self.output(found)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What makes this decoder again."""
        given = self.function, self.latent_shape, self.output, self.compiling
        return *given, self.converted, self.roundoff

    @property
    def layers(self) -> tuple[nn.Module, int] | None:
        """As in :class:`~riemae.differential.chain.Layered`.

        A copy in another process has seen no output yet, and must give the same bits.
        """
        more = self.converted is not None or self.latent_shape is not None
        if self.layout is not None or self.output is not None or more:
            return None
        if self.module is None or self.function is not self.module:
            return None
        shape = self.output_shape
        return self.module, 0 if shape is None else shape.numel()

    @property
    def lasting(self) -> tuple[nn.Module, str] | None:
        """The module and the name of its method, where nothing else has a part in the map.

        None for functions, and for methods that are not those of the module's class.
        """
        if self.module is None or self.output is not None:
            return None
        if self.function is self.module:
            return self.module, "__call__"
        name = getattr(self.function, "__name__", "")
        method = getattr(self.function, "__func__", None)
        own = method is not None and getattr(type(self.module), name, None) is method
        return (self.module, name) if own else None

    def identity(self) -> Description | None:
        """What the map consists of; None where that cannot be told."""
        described = [identity(f) for f in (self.function, self.output) if f is not None]
        return None if None in described else (*described, self.latent_shape)

    def recall(
        self,
        shape: torch.Size,
        layout: AnyLayout | None,
        roundoff: float,
        converted: torch.dtype | None,
    ) -> None:
        """Take over what an earlier probe of the same module has found.

        Args:
            shape: Of one output.
            layout: What outputs hold.
            roundoff: Relative rounding inside.
            converted: What points are converted to.
        """
        self.output_shape = shape
        self.layout = layout
        self._inspected = True
        self._function = self.function  # modules of torch.jit are never known again
        self.roundoff = roundoff
        self.converted = converted
        self._training = layers_in_training(self.module)

    def _tensor(self, z: Tensor, output: Any) -> Tensor:
        x, layout = read(single_tensor(output))
        refuse_sparse_or_empty(z, x)
        if is_half(x.dtype) and not is_half(z.dtype):
            x = x.to(z.dtype)
        if layout is not None:
            x = without_rows(x, invalid_rows(output))
        if self.layout is None:
            self.layout = layout
        refuse_other_structure(layout, self.layout)
        refuse_other_rows(z, x)
        if x.ndim == 1:  # one number per point is a data space of dimension 1
            x = x[:, None]
        refuse_other_shape(x, self.output_shape)
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
        floating = (x for x in tensors if x.is_floating_point())
        own = next(floating, None)
        if own is None:
            return
        if own.device != z.device:
            raise DeviceError(
                where,
                f"z on the decoder's device {own.device}",
                str(z.device),
                f"Try z.to('{own.device}').",
            )
        # One with weights in half precision converts points by itself, or it is done here.
        if own.dtype != z.dtype and not is_half(own.dtype):
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
        refuse_quantized(where, self.function)
        self.output_shape = None  # a decoder may change between two probes
        self._inspected = False
        real = min(len(z), 2)  # rows that the caller really asked for
        if not real:
            z = z.new_zeros(1, z.shape[-1])
            condition = None if condition is None else condition.blank()
        m = z.shape[-1]
        apart = _Labelled(condition)
        points = apart.join(z[:2].detach())
        # Equal rows cannot show that they are coupled.
        if len(points) == 1 or bool((points[0, :m] == points[1, :m]).all()):
            first = points[:1]
            beside = first + 1e-2 * (1 + first.abs())
            points = torch.cat([first, beside])
            real = min(real, 1)

        def attempt(y: Tensor) -> Tensor:
            return self._attempt(where, *apart.split(y))

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(restored(points.device))
            if not finite:  # parameters outside of their range concern single pairs
                stack.enter_context(unvalidated())
            x = self._accepted(attempt, points).clone()
            self.roundoff = 0.0
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
            if not real:
                z, _ = apart.split(points)
            self.probe_rows(where, z, x[0].numel(), rows, condition)
            inside = roundoff(attempt, points)
            self.roundoff = max(self.roundoff, inside)
        self.output_shape = x.shape[1:]
        self._training = layers_in_training(self.module)
        sound = [i for i in range(real) if i not in bad]
        return x[sound]

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

        def evaluated(y: Tensor) -> Tensor:
            return self._evaluated(*apart.split(y))

        with torch.no_grad(), restored(z.device), unvalidated():
            try:
                found = dependence_around(evaluated, points, size, rows)
            except DecoderError:
                raise
            except probe.FAILURES as reason:
                # Where it fails at the first of them too, there is more to say.
                first = points[: rows or probe.ROWS]
                self._attempt(where, *apart.split(first))
                raise DecoderError(
                    where,
                    "a decoder that accepts any number of rows",
                    f"{type(reason).__name__} for some of them: {reason}",
                    "Does it remove axes of length 1, or look at statistics of the batch?",
                ) from reason
        self._refuse_dependence(where, found)

    def _refuse_dependence(self, where: str, found: Dependence | None) -> None:
        if found is None:
            return
        if not found.sound:
            raise DecoderError(where, *found.message("decoder"))
        self.roundoff = max(self.roundoff, found.size)

    def _attempt(self, where: str, points: Tensor, condition: Condition | None) -> Tensor:
        try:
            # With torch's own checks of distributions' parameters.
            return self._evaluated(points, condition)
        except (DecoderError, AmbientError):
            raise
        except (*probe.FAILURES, AttributeError, LookupError) as reason:
            raise explained_failure(where, self.function, points, condition, reason) from reason

    def _accepted(self, attempt: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
        """The first outputs; of a module in half precision, if need be, for points in it.

        Raises:
            DecoderError: When it takes neither.
        """
        self.converted = None
        try:
            return attempt(points)
        except DecoderError as reason:
            weights = () if self.module is None else self.module.parameters()
            dtype = next((x.dtype for x in weights if x.is_floating_point()), points.dtype)
            if not is_half(dtype):
                raise
            self.converted = dtype
            try:
                return attempt(points)
            except DecoderError:
                self.converted = None
                raise reason from reason.__cause__

    def inspect(self, z: Tensor, condition: Condition | None = None) -> None:  # (k, m)
        """Find out what distributions hold, and which of their parameters do not vary.

        A parameter without a path to z in autograd's graph is fixed. Inside a function transform
        nobody can look: everything is taken to vary, which is always right, if slower.
        """
        if self._inspected or (self.output_shape is not None and self.layout is None):
            return  # known, or the probe has seen tensors
        with unvalidated(), torch.inference_mode(False):
            first = z[:2] if len(z) else z.new_zeros(1, z.shape[-1])
            points = first.detach().clone()
            if condition is not None:
                condition = condition.select(slice(2)) if len(z) else condition.blank()
            with torch.no_grad():
                self(points, condition)
            if self.layout is None or concrete(z) is None:
                return
            try:
                with torch.enable_grad():
                    points.requires_grad_()
                    output = self._called(points, condition)
                    free = varying_parameters(output, points)
            except RuntimeError:  # a functorch transform is active
                return
        self.layout = with_fixed(self.layout, free)

    def refuse_training_mode(self, where: str) -> bool:
        """Refuse training mode before anything runs, which would change batch norm's statistics.

        Returns:
            Whether layers have gone into training mode, or out of it, since the probe.

        Raises:
            DecoderError: When a layer is random or couples the batch.
        """
        training = layers_in_training(self.module)
        if self.module is not None and training:
            refuse_layers_in_training(where, self.module)
        return self._training is not None and self._training != training


def _converted(dtype: torch.dtype, x: Any) -> Any:
    """A code or a condition in another precision; whole numbers, such as labels, as they are."""
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


class _Labelled:
    """Points with the number of their row as one more coordinate.

    What moves points then moves their conditions along.
    """

    def __init__(self, condition: Condition | None) -> None:
        self.condition = condition

    def join(self, z: Tensor) -> Tensor:  # (k, m) -> (k, m + 1), or z itself without conditions
        if self.condition is None:
            return z
        numbers = torch.arange(len(z)).to(z)
        return torch.cat([z, numbers[:, None]], 1)

    def split(self, points: Tensor) -> tuple[Tensor, Condition | None]:
        c = self.condition
        if c is None:
            return points, None
        numbers = points[:, -1].nan_to_num(0.0, 0.0, 0.0).round().long()
        rows = numbers.clamp(0, len(c) - 1)
        return points[:, :-1].contiguous(), c.select(rows)
