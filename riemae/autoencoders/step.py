"""What one step of a training is about."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """What a step is about.

    Attributes:
        x: Data ``(k, *shape)``.
        neighbor: One neighbour of each sample, or None.
        index: Numbers of the samples in the training data ``(k,)``, or None.
        weights: Weights of the samples ``(k,)``, or None for equal ones.
        condition: What the decoder gets besides the codes ``(k, c)``, or None.
    """

    x: Tensor
    neighbor: Tensor | None = None
    index: Tensor | None = None
    weights: Tensor | None = None
    condition: Tensor | None = None

    def mean(self, values: Tensor) -> Tensor:  # (k,) -> ()
        """The mean over the batch, with the weights of the samples."""
        return values.mean() if self.weights is None else (self.weights * values).mean()
