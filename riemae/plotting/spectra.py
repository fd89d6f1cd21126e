"""Eigenvalues: of the metric over points, and of a matrix of distances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from riemae.differential.conditions import Conditions
from riemae.exceptions import NonFiniteError, ShapeError
from riemae.manifold import Manifold
from riemae.numerics.checks import expect_range
from riemae.plotting.canvas import axes_for, remark
from riemae.plotting.colours import LINES
from riemae.plotting.inputs import on_manifold, plain
from riemae.solvers import DistanceMatrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def metric_spectrum(
    manifold: Manifold,
    z: Any,
    *,
    ax: Axes | None = None,
    condition: Conditions = None,
    **options: Any,
) -> Axes:
    """Draw the eigenvalues of the metric over points, the largest first.

    The line is their median, the bands hold 50 and 90 % of the points. A steep line means that the
    decoder uses few directions; one close to 0, that a latent coordinate is idle.

    Args:
        manifold: Of any latent dimension.
        z: Points ``(n, m)``.
        ax: Where to draw; by default in a new figure.
        condition: As in :class:`~riemae.Manifold`, one for each point.
        options: For ``ax.plot`` of the median.

    Raises:
        ShapeError: For points of another shape, or none.
        NonFiniteError: When the metric is 0 everywhere.
    """
    where = "plotting.metric_spectrum"
    z = on_manifold(where, "z", manifold, z)
    if z.ndim != 2 or not len(z):
        hint = "Give some codes of data."
        raise ShapeError(where, "points z of shape (n, m)", str(tuple(z.shape)), hint)
    with torch.no_grad():
        values = manifold.eigenvalues(z, condition=condition)
    ordered = values.flip(-1).double().cpu().numpy()
    zero = ordered <= 0
    if zero.all():
        hint = "The decoder is constant there."
        raise NonFiniteError(where, "an eigenvalue above 0", "none", hint)
    shown = np.where(zero, ordered[~zero].min() * 1e-2, ordered)  # below the rest
    ax = axes_for(where, ax)
    number = np.arange(1, shown.shape[1] + 1)
    for low, high in ((5, 95), (25, 75)):
        bottom, top = np.percentile(shown, (low, high), axis=0)
        name = f"{high - low} % of the points"
        ax.fill_between(number, bottom, top, color=LINES[0], alpha=0.2, linewidth=0, label=name)
    style = {"color": LINES[0], "marker": "o", "label": "median", **options}
    ax.plot(number, np.median(shown, axis=0), **style)
    ax.set_yscale("log")
    ax.set_xlabel("number, the largest first")
    ax.set_ylabel("eigenvalue of G (squared stretch)")
    _whole_numbers(ax)
    ax.grid(axis="y", alpha=0.25)
    ax.legend(frameon=False)
    if zero.any():
        remark(ax, f"{zero.sum()} of {zero.size} eigenvalues are 0")
    return ax


def distance_spectrum(
    distances: Any, count: int = 20, *, ax: Axes | None = None, **options: Any
) -> Axes:
    """Draw the eigenvalues of classical scaling: how many dimensions a set of distances needs.

    They are those of ``−½ C D² C`` with squared distances D² and the centring C, as shares of the
    sum of their sizes. Distances of points in a Euclidean space have none below 0; what is below 0
    no flat picture can show.

    Args:
        distances: ``(n, n)``, or a :class:`~riemae.solvers.DistanceMatrix`.
        count: Eigenvalues to draw, the largest in size.
        ax: Where to draw; by default in a new figure.
        options: For ``ax.bar``.

    Raises:
        ShapeError: When the matrix is not square.
        NonFiniteError: When an entry is not finite, or all are 0.
        OptionError: When ``count`` is not a whole number of at least 1.
    """
    where = "plotting.distance_spectrum"
    expect_range(where, "count", count, 1, integer=True, hint="Try 20.")
    if isinstance(distances, DistanceMatrix):
        distances = distances.distances
    d = plain(where, "distances", distances)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        hint = "Give M.distance_matrix(points)."
        raise ShapeError(where, "distances of shape (n, n)", str(d.shape), hint)
    if not np.isfinite(d).all():
        got = f"{(~np.isfinite(d)).sum()} entries with NaN or infinity"
        raise NonFiniteError(where, "finite distances", got, "Leave these points out.")
    squared = d**2
    centred = squared - squared.mean(0) - squared.mean(1)[:, None] + squared.mean()
    values = np.linalg.eigvalsh(-(centred + centred.T) / 4)
    total = np.abs(values).sum()
    if not total > 0:
        raise NonFiniteError(where, "distances above 0", "none", "All points are the same.")
    shares = 100 * values / total
    largest = shares[np.argsort(-np.abs(shares), kind="stable")[:count]]
    number = np.arange(1, len(largest) + 1)
    ax = axes_for(where, ax)
    for chosen, colour, name in (
        (largest >= 0, LINES[0], "above 0"),
        (largest < 0, LINES[5], "below 0: not Euclidean"),
    ):
        if chosen.any():
            style = {"color": colour, "label": name, **options}
            ax.bar(number[chosen], largest[chosen], **style)
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_xlabel("number, by size")
    ax.set_ylabel("share of the spectrum (%)")
    _whole_numbers(ax)
    negative = -shares[shares < 0].sum()
    ax.legend(frameon=False, title=f"{negative:.1f} % of all is below 0")
    return ax


def _whole_numbers(ax: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
