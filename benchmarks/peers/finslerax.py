"""finslerax (JAX): ``GaussNewtonGeodesic``, jitted and vmapped over the pairs, in float64
(``JAX_ENABLE_X64``).

There are two metrics. The package's own ``PullbackRiemannian`` forms JᵀJ and differentiates it. The
other one is written here with the package's base class: it computes |J v| by one forward product,
which is far cheaper.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from finslerax.geometry import EuclideanSpace
from finslerax.geometry.metric import FinslerMetric
from finslerax.models.learned import PullbackRiemannian
from finslerax.solvers import GaussNewtonGeodesic, solve_continuation

from benchmarks.peers.worker import Answer, Layers, Solver, serve


class ForwardMetric(FinslerMetric):
    """``F(x, v) = |J(x) v|``."""

    decoder: Any

    def __init__(self, plane: EuclideanSpace, decoder: Callable[[jax.Array], jax.Array]) -> None:
        super().__init__(manifold=plane)
        self.decoder = decoder

    def metric_fn(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """By one forward product."""
        return jnp.linalg.norm(jax.jvp(self.decoder, (x,), (v,))[1])

    def energy(self, x: jax.Array, v: jax.Array) -> jax.Array:
        """Without the root, which has no derivative at 0."""
        return 0.5 * jnp.sum(jax.jvp(self.decoder, (x,), (v,))[1] ** 2)


def prepare(layers: Layers, threads: int) -> Solver:
    """Settings: ``segments`` as a list of levels, ``metric`` "pullback" or "forward", ``tol`` of
    the gradient.
    """
    weights = [(jnp.asarray(w), jnp.asarray(b)) for w, b in layers]

    def decoder(z: jax.Array) -> jax.Array:
        for w, b in weights[:-1]:
            z = jax.nn.silu(w @ z + b)
        return weights[-1][0] @ z + weights[-1][1]

    plane = EuclideanSpace(layers[0][0].shape[1])
    metrics = {
        "pullback": PullbackRiemannian(plane, decoder),
        "forward": ForwardMetric(plane, decoder),
    }

    @cache
    def compiled(metric: str, segments: tuple[int, ...], tol: float) -> Callable[..., Any]:
        solver = _EarlyStop(tol=tol)
        stages = [(solver, metrics[metric], n) for n in segments]
        return jax.jit(jax.vmap(lambda z0, z1: solve_continuation(stages, z0, z1).xs))

    def solve(a: np.ndarray, b: np.ndarray, settings: dict[str, Any]) -> Callable[[], Answer]:
        find = compiled(settings["metric"], tuple(settings["segments"]), settings["tol"])
        nodes = find(jnp.asarray(a), jnp.asarray(b)).block_until_ready()

        def finish() -> Answer:
            own = jax.vmap(metrics[settings["metric"]].arc_length)(nodes)
            return Answer(np.asarray(nodes), nodes.shape[0] * nodes.shape[1], np.asarray(own))

        return finish

    return solve


class _EarlyStop(GaussNewtonGeodesic):
    """``solve_continuation`` with solvers that stop when done, for which it has no option."""

    def solve(self, *args: Any, **options: Any) -> Any:
        return super().solve(*args, **options, train_mode=False)


if __name__ == "__main__":
    serve(prepare, ("finslerax", "jax", "numpy"))
