"""riemae: ``Manifold.geodesic``, whose setting is the accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.peers import mlp
from benchmarks.peers.worker import Answer, Layers, Solver, serve
from riemae import Manifold


def prepare(layers: Layers, threads: int) -> Solver:
    """Settings: ``rtol``, and ``dtype`` when it is not float64."""
    base = Manifold(mlp.decoder(layers, threads))
    manifolds = {name: base.to(dtype=getattr(torch, name)) for name in ("float64", "float32")}

    def solve(a: np.ndarray, b: np.ndarray, settings: dict[str, Any]) -> Callable[[], Answer]:
        dtype = settings.get("dtype", "float64")
        z0, z1 = (z.to(getattr(torch, dtype)) for z in mlp.tensors(a, b))
        r = manifolds[dtype].geodesic(z0, z1, rtol=settings["rtol"], n_starts=1, throw=False)
        points = int((r.stats["segments"] + 1).sum())
        return lambda: Answer(
            r.curve.nodes.double().numpy(),
            points,
            r.length.double().numpy(),
            int((~r.converged).sum()),
        )

    return solve


if __name__ == "__main__":
    serve(prepare, ("torch", "numpy", "scipy"))
