"""Seeded randomness that leaves the caller's alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch
from torch import Tensor

from riemae.exceptions import DTypeError
from riemae.numerics.threads import TURN


@contextmanager
def restored(device: torch.device | None = None) -> Iterator[None]:
    """Restore torch's default generators, of the processor and ``device``, afterwards.

    One thread at a time, because all threads share them.
    """
    cuda = device is not None and device.type == "cuda"
    with TURN, torch.random.fork_rng(devices=[device] if cuda else []):
        yield


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's default generator of one device inside, and restore it afterwards.

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


def signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random signs shaped like a tensor; drawn where the generator lives, then moved."""
    device = like.device if generator is None else generator.device
    bits = torch.randint(2, like.shape, generator=generator, device=device)
    return (2 * bits - 1).to(like)


def gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal numbers shaped like a tensor; drawn where the generator lives, then moved."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=device).to(
        like.device
    )


def as_generator(
    where: str, generator: torch.Generator | int | None, device: torch.device | str = "cpu"
) -> torch.Generator | None:
    """The source of randomness that an argument ``generator=`` stands for.

    Args:
        where: Who asks.
        generator: Itself; an integer is the seed of a new one; None is torch's own of the moment.
        device: Of a new one.

    Raises:
        DTypeError: For anything else.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if isinstance(generator, Integral) and not isinstance(generator, bool):
        return torch.Generator(device).manual_seed(int(generator))
    hint = "Try generator=0, or torch.Generator().manual_seed(0)."
    raise DTypeError(where, "a torch.Generator, a seed or None", repr(generator)[:80], hint)
