"""Methods side by side: error against time, and times as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from riemae.exceptions import NonFiniteError, OptionError, ShapeError
from riemae.plotting.canvas import axes_for, remark
from riemae.plotting.colours import LINES, style_of_line
from riemae.plotting.inputs import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHAPES = ("o", "s", "^", "D", "v", "P", "X")


def error_against_time(
    runs: Mapping[str, tuple[Any, Any]],
    *,
    ax: Axes | None = None,
    targets: Sequence[float] = (),
    error: str = "relative error",
    time: str = "wall time (s)",
    **options: Any,
) -> Axes:
    """Draw errors of several methods against their times, both logarithmic: down and left is good.

    Args:
        runs: By name of a method, times ``(k,)`` and errors ``(k,)`` of its settings. A pair with
            NaN is left out; an error of 0 is drawn at the lower edge as a triangle.
        ax: Where to draw; by default in a new figure.
        targets: Errors to mark by a line.
        error: What the errors are, with units.
        time: What the times are, with units.
        options: For ``ax.plot``.

    Raises:
        ShapeError: When a method has not as many errors as times.
        OptionError: When there are no methods, a time is not positive, or an error is negative.
        NonFiniteError: When nothing is finite.
    """
    where = "plotting.error_against_time"
    points = {name: _measured(where, name, *run) for name, run in runs.items()}
    if not points:
        raise OptionError(where, "at least one method", "none", "Try {'riemae': (times, errors)}.")
    above = np.concatenate([errors[errors > 0] for _, errors in points.values()])
    if not len(above):
        hint = "Nothing to compare."
        raise NonFiniteError(where, "finite errors above 0", "none", hint)
    floor = above.min() / 3
    ax = axes_for(where, ax)
    exact = 0
    for number, (name, (seconds, errors)) in enumerate(points.items()):
        style = {**style_of_line(number), "marker": _SHAPES[number % len(_SHAPES)], **options}
        shown = np.where(errors > 0, errors, floor)
        some = errors > 0
        name = name if len(seconds) else f"{name} (no result)"
        ax.plot(seconds, shown, label=name, markevery=list(np.flatnonzero(some)), **style)
        exact += int((~some).sum())
        ax.plot(seconds[~some], shown[~some], ls="", marker="$▼$", ms=10, color=style["color"])
    ax.set_xscale("log")
    ax.set_yscale("log")
    for target in targets:
        ax.axhline(target, color="0.4", linewidth=0.8, linestyle=":", zorder=0)
    ax.set_xlabel(time)
    ax.set_ylabel(error)
    ax.grid(alpha=0.25)
    ax.legend(framealpha=0.8)
    if exact:
        remark(ax, "▼ error 0")
    return ax


def time_bars(
    seconds: Mapping[str, float],
    *,
    ax: Axes | None = None,
    time: str = "wall time (s)",
    absent: str = "not reached",
    **options: Any,
) -> Axes:
    """Draw the times of several methods as bars on a logarithmic scale, with their numbers.

    Args:
        seconds: By name of a method; NaN or None where it has no time.
        ax: Where to draw; by default in a new figure.
        time: What the times are, with units.
        absent: What is written where there is none.
        options: For ``ax.barh``.

    Raises:
        OptionError: When a time is not positive, or there are no methods.
        NonFiniteError: When no time is finite.
    """
    where = "plotting.time_bars"
    if not seconds:
        raise OptionError(where, "at least one method", "none", "Try {'riemae': 0.1}.")
    given = [np.nan if value is None else value for value in seconds.values()]
    values = plain(where, "seconds", given)
    known = np.isfinite(values)
    if not known.any():
        raise NonFiniteError(where, "a finite time", "none", "Nothing to compare.")
    if (values[known] <= 0).any():
        got = f"{values[known].min():g}"
        raise OptionError(where, "times above 0", got, "They are on a logarithmic scale.")
    ax = axes_for(where, ax, (6.0, 0.8 + 0.4 * len(values)))
    places = np.arange(len(values))
    left = values[known].min() / 3
    style = {"color": LINES[0], "height": 0.65, **options}
    bars = ax.barh(places[known], values[known] - left, left=left, **style)
    texts = [_seconds(value) for value in values[known]]
    ax.bar_label(bars, texts, padding=4)
    for place in places[~known]:
        ax.annotate(absent, (left, place), (4, 0), textcoords="offset points", va="center")
    ax.set_xscale("log")
    ax.set_xlim(left, values[known].max() * 3)
    ax.set_yticks(places, list(map(str, seconds)))
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.set_xlabel(time)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return ax


def _measured(where: str, name: str, seconds: Any, errors: Any) -> tuple[np.ndarray, np.ndarray]:
    """Finite pairs of a method by time.

    Raises:
        ShapeError: When there are not as many errors as times.
        OptionError: When a time is not positive, or an error is negative.
    """
    t, e = (plain(where, name, x).reshape(-1) for x in (seconds, errors))
    if t.shape != e.shape:
        got = f"{len(t)} and {len(e)} of {name!r}"
        raise ShapeError(where, "as many errors as times", got, "Give one error for each time.")
    known = np.isfinite(t) & np.isfinite(e)
    t, e = t[known], e[known]
    if (t <= 0).any() or (e < 0).any():
        got = f"a time of {t.min():g}, an error of {e.min():g} of {name!r}"
        raise OptionError(where, "times above 0 and errors of at least 0", got, "Take sizes.")
    order = np.argsort(t, kind="stable")
    return t[order], e[order]


def _seconds(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"
