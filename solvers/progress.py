"""Progress of a long call: a function of the caller's, or a bar on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from riemae.exceptions import DTypeError

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
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update
