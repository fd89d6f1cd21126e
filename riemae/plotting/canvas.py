"""Axes to draw in: given ones or new ones, their colour bar, and remarks at their edge."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from riemae.exceptions import DTypeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OUTLINE = "white"


def axes_for(where: str, ax: Axes | None, size: tuple[float, float] = (6.0, 5.0)) -> Axes:
    """The axes that were given, or those of a new figure, which pyplot knows nothing about.

    Raises:
        DTypeError: When ``ax`` is something else, such as a figure or an array of axes.
    """
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    if ax is None:
        return Figure(figsize=size, layout="constrained").subplots()
    if not isinstance(ax, Axes):
        hint = "Take one of figure.subplots()."
        raise DTypeError(where, "ax as one matplotlib Axes", type(ax).__name__, hint)
    return ax


def colour_bar(ax: Axes, drawn: Any, label: str, **options: Any) -> None:
    """A colour bar next to the axes, on the right unless the options say otherwise."""
    figure = ax.get_figure()
    assert figure is not None  # these are drawn in
    figure.colorbar(drawn, ax=ax, label=label, **options)


def name_coordinates(ax: Axes) -> None:
    """The names of two latent coordinates, unless the axes already have names."""
    if not ax.get_xlabel():
        ax.set_xlabel("$z_1$")
    if not ax.get_ylabel():
        ax.set_ylabel("$z_2$")


def remark(ax: Axes, text: str) -> None:
    """What a reader has to know about what is not drawn, small in the lower left corner.

    Later remarks go above earlier ones.
    """
    before = sum(text.get_gid() == "remark" for text in ax.texts)
    ax.annotate(
        text,
        (0, 0),
        (4, 4 + 11 * before),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7.5,
        color="0.25",
        gid="remark",
        zorder=6,
        bbox={"boxstyle": "square,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.8},
    )


def outlined(width: float) -> list[Any]:
    """Path effects that put a white line of this width around what is drawn."""
    from matplotlib import patheffects

    return [patheffects.withStroke(linewidth=width, foreground=OUTLINE)]
