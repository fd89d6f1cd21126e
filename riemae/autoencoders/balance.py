"""Whether the terms of a training outweighed its reconstruction, and what to change then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from riemae.autoencoders.report import Report

_MARGIN = 0.02  # of the variance, by which the reconstruction is worse than a plane's
_RECENT = 20  # the last twentieth of the epochs is averaged
_TREND = 10  # the last tenth of the epochs is compared with the one before
_FALLING = 0.005  # of the reconstruction, by which it was still better in the last tenth
_FEW = 20  # epochs from which there are tenths to be compared


@dataclass(frozen=True)
class Balance:
    """The terms of a training against its reconstruction.

    Attributes:
        weights: Weight of each term, by name.
        sizes: Weight times value at the end of the training, by name; in the unit of the
            reconstruction, which is 1 for a model that ignores its input.
        clip: The largest norm of the gradient in the training, or None.
        warmup: The steps over which the weights rose.
        falling: Whether the reconstruction was still getting better when training ended.
    """

    weights: Mapping[str, float]
    sizes: Mapping[str, float]
    clip: float | None
    warmup: int
    falling: bool = False

    @classmethod
    def of(
        cls,
        weights: Mapping[str, float],
        history: Mapping[str, Sequence[float]],
        clip: float | None,
        warmup: int,
    ) -> Balance:
        """From the history of a training.

        Args:
            weights: Weight of each term, by name.
            history: Values of the parts by epoch.
            clip: As the attribute.
            warmup: As the attribute.
        """
        sizes = {}
        for name, weight in weights.items():
            values = history.get(name)
            if not values:
                continue
            last = values[-max(1, len(values) // _RECENT) :]
            sizes[name] = weight * sum(last) / len(last)
        falling = _still_falling(history.get("reconstruction", ()))
        return cls(weights, sizes, clip, warmup, falling)

    def sentences(self, found: Report) -> tuple[str, ...]:
        """The sentences of a report, with one about the terms where they are the likely cause.

        It replaces the advice to train longer.

        Args:
            found: What the report measured.
        """
        weighed = {name: size for name, size in self.sizes.items() if self.weights[name] > 0}
        if not weighed or not found.unexplained > found.plane + _MARGIN:
            return found.sentences
        others = [s for s in found.sentences if not s.startswith("The reconstruction ")]
        return (self._advice(found, weighed), *others)

    def _advice(self, found: Report, weighed: Mapping[str, float]) -> str:
        name = max(weighed, key=lambda key: weighed[key])
        weight = self.weights[name]
        if self.falling:
            return (
                f"The reconstruction misses {found.unexplained:.1%} of the variance where a plane "
                f"misses {found.plane:.1%}, and was still falling when training ended: train for "
                f"more epochs first. If that does not help, a term outweighs it: lower the weight "
                f"of {name!r} (now {weight:g}, try {weight / 10:g})."
            )
        clip = "keep" if self.clip is not None else "with clip=None they are not limited: set"
        more = max(200, 2 * self.warmup)
        return (
            f"The terms drowned the reconstruction, which misses {found.unexplained:.1%} of the "
            f"variance where a plane misses {found.plane:.1%}. The largest is {name!r}, with "
            f"weight={weight:g} times a value of {weighed[name] / weight:.3g}. Lower its weight "
            f"(try {weight / 10:g}); limit its gradients ({clip} clip=1.0); and let the weights "
            f"rise later (warmup={more} steps, now {self.warmup})."
        )


def _still_falling(values: Sequence[float]) -> bool:
    """Whether more epochs would have gone on to lower a loss.

    Of a few epochs that can be said only where the last one is the best.
    """
    if len(values) < _FEW:
        return len(values) > 1 and values[-1] < min(values[:-1])
    tenth = len(values) // _TREND
    late = sum(values[-tenth:]) / tenth
    before = sum(values[-2 * tenth : -tenth]) / tenth
    return late < (1 - _FALLING) * before
