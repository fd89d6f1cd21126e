"""Progress of a long call: a function of the caller's, or a bar on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from riemae.exceptions import DTypeError
from riemae.numerics.bars import bars

Progress = Callable[[int, int], object]


@contextmanager
def reported(where: str, progress: Progress | bool | None, label: str) -> Iterator[Progress | None]:
    """What to call with (done, in all): for True, a bar that is closed when the call ends.

    Args:
        where: The call, for the error.
        progress: As the caller gave it: a function, True for a bar, None or False for nothing.
        label: What the bar counts.

    Raises:
        DTypeError: For anything else.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        with _bar(label) as update:
            yield update
    elif callable(progress):
        yield progress
    else:
        got = f"{type(progress).__name__} {progress!r}"
        raise DTypeError(
            where,
            "progress as a function (done, total), or True for a bar",
            got,
            "Try progress=True.",
        )


@contextmanager
def _bar(label: str) -> Iterator[Progress]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with bars(*columns) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


class Share:
    """Progress of a distance matrix, in distances.

    It counts those that were there, those of finished blocks, and half of them for a graph's edges.
    """

    def __init__(self, progress: Progress | None, done: int, total: int, half: bool) -> None:
        self._progress = progress
        self._first = done
        self._ready = 0
        self._total = total
        if half:
            self._offset = (total - done) // 2
        else:
            self._offset = 0

    def built(self, done: int, total: int) -> None:
        """Edges of the graph, of all."""
        if self._progress is not None:
            self._progress(self._first + self._offset * done // max(total, 1), self._total)

    def within(self, done: int, _: int) -> None:
        """Distances of the block that is being computed."""
        if self._progress is not None:
            rest = self._total - self._first
            ready = (self._ready + done) * (rest - self._offset) // max(rest, 1)
            self._progress(self._first + self._offset + ready, self._total)

    def finish(self, count: int) -> None:
        """A block of so many distances is done."""
        self._ready += count
        self.within(0, 0)
