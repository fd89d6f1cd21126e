"""The unit of cost, which is not a contender: decoder and full Jacobian at a number of points.

A path solver must evaluate its curves at least once at its final resolution, so it costs at least
one sweep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp, vmap

from benchmarks.peers import mlp
from benchmarks.peers.worker import Answer, Layers, Solver, serve
from riemae import Manifold

_CHUNK = 1024  # points at once by plain torch; about the best on two cores


def prepare(layers: Layers, threads: int) -> Solver:
    """Settings: ``points``.

    ``by`` is "riemae", or "torch" for nothing but ``torch.func``; ``dtype``.
    """
    f = mlp.decoder(layers, threads)
    basis = torch.eye(layers[0][0].shape[1], dtype=torch.float64)
    manifolds = {
        name: Manifold(f).to(dtype=getattr(torch, name)) for name in ("float64", "float32")
    }
    plain = {name: manifold.decoder for name, manifold in manifolds.items()}

    def by_torch(f: Callable[[Tensor], Tensor], z: Tensor) -> None:
        e = basis.to(z.dtype)
        with torch.no_grad():
            for part in z.split(_CHUNK):
                vmap(
                    lambda v, part=part: jvp(f, (part,), (v.expand_as(part),)), out_dims=(None, -1)
                )(e)

    def solve(a: np.ndarray, b: np.ndarray, settings: dict[str, Any]) -> Callable[[], Answer]:
        dtype = settings.get("dtype", "float64")
        z = torch.from_numpy(np.resize(a, (settings["points"], a.shape[1]))).to(
            getattr(torch, dtype)
        )
        if settings.get("by") == "torch":
            by_torch(plain[dtype], z)
        else:
            manifolds[dtype].jacobian(z)
        return lambda: Answer(np.zeros((0, 2, a.shape[1])), settings["points"])

    return solve


if __name__ == "__main__":
    serve(prepare, ("torch",))
