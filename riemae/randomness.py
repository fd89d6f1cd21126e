"""Seeded randomness that leaves the caller's alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from riemae.solvers.threads import TURN


@contextmanager
def restored(device: torch.device | None = None) -> Iterator[None]:
    """Torch's default generators, of the processor and ``device``, go on outside as if nothing had been drawn inside.

    One thread at a time: they are the same for all.
    """
    cuda = device is not None and device.type == "cuda"
    with TURN, torch.random.fork_rng(devices=[device] if cuda else []):
        yield


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Torch's default generator of one device starts at ``seed`` inside, and goes on as before outside.

    For code that takes no ``torch.Generator``: dropout layers and ``torch.distributions``.
    """
    with restored(device):
        # torch.manual_seed would also seed the devices that are not restored.
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)
        yield
