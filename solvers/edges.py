"""Lengths of the straight edges of a graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from riemae.exceptions import GraphError
from riemae.solvers.curve import Curve
from riemae.solvers.hooks import embedding_of, precision_of
from riemae.solvers.quadrature import length as measured
from riemae.solvers.space import Space
from riemae.solvers.speeds import length

# Down to this accuracy, two lengths of an edge that agree to a share of it are believed.
_CURSORY = 1e-3
_AGREEMENT = 0.01
# Pieces measured at once: what a decoder returns for all would not fit. A line in panels has as
# many points as so many.
_EDGES = 4096
_PANELS = 38
# Corners of the finest polygon, and how many rtol a length by a few speeds may differ from its.
_CORNERS = 17
_COARSELY = 10.0


def line_lengths(space: Space, start: Tensor, stop: Tensor, rtol: float) -> Tensor:
    """Lengths of straight lines, ``(e, m), (e, m) -> (e,)``.

    By few points where one and two pieces agree, elsewhere by panels of known error.
    """
    rows = torch.arange(len(start), device=start.device)
    lengths = torch.full_like(start[:, 0], torch.nan)
    if rtol > _CURSORY:
        pieces = _split(_EDGES, start, stop)
        whole = [length(space, torch.stack(part, 1)) for part in pieces]
        pieces = _split(_EDGES // 2, start, stop)
        halves = [length(space, Curve.line(*part, 2)) for part in pieces]
        lengths = torch.cat(halves)
        # Where a map has kinks two lengths may agree by accident, though hardly to so many digits.
        # False for NaN.
        apart = (lengths - torch.cat(whole)).abs()
        doubted = apart > _AGREEMENT * rtol * lengths
        rows = doubted.nonzero().flatten()
        if len(rows):
            size = max(1, _EDGES // _CORNERS)
            parts = _split(size, start[rows], stop[rows])
            polygons = torch.cat([_polygons(space, *part, rtol) for part in parts])
            # Speeds at a few points have their say, too, though kinks make them uneven.
            apart = (polygons - lengths[rows]).abs()
            good = apart <= _COARSELY * rtol * lengths[rows]
            lengths[rows[good]] = polygons[good]
            rows = rows[~good]
    if len(rows):
        parts = _split(_EDGES // _PANELS, start[rows], stop[rows])
        measures = [measured(space, torch.stack(part, 1), rtol, throw=False) for part in parts]
        lengths[rows] = torch.cat(measures)
    return lengths


def _polygons(space: Space, start: Tensor, stop: Tensor, rtol: float) -> Tensor:
    """Lengths of straight lines by polygons of 4, 8 and 16 chords of their images.

    NaN where these do not agree. Polygons need no derivative, and kinks do not disturb them: a
    corner that a chord cuts costs a share of that chord, so that twice as many chords miss half as
    much or less, and a quarter on smooth pieces.
    """
    embedded = embedding_of(space)
    times = torch.linspace(0, 1, _CORNERS).to(start)[:, None]
    begins = start[:, None]
    ends = stop[:, None]
    lines = torch.lerp(begins, ends, times)
    if embedded is None:
        found = None
    else:
        eps = precision_of(space, lines.dtype).eps
        found = embedded(lines, partial(_chord_sums, eps=eps))
    if found is None:
        return torch.full_like(start[:, 0], torch.nan)
    coarse, middle, fine, noise = found.unbind(1)
    gain = torch.maximum(fine - middle, (middle - coarse) / 2)
    good = gain + noise <= rtol * fine
    # What is still missing is between a third of the last gain, on smooth pieces, and all of it: a
    # third of rtol is left of it.
    last_gain = fine - middle
    return torch.where(good, fine + 2 / 3 * last_gain, torch.nan)


def _chord_sums(x: Tensor, eps: float) -> Tensor:  # (k, 17, D) -> (k, 4)
    """Lengths of the polygons through every fourth, every second and every image.

    And what rounding adds at most.
    """
    chords = (x[:, ::stride].diff(dim=1) for stride in (4, 2, 1))
    sums = [torch.linalg.vector_norm(part, dim=-1).sum(-1) for part in chords]
    size = torch.linalg.vector_norm(x, dim=-1).amax(-1)
    noise = (_CORNERS - 1) * 4 * eps * size
    return torch.stack([*sums, noise], 1)


def _split(size: int, start: Tensor, stop: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    most = max(1, size)
    starts = start.split(most)
    stops = stop.split(most)
    return zip(starts, stops, strict=True)


def chord_lengths(space: Space, start: Tensor, stop: Tensor) -> Tensor:
    """Distances in the ambient space.

    Raises:
        GraphError: When the space knows none.
    """
    chords = space.ambient_distance(start, stop)
    if chords is None:
        raise GraphError(
            "graph",
            "a space with an ambient distance for weight='chord'",
            type(space).__name__,
            "Use weight='length'.",
        )
    return chords
