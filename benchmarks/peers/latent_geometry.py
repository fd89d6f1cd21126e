"""latent-geometry: scipy's collocation on the geodesic equation, one pair after the other.

The package casts everything to float32, in which the collocation stalls at small tolerances. The
subclass below keeps float64. The path solver is called directly, which saves the thousand decoder
calls per path that the package makes for plotting.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from latent_geometry.mapping import TorchModelMapping
from latent_geometry.metric import EuclideanPullbackMetric
from latent_geometry.solver import BVPLogarithmSolver, SolverFailedException
from torch import Tensor

from benchmarks.peers import mlp
from benchmarks.peers.worker import FINE, Answer, Layers, Solver, serve


class DoubleMapping(TorchModelMapping):
    """The package's method without the cast."""

    def _to_torch(self, x: np.ndarray) -> Tensor:
        return torch.tensor(x, dtype=torch.float64)


def prepare(layers: Layers, threads: int) -> Solver:
    """Settings: ``tol``, ``nodes`` of the first mesh, and ``float32`` to use the package
    unchanged.
    """
    f = mlp.decoder(layers, threads)
    m, d = layers[0][0].shape[1], len(layers[-1][1])
    single = torch.nn.Sequential(*mlp.decoder(layers, threads)).float()
    metrics = {
        False: EuclideanPullbackMetric(DoubleMapping(f, (m,), (d,))),
        True: EuclideanPullbackMetric(TorchModelMapping(single, (m,), (d,))),
    }

    def solve(a: np.ndarray, b: np.ndarray, settings: dict[str, Any]) -> Callable[[], Answer]:
        metric = metrics[settings.get("float32", False)]
        solver = BVPLogarithmSolver(n_mesh_nodes=settings["nodes"], tolerance=settings["tol"])
        most = 0
        paths: list[Callable[[float], np.ndarray] | None] = []

        def acceleration(z: np.ndarray, v: np.ndarray) -> np.ndarray:
            nonlocal most
            most = max(most, len(z))
            return metric.acceleration(z, v)

        points = 0
        for z0, z1 in zip(a, b, strict=True):
            most = 0
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    paths.append(solver.find_path(z0, z1, acceleration).position)
            except SolverFailedException:
                paths.append(None)
            points += most

        def finish() -> Answer:
            t = np.linspace(0, 1, FINE + 1)
            lines = np.linspace(a, b, FINE + 1, axis=1)
            nodes = [
                lines[i] if path is None else np.stack([path(s) for s in t])
                for i, path in enumerate(paths)
            ]
            return Answer(np.stack(nodes), points, missed=sum(path is None for path in paths))

        return finish

    return solve


if __name__ == "__main__":
    serve(prepare, ("latent-geometry", "torch", "numpy", "scipy"))
