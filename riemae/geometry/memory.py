"""What probes have found out about a module is kept with the module.

``Manifold(net)`` looks at its decoder at its first call: whether rows are independent, which modes
of differentiation are right. A second manifold of the same module takes over what the first has
found, so that a manifold may be made in every step of a training loop.

Findings belong to the structure of a module (:mod:`riemae.geometry.structure`). They are taken over
only where the structure is the same as before, and the same after the probe as before it.

Values of weights are no part of the structure: training changes them at every step, and a manifold
that is kept is not probed anew either. Yet they matter in two ways, and both are seen to:

- A weight that is zero throughout, such as a gate before training, hides what it multiplies. Such
  weights are remembered, and findings end when one of them is no longer zero.
- Weights may decide on branches. The decoder is therefore probed again at the 8th, 64th, … manifold
  of a module, and trusted modes are compared again after as many calls, by whichever manifold.

An ambient metric is known in the same way, together with a decoder: by its own structure, and,
where its values may decide on more than numbers, by which object it is.

Nothing is written into modules, and nothing here keeps one alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from riemae.ambient import AmbientMetric, Custom
from riemae.differential.known import Known
from riemae.distributions.layout import AnyLayout, EnsembleLayout
from riemae.distributions.numerical import Divergence, Quantiles, Score
from riemae.distributions.registry import Registered, registered
from riemae.geometry.composition import Composition
from riemae.geometry.decoder import Decoder
from riemae.geometry.structure import structure, weights

_AGAIN = 8  # probed again at the 8th, 64th, … manifold
_STRUCTURES = 8  # of one module that are remembered, and of ambient metrics with each

Key = tuple[Hashable, ...]


def _three() -> tuple[Known, ...]:
    return (Known(), Known(), Known())


@dataclass
class Measured:
    """What has been found out about a decoder together with an ambient metric of one structure.

    Attributes:
        anchor: The metric, where only this very object is known.
        known: Modes that are trusted for features, for numbers in second derivatives, and for the
            connection.
        zeros: Names of the metric's weights that were zero throughout.
        checked: The metric that was last looked at, by the kind of points.
    """

    anchor: weakref.ref[Any] | None
    zeros: frozenset[str]
    known: tuple[Known, ...] = field(default_factory=_three)
    checked: dict[Key, weakref.ref[Any]] = field(default_factory=dict)


@dataclass
class Learned:
    """What has been found out about a module under one structure.

    Attributes:
        shape: Of one output.
        known: Modes of differentiation that are trusted.
        layouts: What outputs hold, by the kind of points; None for tensors.
        measured: What is known of ambient metrics.
        zeros: Names of weights that were zero throughout.
        converted: What points are converted to before the module gets them.
        smooth: Whether kinks were looked for, and none were found.
        roundoff: Relative rounding inside, by the kind of points that the decoder was probed with.
        large: Those of which a large batch has been looked at.
        uses: Manifolds that have begun with this.
        due: The use at which the decoder is probed again.
    """

    shape: torch.Size
    known: Known
    zeros: frozenset[str]
    converted: torch.dtype | None = None
    smooth: bool = False
    layouts: dict[Key, AnyLayout | None] = field(default_factory=dict)
    measured: dict[Key, Measured] = field(default_factory=dict)
    roundoff: dict[Key, float] = field(default_factory=dict)
    large: set[Key] = field(default_factory=set)
    uses: int = 1
    due: int = _AGAIN

    def agrees(self, other: Learned) -> bool:
        """Whether another probe has found the same, so that what is known of kinds adds up."""
        fresh = self.uses < self.due and not self.known.announced
        same = self.shape == other.shape and self.converted == other.converted
        return fresh and same and self.zeros == other.zeros


@dataclass(frozen=True)
class Remembered:
    """What a manifold and its decoder's module know in common, for one kind of points."""

    learned: Learned
    decoder: Decoder
    kind: Key
    same: Callable[[], bool]

    def measure(self, metric: Composition, check: Callable[[], None] | None) -> None:
        """Take over, and tell from now on, what is known of the ambient metric.

        Args:
            metric: Which knows by now what the decoder returns.
            check: Looks at the ambient metric; called where nobody has. None where it was called.
        """
        given = metric.given
        measured = None if metric.embedding is metric.immersion else self._measured(given)
        if measured is None:
            if check is not None and given is not None:
                check()
            return
        if given is not None:
            anchor = _anchor(given)
            seen = measured.checked.get(self.kind)
            if check is not None and (seen is None or seen() is not anchor):
                check()
            measured.checked[self.kind] = weakref.ref(anchor)
        same = partial(_same, self.same, given, _description(given))
        features, numbers, connection = measured.known
        for differential, known in ((metric.embedding, features), (metric.varied, numbers)):
            if differential is not None and not known.announced:
                differential.share(known, same)
        if not connection.announced:
            metric.beside = connection, same

    def _measured(self, given: AmbientMetric | None) -> Measured | None:
        """What is known of an ambient metric; None where nothing can be kept."""
        found = self.learned.measured
        if given is None:
            return found.setdefault((), Measured(None, frozenset()))
        description = _description(given)
        if description is None:
            return None
        anchor = None
        key: Key = (description,)
        if given.foreign or any(True for _ in given.children()):
            anchor = _anchor(given)
            key = (description, id(anchor))
        measured = found.get(key)
        if measured is not None:
            alive = measured.anchor is None or measured.anchor() is anchor
            if alive and _still_zero(given, measured.zeros):
                return measured
            del found[key]
        while len(found) >= _STRUCTURES:
            del found[next(iter(found))]
        reference = None if anchor is None else weakref.ref(anchor)
        found[key] = Measured(reference, _zeros(given))
        return found[key]

    @property
    def large(self) -> bool:
        """Whether a large batch has been looked at."""
        return self.kind in self.learned.large

    def saw_large_batch(self) -> None:
        """Keep that a large batch has been looked at."""
        if not self.large and self.same():
            learned = self.learned
            learned.large.add(self.kind)
            learned.roundoff[self.kind] = max(learned.roundoff[self.kind], self.decoder.roundoff)

    def saw_no_kinks(self) -> None:
        """Keep that the decoder is smooth."""
        if not self.learned.smooth and self.same():
            self.learned.smooth = True


