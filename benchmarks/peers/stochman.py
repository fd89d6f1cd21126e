"""StochMan's ``geodesic_minimizing_energy`` on its ``CubicSpline`` and ``EmbeddedManifold``, all
pairs at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from stochman.curves import CubicSpline
from stochman.geodesic import geodesic_minimizing_energy
from stochman.manifold import EmbeddedManifold
from torch import Tensor

from benchmarks.peers import mlp
from benchmarks.peers.worker import FINE, Answer, Layers, Solver, serve


class Surface(EmbeddedManifold):
    """StochMan embeds curves ``(b, n, m)``, and then measures chords."""

    def __init__(self, decoder: Callable[[Tensor], Tensor]) -> None:
        self.decoder = decoder

    def embed(self, points: Tensor, jacobian: bool = False) -> Tensor:
        """Data of points ``(*b, m)``."""
        return self.decoder(points)


def lbfgs(parameters: Any, lr: float) -> torch.optim.Optimizer:
    """StochMan fixes a rate of 0.1, for Adam; L-BFGS needs steps of 1 and a line search."""
    return torch.optim.LBFGS(
        parameters, lr=1.0, max_iter=20, history_size=20, line_search_fn="strong_wolfe"
    )


def prepare(layers: Layers, threads: int) -> Solver:
    """Settings: ``nodes`` of the spline, ``grid`` of the energy, ``steps``, ``optimizer`` "adam" or
    "lbfgs".
    """
    space = Surface(mlp.decoder(layers, threads))

    def solve(a: np.ndarray, b: np.ndarray, settings: dict[str, Any]) -> Callable[[], Answer]:
        z0, z1 = mlp.tensors(a, b)
        curve = CubicSpline(z0, z1, num_nodes=settings["nodes"])
        geodesic_minimizing_energy(
            curve,
            space,
            optimizer=lbfgs if settings["optimizer"] == "lbfgs" else torch.optim.Adam,
            max_iter=settings["steps"],
            eval_grid=settings["grid"],
        )

        def finish() -> Answer:
            pieces = settings["nodes"] - 1
            counts = (
                pieces * -(-FINE // pieces) + 1,
                settings["grid"],
            )  # every knot is a node, so that nothing is lost
            with torch.no_grad():
                fine, grid = (
                    curve(torch.linspace(0, 1, n, dtype=z0.dtype)).view(len(z0), n, -1)
                    for n in counts
                )
                return Answer(fine.numpy(), grid[..., 0].numel(), space.curve_length(grid).numpy())

        return finish

    return solve


if __name__ == "__main__":
    serve(prepare, ("stochman", "torch", "numpy"))
