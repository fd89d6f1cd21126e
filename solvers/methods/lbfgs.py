"""Limited-memory BFGS on the chord energy, batched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from riemae.solvers.methods.descent import Descent, Objective, Optimizer
from riemae.solvers.solver import check_settings

# Of the line search: halvings, and the share of the promised decrease that is enough.
_ATTEMPTS = 20
_SUFFICIENT = 1e-4


@dataclass(frozen=True)
class LBFGS(Descent, Optimizer):
    """L-BFGS (Liu and Nocedal, 1989) with a backtracking line search, every curve alone.

    Args:
        segments: Segments of the coarsest level.
        max_segments: Segments of the finest level allowed.
        max_steps: Iterations that a pair may take in total.
        history: Pairs of steps and gradient changes that are remembered.
        burst: Iterations between two looks at the Hessian.

    Raises:
        OptionError: For a value out of range.
    """

    segments: int = 8
    max_segments: int = 512
    max_steps: int = 2000
    history: int = 10
    burst: int = 10

    def __post_init__(self) -> None:
        check_settings("LBFGS", self, "history", "burst")

    @property
    def method(self) -> Optimizer:
        """The optimiser: this."""
        return self

    def memory(self, x: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
        """Steps, then gradient changes, newest first; the curve's size."""
        nothing = x.new_zeros(len(x), 2 * self.history, *x.shape[1:])
        return nothing, extent[:, None]

    def advance(
        self, objective: Objective, x: Tensor, memory: Tensor, scalars: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``count`` iterations of L-BFGS."""
        everyone = torch.arange(len(x), device=x.device)
        steps, changes = memory.split(self.history, 1)
        energy, g = objective(x, everyone)
        for _ in range(count):
            extent = scalars[:, 0]
            direction = self._direction(g, steps, changes, extent)
            moved, reached, turned = _searched(
                objective=objective, x=x, energy=energy, g=g, direction=direction
            )
            step = (moved - x)[:, None]
            change = (turned - g)[:, None]
            older = steps[:, :-1]
            steps = torch.cat([step, older], 1)
            earlier = changes[:, :-1]
            changes = torch.cat([change, earlier], 1)
            x = moved
            energy = reached
            g = turned
        return x, torch.cat([steps, changes], 1), scalars

    def _direction(self, g: Tensor, steps: Tensor, changes: Tensor, extent: Tensor) -> Tensor:
        """Two-loop recursion; pairs without positive curvature do not count."""
        tiny = torch.finfo(g.dtype).tiny
        curvature, useful = _curvatures(steps, changes)
        divisor = torch.where(useful, curvature, 1.0)
        rho = torch.where(useful, 1 / divisor, 0.0)
        q = g
        alphas = []
        for k in range(self.history):
            along = (steps[:, k] * q).sum((1, 2))
            alpha = rho[:, k] * along
            q = q - alpha[:, None, None] * changes[:, k]
            alphas.append(alpha)
        # Without a memory the first step is a hundredth of the curve's size.
        norm = g.square().sum((1, 2)).sqrt()
        size = norm.clamp(min=tiny)
        scale = extent / (100 * size)
        for k in reversed(range(self.history)):
            total = changes[:, k].square().sum((1, 2))
            square = total.clamp(min=tiny)
            ratio = curvature[:, k] / square
            scale = torch.where(useful[:, k], ratio, scale)
        r = scale[:, None, None] * q
        for k in reversed(range(self.history)):
            across = (changes[:, k] * r).sum((1, 2))
            beta = rho[:, k] * across
            share = alphas[k] - beta
            r = r + share[:, None, None] * steps[:, k]
        return -r


def _curvatures(steps: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:  # -> (p, h), (p, h)
    """Curvatures along the steps, and whether they are positive beyond rounding."""
    curvature = (steps * changes).sum((2, 3))
    eps = torch.finfo(steps.dtype).eps
    turns = changes.square().sum((2, 3)).sqrt()
    ways = steps.square().sum((2, 3)).sqrt()
    return curvature, curvature > eps * turns * ways


def _searched(
    objective: Objective, x: Tensor, energy: Tensor, g: Tensor, direction: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The longest of 1, 1/2, 1/4, … of the step that lowers the energy.

    Returns:
        Parameters, energies and gradients there; those of the start where there is none.
    """
    slope = (g * direction).sum((1, 2))
    moved = x.clone()
    reached = energy.clone()
    turned = g.clone()
    stride = torch.ones_like(energy)
    pending = (slope < 0).nonzero().flatten()
    for _ in range(_ATTEMPTS):
        if not len(pending):
            break
        share = stride[pending, None, None]
        trial = x[pending] + share * direction[pending]
        there, gradient = objective(trial, pending)
        limit = energy[pending] + _SUFFICIENT * stride[pending] * slope[pending]
        good = there <= limit  # False for NaN
        rows = pending[good]
        moved[rows] = trial[good]
        reached[rows] = there[good]
        turned[rows] = gradient[good]
        pending = pending[~good]
        stride[pending] /= 2
    return moved, reached, turned
