"""Blocks of work, here or on any executor: threads, processes, a cluster."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from riemae.exceptions import DTypeError, TransferError
from riemae.solvers.progress import Progress

# Blocks that an executor holds at once: more than the workers of most clusters, fewer than would
# fill a memory.
_IN_FLIGHT = 256


class Work(Protocol):
    """What computes a block, wherever it is sent."""

    def __call__(self, block: int, progress: Progress | None = None) -> tuple[Tensor, ...]:
        """The tensors of a block, on the CPU."""
        ...


def expect_executor(where: str, executor: Any) -> None:
    """An executor, or None.

    Raises:
        DTypeError: For anything else.
    """
    if executor is not None and not isinstance(executor, Executor):
        got = type(executor).__name__
        hint = "Of a Dask client: client.get_executor()."
        raise DTypeError(where, "a concurrent.futures.Executor", got, hint)


def computed(
    where: str,
    work: Work,
    blocks: Iterable[int],
    executor: Executor | None,
    progress: Progress | None,
    turns: bool = True,
) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Blocks with their tensors, as they finish.

    Args:
        where: The call, for errors.
        work: What computes them.
        blocks: Their numbers, taken as they are sent.
        executor: Where; None for here.
        progress: Told of what is done within a block, where that is here.
        turns: Whether threads take turns: torch's forward mode is not safe in several.
    """
    if executor is None:
        for block in blocks:
            with one_thread():
                parts = work(block, progress)
            yield block, parts
        return
    # Threads share the work; everything else gets one string of bytes, unpacked once a process.
    threaded = isinstance(executor, ThreadPoolExecutor)
    sent: Any = work if threaded else _packed(where, work)
    call = partial(_in_thread if threaded else _in_process, turns)
    queue = iter(blocks)
    pending = dict[Future[Any], int]()
    threads = torch.get_num_threads()
    try:
        while True:
            for block in islice(queue, _IN_FLIGHT - len(pending)):
                pending[executor.submit(call, sent, block)] = block
            if not pending:
                return
            finished = wait(pending, return_when=FIRST_COMPLETED).done
            # Errors last: a block that is finished is kept.
            for future in sorted(finished, key=lambda f: (f.exception() is not None, pending[f])):
                parts = tuple(torch.as_tensor(part) for part in future.result())
                yield pending.pop(future), parts
    finally:
        for future in pending:
            future.cancel()
        torch.set_num_threads(threads)  # what new threads of this process start with


# torch's forward mode keeps its levels in one place for all threads of a process: two derivatives
# at once break both.
_TURN = threading.Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread per block.

    Rounding depends on how many threads share the work, and there are as many workers as
    processors.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_thread(turns: bool, work: Work, block: int) -> tuple[Tensor, ...]:
    with _TURN if turns else nullcontext(), one_thread():
        return work(block)


def _in_process(turns: bool, packed: bytes, block: int) -> tuple[np.ndarray, ...]:
    """A block as numpy arrays.

    Tensors would travel through shared memory, of which containers have little.
    """
    return tuple(part.numpy() for part in _in_thread(turns, _unpacked(packed), block))


@lru_cache(maxsize=2)
def _unpacked(packed: bytes) -> Work:
    work: Work = pickle.loads(packed)
    return work


def _packed(where: str, work: Work) -> bytes:
    """The work as bytes, by cloudpickle where it is installed.

    It also takes lambdas and what a notebook defines.

    Raises:
        TransferError: When some part of it cannot be sent.
    """
    try:
        from cloudpickle import dumps
    except ImportError:
        from pickle import dumps
    try:
        packed: bytes = dumps(work)
    except (pickle.PicklingError, AttributeError, TypeError) as reason:
        by = dumps.__module__.split(".")[0].strip("_")
        raise TransferError(
            where,
            "a space that can be sent to other processes",
            f"{reason} ({by})",
            "Make the decoder an nn.Module or a function at the top level of a module, install "
            "cloudpickle (pip install 'riemae[dask]'), or use a ThreadPoolExecutor.",
        ) from reason
    return packed
