"""Whether a file of distances is of the same space, points and settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from riemae.exceptions import NonFiniteError
from riemae.solvers.executors import one_thread
from riemae.solvers.matrix_layout import Layout
from riemae.solvers.matrix_work import Task
from riemae.solvers.space import Space
from riemae.storage.digests import digest
from riemae.storage.identity import fingerprint, parts

# Points, and pairs of them, whose lengths tell whether a file is of the same space.
_PROBES = 2048
_FEWEST_PROBES = 64
_PROBED_AT_ONCE = 128
# Reciprocals of the golden and of the plastic ratio.
_GOLDEN = 0.6180339887498949
_PLASTIC = 0.7548776662466927


def recognised(
    task: Task, identity: Mapping[str, object] | None, layout: Layout
) -> tuple[dict[str, Any], list[float]]:
    """The description of a run, and its probe.

    Together they say whether a file is of the same run.
    """
    settings = {
        "method": task.method,
        "block_size": layout.size,
        **task.settings,
    }
    about = {
        "format": "riemae distance matrix",
        "version": 2,
        "shape": list(layout.shape),
        "settings": settings,
    }
    known, probe = described(task.space, task.a, task.b, identity)
    return {**about, **known}, probe


def described(
    space: Space, a: Tensor, b: Tensor | None, identity: Mapping[str, object] | None
) -> tuple[dict[str, Any], list[float]]:
    """What identifies points and space, and a probe of the space.

    Args:
        space: The space.
        a: Points ``(n, m)``.
        b: Points ``(q, m)``; None for ``a`` itself.
        identity: What the space depends on, by name; by default the space itself.
    """
    things: Mapping[str, object]
    if identity is None:
        things = {"contents": space}
    else:
        things = identity
    # Strings name themselves; of everything else the contents are looked at.
    names = [name for name, thing in things.items() if not isinstance(thing, str)]
    known = {name: thing for name, thing in things.items() if isinstance(thing, str)}
    with torch.no_grad(), one_thread():
        _speeds(space, a[:2])  # what is made at the first call is there now
        before = {name: parts(things[name]) for name in names}
        probe = _probe(space, a, a if b is None else b)
        after = {name: parts(things[name]) for name in names}
    for name in names:
        known[name] = fingerprint(before[name], after[name])
    description = {
        "dtype": str(a.dtype).removeprefix("torch."),
        "points": {"a": digest(a), "b": "a" if b is None else digest(b)},
        "space": {"class": type(space).__name__, **known},
    }
    return description, probe


def _probe(space: Space, a: Tensor, b: Tensor) -> list[float]:
    """Lengths of two tangents at the points, and of two chords along lines between them.

    The lines join pairs that are spread over all of them, and are cut where no other is: a space
    that differs between the points shows, too.
    """
    if a is b:
        points = a
    else:
        points = torch.cat([a, b])
    count = min(_PROBES, len(points))
    some = torch.linspace(0, len(points) - 1, count).long()
    norms = _speeds(space, points[some])
    # Multiples of two irrational numbers, taken modulo 1, are spread evenly.
    longest = max(len(a), len(b), _FEWEST_PROBES)
    count = min(longest, _PROBES)
    number = torch.arange(count, dtype=torch.float64)
    i = number.long() % len(a)
    share = (number + 1) * _GOLDEN % 1
    j = (share * len(b)).long()
    start = a[i.to(a.device)]
    stop = b[j.to(a.device)]
    cut = (number + 1) * _PLASTIC % 1
    t = cut.to(a)[:, None]
    between = start + t * (stop - start)
    nodes = torch.stack([start, between, stop], 1)
    chords = [space.squared_chords(part).sqrt().flatten() for part in nodes.split(_PROBED_AT_ONCE)]
    return [float(x) for x in torch.cat([*norms, *chords])]


def _speeds(space: Space, points: Tensor) -> list[Tensor]:
    """Lengths of two tangents at every point; NaN where there is none."""
    ramp = torch.arange(points.shape[1], dtype=points.dtype, device=points.device)
    tangents = torch.ones_like(ramp), (1 + ramp).cos()
    return [_norms(space, part, v) for part in points.split(_PROBED_AT_ONCE) for v in tangents]


def _norms(space: Space, points: Tensor, v: Tensor) -> Tensor:
    try:
        return space.norm(points, v.expand_as(points))
    except NonFiniteError:  # one bad point must not hide the others
        if len(points) == 1:
            return points.new_full((1,), math.nan)
        half = len(points) // 2
        first = _norms(space, points[:half], v)
        second = _norms(space, points[half:], v)
        return torch.cat([first, second])
