"""How long a part of a loss takes in training."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def seconds(f: Callable[[], Tensor], module: nn.Module, x: Tensor, repeats: int) -> float:
    """The shortest time of a pass forward and backward, in seconds; process time on a processor.

    Args:
        f: A loss ``-> ()``.
        module: The module whose gradients are cleared after each pass.
        x: A tensor on the device where ``f`` works.
        repeats: Passes that are timed, in addition to a first one, which may probe and fill caches.
    """
    accelerated = x.device.type == "cuda"
    clock = time.perf_counter if accelerated else time.process_time
    best = float("inf")
    for _ in range(repeats + 1):
        if accelerated:
            torch.cuda.synchronize(x.device)
        start = clock()
        f().backward()
        if accelerated:
            torch.cuda.synchronize(x.device)
        best = min(best, clock() - start)
        module.zero_grad()
    return best
