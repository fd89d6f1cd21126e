"""How a training went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from riemae.exceptions import DTypeError, OptionError
from riemae.plotting.canvas import axes_for, remark
from riemae.plotting.colours import style_of_line
from riemae.plotting.inputs import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# From this ratio of the largest to the smallest value on, the scale is logarithmic.
_WIDE = 10


def history(model: Any, *, ax: Axes | None = None, **options: Any) -> Axes:
    """Draw every part of a loss over the epochs.

    Args:
        model: A fitted autoencoder of :mod:`riemae.autoencoders`, its ``history_``, or any mapping
            from names to numbers, one per epoch.
        ax: Where to draw; by default in a new figure.
        options: For ``ax.plot``.

    Raises:
        DTypeError: When it has no history.
        OptionError: When the history is empty.
    """
    where = "plotting.history"
    parts = getattr(model, "history_", getattr(model, "history", model))
    if not isinstance(parts, Mapping):
        hint = "Give a fitted model, or {'loss': [...]}."
        raise DTypeError(where, "a history", type(model).__name__, hint)
    values = {str(name): plain(where, str(name), part).reshape(-1) for name, part in parts.items()}
    values = {name: part for name, part in values.items() if part.size}
    if not values:
        raise OptionError(where, "at least one epoch", "none", "Fit the model first.")
    ax = axes_for(where, ax)
    everything = np.concatenate(list(values.values()))
    known = everything[np.isfinite(everything)]
    for number, (name, part) in enumerate(values.items()):
        style = {**style_of_line(number), "label": name, **options}
        marker = {"marker": "."} if len(part) < 30 else {}
        ax.plot(np.arange(1, len(part) + 1), part, **{**marker, **style})
    if len(known) and known.min() > 0 and known.max() > _WIDE * known.min():
        ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.set_ylabel("mean over the epoch")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    if len(known) < len(everything):
        remark(ax, f"{len(everything) - len(known)} values are not finite")
    return ax
