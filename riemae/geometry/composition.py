"""Decoder and ambient metric together: a map, and how lengths are measured where it leads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from riemae.ambient import AmbientMetric, Euclidean, FisherRao
from riemae.ambient.uncertain import bound
from riemae.differential.conditions import Condition
from riemae.differential.derivatives import Differential
from riemae.differential.known import Known
from riemae.distributions.layout import EnsembleLayout
from riemae.exceptions import NonFiniteError
from riemae.geometry.decoder import Decoder
from riemae.geometry.variation import Variation, variation_of
from riemae.numerics.deferral import holds
from riemae.numerics.values import evidently_finite

Composed = TypeVar("Composed", bound="Composition")

# What is known of a map, and whether that map is still the same.
Shared = tuple[Known, Callable[[], bool]]

# One for all: it has no state, and a module takes longer to make than the rest of a manifold.
_EUCLIDEAN = Euclidean()


@dataclass
class Findings:
    """What has been found out about a decoder's smoothness, shared by the copies under conditions.

    Attributes:
        warned: Whether a warning of kinks has been given, or was not needed.
        looked: Whether layers and functions have been looked at.
        kinks: The layer or function with kinks that was found, in words.
        told: Called when kinks were looked for, and none were found.
    """

    warned: bool = False
    looked: bool = False
    kinks: str | None = None
    told: Callable[[], None] | None = None


class Composition:
    """A decoder ``f`` and an ambient metric ``H``, with derivatives, on flat batches ``(k, m)``.

    Args:
        decoder: The map ``f``.
        ambient: The metric ``H``; None is Euclidean for tensors, Fisher-Rao for distributions.
        chunk_size: Points handled at once, or None to choose by bytes.

    Attributes:
        given: The metric as it was given.
        ambient: The metric, once it knows what the decoder returns: see :meth:`bind`.
        immersion: Derivatives of ``f``, as a map to ``R^D`` with its Euclidean inner product.
        embedding: Derivatives of ``φ∘f`` where the ambient metric has a feature map φ, else None.
            The immersion itself under the Euclidean metric.
        variation: How an ambient metric without a feature map enters second derivatives, else None.
        varied: Derivatives of ``f`` together with the numbers of ``variation``, else None.
        beside: What is known of derivatives of the connection, where others have found it out.
        condition: The conditions of the points, where the decoder takes one: see :meth:`at`.
        findings: Whether the decoder has kinks, once that was asked.
    """

    def __init__(
        self, decoder: Decoder, ambient: AmbientMetric | None, chunk_size: int | None
    ) -> None:
        self.decoder = decoder
        self.chunk_size = chunk_size
        self.immersion = Differential(decoder, chunk_size, "a decoder", decoder.compiling)
        self.given = ambient
        self.condition: Condition | None = None
        self.findings = Findings()
        self._bound = False
        self._batch_invariant: Differential | None = None
        self.origin: Composition | None = None  # of a copy under conditions
        self._shape: torch.Size | None = None  # of one output
        self._set_ambient(_EUCLIDEAN if ambient is None else ambient)

    @property
    def roundoff(self) -> float:
        """Relative rounding inside the decoder; 0 for that of the points' dtype."""
        return self.decoder.roundoff

    def watch(self) -> None:
        """Drop what was compiled of a decoder that has changed since."""
        if self.decoder.compiling is None:
            return
        identity = self.decoder.identity()
        for map_ in (self.immersion, self.embedding):
            if map_ is not None and map_.compiler is not None:
                map_.compiler.watch(identity)

    @property
    def batch_invariant(self) -> Differential:
        """The embedding, or else the immersion, with the same bits for a point in any batch.

        Curves are solved with it. For a few points by themselves the others are cheaper.
        """
        if self._batch_invariant is None:
            self._batch_invariant = self.first_order.batch_invariant()
        return self._batch_invariant

    @property
    def first_order(self) -> Differential:
        """The map whose images have the lengths of curves, as far as there is one."""
        return self.embedding or self.immersion

    def at(self: Composed, condition: Condition | None) -> Composed:
        """The same under conditions, one for each of the points or curves that its methods get."""
        if condition is None:
            return self
        twin = object.__new__(type(self))  # `copy` would forget what is known, as pickling does
        twin.__dict__.update(self.__dict__)
        twin.condition = condition
        twin.origin = self if self.origin is None else self.origin
        twin.immersion = self.immersion.conditioned(condition)
        if self.embedding is self.immersion:
            twin.embedding = twin.immersion
        elif self.embedding is not None:
            twin.embedding = self.embedding.conditioned(condition)
        twin._batch_invariant = None
        return twin

    def select(self: Composed, rows: Any) -> Composed:
        """The same under the conditions of some of the points or curves."""
        if self.condition is None:
            return self
        return self.at(self.condition.select(rows))

    def parts(
        self: Composed, curves: Tensor, size: int
    ) -> Iterator[tuple[Composed, Tensor]]:  # (p, …)
        """``size`` curves at a time, each part under its own conditions."""
        if len(curves) <= size:
            yield self, curves
            return
        for first in range(0, len(curves), size):
            rows = slice(first, first + size)
            yield self.select(rows), curves[rows]

    def output_shape(self, flat: Tensor) -> torch.Size:  # (k, m)
        """The shape of one output of the decoder."""
        shape = self.decoder.output_shape
        if shape is not None:
            return shape
        # Values could not be looked at: meta device or vmap.
        if len(flat):
            first = flat[:1]
        else:
            first = flat.new_zeros(1, flat.shape[-1])
        decoded = self.decoder(first, first_of(self.condition))
        return decoded.shape[1:]

    def bind(self, flat: Tensor, condition: Condition | None = None) -> None:  # (k, m)
        """Tell the ambient metric, once, what the decoder returns.

        That is tensors, distributions, or the members of an ensemble.

        Args:
            flat: Points.
            condition: One for each.

        Raises:
            AmbientError: When the metric cannot measure that.
        """
        if self._bound:
            return
        if self.origin is not None:  # a copy under conditions
            self.origin.bind(flat, self.condition and self.condition.spread(len(flat)))
            self.__dict__.update(self.origin.at(self.condition).__dict__)
            return
        self.decoder.inspect(flat, condition)
        layout = self.decoder.layout
        self._shape = self.at(condition).output_shape(flat)
        given = self.given
        if given is None:
            member = layout.member if isinstance(layout, EnsembleLayout) else layout
            given = _EUCLIDEAN if member is None else FisherRao()
        ambient = bound(given, layout, self._shape)
        unchanged = isinstance(ambient, Euclidean) and isinstance(self.ambient, Euclidean)
        if ambient is not self.ambient and not unchanged:
            self._set_ambient(ambient)
            self.watch()
        self._bound = True

    @property
    def data_shape(self) -> torch.Size | None:
        """The shape of one output, once the metric is bound."""
        return self._shape

    def shaped(self, x: Tensor) -> Tensor:  # (k, D) -> (k, *shape)
        """Data in the decoder's shape."""
        assert self._shape is not None
        return x.view(len(x), *self._shape)

    def finite(self, where: str, out: Tensor, flat: Tensor) -> Tensor:
        """``out``, one row per point.

        Raises:
            NonFiniteError: When it holds NaN or infinity, with the places.
        """
        if evidently_finite(out) or not len(out):
            return out
        ok = out.isfinite().reshape(len(out), -1).all(1)
        if holds(ok):
            return out
        first = int((~ok).nonzero()[0])
        raise NonFiniteError(
            f"Manifold.{where}",
            "finite values",
            f"NaN or infinity at {int((~ok).sum())} of {len(ok)} points "
            f"(first: z = {flat[first].tolist()})",
            "Is the point inside the decoder's domain, and is the decoder smooth there?",
        )

    def _set_ambient(self, ambient: AmbientMetric) -> None:
        self.ambient = ambient
        self.embedding: Differential | None = None
        self.variation: Variation | None = None
        self.varied: Differential | None = None
        if isinstance(ambient, Euclidean):
            self.embedding = self.immersion
        elif ambient.has_features:
            decoder = self.decoder

            def features(*z: Any) -> Tensor:
                return ambient.features(decoder(*z)).flatten(1)

            what = "features of the decoded points"
            # What a user's function computes may change unnoticed.
            compiling = None if ambient.foreign else self.decoder.compiling
            self.embedding = Differential(features, self.chunk_size, what, compiling)
        else:
            self.variation = variation_of(ambient)
            with_numbers = self.variation.map(self.decoder)
            varied = Differential(with_numbers, self.chunk_size, what=None)
            self.varied = varied.batch_invariant()
        self._batch_invariant = None
        self._connection: Differential | None = None
        self.beside: Shared | None = None


def first_of(condition: Condition | None) -> Condition | None:
    """The first point's condition, or a blank one where there are no points."""
    if condition is None:
        return None
    return condition.select(slice(1)) if len(condition) else condition.blank()
