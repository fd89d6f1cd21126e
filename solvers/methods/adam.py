"""Adam on the chord energy: a common first choice, here for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.numerics.checks import expect_range
from riemae.solvers.methods.descent import Descent, Objective, Optimizer
from riemae.solvers.solver import check_settings


@dataclass(frozen=True)
class Adam(Descent, Optimizer):
    """Adam (Kingma and Ba, 2015) on the nodes of the discrete energy.

    Every curve has a learning rate of its own. It starts relative to the latent size of the curve
    and is halved after a burst that did not lower the energy.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Iterations that a pair may take in total.
        learning_rate: Relative to the latent extent of the start curve.
        betas: Decay of the two moments.
        burst: Iterations between two looks at the Hessian.

    Raises:
        OptionError: For a value out of range.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 5000
    learning_rate: float = 5e-3
    betas: tuple[float, float] = (0.9, 0.999)
    burst: int = 50

    def __post_init__(self) -> None:
        check_settings("Adam", self, "burst")
        expect_range("Adam", "learning_rate", self.learning_rate, 0, above=True)

    @property
    def method(self) -> Optimizer:
        """The optimiser: this."""
        return self

    def memory(self, x: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """Both moments; iterations so far and the learning rate."""
        moments = x.new_zeros(len(x), 2, *x.shape[1:])
        rate = self.learning_rate * extent
        scalars = torch.stack([0 * extent, rate], 1)
        return moments, scalars

    def advance(
        self, objective: Objective, x: Tensor, memory: Tensor, scalars: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` iterations of Adam."""
        rows = torch.arange(len(x), device=x.device)
        mean, square = memory.unbind(1)
        done, rate = scalars.unbind(1)
        first, second = self.betas
        start = torch.full_like(rate, torch.inf)
        energy = start
        for k in range(count):
            energy, g = objective(x, rows)
            if k == 0:
                start = energy
            mean = first * mean + (1 - first) * g
            square = second * square + (1 - second) * g.square()
            done = done + 1
            direction = mean / (1 - first**done)[:, None, None]
            size = square / (1 - second**done)[:, None, None]
            # The usual 1e-8 would tie the step to the units of the energy.
            tiny = torch.finfo(x.dtype).tiny ** 0.5
            stride = rate[:, None, None] * direction
            x = x - stride / (size.sqrt() + tiny)
        rate = torch.where(energy < start, rate, rate / 2)
        memory = torch.stack([mean, square], 1)
        scalars = torch.stack([done, rate], 1)
        return x, memory, scalars
