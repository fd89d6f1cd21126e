"""Progress bars: on stderr in a terminal, as a widget in a notebook."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress


def bars(*columns: Any, only_where_seen: bool = False) -> Progress:
    """Bars of rich with these columns, not yet started.

    Stdout is left to what a program prints. A notebook shows a widget if ipywidgets are installed;
    without them, and where stderr is a file, the last state is written once, at the end.

    Args:
        columns: What a bar is made of.
        only_where_seen: Show nothing where stderr is not a terminal, not even at the end.
    """
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if console.is_jupyter and importlib.util.find_spec("ipywidgets") is None:
        # rich would warn in every call that its widget cannot be shown.
        console = Console(stderr=True, force_jupyter=False)
    return Progress(
        *columns,
        console=console,
        disable=only_where_seen and not (console.is_terminal or console.is_jupyter),
    )
