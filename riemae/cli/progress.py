"""Progress bars of all commands: on stderr, and only where somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from riemae.numerics.bars import bars

if TYPE_CHECKING:
    from rich.progress import TaskID


class Bars:
    """One bar for each thing that is being done, as a context.

    A bar appears at the first call with its name. Nothing is shown where stderr is not a terminal.

    Args:
        quiet: Show nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._bars = bars(
            TextColumn("{task.description:<26}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            only_where_seen=True,
        )
        self._bars.disable |= quiet
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bars.stop()

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None:
        """Move a bar.

        Args:
            what: What is being done.
            done: Steps done.
            total: Steps in all.
            note: Shown behind the bar.
        """
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, note=note)
        self._bars.update(self._tasks[what], completed=done, total=total, note=note)

    def of(self, what: str) -> Callable[[int, int], None]:
        """The bar of one thing, as a function of (steps done, steps in all)."""
        return partial(self, what)
