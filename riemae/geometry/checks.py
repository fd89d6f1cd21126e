"""Points and tangent vectors as they arrive: checked once per call, and flattened.

A call of :class:`~riemae.Manifold` checks what it was given here. What happens below works on flat
batches ``(k, m)`` that were checked.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from riemae.differential.conditions import Condition, Conditions
from riemae.exceptions import (
    DeviceError,
    DTypeError,
    NonFiniteError,
    ShapeError,
)
from riemae.geometry.coordinates import refuse_without_image
from riemae.geometry.measured import check_ambient
from riemae.geometry.memory import Remembered, key_of, learn, recall
from riemae.geometry.pullback import PullbackMetric
from riemae.numerics.checks import expect_dense, expect_tensor
from riemae.numerics.deferral import holds, immediate
from riemae.numerics.probe import LARGE_BATCH
from riemae.numerics.threads import TURN
from riemae.numerics.tolerances import tolerance
from riemae.numerics.transforms import transformed
from riemae.numerics.values import concrete, evidently_finite

Checked = tuple[PullbackMetric, Tensor]

_TANGENT = "A tangent vector has the shape of its point, (*b, m)."


class Checks:
    """What the arguments of a manifold's methods have to pass.

    Args:
        metric: The pull-back metric that they are meant for.
        latent_dim: m, or None to take it from the first points.

    Attributes:
        latent_dim: m, once it is known.
    """

    def __init__(self, metric: PullbackMetric, latent_dim: int | None) -> None:
        self.metric = metric
        self.latent_dim = latent_dim
        # Kinds of points that the decoder was probed with.
        self._probed: set[tuple[Any, ...]] = set()
        # Kinds of which a large batch has been looked at.
        self._large: set[tuple[Any, ...]] = set()
        # What is kept with the decoder's module, by kind of points.
        self._remembered: dict[tuple[Any, ...], Remembered] = {}
        # The decoder had no value at any point of a call that reports such points by their status.
        self._all_failed = False

    def points(
        self, where: str, z: Tensor, finite: bool = True, condition: Condition | None = None
    ) -> Tensor:  # (*b, m) -> (k, m)
        """Points, with flattened leading axes; at first use the decoder is probed with them.

        Args:
            where: The method that is called.
            z: Points.
            finite: Whether to refuse NaN and infinity.
            condition: One for each point, or for each of equally many neighbours.

        Raises:
            DTypeError: For anything but a tensor, or another dtype than the decoder's.
            ShapeError: For a wrong last axis.
            NonFiniteError: For NaN or infinity, unless ``finite`` is False.
        """
        decoder = self.metric.decoder
        refuse_without_image(where, decoder.function)
        where = f"Manifold.{where}"
        expect_dense(where, "z", z)
        tolerance(z.dtype)
        self._check_width(where, z)
        changed = decoder.refuse_training_mode(where)
        decoder.check_placement(where, z)
        flat = z.reshape(-1, z.shape[-1])
        if condition is not None and len(flat):
            condition = condition.spread(len(flat))
        condition_kind = None if condition is None else condition.kind
        kind = (z.dtype, z.device, condition_kind)
        if changed:  # what was trusted was another function
            self._probed.clear()
            self._large.clear()
        known = kind in self._probed
        sound = finite and evidently_finite(flat)
        if finite and not sound:
            _refuse_non_finite(where, flat)
        if not known:
            # One thread finds out what the decoder is, the others what it found.
            with TURN:
                if not self._recalled(flat, condition, kind, sound):
                    with immediate():
                        self._probe(where, flat, finite, condition, kind)
                self.latent_dim = z.shape[-1]
        # Inside a transform, as where another decoder calls this manifold, nothing can be drawn:
        # the next call from outside looks.
        if len(flat) >= LARGE_BATCH and kind not in self._large and not transformed():
            if known and concrete(flat) is not None:
                with immediate():
                    self._probe_rows(where, flat, condition)
            self._large.add(kind)
            if kind in self._remembered:
                self._remembered[kind].saw_large_batch()
        self.metric.watch()
        return flat

    def placed(
        self, where: str, z: Tensor, condition: Conditions, finite: bool = True
    ) -> Checked:  # (*b, m) -> (k, m)
        """The metric under the conditions of points, and the points, flattened."""
        if condition is None or not isinstance(z, Tensor) or not z.ndim:
            return self.metric, self.points(where, z, finite)
        given = Condition.of(f"Manifold.{where}", condition, z.shape[:-1], z.device)
        flat = self.points(where, z, finite, given)
        return self.metric.at(given), flat

    def tangents(
        self, where: str, condition: Conditions, z: Tensor, *vectors: Tensor
    ) -> tuple[Any, ...]:
        """The metric under the conditions of points, points and tangents, and the batch shape.

        Points and tangents are flattened after broadcasting.

        Raises:
            ShapeError: When they do not broadcast.
            DTypeError: When one of them is not a tensor, or their dtypes differ.
            DeviceError: When their devices differ.
            NonFiniteError: When a tangent is NaN or infinite.
        """
        where_full = f"Manifold.{where}"
        expect_tensor(where_full, "z", z)
        for v in vectors:
            expect_tensor(where_full, "tangents", v)
        if any(v.shape[-1:] != z.shape[-1:] for v in vectors):
            if condition is None:
                self.points(where, z)  # which may say more of z
            wanted = f"tangent vectors with the last axis of z {tuple(z.shape)}"
            raise ShapeError(where_full, wanted, _shapes(vectors), _TANGENT)
        try:
            z, *vectors = torch.broadcast_tensors(z, *vectors)
        except RuntimeError:
            wanted = f"tangent vectors that broadcast with z of shape {tuple(z.shape)}"
            raise ShapeError(where_full, wanted, _shapes(vectors), _TANGENT) from None
        given = Condition.of(where_full, condition, z.shape[:-1], z.device)
        flat = self.points(where, z, condition=given)
        for v in vectors:
            _check_tangent(where_full, v, z)
        moved = (v.reshape(flat.shape) for v in vectors)
        return (self.metric.at(given), flat, *moved, z.shape[:-1])

    def _check_width(self, where: str, z: Tensor) -> None:
        m = self.latent_dim
        width = z.shape[-1] if z.ndim else 0
        if width and (m is None or width == m):
            return
        hint = "Batch axes come first."
        transposed = z.ndim == 2 and z.shape[0] == m
        if transposed:
            hint = "Batch axes come first; try z.T."
        expected = f"z of shape (*b, {m or 'm'})"
        raise ShapeError(where, expected, str(tuple(z.shape)), hint)

    def _recalled(
        self,
        flat: Tensor,
        condition: Condition | None,
        kind: tuple[Any, ...],
        sound: bool,
    ) -> bool:
        """Whether an earlier probe of the decoder's module holds for these points.

        Args:
            flat: Points.
            condition: One for each.
            kind: Theirs.
            sound: Whether they are known to be finite.
        """
        if transformed() or not flat.shape[0]:
            return False
        if not sound:
            ok = concrete(flat.isfinite().all(-1))
            if ok is None or not bool(ok.any()):
                return False
            flat = flat[ok]
            condition = condition and condition.select(ok)
        metric = self.metric
        remembered = recall(metric, (*kind, flat.shape[-1]))
        if remembered is None:
            return False
        metric.bind(flat, condition)
        try:
            remembered.measure(metric, partial(self._look_at_ambient, flat, condition))
        except _NoValue:
            return False
        self._probed.add(kind)
        self._remembered[kind] = remembered
        if remembered.large:
            self._large.add(kind)
        return True

    def _look_at_ambient(self, flat: Tensor, condition: Condition | None) -> None:
        """Look at an ambient metric that is new to a decoder that is not.

        Raises:
            _NoValue: When the decoder has no values at the first points, which a probe explains.
        """
        metric = self.metric
        with immediate():
            with torch.no_grad():
                x = metric.decoder(flat[:2], condition and condition.select(slice(2)))
            if not bool(x.isfinite().all()):
                raise _NoValue
            check_ambient(metric, flat, condition)

    def _probe(
        self,
        where: str,
        flat: Tensor,
        finite: bool,
        condition: Condition | None,
        kind: tuple[Any, ...],
    ) -> None:
        """Look at decoder and ambient metric at the finite points among the first ones."""
        sound = flat
        those = condition
        ok = concrete(flat.isfinite().all(-1))
        if ok is not None:
            sound = flat[ok]
            those = condition and condition.select(ok)
        metric = self.metric
        required = finite and not self._all_failed
        before = key_of(metric.decoder, metric.chunk_size)
        x = metric.decoder.probe(where, sound, required, metric.chunk_size, those)
        self._all_failed = not finite and x is not None and not len(x)
        metric.bind(sound, those)
        if x is not None and len(x):
            check_ambient(metric, sound, those)
            self._probed.add(kind)
            remembered = learn(metric, before, (*kind, flat.shape[-1]))
            if remembered is not None:
                remembered.measure(metric, None)
                self._remembered[kind] = remembered

    def _probe_rows(self, where: str, flat: Tensor, condition: Condition | None) -> None:
        """Whether rows of the first large batch touch each other."""
        if not evidently_finite(flat):
            ok = flat.isfinite().all(-1)
            flat = flat[ok]
            condition = condition and condition.select(ok)
        if len(flat):
            decoder = self.metric.decoder
            assert decoder.output_shape is not None
            size = decoder.output_shape.numel()
            decoder.probe_rows(where, flat, size, self.metric.chunk_size, condition)


class _NoValue(Exception):
    """A decoder has no values at the points of a call."""


def _refuse_non_finite(where: str, flat: Tensor) -> None:  # (k, m)
    ok = flat.isfinite().all(-1)
    if holds(ok):
        return
    rows = (~ok).nonzero().flatten().tolist()
    raise NonFiniteError(
        where,
        "finite points",
        f"NaN or infinity at {len(rows)} of {len(ok)} points (first: {rows[:5]})",
        "Remove these rows, or look at what produced them.",
    )


def _shapes(vectors: Any) -> str:
    return ", ".join(str(tuple(v.shape)) for v in vectors)


def _check_tangent(where: str, v: Tensor, z: Tensor) -> None:
    if v.device != z.device:
        hint = "Move one of them."
        raise DeviceError(where, f"tangents on {z.device}", str(v.device), hint)
    if not evidently_finite(v) and not holds(v.isfinite()):
        hint = "Look at what produced them."
        raise NonFiniteError(where, "finite tangents", "NaN or infinity", hint)
    if v.dtype != z.dtype:
        hint = "Convert one of them."
        raise DTypeError(where, f"tangents of dtype {z.dtype}", str(v.dtype), hint)
