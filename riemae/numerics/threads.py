"""What torch and Python keep once for all threads of a process.

Those are the levels of forward mode, backend flags, the default generator, and filters of warnings.
Two threads in forward mode at once break each other's levels, or read each other's tangents. A flag
that two threads save, set and restore in turn may never be restored.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

# Held while a thread is in forward mode, or has the default generator to itself. One lock for both,
# and re-entrant: each happens inside the other.
TURN = threading.RLock()
_levels = 0  # how deep in forward mode the thread that holds it is


@contextmanager
def forward_mode() -> Iterator[None]:
    """A thread's turn in torch's forward mode; others wait."""
    global _levels
    with TURN:
        _levels += 1
        try:
            yield
        finally:
            _levels -= 1


def jvp(f: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> Any:
    """``torch.func.jvp``, safe among threads that call it here."""
    with forward_mode():
        return torch.func.jvp(f, primals, tangents)


def in_forward_mode() -> bool:
    """Whether a caller has opened a level of forward mode.

    Levels of this module, in any thread, do not count.
    """
    # One level per thread: torch.func nests without opening another.
    return torch.autograd.forward_ad._current_level >= (1 if _levels else 0)


class Shared:
    """A context that all threads share: the first enters it, the last leaves it.

    So it restores what held before any of them.

    Args:
        contexts: Each makes a context manager; entered in this order.
    """

    def __init__(self, *contexts: Callable[[], AbstractContextManager[Any]]) -> None:
        self._contexts = contexts
        self._lock = threading.RLock()
        self._users = 0
        self._stack = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Inside the context, together with whoever else is."""
        with self._lock:
            if not self._users:
                with ExitStack() as stack:
                    for context in self._contexts:
                        stack.enter_context(context())
                    self._stack = stack.pop_all()
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._stack.close()
