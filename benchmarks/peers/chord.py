"""The simplest method: the chord energy of a polyline, minimised by torch's Adam or L-BFGS, for all
pairs at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers import mlp
from benchmarks.peers.worker import Answer, Layers, Solver, serve


def prepare(layers: Layers, threads: int) -> Solver:
    """Settings: ``optimizer`` "adam" or "lbfgs", ``segments``, ``steps``, and Adam's learning rate
    ``rate``.
    """
    f = mlp.decoder(layers, threads)

    def solve(a: np.ndarray, b: np.ndarray, settings: dict[str, Any]) -> Callable[[], Answer]:
        z0, z1 = mlp.tensors(a, b)
        n = settings["segments"]
        t = torch.linspace(0, 1, n + 1, dtype=torch.float64)[1:-1, None]
        inner = ((1 - t) * z0[:, None] + t * z1[:, None]).requires_grad_()

        def nodes() -> Tensor:
            return torch.cat([z0[:, None], inner, z1[:, None]], 1)

        def chords() -> Tensor:
            return f(nodes().flatten(0, 1)).view(len(z0), n + 1, -1).diff(dim=1)

        def energy() -> Tensor:
            optimizer.zero_grad()
            value = n * chords().square().sum()
            value.backward()
            return value

        if settings["optimizer"] == "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam([inner], lr=settings["rate"])
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings["steps"])
            for _ in range(settings["steps"]):
                energy()
                optimizer.step()
                schedule.step()
        else:
            optimizer = torch.optim.LBFGS(
                [inner],
                max_iter=settings["steps"],
                history_size=20,
                tolerance_grad=1e-9,
                tolerance_change=1e-14,
                line_search_fn="strong_wolfe",
            )
            optimizer.step(energy)

        def finish() -> Answer:
            with torch.no_grad():
                return Answer(
                    nodes().numpy(), len(z0) * (n + 1), chords().norm(dim=-1).sum(-1).numpy()
                )

        return finish

    return solve


if __name__ == "__main__":
    serve(prepare, ("torch",))