class Memory:
    """Findings by module; a module is forgotten when it is freed."""

    def __init__(self) -> None:
        # By identity: modules may define equality as they like.
        self._modules: dict[int, tuple[weakref.ref[nn.Module], dict[Key, Learned]]] = {}

    def __len__(self) -> int:
        return len(self._modules)

    def recall(self, module: nn.Module, key: Key, kind: Key) -> Learned | None:
        """What is known of a module, unless it is to be looked at again."""
        learned = self._of(module).get(key)
        if learned is None or kind not in learned.roundoff or learned.known.announced:
            return None
        learned.uses += 1
        if learned.uses >= learned.due or not _still_zero(module, learned.zeros):
            return None
        return learned

    def learn(
        self, module: nn.Module, key: Key, kind: Key, learned: Learned, decoder: Decoder
    ) -> Learned:
        """Keep what a probe with points of one kind has found: with what is known, or in its place.

        Returns:
            What is known from now on.
        """
        found = self._of(module)
        earlier = found.pop(key, None)
        if earlier is not None:
            if earlier.agrees(learned):
                learned = earlier
            learned.uses = earlier.uses
        while learned.due <= learned.uses:
            learned.due *= _AGAIN
        while len(found) >= _STRUCTURES:
            del found[next(iter(found))]
        learned.roundoff[kind] = max(decoder.roundoff, learned.roundoff.get(kind, 0.0))
        learned.layouts[kind] = decoder.layout
        found[key] = learned
        return learned

    def _of(self, module: nn.Module) -> dict[Key, Learned]:
        number = id(module)
        held = self._modules.get(number)
        if held is not None and held[0]() is module:
            return held[1]
        found: dict[Key, Learned] = {}
        reference = weakref.ref(module, partial(_forget, self._modules, number))
        self._modules[number] = reference, found
        return found


MEMORY = Memory()


def key_of(decoder: Decoder, chunk_size: int | None) -> Key | None:
    """What findings about a decoder as it is now depend on; None where they cannot be kept."""
    lasting = decoder.lasting
    described = None if lasting is None else structure(lasting[0])
    if lasting is None or described is None:
        return None
    return described, lasting[1], decoder.latent_shape, chunk_size, registered()


