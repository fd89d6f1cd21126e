"""riemae: ``Manifold.geodesic``, whose setting is the accuracy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.peers import mlp
from benchmarks.peers.worker import Answer, Layers, Solver, serve
from riemae import Manifold, solvers
from riemae.solvers.budget import limited

_NO_LIMIT = 10**12  # decodings: they are only counted


def prepare(layers: Layers, threads: int) -> Solver:
    """Settings: ``rtol``; ``dtype`` when it is not float64; the name of a ``solver`` when it is not
    the default, and its ``options``.
    """
    base = Manifold(mlp.decoder(layers, threads))
    manifolds = {name: base.to(dtype=getattr(torch, name)) for name in ("float64", "float32")}
    counts: dict[tuple[str, bytes, bytes], float] = {}

    def solve(a: np.ndarray, b: np.ndarray, settings: dict[str, Any]) -> Callable[[], Answer]:
        dtype = settings.get("dtype", "float64")
        z0, z1 = (z.to(getattr(torch, dtype)) for z in mlp.tensors(a, b))
        name = settings.get("solver")
        solver = None if name is None else getattr(solvers, name)(**settings.get("options", {}))

        def call() -> solvers.Result:
            return manifolds[dtype].geodesic(
                z0, z1, rtol=settings["rtol"], solver=solver, n_starts=1, throw=False
            )

        r = call()

        def finish() -> Answer:
            key = json.dumps(settings), a.tobytes(), b.tobytes()
            if key not in counts:  # by a call that is not timed
                with limited("ours", _NO_LIMIT, None) as budget:
                    call()
                assert budget is not None
                counts[key] = budget.used / len(a)
            return Answer(
                r.curve.nodes.double().numpy(),
                int((r.stats["segments"] + 1).sum()),
                r.length.double().numpy(),
                int((~r.converged).sum()),
                counts[key],
            )

        return finish

    return solve


if __name__ == "__main__":
    serve(prepare, ("torch", "numpy", "scipy"))
