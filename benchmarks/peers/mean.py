"""geomstats' Fréchet mean under a pull-back metric, in a process of its own.

    python -m benchmarks.peers.mean REQUEST.npz ANSWER.npz     # GEOMSTATS_BACKEND=pytorch

Logarithms come from its ``PathStraightening``, which solves one pair after the other, steps from
its exponential map. The answer holds every iterate with the processor time until then.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

import geomstats
import numpy as np
import torch
from geomstats.learning.frechet_mean import FrechetMean
from geomstats.numerics.geodesic import PathStraightening
from geomstats.numerics.optimization import ScipyMinimize

from benchmarks.peers import mlp
from benchmarks.peers.geomstats import Surface


class _Late(Exception):
    """The time is up."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Late


def main() -> None:
    """Find the mean of one request."""
    torch.set_default_dtype(torch.float64)
    request = np.load(sys.argv[1])
    count = sum(name.startswith("w") for name in request.files)
    layers = [(request[f"w{i}"], request[f"b{i}"]) for i in range(count)]
    space = Surface(mlp.decoder(layers, 1), layers[0][0].shape[1], len(layers[-1][1]))
    options = {"maxiter": int(request["steps"]), "gtol": 1e-6, "ftol": 1e-12}
    optimizer = ScipyMinimize(method="L-BFGS-B", autodiff_jac=True, options=options)
    nodes = int(request["nodes"])
    space.metric.log_solver = PathStraightening(
        space, n_nodes=nodes, optimizer=optimizer, symmetric=True
    )
    log = space.metric.log
    limit = float(request["seconds"])
    seconds: list[float] = []
    points: list[np.ndarray] = []
    began = time.process_time()

    def watched(point: torch.Tensor, base_point: torch.Tensor) -> torch.Tensor:
        seconds.append(time.process_time() - began)
        points.append(base_point.detach().numpy().copy())
        return log(point, base_point)

    space.metric.log = watched
    mean = FrechetMean(space).set(
        init_point=torch.as_tensor(request["start"]), epsilon=0.0, max_iter=int(request["rounds"])
    )
    # By processor time, even within a round.
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        mean.fit(torch.as_tensor(request["points"]))
        points.append(mean.estimate_.detach().numpy().copy())
    except _Late:
        points.append(points[-1])
    signal.setitimer(signal.ITIMER_PROF, 0)
    seconds.append(time.process_time() - began)
    np.savez(
        sys.argv[2],
        seconds=np.array(seconds),
        points=np.array(points),
        version=np.array(geomstats.__version__),
    )


if __name__ == "__main__":
    main()