def recall(metric: Composition, kind: Key) -> Remembered | None:
    """Take over what is known of the decoder for one kind of points.

    None where it has to be probed.
    """
    lasting = metric.decoder.lasting
    key = key_of(metric.decoder, metric.chunk_size)
    if lasting is None or key is None:
        return None
    learned = MEMORY.recall(lasting[0], key, kind)
    if learned is None:
        return None
    layout, roundoff = learned.layouts[kind], learned.roundoff[kind]
    metric.decoder.recall(learned.shape, layout, roundoff, learned.converted)
    if learned.smooth:
        metric.findings.warned = True
        metric.findings.looked = True
    return _shared(metric, key, kind, learned)


def learn(metric: Composition, before: Key | None, kind: Key) -> Remembered | None:
    """Keep what a probe with one kind of points has found about the decoder.

    Args:
        metric: With the decoder.
        before: :func:`key_of` from before the probe.
        kind: Of the points.
    """
    decoder = metric.decoder
    lasting = decoder.lasting
    if lasting is None or before is None or decoder.output_shape is None:
        return None
    if not _is_lasting(decoder.layout):
        return None
    if key_of(decoder, metric.chunk_size) != before:
        return None
    known = metric.immersion.known
    zeros = _zeros(lasting[0])
    learned = Learned(decoder.output_shape, known, zeros, decoder.converted)
    learned = MEMORY.learn(lasting[0], before, kind, learned, decoder)
    return _shared(metric, before, kind, learned)


def _shared(metric: Composition, key: Key, kind: Key, learned: Learned) -> Remembered:
    # Of the decoder alone: with the metric, nothing would be freed before cycles are looked for.
    decoder, chunk_size = metric.decoder, metric.chunk_size

    def same() -> bool:
        return key_of(decoder, chunk_size) == key

    remembered = Remembered(learned, decoder, kind, same)
    metric.immersion.share(learned.known, same)
    metric.findings.told = remembered.saw_no_kinks
    return remembered


def _is_lasting(layout: AnyLayout | None) -> bool:
    """Whether nothing in it depends on values of weights, and no family is announced."""
    if isinstance(layout, EnsembleLayout):
        layout = layout.member
    if layout is None:
        return True
    for head in layout.heads:
        if isinstance(head.family, (Divergence, Quantiles, Score, Registered)) or head.transforms:
            return False
        if any(isinstance(value, Tensor) for value in head.constants.values()):
            return False
    return True


def _anchor(given: AmbientMetric) -> Any:
    """What an ambient metric is known by: the user's function, where a manifold wraps one."""
    function = given.function if type(given) is Custom else None
    return function if isinstance(function, FunctionType) else given


def _description(given: AmbientMetric | None) -> Hashable | None:
    return () if given is None else structure(given, anonymous=True)


def _same(
    decoder: Callable[[], bool], given: AmbientMetric | None, description: Hashable | None
) -> bool:
    """Whether neither decoder nor ambient metric have changed but in values."""
    return decoder() and _description(given) == description


def _forget(
    modules: dict[int, tuple[weakref.ref[nn.Module], dict[Key, Learned]]],
    number: int,
    reference: weakref.ref[nn.Module],
) -> None:
    held = modules.get(number)
    # Another module may have the number by now.
    if held is not None and held[0] is reference:
        del modules[number]


def _zeros(module: nn.Module) -> frozenset[str]:
    """Names of the weights that are zero throughout."""
    named = dict(weights(module))
    if not named:
        return frozenset()
    nonzero = _any_nonzero(list(named.values())).tolist()
    return frozenset(name for name, some in zip(named, nonzero, strict=True) if not some)


def _still_zero(module: nn.Module, names: frozenset[str]) -> bool:
    if not names:
        return True
    tensors = [x for name, x in weights(module) if name in names]
    return not bool(_any_nonzero(tensors).any())


def _any_nonzero(tensors: list[Tensor]) -> Tensor:  # -> (n,)
    first = tensors[0].device
    return torch.stack([x.detach().any().to(first) for x in tensors])
