"""How much memory there is, and what to say when it does not suffice."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

from riemae.exceptions import MemoryLimitError, RiemaeError

P = ParamSpec("P")
R = TypeVar("R")

# Limits of a container, in its two versions; "max" and numbers beyond all memory mean none.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# What torch's allocator on the CPU says when it gets nothing.
_ALLOCATOR = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory")
_UNKNOWN = 8 * 2**30
# Below 32 MiB, the most that glibc heeds.
_BLOCK = 31 * 2**20
_ADVICE = (
    "Hold fewer points at once with Manifold(..., chunk_size=), solve fewer pairs at a time, solve "
    "without matrices (solver=solvers.NewtonCG()), or in float32 (M.to(dtype=torch.float32))."
)


def total_memory(device: torch.device) -> int:
    """Bytes that this process may use in all on a device, whatever of them is free now.

    On a processor that is the machine's memory, or the container's limit where it is lower.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return _of_the_machine()


@functools.cache
def _of_the_machine() -> int:
    known = []
    try:
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # not on every system
        known.append(_UNKNOWN)
    for name in _LIMITS:
        try:
            text = Path(name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            known.append(int(text))
    return min(known)


@functools.cache
def keep_freed_memory() -> None:
    """Have the C library keep some tens of megabytes of freed memory, where it is glibc.

    It returns freed memory to the system as soon as there is twice as much as the largest block
    that was ever freed on its own. A pass over a few hundred points then asks for the same pages
    each time, which takes a tenth of a geodesic. One large block, never touched, tells it better;
    any tensor of that size does the same.
    """
    torch.empty(_BLOCK, dtype=torch.uint8)


def is_shortage(reason: BaseException | None) -> bool:
    """Whether an error says that there is not enough memory, on any device."""
    if isinstance(reason, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(reason, RuntimeError) and any(x in str(reason) for x in _ALLOCATOR)


def within_memory(method: Callable[P, R]) -> Callable[P, R]:
    """``method`` with a typed error, and advice, where memory does not suffice.

    Raises:
        MemoryLimitError: In place of torch's own error, which is its cause.
    """

    @functools.wraps(method)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except MemoryLimitError:
            raise
        except (RuntimeError, MemoryError, RiemaeError) as reason:
            # A decoder's failure may have been explained already: what counts is its cause.
            cause = reason.__cause__ if isinstance(reason, RiemaeError) else reason
            if not is_shortage(cause):
                raise
            where = method.__qualname__
            got = str(cause).strip().partition("\n")[0]
            raise MemoryLimitError(where, "enough memory", got, _ADVICE) from cause

    return called
