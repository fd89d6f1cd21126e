"""geomstats' pull-back metric, torch backend (``GEOMSTATS_BACKEND``): ``PathStraightening`` and
``LogODESolver``.

It solves one pair after the other. Its own Jacobian of an immersion loops over outputs and points.
The class below overrides it by batched Jacobians, as the package allows; without them it is several
times slower.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from geomstats.geometry.base import ImmersedSet
from geomstats.geometry.euclidean import Euclidean
from geomstats.numerics.bvp import ScipySolveBVP
from geomstats.numerics.geodesic import LogODESolver, PathStraightening
from geomstats.numerics.optimization import ScipyMinimize
from torch import Tensor, nn
from torch.func import jacfwd, vmap

from benchmarks.peers import mlp
from benchmarks.peers.worker import FINE, Answer, Layers, Solver, serve


class Surface(ImmersedSet):
    """The decoder in the form that geomstats needs."""

    def __init__(self, decoder: nn.Module, m: int, d: int) -> None:
        self.decoder, self.d = decoder, d
        super().__init__(dim=m)

    def immersion(self, point: Tensor) -> Tensor:
        """Data of a point."""
        return self.decoder(point)

    def _define_embedding_space(self) -> Euclidean:
        return Euclidean(self.d)

    def jacobian_immersion(self, base_point: Tensor) -> Tensor:
        """Of one point ``(m,)`` or many."""
        return _batched(jacfwd(self.decoder), base_point)

    def hessian_immersion(self, base_point: Tensor) -> Tensor:
        """Of one point ``(m,)`` or many."""
        return _batched(jacfwd(jacfwd(self.decoder)), base_point)


def _batched(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    return function(point) if point.ndim == 1 else vmap(function)(point)


def prepare(layers: Layers, threads: int) -> Solver:
    """Settings: ``solver`` "path" or "bvp"; ``nodes``; ``steps`` or ``tol``."""
    torch.set_default_dtype(torch.float64)
    space = Surface(mlp.decoder(layers, threads), layers[0][0].shape[1], len(layers[-1][1]))

    def solve(a: np.ndarray, b: np.ndarray, settings: dict[str, Any]) -> Callable[[], Answer]:
        z0, z1 = mlp.tensors(a, b)
        n = settings["nodes"]
        if settings["solver"] == "bvp":
            integrator = ScipySolveBVP(tol=settings["tol"], max_nodes=20_000)
            path = LogODESolver(
                space, n_nodes=n, integrator=integrator, use_jac=False
            ).geodesic_bvp(z1, z0)
            return lambda: Answer(path(torch.linspace(0, 1, FINE + 1)).numpy(), n * len(z0))
        options = {
            "maxiter": settings["steps"],
            "maxfun": 10 * settings["steps"],
            "gtol": 1e-9,
            "ftol": 1e-15,
        }
        optimizer = ScipyMinimize(method="L-BFGS-B", autodiff_jac=True, options=options)
        paths = PathStraightening(space, n_nodes=n, optimizer=optimizer, symmetric=True)
        found = paths.discrete_geodesic_bvp(z1, z0)

        def finish() -> Answer:
            # This is what its ``dist`` returns: the norm of its logarithm, which is that of the
            # first segment times the number of segments.
            own = space.metric.norm((n - 1) * (found[:, 1] - found[:, 0]), z0)
            return Answer(found.numpy(), n * len(z0), own.numpy())

        return finish

    return solve


if __name__ == "__main__":
    serve(prepare, ("geomstats", "torch", "numpy"))
